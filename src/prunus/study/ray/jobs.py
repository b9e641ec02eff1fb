"""What there is to do of a study on a cluster, and which of it a worker is given next."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.evaluation.pipeline import missing_batches
from prunus.results.store import Store
from prunus.study.cells import Cell, Model, Variant
from prunus.study.places import Places
from prunus.study.ray.transfer import Coming
from prunus.study.ray.worker import Hello
from prunus.study.variants import read_about


@dataclass(eq=False)
class Job:
    """A batch of a cell; without a cell: the variant is to be made. early: before everything that is not.

    clocks: instead of a batch the speed of the cell's model.
    """

    model: Model
    variant: Variant
    cell: Cell | None
    batch: list[tuple[int, int]]
    early: bool
    clocks: bool = False
    attempts: int = 0

    @property
    def what(self) -> str:
        """For people."""
        doing = "making" if self.cell is None else "timing" if self.clocks else "evaluating"
        return f"{doing} {self.variant.name} of {self.model.label}"


@dataclass(eq=False)
class Hand:
    """A worker: Ray's actor, where it is (None until it has said so), what it does and what it did before.

    coming: the files of what it made, on their way.
    """

    actor: Any
    hello: Hello | None = None
    job: Job | None = None
    last: Job | None = None
    coming: Coming | None = None


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


def is_clocked(models: Sequence[Model], store: Store) -> bool:
    """Whether there is a machine on which the speed of every cell is known."""
    known = [set(store.timings(cell.work.run_id)) for model in models for cell in model.cells]
    return bool(set.intersection(*known))


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
