"""What a study would do, without doing it: cells, what is done already, tokens, disk, time from a few steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.packed.bits import packed_nbytes
from prunus.checkpoint.writer import disk_needed
from prunus.errors import PrunusError
from prunus.evaluation.pipeline import missing_batches
from prunus.evaluation.requests import Backend, Request
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.pruning.methods import find_method
from prunus.pruning.scope import linears_in_scope
from prunus.recipes import DropRecipe
from prunus.results.rows import Sample
from prunus.results.store import Store
from prunus.results.token_use import chains_of, sampled_tokens
from prunus.study.cells import Cell, Model, Variant, check_apart, open_model, plan_names, variants_of
from prunus.study.engine import Engine
from prunus.study.file import Study, read_study
from prunus.study.offline_plan import PlannedCell, chain_tokens, local_folder, plan_from_catalogue, unread_tasks
from prunus.study.paths import StudyPaths
from prunus.study.variants import check_variants, is_made

MEASURED_SECONDS = 1.0
TEXT_BYTES = 5  # of the store, a token of text


def plan_study(
    file: str | Path,
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    measure: bool = True,
) -> dict[str, Any]:
    """What run_study with the same arguments would do, as plain data; nothing is made, and no model is downloaded.

    cells: of each model, variant, plan, run (its id), problems, answers, done (answers in the store), tokens (at most,
    of what is missing), tokens_expected (by what the store has of the same model and plan, else None). variants: of
    each model, variant, made, bytes (of its file, at most). totals: the sums; disk: bytes at most, with one whole
    checkpoint while variants are made, None where models or tasks are not here. tokens_per_second: of the dense models,
    by a few steps if measure says so; seconds_at_most and seconds_expected to evaluate follow from it. unknown: a line
    for each thing that cannot be known yet. A wrong file raises PrunusError.
    """
    study = read_study(file)
    paths = StudyPaths.of(study, out, store)
    unread = unread_tasks(study)
    folders = {name: local_folder(study, name) for name in study.models}
    absent = [name for name, folder in folders.items() if folder is None]
    unknown = missing_lines(unread, absent)
    if measure and study.backend != "hf":
        unknown.append(f"how fast {study.backend} is: it is not started to plan")
    cells: list[PlannedCell] = []
    variants: list[dict[str, Any]] = []
    disk: int | None = 0
    speeds: dict[str, float] = {}
    opened: list[Model] = []
    for name, folder in folders.items():
        if folder is None or unread:
            if folder is not None:
                variants_of(study, Checkpoint(folder))
            cells += plan_from_catalogue(study, name)
            disk = None
            continue
        model = open_model(study, name, folder)
        opened.append(model)
        check_apart(study, opened)
        made = {v.name: is_made(paths.folder, v) for v in model.variants[1:]}
        cells += lines_of(study, model, paths)
        sizes = {v.name: variant_bytes(model.checkpoint, v) for v in model.variants[1:]}
        variants += [{"model": name, "variant": n, "made": made[n], "bytes": sizes[n]} for n in sizes]
        if disk is not None:
            disk += disk_of(study, model.checkpoint, [sizes[name] for name in sizes if not made[name]])
            if any(v.recover is not None and not made[v.name] for v in model.variants[1:]):
                disk += model.checkpoint.nbytes  # what is pruned stays until it is recovered
        unknown += could_not_be_made(study, model, paths, device)
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


def missing_lines(unread: Mapping[str, str], absent: Sequence[str]) -> list[str]:
    """What is not here, in a line for tasks and one for models."""
    lines = []
    if unread:
        reason = next(iter(unread.values()))
        lines.append(f"the problems of {', '.join(unread)}, whose numbers are the catalogue's ({reason})")
    if absent:
        what = "it fits" if len(absent) == 1 else "they fit"
        lines.append(f"whether {what} the budgets and recipes, since not downloaded yet: {', '.join(absent)}")
    return lines


def lines_of(study: Study, model: Model, paths: StudyPaths) -> list[PlannedCell]:
    """Cells of a model that is here, with what the store has of them."""
    if not paths.store.is_file():
        return [line_of(study, model, cell, cell.resolved.batches, 0, None) for cell in model.cells]
    with Store(paths.store) as store:
        stored = {cell.run_id: store.samples(cell.run_id) for cell in model.cells}
        lines = []
        for cell in model.cells:
            alike = [stored[other.run_id] for other in model.cells if other.plan == cell.plan]
            mean = tokens_per_chain([stored[cell.run_id]]) or tokens_per_chain(alike)
            missing = missing_batches(store, cell.resolved)
            lines.append(line_of(study, model, cell, missing, len(stored[cell.run_id]), mean))
        return lines


def line_of(
    study: Study, model: Model, cell: Cell, missing: Sequence[Sequence[tuple[int, int]]], done: int, mean: float | None
) -> PlannedCell:
    """One cell. mean: tokens that a chain took so far."""
    work, plan = cell.resolved, study.plans[cell.plan]
    chains = [index for batch in missing for index, _ in batch]
    return PlannedCell(
        model.name,
        cell.variant.name,
        plan_names(study.plans)[cell.plan],
        work.run_id,
        len(work.problems),
        sum(map(len, work.batches)) * len(work.budgets),
        done,
        sum(chain_tokens(plan, work.answers_at_most(index)) for index in chains),
        None if mean is None else mean * len(chains),
    )


def tokens_per_chain(runs: Sequence[Sequence[Sample]]) -> float | None:
    """Mean of the tokens sampled for a chain of these runs: its longest thinking, and every distinct answer."""
    chains = [chain for samples in runs for chain in chains_of(samples)]
    return sum(sampled_tokens(chains)) / len(chains) if chains else None


def variant_bytes(source: Checkpoint, variant: Variant) -> int:
    """A variant's file at most: a bit a weight, and the weights left where method or recovery changes them."""
    recipe = variant.recipe
    assert recipe is not None
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
    """What is stored of a block at most whose weights all changed: masks besides the tensors."""
    tensors = source.block_tensors(index).values()
    return sum(
        packed_nbytes(tuple(s.shape), s.elements, source.dtype.itemsize) if len(s.shape) == 2 else s.nbytes
        for s in tensors
    )


