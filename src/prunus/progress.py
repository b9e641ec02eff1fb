"""Progress on stderr: a bar with the time left on a terminal, elsewhere a line at intervals."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Self, TextIO

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column

from prunus.machine_load import busy, load
from prunus.visible import shortened, visible

LOG_EVERY_SECONDS = 30.0
FIRST_AFTER_SECONDS = 5.0  # something that lasts longer is named
BAR_WIDTH = 20
NARROWEST_BAR = 4  # columns; where there is less room there is no bar
# Columns of output that is not a terminal, enough for tables of eight budgets.
WIDTH_WITHOUT_TERMINAL = 120
_quiet = False
_said_busy = False
_heard: Callable[[str, float], None] | None = None


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; one that was closed before Python began (`>&-`) is None."""
    return stream is not None and stream.isatty()


class SafeConsole(Console):
    """A console that shows control characters of texts as symbols, since names may hold commands to a terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the parts of what is printed; commands of rich itself are marked as control."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


console = SafeConsole(stderr=True, width=None if is_terminal(sys.stderr) else WIDTH_WITHOUT_TERMINAL)
out_console = SafeConsole(width=None if is_terminal(sys.stdout) else WIDTH_WITHOUT_TERMINAL)


def set_quiet(quiet: bool) -> None:
    """Switch bars and messages off or on; errors are always shown."""
    global _quiet  # noqa: PLW0603  one switch for the process, set once by the command line
    _quiet = quiet


def hear(heard: Callable[[str, float], None]) -> None:
    """Set the function that is told of all progress of this process: heard(label, work done since the last call)."""
    global _heard  # noqa: PLW0603  one for the process, set once where it begins
    _heard = heard


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

    The time left follows from the work since the first progress, so that starting an engine does not count. sizes: work
    of each unit, if units differ. clock: seconds. If the work takes longer than FIRST_AFTER_SECONDS while other
    programs keep the machine busy, a line says so, once for the process.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sizes: Sequence[float] = (),
    ) -> None:
        self.label, self.total, self.unit, self.done, self.clock = label, total, unit, done, clock
        self.sizes, self.before = sizes, [0.0, *accumulate(sizes)]
        self.work, self.worked = self.amount(float(total)), self.amount(float(done))
        self.started: tuple[float, float] | None = None  # time and work done of the first progress
        self.logged_at, self.logged, self.shown = clock(), "", (self.worked, "")
        self.busy = busy(load(), os.cpu_count())
        self.timer = threading.Timer(FIRST_AFTER_SECONDS, self._log_first)
        self.timer.daemon = True
        self.later: threading.Timer | None = None
        self.ended = False
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        if shows_bars():
            left = "0:00:00"
            room = console.width - cell_len(f"{self.label} {self.count} {self.unit} {left} {left} ") - 2
            columns = (
                TextColumn("{task.description}", table_column=Column()),  # wraps where there is no room for it
                *[BarColumn(min(BAR_WIDTH, room)), TimeElapsedColumn(Column(no_wrap=True))] * (room >= NARROWEST_BAR),
                TextColumn("{task.fields[count]} {task.fields[unit]}"),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                # The only column that is shortened on a narrow terminal: the time left stays.
                TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True)),
            )
            self.bar = Progress(*columns, console=console, expand=True)
            self.bar.start()
            self.task = self.bar.add_task(
                self.label, total=self.work, completed=int(self.worked), unit=self.unit, note="", count=self.count
            )
        if self.done < self.total:
            self.timer.start()
        return self

    def _log_first(self) -> None:
        global _said_busy  # noqa: PLW0603  it is said once
        if self.busy and not _said_busy:
            _said_busy = True
            say(f"the machine is busy ({self.busy}): this takes longer than at rest")
        if self.bar is None:
            if not self.logged:
                self.logged = f"{self.label}: {self.done}/{self.total} {self.unit}"
                say(self.logged)
            self._wait(LOG_EVERY_SECONDS, self.worked)

    def _wait(self, seconds: float, worked: float) -> None:
        """Start a timer that prints a line after `seconds` without progress; the next line takes twice as long.

        worked: work that was done when the timer started.
        """
        self.later = threading.Timer(seconds, self._log_waiting, [seconds, worked])
        self.later.daemon = True
        self.later.start()

    def _log_waiting(self, seconds: float, worked: float) -> None:
        if self.ended:
            return
        if waiting := worked == self.worked:
            say(f"{self.label}: {self.done}/{self.total} {self.unit}, still at work after another {seconds:.0f} s")
        self._wait(seconds * (1 + waiting), self.worked)

    @property
    def count(self) -> str:
        """Units done, of all, such as ` 64/1260`."""
        return f"{self.done:{len(str(self.total))}}/{self.total}"

    def advance(self, count: int = 1, note: str = "") -> None:
        """Advance by count units; note is shown beside the bar."""
        self.done += count
        self.within(0.0, note)

    def amount(self, units: float) -> float:
        """The work of the first units, whose number need not be whole."""
        whole = min(int(units), self.total)
        if not self.sizes:
            return min(units, float(self.total))
        return self.before[whole] + ((units - whole) * self.sizes[whole] if whole < self.total else 0.0)

    def within(self, part: float, note: str = "") -> None:
        """Show progress within the next units: `part` (a number of units) is done, and none counts as complete."""
        before, worked = self.worked, self.amount(self.done + part)
        self.worked = worked
        if self.started is None and worked > before:
            self.started = self.clock(), worked
        if _heard is not None:
            _heard(self.label, worked - before)
        if self.bar is not None:
            self.bar.update(self.task, completed=worked, note=note, count=self.count)
        elif self.clock() - self.logged_at >= LOG_EVERY_SECONDS and (worked, note) != self.shown:
            self.logged_at, self.shown = self.clock(), (worked, note)
            line = f"{self.label}: {self.done}/{self.total} {self.unit}"
            if self.started is not None and worked > self.started[1]:
                (began, first), now = self.started, self.logged_at
                line += f", about {(now - began) * (self.work - worked) / (worked - first):.0f} s left"
            line = f"{line} {note}".rstrip()
            if line != self.logged:
                say(line)
            self.logged = line

    def __exit__(self, *_: object) -> None:
        self.ended = True
        for timer in filter(None, (self.timer, self.later)):
            timer.cancel()
        if self.bar is not None:
            self.bar.stop()
