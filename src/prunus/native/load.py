"""Load the compiled libraries from the wheel, or compile them at first use into a cache; else report why not."""

import ctypes
import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.disk import atomic_file, locked, scratch_folder
from prunus.errors import PrunusError
from prunus.native.build import FLAGS, KERNEL, SMALLEST, BuildError, compile_library, find_compiler, prebuilt, supported
from prunus.progress import say

# Instruction sets; the index is the kernel's number for each. `off` disables the kernel, to compare with dense weights.
ISAS = ("off", "avx2", "avx512", "avx512bf16", "amx")
SWITCH = "PRUNUS_KERNEL"
# Why there may be no library: no compiler, a cache that cannot be written, or a user without a home.
NO_LIBRARY = (BuildError, OSError, PrunusError, RuntimeError)
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
# Argument types of the C functions at the end of each file.
_SIGNATURES = {
    KERNEL: {
        "prunus_isa": [],
        "prunus_linear": [*[_INT] * 3, *[_POINTER] * 6, *[_LONG] * 3, _INT],
        "prunus_count": [_INT, _INT, _POINTER, _LONG, _LONG, _POINTER, _INT],
        "prunus_pack": [_INT, _INT, _POINTER, _LONG, _LONG, *[_POINTER] * 3, _INT],
        "prunus_repack": [_INT, _INT, _POINTER, _LONG, _POINTER, *[_LONG] * 3, *[_POINTER] * 3, _INT],
        "prunus_check": [_POINTER, _POINTER, *[_LONG] * 3],
        "prunus_unpack": [_INT, _INT, *[_POINTER] * 3, *[_LONG] * 4, _POINTER, _INT],
        "prunus_huge_pages": [_POINTER, _LONG],
    },
    SMALLEST: {"prunus_zero_smallest": [_POINTER, _LONG, _LONG, _INT, _POINTER]},
}


class Kernel(NamedTuple):
    """The loaded kernel. library: None if it cannot be used; reason then says why. isa: index into ISAS."""

    library: Any  # ctypes.CDLL
    isa: int
    reason: str

    @property
    def name(self) -> str:
        """The instruction set's name."""
        return ISAS[self.isa]


@lru_cache(maxsize=1)
def kernel() -> Kernel:
    """The kernel for this machine. The first call may compile it, which takes some seconds.

    The environment variable PRUNUS_KERNEL selects an instruction set other than the best one, or `off`. Raises
    PrunusError if its value is unknown or this processor lacks it.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted and wanted not in ISAS:
        raise PrunusError(f"{SWITCH} is '{wanted}'; it can be {', '.join(ISAS)}")
    if wanted == "off":
        return Kernel(None, 0, f"{SWITCH} is off")
    if not supported():
        return Kernel(None, 0, "it is for Linux on x86-64 only")
    try:
        library = load(KERNEL)
    except NO_LIBRARY as error:
        return Kernel(None, 0, " ".join(str(error).split()))
    best = library.prunus_isa()
    if best == 0:
        return Kernel(None, 0, "this processor has no AVX2")
    if wanted and ISAS.index(wanted) > best:
        raise PrunusError(f"{SWITCH} is {wanted}, which this processor lacks; it can be {', '.join(ISAS[: best + 1])}")
    return Kernel(library, ISAS.index(wanted) if wanted else best, "")


def needed() -> Kernel:
    """The kernel; PrunusError if it cannot be used."""
    found = kernel()
    if found.library is None:
        raise PrunusError(f"the sparse kernel cannot be used: {found.reason}")
    return found


@lru_cache(maxsize=1)
def say_why_dense(reason: str) -> None:
    """Say once that weights stay dense because the kernel is missing."""
    say(f"the sparse kernel cannot be used: {reason}; weights stay dense")


@lru_cache(maxsize=1)
def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def threads() -> int:
    """The number of threads to use: torch's, but at most one per processor."""
    return min(torch.get_num_threads(), processors())


def cache_folder() -> Path:
    """This user's cache folder, created if missing.

    Raises OSError if it cannot be created, or if other users can write to it; RuntimeError if this user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "prunus"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = folder.stat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise OSError(f"other users can write to {folder}, and could put a library there")
    return folder


def load(source: Path, quiet: bool = False) -> ctypes.CDLL:
    """The library of a source file with the types of its functions set.

    quiet: print nothing while compiling, for a file that takes no longer than a second. Raises one of NO_LIBRARY if
    the library cannot be compiled or loaded.
    """
    if prebuilt(source).is_file():
        return _open(source, prebuilt(source))
    compiler = find_compiler()
    key = hashlib.sha256(b"\0".join([source.read_bytes(), " ".join(FLAGS).encode()])).hexdigest()[:16]
    path = cache_folder() / f"{source.stem}-{key}.so"
    if path.is_file():
        try:
            return _open(source, path)
        except OSError:  # damaged; compiled again below
            path.unlink(missing_ok=True)
    with locked(path.with_suffix(".lock")):  # other processes wait for this one's library
        if not path.is_file():
            if not quiet:
                say(f"compiling {source.name} with {compiler}, once")
            with scratch_folder() as folder:
                compile_library(source, folder / path.name)
                with atomic_file(path) as stream:
                    stream.write((folder / path.name).read_bytes())
    return _open(source, path)


def _open(source: Path, path: Path) -> ctypes.CDLL:
    """The library at path with the types of its functions set; OSError if it lacks one."""
    library = ctypes.CDLL(str(path))
    for name, types in _SIGNATURES[source].items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(f"{path} lacks {name}") from error
        function.argtypes, function.restype = types, None if name == "prunus_huge_pages" else _INT
    return library


_INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # bit patterns; those of NaN are larger
_OK, _NOT_A_NUMBER = 0, 2


def zero_smallest(weight: Tensor, count: int) -> Tensor | None:
    """A new weight in which the count (at least 1) entries of smallest magnitude are +0.0; of equal ones the first are.

    None where the compiled code cannot be used: for 32-bit numbers, on devices other than the CPU, on systems without
    it. Raises ValueError for NaN.
    """
    if weight.dtype not in _INFINITY or weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    if (library := _library()) is None:
        return None
    result, infinity = torch.empty_like(weight), _INFINITY[weight.dtype]
    status = library.prunus_zero_smallest(weight.data_ptr(), weight.numel(), count, infinity, result.data_ptr())
    if status == _NOT_A_NUMBER:
        raise ValueError("scores hold NaN")
    return result if status == _OK else None


@lru_cache(maxsize=1)
def _library() -> Any:
    """The library, None if it cannot be loaded."""
    if os.environ.get(SWITCH) == "off" or not supported():
        return None
    try:
        return load(SMALLEST, quiet=True)
    except NO_LIBRARY:
        return None
