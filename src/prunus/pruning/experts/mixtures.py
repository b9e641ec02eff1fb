"""Mixtures of experts: which tensors of a block have an entry per expert, and how many experts it must keep.

There is no table of model types. The model is also made, without weights, with one more expert than it has; a tensor
that has become longer has an entry per expert along that axis, be it a matrix of experts, a router's weight, its bias
or a correction of its scores. Only the names of the field in config.json that counts experts are listed.

The router of a model that still has all experts can be kept from choosing some: their logits become minus infinity.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from posixpath import commonpath
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.checkpoint.architecture import Carried, find_layers, hollow, with_forwards
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.experts import experts_in
from prunus.checkpoint.linears import plain_experts
from prunus.errors import PrunusError
from prunus.pruning.planned import growth, remade
from prunus.pruning.scope import Use

# Fields of a configuration with the number of experts; models have one of them, and some a second as an alias.
NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class Unremovable(PrunusError):
    """Experts of a model cannot be removed; the message says why."""


@dataclass(frozen=True)
class Mixture:
    """The routed experts of block `index`.

    experts: name of their module within the block. count: number of experts. top_k: how many of them a token has. axes:
    for each tensor of the block with an entry per expert (by its name within the block) the axis of these entries.
    groups, group_limit: the router chooses among the experts of the group_limit best of `groups` groups of equal size;
    1 and 1 where there are no groups.
    """

    index: int
    experts: str
    count: int
    top_k: int
    axes: dict[str, int]
    groups: int
    group_limit: int

    @property
    def routing(self) -> list[str]:
        """The tensors with an entry per expert outside the experts: the router's weight, biases, corrections."""
        return [name for name in self.axes if not name.startswith(f"{self.experts}.")]

    def works_with(self, kept: int) -> bool:
        """Whether the router can choose among `kept` experts. It ranks groups by the sum of their best two."""
        size = kept // self.groups
        in_groups = kept % self.groups == 0 and size >= 2 and self.group_limit * size >= self.top_k
        return kept >= self.top_k and (self.groups == 1 or in_groups)

    def check(self, kept: int) -> None:
        """Raise Unremovable unless the block works with `kept` experts."""
        if self.works_with(kept):
            return
        groups = f", from {self.group_limit} of {self.groups} groups of equal size (n_group)" if self.groups > 1 else ""
        least = next(filter(self.works_with, range(1, self.count)), self.count)
        numbers = f"a multiple of {self.groups}, at least {least}" if self.groups > 1 else f"at least {least}"
        raise Unremovable(
            f"{kept} of {self.count} experts do not fit the router, which chooses {self.top_k} for each token{groups}:"
            f" keep {numbers}"
        )


def find_mixtures(source: Checkpoint) -> list[Mixture]:
    """The mixtures of a model's blocks, in order. Raises Unremovable without experts, or for an unknown kind of them.

    Blocks without a router, such as the first ones of many models, have none.
    """
    counts = expert_counts(source)
    more = [count + 1 for count in counts]
    text = source.text_config
    numbers = {name: more if isinstance(getattr(text, name), list | tuple) else more[0] for name in number_fields(text)}
    longer = find_layers(remade(source, numbers))[1]
    carried: dict[Carried, Any] = {}
    by_block = [
        _mixture(source, index, layer, after, counts[index], carried)
        for index, (layer, after) in enumerate(zip(source.architecture.layers, longer, strict=True))
    ]
    mixtures = [mixture for mixture in by_block if mixture is not None]
    if not mixtures:
        raise Unremovable(f"{name_of(source)} has no routed experts: no block has a router")
    return mixtures


def name_of(source: Checkpoint) -> str:
    """The folder and type of a model, for messages."""
    return f"{source.folder} ({source.config.model_type})"


def number_fields(text: object) -> list[str]:
    """The fields of a configuration of a language model that count its experts, aliases included."""
    aliases: dict[str, str] = getattr(text, "attribute_map", {})
    names = [name for name in NUMBERS if getattr(text, name, None) is not None]
    names += [alias for alias, name in aliases.items() if name in names]
    return list(dict.fromkeys(names))


def expert_counts(source: Checkpoint) -> list[int]:
    """The number of experts of each block as the configuration says it, whether or not the block has a router."""
    text = source.text_config
    for name in number_fields(text):
        value = getattr(text, name)
        if isinstance(value, int) and value > 1:
            return [value] * source.blocks
        if isinstance(value, list | tuple) and len(value) == source.blocks and all(isinstance(n, int) for n in value):
            return list(value)
    raise Unremovable(f"{name_of(source)} has no routed experts, so none can be removed")


def describe_removal(source: Checkpoint) -> list[Use]:
    """A row for `prunus inspect`: whether experts can be removed, and how many there are; none without experts."""
    try:
        expert_counts(source)
    except Unremovable:
        return []
    try:
        mixtures = find_mixtures(source)
    except Unremovable as error:
        return [Use(use="experts", possible=False, note=str(error))]
    first, number = mixtures[0], span(mixture.count for mixture in mixtures)
    groups = f", in {first.groups} groups" if first.groups > 1 else ""
    note = f"{number} experts in each of {len(mixtures)} blocks, of which a token uses {first.top_k}{groups}"
    return [Use(use="experts", possible=True, note=note)]


