"""The tensors and the config.json of a model with fewer experts, whose stored bytes are not converted.

An expert that has tensors of its own on disk keeps them under a new number. Of a tensor with one entry per expert only
some entries are kept; they are read when they are written. The result is checked, so no rule for
config.json need be complete.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import plain_experts
from prunus.checkpoint.loader import return_freed_memory
from prunus.checkpoint.model_folder import in_text_part
from prunus.checkpoint.names import Origin
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.safetensors_file import CHUNK, ITEMSIZES, Stored
from prunus.errors import PrunusError
from prunus.pruning.experts import Mixture, Unremovable, expert_counts, masked, number_fields
from prunus.pruning.planned import PREDICTING, TOLERANCE, left_out, outside, planned_checkpoint, short_sequence


class Cut(Stored):
    """Some entries of a stored tensor along one axis. whole: that tensor. kept: the entries, ascending."""

    whole: Stored
    axis: int
    kept: tuple[int, ...]

    @classmethod
    def of(cls, whole: Stored, axis: int, kept: Sequence[int]) -> "Cut":
        """The entries `kept` of a tensor along an axis."""
        shape = (*whole.shape[:axis], len(kept), *whole.shape[axis + 1 :])
        cut = cls(whole.file, whole.dtype, shape, whole.start, whole.start + prod(shape) * ITEMSIZES[whole.dtype])
        cut.whole, cut.axis, cut.kept = whole, axis, tuple(kept)
        return cut

    def read(self) -> Tensor:
        """The tensor, in new memory."""
        if type(self.whole) is Stored and self.axis == 0:
            rows = (self._row(number).read() for number in self.kept)
            return torch.stack(list(rows))
        return self.whole.read().index_select(self.axis, torch.tensor(self.kept))

    def chunks(self) -> Iterator[bytes]:
        """Yield the data in pieces; PrunusError if the file ends early."""
        if type(self.whole) is Stored and self.axis == 0:
            for number in self.kept:
                yield from self._row(number).chunks()
            return
        data = self.read().contiguous().flatten().view(torch.uint8).numpy().data
        yield from (bytes(data[begin : begin + CHUNK]) for begin in range(0, len(data), CHUNK))

    def read_rows(self, rows: "Sequence[int]") -> Tensor:  # type: ignore[override]
        """Some rows of a matrix, for which all of it is read."""
        return self.read()[torch.as_tensor(list(rows))]

    def _row(self, number: int) -> Stored:
        size = self.whole.nbytes // self.whole.shape[0]
        start = self.whole.start + number * size
        return Stored(self.whole.file, self.whole.dtype, self.whole.shape[1:], start, start + size)


def cut_block(source: Checkpoint, mixture: Mixture, kept: Sequence[int]) -> dict[str, Stored]:
    """The tensors of a block with only these experts, renumbered in order, by their names on disk."""
    tensors = source.block_tensors(mixture.index)
    done: set[str] = set()
    for local, axis in mixture.axes.items():
        origin = source.names.origin(source.block_name(mixture.index, local))
        assert origin is not None
        for pattern, name in origin.sources:
            if name in done or name not in tensors:
                continue
            done.add(name)
            stored = tensors.pop(name)
            number = number_in(pattern, name)
            if number is None:
                tensors[name] = Cut.of(stored, axis_on_disk(origin, stored, axis, mixture.count), kept)
            elif int(number[1]) in kept:
                new = kept.index(int(number[1]))
                tensors[f"{name[: number.start(1)]}{new}{name[number.end(1) :]}"] = stored
    return tensors


def number_in(pattern: str, name: str) -> re.Match[str] | None:
    """The number of the expert in a name on disk, as group 1; None if the tensor is not of one expert alone."""
    if "*" not in pattern:
        return None
    plain = pattern.replace("\\.", ".")  # some patterns are regular expressions
    return re.search(re.escape(plain).replace(r"\*", r"(\d+)"), name)


def axis_on_disk(origin: Origin, stored: Stored, axis: int, count: int) -> int:
    """The axis of a stored tensor that has one entry per expert. axis: that of the model's tensor."""
    if origin.converter is None:
        return len(stored.shape) - 1 - axis if origin.transposed else axis
    found = [a for a in (axis, *range(len(stored.shape))) if a < len(stored.shape) and stored.shape[a] == count]
    if not found:
        raise PrunusError(f"'{origin.stored[0]}' has no axis of {count} experts on disk")
    return found[0]


def cut_tensors(
    source: Checkpoint, mixtures: Sequence[Mixture], kept: Mapping[int, Sequence[int]]
) -> dict[str, Stored]:
    """All tensors of the model with only these experts, by their names on disk."""
    tensors, of_block = outside(source), {mixture.index: mixture for mixture in mixtures}
    for index in range(source.blocks):
        mixture = of_block.get(index)
        tensors |= source.block_tensors(index) if mixture is None else cut_block(source, mixture, kept[index])
    return tensors


