"""Calibration: token sequences, hidden states between blocks, statistics of Linears' inputs, and loss gradients.

This file has the checks that need neither torch nor an opened model, which take longer. The commands call them first,
and so does every function that calibrates.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from prunus.checkpoint.resolve import CALIBRATION, resolve, tiny_folder, typed_path
from prunus.disk import partial_folder
from prunus.errors import PrunusError, pip
from prunus.manifest import Manifest, StepRecord, read_manifest
from prunus.pruning.calibration.text_files import KINDS, JsonLine, check_readable, check_text
from prunus.recipes.base import Recipe
from prunus.step import STEPS, kind_of, recorded_kind

HUB_NAMES = ("c4", "wikitext2")
TRACES = "traces:"


def check_calibration(
    recipe: Recipe,
    model: str | Path,
    out: str | Path | None = None,
    *,
    stats: str | Path | None = None,
) -> None:
    """Raise PrunusError if the model is missing, no step can follow its last step, or calibration cannot be read.

    out: where the result will be written; unfinished work on it has its calibration already. stats: a file of
    statistics that takes the place of calibration.
    """
    folder = resolve(model)
    *_, last = StepRecord(), *read_manifest(folder).history
    if last.action in STEPS and recorded_kind(last).is_last and not kind_of(recipe).changes_form:
        raise PrunusError(
            f"{folder} comes from {last.action}, after which there is nothing but evaluation: do this to the model"
            f" before it ({last.source.name})"
            + ("" if recorded_kind(last).changes_form else ", or run `prunus dequantize` first")
        )
    started = out is not None and (partial_folder(Path(out)) / CALIBRATION).exists()
    if stats is None and not started and kind_of(recipe).calibrates(recipe):
        read_source(vars(recipe)["calibration"], folder)


def calibration_name(name: str, manifest: Manifest) -> str:
    """The name of a calibration with `auto` replaced: tiny for the tiny reasoner, else c4. manifest: of the model."""
    if name != "auto":
        return name
    return "tiny" if manifest.profile == "tiny" else "c4"


def source_file(name: str) -> Path:
    """The file that the name of a calibration stands for, unless that is a corpus of the hub."""
    return tiny_folder() / CALIBRATION if name == "tiny" else typed_path(name.removeprefix(TRACES))


def read_source(name: str, folder: Path) -> list[JsonLine] | str | None:
    """The lines or the text of the calibration of this name; None for a corpus of the hub, which is not read here.

    folder: of the model. Raises PrunusError if there is none, it cannot be read, holds a question of an evaluation set,
    or a package is missing.
    """
    given, name = name, calibration_name(name, read_manifest(folder))
    if name in HUB_NAMES:
        if given != name:  # which costs much of a reasoner's accuracy, so nobody gets it without asking
            raise PrunusError(
                "give --calibration: traces:FILE, with the model's own chains from `prunus traces`, or c4, which is"
                " general text"
            )
        check_package(name)
        return None
    ids_alone = name == "tiny" or name.startswith(TRACES)
    if not ids_alone and not name.endswith((".jsonl", ".txt")):
        raise PrunusError(f"calibration '{name}' is neither c4, wikitext2, tiny, traces:FILE nor a .txt or .jsonl file")
    content = check_readable(source_file(name), folder, ("token_ids",) if ids_alone else KINDS)
    if isinstance(content, str):
        check_text(name, content)
        return content
    for line in content:
        if line.kind != "token_ids":
            for text in [line.value] if line.kind == "text" else [str(message["content"]) for message in line.value]:
                check_text(line.place, text)
    return content


def check_package(name: str) -> None:
    """Raise PrunusError if calibration is a corpus of the hub and the package that reads it is missing."""
    if name in HUB_NAMES and not is_installed("datasets"):
        raise PrunusError(
            f"calibration '{name}' needs the package datasets: {pip('hub')}; or give a .txt or .jsonl file"
        )


def is_installed(package: str) -> bool:
    """Whether a package is installed, without an import of it."""
    return sys.modules[package] is not None if package in sys.modules else find_spec(package) is not None
