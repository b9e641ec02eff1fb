"""From tokens to seconds: how long a draw would take a model that decodes one chain alone (docs/protocol.md).

Rows come from batches, whose draws share their time, so a draw has no seconds of its own. But which token comes next
hardly matters to how long it takes; where it stands does. So the speed of a model is measured once on a machine, as a
function of the context, and every draw gets the seconds that its own tokens would have taken.
P: problems, B: budgets, N: draws, C: contexts that were measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunus.results import metrics, paired
from prunus.results.table import Table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Speed:
    """What was measured of one model, alone on a machine.

    contexts: tokens before the one that is decoded. decode: seconds for that one, prefill: for reading so many at once.
    prompts: mean tokens of a task's prompts, the marker that opens the thinking among them; start: tokens of it alone.
    how: everything else that the numbers depend on, for people.
    """

    contexts: Sequence[int]
    decode: Sequence[float]
    prefill: Sequence[float]
    prompts: Mapping[str, float]
    start: int
    how: Mapping[str, Any]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """As the store keeps it."""
        return cls(**data)

    def seconds(self, prompt: float, tokens: ArrayLike) -> Floats:
        """To read a prompt and decode so many tokens after it; of any shape."""
        counts = np.asarray(tokens, dtype=float)
        return np.interp(prompt, self.contexts, self.prefill) + self._until(prompt + counts) - self._until(prompt)

    def _until(self, context: Floats | float) -> Floats:
        """Seconds to decode from nothing to a context: the area under decode, which is flat beyond its ends."""
        x_C, y_C = np.array([0, *self.contexts], float), np.array([self.decode[0], *self.decode], float)
        sums_C = np.concatenate([[0.0], np.cumsum(np.diff(x_C) * (y_C[1:] + y_C[:-1]) / 2)])
        place = np.clip(np.searchsorted(x_C, context, side="right") - 1, 0, len(x_C) - 1)
        return sums_C[place] + (context - x_C[place]) * (y_C[place] + np.interp(context, x_C, y_C)) / 2


def draw_seconds(table: Table, speed: Speed, task: str) -> Floats:
    """(P, B, N) seconds of each draw, alone: its prompt is read, all else is decoded, what was put in like the rest."""
    tokens = table.used + table.values("forced_tokens") - speed.start
    return speed.seconds(speed.prompts[task], tokens)


def by_budget(table: Table, speed: Speed, task: str) -> dict[int, dict[str, float]]:
    """Mean and 95th percentile of the seconds of a draw at each budget of a complete table."""
    seconds = draw_seconds(table, speed, task)
    return {budget: metrics.tokens(seconds[:, place])._asdict() for place, budget in enumerate(table.budgets)}


def affordable(cells: Mapping[int, Mapping[str, float]], deadline: float) -> int | None:
    """The largest budget of which 95 % of the draws are done by the deadline, None if there is none.

    cells: as by_budget gives.
    """
    return max((budget for budget, cell in cells.items() if cell["p95"] <= deadline), default=None)


def deadlines(first: float, last: float, most: int = 8) -> list[float]:
    """Round numbers of seconds (1, 2 or 5 times a power of 10), from the first one not below first to the first one not
    below last; where they would be more than most, only some of them."""
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 2)
    steps = [round(factor * 10.0**power, 9) for power in powers for factor in (1, 2, 5)]
    inside = [step for step in steps if step >= first]
    inside = inside[: 1 + next(place for place, step in enumerate(inside) if step >= last)]
    return inside[:: math.ceil(len(inside) / most)]


def contrast(base: Table, other: Table, budgets: tuple[int, int], seed: int = 0) -> dict[str, float]:
    """Accuracy of other less that of base, each at the budget that it can afford (base's first), paired by problem.

    Tables are complete and of the same problems. Interval and p as in a comparison; the speeds are taken as known.
    """
    shares = [
        table.correct[:, table.budgets.index(budget)].mean(axis=1)
        for table, budget in zip((base, other), budgets, strict=True)
    ]
    strata = [(shares[1] - shares[0])[:, None]]
    return paired.contrasts(strata, paired.EXPLORING_RESAMPLES, seed).cells()[0]
