"""Tables of a terminal, in which nothing is cut: what does not fit wraps, or each row becomes a block of lines."""

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from io import StringIO

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

WIDTH = 110  # columns of a table where there is no terminal
UNLIMITED = 100_000  # columns of a list where there is no terminal, so that each row stays a line
NARROWEST = 24  # columns to which a column of sentences is narrowed
TALLEST = 3  # lines into which a cell is wrapped, roughly, unless it is wider than that
# Where lines may be broken, from the best place on: before and after brackets, at spaces, after hyphens.
WORDS = (r"(?:\[[^\]]*\]|\([^)]*\)|[^ ]+) *| +", r"[^ ]+ *| +", r"[^-]+-*|-+")


class TextTable:
    """A table of texts; the first column has what rows are called.

    In a narrow terminal headings wrap, then cells, and last the names, between words. Where that is not enough, a row
    is a block: its name, and below it a line for each cell that is not empty, with the heading.

    headings: of the columns; a table without any has lists, or facts with their names. left: headings of the columns,
    besides the first, that are aligned left. gap: spaces between columns.
    """

    def __init__(self, *headings: object, left: Collection[str] = (), gap: int = 1) -> None:
        self.headings = [Text(str(heading), "bold") for heading in headings]
        self.left = [place == 0 or heading in left for place, heading in enumerate(headings)]
        self.gap, self.rows, self.lines = gap, list[list[Text]](), dict[int, Text]()

    def add_row(self, *cells: str | Text) -> None:
        """Add a row, whose last cells may be missing; a text with a style keeps it."""
        empty = [""] * (len(self.headings) - len(cells))
        self.rows.append([Text(cell) if isinstance(cell, str) else cell for cell in (*cells, *empty)])

    def add_line(self, text: Text) -> None:
        """Add a line over all columns before the next row, as the heading of a group of rows."""
        self.lines[len(self.rows)] = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the lines of the table in the width that there is."""
        widths = self._widths(options.max_width)
        if widths is None:
            for place, row in enumerate(self.rows):
                yield from self._line_before(place, options.max_width)
                yield from self._block(row, options.max_width)
            return
        headed = any(heading.plain for heading in self.headings)
        rows = [self.headings, *self.rows] if headed else self.rows
        wraps = (_longest(cell) > width for row in self.rows for cell, width in zip(row[:-1], widths, strict=False))
        apart = headed and any(wraps)
        for place, row in enumerate(rows):
            yield from [Text("")] * (apart and place > 0)
            yield from self._line_before(place - headed, options.max_width)
            yield from self._lines(row, widths)

    def _line_before(self, place: int, room: int) -> Iterator[Text]:
        """The lines of the heading of the group that begins with this row."""
        if (text := self.lines.get(place)) is not None:
            yield from (Text(part, text.style, no_wrap=True) for part in wrapped(text.plain, room))

    def _widths(self, room: int) -> list[int] | None:
        """The width of each column; None where the table does not fit."""
        columns = [*zip(self.headings, *self.rows, strict=True)]
        natural = [max(map(_longest, column)) for column in columns]
        words = [max(map(self._longest_word, column)) for column in columns]
        cells = [max(map(_longest, column[1:]), default=0) for column in columns]
        least = [
            max(word, min(NARROWEST, -(-longest // TALLEST))) for word, longest in zip(words, natural, strict=True)
        ]
        headings = [max(longest, word) for longest, word in zip(cells, words, strict=True)]
        widths = list(natural)
        for floor in ([natural[0], *headings[1:]], [natural[0], *least[1:]], least):
            while sum(widths) + self.gap * (len(widths) - 1) > room:
                place = max(range(len(widths)), key=lambda k: (widths[k] > floor[k], widths[k]))
                if widths[place] <= floor[place]:
                    break
                widths[place] -= 1
            else:
                return widths
        return None

    def _longest_word(self, cell: Text) -> int:
        """The width of a cell's longest word; at most NARROWEST without headings, where words may be broken."""
        parts = [word.rstrip() for word in re.findall(WORDS[0], cell.plain)]
        words = [word for part in parts for word in ([part] if cell_len(part) <= NARROWEST else part.split())]
        longest = max(map(cell_len, words), default=0)
        return longest if any(heading.plain for heading in self.headings) else min(longest, NARROWEST)

    def _lines(self, row: Sequence[Text], widths: Sequence[int]) -> Iterator[Text]:
        """The lines of a row in columns of these widths."""
        parts = [wrapped(cell.plain, width) for cell, width in zip(row, widths, strict=True)]
        for number in range(max(map(len, parts))):
            line = Text(no_wrap=True)
            for cell, lines, width, left in zip(row, parts, widths, self.left, strict=True):
                shown = lines[number] if number < len(lines) else ""
                space = " " * (width - cell_len(shown))
                line.append(" " * self.gap if line.plain or cell is not row[0] else "")
                line.append("" if left else space).append(shown, cell.style).append(space if left else "")
            line.rstrip()
            yield line

    def _block(self, row: Sequence[Text], room: int) -> Iterator[Text]:
        """The lines of a row that is shown as a block: its name, then each cell on lines of its own."""
        if row[0].plain.strip():
            yield from (Text(line, "bold", no_wrap=True) for line in wrapped(row[0].plain, room))
        for heading, cell in zip(self.headings[1:], row[1:], strict=True):
            head = f"{heading.plain}: " if heading.plain else ""
            shown = wrapped(head + " ".join(cell.plain.split("\n")), room - 4) if cell.plain else []
            for place, line in enumerate(shown):
                indented = Text(f"    {line}" if place else f"  {line}", no_wrap=True)
                indented.stylize(cell.style, 4 if place else 2 + len(head))
                yield indented


def _longest(cell: Text) -> int:
    """The width of the longest line of a text."""
    return max(map(cell_len, cell.plain.split("\n")))


def wrapped(text: str, width: int) -> list[str]:
    """The text as lines of at most width columns, broken between words, and in a longer word where it can be."""
    lines = list[str]()
    for paragraph in text.split("\n"):
        line = ""
        for word in _words(paragraph, width):
            if line and cell_len((line + word).rstrip(" ")) > width:
                lines.append(line.rstrip(" "))
                line = ""
            line += word
        lines.append(line.rstrip(" "))
    return lines


def _words(text: str, width: int, level: int = 0) -> Iterator[str]:
    """Pieces of a text that are not broken, each with the spaces behind it."""
    if level == len(WORDS):
        yield from chop_cells(text, width)
        return
    for word in re.findall(WORDS[level], text):
        if cell_len(word.rstrip(" ")) <= width:
            yield word
        else:
            yield from _words(word, width, level + 1)


def printed(*tables: RenderableType, width: int = WIDTH) -> str:
    """Tables as text without colours, one below the other, as wide as the terminal; width: where there is none."""
    stream, terminal = StringIO(), sys.stdout is not None and sys.stdout.isatty()
    Console(file=stream, width=None if terminal else width, color_system=None).print(Group(*tables))
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().split("\n"))
