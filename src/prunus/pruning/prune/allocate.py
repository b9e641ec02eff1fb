"""The sparsity of each Linear: scores are measured or read, an allocation computes sparsities, which become counts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import within_memory
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.resolve import resolve, typed_path
from prunus.checkpoint.runner import Runner, pick_device
from prunus.checkpoint.writer import SCORES, Partial
from prunus.disk import check_writable, disk_errors, read_json, write_text
from prunus.errors import PrunusError
from prunus.plain_data import Record
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.allocation.arithmetic import HIGHEST, row_counts, tensor_counts, weighted_mean
from prunus.pruning.allocation.measurement import PARTS, WHOLE, ImportanceScores, Subject, is_scores_file, read_scores
from prunus.pruning.calibration.data import Calibration, load_calibration
from prunus.pruning.calibration.hidden_states import check_block_fits
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.masks import zeros_wanted
from prunus.pruning.prune.job import PruneJob, once, scores_key
from prunus.pruning.scope import linears_in_scope, weights_of
from prunus.recipes import PruneRecipe
from prunus.results.shown import as_text

# A mean sparsity may differ from its target by this much through floating point alone.
REACHED = 1e-6
Linears = Sequence[Sequence[Linear]]  # in scope, by block
Sparsities = Mapping[tuple[int, str], float]  # of each Linear by block and name, before rounding to a number of weights


class BlockSparsity(Record):
    """The sparsity that an allocation gives a block.

    block: its index.
    sparsity: share of zeros; None if the block has no Linear in scope.
    parts: sparsities of the block's `attention` and `mlp`; a part without Linears in scope in any block is left out.
    scores: importance scores by part, in the unit that Allocated.score says.
    """

    block: int
    sparsity: float | None
    parts: Mapping[str, float | None]
    scores: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The block as plain data, in which each part is a key."""
        data = super().to_json()
        return {"block": self.block, "sparsity": self.sparsity, **data["parts"], "scores": data["scores"]}


class Allocated(Record):
    """The sparsity of each block.

    allocation, scope: those of the recipe.
    sparsity: the target, the share of zeros over all blocks.
    score: what the scores are, as text.
    blocks: one for each block.
    evidence: the content of the file of importance scores.
    warnings: a line each.
    """

    allocation: str
    sparsity: float
    scope: str
    score: str
    blocks: Sequence[BlockSparsity]
    evidence: Mapping[str, Any]
    warnings: Sequence[str]

    def __repr__(self) -> str:
        return as_text("allocation_table", self)


def allocate(
    model: str | Path, recipe: PruneRecipe, *, save: str | Path | None = None, device: str = "auto"
) -> Allocated:
    """The sparsity that the recipe gives each block of model; nothing is pruned.

        found = prunus.allocate("tiny", prunus.PruneRecipe(allocation="owl", sparsity=0.5))
        print([block.sparsity for block in found.blocks])

    model: a folder, a hub id or `tiny`.
    recipe: with the allocation and its settings.
    save: file for the importance scores, which `PruneRecipe(scores=...)` reads instead of measuring them again.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.

    Raises PrunusError for wrong input.
    """
    source = Checkpoint(resolve(model))
    target = None if save is None else typed_path(save)
    if target is not None and not target.absolute().parent.is_dir():
        raise PrunusError(f"{target} cannot be written: its folder does not exist")
    if target is not None and target.exists() and not is_scores_file(target):
        raise PrunusError(f"{target} exists and holds no importance scores; choose another output")
    if target is not None:
        check_writable(target)  # before they are measured
    scores = find_scores(source, recipe, pick_device(device), None)
    linears = linears_in_scope(source, recipe.scope)
    sparsities, limits = allocate_groups(linears, recipe, scores)
    if target is not None:
        with disk_errors(target):
            write_text(target, scores_text(scores))
    return Allocated(
        allocation=recipe.allocation,
        sparsity=recipe.sparsity,
        scope=recipe.scope,
        score=ALLOCATIONS[recipe.allocation].score,
        blocks=block_rows(linears, scores, sparsities),
        evidence=scores.to_json(),
        warnings=list(dict.fromkeys([*scores.warnings, *limits])),
    )


def scores_text(scores: ImportanceScores) -> str:
    """The content of a file of importance scores."""
    return json.dumps(scores.to_json(), indent=1) + "\n"


