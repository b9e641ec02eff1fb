"""A worker of a study on a Ray cluster: a process with a dense model loaded, into which variants are swapped.

It never opens the store or the study's folder: every call carries its input, and returns its result. Files of variants
are sent through Ray, to the workers that answer and back from the worker that made the variant.
"""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import prunus
from prunus import progress
from prunus.checkpoint.resolve import resolve
from prunus.disk import scratch_folder
from prunus.errors import PrunusError
from prunus.evaluation.engine import Batch
from prunus.evaluation.provenance import describe_environment
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.evaluation.run import run_chains, thoughts_of
from prunus.settings.engines import EngineOptions
from prunus.settings.serving import Serving
from prunus.store.rows import Key, Sample
from prunus.store.stored import Environment
from prunus.store.thought import Thought
from prunus.studies.cells import Model, Variant, checkpoint_of
from prunus.studies.engine import StudyEngine
from prunus.studies.file import CellGrid
from prunus.studies.variants import VARIANTS, make_variant, target_folder, variant_files

FilePart = NDArray[np.uint8]  # bytes of a file; Ray shares arrays between processes without copying them
FileRefs = Mapping[str, Sequence[Any]]  # path in a study's folder -> Ray references to its pieces, in order


@dataclass(frozen=True)
class ModelRef:
    """A model as a worker finds it: by name, with the checksum that the worker's own copy must have.

    works: the resolved plans of the dense model by (plan, serving), as in Cell, with their problems and tokenizer.
    """

    name: str
    checksum: str
    works: Mapping[tuple[int, int], ResolvedPlan]

    @property
    def content(self) -> str | None:
        """Digest of configuration, tokenizer and chat template, which is the same in all works."""
        return next(iter(self.works.values())).content


class WorkerInfo(NamedTuple):
    """Host, process id and Prunus version of a worker."""

    node: str
    process: int
    version: str


class FilePiece(NamedTuple):
    """A piece of a file of a variant. size: bytes of all files of the variant together.

    name: path of the file in the study's folder or, if it is of the variant's checkpoint, below CHECKPOINT.
    """

    name: Path
    content: FilePart
    size: int


class BatchResult(NamedTuple):
    """Some rows of a job with the thinking of their chains, and the environment that computed them."""

    samples: list[Sample]
    thoughts: list[Thought]
    environment: Environment


class Worker:
    """The class that Ray runs as an actor. folder: where the study was started, for relative paths.

    Arguments named model are a Ray reference to a ModelRef and the model's name; the reference is fetched only if
    another model is loaded.
    """

    def __init__(self, folder: str, grid: CellGrid, device: str) -> None:
        with suppress(OSError):  # if the node lacks the folder, a relative path is reported as not found later
            os.chdir(folder)
        progress.set_quiet(True)
        self.scratch = ExitStack()
        self.folder = self.scratch.enter_context(scratch_folder())  # which has the layout of a study's folder
        self.engine = StudyEngine(grid, self.folder, device)
        self.model: Model | None = None
        self.works: Mapping[tuple[int, int], ResolvedPlan] = {}

    def info(self) -> WorkerInfo:
        """The worker's host, process and version. The driver calls this first, to know that it has started."""
        return WorkerInfo(socket.gethostname(), os.getpid(), prunus.__version__)

    def make(self, model: Sequence[Any], variant: Variant, keep: bool) -> Iterator[FilePiece]:
        """Make a variant and yield its files piece by piece, after those of its checkpoint if there is one.

        keep: whether the checkpoint is kept; that of a variant that is loaded whole always is. The worker's own files
        are deleted at the end.
        """
        opened = self.open_model(model)
        make_variant(opened, variant, self.folder, self.engine.device, keep)
        checkpoint = target_folder(self.folder, opened, variant, keep)
        files = {
            CHECKPOINT / path.relative_to(checkpoint): path for path in sorted(checkpoint.rglob("*")) if path.is_file()
        }
        files |= {path.relative_to(self.folder): path for path in variant_files(self.folder, variant)}
        size = sum(path.stat().st_size for path in files.values())
        for name, path in files.items():
            for piece in pieces_of(path):
                yield FilePiece(name, piece, size)
        for folder in (checkpoint, self.folder / VARIANTS):
            shutil.rmtree(folder, ignore_errors=True)

    def answer(
        self,
        model: Sequence[Any],
        variant: Variant,
        files: FileRefs,
        cell: tuple[int, int],
        chains: Batch,
        stored: Set[Key],
    ) -> Iterator[BatchResult]:
        """Yield the rows of the chains: in one piece or, if the engine streams, each as soon as it is complete.

        files: of the variant, fetched only if it is not loaded. cell: plan and serving, as in Cell. stored: rows that
        need not be drawn.
        """
        opened, (_, serving) = self.open_model(model), cell
        if (self.engine.variant, self.engine.serving) != (variant, serving):
            self.engine.release()
            for name, pieces in files.items():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (self.folder / name).open("wb") as file:
                    for piece in pieces:  # fetched one at a time
                        file.write(fetch(piece))
        backend = self.engine.hold(opened, variant, serving)
        for name in files:
            (self.folder / name).unlink(missing_ok=True)
        work = self.works[cell]
        backend.check(work)
        for portion in run_chains(work, backend, self.engine.grader, [chains], stored=stored):
            environment = describe_environment(backend, work.plan)
            yield BatchResult(portion.samples, thoughts_of(work, portion.finished), environment)

    def open_model(self, model: Sequence[Any]) -> Model:
        """The model of a reference and a name. Raises PrunusError if this node's copy has other weights."""
        reference, name = model
        if self.model is None or self.model.name != name:
            self.engine.release()
            wanted: ModelRef = fetch(reference)
            checkpoint = checkpoint_of(self.engine.grid, resolve(wanted.name))
            if checkpoint.checksum() != wanted.checksum:
                raise PrunusError(f"'{name}' has other weights here than where the study was started")
            if checkpoint.content() != wanted.content:
                raise PrunusError(f"'{name}' has another configuration or tokenizer here than where the study began")
            for (_, serving), work in wanted.works.items():
                self.check_environment(work, self.engine.grid.servings[serving].engine)
            self.works, tokenizer = wanted.works, next(iter(wanted.works.values())).tokenizer
            self.model = Model(name, checkpoint, tokenizer, [], [])
        return self.model

    def check_environment(self, work: ResolvedPlan, options: EngineOptions) -> None:
        """Raise PrunusError if an environment variable that counts in the run's id differs from the study's."""
        here = Serving.of(self.engine.name, options).environment
        there = work.serving.environment
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise PrunusError(
                    f"the environment variable {name} is {here.get(name, 'not set')} here and"
                    f" {there.get(name, 'not set')} where the study began: set it alike on all nodes before `ray start`"
                )


def fetch(reference: Any) -> Any:
    """The object to which a Ray reference refers."""
    import ray

    return ray.get(reference)


PIECE = 64 << 20  # bytes sent at a time
CHECKPOINT = Path("checkpoint")  # stands for the folder of a variant's checkpoint


def pieces_of(path: Path) -> Iterator[FilePart]:
    """Yield a file's bytes in pieces of at most PIECE bytes; a single empty piece for an empty file."""
    for start in range(0, max(1, path.stat().st_size), PIECE):
        yield np.fromfile(path, np.uint8, PIECE, offset=start)


def upload(folder: Path, files: Sequence[Path]) -> dict[str, list[Any]]:
    """Put a variant's files into Ray's object store; {path in the study's folder: references to its pieces}."""
    import ray

    return {str(path.relative_to(folder)): [ray.put(piece) for piece in pieces_of(path)] for path in files}
