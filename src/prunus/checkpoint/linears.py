"""The Linears of each block that can be pruned, which of them read the same input, and in what order.

Found by running every kind of block once on a few tokens, without its weights: hooks see each Linear that is called,
and Linears that are given the same tensor (the same memory and shape) make a group. So groups and their order are those
of the model's own code. A Linear that no hook saw stays dense: its weight is used in some way of its own.
Shapes: O output features, I input features.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.checkpoint.architecture import Architecture, Call, Carried, hollow, leaves

Kind = Literal["attention", "mlp"]

_MLP = re.compile(r"mlp|feed_forward|ffn|fc\d|fc_|ff\.|shared_expert|channel_mix|mixer\.(up|down)_proj")
_ATTENTION = re.compile(r"attn|attention|temporal_block|mamba|mixer|conv|lstm")
# Parts of names, between dots: what chooses, gates a head, or sets a step. All of it is small.
_STEERS = re.compile(
    r"(?:^|\.)(?:\w*router\w*|gate|shared_expert_gate|indexer|altup|laurel|per_layer_\w+|\w*adapter\w*|\w*norm\w*"
    r"|\w*hyper_connection\w*|weights_proj|in_proj_(?:a|b|ba)|[abgx]_proj|dt_proj|[fi]gate_preact|forget_gate)(?:\.|$)"
)
_ROUTED = re.compile(r"(?:^|\.)experts\.\d+\.")
# Fewer outputs than this, or than a share of the inputs, are a gate of some kind, whatever the name.
_LEAST_OUTPUTS, _LEAST_INPUTS, _LEAST_SHARE = 8, 8, 32


class Linear(NamedTuple):
    """A Linear that can be pruned. name: within its block. leader: the first Linear that reads the same input.

    calls: how often it is called in a forward pass.
    """

    name: str
    kind: Kind
    shape_OI: tuple[int, int]
    leader: str
    calls: int = 1


class BlockLinears(NamedTuple):
    """Those of one block, in the order in which a forward pass meets them (for the last time).

    dense: why other matrices of the block stay as they are, by name.
    """

    linears: tuple[Linear, ...]
    dense: Mapping[str, str]


@lru_cache(maxsize=8)
def find_linears(architecture: Architecture) -> list[BlockLinears]:
    """For every block what can be pruned in it."""
    found: list[BlockLinears] = []
    known: dict[Any, BlockLinears] = {}
    carried: dict[Carried, Any] = {}
    with torch.inference_mode(False), torch.no_grad(), plain_experts(architecture):
        for index, (layer, call) in enumerate(zip(architecture.layers, architecture.probe.calls, strict=True)):
            kind = None if is_stateful(call) or architecture.carried else _signature(layer)
            if kind is None or kind not in known:
                found.append(_look(architecture, index, layer, call, carried))
                known[kind] = found[-1]
            else:
                found.append(known[kind])
    return found


def is_stateful(call: Call) -> bool:
    """Whether a block is called with something that it leaves things in, for later blocks to find."""
    return any(is_state(value) for value in (*call.args, *call.kwargs.values()))


def is_state(value: Any) -> bool:
    """Whether a block that is given this may leave something in it: an empty dict or list, or an object of a class that
    is not a plain value."""
    if isinstance(value, (dict, list)):
        return not any(isinstance(leaf, Tensor) or leaf is None for leaf in leaves(value))
    return not isinstance(value, (Tensor, tuple, str, int, float, torch.dtype, torch.device, type(None)))


def _look(
    architecture: Architecture, index: int, layer: nn.Module, call: Call, carried: dict[Carried, Any]
) -> BlockLinears:
    modules = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear) and is_linear(m)}
    seen: dict[str, list[Any]] = {}
    order: list[str] = []
    kept: list[Tensor] = []  # so that no memory is used again

    def hook(name: str) -> Callable[..., None]:
        def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = args[0] if args else next(iter(kwargs.values()))
            kept.append(tensor)
            seen.setdefault(name, []).append(_identity(tensor))
            order.append(name)

        return see

    handles = [m.register_forward_pre_hook(hook(n), with_kwargs=True) for n, m in modules.items()]
    try:
        with hollow(layer), _giving_zeros(modules.values()):
            architecture.call_block(index, layer, torch.zeros_like(architecture.probe.first), call, carried)
    finally:
        for handle in handles:
            handle.remove()
    leaders: dict[tuple[Any, ...], str] = {}
    linears: list[Linear] = []
    dense = {name: _no_linear(name) for name, parameter in _others(layer) if parameter.ndim > 1}
    dense |= {
        name: "never called: the block uses its weight in a way of its own" for name in modules if name not in seen
    }
    for name in reversed(dict.fromkeys(reversed(order))):
        inputs = seen[name]
        outputs, width = modules[name].weight.shape
        reason, kind = _why_dense(name, outputs, width), _kind(name)
        if reason is not None or kind is None:
            dense[name] = reason or "neither attention nor MLP by its name"
            continue
        leader = leaders.setdefault(tuple(inputs), name)
        linears.append(Linear(name, kind, (outputs, width), leader, len(inputs)))
    return BlockLinears(tuple(linears), dense)


@contextmanager
def _giving_zeros(linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Linears give out zeros meanwhile, as they would without weights: no matrix is made."""

    def stand_in(outputs: int) -> Callable[[Tensor], Tensor]:
        return lambda input: input.new_zeros(*input.shape[:-1], outputs)

    chosen: list[Any] = list(linears)
    try:
        for linear in chosen:
            linear.forward = stand_in(linear.out_features)
        yield
    finally:
        for linear in chosen:
            linear.__dict__.pop("forward", None)


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by its weight and adds its bias, and no more: some subclasses do."""
    if type(module) is nn.Linear or not isinstance(module, nn.Linear):
        return isinstance(module, nn.Linear)
    weight_OI, generator = module.weight, torch.Generator().manual_seed(0)
    try:
        module.weight = nn.Parameter(torch.randn(weight_OI.shape, generator=generator), requires_grad=False)
        input_1I = torch.randn(1, module.in_features, generator=generator)
        with hollow(module):
            return torch.allclose(module(input_1I), functional.linear(input_1I, module.weight), rtol=1e-3, atol=1e-3)
    except Exception:  # it wants another input, or gives out something else
        return False
    finally:
        module.weight = weight_OI


def _kind(name: str) -> Kind | None:
    if _MLP.search(name):
        return "mlp"
    return "attention" if _ATTENTION.search(name) else None


def _why_dense(name: str, outputs: int, inputs: int) -> str | None:
    if _ROUTED.search(name):
        return "a routed expert"
    if _STEERS.search(name):
        return "chooses or steers"
    if outputs < _LEAST_OUTPUTS or inputs < _LEAST_INPUTS or outputs * _LEAST_SHARE < inputs:
        return "too few outputs or inputs"
    return None


def _no_linear(name: str) -> str:
    return "routed experts" if "experts" in name else "no Linear"


def _others(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are of no Linear."""
    for path, module in layer.named_modules():
        if not is_linear(module):
            for local, parameter in module.named_parameters(recurse=False):
                yield f"{path}.{local}".lstrip("."), parameter


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """The same for two views of the same numbers in the same order of rows."""
    rows = tensor.flatten(0, -2) if tensor.is_contiguous() else tensor
    return tensor.data_ptr(), tuple(rows.shape), rows.stride(), tensor._version


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """The same for blocks of one kind."""
    return tuple(sorted(settings_of(layer).items(), key=lambda item: item[0]))


def settings_of(layer: nn.Module) -> dict[str, Any]:
    """What tells kinds of blocks apart: their modules, the plain settings of these but for a block's number, shapes."""
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        found[path or "block"] = type(module).__name__
        found |= {f"{path}.{n}".lstrip("."): value for n, value in vars(module).items() if _is_setting(n, value)}
    return found | {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}


def _is_setting(name: str, value: Any) -> bool:
    return isinstance(value, (int, float, str, bool)) and name not in ("layer_idx", "layer_id", "layer_number")


@contextmanager
def plain_experts(architecture: Architecture) -> Iterator[None]:
    """Routed experts are run one by one meanwhile: no copy of all of them is made."""
    model = architecture.model
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
