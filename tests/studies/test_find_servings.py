"""Ladders of `find` whose rungs end in a serving: what is made, certified, claimed and verified."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from forged_engine import ENGINE
from gguf_models import make_gguf_model
from scripted_backend import ScriptedBackend
from small_search import PLAN

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import HFBackend
from prunus.recipes import EvalPlan
from prunus.results.certificate import read_certificate
from prunus.settings.engines import EngineOptions
from prunus.settings.serving import Serving
from prunus.store.store import Store
from prunus.studies.file import FindRules, FindTable
from prunus.studies.find.redraw import engine_of, redraw_run
from prunus.studies.find.search import ladders_of, open_search
from prunus.studies.looks.row_check import CheckedRun

pytestmark = pytest.mark.usefixtures("search_folder")
SERVINGS = """
[calibration]
calibration = "text.jsonl"
sequences = 8
seqlen = 16
[[serving]]
name = "mild"
request = { repetition_penalty = 1.05 }
[[serving]]
name = "harsh"
request = { repetition_penalty = 2 }
"""
ALONE = SERVINGS + '[[chain]]\nsteps = [{ serving = ["mild", "harsh"] }]\n'
PRUNED = '{ prune = { method = "magnitude", sparsity = 0.2 } }'
BOTH = SERVINGS + f'[[chain]]\nsteps = [{PRUNED}]\n[[chain]]\nsteps = [{PRUNED}, {{ serving = ["mild", "harsh"] }}]\n'
MILD = {"name": "mild", "content": {"request": {"repetition_penalty": 1.05}}}


def search(ladder: str, **settings: Any) -> dict[str, Any]:
    Path("ladder.toml").write_text(ladder)
    rule: dict[str, Any] = {"margin": 0.1, "stop_margin": 0.1, "store": "rows.db", **settings}
    return prunus.find("model", "out", PLAN, "ladder.toml", **rule).to_json()


def words(found: dict[str, Any]) -> dict[str, str]:
    return {rung["name"]: rung["word"] for rungs in found["ladders"].values() for rung in rungs}


@pytest.mark.slow
def test_a_ladder_of_servings_alone_certifies_the_model_as_it_is_served(scripted, monkeypatch):
    monkeypatch.setattr(ScriptedBackend, "description", ENGINE)
    found = search(ALONE)
    assert words(found) == {"dense · mild": "certified", "dense · harsh": "refused"}
    assert (found["found"], found["removed"], found["out"]) == ("dense · mild", 0.0, "out")
    assert Checkpoint(Path("out")).checksum() == Checkpoint(Path("model")).checksum()
    assert not Path("model/certificate.json").exists(), "the model's own folder is left as it was"
    declared = read_certificate(Path("out/certificate.json")).declared
    assert next(rung.to_json().get("serving") for rung in declared.rungs) == MILD
    about = " served with mild (repetition_penalty 1.05): "
    assert [about in claim for claim in found["claims"]] == [True, True, False]
    checked = prunus.verify("out/certificate.json", "rows.db")
    assert checked.claims and checked.differences == checked.notes == []
    with sqlite3.connect("rows.db") as connection:
        connection.execute(
            "UPDATE run SET model = json_set(model, '$.serving.request.repetition_penalty', 1.5) WHERE run_id = ?",
            [declared.rungs[0].run],
        )
    (line, *_) = prunus.verify("out/certificate.json", "rows.db").differences
    assert line == (
        "the run of dense · mild was served with repetition_penalty 1.5, and not with mild (repetition_penalty 1.05) as"
        " declared"
    )


@pytest.mark.slow
def test_weights_and_servings_share_a_ladder_and_what_is_made_is_kept_for_the_rungs_that_need_it(scripted):
    found = search(BOTH)
    assert words(found) == {
        "magnitude-20": "certified",
        "magnitude-20 · mild": "certified",
        "magnitude-20 · harsh": "refused",
    }
    assert (found["found"], found["removed"]) == ("magnitude-20 · mild", 0.2), "of equal weights the later one"
    assert prunus.verify("out/certificate.json", "rows.db").differences == []
    card = Path("out/README.md").read_text()
    assert "served with mild" in card.replace("\\", "") and "1.05" in card
    assert "magnitude-20 · mild" in Path("out/find.html").read_text()


@pytest.mark.slow
def test_the_serving_of_all_rungs_is_declared_and_claimed(scripted):
    search("[[prune]]\nmethod = \"magnitude\"\nsparsity = 0.2\n" + SERVINGS[: SERVINGS.index("[[serving]]")],
           options=EngineOptions(request={"min_p": 0.1}))  # fmt: skip
    text = json.loads(Path("out/certificate.json").read_text())
    assert text["declared"]["model"]["serving"] == {"name": "", "content": {"request": {"min_p": 0.1}}}
    assert all("served with min_p 0.1" in claim for claim in text["shown"]["claims"][:2])
    assert "less than 10 points below model served with min_p 0.1's" in text["shown"]["claims"][0]
    assert prunus.verify("out/certificate.json", "rows.db").differences == []
    del text["declared"]["model"]["serving"]
    Path("out/certificate.json").write_text(json.dumps(text))
    found = prunus.verify("out/certificate.json", "rows.db").differences
    assert "the run of model was served with min_p 0.1, and not with no setting that counts as declared" in found


def test_the_smallest_counts_the_cache_in_the_types_of_the_serving(tmp_path, monkeypatch):
    """Written out: 3 blocks, 2 x heads x size numbers a token; 64 bytes for 32 of them in f16, 18 in q4_0."""
    monkeypatch.chdir(tmp_path)
    make_gguf_model("qwen3", Path("model"), intermediate_size=512)
    config = json.loads(Path("model/config.json").read_text())
    numbers = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    serve = "s {gguf} --alias {name} --port {port}"
    quantised = "llama-server -m {gguf} --port {port} -ctk q4_0 -ctv q4_0"
    gguf = "{ gguf = { type = 'q8_0' } }"
    Path("ladder.toml").write_text(
        f'[[serving]]\nname = "q4"\nserve = "{quantised}"\n[[chain]]\nsteps = [{{ serving = "q4" }}]\n'
        f'[[chain]]\nsteps = [{gguf}]\n[[chain]]\nsteps = [{gguf}, {{ serving = "q4" }}]\n'
    )
    plan = EvalPlan(("tiny",), (64,), answer_tokens=16, limit=40, profile="s1", engine="llama.cpp")
    asked = FindTable("ladder.toml", rules=FindRules(0.3, 0.3))
    engine = EngineOptions(serve=serve)
    declared = open_search("model", plan, asked, ladders_of(asked), engine=engine).declared
    tokens, dense = declared.model.tokens or 0, declared.model
    assert (dense.cache, [rung.cache for rung in declared.rungs]) == (
        numbers * tokens * 2,
        [numbers * tokens * 18 // 32, numbers * tokens * 2, numbers * tokens * 18 // 32],
    )
    weights = [rung.bytes for rung in declared.rungs]
    assert weights[0] == dense.bytes and weights[1] == weights[2] and (weights[1] or 0) < (dense.bytes or 0)
    assert [rung.name for rung in declared.rungs] == ["dense · q4", "gguf-q8_0", "gguf-q8_0 · q4"]
    assert declared.rungs[1].serving is None and declared.rungs[0].serving == declared.rungs[2].serving
    assert max(declared.rungs, key=lambda rung: rung.rank).name == "gguf-q8_0 · q4"


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        ('[[chain]]\nsteps = [{ serving = "x" }]\n', "'x' is no serving: there are mild, harsh"),
        ('[[prune]]\nservings = ["mild"]\n', "'servings' is for studies: end a [[chain]] with { serving = NAME }"),
        ('[[chain]]\nsteps = [{ serving = "mild" }, { drop = true }]\n', "unknown step 'serving'"),
        ('[[chain]]\nsteps = [{ serving = ["mild", "mild"] }]\n', "is listed twice"),
        (
            '[[serving]]\nname = "same"\n[[chain]]\nsteps = [{ serving = "same" }]\n',
            "differ in nothing that can change",
        ),
    ],
)
def test_a_wrong_ladder_is_told_in_one_line(ladder, message):
    with pytest.raises(PrunusError) as error:
        search(SERVINGS + ladder)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not Path("rows.db").exists()


@pytest.mark.slow
def test_chains_of_a_run_with_a_request_are_drawn_again_with_it(monkeypatch):
    plan = EvalPlan(tasks=("sums.jsonl",), budgets=(8, 16), answer_tokens=8, profile="tiny", batch_size=20, limit=4)
    engine = EngineOptions(request={"repetition_penalty": 1.5, "min_p": 0.2})
    run_id = prunus.evaluate("model", plan, "rows.db", device="cpu", options=engine).run_id
    started = list[EngineOptions]()
    load = HFBackend.load

    def noted(folder, device, vocabulary, engine):
        started.append(engine)
        return load(folder, device, vocabulary, engine)

    monkeypatch.setattr(HFBackend, "load", noted)
    with Store("rows.db") as store:
        run = store.run(run_id)
        assert run.planned and run.planned.order
        one = CheckedRun("model", run, [problem for ids in run.planned.order.values() for problem in ids], True)
        assert redraw_run(store, one, Path("model"), 3, "0", "cpu").differing == []
        assert started[0].request == engine.request
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
        with pytest.raises(PrunusError, match=r"would be here with .* NVIDIA_TF32_OVERRIDE=1: set the environment as"):
            redraw_run(store, one, Path("model"), 3, "0", "cpu")


def test_an_engine_is_started_as_a_serving_says():
    serving = Serving(args={"kv_cache_dtype": "fp8"}, request={"min_p": 0.1}, environment={"A": "1"})
    assert engine_of("hf", serving) == EngineOptions(request={"min_p": 0.1})
    assert engine_of("vllm", serving) == EngineOptions(
        args={"kv_cache_dtype": "fp8"}, request={"min_p": 0.1}, environment={"A": "1"}
    )
