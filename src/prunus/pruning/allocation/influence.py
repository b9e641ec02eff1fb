"""Influence of training sequences on a validation loss, from gradients or sketches of them, and whether it is noise.

Shapes: K training sequences, X numbers of a gradient or sketch.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

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
