"""Files of variants: the changed weights of a model, which studies keep in one file per variant.

They can be read only together with that model. Format 1 is one safetensors file; all numbers are little-endian, all
matrices in row-major order, of O outputs (rows) and I inputs (columns). `__metadata__` of its header holds

- `prunus_packed_sha256`: SHA-256 of the header's bytes, in which these 64 characters are replaced by 64 zeros (`0`);
- `prunus_packed`: JSON with `version` (1), `kind` (`variant`), `model` (name and checksum of the dense source), `lossy`
  (false), `about` (an object of the writer) and `tensors`: of each tensor `form`, `dtype` and `shape` when dense, and
  `crc32`, a list with the CRC-32 of each of its parts.

The checksum of a model is BLAKE3 over its dense tensors in the order of their names: name, zero byte, dtype (`BF16`),
zero byte, shape (`[576, 1536]`), zero byte, the BLAKE3 of its data. Checksums detect damage, not malice.

A tensor of form `packed` has the parts `NAME.starts`, `NAME.mask` and `NAME.values`, adjacent and in this order; `mask`
has only the mask, which is applied to the source's tensor; `source` has none, and is the source's tensor.

- mask, `U8` of shape [O up to a multiple of 16, 8 ceil(I / 64)]: weight (o, i) is bit `i % 8` of byte `i // 8` of row
  `o`, where bit 0 is the lowest. A bit is 0 where the weight is +0.0; -0.0 and NaN are kept. Bits of padding are 0.
- values: the kept weights without gaps between rows, in the tensor's dtype, padded with zeros to 64 bytes.
- starts, `I64`: the index of the first value of rows 0, 16, 32, ...; then the number of values, repeated until the
  length is a multiple of 8. So the offset and size of every part are multiples of 64 bytes.

A reader refuses a file that departs from this format before it uses any number in it as a size or an index.
"""

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.packed_tensor import (
    ALIGNMENT,
    PARTS,
    Form,
    PackedTensor,
    bit_patterns,
    damaged,
    pack_bits,
    pack_mask,
    parts_in,
    round_up,
)
from prunus.checkpoint.safetensors_file import (
    DTYPE_NAMES,
    DTYPES,
    HeaderEntry,
    Stored,
    check_cover,
    check_name,
    header_text,
    place_of,
    read_header,
    whole_numbers,
)
from prunus.disk import atomic_file, disk_errors
from prunus.errors import PrunusError, no_file, unreadable

# Write a packed file tensor by tensor, with one of them in memory; the header is written last.

VERSION = 1
INFO, DIGEST = "prunus_packed", "prunus_packed_sha256"
# Placeholder for the header's digest while that digest is computed.
NO_DIGEST = "0" * 64
_LARGEST_CRC = (1 << 32) - 1


class PackedRow(TypedDict):
    """A tensor in the table of a header, in JSON. shape, dtype: of the dense tensor. crc32: of each part."""

    form: Form
    dtype: str
    shape: Sequence[int]
    crc32: Sequence[int]


