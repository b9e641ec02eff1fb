"""`find` walks a ladder and certifies what holds; rows, order and marks that it leaves in the store."""

import json
import re
import shutil
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import make_gguf_model
from random_models import make_random_model
from scripted_backend import ScriptedBackend
from small_search import CALIBRATION, COMMAND, DOES, PLAN, PROBLEMS, Stop, without_place
from study_with_find import RULE as MARGINS
from study_with_find import STUDY
from tiny_models import VOCABULARY, make_model

import prunus
from prunus.cards.markdown import plain
from prunus.cards.text import is_ours
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import ModelFolder
from prunus.cli import main
from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.evaluation import engine as loop
from prunus.evaluation.backends import vllm as backend
from prunus.recipes import (
    DropRecipe,
    EvalPlan,
    ExpertsRecipe,
    GgufRecipe,
    PruneRecipe,
    QuantizeRecipe,
    RecoverRecipe,
    WidthRecipe,
)
from prunus.settings.engines import EngineOptions
from prunus.statistics.anytime import interleaved, seeded_order
from prunus.step import steps_name
from prunus.steps.chain import bytes_after
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.store.stored import Adaptive
from prunus.studies import engine as engines
from prunus.studies.file import FindTable
from prunus.studies.find import find as finding
from prunus.studies.find import walk as making
from prunus.studies.find.search import ladder_by_bytes, ladders_of, sparsities

RULE: dict[str, Any] = {"margin": 0.1, "stop_margin": 0.1, "store": "rows.db"}


def search(ladder: Any = "0.1:0.4:0.1", out: str = "out", **settings: Any) -> dict[str, Any]:
    plan = settings.pop("plan", PLAN)
    if isinstance(ladder, str) and not ladder.endswith(".toml"):
        settings.setdefault("methods", ["magnitude"])
    return prunus.find("model", out, plan, ladder, **{**RULE, **settings}).to_json()


def words(found: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [rung["word"] for rung in rungs] for name, rungs in found["ladders"].items()}


def there(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"model", "sums.jsonl", "text.jsonl"}


def rows(store: str) -> dict[str, Any]:
    with Store(store) as opened:
        return {run.run_id: opened.samples(run.run_id, texts=True) for run in opened.runs()}


def verified(*outs: str) -> bool:
    checked = [prunus.verify(f"{out}/certificate.json", "rows.db") for out in outs]
    return all(one.claims and not [*one.differences, *one.notes] for one in checked)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ladder_of_fewer_experts_gives_what_the_commands_give(search_folder, scripted, monkeypatch):
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "max_position_embeddings": 256, "pad_token_id": 0}
    make_random_model("qwen3_moe", search_folder / "model", mlp_only_layers=[0], **sizes)
    monkeypatch.setitem(DOES, "experts-reap-drop4-recovered", (1, 0))
    calibration = '[calibration]\ncalibration = "text.jsonl"\nsequences = 8\nseqlen = 16\n'
    (search_folder / "fewer.toml").write_text(f"{calibration}[[experts]]\ndrop = [1, 2, 4]\nrecover = true\n")
    found = search("fewer.toml")
    assert words(found) == {"fewer": ["certified", "certified", "refused"]}
    assert found["found"] == "experts-reap-drop2-recovered" and found["removed"] == 0.25 and verified("out")
    prunus.experts("model", "fewer", ExpertsRecipe(drop=2, **CALIBRATION))
    prunus.recover("fewer", "alone", RecoverRecipe(**CALIBRATION))
    assert Checkpoint(search_folder / "out").checksum() == Checkpoint(search_folder / "alone").checksum()


