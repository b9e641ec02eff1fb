"""Studies of models with fewer experts: the rows of whole checkpoints, made once, with labels that say how many."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from random_models import make_random_model
from ray_nodes import receive
from small_study import write_study
from tiny_models import VOCABULARY, random_rows

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import tiny_folder
from prunus.evaluation.run import run_chains
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.experts import experts as drop_experts
from prunus.pruning.prune import prune as pipeline
from prunus.store.store import Store
from prunus.studies.cells import open_model
from prunus.studies.engine import StudyEngine
from prunus.studies.file import read_study
from prunus.studies.find.search import removed
from prunus.studies.ray import worker as ray_worker
from prunus.studies.ray.worker import ModelRef, Worker
from prunus.studies.variants import files_to_load, make_variant, unfinished_folder

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("few_resamples")]
TABLES = """\
[[experts]]
method = ["reap", "random"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a random mixture that has the tokenizer of tiny, and its calibration."""
    folder = tmp_path_factory.mktemp("study")
    changes = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "max_position_embeddings": 256, "pad_token_id": 0}
    make_random_model("qwen3_moe", folder / "model", mlp_only_layers=[0], **changes)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_folder() / name, folder / "model" / name)
    (folder / "text.jsonl").write_text(Calibration(random_rows(8, 16), "random", []).to_jsonl())
    return folder


@pytest.mark.thorough
@pytest.mark.slow
def test_rows_are_those_of_whole_checkpoints(folder, monkeypatch):
    path = write_study(folder, TABLES)
    prunus.study(path, out=folder / "out", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(drop_experts, "experts", None)  # what exists is not made again
        prunus.study(path, out=folder / "out", device="cpu")
    page = (folder / "out" / "report.html").read_text()
    assert "REAP 6 of 8 experts" in page and "Random 6 of 8 experts" in page
    study = read_study(path)
    (recipe,) = study.entries[0].steps
    assert isinstance(recipe, prunus.ExpertsRecipe)
    prunus.experts(folder / "model", folder / "whole", recipe, device="cpu")
    prunus.evaluate(folder / "whole", study.plans[0], folder / "whole.db", device="cpu")
    with Store(folder / "out" / "results.db") as theirs, Store(folder / "whole.db") as ours:
        [mine] = ours.runs()
        [one] = [run for run in theirs.runs() if run.model.checksum == mine.model.checksum]
        assert one.model.parameters == mine.model.parameters
        assert theirs.samples(one.run_id, texts=True) == ours.samples(mine.run_id, texts=True)
        assert len(ours.keys(mine.run_id)) == 18


@pytest.mark.thorough("prune")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "names"),
    [
        ('[[experts]]\nmethod = "frequency"\nkeep = 0.5\nrecover = RECOVER\n', ["experts-frequency-50"]),
        ("[[prune]]\nsparsity = 0.2\nexperts = { keep = 0.5 }\nrecover = RECOVER\n", ["experts-reap-50-wanda-20"]),
    ],
    ids=["experts", "prune"],
)
def test_what_is_recovered_is_what_the_commands_write_one_after_the_other(folder, tmp_path, table, names):
    path = write_study(folder, table.replace("RECOVER", "[false, { rate = 0.01, step_tokens = 64, epochs = 4 }]"))
    prunus.study(path, out=tmp_path / "out", device="cpu")
    model = open_model(read_study(path), "model", folder / "model")
    assert [variant.name for variant in model.variants] == ["dense", *names, f"{names[0]}-recovered"]
    plain, recovered = (unfinished_folder(tmp_path / "out", variant) for variant in model.variants[1:])
    experts, *pruning, recovery = model.variants[-1].steps
    assert isinstance(experts, prunus.ExpertsRecipe) and isinstance(recovery, prunus.RecoverRecipe)
    prunus.experts(folder / "model", tmp_path / "fewer", experts, device="cpu")
    for recipe in pruning:
        assert isinstance(recipe, prunus.PruneRecipe)
        prunus.prune(tmp_path / "fewer", tmp_path / "pruned", recipe, device="cpu")
    made = tmp_path / ("pruned" if pruning else "fewer")
    prunus.recover(made, tmp_path / "two", recovery, device="cpu")  # by default of the first model
    assert Checkpoint(plain).checksum() == Checkpoint(made).checksum() != Checkpoint(recovered).checksum()
    assert Checkpoint(recovered).checksum() == Checkpoint(tmp_path / "two").checksum()
    assert sorted(one.name for one in (tmp_path / "out" / "variants").iterdir() if one.is_dir()) == sorted(
        variant.key for variant in model.variants[1:]
    )
    with Store(tmp_path / "out" / "results.db") as store:
        checksums = {run.model.checksum for run in store.runs()}
    assert checksums == {Checkpoint(one).checksum() for one in (folder / "model", plain, recovered)}
    assert "recovered" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.thorough
@pytest.mark.slow
def test_pruning_after_experts_were_removed_is_what_two_commands_write(folder, tmp_path, monkeypatch):
    """The study is stopped between both steps, and goes on with the second."""
    text = '[[prune]]\nmethod = "wanda"\nsparsity = 0.2\nexperts = { method = "frequency", keep = 0.5 }\n'
    path = write_study(folder, text)
    (planned,) = prunus.plan_study(path, out=tmp_path / "out", device="cpu").to_json()["variants"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "prune", lambda *_, **__: stop())
        prunus.study(path, out=tmp_path / "out", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(drop_experts, "experts", lambda *_, **__: stop())
        prunus.study(path, out=tmp_path / "out", device="cpu")
    assert "Frequency 4 of 8 experts + Wanda 20 %" in (tmp_path / "out" / "report.html").read_text().replace(
        "\N{NO-BREAK SPACE}", " "
    )
    (entry,) = read_study(path).entries
    experts, pruning = entry.steps
    assert isinstance(experts, prunus.ExpertsRecipe) and isinstance(pruning, prunus.PruneRecipe)
    assert removed(entry, Checkpoint(folder / "model")) == pytest.approx(1 - 0.5 * 0.8)
    prunus.experts(folder / "model", tmp_path / "fewer", experts, device="cpu")
    prunus.prune(tmp_path / "fewer", tmp_path / "both", pruning, device="cpu")
    (made,) = (one for one in (tmp_path / "out" / "variants").iterdir() if one.is_dir())
    names = sorted(one.name for one in made.iterdir())
    assert names == sorted(one.name for one in (tmp_path / "both").iterdir()) and "model.safetensors" in names
    for name in {*names} - {"prunus.json", "README.md"}:
        assert (made / name).read_bytes() == (tmp_path / "both" / name).read_bytes(), name
    assert planned["bytes"] == Checkpoint(made).nbytes
    with Store(tmp_path / "out" / "results.db") as store:
        (run,) = (one for one in store.runs() if one.model.name != "model")
    steps = [dict(step) for step in run.model.manifest.data["history"]]
    mine = Checkpoint(tmp_path / "both").manifest.data["history"]
    assert [step["action"] for step in steps] == ["experts", "prune"]
    assert run.model.name == "model/experts-frequency-50-wanda-20"
    assert steps[1]["source"].pop("name") == "experts-frequency-50" and mine[1]["source"].pop("name")
    assert steps[1] == mine[1] and steps[0]["experts_removed"] == mine[0]["experts_removed"]


@pytest.mark.slow
def test_a_worker_on_ray_makes_and_loads_a_variant_whole_as_this_machine_does(folder, tmp_path, monkeypatch):
    """Its checkpoint is sent to the process that was started, and from there to the workers that answer."""
    text = "[[prune]]\nexperts = { keep = 0.5 }\n"
    study = read_study(write_study(folder, text))
    model = open_model(study, study.models[0], folder / "model")
    variant, work = model.variants[1], model.cells[0].resolved
    make_variant(model, variant, tmp_path / "here", "cpu", keep=False)
    monkeypatch.setattr(ray_worker, "fetch", lambda reference: reference)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(put=lambda piece: piece))
    ref = ModelRef(model.name, model.checkpoint.checksum(), {(0, 0): work}), model.name
    maker, worker = Worker(str(tmp_path), study, "cpu"), Worker(str(tmp_path), study, "cpu")
    there = tmp_path / "there"
    receive(maker.make(ref, variant, keep=False), model, variant, there)
    assert not contents(maker.folder), "what was sent is deleted"
    assert contents(there / "variants") == contents(tmp_path / "here" / "variants")
    monkeypatch.setattr(drop_experts, "experts", None)  # what was sent is not made again
    sent = ray_worker.upload(there, files_to_load(there, model, variant, keep=False))
    (found,) = worker.answer(ref, variant, sent, (0, 0), work.batches[0], frozenset())
    assert not contents(worker.folder / "variants"), "what is loaded is deleted"
    with StudyEngine(study, tmp_path / "here", "cpu") as engine:
        backend: Any = engine.hold(model, variant, 0)
        (here,) = run_chains(work, backend, engine.grader, work.batches[:1])
        assert found.samples == here.samples
    for one in (maker, worker):
        one.engine.release()
        one.scratch.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop() -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.thorough
@pytest.mark.slow
def test_a_study_prunes_the_weights_of_a_model_with_fewer_experts(folder, tmp_path):
    """The model of a study may be one whose experts were removed; its variants are swapped into it."""
    calibration = {"calibration": str(folder / "text.jsonl"), "sequences": 8, "seqlen": 16}
    prunus.experts(folder / "model", tmp_path / "model", prunus.ExpertsRecipe(**calibration), device="cpu")
    shutil.copyfile(folder / "text.jsonl", tmp_path / "text.jsonl")
    path = write_study(tmp_path, '[[prune]]\nmethod = "wanda"\n[[experts]]\nmethod = "frequency"\nkeep = 0.5\n')
    prunus.study(path, out=tmp_path / "out", device="cpu")
    study = read_study(path)
    (recipe,) = [one for entry in study.entries for one in entry.steps if isinstance(one, prunus.PruneRecipe)]
    prunus.prune(tmp_path / "model", tmp_path / "whole", recipe, device="cpu")
    prunus.evaluate(tmp_path / "whole", study.plans[0], tmp_path / "whole.db", device="cpu")
    with Store(tmp_path / "out" / "results.db") as theirs, Store(tmp_path / "whole.db") as ours:
        [mine] = ours.runs()
        [one] = [run for run in theirs.runs() if run.model.checksum == mine.model.checksum]
        assert len(theirs.runs()) == 3
        assert theirs.samples(one.run_id, texts=True) == ours.samples(mine.run_id, texts=True)
