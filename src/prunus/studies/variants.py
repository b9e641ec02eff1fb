"""The folder of a study, and variants stored in it as small files: the tensors in which one differs from its source.

The checkpoint that the steps write is compared with the source and then deleted, unless the study keeps checkpoints. A
variant with tensors of other shapes, which cannot be swapped into the source, is kept as a whole checkpoint in the
study's folder.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from prunus import progress
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import ModelFolder, is_gguf
from prunus.checkpoint.packed_files import variant_about, vectors_of, write_variant
from prunus.checkpoint.safetensors_file import Stored, write_file
from prunus.disk import as_path, disk_errors, locked
from prunus.errors import PrunusError
from prunus.evaluation.provenance import begin, describe_model, describe_use
from prunus.evaluation.resolved_plan import store_problems
from prunus.manifest import MANIFEST, Manifest, blocks_kept
from prunus.plain_data import Record
from prunus.pruning.calibration import calibration_name, check_package
from prunus.settings.cache_size import CacheSize
from prunus.settings.serving import Serving
from prunus.step import StepOptions, action_of, kind_of
from prunus.steps.chain import plan_steps, run_steps
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.store.stored import Environment
from prunus.studies.cells import Cell, Model, Variant
from prunus.studies.file import CellGrid, Study


@dataclass(frozen=True)
class StudyPaths:
    """Paths of a study. folder: of all its files. store: of its results, by default `results.db` in the folder."""

    folder: Path
    store: Path

    @classmethod
    def of(cls, study: Study, out: str | Path | None, store: str | Path | None) -> "StudyPaths":
        """The paths that the user names; by default the folder `study-NAME` in the current one, NAME as of the file."""
        folder = as_path(out) if out is not None else Path(f"study-{study.path.stem}")
        if folder.exists() and not folder.is_dir():
            raise PrunusError(f"'{folder}' is a file: name a folder with --out")
        return cls(folder, as_path(store, "store") if store is not None else folder / "results.db")

    @property
    def page(self) -> Path:
        """Path of the report."""
        return self.folder / "report.html"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the context this process holds the locks of the folder, which is created if missing, and of the store.

        Raises PrunusError where another process holds one of them. A folder that is still empty is deleted at the end.
        """
        locks = [self.folder / "lock"]
        if self.store.absolute().parent != self.folder.absolute():
            if not self.store.absolute().parent.is_dir():
                raise PrunusError(f"the folder of '{self.store}' does not exist: create it or name another store")
            locks.append(self.store.with_name(f"{self.store.name}.lock"))
        with disk_errors(self.folder, 0):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with ExitStack() as stack:
                for lock in locks:
                    why = f"works on {lock.parent} (it holds {lock}): wait for it, or name another --out"
                    stack.enter_context(locked(lock, why))
                yield
        finally:
            with suppress(OSError):
                self.folder.rmdir()


# Folders of a study.
VARIANTS, MAKING, CHECKPOINTS = "variants", "making", "checkpoints"
MEASURED = "measured"  # folder within MAKING for measurements that several variants share


class VariantInfo(Record):
    """Description of a variant that was made. kept: indices of the source's blocks that it has.

    Stored: in the variant's file, by the names of the fields. content: digest of configuration and tokenizer of the
    source that it was made of. The other fields describe the variant as the evaluation describes a whole checkpoint.
    """

    kept: list[int]
    checksum: str
    manifest: Manifest
    parameters: int
    blocks: int
    bytes: Mapping[str, int]
    content: str


def weights_file(folder: Path, variant: Variant) -> Path:
    """Path of the file of a variant's matrices. folder: of the study, here and below."""
    return folder / VARIANTS / f"{variant.key}.safetensors"


def unfinished_folder(folder: Path, variant: Variant) -> Path:
    """The folder in which the variant's checkpoint is written; it stays until the variant's files are complete.

    The folder of a variant that is loaded whole stays even then.
    """
    return folder / (VARIANTS if variant.is_whole else MAKING) / variant.key


def folder_between(folder: Path, model: Model, variant: Variant, count: int, keep: bool) -> Path:
    """The folder of the checkpoint that the first `count` steps of a variant make, on the way to it.

    If these are all steps of another variant of the study, it is that variant's folder. keep: whether the study keeps
    checkpoints. Kept ones lie under names, which may have meant other recipes when they were made: so here one is only
    read, after a check that it is that variant's, and never written.
    """
    made = replace(variant, steps=variant.steps[:count], keys=variant.keys[:count])
    listed = next((other for other in model.variants if other.key == made.key), None)
    if keep and listed is not None and has_checkpoint(kept := kept_folder(folder, model, listed), folder, listed):
        return kept
    return folder / MAKING / made.key if keep or listed is None else unfinished_folder(folder, made)


def has_checkpoint(target: Path, folder: Path, variant: Variant) -> bool:
    """Whether a folder holds the checkpoint of a variant that was made."""
    info = read_info(folder, variant)
    return info is not None and (target / MANIFEST).exists() and ModelFolder(target).checksum() == info.checksum


