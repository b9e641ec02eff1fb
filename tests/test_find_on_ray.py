"""A search on a cluster: whatever is computed ahead, and in whichever order, the decisions are those of the walk."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_search import CALIBRATION, COMMAND, PLAN, content

from prunus.cli import main
from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation.grading import Grader
from prunus.evaluation.run import fill_store
from prunus.finding import on_ray
from prunus.finding import rungs as making
from prunus.finding.find import carry_out
from prunus.finding.ladders import ladders_of
from prunus.finding.on_ray import RayRungs, SearchDriver, coming, on_cluster
from prunus.finding.search import Search, open_search
from prunus.recipes import EvalPlan
from prunus.results.store import Store
from prunus.study.cells import Variant
from prunus.study.ray import cluster as ray_cluster
from prunus.study.ray.cluster import Cluster
from prunus.study.ray.driver import Driver
from prunus.study.ray.jobs import Job, WorkerHandle, next_job, take_along
from prunus.study.variants import add_run, make_variant

pytestmark = pytest.mark.usefixtures("search_folder")


class Pretended(SearchDriver):
    """A cluster in this process, which does any of the jobs next, and fails at some that nobody needs yet."""

    def __init__(self, rungs: RayRungs, seed: int, done: list[Job], fails: str = "") -> None:
        self.fails = fails
        self.rungs, self.search, self.store, self.folder = rungs, rungs.search, rungs.store, rungs.folder
        self.random, self.done, self.grader = random.Random(seed), done, rungs.stack.enter_context(Grader())
        self.jobs, self.workers, self.files, self.gpus, self.cpus = [], [], {}, 0.0, 1.0
        self.described, self.given_up, self.show = set(), set(), lambda *_: None
        self.unmade = {rung.variant.key for rung in self.search.rungs}

    def step(self) -> None:
        job = self.random.choice([one for one in self.jobs if one.cell is None or one.variant.key not in self.unmade])
        self.jobs.remove(job)
        if job.rank and (job.variant.name == self.fails if self.fails else self.random.random() < 0.1):
            self.give_up(job)
            return
        self.done.append(job)
        if job.cell is None:
            make_variant(job.model, job.variant, self.folder, "cpu", keep=True)
            self.unmade.discard(job.variant.key)
            return
        add_run(self.store, job.model, job.cell, self.folder, {"test": "1"})
        self.store.mark_adaptive(job.cell.run_id, {"by": "find", "seed": 0})
        with self.rungs.engine.holding(job.model, job.variant, self.folder) as backend:
            list(fill_store(self.store, job.cell.resolved, backend, self.grader, [job.batch]))


@pytest.mark.parametrize(
    ("methods", "ladder", "tokens", "found"),
    [(["magnitude", "wanda"], "0.2,0.3", None, "wanda-30"), (["magnitude"], "0.1:0.4:0.1", 60, "magnitude-10")],
)
def test_what_is_computed_ahead_changes_no_decision(scripted, monkeypatch, methods, ladder, tokens, found):
    """Any job comes next, so that rows of later rungs come before those that are needed."""
    monkeypatch.setattr(making, "describe_versions", lambda _: {"test": "1"})
    monkeypatch.setattr(on_ray, "capacity", lambda *_: 3)
    search, done = opened(ladder, methods, tokens), list[Job]()
    alone = carry_out(search, Path("alone"), Path("alone.db"), "cpu")
    assert alone["found"] == found
    monkeypatch.setattr(RayRungs, "joined", lambda self: Pretended(self, 0, done))
    kept, rungs = on_cluster(search, Cluster("nowhere"))
    ahead = carry_out(kept, Path("ahead"), Path("ahead.db"), "cpu", rungs=rungs)
    assert ahead == alone | {"out": "ahead"} and content("ahead") == content("alone")
    ours, theirs = rows_of("ahead.db"), rows_of("alone.db")
    assert any(job.rank for job in done) and ours != theirs, "something was computed ahead"
    for run, samples in theirs.items():
        assert all(sample in ours[run] for sample in samples), "each row is that of the walk alone"


def test_with_vllm_rungs_are_made_before_its_engines_start(scripted, monkeypatch):
    """One that cannot be made is left out until it is needed, which it is not: the walk ends before."""
    plan, done = replace(PLAN, backend="vllm"), list[Job]()
    search = opened("0.1,0.3,0.4", ["magnitude"], plan=plan)
    kept, rungs = on_cluster(search, Cluster("nowhere"))
    monkeypatch.setattr(RayRungs, "joined", lambda self: Pretended(self, 0, done, fails="magnitude-40"))
    monkeypatch.setattr(on_ray, "capacity", lambda *_: 3)
    found = carry_out(kept, Path("out"), Path("rows.db"), "cpu", rungs=rungs)
    assert found["found"] == "magnitude-10" and len(found["ladders"]["magnitude"]) == 2
    assert [job.cell is None for job in done] == [True] * 2 + [False] * (len(done) - 2)


def test_the_command_searches_on_the_cluster_that_it_names(scripted, monkeypatch, capsys):
    monkeypatch.setattr(making, "describe_versions", lambda _: {"test": "1"})
    monkeypatch.setattr(on_ray, "capacity", lambda *_: 3)
    asked = list[str]()
    monkeypatch.setattr(ray_cluster, "find_cluster", lambda address: asked.append(address) or f"{address}:1")
    main([*COMMAND[:2], "alone", *COMMAND[3:], "--ladder", "0.1", "--store", "alone.db"])
    clusters, done = [], list[Job]()

    def joined(rungs: RayRungs) -> Pretended:
        """A cluster that does what is ahead first, so that the rung's rows are there before the dense model's."""
        clusters.append(rungs.cluster)
        cluster = Pretended(rungs, 0, done)
        chosen: Any = SimpleNamespace(choice=lambda jobs: jobs[-1], random=lambda: 1.0)
        cluster.random = chosen
        return cluster

    monkeypatch.setattr(RayRungs, "joined", joined)
    main([*COMMAND, "--ladder", "0.1", "--ray", "head", "--cpus-per-task", "2"])
    assert clusters == [Cluster("head:1", None, 2)] and any(job.rank for job in done)
    assert content("out") == content("alone")
    main(["find", "model", "planned", *COMMAND[3:], "--ladder", "0.1", "--ray", "head", "--dry-run"])
    assert len(clusters) == 1 and asked == ["head"], "a dry run needs no cluster"
    serving = ["--backend", "openai", "--serve", "server {model} {port}"]
    refused = {"belong to --ray": ["--gpus-per-task", "1"], "leave --ray out": ["--ray", *serving]}
    for told, options in refused.items():
        with pytest.raises(SystemExit, match="2"):
            main([*COMMAND, *options, "--overwrite"])
        assert told in capsys.readouterr().err


def rows_of(store: str) -> dict[str, Any]:
    with Store(store) as opened:
        return {run.run_id: opened.samples(run.run_id, texts=True) for run in opened.runs()}


def opened(
    ladder: str = "0.1,0.2,0.3",
    methods: Sequence[str] = ("magnitude", "wanda"),
    tokens: int | None = None,
    plan: EvalPlan = PLAN,
) -> Search:
    ladders = ladders_of(ladder, methods, CALIBRATION, None)
    rules: dict[str, Any] = {"margin": 0.1, "stop_margin": 0.1, "alpha": 0.05, "max_tokens": tokens, "look": None}
    return open_search("model", plan, ladders, engine=EngineOptions(), as_given=False, file=None, **rules)


def test_what_comes_next_is_the_walk_of_harmless_rungs():
    search = opened()
    enough = search.expected_rounds()
    assert search.look == 20 and 40 < enough <= 60
    two = search.ladders[0][1][1]
    parts = [(cell.variant.name, start, until) for cell, start, until in coming(search, two, 20, 2)]
    assert parts[::2] == [("dense", start, until) for _, start, until in parts[1::2]]
    assert parts[1::2] == [
        *(("magnitude-20", start, start + 20) for start in (20, 40)),
        *((name, start, start + 20) for name in ("magnitude-30", "wanda-10") for start in (0, 20, 40)),
    ]
    late = [part for part in coming(search, search.ladders[1][1][2], 180, 2) if part[0] is not search.dense]
    assert [(start, until) for _, start, until in late] == [(180, 200)], "no further than the problems"


def pretended(workers: list[WorkerHandle]) -> tuple[SearchDriver, Any]:
    driver = SearchDriver.__new__(SearchDriver)
    driver.search, driver.workers, driver.jobs, driver.given_up = opened(), workers, [], set()
    rung = driver.search.ladders[0][1][0]
    driver.unmade = {rung.variant.key}
    return driver, rung.cell


def test_a_job_in_work_is_not_done_twice_and_counts_as_needed_once_it_is():
    worker = WorkerHandle(None)
    driver, cell = pretended([worker])
    make, *batches = driver.jobs_for(cell, [[(0, 0)], [(1, 0)]], 3)
    assert make.cell is None and [job.batch for job in batches] == [[(0, 0)], [(1, 0)]]
    assert all((job.rank, job.early) == (3, False) for job in (make, *batches))
    again = driver.jobs_for(cell, [[(1, 0)]], 5)
    driver.replace_jobs([make, *batches, *again])
    assert driver.jobs == [make, *batches], "the same work is queued once"
    worker.job = make
    needed = driver.jobs_for(cell, [[(0, 0)]], 0)
    assert needed[0] is make and (make.rank, make.early) == (0, True) and needed[1].rank == 0
    driver.replace_jobs([*needed, *batches])
    assert driver.jobs == [needed[1], batches[1]] and all(map(driver.is_open, needed))
    driver.unmade.clear()
    worker.job = Job(make.model, cell.variant, cell, [(0, 0), (1, 0), (2, 0)], False, rank=2)
    assert driver.jobs_for(cell, [[(2, 0)], [(0, 0)]], 0) == [worker.job], "several batches of an engine that streams"
    assert worker.job.rank == 0


def test_a_low_rank_comes_first_and_ranks_do_not_mix():
    model, cell = SimpleNamespace(label="m"), object()
    jobs = [Job(model, Variant("v", None, "v"), cell, [(n, 0)], n == 0, rank=n) for n in (2, 1, 0, 1)]  # type: ignore
    worker = WorkerHandle(None, last=jobs[0])
    assert next_job(jobs, set(), worker, []) is jobs[2] and next_job(jobs[:2], set(), worker, []) is jobs[1]
    queue = [jobs[0], jobs[3], jobs[3]]
    take_along(jobs[1], queue, workers=1)
    assert jobs[1].batch == [(1, 0), (1, 0)] and jobs[0] in queue


def test_only_what_is_needed_fails_a_search():
    """A rung ahead that cannot be made is left until it is needed; so is one that loses every worker."""
    model, cell = SimpleNamespace(label="m"), object()

    def job(rank: int) -> Job:
        return Job(model, Variant("v", None, "v"), cell, [], rank == 0, attempts=2, rank=rank)  # type: ignore

    for rank in (1, 0):
        driver = Driver.__new__(Driver)
        worker = WorkerHandle(None, job=job(rank))
        driver.workers, driver.given_up, other = [worker], set(), job(0)
        driver.jobs = [job(4), other]
        if rank:
            driver.lose(worker, RuntimeError("The actor died."))
            assert driver.given_up == {"v"} and driver.jobs == [other]
        else:
            with pytest.raises(PrunusError, match="3 workers were lost"):
                driver.lose(worker, RuntimeError("The actor died."))
    ray = pytest.importorskip("ray")
    for rank in (1, 0):
        driver = Driver.__new__(Driver)
        worker = WorkerHandle(None, job=job(rank))
        driver.workers, driver.given_up, driver.jobs = [worker], set(), []
        error = ray.exceptions.RayTaskError("make", "trace", PrunusError("singular"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray, "get", lambda _, error=error: (_ for _ in ()).throw(error))
            if rank:
                driver.handle_result(worker, None)
                assert worker.job is None and driver.given_up == {"v"}
            else:
                with pytest.raises(PrunusError, match="singular"):
                    driver.handle_result(worker, None)
