"""The metadata of a GGUF file from another file of the same base model, and how its tensors correspond to the model's.

Which tensor is which, and whether the rows of heads change their order, is tried: a tensor of llama.cpp's file must
equal the dense model's tensor, up to the rounding of the file's types. So no table of model families is needed.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.gguf_file import field_of, kind_of, library, open_reader
from prunus.errors import PrunusError
from prunus.progress import Steps
from prunus.pruning.bits.gguf_metadata import GgufContent
from prunus.pruning.bits.gguf_tensors import AS_IS, OUTPUT, PLUS_ONE, ROWS, GgufTensor, changed, names_for, tensors_of
from prunus.pruning.experts.mixtures import NUMBERS

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor

# Counts in the metadata, after the architecture's name, and their names in config.json.
COUNTS = {
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size",),
    "expert_count": NUMBERS,
    "expert_used_count": ("num_experts_per_tok", "top_k_experts", "moe_k"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "leading_dense_block_count": ("first_k_dense_replace",),
}
# Metadata of the file itself, which is not copied.
OWN = re.compile(
    r"(GGUF|split|quantize|prunus)\.|general\.(architecture|file_type|quantization_version|alignment|size_label)$"
)
FLOATS = ("F32", "F16", "BF16")
FLOAT_ERROR = 2.0**-8  # of a row of floats, relative: that of bfloat16
STEPS = 4.0  # the error of a row of integers with b bits is below this / 2^b, also if one weight outweighs all others
MOST_ERROR = 0.7  # another tensor's is about 1.4


def form_like(path: Path, source: Checkpoint, dense: Checkpoint) -> GgufContent:
    """The GgufContent of source, with the metadata of a GGUF file of the dense model.

    Raises PrunusError, with the name of a tensor that differs, if the file is of another model.
    """
    gguf = library()
    reader = open_reader(path)
    architecture = str(field_of(reader, "general.architecture"))
    if field_of(reader, f"{architecture}.block_count") != dense.blocks:
        blocks = field_of(reader, f"{architecture}.block_count")
        raise PrunusError(f"{path} has {blocks} blocks and {dense.folder} {dense.blocks}: it is of another model")
    changes, constants = compared(reader, path, dense, architecture)
    counts = new_counts(path, source, dense)
    if absent := next((short for short in counts if f"{architecture}.{short}" not in reader.fields), None):
        raise PrunusError(f"{path} lacks {architecture}.{absent}, which differs in {source.folder}: give a newer file")
    writer = gguf.GGUFWriter(None, architecture)
    for key, field in reader.fields.items():
        value, short = field.contents(), key.removeprefix(f"{architecture}.")
        if OWN.match(key) or value == []:
            continue
        if short in counts and not isinstance(value, list):
            before, value = counts[short]
            if field.contents() != before:
                raise PrunusError(f"{path}: {key} is {field.contents()}, but {before} in {dense.folder}")
        elif isinstance(value, list) and len(value) == dense.blocks and not key.startswith("tokenizer."):
            value = for_blocks(path, key, counts[short][1:] * dense.blocks if short in counts else value, source.blocks)
        writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    return GgufContent(architecture, writer, changes, constants)


def for_blocks(path: Path, key: str, values: Sequence[object], blocks: int) -> list[object]:
    """The values of a key with a value for each block, for a model with this number of blocks.

    Raises PrunusError if blocks are gone and the values differ, since nothing says which blocks they are of.
    """
    if len(set(values)) > 1 and len(values) != blocks:
        raise PrunusError(f"{path}: {key} differs by block, so it cannot be told of a model with fewer blocks")
    return list(values)[:blocks]


def new_counts(path: Path, source: Checkpoint, dense: Checkpoint) -> dict[str, tuple[Any, Any]]:
    """{count in the metadata: (before, after)} where the model's configuration differs from the dense model's.

    Raises PrunusError for a difference that no such count expresses.
    """
    before, after = (model.text_config.to_dict() for model in (dense, source))
    short_of = {name: short for short, names in COUNTS.items() for name in names}
    counts = {}
    for name, value in after.items():
        old = before.get(name)
        if value == old or name.startswith("_") or isinstance(value, str) or isinstance(old, str):
            continue
        if isinstance(value, list) and isinstance(old, list):
            if value != old[: len(value)]:
                raise PrunusError(
                    f"{path}: llama.cpp tells kinds of blocks by their numbers, which no longer fit ({name} in"
                    " config.json): remove other blocks"
                )
        elif name in short_of:
            counts[short_of[name]] = old, value
        elif isinstance(value, int | float):
            raise PrunusError(f"{source.folder} has another {name} than {dense.folder}, which cannot be said in a GGUF")
    return counts


def compared(
    reader: "GGUFReader", path: Path, dense: Checkpoint, architecture: str
) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """(changes, constants), as GgufContent has them. Raises PrunusError that names the first tensor that differs."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = dense.text_config
    heads = {getattr(config, name, None) or 0 for name in ("num_attention_heads", "num_key_value_heads")}
    left: dict[str, dict[int, float]] = {}  # the changes that no tensor of a kind has refuted, with their errors
    pieces = list(tensors_of(dense, names_for(dense, architecture)))
    with Steps("comparing", total=len(pieces), unit="tensors") as steps:
        for piece in pieces:
            if piece.name not in tensors:
                raise PrunusError(f"{path} lacks {piece.name}, which {piece.named(dense)} of {dense.folder} would be")
            tried = left.setdefault(kind_of(piece.name), dict.fromkeys([AS_IS, PLUS_ONE, *sorted(heads)], 0.0))
            errors = {change: error_of(tensors[piece.name], piece, dense, change) for change in tried}
            bound = largest_error(tensors[piece.name].tensor_type.name)
            for change, error in errors.items():
                tried[change] += error
                if error > bound:
                    del tried[change]
            if not tried:
                least, form = min(errors.values()), tensors[piece.name].tensor_type.name
                how = "in shape" if least == np.inf else f"by {100 * least:.2g} % in a row, more than {form} rounds"
                raise PrunusError(
                    f"{piece.name} of {path} is not {piece.named(dense)} of {dense.folder}: they differ {how}; give the"
                    " file of this very model"
                )
            steps.advance()
    constants = {}
    names = {piece.name for piece in pieces}
    for name in sorted(tensors.keys() - names - {OUTPUT}):
        if name.startswith("blk.") or tensors[name].tensor_type.name != "F32":
            raise PrunusError(f"{path} has a tensor {name}, which {dense.folder} lacks: it is of another model")
        constants[name] = np.array(tensors[name].data)
    if OUTPUT in tensors and OUTPUT not in names:
        (embeddings,) = (piece for piece in pieces if piece.name == "token_embd.weight")
        if error_of(tensors[OUTPUT], embeddings, dense, AS_IS) > largest_error(tensors[OUTPUT].tensor_type.name):
            raise PrunusError(
                f"{OUTPUT} of {path} is not {embeddings.named(dense)} of {dense.folder}, which is its head"
            )
    return {kind: min(tried, key=lambda change: tried[change]) for kind, tried in left.items()}, constants


