"""Fit the routers that are left to the dense model, block by block; nothing else of the model changes.

As in recovery, two residual streams go through the two models, for the same calibration tokens: a router of the smaller
model is fitted so that its block gives, for what the blocks before it give, what the dense model gives at that depth.
Gradients reach a router through the gate values of the experts that it chooses. Each router keeps the state with the
least error on held-out sequences, and is as it was where that did not fall.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import plain_experts
from prunus.checkpoint.runner import Runner
from prunus.checkpoint.writer import Partial
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.experts.mixture import Mixture
from prunus.pruning.recovery.fit import Fit, Trained, fit
from prunus.pruning.recovery.room import plan_steps
from prunus.pruning.recovery.streams import Streams, split, tokens_of_step
from prunus.recipes import ExpertsRecipe, RecoverRecipe


def distill_blocks(
    source: Checkpoint,
    new: Checkpoint,
    mixtures: Sequence[Mixture],
    recipe: ExpertsRecipe,
    calibration: Calibration,
    partial: Partial,
    device: torch.device,
) -> None:
    """Write the blocks of the planned model `new` with fitted routers; the journal's record of a block has its Fit.

    Blocks that partial already has are run, not fitted again.
    """
    settings = RecoverRecipe.like(recipe)
    theirs, ours = (Runner(model.config, model.tensors, torch.float32, device) for model in (source, new))
    if theirs.shares_state:
        raise PrunusError("blocks of this model hand on more than hidden states, so its routers cannot be fitted alone")
    weights = calibration.token_weights(recipe) if recipe.weighted else [[1.0] * len(s) for s in calibration.sequences]
    plan = plan_steps(new, device, settings.step_tokens, max(map(len, calibration.sequences)))
    step_tokens = tokens_of_step(settings.step_tokens, calibration.sequences)
    streams = Streams(theirs, ours, calibration.sequences, weights, step_tokens, None)
    training, held_out = split(len(streams.batches), random.Random(f"{recipe.seed} held out"))
    of_block = {mixture.index: mixture for mixture in mixtures}
    with (
        plain_experts(theirs.architecture),
        plain_experts(ours.architecture),
        Steps("fitting routers", total=new.blocks, unit="blocks", done=len(partial.records)) as steps,
    ):
        for index in range(new.blocks):
            streams.advance_dense(theirs.read_block(index))
            if partial.has(index):
                block = ours.make_block(index, new.read_block(index, partial.read_block(index)))
                streams.advance_pruned(block)
                continue
            tensors = new.read_block(index)
            block, changed, record, note = ours.make_block(index, tensors), {}, {}, ""
            if (mixture := of_block.get(index)) is not None:
                parameters = router_parameters(block, mixture, {n: t.dtype for n, t in tensors.items()})
                fitted: Fit = fit(
                    parameters,
                    streams.examples(block, training),
                    streams.examples(block, held_out),
                    rate=settings.rate,
                    epochs=settings.epochs,
                    rng=random.Random(f"{recipe.seed} {index}"),
                    plan=plan,
                )
                record = fitted._asdict()
                changed = {p.name: p.parameter.detach().to(p.dtype).cpu() for p in parameters} if fitted.trained else {}
                note = f"error {fitted.before:.3g} -> {fitted.after:.3g}"
            partial.write_block(index, {**new.block_tensors(index), **new.as_stored(index, changed)}, record)
            streams.advance_pruned(block)
            steps.advance(note=note)


def router_parameters(block: nn.Module, mixture: Mixture, dtypes: dict[str, torch.dtype]) -> list[Trained]:
    """The router's weight and bias; corrections of scores, which choose experts and are in no gate value, stay."""
    named = dict(block.named_parameters())
    found = []
    for name in mixture.routing:
        parameter = named.get(name)
        if parameter is None or "correction" in name or "static" in name:
            continue
        rms = math.sqrt(float(parameter.detach().double().square().mean()))
        if rms:
            found.append(Trained(name, parameter, None, rms, dtypes[name]))
    return found
