"""Remove routed experts of a mixture of experts: a criterion chooses, and blocks are written in turn."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.loader import return_freed_memory
from prunus.checkpoint.names import Origin, numbered
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.safetensors_file import Computed, Stored
from prunus.errors import PrunusError
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import check_block_fits
from prunus.pruning.experts.criteria import KeptExperts, RoutingSums, choose_experts
from prunus.pruning.experts.measure import fitting, observe, seen_in
from prunus.pruning.experts.mixtures import (
    Mixture,
    Unremovable,
    expert_counts,
    find_mixtures,
    masked,
    number_fields,
    span,
)
from prunus.pruning.job import PlannedJob, StepJob, open_job
from prunus.pruning.planned import (
    Json,
    changed_config,
    compare_blocks,
    outside,
    planned_checkpoint,
    warn_of_left_out,
)
from prunus.recipes import ExpertsRecipe
from prunus.step import Made


class FewerExperts(Made):
    """A model without some of its experts, as `experts` wrote it.

    method: that of the recipe.
    experts: how many experts blocks keep, as text: `6 of 8`.
    blocks: number of blocks that lost experts.
    parameters: number of weights that are left.
    experts_removed: the experts that were removed, by block.
    scores: that of each expert, by block.
    tokens: number of calibration tokens of each expert, by block.
    difference: largest relative difference from the model without these experts, on one short sequence.
    """

    method: str
    experts: str
    blocks: int
    parameters: int
    experts_removed: Mapping[int, Sequence[int]]
    scores: Mapping[int, Sequence[float]]
    tokens: Mapping[int, Sequence[int]]
    difference: float


class PlannedExperts(PlannedJob):
    """What `experts` would do.

    experts: how many experts blocks would keep, as text: `6 of 8`.
    blocks: number of blocks that would lose experts.
    """

    experts: str
    blocks: int


def experts(
    model: str | Path,
    out: str | Path,
    recipe: ExpertsRecipe | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    stats: str | Path | None = None,
    name: str | None = None,
) -> FewerExperts:
    """Write a copy of model without some of its routed experts to the folder out.

        smaller = prunus.experts("tiny-moe", "reap-75", prunus.ExpertsRecipe(keep=0.75))
        print(smaller.experts, smaller.parameters)

    Routers lose the removed experts' rows, biases and corrections; shared experts and blocks without a router stay as
    they are. What was written is checked to compute what the model does without these experts before it is published.
    Unfinished work is in out.partial, and the same call resumes it.

    model: a folder, a hub id or `tiny-moe`.
    out: the folder to write.
    recipe: None: the default, REAP with three experts in four.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    overwrite: replace an existing result.
    stats: a file that expert_stats() wrote for this model. Its calibration is used and the model is not run for it;
        fields of the recipe that ask for another calibration are an error.
    name: what the manifest calls the model; None: as it is given.

    Raises PrunusError for wrong input or if experts cannot be removed, and then leaves nothing behind.
    """
    job = open_job(model, out, ExpertsRecipe.given(recipe), name, stats=stats, device=device, overwrite=overwrite)
    job, mixtures, first = checked(job)
    source, recipe = job.source, job.recipe
    with job.unfinished_work(
        smaller_model(source, mixtures, first).nbytes,
        lambda notes: cut_tensors(source, mixtures, KeptExperts.of(notes["choice"]).kept),
    ) as (partial, calibration):
        if "choice" not in partial.notes:
            seen = measure_routing(job, mixtures, calibration)
            partial.note("choice", choose_experts(recipe, mixtures, seen).to_json(), {})
        choice = KeptExperts.of(partial.notes["choice"])
        new = smaller_model(source, mixtures, choice.kept)
        partial.copy_blocks(new, "writing")
        written = outside(source)
        for index in range(source.blocks):
            written |= partial.read_block(index)
        made = planned_checkpoint(source, new.config_json, written)
        difference = verify(source, made, mixtures, choice.kept, job.device)
        notes = calibration.warnings if calibration else []
        removed = choice.removed(mixtures)
        after = {index: len(kept) for index, kept in choice.kept.items()}
        record = {
            "experts": {"before": {m.index: m.count for m in mixtures}, "after": after},
            "experts_removed": removed,
            "scores": choice.scores,
            "tokens": choice.tokens,
            "warnings": [*notes, *choice.warnings, *source.reading_notes, *warn_of_left_out(source)],
        }
        return FewerExperts(
            method=recipe.method,
            experts=experts_text(mixtures, choice.kept),
            blocks=len(mixtures),
            parameters=made.parameters,
            experts_removed=removed,
            scores=choice.scores,
            tokens=choice.tokens,
            difference=difference,
            **vars(job.finish(partial, calibration, record, new.config_json)),
        )


def plan_experts(model: str | Path | Checkpoint, out: Path, recipe: ExpertsRecipe, **options: Any) -> PlannedExperts:
    """What `experts` would do."""
    job, mixtures, first = checked(open_job(model, out, recipe, None, **options))
    needed = smaller_model(job.source, mixtures, first).nbytes
    preview = job.preview(needed, [*job.source.reading_notes, *warn_of_left_out(job.source)])
    return PlannedExperts(experts=experts_text(mixtures, first), blocks=len(mixtures), **vars(preview))


def checked(
    opened: StepJob[ExpertsRecipe],
) -> tuple[StepJob[ExpertsRecipe], Sequence[Mixture], Mapping[int, Sequence[int]]]:
    """(job with its statistics, mixtures of the model, {block: its first experts, as many as will be kept}).

    Raises PrunusError if experts cannot be removed.
    """
    mixtures = find_mixtures(opened.source)
    job = opened.with_saved(fitting)
    for mixture in mixtures:
        mixture.check(job.recipe.count(mixture.count))
    check_block_fits(job.source, job.source.dtype, job.device)
    return job, mixtures, {m.index: range(job.recipe.count(m.count)) for m in mixtures}


def measure_routing(
    job: StepJob[ExpertsRecipe], mixtures: Sequence[Mixture], calibration: Calibration | None
) -> list[RoutingSums]:
    """Statistics of each block's experts: saved, else measured; zeros if the recipe's criterion needs none."""
    source, recipe = job.source, job.recipe
    if job.saved is not None:
        return [seen_in(job.saved, mixture) for mixture in mixtures]
    if calibration is None:
        nothing = {m.index: torch.zeros(m.count, dtype=torch.float64) for m in mixtures}
        return [RoutingSums(index, zeros.long(), zeros, zeros, recipe.seed) for index, zeros in nothing.items()]
    return list(observe(source, mixtures, recipe, calibration, job.device))


def experts_text(mixtures: Sequence[Mixture], kept: Mapping[int, Sequence[int]]) -> str:
    """How many experts blocks keep: `6 of 8`, or `4 to 7 of 8`."""
    return f"{span(map(len, kept.values()))} of {span(mixture.count for mixture in mixtures)}"


# The tensors and the config.json of a model with fewer experts, whose stored bytes are not converted.
# An expert that has tensors of its own on disk keeps them under a new number. Of a tensor with an entry per expert
# only some entries are kept; they are read when they are written. The result is checked, so no rule for config.json
# need be complete.


class Cut(Computed):
    """Some entries of a stored tensor along one axis. whole: that tensor. kept: the entries, ascending."""

    whole: Stored
    axis: int
    kept: tuple[int, ...]

    @classmethod
    def of(cls, whole: Stored, axis: int, kept: Sequence[int]) -> "Cut":
        """The entries `kept` of a tensor along an axis."""
        shape = (*whole.shape[:axis], len(kept), *whole.shape[axis + 1 :])
        cut = cls(whole.file, whole.dtype, shape, whole.start, whole.end)
        cut.whole, cut.axis, cut.kept = whole, axis, tuple(kept)
        return cut

    def read(self) -> Tensor:
        """The tensor, in new memory; all of the whole one is read."""
        return self.whole.read().index_select(self.axis, torch.tensor(self.kept))


def cut_block(source: Checkpoint, mixture: Mixture, kept: Sequence[int]) -> dict[str, Stored]:
    """The tensors of a block with only these experts, renumbered in order, by their names on disk."""
    tensors = source.block_tensors(mixture.index)
    done: set[str] = set()
    for local, axis in mixture.axes.items():
        origin = source.names.origin(source.block_name(mixture.index, local))
        assert origin is not None
        for pattern, name in origin.sources:
            if name in done or name not in tensors:
                continue
            done.add(name)
            stored = tensors.pop(name)
            number = re.search(numbered(pattern), name) if "*" in pattern else None
            if number is None:
                tensors[name] = Cut.of(stored, axis_on_disk(origin, stored, axis, mixture.count), kept)
            elif int(number[1]) in kept:
                new = kept.index(int(number[1]))
                tensors[f"{name[: number.start(1)]}{new}{name[number.end(1) :]}"] = stored
    return tensors


def axis_on_disk(origin: Origin, stored: Stored, axis: int, count: int) -> int:
    """The axis of a stored tensor that has an entry per expert. axis: that of the model's tensor."""
    if origin.converter is None:
        return len(stored.shape) - 1 - axis if origin.transposed else axis
    axes = [a for a in (axis, *range(len(stored.shape))) if a < len(stored.shape) and stored.shape[a] == count]
    if not axes:
        raise PrunusError(f"'{origin.stored[0]}' has no axis of {count} experts on disk")
    return axes[0]