def largest_error(form: str) -> float:
    """The most by which a row may differ, relative to its length, because of the rounding of a type of numbers."""
    bits = re.search(r"\d", form)
    if form in FLOATS or bits is None:
        return FLOAT_ERROR
    return min(MOST_ERROR, STEPS / 2 ** int(bits[0]))


def error_of(tensor: "ReaderTensor", piece: GgufTensor, dense: Checkpoint, change: int) -> float:
    """The largest relative error of a row of the file's tensor, compared with the model's after a change.

    Infinite if the shapes differ or the tensor cannot be changed so. change: as for `changed`.
    """
    shape, rows = tuple(map(int, reversed(tensor.shape))), piece.shape[0]
    if shape != piece.whole_shape or (change == PLUS_ONE and len(piece.shape) > 1):
        return np.inf
    if change > 0 and (rows % (2 * change) or len(piece.sources) > 1):
        return np.inf
    largest = 0.0
    for number in range(len(piece.sources)):
        expected = changed(piece.read(dense, number), change)
        data = tensor.data[number] if shape != piece.shape else tensor.data
        for part, values in parts_of(data, tensor.tensor_type, expected):
            length, off = part.norm(dim=-1), (values - part).norm(dim=-1)
            errors = torch.where(off > 0, off / length.clamp(min=1e-30), off).nan_to_num(torch.inf, torch.inf)
            largest = max(largest, float(errors.max()))
            if largest > 1:
                return largest
    return largest


def parts_of(data: np.ndarray, form: "GGMLQuantizationType", expected: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield float32 (expected, read from the file) of some rows at a time; a vector is one row."""
    gguf = library()
    rows = expected.reshape(1, -1) if expected.ndim == 1 else expected
    data = data.reshape(len(rows), -1)
    for first in range(0, len(rows), ROWS):
        values = gguf.quants.dequantize(np.ascontiguousarray(data[first : first + ROWS]), form)
        yield rows[first : first + ROWS].float(), torch.from_numpy(np.array(values, np.float32))
