"""Return freed memory to the system."""

import ctypes
from functools import cache
from typing import Any


@cache
def _libc() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # a system without a C library under that name
        return None


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system, where the C library can (glibc).

    After many allocations of several megabytes, such as the Hessians of routed experts, glibc would keep their memory
    wherever anything small lies behind it.
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)
