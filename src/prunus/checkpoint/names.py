"""Convert between the tensors stored on disk and those of transformers' modules, one block at a time.

transformers renames and converts many checkpoints when it loads them: experts stored one by one are joined into one
tensor, a fused projection is split into several. Its own conversion mapping says how, so this file needs no table of
models. From the mapping follows which stored tensors each module needs; reversed, it yields the tensors to store.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.pytorch_utils import Conv1D

from prunus.errors import PrunusError


class Origin(NamedTuple):
    """The stored tensors from which some tensors of a model are made.

    targets: the names of those in the model. sources: (pattern, name on disk) of the stored ones. converter:
    transformers' conversion; None if the only source is the tensor itself, or its transpose.
    """

    targets: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    converter: WeightConverter | None
    transposed: bool = False

    @property
    def stored(self) -> list[str]:
        """Names on disk of the sources."""
        return [name for _, name in self.sources]

    def of_number(self, number: int) -> "Origin":
        """The Origin with only the sources of this number, such as those of an expert; itself if no source has it."""
        sources = [(pattern, name) for pattern, name in self.sources if _number_in(pattern, name) == str(number)]
        return self._replace(sources=tuple(sources)) if sources else self

    def slices(self) -> "list[Origin]":
        """The Origins of the slices along the first axis, such as those of each expert; empty if there are none.

        The slice of each number must be made of the sources of that number alone.
        """
        first = None if self.converter is None else self.converter.operations[0]
        if not isinstance(first, MergeModulelist) or first.dim != 0 or len(self.targets) != 1:
            return []
        by_number: dict[str | None, list[tuple[str, str]]] = {}
        for pattern, name in self.sources:
            by_number.setdefault(_number_in(pattern, name), []).append((pattern, name))
        numbers = [str(number) for number in range(len(by_number))]
        if set(by_number) != set(numbers):
            return []
        return [self._replace(sources=tuple(by_number[number])) for number in numbers]

    def in_order(self) -> list[str]:
        """Names on disk of the sources in the order in which the conversion takes them."""
        if self.converter is None:
            return self.stored
        patterns = list(self.converter.source_patterns)
        return [name for _, name in sorted(self.sources, key=lambda source: patterns.index(source[0]))]

    def lacking(self) -> str | None:
        """Name on disk of a numbered tensor (an expert's) that is missing though others with its number exist."""
        names: dict[str, dict[str, str]] = {}  # pattern -> number -> the name with * in place of the number
        for pattern, name in self.sources:
            match = re.search(numbered(pattern), name)
            if match is not None and match.groups():
                names.setdefault(pattern, {})[match[1]] = f"{name[: match.start(1)]}*{name[match.end(1) :]}"
        every = sorted({number for of_pattern in names.values() for number in of_pattern}, key=int)
        absent = [(of, number) for of in names.values() for number in every if number not in of]
        return next((next(iter(of.values())).replace("*", number) for of, number in absent), None)


class Names:
    """How the tensors of a model correspond to those on disk.

    origins: name in the model -> Origin. unknown: names on disk that belong to no module.
    """

    def __init__(self, model: PreTrainedModel, stored: Iterable[str]) -> None:
        self._model = model
        transforms = get_model_conversion_mapping(model)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        of_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        wanted, base = model.state_dict(), model.base_model_prefix
        sources: dict[str, list[tuple[str, str]]] = {}
        converter_of: dict[str, WeightConverter] = {}
        self.unknown: list[str] = []
        for name in sorted(stored, key=_natural):
            target, pattern = rename_source_key(name, renamings, converters, base, wanted)
            if target not in wanted and name in wanted:  # a renaming that does not apply to this name
                target, pattern = name, None
            if target not in wanted:
                self.unknown.append(name)
                continue
            sources.setdefault(target, []).append((pattern or name, name))
            if pattern is not None:
                converter_of[target] = of_pattern[pattern]
        self.origins: dict[str, Origin] = {}
        transposed = transposed_weights(model)
        for target, pairs in sources.items():
            targets = _targets(target, converter_of.get(target))
            origin = Origin(targets, tuple(pairs), converter_of.get(target), target in transposed)
            self.origins |= dict.fromkeys(targets, origin)
        # For a tensor that several modules share: each name that is not on disk -> one that is.
        self._alias: dict[str, str] = {}
        for names in _shared_names(model):
            if stored_names := [name for name in names if name in self.origins]:
                self._alias |= {name: stored_names[0] for name in names if name not in self.origins}
        # revert_weight_conversion reads here which transforms were used, as after transformers' own loading.
        vars(model)["_weight_conversions"] = [t for t in transforms if t.was_used()]

    @property
    def is_shared(self) -> bool:
        """Whether blocks share weights with other blocks."""
        return any(re.search(r"\.\d+\.", name) for name in self._alias)

    def origin(self, name: str) -> Origin | None:
        """The Origin of a tensor of the model; None if it is made from nothing on disk."""
        return self.origins.get(self._alias.get(name, name))

    def stored_for(self, names: Iterable[str]) -> list[str]:
        """Names on disk of all tensors from which these tensors of the model are made."""
        return [name for origin in self._origins_of(names) for name in origin.stored]

    def read(self, names: Collection[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Tensors of the model by name. read: returns a stored tensor by its name on disk; called only where needed."""
        tensors: dict[str, Tensor] = {}
        for origin in self._origins_of(names):
            if origin.converter is None:
                tensor = read(origin.sources[0][1])
                tensors[origin.targets[0]] = tensor.T.contiguous() if origin.transposed else tensor
            else:
                tensors |= self.convert(origin, read)
        return tensors | {name: tensors[self._alias[name]] for name in names if name in self._alias}

    def as_stored(self, changed: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The tensors to store for changed tensors of the model, by their names on disk, in their stored shapes.

        Tensors that share an Origin with a changed one are read, to be stored with it. Raises PrunusError if
        transformers cannot reverse a conversion.
        """
        tensors: dict[str, Tensor] = {}
        changed = {self._alias.get(name, name): tensor for name, tensor in changed.items()}
        for origin in self._origins_of(changed):
            if origin.converter is None:
                tensor = changed[origin.targets[0]]
                tensors |= dict.fromkeys(origin.stored, tensor.T.contiguous() if origin.transposed else tensor)
                continue
            whole = {name: changed[name] for name in origin.targets if name in changed}
            if len(whole) < len(origin.targets):
                whole = self.convert(origin, read) | whole
            tensors |= self._reverted(origin, whole)
        return tensors

    def _reverted(self, origin: Origin, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors of an Origin, from the model's tensors; slices stored one by one are views of these."""
        slices = origin.slices()
        if not slices:
            return self._revert(origin, whole)
        # The conversion of a single slice yields tensors with number 0 in their names, whichever slice it is.
        ((name, whole_E),) = whole.items()
        of_first, tensors = dict(slices[0].sources), dict[str, Tensor]()
        for number, own in enumerate(slices):
            made = self._revert(slices[0], {name: whole_E[number : number + 1]})
            tensors |= {mine: made[of_first[pattern]] for pattern, mine in own.sources}
        return tensors

    def _revert(self, origin: Origin, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors of an Origin by transformers' conversion. Raises PrunusError if it cannot be reversed."""
        made: dict[str, Tensor] = revert_weight_conversion(self._model, dict(whole))
        if missing := set(origin.stored) - set(made):
            raise PrunusError(
                f"this version of transformers cannot convert '{origin.targets[0]}' back into '{min(missing)}'"
            )
        return {name: made[name].contiguous() for name in origin.stored}

    def _origins_of(self, names: Iterable[str]) -> list[Origin]:
        stored_names = (self._alias.get(name, name) for name in names)
        origins = [self.origins[name] for name in stored_names if name in self.origins]
        return list({origin.targets[0]: origin for origin in origins}.values())

    def convert(self, origin: Origin, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The tensors that transformers' conversion makes of an Origin's sources.

        Slices are filled in turn: there is never a second copy.
        """
        converter: Any = deepcopy(origin.converter)

        def made(some: Origin) -> dict[str, Tensor]:
            for pattern, name in some.sources:
                converter.add_tensor(origin.targets[0], name, pattern, lambda name=name: read(name))
            converted = converter.convert(origin.targets[0], model=self._model, config=self._model.config)
            return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}

        slices = origin.slices()
        if len(slices) < 2:
            return made(origin)
        ((name, first),) = made(slices[0]).items()
        whole = first.new_empty(len(slices), *first.shape[1:])
        whole[0] = first[0]
        for number, own in enumerate(slices[1:], 1):
            part = made(own)[name]
            if part.dtype != whole.dtype:
                return made(origin)
            whole[number] = part[0]
        return {name: whole}


def _number_in(pattern: str, name: str) -> str | None:
    """The number that stands for the * of a pattern in a name; None if the pattern has no *."""
    match = re.search(numbered(pattern), name)
    return match[1] if match is not None and match.groups() else None


def numbered(pattern: str) -> str:
    """A regular expression for a pattern of transformers, with a group for the number that stands for its *."""
    return re.escape(pattern.replace(r"\.", ".")).replace(r"\*", r"(\d+)")


def _natural(name: str) -> Any:
    """A sort key for transformers' order of names. Digits that int() refuses, which no real name has, sort last."""
    try:
        return 0, dot_natural_key(name)
    except ValueError:
        return 1, name


def _shared_names(model: PreTrainedModel) -> list[list[str]]:
    """The names of each parameter that has more than one."""
    named: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), []).append(name)
    return [names for names in named.values() if len(names) > 1]


def _targets(first: str, converter: WeightConverter | None) -> tuple[str, ...]:
    """Names in the model of all tensors that a converter makes; transformers names only the first."""
    if converter is None:
        return (first,)
    head, *others = converter.target_patterns
    return (first, *(first.replace(head, other) for other in others))


class TransposedLinear(nn.Linear):
    """A Linear with the weight (O, I), as pruning needs it, whose output equals the Conv1D's bit by bit.

    A Conv1D is GPT-2's form of a Linear; its weight is stored transposed, as (I, O).
    """

    def __init__(self, conv: Conv1D) -> None:
        super().__init__(conv.nx, conv.nf, device="meta", dtype=conv.weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        weight_IO = self.weight.T.contiguous()  # the memory layout of Conv1D, so that sums have the same order
        return torch.addmm(self.bias, input.reshape(-1, self.in_features), weight_IO).unflatten(0, input.shape[:-1])


def replace_conv1d(model: nn.Module) -> None:
    """Replace every Conv1D of a model by a TransposedLinear, which has no values yet, in place."""
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, Conv1D):
                setattr(owner, name, TransposedLinear(child))


def transposed_weights(model: nn.Module) -> set[str]:
    """Names of the weights that are stored as (I, O)."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, TransposedLinear)}
