"""What tables, pages and cards say of a comparison in the same words."""

from math import ceil, floor

from prunus.results.cells import Entry, Sized, Unfinished


def observations(cell: Sized, unit: str = " problems") -> str:
    """`120 problems`, or `120 problems in 30 groups` where some belong together."""
    return f"{cell.n}{unit}" if cell.problems is None else f"{cell.problems}{unit} in {cell.n} groups"


def bound_in_words(entry: Entry) -> str:
    """`loses less than 1.3 points`: what holds with 95 % confidence, also if the run was chosen among those compared.

    That is the adjusted bound, or the margin where the verdict rules out a smaller loss; empty without a claim.
    """
    cell, margin = entry.primary, entry.margin
    bound = cell.lower_bound_adjusted
    if bound is None or entry.unfinished:
        return ""
    if bound > 0:
        return f"gains more than {floor(1000 * bound) / 10:.1f} points"
    if entry.within_margin and -bound > margin.points(cell.base_accuracy):
        return f"loses less than {margin.words('what the base solves')}"
    return f"loses less than {ceil(1000 * -bound) / 10:.1f} points"


MIXED, SEVERAL = "mixed", "rows were computed in several ways"


PARTLY = "the problems that are finished first need not be like the others"


def in_words(state: Unfinished) -> str:
    """`unfinished, 114 of 120`, or `mixed`, with `of the base` where it is the base that is so."""
    what = MIXED if state.mixed else f"unfinished, {state.complete} of {state.planned}"
    return f"{what}{' rows' * bool(state.mixed and state.base)}{' of the base' if state.base else ''}"


def in_full(state: Unfinished) -> str:
    """`unfinished, 114 of 120 problems; ...`: why there is no word."""
    return f"{in_words(state)}: {SEVERAL}" if state.mixed else f"{in_words(state)} problems; {PARTLY}"


def verdict_in_words(entry: Entry) -> str:
    """The verdict of an entry of `compare`, or how much of an unfinished run is there."""
    return in_words(entry.unfinished) if entry.unfinished else entry.verdict
