"""A study on a Ray cluster. Workers make variants and answer batches; this process alone writes folder and store.

What is missing is cut into jobs: a variant to make, or a batch of a cell. A worker gets one at a time, by preference of
the variant that it holds. A job whose worker is lost is done again elsewhere. As seeds follow from keys and batches are
fixed, the rows do not depend on who did what. Files of variants travel through Ray, so that nodes need not share OUT.
"""

import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import prunus
from prunus import progress
from prunus.errors import PrunusError
from prunus.evaluation.pipeline import missing_batches
from prunus.results.store import Store
from prunus.study.board import Board
from prunus.study.cells import Cell, Model, Variant
from prunus.study.file import Study
from prunus.study.places import Places
from prunus.study.ray_cluster import first_line, gpus_there, joined, room
from prunus.study.ray_worker import Answered, Hello, Lent, Worker
from prunus.study.run import add_cell, board_rows
from prunus.study.variants import MAKING, VARIANTS, read_about, variant_files

ATTEMPTS = 3  # at a job, or at starting a worker, before the study is given up
WAIT_SECONDS = 1.0  # between looks at the cluster
IDLE_SECONDS = 60.0  # without any worker before the user is told
PIECE = 64 << 20  # bytes of a file that travel at once


@dataclass(eq=False)
class Job:
    """A batch of a cell; without a cell: the variant is to be made. early: before everything that is not."""

    model: Model
    variant: Variant
    cell: Cell | None
    batch: list[tuple[int, int]]
    early: bool
    attempts: int = 0

    @property
    def what(self) -> str:
        """For people."""
        return f"{'making' if self.cell is None else 'evaluating'} {self.variant.name} of {self.model.label}"


@dataclass(eq=False)
class Hand:
    """A worker: Ray's actor, where it is (None until it has said so), what it does and what it did before."""

    actor: Any
    hello: Hello | None = None
    job: Job | None = None
    last: Job | None = None


def run_on_ray(
    study: Study,
    models: Sequence[Model],
    places: Places,
    store: Store,
    device: str,
    address: str,
    gpus_per_task: float | None,
    cpus_per_task: float,
) -> None:
    """As run_cells of the local run: every missing cell. gpus_per_task: by default 1 where the cluster has any."""
    for key in ("keep_checkpoints", "measure_seconds"):
        if getattr(study, key):
            raise PrunusError(f"{study.path}: {key} needs a run on this machine; leave it or --ray out")
    jobs = list(jobs_of(models, places, store))
    if not jobs:
        return
    with joined(address), ExitStack() as claims:
        gpus = float(gpus_there()) if gpus_per_task is None else gpus_per_task
        rows, bases = board_rows(study, models, store)
        with Board(f"study {study.name}", list(rows.values()), bases) as board:
            Driver(jobs, models, places, store, board, rows, claims, study, device, gpus, cpus_per_task).run()
    shutil.rmtree(places.folder / MAKING, ignore_errors=True)


def jobs_of(models: Sequence[Model], places: Places, store: Store) -> Iterator[Job]:
    """What is missing, in the order of the local run: dense models, variants with a batch each, the rest."""
    for model in models:
        for variant in model.variants:
            missing = [(cell, batch) for cell in model.cells_of(variant) for batch in missing_batches(store, cell.work)]
            if missing and not is_made(places.folder, variant):
                yield Job(model, variant, None, [], True)
            for cell, batch in missing:
                yield Job(model, variant, cell, batch, variant.recipe is None or batch == cell.work.batches[0])


def is_made(folder: Path, variant: Variant) -> bool:
    """Whether a variant can be had: the dense model always."""
    return variant.recipe is None or read_about(folder, variant) is not None


