"""Variants stored as small files in a study's folder: the tensors in which a pruned model differs from its source.

The checkpoint that `prune` or `drop_blocks` writes is compared with the source and then deleted, unless the study keeps
checkpoints. A variant with fewer experts has tensors of other shapes, which cannot be swapped into the source, so its
whole checkpoint is kept in the study's folder. One that is pruned after that is made from such a checkpoint.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus import progress
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.manifest import MANIFEST
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.packed.commands import read_variant, variant_about, write_variant
from prunus.checkpoint.safetensors_file import Stored, read_header, write_file
from prunus.errors import PrunusError
from prunus.evaluation.provenance import describe_model
from prunus.evaluation.resolved_plan import store_problems
from prunus.pruning.allocate import find_scores
from prunus.pruning.calibration.beforehand import check_package
from prunus.pruning.calibration.data import calibration_name
from prunus.pruning.drop import drop_blocks
from prunus.pruning.drop_experts import drop_experts
from prunus.pruning.pipeline import prune
from prunus.pruning.recover import prune_and_recover
from prunus.recipes import ExpertsRecipe, PruneRecipe
from prunus.results.rows import Run
from prunus.results.store import Store
from prunus.study.cells import Cell, Model, Variant, effective
from prunus.study.file import Study

# Folders of a study.
VARIANTS, MAKING, CHECKPOINTS = "variants", "making", "checkpoints"
MEASURED = "measured"  # folder within MAKING for measurements that several variants share


@dataclass(frozen=True)
class VariantInfo:
    """A variant without its weights. kept: indices of the source's blocks that it has.

    Stored: in the variant's file, by the names of the fields. The others describe the variant as a whole checkpoint, as
    the evaluation describes a model.
    """

    kept: list[int]
    checksum: str
    manifest: dict[str, Any]
    parameters: int
    blocks: int


def weights_file(folder: Path, variant: Variant) -> Path:
    """Path of the file of a variant's matrices. folder: of the study, here and below."""
    return folder / VARIANTS / f"{variant.key}.safetensors"


def vectors_file(folder: Path, variant: Variant) -> Path:
    """Path of the file of norms and biases, for a variant that changes any; it is written before the matrices."""
    return folder / VARIANTS / f"{variant.key}.vectors.safetensors"


def unfinished_folder(folder: Path, variant: Variant) -> Path:
    """The folder in which the variant's checkpoint is written; it stays until the variant's files are complete.

    That of a variant that is loaded whole stays as long as the study's folder.
    """
    return folder / (VARIANTS if is_whole(variant) else MAKING) / variant.key


def is_whole(variant: Variant) -> bool:
    """Whether a variant is loaded as a whole checkpoint, as it has tensors of other shapes than its source."""
    return isinstance(variant.recipe, ExpertsRecipe) or variant.after is not None


def origin_folder(folder: Path, model: Model, variant: Variant, keep: bool) -> Path:
    """The folder of the model with fewer experts that a variant is pruned from: that of a variant of the study, if any.

    keep: whether the study keeps checkpoints, which are those of a name, so that the variant's may be another's.
    """
    after = variant.after
    assert after is not None
    listed = not keep and any(one.key == after.key for one in model.variants)
    return unfinished_folder(folder, after) if listed else folder / MAKING / after.key


def kept_folder(folder: Path, model: Model, variant: Variant) -> Path:
    """The folder of the variant's checkpoint if the study keeps checkpoints."""
    return folder / CHECKPOINTS / model.label.replace("/", "--") / variant.name


def target_folder(folder: Path, model: Model, variant: Variant, keep: bool) -> Path:
    """Where the variant's checkpoint is written. keep: whether the study keeps checkpoints."""
    return kept_folder(folder, model, variant) if keep else unfinished_folder(folder, variant)


def variant_files(folder: Path, variant: Variant) -> list[Path]:
    """The existing files of a variant. The matrices come last: the variant is complete once their file exists."""
    return [path for path in (vectors_file(folder, variant), weights_file(folder, variant)) if path.exists()]


def files_to_load(folder: Path, model: Model, variant: Variant, keep: bool) -> list[Path]:
    """The files from which a variant that was made is loaded; for one that is loaded whole, with its checkpoint's."""
    whole = target_folder(folder, model, variant, keep).rglob("*") if is_whole(variant) else ()
    return [*variant_files(folder, variant), *sorted(path for path in whole if path.is_file())]


def read_info(folder: Path, variant: Variant) -> VariantInfo | None:
    """The description of a variant, read from its file; None if it has not been made yet."""
    path = weights_file(folder, variant)
    return VariantInfo(**variant_about(path)["model"]) if path.exists() else None


def is_made(folder: Path, variant: Variant) -> bool:
    """Whether the variant's files are complete; always true of the dense model, which needs none."""
    return variant.recipe is None or read_info(folder, variant) is not None


