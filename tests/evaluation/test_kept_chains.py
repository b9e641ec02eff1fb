"""Further budgets of chains that a store keeps: the rows of a run with all budgets, for the tokens of its answers."""

import sqlite3
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from babbling import babble
from private_sets import private_problems
from scripted_backend import ScriptedBackend
from tiny_chains import TOKENIZER

import prunus
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation import pipeline
from prunus.evaluation.backends.hf import HFBackend
from prunus.evaluation.budget import ForcedChain
from prunus.evaluation.grading import GRADER_VERSION
from prunus.evaluation.kept_chains import copy_natural_ends, sources_of
from prunus.evaluation.refine import costs, refine
from prunus.evaluation.requests import Request
from prunus.evaluation.resolved_plan import problem_row, resolve_plan
from prunus.evaluation.reused_rows import reuse_some_rows
from prunus.evaluation.run import missing_batches
from prunus.recipes import EvalPlan
from prunus.store.rows import Run, Sample
from prunus.store.store import Store
from prunus.store.stored import Environment
from prunus.store.thought import Thought

PLAN = EvalPlan(tasks=("tiny",), limit=10, budgets=(8, 48), samples=2, temperature=1.0, batch_size=12)
BETWEEN = (0, 8, 11, 16, 23, 32, 45, 48)


def unscored(samples: list[Sample]) -> dict[tuple[str, int, int], Sample]:
    """Rows by key, without scores, whose last bits depend on the company in a batch."""
    rows = {(row.problem_id, row.budget, row.draw): row for row in samples}
    return {key: replace(row, logprob=None, self_certainty=None) for key, row in rows.items()}


@cache
def at_once(folder: Path) -> tuple[bytes, str]:
    """A store with the rows of all budgets, of chains that were drawn for them, and its run."""
    path = folder / "at_once.db"
    run = prunus.evaluate("tiny", replace(PLAN, budgets=BETWEEN), path, device="cpu").run_id
    return path.read_bytes(), run


@pytest.fixture
def store(tmp_path):
    return tmp_path / "results.db"


@pytest.fixture
def wanted(tmp_path, tmp_path_factory) -> list[Sample]:
    content, run = at_once(tmp_path_factory.getbasetemp())
    (path := tmp_path / "at_once.db").write_bytes(content)
    with Store(path) as opened:
        return opened.samples(run, texts=True)


def broken(*_):
    raise RuntimeError("nothing may be loaded or generated")


def thinks_nothing(monkeypatch) -> None:
    """From here on, no chain may be thought; also in forked processes, whose errors are raised here."""

    def refuse(*_):
        raise AssertionError("a chain is thought again")

    monkeypatch.setattr(ForcedChain, "first_request", refuse)


@pytest.mark.slow
def test_more_budgets_think_nothing_and_give_the_rows_of_all_budgets_at_once(store, wanted, monkeypatch):
    prunus.evaluate("tiny", PLAN, store, device="cpu")
    thinks_nothing(monkeypatch)
    run = prunus.evaluate("tiny", replace(PLAN, budgets=BETWEEN), store, device="cpu").run_id
    with Store(store) as opened:
        found = opened.samples(run, texts=True)
    assert unscored(found) == unscored(wanted)
    assert {row.ended for row in found if row.budget == 23} == {"natural", "forced"}, "both kinds of rows are compared"
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        assert mine.self_certainty == pytest.approx(theirs.self_certainty, abs=1e-5)


