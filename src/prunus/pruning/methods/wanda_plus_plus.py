"""Wanda++: a score with regional gradients (of the block's own output) and regional optimisation of the weights.

Yang et al. 2025, arXiv:2503.04992. Only the block itself is run, in float32, since the optimiser's steps are too small
for 16 bits. The paper's code is not public. As in the open reproduction TTTTTTris/wandaplus, every sampled sequence is
one optimiser step. Unlike there, gradients and norms are always those of the dense block. Regional optimisation is
called repair here and in the options. Shapes: N sequences of a batch, T tokens, W numbers per token between two blocks.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunus.checkpoint.runner import Runner
from prunus.pruning.calibration.gradients import SquareSums, backward
from prunus.pruning.calibration.hidden_states import HiddenStates, propagate
from prunus.pruning.calibration.propagation import BlockRun, Stats, observe
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.methods import gblm
from prunus.pruning.passes import Pass, PruneJob

SAMPLED = 32  # sequences of one round of repair
# prune(name of a Linear, its weight, its statistics) -> the pruned weight
Prune = Callable[[str, Tensor, InputStats], Tensor]


class Repair(NamedTuple):
    """Settings of a repair. Each round prunes the block, then takes one step of RMSprop per sampled sequence.

    rate: the learning rate. seed: of the sampling of sequences.
    """

    rounds: int
    rate: float
    seed: str


def with_regional_gradients(
    runner: Runner, block: nn.Module, hidden: HiddenStates, stats: Mapping[str, InputStats], scale: float
) -> dict[str, InputStats]:
    """stats with gradient_OI: scale * root mean square, over sequences, of d ||output of the block|| / d weight.

    Norms stay those over all tokens, as in the paper's score, so their weight against the gradients grows with the
    number of tokens.
    """
    found, count = SquareSums(rows=False), len(hidden.sequences())

    def by_norm(output_NTW: Tensor) -> Tensor:
        return output_NTW / output_NTW.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]

    with torch.enable_grad():
        for batch, inputs_NTW in hidden.batches():
            backward(runner, block, batch, inputs_NTW, by_norm, list(stats), found.hook)
    for name in stats:  # of an expert that no token was sent to
        found.sums.setdefault(name, torch.zeros_like(block.get_submodule(name).get_parameter("weight")))
    return {
        name: replace(inputs, gradient_OI=found.sums[name].div_(count).sqrt_().mul_(scale))
        for name, inputs in stats.items()
    }


def repair(
    runner: Runner,
    block: nn.Module,
    dense: nn.Module,
    hidden: HiddenStates,
    stats: Mapping[str, InputStats],
    prune: Prune,
    settings: Repair,
) -> None:
    """Update the weights of the block's Linears in place, so that the pruned block's output is closer to dense's.

    The optimiser also updates zeros, so each round prunes again, and the caller must prune the result once more.
    """
    weights = {name: block.get_submodule(name).get_parameter("weight") for name in stats}
    optimizer = torch.optim.RMSprop(list(weights.values()), lr=settings.rate)
    sequences, rng = hidden.sequences(), random.Random(settings.seed)
    for _ in range(settings.rounds):
        for name, weight_OI in weights.items():
            weight_OI.data = prune(name, weight_OI.data, stats[name])
        for index in rng.sample(range(len(sequences)), min(SAMPLED, len(sequences))):
            batch, rows_1TW = sequences[index]
            input_1TW = rows_1TW.to(runner.device, runner.dtype)
            target_1TW = runner.run_block(dense, input_1TW, batch)
            with torch.enable_grad():
                block.requires_grad_(False)
                for weight_OI in weights.values():
                    weight_OI.requires_grad_()
                (runner.run_block(block, input_1TW, batch) - target_1TW).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()


class RegionalRepair(Pass):
    """Measures gradients of a block's own output and repairs its weights before the block is pruned."""

    needs = "gradients"

    def statistics(
        self, job: PruneJob, run: BlockRun, tensors: dict[str, Tensor], groups: Iterable[Stats]
    ) -> Iterator[Stats]:
        """Statistics of the dense block with its gradients. Weights in tensors are repaired before the first yield."""
        recipe, block, hidden = job.recipe, run.block, run.hidden
        runner = Runner(job.source.config, job.source.tensors, torch.float32, job.device)
        repaired = runner.make_block(run.number, tensors)
        stats = with_regional_gradients(runner, repaired, hidden, observe(run, run.linears), recipe.gradient_scale)

        def prune(name: str, weight_OI: Tensor, inputs: InputStats) -> Tensor:
            return job.method.prune(weight_OI, inputs, job.zeros(run.number, name))

        if recipe.repair_rounds and stats:  # none where no Linear of the block is in scope
            settings = Repair(recipe.repair_rounds, recipe.repair_rate, f"{recipe.seed} {run.number}")
            dense = runner.make_block(run.number, {name: tensor.clone() for name, tensor in tensors.items()})
            repair(runner, repaired, dense, hidden, stats, prune, settings)
            for name in stats:
                weight_OI = repaired.get_submodule(name).get_parameter("weight").detach()
                tensors[f"{name}.weight"] = weight_OI.to(tensors[f"{name}.weight"])
        if recipe.propagation == "dense" and not run.last:
            propagate(run.runner, block, hidden)
        yield stats
        if recipe.propagation == "pruned" and not run.last:
            propagate(run.runner, block, hidden)


prune = gblm.prune
passes = (RegionalRepair,)
