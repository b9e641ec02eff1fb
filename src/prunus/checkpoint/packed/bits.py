"""How a pruned weight is packed: a bit per weight, the weights that are left, and where every 16th row begins.

Bit patterns, not numbers: only +0.0 (all bits zero) counts as zero, so -0.0 and NaN come back as they were. The layout
is described for other readers in docs/format.md. O: outputs (rows), I: inputs (columns).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# A kernel works on this many rows at a time; the next group of rows is found without counting bits.
GROUP = 16
# Rows of the mask are whole 64-bit words: two chunks of 32 columns, or one of 64.
WORD_BITS = 64
# Arrays begin at multiples of this many bytes, a cache line and the widest vector register.
ALIGNMENT = 64
_SLAB = 1 << 18  # weights at a time: what is looked at several times stays in the cache
PATTERNS: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


class PackedBits(NamedTuple):
    """starts (int64): of each group of rows its first value, then the count of all. mask (uint8): (rows, bytes)."""

    starts: NDArray[np.int64]
    mask: NDArray[np.uint8]
    values: NDArray


def round_up(count: int, step: int) -> int:
    """Return the next multiple of step."""
    return -(-count // step) * step


def starts_length(rows: int) -> int:
    """How many starts there are, padding included: all of it repeats the last."""
    return round_up(-(-rows // GROUP) + 1, ALIGNMENT // 8)


def mask_shape(rows: int, columns: int) -> tuple[int, int]:
    """Rows and bytes per row of a mask, padding included: all of it is zero."""
    return round_up(rows, GROUP), round_up(columns, WORD_BITS) // 8


def values_length(kept: int, itemsize: int) -> int:
    """How many values are stored, padding included: all of it is zero."""
    return round_up(kept * itemsize, ALIGNMENT) // itemsize


def mask_nbytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of a mask."""
    rows, width = mask_shape(*shape)
    return rows * width


def packed_nbytes(shape: tuple[int, ...], kept: int, itemsize: int) -> int:
    """Return the bytes of a packed weight with `kept` values."""
    return 8 * starts_length(shape[0]) + mask_nbytes(shape) + itemsize * values_length(kept, itemsize)


def pack_bits(bits_OI: NDArray, values_OI: NDArray | None = None) -> PackedBits:
    """Pack a weight given as unsigned integers. values_OI: what to keep where bits_OI is not zero; else bits_OI."""
    values_OI = bits_OI if values_OI is None else values_OI
    rows, columns = bits_OI.shape
    mask = np.zeros(mask_shape(rows, columns), np.uint8)
    values = np.zeros(values_length(bits_OI.size, values_OI.itemsize), values_OI.dtype)
    counts_O, stored = np.zeros(rows, np.int64), 0
    for slab in slabs(rows, columns):
        kept = bits_OI[slab] != 0
        counts_O[slab] = np.count_nonzero(kept, axis=1)
        packed = np.packbits(kept, axis=1, bitorder="little")
        mask[slab.start : slab.start + len(packed), : packed.shape[1]] = packed
        chosen = values_OI[slab].reshape(-1).compress(kept.reshape(-1))
        values[stored : stored + len(chosen)] = chosen
        stored += len(chosen)
    return PackedBits(_starts(counts_O), mask, values[: values_length(stored, values.itemsize)])


def pack_mask(bits_OI: NDArray) -> NDArray[np.uint8]:
    """The mask of a weight alone."""
    rows, columns = bits_OI.shape
    mask = np.zeros(mask_shape(rows, columns), np.uint8)
    for slab in slabs(rows, columns):
        mask[slab, : -(-columns // 8)] = np.packbits(bits_OI[slab] != 0, axis=1, bitorder="little")
    return mask


def unpack_bits(shape: tuple[int, ...], packed: PackedBits) -> NDArray:
    """The weight again, zeros where it has no value. Parts that do not fit each other raise ValueError.

    The parts' own shapes have been checked; here, that mask, starts and number of values agree.
    """
    rows, columns = shape
    starts, mask, values = packed
    total = int(starts[-1])
    if not 0 <= total <= rows * columns or values_length(total, values.itemsize) != len(values):
        raise ValueError(f"{len(values)} values are stored where {total} are announced")
    if values[total:].any():
        raise ValueError("padding of the values is not zero")
    bits_OI = np.zeros((rows, columns), values.dtype)
    counts_O, taken = np.zeros(rows, np.int64), 0
    for slab, kept in _mask_slabs(shape, mask):
        counts_O[slab] = np.count_nonzero(kept, axis=1)
        places = np.flatnonzero(kept)
        if taken + len(places) > total:
            raise ValueError("the mask asks for more values than are stored")
        bits_OI[slab].reshape(-1)[places] = values[taken : taken + len(places)]
        taken += len(places)
    if not np.array_equal(_starts(counts_O), starts):
        raise ValueError("the starts of rows do not match the mask")
    return bits_OI


def apply_mask(bits_OI: NDArray, mask: NDArray[np.uint8]) -> NDArray:
    """The weight with zeros where the mask has them. A mask with bits in its padding raises ValueError."""
    result_OI = np.empty_like(bits_OI)
    for slab, kept in _mask_slabs(bits_OI.shape, mask):
        np.multiply(bits_OI[slab], kept, out=result_OI[slab])
    return result_OI


def slabs(rows: int, columns: int) -> list[slice]:
    """Rows in pieces of whole groups, so that what is computed on the way is small."""
    height = max(GROUP, _SLAB // columns // GROUP * GROUP)
    return [slice(first, min(first + height, rows)) for first in range(0, rows, height)]


def _mask_slabs(shape: tuple[int, ...], mask: NDArray[np.uint8]):
    """Rows in pieces, each with (its rows, I) booleans: where the mask has ones."""
    rows, columns = shape
    if mask[rows:].any():
        raise ValueError("the mask has ones in the padding")
    for slab in slabs(rows, columns):
        kept = np.unpackbits(mask[slab], axis=1, bitorder="little")
        if kept[:, columns:].any():
            raise ValueError("the mask has ones in the padding")
        yield slab, np.ascontiguousarray(kept[:, :columns]).view(bool)


def _starts(counts_O: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each group's values start, from the number of values of each row."""
    ends = np.cumsum(np.add.reduceat(counts_O, np.arange(0, len(counts_O), GROUP)))
    starts = np.full(starts_length(len(counts_O)), ends[-1], np.int64)
    starts[0], starts[1 : len(ends) + 1] = 0, ends
    return starts
