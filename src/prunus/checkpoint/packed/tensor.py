"""One tensor of a packed file: its form, its parts, and how the dense tensor is restored from them.

Forms: dense: the tensor itself. packed: mask and values. int8: the same, with rounded values and a scale per row.
mask: a mask that is applied to the same tensor of another model, the source. source: nothing; the tensor is the
source's. docs/format.md has the details.
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
# The parts of each form, in the order of the file.
PARTS: Mapping[Form, tuple[str, ...]] = {
    "dense": ("",),
    "packed": (".starts", ".mask", ".values"),
    "int8": (".starts", ".mask", ".values", ".scale"),
    "mask": (".mask",),
    "source": (),
}
# numpy's dtypes of starts, masks and scales.
NUMBERS = {"I64": np.dtype("<i8"), "U8": np.dtype("u1"), "F32": np.dtype("<f4")}
INT8_LARGEST = 127


class Damaged(ValueError):
    """Says what is wrong with a file; callers that know the file's name turn this into a PrunusError."""


def damaged(path: Path, why: object) -> PrunusError:
    """The error for a packed file that is damaged."""
    return PrunusError(f"{path} is damaged or not a packed file ({why}); make or fetch it again")


def part_types(form: Form, dtype: str) -> tuple[str, ...]:
    """The dtype of each part of a tensor of this form and dtype."""
    kinds = {"": dtype, ".starts": "I64", ".mask": "U8", ".values": "I8" if form == "int8" else dtype, ".scale": "F32"}
    return tuple(kinds[part] for part in PARTS[form])


def part_shapes(form: Form, shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, ...]:
    """The shape of each part of a tensor of this form and shape; None for values, whose length only the file knows."""
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
    """The length of the scales, including the padding, which is zero."""
    return round_up(rows, ALIGNMENT // 4)


class PackedTensor(Stored):
    """A tensor of a packed file, read in the same way as a dense one. start, end: of all its parts together.

    checksums: CRC-32 of each part. dense: the source's tensor, for forms that need it.
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
        """Bytes of the tensor in the packed file."""
        return self.end - self.start

    def chunks(self) -> Iterator[bytes]:
        """Yield the dense data in pieces; PrunusError for damage, in a dense tensor only after the last piece."""
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
        """The dense tensor, in new memory; PrunusError if it is damaged."""
        if self.form == "dense":
            buffer = np.frombuffer(bytearray().join(self.chunks()), np.uint8)
        else:
            buffer = self._bits().reshape(-1).view(np.uint8)
        return torch.from_numpy(buffer).view(READABLE[self.dtype]).view(self.shape)

    def bits(self) -> PackedBits:
        """The stored starts, mask and values of a `packed` tensor; PrunusError if a checksum does not match.

        Whether the parts agree with each other is not checked.
        """
        assert self.form == "packed"
        try:
            return PackedBits(*self._parts())
        except ValueError as error:
            raise damaged(self.file, error) from error

    def _bits(self) -> NDArray:
        """The bit patterns of the dense tensor; PrunusError if it is damaged."""
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
        """The parts, values as bit patterns. Raises Damaged if a checksum does not match."""
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
    """The bits of a tensor's numbers as unsigned integers of the same width, in the same shape."""
    whole = weight.detach().cpu().contiguous()
    return whole.view(torch.uint8).numpy().view(PATTERNS[whole.element_size()])


def quantise(weight_OI: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(values, scales): integers in [-127, 127] (O, I), and one scale per row, padded, by which they are multiplied."""
    rows, columns = weight_OI.shape
    values_OI, scale_O = np.empty((rows, columns), np.int8), np.zeros(scale_length(rows), np.float32)
    for slab in slabs(rows, columns):
        float_OI = weight_OI[slab].float().numpy()
        scale_O[slab] = np.abs(float_OI).max(axis=1) / np.float32(INT8_LARGEST)
        divisor_O1 = np.where(scale_O[slab] > 0, scale_O[slab], np.float32(1))[:, None]
        # A subnormal scale has few bits, so that a quotient can exceed the range.
        values_OI[slab] = np.rint(float_OI / divisor_O1).clip(-INT8_LARGEST, INT8_LARGEST)
    return values_OI, scale_O


def dequantise(bits_OI: NDArray, scale_O: NDArray, dtype: str) -> NDArray:
    """The bit patterns, in dtype, of int8 values (given as bit patterns) times their rows' scales."""
    weight_OI, values_OI = torch.empty(bits_OI.shape, dtype=DTYPES[dtype]), torch.from_numpy(bits_OI.view(np.int8))
    for slab in slabs(*bits_OI.shape):
        # torch rather than numpy, which would warn about a scale that is not finite.
        weight_OI[slab] = values_OI[slab].float() * torch.from_numpy(scale_O)[slab, None]
    return bit_patterns(weight_OI)
