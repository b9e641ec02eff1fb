"""Influence of training sequences on a validation loss, from gradients or sketches of them, and whether it is noise.

Shapes: K training sequences, X numbers of a gradient or sketch.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from prunus.errors import PrunusError
from prunus.pruning.allocation.importance_scores import WHOLE
from prunus.pruning.allocation.measurement import Measured, Subject
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.gradients import Model, signs, sketches
from prunus.recipes import PruneRecipe

# Sequences that influences are taken of are cut to this length, whether they come from text, token ids or traces.
INFLUENCE_TOKENS = 1024
Influence = Callable[[Tensor, Tensor], Tensor]
# Below this rank agreement between two halves of the data, scores are called noise.
STABLE = 0.5


def identity(train_KX: Tensor, validation_X: Tensor) -> Tensor:
    """(K,) gradient of each sequence times the mean validation gradient: positive where training on it helps."""
    return train_KX.double() @ validation_X.double()


def datainf(train_KX: Tensor, validation_X: Tensor) -> Tensor:
    """(K,) the same with DataInf's inverse Hessian. Kwon et al. 2023, arXiv:2310.00902; authors' code src/influence.py.

    Each sequence's own damped Hessian g g^T + lambda is inverted and the inverses are averaged; lambda is a tenth of
    the mean squared entry. Only inner products of gradients are needed.
    """
    gram_KK = train_KX.double() @ train_KX.double().T
    toward_K = identity(train_KX, validation_X)
    squares_K = gram_KK.diagonal()
    damping = squares_K.mean() / train_KX.shape[1] / 10
    if damping == 0:
        return toward_K
    correction_K = gram_KK @ (toward_K / (damping + squares_K)) / len(train_KX)
    return (toward_K - correction_K) / damping


def block_scores(
    gradients: Sequence[Mapping[str, Tensor]],
    linears: Sequence[Sequence[str]],
    train: Sequence[int],
    validation: Sequence[int],
    influence: Influence,
) -> list[float]:
    """For each block, the positive influences of all training sequences on its chosen Linears together, summed.

    gradients: of each block and Linear, one row per sequence. linears: those of each block that are chosen. train,
    validation: which rows.
    """
    scores = []
    for tables, names in zip(gradients, linears, strict=True):
        total_K = torch.zeros(len(train), dtype=torch.float64)
        for name in names:
            table = tables[name]
            total_K += influence(table[list(train)], table[list(validation)].double().mean(0))
        scores.append(float(total_K.clamp(min=0).sum()))
    return scores


def agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one of them is constant."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return float(np.asarray(spearmanr(first, second)[0]))


def influences(subject: Subject, calibration: Calibration, parts: Sequence[str], influence: Influence) -> Measured:
    """Summed positive influences of the training sequences on the loss of the validation sequences, by group.

    The loss is that of the chain alone where calibration says where prompts end, else that of all tokens. Which
    sequence is which is drawn by the recipe's seed. Half of the sequences against the other half shows whether the
    ranking of blocks is more than noise.
    """
    recipe = subject.recipe
    weights = chain_only(calibration)
    usable = [
        i for i, ids in enumerate(calibration.sequences) if len(ids) > 1 and (weights is None or any(weights[i][1:]))
    ]
    if len(usable) < 4:
        which = "of two tokens or more" if weights is None else f"whose chain begins within {INFLUENCE_TOKENS} tokens"
        raise PrunusError(f"{calibration.source} has {len(usable)} sequences {which}; influences need 4")
    names = [subject.names(index) for index in range(subject.source.blocks)]
    gradients = sketches(
        Model(subject.source, subject.runner, names, subject.file),
        [calibration.sequences[i] for i in usable],
        signs(recipe.seed, subject.source),
        None if weights is None else [weights[i] for i in usable],
    )
    drawn = random.Random(recipe.seed).sample(range(len(usable)), len(usable))
    share = recipe.influence_validation / (recipe.influence_train + recipe.influence_validation)
    count = min(max(2, round(len(usable) * share)), len(usable) - 2)
    validation, train = drawn[:count], drawn[count:]
    scores, stability = {}, {}
    for group in parts:
        names = [subject.names(index, group) for index in range(subject.source.blocks)]
        scores[group] = block_scores(gradients, names, train, validation, influence)
        halves = [block_scores(gradients, names, train[h::2], validation[h::2], influence) for h in (0, 1)]
        stability[group] = agreement(*halves)
    details = {"train": len(train), "validation": count, "split_half_spearman": stability}
    warnings = [
        f"{recipe.allocation}{'' if group == WHOLE else f' of {group}'}: two halves of the data agree on the order of "
        f"blocks by Spearman {value:.2f} only: these scores are noise; use more sequences, or another allocation"
        for group, value in stability.items()
        if value < STABLE
    ]
    return Measured(scores, details, [*calibration.warnings, *warnings])


def chain_only(calibration: Calibration) -> list[list[float]] | None:
    """For each sequence, 0 for tokens of the prompt and 1 for those of the chain; None where prompts are not known."""
    if not calibration.prompts:
        return None
    lengths = zip(map(len, calibration.sequences), calibration.prompts, strict=True)
    return [[0.0] * prompt + [1.0] * (length - prompt) for length, prompt in lengths]


def influence_recipe(recipe: PruneRecipe) -> PruneRecipe:
    """The recipe that chooses sequences for influences: as many as these need, not too long."""
    count = recipe.influence_train + recipe.influence_validation
    return replace(recipe, samples=count, calibration_tokens=None, seqlen=min(recipe.seqlen, INFLUENCE_TOKENS))