class Driver:
    """Hands jobs out and takes results in, until no job is left."""

    def __init__(
        self,
        jobs: list[Job],
        models: Sequence[Model],
        places: Places,
        store: Store,
        board: Board,
        rows: dict[str, Any],
        claims: ExitStack,
        study: Study,
        device: str,
        gpus: float,
        cpus: float,
    ) -> None:
        import ray

        self.jobs, self.places, self.store, self.board, self.rows = jobs, places, store, board, rows
        self.claims, self.gpus, self.cpus = claims, gpus, cpus
        actor: Any = ray.remote(num_gpus=gpus, num_cpus=cpus, max_restarts=0)(Worker)
        self.new_actor = lambda: actor.remote(str(Path.cwd()), study, device)
        self.lent = {model.typed: [ray.put(lend(model)), model.typed] for model in models}
        self.files: dict[str, dict[str, list[Any]]] = {}  # pieces of a variant's files in Ray's store, by its key
        self.unmade = {job.variant.key for job in jobs if job.cell is None}
        self.claimed: set[str] = set()
        self.hands: list[Hand] = []
        self.flights: dict[Any, Hand] = {}  # what Ray gave for a call -> who does it
        self.failed_starts = 0
        self.seen_at = self.added_at = time.monotonic()

    def run(self) -> None:
        """Until everything is in the store."""
        import ray

        if not room(self.gpus, self.cpus):
            raise PrunusError(
                f"no node of the cluster has the {self.gpus:g} GPUs and {self.cpus:g} CPUs that one worker is to have:"
                " lower --gpus-per-task or --cpus-per-task"
            )
        while self.jobs or any(hand.job for hand in self.hands):
            self.hire()
            for hand in self.hands:
                if hand.hello and hand.job is None and (job := pick(self.jobs, self.unmade, hand, self.hands)):
                    self.assign(hand, job)
            self.board.say(self.summary())
            for landed in ray.wait(list(self.flights), timeout=WAIT_SECONDS)[0]:
                self.settle(self.flights.pop(landed), landed)

    def summary(self) -> str:
        """`8 workers: evaluating wanda-20 of tiny (3), ...`."""
        doing = [hand.job.what for hand in self.hands if hand.job]
        parts = [f"{what} ({doing.count(what)})" for what in dict.fromkeys(doing)]
        return f"{len(doing)} workers: {', '.join(parts)}"

    def hire(self) -> None:
        """As many workers as there is work and room for; nodes that join later are used too."""
        if any(hand.hello for hand in self.hands):
            self.seen_at = time.monotonic()
        elif time.monotonic() - self.seen_at > IDLE_SECONDS:
            self.seen_at = time.monotonic()
            progress.say("no worker has started yet: others may hold the cluster (`ray status` shows it)")
        busy = sum(hand.job is not None for hand in self.hands)
        for _ in range(min(len(self.jobs) + busy, room(self.gpus, self.cpus)) - len(self.hands)):
            hand = Hand(self.new_actor())
            self.hands.append(hand)
            self.flights[hand.actor.hello.remote()] = hand

    def assign(self, hand: Hand, job: Job) -> None:
        """Send the job to the worker."""
        self.jobs.remove(job)
        hand.job = job
        lent = self.lent[job.model.typed]
        if job.cell is None:
            self.board.say(job.what, aloud=True)
            call = hand.actor.make.remote(lent, job.variant)
        else:
            run = job.cell.work.run_id
            if run not in self.claimed:
                self.claims.enter_context(self.store.claim(run))
                self.claimed.add(run)
            call = hand.actor.answer.remote(lent, job.variant, self.ship(job.variant), job.cell.plan, job.batch)
        self.flights[call] = hand

    def ship(self, variant: Variant) -> dict[str, list[Any]]:
        """A variant's files as references to their pieces, which each node fetches once."""
        import ray

        if variant.recipe is None:
            return {}
        if variant.key not in self.files:
            self.files[variant.key] = {
                path.name: [ray.put(np.fromfile(path, np.uint8, PIECE, offset=start)) for start in pieces(path)]
                for path in variant_files(self.places.folder, variant)
            }
        return self.files[variant.key]

    def settle(self, hand: Hand, landed: Any) -> None:
        """Take in what a call came to; a lost worker's job goes back to the others."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            found = ray.get(landed)
            if isinstance(found, Hello):
                hand.hello, self.failed_starts = self.welcome(found), 0
                return
            assert hand.job is not None
            if isinstance(found, Answered):
                self.keep(hand.job, found)
            else:
                self.fetch(hand, dict(found))
        except RayTaskError as error:
            where = f"on {hand.hello.node}: " if hand.hello else ""
            if isinstance(error.cause, PrunusError):
                raise PrunusError(f"{where}{error.cause}") from error
            raise error.cause from error
        except RayError as error:
            self.lose(hand, error)
            return
        hand.last, hand.job = hand.job, None

    def welcome(self, hello: Hello) -> Hello:
        """PrunusError where a node has another Prunus, whose rows may be others."""
        if hello.version != prunus.__version__:
            raise PrunusError(
                f"{hello.node} has prunus {hello.version}, this is {prunus.__version__}: install the same everywhere"
            )
        return hello

    def keep(self, job: Job, found: Answered) -> None:
        """Store a batch."""
        assert job.cell is not None
        add_cell(self.store, job.model, job.cell, self.places, found.versions)
        self.store.add_samples(job.cell.work.run_id, found.done.samples)
        now = time.monotonic()
        row = self.rows[job.cell.work.run_id]
        self.board.add(row, found.done.samples, found.done.tokens, max(1e-9, now - self.added_at))
        self.added_at = now
        if all(job.variant.key != other.variant.key for other in self.jobs):
            self.files.pop(job.variant.key, None)

    def fetch(self, hand: Hand, sizes: dict[str, int]) -> None:
        """Bring home the files of a variant that a worker made; the one that says it is complete comes last."""
        import ray

        folder = self.places.folder / VARIANTS
        folder.mkdir(parents=True, exist_ok=True)
        for name, size in sizes.items():
            part = folder / f"{name}.part"
            with part.open("wb") as file:
                for start in range(0, size, PIECE):
                    file.write(ray.get(hand.actor.piece.remote(name, start, PIECE)))
            part.rename(folder / name)
        assert hand.job is not None
        self.unmade.discard(hand.job.variant.key)

    def lose(self, hand: Hand, error: BaseException) -> None:
        """A worker is gone, with its machine or alone: its job is another's now."""
        self.hands.remove(hand)
        job, reason = hand.job, first_line(error)
        if "No module named" in str(error):
            raise PrunusError("a node of the cluster lacks prunus: pip install 'prunus[ray]' on every node") from error
        if job is None:
            self.failed_starts += 1
            if self.failed_starts >= ATTEMPTS:
                raise PrunusError(f"workers end as they start ({reason}); Ray's logs on the node say why") from error
            return
        job.attempts += 1
        where = hand.hello.node if hand.hello else "?"
        if job.attempts >= ATTEMPTS:
            raise PrunusError(
                f"{job.what} lost {ATTEMPTS} workers, the last on {where} ({reason}): is its memory enough?"
                " What is done is kept, the same command goes on"
            ) from error
        progress.say(f"a worker on {where} was lost while {job.what} ({reason}): another does it")
        self.jobs.insert(0, job)


def pick(jobs: Sequence[Job], unmade: Collection[str], hand: Hand, hands: Sequence[Hand]) -> Job | None:
    """The next job for this worker: early ones first; then its own model, its variant, one with few others at it.

    unmade: variants that cannot be had yet.
    """
    ready = [job for job in jobs if job.cell is None or job.variant.key not in unmade]
    crowd = [other.job.variant.key for other in hands if other.job]

    def cost(job: Job) -> tuple[bool, bool, bool, int]:
        last, key = hand.last, job.variant.key
        is_another = job.cell is None or last is None or last.variant.key != key
        return not job.early, last is not None and last.model is not job.model, is_another, crowd.count(key)

    return min(ready, key=cost, default=None)


def lend(model: Model) -> Lent:
    """What a worker needs to know of a model."""
    works = [cell.work for cell in model.cells if cell.variant.recipe is None]
    return Lent(model.typed, model.checkpoint.checksum(), works)


def pieces(path: Path) -> range:
    """Where the pieces of a file begin."""
    return range(0, path.stat().st_size, PIECE)
