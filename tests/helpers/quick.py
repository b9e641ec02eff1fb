"""Which tests `make quick` runs."""

from collections.abc import Mapping


def fastest(seconds: Mapping[str, float | None], limit: float) -> set[str]:
    """Names of the fastest, as many as take no more than limit together; those whose time is unknown (None) as well."""
    chosen = {name for name, taken in seconds.items() if taken is None}
    for taken, name in sorted((taken, name) for name, taken in seconds.items() if taken is not None):
        limit -= taken
        if limit < 0:
            break
        chosen.add(name)
    return chosen
