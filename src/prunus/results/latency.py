"""Latency: how many seconds a draw would take if the model decoded this one chain alone (docs/protocol.md).

Draws are evaluated in batches, so the time of a single draw is not observed. But the time to decode a token depends on
the length of its context and hardly on which token it is. So the speed of a model is measured once on a machine as a
function of the context, and the latency of each draw is computed from its numbers of tokens.
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
    """The measured speed of one model that decodes one chain at a time on a machine.

    contexts: numbers of tokens in the context. decode: seconds to decode one token after each of them; prefill: seconds
    to read each of them at once. prompts: mean tokens of the prompts of each task, including the marker that opens the
    thinking; start: tokens of that marker. how: everything else that the numbers depend on, for people to read.
    """

    contexts: Sequence[int]
    decode: Sequence[float]
    prefill: Sequence[float]
    prompts: Mapping[str, float]
    start: int
    how: Mapping[str, Any]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The Speed that the store keeps as JSON."""
        return cls(**data)

    def seconds(self, prompt: float, tokens: ArrayLike) -> Floats:
        """Seconds to read a prompt and then decode these numbers of tokens, an array of any shape."""
        counts = np.asarray(tokens, dtype=float)
        return np.interp(prompt, self.contexts, self.prefill) + self._until(prompt + counts) - self._until(prompt)

    def _until(self, context: Floats | float) -> Floats:
        """Seconds to decode from an empty context up to this one: the integral of decode, constant beyond its ends."""
        x_C, y_C = np.array([0, *self.contexts], float), np.array([self.decode[0], *self.decode], float)
        sums_C = np.concatenate([[0.0], np.cumsum(np.diff(x_C) * (y_C[1:] + y_C[:-1]) / 2)])
        place = np.clip(np.searchsorted(x_C, context, side="right") - 1, 0, len(x_C) - 1)
        return sums_C[place] + (context - x_C[place]) * (y_C[place] + np.interp(context, x_C, y_C)) / 2


def draw_seconds(table: Table, speed: Speed, task: str) -> Floats:
    """(P, B, N) seconds of each draw decoded alone: the prompt is read at once, all other tokens one by one."""
    tokens = table.used + table.values("forced_tokens") - speed.start
    return speed.seconds(speed.prompts[task], tokens)


def by_budget(table: Table, speed: Speed, task: str) -> dict[int, dict[str, float]]:
    """Mean and 95th percentile of the seconds per draw at each budget of a complete table."""
    seconds = draw_seconds(table, speed, task)
    return {budget: metrics.tokens(seconds[:, place]).to_json() for place, budget in enumerate(table.budgets)}


def affordable(cells: Mapping[int, Mapping[str, float]], deadline: float) -> int | None:
    """The largest budget at which 95 % of the draws finish by the deadline, None if there is none.

    cells: from by_budget.
    """
    return max((budget for budget, cell in cells.items() if cell["p95"] <= deadline), default=None)


def deadlines(first: float, last: float, most: int = 8) -> list[float]:
    """At most `most` round numbers of seconds (1, 2 or 5 times a power of 10) that cover the range first to last."""
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 2)
    steps = [round(factor * 10.0**power, 9) for power in powers for factor in (1, 2, 5)]
    inside = [step for step in steps if step >= first]
    inside = inside[: 1 + next(place for place, step in enumerate(inside) if step >= last)]
    return inside[:: math.ceil(len(inside) / most)]


def contrast(base: Table, other: Table, budgets: tuple[int, int], seed: int = 0) -> dict[str, float]:
    """Difference in accuracy, other minus base, each at its own budget (base's first), paired by problem.

    Tables are complete and of the same problems. Interval and p as in a comparison, ignoring the error of the speeds.
    """
    shares = [
        table.correct[:, table.budgets.index(budget)].mean(axis=1)
        for table, budget in zip((base, other), budgets, strict=True)
    ]
    strata = [(shares[1] - shares[0])[:, None]]
    return paired.infer(strata, paired.EXPLORING_RESAMPLES, seed).cells()[0]
