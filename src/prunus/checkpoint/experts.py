"""Run and observe the routed experts of any mixture of experts in transformers, one product per expert and matrix.

Nearly every experts module of transformers keeps its experts in three-dimensional parameters, says how they are laid
out, and leaves the computation to a function of ALL_EXPERTS_FUNCTIONS. `run_experts` is such a function, so one file
serves all families. Tokens are grouped by expert, and each expert runs once on all of its tokens. Its results equal
transformers' own loop ("eager") bit for bit.

    with observe_experts(block, see):          see: called with the Routed of each expert that has tokens
        runner.run_block(block, rows_NTW, batch)

In a block that is pruned, the matrices of each expert are Linears of their own (`mlp.experts.3.gate_proj`), whose
weights are views of the three-dimensional tensors: `split_experts` makes the modules, `split_tensors` and
`join_tensors` convert the tensors.

Shapes: N tokens that a module is called with, K experts per token, E experts, S tokens of an expert, D its input and
output width, F width between its two products (or O and I, outputs and inputs of one of its matrices).
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from prunus.checkpoint.precision import with_even_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    class RoutedExperts(nn.Module):
        """Attributes that every module of routed experts has; its matrices are looked up by name."""

        config: PreTrainedConfig
        num_experts: int
        has_gate: bool
        has_bias: bool
        is_transposed: bool
        is_concatenated: bool
        act_fn: Callable[[Tensor], Tensor]
        _apply_gate: Callable[[Tensor], Tensor]
        post_expert_norm: Callable[[Tensor], Tensor]


IMPLEMENTATION = "prunus"  # of run_experts, among transformers' experts functions
_SETTINGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")


class Routed(NamedTuple):
    """Inputs and outputs of one expert in a call of its module, for the S tokens that the router sent to it.

    experts: name of the module within the block. expert: its number. token_S: which of the call's N tokens. input_SD:
    the input of gate and up, not multiplied by any gate weight. middle_SF: the input of down. output_SD: the expert's
    output before it is weighted. weight_S: the gate weights with which the module was called.
    """

    experts: str
    expert: int
    token_S: Tensor
    input_SD: Tensor
    middle_SF: Tensor
    output_SD: Tensor
    weight_S: Tensor


See = Callable[[Routed], None]


class Layout(NamedTuple):
    """Layout of the experts in a module's tensors, by the flags of transformers' classes. name: of the module."""

    name: str
    experts: int
    gated: bool
    transposed: bool
    concatenated: bool

    @classmethod
    def of(cls, name: str, module: "RoutedExperts") -> "Layout":
        """The Layout of a module."""
        return cls(name, module.num_experts, module.has_gate, module.is_transposed, module.is_concatenated)

    @property
    def parts(self) -> tuple[str, ...]:
        """The matrices of an expert, in the order of a forward pass."""
        return ("gate_proj", "up_proj", "down_proj") if self.gated else ("up_proj", "down_proj")

    def fused(self, part: str) -> str:
        """The name within the block of the tensor that holds one matrix (part) of all experts."""
        return f"{self.name}.gate_up_proj" if self.gated and part != "down_proj" else f"{self.name}.{part}"

    def shape(self, part: str, outputs: int, inputs: int) -> tuple[int, int, int]:
        """The shape of the tensor that holds one matrix (part) of all experts, from the matrix's outputs and inputs."""
        rows = 2 * outputs if self.gated and part != "down_proj" else outputs
        return (self.experts, inputs, rows) if self.transposed else (self.experts, rows, inputs)

    def linear(self, expert: int, part: str) -> str:
        """The name within the block of an expert's matrix as a Linear."""
        return f"{self.name}.{expert}.{part}"

    def view(self, part: str, fused: Tensor) -> Tensor:
        """(E, O, I) view of one matrix (part) of all experts. fused: the tensor with the name `self.fused(part)`."""
        whole_EOI = fused.mT if self.transposed else fused
        if not self.gated or part == "down_proj":
            return whole_EOI
        first = part == "gate_proj"
        if not self.concatenated:
            return whole_EOI[:, 0 if first else 1 :: 2]
        return whole_EOI.chunk(2, dim=1)[0 if first else 1]


def is_experts(module: nn.Module) -> TypeGuard["RoutedExperts"]:
    """Whether a module holds routed experts in the layout of transformers' experts functions."""
    return all(hasattr(module, name) for name in (*_SETTINGS, "num_experts", "config"))


def experts_in(block: nn.Module) -> dict[str, "RoutedExperts"]:
    """The modules of routed experts in a block (or a whole model), by name; no others can be observed."""
    return {name: module for name, module in block.named_modules() if is_experts(module)}


