"""LayerIF as in the study arXiv:2604.25098: attention and MLPs with more influence are pruned less.

Askari et al. 2025, arXiv:2505.23811; the study's code is wanda/lib/influence_helper.py. LayerIF's authors have
published no code that computes influences; gradients.py and this file are our own implementation. LayerIF's paper
has the opposite direction, more sparsity for more influence. The study's code reads influences from
stored files, and neither it nor its paper states their sign; here they are positive if training on a sequence lowers
the validation loss.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import scipy
import torch
from torch import Tensor

from prunus.errors import PrunusError
from prunus.pruning.allocation.arithmetic import normalised, scaled
from prunus.pruning.allocation.measurement import PARTS, WHOLE, ImportanceScores, Subject
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.gradients import GradientModel, signs, sketches
from prunus.recipes import PruneRecipe

# Influence of training sequences on a validation loss, from sketched gradients, and its split-half reliability.
# Shapes: K training sequences, X numbers of a gradient or sketch.

# Sequences are truncated to this length, whether they come from text, token ids or traces.
INFLUENCE_TOKENS = 1024
# Below this rank correlation between two halves of the data, a warning calls the scores noise.
STABLE = 0.5


def block_scores(
    gradients: Sequence[Mapping[str, Tensor]],
    linears: Sequence[Sequence[str]],
    train: Sequence[int],
    validation: Sequence[int],
) -> list[float]:
    """For each block, the sum of the positive influences of all training sequences, over some of its Linears together.

    gradients: for each block and Linear, a row per sequence. linears: the names of those Linears, by block. train,
    validation: indices of rows.
    """
    scores = []
    for tables, names in zip(gradients, linears, strict=True):
        total_K = torch.zeros(len(train), dtype=torch.float64)
        for name in names:
            table = tables[name]
            total_K += table[list(train)].double() @ table[list(validation)].double().mean(0)
        scores.append(float(total_K.clamp(min=0).sum()))
    return scores


def agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one of the sequences is constant."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return float(np.asarray(scipy.stats.spearmanr(first, second)[0]))


def influences(subject: Subject, calibration: Calibration, parts: Sequence[str]) -> ImportanceScores:
    """Block scores for each of the parts: summed positive influences of training sequences on the validation loss.

    The loss is over the chain of thought alone if the calibration marks prompts, else over all tokens. The recipe's
    seed splits the sequences into training and validation. details: the sizes of both, and Spearman's rank correlation
    of block scores between two halves of the data; a warning says if it is so low that the ranking is noise. Raises
    PrunusError with fewer than 4 usable sequences.
    """
    recipe = subject.recipe
    counted = chain_only(calibration)
    usable = [
        i for i, ids in enumerate(calibration.sequences) if len(ids) > 1 and (counted is None or any(counted[i][1:]))
    ]
    if len(usable) < 4:
        which = "of two tokens or more" if counted is None else f"whose chain begins within {INFLUENCE_TOKENS} tokens"
        raise PrunusError(f"{calibration.source} has {len(usable)} sequences {which}; influences need 4")
    names = [subject.names(index) for index in range(subject.source.blocks)]
    gradients = sketches(
        GradientModel(subject.source, subject.runner, names, subject.file),
        [calibration.sequences[i] for i in usable],
        signs(recipe.seed, subject.source),
        None if counted is None else [counted[i] for i in usable],
    )
    drawn = random.Random(recipe.seed).sample(range(len(usable)), len(usable))
    share = recipe.influence_validation / (recipe.influence_train + recipe.influence_validation)
    count = min(max(2, round(len(usable) * share)), len(usable) - 2)
    validation, train = drawn[:count], drawn[count:]
    scores, stability = {}, {}
    for group in parts:
        names = [subject.names(index, group) for index in range(subject.source.blocks)]
        scores[group] = block_scores(gradients, names, train, validation)
        halves = [block_scores(gradients, names, train[h::2], validation[h::2]) for h in (0, 1)]
        stability[group] = agreement(*halves)
    who = f"influences of allocation {recipe.allocation} (--influence-train and --influence-validation)"
    said = [f"{who}: {line}" for line in calibration.warnings]
    details = {"train": len(train), "validation": count, "split_half_spearman": stability}
    warnings = [
        f"{recipe.allocation}{'' if group == WHOLE else f' of {group}'}: two halves of the data rank the blocks with a "
        f"Spearman correlation of only {value:.2f}, so these scores are noise; use more sequences or another allocation"
        for group, value in stability.items()
        if value < STABLE
    ]
    return ImportanceScores(scores=scores, details=details, warnings=[*said, *warnings])


def chain_only(calibration: Calibration) -> list[list[bool]] | None:
    """For each sequence, whether a token belongs to the chain of thought; None if prompts are unknown."""
    if not calibration.prompts:
        return None
    lengths = zip(map(len, calibration.sequences), calibration.prompts, strict=True)
    return [[False] * prompt + [True] * (length - prompt) for length, prompt in lengths]


def own_calibration(recipe: PruneRecipe) -> tuple[PruneRecipe, int]:
    """(recipe whose fields choose the sequences for influences, the most tokens of a sequence)."""
    count = recipe.influence_train + recipe.influence_validation
    chosen = replace(recipe, sequences=count, calibration_tokens=None, seqlen=min(recipe.seqlen, INFLUENCE_TOKENS))
    return chosen, INFLUENCE_TOKENS


# Constants of the study's code.
LOWEST_RATIO, HIGHEST_RATIO = 0.05, 0.40  # range of the sparsities' ratios
WINDOW = 5  # width of the smoothing, in blocks
TINY = 1e-8  # added to denominators


def smoothed(scores: Sequence[float], window: int, order: int) -> list[float]:
    """Scores after a Savitzky-Golay filter with a polynomial fit at the ends.

    The window is reduced to the largest odd number of scores; fewer than three scores are returned unchanged.
    """
    width = min(window, len(scores) if len(scores) % 2 else len(scores) - 1)
    if width < 3:
        return list(scores)
    return np.asarray(
        scipy.signal.savgol_filter(np.asarray(scores, float), width, min(order, width - 1), mode="interp")
    ).tolist()


def study_ratios(influences: Sequence[float]) -> list[float]:
    """Ratios of the groups' sparsities in the study: from 0.40 for the least influence to 0.05 for the most.

    Absolute influences are normalised (min-max), with five groups or more smoothed (window 5, order 2) and clipped to
    [0, 1], and normalised again.
    """
    shares = normalised([abs(value) for value in influences])
    if len(shares) >= WINDOW:
        shares = [min(max(share, 0.0), 1.0) for share in smoothed(shares, WINDOW, order=2)]
    low, high = min(shares), max(shares)
    return [
        LOWEST_RATIO + (HIGHEST_RATIO - LOWEST_RATIO) * (1 - (share - low) / (high - low + TINY)) for share in shares
    ]


def allocate(influences: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each group of one kind (attention or MLP of each block): lower for more influence.

    These are study_ratios, scaled so that the weighted mean is the target even if some sparsities are clipped. The
    study's code clips after scaling, so its mean can differ from the target; see `allocate_reference`.
    """
    return scaled(study_ratios(influences), sizes, recipe.sparsity)


def allocate_reference(influences: Sequence[float], sizes: Sequence[int], recipe: PruneRecipe) -> list[float]:
    """Sparsity of each group as in the study's code: scaled, then clipped to [0, 1]; the mean may miss the target."""
    ratios = study_ratios(influences)
    total = sum(ratio * size for ratio, size in zip(ratios, sizes, strict=True))
    factor = recipe.sparsity * sum(sizes) / (total + TINY)
    return [min(max(factor * ratio, 0.0), 1.0) for ratio in ratios]


def measure(subject: Subject, calibration: Calibration | None) -> ImportanceScores:
    """Influences of attention and MLP of every block, with the identity as the Hessian, as in the study."""
    assert calibration is not None
    kinds = {linear.kind for linears in subject.linears for linear in linears}
    return influences(subject, calibration, [part for part in PARTS if part in kinds])


calibration = own_calibration
