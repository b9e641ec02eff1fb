"""The safetensors file format, read and written in pieces, so that memory never holds a whole file.

Layout: 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape, data_offsets), the data.
Format: https://huggingface.co/docs/safetensors. The safetensors package reads lazily too, but cannot write piece by
piece, nor say before reading whether a file was cut off.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunus.disk import atomic_file, take_room
from prunus.errors import PrunusError

CHUNK = 1 << 20  # what a core's cache holds
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What can be read, but not pruned: tables of token ids, weights of 8 bits and their scales.
READABLE = {
    **DTYPES,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bytes of a number by the format's name of its dtype.
ITEMSIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
# What a header may at most hold; the format's own limit, and ours for names and dimensions.
_MAX_HEADER, _MAX_NAME, _MAX_DIMENSIONS = 100_000_000, 512, 8


class Stored(NamedTuple):
    """Where a tensor lies. dtype: the format's name (BF16); start, end: byte positions in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """The data, piece by piece."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            left = self.nbytes
            while left:
                piece = stream.read(min(CHUNK, left))
                if not piece:
                    raise PrunusError(f"{self.file} ended early while it was read; it is damaged or being changed")
                left -= len(piece)
                yield piece

    def read(self) -> Tensor:
        """The tensor, in memory of its own, where torch would have put it: sums may depend on how that is aligned."""
        buffer = torch.empty(self.nbytes, dtype=torch.uint8)
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            if stream.readinto(buffer.numpy().data) != self.nbytes:
                raise PrunusError(f"{self.file} ended early while it was read; it is damaged or being changed")
        return buffer.view(READABLE[self.dtype]).view(self.shape)

    def read_rows(self, rows: Iterable[int]) -> Tensor:
        """Some rows of a matrix; only these are read."""
        width = self.nbytes // self.shape[0]
        table = np.memmap(self.file, np.uint8, mode="r", offset=self.start, shape=(self.shape[0], width))
        return torch.from_numpy(table[np.fromiter(rows, np.int64)]).view(READABLE[self.dtype])


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file. A file that is cut off, damaged or no safetensors file raises PrunusError."""
    size = path.stat().st_size
    try:
        text, base = header_text(path, size)
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: place_of(path, name, entry, base) for name, entry in header.items()}
        if tensors and (needed := max(stored.end for stored in tensors.values())) > size:
            raise PrunusError(f"{path} is cut off: {size} of {needed} bytes; fetch it again")
        check_cover(tensors.values(), base, size)
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PrunusError(f"{path} is damaged or no safetensors file ({reason}); fetch it again") from error
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a file that read_header has read."""
    return json.loads(header_text(path, path.stat().st_size)[0]).get("__metadata__", {})


