"""How much each Linear loses: evidence is measured or read, shared out by an allocation, and made whole weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.resolve import read_json, resolve
from prunus.checkpoint.runner import Runner, pick_device
from prunus.checkpoint.writer import EVIDENCE, Partial
from prunus.disk import disk_errors, write_text
from prunus.errors import PrunusError
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.allocation.arithmetic import HIGHEST, row_counts, tensor_counts, weighted_mean
from prunus.pruning.allocation.importance_scores import PARTS, WHOLE, ImportanceScores, read_scores
from prunus.pruning.allocation.influence import INFLUENCE_TOKENS, influence_recipe
from prunus.pruning.allocation.measurement import Measured, Subject
from prunus.pruning.calibration.data import Calibration, load_calibration
from prunus.pruning.calibration.memory_budget import check_block_fits
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.calibration.shared_measurements import once, scores_key
from prunus.pruning.masks import zeros_wanted
from prunus.pruning.scope import linears_in_scope, weights_of
from prunus.recipes import TOKEN_WEIGHTS, PruneRecipe

if TYPE_CHECKING:
    from prunus.pruning.job import Job

# How far a mean may be from its target by floating point alone.
REACHED = 1e-6

Group = tuple[int, str]  # block, and `block`, `attention` or `mlp`


class Shares(NamedTuple):
    """groups: sparsity by block and part. warnings: where a limit was met."""

    groups: Mapping[Group, float]
    warnings: list[str]

    def of(self, index: int, linear: Linear) -> float:
        """Sparsity of one Linear, before it is made whole weights."""
        whole = self.groups.get((index, WHOLE))
        return self.groups[index, linear.kind] if whole is None else whole


def allocate(
    model: str | Path, recipe: PruneRecipe, *, save: str | Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """The sparsity that recipe gives each block of model (folder, hub id or `tiny`), as plain data; nothing is pruned.

    blocks: sparsity of each block and of its attention and MLP, with the score where one was measured. save: file for
    the evidence, which `PruneRecipe(scores=...)` takes so that it is not measured again. Wrong input raises
    PrunusError.
    """
    source = Checkpoint(resolve(model))
    target = None if save is None else Path(save).expanduser()
    if target is not None and not target.absolute().parent.is_dir():
        raise PrunusError(f"{target} cannot be written: its folder does not exist")
    evidence = find_scores(source, recipe, pick_device(device), None)
    shares = share_out(source, recipe, evidence)
    if target is not None:
        try:
            write_text(target, scores_text(evidence))
        except OSError as error:
            raise PrunusError(f"{target} cannot be written: {error.strerror}") from error
    return {
        "allocation": recipe.allocation,
        "sparsity": recipe.sparsity,
        "scope": recipe.scope,
        "score": ALLOCATIONS[recipe.allocation].score,
        "blocks": block_rows(source, recipe, evidence, shares),
        "evidence": evidence.to_json(),
        "warnings": [*evidence.warnings, *shares.warnings],
    }


def scores_text(evidence: ImportanceScores) -> str:
    """The content of an evidence file."""
    return json.dumps(evidence.to_json(), indent=1) + "\n"


def find_scores(
    source: Checkpoint,
    recipe: PruneRecipe,
    device: torch.device,
    calibration: Calibration | None,
    saved: SavedStats | None = None,
    file: Path | None = None,
) -> ImportanceScores:
    """Importance scores of the recipe's file, checked against model and recipe, else measured.

    calibration: the recipe's sequences where they are at hand already; influences choose their own. saved: statistics
    to be used instead of running the model where they are enough. file: where to keep hidden states instead of in
    memory.
    """
    allocation = ALLOCATIONS[recipe.allocation]
    settings: dict[str, Any] = {"scope": recipe.scope, **{name: getattr(recipe, name) for name in allocation.settings}}
    if allocation.needs == "nothing":
        return ImportanceScores(recipe.allocation, None, {}, {}, {}, [])
    if recipe.scores is not None:
        path = Path(recipe.scores).expanduser()
        evidence = read_scores(path, recipe.allocation, groups_of(source, recipe), source.blocks)
        if evidence.model is not None and evidence.model != source.checksum():
            raise PrunusError(f"{path} was measured on another model (its weights differ); measure again")
        for name, value in settings.items():
            if name in evidence.settings and evidence.settings[name] != value:
                flag, found = "--" + name.replace("_", "-"), evidence.settings[name]
                raise PrunusError(f"{path} was measured with {flag} {found}, not {value}; measure again")
        return evidence
    checksum = source.checksum()
    if recipe.dtype == "auto":
        dtype = torch.float32 if allocation.needs == "gradients" else source.dtype
    else:
        dtype = getattr(torch, recipe.dtype)
    check_block_fits(source, dtype)
    linears = linears_in_scope(source, recipe)
    if not all(linears):
        raise PrunusError(
            f"block {linears.index([])} has no Linear in scope, so {recipe.allocation} cannot tell what it is worth; "
            "use --allocation uniform"
        )
    subject = Subject(source, recipe, linears, Runner(source.config, source.tensors, dtype, device), file=file)
    if saved is not None and allocation.needs == "norms":
        subject = subject._replace(saved=lambda index: saved.block(index, device))
    with full_float32(device):
        measured, calibration = measure(subject, calibration)
    if calibration is not None or subject.saved is not None:
        settings["calibration"] = calibration.summary() if calibration else saved and saved.summary
        if recipe.weighted and allocation.needs == "norms":
            weights = {name: getattr(recipe, name) for name in TOKEN_WEIGHTS}
            settings |= {name: weight for name, weight in weights.items() if weight is not None}
    return ImportanceScores(recipe.allocation, checksum, settings, measured.scores, measured.details, measured.warnings)


def keep_scores(job: "Job", partial: Partial, calibration: Calibration | None) -> ImportanceScores:
    """Importance scores measured once and kept beside the result, where --scores can read them again."""
    if "evidence" not in partial.notes:
        with disk_errors(partial.folder, partial.needed):
            found = _measured_or_shared(job, partial, calibration)
        partial.note("evidence", found.to_json(), {EVIDENCE: scores_text(found)} if found.scores else {})
    return ImportanceScores.from_json(partial.notes["evidence"])


def _measured_or_shared(job: "Job", partial: Partial, calibration: Calibration | None) -> ImportanceScores:
    """Importance scores measured now, or found among what variants of a study share."""

    def find() -> ImportanceScores:
        return find_scores(job.source, job.recipe, job.device, calibration, job.stats, job.hidden_file(partial))

    if job.shared is None or job.stats is not None or job.measured == "nothing":
        return find()
    with once(job.shared, scores_key(job.source, job.recipe, job.device)) as place:
        if not place.exists():
            write_text(place, scores_text(find()))
        return ImportanceScores.from_json(read_json(place))


def measure(subject: Subject, calibration: Calibration | None) -> tuple[Measured, Calibration | None]:
    """The scores of the recipe's allocation, and the calibration that they were measured with, if any."""
    recipe, source = subject.recipe, subject.source
    allocation, chosen = ALLOCATIONS[recipe.allocation], None
    assert allocation.measure is not None, f"{recipe.allocation} declares no measure"
    if allocation.needs == "gradients":
        chosen = load_calibration(influence_recipe(recipe), source).shortened(INFLUENCE_TOKENS)
        return allocation.measure(subject, chosen), chosen
    if allocation.needs == "norms" and subject.saved is None:
        chosen = calibration or load_calibration(recipe, source)
    with torch.inference_mode():
        return allocation.measure(subject, chosen), chosen


