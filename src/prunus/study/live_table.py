"""A study under way, on one screen: cells, answers, tokens per second, time left, accuracy against the base so far."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from prunus import progress
from prunus.results.store import Key, Sample

LINES_AROUND = 6  # of the screen that are not rows of the table


class Row:
    """One cell: total answers wanted, and which of those that are there are right."""

    def __init__(self, label: str, group: object, total: int, right: dict[Key, bool]) -> None:
        self.label, self.group, self.total, self.right = label, group, total, right

    @property
    def done(self) -> int:
        """How many answers are there."""
        return len(self.right)

    def accuracy(self, keys: Iterable[Key] | None = None) -> float | None:
        """Share right, of these answers; None where there are none."""
        values = list(self.right.values()) if keys is None else [self.right[key] for key in keys]
        return sum(values) / len(values) if values else None

    def difference(self, base: "Row") -> float | None:
        """Accuracy beside that of base on the answers that both have."""
        shared = self.right.keys() & base.right.keys()
        ours, theirs = self.accuracy(shared), base.accuracy(shared)
        return None if ours is None or theirs is None or self is base else ours - theirs


class Board:
    """`with Board(title, rows, bases) as board: board.add(row, samples, tokens)`.

    bases: the row that a group's others are compared with. On a terminal a table that keeps itself up to date;
    elsewhere a line now and then, and one when a row is complete.
    """

    def __init__(self, title: str, rows: Sequence[Row], bases: Mapping[Any, Row]) -> None:
        self.title, self.rows, self.bases = title, rows, bases
        self.doing, self.tokens, self.added, self.seconds = "", 0, 0, 0.0
        self.logged_at = time.monotonic()
        self.current: Row | None = None
        self.live: Live | None = None

    def __enter__(self) -> Self:
        self.show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hide(for_good=True)

    def show(self) -> None:
        """Draw, where there is a terminal."""
        if progress.shows_bars():
            self.live = Live(console=progress.console, get_renderable=self.screen, refresh_per_second=2)
            self.live.start()

    def hide(self, for_good: bool = False) -> None:
        """Stop drawing; for good leaves the last picture, else it is wiped away."""
        if self.live is not None:
            self.live.transient = not for_good
            self.live.stop()
            self.live = None

    def say(self, doing: str, aloud: bool = False) -> None:
        """What is being done now; aloud: also where there is no screen."""
        self.doing = doing
        if aloud and self.live is None:
            progress.say(doing)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within this the screen belongs to somebody else, who draws bars of its own."""
        self.hide()
        try:
            yield
        finally:
            self.show()

    def add(self, row: Row, samples: Sequence[Sample], tokens: int, seconds: float) -> None:
        """A batch of a row is done."""
        row.right |= {(s.problem_id, s.budget, s.draw): s.correct for s in samples}
        self.tokens, self.added, self.seconds = self.tokens + tokens, self.added + len(samples), self.seconds + seconds
        self.current = row
        if self.live is not None:
            return
        is_complete, now = row.done >= row.total, time.monotonic()
        if is_complete or now - self.logged_at >= progress.LOG_EVERY_SECONDS:
            self.logged_at = now
            progress.say(f"{row.label}: {row.done}/{row.total} answers, {self.standing(row)}; {self.totals()}")

    def totals(self) -> str:
        """`3/13 cells, 1200/5460 answers, 350 tokens/s, about 12 min left`."""
        complete = sum(row.done >= row.total for row in self.rows)
        done, total = sum(row.done for row in self.rows), sum(row.total for row in self.rows)
        text = f"{complete}/{len(self.rows)} cells, {done:,}/{total:,} answers"
        if self.added:
            left = (total - done) * self.seconds / self.added
            text += f", {self.tokens / self.seconds:,.0f} tokens/s, about {duration(left)} left"
        return text

    def standing(self, row: Row) -> str:
        """`61.2 % right (-8.9)`: accuracy, and the difference to the base in points."""
        accuracy = row.accuracy()
        difference = row.difference(self.bases[row.group])
        text = "" if accuracy is None else f"{100 * accuracy:.1f} % right"
        return text if difference is None else f"{text} ({100 * difference:+.1f})"

    def screen(self) -> RenderableType:
        """What is shown."""
        table = Table(box=None, pad_edge=False)
        for column in ("cell", "answers", "% right so far", "against base"):
            table.add_column(column, justify="left" if column == "cell" else "right")
        shown, hidden = self.visible_rows()
        for row in shown:
            accuracy, difference = row.accuracy(), row.difference(self.bases[row.group])
            table.add_row(
                Text(("> " if row is self.current else "  ") + row.label),
                f"{row.done}/{row.total}",
                "" if accuracy is None else f"{100 * accuracy:.1f}",
                "" if difference is None else f"{100 * difference:+.1f}",
            )
        rest = [Text(f"  and {hidden} more", style="dim")] if hidden else []
        return Group(Text(self.title, style="bold"), Text(self.totals()), table, *rest, Text(self.doing, style="dim"))

    def visible_rows(self) -> tuple[Sequence[Row], int]:
        """As many rows as the screen holds, the current one among them; and how many are not shown."""
        room = max(1, progress.console.height - LINES_AROUND)
        at = self.rows.index(self.current) if self.current in self.rows else 0
        start = max(0, min(at - room // 2, len(self.rows) - room))
        shown = self.rows[start : start + room]
        return shown, len(self.rows) - len(shown)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
