"""The demo, on few problems: all variants, one page, and nothing done twice."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import warm_processes

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.recipes import PruneRecipe
from prunus.reporting import report_data
from prunus.results.comparison import compare, compare_runs
from prunus.results.verdicts import WORDS
from prunus.steps import chain
from prunus.store.store import Store
from prunus.studies import demo as walkthrough
from prunus.studies.file import FindRules
from prunus.studies.find import find


@warm_processes.in_one_worker
@pytest.mark.slow
def test_demo_makes_everything_once(tmp_path, monkeypatch, capsys):
    plan = replace(walkthrough.PLAN, budgets=(64, 128), limit=8, answer_tokens=16, batch_size=8)
    monkeypatch.setattr(walkthrough, "PLAN", plan)
    few: dict[str, Any] = dict(walkthrough.DENSE.variants)
    for name, (first, *more) in few.items():
        first = replace(first, samples=4) if first.calibration == "tiny" else first
        few[name] = [first, *(replace(recipe, calibration_tokens=300, epochs=1) for recipe in more)]
    rungs = tuple(PruneRecipe(method="wanda", sparsity=s, calibration="tiny", samples=4) for s in (0.1, 0.9))
    rules = FindRules(0.5, 0.5)  # less than the dense model solves, and eight problems can show
    monkeypatch.setattr(walkthrough, "DENSE", walkthrough.DENSE._replace(variants=few, ladder=rungs, rules=rules))
    monkeypatch.setattr(walkthrough.multiprocessing, "get_context", lambda _: warm_processes.FORKS)
    monkeypatch.setattr(walkthrough, "compare", partial(compare, resamples=100))  # intervals are tested elsewhere
    monkeypatch.setattr(report_data, "compare_runs", partial(compare_runs, resamples=100))
    comparison = walkthrough.demo(tmp_path)
    printed = capsys.readouterr().out
    with Store(tmp_path / "results.db") as store:
        names = {run.run_id: run.model["name"] for run in store.runs()}
        keys = {name: store.keys(run_id) for run_id, name in names.items()}
    assert set(keys) - {"tiny/wanda-10", "tiny/wanda-90"} == {"tiny", *few}
    assert all(len(keys[name]) == 8 * 2 for name in ("tiny", *few))
    assert {names[entry.run] for entry in comparison} == set(few)
    for entry in comparison:
        assert entry.verdict in WORDS
        assert entry.verdict.split(",")[0] in printed
    (ladder,) = json.loads((tmp_path / "found" / "certificate.json").read_text())["shown"]["ladders"]
    assert (ladder["rungs"][0]["name"], ladder["rungs"][0]["word"]) == ("wanda-10", "certified")
    page = (tmp_path / "report.html").read_text()
    assert 'href="found/find.html"' in page and "tiny/wanda-10" not in page and (tmp_path / "found/find.html").exists()
    assert "wanda-10 is certified" in page and "wanda-10 is certified" in " ".join(printed.split())
    labels = "ShortGPT", "Wanda 50\xa0% + recovered", "OBS width 62.5\xa0%", "W4 g128"
    assert all(page.count(label) > 1 for label in labels) and "Accuracy against bytes" in page
    left = [Checkpoint(tmp_path / "models" / name).parameters for name in ("drop-2", "width-62.5")]
    assert left[0] == pytest.approx(left[1], rel=0.001), "what the two of them removed is compared at equal size"

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(stamps) == len(few) + 1  # and the one found
    monkeypatch.setattr(chain, "carry_out", None)
    monkeypatch.setattr(find, "carry_out", None)
    again = walkthrough.demo(tmp_path)
    assert again == comparison
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}

    monkeypatch.setattr(walkthrough, "QUICK_PLAN", replace(plan, limit=4))
    quick = walkthrough.demo(tmp_path, quick=True)
    with Store(tmp_path / "quick.db") as store:
        assert {run.model["name"] for run in store.runs()} == {"tiny", "wanda-20", "drop-1"}
    assert quick.margin.to_json() == walkthrough.QUICK_MARGIN and len(quick.others) == 2
    assert "found/find.html" not in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_models_are_evaluated_by_processes_that_start_from_nothing(tmp_path):
    """As `prunus demo` starts them; above, they are forks, which are quicker."""
    plan = replace(walkthrough.PLAN, budgets=(0, 4), limit=2, answer_tokens=8, batch_size=2)
    runs = walkthrough.evaluate_all({"dense": "tiny"}, plan, tmp_path / "results.db")
    with Store(tmp_path / "results.db") as store:
        assert [run.run_id for run in store.runs()] == [run.run_id for run in runs.values()]
        assert len(store.keys(runs["dense"].run_id)) == 4
