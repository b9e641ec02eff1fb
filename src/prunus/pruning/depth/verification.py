"""Whether a model without some of its blocks computes what the blocks that stay computed, told before it is written.

No rule for config.json is complete, and there are blocks that use their own number, so every result is checked:

- its configuration gives a model whose tensors have exactly the names and shapes that are to be written,
- whose blocks have the settings of those that they were, and are called with the same masks and positions,
- and one short sequence goes through it as through the blocks that stay of the old model.

The last reads each block that stays twice, and runs it on a few tokens; one block is in memory at a time. It all works
on the tensors where they lie now, under their new names.
Shapes: N sequences, T tokens, W numbers per token between two blocks.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from prunus.checkpoint.architecture import Architecture, Call, Carried, leaves
from prunus.checkpoint.checkpoint import SINGLE_FILE, Checkpoint
from prunus.checkpoint.linears import settings_of
from prunus.checkpoint.resolve import one_line
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError
from prunus.pruning.depth.choice import Choice, Mix
from prunus.pruning.depth.shortened_config import shorter_config

TOKENS = 32
# The same products of the same numbers: any difference that is no accident of memory is a real one.
TOLERANCE = 1e-5
# Shorter than a probe of an architecture, so that blocks with a window are called with another mask than others.
_PROBE_WINDOW = 8
# Settings by which a block only leaves things for others: the sequence shows whether those find them.
_FOR_OTHERS = ("store_full_length_kv",)


class Undroppable(PrunusError):
    """Without these blocks the model would not compute what the others did; the text says why."""


class _Planned(Checkpoint):
    """The model to be written, as if it were there: its configuration, and tensors that lie elsewhere."""

    def __init__(self, folder: Path, tensors: Mapping[str, Stored]) -> None:
        self._given = tensors
        super().__init__(folder)

    def _find_tensors(self) -> Mapping[str, Stored]:
        return self._given


class Droppable(NamedTuple):
    """Whether blocks of a model can be dropped: of those tried some, and why not others (None: all)."""

    possible: bool
    note: str | None


def try_drops(source: Checkpoint, *, read_weights: bool) -> Droppable:
    """Whether the second block of a model, and its first and third, can go. Nothing is written.

    read_weights: run one short sequence too; False: tell what can be told from the configuration alone.
    """
    attempts = [(1,), (0, 2)] if source.blocks > 3 else [(index,) for index in range(min(2, source.blocks - 1))]
    notes = [why_not(source, removed, read_weights=read_weights) for removed in attempts]
    return Droppable(None in notes, next((note for note in notes if note), None))


def why_not(source: Checkpoint, removed: Sequence[int], *, read_weights: bool = True) -> str | None:
    """Why a model cannot go without these blocks, in one line; None where it can. read_weights: as in try_drops."""
    try:
        if read_weights:
            verify(source, Choice.without(removed, source.blocks, []), torch.device("cpu"))
        else:
            check_removable(source, removed)
    except Undroppable as error:
        return str(error)
    return None


def verify(source: Checkpoint, choice: Choice, device: torch.device) -> None:
    """Raise Undroppable unless the blocks that stay compute in the new model what they did in the old."""
    with planned(source, choice) as new:
        check_plan(source, choice, new)
        check_outputs(source, choice, new, device)


def check_removable(source: Checkpoint, removed: Sequence[int]) -> None:
    """The same as far as it can be told without reading weights."""
    choice = Choice.without(removed, source.blocks, [])
    with planned(source, choice) as new:
        check_plan(source, choice, new)


@contextmanager
def planned(source: Checkpoint, choice: Choice) -> Iterator[Checkpoint]:
    """The model to be written, opened, which checks all names and shapes."""
    check_needs(source, [mix.base for mix in choice.kept])
    content = new_config(source, choice)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(content))
        (folder / SINGLE_FILE).touch()
        try:
            new = _Planned(folder, new_tensors(source, choice))
        except PrunusError as error:
            reason = str(error).replace(f"{folder}: ", "").replace(str(folder), "it")
            raise Undroppable(f"config.json has no way to say which blocks stay: {reason}") from error
        yield new


def new_config(source: Checkpoint, choice: Choice) -> dict[str, Any]:
    """config.json for the blocks that stay."""
    return shorter_config(source.config_json, source.config, source.blocks, choice.removed(source.blocks))


def new_tensors(source: Checkpoint, choice: Choice) -> dict[str, Stored]:
    """Where what is to be written lies now, by its new names on disk."""
    tensors = source.outer_tensors()
    for name in left_out(source):
        del tensors[name]
    for new, mix in enumerate(choice.kept):
        block = source.block_tensors(mix.base)
        tensors |= {source.renumbered(name, mix.base, new): stored for name, stored in block.items()}
    return tensors


def left_out(source: Checkpoint) -> list[str]:
    """Tensors that belong to no block and to no module, such as layers that predict tokens further ahead."""
    outer = source.outer_tensors()
    return [name for name in source.names.unknown if name in outer]


def check_needs(source: Checkpoint, kept: Sequence[int]) -> None:
    """Raise Undroppable where a block that stays needs something of one that goes."""
    owner = {name: index for index in range(source.blocks) for name in source.block_tensors(index)}
    for index in kept:
        names = [source.block_name(index, local) for local in source.architecture.layers[index].state_dict()]
        for name in source.names.stored_for(names):
            if (other := owner.get(name, index)) != index and other not in kept:
                raise Undroppable(f"block {index} shares weights with block {other}, which would go")
        call = source.architecture.probe.calls[index]
        for value in leaves([*call.args, *call.kwargs.values()]):
            if isinstance(value, Carried) and value.block not in kept:
                raise Undroppable(f"block {index} needs what block {value.block} gives out, which would go")


def check_plan(source: Checkpoint, choice: Choice, new: Checkpoint) -> None:
    """Raise Undroppable where a block would be another one, or be called in another way."""
    if new.blocks != len(choice.kept):
        raise Undroppable(
            f"it is not known where config.json says how many blocks there are ({new.blocks} instead of "
            f"{len(choice.kept)})"
        )
    if stray := sorted(set(new.names.unknown) - {_renamed(source, choice, name) for name in source.names.unknown}):
        raise Undroppable(f"what stays would hold the tensor '{stray[0]}', for which the new model has no place")
    before, after = _windowed(source), _windowed(new)
    numbers = {mix.base: place for place, mix in enumerate(choice.kept)}
    for place, mix in enumerate(choice.kept):
        if difference := _difference(before.layers[mix.base], after.layers[place]):
            raise Undroppable(f"block {mix.base} would be another one as block {place}: {difference}")
        if not _alike(before.probe.calls[mix.base], after.probe.calls[place], numbers):
            raise Undroppable(f"block {mix.base} would be called in another way (mask or positions) as block {place}")


@torch.inference_mode()
def check_outputs(source: Checkpoint, choice: Choice, new: Checkpoint, device: torch.device) -> None:
    """Raise Undroppable where one short sequence goes through the new model in another way."""
    generator = torch.Generator().manual_seed(0)
    length = min(TOKENS, source.context)
    ids_1T = torch.randint(source.vocabulary, (1, length), generator=generator)
    olds, places = [mix.base for mix in choice.kept], range(len(choice.kept))
    old_outputs = _outputs(source, olds, choice.kept, source, ids_1T, device)
    new_outputs = _outputs(new, places, choice.kept, source, ids_1T, device)
    befores = list(old_outputs)
    for step, (before, after) in enumerate(zip(befores, new_outputs, strict=True)):
        if before.shape == after.shape and _close(before, after):
            continue
        if step == 0:
            raise Undroppable("what the first block reads depends on the number of blocks")
        if step > len(olds):
            raise Undroppable("what follows the last block depends on the number of blocks")
        where = f"block {olds[step - 1]} would compute something else as block {step - 1}"
        raise Undroppable(f"{where}: it depends on its place, or on what a block that would go leaves")


def _outputs(
    model: Checkpoint,
    indices: Sequence[int],
    mixes: Sequence[Mix],
    source: Checkpoint,
    ids_1T: Tensor,
    device: torch.device,
) -> Iterator[Tensor]:
    """What the first block reads, what each of these blocks gives out, and what the head reads."""
    runner, batch = Runner(model.config, model.tensors, source.dtype, device), Batch(ids_1T)
    rows_1TW = runner.embed(batch)
    yield rows_1TW.cpu()
    for index, mix in zip(indices, mixes, strict=True):
        block = runner.make_block(index, model.read_block(index) if mix.is_copy else mix.tensors(source))
        try:
            rows_1TW = runner.run_block(block, rows_1TW, batch)
        except Exception as error:  # the model's own code, which misses what another block would have left
            reason = f"{type(error).__name__}: {one_line(error)[:80]}"
            raise Undroppable(f"block {mix.base} does not run without those that would go ({reason})") from error
        yield rows_1TW.cpu()
    if runner.architecture.head is not None:
        yield runner.states(rows_1TW, batch).cpu()


def _close(before: Tensor, after: Tensor) -> bool:
    """Whether two tensors are equal but for rounding; where one holds NaN, so does the other."""
    before, after = before.double(), after.double()
    scale = before.nan_to_num(posinf=0, neginf=0).abs().max().item()
    return torch.allclose(before, after, rtol=0, atol=TOLERANCE * max(scale, 1e-30), equal_nan=True)


def _renamed(source: Checkpoint, choice: Choice, name: str) -> str:
    for new, mix in enumerate(choice.kept):
        if name in source.block_tensors(mix.base):
            return source.renumbered(name, mix.base, new)
    return name


def _windowed(model: Checkpoint) -> Architecture:
    """The architecture with sliding windows so short that they show on the few tokens of a probe."""
    config = deepcopy(model.config)
    text: PreTrainedConfig = config.get_text_config(decoder=True)
    changed = False
    for name, value in list(vars(text).items()):
        is_window = "window" in name and "layers" not in name
        if is_window and type(value) is int and value > _PROBE_WINDOW:
            setattr(text, name, _PROBE_WINDOW)
            changed = True
    return Architecture(config, torch.float32) if changed else model.architecture


def _difference(before: nn.Module, after: nn.Module) -> str | None:
    """What tells two blocks apart by their modules' settings, None if nothing does."""
    olds, news = settings_of(before), settings_of(after)
    olds, news = ({n: v for n, v in s.items() if not n.endswith(_FOR_OTHERS)} for s in (olds, news))
    for name in sorted({*olds, *news}):
        old, new = olds.get(name), news.get(name)
        if old != new:
            return f"{name} is {old} and would be {new}"
    return None


def _alike(before: Call, after: Call, numbers: Mapping[int, int]) -> bool:
    """Whether a block is called with the same values. numbers: the new number of a block by its old one."""
    olds, news = list(leaves(list(before))), list(leaves(list(after)))
    if before.kwargs.keys() != after.kwargs.keys() or len(olds) != len(news):
        return False
    return all(_equal(a, b, numbers) for a, b in zip(olds, news, strict=True))


def _equal(a: Any, b: Any, numbers: Mapping[int, int]) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Carried):
        return isinstance(b, Carried) and (numbers[a.block], a.place) == b
    return type(a) is type(b)
