"""Routed experts of any mixture of experts in transformers: run with one product per expert and matrix, and observed.

Nearly every experts module of transformers keeps its experts in three-dimensional parameters, says how they are laid
out, and leaves the computation to a function of ALL_EXPERTS_FUNCTIONS. `run_experts` is such a function, so one file
serves all families. Tokens are grouped by expert, and each expert runs once on all of its tokens. Its results equal
transformers' own loop ("eager") bit for bit.

    with observe_experts(block, see):          see: called with the Routed of each expert that has tokens
        runner.run_block(block, rows_NTW, batch)

Shapes: N tokens that a module is called with, K experts per token, E experts, S tokens of one expert, D its input and
output width, F width between its two products (or O and I, outputs and inputs of one of its matrices).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

IMPLEMENTATION = "prunus"  # of run_experts, among transformers' experts functions
_SETTINGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm", "_apply_gate")


class Routed(NamedTuple):
    """What one expert computed in one call of its module, for the S tokens that the router sent to it.

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


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds routed experts in the layout of transformers' experts functions."""
    return all(hasattr(module, name) for name in (*_SETTINGS, "num_experts", "config"))


def experts_in(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of routed experts in a block (or a whole model), by name; no others can be observed."""
    return {name: module for name, module in block.named_modules() if is_experts(module)}


@contextmanager
def observe_experts(block: nn.Module, see: See) -> Iterator[None]:
    """Meanwhile, see(Routed) is called for every expert with tokens, in order, whenever the block or model runs."""
    modules: dict[str, Any] = experts_in(block)
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


def run_by_prunus(experts: Any) -> None:
    """Make a module of experts use run_experts, whatever its model's configuration says."""
    experts.config = copy(experts.config)
    experts.config._experts_implementation_internal = IMPLEMENTATION


def run_experts(experts: Any, hidden_ND: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """(N, D) sum over each token's experts of their outputs times their gate weights; called by transformers.

    experts: the module. index_NK, weight_NK: each token's experts and their gate weights; an index >= E is none.
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
        middle_SF, output_SD = run_expert(experts, expert, input_SD)
        if seen is not None:
            name, see = seen
            see(Routed(name, expert, token_S, input_SD, middle_SF, output_SD, weight_S))
        out_ND.index_add_(0, token_S, (output_SD * weight_S[:, None]).to(out_ND.dtype))
    return out_ND


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, run_experts)


def run_expert(experts: Any, expert: int, input_SD: Tensor) -> tuple[Tensor, Tensor]:
    """(S, F) input of one expert's down and (S, D) its output, before any gate weight, for any tokens."""
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    up_SF = _product(experts, first, expert, input_SD)
    middle_SF = experts._apply_gate(up_SF) if experts.has_gate else experts.act_fn(up_SF)
    output_SD = _product(experts, "down_proj", expert, middle_SF)
    return middle_SF, experts.post_expert_norm(output_SD) if experts.has_post_expert_norm else output_SD


def _product(experts: Any, name: str, expert: int, input_SI: Tensor) -> Tensor:
    """(S, O) product of tokens with one expert's matrix, with its bias."""
    weight = getattr(experts, name)[expert]
    product_SO = input_SI @ weight if experts.is_transposed else functional.linear(input_SI, weight)
    return product_SO + getattr(experts, f"{name}_bias")[expert] if experts.has_bias else product_SO
