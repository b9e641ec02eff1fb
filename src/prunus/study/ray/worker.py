"""A worker of a study on a Ray cluster: a process with one dense model loaded, into which variants are swapped.

It never opens the store or the study's folder: every call carries its input, and returns its result. Files of variants
are sent through Ray, to the workers that answer and back from the one that made the variant.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import prunus
from prunus import progress
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.writer import sync_tree
from prunus.disk import disk_errors, replace_folder
from prunus.errors import PrunusError
from prunus.evaluation.grading import Grader
from prunus.evaluation.provenance import describe_versions
from prunus.evaluation.requests import Backend
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.evaluation.run import check_engine, planned_chains, run_chains
from prunus.results.rows import Sample
from prunus.study.cells import Model, Variant, checkpoint_of
from prunus.study.engine import Engine
from prunus.study.file import Study
from prunus.study.variants import MAKING, VARIANTS, make_variant, target_folder, variant_files

Piece = NDArray[np.uint8]  # bytes of a file; Ray shares arrays between processes without copying them
FileRefs = Mapping[str, Sequence[Any]]  # path in a study's folder -> Ray references to its pieces, in order


@dataclass(frozen=True)
class ModelRef:
    """A model as a worker finds it: by name, with the checksum that the worker's own copy must have.

    works: the resolved plans of the dense model, one for each plan of the study, with their problems and tokenizer.
    """

    name: str
    checksum: str
    works: list[ResolvedPlan]


class WorkerInfo(NamedTuple):
    """Host, process id and Prunus version of a worker."""

    node: str
    process: int
    version: str


class VariantFiles(NamedTuple):
    """{file name: size in bytes} of a variant's files, and of its checkpoint's files if the checkpoint stays."""

    variant: dict[str, int]
    checkpoint: dict[str, int]


class BatchResult(NamedTuple):
    """Some rows of a job, the tokens sampled for them, and the versions of the libraries that computed them."""

    samples: list[Sample]
    tokens: int
    versions: dict[str, object]


class Worker:
    """The class that Ray runs as an actor. folder: the one in which the study was started, for relative paths.

    Arguments named model are a Ray reference to a ModelRef and the model's name; the reference is fetched only if
    another model is loaded.
    """

    def __init__(self, folder: str, study: Study, device: str) -> None:
        with suppress(OSError):  # if the node lacks the folder, a relative path is reported as not found later
            os.chdir(folder)
        progress.set_quiet(True)
        self.device, self.engine, self.grader = device, Engine(study, device), Grader()
        self.scratch = tempfile.TemporaryDirectory(prefix="prunus-")
        self.model: Model | None = None
        self.works: list[ResolvedPlan] = []
        self.loaded, self.loaded_key = ExitStack(), ""
        self.backend: Backend | None = None
        self.made = self.folder / MAKING

    @property
    def folder(self) -> Path:
        """This worker's own folder, which has the layout of a study's folder."""
        return Path(self.scratch.name)

    def info(self) -> WorkerInfo:
        """The worker's host, process and version. The driver calls this first, to know that it has started."""
        return WorkerInfo(socket.gethostname(), os.getpid(), prunus.__version__)

    def make(self, model: Sequence[Any], variant: Variant, keep: bool) -> VariantFiles:
        """Make a variant and return the sizes of its files. They stay until delete_made(). keep: its checkpoint too."""
        opened = self.open_model(model)
        make_variant(opened, variant, self.folder, self.device, keep)
        self.made = target_folder(self.folder, opened, variant, keep)
        checkpoint = sorted(path for path in self.made.rglob("*") if path.is_file())
        return VariantFiles(
            {path.name: path.stat().st_size for path in variant_files(self.folder, variant)},
            {str(path.relative_to(self.made)): path.stat().st_size for path in checkpoint},
        )

    def piece(self, of: str, name: str, start: int, size: int) -> Piece:
        """Up to `size` bytes of a file that make() wrote, from byte `start` on. of: `checkpoint` or `variants`."""
        folder = self.made if of == "checkpoint" else self.folder / VARIANTS
        return np.fromfile(folder / name, np.uint8, size, offset=start)

    def delete_made(self) -> None:
        """Delete the files that make() wrote; the driver calls it once it has them."""
        shutil.rmtree(self.made, ignore_errors=True)
        shutil.rmtree(self.folder / VARIANTS, ignore_errors=True)

    def answer(
        self, model: Sequence[Any], variant: Variant, files: FileRefs, plan: int, chains: list[tuple[int, int]]
    ) -> Iterator[BatchResult]:
        """Yield the rows of the chains: in one piece or, if the engine streams, each as soon as it is complete.

        files: of the variant, fetched only if it is not loaded. plan: index in the study.
        """
        backend = self.load_variant(model, variant, files)
        work = self.works[plan]
        check_engine(work, backend)
        for portion in run_chains(work, backend, self.grader, planned_chains(work, backend, [chains])):
            yield BatchResult(portion.samples, portion.tokens, describe_versions(backend))

    def load_variant(self, model: Sequence[Any], variant: Variant, files: FileRefs) -> Backend:
        """A backend with the variant's weights."""
        opened = self.open_model(model)
        if self.backend is None or self.loaded_key != variant.key:
            self.release()
            for name, pieces in files.items():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (self.folder / name).open("wb") as file:
                    for piece in pieces:  # fetched one at a time
                        file.write(fetch(piece))
            backend = self.loaded.enter_context(self.engine.holding(opened, variant, self.folder))
            assert isinstance(backend, Backend), "control native is not for Ray"
            self.backend, self.loaded_key = backend, variant.key
            for name in files:
                (self.folder / name).unlink(missing_ok=True)
        return self.backend

    def open_model(self, model: Sequence[Any]) -> Model:
        """The model of a reference and a name. Raises PrunusError if this node's copy has other weights."""
        reference, name = model
        if self.model is None or self.model.name != name:
            self.release()
            wanted: ModelRef = fetch(reference)
            checkpoint = checkpoint_of(self.engine.study, resolve(wanted.name))
            if checkpoint.checksum() != wanted.checksum:
                raise PrunusError(f"'{name}' has other weights here than where the study was started")
            self.works = wanted.works
            self.model = Model(name, checkpoint, wanted.works[0].tokenizer, [], [])
        return self.model

    def release(self) -> None:
        """Swap the variant out, which leaves the dense model."""
        self.loaded.close()
        self.loaded_key, self.backend = "", None


def fetch(reference: Any) -> Any:
    """The object to which a Ray reference refers."""
    import ray

    return ray.get(reference)


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
