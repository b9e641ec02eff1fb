"""Write a packed file tensor by tensor, with one of them in memory; the header is written last."""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunus.checkpoint.packed.bits import ALIGNMENT, pack_bits, pack_mask, round_up
from prunus.checkpoint.packed.tensor import PARTS, Form, bit_patterns, part_types, quantise
from prunus.checkpoint.safetensors_file import ITEMSIZES, Stored, dtype_name
from prunus.disk import atomic_file
from prunus.errors import PrunusError

VERSION = 1
INFO, DIGEST = "prunus_packed", "prunus_packed_sha256"
# Placeholder for the header's digest while that digest is computed.
NO_DIGEST = "0" * 64
_LARGEST_CRC = (1 << 32) - 1


class PackedWriter:
    """Appends tensors to a packed file; see packed_writer. Dense ones come last, so that all others are aligned."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.offset = stream, 0
        self.entries: dict[str, dict[str, Any]] = {}
        self.table: dict[str, dict[str, Any]] = {}

    def add(self, name: str, weight_OI: Tensor, source_OI: Tensor | None = None, *, int8: bool = False) -> Form:
        """Write a matrix in the smallest form that restores it bit by bit, or rounded with int8; returns the form.

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
        if int8:
            values_OI, scale_O = quantise(weight_OI)
            return self._add(name, weight_OI, "int8", (*pack_bits(bits_OI, values_OI), scale_O))
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


def _largest_tables(tensors: Mapping[str, Stored]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(entries, table) of the longest header that these tensors can have."""
    entries, table = {}, {}
    # Every number in the header is at most twice the bytes of all tensors, and so has no more digits than this one.
    largest = 10 ** len(str(2 * sum(stored.nbytes + ALIGNMENT for stored in tensors.values())))
    for name, stored in tensors.items():
        parts = ("", *PARTS["int8"]) if len(stored.shape) == 2 else ("",)
        shape = [largest] * len(stored.shape)
        for part in parts:
            entries[name + part] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [largest, largest]}
        table[name] = {"form": "packed", "dtype": "F8_E4M3", "shape": shape, "crc32": [_LARGEST_CRC] * len(parts)}
    return entries, table
