"""The choice of tests for `make quick`."""

from collections.abc import Mapping


def fastest(seconds: Mapping[str, float | None], limit: float) -> set[str]:
    """Names of the fastest tests, as many as take at most `limit` seconds together, and of those without a time."""
    chosen = {name for name, taken in seconds.items() if taken is None}
    for taken, name in sorted((taken, name) for name, taken in seconds.items() if taken is not None):
        limit -= taken
        if limit < 0:
            break
        chosen.add(name)
    return chosen


def longest_first(units: Mapping[str, str], seconds: Mapping[str, float], long: float) -> list[str]:
    """Names of tests in the order in which they are to start, so that no worker is left with much at the end.

    units: by test, what runs in one worker: a group of tests, or the test alone. seconds: of each test. Units of more
    seconds than long come first, the longest of all first; the others follow, and keep their order.
    """
    total: dict[str, float] = {}
    for name, unit in units.items():
        total[unit] = total.get(unit, 0.0) + seconds[name]
    ranked = sorted((unit for unit in total if total[unit] > long), key=lambda unit: -total[unit])
    rank = {unit: at for at, unit in enumerate(ranked)}
    return sorted(units, key=lambda name: rank.get(units[name], len(rank)))
