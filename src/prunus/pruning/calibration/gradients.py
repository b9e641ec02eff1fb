"""Loss gradients of all Linears, with one block in memory at a time.

A forward pass stores the input of every block. A backward pass then goes from the loss down through the blocks and runs
each of them again, with a graph of its own. Weights are not part of that graph: a GradientHook gets the input X of
every Linear and the gradient Delta with respect to its output, and computes what it needs from them, such as the
weight's gradient Delta^T X. Shapes: N sequences of a batch, T tokens, S tokens of all sequences, W numbers per token
between two blocks, X features at the input of the output head, O and I features of a Linear, R rank of a sketch, K
sequences in total.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import shares_state
from prunus.checkpoint.loader import blocks_on
from prunus.checkpoint.runner import Runner
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration.hidden_states import LOGIT_TOKENS, HiddenStates, batches, portion_tokens, portions
from prunus.pruning.calibration.statistics import by_sequence

RANK = 32

Projections = Callable[[int, str, int, int], tuple[Tensor, Tensor]]


class GradientModel(NamedTuple):
    """A model whose gradients are computed.

    linears: for each block, the names within it of the Linears. file: for the inputs of all blocks; None uses memory.
    """

    source: Checkpoint
    runner: Runner
    linears: Sequence[Sequence[str]]
    file: Path | None = None

    @property
    def per_token(self) -> int:
        """Bytes stored per token: the input of each block, the output of the last block, and a gradient."""
        return (self.source.blocks + 2) * self.runner.width * self.runner.dtype.itemsize


class GradientHook(NamedTuple):
    """Callbacks of a backward pass.

    forward(Linear's name, its input X (N, T, I)) returns what to store until the backward pass; backward(name, what was
    stored, gradient Delta (N, T, O) with respect to its output) uses both.
    """

    forward: Callable[[str, Tensor], Any]
    backward: Callable[[str, Any, Tensor], None]


def backward_blocks(
    model: GradientModel, sequences: Sequence[list[int]], counted: Sequence[Sequence[bool]] | None = None
) -> Iterator[tuple[int, nn.Module, Callable[[GradientHook], None]]]:
    """Yield (number, block, run) from the last block to the first, once for every portion of the sequences.

    sequences: the shortest first. run(hook) takes a portion through the block, forwards and backwards; the caller must
    call it once. The loss of a sequence is the mean over its tokens but the first. counted: which tokens that mean is
    over, per sequence; None: all. Raises PrunusError if blocks pass more than hidden states to each other.
    """
    if shares_state(model.runner.architecture):
        raise PrunusError(
            f"gradients of {model.source.folder} cannot be computed: its blocks pass more than hidden states on"
        )
    most = portion_tokens(model.per_token, model.file)
    whole = portions(batches(sequences), lambda batch: sum(map(len, batch)), most)
    parts = [[*chain.from_iterable(some)] for some in whole]
    begin = 0
    total = 2 * model.source.blocks * len(parts)
    with torch.inference_mode(False), torch.enable_grad(), Steps("gradients", total, unit="blocks") as steps:
        memory = None  # one buffer for all portions, so that two never exist at once
        if model.file is None:
            tables = (model.source.blocks + 1) * model.runner.width
            numbers = max(sum(map(len, part)) for part in parts) * tables
            memory = torch.empty(numbers, dtype=model.runner.dtype)
        for part in parts:
            of_part = None if counted is None else counted[begin : begin + len(part)]
            begin += len(part)
            tables_BSW, last = forward(model, part, of_part, steps, memory)
            up_SW = tables_BSW[-1]
            loss_gradients(model.runner, last, up_SW)
            backwards = range(model.source.blocks)[::-1]
            blocks = blocks_on(model.source, backwards, model.runner.device)
            for index in backwards:
                block = model.runner.make_block(index, next(blocks))
                last.states_SW = tables_BSW[index]
                yield index, block, partial(run_backwards, model.runner, block, model.linears[index], last, up_SW)
                steps.advance()


def run_backwards(
    runner: Runner, block: nn.Module, linears: Sequence[str], inputs: HiddenStates, up_SW: Tensor, hook: GradientHook
) -> None:
    """Run all sequences forwards and backwards through a block.

    inputs: the block's. up_SW: gradients with respect to its outputs, which become those with respect to its inputs.
    hook: called for each of these Linears.
    """

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def forward_hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            batch = runner.batch
            kept = [hook.forward(name, by_sequence(inputs[0].detach(), batch))]
            output.register_hook(lambda delta: hook.backward(name, kept.pop(), by_sequence(delta, batch)))

        return forward_hook

    with ExitStack() as hooks:
        for name in linears:
            hooks.enter_context(block.get_submodule(name).register_forward_hook(hook_of(name)))
        for batch, inputs_NTW, up_NTW in inputs.batches_with(up_SW):
            leaf_NTW = inputs_NTW.to(runner.device, runner.dtype, copy=True).requires_grad_()
            runner.run_block(block, leaf_NTW, batch).backward(up_NTW.to(runner.device))
            assert leaf_NTW.grad is not None
            up_NTW.copy_(leaf_NTW.grad)
            del leaf_NTW  # before that of the next batch is made


def forward(
    model: GradientModel,
    sequences: Sequence[list[int]],
    counted: Sequence[Sequence[bool]] | None,
    steps: Steps,
    memory: Tensor | None,
) -> tuple[Tensor, HiddenStates]:
    """The inputs of all blocks, (B + 1, S, W) with one spare table at the end, and the outputs of the last block.

    memory: buffer for the inputs; None stores them in the file of the hidden states.
    """
    source, runner, count = model.source, model.runner, model.source.blocks + 1
    width = runner.width
    room = count * width if memory is None else 0
    hidden = HiddenStates(runner, sequences, model.file, room, counted)
    kept_SX = hidden.room(room) if memory is None else memory[: count * hidden.tokens * width]
    tables_BSW = kept_SX.view(count, hidden.tokens, width)
    with torch.no_grad():
        blocks = blocks_on(source, range(source.blocks), runner.device)
        for index in range(source.blocks):
            block = runner.make_block(index, next(blocks))
            pairs = zip(hidden.batches_on(runner.device), hidden.views(tables_BSW[index]), strict=True)
            for (batch, rows_NTW, input_NTW), kept_NTW in pairs:
                kept_NTW.copy_(rows_NTW)
                rows_NTW.copy_(runner.run_block(block, input_NTW, batch))
            steps.advance()
    return tables_BSW, hidden


def loss_gradients(runner: Runner, last: HiddenStates, up_SW: Tensor) -> None:
    """Fill up_SW with the gradient of each sequence's loss with respect to the output of the last block."""
    for batch, rows_NTW, up_NTW in last.batches_with(up_SW):
        counted_NT = torch.ones_like(batch.ids_NT) if batch.counted_NT1 is None else batch.counted_NT1[..., 0]
        leaf_NTW = rows_NTW.to(runner.device).clone().requires_grad_()
        states_NTX = runner.states(leaf_NTW, batch)[:, :-1]
        target_NT, counted_NT = (table_NT[:, 1:].to(runner.device) for table_NT in (batch.ids_NT, counted_NT))
        states_NTX.backward(head_gradients(runner, states_NTX.detach(), target_NT, counted_NT))
        assert leaf_NTW.grad is not None
        up_NTW.copy_(leaf_NTW.grad)


