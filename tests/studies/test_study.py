"""prunus study: the same rows as prune and eval, nothing twice, nothing lost, nothing by surprise."""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import warm_processes
from small_study import NAMES, RECIPES, SHORT, write_study
from tiny_models import FAMILIES

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.packed_files import vectors_of
from prunus.checkpoint.resolve import resolve
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation import engine as loop
from prunus.evaluation import provenance
from prunus.evaluation.backends.hf import HFBackend, load_model
from prunus.pruning.prune import prune as pipeline
from prunus.results import comparison
from prunus.results.comparison import compare
from prunus.store.rows import Sample
from prunus.store.store import Store
from prunus.studies import engine as engines
from prunus.studies.cells import open_model, open_models
from prunus.studies.engine import swapped
from prunus.studies.file import read_study
from prunus.studies.variants import StudyPaths, make_variant, variant_files, weights_file

pytestmark = pytest.mark.usefixtures("few_resamples")


def results(store: Path) -> dict[str, list]:
    """Rows of every run, texts too, by run id.

    Scores are rounded: their last bits depend on where in memory the same weights lie.
    """
    with Store(store) as opened:
        return {run.run_id: [rounded(row) for row in opened.samples(run.run_id, texts=True)] for run in opened.runs()}


def rounded(row: Sample) -> Sample:
    values = {name: getattr(row, name) for name in ("logprob", "self_certainty")}
    return replace(row, **{name: None if value is None else round(value, 4) for name, value in values.items()})


def by_name(store: Path) -> dict[str, str]:
    """Variant to run id."""
    with Store(store) as opened:
        return {run.model.name.split("/")[-1]: run.run_id for run in opened.runs()}


