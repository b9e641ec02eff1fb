"""The residual streams of the dense and of the pruned model between two blocks, for the same calibration tokens.

Sequences of like lengths are padded on the right to a common one, so that a step of training is one batch: a decoder
never looks ahead, so no token sees the padding, and padding counts nothing in the loss. Shapes: N sequences, T tokens,
S tokens of all batches one after the other with padding, W numbers per token between two blocks.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from prunus.checkpoint.runner import Batch, Runner
from prunus.errors import PrunusError
from prunus.pruning.calibration.hidden_states import HiddenStates
from prunus.pruning.recovery.fit import Example

HELD_OUT = 8  # one of every 8 batches is held out
PADDING = 0  # any token id does


class Streams:
    """Both start as embeddings and are moved on block by block: hidden is the dense model's, input_SW the other's.

    batch_tokens: most tokens of a batch, unless one sequence has more. file: where to keep them; None: in memory.
    token_weights: how much each token of each sequence counts.
    """

    def __init__(
        self,
        dense: Runner,
        pruned: Runner,
        sequences: Sequence[list[int]],
        token_weights: Sequence[Sequence[float]],
        batch_tokens: int,
        file: Path | None,
    ) -> None:
        padded, weights = pad(sequences, token_weights, batch_tokens)
        self.hidden = HiddenStates(dense, padded, file, pruned.width, weights, batch_tokens)
        self.dense, self.pruned = dense, pruned
        self.input_SW = self.hidden.room(pruned.width)
        self.batches = [batch.copy() for batch, _ in self.hidden.batches()]
        for batch, rows_NTW in zip(self.batches, self.hidden.views(self.input_SW), strict=True):
            rows_NTW.copy_(pruned.embed(batch))

    def advance_dense(self, block: nn.Module) -> None:
        """Move the dense model's stream through one of its blocks."""
        for batch, rows_NTW, there_NTW in self.hidden.batches_on(self.dense.device):
            rows_NTW.copy_(self.dense.run_block(block, there_NTW, batch))

    def start_from_pruned(self) -> None:
        """Let the dense model's stream be the pruned model's; errors of earlier blocks are then not corrected."""
        for rows_NTW, input_NTW in zip(
            self.hidden.views(self.hidden.states_SW), self.hidden.views(self.input_SW), strict=True
        ):
            rows_NTW.copy_(input_NTW)

    def advance_pruned(self, block: nn.Module) -> None:
        """Move the pruned model's stream through one of its blocks."""
        for batch, rows_NTW in zip(self.batches, self.hidden.views(self.input_SW), strict=True):
            rows_NTW.copy_(self.pruned.run_block(block, rows_NTW.to(self.pruned.device), batch))

    def examples(self, block: nn.Module, numbers: Sequence[int]) -> "StreamExamples":
        """For each of these batches what the block reads and should give out: the pruned stream and the dense one."""
        return StreamExamples(self, block, numbers)


class StreamExamples:
    """Batches of streams as examples for a block. Of streams in a file, only one batch is in memory at a time."""

    def __init__(self, streams: Streams, block: nn.Module, numbers: Sequence[int]) -> None:
        self._streams, self._block, self._numbers = streams, block, numbers
        hidden = streams.hidden
        self._views = list(
            zip(streams.batches, hidden.views(streams.input_SW), hidden.views(hidden.states_SW), strict=True)
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        """The example at an index; those given before can still be read, but are on the disk only."""
        self._streams.hidden.release_pages()
        batch, read_NTW, wanted_NTW = self._views[self._numbers[index]]
        pruned, block = self._streams.pruned, self._block

        def run(rows_NTW: Tensor, first: int) -> Tensor:
            part = Batch(batch.ids_NT[first : first + len(rows_NTW)])
            return pruned.run_block(block, rows_NTW.to(pruned.device), part)

        return Example(run, read_NTW, wanted_NTW, weight_of(batch))


def weight_of(batch: Batch) -> Tensor:
    """(N, T): how much each token counts."""
    assert batch.weight_NT1 is not None
    return batch.weight_NT1[..., 0]


def pad(
    sequences: Sequence[list[int]], token_weights: Sequence[Sequence[float]], batch_tokens: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The sequences, shortest first, each padded to the longest of those that share a batch; weights are 0 there."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * len(sequences[i]) <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    padded, weights = [], []
    for group in groups:
        longest = len(sequences[group[-1]])
        for i in group:
            missing = longest - len(sequences[i])
            padded.append([*sequences[i], *[PADDING] * missing])
            weights.append([*token_weights[i], *[0.0] * missing])
    return padded, weights


def tokens_of_step(step_tokens: int, sequences: Sequence[Sequence[int]]) -> int:
    """The most tokens of a batch: fewer than step_tokens where all sequences would be one, and none held out.

    Raises PrunusError for a single sequence.
    """
    if len(sequences) < 2:
        raise PrunusError(
            "the calibration is one sequence, so that none can be held out to check what training gains: give at least"
            " two (--samples or --calibration-tokens)"
        )
    return min(step_tokens, len(sequences) * max(map(len, sequences)) - 1)


def split(count: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Indices of the batches to train on and of those that are held out: one in eight, at least one of two."""
    held_out = set(rng.sample(range(count), max(1, count // HELD_OUT)))
    return [i for i in range(count) if i not in held_out], sorted(held_out)
