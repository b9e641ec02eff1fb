"""`prunus view`: a local web page on which any chain of a store can be read, or the same as files for a few problems.

The page is served on this machine only, below a random token, to requests that name this machine; the store is opened
read-only. What models wrote reaches the page as JSON, and the page shows it as text (`textContent`). Its content
security policy names the hashes of our style and script, so that nothing else could run.
"""

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from secrets import token_urlsafe
from string import ascii_uppercase
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunus import progress
from prunus.disk import Content, check_export, write_export
from prunus.errors import PrunusError, pip
from prunus.reporting.render.table import named
from prunus.reporting.render.text import clip, document, esc, resource
from prunus.store.characters import one_line, visible
from prunus.store.labels import plan_in_short
from prunus.store.rows import ProblemRow
from prunus.store.store import Store
from prunus.viewer.chains import Json, chain_of, shown, side_by_side
from prunus.viewer.lines import FILTERS, MISSING, STATES, Filter, Lines, View

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from prunus.evaluation.tasks.problem import Problem

HOST = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # which a page cannot say of itself
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
LINES = 100  # of the list that a request asks for, as in view.js
EXPORTED = 40  # maximum number of problems that are exported
PACKAGE = "prunus.viewer"


def view(store: str | Path, *, port: int = 0, export: str | Path | None = None, overwrite: bool = False) -> None:
    """Serve a page on which the chains of a store can be read, problem by problem, until Ctrl-C; prints its address.

        prunus.view("results.db", export="chains")

    store: SQLite file of the results.
    port: of 127.0.0.1, where the page is; 0 takes a free one.
    export: a folder; then nothing is served, and the page is written as files for 40 problems: those that exactly one
        of the first run and another solved at the largest budget, evenly chosen if there are more, and any problems if
        there are none. Questions of gated sets are left out of files.
    overwrite: replace existing files.

    Raises PrunusError if the store has no answers, if the port is taken, if a file exists (unless overwrite), and
    without the extra `view`.
    """
    with Store(store, read_only=True) as opened:
        pages = Pages(opened)
        if export is not None:
            folder = Path(export)
            progress.say(f"wrote {write_files(pages, folder, overwrite)} problems: open {folder / 'index.html'}")
            return
        with suppress(KeyboardInterrupt):
            serve(pages, port)


