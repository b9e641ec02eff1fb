"""A/A controls: the base against itself in other batches, which is a run of its own and no variant."""

import json
from dataclasses import replace
from itertools import chain

import pytest
from comparable_runs import PLAN, fill, grid

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import other_rows, resolve_plan
from prunus.recipes import EvalPlan
from prunus.results.comparison import compare
from prunus.store.rows import ProblemRow, Run
from prunus.store.store import Store

SMALL = EvalPlan(tasks=("tiny",), budgets=(16, 64), limit=6, temperature=0.0)


@pytest.mark.parametrize(("rows", "chains"), [(64, 600), (64, 20), (64, 2), (2, 600), (1, 600), (3, 5)])
def test_other_batches_are_other_batches(rows, chains):
    def cut(size):
        return [min(size, chains - start) for start in range(0, chains, size)]

    assert cut(other_rows(rows, chains)) != cut(rows)


@pytest.mark.slow
def test_a_control_has_other_batches_and_an_id_of_its_own():
    tiny = Checkpoint(tiny_folder())
    usual, again = (
        resolve_plan(tiny, load_tokenizer(tiny_folder()), replace(SMALL, aa_control=on)) for on in (False, True)
    )
    assert usual.run_id != again.run_id and "aa_control" not in usual.plan.data and again.plan.aa_control
    assert (len(usual.batches), len(again.batches)) == (1, 2)
    assert sorted(chain(*usual.batches)) == sorted(chain(*again.batches))
    differing = {*usual.plan.differing(again.plan)}
    assert differing == {"aa_control", "batch_size"}


@pytest.mark.thorough
@pytest.mark.slow
def test_a_greedy_control_in_float32_is_the_base_and_no_variant(tmp_path, capsys):
    store = tmp_path / "s.db"
    base = prunus.evaluate("tiny", SMALL, store).run_id
    options = ["--task", "tiny", "--budgets", "16,64", "--limit", "6", "--temperature", "0", "--store", str(store)]
    main(["eval", "tiny", *options, "--aa-control"])
    assert "A/A control" in capsys.readouterr().out
    with Store(store) as opened:
        (control,) = (run.run_id for run in opened.runs() if run.run_id != base)
        rows = [
            [(s.problem_id, s.budget, s.answer, s.thinking, s.text) for s in opened.samples(run, texts=True)]
            for run in (base, control)
        ]
        assert sorted(rows[0], key=str) == sorted(rows[1], key=str) and len(rows[0]) == 12
        assert opened.find_run("tiny").run_id == opened.find_run("dense").run_id == base
        assert opened.find_run(control[:6]).run_id == control
    found = compare(store, "tiny", resamples=200).to_json()
    assert found["others"] == [] and found["warnings"] == []
    (said,) = found["repeats"]
    assert [said[key] for key in ("run", "how", "difference", "answers", "differ", "grades")] == (
        [control, "in other batches", 0.0, 12, 0, 0]
    )
    main(["compare", str(store), "--base", "tiny"])
    assert "The base against itself in other batches: 0.0 points" in capsys.readouterr().out
    prunus.report(store, tmp_path / "r.html")
    assert "0 of 12 answers and 0 of their grades differ." in (tmp_path / "r.html").read_text()
    for base, others in ((control, None), ("tiny", [control])):
        with pytest.raises(PrunusError, match="A/A control"):
            compare(store, base, others)


