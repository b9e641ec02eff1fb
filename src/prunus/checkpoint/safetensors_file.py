"""Read and write safetensors files in pieces, so that a whole file is never in memory.

Layout: 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape, data_offsets), the data.
Format: https://huggingface.co/docs/safetensors. The safetensors package also reads lazily, but it cannot write in
pieces, nor say before reading whether a file is truncated.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate, groupby, pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from prunus.disk import atomic_file, reserve
from prunus.errors import PrunusError
from prunus.plain_data import parse_json, without_twins

CHUNK = 1 << 20  # bytes read at a time, which fit in a core's cache
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# DTYPES, and dtypes that can be read but not pruned: tables of token ids, 8-bit weights and their scales.
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
DTYPE_NAMES = {dtype: name for name, dtype in READABLE.items()}
# Bytes per number, by the format's name of the dtype.
ITEMSIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
# Limits of a header: the format's for its size, ours for the length of names and the number of dimensions.
_MAX_HEADER, _MAX_NAME, _MAX_DIMENSIONS = 100_000_000, 512, 8


class HeaderEntry(TypedDict):
    """A tensor in a header, in JSON. data_offsets: where its data begin and end after it."""

    dtype: str
    shape: Sequence[int]
    data_offsets: Sequence[int]


class Stored(NamedTuple):
    """A tensor in a file. dtype: the format's name (BF16); start, end: byte positions in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the data in pieces of up to CHUNK bytes; PrunusError if the file ends early."""
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
        """The tensor, in new memory; PrunusError if the file ends early.

        torch allocates the memory, because sums may depend on its alignment.
        """
        buffer = torch.empty(self.nbytes, dtype=torch.uint8)
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            if stream.readinto(buffer.numpy().data) != self.nbytes:
                raise PrunusError(f"{self.file} ended early while it was read; it is damaged or being changed")
        return buffer.view(READABLE[self.dtype]).view(self.shape)

    def read_rows(self, rows: Iterable[int]) -> Tensor:
        """Some rows of a matrix; only these rows are read."""
        width = self.nbytes // self.shape[0]
        table = np.memmap(self.file, np.uint8, mode="r", offset=self.start, shape=(self.shape[0], width))
        return torch.from_numpy(table[np.fromiter(rows, np.int64)]).view(READABLE[self.dtype])


