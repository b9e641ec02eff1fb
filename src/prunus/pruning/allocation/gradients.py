"""Loss gradients of all Linears, sequence by sequence, in sketches, holding one block at a time.

A forward stream keeps what every block read, a backward stream goes from the loss down through the blocks, each run
again with a graph of its own. The gradient of a Linear, sum over tokens of delta x, is never formed: its sketch is
(Delta Q)^T (X P), with random signs Q and P that keep inner products in expectation.
Shapes: N sequences of a batch, T tokens, S tokens of all sequences, D hidden width, O and I features of a Linear, R
rank of a sketch, K sequences in all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from prunus.checkpoint.families import LINEARS, Runner
from prunus.checkpoint.files import Checkpoint, read_block
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.head import LOGIT_TOKENS, Head, final_norm
from prunus.pruning.hidden import HiddenStates

RANK = 32
# What all blocks read is kept for as many sequences as fit here (at least one); the blocks are read again for the next.
KEPT_BYTES = 1 << 30

Projections = Callable[[int, str, int, int], tuple[Tensor, Tensor]]


class Model(NamedTuple):
    """What gradients are taken of. linears: names within a block."""

    source: Checkpoint
    runner: Runner
    linears: Sequence[str]


def signs(seed: int) -> Projections:
    """projections(block, linear, O, I) -> random signs (O, R) and (I, R) over sqrt(R), always the same for a seed."""

    def draw(block: int, linear: str, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        place = block * len(LINEARS) + list(LINEARS).index(linear)
        generator = torch.Generator().manual_seed((seed << 20) + place)
        both = torch.randint(0, 2, (outputs + inputs, RANK), generator=generator) * 2.0 - 1.0
        return both[:outputs] / RANK**0.5, both[outputs:] / RANK**0.5

    return draw


def sketches(model: Model, sequences: Sequence[list[int]], projections: Projections) -> list[dict[str, Tensor]]:
    """For each block and Linear a (K, R * R) float32 table: of every sequence, the sketched gradient of its mean loss.

    The loss is that of every token but the first. Sequences need two tokens. A NaN or infinity raises PrunusError.
    """
    blocks = model.source.blocks
    found: list[dict[str, list[Tensor]]] = [{name: [] for name in model.linears} for _ in range(blocks)]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    parts = list(portions([sequences[i] for i in order], kept_tokens(model)))
    head = Head(model.source, model.runner)
    with torch.inference_mode(False), Steps("gradients", total=2 * blocks * len(parts), unit="blocks") as steps:
        for part in parts:
            read, last = forward(model, part, steps)
            up_SD = loss_gradients(head, last)
            for index in reversed(range(blocks)):
                block = model.runner.make_block(index, read_block(index, model.source.block_tensors(index)))
                chosen = {
                    name: projections(index, name, *block.get_submodule(name).get_parameter("weight").shape)
                    for name in model.linears
                }
                last.states_SD = read.pop()
                for inputs_NTD, up_NTD in last.batches_with(up_SD):
                    made = backward(model.runner, block, inputs_NTD, up_NTD, chosen)
                    for name, table in made.items():
                        found[index][name].append(table)
                steps.advance()
    return [
        {name: joined(index, name, tables, order) for name, tables in row.items()} for index, row in enumerate(found)
    ]


def kept_tokens(model: Model) -> int:
    """How many tokens' inputs of all blocks fit in KEPT_BYTES."""
    per_token = model.source.blocks * model.source.config.hidden_size * model.runner.dtype.itemsize
    return KEPT_BYTES // per_token


