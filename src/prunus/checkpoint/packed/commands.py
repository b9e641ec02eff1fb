"""Packed checkpoints: a pruned model in as many bytes as its kept weights need, and variants of a model as masks.

A packed checkpoint is a folder like the dense one, with packed.safetensors in place of the weights; a variant is one
file that leans on its dense source. docs/format.md describes both.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.checksum import checksum_of
from prunus.checkpoint.manifest import versions
from prunus.checkpoint.model_folder import PACKED_FILE
from prunus.checkpoint.packed.bits import mask_nbytes, packed_nbytes
from prunus.checkpoint.packed.checkpoint import PackedCheckpoint, check_source, lean_on
from prunus.checkpoint.packed.reader import read_packed
from prunus.checkpoint.packed.tensor import bit_patterns, damaged
from prunus.checkpoint.packed.writer import packed_writer
from prunus.checkpoint.resolve import resolve, typed_path
from prunus.checkpoint.safetensors_file import DTYPES, ITEMSIZES
from prunus.checkpoint.writer import Partial, check_target, disk_needed
from prunus.disk import disk_errors
from prunus.errors import PrunusError
from prunus.progress import Steps

# Folders


def pack(
    checkpoint: str | Path,
    out: str | Path,
    *,
    masks_only: bool = False,
    int8: bool = False,
    source: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write checkpoint (folder, hub id or `tiny`) packed to the folder out; returns a summary.

    Every tensor comes back bit by bit, except that int8 rounds what is kept of the Linears. masks_only: nothing but a
    mask for each Linear; the model must be its dense source with zeros. That source is the first that its prunus.json
    names, unless given. Wrong input raises PrunusError and leaves nothing behind.
    """
    started = time.monotonic()
    if masks_only and int8:
        raise PrunusError("masks alone have no values to round; leave --masks-only or --int8 out")
    if source is not None and not masks_only:
        raise PrunusError("a source is needed for masks alone; leave --source out or add --masks-only")
    model, target = Checkpoint(resolve(checkpoint)), Path(out)
    if model.quantised is not None:
        raise PrunusError(f"{model.folder} is in {model.quantised} and was not pruned, so there is nothing to pack")
    check_target(model.folder, target, overwrite)
    work = {"action": "pack", "masks_only": masks_only, "int8": int8, "source": model.checksum()}
    needed = sum(mask_nbytes(model.tensors[name].shape) for name in linear_weights(model))
    dense_name, dense = find_source(model, source) if masks_only else (str(checkpoint), model)
    if masks_only:
        check_same_elsewhere(model, dense)
    else:
        needed += sum(stored.nbytes for stored in model.outer_tensors().values())
    with Partial(model, target, work, 0, needed, overwrite) as partial:
        file, info = partial.folder / PACKED_FILE, describe(dense_name, dense, int8, {"checksum": model.checksum()})
        with disk_errors(partial.folder, needed), Steps("packing", len(linear_weights(model)), "Linears") as steps:
            if masks_only:
                write_against(file, dense, read_linears(model, steps), info | {"kind": "variant"}, moved=False)
            else:
                write_all(file, model, read_linears(model, steps), info)
        partial.publish(None, None)
    packed_bytes = sum(tensor.packed_nbytes for tensor in read_packed(target / PACKED_FILE).tensors.values())
    return {
        "out": str(target),
        "form": "masks" if masks_only else "int8 values, lossy" if int8 else "values",
        "dense_bytes": model.nbytes,
        "packed_bytes": packed_bytes,
        "ratio": packed_bytes / model.nbytes,
        "seconds": time.monotonic() - started,
        "warnings": [],
    }


