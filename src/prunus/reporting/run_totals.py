"""How far the runs are and what they cost: a report can be made of a study that is still running."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunus.reporting.render.table import Column, Grid
from prunus.reporting.render.text import count, percent
from prunus.reporting.report_data import View
from prunus.results.store import Run, Store
from prunus.results.token_use import chains_of, sampled_tokens


@dataclass(frozen=True)
class Standing:
    """Rows that a run has, rows that its plan asks for (None where that is not known), tokens sampled for them."""

    done: int
    planned: int | None
    thinking: int
    answer: int

    @property
    def missing(self) -> int:
        return max(0, (self.planned or 0) - self.done)


def standing(store: Store, run: Run) -> Standing:
    """Of one run. What budgets share is counted once: a chain as long as it got, the answer after its natural end."""
    samples = store.samples(run.run_id)
    thinking, answer = sampled_tokens(chains_of(samples), bool(run.plan.get("reuse")))
    return Standing(len(samples), planned_rows(store, run), thinking, answer)


def planned_rows(store: Store, run: Run) -> int | None:
    """Problems of the plan's tasks that the store knows, times budgets, times draws."""
    tasks, budgets, draws = (run.plan.get(key) for key in ("tasks", "budgets", "samples"))
    if not isinstance(tasks, list) or not isinstance(budgets, list) or not isinstance(draws, int):
        return None
    limit = run.plan.get("limit")
    sizes = dict.fromkeys(map(str, tasks), 0)
    for problem in store.problems().values():
        if problem.task in sizes:
            sizes[problem.task] += 1
    problems = sum(min(size, limit) if isinstance(limit, int) else size for size in sizes.values())
    return problems * len(budgets) * draws or None


def missing_notes(standings: Iterable[tuple[str, Standing]]) -> list[str]:
    """A sentence for all runs (name, standing) that lack rows of their plan."""
    lacking = [(name, one) for name, one in standings if one.missing and one.planned]
    if not lacking:
        return []
    parts = [f"{name} has {percent(one.done / (one.planned or 1))} %" for name, one in lacking[:6]]
    rest = f", and {len(lacking) - 6} more" if len(lacking) > 6 else ""
    return [
        f"Not finished: {', '.join(parts)}{rest} of the answers that the plan asks for. Numbers are of the problems "
        "that are complete; the same command goes on where it stopped."
    ]


def cost_grid(view: View, standings: Sequence[Standing]) -> Grid:
    """Answers done and planned, and tokens sampled, a row a run."""
    rows = [
        (look, [one.done, one.planned, one.thinking, one.answer, one.thinking + one.answer,
                str(run.versions.get("device", "")) or None])
        for look, run, one in zip(view.looks, view.runs, standings, strict=True)
    ]  # fmt: skip
    columns = [
        Column("run", "Run"), Column("answers", "Answers", count), Column("planned", "Planned", count),
        Column("thinking", "Thinking tokens|sampled", count), Column("answer", "Answer tokens|sampled", count),
        Column("total", "Tokens|sampled", count), Column("device", "Device"),
    ]  # fmt: skip
    return Grid("costs", "Answers and tokens sampled", "data costs sortable", columns, rows)
