"""Send files of variants through Ray: to the workers that answer, and back from the worker that made the variant."""

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunus.checkpoint.writer import sync_tree
from prunus.disk import disk_errors, replace_folder
from prunus.study.cells import Variant
from prunus.study.ray.worker import Piece, VariantFiles
from prunus.study.variants import MAKING, VARIANTS

PIECE = 64 << 20  # bytes sent at a time

# (`checkpoint` or `variants`, a file of it, first byte, number of bytes) -> Ray reference to that piece
Request = Callable[[str, str, int, int], Any]
Download = Generator[Any, Piece | None, None]


def upload(folder: Path, files: Sequence[Path]) -> dict[str, list[Any]]:
    """Put a variant's files into Ray's object store; {path in the study's folder: references to its pieces}."""
    import ray

    return {
        str(path.relative_to(folder)): [
            ray.put(np.fromfile(path, np.uint8, PIECE, offset=start)) for start in range(0, path.stat().st_size, PIECE)
        ]
        for path in files
    }


def download(files: VariantFiles, request: Request, folder: Path, variant: Variant, kept_at: Path) -> Download:
    """Write the files that a worker made to the study's folder, as a generator that the driver advances.

    It yields the reference to the next piece and expects that piece to be sent to it, so that the driver can do other
    work meanwhile. A checkpoint that stays appears at kept_at once it is complete, before the variant's files; the file
    that marks the variant as complete comes last.
    """
    needed = sum(files.checkpoint.values()) + sum(files.variant.values())
    with disk_errors(folder, needed):
        if files.checkpoint:
            copy = folder / MAKING / f"{variant.key}.copy"
            shutil.rmtree(copy, ignore_errors=True)
            try:
                yield from write_files(files.checkpoint, lambda *where: request("checkpoint", *where), copy)
                sync_tree(copy)
                kept_at.parent.mkdir(parents=True, exist_ok=True)
                replace_folder(copy, kept_at, overwrite=True)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
        for name, size in files.variant.items():
            part = f"{name}.part"
            yield from write_files(
                {part: size}, lambda _, *where, name=name: request("variants", name, *where), folder / VARIANTS
            )
            (folder / VARIANTS / part).rename(folder / VARIANTS / name)


def write_files(sizes: Mapping[str, int], request: Callable[[str, int, int], Any], folder: Path) -> Download:
    """Write files of these sizes in bytes to folder, piece by piece; a generator as download()."""
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            for start in range(0, size, PIECE):
                piece = yield request(name, start, PIECE)
                assert piece is not None
                file.write(piece.data)
