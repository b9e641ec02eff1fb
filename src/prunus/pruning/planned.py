"""The planned checkpoint: a model that a step will write, with its config.json and tensors' shapes but no weights.

Its folder is that of the source model, and so are the tokenizer, the manifest, and the name in messages.
"""

import json
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunus.checkpoint.architecture import skeleton
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import plain_experts
from prunus.checkpoint.loader import return_freed_memory
from prunus.checkpoint.model_folder import SINGLE_FILE, in_text_part
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.safetensors_file import Stored
from prunus.disk import scratch_folder
from prunus.errors import PrunusError

# Fields with the number of extra blocks for multi-token prediction; these are not written where shapes change.
PREDICTING = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "n_predict_layers")
TOKENS = 32  # of the sequence on which the new model is compared with the old model
# Relative. Both do the same operations; sums over another number of terms may be added in another order.
TOLERANCE = 1e-5
Json = Mapping[str, Any]


class _Planned(Checkpoint):
    def __init__(self, folder: Path, tensors: Mapping[str, Stored]) -> None:
        self._given = tensors
        super().__init__(folder)

    def checksum(self) -> str:
        """A placeholder, since there are no weights yet."""
        return "planned"

    def _find_tensors(self) -> Mapping[str, Stored]:
        return self._given


def planned_checkpoint(source: Checkpoint, content: Json, tensors: Mapping[str, Stored]) -> Checkpoint:
    """A checkpoint with this content of config.json and these tensors, by their names on disk; nothing is written.

    Raises PrunusError unless the tensors have exactly the names and shapes that the configuration asks for.
    """
    with scratch_folder() as folder:
        (folder / "config.json").write_text(json.dumps(content))
        (folder / SINGLE_FILE).touch()
        try:
            new = _Planned(folder, tensors)
        except PrunusError as error:
            raise PrunusError(str(error).replace(f"{folder}: ", "").replace(str(folder), "it")) from error
    new.folder = source.folder
    return new


def left_out(source: Checkpoint) -> list[str]:
    """Names of tensors that belong to no block and to no module, such as layers for multi-token prediction."""
    outer = source.outer_tensors()
    return [name for name in source.names.unknown if name in outer]


def outside(source: Checkpoint) -> dict[str, Stored]:
    """The tensors outside blocks that a step writes: all but those of `left_out`."""
    unplaced = left_out(source)
    return {name: stored for name, stored in source.outer_tensors().items() if name not in unplaced}


def warn_of_left_out(source: Checkpoint) -> list[str]:
    """A warning if `left_out` has tensors."""
    unplaced = left_out(source)
    if not unplaced:
        return []
    shown = unplaced[0] + (f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else "")
    return [f"left out, as they belong to no module (such as layers for multi-token prediction): {shown}"]


def changed_config(source: Checkpoint, change: Callable[[Json], Json]) -> dict[str, object]:
    """The content of config.json after a change of its language model's part.

    If `left_out` has tensors, the numbers of blocks for multi-token prediction become 0.
    """
    unplaced = left_out(source)

    def changed(content: Json) -> dict[str, Any]:
        new = change(content)
        return {**new, **({name: 0 for name in PREDICTING if new.get(name)} if unplaced else {})}

    return in_text_part(source.config_json, source.config, changed)


def remade(source: Checkpoint, settings: Json) -> PreTrainedModel:
    """The model without weights, with other settings of its language model's configuration."""
    config = deepcopy(source.config)
    for name, value in settings.items():
        setattr(config.get_text_config(decoder=True), name, value)
    return skeleton(config, torch.float32)


def growth(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """(axis, by how much it is longer) of each tensor of `before` whose shape differs along a single axis.

    (-1, 0) of a tensor that differs otherwise or that `after` lacks; tensors of equal shape are left out.
    """
    grown: dict[str, tuple[int, int]] = {}
    for name, tensor in before.items():
        old, new = tensor.shape, after[name].shape if name in after else ()
        axes = [axis for axis in range(len(old)) if len(old) == len(new) and old[axis] != new[axis]]
        if name not in after or old != new:
            grown[name] = (axes[0], new[axes[0]] - old[axes[0]]) if len(axes) == 1 else (-1, 0)
    return grown


# (the source's runner, that of the new model, a block's number, what both read, its batch) -> the outputs of both
Outputs = Callable[[Runner, Runner, int, Tensor, Batch], tuple[Tensor, Tensor]]


@torch.no_grad()
def compare_blocks(
    source: Checkpoint,
    new: Checkpoint,
    device: torch.device,
    changed: Collection[int],
    outputs: Outputs,
    error: type[PrunusError],
    than: str,
    alone: bool = False,
) -> float:
    """The largest relative difference between changed blocks of new and what they must compute, in float32.

    Both models' blocks read the same hidden states of a short sequence, which only source's blocks pass on, so that
    rounding cannot add up; with `alone`, changed blocks read the embeddings, and no others run. error: the exception
    for a difference. than: the end of its message, after `would compute something else`.
    """
    old_run, new_run = (Runner(model, torch.float32, device) for model in (source, new))
    batch, worst = Batch(short_sequence(source)), 0.0
    with full_float32(device), plain_experts(old_run.architecture), plain_experts(new_run.architecture):
        rows_1TW, also_1TW = old_run.embed(batch), new_run.embed(Batch(batch.ids_NT))
        if not torch.equal(rows_1TW, also_1TW):
            raise error(f"the embedding would compute something else {than}")
        for index in sorted(changed) if alone else range(max(changed) + 1):
            return_freed_memory()  # of a mixture, a block is large
            if index not in changed:
                rows_1TW = old_run.run_block(old_run.read_block(index), rows_1TW, batch)
                continue
            before_1TW, after_1TW = outputs(old_run, new_run, index, rows_1TW, batch)
            worst = max(worst, change := difference(before_1TW, after_1TW))
            if not change <= TOLERANCE:
                raise error(f"block {index} would compute something else {than} (by {change:.2g})")
            rows_1TW = rows_1TW if alone else before_1TW
    return worst


def difference(before: Tensor, after: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite for NaN in one of them alone."""
    if not torch.equal(before.isnan(), after.isnan()):
        return float("inf")
    before, after = before.double().nan_to_num(), after.double().nan_to_num()
    return float((before - after).abs().max() / before.abs().max().clamp(min=1e-30))


def short_sequence(source: Checkpoint) -> Tensor:
    """(1, T) random token ids on which two models are compared."""
    length = min(TOKENS, source.context)
    return torch.randint(source.vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
