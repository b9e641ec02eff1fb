"""Checksums that identify a model's weights, and the check for NaN and infinity, made in the same pass over the bytes.

BLAKE3 (github.com/BLAKE3-team/BLAKE3-specs) is as hard to forge as SHA-256 and takes 40 % of its time on a Zen 4, even
though the processor has instructions for SHA-256.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from prunus.checkpoint.safetensors_file import CHUNK, Stored
from prunus.errors import PrunusError

# The integer with the bits of infinity. The bits of NaN are larger integers; with a sign bit, both are the largest
# unsigned integers.
_INFINITY = {"F32": (np.int32, 0x7F800000), "F16": (np.int16, 0x7C00), "BF16": (np.int16, 0x7F80)}
_FINGERPRINT_BYTES = 4096  # per tensor
# Digests of tensors by name, place in the file, and the file's size and modification time.
_MOST_DIGESTS = 1 << 14
_digests: dict[tuple[str, Stored, tuple[int, int]], bytes] = {}


def checksum_of(tensors: Mapping[str, Stored]) -> str:
    """The checksum of a model, in hexadecimal: BLAKE3 over names, dtypes, shapes and digests of all tensors.

    It does not depend on how the weights are divided into files. Uses as many threads as torch. Raises PrunusError if a
    weight is NaN or infinite.
    """
    files = {stored.file for stored in tensors.values()}
    return _checksum(tuple(sorted(tensors.items())), tuple(sorted((str(file), *_stamp(file)) for file in files)))


def digest_of(tensors: Mapping[str, Stored]) -> str:
    """The same for some tensors of a model. Their digests are cached, so checksum_of does not read them again."""
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


def read_checked(tensors: Mapping[str, Stored]) -> tuple[dict[str, Tensor], str]:
    """(tensors in memory, their digest_of), reading each tensor once. Raises PrunusError for NaN or infinity."""
    read = {name: stored.read() for name, stored in tensors.items()}
    for name, tensor in read.items():
        digest(name, tensors[name], _pieces(tensor))
    return read, digest_of(tensors)


def digest(name: str, stored: Stored, pieces: Iterable[bytes | memoryview] | None = None) -> bytes:
    """BLAKE3 (32 bytes) of a tensor's data, which is read from its file unless given as pieces.

    It is cached until the file changes, so that tensors can be read in any order before checksum_of. Raises PrunusError
    if a number is NaN or infinite.
    """
    key = _key(name, stored)
    if (known := _digests.get(key)) is not None:
        return known
    found = blake3()
    for piece in stored.chunks() if pieces is None else pieces:
        found.update(piece)
        if stored.dtype in _INFINITY and not _finite(piece, stored.dtype):
            raise PrunusError(f"{stored.file}: '{name}' holds NaN or infinity; this model cannot be used")
    if len(_digests) >= _MOST_DIGESTS:
        _digests.clear()
    _digests[key] = found.digest()
    return found.digest()


def forget() -> None:
    """Clear the caches of digests and checksums."""
    _checksum.cache_clear()
    _digests.clear()


def _file(named: tuple[str, Stored]) -> Path:
    return named[1].file


def _key(name: str, stored: Stored) -> tuple[str, Stored, tuple[int, int]]:
    return name, stored, _stamp(stored.file)


def _stamp(file: Path) -> tuple[int, int]:
    """(size, modification time) of a file, so that a changed file has another key in the caches."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)
def _checksum(tensors: tuple[tuple[str, Stored], ...], _stamps: tuple[tuple[str, int, int], ...]) -> str:
    unknown = [(name, stored) for name, stored in tensors if _key(name, stored) not in _digests]
    if unknown:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(lambda one: digest(*one), unknown))
    return digest_of(dict(tensors))


def _over(tensors: Mapping[str, Stored], contents: Mapping[str, bytes]) -> str:
    """BLAKE3 over names, dtypes, shapes and contents of tensors, in the order of their names; in hexadecimal."""
    total = blake3()
    for name, stored in sorted(tensors.items()):
        total.update(f"{name}\0{stored.dtype}\0{list(stored.shape)}\0".encode() + contents[name])
    return total.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, in pieces like those of Stored.chunks."""
    data = tensor.view(-1).view(torch.uint8).numpy().data
    return (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))


def _finite(piece: bytes | memoryview, dtype: str) -> bool:
    integer, infinity = _INFINITY[dtype]
    numbers = np.frombuffer(piece, integer)
    negative = infinity - int(np.iinfo(integer).min)
    return bool(numbers.max() < infinity and numbers.view(f"u{numbers.itemsize}").max() < negative)
