"""What a study shows on a terminal: while it runs, the answers of each cell and the time left; before, its plan."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prunus import progress
from prunus.disk import show_bytes
from prunus.results.rows import Key, Sample
from prunus.results.store import Store
from prunus.study.cells import Model, model_label, plan_names
from prunus.study.file import Study

LINES_AROUND = 6  # lines of the screen that are not rows of the table


class Row:
    """The progress of one cell.

    group: shared by the cells that are compared with one another. total: number of answers that the cell needs. right:
    whether each answer so far is right.
    """

    def __init__(self, label: str, group: object, total: int, right: dict[Key, bool]) -> None:
        self.label, self.group, self.total, self.right = label, group, total, right

    @property
    def done(self) -> int:
        """Number of answers so far."""
        return len(self.right)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None where there are no answers."""
        return sum(self.right.values()) / self.done if self.right else None

    def difference(self, base: "Row") -> float | None:
        """Accuracy minus that of base, on the answers that both have; None without any, and for the base itself."""
        shared = () if self is base else self.right.keys() & base.right.keys()
        return sum(self.right[key] - base.right[key] for key in shared) / len(shared) if shared else None


class LiveTable:
    """`with LiveTable(title, rows, bases) as table: table.add(run_id, samples, tokens, seconds)`.

    rows: by run id. bases: by group, the row that the others of the group are compared with. On a terminal the table is
    redrawn in place; elsewhere a line is printed at intervals, and whenever a cell is complete.
    """

    def __init__(self, title: str, rows: Mapping[str, Row], bases: Mapping[Any, Row]) -> None:
        self.title, self.rows, self.bases = title, rows, bases
        self.activity, self.note, self.tokens, self.added, self.seconds = "", "", 0, 0, 0.0
        self.logged_at = time.monotonic()
        self.current: Row | None = None
        self.live: Live | None = None

    @classmethod
    def of(cls, study: Study, models: Sequence[Model], store: Store) -> "LiveTable":
        """The table of a study, with the answers that the store already has."""
        rows, bases = dict[str, Row](), dict[tuple[str, int], Row]()
        for model in models:
            for cell in model.cells:
                label = cell.name if len(study.models) == 1 else f"{model.label} {cell.name}"
                label += f" ({plan_names(study.plans)[cell.plan]})" if len(study.plans) > 1 else ""
                total = sum(map(len, cell.resolved.batches)) * len(cell.resolved.budgets)
                right = {(s.problem_id, s.budget, s.draw): s.correct for s in store.samples(cell.run_id)}
                row = rows[cell.run_id] = Row(label, (model.name, cell.plan), total, right)
                if cell.variant.name == study.base and not cell.is_control:
                    bases[model.name, cell.plan] = row
        return cls(f"study {study.name}", rows, bases)

    def __enter__(self) -> Self:
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self.hide(leave=True)

    def show(self) -> None:
        """Start drawing if the output is a terminal."""
        if progress.shows_bars():
            self.live = Live(console=progress.console, get_renderable=self.screen, refresh_per_second=2)
            self.live.start()

    def hide(self, leave: bool = False) -> None:
        """Stop drawing. leave: keep the last picture on the screen."""
        if self.live is not None:
            self.live.transient = not leave
            self.live.stop()
            self.live = None

    def say(self, activity: str, log: bool = False) -> None:
        """Show the current activity. log: where the output is no terminal, print it as a line."""
        self.activity, self.note = activity, ""
        if log and self.live is None:
            progress.say(activity)

    def within(self, _: float, note: str) -> None:
        """Show a note on the batch in progress beside the activity."""
        self.note, now = note, time.monotonic()
        if self.live is None and now - self.logged_at >= progress.LOG_EVERY_SECONDS:
            self.logged_at = now
            progress.say(self.doing)

    @property
    def doing(self) -> str:
        """`evaluating wanda-50 of tiny: 3,120 tokens of this batch, 45 tokens/s`."""
        return f"{self.activity}: {self.note}" if self.note else self.activity

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Within the context the table is not drawn, so that progress bars can use the screen."""
        self.hide()
        try:
            yield
        finally:
            self.show()

    def add(self, run_id: str, samples: Sequence[Sample], tokens: int, seconds: float) -> None:
        """Add a finished batch of a cell: its answers, the tokens generated for it, and the seconds that it took."""
        row = self.rows[run_id]
        row.right |= {(s.problem_id, s.budget, s.draw): s.correct for s in samples}
        self.tokens, self.added, self.seconds = self.tokens + tokens, self.added + len(samples), self.seconds + seconds
        self.current = row
        if self.live is not None:
            return
        is_complete, now = row.done >= row.total, time.monotonic()
        if is_complete or now - self.logged_at >= progress.LOG_EVERY_SECONDS:
            self.logged_at = now
            progress.say(f"{row.label}: {row.done}/{row.total} answers, {self.accuracy(row)}; {self.totals()}")

    def totals(self) -> str:
        """`3/13 cells, 1200/5460 answers, 350 tokens/s, about 12 min left`."""
        rows = self.rows.values()
        complete = sum(row.done >= row.total for row in rows)
        done, total = sum(row.done for row in rows), sum(row.total for row in rows)
        text = f"{complete}/{len(self.rows)} cells, {done:,}/{total:,} answers"
        if self.added:
            left = (total - done) * self.seconds / self.added
            text += f", {self.tokens / self.seconds:,.0f} tokens/s, about {duration(left)} left"
        return text

    def accuracy(self, row: Row) -> str:
        """`61.2 % right (-8.9)`: accuracy, and its difference from the base in points."""
        accuracy = row.accuracy
        difference = row.difference(self.bases[row.group])
        text = "" if accuracy is None else f"{100 * accuracy:.1f} % right"
        return text if difference is None else f"{text} ({100 * difference:+.1f})"

    def screen(self) -> RenderableType:
        """The current picture: title, totals, table and activity."""
        table = Table(box=None, pad_edge=False)
        for column in ("cell", "answers", "% right so far", "against base"):
            table.add_column(column, justify="left" if column == "cell" else "right")
        shown, hidden = self.visible_rows()
        for row in shown:
            accuracy, difference = row.accuracy, row.difference(self.bases[row.group])
            table.add_row(
                Text(("> " if row is self.current else "  ") + row.label),
                f"{row.done}/{row.total}",
                "" if accuracy is None else f"{100 * accuracy:.1f}",
                "" if difference is None else f"{100 * difference:+.1f}",
            )
        rest = [Text(f"  and {hidden} more", style="dim")] if hidden else []
        return Group(Text(self.title, style="bold"), Text(self.totals()), table, *rest, Text(self.doing, style="dim"))

    def visible_rows(self) -> tuple[Sequence[Row], int]:
        """The rows that fit on the screen, the current one among them, and the number of rows that do not fit."""
        height = max(1, progress.console.height - LINES_AROUND)
        rows = list(self.rows.values())
        position = rows.index(self.current) if self.current in rows else 0
        start = max(0, min(position - height // 2, len(rows) - height))
        shown = rows[start : start + height]
        return shown, len(rows) - len(shown)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


COUNTS = ("problems", "answers", "tokens")  # of a cell, None where unknown


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """A table with a row for each cell, followed by a summary of the remaining work. plan: as plan_study returns it."""
    models = len({cell["model"] for cell in plan["cells"]})
    table = Table(box=None, pad_edge=False)
    for column in ("cell", "problems", "answers", "done", "tokens left, at most", "run"):
        table.add_column(column, justify="left" if column in ("cell", "run") else "right", no_wrap=True)
    for cell in plan["cells"]:
        name = cell["variant"] if models == 1 else f"{model_label(cell['model'])} {cell['variant']}"
        label = f"{name} ({cell['plan']})" if cell["plan"] else name
        problems, answers, tokens = ("?" if (n := cell[key]) is None else f"{n:,}" for key in COUNTS)
        numbers = [problems, answers, "all" if cell["done"] == cell["answers"] else f"{cell['done']:,}", tokens]
        table.add_row(Text(label), *numbers, cell["run"] or "?")
    searches = [line for search in plan["searches"] for line in search_lines(search, models > 1)]
    return Group(Text(f"study {plan['name']}", style="bold"), table, Text(""), *map(Text, [*summary(plan), *searches]))


def search_lines(search: Mapping[str, Any], several: bool) -> list[str]:
    """The outcome of a search, or what to expect of it. several: the study has other models."""
    of = f" of {model_label(search['model'])}" if several else ""
    plan = f" ({search['plan']})" if search["plan"] else ""
    head = f"search {search['name']}{of}{plan}: "
    if search["page"] is None:
        return [head + search["state"], *(f"  {line}" for line in search["lines"])]
    found = search["found"]
    outcome = "no rung was certified" if found is None else f"{found}, {100 * search['removed']:.3g} % removed"
    return [f"{head}{outcome}; {search['page']}"]


def summary(plan: Mapping[str, Any]) -> list[str]:
    """Lines that sum up the remaining work: answers, tokens and disk."""
    totals, left = plan["totals"], any(search["page"] is None for search in plan["searches"])
    to_make = [variant for variant in plan["variants"] if not variant["made"]]
    cells = (
        f"{totals['complete']} of {totals['cells']} cells are done, {totals['done']:,} of {totals['answers']:,} answers"
    )
    expected = [cell["tokens_expected"] for cell in plan["cells"] if cell["done"] != cell["answers"]]
    lines = [f"{cells}; {totals['tokens']:,} tokens to generate at most"]
    if expected and None not in expected:
        lines.append(f"about {sum(expected):,.0f} tokens if chains stay as long as those so far")
    if totals["disk"] is not None:
        made = f"{len(to_make)} of {len(plan['variants'])} variants are to be made"
        lines.append(f"{made}; disk: {show_bytes(totals['disk'])} at most")
    if totals["complete"] == totals["cells"]:
        return [*lines, "nothing is left to evaluate" + (" but searches" if left else "")]
    lines += [f"{task} is gated: the store keeps its ids, and no questions or chains" for task in plan["gated"]]
    return lines + [f"not known yet: {line}" for line in plan["unknown"]]
