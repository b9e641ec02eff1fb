"""vLLM in Ray's workers: a process of its own of `make test-vllm`, as Ray does not connect where engines have run."""

from typing import Any

from ray_nodes import everything, two_nodes
from small_study import write_study

import prunus
from prunus.studies.ray.driver import Driver, StudyJob


def test_a_study_on_ray_is_that_of_one_engine_here(tmp_path, monkeypatch):
    """An engine in each of two workers, on two nodes: the same rows, answers and thinking, of dense and of pruned."""
    keep, workers = Driver.store_batch, set()

    def keeping(self: Driver, job: StudyJob, found: Any) -> None:
        workers.update(one.info.process for one in self.workers if one.job is job and one.info)
        keep(self, job, found)

    monkeypatch.setattr(Driver, "store_batch", keeping)
    settings = 'temperature = 1\nengine = "vllm"\n[engine]\nargs = {enforce_eager = true}\n'
    recipes = '[[prune]]\nmethod = "wanda"\n'
    file = write_study(tmp_path, recipes, settings, hidden_size=128, intermediate_size=96)
    with two_nodes() as cluster:
        done = prunus.study(file, out=tmp_path / "ray", ray=cluster.address).to_json()
    prunus.study(file, out=tmp_path / "local")
    ours, theirs = (everything(tmp_path / out / "results.db") for out in ("ray", "local"))
    assert ours == theirs and done["cells"] == 2 and [len(rows) for rows in ours["samples"].values()] == [18, 18]
    assert len(workers) == 2
