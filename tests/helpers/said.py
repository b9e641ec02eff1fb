"""The data of a page from entries alone, for tests of its sentences."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from prunus.reporting.render.table import BASE, RunStyle
from prunus.reporting.report_data import ReportData, ReportedRun
from prunus.results.cells import Base, Comparison, Entry
from prunus.results.summary import Summary
from prunus.settings.margins import Margin
from prunus.store.rows import Run
from prunus.store.stored import StoredPlan


def page_of(
    entries: Sequence[Entry],
    names: Sequence[str],
    chosen: int | None = None,
    margin: Margin | None = None,
    sizes: Sequence[int] = (),
) -> ReportData:
    """A page about variants with these names. sizes: bytes of each, of the base's 100. margin: by default 3 points."""
    empty = Summary(run="r", model="m", recipe=[], plan=StoredPlan(), versions={}, tasks={})
    runs = [ReportedRun(Run.of("0", {"name": "dense"}, {}, {}), RunStyle(0, "dense", BASE), [], empty, None, 100)]
    for place, (entry, name) in enumerate(zip(entries, names, strict=True), 1):
        style, size = RunStyle(place, name, entry.verdict.group), sizes[place - 1] if sizes else None
        runs.append(ReportedRun(Run.of(str(place), {"name": name}, {}, {}), style, [], empty, entry, size))
    sized = [
        replace(entry, recipe=[], bytes={"weights": size} if size else None)
        for entry, size in zip(entries, sizes or [None] * len(entries), strict=True)
    ]
    base = Base(run="0", model="dense", recipe=[])
    nothing: Any = None
    comparison = Comparison(
        **{field.name: nothing for field in fields(Comparison)}
        | {"others": sized, "margin": margin or Margin(0.03), "base": base}
    )
    return ReportData(runs, comparison, chosen, [], None, {})
