"""A Ray cluster of two nodes on loopback, and the content of a study's store for comparison with a local study."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunus.store.rows import Sample
from prunus.store.store import Store
from prunus.studies import ray as ray_cluster
from prunus.studies.cells import Model, Variant
from prunus.studies.ray.driver import Driver, StudyJob
from prunus.studies.ray.worker import FilePiece


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with one CPU each, reachable from this machine only."""
    with pytest.MonkeyPatch.context() as patch:
        # For busy machines: Ray's workers have a low priority and would starve beside other tests; joining takes time.
        patient = {"RAY_worker_niceness": "0", "RAY_py_gcs_connect_timeout_s": "120"}
        for name, value in (ray_cluster.ENVIRONMENT | patient).items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80_000_000, "node_ip_address": "127.0.0.1"}
        started = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        started.add_node(**node)
        yield started
        started.shutdown()


def receive(pieces: Iterable[FilePiece], model: Model, variant: Variant, folder: Path, keep: bool = False) -> None:
    """What the driver of a study in folder does with the files of a variant that a worker sends."""
    driver = Driver.__new__(Driver)
    driver.folder, driver.keeps, driver.unmade = folder, keep, {variant.key}
    for piece in pieces:
        driver.store_piece(variant, piece)
    driver.finish(StudyJob(model, variant, None, [], True))
    assert not driver.unmade


def everything(store: Path) -> dict[str, Any]:
    """The content of a store by run id, without the paths of the variants' weights."""
    with Store(store) as opened:
        runs = opened.runs()
        found = {run.run_id: [rounded(s) for s in opened.samples(run.run_id, texts=True)] for run in runs}
        told = {run.run_id: (run.model | {"source": None}, run.plan, run.environment) for run in runs}
        return {"samples": found, "runs": told, "problems": opened.problems()}


def rounded(sample: Sample) -> Sample:
    """The sample with rounded means, whose last bits may differ between processes."""
    if sample.logprob is None:
        assert sample.thinking_tokens == sample.answer_tokens == 0  # it ended at once
        return sample
    certainty = None if sample.self_certainty is None else round(sample.self_certainty, 4)
    return replace(sample, logprob=round(sample.logprob, 4), self_certainty=certainty)
