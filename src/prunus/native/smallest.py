"""Zero the smallest weights of a tensor and count zeros, by compiled code (smallest.cpp)."""

import ctypes
import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from prunus.native.build import SMALLEST, BuildError, supported
from prunus.native.load import SWITCH, load

_INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # bit patterns; those of NaN are larger
_OK, _NOT_A_NUMBER = 0, 2


def zero_smallest(weight: Tensor, count: int) -> Tensor | None:
    """A new weight in which the count (at least 1) entries of smallest magnitude are +0.0; of equal ones the first are.

    None where the compiled code cannot be used: for 32-bit numbers, on devices other than the CPU, on systems without
    it. Raises ValueError for NaN.
    """
    if (library := _library_for(weight)) is None:
        return None
    result, infinity = torch.empty_like(weight), _INFINITY[weight.dtype]
    status = library.prunus_zero_smallest(weight.data_ptr(), weight.numel(), count, infinity, result.data_ptr())
    if status == _NOT_A_NUMBER:
        raise ValueError("scores hold NaN")
    return result if status == _OK else None


def count_zeros(weight: Tensor) -> int | None:
    """How many entries are +0.0 or -0.0; None where the compiled code cannot be used."""
    if (library := _library_for(weight)) is None:
        return None
    found = ctypes.c_int64()
    status = library.prunus_count_zeros(weight.data_ptr(), weight.numel(), ctypes.byref(found))
    return found.value if status == _OK else None


def _library_for(weight: Tensor) -> Any:
    """The library, None if it cannot be used for this tensor."""
    if weight.dtype not in _INFINITY or weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    return _library()


@lru_cache(maxsize=1)
def _library() -> Any:
    """The library, None if it cannot be loaded."""
    if os.environ.get(SWITCH) == "off" or not supported():
        return None
    try:
        return load(SMALLEST, quiet=True)
    except (BuildError, OSError):
        return None
