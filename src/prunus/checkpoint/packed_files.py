"""Packed checkpoints: their files are written, read and opened."""

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
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
    Damaged,
    Form,
    PackedTensor,
    bit_patterns,
    damaged,
    pack_bits,
    pack_mask,
    part_shapes,
    part_types,
    round_up,
)
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.safetensors_file import (
    DTYPES,
    ITEMSIZES,
    Stored,
    check_cover,
    check_name,
    dtype_name,
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
        self._begin(name, "dense", stored.dtype, stored.shape)
        self._put(name, name, stored.dtype, stored.shape, stored.chunks())

    def _add(self, name: str, weight_OI: Tensor, form: Form, parts: tuple[NDArray, ...]) -> Form:
        dtype = dtype_name(weight_OI)
        self._begin(name, form, dtype, tuple(weight_OI.shape))
        for part, kind, array in zip(PARTS[form], part_types(form, dtype), parts, strict=True):
            assert (self.stream.tell() % ALIGNMENT, array.nbytes % ALIGNMENT) == (0, 0)
            self._put(name, name + part, kind, array.shape, [array.reshape(-1).view(np.uint8).data])
        return form

    def _begin(self, name: str, form: Form, dtype: str, shape: tuple[int, ...]) -> None:
        if name in self.table or any(name + part in self.entries for part in PARTS[form]):
            raise PrunusError(
                f"the name '{name}' occurs twice, or is that of another tensor's part; it cannot be packed"
            )
        self.table[name] = {"form": form, "dtype": dtype, "shape": list(shape), "crc32": []}

    def _put(
        self, name: str, part: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[bytes | memoryview]
    ) -> None:
        checksum, start = 0, self.offset
        for piece in pieces:
            self.stream.write(piece)
            checksum = zlib.crc32(piece, checksum)
            self.offset += len(piece)
        self.entries[part] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, self.offset]}
        self.table[name]["crc32"].append(checksum)


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
        header, base, size = _read_header(path)
        info, table = _read_info(header)
        tensors = _place(path, header, table, base, size)
        if any(tensor.form not in FORMS[info["kind"]] for tensor in tensors.values()):
            raise Damaged(f"a tensor has a form that a {info['kind']} cannot have")
        if info["lossy"] != any(tensor.form == "int8" for tensor in tensors.values()):
            raise Damaged("lossy does not match the forms of the tensors")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise damaged(path, " ".join(str(error).split()) or type(error).__name__) from error
    return PackedFile(path, info, tensors)


def _read_header(path: Path) -> tuple[Header, int, int]:
    """(header, position of the data, size of the file). Raises Damaged if the header's digest does not match."""
    size = path.stat().st_size
    text, base = header_text(path, size)
    header = json.loads(text)
    digest = header["__metadata__"][DIGEST]
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise Damaged("no digest of the header")
    if hashlib.sha256(text.replace(digest.encode(), NO_DIGEST.encode(), 1)).hexdigest() != digest:
        raise Damaged("the digest of the header does not match")
    return header, base, size


def _read_info(header: Header) -> tuple[Header, Mapping[str, Any]]:
    """(info, table of tensors) from the header's metadata, which is removed from header."""
    info = json.loads(header.pop("__metadata__")[INFO])
    if info["version"] != VERSION:
        raise Damaged(f"format version {info['version']}; this version of prunus reads only {VERSION}")
    model = info["model"]
    if info["kind"] not in FORMS or not isinstance(info["about"], dict):
        raise Damaged("kind or about is not valid")
    if not isinstance(info["lossy"], bool) or not isinstance(model["name"], str):
        raise Damaged("lossy or name is not valid")
    check_name(model["name"])
    if not re.fullmatch("[0-9a-f]{64}", model["checksum"]):
        raise Damaged("the checksum of the model is not valid")
    return info, info.pop("tensors")