def head_gradients(runner: Runner, states_NTX: Tensor, target_NT: Tensor, counted_NT: Tensor) -> Tensor:
    """(N, T, X) gradient of each sequence's mean loss over the counted tokens by the input of the output head.

    Logits are computed for a few tokens at a time. A sequence of which no token counts has gradient 0.
    """
    result_NTX = torch.empty_like(states_NTX)
    tokens = states_NTX.shape[1]
    share_NT = counted_NT / counted_NT.sum(1, keepdim=True).clamp(min=1)
    most = max(1, LOGIT_TOKENS // len(states_NTX))
    for begin in range(0, tokens, most):
        part_NTX = states_NTX[:, begin : begin + most].clone().requires_grad_()
        logits_SV = runner.logits(part_NTX).float().flatten(0, 1)
        targets_S = target_NT[:, begin : begin + most].flatten()
        loss_S = functional.cross_entropy(logits_SV, targets_S, reduction="none")
        (loss_S * share_NT[:, begin : begin + most].flatten()).sum().backward()
        assert part_NTX.grad is not None
        result_NTX[:, begin : begin + most] = part_NTX.grad
    return result_NTX


def signs(seed: int, source: Checkpoint) -> Projections:
    """A function (block, linear, O, I) -> random signs (O, R) and (I, R), divided by sqrt(R) and fixed by the seed."""
    tables = [[linear.name for linear in source.linears(index)] for index in range(source.blocks)]

    def draw(block: int, linear: str, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        place = sum(map(len, tables[:block])) + tables[block].index(linear)
        generator = torch.Generator().manual_seed((seed << 20) + place)
        both = torch.randint(0, 2, (outputs + inputs, RANK), generator=generator) * 2.0 - 1.0
        return both[:outputs] / RANK**0.5, both[outputs:] / RANK**0.5

    return draw


def sketches(
    model: GradientModel,
    sequences: Sequence[list[int]],
    projections: Projections,
    counted: Sequence[Sequence[bool]] | None = None,
) -> list[dict[str, Tensor]]:
    """For each block and Linear a (K, R * R) float32 table with the sketched loss gradient of every sequence.

    The sketch (Delta Q)^T (X P), with random signs Q and P, preserves inner products in expectation. Sequences need two
    tokens or more. counted: as in backward_blocks. NaN or infinity raises PrunusError.
    """
    by_block: list[dict[str, list[Tensor]]] = [{name: [] for name in names} for names in model.linears]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    given, whose = [sequences[i] for i in order], counted and [counted[i] for i in order]
    for number, block, run in backward_blocks(model, given, whose):
        shapes = {name: block.get_submodule(name).get_parameter("weight").shape for name in model.linears[number]}
        drawn = {name: projections(number, name, *shape) for name, shape in shapes.items()}
        run(_sketch_hook(drawn, model.runner.device, by_block[number]))
    return [
        {name: joined(index, name, tables, order) for name, tables in row.items()} for index, row in enumerate(by_block)
    ]


def _sketch_hook(
    drawn: Mapping[str, tuple[Tensor, Tensor]], device: torch.device, tables: Mapping[str, list[Tensor]]
) -> GradientHook:
    """A GradientHook that appends the sketches of every batch to the tables."""
    left_OR = {name: pair[0].to(device) for name, pair in drawn.items()}
    right_IR = {name: pair[1].to(device) for name, pair in drawn.items()}

    def project(name: str, input_NTI: Tensor) -> Tensor:
        return input_NTI.float() @ right_IR[name]

    def append(name: str, input_NTR: Tensor, delta_NTO: Tensor) -> None:
        delta_NTR = delta_NTO.float() @ left_OR[name]
        tables[name].append(torch.bmm(delta_NTR.transpose(1, 2), input_NTR).flatten(1).cpu())

    return GradientHook(project, append)


def joined(index: int, name: str, tables: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """(K, R * R) sketches in the order in which the sequences were given."""
    sorted_KX = torch.cat(list(tables))
    check_finite(index, name, sorted_KX)
    result_KX = torch.empty_like(sorted_KX)
    result_KX[torch.tensor(order)] = sorted_KX
    return result_KX


def check_finite(index: int, name: str, table: Tensor) -> None:
    """Raise PrunusError if gradients hold NaN or infinity."""
    if not bool(table.isfinite().all()):
        raise PrunusError(f"block {index}, {name}: gradients hold NaN or infinity; try --dtype float32 or other text")
