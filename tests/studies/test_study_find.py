"""[[find]] tables of a study: what is searched, what is written where, and what is refused, with the line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_search import CALIBRATION, PLAN, content, stopped
from study_with_find import FIND, GRID, RULE, STUDY, write

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.store.store import Store
from prunus.studies import engine
from prunus.studies.file import FindRules, FindTable, read_study
from prunus.studies.find import find as finding
from prunus.studies.find import tables
from prunus.studies.find.search import ladders_of

pytestmark = pytest.mark.usefixtures("few_resamples", "search_folder")
EXAMPLES = Path(__file__).parents[2] / "examples"
NONE = f'[[find]]\nname = "none"\nmethod = "magnitude"\nladder = [0.3]\n{RULE}'
FOUND = Path("out/found/model/magnitude")


def run(text: str) -> dict[str, Any]:
    return prunus.study(write(text), out="out").to_json()


def plan(text: str, study: str = STUDY) -> dict[str, Any]:
    return prunus.plan_study(write(text, study), out="out").to_json()


@pytest.mark.slow
def test_searches_follow_the_grid_share_its_rows_and_write_what_find_writes(scripted):
    done = run(GRID + FIND + NONE)
    settings: dict[str, Any] = {"methods": ["magnitude"], "settings": CALIBRATION, "margin": 0.1, "stop_margin": 0.1}
    alone = prunus.find("model", "alone", PLAN, "0.1:0.4:0.1", store="alone.db", **settings).to_json()
    told = {"certificate.json", "find.html", "README.md"}  # which rows existed, since the grid came first
    ours, theirs = content("alone"), content(FOUND)
    assert alone["found"] == "magnitude-20" and {name for name in ours if ours[name] != theirs[name]} == told
    traced = [json.loads(one["certificate.json"])["shown"]["searches"]["had"] for one in (ours, theirs)]
    assert traced[0] == [] and {one["name"]: one["problems"] for one in traced[1]} == {
        "model": 200,
        "magnitude-20": 200,
    }
    with Store("out/results.db") as store:
        runs = {run.model.name.split("/")[-1]: run for run in store.runs()}
        rows = {name: len(store.keys(run.run_id)) for name, run in runs.items()}
    marked = {name for name, run in runs.items() if run.adaptive}
    assert marked == {"magnitude-10", "magnitude-30"}, "the grid is complete, and searches add no row to it"
    assert rows["model"] == rows["magnitude-20"] == 400 and 0 < rows["magnitude-30"] < 400
    found, none = done["searches"]
    assert (found["state"], found["found"], found["removed"]) == ("finished", "magnitude-20", 0.2)
    assert len(found["claims"]) == 5 and found["out"] == str(FOUND) and none["found"] is None and none["claims"] == []
    assert content("out/found/model/none").keys() == {"certificate.json", "find.html"}
    for name in ("magnitude", "none"):
        checked = prunus.verify(f"out/found/model/{name}", "out/results.db")
        assert checked.differences == checked.notes == []
    page = Path(done["report"]).read_text()
    outcome = "Search magnitude: the checkpoint made by magnitude-20 still solves"
    assert f'<a href="found/model/magnitude/find.html"><bdi>{outcome}' in page
    assert "Search none: no rung was certified." in page
    assert done["unreported"] == [] and done["cells"] == 2


@pytest.mark.slow
def test_a_finished_study_computes_nothing_and_says_the_same(scripted, capsys):
    done, before = run(FIND), content(FOUND)
    asked = scripted.total()
    assert run(FIND) == done and scripted.total() == asked and content(FOUND) == before
    assert prunus.report_study("small.toml", out="out").to_json() == done
    main(["study", "plan", "small.toml", "--out", "out"])
    printed = capsys.readouterr().out
    assert f"search magnitude: magnitude-20, 20 % removed; {FOUND}/find.html" in printed
    assert printed.count("nothing is left to evaluate\n") == 1


@pytest.mark.thorough
@pytest.mark.slow
def test_an_interrupted_search_goes_on_and_ends_with_the_same_bytes(scripted, monkeypatch):
    before = plan(FIND)["searches"][0]
    lines = prunus.plan_find(
        "model", "x", PLAN, "0.1:0.4:0.1", methods=["magnitude"], margin=0.1, stop_margin=0.1
    ).to_json()["lines"]
    assert before["state"] == "not started" and before["lines"] == lines and not Path("out").exists()
    whole = run(FIND)
    expected = content(FOUND)
    for path in ("out", "small.toml"):
        Path(path).rename(f"whole-{path}")
    run("")  # the grid alone
    with stopped(engine, "fill_store", 4):
        run(FIND)
    assert plan(FIND)["searches"][0]["state"] == "not finished" and not FOUND.exists()
    assert "Search magnitude: not finished." in Path(prunus.report_study("small.toml", out="out").report).read_text()
    with stopped(finding, "publish"):
        run(FIND)
    with stopped(finding, "replace_folder"):
        run(FIND)
    with stopped(finding, "write_folder", after=True):
        run(FIND)
    assert content(FOUND) == expected and Path("out/found/model/magnitude.finding").exists()
    monkeypatch.setattr(tables, "run_search", None)
    assert run(FIND) == whole and not Path("out/found/model/magnitude.finding").exists()


@pytest.mark.thorough
@pytest.mark.slow
def test_an_edited_table_replaces_its_result_and_drops_unfinished_work(scripted):
    run(FIND)
    edited = FIND.replace('"0.1:0.4:0.1"', "[0.3]")
    assert plan(edited)["searches"][0]["state"] == "not started"
    with stopped(finding, "publish"):
        run(edited)
    (found,) = run(edited.replace("0.3", "0.1"))["searches"]
    assert found["found"] == "magnitude-10"
    (found,) = run(edited)["searches"]
    assert found["found"] is None and content(FOUND).keys() == {"certificate.json", "find.html"}
    (found,) = run(FIND)["searches"]
    assert found["found"] == "magnitude-20" and "config.json" in content(FOUND)


@pytest.mark.thorough
@pytest.mark.slow
def test_every_model_and_plan_is_searched_in_a_folder_of_its_own(scripted, capsys):
    study = STUDY.replace("answer_tokens = 8", 'mode = ["strict", "legacy"]\nanswer_tokens = 8')
    searches = plan(FIND + NONE, study)["searches"]
    assert [search["out"] for search in searches] == [
        f"out/found/model/{name}-{mode}" for mode in ("strict", "legacy") for name in ("magnitude", "none")
    ]
    write(FIND, study)
    main(["study", "small.toml", "--out", "out"])
    assert capsys.readouterr().out.count("magnitude-20, 20 % removed; out/found/model/magnitude-") == 2
    for mode in ("strict", "legacy"):
        assert f'<a href="found/model/magnitude-{mode}/find.html">' in Path("out/report.html").read_text()


def table(text: str) -> FindTable:
    (found,) = read_study(write(text)).finds
    return found


def test_a_table_has_the_settings_of_find_and_of_prune():
    found = table("[[find]]\n[report]\nmargin = 0.03\n")
    assert (found.name, found.ladder, found.methods, found.recovery) == ("wanda", "0.1:0.7:0.05", None, None)
    assert found.rules == FindRules(0.03, 0.05, 0.05) and found.shared == CALIBRATION
    found = table(
        '[[find]]\nmethod = ["wanda", "magnitude"]\nladder = [0.1, 0.2]\npropagation = "dense"\nsequences = 4\n'
        "recover = {epochs = 2}\nmost_tokens = 9\nalpha = 0.1\n"
    )
    assert (found.name, found.ladder, found.methods) == ("wanda-magnitude", "0.1,0.2", ("wanda", "magnitude"))
    assert found.settings == {"propagation": "dense", "sequences": 4} and found.recovery == {"epochs": 2}
    assert (found.rules.most_tokens, found.rules.alpha) == (9, 0.1)
    rungs = [one for ladder in ladders_of(found).values() for one in ladder]
    assert [(one.steps[0].to_json()["sequences"], one.steps[0].to_json()["seqlen"]) for one in rungs] == [(4, 16)] * 4
    assert all((recovery := one.steps[1].to_json())["epochs"] == 2 and recovery["sequences"] == 4 for one in rungs)


def test_a_ladder_of_a_file_has_the_calibration_of_the_study_where_it_has_no_other():
    folder = Path("sub")
    folder.mkdir()
    Path("sub/steps.toml").write_text(
        "[calibration]\nseqlen = 8\n[[prune]]\nsparsity = [0.1, 0.2]\n[[drop]]\nblocks = 1\n"
    )
    Path("text.jsonl").rename("sub/text.jsonl")
    Path("sub/study.toml").write_text(STUDY + '[[find]]\nladder = "steps.toml"\n')
    study = read_study("sub/study.toml")
    (found,) = study.finds
    ladders = ladders_of(found)
    assert found.name == "steps" and ladders.keys() == {"steps"} and len(ladders["steps"]) == 3
    for entry in ladders["steps"]:
        recipe = entry.steps[0].to_json()
        assert (recipe["calibration"], recipe["sequences"], recipe["seqlen"]) == ("sub/text.jsonl", 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[find]\n", 12, r"write \[\[find\]\] with double brackets"),
        ("[[find]]\nlader = 1\n", 13, r"unknown key 'lader' in \[\[find\]\]; did you mean 'ladder'\?"),
        ("[[find]]\nsparsity = 0.1\n", 13, r"'sparsity' in \[\[find\]\]; it belongs under \[\[prune\]\]"),
        ("[[find]]\nepochs = 2\n", 13, r"'epochs' in \[\[find\]\]; it belongs under recover = \{"),
        ("[[prune]]\nladder = 'x'\n", 13, r"'ladder' in \[\[prune\]\]; it belongs under \[\[find\]\]"),
        ("[[find]]\nmargin = 'two'\n", 13, "margin 'two' is no margin"),
        ("[[find]]\nladder = ['a']\n", 13, "'ladder' must be a text or a list, each a number, not"),
        ("[[find]]\nrecover = [true, false]\n", 13, "'recover' takes one value here"),
        ("[[find]]\nrecover = {epoch = 1}\n", 13, "unknown key 'epoch' of recover; did you mean 'epochs'"),
        ("[[find]]\nname = '../x'\n", 13, "name '../x' is that of a folder"),
        ("[[find]]\n[[find]]\n", 13, r"two \[\[find\]\] tables are called wanda"),
        ("[[find]]\nladder = '0.5:0.1:0.1'\n", 12, "wanda: ladder '0.5:0.1:0.1' has no rung"),
        ("[[find]]\nladder = [0.3, 0.2]\n", 12, "order it from gentle to harsh"),
        ("[[find]]\nladder = [0.2, 0.2]\n", 12, "wanda-20 is listed twice"),
        ("[[find]]\nladder = 'none.toml'\n", 12, "the ladder 'none.toml' cannot be read"),
        ("[[find]]\nmethod = 'wonder'\n", 12, "method 'wonder' is not known"),
        ("[[find]]\nmargin = 0\n", 13, "margin must be a share in"),
        ("[[find]]\nmost_tokens = 0\n", 12, "most_tokens must be at least 1"),
        ("[[find]]\nscope = 'norms'\n", 12, "scope 'norms' is not known"),
        ("[[find]]\nmargin = 0.001\n", 12, "cannot certify a margin of 0.1 points in accuracy"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_before_anything_runs(text, line, message, scripted):
    with pytest.raises(PrunusError, match=re.escape(f"small.toml, line {line}: ")) as error:
        run(text)
    assert re.search(message, str(error.value)) and "\n" not in str(error.value)
    assert not scripted and not Path("out").exists()


def test_a_wrong_table_is_told_although_a_model_is_not_here(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    study = STUDY.replace('["model"]', '["nobody/nothing"]')
    found = plan("[[find]]\n", study)
    assert found["searches"] == [] and any(
        "what the searches of nobody/nothing take" in one for one in found["unknown"]
    )
    with pytest.raises(PrunusError, match="line 12: wonder"):
        plan("[[find]]\nmethod = 'wonder'\n", study)


@pytest.mark.slow
def test_the_example_is_planned(tmp_path, capsys):
    main(["study", "plan", str(EXAMPLES / "find.toml"), "--out", str(tmp_path / "out"), "--json"])
    found = json.loads(capsys.readouterr().out)["searches"]
    assert [(one["name"], one["state"]) for one in found] == [
        ("magnitude-wanda", "not started"),
        ("recovered", "not started"),
    ]
    assert found[0]["lines"][0].startswith("630 problems with 1 draw each; 6 rungs (magnitude: magnitude-10 to")
    assert not any(line.startswith("warning") for one in found for line in one["lines"]), "each margin can be certified"