def find_scores(
    source: Checkpoint,
    recipe: PruneRecipe,
    device: torch.device,
    calibration: Calibration | None,
    saved: SavedStats | None = None,
    file: Path | None = None,
) -> ImportanceScores:
    """Importance scores for the recipe: from its file, checked against model and recipe, else measured.

    calibration: the recipe's sequences, if they are loaded already. saved: input statistics to use instead of running
    the model, if the allocation needs no more. file: for hidden states; None keeps them in memory. Raises PrunusError
    if the file does not fit or the scores cannot be measured.
    """
    allocation = ALLOCATIONS[recipe.allocation]
    settings = {name: getattr(recipe, name) for name in ("scope", *allocation.settings)}
    if allocation.needs == "nothing":
        return ImportanceScores(recipe.allocation)
    linears = linears_in_scope(source, recipe.scope)
    if recipe.scores is not None:
        path = typed_path(recipe.scores)
        scores = read_scores(path, recipe.allocation, list(groups_of(linears, recipe)), source.blocks)
        if scores.model is not None and scores.model != source.checksum():
            raise PrunusError(f"{path} was measured on another model (its weights differ); measure again")
        for name, value in settings.items():
            if name in scores.settings and scores.settings[name] != value:
                flag, stored = "--" + name.replace("_", "-"), scores.settings[name]
                raise PrunusError(f"{path} was measured with {flag} {stored}, not {value}; measure again")
        return scores
    checksum = source.checksum()
    exact = recipe.dtype == "auto" and allocation.needs == "gradients"
    dtype = torch.float32 if exact else source.dtype_for(recipe.dtype)
    check_block_fits(source, dtype, device)
    if not all(linears):
        raise PrunusError(
            f"block {linears.index([])} has no Linear in scope, so {recipe.allocation} has no score for it; "
            "use --allocation uniform"
        )
    if allocation.needs == "gradients" and any(linear.experts for block in linears for linear in block):
        raise PrunusError(
            f"{recipe.allocation} keeps a gradient of each Linear and sequence, too many for routed experts; use "
            "another allocation, or --scope attention"
        )
    runner = Runner(source, dtype, device)
    saved = saved if allocation.needs == "norms" else None
    subject = Subject(source, recipe, linears, runner, saved, file)
    with full_float32(device), within_memory(device):
        measured, calibration = measure_scores(subject, calibration)
    if calibration is not None or saved is not None:
        settings["calibration"] = calibration.summary() if calibration else saved and saved.summary
    return measured._replace(allocation=recipe.allocation, model=checksum, settings=settings)


def keep_scores(job: PruneJob, partial: Partial, calibration: Calibration | None) -> ImportanceScores:
    """Importance scores for a job, measured once and written beside the result, where --scores can read them again.

    The variants of a study share them in a folder.
    """
    source, recipe, shared = job.source, job.recipe, job.options.shared
    if ALLOCATIONS[recipe.allocation].needs == "nothing":
        return ImportanceScores(recipe.allocation)

    def find() -> ImportanceScores:
        return find_scores(source, recipe, job.device, calibration, job.saved, job.hidden_file(partial))

    if "evidence" not in partial.notes:
        with disk_errors(partial.folder, partial.needed):
            if shared is None or job.saved is not None or recipe.measured == "nothing":
                scores = find()
            else:
                with once(shared, scores_key(source, recipe, job.device)) as place:
                    if not place.exists():
                        write_text(place, scores_text(find()))
                    scores = ImportanceScores.from_json(read_json(place))
        partial.note("evidence", scores.to_json(), {SCORES: scores_text(scores)} if scores.scores else {})
    return ImportanceScores.from_json(partial.notes["evidence"])


def measure_scores(subject: Subject, calibration: Calibration | None) -> tuple[ImportanceScores, Calibration | None]:
    """The scores of the recipe's allocation, and the calibration they were measured on, if any."""
    recipe, source = subject.recipe, subject.source
    allocation, chosen = ALLOCATIONS[recipe.allocation], None
    assert allocation.measure is not None, f"{recipe.allocation} declares no measure"
    if allocation.calibration is not None:
        own, max_tokens = allocation.calibration(recipe)
        chosen = load_calibration(own, source).shortened(max_tokens)
    elif allocation.needs in ("norms", "gradients") and subject.saved is None:
        chosen = calibration or load_calibration(recipe, source)
    with torch.inference_mode(allocation.needs != "gradients"):
        return allocation.measure(subject, chosen), chosen


def parts_of(linears: Linears) -> dict[str, list[list[Linear]]]:
    """The Linears of `attention` and `mlp`, by block; only of parts that have some."""
    by_part = {part: [[linear for linear in block if linear.kind == part] for block in linears] for part in PARTS}
    return {part: blocks for part, blocks in by_part.items() if any(blocks)}