def unpack(
    packed: str | Path,
    out: str | Path,
    *,
    source: str | Path | None = None,
    lossy: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a packed checkpoint as the plain dense folder that it was made from; returns a summary.

    source: the dense model that masks alone belong to, by default the one that they name. lossy: unpack int8 values
    too; prunus.json will then say so. The result is checked against the checksum of what was packed. Wrong input raises
    PrunusError and leaves nothing behind.
    """
    started = time.monotonic()
    model, target = PackedCheckpoint(typed_path(packed), source), Path(out)
    if model.lossy and not lossy:
        raise PrunusError(f"{packed} holds values rounded to 8 bits, not the model's own; add --lossy to unpack those")
    check_target(model.dense.folder if model.dense else model.folder, target, overwrite)
    origin = {"name": str(packed), "checksum": model.packed.info["about"].get("checksum")}
    work = {"action": "unpack", "source": origin["checksum"], "lossy": model.lossy}
    with Partial(model, target, work, model.blocks, disk_needed(model.nbytes), overwrite) as partial:
        with Steps("unpacking", total=model.blocks, unit="blocks", done=len(partial.records)) as steps:
            for index in range(model.blocks):
                if not partial.has(index):
                    partial.write_block(index, model.block_tensors(index), {})
                    steps.advance()
        tensors = model.outer_tensors()
        for index in range(model.blocks):
            tensors |= partial.read_block(index)
        checksum = checksum_of(tensors)  # which refuses NaN, too
        if not model.lossy and checksum != origin["checksum"]:
            raise damaged(model.packed.path, "the weights are not those that were packed")
        partial.finish(None, rounding_step(origin) if model.lossy else None)
    return {
        "out": str(target),
        "dense_bytes": model.nbytes,
        "exact": not model.lossy,
        "seconds": time.monotonic() - started,
        "warnings": [],
    }


def rounding_step(origin: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's entry for kept weights that were rounded."""
    recipe = {"method": "int8", "values": "int8, one scale per row"}
    return {"action": "quantise", "recipe": recipe, "versions": versions(), "source": dict(origin), "warnings": []}


# Variants


def write_variant(
    path: Path, source: Checkpoint, weights: Iterable[tuple[str, Tensor]], about: Mapping[str, Any]
) -> None:
    """Write weights of a variant of source to one file, each as a mask where its kept weights are those of source.

    weights: names as in source.tensors (model.layers.0.mlp.up_proj.weight) and matrices of the shapes and dtypes there;
    one at a time is in memory. about: JSON, see variant_about. The file is there whole or not at all; an old one is
    replaced.
    """
    with disk_errors(path.parent, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_against(path, source, weights, describe(str(source.folder), source, False, about) | {"kind": "variant"})


def read_variant(path: Path, source: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """The weights of a variant, dense and bit by bit, one at a time. Another source raises PrunusError at once."""
    packed = read_packed(path)
    if packed.info["kind"] != "variant":
        raise PrunusError(f"{path} is a packed checkpoint, not a variant of a model")
    check_source(packed, source)
    tensors = lean_on(packed, source)
    return ((name, tensor.read()) for name, tensor in tensors.items())


def variant_about(path: Path) -> dict[str, Any]:
    """What write_variant was told about the variant."""
    return read_packed(path).info["about"]


# What both share


def describe(name: str, model: Checkpoint, lossy: bool, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the header says besides tensors. model: the one packed, of variants their source."""
    origin = {"name": name, "checksum": model.checksum()}
    return {"kind": "checkpoint", "model": origin, "lossy": lossy, "about": dict(about)}


def linear_weights(model: Checkpoint) -> list[str]:
    """Names on disk of the weights of all prunable Linears, block by block."""
    places = [(index, linear.name) for index in range(model.blocks) for linear in model.linears(index)]
    names = [name for index, linear in places for name in model.weight_sources(index, linear)]
    return [name for name in dict.fromkeys(names) if len(model.tensors[name].shape) == 2]


def read_linears(model: Checkpoint, steps: Steps) -> Iterator[tuple[str, Tensor]]:
    """Name and weight of each prunable Linear, one at a time."""
    for name in linear_weights(model):
        yield name, model.read(name)
        steps.advance()


def write_all(file: Path, model: Checkpoint, linears: Iterable[tuple[str, Tensor]], info: Mapping[str, Any]) -> None:
    """Write every tensor: Linears packed (unless that is longer), all others as they are."""
    left = dict(model.tensors)
    with packed_writer(file, info, model.tensors) as writer:
        for name, weight_OI in linears:
            kept = int(np.count_nonzero(bit_patterns(weight_OI)))
            if info["lossy"] or packed_nbytes(left[name].shape, kept, weight_OI.itemsize) < left[name].nbytes:
                writer.add(name, weight_OI, int8=info["lossy"])
                del left[name]
        # Widest element first keeps them aligned without gaps.
        for name in sorted(left, key=lambda name: (-ITEMSIZES.get(left[name].dtype, 0), name)):
            writer.add_dense(name, left[name])


def write_against(
    file: Path,
    source: Checkpoint,
    weights: Iterable[tuple[str, Tensor]],
    info: Mapping[str, Any],
    moved: bool = True,
) -> None:
    """Write weights as what they are besides source. moved: kept weights may differ from it, else PrunusError."""
    with packed_writer(file, info, source.tensors) as writer:
        for name, weight_OI in weights:
            stored = source.tensors.get(name)
            if stored is None or weight_OI.ndim != 2:
                raise PrunusError(f"'{name}' {tuple(weight_OI.shape)} is not the weight of a Linear of {source.folder}")
            if (DTYPES.get(stored.dtype), stored.shape) != (weight_OI.dtype, tuple(weight_OI.shape)):
                raise PrunusError(f"'{name}' has another shape or dtype than in {source.folder}")
            if writer.add(name, weight_OI, stored.read()) == "packed" and not moved:
                raise PrunusError(
                    f"kept weights of '{name}' differ from those of {source.folder}: a mask is not enough; "
                    "leave --masks-only out"
                )


def find_source(model: Checkpoint, given: str | Path | None) -> tuple[str, Checkpoint]:
    """Name and folder of the dense model of which model is said to be a part: given, else the first in its history."""
    if given is not None:
        return str(given), Checkpoint(resolve(given))
    history = model.manifest.get("history", [])
    if not history:
        raise PrunusError(f"{model.folder} does not say what it was pruned from; name the dense model with --source")
    name, checksum = history[0]["source"]["name"], history[0]["source"]["checksum"]
    try:
        source = Checkpoint(resolve(name))
    except PrunusError as error:
        raise PrunusError(f"masks need the dense model '{name}': {error} (--source)") from error
    if source.checksum() != checksum:
        raise PrunusError(f"'{name}' is not the model that {model.folder} was pruned from; give that with --source")
    return name, source


def check_same_elsewhere(model: Checkpoint, source: Checkpoint) -> None:
    """Raise PrunusError unless all but the Linears of two models agree bit by bit."""
    if set(model.tensors) != set(source.tensors):
        raise PrunusError(f"{model.folder} and {source.folder} have different tensors; leave --masks-only out")
    for name in set(model.tensors) - set(linear_weights(model)):
        ours, theirs = model.tensors[name], source.tensors[name]
        same = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if not same or any(left != right for left, right in zip(ours.chunks(), theirs.chunks(), strict=True)):
            raise PrunusError(f"'{name}' differs between {model.folder} and {source.folder}; leave --masks-only out")