def disk_of(study: Study, source: Checkpoint, missing: Sequence[int]) -> int:
    """Bytes for the variants that are not made yet, and for the checkpoints that they come from."""
    if not missing:
        return 0
    whole = len(missing) * source.nbytes if study.keep_checkpoints else disk_needed(source.nbytes)
    return sum(missing) + whole


def could_not_be_made(study: Study, model: Model, paths: StudyPaths, device: str) -> list[str]:
    """Lines for what only the machine that runs the study has to have; what is wrong with the file is an error."""
    try:
        check_variants(study, [model], paths.folder, device)
    except PrunusError as error:
        if "pip install" not in str(error):
            raise
        return [str(error)]
    return []


def tokens_per_second(study: Study, model: Model, device: str) -> float:
    """How fast the dense model decodes the first batch once its prompts are read.

    Twice as many steps until they take long enough to tell: on a busy machine a few may seem to take less than none.
    """
    work: ResolvedPlan = model.cells[0].resolved
    prompts = [work.prompts[index] for index, _ in work.batches[0]]
    steps, most = 2, max(2, work.budgets[-1])
    with Engine(study, device) as engine:
        backend = engine.of(model)
        seconds_for(backend, work, prompts, 1)  # warms up
        first = seconds_for(backend, work, prompts, 1)
        while (spent := seconds_for(backend, work, prompts, steps)) < first + MEASURED_SECONDS and steps < most:
            steps = min(2 * steps, most)
    if spent <= first:  # noise all the same: with the reading, which is safe
        return len(prompts) * steps / spent
    return len(prompts) * (steps - 1) / (spent - first)


def seconds_for(backend: Backend, work: ResolvedPlan, prompts: Sequence[list[int]], steps: int) -> float:
    """Time to read the prompts and sample so many ids for each."""
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
    """Time for all models' cells; None where a speed or a number of tokens is not known."""
    total = 0.0
    for name, of_model in lines.items():
        counts = [tokens(line) for line in of_model if line.done < line.answers]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts) or (counts and name not in speeds):
            return None
        total += sum(known) / speeds[name] if counts else 0.0
    return total