@pytest.mark.slow
def test_the_last_rung_before_the_cliff_is_written_and_later_ones_are_not_evaluated(search_folder, scripted):
    found = search()
    assert words(found) == {"magnitude": ["certified", "certified", "refused"]}
    assert (found["found"], found["removed"], found["out"]) == ("magnitude-20", 0.2, "out")
    assert scripted.keys() == {"dense", "magnitude-10", "magnitude-20", "magnitude-30"}
    assert scripted["dense"] == max(scripted.values()) < PROBLEMS, "the dense rows are computed once, as far as needed"
    prunus.prune("model", "same", PruneRecipe(method="magnitude", sparsity=0.2))
    for name in ("model.safetensors", "prunus.json"):
        assert Path("out", name).read_bytes() == Path("same", name).read_bytes()
    ours, plain_card = (Path(folder, "README.md").read_text().split("\n## ") for folder in ("out", "same"))
    assert [part for part in ours if not part.startswith(("Certificate", "Accuracy"))][:2] == plain_card[:2]
    assert there(search_folder) == {"out", "same", "rows.db"}
    with Store("rows.db") as store:
        assert [run.adaptive for run in store.runs()] == [Adaptive.of({"by": "find", "seed": 0})] * 4
        runs = {run.model.name: store.keys(run.run_id) for run in store.runs()}
    order = seeded_order([f"p{n}" for n in range(PROBLEMS)], 0)
    for keys in runs.values():
        looked = {problem for problem, _, _ in keys}
        assert looked == set(order[: len(looked)]) and len(keys) == 2 * len(looked)
    assert verified("out")
    before = scripted.total()
    again = search(out="again")
    assert scripted.total() == before and again == found | {"out": "again"}
    assert Path("again", "certificate.json").read_bytes() == Path("out", "certificate.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rungs_are_made_when_they_are_needed_unless_vllm_occupies_their_gpu(
    search_folder, scripted, monkeypatch, device
):
    made, original = list[str](), making.make_variant

    def noted(model, variant, *arguments, **options):
        made.append(variant.name)
        original(model, variant, *arguments, **options)

    monkeypatch.setattr(making, "make_variant", noted)
    monkeypatch.setattr(engines, "device_for", lambda _: device)
    assert search(plan=replace(PLAN, engine="vllm"))["found"] == "magnitude-20"
    needed = ["magnitude-10", "magnitude-20", "magnitude-30"]
    assert made == (needed if device == "cpu" else [*needed, "magnitude-40"])
    prunus.prune("model", "same", PruneRecipe(method="magnitude", sparsity=0.2))
    assert Checkpoint(search_folder / "out").checksum() == Checkpoint(search_folder / "same").checksum()


@pytest.mark.slow
def test_the_model_card_has_the_claims_as_long_as_the_weights_are_those(search_folder, scripted):
    claims = search()["claims"]
    text = Path("out/README.md").read_text()
    assert "## Certificate" in text and is_ours(text)
    mine = [claim for claim in claims if claim.startswith("The checkpoint made by magnitude-20 (blake3 ")]
    assert len(mine) == 2 and all(f"- {plain(claim, 1000)}." in text for claim in [*mine, claims[-1]])
    assert (
        "made by magnitude-10" not in text
        and Checkpoint("out").checksum()[:16] in mine[0]
        and "prunus card --store" in text
    )
    made = prunus.card("out", store="rows.db", out="again.md", margin=0.1)
    again = Path("again.md").read_text()
    assert made.verdict and "## Certificate" in again and "## Accuracy against thinking budget" in again
    data = json.loads(Path("out/certificate.json").read_text())
    for wrong, warned in ((data | {"made": data["made"] | {"checksum": "0"}}, True), (data | {"shown": [1]}, False)):
        Path("out/certificate.json").write_text(json.dumps(wrong))
        warnings = prunus.card("out", out="again.md").warnings
        assert any("is about other weights" in one for one in warnings) == warned
        assert "Certificate" not in Path("again.md").read_text() and "Not measured" in Path("again.md").read_text()


@pytest.mark.slow
def test_a_rung_that_solves_everything_and_never_ends_is_refused(search_folder, scripted):
    found = search("0.1,0.45")
    assert words(found) == {"magnitude": ["certified", "refused"]}
    data = json.loads(Path("out/certificate.json").read_text())
    assert data["shown"]["ladders"][0]["rungs"][1]["failed"] == ["ends"]


