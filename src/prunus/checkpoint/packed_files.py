"""Packed checkpoints: their files are written, read and opened."""

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import PACKED_FILE, is_packed
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
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.safetensors_file import (
    DTYPE_NAMES,
    DTYPES,
    ITEMSIZES,
    Stored,
    check_cover,
    check_name,
    header_text,
    place_of,
    whole_numbers,
)
from prunus.disk import atomic_file
from prunus.errors import PrunusError

# Write a packed file tensor by tensor, with one of them in memory; the header is written last.

VERSION = 1
INFO, DIGEST = "prunus_packed", "prunus_packed_sha256"
Header = dict[str, Any]  # JSON of the header, or a part of it
Part = tuple[tuple[int, ...], Iterable[bytes | memoryview]]  # the shape and the data of a part, in pieces
# Placeholder for the header's digest while that digest is computed.
NO_DIGEST = "0" * 64
_LARGEST_CRC = (1 << 32) - 1


class PackedWriter:
    """Appends tensors to a packed file; see packed_writer. Dense ones come last, so that all others are aligned."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.offset = stream, 0
        self.entries: Header = {}
        self.table: Header = {}

    def add(self, name: str, weight_OI: Tensor, source_OI: Tensor | None = None) -> Form:
        """Write a matrix in the smallest form that restores it bit by bit; returns the form.

        source_OI: the same tensor of the source, if the file is a variant.
        """
        bits_OI = bit_patterns(weight_OI)
        if source_OI is not None:
            unchanged_OI = bits_OI == bit_patterns(source_OI)
            if unchanged_OI.all():
                return self._add(name, weight_OI, "source", ())
            unchanged_OI |= bits_OI == 0
            if unchanged_OI.all():
                return self._add(name, weight_OI, "mask", (pack_mask(bits_OI),))
        return self._add(name, weight_OI, "packed", pack_bits(bits_OI))

    def add_dense(self, name: str, stored: Stored) -> None:
        """Copy a stored tensor in dense form."""
        if stored.dtype not in ITEMSIZES:
            raise PrunusError(f"{stored.file}: '{name}' is {stored.dtype}, which cannot be packed")
        self._put(name, "dense", stored.dtype, stored.shape, [(stored.shape, stored.chunks())])

    def _add(self, name: str, weight_OI: Tensor, form: Form, arrays: tuple[NDArray, ...]) -> Form:
        assert not any(array.nbytes % ALIGNMENT for array in arrays)
        parts = [(array.shape, [array.reshape(-1).view(np.uint8).data]) for array in arrays]
        self._put(name, form, DTYPE_NAMES[weight_OI.dtype], tuple(weight_OI.shape), parts)
        return form

    def _put(self, name: str, form: Form, dtype: str, shape: tuple[int, ...], parts: Iterable[Part]) -> None:
        if name in self.table or any(name + part in self.entries for part in PARTS[form]):
            raise PrunusError(
                f"the name '{name}' occurs twice, or is that of another tensor's part; it cannot be packed"
            )
        checksums = []
        for (part, (kind, _)), (own, pieces) in zip(parts_in(form, dtype, shape).items(), parts, strict=True):
            checksum, start = 0, self.offset
            for piece in pieces:
                self.stream.write(piece)
                checksum = zlib.crc32(piece, checksum)
                self.offset += len(piece)
            self.entries[name + part] = {"dtype": kind, "shape": list(own), "data_offsets": [start, self.offset]}
            checksums.append(checksum)
        self.table[name] = {"form": form, "dtype": dtype, "shape": list(shape), "crc32": checksums}


@contextmanager
def packed_writer(path: Path, info: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Iterator[PackedWriter]:
    """A PackedWriter for a temporary file, which is renamed to path when it is complete and flushed to disk.

    info: JSON for the header. tensors: all tensors that may be added, from which the size of the header is computed.
    """
    size = round_up(8 + len(_header(info, *_largest_tables(tensors), 0)), ALIGNMENT) - 8
    with atomic_file(path) as stream:
        stream.write(bytes(8 + size))
        writer = PackedWriter(stream)
        yield writer
        stream.seek(0)
        stream.write(struct.pack("<Q", size) + _header(info, writer.entries, writer.table, size))


def _header(info: Mapping[str, Any], entries: Mapping[str, Any], table: Mapping[str, Any], size: int) -> bytes:
    """The header with its digest, padded to size bytes; size 0: not padded."""
    described = json.dumps({"version": VERSION, **info, "tensors": table}, separators=(",", ":"))
    metadata = {"format": "prunus packed", DIGEST: NO_DIGEST, INFO: described}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode().ljust(size)
    assert size in (0, len(text))
    return text.replace(NO_DIGEST.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def _largest_tables(tensors: Mapping[str, Stored]) -> tuple[Header, Header]:
    """(entries, table) of the longest header that these tensors can have."""
    entries, table = {}, {}
    # Every number in the header is at most twice the bytes of all tensors, and so has no more digits than this one.
    largest = 10 ** len(str(2 * sum(stored.nbytes + ALIGNMENT for stored in tensors.values())))
    for name, stored in tensors.items():
        parts = ("", *PARTS["packed"]) if len(stored.shape) == 2 else ("",)
        shape = [largest] * len(stored.shape)
        for part in parts:
            entries[name + part] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [largest, largest]}
        table[name] = {"form": "packed", "dtype": "F8_E4M3", "shape": shape, "crc32": [_LARGEST_CRC] * len(parts)}
    return entries, table


# Open a packed file without trusting it: the header is checked for consistency and against the file's size.
# Tensors are not read here; their data are checked when they are read.

# The forms of tensors that each kind of file may have.
FORMS = {"checkpoint": ("dense", "packed", "int8"), "variant": ("source", "mask", "packed")}


class PackedFile(NamedTuple):
    """An opened packed file. info: the header's entries other than tensors: kind, model, lossy, about."""

    path: Path
    info: Header
    tensors: dict[str, PackedTensor]