def cut_tensors(
    source: Checkpoint, mixtures: Sequence[Mixture], kept: Mapping[int, Sequence[int]]
) -> dict[str, Stored]:
    """All tensors of the model with only these experts, by their names on disk."""
    tensors, of_block = outside(source), {mixture.index: mixture for mixture in mixtures}
    for index in range(source.blocks):
        mixture = of_block.get(index)
        tensors |= source.block_tensors(index) if mixture is None else cut_block(source, mixture, kept[index])
    return tensors


def smaller_model(source: Checkpoint, mixtures: Sequence[Mixture], kept: Mapping[int, Sequence[int]]) -> Checkpoint:
    """The model with only these experts of each block, before it is written."""
    content = fewer_config(source, {index: len(experts) for index, experts in kept.items()})
    return planned_checkpoint(source, content, cut_tensors(source, mixtures, kept))


def fewer_config(source: Checkpoint, kept: Mapping[int, int]) -> dict[str, object]:
    """The content of config.json with fewer experts. kept: the new number of each block that loses some."""
    text, before = source.text_config, expert_counts(source)
    after = [kept.get(index, count) for index, count in enumerate(before)]
    # All spellings of the field, since transformers writes one and reads another; else shapes would not match.
    names = number_fields(text)
    # One number if all blocks that lose experts keep the same number, as config.json of nearly all types asks for.
    number = after if len(set(kept.values())) > 1 else next(iter(kept.values()))

    def change(content: Json) -> Json:
        present = [name for name in names if name in content and content[name] in (before[0], before, tuple(before))]
        return {**content, **dict.fromkeys(present or names[:1], number)}

    return changed_config(source, change)


