"""The manifest of a checkpoint (prunus.json), which records every step that was done to it."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunus.checkpoint.resolve import read_json
from prunus.errors import PrunusError

MANIFEST = "prunus.json"
MANIFEST_FORMAT = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in a folder; {} if there is none, since nothing was done to it."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise PrunusError(f"{path} is not of format {MANIFEST_FORMAT}: it is from another version of prunus")
    history = manifest.get("history", [])
    if not isinstance(history, list) or not all(map(_is_step, history)):
        raise PrunusError(f"{path} is damaged: its history is not a list of steps; delete it or fetch it again")
    return manifest


def _is_step(step: Any) -> bool:
    """Whether an entry of a manifest's history has the fields of a step that are read."""
    kinds = {"action": str, "recipe": dict, "source": dict, "warnings": list}
    if not isinstance(step, dict) or not all(isinstance(step.get(key), kind) for key, kind in kinds.items()):
        return False
    return all(isinstance(step["source"].get(key), str) for key in ("name", "checksum"))


def versions() -> dict[str, str]:
    """The versions of the packages on which a result may depend, by name."""
    return {package: version_of(package) for package in ("prunus", "torch", "transformers")}


@cache
def version_of(package: str) -> str:
    """The version of an installed package; cached, since looking it up reads the package's whole metadata."""
    return version(package)


def next_manifest(folder: Path, step: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint made from the one in folder by one more step, with earlier steps and the profile."""
    before = read_manifest(folder)
    kept = {"profile": before["profile"]} if "profile" in before else {}
    history: Iterable[Any] = before.get("history", [])
    return {"prunus": version_of("prunus"), "format": MANIFEST_FORMAT, **kept, "history": [*history, dict(step)]}