def sums(model: torch.nn.Module) -> dict[str, str]:
    """A digest of every tensor."""
    return {
        name: hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


@pytest.fixture
def batches(monkeypatch) -> list[str]:
    """The run of every batch that is done from now on."""
    done, original = [], loop.run_batch

    def noted(work, *rest):
        done.append(work.run_id)
        return original(work, *rest)

    monkeypatch.setattr(loop, "run_batch", noted)
    return done


@pytest.fixture
def compared(monkeypatch) -> list[str]:
    """The model of every run that is compared with a base from now on, which is what takes a report its time."""
    done, original = [], comparison._entry

    def noted(base, one, *rest):
        done.append(one.run.model.name)
        return original(base, one, *rest)

    monkeypatch.setattr(comparison, "_entry", noted)
    return done


# Weights that become zero, and that change too; blocks that are removed, and merged.
KINDS = """\
[[prune]]
method = ["magnitude", "sparsegpt"]
sparsity = 0.5
[[drop]]
blocks = "0,2"
[[drop]]
method = "laco"
threshold = -1
"""


uses_finished = warm_processes.in_one_worker  # made once


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a study that was run with its checkpoints kept."""
    folder = tmp_path_factory.mktemp("finished")
    prunus.study(write_study(folder, top="keep_checkpoints = true"), out=folder / "out")
    return folder


@pytest.mark.thorough
@pytest.mark.slow
@uses_finished
def test_rows_are_those_of_prune_and_eval(finished, tmp_path):
    """The same texts and grades as from checkpoints of their own, which `prune` and `drop` make again."""
    study = read_study(finished / "small.toml")
    rows, names = results(finished / "out" / "results.db"), by_name(finished / "out" / "results.db")
    assert sorted(names) == sorted(["model", *NAMES[1:]])
    recipes = dict(zip(NAMES[1:], [entry.steps[0] for entry in study.entries], strict=True))
    plan, model = study.plans[0], study.models[0]
    assert prunus.evaluate(model, plan, tmp_path / "alone.db").run_id == names["model"], (
        "the dense model shares its rows"
    )
    for name, recipe in recipes.items():
        if isinstance(recipe, prunus.PruneRecipe):
            prunus.prune(model, tmp_path / name, recipe)
        else:
            assert isinstance(recipe, prunus.DropRecipe)
            prunus.drop(model, tmp_path / name, recipe)
        assert results_of(tmp_path / name, plan, tmp_path) == rows[names[name]], name
    assert len({str(found) for found in rows.values()}) == len(NAMES), "every variant answers in its own way"


def results_of(folder: Path, plan: prunus.EvalPlan, tmp_path: Path) -> list:
    run = prunus.evaluate(folder, plan, tmp_path / "alone.db").run_id
    return results(tmp_path / "alone.db")[run]


@pytest.mark.thorough
@pytest.mark.slow
@uses_finished
def test_the_store_describes_a_variant_as_its_checkpoint(finished):
    with Store(finished / "out" / "results.db") as store:
        runs = {run.model.name: run.model for run in store.runs()}
    kept = finished / "out" / "checkpoints" / "model"
    for name in NAMES[1:]:
        facts = prunus.inspect(kept / name).to_json()
        stored = runs[f"model/{name}"]
        assert stored.checksum == Checkpoint(kept / name).checksum()
        assert stored.manifest.data == json.loads((kept / name / "prunus.json").read_text())
        assert stored.blocks == len(facts["blocks"])
    assert not (finished / "out" / "making").exists()


@pytest.mark.slow
@uses_finished
def test_the_page_and_the_verdicts(finished):
    again = prunus.study(finished / "small.toml", out=finished / "out").to_json()
    [entry] = again["comparisons"]
    assert [other["model"] for other in entry["comparison"]["others"]] == [f"model/{name}" for name in NAMES[1:]]
    html = Path(again["report"]).read_text()
    assert html.startswith("<!doctype html>") and "SparseGPT" in html and again["unreported"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "settings"),
    [
        *((family, torch.bfloat16, {}) for family in FAMILIES),
        ("llama", torch.float16, {"tied": True}),
        ("qwen2", torch.float32, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
)
def test_weights_go_in_and_out_bit_by_bit(tmp_path, family, dtype, settings):
    """In: the state of a model loaded from the variant's own checkpoint, in float32 too. Out: that of before."""
    study = read_study(write_study(tmp_path, KINDS, family=family, dtype=dtype, **settings))
    model = open_model(study, study.models[0], resolve(study.models[0]))
    loaded = load_model(model.checkpoint.folder, "cpu")
    before, config = sums(loaded), loaded.config.to_dict()
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    for variant in model.variants[1:]:
        make_variant(model, variant, tmp_path / "out", "cpu", keep=True)
        alone = load_model(tmp_path / "out" / "checkpoints" / "model" / variant.name, "cpu")
        with swapped(loaded, model.source, tmp_path / "out", variant), torch.inference_mode():
            assert sums(loaded) == sums(alone) != before, variant.name
            assert torch.equal(loaded(ids).logits, alone(ids).logits), variant.name
        assert sums(loaded) == before and loaded.config.to_dict() == config
    with pytest.raises(KeyboardInterrupt), swapped(loaded, model.source, tmp_path / "out", model.variants[1]):
        raise KeyboardInterrupt
    assert sums(loaded) == before


RECOVERED = """\
[[prune]]
method = "wanda"
sparsity = 0.5
recover = [{epochs = 1, step_tokens = 16}, false]
[[drop]]
blocks = "1,"
recover = {epochs = 1, step_tokens = 16}
"""


def counted(monkeypatch):
    """A list to which every call of prune by a study is added."""
    calls = []
    original = pipeline.prune
    monkeypatch.setattr(pipeline, "prune", lambda *a, **k: calls.append(a[1]) or original(*a, **k))
    return calls


@pytest.mark.slow
def test_recovered_variants_are_those_of_their_checkpoints_and_leave_the_dense_model(tmp_path, monkeypatch):
    """In a study, as by apply_steps; norms and biases too; with a block dropped before the last step."""
    file = write_study(tmp_path, RECOVERED)
    sizes = {v["variant"]: v["bytes"] for v in prunus.plan_study(file, out=tmp_path / "out").to_json()["variants"]}
    pruned = counted(monkeypatch)
    done = prunus.study(file, out=tmp_path / "out").to_json()
    assert len(pruned) == 1  # for both
    page = Path(done["report"]).read_text()
    assert "Wanda 50\xa0% + recovered" in page and "block 1 removed + recovered" in page
    assert "recover: calibration" in page and "epochs 1" in page and "tokens, repeats counted" in page
    study = read_study(file)
    model = open_model(study, study.models[0], resolve(study.models[0]))
    assert [v.name for v in model.variants] == ["dense", "wanda-50-recovered", "wanda-50", "without-1-recovered"]
    loaded = load_model(model.checkpoint.folder, "cpu")
    before = sums(loaded)
    for variant in model.variants:
        if len(variant.steps) < 2:
            continue
        prunus.apply_steps(model.name, tmp_path / variant.name, variant.steps)
        alone = sums(load_model(tmp_path / variant.name, "cpu"))
        with swapped(loaded, model.source, tmp_path / "out", variant):
            assert sums(loaded) == alone
        assert sums(loaded) == before
        weights, vectors = weights_file(tmp_path / "out", variant), vectors_of(weights_file(tmp_path / "out", variant))
        assert weights.stat().st_size + vectors.stat().st_size <= sizes[variant.name] + 60_000


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_what_is_recovered_is_pruned_once_and_has_the_same_bytes(tmp_path, monkeypatch, keep):
    study = read_study(write_study(tmp_path, RECOVERED))
    model = open_model(study, study.models[0], resolve(study.models[0]))
    _, recovered, plain, _ = model.variants
    pruned = counted(monkeypatch)
    for folder, order in (("alone", [recovered]), ("both", [plain, recovered])):
        for variant in order:
            make_variant(model, variant, tmp_path / folder, "cpu", keep)
        assert len(pruned) == 1, folder
        pruned.clear()
        assert (tmp_path / folder / "making" / plain.key).exists() == (folder == "alone"), "the plain one needs it"
    files = [p.read_bytes() for f in ("alone", "both") for p in variant_files(tmp_path / f, recovered)]
    assert len(files) == 4 and files[:2] == files[2:]


@pytest.mark.slow
@uses_finished
def test_a_second_run_loads_no_model(finished, monkeypatch, batches):
    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(HFBackend, "load", refuse)
    prunus.study(finished / "small.toml", out=finished / "out")
    assert batches == []


@pytest.mark.slow
def test_dense_first_then_a_batch_of_each_then_the_rest(tmp_path, batches):
    file = write_study(tmp_path, "[[prune]]\nsparsity = 0.5\nmethod = ['magnitude', 'wanda']")
    prunus.study(file, out=tmp_path / "out")
    names = {run: name for name, run in by_name(tmp_path / "out" / "results.db").items()}
    order = [names[run] for run in batches]
    assert order == ["model"] * 3 + ["magnitude-50", "wanda-50"] + ["magnitude-50"] * 2 + ["wanda-50"] * 2


@pytest.mark.slow
def test_a_knob_reruns_only_what_depends_on_it(tmp_path, batches, capsys):
    file, out = write_study(tmp_path, KINDS), tmp_path / "out"
    first = prunus.study(file, out=out).to_json()
    before = by_name(out / "results.db")
    batches.clear()
    file.write_text(file.read_text().replace("sequences = 8", "sequences = 6"))
    again = prunus.study(file, out=out).to_json()
    with Store(out / "results.db") as store:
        names = {run.run_id: run.model.name.split("/")[-1] for run in store.runs()}
    # Magnitude looks at no tokens, and blocks that are named are not chosen.
    redone = {"sparsegpt-50", "laco-1"}
    assert {names[run] for run in batches} == redone
    assert sorted(again["unreported"]) == sorted(before[name] for name in redone) and not first["unreported"]
    shown = {other["run"] for other in again["comparisons"][0]["comparison"]["others"]}
    assert shown.isdisjoint(again["unreported"]) and len(shown) == 4
    html = Path(again["report"]).read_text()
    assert not any(run[:8] in html for run in again["unreported"]) and before["model"] in html
    assert "2 runs in" in (told := capsys.readouterr().err) and "not (or no longer) in" in told
    assert not (out / ".report.db").exists()


@pytest.mark.slow
@uses_finished
def test_the_same_recipe_is_the_same_cell_in_any_study(finished, tmp_path):
    other = write_study(tmp_path, "[[prune]]\nseed = 0\nmethod = 'wanda'\nsparsity = 0.5\n")
    plan = prunus.plan_study(other, out=tmp_path / "out").to_json()
    run = by_name(finished / "out" / "results.db")["wanda-50"]
    assert [cell["run"] for cell in plan["cells"]][1] == run


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        (
            "[[prune]]\nmethod = 'magnitude'\npropagation = ['pruned', 'dense']",
            "14: magnitude-20 is listed twice: propagation has no effect on magnitude",
        ),
        ("[[prune]]\nsparsity = [0.5, 0.2, 0.5]", r"14: wanda-50 is listed twice \(first in line 14\)"),
        ("[[prune]]\nrecover = [true, true]", r"14: wanda-20-recovered is listed twice \(first in line 14\)"),
        ("[[drop]]\n[[prune]]\n[[prune]]", r"16: wanda-20 is listed twice \(first in line 15\)"),
    ],
)
def test_two_recipes_that_come_to_the_same_are_refused(tmp_path, recipes, message):
    with pytest.raises(PrunusError, match=f"line {message}"):
        prunus.study(write_study(tmp_path, recipes + "\n"), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("recipes", "eval_", "message"),
    [
        ("[[prune]]\ncalibration = 'no.txt'", "", "line 14: wanda-20: no.txt cannot be read"),
        ("[[prune]]\ncalibration = 'c4'", "", "line 14: wanda-20: .*needs the package datasets: pip install"),
        ("[[prune]]\nallocation = 'owl'\nscores = 'no.json'", "", "line 14: wanda-owl-20: no.json cannot be read"),
        (
            "[[prune]]\npattern = '2:3'\n[[drop]]\nblocks = 3",
            "",
            "line 16: shortgpt-3 of .*at most 2 can be removed, not 3",
        ),
        ("[[drop]]\nblocks = '7,'", "", "line 14: without-7 of .*block 7 does not exist; the model has blocks 0 to 2"),
        ("[[drop]]\nmatch_sparsity = 0.1", "", "line 14: shortgpt-s10: match_sparsity 0.1 is nearest to 0 of 3 blocks"),
        ("", "wait = 1\nreuse = false\nmode = 'legacy'\nsamples = 0", "line 3: samples must be at least 1"),
        ("[report]\nbase = 'wanda-20'", "", "base 'wanda-20' is no variant; there are dense"),
        ("[[prune]]\npattern = '2:4'\nsparsity = 0.3", "", "line 14: pattern 2:4 is a sparsity of 0.5 already"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path, recipes, eval_, message):
    file = write_study(tmp_path, recipes, eval_)
    with pytest.raises(PrunusError, match=message) as error:
        prunus.study(file, out=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists(), "nothing is left behind"


@pytest.mark.slow
def test_scores_that_an_allocation_cannot_use_are_refused_before_anything_runs(tmp_path):
    """Of another allocation, of another model, and of another scope."""
    file = write_study(tmp_path, "")
    recipe = prunus.PruneRecipe(allocation="owl", calibration=str(tmp_path / "text.jsonl"), sequences=2, seqlen=16)
    prunus.allocate(tmp_path / "model", recipe, save=tmp_path / "owl.json")
    other = json.loads((tmp_path / "owl.json").read_text()) | {"model": "0" * 64}
    (tmp_path / "other.json").write_text(json.dumps(other))
    for settings, message in (
        ("allocation = 'layerif'\nscores = 'owl.json'", "line 14: wanda-layerif-20 of .*owl"),
        ("allocation = 'owl'\nscores = 'other.json'", "line 14: wanda-owl-20 of .*measured on another model"),
        ("allocation = 'owl'\nscope = 'mlp'\nscores = 'owl.json'", "line 14: wanda-mlp-owl-20|wanda-owl-mlp-20"),
    ):
        write_study(tmp_path, f"[[prune]]\n{settings}\n")
        for action in (prunus.plan_study, prunus.study):
            with pytest.raises(PrunusError, match=message):
                action(file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_study(tmp_path, "[[prune]]\nallocation = 'owl'\nscores = 'owl.json'\n")
    assert prunus.study(file, out=tmp_path / "out").cells == 2


def test_a_model_that_is_not_there_has_its_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = write_study(tmp_path, "")
    for name, message in (("nowhere", "model 'nowhere' does not exist"), ("o/n", "'o/n' is not a folder here and")):
        file.write_text(file.read_text().replace("model = ", "").replace('models = ["model"]', f'models = ["{name}"]'))
        with pytest.raises(PrunusError, match=rf"small\.toml, line 1: {message}"):
            prunus.study(file, out=tmp_path / "out")
        file.write_text(file.read_text().replace(f'["{name}"]', '["model"]'))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_models_that_are_one_or_would_share_a_folder_are_refused(tmp_path):
    file = write_study(tmp_path, "")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_study(tmp_path / name, "", seed=ord(name))
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    text = file.read_text()
    file.write_text(text.replace('["model"]', '["model", "copy"]'))
    for action in (prunus.plan_study, prunus.study):
        with pytest.raises(PrunusError, match=r"line 1: '\S*model' and '\S*copy' have the same weights: leave one out"):
            action(file, out=tmp_path / "out")
    both = text.replace('["model"]', '["a/model", "b/model"]')
    kept = both.replace("\n", "\nkeep_checkpoints = true\n", 1)
    for asked, name in ((kept, "keep_checkpoints"), (f"{both}[[find]]\n", r"\[\[find\]\]")):
        file.write_text(asked)
        for action in (prunus.plan_study, prunus.study):
            with pytest.raises(PrunusError, match=f"line 1: .*are both called model, .*leave out {name}"):
                action(file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_of_a_newer_prunus_is_left_alone(tmp_path, capsys):
    file, store = write_study(tmp_path, ""), tmp_path / "results.db"
    Store(store, create=True).close()
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = store.read_bytes()
    for words in (["run"], ["plan"]):
        with pytest.raises(SystemExit) as stopped:
            main(["study", *words, str(file), "--out", str(tmp_path / "out"), "--store", str(store)])
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and "newer" in told and "Traceback" not in told
    assert store.read_bytes() == before


def test_a_budget_over_the_context_is_refused(tmp_path):
    file = write_study(tmp_path)
    file.write_text(file.read_text().replace("[0, 8, 20]", "[0, 8, 2000]"))
    with pytest.raises(PrunusError, match=r"line 3: .*model: problem .* but the model's context is 256"):
        prunus.study(file, out=tmp_path / "out")


@pytest.mark.slow
@uses_finished
def test_a_page_and_its_verdicts_are_one_comparison(finished, tmp_path, compared):
    done = prunus.report_study(finished / "small.toml", out=finished / "out").to_json()
    found = done["comparisons"][0]["comparison"]
    assert compared == [other["model"] for other in found["others"]] and len(compared) == len(NAMES) - 1
    store = finished / "out" / "results.db"
    alone = compare(store, found["base"]["run"], [other["run"] for other in found["others"]], resamples=100).to_json()
    assert found == alone, "what a comparison by itself gives, to the last digit"
    assert len(compared) == 2 * len(NAMES) - 2, "the counter counts"


@pytest.mark.slow
def test_modes_and_a_base_of_ones_own(tmp_path, compared):
    file = write_study(
        tmp_path,
        "[[prune]]\nsparsity = 0.5\nmethod = ['magnitude', 'wanda']\n"
        "[report]\nbase = 'magnitude-50'\npublished = true\n",
        "mode = ['strict', 'legacy']\n",
    )
    file.write_text(file.read_text().replace("limit = 6", "limit = 2"))
    done = prunus.study(file, out=tmp_path / "out").to_json()
    assert [entry["plan"] for entry in done["comparisons"]] == ["strict", "legacy"]
    for entry in done["comparisons"]:
        assert entry["comparison"]["base"]["model"] == "model/magnitude-50"
        assert [other["model"] for other in entry["comparison"]["others"]] == ["model", "model/wanda-50"]
    html = Path(done["report"]).read_text()
    assert done["cells"] == 6 and "Strict and legacy" in html and "Published figures beside ours" in html
    assert not list((tmp_path / "out").glob("report-*.html")), "one page shows both modes"
    assert sorted(compared) == ["model", "model", "model/wanda-50", "model/wanda-50"], "each once in each mode"


@pytest.mark.slow
def test_several_models_get_a_page_each_and_one_that_leads_there(tmp_path, batches):
    file = write_study(tmp_path, "[[prune]]\nsparsity = 0.5\nmethod = 'magnitude'\n")
    (tmp_path / "model").rename(tmp_path / "a<b")
    write_study(tmp_path, seed=1)
    (tmp_path / "model").rename(tmp_path / "c")
    file.write_text(file.read_text().split("[eval]")[0] + "")
    write_study(tmp_path, "[[prune]]\nsparsity = 0.5\nmethod = 'magnitude'\n", seed=2)
    file.write_text(file.read_text().replace('["model"]', '["a<b", "c"]'))
    done = prunus.study(file, out=tmp_path / "out").to_json()
    assert done["cells"] == 4 and len(done["comparisons"]) == 2
    html = Path(done["report"]).read_text()
    assert 'href="report-1.html"' in html and "a&lt;b/magnitude-50" in html and "a<b" not in html
    assert (tmp_path / "out" / "report-2.html").read_text().startswith("<!doctype html>")
    with Store(tmp_path / "out" / "results.db") as store:
        models = [store.run(run).model.name.split("/")[0] for run in batches]
    pages_before = len(list((tmp_path / "out").iterdir()))
    prunus.report_study(file, out=tmp_path / "out")
    for number in (1, 2):
        assert 'id="result"' in (tmp_path / "out" / f"report-{number}.html").read_text()
    assert len(list((tmp_path / "out").iterdir())) == pages_before
    assert models == ["a<b"] * 4 + ["c"] * 4 + ["a<b"] * 2 + ["c"] * 2, "each model shows something early"


@pytest.mark.slow
def test_the_file_is_read_once(tmp_path, monkeypatch, capsys):
    """Edited under a running study, it counts the next time, and the study says so."""
    file = write_study(tmp_path, "[[prune]]\nsparsity = 0.5\nmethod = ['magnitude', 'wanda']\n")
    text, original = file.read_text(), loop.run_batch

    def edited(*arguments):
        file.write_text("nonsense")
        return original(*arguments)

    monkeypatch.setattr(loop, "run_batch", edited)
    assert prunus.study(file, out=tmp_path / "out").cells == 3
    assert (tmp_path / "out" / "study.toml").read_text() == text
    assert f"{file} was edited while the study ran" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_process_is_sent_away(tmp_path, capsys):
    file = write_study(tmp_path, "")
    with StudyPaths.of(read_study(file), tmp_path / "out", tmp_path / "s.db").locked():
        for arguments in (["--out", tmp_path / "out"], ["--out", tmp_path / "other", "--store", tmp_path / "s.db"]):
            with pytest.raises(SystemExit) as stopped:
                main(["study", str(file), *map(str, arguments)])
            assert stopped.value.code == 2
            assert f"another prunus process (pid {os.getpid()}) works on" in capsys.readouterr().err
    prunus.study(file, out=tmp_path / "out", store=tmp_path / "s.db")
    assert not list(tmp_path.rglob("*lock")), "locks go with their holder"


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_exits_130(tmp_path, monkeypatch, capsys, batches):
    file, noted = write_study(tmp_path, "[[prune]]\nsparsity = 0.5\nmethod = 'magnitude'\n"), loop.run_batch

    def interrupted(*arguments):
        if len(batches) == 4:
            raise KeyboardInterrupt
        return noted(*arguments)

    monkeypatch.setattr(loop, "run_batch", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["study", "run", str(file), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 130 and "run the same command again" in capsys.readouterr().err
    stored = results(tmp_path / "out" / "results.db")
    assert sorted(map(len, stored.values())) == [6, 18]
    monkeypatch.setattr(loop, "run_batch", noted)
    main(["study", str(file), "--out", str(tmp_path / "out"), "--json"])
    assert len(batches) == 6
    assert json.loads(capsys.readouterr().out)["cells"] == 2


@pytest.mark.slow
def test_a_report_at_any_time_says_what_is_missing(tmp_path, monkeypatch, capsys, batches):
    """Stopped after the base and two batches, also while another process would go on."""
    file = write_study(tmp_path, "[[prune]]\nmethod = ['magnitude', 'wanda']\nsparsity = [0.3, 0.5]\n")
    noted = loop.run_batch
    out = tmp_path / "out"
    words = ["study", "report", str(file), "--out", str(out), "--json"]

    def interrupted(*arguments):
        if len(batches) == 5:
            raise KeyboardInterrupt
        return noted(*arguments)

    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and "nothing of" in capsys.readouterr().err and not out.exists()
    monkeypatch.setattr(loop, "run_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prunus.study(file, out=out)
    capsys.readouterr()
    with StudyPaths.of(read_study(file), out, None).locked():
        main(words)
    [entry] = json.loads(capsys.readouterr().out)["comparisons"]
    assert [other["model"] for other in entry["comparison"]["others"]] == ["model/magnitude-30", "model/magnitude-50"]
    assert entry["not_started"] == ["wanda-30", "wanda-50"]
    html = (out / "report.html").read_text()
    assert "Not started: wanda-30 and wanda-50." in html and "has 2 of 6 problems and Magnitude" in html
    assert "<bdi>small</bdi> · <bdi>" in html, "the study's name"
    monkeypatch.setattr(loop, "run_batch", noted)
    done = prunus.study(file, out=out).to_json()
    assert done["comparisons"][0]["not_started"] == []
    again = prunus.report_study(file, out=out).to_json()
    assert again == done and len(batches) == 5 * 3
    assert "Not started" not in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_base_that_has_no_answers_yet_and_models_that_wait(tmp_path, monkeypatch, batches):
    write_study(tmp_path, "")
    (tmp_path / "model").rename(tmp_path / "first")
    file = write_study(tmp_path, "[[prune]]\nsparsity = 0.5\nmethod = 'magnitude'\n", seed=1)
    file.write_text(file.read_text().replace('["model"]', '["first", "model"]'))
    noted = loop.run_batch

    def interrupted(*arguments):
        if len(batches) == 1:
            raise KeyboardInterrupt
        return noted(*arguments)

    monkeypatch.setattr(loop, "run_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prunus.study(file, out=tmp_path / "out")
    done = prunus.report_study(file, out=tmp_path / "out").to_json()
    assert [entry["not_started"] for entry in done["comparisons"]] == [["magnitude-50"], ["dense", "magnitude-50"]]
    html = Path(done["report"]).read_text()
    assert "nothing to compare with yet" in html and re.search(r"Not started: <bdi>\S*/model</bdi>", html)
    assert "Not started: magnitude-50." in (tmp_path / "out" / "report-1.html").read_text()
    file.write_text(file.read_text() + "[report]\nbase = 'magnitude-50'\n")
    with pytest.raises(PrunusError, match="'magnitude-50', with which the others are compared, has no answers yet"):
        prunus.report_study(file, out=tmp_path / "out")


KILLED = """
import prunus, signal, sys
from prunus.evaluation import engine
original, batches = engine.run_batch, 0
def noted(*arguments):
    global batches
    batches += 1
    print("batch", flush=True)
    if batches == int(sys.argv[3]):
        signal.pause()  # until we are killed
    return original(*arguments)
engine.run_batch = noted
prunus.study(sys.argv[1], out=sys.argv[2])
"""


@contextmanager
def stopped_at(batch: int, file: Path, out: Path) -> Iterator[warm_processes.Running]:
    """Another process that runs the study and has come to the batch of this number."""
    with warm_processes.running(KILLED, file, out, batch) as process:
        assert [process.stdout.readline() for _ in range(batch)] == ["batch\n"] * batch
        yield process


@pytest.mark.thorough
@pytest.mark.slow
@uses_finished
def test_a_killed_study_goes_on_and_ends_the_same(finished, tmp_path, batches):
    file, out = write_study(tmp_path, RECIPES.split("[[drop]]")[0]), tmp_path / "out"
    with stopped_at(6, file, out) as process:  # the third variant is swapped in
        with pytest.raises(PrunusError, match=rf"another prunus process \(pid {process.pid}\) works on"):
            prunus.study(file, out=out)
        process.send_signal(signal.SIGKILL)
    assert sum(map(len, results(out / "results.db").values())) == 5 * 2 * 3, "whole batches, and all of them"
    prunus.study(file, out=out)
    assert len(batches) == 3 * 5 - 5
    ours, theirs = results(out / "results.db"), results(finished / "out" / "results.db")
    assert ours == {run: theirs[run] for run in ours} and len(ours) == 5


@pytest.mark.parametrize("words", [["plan", "run", "x.toml"], ["plan"], ["a.toml", "b.toml"]])
def test_one_file_please(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["study", *words])
    assert stopped.value.code == 2 and "give one FILE.toml after" in capsys.readouterr().err


@pytest.mark.slow
@uses_finished
def test_pruning_that_was_cut_off_goes_on(finished, tmp_path, monkeypatch):
    """Killed between the checkpoint and the variant's file, the checkpoint is not made again."""
    file, out = write_study(tmp_path, RECIPES.split("[[drop]]")[0]), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("prunus.studies.variants.write_variant", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prunus.study(file, out=out)
    [left] = (out / "making").iterdir()
    pruned: list[Path] = []
    original = pipeline.prune

    def noted(model, target, *arguments, **options):
        pruned.append(target)
        return original(model, target, *arguments, **options)

    monkeypatch.setattr(pipeline, "prune", noted)
    prunus.study(file, out=out)
    assert len(pruned) == 3 and left not in pruned and not (out / "making").exists()
    ours, theirs = results(out / "results.db"), results(finished / "out" / "results.db")
    assert all(rows == theirs[run] for run, rows in ours.items()) and len(ours) == 5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_variants_are_made_just_ahead_unless_vllm_occupies_their_gpu(tmp_path, monkeypatch, device):
    study = read_study(
        write_study(
            tmp_path, '[[prune]]\nsparsity = 0.5\nmethod = ["magnitude", "wanda"]\n', SHORT + '\nengine = "vllm"'
        )
    )
    models, paths, told = open_models(study), StudyPaths.of(study, tmp_path / "out", None), list[str]()
    engine = SimpleNamespace(evaluate=lambda _, cell, *__: told.append(f"ask {cell.name}") or [])
    monkeypatch.setattr(engines, "StudyEngine", lambda *_: nullcontext(engine))
    monkeypatch.setattr(engines, "device_for", lambda device: device)
    monkeypatch.setattr(engines, "check_installed", lambda _: None)
    monkeypatch.setattr(engines, "make_missing", lambda _, __, variant, *rest: told.append(f"make {variant.name}"))
    (tmp_path / "out").mkdir()
    with Store(paths.store, create=True) as store:
        engines.run_here(study, models, paths.folder, store, device)
    ahead = ["ask dense", *(f"{what} {name}" for name in ("magnitude-50", "wanda-50") for what in ("make", "ask"))]
    if device == "cpu":
        assert told[: len(ahead)] == ahead
    else:
        first_answer = told.index("ask dense")
        assert {"make magnitude-50", "make wanda-50"} <= set(told[:first_answer])


@pytest.mark.slow
def test_a_study_by_batch_goes_on_on_another_machine_and_its_pairs_are_judged(tmp_path, monkeypatch):
    two = '[[prune]]\nmethod = "magnitude"\nsparsity = [0.3, 0.5]\n'
    repeated = f"{SHORT}\naa_control = true"
    file = write_study(tmp_path, two, repeated, "by_batch = true")

    def machine(number: int) -> None:
        monkeypatch.setattr(
            engines,
            "describe_environment",
            lambda *of: provenance.describe_environment(*of) | {"gpu": f"model {number}"},
        )

    def finished() -> list[int]:
        with Store(tmp_path / "out" / "results.db") as store:
            return [len({problem for problem, *_ in store.keys(run.run_id)}) for run in store.runs()]

    for number, batches in ((1, 1), (2, 1), (3, None)):
        machine(number)
        prunus.study(file, out=tmp_path / "out", mixed=number > 1, batches=batches)
        assert finished() == [2 * number] * 4  # of six problems in batches of two
    prunus.study(write_study(tmp_path, two, repeated), out=tmp_path / "by_hand")
    assert results(tmp_path / "out" / "results.db") == results(tmp_path / "by_hand" / "results.db")
    verdicts = [
        [entry.verdict for entry in prunus.compare(tmp_path / folder / "results.db", "model").others]
        for folder in ("out", "by_hand")
    ]
    assert verdicts[0] == verdicts[1] and "unfinished" not in verdicts[0]
    for words, batches in ((r"add by_batch = true to its top", 1), (r"must be at least 1", 0)):
        with pytest.raises(PrunusError, match=words):
            prunus.study(write_study(tmp_path, two), out=tmp_path / "by_hand", batches=batches)
    with pytest.raises(PrunusError, match="leave by_batch or --ray out"):
        prunus.study(write_study(tmp_path, two, top="by_batch = true"), out=tmp_path / "out", ray="auto")
