"""Files of variants on their way through Ray: to the workers that answer, and home from the one that made them."""

import shutil
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunus.checkpoint.writer import sync_tree
from prunus.disk import disk_errors, replace_folder
from prunus.study.cells import Variant
from prunus.study.ray.worker import Made, Piece
from prunus.study.variants import MAKING, VARIANTS, variant_files

PIECE = 64 << 20  # bytes of a file that travel at once

# (`checkpoint` or `variants`, a file of it, where to begin, how many bytes) -> what Ray will have of it
Ask = Callable[[str, str, int, int], Any]
Coming = Generator[Any, Piece | None, None]


def shipped(folder: Path, variant: Variant) -> dict[str, list[Any]]:
    """A variant's files as references to their pieces in Ray's store. folder: of the study."""
    import ray

    return {
        path.name: [
            ray.put(np.fromfile(path, np.uint8, PIECE, offset=start)) for start in range(0, path.stat().st_size, PIECE)
        ]
        for path in variant_files(folder, variant)
    }


def coming(made: Made, ask: Ask, folder: Path, variant: Variant, kept_at: Path) -> Coming:
    """Bring home what a worker made: yields what to wait for, and is sent the piece that came of it.

    The checkpoint, if it is to be kept, gets its name when it is whole, and before the variant's files, of which the
    one that says that the variant is complete comes last.
    """
    needed = sum(made.checkpoint.values()) + sum(made.variant.values())
    with disk_errors(folder, needed):
        if made.checkpoint:
            copy = folder / MAKING / f"{variant.key}.copy"
            shutil.rmtree(copy, ignore_errors=True)
            try:
                yield from copied(made.checkpoint, lambda *where: ask("checkpoint", *where), copy)
                sync_tree(copy)
                kept_at.parent.mkdir(parents=True, exist_ok=True)
                replace_folder(copy, kept_at, overwrite=True)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
        for name, size in made.variant.items():
            part = f"{name}.part"
            yield from copied(
                {part: size}, lambda _, *where, name=name: ask("variants", name, *where), folder / VARIANTS
            )
            (folder / VARIANTS / part).rename(folder / VARIANTS / name)


def copied(sizes: Mapping[str, int], ask: Callable[[str, int, int], Any], folder: Path) -> Coming:
    """Files of these sizes, piece by piece."""
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            for start in range(0, size, PIECE):
                piece = yield ask(name, start, PIECE)
                assert piece is not None
                file.write(piece.data)
