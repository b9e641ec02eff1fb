"""Check, before a shortened model is written, that its blocks will compute the same as in the source model.

No rules for config.json are complete, and some blocks use their own index, so every result is checked:

- The new configuration must give a model whose tensors have exactly the names and shapes that will be written.
- Its blocks must have the settings that they had, and be called with the same masks and positions.
- One short sequence must give the same hidden states in the new model as through the kept blocks of the source.

The last check reads each kept block twice and runs it on a few tokens, with one block in memory at a time. All checks
use the source's tensors under their new names; nothing is written.
Shapes: N sequences, T tokens, W numbers per token between two blocks.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from prunus.checkpoint.architecture import Architecture, Call, Carried, leaves, skeleton
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import settings_of
from prunus.checkpoint.model_folder import in_text_part
from prunus.checkpoint.resolve import one_line
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError
from prunus.pruning.depth.choice import KeptBlocks, Mix
from prunus.pruning.planned import PREDICTING, TOLERANCE, difference, outside, planned_checkpoint, short_sequence

# config.json of a model without some of its blocks, by rules that hold for all families.
# Fields that count blocks are reduced; lists with an entry per block lose the entries of removed blocks; lists of
# block numbers are renumbered; counts of leading blocks are reduced by those removed among them. A per-block list that
# a configuration derives (which attention a block has, for example, from a period) is written out, since the pattern
# would shift otherwise. These lists of fields cannot be complete, so every result is checked.

# Fields with the number of blocks, or a multiple of it if a block counts as several layers.
NUMBERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers")
# Fields with the number of leading blocks of some kind, or the index of the first block that is not of it.
LEADING = (
    "first_k_dense_replace",
    "num_dense_layers",
    "n_dense_layers",
    "max_window_layers",
    "moe_layer_start_index",
    "num_hash_layers",
)
# Fields that are lists of block indices, from 0.
INDICES = (
    "mlp_only_layers",
    "moe_layers",
    "attn_layer_indices",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "cross_attention_layers",
)
# Parts of the names of other lists, whose length may equal the number of blocks by coincidence.
_OTHER_LISTS = ("architectures", "token_id", "time_step", "labels", "_grid", "auto_map")


def shorter_config(
    content: Mapping[str, Any], config: PreTrainedConfig, blocks: int, removed: Collection[int]
) -> dict[str, Any]:
    """The content of config.json without the removed blocks. content: the old; config: as transformers reads it."""
    text = config.get_text_config(decoder=True)
    return in_text_part(content, config, lambda own: _shorter(own, text, blocks, removed))


def _shorter(
    content: Mapping[str, Any], config: PreTrainedConfig, blocks: int, removed: Collection[int]
) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    kept = [index for index in range(blocks) if index not in removed]
    shorter = dict(content)
    # A step makes every n-th block sparse. Renumbering would break it, so list the dense blocks explicitly.
    step = known.get("decoder_sparse_step")
    if isinstance(step, int) and step > 1:
        only: Sequence[int] = known.get("mlp_only_layers") or ()
        dense = [index for index in range(blocks) if index in only or (index + 1) % step]
        known |= {"mlp_only_layers": dense}
        shorter |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    ahead = max((n for name in PREDICTING if isinstance(n := known.get(name), int)), default=0)
    for name, value in {**known, **shorter}.items():
        new = _shorter_value(name, value, blocks, kept, ahead)
        if new != value and (name in shorter or isinstance(value, list)):
            shorter[name] = new
    number = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if not any(name in shorter for name in NUMBERS) and not any("pattern" in n or "block_type" in n for n in shorter):
        shorter[number] = len(kept)
    if "attention_types" in shorter and isinstance(shorter.get("attention_layers"), list):  # gpt_neo repeats a list
        shorter["attention_types"] = [[shorter["attention_layers"], 1]]
    return shorter


def _shorter_value(name: str, value: Any, blocks: int, kept: Sequence[int], ahead: int) -> Any:
    """The new value of a field; the old value if the field does not depend on the blocks."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if name in NUMBERS and value and value % blocks == 0:
            return value // blocks * len(kept)
        if name in LEADING:
            return sum(index < value for index in kept) + max(0, value - blocks)
        return 0 if name in PREDICTING else value
    if isinstance(value, list) and name in INDICES:
        return [kept.index(index) for index in value if index in kept]
    if isinstance(value, dict) and "layer" in name and value and all(str(key).isdigit() for key in value):
        return {str(kept.index(int(key))): of for key, of in value.items() if int(key) in kept}
    per_block = isinstance(value, list) and not any(part in name for part in _OTHER_LISTS)
    if (per_block or (isinstance(value, str) and "pattern" in name)) and len(value) in {blocks, blocks + ahead}:
        chosen = [value[index] for index in kept]
        return "".join(chosen) if isinstance(value, str) else chosen
    return value


