"""The rungs of a search on a Ray cluster: what a decision needs comes first; idle workers compute what may follow.

A decision needs a few batches of one rung, so most workers would be idle. Meanwhile they make the next rungs and
evaluate these, and the current one further, as if it were certified. Decisions are left to the walk, which looks at
rows in their declared order whoever computed them and when. So a search on a cluster decides as one on a single machine
does; what it has computed beyond the end of the walk stays in the store, where no decision looks at it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prunus import progress
from prunus.finding.rungs import Rungs, Show
from prunus.finding.search import Rung, Search
from prunus.results.order import Round
from prunus.results.rows import Key, Sample
from prunus.results.store import Store
from prunus.study.cells import Cell, Variant
from prunus.study.live_table import LiveTable
from prunus.study.paths import StudyPaths
from prunus.study.ray.cluster import Cluster, capacity, connected
from prunus.study.ray.driver import Driver
from prunus.study.ray.jobs import Job
from prunus.study.variants import add_run, is_made

AHEAD = 8  # rungs at most that are computed ahead


def on_cluster(search: Search, cluster: Cluster | None) -> tuple[Search, "type[Rungs] | partial[RayRungs]"]:
    """A search as it is carried out on a cluster, and what makes and evaluates its rungs; None: on this machine.

    Checkpoints are kept, since this machine need not be able to make them again.
    """
    if cluster is None:
        return search, Rungs
    return replace(search, study=replace(search.study, keep_checkpoints=True)), partial(RayRungs, cluster=cluster)


class RayRungs(Rungs):
    """Rungs that the workers of a cluster make and evaluate. The cluster is joined when rows are missing."""

    def __init__(self, search: Search, store: Store, folder: Path, device: str, cluster: Cluster) -> None:
        super().__init__(search, store, folder, device)
        self.cluster = cluster
        self.driver: SearchDriver | None = None
        self.current: tuple[Rung, int] | None = None

    def expect(self, rung: Rung, looked: int) -> None:
        """Be told that a rung is being decided, of which the walk has looked at this many rounds."""
        self.current = rung, looked

    def evaluate(self, cell: Cell, rounds: Sequence[Round], show: Show) -> bool:
        """Have the rows of a cell that are missing in these rounds computed; returns True, since some may be new.

        They may have been computed ahead, while those of another cell were waited for. Whole looks are computed, so
        that these are the batches that workers may have computed ahead.
        """
        assert self.current is not None
        first, look = self.current[1], self.search.look
        parts = [self.search.order[s : s + look] for s in range(first // look * look, first + len(rounds), look)]
        if not self.missing(cell, rounds):
            return True
        driver = self.driver or self.joined()
        if self.driver is None and self.search.plan.backend == "vllm":  # it will occupy whole GPUs, so all are made now
            left = [rung.cell for rung in self.search.rungs if rung.variant.key not in self.deleted]
            driver.do([driver.job(one, None, 1) for one in left if one.variant.key in driver.unmade])
        self.driver = driver
        driver.show = show
        while missing := [batch for part in parts for batch in self.missing(cell, part)]:
            driver.do(driver.jobs_for(cell, missing, 0), self.ahead(driver))
        return True

    def ahead(self, driver: "SearchDriver") -> Iterator[Job]:
        """Jobs that may be needed after what is expected now."""
        assert self.current is not None
        parts = coming(self.search, *self.current, min(AHEAD, capacity(driver.gpus, driver.cpus)))
        stored: dict[str, set[Key]] = {}
        for rank, (cell, start, until) in enumerate(parts, 1):
            if cell.variant.key not in driver.given_up:
                if cell.run_id not in stored:
                    stored[cell.run_id] = self.store.keys(cell.run_id)
                missing = self.missing(cell, self.search.order[start:until], stored[cell.run_id])
                yield from driver.jobs_for(cell, missing, rank)

    def delete(self, variant: Variant) -> None:
        """Delete the files of a rung that is not needed any more."""
        super().delete(variant)
        if self.driver is not None:
            self.driver.files.pop(variant.key, None)

    def joined(self) -> "SearchDriver":
        """A driver of the cluster, until the rungs are closed."""
        self.stack.enter_context(connected(self.cluster.address))
        claims = self.stack.enter_context(ExitStack())
        gpus, cpus = self.cluster.worker_gpus(), self.cluster.cpus
        driver = SearchDriver(self.search, self.store, self.folder, claims, self.device, gpus, cpus)
        driver.check_capacity()
        return driver


def coming(search: Search, rung: Rung, looked: int, most: int) -> Iterator[tuple[Cell, int, int]]:
    """What the walk may need after it has looked at rounds of a rung, the likeliest first: (cell, first, last round).

    It is taken to certify this rung and the next ones, each when a harmless rung would be. most: rungs after this one.
    """
    enough, look, all_rounds = search.expected_rounds(), search.look, len(search.order)
    ladders = [list(rungs) for _, rungs in search.ladders]
    number = next(number for number, rungs in enumerate(ladders) if rung in rungs)
    rest = ladders[number][ladders[number].index(rung) + 1 :]
    after = [*rest, *(one for rungs in ladders[number + 1 :] for one in rungs)]
    spans = [(rung, looked, max(enough, looked + 2 * look)), *((one, 0, enough) for one in after[:most])]
    for one, first, last in spans:
        for start in range(first // look * look, min(last, all_rounds), look):
            yield search.dense, start, min(start + look, all_rounds)
            yield one.cell, start, min(start + look, all_rounds)


class SearchDriver(Driver):
    """The driver of a study on a cluster, for the rungs of a search. show: is told of rows that were needed."""

    def __init__(
        self, search: Search, store: Store, folder: Path, claims: ExitStack, device: str, gpus: float, cpus: float
    ) -> None:
        paths, table = StudyPaths(folder, Path(store.path)), Silent()
        super().__init__([], [search.model], paths, store, table, claims, search.study, device, gpus, cpus)
        self.search = search
        self.unmade = {rung.variant.key for rung in search.rungs if not is_made(folder, rung.variant)}
        self.show: Show = lambda *_: None

    def jobs_for(self, cell: Cell, batches: Sequence[list[tuple[int, int]]], rank: int) -> list[Job]:
        """The jobs for these batches, those in work among them, which get this rank if theirs is higher."""
        making = [None] if batches and cell.variant.key in self.unmade else []
        return list(dict.fromkeys(self.job(cell, batch, rank) for batch in [*making, *batches]))

    def job(self, cell: Cell, batch: list[tuple[int, int]] | None, rank: int) -> Job:
        """The job of answering a batch of a cell, or of making its variant (None)."""
        job = self.in_work(cell, batch)
        if job is None:
            of = None if batch is None else cell
            return Job(self.search.model, cell.variant, of, batch or [], rank == 0, rank=rank)
        if rank < job.rank:
            job.rank, job.early = rank, rank == 0
        return job

    def in_work(self, cell: Cell, batch: list[tuple[int, int]] | None) -> Job | None:
        """The job in which a worker answers a batch of a cell, or makes its variant (None)."""
        for worker in self.workers:
            job = worker.job
            if job is None or job.variant.key != cell.variant.key:
                continue
            if job.cell is None if batch is None else job.cell is not None and {*batch} <= {*job.batch}:
                return job
        return None

    def do(self, needed: Sequence[Job], ahead: Iterable[Job] = ()) -> None:
        """Work until the needed jobs are done; idle workers get those ahead."""
        self.replace_jobs([*needed, *ahead])
        while any(map(self.is_open, needed)):
            self.step()

    def replace_jobs(self, jobs: Sequence[Job]) -> None:
        """Queue these jobs in place of all others; those that are in work go on."""
        at_work = [worker.job for worker in self.workers]
        seen: set[tuple[Any, ...]] = set()
        self.jobs[:] = []
        for job in jobs:
            what = job.variant.key, job.cell is None, tuple(job.batch)
            if job not in at_work and what not in seen:
                seen.add(what)
                self.jobs.append(job)

    def is_open(self, job: Job) -> bool:
        """Whether a job is queued or in work."""
        return job in self.jobs or any(worker.job is job for worker in self.workers)

    def store_batch(self, job: Job, found: Any) -> None:
        """Add rows to the store; their run is marked before, as `find` marks those to which it adds rows."""
        assert job.cell is not None
        run = job.cell.run_id
        if run not in self.described:
            add_run(self.store, job.model, job.cell, self.folder, found.versions)
            self.store.mark_adaptive(run, {"by": "find", "seed": self.search.plan.seed})
            self.described.add(run)
        super().store_batch(job, found)
        if not job.rank:
            self.show(len(found.samples) / len(job.cell.resolved.budgets), found.tokens)


class Silent(LiveTable):
    """Stands in for a study's table, since the walk shows its own progress."""

    def __init__(self) -> None:
        super().__init__("", {}, {})

    def say(self, activity: str, log: bool = False) -> None:
        """Print what is worth a line."""
        if log:
            progress.say(activity)

    def add(self, run_id: str, samples: Sequence[Sample], tokens: int, seconds: float) -> None:
        """Show nothing."""
