"""The progress of each run, which may still be in a running study, and the tokens that it sampled."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunus.reporting.render.text import percent
from prunus.results.rows import IMPORTED, UNKNOWN, ProblemRow, Run, Sample, chains_of, sampled_tokens


@dataclass(frozen=True)
class RunTotals:
    """Numbers of answers and of sampled tokens of a run; those of tokens are None in a log that does not tell them.

    planned: answers of the whole plan, None if unknown.
    """

    answers: int
    planned: int | None
    thinking_tokens: int | None
    answer_tokens: int | None

    @property
    def missing(self) -> int:
        """Number of planned answers that the run does not have yet."""
        return max(0, (self.planned or 0) - self.answers)


def run_totals(run: Run, samples: Sequence[Sample], problems: Iterable[ProblemRow]) -> RunTotals:
    """The totals of one run. problems: all problems of the store."""
    if any(sample.answer_tokens == UNKNOWN for sample in samples):
        return RunTotals(len(samples), planned_answers(run, problems), None, None)
    thinking, answer = sampled_tokens(chains_of(samples), bool(run.plan.get("reuse")))
    return RunTotals(len(samples), planned_answers(run, problems), thinking, answer)


def planned_answers(run: Run, problems: Iterable[ProblemRow]) -> int | None:
    """Number of answers of a run's plan: problems of its tasks, times budgets, times draws; None if unknown.

    An imported log is complete, and problems that only such logs have are in no plan.
    """
    if run.imported:
        return None
    tasks, budgets, draws = (run.plan.get(key) for key in ("tasks", "budgets", "samples"))
    if not isinstance(tasks, list) or not isinstance(budgets, list) or not isinstance(draws, int):
        return None
    limit = run.plan.get("limit")
    sizes = dict.fromkeys(map(str, tasks), 0)
    for problem in problems:
        if problem.task in sizes and problem.kind != IMPORTED:
            sizes[problem.task] += 1
    planned = sum(min(size, limit) if isinstance(limit, int) else size for size in sizes.values())
    return planned * len(budgets) * draws or None


def missing_notes(totals: Iterable[tuple[str, RunTotals]]) -> list[str]:
    """A sentence about all runs that are not finished; none if all are. totals: (name, totals) of each run."""
    lacking = [(name, one) for name, one in totals if one.missing and one.planned]
    if not lacking:
        return []
    parts = [f"{name} has {percent(one.answers / (one.planned or 1))} %" for name, one in lacking[:6]]
    rest = f", and {len(lacking) - 6} more" if len(lacking) > 6 else ""
    return [
        f"Not finished: {', '.join(parts)}{rest} of the answers of the plan. All numbers are for complete problems "
        "only; the same command resumes the run."
    ]