# Shorter than the probe of an architecture, so that blocks with a sliding window get a different mask from others.
_PROBE_WINDOW = 8
# Settings of blocks that only store state for other blocks. check_outputs shows whether those still find it.
_FOR_OTHERS = ("store_full_length_kv",)


class Undroppable(PrunusError):
    """The blocks cannot be removed, as the others would not compute the same without them; the message says why."""


def try_drops(source: Checkpoint) -> list[str | None]:
    """For each of a few removals, why it is not possible, as far as the configuration shows; None if it is.

    Tried are the second block, and the first and third together; in models of up to three blocks, single blocks.
    """
    attempts = [(1,), (0, 2)] if source.blocks > 3 else [(index,) for index in range(min(2, source.blocks - 1))]
    reasons: list[str | None] = []
    for removed in attempts:
        try:
            planned(source, KeptBlocks.without(removed, source.blocks, []))
            reasons.append(None)
        except Undroppable as error:
            reasons.append(str(error))
    return reasons


def planned(source: Checkpoint, choice: KeptBlocks) -> Checkpoint:
    """The planned checkpoint of the model to be written.

    Raises Undroppable if its configuration alone, without weights, shows that the kept blocks would not be what they
    were.
    """
    check_needs(source, [mix.base for mix in choice.kept])
    try:
        new = planned_checkpoint(source, new_config(source, choice), new_tensors(source, choice))
    except PrunusError as error:
        raise Undroppable(f"config.json has no way to say which blocks stay: {error}") from error
    check_plan(source, choice, new)
    return new


def new_config(source: Checkpoint, choice: KeptBlocks) -> dict[str, object]:
    """The content of config.json for the kept blocks."""
    return shorter_config(source.config_json, source.config, source.blocks, choice.removed(source.blocks))


def new_tensors(source: Checkpoint, choice: KeptBlocks) -> dict[str, Stored]:
    """The source's tensors that will be written, by their new names on disk."""
    tensors = outside(source)
    for new, mix in enumerate(choice.kept):
        block = source.block_tensors(mix.base)
        tensors |= {source.renumbered(name, mix.base, new): stored for name, stored in block.items()}
    return tensors


def check_needs(source: Checkpoint, kept: Sequence[int]) -> None:
    """Raise Undroppable if a kept block needs weights or outputs of a removed one."""
    owner = {name: index for index in range(source.blocks) for name in source.block_tensors(index)}
    for index in kept:
        names = [source.block_name(index, local) for local in source.architecture.layers[index].state_dict()]
        for name in source.names.stored_for(names):
            if (other := owner.get(name, index)) != index and other not in kept:
                raise Undroppable(f"block {index} shares weights with block {other}, which would be removed")
        call = source.architecture.probe.calls[index]
        for value in leaves([*call.args, *call.kwargs.values()]):
            if isinstance(value, Carried) and value.block not in kept:
                raise Undroppable(f"block {index} reads an output of block {value.block}, which would be removed")


def check_plan(source: Checkpoint, choice: KeptBlocks, new: Checkpoint) -> None:
    """Raise Undroppable if a kept block would have other settings in the new model, or would be called differently."""
    if new.blocks != len(choice.kept):
        raise Undroppable(
            f"it is not known where config.json says how many blocks there are ({new.blocks} instead of "
            f"{len(choice.kept)})"
        )
    if unplaced := sorted(set(new.names.unknown) - {_renamed(source, choice, name) for name in source.names.unknown}):
        raise Undroppable(f"the kept blocks have the tensor '{unplaced[0]}', for which the new model has no place")
    before, after = _windowed(source), _windowed(new)
    numbers = {mix.base: place for place, mix in enumerate(choice.kept)}
    for place, mix in enumerate(choice.kept):
        if change := _difference(before.layers[mix.base], after.layers[place]):
            raise Undroppable(f"block {mix.base}, renumbered {place}, would have other settings: {change}")
        if not _alike(before.probe.calls[mix.base], after.probe.calls[place], numbers):
            raise Undroppable(f"block {mix.base} would be called with another mask or positions as block {place}")