def groups_of(source: Checkpoint, recipe: PruneRecipe) -> list[str]:
    """The parts of a block that get a sparsity of their own."""
    return parts_of(source, recipe) if ALLOCATIONS[recipe.allocation].apart else [WHOLE]


def parts_of(source: Checkpoint, recipe: PruneRecipe) -> list[str]:
    """The parts of which there are Linears in scope."""
    kinds = {linear.kind for linears in linears_in_scope(source, recipe) for linear in linears}
    return [part for part in PARTS if part in kinds]


def share_out(source: Checkpoint, recipe: PruneRecipe, evidence: ImportanceScores) -> Shares:
    """The sparsity of every group; each kind of group has the target as its weighted mean.

    Not so with rounding `reference`, where an allocation is as the study's code runs it: that loses the mean where a
    sparsity meets a limit, and a warning says so.
    """
    shared: dict[Group, float] = {}
    warnings = []
    for part in groups_of(source, recipe):
        sizes = group_sizes(source, recipe, part)
        allocation = ALLOCATIONS[recipe.allocation]
        as_run = allocation.as_run if recipe.rounding == "reference" else None
        found = (as_run or allocation.allocate)(evidence.scores.get(part, []), sizes, recipe)
        shared |= {(index, part): value for index, value in enumerate(found)}
        if as_run is not None:
            mean = weighted_mean(found, sizes)
            if abs(mean - recipe.sparsity) > REACHED:
                of = "" if part == WHOLE else f" of {part}"
                warnings.append(
                    f"{recipe.allocation}{of} met a limit; with rounding reference nothing makes up for it, as in the "
                    f"study's code, so the mean sparsity is {mean:.4f}, not {recipe.sparsity:g}"
                )
            continue
        for limit, count in ((HIGHEST, sum(v >= HIGHEST for v in found)), (0.0, sum(v <= 0 for v in found))):
            if count and recipe.allocation != "uniform" and recipe.sparsity > 0:
                warnings.append(
                    f"{count} of {len(found)} blocks{'' if part == WHOLE else f' ({part})'} were held at sparsity "
                    f"{limit:g}; the others make up for it"
                )
    return Shares(shared, warnings)