def files_of(folder: Path, variant: Variant) -> tuple[Path | None, Path | None]:
    """Paths of the packed matrices and of the vectors of a variant that was made; None for a file that it lacks."""
    if variant.recipe is None:
        return None, None
    vectors = vectors_file(folder, variant)
    return weights_file(folder, variant), vectors if vectors.exists() else None


def blocks_removed(source: ModelFolder, folder: Path, variant: Variant) -> list[int]:
    """Indices of the source's blocks that are missing in a variant that was made."""
    info = read_info(folder, variant) if variant.recipe is not None else None
    return [] if info is None else [index for index in range(source.blocks) if index not in info.kept]


def check_variants(study: Study, models: Sequence[Model], folder: Path, device: str) -> None:
    """Dry-run the recipe of every variant that has not been made yet, and print each warning once.

    Raises PrunusError, with the recipe's line in the study's file, where a variant cannot be made.
    """
    warnings: dict[str, None] = {}
    for model in models:
        for variant in model.variants[1:]:
            if is_made(folder, variant) or (unfinished_folder(folder, variant) / MANIFEST).exists():
                continue
            try:
                warnings |= dict.fromkeys(dry_run(model, variant, folder, device))
            except PrunusError as error:
                study.fail(variant.line, f"{variant.name} of {model.name}: {error}")
    for warning in warnings:
        progress.say(f"warning: {warning}")


def dry_run(model: Model, variant: Variant, folder: Path, device: str) -> list[str]:
    """The warnings of a dry run. Raises PrunusError where it fails or a package is missing."""
    recipe, target = variant.recipe, unfinished_folder(folder, variant)
    assert recipe is not None
    check_package(str(effective(recipe, model.source).get("calibration")))
    if variant.recover is not None:
        check_package(calibration_name(variant.recover, model.source))
    if isinstance(recipe, PruneRecipe) and recipe.scores is not None:  # a dry run of `prune` does not open this file
        find_scores(model.source, recipe, torch.device("cpu"), None)
    if variant.after is None:
        return apply(model, variant, target, device, dry_run=True)["warnings"]
    # The model with fewer experts is not there yet, so the pruning is tried on the whole model.
    first, then = (replace(one, after=None) for one in (variant.after, variant))
    return [*dry_run(model, first, folder, device), *dry_run(model, then, folder, device)]


def apply(
    model: Model,
    variant: Variant,
    target: Path,
    device: str,
    *,
    dry_run: bool = False,
    shared: Path | None = None,
    pruned: Path | None = None,
    stats: Path | None = None,
    origin: Path | None = None,
) -> dict[str, Any]:
    """Write the checkpoint of a variant to target and return its summary. shared: folder for shared measurements.

    pruned: for a recovery, a folder that may already have the pruned model. stats: for pruning alone, a file that
    `stats` wrote. origin: for pruning after experts were removed, the folder of the model without them, which is made
    if it is missing.
    """
    recipe = variant.recipe
    assert recipe is not None
    where: dict[str, Any] = {"device": device, "overwrite": True, "dry_run": dry_run}
    if isinstance(recipe, PruneRecipe):
        where["shared"] = shared
    source: str | Path = model.name
    if variant.after is not None:
        assert origin is not None
        if not (origin / MANIFEST).exists():
            apply(model, variant.after, origin, device)
        source, where["name"] = origin, variant.after.name
    if variant.recover is not None:  # it comes near to the model itself, whatever was removed from it
        return prune_and_recover(source, target, recipe, variant.recover, pruned=pruned, dense=model.name, **where)
    if isinstance(recipe, PruneRecipe):
        return prune(source, target, recipe, stats=stats, **where)
    if isinstance(recipe, ExpertsRecipe):
        return drop_experts(model.name, target, recipe, **where)
    return drop_blocks(model.name, target, recipe, **where)


