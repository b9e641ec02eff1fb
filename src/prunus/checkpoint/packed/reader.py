"""Open a packed file without trusting it: the header is checked for consistency and against the file's size.

Tensors are not read here; their data are checked when they are read.
"""

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from prunus.checkpoint.packed.bits import ALIGNMENT
from prunus.checkpoint.packed.tensor import (
    PARTS,
    Damaged,
    Form,
    PackedTensor,
    damaged,
    part_shapes,
    part_types,
)
from prunus.checkpoint.packed.writer import DIGEST, INFO, NO_DIGEST, VERSION
from prunus.checkpoint.safetensors_file import (
    DTYPES,
    ITEMSIZES,
    Stored,
    check_cover,
    check_name,
    header_text,
    place_of,
    whole_numbers,
)
from prunus.errors import PrunusError

# The forms of tensors that each kind of file may have.
FORMS = {"checkpoint": ("dense", "packed", "int8"), "variant": ("source", "mask", "packed")}


class PackedFile(NamedTuple):
    """An opened packed file. info: the header's entries other than tensors: kind, model, lossy, about."""

    path: Path
    info: dict[str, Any]
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


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
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


def _read_info(header: dict[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
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
