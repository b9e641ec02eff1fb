"""The jobs of a study on a cluster, and the order in which workers get them."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.evaluation.run import missing_batches
from prunus.results.store import Store
from prunus.study.cells import Cell, Model, Variant
from prunus.study.ray.transfer import Download
from prunus.study.ray.worker import WorkerInfo
from prunus.study.variants import is_made


@dataclass(eq=False)
class Job:
    """One unit of work: make a variant (cell is None), or answer chains of a cell.

    early: comes before all jobs that are not early. attempts: number of workers that were lost at this job.
    """

    model: Model
    variant: Variant
    cell: Cell | None
    batch: list[tuple[int, int]]
    early: bool
    attempts: int = 0

    @property
    def description(self) -> str:
        """`evaluating wanda-20 of tiny`."""
        activity = "making" if self.cell is None else "evaluating"
        return f"{activity} {self.variant.name} of {self.model.label}"


@dataclass(eq=False)
class WorkerHandle:
    """The driver's record of a worker: Ray's actor, its current job and its last one.

    info: None until the worker has started. download: in progress, of the files that the worker made.
    """

    actor: Any
    info: WorkerInfo | None = None
    job: Job | None = None
    last: Job | None = None
    download: Download | None = None


def missing_jobs(models: Sequence[Model], folder: Path, store: Store) -> Iterator[Job]:
    """Yield a job for every missing variant and batch, by model and variant. folder: of the study.

    As in a local run, all batches of the dense models and the first batch of each variant are early.
    """
    for model in models:
        for variant in model.variants:
            missing = [
                (cell, batch) for cell in model.cells_of(variant) for batch in missing_batches(store, cell.resolved)
            ]
            if missing and not is_made(folder, variant):
                yield Job(model, variant, None, [], True)
            for cell, batch in missing:
                yield Job(model, variant, cell, batch, not variant.steps or batch == cell.resolved.batches[0])


def take_along(job: Job, jobs: list[Job], workers: int) -> None:
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
    jobs: Sequence[Job], unmade: Collection[str], worker: WorkerHandle, workers: Sequence[WorkerHandle]
) -> Job | None:
    """The next job for a worker; None if no job is ready. unmade: keys of variants that are not made yet.

    Early jobs come first; among these, jobs of the model that the worker has loaded; then of
    the variant that it has loaded; then of the variant that the fewest workers are busy with.
    """
    ready = [job for job in jobs if job.cell is None or job.variant.key not in unmade]
    busy_with = [other.job.variant.key for other in workers if other.job]

    def cost(job: Job) -> tuple[bool, bool, bool, int]:
        last, key = worker.last, job.variant.key
        needs_loading = job.cell is None or last is None or last.variant.key != key
        other_model = last is not None and last.model is not job.model
        return not job.early, other_model, needs_loading, busy_with.count(key)

    return min(ready, key=cost, default=None)
