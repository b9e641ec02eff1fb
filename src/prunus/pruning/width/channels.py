"""The channels of a model's feed-forward networks: which tensors have them, those tensors with fewer, and a check.

There is no table of model types. The model is also made, without weights, with a field of config.json a little larger;
what has become longer has channels along that axis. It must all belong to networks of Linears: one, down, reads the
channels, and others, such as gate and up, give them. If anything else changes with the field, such as the state of a
mamba mixer or a norm over the channels, the field is refused. A Linear that gives two entries per channel is gate and
up in one, one after the other or channel by channel. Which of the two, and that channels do not depend on each other,
is seen at the input of down when outputs of the others change.

Only the names of fields are listed here. What is written is checked: a block without some channels computes what the
whole block does where they are 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from prunus.checkpoint.architecture import Carried, find_layers
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.experts import layouts_in, place_of, split_tensors
from prunus.checkpoint.linears import giving_zeros, is_linear, shares_state, signature
from prunus.checkpoint.loader import return_freed_memory
from prunus.checkpoint.resolve import one_line
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.safetensors_file import READABLE, Stored, entry_of
from prunus.errors import PrunusError
from prunus.pruning.experts.mixtures import name_of, run_hollow, span
from prunus.pruning.planned import Json, changed_config, compare_blocks, growth, outside, planned_checkpoint, remade
from prunus.pruning.scope import Use

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Of = Literal["mlp", "experts", "shared"]
Changed = Mapping[str, tuple[int, int]]  # of a block's tensors: (axis, by how much one is longer along it)

# Fields of a configuration with the width of feed-forward networks. Those that a model does not have, or that change
# nothing, are passed over.
FIELDS = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
    "dense_intermediate_size",
    "n_inner",
    "ffn_dim",
    "ffn_hidden_size",
    "mlp_hidden_size",
    "dff",
    "intermediate_multiple_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "moe_shared_expert_intermediate_size",
)
# Settings by which a model rounds such a field. They are turned off, and the field says the width itself.
ROUNDING = ("block_auto_adjust_ff_dim",)
# By how much a field is changed: some types halve it or round it.
_STEPS = (1, 8, 256)
_NAMES: dict[Of, str] = {"experts": "routed experts", "mlp": "dense feed-forward networks", "shared": "shared experts"}


class Unnarrowable(PrunusError):
    """Channels of a model cannot be removed; the message says why."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of a block has the channels of a unit.

    name: of the tensor within the block, as Checkpoint.read_block gives it. axis: along which it has them. parts: the
    number of entries per channel along that axis. interleaved: whether the entries of a channel are adjacent; else the
    first ones of all channels come first. expert: the entry along axis 0 that belongs to the unit, of a tensor of all
    experts; None if the tensor is the unit's alone.
    """

    name: str
    axis: int
    parts: int = 1
    interleaved: bool = False
    expert: int | None = None

    def by_channel(self, whole: Tensor) -> tuple[Tensor, int]:
        """(a view of the unit's part of the tensor, in which channels have an axis to themselves; that axis)."""
        own, axis = (whole, self.axis) if self.expert is None else (whole[self.expert], self.axis - 1)
        sizes = (-1, self.parts) if self.interleaved else (self.parts, -1)
        return own.unflatten(axis, sizes), axis + (not self.interleaved)

    def of_channels(self, whole: Tensor, channels: Sequence[int]) -> Tensor:
        """The unit's part of the tensor with these channels alone, in this order, in new memory."""
        view, axis = self.by_channel(whole)
        first = axis - (not self.interleaved)
        return view.index_select(axis, torch.tensor(channels, device=whole.device)).flatten(first, first + 1)


@dataclass(frozen=True)
class Field:
    """A field of config.json with the width of units. per: what it counts for each channel, mostly 1. off: settings
    that round it, to be turned off."""

    name: str
    per: Fraction
    off: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unit:
    """A feed-forward network of block `index`: the block's only one (mlp), a routed expert, or one beside those.

    down: name of the Linear within the block (an expert's with its number) whose inputs are the channels. width: their
    number. places: where they are. times: how many channels it has for each one of the
    narrowest units that the same field is for: 2 for two shared experts in one network, beside routed ones.
    """

    index: int
    of: Of
    down: str
    width: int
    places: tuple[Place, ...]
    times: int
    field: Field

    def laid_out(self, interleaved: bool) -> "Unit":
        """The unit with its fused tensors in this layout."""
        return replace(self, places=tuple(replace(place, interleaved=interleaved) for place in self.places))


def find_units(source: Checkpoint, of: Of | None = None) -> list[Unit]:
    """All units whose width one field of config.json says, in the order of blocks. Raises Unnarrowable if none can be.

    of: the kind that is wanted; None: the first that works of routed experts, dense networks and shared experts. The
    field may be for units of other kinds, too, which are then narrowed with them.
    """
    _check_readable(source)
    by_field, failures = units_by_field(source)
    kinds: dict[Of, list[Unit]] = {}
    for units in by_field.values():
        kinds.setdefault(_main(units), units)
    of = of or next((kind for kind in _NAMES if kind in kinds), None)
    if of and of in kinds:
        return kinds[of]
    for units in by_field.values():
        if of and any(unit.of == of for unit in units):
            other = _main(units)
            raise Unnarrowable(
                f"{name_of(source)}: {units[0].field.name} is the width of its {_NAMES[of]} and of its"
                f" {_NAMES[other]}, so they are narrowed together; use `--of {other}`"
            )
    if failures:
        raise Unnarrowable(f"{name_of(source)}: {next(iter(failures.values()))}")
    if of is None or not by_field:
        raise Unnarrowable(f"{name_of(source)}: no known field of config.json says the width of feed-forward networks")
    has = " or ".join(f"`--of {kind}`" for kind in kinds)
    raise Unnarrowable(f"{name_of(source)} has no {_NAMES[of]} whose width a field of config.json says; use {has}")


def of_blocks(units: Sequence[Unit]) -> dict[int, list[Unit]]:
    """Units by their block."""
    by_block: dict[int, list[Unit]] = {}
    for unit in units:
        by_block.setdefault(unit.index, []).append(unit)
    return by_block


def base_width(units: Sequence[Unit]) -> int:
    """The width that config.json says of these units: that of those with `times` 1."""
    widths = sorted({unit.width // unit.times for unit in units})
    if len(widths) > 1:
        raise Unnarrowable(
            f"blocks have from {widths[0]} to {widths[-1]} channels ({units[0].field.name}), and only equal widths can"
            " be changed"
        )
    return widths[0]


def describe_width(source: Checkpoint) -> list[Use]:
    """A row for `prunus inspect`: whether channels can be removed, of what, and how many there are."""
    try:
        _check_readable(source)
        by_field, failures = units_by_field(source)
        if not by_field:
            find_units(source)
    except Unnarrowable as error:
        return [Use(use="width", possible=False, note=str(error))]
    notes = [
        f"{' and '.join(dict.fromkeys(_NAMES[unit.of] for unit in units))} of {_blocks(len({u.index for u in units}))}:"
        f" {span(unit.width // unit.times for unit in units)} channels ({field})"
        for field, units in by_field.items()
    ]
    return [Use(use="width", possible=True, note="; ".join([*notes, *failures.values()]))]


def _blocks(number: int) -> str:
    return f"{number} block{'' if number == 1 else 's'}"


def _main(units: Sequence[Unit]) -> Of:
    """The kind that stands for all units of a field in `--of`: the first kind of _NAMES that they have."""
    return next(kind for kind in _NAMES if any(unit.of == kind for unit in units))


def _check_readable(source: Checkpoint) -> None:
    if source.quantised is not None:
        raise Unnarrowable(
            f"{source.folder} is quantised ({source.quantised}), and channels are removed from plain weights only; run"
            " `prunus dequantize` on it first"
        )
    if source.names.is_shared:
        raise Unnarrowable(f"{name_of(source)}: blocks share weights, so they cannot be narrowed one by one")


@lru_cache(maxsize=4)
def units_by_field(source: Checkpoint) -> tuple[dict[str, list[Unit]], dict[str, str]]:
    """The units of each field, and why other fields that change something cannot be used.

    Cached, since it makes several models: seconds of a study's start for each recipe, where there are many experts.
    """
    text, by_field, failures = source.text_config, dict[str, list[Unit]](), dict[str, str]()
    known = {*text.to_dict(), *getattr(text, "attribute_map", {})}
    seen: set[str] = set()
    for name in FIELDS:
        if name not in known or (real := _spellings(text, name)[0]) in seen:
            continue
        seen.add(real)
        try:
            units = _units_of_field(source, name)
        except Unnarrowable as error:
            failures[name] = str(error)
            continue
        if units:
            by_field[name] = units
    return by_field, failures


def _spellings(text: object, name: str) -> list[str]:
    """All names of a field: that of the configuration's own first, and its aliases."""
    aliases: dict[str, str] = getattr(text, "attribute_map", {})
    real = aliases.get(name, name)
    return list(dict.fromkeys([real, name, *(alias for alias, of in aliases.items() if of == real)]))


def _units_of_field(source: Checkpoint, name: str) -> list[Unit]:
    """The units whose width a field says; empty if it changes nothing. Unnarrowable if it changes anything else."""
    off = tuple(flag for flag in ROUNDING if getattr(source.text_config, flag, False))
    value = getattr(source.text_config, name)
    numbers: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    if not all(number is None or type(number) is int for number in numbers):
        return []
    as_it_is = value is not None and not off
    reasons: list[str] = []
    for step in _STEPS:
        try:
            start = source.architecture.model if as_it_is else _with_field(source, name, 64, off)
            longer = _with_field(source, name, _larger(value, step) if as_it_is else 64 + step, off)
        except Exception as error:  # raised by the model's own code for a size that it does not expect
            reasons.append(f"a model with another {name} cannot be made ({one_line(error)[:120]})")
            continue
        try:
            changed = _changed(start, longer, name)
            if any(changed.values()):
                return _units(source, name, step, changed, off)
        except Unnarrowable as error:  # or rounding, which a larger step does away with
            reasons.append(str(error))
    if reasons:
        raise Unnarrowable(reasons[0])
    return []


def _larger(value: Any, step: int) -> Any:
    return type(value)(number + step for number in value) if isinstance(value, list | tuple) else value + step


def _with_field(source: Checkpoint, name: str, value: object, off: Sequence[str]) -> Any:
    return remade(source, {name: value, **dict.fromkeys(off, False)})


def _changed(before: "PreTrainedModel", after: "PreTrainedModel", name: str) -> dict[int, Changed]:
    """For each block, its tensors that differ between two models."""
    (prefix, layers), (_, longer) = find_layers(before), find_layers(after)
    outside = (
        {n: t for n, t in model.state_dict().items() if not n.startswith(f"{prefix}.")} for model in (before, after)
    )
    if outer := next(iter(growth(*outside)), None):
        raise Unnarrowable(f"{name} also changes {outer}, which is in no block")
    by_block: dict[int, Changed] = {}
    for index, pair in enumerate(zip(layers, longer, strict=True)):
        tensors, others = map(_tensors, pair)
        by_block[index] = growth(tensors, others)
        for local, (axis, _) in by_block[index].items():
            if axis < 0 or len(tensors) != len(others):
                raise Unnarrowable(f"{name} is not only a number of channels: it changes {local} of block {index}")
    return by_block


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    return split_tensors(layouts_in(layer), layer.state_dict())


def _units(
    source: Checkpoint, name: str, step: int, changed: Mapping[int, Changed], off: tuple[str, ...]
) -> list[Unit]:
    """The units of all blocks. changed: as _changed gives it, for a field `name` that is larger by `step`."""
    least = min(grown for of_block in changed.values() for _, grown in of_block.values())
    field = Field(name, Fraction(step, least), off)
    known: dict[Any, Sequence[bool]] = {}
    carried: dict[Carried, Any] = {}
    all_units: list[Unit] = []
    for index, of_block in changed.items():
        units = _units_of_block(source, index, field, of_block, least)
        plain = [unit for unit in units if unit.of != "experts"]
        kind = index if source.architecture.carried else signature(source.architecture.layers[index])
        if kind not in known:
            known[kind] = [_is_interleaved(source, unit, carried) for unit in plain]
            if source.architecture.carried and not plain:
                run_hollow(source, index, carried)
        layouts = iter(known[kind])
        all_units += [unit if unit.of == "experts" else unit.laid_out(next(layouts)) for unit in units]
    return all_units


def _units_of_block(source: Checkpoint, index: int, field: Field, changed: Changed, least: int) -> list[Unit]:
    """The units of a block that the changed tensors belong to; fused Linears are taken as not interleaved.

    least: by how much the narrowest unit of the model is wider. Unnarrowable if a changed tensor belongs to no unit.
    """
    layer = source.architecture.layers[index]
    tensors, layouts = _tensors(layer), layouts_in(layer)
    linears = {linear.name: linear for linear in source.linears(index) if linear.kind == "mlp"}
    downs = [n for n in linears if changed.get(f"{n}.weight", (0, 0))[0] == 1]
    owners = {down.rpartition(".")[0]: down for down in downs}
    places: dict[str, list[Place]] = {down: [] for down in downs}

    def refuse(tensor: str) -> NoReturn:
        dense = source.left_dense(index)
        reason = dense.get(tensor, dense.get(tensor.removesuffix(".weight"), "not a Linear"))
        small = "too few outputs or inputs"
        if any(dense.get(name.removesuffix(".weight")) == small for name in changed):
            reason = small
        why = "" if reason == "not a Linear" else f" ({reason})"
        raise Unnarrowable(
            f"{field.name} is not the width of feed-forward networks of Linears alone: {tensor} of block {index} has"
            f" it, too{why}"
        )

    if len(owners) < len(downs):
        refuse(f"{downs[-1]}.weight")
    for tensor, (axis, grown) in changed.items():
        words = tensor.split(".")
        fused = next(
            (layout for layout in layouts if tensor in {f"{layout.fused(part)}_bias" for part in layout.parts}), None
        )
        if fused is not None and axis == 1:
            owning = {expert: fused.linear(expert, "down_proj") for expert in range(fused.experts)}
        elif ".".join(words[:-1]) in linears and words[-1] in ("weight", "bias"):
            modules = (".".join(words[:count]) for count in reversed(range(len(words))))
            owning = {None: next((owners[module] for module in modules if module in owners), "")}
        else:
            refuse(tensor)
        for expert, down in owning.items():
            if down not in downs or grown % changed[f"{down}.weight"][1]:
                refuse(tensor)
            parts = grown // changed[f"{down}.weight"][1]
            mixed = expert is not None and fused is not None and not fused.concatenated
            places[down].append(Place(tensor, axis, parts, mixed and parts > 1, expert))
    units: list[Unit] = []
    for down, of_unit in places.items():
        if len(of_unit) < 2:
            refuse(f"{down}.weight")
        times, rest = divmod(changed[f"{down}.weight"][1], least)
        if rest:
            raise Unnarrowable(f"{down} of block {index} does not have a whole number of channels for each one")
        of: Of = "experts" if place_of(layouts, down) else "shared" if layouts else "mlp"
        units.append(Unit(index, of, down, tensors[f"{down}.weight"].shape[1], tuple(of_unit), times, field))
    return units


# How channels depend on the outputs of Linears


def _is_interleaved(source: Checkpoint, unit: Unit, carried: dict[Carried, Any]) -> bool:
    """Whether gate and up in a fused Linear are interleaved. Raises Unnarrowable if channels depend on each other.

    The block runs without weights, and with other outputs of the Linears that give the channels; in what the down
    projection reads, exactly the channels of the outputs that were changed must differ.
    """
    none_I = torch.zeros(unit.width, dtype=torch.bool)
    some_I = none_I.index_fill(0, torch.tensor([0, unit.width // 3, unit.width - 1]), True)

    def read(changed_I: Tensor, interleaved: bool = False) -> Tensor:
        outputs: dict[str, Tensor] = {}
        for place in unit.laid_out(interleaved).places:
            if place.axis == 0 and place.name.endswith(".weight"):
                size = place.parts * unit.width
                made_O = torch.rand(size, generator=torch.Generator().manual_seed(size)) + 0.5
                view, axis = place.by_channel(made_O)
                view.movedim(axis, -1).add_(0.25 * changed_I)
                outputs[place.name.removesuffix(".weight")] = made_O
        return _read_by_down(source, unit, outputs, carried)

    before = read(none_I)
    fused = any(place.parts > 1 for place in unit.places)
    for interleaved in (False, True) if fused else (False,):
        if torch.equal((read(some_I, interleaved) != before).flatten(0, -2).any(0), some_I):
            return interleaved
    raise Unnarrowable(
        f"{unit.field.name}: channels of {unit.down} of block {unit.index} depend on each other, so none can be removed"
        " alone"
    )


def _read_by_down(source: Checkpoint, unit: Unit, outputs: Mapping[str, Tensor], carried: dict[Carried, Any]) -> Tensor:
    """Input of a unit's down Linear where other Linears give these outputs for every token, without weights."""
    layer = source.architecture.layers[unit.index]
    seen: list[Tensor] = []
    with giving_zeros(module for module in layer.modules() if isinstance(module, nn.Linear) and is_linear(module)):
        for name, made_O in outputs.items():
            layer.get_submodule(name).forward = _giving(made_O)
        with layer.get_submodule(unit.down).register_forward_pre_hook(lambda _module, args: seen.append(args[0])):
            run_hollow(source, unit.index, carried)
    if not seen:
        raise Unnarrowable(f"{unit.down} of block {unit.index} is not called")
    return seen[0]


def _giving(made_O: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda input: made_O.to(input.dtype).expand(*input.shape[:-1], len(made_O))


# The tensors and config.json of a narrower model


def narrowed(
    tensors: Mapping[str, Tensor], units: Sequence[Unit], kept: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The tensors of a block with only some channels of its units, in new memory; the others are the given ones.

    kept: the channels of each unit by its down, in the order in which they will be. Experts of a block keep equally
    many, and are in order.
    """
    narrow = dict(tensors)
    of_experts: dict[str, list[Tensor]] = {}
    for unit in units:
        for place in unit.places:
            some = place.of_channels(tensors[place.name], kept[unit.down])
            if place.expert is None:
                narrow[place.name] = some
            else:
                of_experts.setdefault(place.name, []).append(some)
    return narrow | {name: torch.stack(of_each) for name, of_each in of_experts.items()}


def zeroed(
    tensors: Mapping[str, Tensor], units: Sequence[Unit], kept: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The tensors of a block whose downs ignore the channels that are not kept: `narrowed` must compute the same.

    Changed tensors are in new memory. kept: as for narrowed.
    """
    result = dict(tensors)
    for unit in units:
        gone = sorted(set(range(unit.width)) - set(kept[unit.down]))
        name = f"{unit.down}.weight"
        result[name] = result[name].index_fill(1, torch.tensor(gone), 0)
    return result


def narrow_config(source: Checkpoint, units: Sequence[Unit], width: int) -> dict[str, object]:
    """The content of config.json where these units, all of a field, have another width, as base_width counts it.

    Raises Unnarrowable for a width that is not smaller, and for a width that the field cannot say.
    """
    field, before = units[0].field, base_width(units)
    if not 1 <= width < before:
        raise Unnarrowable(f"{width} channels are none that {before} can be narrowed to; choose 1 to {before - 1}")
    value = width * field.per
    if value.denominator > 1:
        raise Unnarrowable(
            f"{name_of(source)}: {field.name} cannot say a width of {width} channels, as it counts"
            f" {field.per.denominator} at a time; choose a multiple of them"
        )
    text = source.text_config

    def change(content: Json) -> Json:
        names = _spellings(text, field.name)
        own = getattr(text, field.name)
        new = {**content}
        for name in [name for name in names if name in content] or names[:1]:
            old = content.get(name, own)
            new[name] = [int(value)] * len(old) if isinstance(old, list | tuple) else int(value)
        return new | dict.fromkeys(field.off, False)

    return changed_config(source, change)


def narrow_model(source: Checkpoint, units: Sequence[Unit], width: int) -> Checkpoint:
    """The narrower model, before it is written."""
    return planned_checkpoint(source, narrow_config(source, units, width), planned_tensors(source, units, width))


def planned_tensors(source: Checkpoint, units: Sequence[Unit], width: int) -> dict[str, Stored]:
    """All tensors of the narrower model, by their names on disk; those that lose channels have no file yet."""
    tensors, of_block = outside(source), of_blocks(units)
    known: dict[Any, tuple[int, dict[str, Stored]]] = {}
    for index in range(source.blocks):
        stored = source.block_tensors(index)
        tensors |= stored
        if index not in of_block:
            continue
        kind = signature(source.architecture.layers[index])
        if kind not in known:
            known[kind] = index, _narrower(source, index, of_block[index], width)
        first, made = known[kind]
        made = {source.renumbered(name, first, index): entry for name, entry in made.items()}
        tensors |= made if made.keys() <= stored.keys() else _narrower(source, index, of_block[index], width)
    return tensors


def _narrower(source: Checkpoint, index: int, units: Sequence[Unit], width: int) -> dict[str, Stored]:
    """The stored tensors of a block that lose channels, before they are written."""
    stored = source.block_tensors(index)
    whole = source.as_block(index, lambda name: _hollow(source.tensors[name]))
    kept = {unit.down: range(width * unit.times) for unit in units}
    made = {name: entry_of(t) for name, t in source.as_stored(index, narrowed(whole, units, kept)).items()}
    return {name: entry for name, entry in made.items() if name in stored and stored[name].shape != entry.shape}


def _hollow(stored: Stored) -> Tensor:
    return torch.empty(stored.shape, dtype=READABLE[stored.dtype], device="meta")


# Check


def verify(source: Checkpoint, new: Checkpoint, units: Sequence[Unit], device: torch.device) -> float:
    """The largest relative difference between narrow blocks and those of source where the same channels are 0.

    new: the planned model. As many channels as it has are chosen at random, and of blocks that pass on nothing but
    hidden states one of each kind is checked. Raises Unnarrowable where a block computes something else.
    """
    of_block = of_blocks(units)

    def outputs(old: Runner, made: Runner, index: int, rows_1TW: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        own, tensors, twin = of_block[index], source.read_block(index), batch.copy()
        chosen = random_channels(new, own)
        before_1TW = old.run_block(old.make_block(index, zeroed(tensors, own, chosen)), rows_1TW, batch)
        return_freed_memory()
        return before_1TW, made.run_block(made.make_block(index, narrowed(tensors, own, chosen)), rows_1TW, twin)

    than = "without some channels than where they are 0"
    alone = not shares_state(source.architecture)
    kinds = {signature(source.architecture.layers[index]): index for index in sorted(of_block, reverse=True)}
    return compare_blocks(
        source, new, device, kinds.values() if alone else of_block, outputs, Unnarrowable, than, alone
    )


def random_channels(new: Checkpoint, units: Sequence[Unit], seed: int = 0) -> dict[str, list[int]]:
    """For each unit of a block as many channels as the new model has, at random, in ascending order, by its down."""
    generator, channels = torch.Generator().manual_seed(seed), dict[str, list[int]]()
    tensors = _tensors(new.architecture.layers[units[0].index])
    for unit in units:
        count = tensors[f"{unit.down}.weight"].shape[1]
        channels[unit.down] = torch.randperm(unit.width, generator=generator)[:count].sort()[0].tolist()
    return channels
