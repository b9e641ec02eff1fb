"""Calibration: token sequences, hidden states between blocks, statistics of Linears' inputs, and loss gradients.

Here is what can be checked of it before torch is imported and a model is opened, which take longer. The commands call
this first, and so does every function that calibrates.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from prunus.checkpoint.resolve import CALIBRATION, read_manifest, resolve
from prunus.disk import partial_folder
from prunus.errors import PrunusError
from prunus.pruning.calibration.text_files import check_lines, check_readable, check_text
from prunus.recipe_base import Recipe
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
    """Raise PrunusError if the model is missing, no step can follow its last one, or calibration cannot be read.

    out: where the result will be written; unfinished work on it has its calibration already. stats: a file of
    statistics that takes the place of calibration.
    """
    folder = resolve(model)
    *_, last = [{}, *read_manifest(folder).get("history", [])]
    if last.get("action") in STEPS and recorded_kind(last).is_last and not kind_of(recipe).changes_form:
        raise PrunusError(
            f"{folder} comes from {last['action']}, after which there is nothing but evaluation: do this to the model"
            f" before it ({last['source']['name']}), or run `prunus dequantize` first"
        )
    begun = out is not None and (partial_folder(Path(out)) / CALIBRATION).exists()
    if kind_of(recipe).calibrates(recipe, stats is not None) and not begun:
        check_source(vars(recipe)["calibration"], folder)


def check_source(name: str, folder: Path) -> None:
    """Raise PrunusError if the calibration of this name cannot be read, holds a question of an evaluation set, or a
    package is missing. folder: of the model."""
    if name == "auto":
        name = "tiny" if read_manifest(folder).get("profile") == "tiny" else "c4"
    if name in HUB_NAMES:
        check_package(name)
    elif name.startswith(TRACES):
        check_readable(Path(name.removeprefix(TRACES)).expanduser(), folder, ("token_ids",))
    elif name.endswith((".jsonl", ".txt")):
        path = Path(name).expanduser()
        found = check_readable(path, folder)
        if isinstance(found, str):
            check_text(name, found)
        elif found[0].kind != "token_ids":
            check_lines(path, found)
    elif name != "tiny":
        raise PrunusError(f"calibration '{name}' is neither c4, wikitext2, tiny, traces:FILE nor a .txt or .jsonl file")


def check_package(name: str) -> None:
    """Raise PrunusError if calibration is a corpus of the hub and the package that reads it is missing."""
    if name in HUB_NAMES and not is_installed("datasets"):
        raise PrunusError(
            f"calibration '{name}' needs the package datasets: pip install 'prunus[hub]'; or give a .txt or .jsonl file"
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return sys.modules[package] is not None if package in sys.modules else find_spec(package) is not None
