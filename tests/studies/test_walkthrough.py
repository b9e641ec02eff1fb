"""The demo, on few problems: all variants, one page, and nothing done twice."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import warm_processes

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.reporting import report_data
from prunus.results.comparison import compare, compare_runs
from prunus.results.vocabulary import WORDS
from prunus.store.store import Store
from prunus.studies import demo as walkthrough


@pytest.mark.thorough
@warm_processes.in_one_worker
@pytest.mark.slow
def test_demo_makes_everything_once(tmp_path, monkeypatch, capsys):
    plan = replace(walkthrough.PLAN, budgets=(16, 32), limit=8, answer_tokens=8, batch_size=8)
    monkeypatch.setattr(walkthrough, "PLAN", plan)
    few: dict[str, Any] = dict(walkthrough.DENSE.variants)
    for name, (first, *more) in few.items():
        first = replace(first, sequences=4) if first.calibration == "tiny" else first
        few[name] = [first, *(replace(recipe, calibration_tokens=300, epochs=1) for recipe in more)]
    monkeypatch.setattr(walkthrough, "DENSE", walkthrough.DENSE._replace(variants=few))
    monkeypatch.setattr(walkthrough.multiprocessing, "get_context", lambda _: warm_processes.FORKS)
    monkeypatch.setattr(walkthrough, "compare", partial(compare, resamples=100))  # intervals are tested elsewhere
    monkeypatch.setattr(report_data, "compare_runs", partial(compare_runs, resamples=100))
    comparison = walkthrough.demo(tmp_path)
    printed = capsys.readouterr().out
    with Store(tmp_path / "results.db") as store:
        names = {run.run_id: run.model.name for run in store.runs()}
        keys = {name: store.keys(run_id) for run_id, name in names.items()}
    assert set(keys) == {"tiny", *few}
    assert all(len(of_run) == 8 * 2 for of_run in keys.values())
    assert {names[entry.run] for entry in comparison} == set(few)
    for entry in comparison:
        assert entry.verdict in WORDS
        assert entry.verdict.shown.split(",")[0] in printed.lower()
    page = (tmp_path / "report.html").read_text()
    labels = "ShortGPT", "Wanda 50\xa0% + recovered", "OBS width 62.5\xa0%", "W4 g128"
    assert all(page.count(label) > 1 for label in labels) and "Thinking tokens allowed" in page
    left = [Checkpoint(tmp_path / "models" / name).parameters for name in ("drop-2", "width-62.5")]
    assert left[0] == pytest.approx(left[1], rel=0.001), "what the two of them removed is compared at equal size"

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(stamps) == len(few)
    again = walkthrough.demo(tmp_path)
    assert again == comparison
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}

    monkeypatch.setattr(walkthrough, "QUICK_PLAN", replace(plan, limit=4))
    quick = walkthrough.demo(tmp_path, quick=True)
    with Store(tmp_path / "quick.db") as store:
        assert {run.model.name for run in store.runs()} == {"tiny", "wanda-20", "drop-1"}
    assert quick.margin.to_json() == 0.05 and len(quick.others) == 2


def killed(*_: object) -> None:
    """End this process as Linux does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


@warm_processes.in_one_worker
@pytest.mark.slow
def test_a_process_of_the_demo_that_is_killed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(walkthrough.multiprocessing, "get_context", lambda _: warm_processes.FORKS)
    monkeypatch.setattr(walkthrough, "run_job", killed)
    with pytest.raises(PrunusError, match="is there enough memory"):
        walkthrough.demo(tmp_path, quick=True)


@pytest.mark.thorough
@pytest.mark.slow
def test_models_are_evaluated_by_processes_that_start_from_nothing(tmp_path):
    """As `prunus demo` starts them; above, they are forks, which are quicker."""
    plan = replace(walkthrough.PLAN, budgets=(0, 4), limit=2, answer_tokens=8, batch_size=2)
    tour = walkthrough.Tour("tiny", {}, ())
    runs = walkthrough.run_tour(tour, plan, tmp_path / "models", tmp_path / "results.db")
    with Store(tmp_path / "results.db") as store:
        assert [run.run_id for run in store.runs()] == list(runs.values())
        assert len(store.keys(runs["tiny"])) == 4


@pytest.mark.thorough
@pytest.mark.slow
def test_the_caption_of_the_first_picture_is_true_of_a_fresh_demo(tmp_path):
    """The whole demo, minutes of CPU time; on another processor its numbers may differ by a point."""
    comparison = walkthrough.demo(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (caption,) = re.findall(r"!\[(.*)\]\(docs/images/report\.png\)", readme)
    assert "of seven variants" in caption and len(comparison.others) == 7
    assert "W4 and Wanda 20 % lose less than" in caption and "without one or two blocks" in caption
    ruled_out = [-100 * (comparison[name].area.lower_bound_adjusted or 0.0) for name in ("w4", "wanda-20")]
    lost = [-100 * comparison[name].area.difference for name in ("drop-1", "drop-2")]
    numbers = [float(number) for number in re.findall(r"\d+\.\d", caption)]
    assert numbers == pytest.approx([*ruled_out, *lost], abs=1)
    assert [comparison[name].verdict for name in ("w4", "wanda-20", "drop-1", "drop-2")] == [
        *("non-inferior", "non-inferior"),
        *("worse", "worse"),
    ]


@pytest.mark.parametrize("tour", [walkthrough.DENSE, walkthrough.EXPERTS])
def test_one_process_makes_what_begins_alike_so_that_no_step_is_done_twice(tour):
    jobs = walkthrough.jobs_of(tour.variants)
    assert sorted(name for names in jobs for name in names) == sorted(tour.variants)
    place = {name: (number, names.index(name)) for number, names in enumerate(jobs) for name in names}
    for name, steps in tour.variants.items():
        for count in range(1, len(steps)):
            earlier = next(other for other, made in tour.variants.items() if made == steps[:count])
            assert place[earlier][0] == place[name][0] and place[earlier][1] < place[name][1]


def lives(process: int) -> bool:
    """Whether a process is there and has not ended, though nobody may have asked for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.thorough
@pytest.mark.slow
def test_a_killed_demo_leaves_no_process_and_goes_on(tmp_path):
    """Found here: its workers waited for ever for more, each with a gigabyte, and held a run until it was done."""
    command = [sys.executable, "-m", "prunus", "demo", "--quick", "--out", str(tmp_path)]

    def workers(parent: int) -> list[int]:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]

    until = time.monotonic() + 120
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
        while not list(tmp_path.glob("quick.db.*.lock")):  # a worker has begun to evaluate
            assert demo.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        started = workers(demo.pid)
        demo.kill()
    assert started
    while any(map(lives, started)):
        assert time.monotonic() < until, "the workers outlive the demo"
        time.sleep(0.05)
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "report.html").exists()
