"""Remove routed experts of a mixture of experts: a criterion chooses, and blocks are written one by one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunus.checkpoint.safetensors_file import Entry, entry_of
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import check_block_fits
from prunus.pruning.experts import Mixture, find_mixtures, span
from prunus.pruning.experts.criteria import Choice, Seen, choose
from prunus.pruning.experts.cut import cut_tensors, smaller_model, verify
from prunus.pruning.experts.measure import fitting, observe, seen_in
from prunus.pruning.job import Job, open_job
from prunus.pruning.planned import left_out, outside, planned_checkpoint, warn_of
from prunus.recipes import ExpertsRecipe


def drop_experts(
    model: str | Path,
    out: str | Path,
    recipe: ExpertsRecipe | None = None,
    *,
    device: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    stats: str | Path | None = None,
    name: str | None = None,
) -> Mapping[str, Any]:
    """Write a copy of model (folder or hub id) without some of its routed experts to the folder out; returns a summary.

    Routers lose the removed experts' rows, biases and corrections; shared experts and blocks without a router stay as
    they are. What was written is checked to compute what the model does without these experts (experts/cut.py)
    before it is published. Unfinished work is in out.partial, and the same call resumes it.

    recipe: None: the default one, REAP with three experts in four.
    stats: a file that expert_stats() wrote for this model. Its calibration is used and the model is not run for it;
        fields of the recipe that ask for another calibration are an error.
    overwrite, dry_run, name: as for prune.

    Returns a dict:

    out, method: the folder, and the recipe's method.
    experts: how many experts blocks keep, as text: `6 of 8`.
    blocks: number of blocks that lost experts.
    parameters: number of weights of the result.
    seconds: run time.
    experts_removed, scores, tokens: by block, the experts that were removed, and the score and number of calibration
        tokens of each one.
    difference: largest relative difference from the model without these experts, on one short sequence.
    warnings: one line each.

    With dry_run it has would_write, experts, blocks, disk, calibration (all but blocks as text) and warnings.

    Raises PrunusError for wrong input or if experts cannot be removed, and then leaves nothing behind.
    """
    job = open_job(
        model, out, recipe or ExpertsRecipe(), name, stats=stats, device=device, overwrite=overwrite, dry_run=dry_run
    )
    source, stray = job.source, left_out(job.source)
    mixtures = find_mixtures(source)
    job = job.with_saved(fitting)
    recipe = job.recipe
    for mixture in mixtures:
        mixture.check(recipe.count(mixture.count))
    check_block_fits(source, source.dtype)
    first = {m.index: range(recipe.count(m.count)) for m in mixtures}
    needed = smaller_model(source, mixtures, first).nbytes
    if dry_run:
        told = {"experts": experts_text(mixtures, first), "blocks": len(mixtures)}
        return job.ahead(needed, told, [*source.reading_notes, *warn_of(stray)])

    def entries(notes: Mapping[str, Any]) -> dict[str, Entry]:
        kept = Choice.from_json(notes["choice"]).kept
        return {name: entry_of(stored) for name, stored in cut_tensors(source, mixtures, kept).items()}

    with job.begun(needed, stray, entries) as (partial, calibration):
        if "choice" not in partial.notes:
            seen = measure(job, mixtures, calibration)
            partial.note("choice", choose(recipe, mixtures, seen)._asdict(), {})
        choice = Choice.from_json(partial.notes["choice"])
        new = smaller_model(source, mixtures, choice.kept)
        partial.copy_blocks(new, "writing")
        written = outside(source)
        for index in range(source.blocks):
            written |= partial.read_block(index)
        made = planned_checkpoint(source, new.config_json, written)
        difference = verify(source, made, mixtures, choice.kept, job.device)
        notes = calibration.warnings if calibration else []
        warnings = [*notes, *choice.warnings, *source.reading_notes, *warn_of(stray)]
        measured = {"experts_removed": choice.removed(mixtures), "scores": choice.scores, "tokens": choice.tokens}
        after = {index: len(kept) for index, kept in choice.kept.items()}
        experts = {"before": {m.index: m.count for m in mixtures}, "after": after}
        record = {"experts": experts, **measured, "warnings": warnings}
        told = {
            "method": recipe.method,
            "experts": experts_text(mixtures, choice.kept),
            "blocks": len(mixtures),
            "parameters": made.parameters,
            **measured,
            "difference": difference,
        }
        return job.finish(partial, calibration, told, record, new.config_json)


def measure(job: Job[ExpertsRecipe], mixtures: Sequence[Mixture], calibration: Calibration | None) -> list[Seen]:
    """What the recipe's criterion needs to know of each block's experts."""
    source, recipe = job.source, job.recipe
    if job.saved is not None:
        return [seen_in(job.saved, mixture) for mixture in mixtures]
    if calibration is None:
        nothing = {m.index: torch.zeros(m.count, dtype=torch.float64) for m in mixtures}
        return [Seen(index, zeros.long(), zeros, zeros, recipe.seed) for index, zeros in nothing.items()]
    return list(observe(source, mixtures, recipe, calibration, job.device))


def experts_text(mixtures: Sequence[Mixture], kept: Mapping[int, Sequence[int]]) -> str:
    """How many experts blocks keep: `6 of 8`, or `4 to 7 of 8`."""
    return f"{span(map(len, kept.values()))} of {span(mixture.count for mixture in mixtures)}"
