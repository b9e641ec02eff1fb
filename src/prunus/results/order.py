"""The order in which a comparison is shown: three groups by what is known of the loss, and within them by size.

Pages, the terminal and `study` say the same of a variant in the same place: first those of which a loss of the limit is
ruled out, then those that are not decided, then those that are worse.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from prunus.results.cells import Comparison, Entry
from prunus.results.vocabulary import LossGroup, Verdict
from prunus.store.labels import Identity, sizes_of

Sized = tuple[float, float]


class Order(NamedTuple):
    """The places of a comparison's entries in the order in which they are shown, and that of the variant to choose."""

    places: Sequence[int]
    chosen: int | None


def ordered(comparison: Comparison) -> Order:
    """The order of the entries: by group; the chosen variant first, then by size, or by loss where it matters."""
    entries, sizes = comparison.others, sizes_by_place(comparison)
    chosen = best(entries, sizes)

    def rank(place: int) -> tuple[object, ...]:
        entry = entries[place]
        group, loss = entry.verdict.group, -entry.primary.difference
        by = (*sizes[place], loss) if group is LossGroup.RULED_OUT else (loss, *sizes[place])
        return group.rank, place != chosen, *by

    return Order(sorted(range(len(entries)), key=rank), chosen)


def sizes_by_place(comparison: Comparison) -> list[Sized]:
    """The size of each variant, to sort by: bytes or else parameters, then the share of weights that are not zero."""
    sizes, _ = sizes_of([comparison.base, *comparison.others])
    return [size_of(entry, size) for entry, size in zip(comparison.others, sizes[1:], strict=True)]


def size_of(run: Identity, nbytes: int | None) -> Sized:
    """The size of a run. nbytes: that an engine loads; None where it is unknown."""
    kept = 1.0
    for step in run.recipe:
        sparsity = step.recipe.sparsity
        kept *= 1 - sparsity if sparsity is not None and 0 <= sparsity <= 1 else 1.0
    return float(nbytes or run.parameters or math.inf), kept


def best(entries: Sequence[Entry], sizes: Sequence[Sized]) -> int | None:
    """The place of the variant to choose: of those that lose less than the margin, the smallest that still stops.

    If none is shown to stop, the smallest with the least doubt. None if no variant is shown to lose less than the
    margin.
    """
    fit = [place for place, entry in enumerate(entries) if entry.verdict.rules_out_margin]
    return min(fit, key=lambda p: (doubt(entries[p]), sizes[p], -entries[p].primary.difference), default=None)


def most_ruled_out(entries: Sequence[Entry], sizes: Sequence[Sized]) -> int | None:
    """The place of the variant with the highest lower bound, undecided ones first; of equal bounds, the smallest.

    Bounds are equal if they are printed alike. None if no variant has a verdict.
    """
    judged = [place for place, entry in enumerate(entries) if entry.verdict != Verdict.UNFINISHED]

    def rank(place: int) -> tuple[bool, int, Sized]:
        low = entries[place].low
        return (
            entries[place].verdict != Verdict.CANNOT_TELL,
            math.ceil(-1000 * (-1 if low is None else low)),
            sizes[place],
        )

    return min(judged, key=rank, default=None)


def doubt(entry: Entry) -> int:
    """0 for a variant that still stops, 1 if that cannot be said, 2 if not, 3 if it is worse at single budgets."""
    if any(at.verdict.direction < 0 for at in entry.contradicted_at):
        return 3
    if entry.stops == Verdict.WORSE or entry.relies_on_cutting:
        return 2
    return 0 if entry.stops is None or entry.still_stops else 1


def settled_by(entries: Sequence[Entry]) -> str:
    """How many problems would probably decide these entries: `about 450 to 530 problems`; empty where it is not known.

    Entries count only if the present number is too small for them, and if a loss can be ruled out for them at all.
    """
    cells = [entry.primary for entry in entries if not entry.nothing_to_lose]
    numbers = [
        cell.settle.problems for cell in cells if cell.settle.problems and cell.settle.problems > cell.all_problems
    ]
    if not numbers:
        return ""
    ends = sorted({two_digits(number) for number in (min(numbers), max(numbers))})
    return f"about {' to '.join(f'{end:,}' for end in ends)} problems"


def two_digits(number: float) -> int:
    """A number rounded to two digits, for estimates."""
    return int(float(f"{number:.2g}"))