def read_packed(path: Path) -> PackedFile:
    """The PackedFile at path; PrunusError if it is missing or its header is inconsistent."""
    if not path.is_file():
        raise PrunusError(f"{path} does not exist; give a packed file")
    try:
        size = path.stat().st_size
        text, base = header_text(path, size)
        header = json.loads(text)
        info, table = _read_info(header.pop("__metadata__"), text)
        spans = {name: place_of(path, name, entry, base) for name, entry in header.items()}
        check_cover(spans.values(), base, size)
        tensors = {name: _tensor(path, name, row, spans, base) for name, row in table.items()}
        if spans:
            raise ValueError(f"'{next(iter(spans))}' belongs to no tensor")
        if any(tensor.form not in FORMS[info["kind"]] for tensor in tensors.values()):
            raise ValueError(f"a tensor has a form that a {info['kind']} cannot have")
        if info["lossy"] != any(tensor.form == "int8" for tensor in tensors.values()):
            raise ValueError("lossy does not match the forms of the tensors")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise damaged(path, " ".join(str(error).split()) or type(error).__name__) from error
    return PackedFile(path, info, tensors)


def _read_info(metadata: Mapping[str, Any], header: bytes) -> tuple[Header, Mapping[str, Any]]:
    """(info, table of tensors) from the metadata of a header. Raises ValueError unless its digest matches."""
    digest = metadata[DIGEST]
    if hashlib.sha256(header.replace(digest.encode(), NO_DIGEST.encode(), 1)).hexdigest() != digest:
        raise ValueError("the digest of the header does not match")
    info = json.loads(metadata[INFO])
    if info["version"] != VERSION:
        raise ValueError(f"format version {info['version']}; this version of prunus reads only {VERSION}")
    model = info["model"]
    if info["kind"] not in FORMS or not isinstance(info["about"], dict):
        raise ValueError("kind or about is not valid")
    if not isinstance(info["lossy"], bool) or not isinstance(model["name"], str):
        raise ValueError("lossy or name is not valid")
    check_name(model["name"])
    if not re.fullmatch("[0-9a-f]{64}", model["checksum"]):
        raise ValueError("the checksum of the model is not valid")
    return info, info.pop("tensors")