class Pages:
    """Content of the pages about an open store. renew() reads what was added to the store."""

    def __init__(self, store: Store) -> None:
        self.store, self.version = store, store.version()
        self.lines = Lines.read(store)

    def renew(self) -> None:
        """Read the store again if somebody has written to it."""
        if (version := self.store.version()) != self.version:
            self.lines, self.version = Lines.read(self.store), version

    def page(self, data: object, live: bool = False) -> str:
        """The text of an HTML file. data: what it shows without asking. live: whether it may ask this server."""
        lines, chosen = self.lines, self.lines.first_view
        runs = "".join(
            f'<label class="chip {style.line}" title="{esc(plan_in_short(run.plan))}"><input type="checkbox" '
            f'value="{esc(run.run_id)}"{" checked" if at in chosen.runs else ""}> {named(style)}</label>'
            for at, (run, style) in enumerate(zip(lines.runs, lines.styles, strict=True))
        )
        tasks = "".join(f'<option value="{esc(task)}">{esc(clip(task, 60))}</option>' for task in lines.tasks)
        budgets = "".join(
            f'<option value="{int(budget)}"{" selected" if at == chosen.budget else ""}>{budget}</option>'
            for at, budget in enumerate(lines.budgets)
        )
        name = esc(self.store.path.name)
        body = resource("view.html", PACKAGE)
        for mark, html in {"name": name, "runs": runs, "tasks": tasks, "budgets": budgets}.items():
            body = body.replace(f"<!-- {mark} -->", html)
        styles = resource("page.css") + resource("view.css", PACKAGE)
        allowed = "connect-src 'self'" if live else ""
        return document(f"Chains of {self.store.path.name}", body, data, styles, resource("view.js", PACKAGE), allowed)

    def listed(self, view: View, chosen: NDArray[np.int_], start: int = 0) -> Json:
        """Up to LINES lines of the list from `start` on, and how many answers of each run are right in all of it.

        chosen: the indices of the lines of the list.
        """
        part = chosen[max(0, start) :][:LINES].tolist()
        names, budget = [self.lines.keys[at] for at in part], self.lines.budgets[view.budget]
        keys = [(problem, budget, draw) for problem, draw in names]
        problems = self.store.problems({problem for problem, _ in names})
        answers = [self.store.answers(self.lines.runs[run].run_id, keys) for run in view.runs]
        rows = []
        for place, name, key in zip(part, names, keys, strict=True):
            cells = [
                [
                    STATES[self.lines.states_LRB[place, run, view.budget]],
                    bool(self.lines.loops_LRB[place, run, view.budget]),
                    _short(of.get(key)),
                ]
                for run, of in zip(view.runs, answers, strict=True)
            ]
            question = one_line(self.store.question(name[0]) or "", 200)
            rows.append([*name, visible(name[0]), _short(problems[name[0]].gold), cells, question])
        right = self.lines.right(view, chosen)
        return {"total": len(chosen), "right": right, "start": start, "rows": rows}

    def problem(self, view: View, place: int, chosen: NDArray[np.int_], texts: bool = True) -> Json:
        """One line of the list: its question and chains, and the lines before and after it among those of a view.

        texts: whether the question may be shown if the set is gated.
        """
        key = self.lines.keys[place]
        problem, chains = self.store.problems([key[0]])[key[0]], []
        for run in view.runs:
            samples = self.store.samples(self.lines.runs[run].run_id, texts=True, chain=key)
            states = dict(zip(self.lines.budgets, self.lines.states_LRB[place, run].tolist(), strict=True))
            # Others came meanwhile.
            known = [sample for sample in samples if states.get(sample.budget, MISSING) != MISSING]
            chains.append(chain_of(known, states, self.lines.budgets[view.budget]))
        before, after = (int(np.searchsorted(chosen, place, side)) for side in ("left", "right"))
        question, choices, note = self._question(problem, texts)
        return {
            "problem": visible(problem.problem_id),
            "draw": key[1],
            "task": visible(problem.task),
            "gold": visible(clip(problem.gold, 2_000)),
            "question": None if question is None else shown(question),
            "choices": [f"{letter}. {shown(text)}" for letter, text in zip(ascii_uppercase, choices, strict=False)],
            "note": note,
            "place": after if before < after else None,
            "of": len(chosen),
            "previous": self.lines.keys[chosen[before - 1]] if before else None,
            "next": self.lines.keys[chosen[after]] if after < len(chosen) else None,
            "chains": side_by_side(chains),
        }

    def _question(self, problem: ProblemRow, texts: bool) -> tuple[str | None, Sequence[str], str]:
        """(question, choices, note): the question is None, and the note says why, where it cannot be shown."""
        stored = self.store.question(problem.problem_id)
        if stored is not None:
            return stored, problem.choices, ""
        if not problem.choices or any(problem.choices):
            return None, problem.choices, "The store does not have the question."
        if not texts:
            return None, (), "The set is gated, so its questions are not in files."
        return gated_question(problem)


def gated_question(problem: ProblemRow) -> tuple[str | None, Sequence[str], str]:
    """(question, choices, note) of a problem of a gated set, from its task where it is installed."""
    try:
        original = _task(problem.task).get(problem.problem_id)
    except PrunusError as error:
        return None, (), f"The set is gated, so the store does not have the question: {error}"
    if original is None or original.digest != problem.digest:
        return None, (), f"The task {problem.task} as it is installed here does not have this problem."
    return original.question, original.choices, ""


@cache
def _task(name: str) -> "dict[str, Problem]":
    from prunus.evaluation.tasks import load_task

    return {problem.id: problem for problem in load_task(name)}


def _short(text: str | None) -> str | None:
    return None if text is None else visible(clip(text, 100))


