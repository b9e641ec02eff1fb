"""Progress on stderr: a bar with the time left on a terminal, elsewhere a line at intervals."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Self, TextIO

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column

from prunus.visible import shortened, visible

LOG_EVERY_SECONDS = 30.0
BAR_WIDTH = 20
# Columns of output that is not a terminal, enough for tables of eight budgets.
WIDTH_WITHOUT_TERMINAL = 120
_quiet = False


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; one that was closed before Python began (`>&-`) is None."""
    return stream is not None and stream.isatty()


class SafeConsole(Console):
    """A console that shows control characters of texts as symbols, since names may hold commands to a terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the parts of what is printed; commands of rich itself are marked as control."""
        for one in super().render(renderable, options):
            yield one if one.control else Segment(visible(one.text), one.style)


console = SafeConsole(stderr=True, width=None if is_terminal(sys.stderr) else WIDTH_WITHOUT_TERMINAL)
out_console = SafeConsole(width=None if is_terminal(sys.stdout) else WIDTH_WITHOUT_TERMINAL)


def set_quiet(quiet: bool) -> None:
    """Switch bars and messages off or on; errors are always shown."""
    global _quiet  # noqa: PLW0603  one switch for the process, set once by the command line
    _quiet = quiet


def shows_bars() -> bool:
    """Whether bars are drawn: on a terminal, unless --quiet."""
    return is_terminal(sys.stderr) and not _quiet


def say(text: str) -> None:
    """Print a message for the user to stderr."""
    if not _quiet:
        console.print(shortened(text), highlight=False, markup=False, soft_wrap=True)


def put(text: str) -> None:
    """Print data on stdout."""
    click.echo(visible(text))


class Steps:
    """A progress bar: `with Steps("pruning", total=28, unit="blocks") as steps: steps.advance(note="12 tok/s")`.

    clock: seconds.
    """

    def __init__(
        self, label: str, total: int, unit: str, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.total, self.unit, self.done, self.clock = label, total, unit, done, clock
        self.started_at, self.started_done = clock(), done
        self.logged_at = self.started_at
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        if shows_bars():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(BAR_WIDTH),
                TextColumn("{task.fields[count]} {task.fields[unit]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                # The only column that is shortened on a narrow terminal: the time left stays.
                TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True)),
            )
            self.bar = Progress(*columns, console=console, expand=True)
            self.bar.start()
            self.task = self.bar.add_task(
                self.label, total=self.total, completed=self.done, unit=self.unit, note="", count=self.count
            )
        return self

    @property
    def count(self) -> str:
        """` 64/1260`."""
        return f"{self.done:{len(str(self.total))}}/{self.total}"

    def advance(self, count: int = 1, note: str = "") -> None:
        """Advance by count units; note is shown beside the bar."""
        self.done += count
        self.within(0.0, note)

    def within(self, part: float, note: str = "") -> None:
        """Show the progress within the next units: part of them is done, and none is counted as complete."""
        worked = min(self.done + part, self.total)
        if self.bar is not None:
            self.bar.update(self.task, completed=worked, note=note, count=self.count)
        elif self.clock() - self.logged_at >= LOG_EVERY_SECONDS:
            self.logged_at = self.clock()
            line = f"{self.label}: {self.done}/{self.total} {self.unit}"
            if worked > self.started_done:
                spent = self.logged_at - self.started_at
                line += f", about {spent * (self.total - worked) / (worked - self.started_done):.0f} s left"
            say(f"{line} {note}".rstrip())

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
