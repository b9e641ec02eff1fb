"""Budgets that nobody asked for: those of the profile, or the usual ones, as far as the model's context has room."""

import json
import shutil

import pytest

import prunus
from prunus import EvalPlan, TraceRecipe
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, say_once, tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.resolved_plan import resolve_plan
from prunus.studies.plan import plan_study


@pytest.fixture(autouse=True)
def _every_line_is_said():
    say_once.cache_clear()


def resolved(plan, folder=None):
    folder = tiny_folder() if folder is None else folder
    return resolve_plan(ModelFolder(folder), load_tokenizer(folder), plan)


def with_context(tmp_path, tokens):
    folder = tmp_path / f"context-{tokens}"
    shutil.copytree(tiny_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": tokens}))
    return folder


def test_the_built_in_reasoner_names_its_own(capsys):
    assert resolved(EvalPlan(tasks=("tiny",), limit=5)).budgets == (32, 128, 512)
    assert "budgets 32, 128, 512, since profile 'tiny' names them" in capsys.readouterr().err
    work = resolved(TraceRecipe(tasks=("tiny-train",), limit=5).plan())
    assert work.budgets == (512,), "the largest of them"
    explicit = EvalPlan(tasks=("tiny",), limit=5, budgets=(32, 128, 512))
    assert resolved(explicit).run_id == resolved(EvalPlan(tasks=("tiny",), limit=5)).run_id
    assert "budgets" not in PROFILES["tiny"].strings(), "ids of stored runs stay"


@pytest.mark.parametrize("context", [600, 1400, 1700, 2048, 2300, 4000])
def test_usual_budgets_are_those_that_the_context_allows(tmp_path, capsys, context):
    """As many as can be asked for one by one without being refused."""
    folder = with_context(tmp_path, context)
    asked = {"tasks": ("tiny",), "limit": 5, "profile": "qwen3", "answer_tokens": 700}
    fitting = []
    for budget in (512, 1024, 2048):
        try:
            fitting += resolved(EvalPlan(**asked, budgets=(budget,)), folder).budgets
        except PrunusError:
            break
    if not fitting:
        with pytest.raises(PrunusError, match=rf"512 to think.*context is {context}"):
            resolved(EvalPlan(**asked), folder)
        return
    capsys.readouterr()
    assert resolved(EvalPlan(**asked), folder).budgets == tuple(fitting)
    assert (f"the model's context is {context:,} tokens" in capsys.readouterr().err) == (len(fitting) < 3)


def test_budgets_that_are_asked_for_are_refused_as_before():
    with pytest.raises(PrunusError, match=r"2048 to think.*context is 2048: lower the budget"):
        resolved(EvalPlan(tasks=("tiny",), limit=5, budgets=(512, 1024, 2048)))


def test_a_profile_file_may_name_budgets(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('format = 1\nextends = "tiny"\n[think]\nbudgets = [8, 16]\n')
    assert resolved(EvalPlan(tasks=("tiny",), limit=5, profile=str(file))).budgets == (8, 16)
    file.write_text('format = 1\nextends = "tiny"\n[think]\nbudgets = [16, 8]\n')
    with pytest.raises(PrunusError, match="budgets must increase: 8 follows 16"):
        resolved(EvalPlan(tasks=("tiny",), limit=5, profile=str(file)))


@pytest.mark.slow
def test_every_command_takes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = prunus.evaluate("tiny", EvalPlan(tasks=("tiny",), limit=2), "a.db", device="cpu")
    assert list(run.tasks["tiny"].budgets) == [32, 128, 512]
    for words in (
        ["eval", "tiny", "--task", "tiny", "--limit", "2", "--store", "b.db"],
        ["find", "tiny", "found", "--task", "tiny", "--dry-run"],
        ["choose", "tiny", "best", "--task", "tiny", "--memory", "1GB", "--seconds", "60", "--dry-run"],
    ):
        main(words)
    (tmp_path / "s.toml").write_text('models = ["tiny"]\n[eval]\ntasks = ["tiny"]\nlimit = 2\n')
    assert [cell.answers for cell in plan_study("s.toml").cells] == [6]


@pytest.mark.slow
def test_a_choice_takes_the_budgets_that_all_models_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = with_context(tmp_path, 600)  # room for the calibration of forms, and not for 512 to think
    prunus.prune("tiny", "pruned", prunus.PruneRecipe(method="magnitude", sparsity=0.1), device="cpu")
    shutil.copy(small / "config.json", "pruned/config.json")
    limits = prunus.Limits(memory="1GB", seconds=60)
    found = prunus.plan_choose(["tiny", "pruned"], "out", EvalPlan(tasks=("tiny",)), limits=limits)
    alone = prunus.plan_choose(["tiny"], "out", EvalPlan(tasks=("tiny",), budgets=(32, 128)), limits=limits)
    assert found.choices == 2 * alone.choices
