"""Write a model as a GGUF file, or as a folder with one and all that an evaluation of it needs.

One tensor of the model is in memory at a time. The manifest stands in the file's metadata, too.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np

from prunus.checkpoint.checkpoint import Checkpoint, dense_twin
from prunus.checkpoint.gguf_file import MANIFEST_KEY, kind_of, library
from prunus.checkpoint.resolve import GGUF_FILE, next_manifest, resolve, typed_path, version_of, versions
from prunus.checkpoint.writer import Partial, check_target
from prunus.disk import atomic_file, check_space, disk_errors, show_bytes
from prunus.errors import PrunusError
from prunus.plain_data import Record, made
from prunus.progress import Steps
from prunus.pruning.bits.gguf_like import form_like
from prunus.pruning.bits.gguf_metadata import Form, form_of, lost_in_texts
from prunus.pruning.bits.gguf_tensors import AS_IS, GROUP, OUTPUT, Piece, check, codes_of, encoded, names_for, pieces_of
from prunus.pruning.calibration import check_calibration
from prunus.pruning.job import made_card
from prunus.recipes import GgufRecipe
from prunus.step import Made, Planned

OUTER = {"token_embd.weight": "embeddings", OUTPUT: "head"}
BITS = {"f16": 16, "q8_0": 8, "q4_0": 4}


class GgufWays(TypedDict, total=False):
    """What gguf takes besides model, folder and recipe."""

    dense: str | Path | None
    overwrite: bool
    name: str | None


class GgufMade(Made):
    """A model in the format of llama.cpp, as `gguf` wrote it.

    type: that of the recipe.
    architecture: llama.cpp's name of it.
    tensors, exact: number of tensors, and of those that hold the integers of `prunus quantize` unchanged.
    size, before: bytes that an engine loads of the result, and of the model, as text.
    """

    type: str
    architecture: str
    tensors: int
    exact: int
    size: str
    before: str


class PlannedGguf(Planned):
    """What `gguf` would write.

    type: that of the recipe.
    architecture: llama.cpp's name of it.
    tensors, exact: number of tensors, and of those that would hold the integers of `prunus quantize` unchanged.
    size, before: bytes that an engine would load of the result, and of the model, as text.
    """

    type: str
    architecture: str
    tensors: int
    exact: int
    size: str
    before: str


@overload
def gguf(
    model: str | Path | Checkpoint,
    out: str | Path,
    recipe: GgufRecipe | None = None,
    *,
    dry_run: Literal[True],
    **ways: Unpack[GgufWays],
) -> PlannedGguf: ...
@overload
def gguf(
    model: str | Path | Checkpoint,
    out: str | Path,
    recipe: GgufRecipe | None = None,
    *,
    dry_run: Literal[False] = False,
    **ways: Unpack[GgufWays],
) -> GgufMade: ...
def gguf(
    model: str | Path | Checkpoint,
    out: str | Path,
    recipe: GgufRecipe | None = None,
    *,
    dense: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    name: str | None = None,
) -> GgufMade | PlannedGguf:
    """Write model in the format of llama.cpp.

        made = prunus.gguf("narrow", "narrow.gguf", prunus.GgufRecipe(type="q8_0"))
        print(made.architecture, made.size)

    model: a folder or a hub id; in a dry run of several steps also what earlier ones will leave.
    out: FILE.gguf; or another path, which becomes a folder with model.gguf, configuration, tokenizer and manifest, so
        that it can be evaluated behind llama.cpp's server (docs/gguf.md). Either appears only when it is complete.
    recipe: None: the default one, float16.
    dense: for recipe.like: the model before all steps; None: the one that the manifest of model names.
    overwrite: replace an existing result.
    dry_run: write nothing, and return a PlannedGguf instead of a GgufMade.
    name: what the manifest calls the model; None: as it is given.

    Raises PrunusError for wrong input or if GGUF cannot express the model, and then leaves nothing behind.
    """
    started = time.monotonic()
    recipe, target = recipe or GgufRecipe(), Path(out)
    library()
    if isinstance(model, Checkpoint):
        source, name = model, name or str(model.folder)
    else:
        check_calibration(recipe, model, out)
        source, name = Checkpoint(resolve(model)), name or str(model)
    is_file = target.suffix == ".gguf"
    check_out(source.folder, target, overwrite)
    form = form_for(source, recipe, dense, name)
    check_numbers(form, source.folder)
    pieces = list(pieces_of(source, names_for(source, form.architecture)))
    for piece in pieces:
        check(source, piece, piece.form(recipe.type))
    sizes = sizes_of(source, form, pieces, recipe.type)
    exact = sum(piece.form(recipe.type) == "Q4_0" and codes_of(source, piece, 0) is not None for piece in pieces)
    tensors, size, before = len(pieces) + len(form.constants), show_bytes(sizes.after), show_bytes(sizes.before)
    warnings = warnings_of(source, pieces, exact, recipe.type) + lost_in_texts(source.folder)
    if dry_run:
        check_space(target.absolute(), sizes.after)
        return PlannedGguf(
            would_write=str(target),
            type=recipe.type,
            architecture=form.architecture,
            tensors=tensors,
            exact=exact,
            size=size,
            before=before,
            warnings=warnings,
        )
    step: dict[str, object] = {
        "action": "gguf",
        "recipe": recipe.to_json(),
        "versions": {**versions(), "gguf": version_of("gguf")},
        "source": source.provenance(name),
        "format": {"name": "gguf", "bits": BITS[recipe.type], "group": None if recipe.type == "f16" else GROUP},
        "bytes": sizes.to_json(),
        "warnings": warnings,
    }
    finish_metadata(form, recipe, next_manifest(source.folder, step))
    check_space(target.absolute(), sizes.after)
    with disk_errors(target, sizes.after):
        if is_file:
            target.absolute().parent.mkdir(parents=True, exist_ok=True)
            write_file(target, source, form, pieces, recipe.type)
        else:
            work = {"action": "gguf", "recipe": recipe.to_json(), "source": source.checksum()}
            with Partial(source, target, work, 0, sizes.after, overwrite) as partial:
                write_file(partial.folder / GGUF_FILE, source, form, pieces, recipe.type)
                quantised = {"quantization_config": {"quant_method": "gguf", "bits": BITS[recipe.type]}}
                partial.publish(source.config_json | quantised, step, made_card(source, step))
    return GgufMade(
        out=str(target),
        type=recipe.type,
        architecture=form.architecture,
        tensors=tensors,
        exact=exact,
        size=size,
        before=before,
        seconds=time.monotonic() - started,
        warnings=warnings,
    )


def check_out(model: Path, target: Path, overwrite: bool) -> None:
    """Raise PrunusError if target, a file or a folder, cannot be written."""
    if target.suffix != ".gguf":
        check_target(model, target, overwrite)
    elif target.is_dir() or (target.exists() and not overwrite):
        raise PrunusError(f"{target} exists; choose another output or add --overwrite")


def form_for(source: Checkpoint, recipe: GgufRecipe, dense: str | Path | None, name: str) -> Form:
    """What the file has besides weights: like another file, or from the model's own files."""
    if recipe.like is None:
        if dense is not None:
            raise PrunusError("--dense is for --like, whose file is compared with it: leave it out")
        return form_of(source, Path(name).name)
    there = Checkpoint(source.folder)  # of a model that is planned, the one that it will be made from
    whole = there if dense is None and not there.manifest.get("history") else dense_twin(there, dense)
    return form_like(typed_path(recipe.like), source, whole)


