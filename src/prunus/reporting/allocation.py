"""Sparsity per block for the terminal: what `prunus allocate` prints and draws."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunus.reporting.render.text import percent, visible

# Columns of a bar that stands for all weights of a block.
BAR_WIDTH = 50


def allocation_table(data: Mapping[str, Any]) -> RenderableType:
    """A row and a bar for each block; attention and MLP where they differ; the scores that it comes from."""
    blocks = data["blocks"]
    parts = [part for part in ("attention", "mlp") if any(part in row for row in blocks)]
    if all(abs(row[part] - row["sparsity"]) < 1e-9 for row in blocks for part in parts):
        parts = []
    scores = list(blocks[0]["scores"])
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("block", justify="right")
    for column in ("sparsity", *parts, *(data["score"] + _of(part) for part in scores)):
        table.add_column(visible(column), justify="right")
    table.add_column("")
    for row in blocks:
        shares = [percent(row[key]) for key in ("sparsity", *parts)]
        numbers = [f"{row['scores'][part]:.4g}" for part in scores]
        table.add_row(str(row["block"]), *shares, *numbers, Text("█" * round(BAR_WIDTH * row["sparsity"])))
    scope = "" if data["scope"] == "all" else f" of {data['scope']}"
    title = Text(f"{data['allocation']}: sparsity{scope} in % by block, {percent(data['sparsity'])} in all", "bold")
    notes = [Text(f"warning: {visible(note)}") for note in data["warnings"]]
    if stability := data["evidence"]["details"].get("split_half_spearman"):
        found = ", ".join(f"{value:.2f}{_of(part)}" for part, value in stability.items())
        notes.insert(0, Text(f"Two halves of the data agree on the order of blocks by Spearman {found}."))
    return Group(title, table, Text(f"A bar of {BAR_WIDTH} would be 100 %."), *notes)


def _of(part: str) -> str:
    return "" if part == "block" else f", {part}"