def portions(sequences: Sequence[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Sequences in order, in portions of at most so many tokens, at least one sequence each."""
    part: list[list[int]] = []
    for ids in sequences:
        if part and sum(map(len, part)) + len(ids) > tokens:
            yield part
            part = []
        part.append(ids)
    yield part


def forward(model: Model, sequences: Sequence[list[int]], steps: Steps) -> tuple[list[Tensor], HiddenStates]:
    """What each block read, (S, D) each, and the output of the last one."""
    hidden = HiddenStates(model.source, model.runner, sequences, None)
    read = []
    with torch.no_grad():
        for index in range(model.source.blocks):
            block = model.runner.make_block(index, read_block(index, model.source.block_tensors(index)))
            read.append(hidden.states_SD.clone())
            for batch_NTD in hidden.batches():
                batch_NTD.copy_(model.runner.run_block(block, batch_NTD.to(model.runner.device)))
            steps.advance()
    return read, hidden


def loss_gradients(head: Head, last: HiddenStates) -> Tensor:
    """(S, D) gradient of each sequence's mean loss by the output of the last block."""
    up_SD = torch.empty_like(last.states_SD)
    for ids_NT, (batch_NTD, up_NTD) in zip(last.ids(), last.batches_with(up_SD), strict=True):
        leaf_NTD = batch_NTD.to(head.runner.device).clone().requires_grad_()
        states_NTD = final_norm(head.source, head.runner, leaf_NTD[:, :-1])
        states_NTD.backward(logit_gradients(head, states_NTD.detach(), ids_NT[:, 1:].to(head.runner.device)))
        assert leaf_NTD.grad is not None
        up_NTD.copy_(leaf_NTD.grad)
    return up_SD


def logit_gradients(head: Head, states_NTD: Tensor, wanted_NT: Tensor) -> Tensor:
    """(N, T, D) gradient of the mean loss of each sequence by the head's input; few logits are held at a time."""
    result_NTD = torch.empty_like(states_NTD)
    tokens = states_NTD.shape[1]
    most = max(1, LOGIT_TOKENS // len(states_NTD))
    for begin in range(0, tokens, most):
        part_NTD = states_NTD[:, begin : begin + most].clone().requires_grad_()
        logits_SV = functional.linear(part_NTD, head.weight_VD).float().flatten(0, 1)
        targets_S = wanted_NT[:, begin : begin + most].flatten()
        (functional.cross_entropy(logits_SV, targets_S, reduction="sum") / tokens).backward()
        assert part_NTD.grad is not None
        result_NTD[:, begin : begin + most] = part_NTD.grad
    return result_NTD


def backward(
    runner: Runner, block: nn.Module, inputs_NTD: Tensor, up_NTD: Tensor, chosen: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """(N, R * R) sketch for each Linear in chosen; up_NTD, the gradient by the output, turns into that by the input."""
    seen: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        left_OR, right_IR = (table.to(runner.device) for table in chosen[name])

        def sketch(delta_NTO: Tensor) -> None:
            made[name] = torch.bmm((delta_NTO.float() @ left_OR).transpose(1, 2), seen.pop(name)).flatten(1).cpu()

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output_NTO: Tensor) -> None:
            seen[name] = inputs[0].detach().float() @ right_IR
            output_NTO.register_hook(sketch)

        return hook

    handles: list[RemovableHandle] = []
    try:
        for name in chosen:
            handles.append(block.get_submodule(name).register_forward_hook(watch(name)))
        leaf_NTD = inputs_NTD.to(runner.device).clone().requires_grad_()
        runner.run_block(block, leaf_NTD).backward(up_NTD.to(runner.device))
    finally:
        for handle in handles:
            handle.remove()
    assert leaf_NTD.grad is not None
    up_NTD.copy_(leaf_NTD.grad)
    return made


def joined(index: int, name: str, tables: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """(K, R * R) in the order in which the sequences were given."""
    sorted_KX = torch.cat(list(tables))
    if not bool(sorted_KX.isfinite().all()):
        raise PrunusError(f"block {index}, {name}: gradients hold NaN or infinity; try --dtype float32 or other text")
    result_KX = torch.empty_like(sorted_KX)
    result_KX[torch.tensor(order)] = sorted_KX
    return result_KX
