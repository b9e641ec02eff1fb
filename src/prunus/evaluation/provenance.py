"""Provenance of a run, as stored: the model, what was done to it, and the software that computed the rows."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunus.checkpoint.checkpoint import ModelFolder, is_packed
from prunus.checkpoint.packed.checkpoint import PackedCheckpoint
from prunus.engines import BACKENDS, EngineOptions
from prunus.evaluation.grading import GRADER_VERSION
from prunus.evaluation.requests import Backend


def open_for(backend: str, folder: Path, device: str, engine: EngineOptions) -> tuple[ModelFolder, str | None]:
    """The checkpoint of a folder, and the kernel that its weights will run on: `sparse`, or None for torch's own.

    PrunusError where a packed folder is given to a backend that cannot read it.
    """
    if not BACKENDS[backend].reads_packed or not is_packed(folder):
        return ModelFolder(folder), None
    from prunus.evaluation.backends.loading import runs_sparse

    return PackedCheckpoint(folder), "sparse" if runs_sparse(folder, device, engine.sparse) else None


def describe_model(model: str | Path, checkpoint: ModelFolder, kernel: str | None = None) -> dict[str, Any]:
    """The model as the store keeps it. name: what people read: a folder's last part, else what was typed.

    A kernel is one more step of what was done to the model, so that tables tell it from the same weights dense; so is
    the quantisation of a model that came quantised.
    """
    steps: list[tuple[str, dict[str, Any]]] = []
    if checkpoint.quantised is not None:
        steps.append(("quantise", {"method": checkpoint.quantised}))
    if kernel is not None:
        steps.append(("pack", {"kernel": kernel}))
    manifest, source = checkpoint.manifest, {"name": str(model), "checksum": checkpoint.checksum()}
    for action, recipe in steps:
        step = {"action": action, "recipe": recipe, "versions": {}, "source": source, "warnings": []}
        manifest = manifest | {"history": [*manifest.get("history", []), step]}
    return {
        "name": Path(model).resolve().name if Path(model).is_dir() else str(model),
        "source": str(model),
        "checksum": checkpoint.checksum(),
        "manifest": manifest,
        "parameters": checkpoint.parameters,
        "blocks": checkpoint.blocks,
    }


def describe_versions(backend: Backend) -> dict[str, Any]:
    """Versions, device and settings that numbers may depend on besides model and plan."""
    packages = {package: version(package) for package in ("prunus", "torch", "transformers")}
    return packages | {"python": platform.python_version(), "grader": GRADER_VERSION} | backend.description