def kept_folder(folder: Path, model: Model, variant: Variant) -> Path:
    """The folder of the variant's checkpoint if the study keeps checkpoints."""
    return folder / CHECKPOINTS / model.label.replace("/", "--") / variant.name


def target_folder(folder: Path, model: Model, variant: Variant, keep: bool) -> Path:
    """Where the variant's checkpoint is written. keep: whether the study keeps checkpoints."""
    return kept_folder(folder, model, variant) if keep else unfinished_folder(folder, variant)


def variant_files(folder: Path, variant: Variant) -> list[Path]:
    """The existing files of a variant. The matrices come last: the variant is complete once their file exists."""
    matrices = weights_file(folder, variant)
    return [path for path in (vectors_of(matrices), matrices) if path.exists()]


def files_to_load(folder: Path, model: Model, variant: Variant, keep: bool) -> list[Path]:
    """The files from which a variant that was made is loaded, with its checkpoint's files if it is loaded whole."""
    whole = target_folder(folder, model, variant, keep).rglob("*") if variant.is_whole else ()
    return [*variant_files(folder, variant), *sorted(path for path in whole if path.is_file())]


def read_info(folder: Path, variant: Variant) -> VariantInfo | None:
    """The description of a variant, read from its file; None if it has not been made of this source yet."""
    path = weights_file(folder, variant)
    info = VariantInfo.of(variant_about(path)["model"]) if path.exists() else None
    return None if info is None or info.content != variant.content else info


def is_made(folder: Path, variant: Variant) -> bool:
    """Whether the variant's files are complete; always true of the dense model, which needs none."""
    return not variant.steps or read_info(folder, variant) is not None


def differences_of(source: ModelFolder, folder: Path, variant: Variant) -> tuple[Path | None, Sequence[int]]:
    """The file of a variant that was made, None of the dense model, and the source's blocks that it lacks."""
    info = read_info(folder, variant) if variant.steps else None
    if info is None:
        return None, ()
    return weights_file(folder, variant), [index for index in range(source.blocks) if index not in info.kept]


def missing_package(check: Callable[..., object], *arguments: object) -> list[str]:
    """A line on the package that a check finds missing on this machine; none if the check passes.

    check: called with the arguments. A PrunusError of it that does not advise `pip install` is raised.
    """
    try:
        check(*arguments)
    except PrunusError as error:
        if "pip install" not in str(error):
            raise
        return [f"whether this machine can run it: {error}"]
    return []


def check_variants(grid: CellGrid, models: Sequence[Model], folder: Path, device: str) -> None:
    """Dry-run the recipe of every variant that has not been made yet, and print each warning once.

    Raises PrunusError, with the recipe's line in the study's file, where a variant cannot be made.
    """
    warnings: dict[str, None] = {}
    for model in models:
        for variant in model.variants[1:]:
            if is_made(folder, variant) or (unfinished_folder(folder, variant) / MANIFEST).exists():
                continue
            with grid.located(variant.line, f"{variant.name} of {model.name}"):
                warnings |= dict.fromkeys(warnings_of(model, variant, folder, device))
    for warning in warnings:
        progress.say(f"warning: {warning}")


def warnings_of(model: Model, variant: Variant, folder: Path, device: str) -> Sequence[str]:
    """The warnings of a dry run of a variant's steps. Raises PrunusError where it fails or a package is missing."""
    for recipe in variant.steps:
        if kind_of(recipe).calibrates(recipe):
            check_package(calibration_name(vars(recipe)["calibration"], model.source.manifest))
    options = StepOptions(device=device, overwrite=True)
    return plan_steps(model.name, unfinished_folder(folder, variant), variant.steps, options).warnings


def write_checkpoint(
    folder: Path, model: Model, variant: Variant, device: str, keep: bool, stats: Path | None = None
) -> None:
    """Write a variant's checkpoint to its target_folder. stats: a file of `stats`, for pruning without other steps."""
    options = StepOptions(device=device, overwrite=True, shared=folder / MAKING / MEASURED, stats=stats)
    between = partial(folder_between, folder, model, variant, keep=keep)
    run_steps(model.name, target_folder(folder, model, variant, keep), variant.steps, options, between)


def make_variant(
    model: Model,
    variant: Variant,
    folder: Path,
    device: str,
    keep: bool,
    leave: bool = False,
    stats: Path | None = None,
) -> VariantInfo:
    """Make the variant's checkpoint, write its files and return its description.

    Interrupted work is resumed. What its first steps make stays until no variant needs it.
    keep: also leave the whole checkpoint in kept_folder. leave: also leave it where it is made. stats: as for
    write_checkpoint.
    """
    source = model.source
    target = target_folder(folder, model, variant, keep)
    if weights_file(folder, variant).exists() and not is_made(folder, variant):  # of a source with other settings
        shutil.rmtree(unfinished_folder(folder, variant), ignore_errors=True)
    # A checkpoint that exists is complete. A kept one is made again, since its name may have meant another recipe.
    if keep or not (target / MANIFEST).exists():
        write_checkpoint(folder, model, variant, device, keep, stats)
    made = (ModelFolder if is_gguf(target) else Checkpoint)(target)
    kept = blocks_left(source, made)
    info = VariantInfo(
        kept=kept,
        checksum=made.checksum(),
        manifest=made.manifest,
        parameters=made.parameters,
        blocks=made.blocks,
        bytes=made.engine_bytes,
        content=variant.content,
    )
    weights_file(folder, variant).parent.mkdir(parents=True, exist_ok=True)
    changed = dict(changed_tensors(source, made, kept)) if isinstance(made, Checkpoint) and not variant.is_whole else {}
    vectors = {name: stored for name, stored in changed.items() if len(stored.shape) != 2}
    if vectors:
        write_file(vectors_of(weights_file(folder, variant)), vectors)
    matrices = ((name, stored.read()) for name, stored in changed.items() if name not in vectors)
    steps = [{action_of(recipe): recipe.to_json()} for recipe in variant.steps]
    about = {"variant": variant.name, "steps": steps, "model": info.to_json()}
    write_variant(weights_file(folder, variant), source, matrices, about)
    delete_unneeded(folder, model, variant.keys[:-1] if leave else variant.keys)
    return info


