"""What tells one model's weights from another's, and where NaN among them is noticed: all of them pass by here.

BLAKE3 (github.com/BLAKE3-team/BLAKE3-specs) is as hard to forge as SHA-256; on a Zen 4 it
takes 40 % of the time, beside the processor's own instructions for the other.
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

# Infinity as an integer. NaN lies above, and with a sign bit both lie at the top of integers without sign.
_INFINITY = {"F32": (np.int32, 0x7F800000), "F16": (np.int16, 0x7C00), "BF16": (np.int16, 0x7F80)}
_GLANCE = 4096  # bytes
# Digests of tensors by name, place, and their file's size and time of change.
_REMEMBERED = 1 << 14
_digests: dict[tuple[str, Stored, tuple[int, int]], bytes] = {}


def checksum_of(tensors: Mapping[str, Stored]) -> str:
    """BLAKE3 over names, dtypes, shapes and digests of all weights: the same model, the same text, however sharded.

    NaN or infinity among them raises PrunusError. Takes as many threads as torch does.
    """
    files = {stored.file for stored in tensors.values()}
    return _checksum(tuple(sorted(tensors.items())), tuple(sorted((str(file), *_stamp(file)) for file in files)))


def digest_of(tensors: Mapping[str, Stored]) -> str:
    """The same of a part of a model, whose share of checksum_of is then done."""
    return _over(tensors, {name: digest(name, stored) for name, stored in tensors.items()})


def fingerprint_of(tensors: Mapping[str, Stored]) -> str:
    """Like checksum_of, at a glance: of each tensor only its first bytes. Tells models apart, does not find damage."""
    begins = {}
    for file, stored_there in groupby(sorted(tensors.items(), key=_file), key=_file):
        with file.open("rb") as stream:
            for name, stored in stored_there:
                stream.seek(stored.start)
                begins[name] = stream.read(min(_GLANCE, stored.nbytes))
    return _over(tensors, begins)


def read_checked(tensors: Mapping[str, Stored]) -> tuple[dict[str, Tensor], str]:
    """Tensors in memory, and what digest_of says of them; they are read once for both."""
    read = {name: stored.read() for name, stored in tensors.items()}
    for name, tensor in read.items():
        digest(name, tensors[name], _pieces(tensor))
    return read, digest_of(tensors)


def digest(name: str, stored: Stored, pieces: Iterable[bytes | memoryview] | None = None) -> bytes:
    """BLAKE3 of a tensor's bytes, which are read unless they are given. NaN or infinity among them raises PrunusError.

    Remembered until its file changes, so it can be had a tensor at a time, and in any order, before checksum_of.
    """
    key = _key(name, stored)
    if (known := _digests.get(key)) is not None:
        return known
    found = blake3()
    for piece in stored.chunks() if pieces is None else pieces:
        found.update(piece)
        if stored.dtype in _INFINITY and not _finite(piece, stored.dtype):
            raise PrunusError(f"{stored.file}: '{name}' holds NaN or infinity; this model cannot be used")
    if len(_digests) >= _REMEMBERED:
        _digests.clear()
    _digests[key] = found.digest()
    return found.digest()


def forget() -> None:
    """Forget what was remembered, as if this process had just begun."""
    _checksum.cache_clear()
    _digests.clear()


def _file(named: tuple[str, Stored]) -> Path:
    return named[1].file


def _key(name: str, stored: Stored) -> tuple[str, Stored, tuple[int, int]]:
    return name, stored, _stamp(stored.file)


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of change: with them a changed file is another entry of what is remembered."""
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
    total = blake3()
    for name, stored in sorted(tensors.items()):
        total.update(f"{name}\0{stored.dtype}\0{list(stored.shape)}\0".encode() + contents[name])
    return total.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, as Stored.chunks has them."""
    data = tensor.view(-1).view(torch.uint8).numpy().data
    return (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))


def _finite(piece: bytes | memoryview, dtype: str) -> bool:
    integer, infinity = _INFINITY[dtype]
    numbers = np.frombuffer(piece, integer)
    negative = infinity - int(np.iinfo(integer).min)
    return bool(numbers.max() < infinity and numbers.view(f"u{numbers.itemsize}").max() < negative)