class Computed(Stored):
    """A tensor that is computed as a whole from stored data when it is read. start, end: of the stored data."""

    @property
    def nbytes(self) -> int:
        """Size of the computed tensor in bytes."""
        return self.elements * ITEMSIZES[self.dtype]

    def pieces(self) -> Iterator[Tensor]:
        """Yield its values in order, in pieces."""
        yield self.read()

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield its bytes in pieces."""
        return (piece.flatten().view(torch.uint8).numpy().data for piece in self.pieces())

    def read_rows(self, rows: Iterable[int]) -> Tensor:
        """Some rows of a matrix; the whole matrix is computed."""
        return self.read()[torch.as_tensor(list(rows))]


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name; PrunusError if it is truncated, damaged or not a safetensors file."""
    size = path.stat().st_size
    try:
        text, base = header_text(path, size)
        header = parse_json(text, object_pairs_hook=without_twins)
        header.pop("__metadata__", None)
        tensors = {name: place_of(path, name, entry, base) for name, entry in header.items()}
        if tensors and (needed := max(stored.end for stored in tensors.values())) > size:
            raise PrunusError(f"{path} is truncated: {size} of {needed} bytes; fetch it again")
        check_cover(tensors.values(), base, size)
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PrunusError(f"{path} is damaged or not a safetensors file ({reason}); fetch it again") from error
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata (texts by name) in the header of a file that read_header has checked."""
    return parse_json(header_text(path, path.stat().st_size)[0]).get("__metadata__", {})


def header_text(path: Path, size: int) -> tuple[bytes, int]:
    """(header, position of the data) of a file of this size; ValueError or struct.error if there is no header."""
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("it is not a regular file")
    with path.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise ValueError("a pointer of Git LFS, which `git lfs pull` replaces by the file")
        (length,) = struct.unpack("<Q", start)
        if length > min(_MAX_HEADER, size - 8):
            raise ValueError("the header is longer than the file")
        return stream.read(length), 8 + length


def place_of(path: Path, name: str, entry: Mapping[str, Any], base: int) -> Stored:
    """The tensor that an entry of a header describes; ValueError if the entry is not consistent."""
    check_name(name)
    dtype, shape = entry["dtype"], whole_numbers(entry["shape"])
    start, end = whole_numbers(entry["data_offsets"])
    if not isinstance(dtype, str):
        raise ValueError(f"the dtype of '{name}' is not a text")
    if start > end or (dtype in ITEMSIZES and end - start != prod(shape) * ITEMSIZES[dtype]):
        raise ValueError(f"'{name}' has {end - start} bytes, which does not match its shape")
    return Stored(path, dtype, shape, base + start, base + end)


def check_cover(tensors: Iterable[Stored], base: int, size: int) -> None:
    """Raise ValueError unless tensors fill a file of this size from position base on, without gaps or overlap."""
    edges = sorted((stored.start, stored.end) for stored in tensors)
    if any(left[1] != right[0] for left, right in pairwise([(0, base), *edges, (size, size)])):
        raise ValueError("tensors do not fill the file")


def check_name(name: str) -> None:
    """Raise ValueError unless a name from a file is short and has only printable characters."""
    if not name.isprintable() or len(name) > _MAX_NAME:
        raise ValueError("a name is too long or cannot be printed")


def whole_numbers(value: object) -> tuple[int, ...]:
    """A short list of non-negative integers from a header, as a tuple; ValueError if it is anything else."""
    if not isinstance(value, list) or len(value) > _MAX_DIMENSIONS:
        raise ValueError("a short list of numbers was expected")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in value):
        raise ValueError("non-negative integers were expected")
    return tuple(value)


def entry_of(tensor: Tensor | Stored) -> Stored:
    """The entry of a tensor that is yet to be written: a Stored with its dtype, shape and size, but no file.

    tensor: may be on the device meta, or stored in a dtype that cannot be read.
    """
    dtype = tensor.dtype if isinstance(tensor, Stored) else DTYPE_NAMES[tensor.dtype]
    return Stored(Path(), dtype, tuple(tensor.shape), 0, tensor.nbytes)


def layout(
    path: Path, entries: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, Stored]]:
    """(first bytes of a file, places of its tensors by name); the same entries yield the same bytes.

    entries: the dtypes and shapes of the tensors; files and positions are ignored. metadata: texts for the header.
    """
    # The widest dtypes first, so that every tensor is aligned, as the format demands.
    order = sorted(entries, key=lambda name: (-(entries[name].nbytes // max(1, entries[name].elements)), name))
    spans = dict(zip(order, pairwise(accumulate((entries[name].nbytes for name in order), initial=0)), strict=True))
    header = {
        name: HeaderEntry(dtype=entries[name].dtype, shape=entries[name].shape, data_offsets=span)
        for name, span in spans.items()
    }
    about = {"__metadata__": {"format": "pt", **(metadata or {})}}
    text = json.dumps(about | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    places = {
        name: Stored(path, entries[name].dtype, entries[name].shape, base + begin, base + end)
        for name, (begin, end) in spans.items()
    }
    return struct.pack("<Q", len(text)) + text, places


def put(stream: BinaryIO, place: Stored, tensor: Tensor | Stored) -> None:
    """Write a tensor to its place in a file. A stored tensor is copied in pieces, bit for bit."""
    stream.seek(place.start)
    for piece in _data(tensor):
        stream.write(piece)


def _data(tensor: Tensor | Stored) -> Iterator[bytes | memoryview]:
    if isinstance(tensor, Stored):
        yield from tensor.chunks()
    elif tensor.numel():
        yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


class OpenFile:
    """A file with a place for every tensor of entries; they can be written in any order. It is closed between writes.

    Its disk space is allocated at once. fresh: whether the file was created; False if path already was such a file.
    """

    def __init__(self, path: Path, entries: Mapping[str, Stored]) -> None:
        head, self.places = layout(path, entries)
        self.path, size = path, max((place.end for place in self.places.values()), default=len(head))
        self.fresh = not path.exists() or path.stat().st_size != size
        if not self.fresh:
            with path.open("rb") as stream:
                self.fresh = stream.read(len(head)) != head
        if self.fresh:
            with path.open("wb") as stream:
                reserve(stream, size)
                stream.write(head)

    def write(self, tensors: Mapping[str, Tensor | Stored]) -> None:
        """Write tensors to their places; their dtypes and shapes must be those of the entries."""
        with self.path.open("r+b") as stream:
            for name, tensor in tensors.items():
                assert entry_of(tensor) == entry_of(self.places[name]), f"{name} does not match its entry"
                put(stream, self.places[name], tensor)


def write_file(
    path: Path,
    tensors: Mapping[str, Tensor | Stored],
    metadata: Mapping[str, str] | None = None,
    sync: bool = True,
) -> None:
    """Write a file completely or not at all, also after a power cut if sync; see atomic_file."""
    head, places = layout(path, {name: entry_of(tensor) for name, tensor in tensors.items()}, metadata)
    with atomic_file(path, sync) as stream:
        stream.write(head)
        for name, place in places.items():
            put(stream, place, tensors[name])


# Checksums that identify a model's weights, and the check for NaN and infinity, made in the same pass over the bytes.
# BLAKE3 (github.com/BLAKE3-team/BLAKE3-specs) is as hard to forge as SHA-256 and takes 40 % of its time on a Zen 4,
# even though the processor has instructions for SHA-256.

# The integer with the bits of infinity. The bits of NaN are larger integers; with a sign bit, both are the largest
# unsigned integers.
_INFINITY = {"F32": (np.int32, 0x7F800000), "F16": (np.int16, 0x7C00), "BF16": (np.int16, 0x7F80)}
_FINGERPRINT_BYTES = 4096  # per tensor


def checksum_of(tensors: Mapping[str, Stored]) -> str:
    """Stored: a model's checksum in hexadecimal: BLAKE3 over names, dtypes, shapes and digests of all tensors.

    It does not depend on how the weights are divided into files. Uses as many threads as torch. Raises PrunusError if a
    weight is NaN or infinite.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return _over(tensors, dict(zip(tensors, threads.map(digest, tensors, tensors.values()), strict=True)))