def layouts_in(block: nn.Module) -> list[Layout]:
    """The Layout of each module of routed experts in a block."""
    return [Layout.of(name, module) for name, module in experts_in(block).items()]


def place_of(layouts: Iterable[Layout], name: str) -> tuple[Layout, int, str] | None:
    """(layout, expert, matrix) of an expert's Linear or weight, by its name within the block; None for other names."""
    match = re.fullmatch(r"(.+)\.(\d+)\.(\w+_proj)(?:\.weight)?", name)
    layout = next((layout for layout in layouts if match and layout.name == match[1]), None)
    return None if layout is None or match is None else (layout, int(match[2]), match[3])


def split_tensors(layouts: Iterable[Layout], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A block's tensors by name, with each tensor of all experts replaced by views of the single experts' matrices."""
    split = dict(tensors)
    for layout in layouts:
        for part in layout.parts:
            if (fused := layout.fused(part)) in tensors:
                split.pop(fused, None)
                views = layout.view(part, tensors[fused]).unbind()
                split |= {f"{layout.linear(number, part)}.weight": view for number, view in enumerate(views)}
    return split


def join_tensors(
    layouts: Iterable[Layout], tensors: Mapping[str, Tensor], read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """A block's tensors by name, with the matrices of single experts joined into tensors of all experts.

    Views that split_tensors made are joined without a copy. read: returns a tensor of all experts by its name within
    the block; it is called where some experts are not among tensors.
    """
    joined: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[Layout, int, str, Tensor]]] = {}
    for name, tensor in tensors.items():
        if (place := place_of(layouts, name)) is None:
            joined[name] = tensor
        else:
            parts.setdefault(place[0].fused(place[2]), []).append((*place, tensor))
    for fused, views in parts.items():
        layout = views[0][0]
        matrices = layout.experts * [layout.fused(part) for part in layout.parts].count(fused)
        whole = _whole_of(views) if len(views) == matrices else read(fused)
        for _, expert, part, tensor in views:
            if _place(view := layout.view(part, whole)[expert]) != _place(tensor):
                view.copy_(tensor)
        joined[fused] = whole
    return joined


def _whole_of(views: Collection[tuple[Layout, int, str, Tensor]]) -> Tensor:
    """The tensor whose views are exactly these (layout, expert, matrix, tensor); an uninitialised one if none is."""
    layout, _, part, first = min(views, key=lambda view: (view[1], view[0].parts.index(view[2])))
    _, rows, columns = shape = layout.shape(part, *first.shape)
    size, start = layout.experts * rows * columns, first.storage_offset()
    if first.untyped_storage().nbytes() < (start + size) * first.itemsize:
        return first.new_empty(shape)
    whole = first.as_strided(shape, (rows * columns, columns, 1), start)
    same = all(_place(layout.view(part, whole)[expert]) == _place(tensor) for _, expert, part, tensor in views)
    return whole if same else first.new_empty(shape)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """A key that is equal for tensors at the same place in memory with the same shape, strides and dtype."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


class StorageCopies:
    """Copies of tensors of all experts, each made once; `of` maps a view of an original to that of its copy."""

    def __init__(self) -> None:
        self._copies: dict[int, torch.UntypedStorage] = {}

    def of(self, view_OI: Tensor) -> Tensor:
        """A view with the same offset, shape and strides, of a copy of the memory; each memory is copied once."""
        memory = view_OI.untyped_storage()
        if memory.data_ptr() not in self._copies:
            self._copies[memory.data_ptr()] = memory.clone()
        copy = view_OI.new_empty(0)
        return copy.set_(self._copies[memory.data_ptr()], view_OI.storage_offset(), view_OI.shape, view_OI.stride())


def split_experts(block: nn.Module) -> None:
    """Give each matrix of each expert of a block a Linear of its own, without a weight yet, in place.

    The block must be a copy whose parameters have no values. Biases of experts stay parameters of their module.
    """
    for name, module in experts_in(block).items():
        layout = Layout.of(name, module)
        shapes = {part: layout.view(part, block.get_parameter(layout.fused(part))).shape[1:] for part in layout.parts}
        for part in layout.parts:
            module._parameters.pop(layout.fused(part).rpartition(".")[2], None)
        for expert in range(layout.experts):
            own = nn.Module()
            for part, (outputs, inputs) in shapes.items():
                own.add_module(part, nn.Linear(inputs, outputs, bias=False, device="meta"))
            module.add_module(str(expert), own)
        run_by_prunus(module)


@contextmanager
def observe_experts(block: nn.Module, see: See) -> Iterator[None]:
    """Within the context, a run of the block or model calls see(Routed) for every expert with tokens, in order."""
    modules = experts_in(block)
    configs = {name: module.config for name, module in modules.items()}
    try:
        for name, module in modules.items():
            run_by_prunus(module)
            module.__dict__["prunus_see"] = (name, see)
        yield
    finally:
        for name, module in modules.items():
            module.config = configs[name]
            del module.__dict__["prunus_see"]


def run_by_prunus(experts: "RoutedExperts") -> None:
    """Make a module of experts use run_experts, whatever its model's configuration says."""
    experts.config = copy(experts.config)
    experts.config._experts_implementation_internal = IMPLEMENTATION


def tokens_read(block: nn.Module, linear: str) -> Tensor | None:
    """(S,) indices of the tokens of a batch that an expert's Linear reads in its current call; None for other Linears.

    block: after split_experts. linear: its name within the block.
    """
    owner = linear.rpartition(".")[0].rpartition(".")[0]
    module = block.get_submodule(owner) if owner else None
    return module.__dict__.get("prunus_tokens") if module is not None and is_experts(module) else None


def run_experts(experts: "RoutedExperts", hidden_ND: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """(N, D) sum over each token's experts of their outputs times their gate weights; called by transformers.

    experts: the module. index_NK, weight_NK: each token's experts and their gate weights; an index >= E means none.
    """
    out_ND, seen = torch.zeros_like(hidden_ND), experts.__dict__.get("prunus_see")
    choices, flat = index_NK.shape[1], index_NK.T.flatten()
    counts = torch.bincount(flat, minlength=experts.num_experts).tolist()[: experts.num_experts]
    # The order of the eager loop: by expert, then by place among a token's experts, then by token.
    places = flat.argsort(stable=True).split([*counts, choices * len(hidden_ND) - sum(counts)])
    for expert, place_S in enumerate(places[: len(counts)]):
        if not len(place_S):
            continue
        token_S = place_S % len(hidden_ND)
        weight_S = weight_NK[token_S, place_S // len(hidden_ND)]
        input_SD = hidden_ND[token_S]
        experts.__dict__["prunus_tokens"] = token_S
        middle_SF, output_SD = _run_even(experts, expert, input_SD)
        if seen is not None:
            name, see = seen
            see(Routed(name, expert, token_S, input_SD, middle_SF, output_SD, weight_S))
        out_ND.index_add_(0, token_S, (output_SD * weight_S[:, None]).to(out_ND.dtype))
    return out_ND


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, run_experts)


def _run_even(experts: "RoutedExperts", expert: int, input_SD: Tensor) -> tuple[Tensor, Tensor]:
    """Results of run_expert, bit for bit, computed on rows that with_even_rows has padded, unless they are float32."""
    if input_SD.dtype == torch.float32:
        return run_expert(experts, expert, input_SD)
    middle, output = run_expert(experts, expert, with_even_rows(input_SD))
    return middle[: len(input_SD)], output[: len(input_SD)]


def run_on_all(experts: "RoutedExperts", numbers: Iterable[int], hidden_ND: Tensor) -> None:
    """Run the experts of these numbers on all tokens, whatever the router says, so that hooks on their Linears run."""
    experts.__dict__["prunus_tokens"] = torch.arange(len(hidden_ND), device=hidden_ND.device)
    for number in numbers:
        run_expert(experts, number, hidden_ND)


def run_expert(experts: "RoutedExperts", expert: int, input_SD: Tensor) -> tuple[Tensor, Tensor]:
    """(S, F) input of an expert's down matrix, and (S, D) its output before it is multiplied by a gate weight."""
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    up_SF = _product(experts, first, expert, input_SD)
    middle_SF = experts._apply_gate(up_SF) if experts.has_gate else experts.act_fn(up_SF)
    output_SD = _product(experts, "down_proj", expert, middle_SF)
    if getattr(experts, "has_post_expert_norm", False):
        output_SD = experts.post_expert_norm(output_SD)
    return middle_SF, output_SD


def _product(experts: "RoutedExperts", name: str, expert: int, input_SI: Tensor) -> Tensor:
    """(S, O) product of tokens with an expert's matrix, with its bias."""
    own = experts._modules.get(str(expert))  # after split_experts
    if own is None:
        weight = getattr(experts, name)[expert]
        product_SO = input_SI @ weight if experts.is_transposed else functional.linear(input_SI, weight)
    elif name == "gate_up_proj":
        both = [own.get_submodule(part)(input_SI) for part in ("gate_proj", "up_proj")]
        product_SO = torch.cat(both, -1) if experts.is_concatenated else torch.stack(both, -1).flatten(-2)
    else:
        product_SO = own.get_submodule(name)(input_SI)
    return product_SO + getattr(experts, f"{name}_bias")[expert] if experts.has_bias else product_SO
