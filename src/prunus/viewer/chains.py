"""One problem: the chains of several runs in pieces, which the page shows side by side.

A chain's thinking is the text under its largest budget, of which the texts under smaller budgets are the beginnings.
The pieces of all runs are parted where the first of them differs from the others, so that they can be aligned there:
the store keeps texts and no tokens, so this is the beginning of the first word that is not the same.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunus.reporting.render.text import clip
from prunus.settings.budgets import NAMED, OFF
from prunus.store.characters import visible
from prunus.store.looping import loop_start
from prunus.store.rows import UNKNOWN, Sample
from prunus.viewer.lines import STATES

LONGEST = 1_000_000  # characters of a piece that are shown
LONGEST_WORD = 24  # characters
_WORD = re.compile(rf"\s*\S{{1,{LONGEST_WORD}}}")
CUT = 4  # characters at the end of a cut text that may differ from the whole chain's, if it ends within a character
Json = dict[str, Any]


@dataclass(frozen=True)
class Stop:
    """Where a chain ends under one or more budgets, and what is answered there.

    at: number of characters of thinking before it. sample: under the smallest of the budgets. state: of STATES.
    first: whether it is the first right answer.
    """

    at: int
    budgets: tuple[int, ...]
    sample: Sample
    state: str
    first: bool

    def to_json(self) -> Json:
        """Plain data of the stop for the page."""
        sample = self.sample
        return {
            "budgets": [str(budget) for budget in self.budgets],
            "ended": sample.ended if sample.forced_tokens != UNKNOWN else "unknown",
            "tokens": None if sample.thinking_tokens == UNKNOWN else sample.thinking_tokens,
            "truncated": sample.answer_truncated,
            "state": self.state,
            "first": self.first,
            "answer": None if sample.answer is None else visible(clip(sample.answer, 200)),
            "text": shown(sample.text),
        }


@dataclass(frozen=True)
class ShownChain:
    """A chain of a run. apart: stops under budgets whose thinking is not a beginning of this one, with their own."""

    thinking: str
    stops: Sequence[Stop]
    apart: Sequence[Stop]
    loops: bool

    def parted(self, place: int | None) -> tuple[list[Json], list[Json]]:
        """The pieces before the place where the chains differ, and those after it. A piece is a text or a stop.

        place: number of characters before it; None if this chain is not compared with others.
        """
        at = place or 0
        differs = None if place is None else _WORD.match(self.thinking, at)
        loop = loop_start(self.thinking)
        cuts = {0, at, len(self.thinking), *(stop.at for stop in self.stops)}
        cuts |= {loop} if loop is not None else set()
        ends: list[int] = sorted(cuts | ({differs.end()} if differs else set()))
        before, after = list[Json](), list[Json]()
        for start, end in zip(ends, [*ends[1:], None], strict=True):
            for stop in self.stops:
                if stop.at == start:
                    cut = stop.sample.ended == "forced" and start < len(self.thinking)
                    early = start < at or (start == at > 0 and cut)
                    (before if early else after).append({"stop": stop.to_json()})
            if end is not None:
                piece = {"text": shown(self.thinking[start:end])}
                piece |= {"differs": True} if differs and at <= start < differs.end() else {}
                piece |= {"loop": True} if loop is not None and start >= loop else {}
                (before if start < at else after).append(piece)
        return before, after


def shown(text: str) -> str:
    """The text of a model as the page shows it: control characters made visible, the middle of a huge one left out."""
    return visible(clip(text, LONGEST))


def chain_of(samples: Sequence[Sample], states: Mapping[int, int], budget: int) -> ShownChain:
    """The chain that contains what was drawn for a budget, or else the longest; an empty one without samples.

    samples: of a draw of a problem, with texts, by budget. states: indices of STATES, by budget.
    """
    # Where nothing was thought, or not apart from the answer, the answer is the chain.
    bare = not any(sample.thinking for sample in samples)
    samples = [
        replace(sample, thinking=sample.text, text="")
        if not sample.thinking and (bare or sample.budget in NAMED)
        else sample
        for sample in samples
    ]
    right = [sample.budget for sample in samples if sample.correct]
    own = [sample for sample in samples if (sample.budget == OFF) == (budget == OFF)]
    wanted = next((sample.thinking for sample in own if sample.budget == budget), "")
    holding = [sample.thinking for sample in own if _begins(sample.thinking, wanted)]
    thinking = max(holding, key=len, default="")
    stops, apart = list[Stop](), list[Stop]()
    for sample in samples:
        at = common_length(sample.thinking, thinking)
        stop = Stop(at, (sample.budget,), sample, STATES[states[sample.budget]], [sample.budget] == right[:1])
        if sample not in own or not _begins(thinking, sample.thinking):
            apart.append(stop)
        elif stops and _same_end(stops[-1], stop):
            last = stops.pop()
            stops.append(replace(last, budgets=(*last.budgets, sample.budget)))
        else:
            stops.append(stop)
    return ShownChain(thinking, stops, apart, any(sample.loops for sample in samples))


def _begins(chain: str, beginning: str) -> bool:
    """Whether a chain begins with a text, apart from its last characters, since a cut may be within a character."""
    return chain.startswith(beginning[: max(0, len(beginning) - CUT)])


def _same_end(stop: Stop, other: Stop) -> bool:
    natural = stop.sample.ended == other.sample.ended == "natural"
    return natural and (stop.at, stop.sample.text, stop.state) == (other.at, other.sample.text, other.state)


def common_length(text: str, other: str) -> int:
    """The number of characters at the beginning that two texts share."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[:middle] == other[:middle] else (low, middle - 1)
    return low


def first_difference(texts: Sequence[str]) -> int:
    """Where the first word begins that is not the same in all texts; their length if they are equal."""
    at = min(common_length(texts[0], other) for other in texts)
    start = at
    if all(len(text) == at for text in texts):
        return at
    while start and at - start < LONGEST_WORD and not texts[0][start - 1].isspace():
        start -= 1
    return start if start == 0 or texts[0][start - 1].isspace() else at


def side_by_side(chains: Sequence[ShownChain]) -> list[Json]:
    """For each run the pieces of its chain before and after the place where the chains differ.

    A single chain, and one whose text the store does not keep, has all its pieces after it.
    """
    texts = [chain.thinking for chain in chains if chain.thinking]
    at = first_difference(texts) if len(texts) > 1 else None
    sides = []
    for chain in chains:
        before, after = chain.parted(at if chain.thinking else None)
        apart = [stop.to_json() | {"thinking": shown(stop.sample.thinking)} for stop in chain.apart]
        kept = any(stop.sample.thinking or stop.sample.text for stop in (*chain.stops, *chain.apart))
        sides.append({"before": before, "after": after, "apart": apart, "loops": chain.loops, "kept": kept})
    return sides
