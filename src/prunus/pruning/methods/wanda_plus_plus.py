"""Wanda++: gradients of one block's own output, and a repair of its weights before they are pruned for good.

Yang et al. 2025, arXiv:2503.04992 (Wanda++: regional gradients and regional optimisation). Nothing but the block is
run: in float32, for the steps of the repair are too small for 16 bits. The paper's code is not public; as in the open
reproduction TTTTTTris/wandaplus every drawn sequence is a step of its own. Unlike there, gradients and norms are those
of the dense block throughout. Shapes: N sequences of a batch, T tokens, W numbers per token between two blocks.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from prunus.checkpoint.runner import Runner
from prunus.declarations import Conflict, Method, Option
from prunus.pruning.calibration.gradients import SquareSums, backward
from prunus.pruning.calibration.hidden_states import HiddenStates, propagate
from prunus.pruning.calibration.propagation import BlockRun, Stats, observed
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.methods import gblm
from prunus.pruning.passes import Pass

if TYPE_CHECKING:
    from prunus.pruning.job import Job

DRAWN = 32  # sequences of a round of repair
# pruned(name of a Linear, its weight, what is known of it) -> the weight with its zeros
Pruned = Callable[[str, Tensor, InputStats], Tensor]


class Repair(NamedTuple):
    """How weights are moved: rounds of pruning and then a step of RMSprop for each drawn sequence, rate long."""

    rounds: int
    rate: float
    seed: str


def with_regional_gradients(
    runner: Runner, block: nn.Module, hidden: HiddenStates, stats: Mapping[str, InputStats], scale: float
) -> dict[str, InputStats]:
    """stats with scale * the root mean square, over sequences, of d ||output of the block|| / d weight.

    The norms beside them are those over all tokens, as the paper writes its score: the balance depends on their number.
    """
    found, count = SquareSums(rows=False), len(hidden.sequences())

    def by_norm(output_NTW: Tensor) -> Tensor:
        return output_NTW / output_NTW.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]

    with torch.enable_grad():
        for batch, inputs_NTW in hidden.batches():
            backward(runner, block, batch, inputs_NTW, by_norm, list(stats), found.tap)
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
    pruned: Pruned,
    how: Repair,
) -> None:
    """Move the weights of the block's Linears in place so that its output, pruned, comes nearer to that of dense.

    Zeros may come back: each round prunes anew. The caller prunes once more.
    """
    weights = {name: block.get_submodule(name).get_parameter("weight") for name in stats}
    optimizer = torch.optim.RMSprop(list(weights.values()), lr=how.rate)
    sequences, rng = hidden.sequences(), random.Random(how.seed)
    for _ in range(how.rounds):
        for name, weight_OI in weights.items():
            weight_OI.data = pruned(name, weight_OI.data, stats[name])
        for index in rng.sample(range(len(sequences)), min(DRAWN, len(sequences))):
            batch, rows_1TW = sequences[index]
            input_1TW = rows_1TW.to(runner.device, runner.dtype)
            wanted_1TW = runner.run_block(dense, input_1TW, batch)
            with torch.enable_grad():
                block.requires_grad_(False)
                for weight_OI in weights.values():
                    weight_OI.requires_grad_()
                (runner.run_block(block, input_1TW, batch) - wanted_1TW).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()


class RegionalRepair(Pass):
    """Before a block is pruned: gradients of its own output, and a repair of its weights by them."""

    needs = "gradients"

    def statistics(
        self, job: "Job", run: BlockRun, tensors: dict[str, Tensor], groups: Iterable[Stats]
    ) -> Iterator[Stats]:
        """Statistics of the dense block with its gradients; weights in tensors are repaired by then."""
        recipe, block, hidden = job.recipe, run.block, run.hidden
        runner = Runner(job.source.config, job.source.tensors, torch.float32, job.device)
        moved = runner.make_block(run.number, tensors)
        stats = with_regional_gradients(runner, moved, hidden, observed(run), recipe.gradient_scale)

        def pruned(name: str, weight_OI: Tensor, inputs: InputStats) -> Tensor:
            return job.method.prune(weight_OI, inputs, job.target(run.number, name))

        if recipe.repair_rounds:
            how = Repair(recipe.repair_rounds, recipe.repair_rate, f"{recipe.seed} {run.number}")
            dense = runner.make_block(run.number, {name: tensor.clone() for name, tensor in tensors.items()})
            repair(runner, moved, dense, hidden, stats, pruned, how)
            for name in stats:
                weight_OI = moved.get_submodule(name).get_parameter("weight").detach()
                tensors[f"{name}.weight"] = weight_OI.to(tensors[f"{name}.weight"])
        if recipe.propagation == "dense" and not run.last:
            propagate(run.runner, block, hidden)
        yield stats
        run.when_pruned()
        if recipe.propagation == "pruned" and not run.last:
            propagate(run.runner, block, hidden)


DECLARATION = Method(
    name="wanda++",
    source="Yang et al. 2025, arXiv:2503.04992",
    description="the same with gradients of the block's own output, after a repair of its weights",
    needs="norms",
    group="row",
    updates=True,
    prune=gblm.prune,
    options=(
        Option("gradient_scale", float, 100.0, "weight of the gradients relative to the input norms.", at_least=0),
        Option("repair_rounds", int, 5, "number of times that a block is pruned and repaired.", at_least=0),
        Option("repair_rate", float, 3e-7, "learning rate of a repair.", at_least=0),
    ),
    conflicts=(
        Conflict(
            "propagation",
            "true_sequential",
            "wanda++ repairs whole blocks; propagation must be pruned or dense",
        ),
    ),
    passes=(RegionalRepair,),
)
