"""The provenance of a run, as stored: the model, the steps that made it, and the software that computed the rows."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.checkpoint.model_folder import EngineFolder, ModelFolder, is_gguf
from prunus.checkpoint.resolve import versions
from prunus.engines import BACKENDS
from prunus.errors import PrunusError
from prunus.evaluation.budget import PROTOCOL_VERSION
from prunus.evaluation.grading import GRADER_VERSION
from prunus.evaluation.requests import Engine
from prunus.results.labels import is_quantised

if TYPE_CHECKING:
    from prunus.evaluation.backends.served import ServedModel


def open_for(backend: str, folder: Path) -> ModelFolder:
    """The model folder for a backend; PrunusError if the backend cannot read it."""
    if is_gguf(folder) and backend != "openai":
        raise PrunusError(f"{folder} has a GGUF file, which only llama.cpp reads: take the backend openai")
    if BACKENDS[backend].loads_itself:
        return EngineFolder(folder)
    return ModelFolder(folder)


def model_label(name: str) -> str:
    """The name of a model in tables and pages: the last part of a folder's path, else as it is given."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def describe_model(model: str | Path, checkpoint: "ModelFolder | ServedModel") -> dict[str, object]:
    """The description of a model that the store keeps: name, source, checksum, manifest, parameters, bytes and more.

    name: as model_label has it. The quantisation of a model that is read quantised is added to the steps in the
    manifest, unless a step of ours quantised it.
    """
    manifest = checkpoint.manifest
    if checkpoint.quantisation is not None and not is_quantised(manifest):
        source = {"name": str(model), "checksum": checkpoint.checksum()}
        recipe = {"method": checkpoint.quantisation}
        step = {"action": "quantise", "recipe": recipe, "versions": {}, "source": source, "warnings": []}
        manifest = manifest | {"history": [*manifest.get("history", []), step]}
    described = {
        "name": model_label(str(model)),
        "source": str(model),
        "checksum": checkpoint.checksum(),
        "manifest": manifest,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.engine_bytes,
        "blocks": checkpoint.blocks,
    }
    if checkpoint.quantisation is None and checkpoint.dtype is not None:
        described["dtype"] = str(checkpoint.dtype).removeprefix("torch.")
    return described


def describe_versions(backend: Engine) -> dict[str, object]:
    """Versions, device and settings on which results may depend besides model and plan."""
    ours = {"grader": GRADER_VERSION, "protocol": PROTOCOL_VERSION}
    return versions() | {"python": platform.python_version()} | ours | backend.description
