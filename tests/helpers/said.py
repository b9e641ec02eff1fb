"""What sentences of a page are made of, from entries alone, for tests of them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from prunus.reporting.prose import Findings
from prunus.results.cells import Base, Comparison, Entry
from prunus.settings.margins import Margin


def page_of(
    entries: Sequence[Entry],
    names: Sequence[str],
    chosen: int | None = None,
    margin: Margin | None = None,
    sizes: Sequence[int] = (),
) -> Findings:
    """A page about variants with these names. sizes: bytes of each, of the base's 100. margin: by default 3 points."""
    known = list(sizes) or [None] * len(entries)
    sized = [
        replace(entry, recipe=[], bytes={"weights": size} if size else None)
        for entry, size in zip(entries, known, strict=True)
    ]
    nothing: Any = None
    comparison = Comparison(
        **{field.name: nothing for field in fields(Comparison)}
        | {"others": sized, "margin": margin or Margin(0.03), "base": Base(run="0", model="dense", recipe=[])}
    )
    return Findings(comparison, chosen, ["dense", *names], [100, *known])