def smaller_model(source: Checkpoint, mixtures: Sequence[Mixture], kept: Mapping[int, Sequence[int]]) -> Checkpoint:
    """The model with only these experts of each block, before it is written."""
    content = fewer_config(source, {index: len(experts) for index, experts in kept.items()})
    return planned_checkpoint(source, content, cut_tensors(source, mixtures, kept))


def fewer_config(source: Checkpoint, kept: Mapping[int, int]) -> dict[str, object]:
    """The content of config.json with other numbers of experts. kept: that of each block that loses some."""
    text, before, stray = source.text_config, expert_counts(source), left_out(source)
    after = [kept.get(index, count) for index, count in enumerate(before)]
    # All spellings of the field, since transformers writes one and reads another; else shapes would not match.
    names = number_fields(text)

    def change(content: Mapping[str, Any]) -> dict[str, Any]:
        present = [name for name in names if name in content and content[name] in (before[0], before, tuple(before))]
        fewer = {**content, **dict.fromkeys(present or names[:1], _number(after, kept))}
        return fewer | ({name: 0 for name in PREDICTING if fewer.get(name)} if stray else {})

    return in_text_part(source.config_json, source.config, change)


def _number(after: Sequence[int], kept: Mapping[int, int]) -> int | list[int]:
    """One number if all blocks that lose experts keep the same number, as config.json of nearly all types asks for."""
    numbers = set(kept.values())
    return numbers.pop() if len(numbers) == 1 else list(after)


# Check a model with fewer experts: what was written computes what the source does without those experts.
# The new configuration must give a model whose tensors have exactly the names and shapes that were written. Each block
# that lost experts must give the same as the source's block whose router cannot choose them (logits at minus infinity),
# for one short sequence, in float32. Both read the same hidden states, so rounding cannot add up over blocks.


@torch.inference_mode()
def verify(
    source: Checkpoint,
    new: Checkpoint,
    mixtures: Sequence[Mixture],
    kept: Mapping[int, Sequence[int]],
    device: torch.device,
) -> float:
    """The largest relative difference between blocks of new and of source without the experts that are not kept.

    Raises Unremovable where a block computes something else.
    """
    ids_1T = short_sequence(source)
    of_block, worst = {mixture.index: mixture for mixture in mixtures}, 0.0
    old_run, new_run = (Runner(model.config, model.tensors, torch.float32, device) for model in (source, new))
    batch = Batch(ids_1T)
    with full_float32(device), plain_experts(old_run.architecture), plain_experts(new_run.architecture):
        rows_1TW, also_1TW = old_run.embed(batch), new_run.embed(Batch(ids_1T))
        if not torch.equal(rows_1TW, also_1TW):
            raise Unremovable("the input of the first block depends on the number of experts")
        for index in range(max(of_block) + 1):
            mixture = of_block.get(index)
            if mixture is None:
                rows_1TW = old_run.run_block(_block(old_run, source, index), rows_1TW, batch)
                continue
            twin = batch.copy()
            removed = sorted(set(range(mixture.count)) - set(kept[index]))
            before_1TW, seen = _without(removed, old_run, source, mixture, rows_1TW, batch)
            after_1TW = new_run.run_block(_block(new_run, new, index), rows_1TW, twin)
            if not seen:
                raise Unremovable(f"block {index}: its router computes logits in a way that cannot be checked")
            worst = max(worst, difference(before_1TW, after_1TW))
            if not worst <= TOLERANCE:
                raise Unremovable(
                    f"block {index} would compute something else without experts {', '.join(map(str, removed))}, even"
                    f" if its router could not choose them (by {worst:.2g})"
                )
            rows_1TW = before_1TW
    return worst


def _block(run: Runner, model: Checkpoint, index: int) -> nn.Module:
    """A block in float32. Of a mixture it is large, so no caller keeps it: one is in memory at a time."""
    return_freed_memory()
    return run.make_block(index, model.read_block(index))


def _without(
    removed: Sequence[int], run: Runner, source: Checkpoint, mixture: Mixture, rows_1TW: Tensor, batch: Batch
) -> tuple[Tensor, bool]:
    """What the source's block gives if its router cannot choose these experts, and whether its logits were seen."""
    block = _block(run, source, mixture.index)
    with masked(block, mixture, removed) as mode:
        return run.run_block(block, rows_1TW, batch), bool(mode.seen)


def difference(before: Tensor, after: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite for NaN in one of them alone."""
    if not torch.equal(before.isnan(), after.isnan()):
        return float("inf")
    before, after = before.double().nan_to_num(), after.double().nan_to_num()
    return float((before - after).abs().max() / before.abs().max().clamp(min=1e-30))
