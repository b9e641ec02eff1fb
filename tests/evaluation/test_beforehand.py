"""Cheap checks come first: what is wrong without weights is said before they are read, and by commands before torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import make_model

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError
from prunus.evaluation import backends
from prunus.evaluation import pipeline as evaluation
from prunus.evaluation.provenance import other_dtype
from prunus.pruning.calibration import check_calibration
from prunus.pruning.prune import prune as pipeline
from prunus.recipes import DropRecipe, EvalPlan, ExpertsRecipe, PruneRecipe, RecoverRecipe
from prunus.step import kind_of
from prunus.store.rows import Run

STUDY = """\
models = ["model"]
[eval]
tasks = ["tiny"]
budgets = [8]
[[prune]]
method = "wanda"
calibration = "bad.jsonl"
"""
WRONG = "bad.jsonl, line 2: not JSON"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a model, the same without a template, one with fewer weights, and files with mistakes."""
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "model")
    make_model(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{oops\n')
    (tmp_path / "few.jsonl").write_text('{"text": "1 + 1"}\n')
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n")
    (tmp_path / "own.toml").write_text("format = 2\n")
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


BAD = ("--calibration", "bad.jsonl")
# Every command that reads weights, with a mistake, and what is said of it.
CASES = {
    "prune": (("prune", "model", "out", *BAD), WRONG),
    "prune on nothing": (("prune", "model", "out"), "give --calibration: traces:FILE, with the model's own chains"),
    "prune from the hub": (("prune", "model", "out", "--calibration", "c4"), "'c4' needs the package datasets"),
    "prune messages": (("prune", "base", "out", "--calibration", "chats.jsonl"), "base has no chat template"),
    "prune no traces": (("prune", "model", "out", "--calibration", "traces:none.jsonl"), "none.jsonl cannot be read"),
    "prune --recover": (
        ("prune", "model", "out", "--method", "magnitude", "--recover", *BAD),
        WRONG,
    ),
    "allocate": (("allocate", "model", "--allocation", "owl", *BAD), WRONG),
    "drop": (("drop", "model", "out", *BAD), WRONG),
    "experts": (("experts", "tiny-moe", "out", *BAD), WRONG),
    "recover": (("recover", "model", "out", *BAD), WRONG),
    "stats": (("stats", "model", "out", *BAD), WRONG),
    "stats --experts": (("stats", "tiny-moe", "out", "--experts", *BAD), WRONG),
    "perplexity": (("perplexity", "model", "--text", "bad.jsonl"), WRONG),
    "no model": (("prune", "nowhere", "out"), "model 'nowhere' does not exist"),
    "eval": (("eval", "model", "--task", "bad.jsonl"), "bad.jsonl:1: key 'id' is missing"),
    "eval from the hub": (("eval", "model", "--task", "gsm8k"), "needs the datasets package"),
    "eval profile": (("eval", "model", "--task", "tiny", "--profile", "own.toml"), "format = 1"),
    "eval template": (("eval", "base", "--task", "tiny", "--profile", "qwen3"), "no chat template"),
    "eval closing": (
        ("eval", "model", "--task", "tiny", "--profile", "qwen3", "--closing", "so"),
        "does not end the thinking",
    ),
    "eval store": (("eval", "model", "--task", "tiny", "--store", "none/s.db"), "the folder of the store"),
    "traces": (("traces", "model", "out.jsonl", "--task", "nothing"), "no task 'nothing'"),
    "find": (("find", "model", "out", "--task", "gsm8k"), "needs the datasets package"),
}
WITHOUT_TORCH = """
import json, sys
for name in ("torch", "transformers", "datasets"):
    sys.modules[name] = None
from prunus.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


@pytest.mark.slow
def test_commands_say_it_before_torch_is_imported(folder):
    commands = json.dumps([words for words, _ in CASES.values()])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, commands], capture_output=True, text=True, timeout=120, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(CASES), done.stderr
    for (case, (_, words)), said, code in zip(CASES.items(), lines[::2], lines[1::2], strict=True):
        assert words in said and said.startswith("error: ") and code == "2", (case, said, code)
    assert not {path.name for path in folder.iterdir()} & {"out", "out.partial", "results.db", "out.jsonl"}


def fail(*_: object, **__: object) -> None:
    raise AssertionError("weights are read")


RECIPES = {
    "prune": lambda name: prunus.prune("model", "out", PruneRecipe(allocation="owl", calibration=name)),
    "drop": lambda name: prunus.drop("model", "out", DropRecipe(calibration=name)),
    "experts": lambda name: prunus.experts("tiny-moe", "out", ExpertsRecipe(calibration=name)),
    "recover": lambda name: prunus.recover("pruned", "out", RecoverRecipe(calibration=name), dense="model"),
    "prune and recover": lambda name: prunus.apply_steps(
        "model", "out", [PruneRecipe(method="magnitude", sparsity=0.5), RecoverRecipe(calibration=name)]
    ),
    "stats": lambda name: prunus.stats("model", "out.safetensors", calibration=name),
    "expert_stats": lambda name: prunus.expert_stats("tiny-moe", "out.safetensors", calibration=name),
}


@pytest.mark.parametrize("call", RECIPES)
def test_functions_say_what_is_wrong_with_a_file_before_a_model_is_opened(call, folder, monkeypatch):
    make_model(folder / "pruned")
    monkeypatch.setattr(Checkpoint, "__init__", fail)
    if call == "prune and recover":  # which opens the model for nothing else
        monkeypatch.setattr("prunus.pruning.prune.prune.prune", fail)
    with pytest.raises(PrunusError, match="line 2: not JSON"):
        RECIPES[call]("bad.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("call", [name for name in RECIPES if name != "prune and recover"])
def test_functions_say_that_tokens_are_too_few_before_weights_are_read(call, folder, monkeypatch):
    make_model(folder / "pruned")
    monkeypatch.setattr(Stored, "read", fail)
    monkeypatch.setattr(ModelFolder, "checksum", fail)
    with pytest.raises(PrunusError, match=r"few.jsonl holds \d+ tokens, too few|longer than the model's context"):
        RECIPES[call]("few.jsonl")
    assert not (folder / "out").exists() and not (folder / "out.partial").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda: prunus.stats("model", "out", calibration="traces.jsonl"),
        lambda: prunus.expert_stats("tiny-moe", "out", calibration="tiny"),
        lambda: prunus.allocate("tiny", PruneRecipe(allocation="owl", calibration="tiny"), save="out"),
    ],
    ids=["stats", "expert_stats", "allocate"],
)
def test_a_write_protected_folder_is_said_before_anything_is_measured(call, folder, monkeypatch):
    (folder / "traces.jsonl").write_text('{"token_ids": [1, 2, 3]}\n')
    monkeypatch.setattr("prunus.disk.os.access", lambda path, mode: Path(path) != folder)
    monkeypatch.setattr(Stored, "read", fail)
    with pytest.raises(PrunusError, match=r"^out cannot be written: .* is write-protected$"):
        call()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": ("gsm8k",)}, "needs the datasets package"),
        ({"tasks": ("bad.jsonl",)}, "key 'id' is missing"),
        ({"profile": "own.toml"}, "format = 1"),
        ({"budgets": (100_000,)}, "the model's context is 256"),
    ],
)
def test_an_evaluation_says_it_before_weights_are_read(change, words, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(backends, "opened", fail)
    monkeypatch.setattr(ModelFolder, "checksum", fail)
    plan = {"tasks": ("tiny",), "budgets": (8,)} | change
    with pytest.raises(PrunusError, match=words):
        prunus.evaluate("model", EvalPlan(**plan), "s.db")
    assert not (folder / "s.db").exists()


def test_studies_and_searches_say_it_before_a_model_is_opened(folder, monkeypatch):
    monkeypatch.setattr(ModelFolder, "__init__", fail)
    with pytest.raises(PrunusError, match=r"study.toml, line 5: wanda-20: bad.jsonl, line 2: not JSON"):
        prunus.study("study.toml", out="study")
    assert not (folder / "study").exists()
    with pytest.raises(PrunusError, match="line 2: not JSON"):
        prunus.find(
            "model", "out", EvalPlan(tasks=("tiny",), budgets=(8,)), "0.5", settings={"calibration": "bad.jsonl"}
        )


def test_calibration_that_is_not_used_is_not_looked_at(folder):
    def calibrates(recipe):
        return kind_of(recipe).calibrates(recipe)

    assert not calibrates(PruneRecipe(method="magnitude", calibration="none.jsonl"))
    assert calibrates(PruneRecipe(method="magnitude", update="obs")) and calibrates(PruneRecipe(method="wanda"))
    unread = PruneRecipe(method="wanda", calibration="none.jsonl")
    check_calibration(unread, "model", stats="saved.safetensors")
    with pytest.raises(PrunusError, match=r"none\.jsonl"):
        check_calibration(unread, "model")
    assert not calibrates(DropRecipe(blocks="1,"))
    assert not calibrates(DropRecipe(method="tail")) and not calibrates(ExpertsRecipe(method="random"))
    prunus.prune("model", "out", PruneRecipe(method="magnitude", sparsity=0.5, calibration="none.jsonl"))


@pytest.mark.slow
def test_unfinished_work_has_its_calibration_already(folder, monkeypatch):
    """The file may be gone by the time that the run goes on."""
    (folder / "text.jsonl").write_text("".join(json.dumps({"token_ids": [*range(9, 25)]}) + "\n" for _ in range(4)))
    recipe = PruneRecipe(method="wanda", sparsity=0.5, calibration="text.jsonl", sequences=4, seqlen=16)
    prunus.prune("model", "whole", recipe)
    original, done = pipeline.prune_block, []

    def stop_at_the_second(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(arguments)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "prune_block", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            prunus.prune("model", "out", recipe)
    (folder / "text.jsonl").unlink()
    check_calibration(recipe, "model", "out")
    prunus.prune("model", "out", recipe)
    assert Checkpoint(folder / "out").checksum() == Checkpoint(folder / "whole").checksum()
    with pytest.raises(PrunusError, match=r"text.jsonl cannot be read"):
        prunus.prune("model", "other", recipe)


@pytest.mark.slow
def test_another_dtype_than_that_of_the_base_is_said_before_anything_is_generated(tmp_path, monkeypatch, capsys):
    """Found here: a base in float32 was compared with W8A8 in bfloat16, which was said after both had run."""
    plan, store = EvalPlan(tasks=("tiny",), budgets=(4,), limit=1), tmp_path / "results.db"
    first = prunus.evaluate("tiny", plan, store, device="cpu").run_id
    prunus.prune("tiny", tmp_path / "pruned", PruneRecipe(method="magnitude", sparsity=0.5), device="cpu")
    described = evaluation.describe_environment
    monkeypatch.setattr(evaluation, "fill", lambda *_: print("generates", file=sys.stderr))
    capsys.readouterr()
    for dtype, seed in (("float32", 1), ("bfloat16", 2)):
        monkeypatch.setattr(
            evaluation, "describe_environment", lambda *of, dtype=dtype: described(*of) | {"dtype": dtype}
        )
        evaluation.complete_run(tmp_path / "pruned", replace(plan, seed=seed), store, "cpu", None, mixed=False)
        said, generates = capsys.readouterr().err.split("generates")
        assert not generates.strip()
        warned = f"computed in bfloat16, those of tiny ({first}) in float32" in said
        assert warned == (dtype == "bfloat16")


@pytest.mark.parametrize(("backend", "advice"), [("hf", False), ("vllm", True)])
def test_the_advice_is_for_engines_that_take_a_dtype(backend, advice):
    plan = {"tasks": ["tiny"], "backend": backend}
    base, other = (Run.of(dtype, {"name": "m"}, plan, {"dtype": dtype}) for dtype in ("float32", "bfloat16"))
    line = other_dtype(other, [base]) or ""
    assert ("""evaluate it again with --engine-args '{"dtype": "bfloat16"}'""" in line) == advice
    assert line and other_dtype(other, [base, replace(other, run_id="c")]) is None
    assert other_dtype(other, [replace(base, plan=base.plan | {"tasks": ["sums"]})]) is None
