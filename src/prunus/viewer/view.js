"use strict";
// What models wrote is only ever set as textContent.
const DATA = JSON.parse(document.getElementById("data").textContent);
const LIVE = !DATA.links; // else a file, with all that it shows inside
const BLOCK = 100; // rows that one request brings, as in server.py
const TALLEST = 15e6; // pixels of an element that every browser can lay out
const byId = (id) => document.getElementById(id);
const runs = [...document.querySelectorAll("#filters .chips:not(.live) input")];
const filters = [...document.querySelectorAll("#filters .chips.live input")];

function make(tag, className, text = "") {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}
const cssOf = (state) => state.replace(" ", "-");

// The address after # has the filters and the problem that is open, so that a page can be reloaded and linked.
const query = () => new URLSearchParams(location.hash.slice(1));
function chosen() {
  return new URLSearchParams({
    runs: runs.filter((one) => one.checked).map((one) => one.value).join(","),
    budget: byId("budget").value,
    task: byId("task").value,
    filters: filters.filter((one) => one.checked).map((one) => one.value).join(","),
  });
}
function addressOf(key) {
  const found = chosen();
  if (key) [["problem", key[0]], ["draw", key[1]]].forEach((pair) => found.set(...pair));
  return `#${found}`;
}
function restore() {
  const known = query();
  if (!known.has("runs")) return;
  const has = (name, value) => (known.get(name) || "").split(",").includes(value);
  for (const one of runs) one.checked = has("runs", one.value);
  for (const one of filters) one.checked = has("filters", one.value);
  byId("budget").value = known.get("budget");
  byId("task").value = known.get("task");
}

async function ask(what, parameters) {
  try {
    const answer = await fetch(`${what}?${parameters}`);
    if (!answer.ok) throw new Error(await answer.text());
    byId("message").hidden = true;
    return await answer.json();
  } catch (error) {
    byId("message").textContent = error instanceof TypeError ? "The server has ended: run prunus view again." : error.message;
    byId("message").hidden = false;
    return null;
  }
}

function nameOf(run) {
  const found = make("span", `c ${runs[run].parentElement.className.replace("chip", "")}`);
  const parts = ["svg", "bdi"].map((tag) => runs[run].parentElement.querySelector(tag).cloneNode(true));
  found.append(parts[0], " ", parts[1]);
  return found;
}
const shownRuns = () => runs.flatMap((one, at) => (one.checked ? [at] : []));

