"""What a study shows on a terminal: while it runs, a bar of all answers with the time left; before, its plan."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunus import progress
from prunus.disk import show_bytes
from prunus.evaluation.provenance import model_label
from prunus.store.rows import Key, Sample
from prunus.store.store import Store
from prunus.studies.cells import Model, plan_names
from prunus.studies.file import Study


class StudyBar(progress.Steps):
    """`with StudyBar(study, models, store) as bar: bar.add(run_id, samples)`: the answers of all cells of a study.

    A line is printed whenever a cell is complete.
    """

    def __init__(self, study: Study, models: Sequence[Model], store: Store) -> None:
        self.cells: dict[str, tuple[str, int, dict[Key, bool]]] = {}  # name, answers in all, whether each is right
        self.activity = ""
        for model in models:
            for cell in model.cells:
                name = cell.name if len(study.models) == 1 else f"{model.label} {cell.name}"
                name += f" ({plan_names(study.plans)[cell.plan]})" if len(study.plans) > 1 else ""
                total = sum(map(len, cell.resolved.batches)) * len(cell.resolved.budgets)
                *keys, correct = store.columns(cell.run_id, ("problem_id", "budget", "draw", "correct"))
                self.cells[cell.run_id] = name, total, dict(zip(zip(*keys, strict=True), correct, strict=True))
        total, done = sum(total for _, total, _ in self.cells.values()), sum(len(of) for *_, of in self.cells.values())
        super().__init__(f"study {study.name}", total, "answers", done)

    def say(self, activity: str) -> None:
        """Show the current activity."""
        self.activity = activity
        self.within(0.0)

    def within(self, part: float, note: str = "") -> None:
        """As of Steps, beside the activity."""
        super().within(part, f"{self.activity}: {note}" if note else self.activity)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Within the context the bar is not drawn, so that others can use the screen."""
        if self.bar is None:
            yield
            return
        self.bar.live.transient = True
        self.bar.stop()
        try:
            yield
        finally:
            self.bar.live.transient = False
            self.bar.start()

    def add(self, run_id: str, samples: Sequence[Sample]) -> None:
        """Add answers of a cell."""
        name, total, right = self.cells[run_id]
        before = len(right)
        right |= {(s.problem_id, s.budget, s.draw): s.correct for s in samples}
        self.advance(len(right) - before)
        if before < total <= len(right):
            complete = sum(len(of) >= wanted for _, wanted, of in self.cells.values())
            share = f"{100 * sum(right.values()) / total:.1f} % right"
            progress.say(f"{name}: {total:,} answers, {share}; {complete} of {len(self.cells)} cells are complete")


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
    lines += plan["advice"]
    return lines + [f"not known yet: {line}" for line in plan["unknown"]]
