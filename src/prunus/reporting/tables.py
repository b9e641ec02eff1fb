"""Tables for the terminal: 8 budgets fit into 110 columns, and plain text comes out where there is no terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunus.reporting.labels import unique_labels
from prunus.reporting.text import count, percent, points, probability, visible
from prunus.reporting.view import cells_of, tasks_of
from prunus.results.comparison import verdict

Data = Mapping[str, Any]
STYLES = {"better": "green", "worse": "red", "non-inferior": "cyan", "cannot tell": "yellow"}
SIGNS = {"better": "^", "worse": "v", "non-inferior": "=", "cannot tell": "?"}


def curve_table(summaries: Iterable[Data]) -> RenderableType:
    """Accuracy in percent per budget for each run, its area, and mean tokens used at the largest budget.

    One table per task; below each accuracy half the width of its 95 % interval.
    """
    summaries = list(summaries)
    names = _names(summaries)
    tables: list[RenderableType] = []
    for task in tasks_of(summaries):
        budgets = sorted({budget for summary in summaries for budget in cells_of(summary, task)})
        table = _table("run")
        for budget in budgets:
            table.add_column(str(budget), justify="right")
        table.add_column("area", justify="right")
        table.add_column("tokens", justify="right")
        sizes = set()
        for name, summary in zip(names, summaries, strict=True):
            cells = cells_of(summary, task)
            if not cells:
                continue
            sizes |= {(cell["n"], cell["samples"]) for cell in cells.values()}
            area = summary["tasks"][task]["auc"]
            last = cells[max(cells)]["tokens"]["total"]["mean"]
            values = [f"{percent(c['accuracy'])}\n{_half(c)}" if (c := cells.get(b)) else "" for b in budgets]
            table.add_row(Text(name), *values, f"{percent(area['value'])}\n{_half(area)}" if area else "", count(last))
        note = "area: under accuracy over log2 budget; tokens: mean used (thinking and answer) at the largest budget"
        title = _title(f"{task}: accuracy in % (± half of the 95 % interval) by thinking budget")
        tables += [title, table, Text(f"{_sizes(sizes)}; {note}")]
    return Group(*tables) if tables else Text("no finished problem yet")


def verdict_table(comparison: Data) -> RenderableType:
    """For each run the verdict and the difference in area that decides it; then the difference at every budget.

    All in points. Signs behind the differences at a budget stand for better ^, worse v, non-inferior =, cannot tell ?.
    """
    base, entries = comparison["base"], comparison["others"]
    names = _names([base, *entries])
    several = any("macro" in entry for entry in entries)
    what = "mean area of all tasks" if several else "area under accuracy over log2 budget"
    table = _table("run")
    for column in ("verdict", "difference [95 %]", "p adjusted", "MDE", "area in %", "base", "problems"):
        table.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    for name, entry in zip(names[1:], entries, strict=True):
        cell = entry["primary"]
        word = entry["verdict"] + (" (within margin)" if entry["verdict"] == "worse" and entry["within_margin"] else "")
        interval = rf"{points(cell['difference'])} \[{points(cell['low'])}, {points(cell['high'])}]"
        shares = [percent(cell[key]) for key in ("mde", "accuracy", "base_accuracy")]
        numbers = [interval, probability(cell["p_adjusted"]), *shares, str(cell["n"])]
        table.add_row(Text(name), Text(word, style=STYLES[entry["verdict"]]), *numbers)
    title = _title(f"Against {names[0]}: {what}, difference in points")
    tables: list[RenderableType] = [title, table]
    for task in dict.fromkeys(task for entry in entries for task in entry["tasks"]):
        title = _title(f"{task}: difference in points by thinking budget")
        tables += [Text(""), title, _budget_differences(task, names, entries)]
    margin = f"{100 * comparison['margin']:g}"
    tables.append(Text(f"^ better  v worse  = non-inferior: at most {margin} points below  ? cannot tell"))
    tables.append(Text("MDE: true difference that would be found four times in five; p adjusted: Holm over the runs"))
    notes = list(comparison["warnings"])
    for name, entry in zip(names[1:], entries, strict=True):
        notes += [f"{name}: {warning}" for warning in entry["warnings"]]
    tables += [Text(f"warning: {visible(note)}") for note in notes]
    return Group(*tables)


def _budget_differences(task: str, names: Sequence[str], entries: Sequence[Data]) -> Table:
    budgets = sorted({int(b) for entry in entries if task in entry["tasks"] for b in entry["tasks"][task]["budgets"]})
    table = _table("run")
    for budget in budgets:
        table.add_column(str(budget), justify="right", no_wrap=True)
    for name, entry in zip(names[1:], entries, strict=True):
        if task in entry["tasks"]:
            cells = {int(b): cell for b, cell in entry["tasks"][task]["budgets"].items()}
            table.add_row(Text(name), *(_difference(cells.get(budget), entry["margin"]) for budget in budgets))
    return table


def inspection_tables(data: Data) -> Sequence[RenderableType]:
    """What `prunus inspect` found: single facts, then a table for each list but that of all Linears, which is long."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    tables: list[RenderableType] = [facts]
    for key, value in data.items():
        if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
            facts.add_row(key.replace("_", " "), Text(_plain(key, value) + _beside_dense(key, data)))
        elif key != "linears":
            columns = list(dict.fromkeys(column for row in value for column in row))
            table = _table(columns[0])
            for column in columns[1:]:
                table.add_column(
                    column.replace("_", " "), justify="right" if _is_number(value[0].get(column)) else "left"
                )
            for row in value:
                table.add_row(*(Text(_plain(column, row.get(column))) for column in columns))
            tables += [Text(""), _title(key), table]
    return [*tables, Text("--json lists every Linear.")] if "linears" in data else tables


def _beside_dense(key: str, data: Data) -> str:
    """What a packed size is a share of."""
    dense = data.get({"packed_prunable_bytes": "prunable_bytes"}.get(key, "weight_bytes"))
    return f" ({data[key] / dense:.3f} of dense)" if key.startswith(("packed_", "mask_")) and dense else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(name, item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(key, item) for item in value) or "none"
    if key == "sparsity" and _is_number(value):
        return f"{percent(value)} %"
    if key.endswith("bytes") and _is_number(value):
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else visible("none" if value is None else str(value))


def _names(identities: Sequence[Data]) -> list[str]:
    return [visible(name) for name in unique_labels([(i["run"], str(i["model"]), i["recipe"]) for i in identities])]


def _title(text: str) -> Text:
    """A line above a table; as rich's own title it would be wrapped to the table's width."""
    return Text(visible(text), style="bold")


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first)
    return table


def _half(cell: Data) -> str:
    return f"±{50 * (cell['high'] - cell['low']):.1f}"


def _sizes(sizes: Iterable[tuple[int, int]]) -> str:
    texts = [f"{n} problems x {draws} draw{'s' * (draws != 1)}" for n, draws in sorted(sizes)]
    return " or ".join(texts)


def _difference(cell: Data | None, margin: float) -> Text:
    if cell is None:
        return Text("")
    word = verdict(cell, margin)
    return Text(f"{points(cell['difference'])}{SIGNS[word]}", style=STYLES[word])
