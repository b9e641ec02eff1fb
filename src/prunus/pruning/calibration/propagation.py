"""Propagation: how calibration tokens pass through a block while it is pruned.

Each propagation is a generator. It yields the statistics of the Linears to prune next; the caller prunes them in the
block and resumes it; when it ends, the hidden states are those that the next block will read.
Shapes: N sequences, T tokens, W numbers per token between two blocks, A width of attention's output, F of the MLP.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunus.checkpoint.linears import Linear
from prunus.checkpoint.runner import Batch, Runner
from prunus.declarations import Needs
from prunus.pruning.calibration.hidden_states import HiddenStates, propagate
from prunus.pruning.calibration.statistics import InputStats, Observed, Observer
from prunus.recipes import Propagation

Stats = Mapping[str, InputStats]


class BlockRun(NamedTuple):
    """One block on its way through calibration: block number `number`, and the hidden states that it reads.

    linears: those to prune, in the order of a forward pass. last: no later block reads its output. needs: the
    statistics to take of their inputs. when_pruned: called when all of them are pruned, before hidden moves on.
    """

    runner: Runner
    block: nn.Module
    number: int
    hidden: HiddenStates
    linears: Sequence[Linear]
    last: bool
    needs: Needs = "norms"
    when_pruned: Callable[[], None] = lambda: None

    def watch(self, linears: Sequence[Linear], stop_early: bool = False) -> Observer:
        """An Observer of some of the block's Linears."""
        return Observer(self.runner, self.block, linears, stop_early, self.needs)

    def groups(self) -> list[list[Linear]]:
        """The Linears, those together that read the same input."""
        leaders = dict.fromkeys(linear.leader for linear in self.linears)
        return [[linear for linear in self.linears if linear.leader == leader] for leader in leaders]


def pruned(run: BlockRun) -> Iterator[Stats]:
    """The reference semantics: statistics of the dense block after pruned ones, then a second pass, pruned."""
    yield observed(run)
    run.when_pruned()
    if not run.last:
        propagate(run.runner, run.block, run.hidden)


def observed(run: BlockRun) -> Stats:
    """Statistics of the block as it is; hidden stays where it was."""
    return _observe(run, run.linears, move_on=False)


def dense(run: BlockRun) -> Iterator[Stats]:
    """One pass of the dense model, which pruning does not touch."""
    yield _observe(run, run.linears, move_on=not run.last)
    run.when_pruned()


def true_sequential(run: BlockRun) -> Iterator[Stats]:
    """`true_sequential` of the SparseGPT code: before each group of Linears the block is run again up to it, with all
    earlier ones pruned. A block that is attention and then an MLP is run in pieces instead, each once."""
    if _is_two_halves(run):
        yield from _in_pieces(run)
        run.when_pruned()
        return
    for group in run.groups():
        yield _observe(run, group, move_on=False)
    run.when_pruned()
    if not run.last:
        propagate(run.runner, run.block, run.hidden)


def _in_pieces(run: BlockRun) -> Iterator[Stats]:
    """q, k, v, then attention, then o, then gate, up, then down: every Linear is computed once, already pruned.

    The same statistics as by running the block again, at the price of one pass and of room for the widest input,
    (S, max(A, F)).
    """
    runner, block, hidden = run.runner, run.block, run.hidden
    o_name, down_name = OUTPUTS
    output, down = ([linear for linear in run.linears if linear.name == name] for name in OUTPUTS)
    query, gate = (
        [linear for linear in run.linears if linear.kind == kind and linear.name not in OUTPUTS]
        for kind in ("attention", "mlp")
    )
    if query:
        with run.watch(query, stop_early=True) as seen:
            for batch, rows_NTW in hidden.batches():
                _until_seen(lambda there, of=batch: attend(runner, block, there, of), rows_NTW.to(runner.device))
        yield seen.stats(run.number)
    if run.last and not (output or gate or down):
        return
    o_proj = _linear(block, o_name)
    kept_SA = hidden.room(o_proj.in_features)
    with bypass(block, o_name), run.watch(output) as seen:
        for batch, rows_NTW, kept_NTA in hidden.batches_with(kept_SA):
            kept_NTA.copy_(attend(runner, block, rows_NTW.to(runner.device), batch))
    if output:
        yield seen.stats(run.number)
    if run.last and not (gate or down):
        return
    with run.watch(gate, stop_early=True) as seen:
        for batch, rows_NTW, kept_NTA in hidden.batches_with(kept_SA):
            rows_NTW.add_(o_proj(kept_NTA.to(runner.device)).to(rows_NTW.device))
            if gate:
                _until_seen(lambda there, of=batch: feed(runner, block, there, of), rows_NTW.to(runner.device))
    if gate:
        yield seen.stats(run.number)
    if run.last and not down:
        return
    down_proj = _linear(block, down_name)
    kept_SF = hidden.room(down_proj.in_features)
    with bypass(block, down_name), run.watch(down) as seen:
        for batch, rows_NTW, kept_NTF in hidden.batches_with(kept_SF):
            kept_NTF.copy_(feed(runner, block, rows_NTW.to(runner.device), batch))
    if down:
        yield seen.stats(run.number)
    if not run.last:
        for _, rows_NTW, kept_NTF in hidden.batches_with(kept_SF):
            rows_NTW.add_(down_proj(kept_NTF.to(runner.device)).to(rows_NTW.device))


