"""The prunable Linears of each block, the order in which they are called, and which of them read the same input.

They are found by running every kind of block once on a few tokens, without its weights: hooks record each Linear that
is called, and Linears that receive the same tensor (the same memory and shape) form a group. Groups and their order
therefore are those of the model's own code. A Linear that is never called stays dense, because the model must use its
weight in another way. `check_decoder` refuses models that are no decoders. Shapes: O output features, I input features.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from prunus.checkpoint.architecture import Architecture, Call, Carried, Unstreamable, hollow, leaves, with_forwards
from prunus.checkpoint.experts import Layout, experts_in

Kind = Literal["attention", "mlp"]

_MLP = re.compile(r"mlp|feed_forward|ffn|fc\d|fc_|ff\.|shared_expert|channel_mix|mixer\.(up|down)_proj")
_ATTENTION = re.compile(r"attn|attention|temporal_block|mamba|mixer|conv|lstm")
# Parts of names, between dots, of Linears that route, gate a head or set a step size. All of them are small.
_CONTROLS = re.compile(
    r"(?:^|\.)(?:\w*router\w*|gate|shared_expert_gate|indexer|altup|laurel|per_layer_\w+|\w*adapter\w*|\w*norm\w*"
    r"|\w*hyper_connection\w*|weights_proj|in_proj_(?:a|b|ba)|[abgx]_proj|dt_proj|[fi]gate_preact|forget_gate)(?:\.|$)"
)
_ROUTED = re.compile(r"(?:^|\.)experts\.\d+\.")
# A Linear with fewer outputs or inputs than this, or with fewer outputs than 1/32 of its inputs, is some kind of gate.
_LEAST_OUTPUTS, _LEAST_INPUTS, _LEAST_SHARE = 8, 8, 32


class Linear(NamedTuple):
    """A prunable Linear. name: its name within the block. leader: name of the first Linear that reads the same input.

    calls: the number of calls in a forward pass. experts: the name of the module of routed experts that it is part of;
    "" if of none.
    """

    name: str
    kind: Kind
    shape_OI: tuple[int, int]
    leader: str
    calls: int = 1
    experts: str = ""

    @property
    def expert(self) -> tuple[str, int] | None:
        """The module of routed experts and the number of the expert; None if it is of none."""
        return (self.experts, int(self.name.split(".")[-2])) if self.experts else None

    @property
    def summary_name(self) -> str:
        """The name in summaries, in which * stands for the number of an expert."""
        return re.sub(r"\.\d+\.(?=\w+$)", ".*.", self.name) if self.experts else self.name


class BlockLinears(NamedTuple):
    """The prunable Linears of a block, in the order of their (last) calls in a forward pass.

    Those of routed experts come where their module is called: gate and up of all experts, then down of all experts.

    dense: why each other matrix of the block is not pruned, by its name within the block.
    """

    linears: tuple[Linear, ...]
    dense: Mapping[str, str]


@lru_cache(maxsize=8)
def find_linears(architecture: Architecture) -> list[BlockLinears]:
    """The BlockLinears of every block."""
    blocks: list[BlockLinears] = []
    known: dict[Any, BlockLinears] = {}
    carried: dict[Carried, Any] = {}
    with torch.inference_mode(False), torch.no_grad(), plain_experts(architecture):
        for index, (layer, call) in enumerate(zip(architecture.layers, architecture.probe.calls, strict=True)):
            kind = None if is_stateful(call) or architecture.carried else signature(layer)
            if kind is None or kind not in known:
                blocks.append(_find_in_block(architecture, index, layer, call, carried))
                known[kind] = blocks[-1]
            else:
                blocks.append(known[kind])
    return blocks


def shares_state(architecture: Architecture) -> bool:
    """Whether blocks pass on more than hidden states, such as keys and values.

    Each block must then run once, in order, and gradients cannot be computed one block at a time.
    """
    return bool(architecture.carried) or any(map(is_stateful, architecture.probe.calls))


def is_stateful(call: Call) -> bool:
    """Whether a block has an argument in which it may store values for later blocks."""
    return any(is_state(value) for value in (*call.args, *call.kwargs.values()))


def is_state(value: object) -> bool:
    """Whether a block may store values in this argument: a dict or list without tensors, or an object like a cache."""
    if isinstance(value, (dict, list)):
        return not any(isinstance(leaf, Tensor) or leaf is None for leaf in leaves(value))
    return not isinstance(value, (Tensor, tuple, str, int, float, torch.dtype, torch.device, type(None)))


def _find_in_block(
    architecture: Architecture, index: int, layer: nn.Module, call: Call, carried: dict[Carried, Any]
) -> BlockLinears:
    """The BlockLinears of a block, from one forward pass. carried: updated with what later blocks need of it."""
    modules = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear) and is_linear(m)}
    seen: dict[str, list[Any]] = {}
    order: list[str] = []
    kept: list[Tensor] = []  # holds inputs, so that their memory is not reused and addresses identify them

    def hook(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = args[0] if args else next(iter(kwargs.values()))
            kept.append(tensor)
            seen.setdefault(name, []).append(_identity(tensor))
            order.append(name)

        return record

    routed = {n: Layout.of(n, m) for n, m in experts_in(layer).items()}
    with hollow(layer), giving_zeros(modules.values()), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(hook(name), with_kwargs=True))
        for name in routed:
            hooks.enter_context(layer.get_submodule(name).register_forward_pre_hook(lambda *_, n=name: order.append(n)))
        architecture.call_block(index, layer, torch.zeros_like(architecture.probe.first), call, carried)
    leaders: dict[tuple[Any, ...], str] = {}
    linears: list[Linear] = []
    called = {layout.fused(part) for n, layout in routed.items() if n in order for part in layout.parts}
    dense = {n: _no_linear(n) for n, parameter in _others(layer) if parameter.ndim > 1 and n not in called}
    dense |= {name: "never called: the block uses its weight in another way" for name in modules if name not in seen}
    for name in reversed(dict.fromkeys(reversed(order))):
        if name in routed:
            linears += _linears_of_experts(routed[name], layer, dense)
            continue
        inputs = seen[name]
        outputs, width = modules[name].weight.shape
        reason, kind = _why_dense(name, outputs, width), _kind(name)
        if reason is not None or kind is None:
            dense[name] = reason or "its name says neither attention nor MLP"
            continue
        leader = leaders.setdefault(tuple(inputs), name)
        linears.append(Linear(name, kind, (outputs, width), leader, len(inputs)))
    return BlockLinears(tuple(linears), dense)


def _linears_of_experts(layout: Layout, layer: nn.Module, dense: dict[str, str]) -> Iterator[Linear]:
    """The Linears of a module of routed experts: gate and up of every expert, then down of every expert.

    dense: updated with why matrices are not pruned.
    """
    for stage in (layout.parts[:-1], layout.parts[-1:]):
        fused = layout.fused(stage[0])
        outputs, inputs = layout.view(stage[0], layer.get_parameter(fused)).shape[1:]
        if (reason := _why_dense("", outputs, inputs)) is not None:
            dense[fused] = reason
            continue
        for expert in range(layout.experts):
            leader = layout.linear(expert, stage[0])
            for part in stage:
                yield Linear(layout.linear(expert, part), "mlp", (outputs, inputs), leader, experts=layout.name)


def giving_zeros(linears: Iterable[nn.Linear]) -> AbstractContextManager[None]:
    """Within the context, Linears return zeros, as they would with zero weights, without a weight in memory."""

    def stand_in(outputs: int) -> Callable[[Tensor], Tensor]:
        return lambda input: input.new_zeros(*input.shape[:-1], outputs)

    return with_forwards((linear, stand_in(linear.out_features)) for linear in linears)


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes x Wᵀ + bias and nothing else. Some subclasses of nn.Linear do more."""
    if type(module) is nn.Linear or not isinstance(module, nn.Linear):
        return isinstance(module, nn.Linear)
    weight_OI, generator = module.weight, torch.Generator().manual_seed(0)
    try:
        module.weight = nn.Parameter(torch.randn(weight_OI.shape, generator=generator), requires_grad=False)
        input_1I = torch.randn(1, module.in_features, generator=generator)
        with hollow(module):
            return torch.allclose(module(input_1I), functional.linear(input_1I, module.weight), rtol=1e-3, atol=1e-3)
    except Exception:  # it takes another input, or returns something else
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
    if _CONTROLS.search(name):
        return "a router or gate"
    if outputs < _LEAST_OUTPUTS or inputs < _LEAST_INPUTS or outputs * _LEAST_SHARE < inputs:
        return "too few outputs or inputs"
    return None


