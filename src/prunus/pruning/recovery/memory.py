"""How the steps of recovery are computed within the memory and on the processor that there are.

All choices give the same result up to rounding. They are made once, when the work begins, and kept with it, so that
interrupted work goes on as it began. Shapes: N sequences, T tokens.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.pruning.calibration.memory_budget import free_memory

# Bytes that training takes of each weight of a block: itself, its gradient, the two moments of Adam, the best state so
# far and the one at the start (as stored, 2 each), and whether it is a zero.
TRAINING_BYTES = 4 + 4 + 8 + 2 + 2 + 1
# Bytes of a token that a step takes for each number that a Linear of the block gives out, and as many for each number
# of the hidden states: the number, what is made of it, and its gradient, in float32.
ACTIVATION_BYTES = 12
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")


class StepPlan(NamedTuple):
    """How a step is computed. micro_batch: most tokens, with padding, that run at once, unless one sequence has more.

    checkpointed: whether activations inside attention and MLP are computed again on the way back, instead of kept.
    bfloat16: whether products are made in bfloat16; weights, gradients and moments are float32 in any case.
    """

    micro_batch: int
    checkpointed: bool = False
    bfloat16: bool = False

    def products(self, device: torch.device) -> AbstractContextManager[object]:
        """The context in which outputs and losses are computed."""
        return torch.autocast(device.type, torch.bfloat16) if self.bfloat16 else nullcontext()


def plan_steps(source: Checkpoint, device: torch.device, step_tokens: int, longest: int) -> StepPlan:
    """How to compute steps of step_tokens tokens, or of one sequence of `longest` tokens if that is more.

    A batch that does not fit into free memory is divided by sequences. Where a sequence does not fit by itself,
    activations are computed again, which takes a third more time. Raises PrunusError where that does not fit either.
    """
    block, free = TRAINING_BYTES * largest_block(source), free_on(device)
    each, least = (max(of(source, index) for index in range(source.blocks)) for of in (activation_bytes, part_bytes))
    if (needed := block + longest * least) > free:
        raise PrunusError(
            f"training a block of {source.folder} on a sequence of {longest} tokens takes {show_bytes(needed)}, and "
            f"{show_bytes(free)} are free; calibrate on shorter sequences (of a text: --seqlen; of chains: "
            "`prunus traces --max-tokens`), or end other programs"
        )
    room = (free - block) // each
    # Not on CPUs: those with instructions for it take half of the time, but each number of threads gives other bits.
    bfloat16 = device.type == "cuda" and torch.cuda.is_available()
    return StepPlan(max(1, min(max(step_tokens, longest), room)), longest > room, bfloat16)


def activation_bytes(source: Checkpoint, index: int) -> int:
    """Bytes of a token that a step through a block takes at most."""
    return ACTIVATION_BYTES * (source.architecture.width + sum(outputs_of(source, index).values()))


def outputs_of(source: Checkpoint, index: int) -> dict[str, int]:
    """Outputs per token of a block's Linears, by name; of routed experts those that a token is sent to."""
    found: dict[str, int] = {}
    config = source.config.get_text_config(decoder=True)
    chosen = next((n for key in EXPERTS_PER_TOKEN if isinstance(n := getattr(config, key, None), int)), None)
    for linear in source.linears(index):
        expert = linear.expert
        if expert is None or chosen is None or expert[1] < chosen:
            found[linear.name] = linear.shape_OI[0]
    return found


def part_bytes(source: Checkpoint, index: int) -> int:
    """activation_bytes where they are computed again: only one part of the block, attention or MLP, has them then."""
    parts: dict[str, int] = defaultdict(int)
    for name, rows in outputs_of(source, index).items():
        parts[name.partition(".")[0]] += rows
    return ACTIVATION_BYTES * (source.architecture.width + max(parts.values()))


def check_memory(source: Checkpoint, device: torch.device) -> None:
    """Raise PrunusError unless training the largest block fits into the memory that is free."""
    needed = TRAINING_BYTES * largest_block(source)
    if needed > (free := free_on(device)):
        where = "memory" if device.type == "cpu" else f"memory of {device}"
        raise PrunusError(
            f"training the largest block of {source.folder} takes {show_bytes(needed)} of {where}, "
            f"and {show_bytes(free)} are free; end other programs, or take a machine with more"
        )


def largest_block(source: Checkpoint) -> int:
    """Elements of the tensors of the largest block."""
    return max(sum(s.elements for s in source.block_tensors(index).values()) for index in range(source.blocks))


def free_on(device: torch.device) -> int:
    """Bytes that this process may still take on a device; of one that does not say, those of the CPU."""
    if device.type == "cpu" or not hasattr(api := torch.get_device_module(device), "mem_get_info"):
        return free_memory()
    return api.mem_get_info(device)[0]


@contextmanager
def activations_computed_again(block: nn.Module) -> Iterator[None]:
    """Within it, parts of a block that hold Linears (attention, MLP) keep only their input for the way back."""
    parts = [part for part in block.children() if any(isinstance(module, nn.Linear) for module in part.modules())]
    for part in parts:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for part in parts:
            del part.forward