def delete_unneeded(folder: Path, model: Model, keys: Sequence[str]) -> None:
    """Delete the checkpoints with these keys that no variant that is still to be made needs.

    Kept checkpoints, and those of variants that are loaded whole, lie in other folders.
    """
    needed = {key for variant in model.variants if not is_made(folder, variant) for key in variant.keys}
    for key in set(keys) - needed:
        shutil.rmtree(folder / MAKING / key, ignore_errors=True)


def whole_checkpoint(grid: CellGrid, model: Model, variant: Variant, folder: Path, device: str) -> Path:
    """The folder with a variant's whole checkpoint, for a server; it is made again if it is missing.

    Unless the study keeps checkpoints, it is unfinished_folder, which the caller deletes except if variant.is_whole.
    """
    if not variant.steps:
        return model.checkpoint.folder
    keep = grid.keep_checkpoints
    target = target_folder(folder, model, variant, keep)
    if not is_made(folder, variant):
        make_variant(model, variant, folder, device, keep, leave=True)
    elif not has_checkpoint(target, folder, variant):
        write_checkpoint(folder, model, variant, device, keep)
        delete_unneeded(folder, model, variant.keys[:-1])
    return target


def blocks_left(source: Checkpoint, made: ModelFolder) -> list[int]:
    """Indices of the source's blocks that a checkpoint made from it still has, after all steps of its history."""
    return blocks_kept(source.blocks, made.manifest.history[len(source.manifest.history) :])


def changed_tensors(source: Checkpoint, made: Checkpoint, kept: list[int]) -> Iterator[tuple[str, Stored]]:
    """Yield (name in source, tensor of made) for every tensor of a block that differs from that of source."""
    for new, old in enumerate(kept):
        before = source.block_tensors(old)
        for name, stored in sorted(made.block_tensors(new).items()):
            old_name = made.renumbered(name, new, old)
            if not is_same(stored, before[old_name]):
                yield old_name, stored


def is_same(tensor: Stored, other: Stored) -> bool:
    """Whether two stored tensors are bit-identical."""
    if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(tensor.chunks(), other.chunks(), strict=True))


def cache_of(model: Model, variant: Variant, folder: Path, info: VariantInfo, serving: Serving) -> CacheSize | None:
    """The cache of a variant that was made; None where it is not known, or its checkpoint is on another machine."""
    if not variant.is_whole:
        return model.checkpoint.cache_size(serving, info.kept)
    folders = kept_folder(folder, model, variant), unfinished_folder(folder, variant)
    there = next((place for place in folders if has_checkpoint(place, folder, variant)), None)
    return None if there is None else ModelFolder(there).cache_size(serving)


def add_run(
    store: Store,
    model: Model,
    cell: Cell,
    folder: Path,
    environment: Environment,
    served: Path | None = None,
    mixed: bool = False,
) -> None:
    """Store a cell's problems and run, to which its rows refer.

    The run describes a variant as a whole checkpoint. environment: in which the rows are computed. served: the folder
    that a server loads, by which the run has the cache and, of a GGUF file, the bytes. mixed: as of Store.add_run.
    """
    described, serving = describe_model(model.name, model.checkpoint), cell.resolved.serving
    cache = model.checkpoint.cache_size(serving)
    if cell.variant.steps:
        info = read_info(folder, cell.variant)
        assert info is not None
        described |= {key: value for key, value in info.to_json().items() if key not in ("kept", "content")}
        weights = str(weights_file(folder, cell.variant))
        described |= {"name": f"{model.label}/{cell.variant.name}", "source": weights}
        cache = cache_of(model, cell.variant, folder, info, serving)
    if served is not None and is_gguf(served):
        described |= {"bytes": ModelFolder(served).engine_bytes}
    if served is not None:
        cache = ModelFolder(served).cache_size(serving)
    described = describe_use(described, cache, cell.resolved)
    if cell.served_as:
        described |= {"served_as": cell.served_as}
    store_problems(store, cell.resolved.problems)
    run = Run(cell.run_id, described, cell.resolved.plan, environment, planned=cell.resolved.planned)
    begin(store, run, mixed)
