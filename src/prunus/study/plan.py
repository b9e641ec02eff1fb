"""The plan of a study: its cells, how much of them is done, and the tokens, disk and time that the rest takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.packed.bits import packed_nbytes
from prunus.checkpoint.writer import disk_needed
from prunus.errors import PrunusError
from prunus.evaluation.requests import Backend, Request
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.evaluation.run import missing_batches
from prunus.pruning.depth.verification import left_out
from prunus.pruning.drop_experts import bytes_left
from prunus.pruning.experts.mixture import find_mixtures
from prunus.pruning.methods import find_method
from prunus.pruning.scope import linears_in_scope
from prunus.recipes import DropRecipe, ExpertsRecipe
from prunus.results.rows import Sample
from prunus.results.store import Store, is_begun
from prunus.results.token_use import chains_of, sampled_tokens
from prunus.study.cells import Cell, Model, Variant, check_apart, checkpoint_of, open_model, plan_names, variants_of
from prunus.study.engine import Engine
from prunus.study.file import Study
from prunus.study.offline_plan import PlannedCell, chain_tokens, local_folder, plan_from_catalogue, unread_tasks
from prunus.study.paths import StudyPaths
from prunus.study.variants import check_variants, is_made

MEASURED_SECONDS = 1.0
TEXT_BYTES = 5  # in the store, per token of text


def plan_cells(study: Study, paths: StudyPaths, device: str, measure: bool) -> dict[str, Any]:
    """The result of plan_study without its searches; nothing is written or downloaded.

    Raises PrunusError, with the line of the file, where a model or a recipe is wrong.
    """
    unread = unread_tasks(study)
    folders = {name: local_folder(study, name) for name in study.models}
    absent = [name for name, folder in folders.items() if folder is None]
    unknown = unknown_lines(unread, absent)
    if measure and study.backend != "hf":
        unknown.append(f"the speed of {study.backend}, which is not started for a plan")
    cells: list[PlannedCell] = []
    variants: list[dict[str, Any]] = []
    disk: int | None = 0
    speeds: dict[str, float] = {}
    opened: list[Model] = []
    for name, folder in folders.items():
        if folder is None or unread:
            if folder is not None:
                variants_of(study, checkpoint_of(study, folder))
            cells += plan_from_catalogue(study, name)
            disk = None
            continue
        model = open_model(study, name, folder)
        opened.append(model)
        check_apart(study, opened)
        made = {v.name: is_made(paths.folder, v) for v in model.variants[1:]}
        cells += planned_cells(study, model, paths)
        sizes = {v.name: variant_bytes(model.source, v) for v in model.variants[1:]}
        variants += [{"model": name, "variant": n, "made": made[n], "bytes": sizes[n]} for n in sizes]
        if disk is not None:
            disk += disk_bytes(study, model.checkpoint, [sizes[name] for name in sizes if not made[name]])
            if any(v.recover is not None and not made[v.name] for v in model.variants[1:]):
                disk += model.checkpoint.nbytes  # what is pruned stays until it is recovered
            listed = set() if study.keep_checkpoints else {v.key for v in model.variants}
            origins = {v.after.key: sizes[v.name] for v in model.variants[1:] if v.after and not made[v.name]}
            # Models with fewer experts, which are then pruned, stay until the study ends.
            disk += sum(size for key, size in origins.items() if key not in listed)
        unknown += missing_packages(study, model, paths, device)
        if measure and study.backend == "hf" and any(line.tokens for line in cells if line.model == name):
            speeds[name] = tokens_per_second(study, model, device)
    left = {name: [line for line in cells if line.model == name] for name in study.models}
    tokens = sum(line.tokens for line in cells)
    return {
        "name": study.name,
        "out": str(paths.folder),
        "store": str(paths.store),
        "cells": [vars(line) for line in cells],
        "variants": variants,
        "totals": {
            "cells": len(cells),
            "complete": sum(line.done >= line.answers for line in cells),
            "answers": sum(line.answers for line in cells),
            "done": sum(line.done for line in cells),
            "tokens": tokens,
            "disk": None if disk is None else disk + TEXT_BYTES * tokens,
        },
        "tokens_per_second": speeds,
        "seconds_at_most": seconds(left, speeds, lambda line: line.tokens),
        "seconds_expected": seconds(left, speeds, lambda line: line.tokens_expected),
        "unknown": unknown,
    }


def unknown_lines(unread: Mapping[str, str], absent: Sequence[str]) -> list[str]:
    """A line about tasks and one about models that are not on this machine, if there are any."""
    lines = []
    if unread:
        reason = next(iter(unread.values()))
        lines.append(f"the problems of {', '.join(unread)}, counted by the catalogue ({reason})")
    if absent:
        fit, are = ("fits", "it is") if len(absent) == 1 else ("fit", "they are")
        lines.append(f"whether {', '.join(absent)} {fit} the budgets and recipes, since {are} not downloaded yet")
    return lines


def planned_cells(study: Study, model: Model, paths: StudyPaths) -> list[PlannedCell]:
    """The cells of a model that is on this machine, with the number of answers that the store has of each."""
    if not is_begun(paths.store):
        return [planned_cell(study, model, cell, cell.resolved.batches, 0, None) for cell in model.cells]
    with Store(paths.store) as store:
        stored = {cell.run_id: store.samples(cell.run_id) for cell in model.cells}
        lines = []
        for cell in model.cells:
            alike = [stored[other.run_id] for other in model.cells if other.plan == cell.plan]
            mean = tokens_per_chain([stored[cell.run_id]]) or tokens_per_chain(alike)
            missing = missing_batches(store, cell.resolved)
            lines.append(planned_cell(study, model, cell, missing, len(stored[cell.run_id]), mean))
        return lines


def planned_cell(
    study: Study, model: Model, cell: Cell, missing: Sequence[Sequence[tuple[int, int]]], done: int, mean: float | None
) -> PlannedCell:
    """One planned cell. missing: its batches. done: its stored answers. mean: tokens per chain so far."""
    work, plan = cell.resolved, study.plans[cell.plan]
    chains = [index for batch in missing for index, _ in batch]
    return PlannedCell(
        model.name,
        cell.name,
        plan_names(study.plans)[cell.plan],
        work.run_id,
        len(work.problems),
        sum(map(len, work.batches)) * len(work.budgets),
        done,
        sum(chain_tokens(plan, work.answers_at_most(index)) for index in chains),
        None if mean is None else mean * len(chains),
    )


def tokens_per_chain(runs: Sequence[Sequence[Sample]]) -> float | None:
    """The mean number of tokens sampled for a chain of these runs; None without any chain.

    The tokens of a chain are its longest thinking and every distinct answer.
    """
    chains = [chain for samples in runs for chain in chains_of(samples)]
    return sum(sampled_tokens(chains)) / len(chains) if chains else None


def variant_bytes(source: Checkpoint, variant: Variant) -> int:
    """The most bytes of a variant's file: a bit per weight, and the kept weights where these change.

    Of a variant with fewer experts, whatever is done to it then, the bytes of its checkpoint.
    """
    recipe = variant.recipe
    assert recipe is not None
    if variant.after is not None:
        return variant_bytes(source, variant.after)
    if isinstance(recipe, ExpertsRecipe):
        return bytes_left(recipe, source, find_mixtures(source), left_out(source))
    if variant.recover is not None:
        return sum(recovered_bytes(source, index) for index in range(source.blocks))
    if isinstance(recipe, DropRecipe):
        blocks = recipe.count(source.blocks) if recipe.method == "laco" and recipe.indices is None else 0
        return blocks * recipe.merge * sum(stored.nbytes for stored in source.block_tensors(0).values())
    shapes = [linear.shape_OI for linears in linears_in_scope(source, recipe) for linear in linears]
    kept = 1.0 if recipe.allocation != "uniform" else 1 - recipe.sparsity
    if not find_method(recipe).updates:
        kept = 0.0
    return sum(packed_nbytes(s, int(kept * s[0] * s[1]), source.dtype.itemsize) for s in shapes)


def recovered_bytes(source: Checkpoint, index: int) -> int:
    """The most bytes stored of a block whose weights all change: its tensors, and masks of its matrices."""
    tensors = source.block_tensors(index).values()
    return sum(
        packed_nbytes(tuple(s.shape), s.elements, source.dtype.itemsize) if len(s.shape) == 2 else s.nbytes
        for s in tensors
    )


def disk_bytes(study: Study, source: ModelFolder, missing: Sequence[int]) -> int:
    """The bytes for the variants that are to be made, and for the checkpoints that they are made from.

    missing: bytes of each of these variants.
    """
    if not missing:
        return 0
    whole = len(missing) * source.nbytes if study.keep_checkpoints else disk_needed(source.nbytes)
    return sum(missing) + whole


def missing_packages(study: Study, model: Model, paths: StudyPaths, device: str) -> list[str]:
    """A line for a package that the machine that runs the study needs. Raises PrunusError for a wrong file."""
    try:
        check_variants(study, [model], paths.folder, device)
    except PrunusError as error:
        if "pip install" not in str(error):
            raise
        return [str(error)]
    return []


def tokens_per_second(study: Study, model: Model, device: str) -> float:
    """The tokens per second with which the dense model decodes the first batch, without reading its prompts.

    The number of steps is doubled until they take long enough to be measured: on a busy machine a few steps may seem to
    take a negative time.
    """
    work: ResolvedPlan = model.cells[0].resolved
    prompts = [work.prompts[index] for index, _ in work.batches[0]]
    steps, most = 2, max(2, work.largest_budget)
    with Engine(study, device) as engine:
        backend = engine.of(model)
        seconds_for(backend, work, prompts, 1)  # warm-up
        first = seconds_for(backend, work, prompts, 1)
        while (spent := seconds_for(backend, work, prompts, steps)) < first + MEASURED_SECONDS and steps < most:
            steps = min(2 * steps, most)
    if spent <= first:  # still noise: count the time to read the prompts, too, so that the speed is not overestimated
        return len(prompts) * steps / spent
    return len(prompts) * (steps - 1) / (spent - first)


def seconds_for(backend: Backend, work: ResolvedPlan, prompts: Sequence[list[int]], steps: int) -> float:
    """The seconds to read the prompts and sample `steps` tokens for each."""
    started = time.monotonic()
    none = frozenset[int]()
    requests = [Request(prompt, steps, none, none, seed) for seed, prompt in enumerate(prompts)]
    backend.generate(requests, work.rules.sampling)
    return time.monotonic() - started


def seconds(
    lines: Mapping[str, Sequence[PlannedCell]],
    speeds: Mapping[str, float],
    tokens: Callable[[PlannedCell], float | None],
) -> float | None:
    """The seconds for the cells of all models; None where a speed or a number of tokens is unknown."""
    total = 0.0
    for name, of_model in lines.items():
        counts = [tokens(line) for line in of_model if line.done < line.answers]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts) or (counts and name not in speeds):
            return None
        total += sum(known) / speeds[name] if counts else 0.0
    return total
