"""The jobs into which a study is cut on a cluster, and which of them a worker gets next."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.evaluation.pipeline import missing_batches
from prunus.results.store import Store
from prunus.study.cells import Cell, Model, Variant
from prunus.study.ray.transfer import Download
from prunus.study.ray.worker import WorkerInfo
from prunus.study.variants import is_made


@dataclass(eq=False)
class Job:
    """Make a variant (cell is None), answer a batch of a cell, or measure how fast the cell's model decodes (timing).

    early: to be done before all jobs that are not. attempts: workers that were lost while doing it.
    """

    model: Model
    variant: Variant
    cell: Cell | None
    batch: list[tuple[int, int]]
    early: bool
    timing: bool = False
    attempts: int = 0

    @property
    def description(self) -> str:
        """`evaluating wanda-20 of tiny`."""
        activity = "making" if self.cell is None else "timing" if self.timing else "evaluating"
        return f"{activity} {self.variant.name} of {self.model.label}"


@dataclass(eq=False)
class WorkerHandle:
    """The driver's side of a worker: Ray's actor, its job and the job before that.

    info: None until the worker has started. download: of the files that it made, while they are on their way.
    """

    actor: Any
    info: WorkerInfo | None = None
    job: Job | None = None
    last: Job | None = None
    download: Download | None = None


def missing_jobs(models: Sequence[Model], folder: Path, store: Store) -> Iterator[Job]:
    """A job for every variant and every batch that is missing, by model and variant. folder: of the study.

    As in a local run, all batches of the dense models and the first batch of each variant are early.
    """
    for model in models:
        for variant in model.variants:
            missing = [(cell, batch) for cell in model.cells_of(variant) for batch in missing_batches(store, cell.work)]
            if missing and not is_made(folder, variant):
                yield Job(model, variant, None, [], True)
            for cell, batch in missing:
                yield Job(model, variant, cell, batch, variant.recipe is None or batch == cell.work.batches[0])


def is_timed(models: Sequence[Model], store: Store) -> bool:
    """Whether the store has timings of all cells from one and the same machine."""
    known = [set(store.timings(cell.work.run_id)) for model in models for cell in model.cells]
    return bool(set.intersection(*known))


def next_job(
    jobs: Sequence[Job], unmade: Collection[str], worker: WorkerHandle, workers: Sequence[WorkerHandle]
) -> Job | None:
    """The job that the worker should do next; None where there is none.

    Early jobs come first; then those of the model that it has loaded, of the variant that it has loaded, and of the
    variant that the fewest other workers have. unmade: keys of variants that are not made yet.
    """
    ready = [job for job in jobs if job.cell is None or job.variant.key not in unmade]
    in_work = [other.job.variant.key for other in workers if other.job]

    def cost(job: Job) -> tuple[bool, bool, bool, int]:
        last, key = worker.last, job.variant.key
        is_another = job.cell is None or last is None or last.variant.key != key
        return not job.early, last is not None and last.model is not job.model, is_another, in_work.count(key)

    return min(ready, key=cost, default=None)
