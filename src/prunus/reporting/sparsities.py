"""Sparsity of each block and Linear of the original model, from the steps in a run's manifest."""

from statistics import fmean
from typing import Any

from prunus.reporting.labels import history
from prunus.results.rows import Run


def removed_blocks(run: Run) -> int:
    """Number of decoder blocks that were removed."""
    return sum(len(_removed(step)) for step in history(run))


def block_sparsities(run: Run) -> list[float | None]:
    """For each block of the original model the mean sparsity over its Linears, or None where the block was removed.

    All Linears of a block have the same weight, as the manifest holds shares and not sizes.
    """
    linears, removed, total = _replay(run)
    return [
        None if block in removed else fmean(shares) if (shares := _of_block(linears, block)) else 0.0
        for block in range(total)
    ]


def linear_sparsities(run: Run) -> dict[str, list[float | None]]:
    """Kind of Linear (`mlp.up_proj`) to its sparsity in each block of the original model.

    None where the block was removed, or the manifest names no such Linear in it.
    """
    linears, removed, total = _replay(run)
    kinds = dict.fromkeys(kind for _, kind in linears)
    return {
        kind: [None if block in removed else linears.get((block, kind)) for block in range(total)] for kind in kinds
    }


def _of_block(linears: dict[tuple[int, str], float], block: int) -> list[float]:
    return [share for (place, _), share in linears.items() if place == block]


def _replay(run: Run) -> tuple[dict[tuple[int, str], float], set[int], int]:
    """Sparsities by (block of the original model, kind), the removed blocks, and the original number of blocks.

    Steps are replayed in order, as each one numbers blocks as the checkpoint that it started from.
    """
    total = int(run.model.get("blocks") or 0) + removed_blocks(run)
    here = list(range(total))  # original index of each block still there
    linears: dict[tuple[int, str], float] = {}
    for step in history(run):
        for (index, kind), share in _shares(step).items():
            if index < len(here):
                linears[here[index], kind] = share
        gone = {index for index in _removed(step) if index < len(here)}
        here = [original for index, original in enumerate(here) if index not in gone]
    return linears, set(range(total)) - set(here), total


def _removed(step: dict[str, Any]) -> list[int]:
    blocks = step.get("blocks_removed")
    return [b for b in blocks if isinstance(b, int) and b >= 0] if isinstance(blocks, list) else []


def _shares(step: dict[str, Any]) -> dict[tuple[int, str], float]:
    """Sparsities of a step's Linears by the first number in their names (model.layers.3.mlp.up_proj) and the rest."""
    shares: dict[tuple[int, str], float] = {}
    sparsity = step.get("sparsity")
    for name, share in (sparsity if isinstance(sparsity, dict) else {}).items():
        parts = str(name).split(".")
        place = next((k for k, part in enumerate(parts) if part.isdecimal()), None)
        if place is not None and isinstance(share, int | float):
            shares[int(parts[place]), ".".join(parts[place + 1 :])] = float(share)
    return shares
