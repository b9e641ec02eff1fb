"""Propagation: which weights the calibration tokens meet in a block while it is pruned.

Each propagation is a generator. It yields the statistics of the Linears to prune next; the caller prunes these in the
block and resumes it. When it ends, the hidden states are the input of the next block.
Shapes: N sequences, T tokens, S tokens of all sequences, W numbers per token between two blocks, A input width of
o_proj, F input width of down_proj.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunus.checkpoint.linears import Linear
from prunus.checkpoint.runner import Batch, Runner
from prunus.pruning.calibration.hidden_states import HiddenStates, portions, propagate
from prunus.pruning.calibration.statistics import InputsSeen, InputStats, Observer, is_few
from prunus.recipes.declarations import Needs
from prunus.recipes.prune import Propagation

Stats = Mapping[str, InputStats]
# Bytes of experts' Hessians that are in memory at once; further experts take further passes over the block.
HESSIAN_BYTES = 1 << 30


class BlockRun(NamedTuple):
    """One block during calibration, with the hidden states that are its input.

    number: its index. linears: those to prune, in the order of a forward pass. last: whether it is the last block, so
    that its output is not needed. needs: the statistics to take of their inputs.
    """

    runner: Runner
    block: nn.Module
    number: int
    hidden: HiddenStates
    linears: Sequence[Linear]
    last: bool
    needs: Needs = "norms"

    def watch(
        self, linears: Sequence[Linear], stop_early: bool = False, everywhere: Collection[tuple[str, int]] = ()
    ) -> Observer:
        """An Observer of the inputs of some of the block's Linears. everywhere: experts to observe on all tokens."""
        return Observer(self.runner, self.block, linears, stop_early, self.needs, everywhere)

    @property
    def has_experts(self) -> bool:
        """Whether Linears of routed experts are pruned."""
        return any(linear.experts for linear in self.linears)

    def groups(self) -> list[list[Linear]]:
        """The Linears, grouped by the input that they read; a group has gate and up, or down, of all experts."""
        by_input: dict[Any, list[Linear]] = {}
        for linear in self.linears:
            stage = (linear.experts, linear.leader.endswith("down_proj")) if linear.experts else linear.leader
            by_input.setdefault(stage, []).append(linear)
        return list(by_input.values())

    def portions(self, linears: Sequence[Linear]) -> list[list[Linear]]:
        """The Linears in portions of as many experts as may have their Hessians in memory at once.

        The first portion also has all Linears outside experts.
        """
        if self.needs != "hessian" or not self.has_experts:
            return [list(linears)]
        experts: dict[Any, list[Linear]] = {}
        for linear in linears:
            if linear.expert is not None:
                experts.setdefault(linear.expert, []).append(linear)

        def size(own: list[Linear]) -> int:
            return 4 * sum(linear.shape_OI[1] ** 2 for linear in own if linear.name == linear.leader)

        parts = [[*chain.from_iterable(some)] for some in portions(experts.values(), size, HESSIAN_BYTES)] or [[]]
        return [[linear for linear in linears if not linear.experts] + parts[0], *parts[1:]]


def pruned(run: BlockRun) -> Iterator[Stats]:
    """Statistics of the dense block on the output of pruned ones; then a second pass through the pruned block.

    This is the default, as in the reference implementations of Wanda and SparseGPT.
    """
    yield from _in_portions(run)
    if not run.last:
        propagate(run.runner, run.block, run.hidden)


def _in_portions(run: BlockRun) -> Iterator[Stats]:
    """Statistics of the block's Linears: first of experts, in portions, then of Linears outside experts.

    Experts work side by side, so those that are pruned already do not change the inputs of others.
    """
    first, *others = run.portions(run.linears)
    if not others:
        yield observe(run, first)
        return
    seen = dict(observe(run, first))
    outside = {linear.name: seen.pop(linear.name) for linear in first if not linear.experts}
    yield {name: seen.pop(name) for name in list(seen)}
    for portion in others:
        yield observe(run, portion)
    yield outside


def dense(run: BlockRun) -> Iterator[Stats]:
    """Statistics of the dense model, in one pass: hidden becomes the output of the dense block.

    With experts, whose statistics may take several passes, the block runs once more for its output; the caller must
    leave its weights as they are until then.
    """
    if run.has_experts:
        yield from pruned(run)
    else:
        yield observe(run, run.linears, advance=not run.last)


def true_sequential(run: BlockRun) -> Iterator[Stats]:
    """Statistics of each group of Linears with all earlier groups of the block pruned (SparseGPT's true_sequential).

    The block is run again for each group, up to it. A block made of attention and then an MLP is run in pieces instead,
    each of them once.
    """
    if _is_two_halves(run):
        yield from _in_pieces(run)
        return
    for group in run.groups():
        for portion in run.portions(group):
            if portion:
                yield observe(run, portion)
    if not run.last:
        propagate(run.runner, run.block, run.hidden)


