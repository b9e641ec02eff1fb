"""One tensor of a packed file: its form, its parts, and how the dense tensor is restored from them.

Forms: packed: mask and values. mask: a mask that is applied to the same tensor of another model, the source. source:
nothing; the tensor is the source's. packed_files.py has the details.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.checkpoint.safetensors_file import DTYPES, ITEMSIZES, Computed, Stored
from prunus.errors import PrunusError

# Pack a pruned weight as one bit per weight, the kept values, and the index of the first value of every 16th row.
# This works on bit patterns, not numbers: only +0.0 (all bits zero) counts as zero, so -0.0 and NaN are restored
# exactly. packed_files.py describes the layout. O: outputs (rows), I: inputs (columns).

# Rows whose values begin at a stored index.
GROUP = 16
# A row of the mask is a whole number of 64-bit words: two chunks of 32 columns, or one of 64.
WORD_BITS = 64
# Arrays begin at multiples of this many bytes, the size of a cache line and of the widest vector register.
ALIGNMENT = 64
_SLAB = 1 << 18  # weights processed at a time, so that intermediate arrays stay in the cache
PATTERNS: dict[int, type[np.integer]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.int64}  # by bytes


class PackedBits(NamedTuple):
    """A packed weight, padding included.

    starts: the index of the first value of each group of rows, then the number of values. mask: (rows, bytes per row).
    values: the kept weights as bit patterns.
    """

    starts: NDArray[np.int64]
    mask: NDArray[np.uint8]
    values: NDArray


def round_up(count: int, step: int) -> int:
    """The smallest multiple of step that is at least count."""
    return -(-count // step) * step


def starts_length(rows: int) -> int:
    """The length of starts, including the padding, which repeats the last start."""
    return round_up(-(-rows // GROUP) + 1, ALIGNMENT // 8)


def mask_shape(rows: int, columns: int) -> tuple[int, int]:
    """(rows, bytes per row) of a mask, including the padding, which is zero."""
    return round_up(rows, GROUP), round_up(columns, WORD_BITS) // 8


def values_length(kept: int, itemsize: int) -> int:
    """The length of values, including the padding, which is zero."""
    return round_up(kept * itemsize, ALIGNMENT) // itemsize


def mask_nbytes(shape: tuple[int, ...]) -> int:
    """The bytes of a mask."""
    rows, width = mask_shape(*shape)
    return rows * width


def packed_nbytes(shape: tuple[int, ...], kept: int, itemsize: int) -> int:
    """The bytes of a packed weight with `kept` values."""
    return 8 * starts_length(shape[0]) + mask_nbytes(shape) + itemsize * values_length(kept, itemsize)


def pack_bits(bits_OI: NDArray) -> PackedBits:
    """The packed form of a weight given as bit patterns."""
    rows, columns = bits_OI.shape
    mask = np.zeros(mask_shape(rows, columns), np.uint8)
    values = np.zeros(values_length(bits_OI.size, bits_OI.itemsize), bits_OI.dtype)
    counts_O, stored = np.zeros(rows, np.int64), 0
    for slab in slabs(rows, columns):
        kept = bits_OI[slab] != 0
        counts_O[slab] = np.count_nonzero(kept, axis=1)
        packed = np.packbits(kept, axis=1, bitorder="little")
        mask[slab.start : slab.start + len(packed), : packed.shape[1]] = packed
        chosen = bits_OI[slab].reshape(-1).compress(kept.reshape(-1))
        values[stored : stored + len(chosen)] = chosen
        stored += len(chosen)
    return PackedBits(_starts(counts_O), mask, values[: values_length(stored, values.itemsize)])


def pack_mask(bits_OI: NDArray) -> NDArray[np.uint8]:
    """The mask of a weight given as bit patterns, uint8."""
    rows, columns = bits_OI.shape
    mask = np.zeros(mask_shape(rows, columns), np.uint8)
    for slab in slabs(rows, columns):
        mask[slab, : -(-columns // 8)] = np.packbits(bits_OI[slab] != 0, axis=1, bitorder="little")
    return mask


def unpack_bits(shape: tuple[int, ...], packed: PackedBits) -> NDArray:
    """The bit patterns (O, I) of a packed weight. Raises ValueError if mask, starts and number of values disagree.

    The caller has checked the shapes of the parts.
    """
    rows, columns = shape
    starts, mask, values = packed
    total = int(starts[-1])
    if not 0 <= total <= rows * columns or values_length(total, values.itemsize) != len(values):
        raise ValueError(f"{len(values)} values are stored, but the starts announce {total}")
    if values[total:].any():
        raise ValueError("padding of the values is not zero")
    bits_OI = np.zeros((rows, columns), values.dtype)
    counts_O, taken = np.zeros(rows, np.int64), 0
    for slab, kept in _mask_slabs(shape, mask):
        counts_O[slab] = np.count_nonzero(kept, axis=1)
        places = np.flatnonzero(kept)
        if taken + len(places) > total:
            raise ValueError("the mask needs more values than are stored")
        bits_OI[slab].reshape(-1)[places] = values[taken : taken + len(places)]
        taken += len(places)
    if not np.array_equal(_starts(counts_O), starts):
        raise ValueError("the starts of rows do not match the mask")
    return bits_OI


def apply_mask(bits_OI: NDArray, mask: NDArray[np.uint8]) -> NDArray:
    """The weight (O, I) with zeros where the mask is 0. Raises ValueError if a padding bit of the mask is 1."""
    result_OI = np.empty_like(bits_OI)
    for slab, kept in _mask_slabs(bits_OI.shape, mask):
        np.multiply(bits_OI[slab], kept, out=result_OI[slab])
    return result_OI


def slabs(rows: int, columns: int) -> list[slice]:
    """Slices of rows, in multiples of GROUP, small enough that intermediate arrays stay in the cache."""
    height = max(GROUP, _SLAB // columns // GROUP * GROUP)
    return [slice(first, min(first + height, rows)) for first in range(0, rows, height)]


def _mask_slabs(shape: tuple[int, ...], mask: NDArray[np.uint8]):
    """Yield (slice of rows, booleans (its rows, I)) of a mask. Raises ValueError if a padding bit is 1."""
    rows, columns = shape
    if mask[rows:].any():
        raise ValueError("the mask has ones in the padding")
    for slab in slabs(rows, columns):
        kept = np.unpackbits(mask[slab], axis=1, bitorder="little")
        if kept[:, columns:].any():
            raise ValueError("the mask has ones in the padding")
        yield slab, np.ascontiguousarray(kept[:, :columns]).view(bool)


def _starts(counts_O: NDArray[np.int64]) -> NDArray[np.int64]:
    """The starts of a packed weight, from the number of values in each row."""
    ends = np.cumsum(np.add.reduceat(counts_O, np.arange(0, len(counts_O), GROUP)))
    starts = np.full(starts_length(len(counts_O)), ends[-1], np.int64)
    starts[0], starts[1 : len(ends) + 1] = 0, ends
    return starts


Form = Literal["packed", "mask", "source"]
# The parts of each form, in the order of the file.
PARTS: Mapping[Form, tuple[str, ...]] = {
    "packed": (".starts", ".mask", ".values"),
    "mask": (".mask",),
    "source": (),
}


def damaged(path: Path, why: object) -> PrunusError:
    """The error for a packed file that is damaged."""
    return PrunusError(f"{path} is damaged or not a packed file ({why}); make or fetch it again")


def parts_in(form: Form, dtype: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """The dtype and shape of each part of a tensor; the shape of values, whose length only the file knows, is None."""
    known = {
        ".starts": ("I64", (starts_length(shape[0]),)),
        ".mask": ("U8", mask_shape(*shape)),
        ".values": (dtype, None),
    }
    return {part: known[part] for part in PARTS[form]}


class PackedTensor(Computed):
    """A tensor of a packed file, read in the same way as a dense tensor. start, end: of all its parts together.

    parts, checksums: of each part, where it is and its CRC-32. source: the source's tensor, for forms that need it.
    """

    form: Form
    parts: Sequence[Stored]
    checksums: tuple[int, ...]
    source: Stored | None = None

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the dense data in one piece; PrunusError if it is damaged."""
        yield self._bits().tobytes()

    def read(self) -> Tensor:
        """The dense tensor, in new memory; PrunusError if it is damaged."""
        buffer = self._bits().reshape(-1).view(np.uint8)
        return torch.from_numpy(buffer).view(DTYPES[self.dtype]).view(self.shape)

    def _bits(self) -> NDArray:
        """The bit patterns of the dense tensor; PrunusError if it is damaged."""
        arrays = self._arrays()
        try:
            if self.form in ("mask", "source"):
                assert self.source is not None
                bits_OI = bit_patterns(self.source.read())
                return apply_mask(bits_OI, *arrays) if arrays else bits_OI
            return unpack_bits(self.shape, PackedBits(*arrays))
        except ValueError as error:
            raise damaged(self.file, error) from error

    def _arrays(self) -> list[NDArray]:
        """The parts as bit patterns, starts as numbers. PrunusError if a checksum does not match."""
        arrays = []
        for part, checksum in zip(self.parts, self.checksums, strict=True):
            array = np.fromfile(part.file, np.uint8, part.nbytes, offset=part.start)
            if zlib.crc32(array.data) != checksum:
                raise damaged(self.file, "a checksum does not match")
            arrays.append(array.view(PATTERNS[ITEMSIZES[part.dtype]]).reshape(part.shape))
        return arrays


def bit_patterns(weight: Tensor) -> NDArray:
    """The bits of a tensor's numbers as unsigned integers of the same width, in the same shape."""
    whole = weight.detach().cpu().contiguous()
    return whole.view(torch.uint8).numpy().view(PATTERNS[whole.element_size()])
