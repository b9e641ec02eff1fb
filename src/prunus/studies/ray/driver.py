"""Run a study on a Ray cluster: workers make variants and answer batches; this process writes the store and the folder.

The missing work is cut into jobs: a variant to make, or a batch of a cell to answer. A worker has one job at a time,
preferably of the variant that it has loaded. An engine that schedules requests itself gets several batches in one job,
and sends every chain when it is complete. The job of a lost worker goes to another worker. Seeds follow from keys and
batches are fixed, so the rows do not depend on which worker computed them. Files of variants are sent through Ray, so
the nodes need no common file system.
"""

import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prunus
from prunus import progress
from prunus.checkpoint.writer import check_target, sync_tree
from prunus.disk import disk_errors, replace_folder
from prunus.errors import PrunusError, pip
from prunus.plain_data import canonical_json
from prunus.settings.engines import BACKENDS
from prunus.store.rows import Sample
from prunus.store.store import Store, claim
from prunus.store.stored import Adaptive
from prunus.studies.cells import Model, Variant
from prunus.studies.engine import StudyJob, missing_jobs
from prunus.studies.file import CellGrid, Study
from prunus.studies.ray import Cluster, capacity, connected, first_line, has_gpus
from prunus.studies.ray.worker import CHECKPOINT, BatchResult, FilePiece, ModelRef, Worker, WorkerInfo, upload
from prunus.studies.terminal import StudyBar
from prunus.studies.variants import (
    MAKING,
    VARIANTS,
    add_run,
    files_to_load,
    kept_folder,
    target_folder,
    variant_files,
)


@dataclass(eq=False)
class WorkerHandle:
    """The driver's record of a worker: Ray's actor, its current job and its last job.

    info: None until the worker has started.
    """

    actor: Any
    info: WorkerInfo | None = None
    job: StudyJob | None = None
    last: StudyJob | None = None