def _tensor(path: Path, name: str, row: Mapping[str, Any], spans: dict[str, Stored], base: int) -> PackedTensor:
    """The tensor of a row of the table. spans: what the header says of all parts, from which its own are removed.

    Raises ValueError unless the parts have the dtypes and shapes of the form, are adjacent, and (not dense) aligned.
    """
    check_name(name)
    form, dtype, shape = row["form"], row["dtype"], whole_numbers(row["shape"])
    if dtype not in ITEMSIZES:
        raise ValueError(f"the dtype of '{name}' is unknown")
    if form not in PARTS or (form != "dense" and (len(shape) != 2 or 0 in shape or dtype not in DTYPES)):
        raise ValueError(f"'{name}' cannot be {form}")
    parts: list[Stored] = []
    for suffix, (kind, wanted) in parts_in(form, dtype, shape).items():
        part = spans.pop(name + suffix)
        if part.dtype != kind or (len(part.shape) != 1 if wanted is None else part.shape != wanted):
            raise ValueError(f"a part of '{name}' is {part.dtype} {part.shape}")
        if form != "dense" and (part.start % ALIGNMENT or part.nbytes % ALIGNMENT):
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


# Open a packed folder like any other checkpoint, and find the dense source that a file of masks needs.


class PackedCheckpoint(Checkpoint):
    """A Checkpoint of a packed folder, whose tensors are unpacked when they are read.

    source: for a file of masks only, the dense model to which they belong; by default the one that the file names.
    lossy: whether some values are rounded to 8 bits. Raises PrunusError for a folder that is not packed or is damaged,
    and for a source of another checksum.
    """

    def __init__(self, folder: Path | str, source: str | Path | None = None) -> None:
        if not is_packed(Path(folder)):
            raise PrunusError(f"{folder} is not a packed checkpoint; `prunus pack` makes one")
        self.packed = read_packed(Path(folder) / PACKED_FILE)
        self.masks_only = self.packed.info["kind"] == "variant"
        self.lossy: bool = self.packed.info["lossy"]
        if source is not None and not self.masks_only:
            raise PrunusError(f"{folder} holds all of its weights; leave the source out")
        self.dense = open_source(self.packed, source) if self.masks_only else None
        super().__init__(folder)

    def _find_tensors(self) -> Mapping[str, Stored]:
        if self.dense is None:
            return self.packed.tensors
        return {**self.dense.tensors, **attach_source(self.packed, self.dense)}


def open_checkpoint(folder: Path, source: str | Path | None = None) -> Checkpoint:
    """The Checkpoint of a model folder, packed or not. source: as for PackedCheckpoint."""
    return PackedCheckpoint(folder, source) if is_packed(folder) else Checkpoint(folder)


def attach_source(packed: PackedFile, source: Checkpoint) -> Mapping[str, PackedTensor]:
    """The tensors of a variant, connected to those of its source so that they can be read.

    Raises PrunusError if the source is another model, or lacks a tensor.
    """
    model = packed.info["model"]
    if source.checksum() != model["checksum"]:
        raise PrunusError(f"{packed.path} belongs to another model ({model['name']}), not to {source.folder}")
    for name, tensor in packed.tensors.items():
        tensor.source = source.tensors.get(name)
        if tensor.source is None or (tensor.source.dtype, tensor.source.shape) != (tensor.dtype, tensor.shape):
            raise damaged(packed.path, f"its source has no '{name}' of this dtype and shape")
    return packed.tensors


def open_source(packed: PackedFile, given: str | Path | None) -> Checkpoint:
    """The dense model of a variant: `given`, else the one that the file names; PrunusError if it cannot be opened."""
    name = packed.info["model"]["name"]
    try:
        return Checkpoint(resolve(name if given is None else given))
    except PrunusError as error:
        if given is not None:
            raise
        raise PrunusError(f"{packed.path} holds only masks and needs the model '{name}': {error} (--dense)") from error
