"""Tables, written as HTML for the page, as CSV with all digits, and as LaTeX with booktabs; and how they show runs."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prunus.reporting.render.chart import swatch
from prunus.reporting.render.text import DASH, NBSP, THIN, esc, visible
from prunus.results.cells import Cell, Ending, Entry, RecipeVerdict
from prunus.results.parallel import AtEqualTokens, Chains
from prunus.step import recorded_kind
from prunus.store.characters import MINUS
from prunus.store.labels import identity, label, unique_labels
from prunus.store.rows import Run

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    MINUS: "$-$", "±": r"$\pm$", "×": r"$\times$", DASH: "--", NBSP: "~", THIN: r"\,",
}  # fmt: skip


@dataclass(frozen=True)
class RunStyle:
    """The style of a run in the report. index: 0 is the base. tone: its group, which alone decides its colour.

    dash, marker: tell apart the runs of a group in figures. family: the methods of its steps. serving: its name in
    labels. rest: whether lists of many runs show it only on request.
    """

    index: int
    label: str
    tone: str
    dash: int = 0
    marker: int = 0
    family: str = ""
    serving: str = ""
    rest: bool = False

    @property
    def css(self) -> str:
        """CSS classes for colour and dash, and those by which the filter hides the run."""
        return f"run r{self.index} {self.line}{' rest' * self.rest}"

    @property
    def line(self) -> str:
        """CSS classes for colour and dash only, for elements that stay when the run is hidden."""
        return f"t-{self.tone} d{self.dash}"


BASE = "base"  # the tone of the base
SHOWN = 8  # runs that lists show at once


def run_styles(base: Run, others: Sequence[Run], tones: Sequence[str] | None = None) -> list[RunStyle]:
    """The style of the base, then those of the others in order. tones: of the others; by default that of no verdict.

    A base to which nothing was done is called the original, unless its label says more.
    """
    tones = ["none"] * len(others) if tones is None else tones
    known = [identity(run) for run in (base, *others)]
    labels, servings = unique_labels(known), [run.serving or "" for run in known]
    seen: Counter[str] = Counter()
    first = shown_first(tones)
    result = [RunStyle(0, "the original" if labels[0] == label(()) else labels[0], BASE)]
    for index, (run, tone, text, serving) in enumerate(zip(others, tones, labels[1:], servings[1:], strict=True), 1):
        family = " + ".join(recorded_kind(step).method(step) for step in run.model.manifest.history)
        rest = index - 1 not in first
        result.append(RunStyle(index, text, tone, seen[tone] % 4, 1 + seen[tone] % 4, family, serving, rest))
        seen[tone] += 1
    return result


def shown_first(tones: Sequence[str]) -> set[int]:
    """The places of the runs that lists show at once: at most SHOWN, the first of each group by turns."""
    turns = sorted(range(len(tones)), key=lambda place: tones[:place].count(tones[place]))
    return set(turns[:SHOWN])


class Interval(NamedTuple):
    """A value with its interval, which takes three columns of a CSV. word: a verdict on it, shown on the page only."""

    value: float | None
    low: float | None
    high: float | None
    word: str = ""


def difference(cell: Cell | Ending | RecipeVerdict | Chains | AtEqualTokens) -> Interval:
    """The difference of a cell with its interval."""
    return Interval(cell.difference, cell.low, cell.high)


def decided(entry: Entry) -> tuple[float, float]:
    """(low, high) of the interval that decides the verdict; both are NaN for an unfinished run."""
    return (math.nan, math.nan) if entry.low is None or entry.high is None else (entry.low, entry.high)


class Word(NamedTuple):
    """A verdict, and a remark that is shown below it in small letters."""

    text: str
    remark: str = ""


class Column(NamedTuple):
    """A column. key: its name in CSV. title: on the page and in LaTeX, with `|` at line breaks. show: value -> text."""

    key: str
    title: str
    show: Callable[[Any], str] = str


RUN = Column("run", "Variant")


@dataclass(frozen=True)
class Table:
    """A table of a report. name: of its files. css: its classes.

    rows: (a run or a name, a value for each further column); None is an empty cell.
    """

    name: str
    caption: str
    css: str
    columns: Sequence[Column]
    rows: Sequence[tuple[RunStyle | str, Sequence[Any]]]
    keep: bool = False  # whether rows stay when the legend hides their run

    def html(self) -> str:
        """The HTML of the table, which scrolls if it is too wide for the page."""
        first, *rest = (esc(column.title).replace("|", "<br>") for column in self.columns)
        titles = f'<th scope="col" class="text">{first}</th>' + "".join(f'<th scope="col">{text}</th>' for text in rest)
        label = f' aria-label="{esc(self.caption)}"'
        attributes = f'class="{self.css}" data-name="{slug(self.name)}"{label}'
        befores = [None, *(head for head, _ in self.rows)]
        rows = "".join(self._row(*row, row[0] is before) for row, before in zip(self.rows, befores, strict=False))
        return (
            f'<div class="wide" tabindex="0" role="region"{label}><table {attributes}>'
            f"<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>"
        )

    def _row(self, head: RunStyle | str, values: Sequence[Any], again: bool) -> str:
        """The HTML of a row. again: whether the row before it has the same head, whose line is then not drawn again."""
        cells = "".join(_cell(column, value) for column, value in zip(self.columns[1:], values, strict=True))
        if "cards" in self.css.split():
            titles = iter(self.columns[1:])
            cells = re.sub("<td", lambda _: f'<td data-title="{esc(next(titles).title.replace("|", " "))}"', cells)
        css = f' class="{head.css}{" keep" if self.keep else ""}"' if isinstance(head, RunStyle) else ""
        name = row_name(head.label if again and isinstance(head, RunStyle) else head)
        return f"<tr{css}>{name}{cells}</tr>"

    def csv(self) -> str:
        """The CSV of the table: all digits, a line per row, three columns per interval."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\r\n")
        wide = [any(isinstance(values[k], Interval) for _, values in self.rows) for k in range(len(self.columns) - 1)]
        names = [self.columns[0].key]
        for column, three in zip(self.columns[1:], wide, strict=True):
            names += [column.key, *([f"{column.key}_low", f"{column.key}_high"] if three else [])]
        writer.writerow(names)
        for head, values in self.rows:
            fields = [_safe(head.label if isinstance(head, RunStyle) else head)]
            for value, three in zip(values, wide, strict=True):
                parts = (value or Interval(None, None, None))[:3] if three else [value]
                fields += map(_field, parts)
            writer.writerow(fields)
        return stream.getvalue()

    def latex(self) -> str:
        r"""The LaTeX of the table for \input: a tabular with booktabs, its numbers rounded as on the page."""
        lines = [
            "% needs \\usepackage{booktabs}",
            f"% {_one_line(self.caption)}",
            f"\\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            "\\toprule",
            " & ".join(tex(column.title.replace("|", " ")) for column in self.columns) + r" \\",
            "\\midrule",
        ]
        for head, values in self.rows:
            texts = [tex(head.label if isinstance(head, RunStyle) else head)]
            texts += [tex(shown(*pair)) for pair in zip(self.columns[1:], values, strict=True)]
            lines.append(" & ".join(texts) + r" \\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def slug(text: str) -> str:
    """text as part of a file name: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace(MINUS, "")).strip("-")[:60] or "x"


def named(style: RunStyle) -> str:
    """The HTML of a run's name after a sample of its line."""
    return f"{swatch(style.line, style.marker).html()} <bdi>{esc(style.label)}</bdi>"


def row_name(head: RunStyle | str) -> str:
    """The HTML of a row's head: a run's name after a sample of its line, or another name."""
    return f'<th scope="row">{named(head) if isinstance(head, RunStyle) else f"<bdi>{esc(head)}</bdi>"}</th>'


def word(verdict: str, text: str = "") -> str:
    """The HTML of a verdict with its sign and colour. text: shown instead of it."""
    return f'<span class="word {_class(verdict)}">{esc(text or verdict)}</span>'


def sign(text: str) -> str:
    """The HTML of a verdict's sign alone."""
    return f'<span class="sign {_class(text)}" role="img" aria-label="{esc(text)}" title="{esc(text)}"></span>'


def _class(text: str) -> str:
    return text.replace(",", "").replace(" ", "-")


def shown(column: Column, value: object) -> str:
    """A value of a column as plain text."""
    if value is None:
        return ""
    if isinstance(value, Word):
        return f"{value.text} ({value.remark})" if value.remark else value.text
    if isinstance(value, Interval):
        return f"{column.show(value.value)} ({column.show(value.low)} to {column.show(value.high)})"
    return column.show(value)


def _cell(column: Column, value: object) -> str:
    if isinstance(value, Word):
        return f"<td>{word(value.text)}{f'<small>{esc(value.remark)}</small>' if value.remark else ''}</td>"
    if isinstance(value, Interval):
        sort = f' data-v="{value.value:.9g}"' if value.value is not None and math.isfinite(value.value) else ""
        low, high = esc(column.show(value.low)), esc(column.show(value.high))
        mark = sign(value.word) if value.word else ""
        return f"<td{sort}>{esc(column.show(value.value))}{mark}<small>{low} to {high}</small></td>"
    text = shown(column, value)
    return f"<td><bdi>{esc(text)}</bdi></td>" if isinstance(value, str) and value else f"<td>{esc(text)}</td>"


def _field(value: object) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return _safe(value.text) if isinstance(value, Word) else _safe(value) if isinstance(value, str) else value


def _safe(text: str) -> str:
    """text, with an apostrophe in front if a spreadsheet would read it as a formula."""
    text = visible(text)
    return f"'{text}" if re.match(r"[=+\-@\t\r]", text) else text


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", visible(text))


def tex(text: str) -> str:
    """text with all special characters of LaTeX escaped."""
    return "".join(_TEX.get(character, character) for character in _one_line(text))
