"""Compile the C++ files. Imports the standard library only, because hatch_build.py loads this file to build wheels."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

SOURCES = KERNEL, SMALLEST = Path(__file__).with_name("kernel.cpp"), Path(__file__).with_name("smallest.cpp")
# There is no -march, because the code chooses its instruction set at run time. Without exceptions, RTTI and guarded
# statics a library needs no C++ runtime, only libc.
FLAGS = (
    *("-O3", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fvisibility=hidden"),
    *("-shared", "-fPIC", "-pthread", "-static-libgcc", "-Wl,--as-needed", "-s"),
)
COMPILE_SECONDS = 300
_OLDEST_GLIBC = 17  # manylinux_2_17, the oldest manylinux_2_x tag that pip accepts


class BuildError(Exception):
    """A library could not be compiled; the message is the reason in one line."""


def supported() -> bool:
    """Whether the libraries support this system."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


def find_compiler() -> str:
    """The path of $CXX, or without it of g++, else clang++; BuildError if there is none."""
    named = os.environ.get("CXX")
    for candidate in (named,) if named else ("g++", "clang++"):
        if found := shutil.which(candidate):
            return found
    raise BuildError(f"$CXX is '{named}', which does not exist" if named else "neither g++ nor clang++ was found")


def prebuilt(source: Path) -> Path:
    """The path of a source file's library in a wheel."""
    return source.with_name(f"_{source.stem}.so")


def compile_library(source: Path, target: Path) -> None:
    """Write the library to target; BuildError if that fails."""
    command = [find_compiler(), *FLAGS, str(source), "-o", str(target)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode or not target.is_file() or not target.stat().st_size:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise BuildError(f"{command[0]} failed: {reason.strip()}")


def platform_tag(libraries: Iterable[Path]) -> str:
    """The wheel's platform tag, from the newest version of glibc whose symbols the libraries use."""
    names = b"".join(library.read_bytes() for library in libraries)
    needed = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", names)]
    return f"manylinux_2_{max([_OLDEST_GLIBC, *needed])}_x86_64"
