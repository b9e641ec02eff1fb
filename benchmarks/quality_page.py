"""The tables of docs/measurements/quality.md and its figure, from the finished cells of benchmarks/quality.py."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.reporting.render.chart import Axis, Frame, Line, Point, chart, linear_axis, log_axis, swatch
from prunus.reporting.render.text import esc

Row = Mapping[str, Any]
SETTINGS = ("20 %", "50 %", "60 %", "70 %", "4:8", "2:4")
RECOVERED = ("50 %", "60 %", "70 %", "2:4")
ALLOCATED = ("20 %", "50 %", "70 %")
BEGIN, END = "<!-- tables: written by benchmarks/quality.py -->", "<!-- end of tables -->"
WIDTH, HEIGHT = 980, 440
HIGHEST = 1000.0  # perplexities above this are not drawn, since such models are broken
STYLE = """
svg { --paper: #fcfcfa; --ink: #1b1f24; --soft: #586069; --grid: #e2e5e8; font: 13px system-ui, sans-serif;
  --h1: #0067ab; --h2: #c14a00; --h3: #007d5b; --h4: #9b3d86; --h5: #7a6400; --h6: #3f5a7d; }
@media (prefers-color-scheme: dark) { svg { --paper: #14171b; --ink: #e8eaed; --soft: #a3abb5; --grid: #2a3038;
  --h1: #5ab4f0; --h2: #f0955a; --h3: #3fc89b; --h4: #e596cb; --h5: #e0c84c; --h6: #a9bfe0; } }
text { fill: var(--soft); } .name { fill: var(--ink); } .title { fill: var(--ink); font-weight: 600; }
.c0 { --c: var(--ink); } .c1 { --c: var(--h1); } .c2 { --c: var(--h2); } .c3 { --c: var(--h3); }
.c4 { --c: var(--h4); } .c5 { --c: var(--h5); } .c6 { --c: var(--h6); }
.d0 { --d: none; } .d1 { --d: 6 4; } .d2 { --d: 2 3.5; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-dasharray: var(--d); stroke-linejoin: round; }
.mark { fill: var(--c); stroke: var(--paper); } .whisker { fill: none; stroke: var(--c); stroke-width: 1.5; }
.grid { stroke: var(--grid); fill: none; } .base-line, .tick-mark { stroke: var(--soft); fill: none; }
.band { fill: var(--c); fill-opacity: .13; } .paper { fill: var(--paper); }
"""


def write_page(docs: Path, dense: float, rows: Sequence[Row], blocks: int, cells: int) -> str:
    """Write the tables between the markers of docs/measurements/quality.md, and the figure; return the tables.

    rows: the finished cells. cells: how many there are in all.
    """
    measured = sum(row["table"] != "dense" for row in rows)
    text = f"{measured} of {cells} cells are measured: each of a setting and a seed.\n\n" + tables(dense, rows, blocks)
    page = docs / "measurements/quality.md"
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", "utf-8")
    (docs / "images/quality.svg").write_text(figure(dense, rows) + "\n", "utf-8")
    return text


def tables(dense: float, rows: Sequence[Row], blocks: int) -> str:
    """Return all tables as Markdown. A table without measured cells has no rows."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row["table"], []).append(row)
    methods, allocations, controls = (of.get(name, []) for name in ("methods", "allocations", "controls"))
    wanda = [row for row in allocations if row["row"] == "uniform"]
    staged = [row for row in methods if row["row"] == "wanda" and row["column"] in ALLOCATED]
    propagation = [
        *of.get("propagation", []),
        *({**row, "row": "dense"} for row in wanda),
        *({**row, "row": "staged"} for row in staged),
    ]
    names = {"uniform": "Wanda", "shuffled": "Wanda, norms shuffled", "random": "random zeros"}
    against = [{**row, "row": names[row["row"]]} for row in (*wanda, *controls)]
    single = [{**row, "row": f"block {row['row']} of {blocks}"} for row in of.get("blocks", [])]
    depth = of.get("depth", [])
    parts = [
        "## Methods\n",
        table("method", SETTINGS, methods, ("CPU s at 50 %", lambda found: seconds(found, "50 %")), dense),
        "\n## Propagation, Wanda\n",
        table("`--propagation`", ALLOCATED, propagation),
        "\n## Allocations, Wanda\n",
        table("allocation", ALLOCATED, allocations),
        "\n## Controls\n",
        table("zeros", ("50 %",), against),
        "\n## Whole blocks\n",
        table("depth method", ("10 %", "20 %"), depth, ("CPU s, 20 %", lambda found: seconds(found, "20 %"))),
        "",
        table("removed", ("perplexity",), single),
        *recovery_tables(of.get("recovery", []), of.get("dense", [])),
    ]  # fmt: skip
    return "\n".join(parts)


def recovery_tables(rows: Sequence[Row], dense: Sequence[Row]) -> list[str]:
    """Return perplexities before and after recovery: on the text like the calibration, and on the others."""
    if not rows:
        return []
    columns = [column for column in RECOVERED if any(row["column"] == column for row in rows)]
    extra = ("CPU s at 50 %", lambda found: seconds(found, "50 %"))
    parts = ["\n## Recovery\n", table("pruned by", columns, rows, extra, show=mended)]
    for name in dict.fromkeys(name for row in rows for name in row["others"]):
        (alone,) = (row["perplexity"] for row in dense if row.get("text") == name)
        other = [
            {**row, "before": row["others"][name][0], "perplexity": row["others"][name][1]}
            for row in rows
            if name in row["others"]
        ]
        parts += [f"\nOn {name} (dense {number(alone)}):\n", table("pruned by", columns, other, show=mended)]
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


def figure(dense: float, rows: Sequence[Row]) -> str:
    """Return an SVG figure of perplexity against sparsity, with a line per method, and per allocation."""
    left = lines_of([row for row in rows if row["table"] == "methods"], SETTINGS[:4])
    right = lines_of([row for row in rows if row["table"] == "allocations"], ALLOCATED)
    legend = math.ceil(max(len(left), len(right)) / 3)
    panels = [
        panel(left, "Methods", f"Perplexity (dense: {dense:.1f})", (0, 560), legend),
        panel(right, "Allocations, Wanda", "Perplexity", (570, 410), legend),
    ]
    label = "Perplexity of SmolLM2-135M on held-out text against sparsity, by method and by allocation"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(label)}">'
        f'<style>{STYLE}</style><rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>{"".join(panels)}</svg>'
    )


def lines_of(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[str, Line]]:
    """Return a line per name with at least two points up to HIGHEST: means over seeds, ranges as whiskers."""
    found: list[tuple[str, Line]] = []
    for name in dict.fromkeys(row["row"] for row in rows):
        points = []
        for column in columns:
            values = [row["perplexity"] for row in rows if (row["row"], row["column"]) == (name, column)]
            if values and max(values) <= HIGHEST:
                mean, share = sum(values) / len(values), float(column.split()[0])
                points.append(Point(share, mean, min(values), max(values), f"{name}, {column}: {number(mean)}"))
        if len(points) > 1:
            index = len(found)
            found.append((name, Line(f"c{index % 6 + 1} d{index // 6}", points, index)))
    return found


def panel(lines: Sequence[tuple[str, Line]], title: str, y_title: str, place: tuple[int, int], rows: int) -> str:
    """Return a chart at place (x, width), with a legend of this many rows below its title."""
    x, width = place
    high = 22 * rows + 40
    frame = Frame(width=width, height=HEIGHT - high, left=56)
    values = [value for _, line in lines for point in line.points for value in (point.low, point.high)]
    x_axis = Axis("Sparsity, %", tuple((float(v), f"{v}") for v in range(20, 71, 10)), 20, 70)
    y_axis = log_axis(values, y_title) if values else linear_axis(0, 1, y_title)
    inner = chart([line for _, line in lines], x_axis, y_axis, title, frame=frame, whiskers=True).html()
    parts = [f'<text class="title" x="{x + 8}" y="22">{esc(title)}</text>']
    for index, (name, line) in enumerate(lines):
        left, top = x + 8 + (width - 16) // 3 * (index % 3), 34 + 22 * (index // 3)
        mark = swatch(line.css, line.marker).html().replace("<svg ", f'<svg x="{left}" y="{top}" ', 1)
        label = esc(name.replace(", `--update obs`", " + obs").replace(", `--row-power 0.25`", " + row budgets"))
        parts.append(f'{mark}<text class="name" x="{left + 40}" y="{top + 11}">{label}</text>')
    size = f'x="{x}" y="{high}" width="{width}" height="{HEIGHT - high}"'
    return "".join([*parts, inner.replace("<svg ", f"<svg {size} ", 1)])
