"""What later Linears see of earlier ones: how calibration tokens pass through a block while it is pruned.

Each way is a generator: it yields statistics of the Linears that can be pruned now, the caller prunes those in the
block, then lets it go on; at its end the hidden states are those that the next block will read.
Shapes: S tokens of all sequences, N sequences, T tokens, D hidden width, A width of attention's output, F of the MLP.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from prunus.checkpoint.families import LINEARS, SAME_INPUT_AS, Runner
from prunus.pruning.hidden import HiddenStates, propagate
from prunus.pruning.observe import InputStats, Needs, Observed, Observer
from prunus.recipes import Propagation

Stats = Mapping[str, InputStats]


class Passage(NamedTuple):
    """Block number `number` and what goes through it.

    linears: to be pruned. last: nobody needs its output. needs: what must be known of their inputs.
    """

    runner: Runner
    block: nn.Module
    number: int
    hidden: HiddenStates
    linears: Sequence[str]
    last: bool
    needs: Needs = "norms"

    def watch(self, linears: Sequence[str], stop_early: bool = False) -> Observer:
        """An Observer of some of the block's Linears."""
        return Observer(self.block, linears, stop_early, self.needs, self.hidden.weights)

    def stats(self, seen: Observer) -> Stats:
        """What it has seen, once all tokens have passed."""
        return seen.stats(self.number, self.hidden.tokens)


def pruned(passage: Passage) -> Iterator[Stats]:
    """The reference semantics: statistics of the dense block after pruned ones, then a second pass, pruned."""
    yield observed(passage)
    if not passage.last:
        propagate(passage.runner, passage.block, passage.hidden)


def observed(passage: Passage) -> Stats:
    """Statistics of the block as it is; hidden stays where it was."""
    return _observe(passage, move_on=False)


def dense(passage: Passage) -> Iterator[Stats]:
    """One pass of the dense model, which pruning does not touch."""
    yield _observe(passage, move_on=not passage.last)


def staged(passage: Passage) -> Iterator[Stats]:
    """q, k, v, then attention, then o, then gate, up, then down: every Linear is computed once, already pruned.

    The same statistics as `true_sequential` of the SparseGPT code, which runs the block again before each group, at the
    price of one pass and of room for the widest input, (S, max(A, F)).
    """
    runner, block, hidden = passage.runner, passage.block, passage.hidden
    groups = [[name for name in passage.linears if SAME_INPUT_AS.get(name, name) == leader] for leader in LEADERS]
    query, output, gate, down = groups
    if query:
        with passage.watch(query, stop_early=True) as seen:
            for states_NTD in hidden.batches():
                _until_seen(lambda batch_NTD: runner.attend(block, batch_NTD), states_NTD.to(runner.device))
        yield passage.stats(seen)
    if passage.last and not (output or gate or down):
        return
    o_proj = _linear(block, "self_attn.o_proj")
    kept_SA = hidden.room(o_proj.in_features)
    with Without(block, "self_attn.o_proj"), passage.watch(output) as seen:
        for states_NTD, kept_NTA in hidden.batches_with(kept_SA):
            kept_NTA.copy_(runner.attend(block, states_NTD.to(runner.device)))
    if output:
        yield passage.stats(seen)
    if passage.last and not (gate or down):
        return
    with passage.watch(gate, stop_early=True) as seen:
        for states_NTD, kept_NTA in hidden.batches_with(kept_SA):
            states_NTD.add_(o_proj(kept_NTA.to(runner.device)).to(states_NTD.device))
            if gate:
                _until_seen(lambda batch_NTD: runner.feed(block, batch_NTD), states_NTD.to(runner.device))
    if gate:
        yield passage.stats(seen)
    if passage.last and not down:
        return
    down_proj = _linear(block, "mlp.down_proj")
    kept_SF = hidden.room(down_proj.in_features)
    with Without(block, "mlp.down_proj"), passage.watch(down) as seen:
        for states_NTD, kept_NTF in hidden.batches_with(kept_SF):
            kept_NTF.copy_(runner.feed(block, states_NTD.to(runner.device)))
    if down:
        yield passage.stats(seen)
    if not passage.last:
        for states_NTD, kept_NTF in hidden.batches_with(kept_SF):
            states_NTD.add_(down_proj(kept_NTF.to(runner.device)).to(states_NTD.device))


LEADERS = tuple(name for name in LINEARS if name not in SAME_INPUT_AS)
PROPAGATIONS: Mapping[Propagation, Callable[[Passage], Iterator[Stats]]] = MappingProxyType(
    {"pruned": pruned, "dense": dense, "staged": staged}
)


class Without:
    """`with Without(block, name)`: the Linear of that name hands its input on as it is."""

    def __init__(self, block: nn.Module, name: str) -> None:
        path, _, self.name = name.rpartition(".")
        self.parent = block.get_submodule(path)
        self.module = block.get_submodule(name)

    def __enter__(self) -> None:
        setattr(self.parent, self.name, nn.Identity())

    def __exit__(self, *_error: object) -> None:
        setattr(self.parent, self.name, self.module)


def _linear(block: nn.Module, name: str) -> nn.Linear:
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _observe(passage: Passage, move_on: bool) -> Stats:
    """One pass over all tokens. move_on: keep the outputs too, as inputs of the next block."""
    runner, block = passage.runner, passage.block
    with passage.watch(passage.linears, stop_early=not move_on) as seen:
        for states_NTD, there_NTD in passage.hidden.batches_on(runner.device):
            if move_on:
                states_NTD.copy_(runner.run_block(block, there_NTD))
            else:
                _until_seen(lambda batch_NTD: runner.run_block(block, batch_NTD), there_NTD)
    return passage.stats(seen)


def _until_seen(run: Callable[[Tensor], Tensor], batch_NTD: Tensor) -> None:
    try:
        run(batch_NTD)
    except Observed:
        return
