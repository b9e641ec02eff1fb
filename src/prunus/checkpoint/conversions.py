"""Write a model in another form: packed or unpacked, as the masks of a variant, or without its quantisation.

A packed checkpoint is a folder like the dense one, with packed.safetensors in place of the weights. A variant is one
file that can be read only together with its dense source. docs/format.md describes both.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint, dense_twin
from prunus.checkpoint.model_folder import PACKED_FILE
from prunus.checkpoint.packed_files import PackedCheckpoint, attach_source, packed_writer, read_packed
from prunus.checkpoint.packed_tensor import bit_patterns, damaged, mask_nbytes, packed_nbytes
from prunus.checkpoint.quantised import DEQUANTISED
from prunus.checkpoint.resolve import resolve, typed_path, versions
from prunus.checkpoint.safetensors_file import DTYPES, ITEMSIZES, checksum_of, read_header
from prunus.checkpoint.writer import Partial, check_target
from prunus.disk import disk_errors
from prunus.errors import PrunusError
from prunus.progress import Steps

# Folders

ROUNDED = "its weights were rounded to 8 bits when an earlier version of prunus packed it"


def pack(
    checkpoint: str | Path,
    out: str | Path,
    *,
    masks_only: bool = False,
    source: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a packed copy of checkpoint (folder, hub id or `tiny`) to the folder out; returns a summary.

    The summary has out, form, dense_bytes, packed_bytes, ratio (packed / dense), seconds and warnings. Unpacking
    restores every tensor bit by bit.
    masks_only: store only a mask for each Linear, for a model that equals its dense source except for zeros. source:
    that dense model, by default the first that the model's prunus.json names. Raises PrunusError, and leaves nothing
    behind, if the options contradict each other, the model cannot be read or packed so, or out exists (without
    overwrite).
    """
    started = time.monotonic()
    if source is not None and not masks_only:
        raise PrunusError("--dense is only for masks; leave it out or add --masks-only")
    model, target = Checkpoint(resolve(checkpoint)), Path(out)
    if model.quantised is not None:
        raise PrunusError(f"{model.folder} is in {model.quantised}, and only plain weights are packed")
    check_target(model.folder, target, overwrite)
    work = {"action": "pack", "masks_only": masks_only, "source": model.checksum()}
    needed = sum(mask_nbytes(model.tensors[name].shape) for name in linear_weights(model))
    dense_name, dense = str(checkpoint), model
    if masks_only:
        dense = dense_twin(model, source)
        dense_name = str(source or model.manifest["history"][0]["source"]["name"])
        check_same_elsewhere(model, dense)
    else:
        needed += sum(stored.nbytes for stored in model.outer_tensors().values())
    with Partial(model, target, work, 0, needed, overwrite) as partial:
        file, info = partial.folder / PACKED_FILE, header_info(dense_name, dense, {"checksum": model.checksum()})
        with disk_errors(partial.folder, needed), Steps("packing", len(linear_weights(model)), "Linears") as steps:
            if masks_only:
                write_variant_tensors(
                    file, dense, read_linears(model, steps), info | {"kind": "variant"}, allow_changed=False
                )
            else:
                write_all(file, model, read_linears(model, steps), info)
        partial.publish(None, None)
    packed_bytes = sum(tensor.packed_nbytes for tensor in read_packed(target / PACKED_FILE).tensors.values())
    return {
        "out": str(target),
        "form": "masks" if masks_only else "values",
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
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the dense checkpoint from which a packed one was made to the folder out; returns a summary.

    The summary has out, dense_bytes, exact (whether all weights are those that were packed), seconds and warnings.
    source: for a file of masks only, the dense model to which they belong, by default the one that the file names.
    The result's checksum must be that of the packed model, unless an earlier version of prunus rounded its values to 8
    bits, which prunus.json then records. Raises PrunusError, and leaves nothing behind, if the file is damaged or out
    exists (without overwrite).
    """
    started = time.monotonic()
    model, target = PackedCheckpoint(typed_path(packed), source), Path(out)
    check_target(model.dense.folder if model.dense else model.folder, target, overwrite)
    provenance = {"name": str(packed), "checksum": model.packed.info["about"].get("checksum")}
    work = {"action": "unpack", "source": provenance["checksum"]}
    with Partial(model, target, work, model.blocks, model.nbytes, overwrite) as partial:
        partial.copy_blocks(model, "unpacking")
        tensors = model.outer_tensors()
        for index in range(model.blocks):
            tensors |= partial.read_block(index)
        checksum = checksum_of(tensors)  # also refuses NaN
        if not model.lossy and checksum != provenance["checksum"]:
            raise damaged(model.packed.path, "the weights are not those that were packed")
        partial.finish(None, rounding_step(provenance) if model.lossy else None)
    return {
        "out": str(target),
        "dense_bytes": model.nbytes,
        "exact": not model.lossy,
        "seconds": time.monotonic() - started,
        "warnings": [ROUNDED] * model.lossy,
    }


def rounding_step(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest entry for a model whose kept weights were rounded to 8 bits."""
    recipe = {"method": "int8", "values": "int8, one scale per row"}
    return {"action": "quantise", "recipe": recipe, "versions": versions(), "source": dict(provenance), "warnings": []}


# Variants


def write_variant(
    path: Path, source: Checkpoint, weights: Iterable[tuple[str, Tensor]], about: Mapping[str, Any]
) -> None:
    """Write the changed weights of a variant of source to one file; a weight that only gained zeros becomes a mask.

    weights: (name, matrix) pairs, read one at a time, with names (model.layers.0.mlp.up_proj.weight), shapes and dtypes
    as in source.tensors. about: JSON that variant_about returns. The file is written completely or not at all, and
    replaces an old one. Raises PrunusError if a weight is not that of a Linear of source.
    """
    info = header_info(str(source.folder), source, about) | {"kind": "variant"}
    with disk_errors(path.parent, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_variant_tensors(path, source, weights, info)


def vectors_of(path: Path) -> Path:
    """The safetensors file beside that of a variant with its norms and biases, if they changed, too."""
    return path.with_suffix(".vectors.safetensors")


def read_variant(path: Path, source: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, value) of each tensor of a variant, also of those in vectors_of, one at a time, exact to the bit.

    Raises PrunusError at once if source is another model.
    """
    packed = read_packed(path)
    if packed.info["kind"] != "variant":
        raise PrunusError(f"{path} is a packed checkpoint, not a variant of a model")
    vectors = read_header(vectors_of(path)) if vectors_of(path).exists() else {}
    tensors = [*attach_source(packed, source).items(), *vectors.items()]
    return ((name, tensor.read()) for name, tensor in tensors)


def variant_about(path: Path) -> dict[str, Any]:
    """The `about` that was given to write_variant."""
    return read_packed(path).info["about"]


# Used by both


def header_info(name: str, model: Checkpoint, about: Mapping[str, Any]) -> dict[str, Any]:
    """The header's entries other than tensors. model: the packed model, or for a variant its source."""
    provenance = {"name": name, "checksum": model.checksum()}
    return {"kind": "checkpoint", "model": provenance, "lossy": False, "about": dict(about)}


def linear_weights(model: Checkpoint) -> list[str]:
    """Names on disk of the weights of all prunable Linears, block by block."""
    places = [(index, linear.name) for index in range(model.blocks) for linear in model.linears(index)]
    names = [name for index, linear in places for name in model.weight_sources(index, linear)]
    return [name for name in dict.fromkeys(names) if len(model.tensors[name].shape) == 2]


def read_linears(model: Checkpoint, steps: Steps) -> Iterator[tuple[str, Tensor]]:
    """Yield (name on disk, weight) of each prunable Linear."""
    for name in linear_weights(model):
        yield name, model.read(name)
        steps.advance()


def write_all(file: Path, model: Checkpoint, linears: Iterable[tuple[str, Tensor]], info: Mapping[str, Any]) -> None:
    """Write every tensor of a model: Linears packed unless that is larger, all other tensors dense."""
    dense = dict(model.tensors)
    with packed_writer(file, info, model.tensors) as writer:
        for name, weight_OI in linears:
            kept = int(np.count_nonzero(bit_patterns(weight_OI)))
            if packed_nbytes(dense[name].shape, kept, weight_OI.itemsize) < dense[name].nbytes:
                writer.add(name, weight_OI)
                del dense[name]
        # The widest dtypes first, so that all are aligned without gaps.
        for name in sorted(dense, key=lambda name: (-ITEMSIZES.get(dense[name].dtype, 0), name)):
            writer.add_dense(name, dense[name])


def write_variant_tensors(
    file: Path,
    source: Checkpoint,
    weights: Iterable[tuple[str, Tensor]],
    info: Mapping[str, Any],
    allow_changed: bool = True,
) -> None:
    """Write each weight in the smallest form relative to source.

    allow_changed: accept kept weights that differ from those of source; without it they raise PrunusError.
    """
    with packed_writer(file, info, source.tensors) as writer:
        for name, weight_OI in weights:
            stored = source.tensors.get(name)
            if stored is None or weight_OI.ndim != 2:
                raise PrunusError(f"'{name}' {tuple(weight_OI.shape)} is not the weight of a Linear of {source.folder}")
            if (DTYPES.get(stored.dtype), stored.shape) != (weight_OI.dtype, tuple(weight_OI.shape)):
                raise PrunusError(f"'{name}' has another shape or dtype than in {source.folder}")
            if writer.add(name, weight_OI, stored.read()) == "packed" and not allow_changed:
                raise PrunusError(
                    f"kept weights of '{name}' differ from those of {source.folder}, so a mask is not enough; "
                    "leave --masks-only out"
                )


def check_same_elsewhere(model: Checkpoint, source: Checkpoint) -> None:
    """Raise PrunusError unless two models agree bit by bit in all tensors except the Linears' weights."""
    if set(model.tensors) != set(source.tensors):
        raise PrunusError(f"{model.folder} and {source.folder} have different tensors; leave --masks-only out")
    for name in sorted(set(model.tensors) - set(linear_weights(model))):
        ours, theirs = model.tensors[name], source.tensors[name]
        same = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if not same or any(left != right for left, right in zip(ours.chunks(), theirs.chunks(), strict=True)):
            if same and len(ours.shape) == 3:
                raise PrunusError(
                    f"'{name}' holds all experts of a block in one tensor, for which there are no masks; leave "
                    "--masks-only out"
                )
            raise PrunusError(f"'{name}' differs between {model.folder} and {source.folder}; leave --masks-only out")


def dequantize(model: str | Path, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a plain copy of a model in FP8, MXFP4 or integers (folder or hub id) to the folder out; returns a summary.

    The summary has out, from (the quantisation method), blocks, seconds and warnings. The weights are those of
    transformers' from_pretrained with `dequantize`; they take two to four times the disk space of the original.
    Commands such as prune and drop read quantised models directly; this is for those that cannot, such as study.
    Unfinished work is kept in out.partial, where the same call resumes it. Raises PrunusError, and leaves nothing
    behind, if the model is not so quantised, or out cannot be written.
    """
    started = time.monotonic()
    source, target = Checkpoint(resolve(model)), Path(out)
    if source.quantised is None:
        known = f"{', '.join(DEQUANTISED[:-1])} or {DEQUANTISED[-1]}"
        raise PrunusError(f"{source.folder} is not in {known}; there is nothing to dequantize")
    work = {"action": "dequantize", "source": source.fingerprint()}
    with Partial(source, target, work, source.blocks, source.nbytes, overwrite) as partial:
        partial.copy_blocks(source, "dequantizing")
        step = {
            "action": "dequantize",
            "recipe": {"method": source.quantised},
            "versions": versions(),
            "source": source.provenance(model),
            "warnings": [],
        }
        partial.finish(None, step)
    return {
        "out": str(target),
        "from": source.quantised,
        "blocks": source.blocks,
        "seconds": time.monotonic() - started,
        "warnings": source.reading_notes,
    }
