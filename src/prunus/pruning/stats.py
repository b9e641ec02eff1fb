"""Calibrate once: norms of the dense model's inputs in a file, from which any number of variants can be pruned.

The file is safetensors: one float32 vector per input, `model.layers.0.self_attn.q_proj.norm`, and under `prunus` in its
metadata JSON that says of which model, from which tokens and with which versions.
"""

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.families import LINEARS, SAME_INPUT_AS, Runner, block_name, pick_device
from prunus.checkpoint.files import Checkpoint, read_block, versions
from prunus.checkpoint.partial import disk_errors
from prunus.checkpoint.safetensors_file import DTYPES, Stored, dtype_name, read_header, read_metadata, write_file
from prunus.checkpoint.source import resolve
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.calibration import Calibration, load_calibration
from prunus.pruning.hidden import HiddenStates
from prunus.pruning.observe import InputStats
from prunus.pruning.propagation import LEADERS, Passage, Stats, dense
from prunus.recipes import DtypeName, PruneRecipe

FORMAT = 1
# What of a recipe decides the statistics.
FIELDS = ("calibration", "samples", "seqlen", "seed", "dtype")


def stats(
    model: str | Path,
    out: str | Path,
    *,
    calibration: str = "auto",
    samples: int = 128,
    seqlen: int = 2048,
    seed: int = 0,
    dtype: DtypeName = "auto",
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write norms of all inputs of model's Linears to the file out, for prune(stats=out); returns a summary.

    One pass of the dense model. The options are those of PruneRecipe. out is there whole or not at all; wrong input
    raises PrunusError.
    """
    recipe = PruneRecipe(
        calibration=calibration, samples=samples, seqlen=seqlen, seed=seed, dtype=dtype, propagation="dense"
    )
    source, target = Checkpoint(resolve(model)), Path(out)
    if target.exists() and not (overwrite and target.is_file()):
        raise PrunusError(f"{target} exists; choose another file or add --overwrite")
    chosen = load_calibration(recipe, source)
    checksum = source.checksum()
    with torch.inference_mode():
        tensors = measure(source, recipe, chosen, pick_device(device))
    about = {
        "format": FORMAT,
        "model": {"name": str(model), "checksum": checksum},
        "calibration": chosen.summary(),
        "recipe": {name: getattr(recipe, name) for name in FIELDS} | {"dtype": run_dtype(recipe, source)},
        "versions": versions(),
    }
    with disk_errors(target.parent, sum(tensor.nbytes for tensor in tensors.values())):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, tensors, {"prunus": json.dumps(about, sort_keys=True)})
    return {
        "out": str(target),
        "inputs": len(tensors),
        "sequences": len(chosen.sequences),
        "tokens": chosen.tokens,
        "warnings": chosen.warnings,
    }


def measure(source: Checkpoint, recipe: PruneRecipe, chosen: Calibration, device: torch.device) -> dict[str, Tensor]:
    """Norm of every distinct input, by the name that it has in the file."""
    runner = Runner(source.config, DTYPES[run_dtype(recipe, source)], device)
    hidden = HiddenStates(source, runner, chosen.sequences, None)
    found: dict[str, Tensor] = {}
    with Steps("observing", total=source.blocks, unit="blocks") as steps:
        for index in range(source.blocks):
            block = runner.make_block(index, read_block(index, source.block_tensors(index)))
            last = index == source.blocks - 1
            for group in dense(Passage(runner, block, index, hidden, list(LINEARS), last)):
                found |= {norm_name(index, name): group[name].norm_I.cpu() for name in LEADERS}
            steps.advance()
    return found


def norm_name(index: int, leader: str) -> str:
    """The file's name of the norms of one input."""
    return block_name(index, f"{leader}.norm")


def run_dtype(recipe: PruneRecipe, source: Checkpoint) -> str:
    """The format's name of the dtype in which blocks run."""
    dtype = source.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    return dtype_name(torch.empty(0, dtype=dtype))


class SavedStats:
    """A file of statistics, opened for one model: another model's, or none at all, raises PrunusError."""

    def __init__(self, path: str | Path, source: Checkpoint) -> None:
        self.path, self.source = Path(path), source
        if not self.path.is_file():
            raise PrunusError(f"{path} does not exist; `prunus stats` writes such a file")
        self.tensors: dict[str, Stored] = read_header(self.path)
        try:
            self.about: dict[str, Any] = json.loads(read_metadata(self.path)["prunus"])
            readable = self.about["format"] == FORMAT
        except (KeyError, ValueError, TypeError) as error:
            raise PrunusError(f"{path} holds no statistics; `prunus stats` writes such a file") from error
        if not readable:
            raise PrunusError(f"{path} is from another version of prunus; write it again with `prunus stats`")
        if self.about["model"]["checksum"] != source.checksum():
            raise PrunusError(
                f"{path} holds statistics of another model ({self.about['model']['name']}), not of {source.folder}; "
                "write them for this one with `prunus stats`"
            )

    def check(self, recipe: PruneRecipe, needs: str, allocation_needs: str) -> None:
        """Raise PrunusError where these statistics are not what such a recipe would have measured."""
        if allocation_needs == "norms" and recipe.scores is None:
            raise PrunusError(
                f"allocation {recipe.allocation} measures on its own; "
                "save that once with `prunus allocate --save FILE`, then give --scores FILE"
            )
        if needs == "nothing":
            raise PrunusError(f"method {recipe.method} needs no statistics; leave --stats out")
        if needs != "norms":
            raise PrunusError(
                f"{self.path} holds norms of inputs, but {recipe.method} needs {needs}; leave --stats out"
            )
        if recipe.propagation != "dense":
            raise PrunusError(
                f"{self.path} is of the dense model, but propagation is '{recipe.propagation}'; add --propagation dense"
            )
        stored = self.about["recipe"]["dtype"]
        if (asked := run_dtype(recipe, self.source)) != stored:
            raise PrunusError(f"{self.path} was measured in {stored}, not {asked}; write it again with that --dtype")

    def recipe(self, recipe: PruneRecipe) -> PruneRecipe:
        """The recipe with the calibration that these statistics come from."""
        return replace(recipe, **{name: self.about["recipe"][name] for name in FIELDS if name != "dtype"})

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the manifest says of the calibration."""
        return {**self.about["calibration"], "measured_with": self.about["versions"]}

    def block(self, index: int) -> Stats:
        """Statistics of one block's Linears."""
        tokens = self.about["calibration"]["tokens"]
        norms = {name: self.tensors[norm_name(index, name)].read() for name in LEADERS}
        return {name: InputStats(norms[SAME_INPUT_AS.get(name, name)], tokens) for name in LINEARS}