@torch.inference_mode()
def check_outputs(source: Checkpoint, choice: KeptBlocks, new: Checkpoint, device: torch.device) -> None:
    """Raise Undroppable if hidden states of a short sequence differ between the new model and the kept blocks."""
    ids_1T = short_sequence(source)
    olds, places = [mix.base for mix in choice.kept], range(len(choice.kept))
    old_outputs = _outputs(source, olds, choice.kept, source, ids_1T, device)
    new_outputs = _outputs(new, places, choice.kept, source, ids_1T, device)
    befores = list(old_outputs)
    for step, (before, after) in enumerate(zip(befores, new_outputs, strict=True)):
        if before.shape == after.shape and difference(before, after) <= TOLERANCE:
            continue
        if step == 0:
            raise Undroppable("the input of the first block depends on the number of blocks")
        if step > len(olds):
            raise Undroppable("the layers after the last block depend on the number of blocks")
        where = f"block {olds[step - 1]} would compute something else as block {step - 1}"
        raise Undroppable(f"{where}: it depends on its index, or on state that a removed block stores")


def _outputs(
    model: Checkpoint,
    indices: Sequence[int],
    mixes: Sequence[Mix],
    source: Checkpoint,
    ids_1T: Tensor,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield the input of the first of these blocks, the output of each, and the input of the output head."""
    runner, batch = Runner(model, source.dtype, device), Batch(ids_1T)
    rows_1TW = runner.embed(batch)
    yield rows_1TW.cpu()
    for index, mix in zip(indices, mixes, strict=True):
        block = runner.make_block(index, model.read_block(index) if mix.is_copy else mix.tensors(source))
        try:
            rows_1TW = runner.run_block(block, rows_1TW, batch)
        except Exception as error:  # raised by the model's own code, which misses state of a removed block
            reason = f"{type(error).__name__}: {one_line(error)[:80]}"
            raise Undroppable(f"block {mix.base} does not run without the removed blocks ({reason})") from error
        yield rows_1TW.cpu()
    if runner.architecture.head is not None:
        yield runner.states(rows_1TW, batch).cpu()


def _renamed(source: Checkpoint, choice: KeptBlocks, name: str) -> str:
    for new, mix in enumerate(choice.kept):
        if name in source.block_tensors(mix.base):
            return source.renumbered(name, mix.base, new)
    return name


def _windowed(model: Checkpoint) -> Architecture:
    """The architecture with sliding windows shorter than its probe, so that the probe's masks show them."""
    config = deepcopy(model.config)
    text: PreTrainedConfig = config.get_text_config(decoder=True)
    changed = False
    for name, value in list(vars(text).items()):
        is_window = "window" in name and "layers" not in name
        if is_window and type(value) is int and value > _PROBE_WINDOW:
            setattr(text, name, _PROBE_WINDOW)
            changed = True
    return Architecture(skeleton(config, torch.float32)) if changed else model.architecture


def _difference(before: nn.Module, after: nn.Module) -> str | None:
    """The first difference between the settings of two blocks' modules; None if there is none."""
    olds, news = settings_of(before), settings_of(after)
    olds, news = ({n: v for n, v in s.items() if not n.endswith(_FOR_OTHERS)} for s in (olds, news))
    for name in sorted({*olds, *news}):
        old, new = olds.get(name), news.get(name)
        if old != new:
            return f"{name} is {old} and would be {new}"
    return None


def _alike(before: Call, after: Call, numbers: Mapping[int, int]) -> bool:
    """Whether two calls of a block have equal arguments. numbers: new index of a block by its old index."""
    olds, news = list(leaves(list(before))), list(leaves(list(after)))
    if before.kwargs.keys() != after.kwargs.keys() or len(olds) != len(news):
        return False
    return all(_equal(a, b, numbers) for a, b in zip(olds, news, strict=True))


def _equal(a: object, b: object, numbers: Mapping[int, int]) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Carried):
        return isinstance(b, Carried) and (numbers[a.block], a.place) == b
    return type(a) is type(b)
