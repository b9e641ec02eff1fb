"""Measurements that several variants of a model share: stored in a folder under a hash of all they depend on."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import versions
from prunus.declarations import Allocation, declared
from prunus.disk import locked
from prunus.hashing import content_hash
from prunus.pruning.calibration.beforehand import TRACES
from prunus.pruning.calibration.data import Calibration, calibration_name
from prunus.recipe_base import TOKEN_WEIGHTS
from prunus.recipes import PruneRecipe

# Fields of a recipe on which importance scores may depend, besides options of the allocation.
FIELDS = ("scope", "samples", "seqlen", "calibration_tokens", *TOKEN_WEIGHTS, "seed", "dtype")


@contextmanager
def once(folder: Path, key: str) -> Iterator[Path]:
    """The path of one measurement, locked: if it does not exist, the caller creates it while other processes wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{key}.lock"):
        yield folder / key


def scores_key(source: Checkpoint, recipe: PruneRecipe, device: torch.device) -> str:
    """The key of an allocation's importance scores. Method, sparsity and other later settings are not part of it."""
    name = calibration_name(recipe, source)
    file = Path(name.removeprefix(TRACES)).expanduser()
    allocation = declared(Allocation)[recipe.allocation]
    fields = (*FIELDS, *allocation.settings, *allocation.sampling)
    return "evidence-" + content_hash(
        {
            "source": source.checksum(),
            "allocation": recipe.allocation,
            "calibration": hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else name,
            "recipe": {field: getattr(recipe, field) for field in fields},
            "device": device.type,
            "versions": versions(),
        }
    )


def gradients_key(
    source: Checkpoint, recipe: PruneRecipe, calibration: Calibration, about: dict[str, object], device: torch.device
) -> str:
    """The key of sums of squared gradients. about: whether they are per output, of which Linears, in which dtype."""
    counted = [getattr(recipe, name) for name in TOKEN_WEIGHTS]
    weights = [*counted, list(calibration.prompts)] if recipe.weighted else None
    return "gradients-" + content_hash(
        {
            "source": source.checksum(),
            "calibration": calibration.summary()["sha256"],
            "weights": weights,
            "about": about,
            "device": device.type,
            "versions": versions(),
        }
    )
