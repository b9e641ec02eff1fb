"""What is measured once for several variants of a model: kept in a folder, under a hash of all that it depends on."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunus.checkpoint.checkpoint import Checkpoint, versions
from prunus.declarations import Allocation, declared
from prunus.disk import locked
from prunus.pruning.calibration.data import TRACES, Calibration, calibration_name
from prunus.recipes import TOKEN_WEIGHTS, PruneRecipe, content_hash

# Fields of a recipe on which evidence may depend; those of the allocation's own measurement come with it.
FIELDS = ("scope", "samples", "seqlen", "calibration_tokens", *TOKEN_WEIGHTS, "seed", "dtype")
INFLUENCES = ("influence_train", "influence_validation")


@contextmanager
def once(folder: Path, key: str) -> Iterator[Path]:
    """Where one measurement is, or is to be made within this; another process waits until it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{key}.lock"):
        yield folder / key


def scores_key(source: Checkpoint, recipe: PruneRecipe, device: torch.device) -> str:
    """Of what an allocation goes by: not of method, sparsity and what else is decided afterwards."""
    name = calibration_name(recipe, source)
    file = Path(name.removeprefix(TRACES)).expanduser()
    fields = (*FIELDS, *declared(Allocation)[recipe.allocation].settings, *INFLUENCES)
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
    source: Checkpoint, recipe: PruneRecipe, calibration: Calibration, about: dict[str, Any], device: torch.device
) -> str:
    """Of sums of squared gradients. about: which ones of which Linears, in which dtype."""
    counted = [getattr(recipe, name) for name in TOKEN_WEIGHTS]
    weights = [*counted, list(calibration.prompts), list(calibration.ends)] if recipe.weighted else None
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
