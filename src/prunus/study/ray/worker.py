"""A worker of a study on a cluster: one process that holds a dense model, and in it the variant that answers.

It never sees the store nor the study's folder: what it is to do comes with each call, and what came of it goes back.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import prunus
from prunus import progress
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.errors import PrunusError
from prunus.evaluation.backends.loading import pick
from prunus.evaluation.grading import Grader
from prunus.evaluation.latency import machine_of
from prunus.evaluation.pipeline import Done, answer_batch, speed_here
from prunus.evaluation.provenance import describe_versions
from prunus.evaluation.requests import Backend
from prunus.evaluation.resolved_plan import ResolvedPlan, check_engine
from prunus.study.cells import Model, Variant
from prunus.study.file import Study
from prunus.study.run import Engine
from prunus.study.variants import MAKING, VARIANTS, kept_folder, make_variant, variant_files

Piece = NDArray[np.uint8]


@dataclass(frozen=True)
class Lent:
    """A model as workers are told of it. works: of the dense model, one a plan; they hold problems and tokenizer."""

    typed: str
    checksum: str
    works: list[ResolvedPlan]


class Hello(NamedTuple):
    """Where a worker is, which Prunus it has, and under which name speeds of its machine are stored."""

    node: str
    process: int
    version: str
    machine: str


class Made(NamedTuple):
    """Bytes of each file of a variant, and of its checkpoint where that is to be kept; piece() gives them."""

    variant: dict[str, int]
    checkpoint: dict[str, int]


class Answered(NamedTuple):
    """What came of a batch, and what computed it."""

    done: Done
    versions: dict[str, Any]


class Clocked(NamedTuple):
    """How fast a model is, and on which machine."""

    machine: str
    speed: dict[str, Any]


class Worker:
    """What Ray makes an actor of. folder: where the study was started; relative paths are meant from there."""

    def __init__(self, folder: str, study: Study, device: str) -> None:
        with suppress(OSError):  # not there: then such paths are not found, which says what is wrong
            os.chdir(folder)
        progress.set_quiet(True)
        self.device, self.engine, self.grader = device, Engine(study, device), Grader()
        self.scratch = tempfile.TemporaryDirectory(prefix="prunus-")
        self.model: Model | None = None
        self.works: list[ResolvedPlan] = []
        self.held, self.holds = ExitStack(), ""
        self.backend: Backend | None = None
        self.made = self.folder / MAKING

    @property
    def folder(self) -> Path:
        """In place of the study's folder."""
        return Path(self.scratch.name)

    def hello(self) -> Hello:
        """So that the driver knows that this worker lives."""
        return Hello(socket.gethostname(), os.getpid(), prunus.__version__, machine_of(pick(self.device)))

    def make(self, lent: Sequence[Any], variant: Variant, keep: bool) -> Made:
        """Make a variant. keep: its checkpoint too, until forget()."""
        model = self.take(lent)
        make_variant(model, variant, self.folder, self.device, keep)
        self.made = kept_folder(self.folder, model, variant)
        return Made(
            {path.name: path.stat().st_size for path in variant_files(self.folder, variant)},
            {
                str(path.relative_to(self.made)): path.stat().st_size
                for path in sorted(self.made.rglob("*"))
                if path.is_file()
            },
        )

    def piece(self, of: str, name: str, start: int, size: int) -> Piece:
        """Bytes of a file that make() left. of: `checkpoint` or `variants`."""
        folder = self.made if of == "checkpoint" else self.folder / VARIANTS
        return np.fromfile(folder / name, np.uint8, size, offset=start)

    def forget(self) -> None:
        """Delete what make() left: the driver has it."""
        shutil.rmtree(self.made, ignore_errors=True)
        shutil.rmtree(self.folder / VARIANTS, ignore_errors=True)

    def answer(
        self,
        lent: Sequence[Any],
        variant: Variant,
        files: Mapping[str, Sequence[Any]],
        plan: int,
        batch: list[tuple[int, int]],
    ) -> Answered:
        """Do a batch. lent, files: references, fetched only if this worker does not hold what they are of."""
        _, backend = self.become(lent, variant, files)
        check_engine(self.works[plan], backend)
        done = answer_batch(self.works[plan], backend, self.grader, batch)
        return Answered(done, describe_versions(backend))

    def clock(self, lent: Sequence[Any], variant: Variant, files: Mapping[str, Sequence[Any]], plan: int) -> Clocked:
        """How fast the variant is here. Arguments as of answer."""
        model, backend = self.become(lent, variant, files)
        return Clocked(*speed_here(self.works[plan], backend, model.checkpoint))

    def become(
        self, lent: Sequence[Any], variant: Variant, files: Mapping[str, Sequence[Any]]
    ) -> tuple[Model, Backend]:
        """Hold a variant: the dense model, and what runs with the variant's weights."""
        model = self.take(lent)
        if self.backend is None or self.holds != variant.key:
            self.let_go()
            for name, pieces in files.items():
                write(self.folder / VARIANTS / name, pieces)
            self.backend = self.held.enter_context(self.engine.holding(model, variant, self.folder))
            self.holds = variant.key
            for path in variant_files(self.folder, variant):
                path.unlink(missing_ok=True)
        return model, self.backend

    def take(self, lent: Sequence[Any]) -> Model:
        """The model that lent, a reference and the name, stands for."""
        reference, typed = lent
        if self.model is None or self.model.typed != typed:
            self.let_go()
            told: Lent = fetch(reference)
            checkpoint = Checkpoint(resolve(told.typed))
            if checkpoint.checksum() != told.checksum:
                raise PrunusError(f"'{typed}' has other weights here than where the study was started")
            self.works = told.works
            self.model = Model(typed, checkpoint, told.works[0].tokenizer, [], [])
        return self.model

    def let_go(self) -> None:
        """Back to the dense model."""
        self.held.close()
        self.holds, self.backend = "", None


def write(path: Path, pieces: Sequence[Any]) -> None:
    """A file of pieces that are fetched one by one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for piece in pieces:
            file.write(fetch(piece))


def fetch(reference: Any) -> Any:
    """What a reference stands for."""
    import ray

    return ray.get(reference)