def header_text(path: Path, size: int) -> tuple[bytes, int]:
    """The header of a file of this size, and where its data begin; ValueError or struct.error where there is none."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(_MAX_HEADER, size - 8):
            raise ValueError("header longer than the file")
        return stream.read(length), 8 + length


def place_of(path: Path, name: str, entry: Mapping[str, Any], base: int) -> Stored:
    """Where a tensor lies by its entry in a header, which is not believed: ValueError unless the entry fits itself."""
    check_name(name)
    dtype, shape = entry["dtype"], whole_numbers(entry["shape"])
    start, end = whole_numbers(entry["data_offsets"])
    if not isinstance(dtype, str):
        raise ValueError(f"the dtype of '{name}' is no text")
    if start > end or (dtype in ITEMSIZES and end - start != prod(shape) * ITEMSIZES[dtype]):
        raise ValueError(f"'{name}' has {end - start} bytes, which is not what its shape needs")
    return Stored(path, dtype, shape, base + start, base + end)


def check_cover(tensors: Iterable[Stored], base: int, size: int) -> None:
    """ValueError unless tensors fill a file of this size from base on, without gaps and without overlap."""
    edges = sorted((stored.start, stored.end) for stored in tensors)
    if any(left[1] != right[0] for left, right in pairwise([(0, base), *edges, (size, size)])):
        raise ValueError("tensors do not fill the file")


def check_name(name: str) -> None:
    """ValueError unless a name from a file can be printed as it is, and used as a path."""
    if not name.isprintable() or len(name) > _MAX_NAME:
        raise ValueError("a name is too long or cannot be printed")


def whole_numbers(found: Any) -> tuple[int, ...]:
    """A short list from a header, of whole numbers that are not negative; else ValueError."""
    if not isinstance(found, list) or len(found) > _MAX_DIMENSIONS:
        raise ValueError("a list of a few numbers expected")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in found):
        raise ValueError("whole numbers expected")
    return tuple(found)


def dtype_name(tensor: Tensor) -> str:
    """The format's name of a tensor's dtype."""
    return _NAMES[tensor.dtype]


class Entry(NamedTuple):
    """What is to be known of a tensor before it is there. dtype: the format's name, be it one that we cannot read."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def layout(
    path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, Stored]]:
    """How a file of these tensors begins, and where in it each will lie. Same entries, same bytes.

    metadata: text in the header.
    """
    # Widest element first keeps every tensor aligned, as the format asks.
    order = sorted(entries, key=lambda name: (-_itemsize(entries[name]), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    spans: dict[str, tuple[int, int]] = {}
    offset = 0
    for name in order:
        entry = entries[name]
        spans[name] = offset, offset + entry.nbytes
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": list(spans[name])}
        offset = spans[name][1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    base = len(head)
    places = {
        name: Stored(path, entries[name].dtype, entries[name].shape, base + begin, base + end)
        for name, (begin, end) in spans.items()
    }
    return head, places


def entry_of(tensor: Tensor | Stored) -> Entry:
    """What a header says of a tensor."""
    return Entry(tensor.dtype if isinstance(tensor, Stored) else dtype_name(tensor), tuple(tensor.shape), tensor.nbytes)


def put(stream: BinaryIO, place: Stored, tensor: Tensor | Stored) -> None:
    """Write a tensor to its place in a file. A stored one is copied bit for bit without being loaded."""
    stream.seek(place.start)
    for piece in _data(tensor):
        stream.write(piece)


class OpenFile:
    """A file with a place for every tensor of entries, which are written in any order; closed between writes.

    Its room on the disk is taken at once. fresh: whether it had to be made; else path was such a file already.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        head, self.places = layout(path, entries)
        self.path, size = path, max((place.end for place in self.places.values()), default=len(head))
        self.fresh = not path.exists() or path.stat().st_size != size
        if not self.fresh:
            with path.open("rb") as stream:
                self.fresh = stream.read(len(head)) != head
        if self.fresh:
            with path.open("wb") as stream:
                take_room(stream, size)
                stream.write(head)

    def write(self, tensors: Mapping[str, Tensor | Stored]) -> None:
        """Fill places; the tensors must be of the dtypes and shapes that were announced."""
        with self.path.open("r+b") as stream:
            for name, tensor in tensors.items():
                assert entry_of(tensor) == entry_of(self.places[name]), f"{name} is not what was announced"
                put(stream, self.places[name], tensor)


def write_file(
    path: Path,
    tensors: Mapping[str, Tensor | Stored],
    metadata: Mapping[str, str] | None = None,
    sync: bool = True,
) -> None:
    """Write path so that it is there whole or not at all, also after a power cut if sync; see atomic_file."""
    head, places = layout(path, {name: entry_of(tensor) for name, tensor in tensors.items()}, metadata)
    with atomic_file(path, sync) as stream:
        stream.write(head)
        for name, place in places.items():
            put(stream, place, tensors[name])


def _itemsize(entry: Entry) -> int:
    return entry.nbytes // max(1, prod(entry.shape))


def _data(tensor: Tensor | Stored) -> Iterator[bytes | memoryview]:
    if isinstance(tensor, Stored):
        yield from tensor.chunks()
    elif tensor.numel():
        yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
