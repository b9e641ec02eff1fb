"""What tells one model's weights from another's, and where NaN among them is noticed: all of them pass by here.

BLAKE3 (github.com/BLAKE3-team/BLAKE3-specs) is as hard to forge as SHA-256; on a Zen 4 it
takes 40 % of the time, beside the processor's own instructions for the other.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3

from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError

# Exponent bits; all of them set means infinity or NaN.
_EXPONENT = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
_GLANCE = 4096  # bytes


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
    for name, stored in tensors.items():
        with stored.file.open("rb") as stream:
            stream.seek(stored.start)
            begins[name] = stream.read(min(_GLANCE, stored.end - stored.start))
    return _over(tensors, begins)


def digest(name: str, stored: Stored) -> bytes:
    """BLAKE3 of a tensor's bytes. NaN or infinity among them raises PrunusError.

    Remembered until its file changes, so it can be had a tensor at a time, and in any order, before checksum_of.
    """
    return _digest(name, stored, _stamp(stored.file))


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of change: with them a changed file is another entry of the caches below."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)
def _checksum(tensors: tuple[tuple[str, Stored], ...], _stamps: tuple[tuple[str, int, int], ...]) -> str:
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(lambda one: digest(*one), tensors))
    return digest_of(dict(tensors))


@lru_cache(maxsize=1 << 14)
def _digest(name: str, stored: Stored, _stamp: tuple[int, int]) -> bytes:
    found = blake3()
    for piece in stored.chunks():
        found.update(piece)
        if stored.dtype in _EXPONENT and not _finite(piece, stored.dtype):
            raise PrunusError(f"{stored.file}: '{name}' holds NaN or infinity; this model cannot be used")
    return found.digest()


def _over(tensors: Mapping[str, Stored], contents: Mapping[str, bytes]) -> str:
    total = blake3()
    for name, stored in sorted(tensors.items()):
        total.update(f"{name}\0{stored.dtype}\0{list(stored.shape)}\0".encode() + contents[name])
    return total.hexdigest()


def _finite(piece: bytes | memoryview, dtype: str) -> bool:
    integer, mask = _EXPONENT[dtype]
    return bool(np.max(np.frombuffer(piece, integer) & integer(mask), initial=0) < mask)
