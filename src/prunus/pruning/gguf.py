"""Write a model as a GGUF file, or as a folder with such a file and everything that its evaluation needs.

One tensor of the model is in memory at a time, after a pass over calibration tokens if the recipe has any. The manifest
is also stored in the file's metadata.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from prunus.checkpoint.checkpoint import Checkpoint, dense_twin
from prunus.checkpoint.gguf_file import MANIFEST_KEY, kind_of, library, read_gguf, rounding
from prunus.checkpoint.resolve import GGUF_FILE, resolve, typed_path
from prunus.checkpoint.runner import pick_device
from prunus.checkpoint.writer import Partial, check_target
from prunus.disk import as_path, atomic_file, check_space, disk_errors, show_bytes
from prunus.errors import PrunusError
from prunus.manifest import StepRecord, next_manifest
from prunus.plain_data import Record, content_hash
from prunus.progress import Steps
from prunus.pruning.bits.gguf_importance import MeasuredImportance, measured
from prunus.pruning.bits.gguf_like import form_like
from prunus.pruning.bits.gguf_metadata import GgufContent, architecture_of, form_of, lost_in_texts
from prunus.pruning.bits.gguf_mixture import GGML_TYPES, VALUES, Shape, form_in_mixture
from prunus.pruning.bits.gguf_tensors import (
    AS_IS,
    OUTPUT,
    GgufTensor,
    Importance,
    check,
    codes_of,
    encoded,
    names_for,
    tensors_of,
)
from prunus.pruning.calibration import check_calibration
from prunus.pruning.calibration.data import describe_calibration
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.experts.mixtures import NUMBERS
from prunus.pruning.job import Sizes, made_card
from prunus.recipes import GgufRecipe
from prunus.step import Made, Planned
from prunus.version import version_of, versions

OUTER = {"token_embd.weight": "embeddings", OUTPUT: "head"}


class FileFacts(Record):
    """What is known of a GGUF file before and after it is written."""

    type: str
    architecture: str
    tensors: int
    exact: int
    size: str
    before: str


class GgufMade(FileFacts, Made):
    """A model in the format of llama.cpp, as `gguf` wrote it.

    type: that of the recipe.
    architecture: llama.cpp's name of it.
    tensors, exact: number of tensors, and of those that hold the integers of `prunus quantize` unchanged.
    size, before: bytes that an engine loads for the result, and for the model before this step, as text.
    """


class PlannedGguf(FileFacts, Planned):
    """What `gguf` would write.

    type: that of the recipe.
    architecture: llama.cpp's name of it.
    tensors, exact: number of tensors, and of those that would hold the integers of `prunus quantize` unchanged.
    size, before: bytes that an engine would load for the result, and for the model before this step, as text.
    """


def gguf(
    model: str | Path,
    out: str | Path,
    recipe: GgufRecipe | None = None,
    *,
    dense: str | Path | None = None,
    stats: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    name: str | None = None,
) -> GgufMade:
    """Write model in the format of llama.cpp.

        made = prunus.gguf("narrow", "narrow.gguf", prunus.GgufRecipe(type="q8_0"))
        print(made.architecture, made.size)

    model: a folder or a hub id.
    out: FILE.gguf; or another path, which becomes a folder with model.gguf, configuration, tokenizer and manifest, so
        that it can be evaluated behind llama.cpp's server (docs/gguf.md). Either appears only when it is complete.
    recipe: None: the default, float16.
    dense: for recipe.like: the model before all steps; None: what the manifest of model names.
    stats: a file of `stats` of model, which takes the place of recipe.calibration.
    device: on which the model is run on calibration tokens: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    overwrite: replace an existing result.
    name: what the manifest calls the model; None: as it is given.

    Raises PrunusError for wrong input or if GGUF cannot express the model, and then leaves nothing behind.
    """
    started = time.monotonic()
    work = open_work(model, out, GgufRecipe.given(recipe), dense=dense, stats=stats, overwrite=overwrite, name=name)
    source, target, recipe, sizes, warnings = work.source, work.target, work.recipe, work.sizes, work.warnings
    found = measured(source, recipe, work.saved, pick_device(device)) if recipe.weighs else None
    warnings += found.warnings if found is not None else []
    packages = ("gguf", "libgguf") if recipe.file_type.usual else ("gguf",)
    step = StepRecord.of({
        "action": "gguf",
        "recipe": recipe.to_json(),
        "versions": {**versions(), **{package: version_of(package) for package in packages}},
        "source": source.provenance(name or model),
        **({} if found is None else {"calibration": found.summary}),
        "format": {"name": "gguf", "bits": recipe.file_type.bits, "group": recipe.file_type.group},
        "bytes": sizes.to_json(),
        "warnings": warnings,
    })  # fmt: skip
    work.finish_metadata(step, found)
    importance = None if found is None else found.importance
    with disk_errors(target, sizes.after):
        if target.suffix == ".gguf":
            target.absolute().parent.mkdir(parents=True, exist_ok=True)
            work.write(target, importance)
        else:
            identity = content_hash({"action": "gguf", "recipe": recipe.to_json(), "source": source.checksum()})
            with Partial(source, target, identity, 0, sizes.after, overwrite) as partial:
                work.write(partial.folder / GGUF_FILE, importance)
                quantised = {"quantization_config": {"quant_method": "gguf", "bits": recipe.file_type.bits}}
                partial.publish(source.config_json | quantised, step, made_card(source, step))
    return GgufMade(out=str(target), **vars(work.facts), seconds=time.monotonic() - started, warnings=warnings)


def plan_gguf(
    model: str | Path | Checkpoint,
    out: str | Path,
    recipe: GgufRecipe,
    *,
    dense: str | Path | None = None,
    stats: str | Path | None = None,
    overwrite: bool = False,
) -> PlannedGguf:
    """What `gguf` would write. model: may also be the planned checkpoint of earlier steps in a dry run."""
    work = open_work(model, out, recipe, dense=dense, stats=stats, overwrite=overwrite)
    notes = describe_calibration(work.recipe, work.source)[1] if work.recipe.weighs and work.saved is None else []
    return PlannedGguf(would_write=str(work.target), **vars(work.facts), warnings=[*work.warnings, *notes])


@dataclass(frozen=True)
class GgufWork:
    """A model to be written as GGUF. pieces: its tensors. forms: the form of each piece, by its name."""

    source: Checkpoint
    target: Path
    recipe: GgufRecipe
    saved: SavedStats | None
    form: GgufContent
    pieces: list[GgufTensor]
    forms: Mapping[str, str]

    @cached_property
    def exact(self) -> int:
        """Number of tensors that stay integers."""
        rounded = (piece for piece in self.pieces if self.forms[piece.name] == "Q4_0")
        return sum(codes_of(self.source, piece, 0) is not None for piece in rounded)

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes of the tensors of the model and of the file."""
        kinds: dict[str, int] = dict.fromkeys(("quantised", "scales", "embeddings", "head", "others"), 0)
        kinds["others"] = sum(constant.nbytes for constant in self.form.constants.values())
        for piece in self.pieces:
            kind = GGML_TYPES[self.forms[piece.name]]
            size, scales = piece.nbytes(self.forms[piece.name]), piece.elements // kind.weights * kind.scales
            if piece.name not in OUTER and kind.scales:
                kinds["quantised"] += size - scales
                kinds["scales"] += scales
            else:
                kinds[OUTER.get(piece.name, "others")] += size
        return Sizes.after_step(self.source, kinds)

    @property
    def facts(self) -> FileFacts:
        """The fields that a plan and a result share."""
        return FileFacts(
            type=self.recipe.type,
            architecture=self.form.architecture,
            tensors=len(self.pieces) + len(self.form.constants),
            exact=self.exact,
            size=show_bytes(self.sizes.after),
            before=show_bytes(self.sizes.before),
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings about what the file loses of the model, a line each."""
        rounded = sum(form == "Q4_0" for form in self.forms.values()) - self.exact
        warnings = list(self.source.reading_notes) if self.exact == 0 else []
        if self.recipe.file_type.usual and not self.recipe.weighs:
            warnings.append(
                "weights are rounded as if all inputs were equally large: --calibration traces:FILE, or --stats, loses"
                " less"
            )
        if rounded:
            warnings.append(
                f"{rounded} tensors are rounded to nearest in 4 bits, each group on the best of several scales: `prunus"
                " quantize --bits 4 --group 32` before this loses less"
            )
        return warnings + lost_in_texts(self.source.folder)

    def finish_metadata(self, step: StepRecord, found: MeasuredImportance | None) -> None:
        """Add the file's type, the version of llama.cpp's quantisation and the manifest to the metadata.

        found: for llama.cpp's fields on an importance matrix; None leaves them out.
        """
        package, writer = library(), self.form.writer
        writer.add_file_type(getattr(package.LlamaFileType, f"MOSTLY_{self.recipe.type.upper()}"))
        writer.add_quantization_version(package.GGML_QUANT_VERSION)
        writer.add_string(MANIFEST_KEY, json.dumps(next_manifest(self.source.folder, step).data, ensure_ascii=False))
        if found is None:
            return
        if self.saved is not None:
            writer.add_string("quantize.imatrix.file", self.saved.path.name)
        writer.add_string("quantize.imatrix.dataset", Path(str(found.summary["source"])).name)
        writer.add_uint32("quantize.imatrix.entries_count", sum(piece.is_linear for piece in self.pieces))
        writer.add_uint32("quantize.imatrix.chunks_count", int(found.summary["sequences"]))

    def write(self, path: Path, importance: Importance | None) -> None:
        """Write the file, completely or not at all."""
        kinds = library().GGMLQuantizationType
        writer, constants = self.form.writer, self.form.constants
        for name, constant in constants.items():
            writer.add_tensor_info(name, constant.shape, constant.dtype, constant.nbytes)
        sizes = [piece.nbytes(self.forms[piece.name]) for piece in self.pieces]
        for piece, size in zip(self.pieces, sizes, strict=True):
            kind = kinds[self.forms[piece.name]]
            writer.add_tensor_info(piece.name, piece.whole_shape, np.dtype(np.float32), size, kind)
        with atomic_file(path) as stream, Steps("writing", len(self.pieces), "tensors", sizes=sizes) as steps:
            writer.write_header_to_file(Path(stream.name))
            try:
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
                for constant in constants.values():
                    writer.write_tensor_data(constant)
                for piece in self.pieces:
                    change = self.form.changes.get(kind_of(piece.name), AS_IS)
                    writer.write_tensor_data(encoded(self.source, piece, self.forms[piece.name], change, importance))
                    steps.advance()
            finally:
                writer.close()


def open_work(
    model: str | Path | Checkpoint,
    out: str | Path,
    recipe: GgufRecipe,
    *,
    dense: str | Path | None,
    stats: str | Path | None,
    overwrite: bool,
    name: str | None = None,
) -> GgufWork:
    """The work of `gguf` with these arguments, after all checks; nothing is written yet."""
    target = as_path(out)
    library()
    if isinstance(model, Checkpoint):
        source, name = model, name or str(model.folder)
    else:
        check_calibration(recipe, model, out, stats=stats)
        source, name = Checkpoint(resolve(model)), name or str(model)
    if recipe.file_type.usual:
        rounding()
    saved, recipe = with_stats(source, recipe, stats)
    check_out(source.folder, target, overwrite)
    form = form_for(source, recipe, dense, name)
    check_numbers(form, source.folder)
    pieces = list(tensors_of(source, names_for(source, form.architecture)))
    forms = forms_of(source, pieces, recipe)
    for piece in pieces:
        check(source, piece, forms[piece.name])
    work = GgufWork(source, target, recipe, saved, form, pieces, forms)
    check_space(target.absolute(), work.sizes.after)
    return work


def check_out(model: Path, target: Path, overwrite: bool) -> None:
    """Raise PrunusError if target, a file or a folder, cannot be written."""
    if target.suffix != ".gguf":
        check_target(model, target, overwrite)
    elif target.is_dir() or (target.exists() and not overwrite):
        raise PrunusError(f"{target} exists; choose another output or add --overwrite")


def with_stats(
    source: Checkpoint, recipe: GgufRecipe, stats: str | Path | None
) -> tuple[SavedStats | None, GgufRecipe]:
    """The statistics, if any are given, and the recipe with their calibration; PrunusError if they do not fit."""
    if stats is None:
        return None, recipe
    if recipe.file_type.usual is None:
        raise PrunusError(f"type {recipe.type} needs no statistics; leave --stats out")
    saved = SavedStats(stats, source)
    saved.check_inputs()
    return saved, saved.with_calibration(recipe)


def forms_of(source: Checkpoint, pieces: Sequence[GgufTensor], recipe: GgufRecipe) -> dict[str, str]:
    """llama.cpp's name of the form of each tensor of the file, such as Q4_K, by the tensor's name."""
    if recipe.file_type.usual is None:
        return {piece.name: piece.form(recipe.type) for piece in pieces}
    config = source.text_config
    heads = getattr(config, "num_attention_heads", None) or 1
    shape = Shape(
        blocks=source.blocks,
        heads_per_key=heads // (getattr(config, "num_key_value_heads", None) or heads),
        experts=next((count for name in NUMBERS if (count := getattr(config, name, None))), 0),
        tied=all(piece.name != OUTPUT for piece in pieces),
        values=[piece.block for piece in pieces if piece.block is not None and piece.name.endswith(VALUES)],
        weighted=recipe.weighs,
    )
    return {
        piece.name: form_in_mixture(piece.name, piece.block, piece.shape[-1], recipe.type, shape)
        if piece.is_rounded
        else "F32"
        for piece in pieces
    }


def form_for(source: Checkpoint, recipe: GgufRecipe, dense: str | Path | None, name: str) -> GgufContent:
    """Everything that the file has besides weights: taken from the file recipe.like, else from the model's folder."""
    if recipe.like is None:
        if dense is not None:
            raise PrunusError("--dense is for --like, whose file is compared with it: leave it out")
        return form_of(source, Path(name).name)
    there = Checkpoint(source.folder)  # of a planned model, its source
    whole = there if dense is None and not there.manifest.history else dense_twin(there, dense)
    return form_like(typed_path(recipe.like), source, whole)


def check_numbers(form: GgufContent, folder: Path) -> None:
    """Raise PrunusError for a number of the metadata that does not fit into its type."""
    for values in form.writer.kv_data:
        for key, (value, kind, *_) in ((key, tuple(vars(entry).values())) for key, entry in values.items()):
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


def nbytes_of(source: Checkpoint, recipe: GgufRecipe) -> int:
    """Bytes of all tensors of the file. Raises PrunusError for a mixture if no GGUF form of the model is known."""
    names = names_for(source, llama_architecture(source, recipe)) if recipe.file_type.usual else str
    pieces = list(tensors_of(source, names))
    forms = forms_of(source, pieces, recipe)
    return sum(piece.nbytes(forms[piece.name]) for piece in pieces)


def llama_architecture(source: Checkpoint, recipe: GgufRecipe) -> str:
    """llama.cpp's name of the architecture of a file."""
    return architecture_of(source) if recipe.like is None else read_gguf(typed_path(recipe.like)).architecture
