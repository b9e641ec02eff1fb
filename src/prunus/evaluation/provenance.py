"""The provenance of a run, as stored: the model, the steps that made it, and the software that computed the rows."""

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prunus import progress
from prunus.checkpoint.device import described, processor
from prunus.checkpoint.model_folder import EngineFolder, ModelFolder, check_scaled, is_gguf
from prunus.errors import PrunusError
from prunus.evaluation.budget import PROTOCOL_VERSION
from prunus.evaluation.engine import Engine
from prunus.evaluation.grading import GRADER_VERSION
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.settings.cache_size import CacheSize
from prunus.settings.engines import BACKENDS
from prunus.store.labels import is_quantised
from prunus.store.rows import KEYED_PROTOCOL, Run
from prunus.store.starts import differences, records
from prunus.store.store import Store
from prunus.store.stored import Environment, StoredModel, StoredPlan
from prunus.version import versions

if TYPE_CHECKING:
    from prunus.evaluation.backends.served import ServedModel


def open_for(backend: str, folder: Path) -> ModelFolder:
    """The model folder for a backend.

    Raises PrunusError if the backend cannot read it, or if its weights are quantised and config.json lacks their
    settings.
    """
    if is_gguf(folder) and not BACKENDS[backend].gguf:
        raise PrunusError(f"{folder} has a GGUF file, which only llama.cpp reads: take the engine llama.cpp")
    model = (EngineFolder if BACKENDS[backend].loads_itself else ModelFolder)(folder)
    check_scaled(model)
    return model


def model_label(name: str) -> str:
    """The name of a model in tables and pages: the last part of a folder's path, else as it is given."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def describe_model(model: str | Path, checkpoint: "ModelFolder | ServedModel") -> StoredModel:
    """Description of a model for the store, without what the plan and the engine record.

    Its name is that of model_label. If the model is read quantised, its quantisation is added to the steps in the
    manifest, unless a step of ours quantised it.
    """
    manifest = checkpoint.manifest
    if checkpoint.quantisation is not None and not is_quantised(manifest):
        source = {"name": str(model), "checksum": checkpoint.checksum()}
        recipe = {"method": checkpoint.quantisation}
        step = {"action": "quantise", "recipe": recipe, "versions": {}, "source": source, "warnings": []}
        manifest |= {"history": [*(earlier.data for earlier in manifest.history), step]}
    described = {
        "name": model_label(str(model)),
        "source": str(model),
        "checksum": checkpoint.checksum(),
        "manifest": manifest.data,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.engine_bytes,
        "blocks": checkpoint.blocks,
    }
    if checkpoint.quantisation is None and checkpoint.dtype is not None:
        described["dtype"] = str(checkpoint.dtype).removeprefix("torch.")
    return StoredModel.of(described)


def describe_use(model: StoredModel, cache: CacheSize | None, work: ResolvedPlan) -> StoredModel:
    """The description of a model with what a plan adds: parts of the run's id, and the size of a chain's cache.

    cache: None if its size is not known.
    """
    size = {} if cache is None else {"cache": {**cache.to_json(), "tokens": work.longest}}
    return model | work.about | size


def computed_otherwise(run: Run, backend: str, device: str) -> str | None:
    """A line if the rows of a finished run were computed with other versions or on another device; else None.

    Facts that only a loaded model tells are not compared.
    """
    now = {**versions()}
    if BACKENDS[backend].in_torch and run.environment.device is not None:
        from prunus.evaluation.backends.hf import device_for

        now |= described(torch.device(device_for(device)))
    there = {key: value for key, value in run.environment.data.items() if key in now}
    changes = differences(Environment.of(there), Environment.of(now))
    return f"run {run.run_id} is complete; it was computed otherwise: here {'; '.join(changes)}" if changes else None


def begin(store: Store, run: Run, mixed: bool) -> None:
    """Add a run, or another start of it (Store.add_run).

    Prints a line if a server at another address continues the run, and a warning if its dtype differs from that of
    earlier runs.
    """
    runs = store.runs()
    stored = next((other for other in runs if other.run_id == run.run_id), None)
    before = None if stored is None else records(stored)[-1].address
    store.add_run(run, mixed)
    if stored is None and (line := other_dtype(run, runs)):
        progress.say(line)
    if before is not None and (now := run.environment.address) != before:
        progress.say(f"run {run.run_id} was begun at {before} and goes on at {now}, which tells the same of itself")


def other_dtype(run: Run, others: Iterable[Run]) -> str | None:
    """A warning where all other runs of the same tasks and backend were computed in other dtypes; else None."""
    tasks, backend, dtype = (run.plan.tasks, run.plan.backend, run.environment.dtype)
    alike = [other for other in others if (other.plan.tasks, other.plan.backend) == (tasks, backend)]
    known = [other for other in alike if other.environment.dtype is not None]
    if dtype is None or not known or any(other.environment.dtype == dtype for other in known):
        return None
    first, entry = known[0], BACKENDS.get(str(backend))
    takes_args = entry is not None and "args" in entry.settings
    advice = f""": evaluate it again with --engine-args '{{"dtype": "{dtype}"}}'""" if takes_args else ""
    return (
        f"warning: these rows are computed in {dtype}, those of {first.model.name} ({first.run_id}) in"
        f" {first.environment.dtype}, so that a comparison shows what both change{advice}"
    )


def describe_environment(backend: Engine, plan: StoredPlan | None = None) -> Environment:
    """Versions, device and settings on which results may depend besides model and plan; on a CPU also its model.

    plan: the plan of the rows, which says whether they are sampled, and so by which protocol; None: nothing is sampled.
    """
    keyed = backend.samples_by_key and plan is not None and bool(plan.temperature)
    own_versions = {"grader": GRADER_VERSION, "protocol": KEYED_PROTOCOL if keyed else PROTOCOL_VERSION}
    about = versions() | {"python": platform.python_version()} | own_versions
    environment = Environment.of(about) | backend.description
    return environment | {"cpu": processor()} if environment.device == "cpu" else environment
