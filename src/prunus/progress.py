"""Progress on stderr: a bar with the time left on a terminal, elsewhere a line at intervals."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self, TextIO

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column

from prunus.visible import shortened, visible

LOG_EVERY_SECONDS = 30.0
FIRST_AFTER_SECONDS = 5.0  # something that lasts longer is named
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


@contextmanager
def named_if_slow(text: str) -> Iterator[None]:
    """Within the context, the text is printed once after some seconds, such as `starting vllm with out/w8a8`."""
    timer = threading.Timer(FIRST_AFTER_SECONDS, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Steps:
    """A progress bar: `with Steps("pruning", total=28, unit="blocks") as steps: steps.advance(note="12 tok/s")`.

    The time left follows from the work since the first progress, so that starting an engine does not count. clock:
    seconds.
    """

    def __init__(
        self, label: str, total: int, unit: str, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.total, self.unit, self.done, self.clock = label, total, unit, done, clock
        self.started: tuple[float, float] | None = None  # time and work done of the first progress
        self.started_done, self.logged_at, self.logged = done, clock(), ""
        self.timer = threading.Timer(FIRST_AFTER_SECONDS, self._log_first)
        self.timer.daemon = True
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
        elif self.done < self.total:
            self.timer.start()
        return self

    def _log_first(self) -> None:
        if not self.logged:
            self.logged = f"{self.label}: {self.done}/{self.total} {self.unit}"
            say(self.logged)

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
        if self.started is None and worked > self.started_done:
            self.started = self.clock(), worked
        if self.bar is not None:
            self.bar.update(self.task, completed=worked, note=note, count=self.count)
        elif self.clock() - self.logged_at >= LOG_EVERY_SECONDS:
            self.logged_at = self.clock()
            line = f"{self.label}: {self.done}/{self.total} {self.unit}"
            if self.started is not None and worked > self.started[1]:
                (began, before), now = self.started, self.logged_at
                line += f", about {(now - began) * (self.total - worked) / (worked - before):.0f} s left"
            line = f"{line} {note}".rstrip()
            if line != self.logged:
                say(line)
            self.logged = line

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        if self.bar is not None:
            self.bar.stop()
