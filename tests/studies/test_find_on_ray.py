"""A search on a cluster: in whichever order workers do their jobs, the decisions are those of one machine."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_search import CALIBRATION, COMMAND, DOES, PLAN, content

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.cli import main
from prunus.evaluation.run import fill_store
from prunus.recipes import EvalPlan, WidthRecipe
from prunus.settings.engines import EngineOptions
from prunus.store.store import Store
from prunus.store.stored import Adaptive, Environment
from prunus.studies import engine
from prunus.studies import ray as ray_cluster
from prunus.studies.file import FindRules, FindTable
from prunus.studies.find.find import run_search
from prunus.studies.find.search import Search, ladders_of, open_search
from prunus.studies.find.walk import Rungs
from prunus.studies.ray import Cluster
from prunus.studies.ray.driver import Driver, StudyJob
from prunus.studies.variants import add_run, make_variant

pytestmark = pytest.mark.usefixtures("search_folder")


class Pretended(Driver):
    """A cluster in this process, which does any of the jobs next."""

    def __init__(self, rungs: Rungs, seed: int, done: list[StudyJob]) -> None:
        self.rungs, self.store, self.folder = rungs, rungs.store, rungs.folder
        self.random, self.done = random.Random(seed), done
        self.jobs, self.workers, self.files, self.unmade = [], [], {}, set()

    def step(self) -> None:
        job = self.random.choice([one for one in self.jobs if one.cell is None or one.variant.key not in self.unmade])
        self.jobs.remove(job)
        self.done.append(job)
        if job.cell is None:
            make_variant(job.model, job.variant, self.folder, "cpu", keep=True)
            self.unmade.discard(job.variant.key)
            return
        add_run(self.store, job.model, job.cell, self.folder, Environment.of({"test": "1"}))
        self.store.mark_adaptive(job.cell.run_id, Adaptive.of({"by": "find", "seed": 0}))
        engine = self.rungs.engine
        backend = engine.hold(job.model, job.variant, job.serving)
        work = job.cell.resolved
        for portion in fill_store(self.store, work, backend, engine.grader, [job.batch]):
            self.rungs.added(job.cell.run_id, portion.samples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "ladder", "tokens", "best"),
    [(["magnitude", "wanda"], "0.2,0.3", None, "wanda-30"), (["magnitude"], "0.1:0.4:0.1", 60, "magnitude-10")],
)
def test_the_rows_and_decisions_are_those_of_one_machine(scripted, monkeypatch, methods, ladder, tokens, best):
    """Any job of those that a decision needs comes next; no other row is computed."""
    monkeypatch.setattr(engine, "describe_environment", lambda *_: Environment.of({"test": "1"}))
    search, done = opened(ladder, methods, tokens), list[StudyJob]()
    alone = run_search(search, Path("alone"), Path("alone.db"), "cpu")
    assert alone.found == best
    monkeypatch.setattr(Rungs, "joined", lambda self: Pretended(self, 0, done))
    together = run_search(search, Path("ray"), Path("ray.db"), "cpu", Cluster("nowhere"))
    assert together.to_json() == alone.to_json() | {"out": "ray"} and content("ray") == content("alone")
    assert rows_of("ray.db") == rows_of("alone.db") and done
    shared = [one.variant.name for one in done if one.cell is not None]
    assert shared != sorted(shared) and {*shared} > {"dense"}, "the dense model's batches are not all done first"


@pytest.mark.slow
def test_a_ladder_of_widths_is_walked_to_its_certificate(scripted, monkeypatch):
    """On one machine and on a cluster; what is written is what the command gives."""
    monkeypatch.setattr(engine, "describe_environment", lambda *_: Environment.of({"test": "1"}))
    monkeypatch.setitem(DOES, "width-obs-25", (1, 0))
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in CALIBRATION.items())
    Path("widths.toml").write_text(f"[[width]]\nkeep = [0.75, 0.5, 0.25]\n[calibration]\n{settings}")
    alone = run_search(opened("widths.toml", None), Path("alone"), Path("alone.db"), "cpu").to_json()
    words = {name: [rung["word"] for rung in rungs] for name, rungs in alone["ladders"].items()}
    assert words == {"widths": ["certified", "certified", "refused"]} and alone["found"] == "width-obs-50"
    checked = prunus.verify("alone/certificate.json", "alone.db")
    assert checked.claims and not checked.differences
    assert all("names no grader" in note for note in checked.notes)
    prunus.width("model", "narrow", WidthRecipe(keep=0.5, **CALIBRATION), device="cpu")
    assert Checkpoint("alone").checksum() == Checkpoint("narrow").checksum()
    done = list[StudyJob]()
    monkeypatch.setattr(Rungs, "joined", lambda self: Pretended(self, 0, done))
    together = run_search(opened("widths.toml", None), Path("ray"), Path("ray.db"), "cpu", Cluster("nowhere"))
    assert together.to_json() == alone | {"out": "ray"} and content("ray") == content("alone") and done
    assert rows_of("ray.db") == rows_of("alone.db")


@pytest.mark.slow
def test_with_vllm_rungs_are_made_before_its_engines_start(scripted, monkeypatch):
    plan, done = replace(PLAN, engine="vllm"), list[StudyJob]()
    monkeypatch.setattr(Rungs, "joined", lambda self: Pretended(self, 0, done))
    search = opened("0.1,0.3,0.4", ["magnitude"], plan=plan)
    found = run_search(search, Path("out"), Path("rows.db"), "cpu", Cluster("nowhere")).to_json()
    assert found["found"] == "magnitude-10" and len(found["ladders"]["magnitude"]) == 2
    assert [job.cell is None for job in done] == [True] * 3 + [False] * (len(done) - 3)


@pytest.mark.slow
def test_the_command_searches_on_the_cluster_that_it_names(scripted, monkeypatch, capsys):
    monkeypatch.setattr(engine, "describe_environment", lambda *_: Environment.of({"test": "1"}))
    asked = list[str]()
    monkeypatch.setattr(ray_cluster, "find_cluster", lambda address: asked.append(address) or f"{address}:1")
    main([*COMMAND[:2], "alone", *COMMAND[3:], "--ladder", "0.1", "--store", "alone.db"])
    clusters = []

    def joined(rungs: Rungs) -> Pretended:
        """A cluster that does the last job first, so that the rung's rows are there before the dense model's."""
        clusters.append(rungs.cluster)
        cluster = Pretended(rungs, 0, [])
        chosen: Any = SimpleNamespace(choice=lambda jobs: jobs[-1])
        cluster.random = chosen
        return cluster

    monkeypatch.setattr(Rungs, "joined", joined)
    main([*COMMAND, "--ladder", "0.1", "--ray", "head", "--cpus-per-task", "2"])
    assert clusters == [Cluster("head:1", None, 2)]
    assert content("out") == content("alone")
    main(["find", "model", "planned", *COMMAND[3:], "--ladder", "0.1", "--ray", "head", "--dry-run"])
    assert len(clusters) == 1 and asked == ["head"], "a dry run needs no cluster"
    serving = ["--engine", "openai", "--serve", "server {model} {port}"]
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
    methods: Sequence[str] | None = ("magnitude", "wanda"),
    tokens: int | None = None,
    plan: EvalPlan = PLAN,
) -> Search:
    rules = FindRules(0.1, 0.1, most_tokens=tokens)
    asked = FindTable(ladder, methods, CALIBRATION if methods else {}, rules=rules)
    return open_search("model", plan, asked, ladders_of(asked), engine=EngineOptions())