// The list: rows have one height, and only those near the window exist.
const list = { total: 0, asked: new Set(), top: 0, number: 0, height: 0 };
function rowOf([, draw, name, gold, cells, question], place, address) {
  const row = make("a", "row");
  row.href = address;
  row.dataset.place = place;
  row.style.top = `calc(${place} * var(--row))`;
  const answers = make("span", "cells");
  for (const [state, loops, answer] of cells) {
    const missing = state === "missing" ? "" : "no answer";
    const cell = make("span", `cell ${cssOf(state)}`, `${answer ?? missing}${loops ? " ↻" : ""}`);
    cell.title = `${state}${loops ? ", loops" : ""}`;
    answers.append(cell);
  }
  const label = make("span", "", `${draw ? `Draw ${draw + 1}: ` : ""}${question || name}`);
  label.title = name;
  row.append(label, make("span", "", gold), answers);
  return row;
}
function addRows(found) {
  const links = LIVE ? found.rows.map((row) => addressOf(row)) : DATA.links;
  byId("rows").append(...found.rows.map((row, at) => rowOf(row, found.start + at, links[at])));
}
function startList({ total, right, which = "" }) {
  const heading = ["Problem", "Right answer"].map((text) => make("span", "", text));
  const names = make("span", "cells");
  names.append(...shownRuns().map((run, at) => {
    const name = nameOf(run), [number, of] = right[at].map((value) => value.toLocaleString("en"));
    name.append(make("small", "", `${number} of ${of} right`));
    return name;
  }));
  byId("head").replaceChildren(...heading, names);
  byId("list").style.setProperty("--n", Math.max(1, shownRuns().length));
  byId("rows").replaceChildren();
  Object.assign(list, { total, asked: new Set(), height: rowHeight() });
  const most = Math.floor(TALLEST / list.height);
  byId("rows").style.height = `calc(${Math.min(total, most)} * var(--row))`;
  const note = total > most ? `; the first ${most.toLocaleString("en")} are here, filters show others` : which;
  byId("total").textContent = `${total.toLocaleString("en")}${note}`;
}
function rowHeight() {
  const probe = make("a", "row");
  byId("rows").append(probe);
  const height = probe.offsetHeight;
  probe.remove();
  return height;
}
function fill() {
  if (byId("list").hidden || !LIVE) return;
  const above = byId("rows").getBoundingClientRect().top;
  const [first, last] = [-innerHeight, 2 * innerHeight].map((y) => Math.floor((y - above) / list.height / BLOCK));
  for (const block of list.asked) if (block < first || block > last) drop(block);
  for (let block = Math.max(0, first); block <= last && block * BLOCK < list.total; block++) {
    if (list.asked.has(block)) continue;
    const number = list.number;
    list.asked.add(block);
    ask("list", `${chosen()}&start=${block * BLOCK}`).then((found) => {
      if (found && number === list.number && list.asked.has(block)) addRows(found);
    });
  }
}
function drop(block) {
  list.asked.delete(block);
  for (const row of [...byId("rows").children]) if (Math.floor(row.dataset.place / BLOCK) === block) row.remove();
}
async function showList() {
  const number = ++list.number;
  const found = LIVE ? await ask("list", chosen()) : DATA.list;
  if (!found || number !== list.number) return;
  byId("list").hidden = false;
  byId("problem").hidden = true;
  startList(found);
  list.asked.add(0);
  addRows(found);
  scrollTo(0, list.top);
  list.top = 0;
  fill();
}

