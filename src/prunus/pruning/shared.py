"""Measurements that several variants of a model share: stored in a folder under a hash of all they depend on.

Of these, the dense model's squared loss gradients are measured here, in one file per block.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import versions
from prunus.checkpoint.runner import Runner
from prunus.checkpoint.safetensors_file import read_header, write_file
from prunus.checkpoint.writer import Partial
from prunus.declarations import Allocation, declared
from prunus.disk import disk_errors, locked
from prunus.plain_data import content_hash
from prunus.pruning.calibration import TRACES, calibration_name
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.gradients import Model, square_sums
from prunus.pruning.calibration.propagation import Stats
from prunus.pruning.prune_job import PruneJob
from prunus.recipe_base import Calibrated
from prunus.recipes import PruneRecipe

# What a recipe stores on which importance scores may depend, besides options of the allocation.
SCORED = ("scope", "samples", "seqlen", "calibration_tokens", *Calibrated.STORED, "seed", "dtype")


@contextmanager
def once(folder: Path, key: str) -> Iterator[Path]:
    """The path of one measurement, locked: if it does not exist, the caller creates it while other processes wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{key}.lock"):
        yield folder / key


def key_of(kind: str, source: Checkpoint, device: torch.device, **about: object) -> str:
    """The key of one measurement: a hash of all that it depends on."""
    return f"{kind}-" + content_hash(
        {"source": source.checksum(), "device": device.type, "versions": versions(), **about}
    )


def scores_key(source: Checkpoint, recipe: PruneRecipe, device: torch.device) -> str:
    """The key of an allocation's importance scores. Method, sparsity and other later settings are not part of it."""
    name = calibration_name(recipe.calibration, source.manifest)
    file = Path(name.removeprefix(TRACES)).expanduser()
    allocation = declared(Allocation)[recipe.allocation]
    fields = (*SCORED, *allocation.settings, *allocation.sampling)
    return key_of(
        "evidence",
        source,
        device,
        allocation=recipe.allocation,
        calibration=hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else name,
        recipe={field: value for field, value in recipe.to_json().items() if field in fields},
    )


def measure_gradients(job: PruneJob, partial: Partial, calibration: Calibration) -> Path:
    """The folder with the files of gradients: of the unfinished output, or shared by the variants of a study."""
    dtype = torch.float32 if job.recipe.dtype == "auto" else job.dtype
    runner = Runner(job.source, dtype, job.device)
    names = [[linear.name for linear in linears] for linears in job.linears]
    model = Model(job.source, runner, names, job.hidden_file(partial))

    def save(folder: Path) -> None:
        with disk_errors(partial.folder, partial.needed):
            for index, sums in enumerate(square_sums(model, calibration.sequences)):
                write_file(file_in(folder, index), sums, sync=False)

    if job.where.shared is None:
        if "gradients" not in partial.notes:
            save(partial.folder)
            partial.note("gradients", True, {})
        return partial.folder
    about = {"linears": names, "dtype": str(dtype)}
    # `weights` are those of tokens, which only earlier versions have.
    tokens = {"calibration": calibration.summary()["sha256"], "weights": None}
    with once(job.where.shared, key_of("gradients", job.source, job.device, about=about, **tokens)) as place:
        if not place.exists():
            unfinished = place.with_suffix(".partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            save(unfinished)
            unfinished.rename(place)
    return place


def with_gradients(groups: Iterable[Stats], file: Path, device: torch.device) -> Iterator[Stats]:
    """The statistics of a block's Linears, with sums of squared gradients by their outputs, from the block's file."""
    for group in groups:
        sums = {name: row for name, row in read_header(file).items() if name in group}
        yield {name: replace(group[name], fisher_O=row.read().to(device)) for name, row in sums.items()}


def file_in(folder: Path, index: int) -> Path:
    """The file with the sums of one block."""
    return folder / f"gradients-{index:05d}.safetensors"
