"use strict";
// The page is complete without this script, which adds filters, a readout to charts, sorting to tables, and downloads.
const SVG = "http://www.w3.org/2000/svg";

function placeOf(mark) {
  const numbers = mark.getAttribute("transform").match(/-?[\d.]+/g).map(Number);
  return { x: numbers[0], y: numbers[1], note: mark.dataset.note.split("\n"), mark };
}

function addReadout(svg) {
  const figure = svg.closest("figure");
  for (const title of svg.querySelectorAll(".mark > title")) {
    title.parentElement.dataset.note = title.textContent; // the readout shows it for all lines at once
    title.remove();
  }
  const box = document.createElement("div");
  box.className = "readout";
  box.hidden = true;
  box.setAttribute("role", "status");
  figure.append(box);
  const cursor = document.createElementNS(SVG, "path");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);
  let stop = -1;

  const shown = () => [...svg.querySelectorAll(".mark[data-note]")].filter((m) => m.getClientRects().length).map(placeOf);
  function show(x) {
    const near = shown().filter((place) => Math.abs(place.x - x) < 0.6).sort((a, b) => a.y - b.y);
    if (!near.length) return hide();
    cursor.setAttribute("d", `M${x},${svg.viewBox.baseVal.height}V0`);
    const where = document.createElement("b");
    where.textContent = near[0].note[0];
    box.replaceChildren(where, ...near.map(({ note: [, name, value] }) => {
      const row = document.createElement("div");
      for (const text of [name, value]) row.append(Object.assign(document.createElement("span"), { textContent: text }));
      return row;
    }));
    box.hidden = false;
    const at = near[0].mark.getBoundingClientRect(), frame = figure.getBoundingClientRect();
    const left = at.left - frame.left + (at.left - frame.left > frame.width / 2 ? -box.offsetWidth - 12 : 18);
    box.style.left = `${Math.max(4, Math.min(left, frame.width - box.offsetWidth - 4))}px`;
    box.style.top = `${Math.max(4, svg.getBoundingClientRect().top - frame.top + 24)}px`;
  }
  function hide() {
    box.hidden = true;
    cursor.removeAttribute("d");
  }
  function nearest(event) {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
    const places = shown();
    if (places.length) show(places.reduce((a, b) => (Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a)).x);
  }
  function step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (!by) return;
    const stops = [...new Set(shown().map((place) => place.x))].sort((a, b) => a - b);
    stop = Math.max(0, Math.min(stops.length - 1, stop + by));
    if (stops.length) show(stops[stop]);
    event.preventDefault();
  }
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("keydown", step);
  svg.addEventListener("blur", hide);
}

function plain(cell) {
  const small = cell.querySelector(":scope > small")?.innerText ?? "", text = cell.innerText;
  const whole = small ? `${text.slice(0, text.lastIndexOf(small))} (${small})` : text;
  return whole.trim().replace(/[\t\n\r ]+/g, " ").replace(/\u2212/g, "-").replace(/\u202f/g, "");
}
const bare = (cell) => cell.textContent.trim().replace(/\u2212/g, "-").replace(/\u202f/g, ""); // quick: no layout
const numeric = (text) => (text === "" || text === "\u2013" ? NaN : Number(text.replace(/^[<+]/, "")));

function addSorting(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], original = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const next = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      if (!next) return body.append(...original);
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.v ?? bare(row.cells[column]);
      body.append(...[...original].sort((a, b) => {
        const [s, t] = [value(a), value(b)], [x, y] = [numeric(s), numeric(t)];
        if ((s === "") !== (t === "")) return s === "" ? 1 : -1; // missing values are last in either order
        return sign * (Number.isNaN(x) || Number.isNaN(y) ? s.localeCompare(t) : x - y);
      }));
    });
  });
}

function csvOf(table) {
  const field = (cell) => {
    const text = plain(cell);
    const safe = /^[=+\-@\t]/.test(text) && Number.isNaN(numeric(text)) ? `'${text}` : text; // no formulas in spreadsheets
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [...table.rows].map((row) => [...row.cells].map(field).join(",")).join("\r\n") + "\r\n";
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the browser may be slow to start reading
}

function addButtons(before, actions) {
  const row = document.createElement("div");
  row.className = "actions";
  for (const [label, action] of actions) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", action);
    row.append(button);
  }
  before.before(row);
  return row;
}

// The address is `#part&t3,w1`: where the reader is, and the boxes that are not as they were at first.
const boxes = [...document.querySelectorAll("input[id]")];
function choose() {
  for (const box of boxes) {
    document.body.classList.toggle(`with-${box.id}`, box.checked);
    document.body.classList.toggle(`without-${box.id}`, !box.checked);
  }
}
function remember() {
  choose();
  const [place] = location.hash.slice(1).split("&");
  const changed = boxes.filter((box) => box.checked !== box.defaultChecked).map((box) => box.id).join(",");
  if (place || changed || location.hash) history.replaceState(null, "", `#${place}${changed && "&"}${changed}`);
}
function recall() {
  const [place, changed] = location.hash.slice(1).split("&");
  if (!changed) return;
  for (const box of boxes) if (changed.split(",").includes(box.id)) box.checked = !box.defaultChecked;
  addEventListener("load", () => (location.hash = place)); // the browser goes there; then the address is completed
}
addEventListener("hashchange", remember);
addEventListener("change", remember);
recall();
choose();
const kept = [...document.querySelectorAll("tr.keep")];
function point() {
  const name = (row) => row.className.match(/\br\d+\b/)?.[0];
  const pointed = new Set(kept.filter((row) => row.matches(":hover, :focus-within, :target")).map(name));
  for (const row of kept) document.body.classList.toggle(`at-${name(row)}`, pointed.has(name(row)));
}
for (const event of ["load", "hashchange", "mouseover", "mouseout", "focusin", "focusout"]) addEventListener(event, point);
function closeAll(except) {
  for (const one of document.querySelectorAll(".hint[open], .filter[open]")) if (!one.contains(except)) one.open = false;
}
addEventListener("click", (event) => {
  closeAll(event.target);
  const link = event.target.closest("th a[href]"); // a second click on a variant's name lets it stand out no longer
  if (link?.closest("tr").matches(":target")) {
    location.hash = "result";
    event.preventDefault();
  }
});
addEventListener("keydown", (event) => event.key === "Escape" && closeAll());

document.querySelectorAll("svg.chart").forEach(addReadout);
document.querySelectorAll("table.sortable").forEach((table) => {
  addSorting(table);
  if (!table.dataset.name) return;
  addButtons(table.parentElement, [
    ["CSV", () => download(`prunus-${table.dataset.name}.csv`, "text/csv", csvOf(table))],
  ]);
});
const filter = document.querySelector(".filter > div");
if (filter) addButtons(filter.firstElementChild, [["Show all", () => {
  for (const box of boxes) box.checked = box.defaultChecked;
  remember();
}]]);
const methods = document.querySelector("#method > details"); // the page of a search has none
if (methods) addButtons(methods, [["All numbers (JSON)", () =>
  download("prunus-report.json", "application/json", document.getElementById("data").textContent)]]);
// On paper nothing can be opened: all is that takes few pages, and is closed again afterwards.
const longest = 30, opened = []; // rows of a table
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("main details:not([open], :has(pre)), header details:not([open])"))
    if ([...one.querySelectorAll("table")].every((table) => table.rows.length <= longest)) opened.push(one);
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened.splice(0)) one.open = false;
});
