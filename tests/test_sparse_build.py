"""How the kernel gets onto a machine: in the wheel, compiled at first use, or not at all."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hatchling.build import build_wheel

from prunus.native import build
from prunus.native import load as library

ROOT = Path(__file__).parents[1]
needs_compiler = pytest.mark.skipif(
    not build.supported() or not shutil.which(os.environ.get("CXX", "g++")), reason="needs a compiler on Linux x86-64"
)


def make_wheel(folder, compiler):
    """The wheel that pip makes of this tree."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
    ]
    subprocess.run(command, check=True, env=os.environ | {"CXX": compiler}, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@needs_compiler
@pytest.mark.slow
def test_a_wheel_carries_the_library_where_there_is_a_compiler(tmp_path):
    in_haste = tmp_path / "in_haste"
    in_haste.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "g++")} "$@" -O0\n')
    in_haste.chmod(0o755)
    wheel = make_wheel(tmp_path, str(in_haste))
    assert "-py3-none-manylinux_2_" in wheel.name and wheel.name.endswith("_x86_64.whl")
    with zipfile.ZipFile(wheel) as opened:
        found = {source: Path(opened.extract(f"prunus/native/_{source.stem}.so", tmp_path)) for source in build.SOURCES}
    assert library._open(build.KERNEL, found[build.KERNEL]).prunus_isa() == library.load(build.KERNEL).prunus_isa()
    smallest, result = library._open(build.SMALLEST, found[build.SMALLEST]), ctypes.create_string_buffer(6)
    assert smallest.prunus_zero_smallest(b"\0" * 6, 3, 1, 0x7F80, result) < 2
    assert not list((ROOT / "src").rglob("*.so"))


def test_a_wheel_is_pure_where_there_is_none(tmp_path, monkeypatch):
    """Made by the function that pip calls."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CXX", "/bin/false")
    name = build_wheel(str(tmp_path))
    assert name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(tmp_path / name) as opened:
        names = opened.namelist()
    assert {"prunus/native/kernel.cpp", "prunus/native/smallest.cpp"} <= set(names)
    assert not [name for name in names if name.endswith(".so")]


def test_compilers_that_are_not_there_or_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "prebuilt", lambda source: tmp_path / "none.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler, words in [
        ("/bin/false", "false failed"),
        ("no-such-compiler", "'no-such-compiler', which does not exist"),
    ]:
        monkeypatch.setenv("CXX", compiler)
        found = library.kernel.__wrapped__()
        assert found.library is None and words in found.reason and "\n" not in found.reason
    assert not list(tmp_path.rglob("*.so"))


def test_a_damaged_library_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "prebuilt", lambda source: tmp_path / "none.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def fake(_source, target):
        made.append(target)
        target.write_bytes(b"no library either")

    monkeypatch.setattr(library, "supported", lambda: True)
    monkeypatch.setattr(library, "compile_library", fake)
    monkeypatch.setattr(library, "find_compiler", lambda: "g++")
    assert library.kernel.__wrapped__().library is None
    assert library.kernel.__wrapped__().library is None
    assert len(made) == 2


def test_of_two_that_start_together_one_compiles_and_the_other_waits(monkeypatch, tmp_path):
    """Two processes, here two threads with locks of their own."""
    monkeypatch.setattr(library, "prebuilt", lambda source: tmp_path / "none.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "find_compiler", lambda: "g++")
    monkeypatch.setattr(library, "_open", lambda _source, path: path.read_bytes())
    made = []

    def slow(_source, target):
        made.append(target)
        time.sleep(0.2)
        target.write_bytes(b"library")

    monkeypatch.setattr(library, "compile_library", slow)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(library.load, build.SMALLEST, quiet=True) for _ in range(2)]
    assert [one.result() for one in found] == [b"library"] * 2 and len(made) == 1


def test_a_cache_that_others_can_write_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "prebuilt", lambda source: tmp_path / "none.so")
    monkeypatch.setattr(library, "supported", lambda: True)
    monkeypatch.setattr(library, "find_compiler", lambda: "g++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "prunus").mkdir()
    (tmp_path / "prunus").chmod(0o777)
    assert "other users can write to" in library.kernel.__wrapped__().reason


def test_the_platform_tag_names_the_newest_glibc_that_is_needed(tmp_path):
    for text, tag in [
        (b"GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.14", "manylinux_2_34_x86_64"),
        (b"GLIBC_2.2.5", "manylinux_2_17_x86_64"),
    ]:
        (tmp_path / "library").write_bytes(text)
        assert build.platform_tag([tmp_path / "library"]) == tag


def test_importing_prunus_needs_no_compiler_and_no_torch():
    code = "import sys, prunus; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"CXX": "/bin/false"})


def test_ci_has_the_kernel():
    """Elsewhere its tests may be skipped."""
    if os.environ.get("CI") and build.supported():
        assert library.kernel().library is not None, library.kernel().reason