@pytest.mark.slow
def test_what_rounding_moves_is_counted(tmp_path):
    """Of 40 answers two are others, and one of these was right."""
    right = grid(lambda _, p, *__: p % 2, problems=20, budgets=(16, 64))
    moved = list(right)
    moved[2], moved[4] = (replace(moved[k], answer=text, correct=False) for k, text in ((2, "5"), (4, "7")))
    path = fill(tmp_path / "s.db", {"dense": right, "pruned": right})
    again = PLAN | {"aa_control": True, "batch_size": 7}
    with Store(path) as store:
        for number, plan in enumerate((again, again | {"temperature": 0.1})):  # the second repeats another plan
            store.add_run(Run.of(f"{number}{'e' * 11}", {"name": "dense"}, plan, {"grader": "1"}))
            store.add_samples(f"{number}{'e' * 11}", moved)
    for others in (None, ["pruned"]):
        found = compare(path, "dense", others, resamples=200).to_json()
        assert [one["model"] for one in found["others"]] == ["pruned"]
        (warning,) = found["warnings"]
        assert warning.startswith("no chain of the base ends by itself")
        (said,) = found["repeats"]
        assert (said["run"], said["answers"], said["differ"], said["grades"]) == ("0" + "e" * 11, 40, 2, 1)
        assert said["difference"] == pytest.approx(-1 / 40) and said["low"] < said["difference"] < said["high"]
    prunus.report(path, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert (
        "2 of 40 answers and 1 of their grades differ; hold smaller effects against this." in text
        and "left out" not in text
        and "run r1 " in text
        and "run r2 " not in text
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("serving", "checksum", "plan", "how"),
    [
        ({"exact": {"versions": {"vllm": "2"}}}, "c", {}, "served as exact, vllm 2"),
        ({}, "c", {}, "served as usual"),
        ({"exact": {"versions": {"vllm": "1"}}}, "c", {"batch_size": 7}, "in other batches"),
        ({}, "c", {"batch_size": 7}, "in other batches and served as usual"),
        ({"exact": {"versions": {"vllm": "1"}}}, "c", {"limit": 5}, None),  # whose rows are the same
        ({"exact": {"versions": {"vllm": "2"}}}, "other", {}, None),
        ({"exact": {"versions": {"vllm": "2"}}}, "c", {"seed": 1}, None),
        ({"exact": {"versions": {"vllm": "2"}}, "args": {"kv_cache_dtype": "fp8"}}, "c", {}, None),
    ],
)
def test_the_base_is_held_against_whatever_repeats_it(tmp_path, serving, checksum, plan, how):
    """The other run lost 3 of 40 right answers."""
    right = grid(lambda *_: True, problems=20, budgets=(16, 64))
    wrong = {place: replace(right[place], answer="9", correct=False) for place in (0, 8, 21)}
    first = {"name": "m", "checksum": "c", "serving": {"exact": {"versions": {"vllm": "1"}}}}
    path = fill(tmp_path / "s.db", {"another": right[:2]})
    with Store(path) as store:
        problems = {one.problem_id for one in right}
        store.add_problems(ProblemRow("a", problem, "1", "exact", (), "d") for problem in problems)
        for letter, model, own in (("a", first, {}), ("b", first | {"checksum": checksum, "serving": serving}, plan)):
            store.add_run(Run.of(letter * 12, model, PLAN | {"batch_size": 4} | own, {"grader": "1"}))
            store.add_samples(letter * 12, [wrong.get(k, row) if letter == "b" else row for k, row in enumerate(right)])
    found = compare(path, "a" * 12, ["b" * 12], resamples=200)
    assert [(one.run, one.how, one.answers, one.differ, one.grades) for one in found.repeats] == (
        [("b" * 12, how, 40, 3, 3)] if how else []
    )
    assert len(found.others) == 1, "it is judged as any other run, too"
    assert all(one.difference == pytest.approx(-3 / 40) for one in found.repeats)
    assert ("The base against itself" in str(found)) is bool(how)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_study_repeats_its_dense_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        'models = ["tiny"]\n[eval]\ntasks = ["tiny"]\nbudgets = [16]\nlimit = 4\ntemperature = 0.0\naa_control = true\n'
        '[[prune]]\nmethod = "magnitude"\nsparsity = [0.1]\n'
    )
    (tmp_path / "s.toml").write_text(text)
    ahead = prunus.plan_study("s.toml", out="out").to_json()
    names = [cell["variant"] for cell in ahead["cells"]]
    assert names == ["dense", "magnitude-10", "dense, A/A control"]
    made = prunus.study("s.toml", out="out").to_json()
    (of_model,) = made["comparisons"]
    assert len(of_model["comparison"]["others"]) == 1 and of_model["comparison"]["repeats"][0]["differ"] == 0
    assert "0 of 4 answers and 0 of their grades differ" in (tmp_path / "out" / "report.html").read_text()
    with Store(tmp_path / "out" / "results.db") as store:
        assert {run.run_id for run in store.runs()} == {cell["run"] for cell in ahead["cells"]}
        assert sum(run.is_control for run in store.runs()) == 1
    (tmp_path / "s.toml").write_text(text.replace("aa_control = true\n", ""))
    usual = prunus.plan_study("s.toml", out="other").to_json()
    assert [cell["run"] for cell in usual["cells"]] == [cell["run"] for cell in ahead["cells"]][:2]


def test_lm_evaluation_harness_and_native_budgets_have_no_control():
    with pytest.raises(PrunusError, match="leave --control native out"):
        replace(SMALL, aa_control=True, engine="openai", control="native")
    with pytest.raises(PrunusError, match="lm-evaluation-harness makes itself"):
        prunus.evaluate("tiny", EvalPlan(tasks=("lm_eval:gsm8k",), aa_control=True), "none.db")
    assert json.loads(json.dumps(SMALL.to_json())).keys().isdisjoint({"aa_control"})
