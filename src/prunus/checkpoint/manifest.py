"""The manifest of a checkpoint (prunus.json): what was done to it, step by step."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.resolve import read_json
from prunus.errors import PrunusError

if TYPE_CHECKING:
    from prunus.checkpoint.model_folder import ModelFolder

MANIFEST = "prunus.json"
MANIFEST_FORMAT = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was done to the checkpoint in a folder (prunus.json), {} if nothing was."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise PrunusError(f"{path} is not of format {MANIFEST_FORMAT}: it is from another version of prunus")
    history = manifest.get("history", [])
    if not isinstance(history, list) or not all(map(_is_step, history)):
        raise PrunusError(f"{path} is damaged: its history is no list of steps; delete it or fetch it again")
    return manifest


def _is_step(step: Any) -> bool:
    """Whether something from a manifest's history has what is read of a step."""
    kinds = {"action": str, "recipe": dict, "source": dict, "warnings": list}
    if not isinstance(step, dict) or not all(isinstance(step.get(key), kind) for key, kind in kinds.items()):
        return False
    return all(isinstance(step["source"].get(key), str) for key in ("name", "checksum"))


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {package: version_of(package) for package in ("prunus", "torch", "transformers")}


@cache
def version_of(package: str) -> str:
    """The version of an installed package, looked up once: that reads all of its description."""
    return version(package)


def next_manifest(source: "ModelFolder", step: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint made from source by one more step; the steps before and the profile are kept."""
    kept = {"profile": source.manifest["profile"]} if "profile" in source.manifest else {}
    history: Iterable[Any] = source.manifest.get("history", [])
    return {"prunus": version_of("prunus"), "format": MANIFEST_FORMAT, **kept, "history": [*history, dict(step)]}
