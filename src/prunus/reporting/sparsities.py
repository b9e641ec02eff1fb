"""The sparsity of each block and Linear of the original model, from the steps in a run's manifest."""

from statistics import fmean

from prunus.reporting.labels import history
from prunus.results.labels import Step
from prunus.results.rows import Run


def removed_blocks(run: Run) -> int:
    """Number of decoder blocks that all steps together removed."""
    return sum(len(_removed(step)) for step in history(run))


def block_sparsities(run: Run) -> list[float | None]:
    """For each block of the original model, the mean sparsity of its Linears, or None if the block was removed.

    It is the plain mean over the Linears of a block, since the manifest has no sizes.
    """
    linears, removed, total = _replay(run)
    return [
        None if block in removed else fmean(shares) if (shares := _of_block(linears, block)) else 0.0
        for block in range(total)
    ]


def linear_sparsities(run: Run) -> dict[str, list[float | None]]:
    """{kind of Linear (`mlp.up_proj`): its sparsity in each block of the original model}.

    A sparsity is None if the block was removed or the manifest has no such Linear in it.
    """
    linears, removed, total = _replay(run)
    kinds = dict.fromkeys(kind for _, kind in linears)
    return {
        kind: [None if block in removed else linears.get((block, kind)) for block in range(total)] for kind in kinds
    }


def _of_block(linears: dict[tuple[int, str], float], block: int) -> list[float]:
    return [share for (index, _), share in linears.items() if index == block]


def _replay(run: Run) -> tuple[dict[tuple[int, str], float], set[int], int]:
    """{(block of the original model, kind): sparsity}, the removed blocks, and the original number of blocks.

    Steps are replayed in order, since each one numbers blocks as in the checkpoint with which it started.
    """
    total = int(run.model.get("blocks") or 0) + removed_blocks(run)
    kept = list(range(total))  # original index of each block that is left
    linears: dict[tuple[int, str], float] = {}
    for step in history(run):
        for (index, kind), share in _shares(step).items():
            if index < len(kept):
                linears[kept[index], kind] = share
        removed = {index for index in _removed(step) if index < len(kept)}
        kept = [original for index, original in enumerate(kept) if index not in removed]
    return linears, set(range(total)) - set(kept), total


def _removed(step: Step) -> list[int]:
    blocks = step.get("blocks_removed")
    return [b for b in blocks if isinstance(b, int) and b >= 0] if isinstance(blocks, list) else []


def _shares(step: Step) -> dict[tuple[int, str], float]:
    """{(block, kind): sparsity} of a step's Linears; model.layers.3.mlp.up_proj is block 3, kind mlp.up_proj."""
    shares: dict[tuple[int, str], float] = {}
    sparsity = step.get("sparsity")
    for name, share in (sparsity if isinstance(sparsity, dict) else {}).items():
        parts = str(name).split(".")
        position = next((k for k, part in enumerate(parts) if part.isdecimal()), None)
        if position is not None and isinstance(share, int | float):
            shares[int(parts[position]), ".".join(parts[position + 1 :])] = float(share)
    return shares
