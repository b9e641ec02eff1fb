"""A study on a Ray cluster. Workers make variants and answer batches; this process alone writes folder and store.

What is missing is cut into jobs: a variant to make, or a batch of a cell. A worker gets one at a time, by preference of
the variant that it holds. A job whose worker is lost is done again elsewhere. As seeds follow from keys and batches are
fixed, the rows do not depend on who did what. Files of variants travel through Ray, so that nodes need not share OUT.
Speeds are measured when all else is done, by one worker alone.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import prunus
from prunus import progress
from prunus.checkpoint.writer import check_target
from prunus.errors import PrunusError
from prunus.results.store import Store
from prunus.study.cells import Model, Variant
from prunus.study.file import Study
from prunus.study.live_table import Board
from prunus.study.places import Places
from prunus.study.ray.cluster import first_line, gpus_there, joined, room
from prunus.study.ray.jobs import Hand, Job, is_clocked, jobs_of, pick
from prunus.study.ray.transfer import coming, shipped
from prunus.study.ray.worker import Answered, Clocked, Hello, Lent, Made, Worker
from prunus.study.run import add_cell, board_rows
from prunus.study.variants import MAKING, kept_folder

ATTEMPTS = 3  # at a job, or at starting a worker, before the study is given up
WAIT_SECONDS = 1.0  # between looks at the cluster
IDLE_SECONDS = 60.0  # without any worker before the user is told


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
    jobs = list(jobs_of(models, places, store))
    if study.keep_checkpoints:
        for job in jobs:
            if job.cell is None:
                check_target(job.model.checkpoint.folder, kept_folder(places.folder, job.model, job.variant), True)
    clocks = study.measure_seconds and not is_clocked(models, store)
    if not jobs and not clocks:
        return
    with joined(address), ExitStack() as claims:
        gpus = float(gpus_there()) if gpus_per_task is None else gpus_per_task
        rows, bases = board_rows(study, models, store)
        with Board(f"study {study.name}", list(rows.values()), bases) as board:
            driver = Driver(jobs, models, places, store, board, rows, claims, study, device, gpus, cpus_per_task)
            driver.run()
            if clocks:
                driver.clock(models)
    shutil.rmtree(places.folder / MAKING, ignore_errors=True)


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
        self.claims, self.gpus, self.cpus, self.keeps = claims, gpus, cpus, study.keep_checkpoints
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
        """Until every row is in the store."""
        if not room(self.gpus, self.cpus):
            raise PrunusError(
                f"no node of the cluster has the {self.gpus:g} GPUs and {self.cpus:g} CPUs that one worker is to have:"
                " lower --gpus-per-task or --cpus-per-task"
            )
        while self.jobs or any(hand.job for hand in self.hands):
            self.hire(len(self.jobs) + sum(hand.job is not None for hand in self.hands))
            for hand in self.hands:
                if hand.hello and hand.job is None and (job := pick(self.jobs, self.unmade, hand, self.hands)):
                    self.jobs.remove(job)
                    self.assign(hand, job)
            self.wait()

    def clock(self, models: Sequence[Model]) -> None:
        """The speeds of all cells, one after another by one worker, while the others have nothing to do.

        Where some are known already, by one whose machine is theirs, if there is one.
        """
        jobs = [
            Job(model, variant, cell, [], False, clocks=True)
            for model in models
            for variant in model.variants
            for cell in model.cells_of(variant)
        ]

        def missing(hand: Hand) -> list[Job]:
            assert hand.hello is not None
            machine = hand.hello.machine
            return [job for job in jobs if job.cell and machine not in self.store.timings(job.cell.work.run_id)]

        while True:
            self.hire(1)
            ready = [hand for hand in self.hands if hand.hello]
            if ready and not any(hand.job for hand in self.hands):
                hand = min(ready, key=lambda hand: len(missing(hand)))
                if not (todo := missing(hand)):
                    return
                self.assign(hand, todo[0])
            self.wait()

    def wait(self) -> None:
        """For a moment, or until something has come of a call."""
        import ray

        self.board.say(self.summary())
        if not self.flights:  # no room for anyone at present
            time.sleep(WAIT_SECONDS)
        for landed in ray.wait(list(self.flights), timeout=WAIT_SECONDS)[0]:
            self.settle(self.flights.pop(landed), landed)

    def summary(self) -> str:
        """`8 workers: evaluating wanda-20 of tiny (3), ...`."""
        doing = [hand.job.what for hand in self.hands if hand.job]
        parts = [f"{what} ({doing.count(what)})" for what in dict.fromkeys(doing)]
        return f"{len(doing)} workers: {', '.join(parts)}"

    def hire(self, wanted: int) -> None:
        """So many workers, if there is room for them; nodes that join later are used too."""
        if any(hand.hello for hand in self.hands):
            self.seen_at = time.monotonic()
        elif time.monotonic() - self.seen_at > IDLE_SECONDS:
            self.seen_at = time.monotonic()
            progress.say("no worker has started yet: others may hold the cluster (`ray status` shows it)")
        for _ in range(min(wanted, room(self.gpus, self.cpus)) - len(self.hands)):
            hand = Hand(self.new_actor())
            self.hands.append(hand)
            self.flights[hand.actor.hello.remote()] = hand

    def assign(self, hand: Hand, job: Job) -> None:
        """Send the job to the worker."""
        hand.job = job
        lent, variant = self.lent[job.model.typed], job.variant
        if job.cell is None:
            self.board.say(job.what, aloud=True)
            call = hand.actor.make.remote(lent, variant, self.keeps)
        elif job.clocks:
            call = hand.actor.clock.remote(lent, variant, self.ship(variant), job.cell.plan)
        else:
            run = job.cell.work.run_id
            if run not in self.claimed:
                self.claims.enter_context(self.store.claim(run))
                self.claimed.add(run)
            call = hand.actor.answer.remote(lent, variant, self.ship(variant), job.cell.plan, job.batch)
        self.flights[call] = hand

    def ship(self, variant: Variant) -> dict[str, list[Any]]:
        """A variant's files in Ray's store, from which each node fetches them once."""
        if variant.recipe is None:
            return {}
        if variant.key not in self.files:
            self.files[variant.key] = shipped(self.places.folder, variant)
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
            if self.take(hand, found):
                return
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

    def take(self, hand: Hand, found: Any) -> bool:
        """Store what a worker gives; whether more of the same job is to come."""
        job = hand.job
        assert job is not None
        if isinstance(found, Answered):
            self.keep(job, found)
        elif isinstance(found, Clocked):
            assert job.cell is not None
            self.store.set_timing(job.cell.work.run_id, found.machine, found.speed)
            self.done_with(job.variant)
        else:
            try:
                if isinstance(found, Made):
                    kept_at = kept_folder(self.places.folder, job.model, job.variant)
                    hand.coming = coming(found, hand.actor.piece.remote, self.places.folder, job.variant, kept_at)
                    call = next(hand.coming)
                else:
                    assert hand.coming is not None
                    call = hand.coming.send(found)
            except StopIteration:
                hand.coming = None
                hand.actor.forget.remote()
                self.unmade.discard(job.variant.key)
            else:
                self.flights[call] = hand
                return True
        return False

    def keep(self, job: Job, found: Answered) -> None:
        """Store a batch."""
        assert job.cell is not None
        add_cell(self.store, job.model, job.cell, self.places, found.versions)
        self.store.add_samples(job.cell.work.run_id, found.done.samples)
        now = time.monotonic()
        row = self.rows[job.cell.work.run_id]
        self.board.add(row, found.done.samples, found.done.tokens, max(1e-9, now - self.added_at))
        self.added_at = now
        self.done_with(job.variant)

    def done_with(self, variant: Variant) -> None:
        """Ray may forget the variant's files unless there is more to do with it."""
        if all(variant.key != other.variant.key for other in self.jobs):
            self.files.pop(variant.key, None)

    def lose(self, hand: Hand, error: BaseException) -> None:
        """A worker is gone, with its machine or alone: its job is another's now."""
        self.hands.remove(hand)
        if hand.coming is not None:
            hand.coming.close()
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
        if not job.clocks:  # clock() finds it again
            self.jobs.insert(0, job)


def lend(model: Model) -> Lent:
    """What a worker needs to know of a model."""
    works = [cell.work for cell in model.cells if cell.variant.recipe is None]
    return Lent(model.typed, model.checkpoint.checksum(), works)
