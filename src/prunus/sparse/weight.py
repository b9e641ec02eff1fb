"""A weight in the kernel's layout (see kernel.cpp): packed from a dense matrix or a file's arrays, and unpacked.

O: outputs (rows), I: inputs (columns). The layout has groups of 16 rows and chunks of 32 columns.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.errors import PrunusError
from prunus.native.load import needed, threads

GROUP, CHUNK, PADDING = 16, 32, 64
HUGE_PAGE = 1 << 21
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_BAD_ARRAYS = 2


# Weights that have been checked, by the addresses of their parts.
_KNOWN: "WeakValueDictionary[tuple[int, int, int], SparseWeight]" = WeakValueDictionary()


class SparseWeight:
    """An immutable (outputs, inputs) weight as masks (int32), values, and starts (int64); deepcopy() shares it.

    The constructor checks the arrays against each other, so that the kernel can trust them, and raises PrunusError if
    they disagree.
    """

    def __init__(self, masks: Tensor, values: Tensor, starts: Tensor, outputs: int, inputs: int) -> None:
        self.masks, self.values, self.starts, self.outputs, self.inputs = masks, values, starts, outputs, inputs
        groups, chunks = _sizes(outputs, inputs)
        padding = PADDING // values.element_size()
        right = (
            (masks.dtype, masks.numel()) == (torch.int32, groups * GROUP * chunks)
            and (starts.dtype, starts.numel()) == (torch.int64, groups + 1)
            and values.dtype in KINDS
            and int(starts[-1]) == values.numel() - padding
            and all(part.device.type == "cpu" and part.is_contiguous() for part in (masks, values, starts))
        )
        arguments = (masks.data_ptr(), starts.data_ptr(), values.numel() - padding, outputs, inputs)
        if not right or needed().library.prunus_check(*arguments):
            raise PrunusError(f"masks, values and starts are not those of a weight of ({outputs}, {inputs})")
        # The kernel takes addresses, and asking tensors for them at each call would take as long as a small product.
        self.pointers = masks.data_ptr(), values.data_ptr(), starts.data_ptr()
        _KNOWN[self.pointers] = self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def kept(self) -> int:
        """The number of kept weights, those with a bit in the mask."""
        return self.values.numel() - PADDING // self.values.element_size()

    @property
    def nbytes(self) -> int:
        """The size in memory, in bytes."""
        return sum(part.nbytes for part in (self.masks, self.values, self.starts))

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.outputs, self.inputs

    def copy(self) -> "SparseWeight":
        """An equal weight in new memory."""
        masks, values = (_empty(part.numel(), part.dtype).copy_(part) for part in (self.masks, self.values))
        return SparseWeight(masks, values, self.starts.clone(), self.outputs, self.inputs)

    def unpack(self, first: int = 0, last: int | None = None, out: Tensor | None = None) -> Tensor:
        """The rows of groups [first, last), by default all, as a dense tensor, exact to the bit.

        out: a contiguous tensor of that shape to write to; without it, a new one. Raises PrunusError for other groups.
        """
        groups, _ = _sizes(self.outputs, self.inputs)
        last = groups if last is None else last
        if not 0 <= first <= last <= groups:
            raise PrunusError(f"groups {first} to {last} were asked for; the weight has {groups}")
        rows = min(last * GROUP, self.outputs) - first * GROUP
        if out is None:
            out = torch.empty(rows, self.inputs, dtype=self.dtype)
        assert out.shape == (rows, self.inputs) and out.dtype == self.dtype and out.is_contiguous()
        _call("prunus_unpack", self.dtype, self.masks, self.values, self.starts, *self.shape, first, last, out)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseWeight":
        return self

    def __reduce__(self) -> tuple[Callable[..., "SparseWeight"], tuple[Any, ...]]:
        return SparseWeight, (self.masks, self.values, self.starts, self.outputs, self.inputs)


def checked(masks: Tensor, values: Tensor, starts: Tensor, outputs: int, inputs: int) -> SparseWeight:
    """The SparseWeight of these parts; only one that does not exist yet is made, and so checked."""
    known = _KNOWN.get((masks.data_ptr(), values.data_ptr(), starts.data_ptr()))
    if known is not None and (known.outputs, known.inputs, known.dtype) == (outputs, inputs, values.dtype):
        return known
    return SparseWeight(masks, values, starts, outputs, inputs)


def packed_bytes(shape: tuple[int, ...], kept: int, itemsize: int) -> int:
    """The bytes that a packed weight of this shape takes in memory. kept: number of weights that are not +0.0."""
    groups, chunks = _sizes(*shape)
    return groups * GROUP * chunks * 4 + kept * itemsize + PADDING + 8 * (groups + 1)


def pack(weight_OI: Tensor) -> SparseWeight:
    """A dense (O, I) matrix as a SparseWeight, whose unpack() returns the same bits. Only +0.0 is left out.

    Raises PrunusError unless the matrix is on the CPU, not empty, and in bfloat16, float16 or float32.
    """
    if weight_OI.ndim != 2 or 0 in weight_OI.shape or weight_OI.dtype not in KINDS or weight_OI.device.type != "cpu":
        raise PrunusError(
            f"{weight_OI.dtype} of {tuple(weight_OI.shape)} on {weight_OI.device} cannot be packed; "
            "give a matrix in bfloat16, float16 or float32 on the CPU"
        )
    dense_OI = weight_OI.detach().contiguous()
    starts = torch.empty(_sizes(*dense_OI.shape)[0] + 1, dtype=torch.int64)
    _call("prunus_count", dense_OI.dtype, dense_OI, *dense_OI.shape, starts)
    masks, values = _uninitialised(dense_OI.shape, int(starts[-1]), dense_OI.dtype)
    _call("prunus_pack", dense_OI.dtype, dense_OI, *dense_OI.shape, starts, masks, values)
    return SparseWeight(masks, values, starts, *dense_OI.shape)


def from_packed(
    shape: tuple[int, int], dtype: torch.dtype, starts: NDArray[np.int64], mask: NDArray[np.uint8], values: NDArray
) -> SparseWeight:
    """A SparseWeight from the arrays of a packed checkpoint (docs/format.md), whose dtypes and shapes were checked.

    values: bit patterns as integers, padding included. Raises PrunusError, before any value is read, if mask, starts
    and the number of values do not agree.
    """
    groups, _ = _sizes(*shape)
    if not 0 <= int(starts[groups]) <= len(values):
        raise PrunusError(f"starts announce {starts[groups]} values, and there are {len(values)}")
    own_starts = torch.from_numpy(starts[: groups + 1].copy())
    masks, laid_out = _uninitialised(shape, int(own_starts[-1]), dtype)
    file_parts = mask.ctypes.data, mask.shape[1], values.ctypes.data, len(values)
    _call("prunus_repack", dtype, *file_parts, *shape, own_starts, masks, laid_out)
    return SparseWeight(masks, laid_out, own_starts, *shape)


def huge_pages(tensor: Tensor) -> None:
    """Ask the system to back a tensor that will be read many times with huge pages."""
    needed().library.prunus_huge_pages(tensor.data_ptr(), tensor.nbytes)


def _sizes(outputs: int, inputs: int) -> tuple[int, int]:
    """The number of groups of rows and of chunks of columns."""
    return -(-outputs // GROUP), -(-inputs // CHUNK)


def _uninitialised(shape: tuple[int, ...], kept: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Uninitialised memory for masks and values; only the padding of the values is set, to zero."""
    groups, chunks = _sizes(*shape)
    masks = _empty(groups * GROUP * chunks, torch.int32)
    values = _empty(kept + PADDING // dtype.itemsize, dtype)
    values[kept:] = 0
    return masks, values


def _empty(count: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for count numbers; large arrays are aligned to huge pages and request them."""
    size = count * dtype.itemsize
    if size < HUGE_PAGE:
        return torch.empty(count, dtype=dtype)
    buffer = torch.empty(size + HUGE_PAGE, dtype=torch.uint8)
    first = -buffer.data_ptr() % HUGE_PAGE
    made = buffer[first : first + size].view(dtype)
    huge_pages(made)
    return made


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | int) -> None:
    """Call a library function with the instruction set, the bytes of a weight, these arguments, and number of threads.

    For a tensor its address is passed. Raises PrunusError if the status is not 0.
    """
    found = needed()
    passed = (one.data_ptr() if isinstance(one, Tensor) else one for one in arguments)
    status = getattr(found.library, name)(found.isa, dtype.itemsize, *passed, threads())
    if status == _BAD_ARRAYS:
        raise PrunusError("mask, starts and number of values do not agree; the packed weight is damaged")
    if status:
        raise PrunusError(f"{name} failed with status {status}")
