"""The text that `prunus study plan` prints."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunus.disk import show_bytes
from prunus.study.cells import model_label
from prunus.study.live_table import duration

COUNTS = ("problems", "answers", "tokens")  # of a cell, None where unknown


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """A table with a row for each cell, followed by a summary of the remaining work. plan: as plan_study returns it."""
    models = len({cell["model"] for cell in plan["cells"]})
    table = Table(box=None, pad_edge=False)
    for column in ("cell", "problems", "answers", "done", "tokens left, at most", "run"):
        table.add_column(column, justify="left" if column in ("cell", "run") else "right", no_wrap=True)
    for cell in plan["cells"]:
        name = cell["variant"] if models == 1 else f"{model_label(cell['model'])} {cell['variant']}"
        label = f"{name} ({cell['plan']})" if cell["plan"] else name
        problems, answers, tokens = ("?" if (n := cell[key]) is None else f"{n:,}" for key in COUNTS)
        numbers = [problems, answers, "all" if cell["done"] == cell["answers"] else f"{cell['done']:,}", tokens]
        table.add_row(Text(label), *numbers, cell["run"] or "?")
    searches = [line for search in plan["searches"] for line in search_lines(search, models > 1)]
    return Group(Text(f"study {plan['name']}", style="bold"), table, Text(""), *map(Text, [*summary(plan), *searches]))


def search_lines(search: Mapping[str, Any], several: bool) -> list[str]:
    """The outcome of a search, or what to expect of it. several: the study has other models."""
    of = f" of {model_label(search['model'])}" if several else ""
    plan = f" ({search['plan']})" if search["plan"] else ""
    head = f"search {search['name']}{of}{plan}: "
    if search["page"] is None:
        return [head + search["state"], *(f"  {line}" for line in search["lines"])]
    found = search["found"]
    outcome = "no rung was certified" if found is None else f"{found}, {100 * search['removed']:.3g} % removed"
    return [f"{head}{outcome}; {search['page']}"]


def summary(plan: Mapping[str, Any]) -> list[str]:
    """Lines that sum up the remaining work: answers, tokens, disk and time."""
    totals, left = plan["totals"], any(search["page"] is None for search in plan["searches"])
    to_make = [variant for variant in plan["variants"] if not variant["made"]]
    cells = (
        f"{totals['complete']} of {totals['cells']} cells are done, {totals['done']:,} of {totals['answers']:,} answers"
    )
    lines = [f"{cells}; {totals['tokens']:,} tokens to generate at most"]
    if totals["disk"] is not None:
        made = f"{len(to_make)} of {len(plan['variants'])} variants are to be made"
        lines.append(f"{made}; disk: {show_bytes(totals['disk'])} at most")
    for model, speed in plan["tokens_per_second"].items():
        lines.append(f"{model} decodes {speed:,.0f} tokens/s here")
    if totals["complete"] == totals["cells"]:
        return [*lines, "nothing is left to evaluate" + (" but searches" if left else "")]
    if plan["seconds_at_most"] is not None:
        expected = plan["seconds_expected"]
        guess = "" if expected is None else f", about {duration(expected)} if chains stay as long as those so far"
        lines.append(
            f"time to evaluate: {duration(plan['seconds_at_most'])} at that speed if all run to their caps{guess}; "
            "making the variants takes additional time"
        )
    return lines + [f"not known yet: {line}" for line in plan["unknown"]]