PROPAGATIONS: Mapping[Propagation, Callable[[BlockRun], Iterator[Stats]]] = MappingProxyType(
    {"pruned": pruned, "dense": dense, "true_sequential": true_sequential}
)
# The last Linears of the halves of a block that _in_pieces knows.
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def attend(runner: Runner, block: nn.Module, rows_NTW: Tensor, batch: Batch) -> Tensor:
    """The first half of a block without its residual, if the block is two halves: what attention adds to (N, T, W)."""
    runner.batch = batch
    normed_NTW = block.get_submodule("input_layernorm")(rows_NTW)
    return block.get_submodule("self_attn")(hidden_states=normed_NTW, **runner.call_of(block, batch).kwargs)[0]


def feed(runner: Runner, block: nn.Module, rows_NTW: Tensor, batch: Batch) -> Tensor:
    """The second half without its residual: what the MLP adds to (N, T, W)."""
    runner.batch = batch
    return block.get_submodule("mlp")(block.get_submodule("post_attention_layernorm")(rows_NTW))


def _is_two_halves(run: BlockRun) -> bool:
    """Whether the block adds what attention, then what the MLP makes of its norm, and each ends with its last Linear.

    Tried on the first batch, bit for bit.
    """
    runner, block = run.runner, run.block
    for kind in ("attention", "mlp"):
        if len({linear.leader for linear in run.linears if linear.kind == kind} - set(OUTPUTS)) > 1:
            return False
    batch, rows_NTW = next(iter(run.hidden.batches()))
    there_NTW = rows_NTW.to(runner.device)
    try:
        whole_NTW, pieces_NTW = runner.run_block(block, there_NTW, batch.copy()), there_NTW
        for half, name in zip((attend, feed), OUTPUTS, strict=True):
            with bypass(block, name):
                kept_NTX = half(runner, block, pieces_NTW, batch.copy())
            pieces_NTW = pieces_NTW + _linear(block, name)(kept_NTX)
        return torch.equal(whole_NTW, pieces_NTW)
    except (AttributeError, AssertionError, TypeError, RuntimeError, ValueError):  # a block of another make
        return False


@contextmanager
def bypass(block: nn.Module, name: str) -> Iterator[None]:
    """Within this, the Linear of that name returns its input unchanged."""
    path, _, last = name.rpartition(".")
    parent, module = block.get_submodule(path), block.get_submodule(name)
    setattr(parent, last, nn.Identity())
    try:
        yield
    finally:
        setattr(parent, last, module)


def _linear(block: nn.Module, name: str) -> nn.Linear:
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _observe(run: BlockRun, linears: Sequence[Linear], move_on: bool) -> Stats:
    """One pass over all tokens. move_on: keep the outputs too, as inputs of the next block."""
    runner, block = run.runner, run.block
    with run.watch(linears, stop_early=not move_on) as seen:
        for batch, rows_NTW, there_NTW in run.hidden.batches_on(runner.device):
            if move_on:
                rows_NTW.copy_(runner.run_block(block, there_NTW, batch))
            elif linears:
                _until_seen(lambda there, of=batch: runner.run_block(block, there, of), there_NTW)
    return seen.stats(run.number)


def _until_seen(run: Callable[[Tensor], Tensor], rows_NTW: Tensor) -> None:
    try:
        run(rows_NTW)
    except Observed:
        return
