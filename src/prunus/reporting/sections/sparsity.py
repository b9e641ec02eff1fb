"""The page's section about what was pruned: by block, by Linear, and the recipes."""

from collections.abc import Sequence

from prunus.reporting.changes import block_sparsities, linear_sparsities
from prunus.reporting.labels import Look, recipe_text
from prunus.reporting.render.table import Column, Grid, named, row_name
from prunus.reporting.render.text import esc, one_line, percent
from prunus.reporting.report_data import View
from prunus.reporting.sections.verdicts import soft
from prunus.results.store import Run


def pruned_section(looks: Sequence[Look], runs: Sequence[Run]) -> str:
    """Sparsity of every original block of every run, removed blocks hatched, and the recipes."""
    strips = [block_sparsities(run) for run in runs]
    blocks = max(map(len, strips))
    head = "".join(f'<th scope="col">{index}</th>' for index in range(blocks))
    rows = []
    for look, strip in zip(looks, strips, strict=True):
        cells = "".join(map(_block, strip)) + "<td></td>" * (blocks - len(strip))
        rows.append(f'<tr class="{look.css}">{row_name(look)}{cells}</tr>')
    recipes = "".join(
        f'<div class="{look.css}"><dt>{named(look)}</dt><dd><bdi>{esc(recipe_text(run))}</bdi></dd></div>'
        for look, run in zip(looks[1:], runs[1:], strict=True)
    )
    note = (
        "Percent of zeros in the Linears of each decoder block, numbered as in the unpruned model; × marks a removed "
        "block."
    )
    return (
        f'<section id="pruned"><h2>What was pruned</h2>{soft(note)}'
        '<div class="wide" tabindex="0" role="region" aria-label="What was pruned">'
        f'<table class="strip{" many" if blocks > 20 else ""}"><thead><tr><th scope="row">Block</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div>{_linears(looks, runs)}<dl class="recipes">{recipes}</dl>'
        "</section>"
    )


def _linears(looks: Sequence[Look], runs: Sequence[Run]) -> str:
    pictures = "".join(
        f'<figure class="{look.css}"><figcaption>{named(look)}</figcaption>{picture}</figure>'
        for look, run in zip(looks, runs, strict=True)
        if (picture := linear_map(look, run))
    )
    if not pictures:
        return ""
    return (
        "<details><summary>Every Linear</summary>"
        f'{soft("Percent of zeros by kind of Linear and block.")}<div class="pair">{pictures}</div></details>'
    )


def _block(share: float | None) -> str:
    if share is None:
        return '<td class="gone" title="removed">×</td>'
    step = _step(share)
    text = f"{100 * share:.0f}" if share else "0"
    return f'<td class="h{step}{" dark" if step > 12 else ""}" title="{percent(share)} %">{text}</td>'


def _step(share: float) -> int:
    return min(20, max(0, round(20 * share)))


def heat_styles() -> str:
    """The classes that _block names."""
    return "".join(f".h{step}{{--h:{step / 20 * 0.9:g}}}" for step in range(1, 21))


def linear_map(look: Look, run: Run) -> str:
    """One <svg>: a row for each kind of Linear, a column for each original block; equal neighbours share a box.

    Empty text where the run's manifest names no Linear.
    """
    kinds = linear_sparsities(run)
    if not kinds:
        return ""
    blocks = max(map(len, kinds.values()))
    cell = (WIDTH - LEFT) / blocks
    parts = []
    for row, (kind, shares) in enumerate(kinds.items()):
        top = TOP + row * HEIGHT
        name = one_line(kind, 22)
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{top + HEIGHT / 2}" dy=".35em" text-anchor="end">')
        parts.append(f"{esc(name)}</text>")
        for start, end, share in _pieces(shares):
            parts.append(_box(LEFT + start * cell, top, (end - start) * cell, share, _where(kind, start, end)))
    every = max(1, -(-blocks // 12))
    for block in range(0, blocks, every):
        parts.append(f'<text class="tick" x="{LEFT + (block + 0.5) * cell:.1f}" y="{TOP - 6}" text-anchor="middle">')
        parts.append(f"{block}</text>")
    size = f'viewBox="0 0 {WIDTH} {TOP + HEIGHT * len(kinds)}"'
    label = esc(f"{look.label}: sparsity of each Linear by block")
    return f'<svg class="linears" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


WIDTH, LEFT, TOP, HEIGHT = 640, 150, 22, 20


def _pieces(shares: Sequence[float | None]) -> list[tuple[int, int, float | None]]:
    """(first, one past last, share) of runs of equal neighbours."""
    found: list[tuple[int, int, float | None]] = []
    for block, share in enumerate(shares):
        rounded = None if share is None else round(share, 3)
        if found and found[-1][2] == rounded:
            found[-1] = (found[-1][0], block + 1, rounded)
        else:
            found.append((block, block + 1, rounded))
    return found


def _where(kind: str, start: int, end: int) -> str:
    return f"{one_line(kind)}, {f'blocks {start} to {end - 1}' if end - start > 1 else f'block {start}'}"


def _box(x: float, y: float, width: float, share: float | None, where: str) -> str:
    css = "gone" if share is None else f"heat h{_step(share)}"
    note = "none" if share is None else f"{percent(share)} %"
    place = f'x="{x + 0.5:.1f}" y="{y + 0.5}" width="{max(0.5, width - 1):.1f}" height="{HEIGHT - 1}"'
    box = f'<rect class="{css}" {place}><title>{esc(where)}: {note}</title></rect>'
    text = "×" if share is None else f"{100 * share:.0f}"
    if width < 9 * len(text):
        return box
    dark = " dark" if share is not None and _step(share) > 12 else ""
    spot = f'x="{x + width / 2:.1f}" y="{y + HEIGHT / 2}" dy=".35em" text-anchor="middle"'
    return f'{box}<text class="share{dark}" {spot}>{text}</text>'


def linear_grid(view: View) -> Grid:
    """Sparsity of every Linear of every run, for `--csv`."""
    rows = [
        (look, [block, kind, share])
        for look, run in zip(view.looks, view.runs, strict=True)
        for kind, shares in linear_sparsities(run).items()
        for block, share in enumerate(shares)
        if share is not None
    ]
    columns = [
        Column("run", "Run"), Column("block", "Block"), Column("linear", "Linear"),
        Column("sparsity", "Zeros, %", percent),
    ]  # fmt: skip
    return Grid("linears", "Sparsity of every Linear", "data", columns, rows)