# Check a model with fewer experts: what was written computes what the source does without those experts.
# The new configuration must give a model whose tensors have exactly the names and shapes that were written. Each block
# that lost experts must give the same as the source's block whose router cannot choose them (logits at minus infinity),
# for one short sequence, in float32. Both read the same hidden states, so rounding cannot add up over blocks.


def verify(
    source: Checkpoint,
    new: Checkpoint,
    mixtures: Sequence[Mixture],
    kept: Mapping[int, Sequence[int]],
    device: torch.device,
) -> float:
    """The largest relative difference between blocks of new and of source without the experts that are not kept.

    Raises Unremovable where a block computes something else.
    """
    of_block = {mixture.index: mixture for mixture in mixtures}

    def outputs(old: Runner, made: Runner, index: int, rows_1TW: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        mixture, twin, block = of_block[index], batch.copy(), old.read_block(index)
        with masked(block, mixture, sorted(set(range(mixture.count)) - set(kept[index]))) as mode:
            before_1TW = old.run_block(block, rows_1TW, batch)
        if not mode.seen:
            raise Unremovable(f"block {index}: its router computes logits in a way that cannot be checked")
        del block  # before that of the new model is read
        return_freed_memory()
        return before_1TW, made.run_block(made.make_block(index, new.read_block(index)), rows_1TW, twin)

    than = "without the experts that are removed, even if its router could not choose them"
    return compare_blocks(source, new, device, of_block, outputs, Unremovable, than)