def _no_linear(name: str) -> str:
    if "experts" not in name:
        return "not a Linear"
    return "biases of routed experts" if name.endswith("_bias") else "routed experts"


def _others(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) for the parameters of a block that belong to no Linear."""
    for path, module in layer.named_modules():
        if not is_linear(module):
            for local, parameter in module.named_parameters(recurse=False):
                yield f"{path}.{local}".lstrip("."), parameter


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """A key that is equal for views of the same memory with the same rows in the same order."""
    rows = tensor.flatten(0, -2) if tensor.is_contiguous() else tensor
    return tensor.data_ptr(), tuple(rows.shape), rows.stride(), tensor._version


def signature(layer: nn.Module) -> tuple[Any, ...]:
    """A key that is equal for blocks of one kind."""
    return tuple(sorted(settings_of(layer).items(), key=lambda item: item[0]))


def settings_of(layer: nn.Module) -> Mapping[str, Hashable]:
    """Properties that distinguish kinds of blocks: module classes, settings (without the index), parameter shapes."""
    settings: dict[str, Hashable] = {}
    for path, module in layer.named_modules():
        settings[path or "block"] = type(module).__name__
        settings |= {f"{path}.{n}".lstrip("."): value for n, value in vars(module).items() if _is_setting(n, value)}
    return settings | {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}


def _is_setting(name: str, value: object) -> bool:
    return isinstance(value, (int, float, str, bool)) and name not in ("layer_idx", "layer_id", "layer_number")


@contextmanager
def plain_experts(architecture: Architecture) -> Iterator[None]:
    """Within the context, routed experts are run in turn, so that no copy of all of them is made."""
    model = architecture.model
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


_OF_AN_ENCODER = re.compile(r"(?:^|\.)(?:encoder_attn|encoder_decoder_attention|crossattention|cross_attn)(?:\.|$)")
_TOLERANCE = 1e-4  # a change of an output up to this share of the largest output counts as rounding


def check_decoder(architecture: Architecture) -> None:
    """Raise Unstreamable for the decoder of an encoder-decoder model, and for a model whose first block is not causal.

    Causality is tested with random weights, which take almost no memory: when the last token changes, the outputs of
    the tokens before it must not.
    """
    first = architecture.layers[0]
    half = next((name for name, _ in first.named_modules() if _OF_AN_ENCODER.search(name)), None)
    if half is not None or getattr(architecture.model.config, "is_encoder_decoder", False):
        raise Unstreamable("it is part of an encoder-decoder model, which prunus does not prune")
    with torch.inference_mode(False), torch.no_grad():
        if _attends_to_later(architecture, first):
            raise Unstreamable("its tokens attend to later ones, so it is an encoder, which prunus does not prune")


def _attends_to_later(architecture: Architecture, first: nn.Module) -> bool:
    """Whether the first block's outputs depend on later tokens."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: _random(parameter, generator) for name, parameter in first.named_parameters()}
    rows_NTW = torch.randn(architecture.to_rows(architecture.probe.first).shape, generator=generator)
    other_NTW = rows_NTW.clone()
    other_NTW[:, -1] = torch.randn(other_NTW[:, -1].shape, generator=generator)

    def run(input_NTW: Tensor) -> Tensor:
        def block(*args: Any, **kwargs: Any) -> Any:
            return functional_call(first, weights, args, kwargs)

        hidden = architecture.from_rows(input_NTW.to(architecture.probe.first.dtype))
        call = deepcopy(architecture.probe.calls[0])  # some blocks write to their arguments
        return architecture.to_rows(architecture.call_block(0, block, hidden, call, {}))[:, :-1].float()

    with plain_experts(architecture):
        before, after = run(rows_NTW), run(other_NTW)
    return bool((before - after).abs().max() > _TOLERANCE * before.abs().max())


def _random(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random values for a parameter, as a view of a short list: entry [i, j, k] is element i + j + k of the list."""
    values = 0.1 * torch.randn(sum(parameter.shape) + 1, generator=generator)
    values = values + 1 if parameter.ndim == 1 else values
    return values.to(parameter.dtype).as_strided(parameter.shape, (1,) * parameter.ndim)