def group_sizes(source: Checkpoint, recipe: PruneRecipe, part: str) -> list[int]:
    """Weights in scope of one part of every block."""
    return [
        weights_of([linear for linear in linears if part in (WHOLE, linear.kind)])
        for linears in linears_in_scope(source, recipe)
    ]


def linear_sparsities(
    source: Checkpoint, recipe: PruneRecipe, shares: Shares, group: str
) -> dict[tuple[int, str], tuple[float, int]]:
    """What a method is to be asked for, for each Linear: a share of whole weights (of a row, where group is `row`), and
    in how many rows one weight more.

    Over the Linears in scope the zeros add up to round(S * N). `uniform` and rounding `reference` leave rounding to the
    method: each Linear for itself.
    """
    places = [(index, linear) for index, linears in enumerate(linears_in_scope(source, recipe)) for linear in linears]
    names = [(index, linear.name) for index, linear in places]
    wanted = [shares.of(index, linear) for index, linear in places]
    if recipe.allocation == "uniform" or recipe.rounding == "reference":
        return {name: (share, 0) for name, share in zip(names, wanted, strict=True)}
    shapes = [linear.shape_OI for _, linear in places]
    sizes = [rows * columns for rows, columns in shapes]
    total = zeros_wanted(sum(sizes), recipe.sparsity)
    if group == "row":
        counts = row_counts(wanted, shapes, total)
        units: Sequence[int] = [columns for _, columns in shapes]
    else:
        counts, units = [(count, 0) for count in tensor_counts(wanted, sizes, total)], sizes
    return {name: (count / unit, more) for name, (count, more), unit in zip(names, counts, units, strict=True)}


def block_rows(
    source: Checkpoint, recipe: PruneRecipe, evidence: ImportanceScores, shares: Shares
) -> list[dict[str, Any]]:
    """One row per block, for people: sparsity, that of attention and MLP, scores."""
    rows = []
    for index, linears in enumerate(linears_in_scope(source, recipe)):
        row: dict[str, Any] = {"block": index}
        for part in (WHOLE, *parts_of(source, recipe)):
            chosen = [linear for linear in linears if part in (WHOLE, linear.kind)]
            sizes = [weights_of([linear]) for linear in chosen]
            mean = weighted_mean([shares.of(index, linear) for linear in chosen], sizes) if chosen else None
            row["sparsity" if part == WHOLE else part] = mean
        row["scores"] = {part: values[index] for part, values in evidence.scores.items() if values}
        rows.append(row)
    return rows
