"""SLEB: remove blocks in turn, each time the block whose removal increases the loss least.

Song et al. 2024, arXiv:2402.09025, algorithm 1. Every round evaluates the remaining model again, which makes this the
strongest baseline. The first and the last block always stay, as in the authors' code. Memory: two copies of the hidden
states, the output head, and one block. Time: about L^2 / 2 block passes over the calibration tokens per removed block
of L, since the blocks before a candidate are run only once per round.
"""

import math
from collections.abc import Sequence

from prunus.checkpoint.runner import Runner
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration.hidden_states import HiddenStates, negative_log_likelihood, propagate
from prunus.pruning.depth.choice import DepthInputs, KeptBlocks, Mix


def choose(model: DepthInputs, count: int) -> KeptBlocks:
    """The model without `count` greedily removed blocks. Scores: nats per token after each removal, in that order.

    Raises PrunusError if the first or the last block would have to go, or if no sequence has two tokens.
    """
    model.check_independent("sleb")
    blocks = model.source.blocks
    if count > blocks - 2:
        raise PrunusError(
            f"sleb keeps the first and the last block, so it can remove {blocks - 2} at most, not {count}"
        )
    if all(len(ids) < 2 for ids in model.sequences):
        raise PrunusError("sleb needs calibration sequences of at least two tokens; these have one each")
    live, scores = list(range(blocks)), []
    with Steps("scoring", total=sum(blocks - 2 - done for done in range(count)), unit="candidates") as steps:
        for _ in range(count):
            losses = losses_without_each(model, live, steps)
            worst = min(losses, key=lambda index: (losses[index], index))
            live.remove(worst)
            scores.append(losses[worst])
    return KeptBlocks.without([index for index in range(blocks) if index not in live], blocks, scores)


def losses_without_each(model: DepthInputs, live: Sequence[int], steps: Steps) -> dict[int, float]:
    """Nats per predicted token without each of the live blocks but the first and the last, by block index."""
    before = model.embedded()
    propagate(model.runner, model.block(Mix.of(live[0])), before)
    losses = {}
    for place, index in enumerate(live[1:-1], 1):
        trial = before.copy()
        for later in live[place + 1 :]:
            propagate(model.runner, model.block(Mix.of(later)), trial)
        losses[index] = mean_loss(model.runner, trial)
        if not math.isfinite(losses[index]):
            raise PrunusError(f"without block {index} the loss on the calibration text is not finite; try another text")
        if place < len(live) - 2:
            propagate(model.runner, model.block(Mix.of(index)), before)
        steps.advance()
    return losses


def mean_loss(runner: Runner, last: HiddenStates) -> float:
    """Nats per predicted token, from the outputs of the last block."""
    total, predicted = 0.0, 0
    for batch, _, output_NTW in last.batches_on(runner.device):
        count, length = batch.ids_NT.shape
        if length > 1:
            total += negative_log_likelihood(runner, output_NTW, batch)
            predicted += count * (length - 1)
    return total / predicted
