"""What `prunus study plan` says, the shipped examples, and the screen of a running study."""

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from small_study import NAMES, RECIPES, SHORT, write_study

import prunus
from prunus import progress
from prunus.checkpoint.resolve import load_tokenizer
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation import engine as loop
from prunus.evaluation.tasks import TASKS, Problem, Task
from prunus.recipes import EvalPlan
from prunus.store.rows import Sample
from prunus.store.store import Store
from prunus.studies.cells import open_model, variant_names
from prunus.studies.file import read_study
from prunus.studies.records import plan_table
from prunus.studies.terminal import StudyBar
from prunus.studies.variants import make_variant, weights_file

EXAMPLES = Path(__file__).parents[2] / "examples"


def text_of(renderable) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
def test_a_plan_counts_what_is_left(tmp_path, monkeypatch, capsys):
    file, out, done = write_study(tmp_path), tmp_path / "out", 0
    original = loop.run_batch

    def interrupted(*arguments):
        nonlocal done
        done += 1
        if done > 4:
            raise KeyboardInterrupt
        return original(*arguments)

    record = prunus.plan_study(file, out=out)
    plan = record.to_json()
    assert [cell["variant"] for cell in plan["cells"]] == NAMES and not out.exists(), "nothing is written"
    # 20 to think, three answers of 8; six chains.
    assert {(c["problems"], c["answers"], c["done"], c["tokens"]) for c in plan["cells"]} == {(6, 18, 0, 6 * 44)}
    assert plan["totals"]["tokens"] == 8 * 6 * 44 and plan["totals"]["done"] == 0
    assert plan["unknown"] == [] and {cell["tokens_expected"] for cell in plan["cells"]} == {None}
    assert repr(record).startswith("study ") and "2,112 tokens to generate at most" in repr(record)
    assert "2,112 tokens to generate at most\n" in text_of(plan_table(record))
    monkeypatch.setattr(loop, "run_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prunus.study(file, out=out)
    main(["study", "plan", str(file), "--out", str(out), "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert [cell["done"] for cell in plan["cells"]] == [18, 6, 0, 0, 0, 0, 0, 0]
    assert [cell["tokens"] // 44 for cell in plan["cells"]] == [0, 4, 6, 6, 6, 6, 6, 6]
    assert [variant["made"] for variant in plan["variants"]] == [True] * 2 + [False] * 5, "wanda-50 too"
    assert plan["totals"]["complete"] == 1 and plan["totals"]["answers"] == 8 * 18
    with Store(out / "results.db") as store:
        samples = store.samples(plan["cells"][1]["run"])
    assert 0 < plan["cells"][2]["tokens_expected"] <= plan["cells"][2]["tokens"]
    chains = [[s for s in samples if s.problem_id == problem] for problem in {s.problem_id for s in samples}]
    spent = [max(s.thinking_tokens for s in c) + sum(s.answer_tokens for s in c if s.ended == "forced") for c in chains]
    if all(s.ended == "forced" for s in samples):
        assert plan["cells"][1]["tokens_expected"] == pytest.approx(4 * sum(spent) / len(spent))
    expected = sum(cell["tokens_expected"] for cell in plan["cells"][1:])
    assert f"about {expected:,.0f} tokens if chains stay as long as those so far\n" in text_of(
        plan_table(prunus.plan_study(file, out=out))
    )


@pytest.mark.slow
def test_a_plan_expects_what_each_budget_took_where_none_shares_a_chain(tmp_path, monkeypatch):
    file = write_study(tmp_path, '[[prune]]\nsparsity = 0.5\nmethod = "magnitude"\n', f"{SHORT}\nreuse = false")
    original, batches = loop.run_batch, []

    def interrupted(*arguments):
        batches.append(arguments)
        if len(batches) > 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "run_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prunus.study(file, out=tmp_path / "out")
    plan = prunus.plan_study(file, out=tmp_path / "out").to_json()
    with Store(tmp_path / "out" / "results.db") as store:
        samples = [sample for cell in plan["cells"] for sample in store.samples(cell["run"])]
    chains = {(sample.problem_id, sample.draw) for sample in samples}
    taken = sum(sample.thinking_tokens + sample.answer_tokens for sample in samples)
    assert plan["cells"][-1]["done"] == 0 and len(samples) == 3 * len(chains)
    assert plan["cells"][-1]["tokens_expected"] == pytest.approx(6 * taken / len(chains))


def test_a_plan_of_legacy_answers_counts_to_the_end_of_the_context(tmp_path):
    file = write_study(tmp_path, "", "mode = 'legacy'\n")
    file.write_text(file.read_text().replace("answer_tokens = 8\n", ""))
    [cell] = prunus.plan_study(file, out=tmp_path / "out").to_json()["cells"]
    study = read_study(file)
    [dense] = open_model(study, study.models[0], Path(study.models[0])).cells
    lengths = [len(chain.prompt) for chain in dense.resolved.chains]
    closing = len(load_tokenizer(Path(study.models[0])).encode("<|im_start|>answer"))  # the shortest
    assert cell["tokens"] == sum(
        20 + sum(256 - length - budget - closing for budget in (0, 8, 20)) for length in lengths
    )


def test_a_model_that_is_elsewhere_is_planned_like_the_one_that_is_here(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    more = "temperature = 0.6\nbase_samples = 3\naa_control = true\n"
    file = write_study(tmp_path, '[[prune]]\nsparsity = 0.5\nmethod = "magnitude"\n', more)
    here = prunus.plan_study(file, out=tmp_path / "out").cells
    file.write_text(file.read_text().replace('["model"]', '["org/elsewhere"]'))
    there = prunus.plan_study(file, out=tmp_path / "out").cells
    assert [cell.answers for cell in here] == [cell.answers for cell in there] == [3 * 18, 18, 18]
    assert {cell.run for cell in there} == {None} != {cell.run for cell in here}


@pytest.mark.slow
def test_the_bound_on_disk_holds_for_every_kind_of_variant(tmp_path):
    file = write_study(tmp_path, hidden_size=64, intermediate_size=512)
    plan = prunus.plan_study(file, out=tmp_path / "out").to_json()
    study = read_study(file)
    bounds = {variant["variant"]: variant["bytes"] for variant in plan["variants"]}
    model = open_model(study, study.models[0], Path(study.models[0]))
    made = {variant.name: variant for variant in model.variants[1:]}
    assert bounds.keys() == made.keys() == set(NAMES[1:])
    nbytes = model.checkpoint.nbytes
    for name, bound in bounds.items():
        make_variant(model, made[name], tmp_path / "out", "cpu", keep=False)
        size = weights_file(tmp_path / "out", made[name]).stat().st_size
        assert size <= bound + 60_000, name
        assert bound < 0.06 * nbytes or name in ("sparsegpt-50", "laco-1"), "a bit a weight"
    assert bounds["sparsegpt-50"] > 0.3 * nbytes


def test_the_published_study_is_planned_without_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    record = prunus.plan_study(EXAMPLES / "paper.toml", out=tmp_path / "out")
    plan = record.to_json()
    assert plan["totals"]["cells"] == 30 and plan["totals"]["answers"] == 30 * 768 * 5 * 3
    assert {cell["problems"] for cell in plan["cells"]} == {30 + 198 + 40 + 500}
    assert {cell["tokens"] for cell in plan["cells"]} == {768 * 3 * (8192 + 5 * 32768)}
    strict = tmp_path / "strict.toml"
    lines = (EXAMPLES / "paper.toml").read_text().splitlines(keepends=True)
    strict.write_text("".join(line for line in lines if not line.startswith("mode =")))
    told = [plan["totals"]["tokens"], prunus.plan_study(strict, out=tmp_path / "out").totals.tokens]
    page = " ".join((EXAMPLES.parent / "docs/scale.md").read_text("utf-8").split())
    assert f"computes it: {told[0]:,} for `examples/paper.toml` " in page
    assert f", or {told[1]:,} with its line `mode` deleted" in page
    names = Counter(cell["variant"] for cell in plan["cells"])
    made = ("magnitude", "wanda", "magnitude-owl", "wanda-owl", "magnitude-layerif", "wanda-layerif-dense-tensor")
    methods = [f"{name}-{s}" for name in made for s in (10, 20)]
    assert names == Counter(2 * ["dense", *methods, "shortgpt-1", "shortgpt-2"])
    assert all(cell["run"] is None for cell in plan["cells"]) and plan["totals"]["disk"] is None
    assert any(line.startswith("whether simplescaling/s1.1-7B, Qwen/Qwen3-8B fit the") for line in plan["unknown"])
    text = text_of(plan_table(record))
    assert text.count("not known yet:") == len(plan["unknown"]) <= 2
    assert "Qwen3-8B wanda-layerif-dense-tensor-20" in text
    assert plan["gated"] == ["gpqa_diamond"] and "gpqa_diamond is gated" in text
    study = read_study(EXAMPLES / "paper.toml")
    recipes = dict(zip(variant_names(study.entries), [e.steps[0] for e in study.entries], strict=True))
    for name in methods:
        recipe = recipes[name].to_json()
        settings = tuple(recipe[key] for key in ("calibration", "sequences", "seqlen", "seed"))
        assert settings == ("c4", 128, 2048, 0)
    owl = recipes["wanda-owl-10"]
    assert isinstance(owl, prunus.PruneRecipe) and owl.outlier_threshold == 7 and owl.spread == 0.08
    drop = recipes["shortgpt-2"]
    assert isinstance(drop, prunus.DropRecipe) and (drop.sequences, drop.seqlen) == (100, 1024)
    assert study.plans[0].mode == "legacy" and study.plans[0].answer_tokens is None, "32768, or what the context leaves"
    assert study.plans[0].budgets == (512, 1024, 2048, 4096, 8192) and study.plans[0].samples == 3


def test_the_gsm8k_example_is_planned_without_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    plan = prunus.plan_study(EXAMPLES / "gsm8k.toml", out=tmp_path / "out").to_json()
    names = ["wanda-20", "wanda-50", "wanda-50-recovered", "shortgpt-5", "width-obs-75", "w8a8"]
    assert Counter(cell["variant"] for cell in plan["cells"]) == Counter(["dense", *names])
    assert plan["totals"]["answers"] == 7 * 200 * 4


def test_a_set_that_cannot_be_read_and_declares_no_number_is_unknown(tmp_path, monkeypatch):
    """Of cells with such a task nothing is counted, and the plan is not taken to be finished."""

    def missing() -> list[Problem]:
        raise PrunusError("there is no network")

    for name, number in (("sized", 30), ("unsized", None)):
        monkeypatch.setitem(TASKS, name, Task(name, "org/name", "integer", "a set", missing, number))
    file = write_study(tmp_path, "")
    text = re.sub(r"tasks = .*", "tasks = ['sized', 'unsized']", file.read_text())
    file.write_text(re.sub(r"limit = .*", "", text))
    record = prunus.plan_study(file, out=tmp_path / "out")
    plan = record.to_json()
    (cell,) = plan["cells"]
    assert (cell["problems"], cell["answers"], cell["tokens"], cell["done"]) == (None, None, None, 0)
    assert plan["totals"] == {"cells": 1, "complete": 0, "answers": 0, "done": 0, "tokens": 0, "disk": None}
    shown = text_of(plan_table(record))
    assert "nothing is left" not in shown and "not known yet: how many problems unsized has" in shown and "?" in shown
    file.write_text(file.read_text().replace(", 'unsized'", ""))
    (cell,) = prunus.plan_study(file, out=tmp_path / "out").to_json()["cells"]
    assert (cell["problems"], cell["answers"], cell["tokens"]) == (30, 30 * 3, 30 * (20 + 3 * 8))


@pytest.mark.thorough
@pytest.mark.slow
def test_the_small_example_runs_in_a_smaller_form(tmp_path, capsys, few_resamples):
    text = (EXAMPLES / "tiny.toml").read_text()
    for old, new in (
        ("limit = 126", "limit = 2\nanswer_tokens = 8"),
        ("[32, 64, 128, 256, 512, 1024]", "[2, 8]"),
        ("sequences = 128", "sequences = 4"),
        ("influence_train = 96\ninfluence_validation = 32", "influence_train = 4\ninfluence_validation = 4"),
    ):
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "tiny.toml"
    file.write_text(text)
    main(["study", str(file), "--out", str(tmp_path / "out"), "--json"])
    done = json.loads(capsys.readouterr().out)
    assert done["cells"] == 15 and len(done["comparisons"][0]["comparison"]["others"]) == 14
    assert "ShortGPT" in Path(done["report"]).read_text()


def bar() -> StudyBar:
    """Of a dense model and a variant, with two answers each, of which the store has one of the variant."""
    stored = {"problem_id": "p", "budget": 8, "draw": 0, "correct": 1}

    def columns(run_id: str, names: Sequence[str]) -> list[tuple[Any, ...]]:
        return [(stored[name],) if run_id == "id-v" else () for name in names]

    store: Any = SimpleNamespace(columns=columns)
    work = SimpleNamespace(batches=[[(0, 0), (1, 0)]], budgets=(8,))
    cells = [SimpleNamespace(run_id=f"id-{name}", name=name, plan=0, resolved=work) for name in ("dense", "v")]
    models: Any = [SimpleNamespace(name="m", label="m", cells=cells)]
    study: Any = SimpleNamespace(name="x", models=["m"], plans=[None])
    return StudyBar(study, models, store)


def sample(problem: str, correct: bool) -> Sample:
    return Sample("tiny", problem, 8, 0, 8, 2, 0, "forced", False, False, "1", "ok", correct)


def test_a_line_for_each_cell_that_is_complete(capsys):
    """An answer that was stored before and is drawn again with its batch counts once."""
    with bar() as shown:
        assert (shown.done, shown.total) == (1, 4)
        shown.say("evaluating dense")
        shown.add("id-dense", [sample("p", True)])
        shown.add("id-v", [sample("p", True), sample("q", False)])
        assert shown.done == 3
        shown.add("id-dense", [sample("q", True)])
    assert capsys.readouterr().err.splitlines() == [
        "v: 2 answers, 50.0 % right; 1 of 2 cells are complete",
        "dense: 2 answers, 100.0 % right; 2 of 2 cells are complete",
    ]


def test_who_draws_bars_has_the_screen_to_himself(monkeypatch):
    """The bar is wiped away meanwhile and drawn anew; its last picture stays."""
    file = io.StringIO()
    console = Console(width=80, height=20, file=file, force_terminal=True)
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(progress, "shows_bars", lambda: True)
    with bar() as shown:
        shown.say("evaluating v")
        with shown.hidden():
            wiped = file.getvalue()
            assert wiped.count("study x") >= 1 and wiped.rstrip().endswith("\x1b[2K")
            console.print("somebody's bars")
        shown.add("id-v", [sample("q", False)])
    after = file.getvalue().split("somebody's bars")[1].rsplit("\x1b[2K", 1)[-1]
    assert "study x" in after and "2/4" in after and "evaluating v" in after


@pytest.mark.slow
def test_an_engine_that_is_not_installed_is_named_before_anything_is_made(tmp_path, monkeypatch, capsys):
    def absent() -> str:
        raise PrunusError("the engine vllm needs vLLM: pip install vllm")

    monkeypatch.setattr("prunus.evaluation.backends.vllm.check_version", absent)
    file = write_study(tmp_path, RECIPES, f'{SHORT}\nengine = "vllm"')
    needs = "whether this machine can run it: the engine vllm needs vLLM: pip install vllm"
    assert needs in prunus.plan_study(file, out=tmp_path / "out").unknown
    with pytest.raises(PrunusError, match="the engine vllm needs vLLM"):
        prunus.study(file, out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    plan = EvalPlan(tasks=("tiny",), budgets=(16,), limit=8, engine="vllm")
    prunus.plan_find("tiny", tmp_path / "certificate", plan=plan)
    assert f"not known yet: {needs}" in capsys.readouterr().err
