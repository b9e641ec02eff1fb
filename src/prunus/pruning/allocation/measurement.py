"""The costly half of allocations: what is measured of a model, block by block, before arithmetic begins.

Shapes: N sequences, T tokens, O output features, I input features.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.checkpoint.block_loader import blocks_on
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.runner import Runner
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.allocation.alphapruning import eigenvalues, tail_exponent
from prunus.pruning.allocation.importance_scores import PARTS, WHOLE
from prunus.pruning.allocation.influence import STABLE, Influence, agreement, block_scores, datainf, identity
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.gradients import Model, signs, sketches
from prunus.pruning.calibration.hidden_states import HiddenStates, propagate
from prunus.pruning.calibration.statistics import InputStats, Observer
from prunus.pruning.methods import wanda
from prunus.recipes import AllocationName, PruneRecipe

# Scores are made for about so many weights at a time.
SLICE = 1 << 24
# Sequences that influences are taken of are cut to this length, whether they come from text, token ids or traces.
INFLUENCE_TOKENS = 1024


class Measured(NamedTuple):
    """scores: per group one number per block; details: more, for people."""

    scores: dict[str, list[float]]
    details: dict[str, Any]
    warnings: list[str]


class Subject(NamedTuple):
    """What is measured. linears: of each block those in scope.

    saved: of a block's number, statistics of its Linears' inputs that were taken before, so that nothing has to be run.
    file: where hidden states are kept while it is run, None for memory.
    """

    source: Checkpoint
    recipe: PruneRecipe
    linears: Sequence[Sequence[Linear]]
    runner: Runner
    saved: Callable[[int], Mapping[str, InputStats]] | None = None

    def names(self, index: int, part: str = WHOLE) -> list[str]:
        """Names within a block of its Linears in scope, or of those of one part of it."""
        return [linear.name for linear in self.linears[index] if part in (WHOLE, linear.kind)]

    file: Path | None = None


def spectra(subject: Subject) -> Measured:
    """Tail exponents of the spectra of all Linears; a block's score is the plain mean of its own."""
    exponents: list[dict[str, float]] = []
    source, recipe = subject.source, subject.recipe
    with Steps("spectra", total=source.blocks, unit="blocks") as steps:
        for index, tensors in enumerate(blocks_on(source, range(source.blocks), subject.runner.device)):
            weights = {name: tensors[f"{name}.weight"].to(subject.runner.device) for name in subject.names(index)}
            exponents.append({n: tail_exponent(eigenvalues(weight), recipe.window) for n, weight in weights.items()})
            steps.advance()
    scores = [sum(row.values()) / len(row) for row in exponents]
    return Measured({WHOLE: scores}, {"exponents": exponents}, [])


def wanda_scores(subject: Subject, calibration: Calibration | None) -> Measured:
    """Of the Wanda scores of each block: their mean, and the share in percent above outlier_threshold times it.

    One dense pass over the calibration tokens, or none where statistics were saved; the scores of a block are made
    twice and never held together.
    """
    means, medians, outliers = [], [], []
    for index, weights, inputs in blocks_with_inputs(subject, calibration):
        scores = [(weights[n], inputs[n].norm_I) for n in subject.names(index)]
        size = sum(weight_OI.numel() for weight_OI, _ in scores)
        mean = sum(part.sum(dtype=torch.float64).item() for part in slices(scores)) / size
        if not mean > 0:
            raise PrunusError(f"block {index}: all Wanda scores are 0 on this calibration text; try another")
        above = sum(int((part > subject.recipe.outlier_threshold * mean).sum()) for part in slices(scores))
        means.append(mean)
        if subject.recipe.statistic == "median":
            medians.append(median_of(lambda scores=scores: slices(scores), size))
        outliers.append(100 * above / size)
    details = {"mean": means, "median": medians, "outliers": outliers}
    return Measured({WHOLE: []}, details, calibration.warnings if calibration else [])


def outlier_shares(subject: Subject, calibration: Calibration | None) -> Measured:
    """For OWL."""
    measured = wanda_scores(subject, calibration)
    return measured._replace(scores={WHOLE: measured.details["outliers"]})


def central_scores(subject: Subject, calibration: Calibration | None) -> Measured:
    """For DLP: the mean, or the median."""
    measured = wanda_scores(subject, calibration)
    return measured._replace(scores={WHOLE: measured.details[subject.recipe.statistic]})


def study_influences(subject: Subject, calibration: Calibration) -> Measured:
    """For LayerIF in the seed study's form: attention and MLP apart, identity in place of the Hessian."""
    kinds = {linear.kind for linears in subject.linears for linear in linears}
    return influences(subject, calibration, [part for part in PARTS if part in kinds], identity)


def sketched_influences(subject: Subject, calibration: Calibration) -> Measured:
    """For LayerIF with DataInf's Hessian, one score per block."""
    return influences(subject, calibration, [WHOLE], datainf)


