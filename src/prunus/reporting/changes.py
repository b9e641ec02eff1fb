"""What a report tells beyond accuracy: which weights went, and which problems flipped."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from prunus.reporting.labels import history
from prunus.results.store import Key, Run, Sample, Store


def removed_blocks(run: Run) -> int:
    """How many decoder blocks are gone."""
    return sum(len(_removed(step)) for step in history(run))


def block_sparsities(run: Run) -> list[float | None]:
    """For each block of the original model the mean sparsity over its Linears, or None where the block was removed.

    Steps are replayed in order: each names blocks as the checkpoint it started from numbered them. Linears of one block
    count alike, as the manifest holds shares and not sizes.
    """
    total = int(run.model.get("blocks") or 0) + removed_blocks(run)
    here = list(range(total))  # original index of each block still there
    result: list[float | None] = [0.0] * total
    for step in history(run):
        for index, shares in _shares_by_block(step).items():
            if index < len(here):
                result[here[index]] = fmean(shares)
        gone = {index for index in _removed(step) if index < len(here)}
        for index in gone:
            result[here[index]] = None
        here = [original for index, original in enumerate(here) if index not in gone]
    return result


def _removed(step: dict[str, Any]) -> list[int]:
    blocks = step.get("blocks_removed")
    return [b for b in blocks if isinstance(b, int) and b >= 0] if isinstance(blocks, list) else []


def _shares_by_block(step: dict[str, Any]) -> dict[int, list[float]]:
    """Sparsities of a step's Linears by the first number in their names (model.layers.3.mlp.up_proj)."""
    shares: dict[int, list[float]] = defaultdict(list)
    sparsity = step.get("sparsity")
    for name, share in (sparsity if isinstance(sparsity, dict) else {}).items():
        numbers = [part for part in str(name).split(".") if part.isdecimal()]
        if numbers and isinstance(share, int | float):
            shares[int(numbers[0])].append(float(share))
    return shares


@dataclass(frozen=True)
class Flip:
    """One problem that base and variant answered differently at one budget; draw is the same in both."""

    base: Sample
    other: Sample

    @property
    def gained(self) -> bool:
        """Whether the variant is the one that is right."""
        return self.other.correct

    @property
    def key(self) -> Key:
        return (self.base.problem_id, self.base.budget, self.base.draw)


def flips(base: Iterable[Sample], other: Iterable[Sample]) -> list[Flip]:
    """Draws of which exactly one side is correct, at the largest budget both have; at most one draw a problem."""
    left, right = ({(s.problem_id, s.budget, s.draw): s for s in side} for side in (base, other))
    shared = left.keys() & right.keys()
    if not shared:
        return []
    largest = max(budget for _, budget, _ in shared)
    found: dict[str, Flip] = {}
    for key in sorted(key for key in shared if key[1] == largest):
        if left[key].correct != right[key].correct:
            found.setdefault(key[0], Flip(left[key], right[key]))
    return list(found.values())


def choose(found: Sequence[Flip], most: int) -> list[Flip]:
    """At most `most` flips, lost and gained in turn, spread over the list rather than from its start."""
    kinds = [[flip for flip in found if flip.gained == gained] for gained in (False, True)]
    shares = [min(len(kinds[0]), most - min(len(kinds[1]), most // 2)), 0]
    shares[1] = min(len(kinds[1]), most - shares[0])
    return [kind[k * len(kind) // share] for kind, share in zip(kinds, shares, strict=True) for k in range(share)]


def texts(store: Store, run_id: str, chosen: Sequence[Flip]) -> dict[Key, tuple[str, str]]:
    """(thinking, answer) of the chosen draws of one run."""
    return store.texts(run_id, [flip.key for flip in chosen])
