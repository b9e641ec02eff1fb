"""Read the header of a GGUF file, the format of llama.cpp: its tensors, metadata, and Prunus's manifest."""

import hashlib
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunus.checkpoint.resolve import one_line
from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError, no_file, pip, unreadable
from prunus.manifest import Manifest, checked_manifest
from prunus.plain_data import parse_json

if TYPE_CHECKING:
    from gguf import GGUFReader

MANIFEST_KEY = "prunus.manifest"  # of the text with the content of prunus.json
# Prefixes of metadata keys that no computation uses, and the keys with such a prefix that one does use.
NAMING, COMPUTING = ("general.", "prunus.", "GGUF."), ("general.architecture", "general.quantization_version")
_BLOCK = re.compile(r"blk\.(\d+)\.")


class GgufFile(NamedTuple):
    """A GGUF file, opened. architecture: llama.cpp's name. tensors: by llama.cpp's names, with its names of types.

    digest: SHA-256 of the metadata that computations use, without names and manifest.
    """

    architecture: str
    tensors: dict[str, Stored]
    manifest: Manifest
    digest: str


def library() -> Any:
    """The package gguf; PrunusError if it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise PrunusError(f"GGUF files need the package gguf: {pip('gguf')}") from error
    return gguf


def rounding() -> Any:
    """The package libgguf, which rounds weights to the types of llama.cpp's mixtures; PrunusError if it is missing."""
    try:
        import libgguf
    except ImportError as error:
        raise PrunusError(f"these types need the package libgguf: {pip('gguf')}") from error
    return libgguf


def open_reader(path: Path) -> "GGUFReader":
    """A gguf.GGUFReader; PrunusError if the file is missing, damaged or not a GGUF file."""
    if not path.is_file():
        raise unreadable(str(path), no_file(path))
    try:
        with np.errstate(over="raise"):  # positions are numbers of 64 bits, whose sums wrap around
            return whole_reader()(path)
    except (ValueError, IndexError, KeyError, ArithmeticError, RecursionError) as error:
        raise damaged(path, one_line(error)) from error


@cache
def whole_reader() -> "type[GGUFReader]":
    """A subclass of gguf.GGUFReader that raises ValueError where the original would read beyond the end of the file.

    The original reads nothing there, once for each element that a header announces: 2^60 elements would never end.
    """

    class WholeReader(library().GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **named: Any) -> Any:
            values = super()._get(offset, dtype, count, *more, **named)
            if len(values) != count:
                raise ValueError("it ends early")
            return values

    return WholeReader


def damaged(path: Path, why: str) -> PrunusError:
    """The error for a file that is damaged or not a GGUF file. why: shown in parentheses."""
    return PrunusError(f"{path} is damaged or not a GGUF file ({why[:200]}); fetch it again")


def read_gguf(path: Path) -> GgufFile:
    """The content of a file's header. Raises PrunusError as open_reader does."""
    if not path.is_file():
        raise unreadable(str(path), no_file(path))
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(64)  # reading a large vocabulary takes seconds
def _read(path: Path, size: int, changed: int) -> GgufFile:
    reader = open_reader(path)
    tensors = {
        tensor.name: Stored(
            path, tensor.tensor_type.name, tuple(map(int, reversed(tensor.shape))), tensor.data_offset,
            tensor.data_offset + int(tensor.n_bytes),
        )
        for tensor in reader.tensors
    }  # fmt: skip
    check_places(tensors, int(reader.data_offset), size, path)
    text = field_of(reader, MANIFEST_KEY)
    try:
        manifest = Manifest() if text is None else checked_manifest(parse_json(str(text)), path)
    except ValueError as error:
        raise PrunusError(f"{path} is damaged: its {MANIFEST_KEY} is not JSON") from error
    hashed = hashlib.sha256()
    for key, field in sorted(reader.fields.items()):
        if key in COMPUTING or not key.startswith(NAMING):
            hashed.update(key.encode())
            for part in field.parts:
                hashed.update(part.tobytes())
    return GgufFile(str(field_of(reader, "general.architecture")), tensors, manifest, hashed.hexdigest())


def check_places(tensors: Mapping[str, Stored], base: int, size: int, path: Path) -> None:
    """Raise PrunusError unless each tensor has its own bytes, between base and the end of a file of this size.

    A position is a number of 64 bits, and the reader's sum with base may wrap around.
    """
    before = base
    for name, stored in sorted(tensors.items(), key=lambda item: item[1].start):
        if stored.end > size:
            raise PrunusError(f"{path} is truncated; fetch it again")
        if stored.start < before:
            raise damaged(path, f"'{name}' begins within what comes before it")
        before = max(before, stored.end)


def field_of(reader: "GGUFReader", key: str) -> Any:
    """The value of a key in the metadata; None if it has none. Raises PrunusError for a text that is no UTF-8."""
    field = reader.get_field(key)
    try:
        return None if field is None else field.contents()
    except (ValueError, IndexError) as error:
        raise damaged(Path(str(reader.data.filename)), f"its '{key}' cannot be read: {one_line(error)}") from error


def kind_of(name: str) -> str:
    """The name of a tensor without the number of its block, and without `.weight` or `.bias`."""
    return _BLOCK.sub("blk.", name).removesuffix(".weight").removesuffix(".bias")
