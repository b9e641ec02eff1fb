"""What tables, pages and cards say of a comparison in the same words."""

from collections.abc import Callable
from math import ceil, copysign

from prunus.results.cells import Entry, Sized, Unfinished
from prunus.settings.margins import Margin
from prunus.store.characters import MINUS, points

DIGITS = range(1, 7)  # of a bound, as many as it takes


def observations(cell: Sized, unit: str = " problems") -> str:
    """`120 problems`, or `120 problems in 30 groups` where some belong together."""
    return f"{cell.n}{unit}" if cell.problems is None else f"{cell.problems}{unit} in {cell.n} groups"


def rounded(bound: float, limit: float, up: bool) -> str:
    """A bound in points, rounded up or down, with as many digits as show on which side of a limit it lies."""
    bound, limit, turn, text = round(bound, 9), round(limit, 9), 1 if up else -1, ""
    for digits in DIGITS:
        text = f"{turn * ceil(round(turn * bound * 10**digits, 6)) / 10**digits:.{digits}f}"
        if bound == limit or (float(text) - limit) * (bound - limit) > 0:
            break
    return text


def beside(margin: Margin) -> Callable[[float], str]:
    """A function that writes a share in points, with as many digits as show on which side of the margin it lies."""

    def text(value: float) -> str:
        edge = 0.0 if margin.relative else round(copysign(100 * margin.size, value), 9)
        number = round(100 * value, 9)
        digits = next((k for k in DIGITS if round(number, k) != round(edge, k) or number == edge), max(DIGITS))
        return points(value) if digits == 1 else f"{number:+.{digits}f}".replace("-", MINUS)

    return text


def bound_in_words(entry: Entry) -> str:
    """`loses less than 1.3 points`: what holds with 95 % confidence, also if the run was chosen among those compared.

    That is the adjusted bound, or the margin where the verdict rules out a smaller loss; empty without a claim.
    """
    cell, margin = entry.primary, entry.margin
    bound = cell.lower_bound_adjusted
    if bound is None or entry.unfinished:
        return ""
    if bound > 0:
        return f"gains more than {rounded(100 * bound, 0, up=False)} points"
    size = margin.points(cell.base_accuracy)
    if entry.within_margin and -bound > size:
        return f"loses less than {margin.words('what the base solves')}"
    return f"loses less than {rounded(-100 * bound, 100 * size, up=True)} points"


def loss_in_words(entry: Entry) -> str:
    """`loses at least 1.2 points, and less than 7.0 points`: the same of a run that is worse; of others the bound only.

    Each of the two holds with 95 % confidence. Where the run is worse by a test that is sharper than the bound, the
    loss is more than 0 points.
    """
    most, upper = bound_in_words(entry), entry.primary.upper_bound_adjusted
    if not most or not entry.verdict.startswith("worse"):
        return most
    least = "more than 0" if upper is None or upper >= 0 else f"at least {rounded(-100 * upper, 0, up=False)}"
    return f"loses {least} points, and {most.removeprefix('loses ')}"


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
