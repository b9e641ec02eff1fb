"""The tables of docs/measurements/quality.md and its figure, from the finished cells of benchmarks/quality.py."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drawn import figure
from pages import write

from prunus.reporting.render.chart import Axis, Line, Point, log_axis

Row = Mapping[str, Any]
SETTINGS = ("20 %", "50 %", "60 %", "70 %", "4:8", "2:4")
RECOVERED = ("50 %", "60 %", "70 %", "2:4")
ALLOCATED = ("20 %", "50 %", "70 %")
HIGHEST = 1000.0  # perplexities above this are not drawn, since such models are broken
# Methods and allocations that have left: their cells are kept in the file, and neither listed nor drawn.
LEFT = {"dsnot", "ria", "gblm", "wanda++", "alphapruning", "layerif-sketch", "dlp"}


def is_left(row: Row) -> bool:
    """Whether a cell is of what has left."""
    return row.get("row") in LEFT or "--row-power" in str(row.get("row", ""))


def write_page(docs: Path, dense: float, rows: Sequence[Row]) -> str:
    """Write the tables of the finished cells between the markers of docs/measurements/quality.md, and the figure.

    Return the tables.
    """
    rows = [row for row in rows if not is_left(row)]
    text = tables(dense, rows)
    write(docs / "measurements/quality.md", "quality", text)
    (docs / "images/quality.svg").write_text(drawn_of(dense, rows), "utf-8")
    return text


def tables(dense: float, rows: Sequence[Row]) -> str:
    """Return all tables as Markdown. A table without measured cells has no rows."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row["table"], []).append(row)
    methods, allocations, controls = (of.get(name, []) for name in ("methods", "allocations", "controls"))
    names = {"shuffled": "uniform, norms shuffled", "random": "random zeros"}
    wanda = [
        *allocations,
        *({**row, "row": f"uniform, `{row['row']}`"} for row in of.get("propagation", [])),
        *({**row, "row": names[row["row"]]} for row in controls),
    ]
    depth = of.get("depth", [])
    parts = [
        "## Methods\n",
        table("method", SETTINGS, methods, ("CPU s at 50 %", lambda found: seconds(found, "50 %")), dense),
        "\n## Wanda: allocation, propagation and controls\n",
        table("allocation", ALLOCATED, wanda),
        "\n## Whole blocks\n",
        table("depth method", ("10 %", "20 %"), depth, ("CPU s, 20 %", lambda found: seconds(found, "20 %"))),
        *recovery_tables(of.get("recovery", []), of.get("dense", [])),
    ]  # fmt: skip
    return "\n".join(parts)


def recovery_tables(rows: Sequence[Row], dense: Sequence[Row]) -> list[str]:
    """Return perplexities before and after recovery: on the text like the calibration, and on the others."""
    if not rows:
        return []
    columns = [column for column in RECOVERED if any(row["column"] == column for row in rows)]
    parts = ["\n## Recovery\n", table("pruned by", columns, rows, show=mended)]
    for name in dict.fromkeys(name for row in rows for name in row["others"]):
        (alone,) = (row["perplexity"] for row in dense if row.get("text") == name)
        changes = (
            f"{row['row']} {row['column']} {' to '.join(number(value) for value in row['others'][name])}"
            for row in rows
            if name in row["others"]
        )
        parts.append(f"\nOn {name} (dense {number(alone)}): {', '.join(changes)}.")
    return parts


def mended(cells: Sequence[Row]) -> str:
    """Return the mean perplexity before recovery, and that after it with its range over seeds."""
    if not cells:
        return ""
    return f"{number(sum(row['before'] for row in cells) / len(cells))} to {spread(cells)}"


def table(
    head: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    extra: tuple[str, Callable[[Sequence[Row]], str]] | None = None,
    dense: float | None = None,
    show: Callable[[Sequence[Row]], str] | None = None,
) -> str:
    """Return a table with a line per name. extra: a last column, from all cells of a line. show: text of a cell."""
    show = show or spread
    titles = [head, *columns, *([extra[0]] if extra else [])]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    if dense is not None:
        lines.append(f"| dense | {number(dense)} |" + " |" * (len(titles) - 2))
    for name in dict.fromkeys(row["row"] for row in rows):
        found = [row for row in rows if row["row"] == name]
        cells = [show([row for row in found if row["column"] == column]) for column in columns]
        lines.append(f"| {' | '.join([name, *cells, *([extra[1](found)] if extra else [])])} |")
    return "\n".join(lines)


def spread(cells: Sequence[Row]) -> str:
    """Return the mean over seeds and the range, or the only value."""
    values = sorted(row["perplexity"] for row in cells)
    if not values:
        return ""
    mean = number(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({number(values[0])}–{number(values[-1])})"


def number(value: float) -> str:
    """Return a perplexity as short text."""
    if value < 1e5:
        return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
    return f"{value:.1e}".replace("e+0", "e")


def seconds(cells: Sequence[Row], column: str) -> str:
    """Return the mean CPU seconds of one column."""
    values = [row["cpu_seconds"] for row in cells if row["column"] == column]
    return f"{sum(values) / len(values):.0f}" if values else ""


def drawn_of(dense: float, rows: Sequence[Row]) -> str:
    """Return an SVG figure of perplexity against sparsity, with a line per method, and per allocation."""
    x_axis = Axis("Sparsity, %", tuple((float(v), f"{v}") for v in range(20, 71, 10)), 20, 70)
    charts = []
    for table, columns, title in (
        ("methods", SETTINGS[:4], "Perplexity, by method"),
        ("allocations", ALLOCATED, "Perplexity of Wanda, by allocation"),
    ):
        lines = [
            Line("c0", [Point(20, dense), Point(70, dense)], 0, "dense"),
            *lines_of([row for row in rows if row["table"] == table], columns),
        ]
        values = [
            value for line in lines for p in line.points for value in (p.y, p.low, p.high) if math.isfinite(value)
        ]
        charts.append((lines, x_axis, log_axis(values, title)))
    label = "At 50 % zeros ALPS loses least, then SparseGPT, then Wanda; no allocation beats uniform at 20 %"
    return figure(charts, f"Perplexity of SmolLM2-135M against sparsity. {label}")


def lines_of(rows: Sequence[Row], columns: Sequence[str]) -> list[Line]:
    """Return a line per name with at least two points up to HIGHEST: means over seeds, ranges as whiskers.

    Colours follow the names in their order, whatever order the rows have.
    """
    found: list[Line] = []
    for name in sorted({row["row"] for row in rows}):
        points = []
        for column in columns:
            values = sorted(row["perplexity"] for row in rows if (row["row"], row["column"]) == (name, column))
            if values and max(values) <= HIGHEST:
                mean, share = sum(values) / len(values), float(column.split()[0])
                points.append(Point(share, mean, min(values), max(values), f"{name}, {column}: {number(mean)}"))
        if len(points) > 1:
            label = name.replace(", `--update obs`", " + obs")
            found.append(Line(f"c{len(found) % 6 + 1}", points, len(found) + 1, label))
    return found