def _in_pieces(run: BlockRun) -> Iterator[Stats]:
    """Statistics of q, k, v; then o; then gate, up; then down. Every Linear is run once after it is pruned.

    These are the same statistics as by running the block again for each group, in about one pass, with a table
    (S, max(A, F)) for the widest input.
    """
    runner, block, hidden, left = run.runner, run.block, run.hidden, len(run.linears)
    for half, kind, name in zip((attend, feed), ("attention", "mlp"), OUTPUTS, strict=True):
        inner = [linear for linear in run.linears if linear.kind == kind and linear.name != name]
        outer = [linear for linear in run.linears if linear.name == name]
        if inner:
            with run.watch(inner, stop_early=True) as seen:
                for batch, rows_NTW in hidden.batches():
                    with suppress(InputsSeen):
                        half(runner, block, rows_NTW.to(runner.device, non_blocking=True), batch)
            yield seen.stats(run.number)
            left -= len(inner)
        if run.last and not left:
            return
        output = _linear(block, name)
        kept_SX = hidden.room(output.in_features)
        with bypass(block, name), run.watch(outer) as seen:
            for batch, rows_NTW, kept_NTX in hidden.batches_with(kept_SX):
                kept_NTX.copy_(half(runner, block, rows_NTW.to(runner.device, non_blocking=True), batch))
        if outer:
            yield seen.stats(run.number)
            left -= len(outer)
        if run.last and not left:
            return
        for _, rows_NTW, kept_NTX in hidden.batches_with(kept_SX):
            rows_NTW.add_(output(kept_NTX.to(runner.device, non_blocking=True)).to(rows_NTW.device))


PROPAGATIONS: Mapping[Propagation, Callable[[BlockRun], Iterator[Stats]]] = MappingProxyType(
    {"pruned": pruned, "dense": dense, "true_sequential": true_sequential}
)
# The last Linears of attention and MLP, in blocks that _in_pieces can run.
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def attend(runner: Runner, block: nn.Module, rows_NTW: Tensor, batch: Batch) -> Tensor:
    """(N, T, W) output of a block's attention on its normed input, without the residual (see _is_two_halves)."""
    runner.batch = batch
    normed_NTW = block.get_submodule("input_layernorm")(rows_NTW)
    return block.get_submodule("self_attn")(hidden_states=normed_NTW, **runner.call_of(block, batch).kwargs)[0]


def feed(runner: Runner, block: nn.Module, rows_NTW: Tensor, batch: Batch) -> Tensor:
    """(N, T, W) output of a block's MLP on its normed input, without the residual (see _is_two_halves)."""
    runner.batch = batch
    return block.get_submodule("mlp")(block.get_submodule("post_attention_layernorm")(rows_NTW))


def _is_two_halves(run: BlockRun) -> bool:
    """Whether the block is pre-norm attention and then a pre-norm MLP, each with a residual and ending in its OUTPUTS.

    Tested by running the first batch both ways; the results must be bitwise equal.
    """
    runner, block = run.runner, run.block
    for kind in ("attention", "mlp"):
        if len({linear.leader for linear in run.linears if linear.kind == kind} - set(OUTPUTS)) > 1:
            return False
    batch, rows_NTW = next(iter(run.hidden.batches()))
    input_NTW = rows_NTW.to(runner.device, non_blocking=True)
    try:
        whole_NTW, pieces_NTW = runner.run_block(block, input_NTW, batch.copy()), input_NTW
        for half, name in zip((attend, feed), OUTPUTS, strict=True):
            with bypass(block, name):
                kept_NTX = half(runner, block, pieces_NTW, batch.copy())
            pieces_NTW = pieces_NTW + _linear(block, name)(kept_NTX)
        return torch.equal(whole_NTW, pieces_NTW)
    except (AttributeError, AssertionError, TypeError, RuntimeError, ValueError):  # a block of another structure
        return False


@contextmanager
def bypass(block: nn.Module, name: str) -> Iterator[None]:
    """Within the context, the Linear of that name returns its input unchanged."""
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


def observe(run: BlockRun, linears: Sequence[Linear], advance: bool = False) -> Stats:
    """Statistics of the linears, from one pass over all tokens. advance: replace hidden by the block's output.

    Experts that met too few tokens take a second pass, in which they run on all tokens of their layer.
    """
    runner, block = run.runner, run.block
    with run.watch(linears, stop_early=not advance) as seen:
        for batch, rows_NTW, input_NTW in run.hidden.batches_on(runner.device):
            if advance:
                rows_NTW.copy_(runner.run_block(block, input_NTW, batch))
            elif linears:
                with suppress(InputsSeen):
                    runner.run_block(block, input_NTW, batch)
    observed = seen.stats(run.number)
    few = {
        expert: seen.tokens[linear.leader]
        for linear in linears
        if (expert := linear.expert) is not None and is_few(seen.tokens[linear.leader])
    }
    if not few:
        return observed
    assert not advance, "the block's input is gone"
    poor = {linear.name: few[linear.expert] for linear in linears if linear.expert is not None and linear.expert in few}
    observed = {name: stats for name, stats in observed.items() if name not in poor}  # which frees their Hessians
    with run.watch([linear for linear in linears if linear.name in poor], everywhere=list(few)) as again:
        for batch, _, input_NTW in run.hidden.batches_on(runner.device):
            runner.run_block(block, input_NTW, batch)
    pooled = again.stats(run.number)
    return {**observed, **{name: replace(pooled[name], pooled=count) for name, count in poor.items()}}