def serve(pages: Pages, port: int) -> None:
    """Serve the page until Ctrl-C."""
    try:
        import uvicorn
    except ImportError as error:
        raise PrunusError(f"view needs starlette and uvicorn: {pip('view')}") from error

    token = token_urlsafe(24)
    app = application(pages, token)
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise PrunusError(f"port {port} of {HOST} cannot be used ({error.strerror}): choose another --port") from error
    with listening:
        progress.say(f"http://{HOST}:{listening.getsockname()[1]}/{token}/ (Ctrl-C ends it)")
        settings = uvicorn.Config(
            app, log_level="warning", lifespan="off", server_header=False, timeout_graceful_shutdown=1
        )
        uvicorn.Server(settings).run(sockets=[listening])


def application(pages: Pages, token: str) -> "Starlette":
    """The web application: the page at /TOKEN/, lines of its list at /TOKEN/list, and a problem at /TOKEN/problem."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
    from starlette.routing import Route

    async def page(_: "Request") -> "Response":
        pages.renew()
        return HTMLResponse(pages.page({}, live=True), headers=HEADERS)

    async def lines(request: "Request") -> "Response":
        view, start = _view(request.query_params, pages.lines), int(request.query_params.get("start", "0"))
        return JSONResponse(pages.listed(view, pages.lines.chosen(view), start), headers=HEADERS)

    async def problem(request: "Request") -> "Response":
        view = _view(request.query_params, pages.lines)
        key = request.query_params.get("problem", ""), int(request.query_params.get("draw", "0"))
        if (place := pages.lines.places.get(key)) is None:
            raise PrunusError("the store has no such problem")
        return JSONResponse(pages.problem(view, place, pages.lines.chosen(view)), headers=HEADERS)

    def wrong(_: "Request", error: Exception) -> "Response":
        return PlainTextResponse(str(error), 400, HEADERS)

    parts = {"": page, "list": lines, "problem": problem}
    return Starlette(
        routes=[Route(f"/{token}/{name}", handler) for name, handler in parts.items()],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)],
        exception_handlers={PrunusError: wrong, ValueError: wrong},
    )


def _view(query: Mapping[str, str], lines: Lines) -> View:
    """The view that a request asks for. Raises PrunusError or ValueError for what is not there."""
    first = lines.first_view
    wanted = {name: {*query.get(name, "").split(",")} - {""} for name in ("runs", "filters")}
    runs = tuple(at for at, run in enumerate(lines.runs) if run.run_id in wanted["runs"])
    filters: frozenset[Filter] = frozenset(name for name in FILTERS if name in wanted["filters"])
    budget = int(query.get("budget", lines.budgets[first.budget]))
    task = query.get("task", "")
    known = len(runs) == len(wanted["runs"]) and len(filters) == len(wanted["filters"]) and budget in lines.budgets
    if not known or (task and task not in lines.tasks):
        raise PrunusError("the store has no such run, budget or task, or there is no such filter")
    return View(runs or first.runs, lines.budgets.index(budget), task, filters)


def write_files(pages: Pages, folder: Path, overwrite: bool) -> int:
    """Write the page as files for some problems (see `view`); returns their number. An error leaves no new files."""
    lines, first = pages.lines, pages.lines.first_view
    flipped = replace(first, filters=frozenset({"flipped"}))
    view = flipped if len(lines.chosen(flipped)) else first
    matching = lines.chosen(view)
    chosen = matching[np.linspace(0, len(matching) - 1, min(EXPORTED, len(matching))).astype(int)]
    names = [f"problem-{number}.html" for number in range(1, len(chosen) + 1)]

    def problem(number: int) -> str:
        links = {"previous": names[number - 1] if number else None, "next": [*names, None][number + 1]}
        return pages.page({"problem": pages.problem(view, int(chosen[number]), chosen, texts=False), "links": links})

    files: dict[Path, Content] = {folder / name: partial(problem, at) for at, name in enumerate(names)}
    which = f" of the {len(matching):,} that exactly one of the first run and another solves" if view.filters else ""
    listed = pages.listed(view, chosen) | {"which": which}
    files[folder / "index.html"] = lambda: pages.page({"list": listed, "links": names})
    check_export(files, overwrite)
    write_export(files)
    return len(chosen)
