"""The words and tables of `prunus efforts`, for the terminal and the page."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from prunus.reporting.render.text import count, percent, times, visible
from prunus.results.efforts import AsRight, Efforts, Level, RunEfforts
from prunus.store.characters import DASH
from prunus.store.labels import unique_labels
from prunus.text_table import TextTable

HEADINGS = ("level", "budget", "shown", "solves %", "longer chains %", "unanswered %", "tokens", "saves %")
LEFT = ("level", "shown")


def cells_of(level: Level) -> tuple[str, ...]:
    """A level as a row of a table with HEADINGS."""
    shown = DASH if level.margin is None else f"loses less than {level.margin.words('what it solves')}"
    if level.budget is None or level.accuracy is None:
        return level.name, DASH, f"not named: {level.note}"
    if level.note is not None:
        shown = level.note
    tokens = "" if level.tokens is None else count(level.tokens)
    saves = DASH if level.margin is None else percent(level.saved)
    shares = (percent(level.accuracy), percent(level.cut), percent(level.unanswered))
    return level.name, f"{level.budget:,}", shown, *shares, tokens, saves


def heading_of(name: str, run: RunEfforts) -> str:
    """The line above the table of a run."""
    draws = "" if run.samples == 1 else f" x {run.samples} answers"
    budgets = f"{len(run.budgets)} budgets from {run.budgets[0]:,} to {run.budgets[-1]:,}"
    return f"{name}: {run.problems} problems{draws}, {budgets}"


def exchange_lines(name: str, run: RunEfforts, base: str) -> Iterator[str]:
    """Sentences on how much a variant must think to be as right as the base."""
    found = run.exchange
    if found is None:
        return
    named = {level.budget: level for level in reversed(found.levels) if level.budget is not None}
    for level in named.values():  # of the margins that name one budget, the smallest
        assert level.margin is not None
        shown = f"loses less than {level.margin.words()} against {base} at its full budget"
        yield f"{name} from {level.budget:,} tokens on: {shown}"
    if not named:
        yield f"{name}: no budget is shown to lose less than a margin against {base} at its full budget"
    for bracket in found.as_right:
        yield f"{name} is {as_right_in_words(bracket, base, run.budgets)}"


def as_right_in_words(bracket: AsRight, base: str, budgets: Sequence[int]) -> str:
    """`as right as dense at 96 tokens with 112 to 208; its chains are then 1.1 to 1.6 times as long`."""
    what = f"as right as {base} at {bracket.base_budget:,} tokens"
    if bracket.never:
        return f"{what} with no budget up to {budgets[-1]:,}: it is shown to be worse at each"
    if bracket.above is None and bracket.below is None:
        return f"{what}: not decided with which budget"
    if bracket.below is None:
        text = f"{what} with more than {bracket.above:,}, without a known upper end"
    elif bracket.above is None:
        text = f"{what} with less than {bracket.below:,}"
    else:
        text = f"{what} with {bracket.above:,} to {bracket.below:,}"
    if bracket.longer_low is not None and bracket.longer_high is not None:
        text += f"; its chains are then {times(bracket.longer_low)} to {times(bracket.longer_high)} times as long"
    return text


def effort_tables(data: Efforts) -> RenderableType:
    """The table of levels of each run, and what variants must think to be as right as the base."""
    names, parts = unique_labels(data.runs), list[RenderableType]()
    base = names[0] if data.runs[0].recipe else "the original"
    for name, run in zip(names, data.runs, strict=True):
        table = TextTable(*HEADINGS, left=LEFT)
        for level in run.levels:
            table.add_row(*cells_of(level))
        parts += [Text(visible(heading_of(name, run)), "bold")]
        parts += [table] if run.levels else []
        parts += [Text(f"warning: {visible(warning)}") for warning in run.warnings]
        parts += [Text(visible(line)) for line in exchange_lines(name, run, base)]
        parts.append(Text(""))
    return Group(*parts, Text(data.method))
