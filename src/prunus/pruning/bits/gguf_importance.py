"""How important each input of a Linear is to its output: its mean square over calibration tokens, llama.cpp's imatrix.

That is the diagonal of the Hessian of the squared output error. It comes from a pass of the model, or from a file of
`prunus stats`. Only the ratios matter, so the mean is 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import within_memory
from prunus.pruning.bits.gguf_tensors import Importance
from prunus.pruning.calibration.data import load_calibration
from prunus.pruning.calibration.hidden_states import check_block_fits
from prunus.pruning.calibration.saved_statistics import VECTORS, SavedStats, measure_inputs, stat_name
from prunus.recipes import GgufRecipe, PruneRecipe
from prunus.recipes.base import CALIBRATED

LEAST = 1e-6  # of the mean: an input that was 0 on all calibration tokens may not be 0 on other text


class MeasuredImportance(NamedTuple):
    """Measured importance of inputs. summary: of the calibration, for the manifest. warnings: a line each."""

    importance: Importance
    summary: dict[str, Any]
    warnings: list[str]


def measured(
    source: Checkpoint, recipe: GgufRecipe, saved: SavedStats | None, device: torch.device
) -> MeasuredImportance:
    """The importance of every input of the Linears in blocks. saved: takes the place of a pass of the model."""
    if saved is not None:
        return MeasuredImportance(
            importance_of(source, lambda name: saved.tensors[name].read()), dict(saved.summary), []
        )
    settings = {name: getattr(recipe, name) for name in CALIBRATED}
    pass_of = PruneRecipe(propagation="dense", **settings)
    check_block_fits(source, source.dtype_for(pass_of.dtype), device)
    chosen = load_calibration(pass_of, source)
    norms: dict[str, Tensor] = {}
    with within_memory(device):
        for tensors in measure_inputs(source, pass_of, chosen, device, "means"):
            norms |= {name: norm for name, norm in tensors.items() if name.endswith(f".{VECTORS[0]}")}
    return MeasuredImportance(importance_of(source, norms.__getitem__), dict(chosen.summary()), list(chosen.warnings))


def importance_of(source: Checkpoint, norm: Callable[[str], Tensor]) -> Importance:
    """Importance of each Linear's inputs from their norms in a file of statistics, by block and name."""
    return {
        (index, linear.name): relative(norm(stat_name(source, index, linear.leader, VECTORS[0])))
        for index in range(source.blocks)
        for linear in source.linears(index)
    }


def relative(norm_I: Tensor) -> np.ndarray:
    """(I,) float32 squares of norms, divided by their mean; all 1 of inputs that are always 0."""
    square_I = norm_I.double().square().cpu()
    mean = square_I.mean()
    return (square_I / mean).clamp(min=LEAST).float().numpy() if mean > 0 else np.ones(len(square_I), np.float32)