def check_numbers(form: Form, folder: Path) -> None:
    """Raise PrunusError for a number of the metadata that does not fit into its type."""
    for values in form.writer.kv_data:
        for key, (value, kind, *_) in ((key, tuple(vars(one).values())) for key, one in values.items()):
            unsigned, bits = (kind.name.startswith("U"), int(re.sub(r"\D", "", kind.name) or 0))
            if "INT" in kind.name:
                low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
                fits = isinstance(value, int | np.integer) and low <= value <= high
            else:
                fits = not kind.name.startswith("FLOAT") or abs(value) <= float(np.finfo(f"float{bits}").max)
            if not fits:
                raise PrunusError(
                    f"{folder}: '{key}' would be {str(value)[:100]}, which GGUF cannot hold: correct config.json"
                )


class Sizes(Record):
    """Bytes of all tensors before and after; and after, by kind: integers, their scales, embeddings, head, others."""

    before: int
    after: int
    quantised: int
    scales: int
    embeddings: int
    head: int
    others: int


def sizes_of(source: Checkpoint, form: Form, pieces: Sequence[Piece], type: str) -> Sizes:
    """The sizes of the tensors of a file."""
    quantised = scales = 0
    others, outer = sum(constant.nbytes for constant in form.constants.values()), dict.fromkeys(OUTER.values(), 0)
    for piece in pieces:
        own = piece.form(type)
        size, of_scales = piece.nbytes(own), piece.elements // GROUP * 2
        if piece.name in OUTER:
            outer[OUTER[piece.name]] += size
        elif own.startswith("Q"):
            quantised += size - of_scales
            scales += of_scales
        else:
            others += size
    before, after = sum(source.engine_bytes.values()), quantised + scales + others + sum(outer.values())
    return made(Sizes, outer, before=before, after=after, quantised=quantised, scales=scales, others=others)