def take_along(job: StudyJob, jobs: list[StudyJob], workers: int) -> None:
    """Add other batches of a job's cell to it, and remove them from jobs, for an engine that schedules requests itself.

    Such an engine is emptied at the end of a job, so a job should be long. But workers should end together, so it is
    at most half of a worker's part of what is left.
    """
    left = [other for other in jobs if other.cell is not None and other.early == job.early]
    alike = [other for other in left if other.cell is job.cell and other is not job]
    for other in alike[: len(left) // (2 * workers)]:
        job.batch = job.batch + other.batch
        job.attempts = max(job.attempts, other.attempts)
        jobs.remove(other)


def next_job(
    jobs: Sequence[StudyJob], unmade: Collection[str], worker: WorkerHandle, workers: Sequence[WorkerHandle]
) -> StudyJob | None:
    """The next job for a worker; None if no job is ready. unmade: keys of variants that are not made yet.

    Early jobs come first. Among equals, jobs come first that are of the model that the worker has loaded; then those of
    its serving; then those of its variant; then those of the variant that the fewest workers are busy with.
    """
    ready = [job for job in jobs if job.cell is None or job.variant.key not in unmade]
    busy_with = [other.job.variant.key for other in workers if other.job]

    def cost(job: StudyJob) -> tuple[bool, bool, bool, bool, int]:
        last, key = worker.last, job.variant.key
        needs_loading = job.cell is None or last is None or last.variant.key != key
        other_model = last is not None and last.model is not job.model
        other_serving = job.cell is not None and last is not None and last.serving != job.serving
        return not job.early, other_model, other_serving, needs_loading, busy_with.count(key)

    return min(ready, key=cost, default=None)


ATTEMPTS = 3  # the study fails once this many workers were lost at one job, or while they started
WAIT_SECONDS = 1.0  # interval at which the cluster's size is checked
IDLE_SECONDS = 60.0  # time without any worker after which a message is printed


def run_on_ray(
    study: Study, models: Sequence[Model], folder: Path, store: Store, device: str, cluster: Cluster
) -> None:
    """Evaluate every missing cell on the cluster. folder: of the study."""
    jobs = list(missing_jobs(models, folder, store))
    if study.keep_checkpoints:
        for job in jobs:
            if job.cell is None:
                check_target(job.model.checkpoint.folder, kept_folder(folder, job.model, job.variant), True)
    if not jobs:
        return
    with StudyBar(study, models, store) as bar, connected(cluster.address), ExitStack() as claims:
        Driver(cluster, study, models, folder, store, bar.add, device, claims, doing=bar.say).do(jobs)


class Driver:
    """Assigns jobs to workers of a connected cluster and stores their results until no job is left.

    added: called with the id of a run and its rows that were stored. claims: closed when the driver's runs may be
    evaluated elsewhere. adaptive: of the runs, as Run.adaptive. doing: called with a text on what workers do. Raises
    PrunusError if not a single worker fits on the nodes.
    """

    def __init__(
        self,
        cluster: Cluster,
        grid: CellGrid,
        models: Sequence[Model],
        folder: Path,
        store: Store,
        added: Callable[[str, Sequence[Sample]], None],
        device: str,
        claims: ExitStack,
        adaptive: Adaptive | None = None,
        doing: Callable[[str], None] = lambda _: None,
    ) -> None:
        import ray

        gpus, cpus = self.needs = float(has_gpus()) if cluster.gpus is None else cluster.gpus, cluster.cpus
        if not capacity(gpus, cpus):
            raise PrunusError(
                f"no node of the cluster has the {gpus:g} GPUs and {cpus:g} CPUs that one worker needs:"
                " lower --gpus-per-task or --cpus-per-task"
            )
        self.folder, self.store, self.claims, self.adaptive = folder, store, claims, adaptive
        self.added, self.doing = added, doing
        self.mixed = grid.mixed
        self.keeps, self.streams = grid.keep_checkpoints, BACKENDS[grid.backend].streams
        actor: Any = ray.remote(num_gpus=gpus, num_cpus=cpus, max_restarts=0)(Worker)
        self.new_actor = lambda: actor.remote(str(Path.cwd()), grid, device)
        self.models: dict[str, list[Any]] = {}  # a reference and the model's name
        for model in models:
            works = {
                (cell.plan, cell.serving): cell.resolved
                for cell in model.cells
                if not cell.variant.steps and not cell.is_control
            }
            ref = ray.put(ModelRef(model.name, model.checkpoint.checksum(), works))
            self.models[model.name] = [ref, model.name]
        self.files: dict[str, dict[str, list[Any]]] = {}  # references to a variant's uploaded files, by its key
        self.jobs: list[StudyJob] = []
        self.unmade: set[str] = set()  # keys of variants
        self.claimed: set[str] = set()  # ids of runs
        self.described: set[tuple[str, str]] = set()  # runs, and records of how their rows are computed
        self.workers: list[WorkerHandle] = []
        self.calls: dict[Any, WorkerHandle] = {}  # Ray reference to a call's result -> the worker that was called
        self.failed_starts = 0
        self.seen_at = time.monotonic()

    def do(self, jobs: Sequence[StudyJob]) -> None:
        """Do these jobs."""
        self.jobs = list(jobs)
        self.unmade |= {job.variant.key for job in jobs if job.cell is None}
        while self.jobs or any(worker.job for worker in self.workers):
            self.step()

    def step(self) -> None:
        """Give jobs to workers that have none, and handle what comes back within a second."""
        self.start_workers(len(self.jobs) + sum(worker.job is not None for worker in self.workers))
        for worker in self.workers:
            is_free = worker.info is not None and worker.job is None
            if is_free and (job := next_job(self.jobs, self.unmade, worker, self.workers)):
                self.jobs.remove(job)
                if self.streams and job.cell is not None:
                    take_along(job, self.jobs, len(self.workers))
                self.assign(worker, job)
        self.wait()

    def wait(self) -> None:
        """Wait at most a second for calls to return, and handle the result of a call."""
        import ray

        self.doing(self.summary())
        if not self.calls:  # the cluster has no room for a worker at present
            time.sleep(WAIT_SECONDS)
        for call in ray.wait(list(self.calls), timeout=WAIT_SECONDS)[0]:
            self.handle_result(self.calls.pop(call), call)

    def summary(self) -> str:
        """Text on what the workers do: `8 workers: evaluating wanda-20 of tiny (3), ...`."""
        activities = [worker.job.description for worker in self.workers if worker.job]
        parts = [f"{activity} ({activities.count(activity)})" for activity in dict.fromkeys(activities)]
        return f"{len(activities)} workers: {', '.join(parts)}"

    def start_workers(self, wanted: int) -> None:
        """Start workers until there are `wanted` of them or the cluster is full; nodes may join it at any time."""
        if any(worker.info for worker in self.workers):
            self.seen_at = time.monotonic()
        elif time.monotonic() - self.seen_at > IDLE_SECONDS:
            self.seen_at = time.monotonic()
            progress.say("no worker has started yet: other jobs may occupy the cluster (`ray status` shows it)")
        for _ in range(min(wanted, capacity(*self.needs)) - len(self.workers)):
            worker = WorkerHandle(self.new_actor())
            self.workers.append(worker)
            self.calls[worker.actor.info.remote()] = worker

    def assign(self, worker: WorkerHandle, job: StudyJob) -> None:
        """Send a job to a worker."""
        worker.job = job
        model, variant = self.models[job.model.name], job.variant
        if job.cell is None:
            progress.say(job.description)
            shutil.rmtree(self.copy_of(variant), ignore_errors=True)  # of a worker that was lost
            # At most two pieces of the files wait in Ray's memory.
            make = worker.actor.make.options(num_returns="streaming", _generator_backpressure_num_objects=2)
            call = make.remote(model, variant, self.keeps)
        else:
            run = job.cell.run_id
            if run not in self.claimed:
                self.claims.enter_context(claim(self.store.path, run))
                self.claimed.add(run)
            stored = self.store.keys(run) & job.cell.resolved.keys(job.batch)
            answer = worker.actor.answer.options(num_returns="streaming")
            cell = job.cell.plan, job.cell.serving
            call = answer.remote(model, variant, self.uploaded(job), cell, job.batch, stored)
        self.calls[call] = worker

    def uploaded(self, job: StudyJob) -> dict[str, list[Any]]:
        """References to the files of a job's variant in Ray's object store, where each node fetches them once."""
        variant = job.variant
        if not variant.steps:
            return {}
        if variant.key not in self.files:
            self.files[variant.key] = upload(self.folder, files_to_load(self.folder, job.model, variant, self.keeps))
        return self.files[variant.key]

    def handle_result(self, worker: WorkerHandle, call: Any) -> None:
        """Handle a call's result. The job of a lost worker goes back to the queue; any other error is raised here."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            result: Any = ray.get(next(call) if isinstance(call, ray.ObjectRefGenerator) else call)
            if isinstance(result, WorkerInfo):
                check_version(result)
                worker.info, self.failed_starts = result, 0
                return
            assert worker.job is not None
            if isinstance(result, FilePiece):
                self.store_piece(worker.job.variant, result)
            else:
                self.store_batch(worker.job, result)
            self.calls[call] = worker  # more may come
            return
        except StopIteration:
            assert worker.job is not None
            self.finish(worker.job)
        except RayTaskError as error:
            where = f"on {worker.info.node}: " if worker.info else ""
            if isinstance(error.cause, PrunusError):
                raise PrunusError(f"{where}{error.cause}") from error
            raise error.cause from error
        except RayError as error:
            self.lose(worker, error)
            return
        worker.last, worker.job = worker.job, None

    def copy_of(self, variant: Variant) -> Path:
        """The folder of the parts of a variant's files that have arrived so far, under the names of FilePiece."""
        return self.folder / MAKING / f"{variant.key}.copy"

    def store_piece(self, variant: Variant, piece: FilePiece) -> None:
        """Add bytes to the copy of a file of a variant."""
        path = self.copy_of(variant) / piece.name
        with disk_errors(self.folder, piece.size):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(piece.content.data)

    def finish(self, job: StudyJob) -> None:
        """Move the files of a variant that was made into the study's folder; the file that marks it complete is last.

        After the last job that needs a variant's uploaded files, the references to them are dropped.
        """
        if job.cell is not None:
            if all(job.variant.key != other.variant.key for other in self.jobs):
                self.files.pop(job.variant.key, None)  # so that Ray can free them
            return
        copy, target = self.copy_of(job.variant), target_folder(self.folder, job.model, job.variant, self.keeps)
        with disk_errors(self.folder, 0):
            if (copy / CHECKPOINT).exists():
                sync_tree(copy / CHECKPOINT)
                target.parent.mkdir(parents=True, exist_ok=True)
                replace_folder(copy / CHECKPOINT, target, overwrite=True)
            (self.folder / VARIANTS).mkdir(parents=True, exist_ok=True)
            for path in variant_files(copy, job.variant):
                path.rename(self.folder / VARIANTS / path.name)
        shutil.rmtree(copy)
        self.unmade.discard(job.variant.key)

    def store_batch(self, job: StudyJob, batch: BatchResult) -> None:
        """Add rows of a job to the store."""
        assert job.cell is not None
        run = job.cell.run_id
        if (made := (run, canonical_json(batch.environment.data))) not in self.described:
            add_run(self.store, job.model, job.cell, self.folder, batch.environment, mixed=self.mixed)
            if self.adaptive is not None:
                self.store.mark_adaptive(run, self.adaptive)
            self.described.add(made)
        self.store.add_samples(run, batch.samples, batch.thoughts)
        self.added(run, batch.samples)

    def lose(self, worker: WorkerHandle, error: BaseException) -> None:
        """Remove a worker that ended, alone or with its node, and put its job back into the queue.

        Raises PrunusError if ATTEMPTS workers were lost at the same job, or while they started.
        """
        self.workers.remove(worker)
        job, reason = worker.job, first_line(error)
        if "No module named" in str(error):
            raise PrunusError(f"a node of the cluster lacks prunus: {pip('ray')} on every node") from error
        if job is None:
            self.failed_starts += 1
            if self.failed_starts >= ATTEMPTS:
                raise PrunusError(f"workers end while they start ({reason}); Ray's logs on the node say why") from error
            return
        job.attempts += 1
        where = worker.info.node if worker.info else "?"
        if job.attempts >= ATTEMPTS:
            raise PrunusError(
                f"{ATTEMPTS} workers were lost while {job.description}, the last on {where} ({reason}): does the node"
                " have enough memory? Finished work is kept, and the same command resumes the study"
            ) from error
        progress.say(f"a worker on {where} was lost while {job.description} ({reason}); another one repeats the job")
        self.jobs.insert(0, job)


def check_version(worker: WorkerInfo) -> None:
    """Raise PrunusError if a node has another version of Prunus, which may compute other rows."""
    if worker.version != prunus.__version__:
        raise PrunusError(
            f"{worker.node} has prunus {worker.version}, this machine {prunus.__version__}: install the same version"
            " everywhere"
        )
