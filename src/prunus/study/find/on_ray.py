"""The rungs of a search on a Ray cluster, whose workers share the batches that the next decision needs.

Decisions are left to the walk, so a search on a cluster decides as one on a single machine does.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from prunus.results.anytime import Round
from prunus.results.store import Store
from prunus.study.cells import Cell, Variant
from prunus.study.find.rungs import Rungs, Show
from prunus.study.find.search import Search
from prunus.study.paths import StudyPaths
from prunus.study.ray.cluster import Cluster, connected
from prunus.study.ray.driver import Driver
from prunus.study.ray.jobs import Job
from prunus.study.variants import is_made


def on_cluster(search: Search, cluster: Cluster | None) -> "tuple[Search, type[Rungs] | partial[RayRungs]]":
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
        self.driver: Driver | None = None

    def evaluate(self, parts: Sequence[tuple[Cell, Sequence[Round]]], show: Show) -> bool:
        """Have the rows of cells that are missing, each in its rounds, computed; returns whether there were any."""
        missing = [(cell, batch) for cell, rounds in parts for batch in self.missing(cell, rounds)]
        if not missing:
            return False
        self.table.tell = show
        if self.driver is None:
            self.driver = self.joined()
            if self.search.plan.backend == "vllm":  # it will occupy whole GPUs, so all are made now
                self.driver.do(self.to_make(rung.variant for rung in self.search.rungs))
        batches = [Job(self.search.model, cell.variant, cell, batch, True) for cell, batch in missing]
        self.driver.do([*self.to_make(cell.variant for cell, _ in missing), *batches])
        return True

    def to_make(self, variants: Iterable[Variant]) -> list[Job]:
        """The jobs of making the variants that are missing and were not deleted."""
        missing = {one.key: one for one in variants if one.key not in self.deleted and not is_made(self.folder, one)}
        return [Job(self.search.model, one, None, [], True) for one in missing.values()]

    def delete(self, variant: Variant) -> None:
        """Delete the files of a rung that is not needed any more."""
        super().delete(variant)
        if self.driver is not None:
            self.driver.files.pop(variant.key, None)

    def joined(self) -> Driver:
        """A driver of the cluster, until the rungs are closed."""
        self.stack.enter_context(connected(self.cluster.address))
        claims = self.stack.enter_context(ExitStack())
        gpus, cpus = self.cluster.worker_gpus(), self.cluster.cpus
        paths, search = StudyPaths(self.folder, Path(self.store.path)), self.search
        made = Driver([search.model], paths, self.store, self.table, claims, search.study, self.device, gpus, cpus)
        made.adaptive = self.adaptive
        made.check_capacity()
        return made