def nbytes_of(source: Checkpoint, recipe: GgufRecipe) -> int:
    """Bytes of all tensors of the file."""
    return sum(piece.nbytes(piece.form(recipe.type)) for piece in pieces_of(source))


def warnings_of(source: Checkpoint, pieces: Sequence[Piece], exact: int, type: str) -> list[str]:
    """What a user should know of the weights."""
    rounded = sum(piece.form(type) == "Q4_0" for piece in pieces) - exact
    warnings = list(source.reading_notes) if exact == 0 else []
    if rounded:
        warnings.append(
            f"{rounded} tensors are rounded to nearest in 4 bits, each group on the best of several scales: `prunus"
            " quantize --bits 4 --group 32` before this loses less"
        )
    return warnings


def finish_metadata(form: Form, recipe: GgufRecipe, manifest: Mapping[str, Any]) -> None:
    """Add the types of numbers, and the manifest."""
    package = library()
    form.writer.add_file_type(getattr(package.LlamaFileType, f"MOSTLY_{recipe.type.upper()}"))
    form.writer.add_quantization_version(package.GGML_QUANT_VERSION)
    form.writer.add_string(MANIFEST_KEY, json.dumps(manifest, ensure_ascii=False))


def write_file(path: Path, source: Checkpoint, form: Form, pieces: Sequence[Piece], type: str) -> None:
    """Write the file, completely or not at all."""
    kinds = library().GGMLQuantizationType
    writer = form.writer
    for name, constant in form.constants.items():
        writer.add_tensor_info(name, constant.shape, constant.dtype, constant.nbytes)
    for piece in pieces:
        own = piece.form(type)
        writer.add_tensor_info(piece.name, piece.whole_shape, np.dtype(np.float32), piece.nbytes(own), kinds[own])
    with atomic_file(path) as stream, Steps("writing", total=len(pieces), unit="tensors") as steps:
        writer.write_header_to_file(Path(stream.name))
        try:
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for constant in form.constants.values():
                writer.write_tensor_data(constant)
            for piece in pieces:
                change = form.changes.get(kind_of(piece.name), AS_IS)
                writer.write_tensor_data(encoded(source, piece, piece.form(type), change))
                steps.advance()
        finally:
            writer.close()
