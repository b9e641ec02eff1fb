"""How each model was pruned: sparsity by block and by Linear, removed blocks, recipes, and sizes."""

from statistics import fmean

from prunus.manifest import StepRecord
from prunus.reporting.render.table import RUN, Column, Table, named, row_name
from prunus.reporting.render.text import NBSP, count, esc, percent
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, soft, titled
from prunus.step import recorded_kind
from prunus.store.labels import settings
from prunus.store.rows import Run

# Settings that are shown even with default values.
ALWAYS = {"allocation", "scope", "calibration", "sequences", "seqlen", "seed"}
STYLES = "".join(f".h{step}{{--h:{step / 20 * 0.9:g}}}" for step in range(1, 21))  # of blocks


def section(data: ReportData) -> Section:
    """The sparsity of every original block of the variants that have zeros or lack blocks; the steps of all, folded."""
    strips = {run.style.index: block_sparsities(run.run) for run in data.others}
    shown = [run for run in data.others if None in strips[run.style.index] or any(strips[run.style.index])]
    if not any(run.run.model.manifest.history and not run.run.imported for run in data.others):  # a log does not tell
        return Section("pruned", tables=[linear_table(data)])
    recipes = "".join(
        f'<div class="{run.style.css}"><dt>{named(run.style)}</dt><dd><bdi>{esc(recipe_text(run.run))}</bdi>'
        f"{esc(_size(run.run, data.base.run))}</dd></div>"
        for run in data.others
    )
    table = ""
    if shown:
        blocks = max(len(strips[run.style.index]) for run in shown)
        head = "".join(f'<th scope="col">{block}</th>' for block in range(blocks))
        rows = ""
        for run in shown:
            strip = strips[run.style.index]
            cells = "".join(_block(share) for share in strip) + "<td></td>" * (blocks - len(strip))
            rows += f'<tr class="{run.style.css}">{row_name(run.style)}{cells}</tr>'
        table = (
            '<div class="wide" tabindex="0" role="region" aria-label="Zeros in every block">'
            f'<table class="strip{" many" if blocks > 20 else ""}"><thead><tr><th scope="row">Block</th>{head}</tr>'
            f"</thead><tbody>{rows}</tbody></table></div>"
        )
    says = soft("Zeros in the Linears of each block in percent; × marks a removed block.") if shown else ""
    steps = titled("Every step with its settings", f'<dl class="recipes">{recipes}</dl>')
    html = f'<section id="pruned">{details("What was done to each variant", table + says + steps)}</section>'
    return Section("pruned", html, tables=[linear_table(data)], styles=STYLES)


def recipe_text(run: Run) -> str:
    """The recipe of each step without most default values: `prune: method wanda, sparsity 0.5, ...`."""
    steps = []
    for step in run.model.manifest.history:
        values = ", ".join(f"{name} {value}" for name, value in settings(step, ALWAYS))
        outcome = recorded_kind(step).outcome(step, brief=True)
        removed = f"; {outcome}" if outcome else ""
        trained = step.cost and step.cost.tokens
        passes = "" if trained is None else f"; trained on {trained:,} tokens, repeats counted"
        steps.append(f"{step.action}: {values}{removed}{passes}")
    return " · then ".join(steps) or "nothing"


def _size(run: Run, base: Run) -> str:
    """The number of its parameters, zeros included, if that is not the base's; else empty."""
    own, whole = run.model.parameters, base.model.parameters
    if own is None or whole is None or own == whole or whole <= 0:
        return ""
    return f" · {count(own)} of {count(whole)} parameters ({percent(own / whole)}{NBSP}%)"


def _block(share: float | None) -> str:
    if share is None:
        return '<td class="gone" title="removed">×</td>'
    step = min(20, max(0, round(20 * share)))
    text = f"{100 * share:.0f}" if share else "0"
    return f'<td class="h{step}{" dark" if step > 12 else ""}" title="{percent(share)} %">{text}</td>'


def linear_table(data: ReportData) -> Table:
    """Sparsity of every Linear of every run, for `--csv`."""
    rows = [(run.style, linear) for run in data.runs for linear in linear_sparsities(run.run)]
    columns = [RUN, Column("block", "Block"), Column("linear", "Linear"), Column("sparsity", "Zeros, %", percent)]
    return Table("linears", "Sparsity of every Linear", "data", columns, rows)


def block_sparsities(run: Run) -> list[float | None]:
    """For each block of the original model, the mean sparsity of its Linears, or None if the block was removed.

    It is the plain mean over the Linears of a block, since the manifest has no sizes.
    """
    linears, removed, total = _replay(run)
    shares = [[share for (index, _), share in linears.items() if index == block] for block in range(total)]
    return [None if block in removed else fmean(of_block or [0.0]) for block, of_block in enumerate(shares)]


def linear_sparsities(run: Run) -> list[tuple[int, str, float]]:
    """(block of the original model, kind such as `mlp.up_proj`, sparsity) of every Linear that is left, by kind."""
    linears, removed, _ = _replay(run)
    kinds = list(dict.fromkeys(kind for _, kind in linears))
    left = [(block, kind, share) for (block, kind), share in linears.items() if block not in removed]
    return sorted(left, key=lambda linear: (kinds.index(linear[1]), linear[0]))


def _replay(run: Run) -> tuple[dict[tuple[int, str], float], set[int], int]:
    """{(block of the original model, kind): sparsity}, the removed blocks, and the original number of blocks.

    Steps are replayed in order, since each one numbers blocks as in the checkpoint with which it started.
    """
    total = (run.model.blocks or 0) + sum(len(step.blocks_removed) for step in run.model.manifest.history)
    kept = list(range(total))  # original index of each block that is left
    linears: dict[tuple[int, str], float] = {}
    for step in run.model.manifest.history:
        for (index, kind), share in _shares(step).items():
            if index < len(kept):
                linears[kept[index], kind] = share
        kept = [original for index, original in enumerate(kept) if index not in step.blocks_removed]
    return linears, set(range(total)) - set(kept), total


def _shares(step: StepRecord) -> dict[tuple[int, str], float]:
    """{(block, kind): sparsity} of a step's Linears; model.layers.3.mlp.up_proj is block 3, kind mlp.up_proj."""
    shares: dict[tuple[int, str], float] = {}
    for name, share in step.sparsity.items():
        parts = name.split(".")
        position = next((k for k, part in enumerate(parts) if part.isdecimal()), None)
        if position is not None:
            shares[int(parts[position]), ".".join(parts[position + 1 :])] = float(share)
    return shares
