"""Pack a pruned weight as one bit per weight, the kept values, and the index of the first value of every 16th row.

This works on bit patterns, not numbers: only +0.0 (all bits zero) counts as zero, so -0.0 and NaN are restored exactly.
docs/format.md describes the layout. O: outputs (rows), I: inputs (columns).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# A kernel works on this many rows at a time, and finds the values of each group of rows without counting bits.
GROUP = 16
# A row of the mask is a whole number of 64-bit words: two chunks of 32 columns, or one of 64.
WORD_BITS = 64
# Arrays begin at multiples of this many bytes, the size of a cache line and of the widest vector register.
ALIGNMENT = 64
_SLAB = 1 << 18  # weights processed at a time, so that intermediate arrays stay in the cache
PATTERNS: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


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


def pack_bits(bits_OI: NDArray, values_OI: NDArray | None = None) -> PackedBits:
    """The packed form of a weight given as bit patterns. values_OI: what to store in place of the nonzero bits_OI."""
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