@pytest.mark.thorough
@pytest.mark.slow
def test_an_interrupted_search_goes_on_and_ends_with_the_same_bytes(search_folder, scripted, monkeypatch):
    settings: dict[str, Any] = {"methods": ["wanda"], "settings": CALIBRATION}
    whole = search("0.1,0.2", out="whole", store="whole.db", **settings)
    done: list[str] = []
    original, renaming, deleting = loop.run_batch, finding.replace_folder, finding.shutil.rmtree

    def stop_at(where: str, number: int) -> None:
        def stopping(function: Any, name: str) -> Any:
            calls = 0

            def call(*args: Any, **rest: Any) -> Any:
                nonlocal calls
                calls += 1
                if name == where and calls > number:
                    raise Stop
                done.append(name)
                return function(*args, **rest)

            return call

        monkeypatch.setattr(loop, "run_batch", stopping(original, "batch"))
        monkeypatch.setattr(making, "make_variant", stopping(making_variant, "make"))
        monkeypatch.setattr(finding, "replace_folder", stopping(renaming, "rename"))

    making_variant = making.make_variant
    stages = [("batch", 0), ("batch", 3), ("make", 0), ("batch", 1), ("rename", 0)]
    for where, number in stages:
        stop_at(where, number)
        with pytest.raises(Stop):
            search("0.1,0.2", **settings)
        assert not Path("out").exists() and Path("out.finding").exists()
    stop_at("nothing", 0)
    monkeypatch.setattr(finding.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        search("0.1,0.2", **settings)
    monkeypatch.setattr(finding.shutil, "rmtree", deleting)
    done.clear()
    assert search("0.1,0.2", **settings) == whole | {"out": "out"} and done == []
    assert rows("rows.db") == rows("whole.db")
    with Store("rows.db") as store:
        (declared,) = store.searches()
    assert declared.had == {}, "it was declared before the first row, and once"
    assert there(search_folder) == {"out", "whole", "rows.db", "whole.db"}
    for path in Path("whole").iterdir():
        assert without_place(Path("out", path.name)) == without_place(path), path.name


@pytest.mark.slow
def test_a_search_in_several_processes_ends_with_the_same_bytes(search_folder, scripted, monkeypatch):
    whole = search("0.1", "whole", store="whole.db")
    alone = scripted.total()
    monkeypatch.setattr(ScriptedBackend, "processes", 2)
    assert search("0.1") == whole | {"out": "out"}
    assert scripted.total() - alone < alone, "other processes count for themselves"
    assert rows("rows.db") == rows("whole.db")
    for path in Path("whole").iterdir():
        assert without_place(Path("out", path.name)) == without_place(path), path.name


@pytest.mark.slow
def test_another_search_does_not_go_on_with_unfinished_work(search_folder, scripted, monkeypatch):
    monkeypatch.setattr(loop, "run_batch", lambda *_: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        search()
    for ladder, margin, told in (
        ("0.1:0.4:0.1", 0.2, "margin 10 points, now 20 points"),
        ("0.1,0.2", 0.1, "another ladder"),
    ):
        with pytest.raises(PrunusError, match=told):
            search(ladder, margin=margin)


@pytest.mark.slow
def test_several_methods_share_alpha_and_dense_statistics_and_the_most_removed_is_written(
    search_folder, scripted, monkeypatch
):
    measured, original = [], making.stats
    monkeypatch.setattr(making, "stats", lambda *args, **rest: measured.append(args[1]) or original(*args, **rest))
    settings: dict[str, Any] = CALIBRATION | {"propagation": "dense"}
    found = search("0.1,0.2", methods=["wanda", "magnitude"], settings=settings)
    assert words(found) == {"wanda": ["certified", "refused"], "magnitude": ["certified", "certified"]}
    assert found["found"] == "magnitude-dense-20" and len(measured) == 1
    alone = search("0.1", "alone", methods=["wanda"], settings=settings)
    assert len(measured) == 1, "a single rung needs no file"
    own, shared = (one["ladders"]["wanda"][0]["problems"] for one in (alone, found))
    assert own < shared, "half of alpha needs more problems"
    assert verified("alone", "out")


@pytest.mark.slow
def test_texts_configuration_and_template_cannot_be_changed_beside_a_certificate(search_folder, scripted):
    """Edits that went unnoticed, and files that were added, or are missing."""
    search("0.2")
    assert verified("out")
    shutil.copy("rows.db", "kept.db")
    shutil.copytree("out", "kept")

    def differs(told: str) -> None:
        checked = prunus.verify("out/certificate.json", "rows.db")
        assert checked.claims == [] and any(told in line for line in checked.differences), checked
        shutil.copy("kept.db", "rows.db")
        shutil.rmtree("out")
        shutil.copytree("kept", "out")

    for change in ("sample SET thinking = 'I am made up'", "sample SET text = '42'"):
        with sqlite3.connect("rows.db") as connection:
            connection.execute(f"UPDATE {change}")
        differs("rows of the store are not those on which the certificate rests")
    with sqlite3.connect("rows.db") as connection:
        connection.execute("UPDATE problem SET gold = '8'")
    differs("problems is")
    config = json.loads(Path("out/config.json").read_text())
    Path("out/config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    differs("config.json beside the certificate is not as it was made")
    Path("out/chat_template.jinja").write_text("hello")
    differs("chat_template.jinja beside the certificate")
    Path("out/adapter_config.json").write_text("{}")
    differs("adapter_config.json beside the certificate was not made with the checkpoint")
    Path("out/prunus.json").unlink()
    differs("prunus.json is missing beside the certificate")
    for name in ("README.md", "find.html", ".gitattributes"):
        Path("out", name).write_text("edited")
    shutil.copy("rows.db", "out/rows.db")
    assert prunus.verify("out/certificate.json", "out/rows.db").differences == []


@pytest.mark.slow
def test_a_search_that_follows_a_refusal_says_so_when_it_starts(search_folder, scripted, capsys):
    search("0.3", "first")
    search("0.3", "first")
    assert "search 2" not in capsys.readouterr().err, "the same search is no other"
    prunus.plan_find("model", "out", PLAN, "0.1", **{**RULE, "margin": 0.2, "methods": ["magnitude"]})
    search("0.1,0.3", margin=0.2)
    line = "magnitude-30 was refused by an earlier search (margin 10 points, now 20 points; another ladder)"
    told = f"warning: {line}; this is search 2 of model on sums in this store, and their errors add up to 10 %\n"
    assert told in capsys.readouterr().err
    with Store("rows.db") as store:
        assert [one.declared["margin"] for one in store.searches()] == [0.1, 0.2], "a dry run declares nothing"
    checked = prunus.verify("out/certificate.json", "rows.db")
    assert checked.differences == [] and checked.searches[0].endswith(": magnitude-30 refused")


@pytest.mark.slow
def test_tokens_end_a_search_that_cannot_tell(search_folder, scripted):
    found = search(most_tokens=40)
    assert words(found) == {"magnitude": ["cannot tell"]} and found["out"] is None
    assert found["ladders"]["magnitude"][0]["why"] == "the tokens are used up" and found["tokens"] == 40
    assert there(search_folder) == {"rows.db"}
    more = search(most_tokens=41)
    assert words(more) == {"magnitude": ["certified"]} and more["tokens"] == 64, "the next rung is not started"
    assert verified("out")


@pytest.mark.slow
def test_a_dry_run_says_what_to_expect_and_writes_nothing(search_folder, scripted, capsys):
    main([*COMMAND, "--ladder", "0.1:0.4:0.1", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "200 problems with 1 draw each; 4 rungs (magnitude: magnitude-10 to magnitude-40)"
    assert "accuracy: a margin of 10 points takes about " in lines[1] and not scripted and not there(search_folder)
    with pytest.raises(SystemExit, match="2"):
        main([*COMMAND, "--limit", "30"])
    assert (
        "30 problems cannot certify a margin of 10 points in accuracy; 10.4 points would be" in capsys.readouterr().err
    )
    assert not there(search_folder)


@pytest.mark.slow
def test_without_a_certified_rung_the_exit_code_is_3_and_no_folder_is_written(search_folder, scripted, capsys):
    with pytest.raises(SystemExit, match="3"):
        main([*COMMAND, "--ladder", "0.3"])
    assert "no rung was certified, so model stays as it is" in capsys.readouterr().out
    assert there(search_folder) == {"rows.db"}


# Ladders by bytes


@pytest.fixture
def bits(search_folder, scripted, monkeypatch) -> dict[str, Any]:
    """Arguments of a search in a model whose widths groups of 32 divide; with fewer channels it is wrong."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    monkeypatch.setattr("prunus.studies.engine.check_installed", lambda _: None)
    make_model(search_folder / "wide", "qwen2", blocks=2, hidden_size=64, intermediate_size=512)
    shutil.rmtree(search_folder / "model")
    (search_folder / "wide").rename(search_folder / "model")
    monkeypatch.setitem(DOES, "width-obs-87.5-recovered-w4-g128", (1, 0))
    return {"plan": replace(PLAN, engine="vllm"), "settings": CALIBRATION}


@pytest.mark.thorough
@pytest.mark.slow
def test_the_ladder_of_an_engine_goes_by_the_bytes_that_it_loads(search_folder, bits, scripted, capsys):
    ahead = prunus.plan_find("model", "out", **RULE, **bits).to_json()
    (search_folder / "same.toml").write_text(ahead["ladder"])
    options = ["--engine", "vllm", "--calibration", "text.jsonl", "--dry-run"]
    capsys.readouterr()
    main([*(word for word in COMMAND if word not in ("--method", "magnitude")), *options])
    printed, warned = capsys.readouterr()
    assert warned.count("llama.cpp cannot write K-quants") == 1, "of three widths"
    assert printed.count("[[chain]]") == 6 and 'calibration = "text.jsonl"\n' in printed
    assert "vllm takes for weights and the cache of a chain of " in printed and not scripted
    found = search(None, methods=None, **bits)
    names = ["w8a8", "w4-g32", "w4-g128", "width-obs-87.5-recovered-w4-g128"]
    assert words(found) == {"vllm": ["certified"] * 3 + ["refused"]} and found["found"] == names[2]
    assert [rung["name"] for rung in found["ladders"]["vllm"]] == names and scripted.keys() == {"dense", *names}
    data = json.loads(Path("out/certificate.json").read_text())
    declared, shown = data["declared"], data["shown"]
    (planned,), (seen,) = declared["ladders"], shown["ladders"]
    sizes = [rung["bytes"] for rung in planned["rungs"]]
    assert len(sizes) == 6 and sizes == sorted(set(sizes), reverse=True)
    dense, small = (sum(t.nbytes for t in ModelFolder(name).stored.values()) for name in ("model", "out"))
    assert (declared["model"]["bytes"], declared["model"]["engine"]) == (dense, "vllm")
    assert small == shown["found"]["bytes"] == sizes[2] < dense
    tokens, cache = declared["model"]["tokens"], declared["model"]["cache"]
    assert cache == tokens * 2 * 2 * 2 * 16 * 2, "blocks, keys and values, heads, their size, bytes"
    assert found["bytes"] == small + cache
    assert {rung["cache"] for rung in planned["rungs"]} == {cache} == {rung["cache"] for rung in seen["rungs"]}
    dense, small = dense + cache, small + cache
    assert f"of {tokens:,} tokens: dense {show_bytes(dense)}, w8a8 {show_bytes(sizes[0] + cache)}, w4-g32 " in printed
    assert [rung["bytes"] for rung in seen["rungs"]] == sizes[:4], "those of the stored runs are as planned"
    claim = f": vllm takes {show_bytes(small)} of it, and {show_bytes(dense)} of model, with the cache of a chain of"
    claim += f" {tokens:,} tokens"
    assert sum(line.endswith(claim) for line in found["claims"]) == 1
    assert all(claim in Path("out", name).read_text() for name in ("find.html", "README.md")) and verified("out")
    done = scripted.total()
    again = search("same.toml", "again", plan=bits["plan"])
    assert scripted.total() == done, "the rows are those of the same rungs"
    assert again["found"] == found["found"] and again["ladders"]["same"] == found["ladders"]["vllm"]
    study = STUDY.replace("[calibration]", 'engine = "vllm"\n[calibration]')
    Path("study.toml").write_text(f'{study}[[find]]\nladder = "same.toml"\n{MARGINS}')
    (told,) = prunus.study("study.toml", out="study").to_json()["searches"]
    data = json.loads(Path(told["out"], "certificate.json").read_text())["declared"]
    assert told["found"] == found["found"] and data["ladders"][0]["rungs"] == planned["rungs"]
    assert data["model"] == declared["model"]


@pytest.mark.slow
def test_rungs_that_a_model_or_a_machine_cannot_have_are_left_out_with_a_line(search_folder, monkeypatch, capsys):
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "max_position_embeddings": 256, "num_local_experts": 4}
    make_random_model("qwen3_moe", search_folder / "mixture", hidden_size=64, moe_intermediate_size=32, **sizes)

    def names(avx512: bool) -> list[str]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
        monkeypatch.setattr(backend, "machine", lambda: "x86_64")
        ladder, text = ladder_by_bytes("vllm", FindTable("", settings={"sequences": 8}), Checkpoint("mixture"), "cpu")
        assert text.startswith("[calibration]\nsequences = 8\n\n[[chain]]\nsteps = [{ quantize = { bits = 8 } }]\n")
        assert text.count("[[chain]]") == len(ladder)
        return [steps_name(entry.steps) for entry in ladder]

    keep = [f"experts-reap-{share}-recovered" for share in ("75", "62.5")]
    assert names(True) == ["w8a8", "w4-g32", f"{keep[0]}-w4-g32"]
    told = capsys.readouterr().err
    assert "w4-g128 is left out: it takes no fewer bytes than the rung before\n" in told
    assert "experts-reap-87.5-recovered-w4-g32 is left out: keep 0.875 would keep 4 of 4 experts" in told
    assert names(False) == ["w8a8", f"{keep[0]}-w8a8"], "the last form that the machine has goes on"
    told = capsys.readouterr().err
    assert "w4-g32 is left out: vLLM multiplies weights of 4 bits only on CPUs with AVX-512, which this one" in told
    with pytest.raises(
        PrunusError, match="the default ladder sets the recipes of its rungs: write scope, recover into"
    ):
        asked = FindTable("", settings={"scope": "mlp"}, recovery={})
        ladder_by_bytes("vllm", asked, Checkpoint("mixture"), "cpu")


@pytest.mark.parametrize(
    ("ladder", "settings", "told"),
    [
        ([QuantizeRecipe(bits=4, method="rtn"), QuantizeRecipe(method="rtn")], {},
         "ladder recipes does not shrink: w8a8-rtn takes 430,848 bytes, w4-g128-rtn before it 324,064"),
    ],
)  # fmt: skip
def test_a_ladder_by_bytes_must_shrink_in_its_engine(search_folder, bits, ladder, settings, told):
    before = there(search_folder)
    with pytest.raises(PrunusError) as error:
        search(ladder, **{**bits, "settings": {}, **settings})
    assert told in str(error.value) and "\n" not in str(error.value) and there(search_folder) == before


@pytest.mark.slow
def test_the_ladder_of_llama_cpp_is_of_gguf_files(tmp_path, monkeypatch):
    make_gguf_model("qwen3", tmp_path / "model", intermediate_size=512)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("What is 1 + 1? " * 999)
    plan = EvalPlan(("tiny",), (16,), answer_tokens=16, limit=40, profile="s1", engine="llama.cpp")
    asked: dict[str, Any] = {
        "settings": {"calibration": "text.txt", "seqlen": 32},
    }
    asked |= {"margin": 0.3, "stop_margin": 0.3}

    def ahead(serve: str, ladder: Any = None) -> dict[str, Any]:
        return prunus.plan_find(
            "model", "out", plan, ladder, options=EngineOptions(serve=f"s {serve} {{port}}"), **asked
        ).to_json()

    found = ahead("{gguf}")
    (Path("out.toml")).write_text(found["ladder"])
    (ladder,) = ladders_of(FindTable("out.toml")).values()
    names = [steps_name(entry.steps) for entry in ladder]
    mixtures = ["gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m"]
    assert names[:5] == ["gguf-q8_0", *mixtures, "w4-g32-gguf-q4_0"]
    assert names[5] == "width-obs-87.5-recovered-w4-g32-gguf-q4_0" and found["rungs"] == len(names) == 8
    assert [asdict(entry.steps[-1])["calibration"] for entry in ladder[:5]] == ["none", *["text.txt"] * 3, "none"]
    told, sizes = re.search(r"the cache of a chain of (\d+) tokens: ", found["lines"][1]), list[str]()
    assert told is not None
    for type in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"):
        given = {"calibration": "text.txt", "sequences": 2, "seqlen": 32}
        prunus.gguf("model", type, GgufRecipe(type=type, **given))
        size = ModelFolder(type).cache_size()
        assert size is not None and size.keys == "f16"
        weights = sum(tensor.nbytes for tensor in ModelFolder(type).stored.values())
        sizes.append(show_bytes(weights + size.nbytes(int(told[1]))))
    line = "tokens: dense {}, gguf-q8_0 {}, gguf-q6_k {}, gguf-q5_k_m {}, gguf-q4_k_m {}, ".format(*sizes)
    assert line in found["lines"][1]
    with pytest.raises(PrunusError, match=r"rungs for llama.cpp are GGUF files: add --serve 'llama-server -m {gguf} "):
        ahead("{model}")
    asked["settings"] = {}
    with pytest.raises(PrunusError, match="ladder recipes has a rung that is no GGUF file: end each with a step gguf"):
        ahead("{gguf}", [QuantizeRecipe(method="rtn")])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["drop", "width", "experts"])
def test_planned_bytes_are_those_of_what_is_made(tmp_path, kind):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "max_position_embeddings": 256}
    if kind == "experts":
        make_random_model("qwen3_moe", tmp_path / "model", moe_intermediate_size=64, mlp_only_layers=[1], **sizes)
    else:
        make_model(tmp_path / "model", "qwen3", intermediate_size=256)
    first = {
        "drop": DropRecipe(blocks="1,"),
        "width": WidthRecipe(method="magnitude", fit=False, keep=0.75),
        "experts": ExpertsRecipe(method="random", keep=0.5),
    }[kind]
    source = Checkpoint(tmp_path / "model")
    for steps in ([first], [first, QuantizeRecipe(method="rtn")]):
        out = tmp_path / f"out-{len(steps)}"
        prunus.apply_steps(tmp_path / "model", out, steps, device="cpu")
        made = sum(tensor.nbytes for tensor in ModelFolder(out).stored.values())
        assert bytes_after(steps, source) == made < source.nbytes
    assert bytes_after([PruneRecipe(sparsity=0.5)], source) == source.nbytes


LADDER = """\
[calibration]
calibration = "text.jsonl"
sequences = 8
seqlen = 16
[[prune]]
method = "magnitude"
sparsity = [0.1, 0.3]
recover = {epochs = 1}
[[drop]]
blocks = 1
[[prune]]
method = "magnitude"
pattern = "2:4"
"""


@pytest.mark.slow
def test_a_file_has_recipes_in_its_order_and_the_one_found_is_recovered(search_folder, scripted):
    (search_folder / "ladder.toml").write_text(LADDER)
    ladders = ladders_of(FindTable("ladder.toml"))
    ladder = ladders["ladder"]
    assert len(ladders) == 1 and [len(one.steps) for one in ladder] == [2, 2, 1, 1]
    amounts = [getattr(one.steps[0], "sparsity", None) for one in ladder]
    assert amounts == [0.1, 0.3, None, 0.5] and [one.line for one in ladder] == [5, 5, 9, 11]
    assert isinstance(ladder[2].steps[0], DropRecipe)
    found = search("ladder.toml")
    assert words(found) == {"ladder": ["certified", "certified", "refused"]}
    assert scripted.keys() == {"dense", "magnitude-10-recovered", "magnitude-30-recovered", "shortgpt-1"}
    steps = json.loads(Path("out/prunus.json").read_text())["history"]
    assert [step["action"] for step in steps] == ["prune", "recover"] and steps[0]["recipe"]["sparsity"] == 0.3
    assert verified("out")


def test_sparsities_of_a_ladder():
    assert sparsities("0.1:0.7:0.05")[2:5] == [0.2, 0.25, 0.3] and len(sparsities("0.1:0.7:0.05")) == 13
    assert sparsities("0.1:0.35:0.1") == [0.1, 0.2, 0.3] and sparsities(" 0.5, 0.25") == [0.5, 0.25]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ladder", "settings", "told"),
    [
        ("0.1:x:0.1", {}, "ladder '0.1:x:0.1' is not FROM:TO:STEP"),
        ("0.1:0.3", {}, "is not FROM:TO:STEP"),
        ("0.3:0.1:0.1", {}, "has no rung"),
        ("0.1:0.5:0.0001", {}, "4001 rungs"),
        ("0.5,1.5", {}, "a sparsity must lie in"),
        ("0.3,0.2", {}, "rung 2 removes 20 % of the weights, rung 1 30 %; order it from gentle to harsh"),
        ("0.2,0.2", {}, "listed twice"),
        ([], {}, "at least one recipe"),
        ("none.toml", {}, "the ladder 'none.toml' cannot be read"),
        ("none.toml", {"methods": ["wanda"]}, "none.toml sets the recipes of its rungs"),
        ("0.2", {"methods": ["wanda", "wanda"]}, "method wanda is named twice"),
        ("0.2", {"methods": ["wonder"]}, "wonder"),
        ("0.2", {"margin": 0.0}, "margin must be a share in"),
        ("0.2", {"alpha": 1.0}, "alpha must be a share in"),
        ("0.2", {"most_tokens": 0}, "most_tokens must be at least 1"),
        ("0.2", {"margin": 0.001}, "cannot certify a margin of 0.1 points in accuracy"),
        ("0.2", {"store": "no/rows.db"}, "the folder of the store"),
        ("0.2", {"out": "model"}, "overlaps the model's own folder"),
        ("0.2", {"plan": EvalPlan(("sums.jsonl",), (0,))}, "needs a budget above 0"),
        ("0.2", {"plan": EvalPlan(("lm_eval:gsm8k",), (16,))}, "lm-evaluation-harness"),
        ("0.2", {"plan": EvalPlan(("sums.jsonl",), (16,), engine="openai"),
                 "options": EngineOptions(url="http://localhost:1/v1")}, "--serve starts"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_in_one_line_before_anything_is_written(search_folder, ladder, settings, told):
    with pytest.raises(PrunusError) as error:
        search(ladder, **settings)
    assert told in str(error.value) and "\n" not in str(error.value) and not there(search_folder)


def test_the_order_of_problems_is_that_of_any_part_of_them():
    ids = [f"p{number}" for number in range(200)]
    whole = seeded_order(ids, 3)
    assert sorted(whole) == sorted(ids) and whole != seeded_order(ids, 4)
    assert seeded_order(reversed(ids[50:]), 3) == [problem for problem in whole if problem in ids[50:]]


def test_tasks_are_interleaved_so_that_every_part_has_the_same_share_of_each():
    tasks = {"small": [f"s{n}" for n in range(20)], "large": [f"l{n}" for n in range(60)]}
    order = interleaved(tasks, 0)
    assert {problem for _, problem in order} == {*tasks["small"], *tasks["large"]}
    small = np.cumsum([task == "small" for task, _ in order])
    assert np.abs(small - np.arange(1, 81) / 4).max() <= 1
    for task, ids in tasks.items():
        assert [problem for name, problem in order if name == task] == seeded_order(ids, 0)


def test_a_run_is_marked_as_adaptively_collected_once_and_other_runs_are_not(tmp_path: Path):
    runs = [Run.of(name, {}, {}, {}) for name in ("a", "b")]
    with Store(tmp_path / "r.db", create=True) as store:
        for run in runs:
            store.add_run(run)
        assert store.runs() == runs  # also without the table
        store.mark_adaptive("b", Adaptive.of({"by": "find", "seed": 1}))
        store.mark_adaptive("b", Adaptive.of({"by": "find", "seed": 2}))
        assert [run.adaptive for run in store.runs()] == [None, Adaptive.of({"by": "find", "seed": 1})]