// A problem.
function stopOf(stop, now) {
  const found = make("details", `stop ${cssOf(stop.state)}${stop.first ? " first" : ""}`);
  const tokens = stop.tokens === null ? "" : ` after ${stop.tokens.toLocaleString("en")} tokens`;
  const ends = { natural: `stops by itself${tokens}`, forced: `cut${tokens}`, unknown: "end unknown" }[stop.ended];
  const answer = stop.answer === null ? "no answer" : `answers ${stop.answer}`;
  const grade = { right: "right", "lost again": "wrong, lost again" }[stop.state] ?? "wrong";
  const summary = make("summary", "", `Budget ${stop.budgets.join(", ")}: ${ends}, ${answer} (${grade})`);
  if (stop.first) summary.append(" ", make("b", "", "first right answer"));
  if (stop.truncated) summary.append(" answer cut at its limit");
  found.append(summary);
  if (stop.thinking) found.append(make("div", "text", stop.thinking));
  if (stop.text) found.append(make("div", "text", stop.text));
  found.open = stop.budgets.includes(now) && !stop.thinking;
  return found;
}
function piecesOf(pieces, className, now) {
  const found = make("div", `text ${className}`);
  let looping = false;
  for (const piece of pieces) {
    if (piece.loop && !looping) found.append(make("b", "flag", "↻ loops from here "));
    looping ||= Boolean(piece.loop);
    if (piece.stop) found.append(stopOf(piece.stop, now));
    else found.append(make(piece.differs ? "mark" : "span", piece.loop ? "loop" : "", piece.text));
  }
  return found;
}
function chainOf(chain, run, now) {
  const section = make("section", `chain ${runs[run].parentElement.className.replace("chip", "")}`);
  const head = make("h2", ""), strip = make("div", "budgets");
  head.append(nameOf(run));
  section.append(head, strip);
  const stops = [...chain.before, ...chain.after].flatMap((piece) => piece.stop || []).concat(chain.apart);
  if (!stops.length) {
    strip.append(make("span", "soft", "This run has no answer to it."));
    return section;
  }
  if (!chain.kept) strip.append(make("span", "soft", "The store does not keep the texts of this set. "));
  const before = piecesOf(chain.before, "before", now), after = piecesOf(chain.after, "after", now);
  before.tabIndex = 0;
  after.append(...chain.apart.map((stop) => stopOf(stop, now)));
  const shown = [...before.querySelectorAll(".stop"), ...after.querySelectorAll(".stop")];
  const cells = stops.flatMap((stop, at) => stop.budgets.map((budget) => {
    const cell = make("button", `cell ${cssOf(stop.state)}${budget === now ? " now" : ""}`, budget);
    cell.type = "button";
    cell.title = `${stop.state}: ${stop.answer ?? "no answer"}`;
    cell.addEventListener("click", () => {
      shown[at].open = true;
      shown[at].scrollIntoView({ block: "center" });
      shown[at].firstChild.focus();
    });
    return cell;
  }));
  strip.append(...cells);
  if (chain.loops) strip.append(make("span", "flag", " ↻ loops"));
  before.hidden = !chain.before.length;
  section.append(...(before.hidden ? [make("div", "")] : [before]), after);
  return section;
}
async function showProblem() {
  const number = ++list.number, wanted = query();
  if (!byId("list").hidden) list.top = scrollY;
  const parameters = chosen();
  for (const name of ["problem", "draw"]) parameters.set(name, wanted.get(name));
  const found = LIVE ? await ask("problem", parameters) : DATA.problem;
  if (!found || number !== list.number) return;
  byId("list").hidden = true;
  byId("problem").hidden = false;
  const title = found.draw ? `${found.problem} · draw ${found.draw + 1}` : found.problem;
  byId("title").replaceChildren(make("bdi", "", title), " ", make("small", "", found.task));
  byId("question").textContent = [found.question ?? found.note, ...found.choices].join("\n");
  byId("question").classList.toggle("soft", found.question === null);
  byId("gold").textContent = found.gold;
  byId("place").textContent = `${found.place ?? "not among the"} ${found.place ? "of " : ""}${found.of.toLocaleString("en")}`;
  const links = LIVE ? { previous: found.previous && addressOf(found.previous), next: found.next && addressOf(found.next) } : DATA.links;
  for (const name of ["previous", "next"]) {
    if (links[name]) byId(name).href = links[name];
    else byId(name).removeAttribute("href");
  }
  byId("back").href = LIVE ? addressOf() : "index.html";
  const now = byId("budget").selectedOptions[0].textContent;
  byId("chains").style.setProperty("--n", found.chains.length);
  byId("chains").replaceChildren(...found.chains.map((chain, at) => chainOf(chain, shownRuns()[at], now)));
  for (const part of document.querySelectorAll(".before")) part.scrollTop = part.scrollHeight;
  scrollTo(0, 0);
}

function show() {
  restore();
  if (LIVE ? query().has("problem") : DATA.problem) showProblem();
  else showList();
}
function follow(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select, input")) return;
  if (byId("list").hidden) {
    const name = { ArrowLeft: "previous", ArrowRight: "next", Escape: "back" }[event.key];
    if (name && byId(name).hasAttribute("href")) location.href = byId(name).href;
    return;
  }
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key], row = document.activeElement.closest("#rows .row");
  if (!by) return;
  const place = row ? Number(row.dataset.place) + by : Math.max(0, Math.ceil(-byId("rows").getBoundingClientRect().top / list.height));
  const next = byId("rows").querySelector(`[data-place="${place}"]`);
  if (!next) return;
  event.preventDefault();
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}
addEventListener("keydown", follow);
if (LIVE) {
  addEventListener("hashchange", show);
  addEventListener("scroll", fill, { passive: true });
  addEventListener("resize", () => {
    if (!byId("list").hidden) list.height = rowHeight();
    fill();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("change", () => {
    if (!shownRuns().length) runs[0].checked = true;
    const open = query();
    list.top = 0;
    location.hash = addressOf(open.has("problem") ? [open.get("problem"), open.get("draw")] : null);
  });
} else {
  document.body.classList.add("files");
  for (const one of runs) one.disabled = true;
}
show();