@pytest.mark.slow
def test_a_run_is_refined_from_the_top_and_goes_on_where_it_was_stopped(store, wanted, monkeypatch, capsys):
    run = prunus.evaluate("tiny", PLAN, store, device="cpu").run_id
    with Store(store) as opened:
        stored = opened.run(run)
        before, listed = opened.samples(run, texts=True), [one.run_id for one in opened.runs()]
        cost = costs(opened, stored, (45, 23))
    rows = {budget: [row for row in wanted if row.budget == budget and row.ended == "forced"] for budget in BETWEEN}
    assert [one.answers for one in cost] == [len(rows[45]), len(rows[23])] and rows[45]
    assert {(one.chains, one.thinking_tokens) for one in cost} == {(0, 0)}
    assert cost[1].tokens == pytest.approx(sum(row.answer_tokens for row in rows[23]), rel=0.25)
    thinks_nothing(monkeypatch)
    seen: list[int] = []

    def stop(budget: int) -> bool:
        seen.append(budget)
        return budget <= 32

    assert refine(store, run, (11, 23, 32, 45, 48), stop, device="cpu") == [48, 45, 32] == seen
    with Store(store) as opened:
        assert {row.budget for row in opened.finer_samples(stored.run_id)} == {32, 45}
        assert opened.samples(run, texts=True) == before and [one.run_id for one in opened.runs()] == listed
    complete = HFBackend.generate
    monkeypatch.setattr(HFBackend, "generate", broken)
    with pytest.raises(RuntimeError):
        refine(store, run, (11, 23, 32, 45, 48), device="cpu")
    with Store(store) as opened:
        assert not opened.has_budget(stored.run_id, 23), "what was interrupted is no budget of the run"
        assert {row.budget for row in opened.finer_samples(stored.run_id)} == {32, 45}
    monkeypatch.setattr(HFBackend, "generate", complete)
    assert refine(store, run, (11, 23, 32, 45, 48), device="cpu") == [48, 45, 32, 23, 11]
    with Store(store) as opened:
        finer = unscored(opened.samples(run, texts=True, table="finer"))
        assert finer == {key: row for key, row in unscored(wanted).items() if key[1] in (11, 23, 32, 45)}
        assert [one.tokens for one in costs(opened, stored, (45, 23))] == [0, 0]
    monkeypatch.setattr(HFBackend, "load", broken)
    assert refine(store, run, (11, 45), device="cpu") == [45, 11], "nothing is missing, so nothing is loaded"


@pytest.mark.slow
def test_a_run_with_finer_budgets_takes_them_and_regrade_grades_them(store, monkeypatch):
    plan = replace(PLAN, limit=4, samples=1)
    run = prunus.evaluate("tiny", plan, store, device="cpu").run_id
    refine(store, run, (23,), device="cpu")
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE finer SET correct = 1 - correct")
    assert prunus.regrade(store).changed == 4
    monkeypatch.setattr(HFBackend, "generate", broken)
    larger = prunus.evaluate("tiny", replace(plan, budgets=(8, 23, 48)), store, device="cpu").run_id
    with Store(store) as opened:
        both = [*opened.samples(run), *opened.finer_samples(run)]
        assert unscored(both) == unscored(opened.samples(larger))
        opened.remove_run(run)
        assert not opened.keys(run, "finer") and not opened.chains_kept(run)


@pytest.mark.slow
def test_what_cannot_be_refined_is_refused(store, tmp_path):
    plan = replace(PLAN, limit=2, samples=1)
    run = prunus.evaluate("tiny", plan, store, device="cpu").run_id
    with pytest.raises(PrunusError, match=r"budget 64 is not between 0 and 48, the largest of run"):
        refine(store, run, (16, 64))
    prunus.prune("tiny", tmp_path / "pruned", prunus.PruneRecipe("magnitude", 0.5))
    with pytest.raises(PrunusError, match=r"pruned is not what run \w+ is of: the weights would differ"):
        refine(store, run, (16,), model=tmp_path / "pruned", device="cpu")
    with sqlite3.connect(store) as connection:
        connection.execute("DELETE FROM sample WHERE budget = 8")
    with pytest.raises(PrunusError, match="is not complete: finish it by `prunus eval` first"):
        refine(store, run, (16,), device="cpu")


