"""Phrases about a comparison that tables, pages and cards share."""

from collections.abc import Callable
from math import ceil, copysign

from prunus.results.cells import AsGood, Entry, Sized, Unfinished
from prunus.settings.margins import Margin
from prunus.store.characters import MINUS, points

MORE_CUT = "more of its thinking is cut"  # of a loss within the limit, where fewer answers stop by themselves
DIGITS = range(1, 7)  # of a bound, as many as it takes


def observations(cell: Sized, unit: str = " problems") -> str:
    """`120 problems`, or `120 problems in 30 groups` where some belong together."""
    return f"{cell.n}{unit}" if cell.problems is None else f"{cell.problems}{unit} in {cell.n} groups"


def rounded(bound: float, limit: float, up: bool) -> str:
    """A bound in points, rounded up or down, with as many digits as show on which side of a limit it lies."""
    bound, limit, turn, text = round(bound, 9), round(limit, 9), 1 if up else -1, ""
    for digits in DIGITS:
        text = f"{turn * ceil(round(turn * bound * 10**digits, 6)) / 10**digits:.{digits}f}"
        if (float(text) - limit) * (bound - limit) > 0 or (bound == limit and (digits == 2 or float(text) == bound)):
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


def bounds_in_points(low: float, high: float, margin: Margin) -> str:
    """`[−2.4, +1.9]`: bounds of a search in points; round brackets are at the margin where it is ruled out."""
    edge, text = 0.0 if margin.relative else -margin.size, beside(margin)
    opens = "(" if abs(low - edge) < 1e-9 else "["
    closes = ")" if abs(high - edge) < 1e-9 else "]"
    return f"{opens}{text(low)}, {text(high)}{closes}"


def loss_in_words(entry: Entry) -> str:
    """`loses less than 1.3 points`: what the interval that decides says, also of a run chosen among those compared.

    It agrees with the verdict: `gains at least 0.4 points`, `loses 1.2 to 7.0 points` of a run that is worse, `could
    lose up to 4.0 points` where a loss of the margin is not ruled out. Each end holds with 95 % confidence. Empty
    without a claim.
    """
    if entry.low is None or entry.high is None:
        return ""
    size = 100 * entry.margin.points(entry.primary.base_accuracy)
    most, least = -100 * entry.low, -100 * entry.high
    if entry.verdict.direction > 0:
        return f"gains {'more than 0' if most >= 0 else f'at least {rounded(-most, 0, up=False)}'} points"
    up_to = rounded(most, size, up=True)
    if entry.verdict.direction < 0:
        return f"loses {'more than 0, up' if least <= 0 else rounded(least, 0, up=False)} to {up_to} points"
    if not entry.within_margin:
        return f"could lose up to {up_to} points"
    if round(most, 9) <= 0:
        return "loses nothing"
    if round(most, 9) >= round(size, 9):
        return f"loses less than {entry.margin.words('what the base solves')}"
    return f"loses less than {up_to} points"


def interval_in_words(entry: Entry) -> str:
    """`−4.0 to +1.7`: the interval that decides, in points, each end rounded outwards; empty without a claim."""
    if entry.low is None or entry.high is None:
        return ""
    limit = -100 * entry.margin.points(entry.primary.base_accuracy)
    low, high = rounded(100 * entry.low, limit, up=False), rounded(100 * entry.high, 0, up=True)
    return f"{_signed(low)} to {_signed(high)}"


def as_good_in_words(like: AsGood) -> str:
    """`≈ 130`, `all 512` or `less`: with how many tokens the base is as good as a variant; an estimate."""
    if like.estimate is None:
        return "less"
    return f"all {like.largest:,}" if like.estimate >= like.largest else f"≈ {int(float(f'{like.estimate:.2g}')):,}"


def _signed(number: str) -> str:
    """A number with a typographic sign; none for zero."""
    digits = number.removeprefix("-")
    return digits if float(number) == 0 else f"{MINUS if number.startswith('-') else '+'}{digits}"


MIXED, SEVERAL = "mixed", "rows were computed in several ways"


PARTLY = "the problems that are finished first need not be like the others"


def in_words(state: Unfinished) -> str:
    """`unfinished, 114 of 120`, or `mixed`, with `of the base` where it is the base that is so."""
    what = MIXED if state.mixed else f"unfinished, {state.complete} of {state.planned}"
    return f"{what}{' rows' * bool(state.mixed and state.base)}{' of the base' if state.base else ''}"


def in_full(state: Unfinished) -> str:
    """`unfinished, 114 of 120 problems; ...`: why there is no word."""
    return f"{in_words(state)}: {SEVERAL}" if state.mixed else f"{in_words(state)} problems; {PARTLY}"


def stops_less_often(entry: Entry) -> bool:
    """Whether fewer answers of a run are shown to stop by themselves than of the base."""
    return entry.stops is not None and entry.stops.direction < 0


def verdict_in_words(entry: Entry) -> str:
    """The verdict of an entry of `compare`, or how much of an unfinished run is there."""
    return in_words(entry.unfinished) if entry.unfinished else entry.verdict.shown