def span(numbers: Iterable[int]) -> str:
    """The range of some numbers as text: `6` if all are equal, else `4 to 7`."""
    chosen = sorted(set(numbers))
    return str(chosen[0]) if len(chosen) == 1 else f"{chosen[0]} to {chosen[-1]}"


def _mixture(
    source: Checkpoint, index: int, layer: nn.Module, longer: nn.Module, count: int, carried: dict[Carried, Any]
) -> Mixture | None:
    """The Mixture of a block; None if it has none. longer: the block with one more expert. carried: what earlier blocks
    pass on; this block's values are added."""
    before, after = layer.state_dict(), longer.state_dict()
    longer_by, same_names = growth(before, after), before.keys() == after.keys()
    if same_names and not longer_by:
        if source.architecture.carried:
            run_hollow(source, index, carried)
        return None
    modules = experts_in(layer)
    others = [name for name, (axis, more) in longer_by.items() if more != 1 or before[name].shape[axis] != count]
    if len(modules) != 1 or not same_names or others:
        raise Unremovable(
            f"{name_of(source)}, block {index}: its experts are not of the kind that transformers runs by its experts"
            " functions, so they cannot be removed"
        )
    experts, axes = next(iter(modules)), {name: axis for name, (axis, _) in longer_by.items()}
    # The smallest module that has the router, too.
    modules_of = [name.rpartition(".")[0].replace(".", "/") for name in (f"{experts}.", *axes)]
    layer_name = commonpath(modules_of).replace("/", ".")
    tables = [n for n, t in before.items() if n.startswith(layer_name) and not t.is_floating_point() and t.numel() > 1]
    if tables:
        raise Unremovable(f"{name_of(source)}, block {index}: tokens choose experts by a table of ids ({tables[0]})")
    text = source.text_config
    groups = getattr(text, "n_group", None) or 1
    if getattr(text, "topk_method", None) == "greedy" or count % groups:
        groups = 1
    limit = (getattr(text, "topk_group", None) or groups) if groups > 1 else 1
    top_k = _top_k(source, index, experts, carried)
    return Mixture(index, experts, count, top_k, axes, groups, limit)


def _top_k(source: Checkpoint, index: int, name: str, carried: dict[Carried, Any]) -> int:
    """How many experts the router of a block chooses for each token, seen in a forward pass without weights."""
    seen: list[Tensor] = []

    def forward(hidden_SD: Tensor, index_SK: Tensor, _gate_SK: Tensor) -> Tensor:
        seen.append(index_SK)
        return torch.zeros_like(hidden_SD)

    with with_forwards([(source.architecture.layers[index].get_submodule(name), forward)]):
        run_hollow(source, index, carried)
    if len(seen) != 1:
        raise Unremovable(f"{name_of(source)}, block {index}: its experts are called {len(seen)} times, not once")
    return seen[0].shape[-1]


def run_hollow(source: Checkpoint, index: int, carried: dict[Carried, Any]) -> None:
    """Run a block without weights on the tokens of the architecture's probe."""
    architecture = source.architecture
    layer, call = architecture.layers[index], deepcopy(architecture.probe.calls[index])
    with torch.inference_mode(False), torch.no_grad(), plain_experts(architecture), hollow(layer):
        architecture.call_block(index, layer, torch.zeros_like(architecture.probe.first), call, carried)


class _MaskedLogits(TorchFunctionMode):
    """Within the context, products with the given weights are minus infinity at removed experts.

    seen: number of such products so far.
    """

    def __init__(self, weights: Sequence[Tensor], removed: Sequence[int]) -> None:
        super().__init__()
        self._places = {weight.data_ptr() for weight in weights}
        self._removed = list(removed)
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and args[1].data_ptr() in self._places:
            out[..., self._removed] = -torch.inf
            self.seen += 1
        return out


@contextmanager
def masked(block: nn.Module, mixture: Mixture, removed: Sequence[int]) -> Iterator[_MaskedLogits]:
    """Within the context, the block's router gives removed experts the logit minus infinity, even after corrections."""
    named = {name: tensor for name, tensor in block.state_dict(keep_vars=True).items() if name in mixture.routing}
    biases = {name: tensor for name, tensor in named.items() if "bias" in name}
    weights = [tensor for name, tensor in named.items() if name not in biases and tensor.dim() == 2]
    before = {name: tensor.detach().clone() for name, tensor in biases.items()}
    with torch.no_grad():
        for name, tensor in biases.items():
            tensor.index_fill_(mixture.axes[name], torch.tensor(list(removed), device=tensor.device), -torch.inf)
    try:
        with _MaskedLogits(weights, removed) as mode:
            yield mode
    finally:
        with torch.no_grad():
            for name, tensor in biases.items():
                tensor.copy_(before[name])
