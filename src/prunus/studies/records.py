"""Records of the plan of a study and of its results, and how a terminal shows them."""

from collections.abc import Sequence
from dataclasses import field

from rich.console import Group, RenderableType
from rich.text import Text

from prunus.disk import show_bytes
from prunus.evaluation.provenance import model_label
from prunus.plain_data import HIDDEN, Record
from prunus.results.cells import Comparison
from prunus.studies.find.tables import SearchState
from prunus.text_table import TextTable, printed


class PlannedCell(Record):
    """The plan of a cell. Numbers and ids that depend on a model or task that is not on this machine are None.

    model: its name.
    variant: its name, with its serving's where the study has several.
    plan: its name; empty where the study has one.
    run: its id.
    problems, answers: counts.
    done: answers in the store.
    tokens: upper bound of the tokens of the missing answers.
    tokens_expected: their number if chains stay as long as those of the same model and plan so far, None without any so
        far.
    """

    model: str
    variant: str
    plan: str
    run: str | None
    problems: int | None
    answers: int | None
    done: int
    tokens: int | None
    tokens_expected: float | None


class PlannedVariant(Record):
    """A variant of a model.

    model: its name.
    variant: its name.
    made: whether its files exist.
    bytes: the most that they take.
    """

    model: str
    variant: str
    made: bool
    bytes: int


class Totals(Record):
    """Sums over the cells of a study.

    cells: their number.
    complete: the number of cells that have all answers.
    answers: the number that the study asks for.
    done: answers in the store.
    tokens: the most that is left to generate.
    disk: the most bytes that the study adds, which include a whole checkpoint while variants are made; None where a
        model or a task is not on this machine.
    """

    cells: int
    complete: int
    answers: int
    done: int
    tokens: int
    disk: int | None


class StudyPlan(Record):
    """Plan of a study: its cells, and what they would take. Its text is the table of `prunus study plan`.

    name: of the study.
    out, store: the study's folder and its store.
    cells: one for each model, serving, variant and plan.
    variants: what is made of the models.
    totals: sums over all cells.
    margins: a line for each model and plan that says which loss its problems can rule out at best.
    advice: a line for each model and plan where more draws of the base cost less than more problems.
    gated: the problem sets of which the store keeps ids and no texts.
    unknown: a line for each thing that cannot be known yet.
    searches: one for each model, plan and [[find]] table, with lines that say what to expect of those that are not
        finished; the totals do not count them.
    """

    name: str
    out: str
    store: str
    cells: Sequence[PlannedCell]
    variants: Sequence[PlannedVariant]
    totals: Totals
    margins: Sequence[str]
    advice: Sequence[str]
    gated: Sequence[str]
    unknown: Sequence[str]
    searches: Sequence[SearchState]

    def __repr__(self) -> str:
        return printed(plan_table(self))


class PlanContrast(Record):
    """One model under one plan of the study: the base and the runs that are compared with it.

    model: its name.
    plan: its name.
    base: id of the base's run.
    comparison: None while there is nothing to compare with.
    not_started: names of all cells without answers.
    started: whether the base has answers; this and what follows is not in the plain data.
    others: ids of the other runs that have answers.
    controls: ids of the runs that repeat the dense model's.
    """

    model: str
    plan: str
    base: str
    comparison: Comparison | None
    not_started: Sequence[str]
    started: bool = field(metadata=HIDDEN)
    others: Sequence[str] = field(metadata=HIDDEN)
    controls: Sequence[str] = field(metadata=HIDDEN)


class StudyResult(Record):
    """The verdicts of a study. Its text has the tables of all comparisons.

    name: of the study.
    out, store: the study's folder and its store.
    report: the path of the page.
    cells: their number.
    unreported: ids of runs in the store that the file does not ask for.
    comparisons: one for each model and plan.
    searches: one for each model, plan and [[find]] table.
    """

    name: str
    out: str
    store: str
    report: str
    cells: int
    unreported: Sequence[str]
    comparisons: Sequence[PlanContrast]
    searches: Sequence[SearchState]

    def __repr__(self) -> str:
        tables = [repr(contrast.comparison) for contrast in self.comparisons if contrast.comparison is not None]
        models = len({search.model for search in self.searches})
        return "\n".join([*tables, *(line for search in self.searches for line in search_lines(search, models > 1))])


def plan_table(plan: StudyPlan) -> RenderableType:
    """A table with a row for each cell, followed by a summary of the remaining work."""
    models = len({cell.model for cell in plan.cells})
    table = TextTable("cell", "problems", "answers", "done", "tokens left, at most", "run", left=("run",), gap=2)
    for cell in plan.cells:
        name = cell.variant if models == 1 else f"{model_label(cell.model)} {cell.variant}"
        label = f"{name} ({cell.plan})" if cell.plan else name
        counts = cell.problems, cell.answers, cell.tokens
        problems, answers, tokens = ("?" if number is None else f"{number:,}" for number in counts)
        numbers = [problems, answers, "all" if cell.done == cell.answers else f"{cell.done:,}", tokens]
        table.add_row(label, *numbers, cell.run or "?")
    searches = [line for search in plan.searches for line in search_lines(search, models > 1)]
    return Group(Text(f"study {plan.name}", style="bold"), table, Text(""), *map(Text, [*summary(plan), *searches]))


def search_lines(search: SearchState, several: bool) -> list[str]:
    """Lines on a search: its outcome, or its state and forecast. several: whether the study has several models."""
    of = f" of {model_label(search.model)}" if several else ""
    plan = f" ({search.plan})" if search.plan else ""
    head = f"search {search.name}{of}{plan}: "
    if search.page is None:
        return [head + search.state, *(f"  {line}" for line in search.lines)]
    found = search.found
    outcome = "no rung was certified" if found is None else f"{found}, {100 * search.removed:.3g} % removed"
    return [f"{head}{outcome}; {search.page}"]


def summary(plan: StudyPlan) -> list[str]:
    """Lines that sum up the remaining work: answers, tokens and disk."""
    totals, left = plan.totals, any(search.page is None for search in plan.searches)
    to_make = [variant for variant in plan.variants if not variant.made]
    cells = f"{totals.complete} of {totals.cells} cells are done, {totals.done:,} of {totals.answers:,} answers"
    expected = [cell.tokens_expected for cell in plan.cells if cell.done != cell.answers]
    lines = [f"{cells}; {totals.tokens:,} tokens to generate at most"]
    known = [tokens for tokens in expected if tokens is not None]
    if expected and len(known) == len(expected):
        lines.append(f"about {sum(known):,.0f} tokens if chains stay as long as those so far")
    if totals.disk is not None:
        made = f"{len(to_make)} of {len(plan.variants)} variants are to be made"
        lines.append(f"{made}; disk: {show_bytes(totals.disk)} at most")
    if totals.complete == totals.cells:
        return [*lines, "nothing is left to evaluate" + (" but searches" if left else "")]
    lines += [f"{task} is gated: the store keeps its ids, and no questions or chains" for task in plan.gated]
    lines += [*plan.margins, *plan.advice]
    return lines + [f"not known yet: {line}" for line in plan.unknown]