@pytest.mark.slow
def test_chains_of_private_problems_are_not_kept_and_thought_again(store, monkeypatch):
    monkeypatch.setattr("prunus.evaluation.resolved_plan.load_task", lambda *_: private_problems())
    monkeypatch.setattr("prunus.evaluation.preflight.check_task", lambda _: None)
    run = prunus.evaluate("tiny", EvalPlan(tasks=("gated",), budgets=(0, 30)), store, device="cpu").run_id
    with Store(store) as opened:
        assert not opened.chains_kept(run)
        (cost,) = costs(opened, opened.run(run), (2,))
    assert refine(store, run, (2,), device="cpu") == [2]
    with Store(store) as opened:
        rows = opened.samples(run, texts=True, table="finer")
    longer = sum(row.ended == "forced" for row in rows)
    assert longer and (cost.chains, cost.thinking_tokens) == (longer, 2 * longer)
    assert len(rows) == 3 and {row.thinking + row.text for row in rows} == {""}


def drawn(path: Path, plan: EvalPlan, records: list[dict[str, str]]) -> set:
    """The plan's rows: first without the second budget, as the first record says, then with it, as the second does."""
    folder, rows = ModelFolder(tiny_folder()), []
    with Store(path, create=True) as store:
        for budgets, record in zip((plan.budgets[::2], plan.budgets), records, strict=True):
            work = resolve_plan(folder, TOKENIZER, replace(plan, budgets=budgets))
            model = {"name": "tiny", "manifest": {}, "checksum": folder.checksum(), **work.about.data}
            store.add_problems(map(problem_row, work.problems))
            store.add_run(Run.of(work.run_id, model, work.plan, record | {"grader": GRADER_VERSION}))
            reuse_some_rows(store, work, Environment.of(record))
            sources = sources_of(store, work, Environment.of(record))
            copy_natural_ends(store, work, sources)
            pipeline.fill(store, work, ScriptedBackend(babble), missing_batches(store, work), sources)
            rows = store.samples(work.run_id, texts=True)
        return set(unscored(rows).items())


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [True, False])
def test_only_chains_that_were_cut_and_computed_in_this_way_are_answered(tmp_path, reuse, monkeypatch):
    plan = EvalPlan(tasks=("tiny",), limit=3, budgets=(2, 5, 9), answer_tokens=6, batch_size=2, reuse=reuse)
    thought, first_request = list[int](), ForcedChain.first_request

    def counted(chain: ForcedChain) -> Request:
        thought.append(chain.largest)
        return first_request(chain)

    monkeypatch.setattr(ForcedChain, "first_request", counted)
    otherwise = drawn(tmp_path / "a.db", plan, [{"torch": "1"}, {"torch": "2"}])
    assert len(thought) == (3 + 3 if reuse else 3 * 2 + 3 * 3)
    thought.clear()
    assert drawn(tmp_path / "b.db", plan, [{"torch": "1"}, {"torch": "1"}]) == otherwise
    assert len(thought) == (3 if reuse else 3 * 2 + 3 * 3)


@pytest.mark.parametrize("scores", [None, np.array([[0.5, np.nan], [np.nan, -1e-30]], dtype=np.float32)])
def test_thinking_is_unpacked_bit_by_bit(scores):
    thought = Thought("é", 3, [7, 2**31], scores)
    back = Thought.unpacked("é", 3, *thought.packed())
    assert back[:3] == thought[:3] and (scores is None) == (back.scores_2T is None)
    assert scores is None or (back.scores_2T is not None and back.scores_2T.tobytes() == scores.tobytes())


@pytest.mark.slow
def test_damaged_thinking_is_one_line(tmp_path):
    with Store(tmp_path / "results.db", create=True) as store:
        store.add_run(Run.of("r", {"name": "tiny"}, {"tasks": ["tiny"], "budgets": [4]}, {}))
        problem = problem_row(resolve_plan(ModelFolder(tiny_folder()), TOKENIZER, replace(PLAN, limit=1)).problems[0])
        store.add_problems([problem])
        good, scores = Thought(problem.problem_id, 0, [1, 2, 3], None).packed()
        for ids, of_ids in ((b"no", None), (good[:-2], scores), (good, good), (5, None)):
            with sqlite3.connect(store.path) as connection:
                connection.execute("REPLACE INTO thought VALUES ('r', ?, 0, ?, ?)", (problem.problem_id, ids, of_ids))
            with pytest.raises(PrunusError, match=r"is damaged .the thinking of a chain"):
                store.thoughts("r", [(problem.problem_id, 0)])
