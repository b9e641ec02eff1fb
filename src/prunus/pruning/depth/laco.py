"""LaCo: merge blocks into the block before them as long as the last hidden states stay similar.

Yang et al. 2024, arXiv:2402.11187, algorithm 1. A merge replaces block l by theta_l + sum_k (theta_{l+k} - theta_l),
over the next m blocks, and removes those m. As in the authors' code, only Linear weights are merged; norms and biases
stay those of block l. Merges are tried from the last block down. One is kept if the mean cosine between the dense
model's last hidden states and the new ones (all tokens of a sequence as one vector) exceeds the threshold. The next
trial is `interval` blocks lower after a success, else one lower.

Only blocks with the same Linears are merged. Routed experts and other weights that are not prunable Linears stay those
of block l, and a warning says so.
"""

import torch
from torch import Tensor
from torch.nn import functional

from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration.hidden_states import propagate
from prunus.pruning.depth.choice import DepthInputs, KeptBlocks, Mix


def choose(model: DepthInputs, count: int) -> KeptBlocks:
    """The model after merges that remove up to `count` blocks. Scores: the cosine after each merge that was kept.

    A warning says if fewer blocks could be removed. Raises PrunusError if none could.
    """
    model.check_independent("laco")
    recipe, blocks = model.recipe, model.source.blocks
    live, left, scores = [Mix.of(index) for index in range(blocks)], count, []
    original = last_hidden(model, live)
    place = blocks - 1 - min(recipe.merge, left)
    with Steps("scoring", total=place + 1, unit="places") as steps:
        while place >= 0 and left:
            width, lower = min(recipe.merge, left, len(live) - 1 - place), place - 1
            end = place + width + 1
            if not are_alike(model, live[place:end]):
                steps.advance()
                place = lower
                continue
            trial = [*live[:place], merged(live[place:end]), *live[end:]]
            cosine = mean_cosine(original, last_hidden(model, trial))
            if cosine > recipe.threshold:
                live, left = trial, left - width
                scores.append(cosine)
                lower = min(place - recipe.interval, len(live) - 1 - min(recipe.merge, max(1, left)))
            steps.advance(place - lower)
            place = lower
    if left == count:
        raise PrunusError(
            f"laco: no merge of {recipe.merge} + 1 blocks with the same Linears keeps the cosine above threshold "
            f"{recipe.threshold}; lower --threshold or --merge"
        )
    short = f"laco removed {count - left} of {count} blocks: no further merge keeps the cosine above {recipe.threshold}"
    return KeptBlocks(live, scores, ([short] if left else []) + warn_of_unmerged(model, live))


def are_alike(model: DepthInputs, mixes: list[Mix]) -> bool:
    """Whether blocks have Linears of the same names and shapes, so that they can be merged."""
    first, *others = (
        {(linear.name, linear.shape_OI) for linear in model.source.linears(mix.base) if not linear.experts}
        for mix in mixes
    )
    return bool(first) and all(other == first for other in others)


def warn_of_unmerged(model: DepthInputs, live: list[Mix]) -> list[str]:
    """A warning if merged blocks hold matrices that are not prunable Linears, so that they were not merged."""
    bases = [mix.base for mix in live if not mix.is_copy]
    dense = {name for base in bases for name in model.source.left_dense(base)}
    dense |= {linear.summary_name for base in bases for linear in model.source.linears(base) if linear.experts}
    if not dense:
        return []
    name = min(dense)
    more = f" and {len(dense) - 1} more" if len(dense) > 1 else ""
    return [f"laco merges prunable Linears only; merged blocks keep {name}{more} of the first block of each merge"]


def merged(neighbours: list[Mix]) -> Mix:
    """The first of these blocks with all others merged into it."""
    base, *others = neighbours
    factors = dict.fromkeys(sorted({index for mix in neighbours for index, _ in mix.parts}), 0.0)
    for mix, weight in ((base, 1 - len(others)), *((other, 1) for other in others)):
        for index, factor in mix.parts:
            factors[index] += weight * factor
    return Mix(base.base, tuple((index, factor) for index, factor in factors.items() if factor))


def last_hidden(model: DepthInputs, live: list[Mix]) -> list[Tensor]:
    """(N, T, X) per batch: the inputs of the output head, in a model made of these blocks."""
    hidden = model.embedded()
    for mix in live:
        propagate(model.runner, model.block(mix), hidden, mix.base)
    return [model.runner.states(rows_NTW.to(model.device), batch).cpu() for batch, rows_NTW in hidden.batches()]


def mean_cosine(first: list[Tensor], second: list[Tensor]) -> float:
    """Mean over sequences of the cosine between two models' hidden states, all tokens of a sequence as one vector."""
    cosines = [
        functional.cosine_similarity(a_NTX.flatten(1).double(), b_NTX.flatten(1).double(), dim=-1)
        for a_NTX, b_NTX in zip(first, second, strict=True)
    ]
    return torch.cat(cosines).mean().item()