@dataclass(frozen=True)
class PackedHeader:
    """The header of a packed file. model, checksum, about: as of PackedFile. entries: of parts. table: of tensors."""

    model: str
    checksum: str
    about: Mapping[str, Any]
    entries: dict[str, HeaderEntry] = field(default_factory=dict)
    table: dict[str, PackedRow] = field(default_factory=dict)

    def text(self, size: int = 0) -> bytes:
        """The header with its digest, padded to size bytes; size 0: not padded."""
        described = {
            "version": VERSION,
            "kind": "variant",
            "model": {"name": self.model, "checksum": self.checksum},
            "lossy": False,
            "about": self.about,
            "tensors": self.table,
        }
        metadata = {"format": "prunus packed", DIGEST: NO_DIGEST, INFO: json.dumps(described, separators=(",", ":"))}
        text = json.dumps({"__metadata__": metadata, **self.entries}, separators=(",", ":")).encode().ljust(size)
        assert size in (0, len(text))
        return text.replace(NO_DIGEST.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


class PackedWriter:
    """Appends tensors to a packed file, and describes them in its header; see packed_writer."""

    def __init__(self, stream: BinaryIO, header: PackedHeader) -> None:
        self.stream, self.offset, self.header = stream, 0, header

    def add(self, name: str, weight_OI: Tensor, source_OI: Tensor) -> None:
        """Write a matrix in the smallest form that restores it bit by bit from the same tensor of the source."""
        bits_OI = bit_patterns(weight_OI)
        unchanged_OI = bits_OI == bit_patterns(source_OI)
        if unchanged_OI.all():
            self._add(name, weight_OI, "source", ())
        elif (unchanged_OI | (bits_OI == 0)).all():
            self._add(name, weight_OI, "mask", (pack_mask(bits_OI),))
        else:
            self._add(name, weight_OI, "packed", pack_bits(bits_OI))

    def _add(self, name: str, weight_OI: Tensor, form: Form, arrays: tuple[NDArray, ...]) -> None:
        entries, table = self.header.entries, self.header.table
        if name in table or any(name + part in entries for part in PARTS[form]):
            raise PrunusError(
                f"the name '{name}' occurs twice, or is that of another tensor's part; it cannot be packed"
            )
        dtype, shape, checksums = DTYPE_NAMES[weight_OI.dtype], tuple(weight_OI.shape), []
        for (part, (kind, _)), array in zip(parts_in(form, dtype, shape).items(), arrays, strict=True):
            assert not array.nbytes % ALIGNMENT
            data, start = array.reshape(-1).view(np.uint8).data, self.offset
            self.stream.write(data)
            self.offset += len(data)
            entries[name + part] = HeaderEntry(dtype=kind, shape=array.shape, data_offsets=(start, self.offset))
            checksums.append(zlib.crc32(data))
        table[name] = PackedRow(form=form, dtype=dtype, shape=shape, crc32=checksums)


@contextmanager
def packed_writer(path: Path, header: PackedHeader, tensors: Mapping[str, Stored]) -> Iterator[PackedWriter]:
    """A PackedWriter for a temporary file, which is renamed to path when it is complete and flushed to disk.

    header: without tensors. tensors: all that may be added, from which the size of the header is computed.
    """
    size = round_up(8 + len(_largest(header, tensors).text()), ALIGNMENT) - 8
    with atomic_file(path) as stream:
        stream.write(bytes(8 + size))
        yield PackedWriter(stream, header)
        stream.seek(0)
        stream.write(struct.pack("<Q", size) + header.text(size))


def _largest(header: PackedHeader, tensors: Mapping[str, Stored]) -> PackedHeader:
    """The longest header that a file with these tensors can have."""
    made = replace(header, entries={}, table={})
    # Every number in the header is at most twice the bytes of all tensors, and so has no more digits than this one.
    largest = 10 ** len(str(2 * sum(stored.nbytes + ALIGNMENT for stored in tensors.values())))
    for name, stored in tensors.items():
        parts = ("", *PARTS["packed"]) if len(stored.shape) == 2 else ("",)
        shape = [largest] * len(stored.shape)
        for part in parts:
            made.entries[name + part] = HeaderEntry(dtype="F8_E4M3", shape=shape, data_offsets=(largest, largest))
        made.table[name] = PackedRow(form="packed", dtype="F8_E4M3", shape=shape, crc32=[_LARGEST_CRC] * len(parts))
    return made


# Open a packed file without trusting it: the header is checked for consistency and against the file's size.
# Tensors are not read here; their data are checked when they are read.


class PackedFile(NamedTuple):
    """An opened packed file of a variant. model, checksum: of its source. about: as given to write_variant."""

    path: Path
    model: str
    checksum: str
    about: Mapping[str, Any]
    tensors: dict[str, PackedTensor]


def read_packed(path: Path) -> PackedFile:
    """The PackedFile at path; PrunusError if it is missing or its header is inconsistent."""
    if not path.is_file():
        raise unreadable(str(path), f"{no_file(path)}; give a packed file")
    try:
        size = path.stat().st_size
        text, base = header_text(path, size)
        header = json.loads(text)
        info = _read_info(header.pop("__metadata__"), text)
        spans = {name: place_of(path, name, entry, base) for name, entry in header.items()}
        check_cover(spans.values(), base, size)
        tensors = {name: _tensor(path, name, row, spans, base) for name, row in info.table.items()}
        if spans:
            raise ValueError(f"'{next(iter(spans))}' belongs to no tensor")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise damaged(path, " ".join(str(error).split()) or type(error).__name__) from error
    return PackedFile(path, info.model, info.checksum, info.about, tensors)


def _read_info(metadata: Mapping[str, Any], header: bytes) -> PackedHeader:
    """The header without its entries; rows of its table are not checked yet. ValueError unless its digest matches."""
    digest = metadata[DIGEST]
    if hashlib.sha256(header.replace(digest.encode(), NO_DIGEST.encode(), 1)).hexdigest() != digest:
        raise ValueError("the digest of the header does not match")
    info = json.loads(metadata[INFO])
    if (version := info.get("version")) != VERSION:
        raise ValueError(f"format version {version}; this version of prunus reads only {VERSION}")
    match info:
        case {"kind": "variant", "lossy": False, "model": {"name": str(name), "checksum": str(checksum)},
              "about": dict(about), "tensors": dict(table)}:  # fmt: skip
            check_name(name)
        case _:
            raise ValueError("it is not a variant of a model")
    if not re.fullmatch("[0-9a-f]{64}", checksum):
        raise ValueError("the checksum of the model is not valid")
    return PackedHeader(name, checksum, about, table=table)


def _tensor(path: Path, name: str, row: PackedRow, spans: dict[str, Stored], base: int) -> PackedTensor:
    """The tensor of a row of the table. spans: the places of all parts by name; those of this tensor are removed.

    Raises ValueError unless the parts have the dtypes and shapes of the form, and are adjacent and aligned.
    """
    check_name(name)
    form, dtype, shape = row["form"], row["dtype"], whole_numbers(row["shape"])
    if form not in PARTS or len(shape) != 2 or 0 in shape or dtype not in DTYPES:
        raise ValueError(f"'{name}' cannot be {form}")
    parts: list[Stored] = []
    for suffix, (kind, wanted) in parts_in(form, dtype, shape).items():
        part = spans.pop(name + suffix)
        if part.dtype != kind or (len(part.shape) != 1 if wanted is None else part.shape != wanted):
            raise ValueError(f"a part of '{name}' is {part.dtype} {part.shape}")
        if part.start % ALIGNMENT or part.nbytes % ALIGNMENT:
            raise ValueError(f"a part of '{name}' is not aligned")
        if parts and part.start != parts[-1].end:
            raise ValueError(f"parts of '{name}' are not adjacent")
        parts.append(part)
    start, end = (parts[0].start, parts[-1].end) if parts else (base, base)
    tensor = PackedTensor(path, dtype, shape, start, end)
    tensor.form, tensor.parts, tensor.checksums = form, parts, whole_numbers(row["crc32"])
    if len(tensor.checksums) != len(parts):
        raise ValueError(f"'{name}' lacks checksums")
    return tensor


def write_variant(
    path: Path, source: Checkpoint, weights: Iterable[tuple[str, Tensor]], about: Mapping[str, Any]
) -> None:
    """Write the changed weights of a variant of source to one file; a weight that only gained zeros becomes a mask.

    weights: (name, matrix) pairs, read one at a time, with names (model.layers.0.mlp.up_proj.weight), shapes and dtypes
    as in source.tensors. about: JSON that variant_about returns. The file is written completely or not at all, and
    replaces an old file. Raises PrunusError if a weight is not that of a Linear of source.
    """
    header = PackedHeader(str(source.folder), source.checksum(), dict(about))
    with disk_errors(path.parent, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        with packed_writer(path, header, source.tensors) as writer:
            for name, weight_OI in weights:
                stored = source.tensors.get(name)
                if stored is None or weight_OI.ndim != 2:
                    shape = tuple(weight_OI.shape)
                    raise PrunusError(f"'{name}' {shape} is not the weight of a Linear of {source.folder}")
                if (DTYPES.get(stored.dtype), stored.shape) != (weight_OI.dtype, tuple(weight_OI.shape)):
                    raise PrunusError(f"'{name}' has another shape or dtype than in {source.folder}")
                writer.add(name, weight_OI, stored.read())


def vectors_of(path: Path) -> Path:
    """The path of the safetensors file beside a variant's file that has its norms and biases, if they changed."""
    return path.with_suffix(".vectors.safetensors")


def read_variant(path: Path, source: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, value) of each tensor of a variant, also of those in vectors_of, one at a time, exact to the bit.

    Raises PrunusError at once if source is another model.
    """
    packed = read_packed(path)
    vectors = read_header(vectors_of(path)) if vectors_of(path).exists() else {}
    tensors = [*attach_source(packed, source).items(), *vectors.items()]
    return ((name, tensor.read()) for name, tensor in tensors)


def variant_about(path: Path) -> Mapping[str, Any]:
    """The `about` that was given to write_variant."""
    return read_packed(path).about


def attach_source(packed: PackedFile, source: Checkpoint) -> Mapping[str, PackedTensor]:
    """The tensors of a variant, connected to those of its source so that they can be read.

    Raises PrunusError if the source is another model, or lacks a tensor.
    """
    if source.checksum() != packed.checksum:
        raise PrunusError(f"{packed.path} belongs to another model ({packed.model}), not to {source.folder}")
    for name, tensor in packed.tensors.items():
        tensor.source = source.tensors.get(name)
        if tensor.source is None or (tensor.source.dtype, tensor.source.shape) != (tensor.dtype, tensor.shape):
            raise damaged(packed.path, f"its source has no '{name}' of this dtype and shape")
    return packed.tensors