def _place(
    path: Path, header: Mapping[str, Any], table: Mapping[str, Any], base: int, size: int
) -> dict[str, PackedTensor]:
    """The tensors of the table by name.

    Raises ValueError unless their parts fill the file, have the sizes that their shapes need, and belong to tensors.
    """
    spans = {name: place_of(path, name, entry, base) for name, entry in header.items()}
    check_cover(spans.values(), base, size)
    tensors = {}
    for name, row in table.items():
        check_name(name)
        form, dtype, shape = row["form"], row["dtype"], whole_numbers(row["shape"])
        if dtype not in ITEMSIZES:
            raise Damaged(f"the dtype of '{name}' is unknown")
        if form not in PARTS or (form != "dense" and (len(shape) != 2 or 0 in shape or dtype not in DTYPES)):
            raise Damaged(f"'{name}' cannot be {form}")
        parts = [spans.pop(name + part) for part in PARTS[form]]
        _check_parts(name, form, dtype, shape, parts)
        start, end = (parts[0].start, parts[-1].end) if parts else (base, base)
        tensor = tensors[name] = PackedTensor(path, dtype, shape, start, end)
        tensor.form, tensor.checksums = form, whole_numbers(row["crc32"])
        if len(tensor.checksums) != len(parts):
            raise Damaged(f"'{name}' lacks checksums")
    if spans:
        raise Damaged(f"'{next(iter(spans))}' belongs to no tensor")
    return tensors


def _check_parts(name: str, form: Form, dtype: str, shape: tuple[int, ...], parts: list[Stored]) -> None:
    """Raise Damaged unless the parts have the dtypes and shapes of the form, are adjacent, and (not dense) aligned."""
    for part, kind, wanted in zip(parts, part_types(form, dtype), part_shapes(form, shape), strict=True):
        fits = len(part.shape) == 1 if wanted is None else part.shape == wanted
        if part.dtype != kind or not fits:
            raise Damaged(f"a part of '{name}' is {part.dtype} {part.shape}")
        if form != "dense" and (part.start % ALIGNMENT or part.nbytes % ALIGNMENT):
            raise Damaged(f"a part of '{name}' is not aligned")
    if any(left.end != right.start for left, right in pairwise(parts)):
        raise Damaged(f"parts of '{name}' are not adjacent")


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


def open_checkpoint(folder: Path) -> Checkpoint:
    """The Checkpoint of a model folder, packed or not."""
    return PackedCheckpoint(folder) if is_packed(folder) else Checkpoint(folder)


def attach_source(packed: PackedFile, source: Checkpoint) -> Mapping[str, PackedTensor]:
    """The tensors of a variant, connected to those of its source so that they can be read.

    The caller has checked the source's checksum. Raises PrunusError if the source lacks a tensor.
    """
    for name, tensor in packed.tensors.items():
        tensor.dense = source.tensors.get(name)
        if tensor.dense is None or (tensor.dense.dtype, tensor.dense.shape) != (tensor.dtype, tensor.shape):
            raise damaged(packed.path, f"its source has no '{name}' of this dtype and shape")
    return packed.tensors


def check_source(packed: PackedFile, source: Checkpoint) -> None:
    """Raise PrunusError unless source is the model to which a variant belongs."""
    model = packed.info["model"]
    if source.checksum() != model["checksum"]:
        raise PrunusError(f"{packed.path} belongs to another model ({model['name']}), not to {source.folder}")


def open_source(packed: PackedFile, given: str | Path | None) -> Checkpoint:
    """The dense model to which a variant belongs: `given`, else the one that the file names; PrunusError if neither."""
    name = packed.info["model"]["name"]
    try:
        source = Checkpoint(resolve(name if given is None else given))
    except PrunusError as error:
        if given is not None:
            raise
        raise PrunusError(f"{packed.path} holds only masks and needs the model '{name}': {error} (--dense)") from error
    check_source(packed, source)
    return source
