"""What all sections of a report look at: the runs in order, the base first, with their numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.reporting.labels import Look
from prunus.reporting.published import Match
from prunus.results.store import Run

Data = Mapping[str, Any]


def float_of(value: Any) -> float:
    """nan for None."""
    return math.nan if value is None else float(value)


def cells_of(summary: Data, task: str) -> dict[int, Data]:
    """A run's cells of one task by budget, in order; empty where there is none."""
    cells = summary["tasks"].get(task, {}).get("budgets", {})
    return {int(budget): cells[budget] for budget in sorted(cells, key=int)}


def tasks_of(summaries: Iterable[Data]) -> list[str]:
    """All tasks that any run has finished problems of, in order of first appearance."""
    return list(dict.fromkeys(task for summary in summaries for task in summary["tasks"] if cells_of(summary, task)))


def band_of(cell: Data) -> tuple[float, float]:
    """The simultaneous 95 % band of a cell where it has one, else its own interval."""
    return float_of(cell.get("band_low", cell["low"])), float_of(cell.get("band_high", cell["high"]))


@dataclass(frozen=True)
class View:
    """runs, looks and summaries are in the same order, the base first; comparison has an entry for each but the base.

    matches: published figures beside ours; None where nobody asked for them.
    """

    runs: Sequence[Run]
    looks: Sequence[Look]
    summaries: Sequence[Data]
    comparison: Data
    matches: Sequence[Match] | None = None

    @property
    def base(self) -> Look:
        return self.looks[0]

    @property
    def margin(self) -> float:
        return self.comparison["margin"]

    @property
    def entries(self) -> list[Data | None]:
        """What compare says of each run, None for the base."""
        return [None, *self.comparison["others"]]

    @property
    def tasks(self) -> list[str]:
        return tasks_of(self.summaries)

    def contrasts(self, entry: Data | None, task: str) -> dict[int, Data]:
        """The differences of one run on one task by budget; empty for the base."""
        if entry is None or task not in entry["tasks"]:
            return {}
        return {int(budget): cell for budget, cell in entry["tasks"][task]["budgets"].items()}

    def published_on(self, task: str) -> list[Match]:
        return [match for match in self.matches or () if match.task == task]
