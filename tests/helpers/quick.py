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