def influences(subject: Subject, calibration: Calibration, parts: Sequence[str], influence: Influence) -> Measured:
    """Summed positive influences of the training sequences on the loss of the validation sequences, by group.

    The loss is that of the chain alone where calibration says where prompts end, else that of all tokens. Which
    sequence is which is drawn by the recipe's seed. Half of the sequences against the other half shows whether the
    ranking of blocks is more than noise.
    """
    recipe = subject.recipe
    weights = chain_only(calibration)
    usable = [
        i for i, ids in enumerate(calibration.sequences) if len(ids) > 1 and (weights is None or any(weights[i][1:]))
    ]
    if len(usable) < 4:
        which = "of two tokens or more" if weights is None else f"whose chain begins within {INFLUENCE_TOKENS} tokens"
        raise PrunusError(f"{calibration.source} has {len(usable)} sequences {which}; influences need 4")
    names = [subject.names(index) for index in range(subject.source.blocks)]
    gradients = sketches(
        Model(subject.source, subject.runner, names, subject.file),
        [calibration.sequences[i] for i in usable],
        signs(recipe.seed, subject.source),
        None if weights is None else [weights[i] for i in usable],
    )
    drawn = random.Random(recipe.seed).sample(range(len(usable)), len(usable))
    share = recipe.influence_validation / (recipe.influence_train + recipe.influence_validation)
    count = min(max(2, round(len(usable) * share)), len(usable) - 2)
    validation, train = drawn[:count], drawn[count:]
    scores, stability = {}, {}
    for group in parts:
        names = [subject.names(index, group) for index in range(subject.source.blocks)]
        scores[group] = block_scores(gradients, names, train, validation, influence)
        halves = [block_scores(gradients, names, train[h::2], validation[h::2], influence) for h in (0, 1)]
        stability[group] = agreement(*halves)
    details = {"train": len(train), "validation": count, "split_half_spearman": stability}
    warnings = [
        f"{recipe.allocation}{'' if group == WHOLE else f' of {group}'}: two halves of the data agree on the order of "
        f"blocks by Spearman {value:.2f} only: these scores are noise; use more sequences, or another allocation"
        for group, value in stability.items()
        if value < STABLE
    ]
    return Measured(scores, details, [*calibration.warnings, *warnings])


def chain_only(calibration: Calibration) -> list[list[float]] | None:
    """For each sequence, 0 for tokens of the prompt and 1 for those of the chain; None where prompts are not known."""
    if not calibration.prompts:
        return None
    lengths = zip(map(len, calibration.sequences), calibration.prompts, strict=True)
    return [[0.0] * prompt + [1.0] * (length - prompt) for length, prompt in lengths]


def blocks_with_inputs(
    subject: Subject, calibration: Calibration | None
) -> Iterator[tuple[int, dict[str, Tensor], Mapping[str, InputStats]]]:
    """Of every block its number, weights and what is known of their inputs: saved, or seen in one dense pass."""
    source, saved, device = subject.source, subject.saved, subject.runner.device
    if saved is None:
        assert calibration is not None
        yield from dense_pass(subject, calibration)
        return
    for index, tensors in enumerate(blocks_on(source, range(source.blocks), device)):
        yield index, {name: tensors[f"{name}.weight"].to(device) for name in subject.names(index)}, saved(index)


def dense_pass(
    subject: Subject, calibration: Calibration
) -> Iterator[tuple[int, dict[str, Tensor], Mapping[str, InputStats]]]:
    """The same, seen in one pass of the unpruned model."""
    weights = calibration.token_weights(subject.recipe) if subject.recipe.weighted else None
    source, runner = subject.source, subject.runner
    hidden = HiddenStates(runner, calibration.sequences, subject.file, token_weights=weights)
    with Steps("measuring", total=source.blocks, unit="blocks") as steps:
        blocks = blocks_on(source, range(source.blocks), runner.device)
        for index in range(source.blocks):
            block = runner.make_block(index, next(blocks))
            with Observer(runner, block, subject.linears[index]) as seen:
                propagate(runner, block, hidden)
            names = subject.names(index)
            found: dict[str, Tensor] = {n: block.get_submodule(n).get_parameter("weight") for n in names}
            yield index, found, seen.stats(index)
            steps.advance()


def median_of(parts: Callable[[], Iterator[Tensor]], size: int) -> float:
    """The median (the lower one of two) of float32 numbers that are not negative, never held together.

    Bit patterns of such numbers are in the order of their values: one pass counts their upper halves, a second one
    collects those of the half that the median is in.
    """
    place = (size - 1) // 2
    counts = torch.zeros(1 << 15, dtype=torch.long)
    for part in parts():
        counts += torch.bincount((part.flatten().view(torch.int32) >> 16).cpu(), minlength=1 << 15)
    upper = int(torch.searchsorted(counts.cumsum(0), place, right=True))
    below = int(counts[:upper].sum())
    near = [part[part.view(torch.int32) >> 16 == upper].cpu() for part in parts()]
    return torch.cat(near).sort().values[place - below].item()


def slices(scores: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """Wanda scores of (weight_OI, norm_I) pairs, some rows at a time."""
    for weight_OI, norm_I in scores:
        for part_RI in weight_OI.split(max(1, SLICE // weight_OI.shape[1])):
            yield wanda.score(part_RI, norm_I)


# By Wanda scores, and by gradients, which always need calibration.
SCORE_MEASURES: Mapping[AllocationName, Callable[[Subject, Calibration | None], Measured]] = MappingProxyType(
    {"owl": outlier_shares, "dlp": central_scores}
)
GRADIENT_MEASURES: Mapping[AllocationName, Callable[[Subject, Calibration], Measured]] = MappingProxyType(
    {"layerif": study_influences, "layerif-sketch": sketched_influences}
)


def influence_recipe(recipe: PruneRecipe) -> PruneRecipe:
    """The recipe that chooses sequences for influences: as many as these need, not too long."""
    count = recipe.influence_train + recipe.influence_validation
    return replace(recipe, samples=count, calibration_tokens=None, seqlen=min(recipe.seqlen, INFLUENCE_TOKENS))