def groups_of(linears: Linears, recipe: PruneRecipe) -> dict[str, Linears]:
    """{kind of group: Linears in scope, by block}; kinds are `block` alone, or `attention` and `mlp`.

    The Linears of a kind in a block are a group, which gets one sparsity.
    """
    return {**parts_of(linears)} if ALLOCATIONS[recipe.allocation].splits_blocks else {WHOLE: linears}


def allocate_groups(linears: Linears, recipe: PruneRecipe, scores: ImportanceScores) -> tuple[Sparsities, list[str]]:
    """The sparsity of every Linear, and a warning for each limit that was reached.

    For each kind of group the mean, weighted by size, is the target. With rounding `reference`, an allocation does what
    the study's code does: if a sparsity reaches a limit, the mean differs from the target, and a warning says so.
    """
    exact: dict[tuple[int, str], float] = {}
    warnings = []
    allocation = ALLOCATIONS[recipe.allocation]
    reference = allocation.allocate_reference if recipe.rounding == "reference" else None
    for part, blocks in groups_of(linears, recipe).items():
        sizes = list(map(weights_of, blocks))
        shares = (reference or allocation.allocate)(scores.scores.get(part, []), sizes, recipe)
        exact |= {(index, linear.name): shares[index] for index, block in enumerate(blocks) for linear in block}
        if reference is not None:
            mean = weighted_mean(shares, sizes)
            if abs(mean - recipe.sparsity) > REACHED:
                of = "" if part == WHOLE else f" of {part}"
                warnings.append(
                    f"{recipe.allocation}{of} reached a limit; with rounding reference, as in the study's code, other "
                    f"blocks do not compensate, so the mean sparsity is {mean:.4f}, not {recipe.sparsity:g}"
                )
            continue
        for limit, count in ((HIGHEST, sum(v >= HIGHEST for v in shares)), (0.0, sum(v <= 0 for v in shares))):
            if count and recipe.allocation != "uniform" and recipe.sparsity > 0:
                warnings.append(
                    f"{count} of {len(shares)} blocks{'' if part == WHOLE else f' ({part})'} were limited to sparsity "
                    f"{limit:g}; the others compensate"
                )
    return exact, warnings


def linear_sparsities(
    linears: Linears, recipe: PruneRecipe, sparsities: Sparsities, group: str
) -> dict[tuple[int, str], tuple[float, int]]:
    """(sparsity, extra zeros) that the method gets, by block and Linear; see masks.Target.

    The sparsity is a whole number of weights over the size of the tensor, or of a row if group is `row`; extra zeros,
    for rows only, are one more in each of the first rows. Over all Linears in scope the zeros sum to round(S * N). With
    allocation `uniform` or rounding `reference` the method rounds for each Linear separately instead.
    """
    places = [(index, linear) for index, block in enumerate(linears) for linear in block]
    names = [(index, linear.name) for index, linear in places]
    exact = [sparsities[name] for name in names]
    if recipe.allocation == "uniform" or recipe.rounding == "reference":
        return {name: (sparsity, 0) for name, sparsity in zip(names, exact, strict=True)}
    shapes = [linear.shape_OI for _, linear in places]
    sizes = [rows * columns for rows, columns in shapes]
    total = zeros_wanted(sum(sizes), recipe.sparsity)
    if group == "row":
        counts = row_counts(exact, shapes, total)
        units: Sequence[int] = [columns for _, columns in shapes]
    else:
        counts, units = [(count, 0) for count in tensor_counts(exact, sizes, total)], sizes
    return {name: (count / unit, extra) for name, (count, extra), unit in zip(names, counts, units, strict=True)}


def block_rows(linears: Linears, scores: ImportanceScores, sparsities: Sparsities) -> list[BlockSparsity]:
    """The sparsity of each block, that of its attention and MLP, and its scores."""

    def mean(index: int, some: Sequence[Linear]) -> float | None:
        exact = [sparsities[index, linear.name] for linear in some]
        return weighted_mean(exact, [weights_of([linear]) for linear in some]) if some else None

    return [
        BlockSparsity(
            block=index,
            sparsity=mean(index, block),
            parts={part: mean(index, blocks[index]) for part, blocks in parts_of(linears).items()},
            scores={part: values[index] for part, values in scores.scores.items() if values},
        )
        for index, block in enumerate(linears)
    ]
