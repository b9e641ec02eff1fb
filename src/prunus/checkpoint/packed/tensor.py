"""One tensor of a packed file: in which form it is there, of which parts, and how they become the dense tensor again.

dense: as it is. packed: mask and values. int8: the same with rounded values and a scale per row. mask: a mask to lay
over the same tensor of another model, the source. source: nothing, it is that tensor. docs/format.md has the details.
"""

import zlib
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.checkpoint.packed.bits import (
    ALIGNMENT,
    PATTERNS,
    PackedBits,
    apply_mask,
    mask_shape,
    round_up,
    slabs,
    starts_length,
    unpack_bits,
)
from prunus.checkpoint.safetensors_file import DTYPES, ITEMSIZES, READABLE, Stored
from prunus.errors import PrunusError

Form = Literal["dense", "packed", "int8", "mask", "source"]
# The parts of a form, in the order in which they lie.
PARTS: Mapping[Form, tuple[str, ...]] = {
    "dense": ("",),
    "packed": (".starts", ".mask", ".values"),
    "int8": (".starts", ".mask", ".values", ".scale"),
    "mask": (".mask",),
    "source": (),
}
# What starts, masks and scales are read as.
NUMBERS = {"I64": np.dtype("<i8"), "U8": np.dtype("u1"), "F32": np.dtype("<f4")}
INT8_LARGEST = 127


class Damaged(ValueError):
    """What is wrong with a file; callers that know its name turn this into a PrunusError."""


def damaged(path: Path, why: object) -> PrunusError:
    """The error for a file that cannot be trusted."""
    return PrunusError(f"{path} is damaged or no packed file ({why}); make or fetch it again")


def part_types(form: Form, dtype: str) -> tuple[str, ...]:
    """The dtype of each part of a tensor of this dtype."""
    kinds = {"": dtype, ".starts": "I64", ".mask": "U8", ".values": "I8" if form == "int8" else dtype, ".scale": "F32"}
    return tuple(kinds[part] for part in PARTS[form])


def part_shapes(form: Form, shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, ...]:
    """The shape of each part; None where only the file says how long it is: values."""
    if form == "dense":
        return (shape,)
    shapes = {
        ".starts": (starts_length(shape[0]),),
        ".mask": mask_shape(*shape),
        ".values": None,
        ".scale": (scale_length(shape[0]),),
    }
    return tuple(shapes[part] for part in PARTS[form])


def scale_length(rows: int) -> int:
    """How many scales there are, padding included: all of it is zero."""
    return round_up(rows, ALIGNMENT // 4)


class PackedTensor(Stored):
    """A tensor of a packed file, which reads as if it lay there dense. start, end: of all its parts together.

    checksums: CRC-32 of each part. dense: where the source has it, for forms that need the source.
    """

    form: Form
    checksums: tuple[int, ...]
    dense: Stored | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.elements * ITEMSIZES[self.dtype]

    @property
    def packed_nbytes(self) -> int:
        """Bytes that it takes in the file."""
        return self.end - self.start

    def chunks(self) -> Iterator[bytes]:
        """The dense data, piece by piece. Damage raises PrunusError, of dense tensors only after the last piece."""
        if self.form != "dense":
            yield self._bits().tobytes()
            return
        checksum = 0
        for piece in super().chunks():
            checksum = zlib.crc32(piece, checksum)
            yield piece
        if (checksum,) != self.checksums:
            raise damaged(self.file, "a checksum does not match")

    def read(self) -> Tensor:
        """The dense tensor, in memory of its own."""
        if self.form == "dense":
            buffer = np.frombuffer(bytearray().join(self.chunks()), np.uint8)
        else:
            buffer = self._bits().reshape(-1).view(np.uint8)
        return torch.from_numpy(buffer).view(READABLE[self.dtype]).view(self.shape)

    def bits(self) -> PackedBits:
        """Starts, mask and values of a `packed` tensor as they are stored. Only checksums are checked: not whether the
        parts fit each other. Damage raises PrunusError."""
        assert self.form == "packed"
        try:
            return PackedBits(*self._parts())
        except ValueError as error:
            raise damaged(self.file, error) from error

    def _bits(self) -> NDArray:
        """The dense tensor's bit patterns."""
        try:
            return self._decode()
        except ValueError as error:
            raise damaged(self.file, error) from error

    def _decode(self) -> NDArray:
        if self.form in ("mask", "source"):
            assert self.dense is not None
            bits_OI = bit_patterns(self.dense.read())
            return bits_OI if self.form == "source" else apply_mask(bits_OI, self._parts()[0])
        starts, mask, values, *scale = self._parts()
        bits_OI = unpack_bits(self.shape, PackedBits(starts, mask, values))
        return dequantise(bits_OI, scale[0], self.dtype) if scale else bits_OI

    def _parts(self) -> list[NDArray]:
        """The parts, their bytes checked against their checksums; values as bit patterns."""
        types, shapes = part_types(self.form, self.dtype), part_shapes(self.form, self.shape)
        known = [prod(shape) * ITEMSIZES[kind] if shape else 0 for kind, shape in zip(types, shapes, strict=True)]
        found = []
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            for kind, shape, size, checksum in zip(types, shapes, known, self.checksums, strict=True):
                buffer = np.empty(size if shape else self.packed_nbytes - sum(known), np.uint8)
                if stream.readinto(buffer.data) != len(buffer) or zlib.crc32(buffer.data) != checksum:
                    raise Damaged("a checksum does not match")
                number = NUMBERS[kind] if shape else PATTERNS[ITEMSIZES[kind]]
                found.append(buffer.view(number).reshape(shape or -1))
        return found


def bit_patterns(weight: Tensor) -> NDArray:
    """A tensor's numbers as unsigned integers, row-major."""
    whole = weight.detach().cpu().contiguous()
    return whole.view(torch.uint8).numpy().view(PATTERNS[whole.element_size()])


def quantise(weight_OI: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Nearest whole numbers in [-127, 127], and for each row, padded, what one of them is worth."""
    rows, columns = weight_OI.shape
    values_OI, scale_O = np.empty((rows, columns), np.int8), np.zeros(scale_length(rows), np.float32)
    for slab in slabs(rows, columns):
        float_OI = weight_OI[slab].float().numpy()
        scale_O[slab] = np.abs(float_OI).max(axis=1) / np.float32(INT8_LARGEST)
        divisor_O1 = np.where(scale_O[slab] > 0, scale_O[slab], np.float32(1))[:, None]
        # Where a scale is so small that few of its bits are left, a quotient can leave the range.
        values_OI[slab] = np.rint(float_OI / divisor_O1).clip(-INT8_LARGEST, INT8_LARGEST)
    return values_OI, scale_O


def dequantise(bits_OI: NDArray, scale_O: NDArray, dtype: str) -> NDArray:
    """Bit patterns of the numbers that 8-bit patterns and padded scales stand for."""
    weight_OI, values_OI = torch.empty(bits_OI.shape, dtype=DTYPES[dtype]), torch.from_numpy(bits_OI.view(np.int8))
    for slab in slabs(*bits_OI.shape):
        # torch, as numpy would warn of a scale that is not finite.
        weight_OI[slab] = values_OI[slab].float() * torch.from_numpy(scale_O)[slab, None]
    return bit_patterns(weight_OI)