def digest_of(tensors: Mapping[str, Stored]) -> str:
    """Checksum of some tensors of a model. Their digests are cached, so checksum_of does not read them again."""
    return _over(tensors, {name: digest(name, stored) for name, stored in tensors.items()})


def fingerprint_of(tensors: Mapping[str, Stored]) -> str:
    """A fast substitute for checksum_of that reads only the first 4096 bytes of each tensor.

    It tells models apart but does not detect damage.
    """
    begins = {}
    for file, stored_there in groupby(sorted(tensors.items(), key=_file), key=_file):
        with file.open("rb") as stream:
            for name, stored in stored_there:
                stream.seek(stored.start)
                begins[name] = stream.read(min(_FINGERPRINT_BYTES, stored.nbytes))
    return _over(tensors, begins)


def digest(name: str, stored: Stored) -> bytes:
    """BLAKE3 (32 bytes) of a tensor's data.

    It is cached until the file changes, so that tensors can be read in any order before checksum_of. Raises PrunusError
    if a number is NaN or infinite.
    """
    status = stored.file.stat()
    return _digest(name, stored, (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=1 << 16)
def _digest(name: str, stored: Stored, _stamp: tuple[int, int]) -> bytes:
    hasher = blake3()
    for piece in stored.chunks():
        hasher.update(piece)
        if stored.dtype in _INFINITY and not _finite(piece, stored.dtype):
            raise PrunusError(f"{stored.file}: '{name}' holds NaN or infinity; this model cannot be used")
    return hasher.digest()


def forget() -> None:
    """Clear the cache of digests."""
    _digest.cache_clear()


def _file(named: tuple[str, Stored]) -> Path:
    return named[1].file


def _over(tensors: Mapping[str, Stored], contents: Mapping[str, bytes]) -> str:
    """BLAKE3 over names, dtypes, shapes and contents of tensors, in the order of their names; in hexadecimal."""
    total = blake3()
    for name, stored in sorted(tensors.items()):
        total.update(f"{name}\0{stored.dtype}\0{list(stored.shape)}\0".encode() + contents[name])
    return total.hexdigest()


def _finite(piece: bytes | memoryview, dtype: str) -> bool:
    integer, infinity = _INFINITY[dtype]
    numbers = np.frombuffer(piece, integer)
    negative = infinity - int(np.iinfo(integer).min)
    return bool(numbers.max() < infinity and numbers.view(f"u{numbers.itemsize}").max() < negative)
