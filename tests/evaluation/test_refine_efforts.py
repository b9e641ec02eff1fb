"""Further budgets for levels: which are answered, what they cost, and that the walk alone decides where they end."""

import numpy as np
import pytest
from effort_stores import exact_p, rising, store_of

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.refine_efforts import grid, plan_refine_efforts, refine_efforts
from prunus.recipes import EvalPlan
from prunus.store.store import Store

MARGIN = 0.25


@pytest.mark.slow
def test_chains_are_answered_from_the_top_until_a_level_cannot_be_there(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.db"
    run = prunus.evaluate("tiny", EvalPlan(tasks=("tiny",), limit=36, budgets=(48, 256)), path, device="cpu").run_id
    main(["efforts", str(path), "--levels", f"low={MARGIN}", "--refine", "--dry-run"])
    (plan,) = plan_refine_efforts(path, levels={"low": MARGIN})
    assert plan.budgets == [215, 181, 152, 128, 108, 91, 76, 64, 54] and plan.answered == ()
    assert str(plan) in capsys.readouterr().err
    with Store(path) as store:
        before = store.samples(run, texts=True)
        assert not store.keys(run, "finer"), "a plan answers nothing"
    (done,) = refine_efforts(path, levels={"low": MARGIN}, device="cpu")
    answered = list(done.answered)
    assert answered == list(plan.budgets)[: len(answered)] and len(answered) < len(plan.budgets)
    with Store(path) as store:
        finer = store.samples(run, table="finer")
        assert store.samples(run, texts=True) == before
    assert {row.budget for row in finer} == set(answered)
    full = {row.problem_id: row.correct for row in before if row.budget == 256}
    passed = []
    for budget in answered:
        rows = [(full[row.problem_id], row.correct) for row in finer if row.budget == budget]
        lost, gained = sum(a > b for a, b in rows), sum(a < b for a, b in rows)
        passed.append(exact_p(lost, gained, len(rows), MARGIN) <= 0.05)
    assert all(passed[:-1]) and not passed[-1]
    generated = sum(row.answer_tokens for row in finer if row.ended == "forced")
    assert generated <= plan.tokens <= 0.5 * plan.of_run
    level = prunus.efforts(path, levels={"low": MARGIN}).runs[0].level("low")
    assert level.budget == answered[-2]
    monkeypatch.setattr(HFBackend, "load", None)
    (again,) = refine_efforts(path, levels={"low": MARGIN}, device="cpu")
    assert (list(again.budgets), again.tokens) == ([], 0), "nothing is left to answer, so nothing is loaded"


def test_steps_of_a_quarter_of_a_doubling_but_for_what_is_measured():
    assert grid(512, 256) == [431, 362, 304]
    assert grid(512, 64, (64, 96, 128, 192, 256, 384, 512)) == [431, 304, 215, 152, 108, 76]
    assert grid(6, 0) == [5, 4, 3, 2]


def test_what_keeps_no_chains_is_refused(tmp_path):
    path = store_of(tmp_path / "s.db", {"tiny": rising(np.random.default_rng(1))})
    with pytest.raises(PrunusError, match="no run keeps its chains"):
        refine_efforts(path)
    with pytest.raises(SystemExit):
        main(["efforts", str(path), "--dry-run"])