def make_variant(
    model: Model,
    variant: Variant,
    folder: Path,
    device: str,
    keep: bool,
    leave: bool = False,
    stats: Path | None = None,
) -> VariantInfo:
    """Prune the model, write the files of the variant and return its description.

    Interrupted pruning is resumed. A pruned checkpoint stays until the variants that are recovered from it are made.
    keep: also leave the whole checkpoint in kept_folder. leave: also leave it where it is made. stats: as for apply.
    """
    source, recipe = model.source, variant.recipe
    assert recipe is not None
    target = target_folder(folder, model, variant, keep)
    # A checkpoint that exists is complete. A kept one is made again, since its name may have meant another recipe.
    if keep or not (target / MANIFEST).exists():
        plain = next((one for one in same_recipe(model, variant) if one.recover is None), None)
        pruned = target_folder(folder, model, plain, keep) if plain else None
        origin = origin_folder(folder, model, variant, keep) if variant.after else None
        shared = folder / MAKING / MEASURED
        apply(model, variant, target, device, shared=shared, pruned=pruned, stats=stats, origin=origin)
    made = Checkpoint(target)
    kept = blocks_left(source, made)
    info = VariantInfo(kept, made.checksum(), made.manifest, made.parameters, made.blocks)
    weights_file(folder, variant).parent.mkdir(parents=True, exist_ok=True)
    changed = {} if is_whole(variant) else dict(changed_tensors(source, made, kept))
    vectors = {name: stored for name, stored in changed.items() if len(stored.shape) != 2}
    if vectors:
        write_file(vectors_file(folder, variant), vectors)
    matrices = ((name, stored.read()) for name, stored in changed.items() if name not in vectors)
    about = {"variant": variant.name, "recipe": recipe.to_json(), "model": asdict(info)}
    if variant.recover is not None:
        about["recover"] = variant.recover.to_json()
    if variant.after is not None and variant.after.recipe is not None:
        about["experts"] = variant.after.recipe.to_json()
    write_variant(weights_file(folder, variant), source, matrices, about)
    alike = same_recipe(model, variant)
    if all(is_made(folder, one) for one in alike):
        finished = [variant, *alike]
    else:
        finished = [variant] if variant.recover is not None else []
    for one in [] if keep or leave or is_whole(variant) else finished:
        shutil.rmtree(unfinished_folder(folder, one), ignore_errors=True)
    return info


def whole_checkpoint(study: Study, model: Model, variant: Variant, folder: Path, device: str) -> Path:
    """The folder with a variant's whole checkpoint, for a server; it is made again if it is missing.

    Unless the study keeps checkpoints, it is that of an unfinished one, which the caller deletes unless is_whole.
    """
    if variant.recipe is None:
        return model.checkpoint.folder
    keep = study.keep_checkpoints
    target = target_folder(folder, model, variant, keep)
    info = read_info(folder, variant)
    if info is None:
        make_variant(model, variant, folder, device, keep, leave=True)
    elif not (target / MANIFEST).exists() or ModelFolder(target).checksum() != info.checksum:
        origin = origin_folder(folder, model, variant, keep) if variant.after else None
        apply(model, variant, target, device, shared=folder / MAKING / MEASURED, origin=origin)
    return target


def same_recipe(model: Model, variant: Variant) -> list[Variant]:
    """The variants of one pruning recipe: the pruned model and those that are recovered from it, in this order."""
    alike = (one for one in model.variants if (one.recipe, one.after) == (variant.recipe, variant.after))
    return sorted(alike, key=lambda one: one.recover is not None)


def blocks_left(source: Checkpoint, made: Checkpoint) -> list[int]:
    """Indices of the source's blocks that a checkpoint made from it still has, after all steps of its history."""
    kept = list(range(source.blocks))
    for step in made.manifest["history"][len(source.manifest.get("history", [])) :]:
        removed = set(step.get("blocks_removed", []))
        kept = [number for index, number in enumerate(kept) if index not in removed]
    return kept


def changed_tensors(source: Checkpoint, made: Checkpoint, kept: list[int]) -> Iterator[tuple[str, Stored]]:
    """Yield (name in source, tensor of made) for every tensor of a block that differs from that of source."""
    for new, old in enumerate(kept):
        before = source.block_tensors(old)
        for name, stored in sorted(made.block_tensors(new).items()):
            old_name = made.renumbered(name, new, old)
            if not is_same(stored, before[old_name]):
                yield old_name, stored


def is_same(one: Stored, other: Stored) -> bool:
    """Whether two stored tensors are bit-identical."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(one.chunks(), other.chunks(), strict=True))


def read_tensors(folder: Path, variant: Variant, source: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, value) of each tensor in which a variant differs from its source, read one at a time."""
    yield from read_variant(weights_file(folder, variant), source)
    vectors = vectors_file(folder, variant)
    if vectors.exists():
        yield from ((name, stored.read()) for name, stored in read_header(vectors).items())


def add_run(store: Store, model: Model, cell: Cell, folder: Path, versions: dict[str, Any]) -> None:
    """Store a cell's problems and run, to which its rows refer.

    The run describes a variant as a whole checkpoint. versions: of the libraries that compute the rows.
    """
    described = describe_model(model.name, model.checkpoint)
    if cell.variant.recipe is not None:
        info = read_info(folder, cell.variant)
        assert info is not None
        described |= {
            "name": f"{model.label}/{cell.variant.name}",
            "source": str(weights_file(folder, cell.variant)),
            "checksum": info.checksum,
            "manifest": info.manifest,
            "parameters": info.parameters,
            "blocks": info.blocks,
        }
    store_problems(store, cell.resolved.problems)
    store.add_run(Run(cell.run_id, described, cell.resolved.plan, versions, planned=cell.resolved.planned))
