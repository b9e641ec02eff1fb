"""Studies and searches of narrower models: names, keys, labels, chains, and the rows of whole checkpoints."""

import pickle
import signal
from typing import Any

import numpy as np
import pytest
import warm_processes
from ray_nodes import receive
from small_study import write_study

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.evaluation.run import run_chains
from prunus.pruning.width import channels
from prunus.recipes import PruneRecipe, RecoverRecipe, WidthRecipe
from prunus.step import kind_of
from prunus.store.store import Store
from prunus.studies.cells import open_model
from prunus.studies.engine import StudyEngine
from prunus.studies.file import FindTable, read_study
from prunus.studies.find.search import check_order, ladders_of, removed
from prunus.studies.ray import worker as ray_worker
from prunus.studies.ray.worker import ModelRef, Worker
from prunus.studies.variants import files_to_load, make_variant, unfinished_folder

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("few_resamples")]
TABLES = """\
[[width]]
recover = [false, { step_tokens = 64, epochs = 1 }]
[[chain]]
steps = [{ width = { keep = 0.75 } }, { prune = { sparsity = 0.2 } }]
"""
NAMES = ["dense", "width-obs-75", "width-obs-75-recovered", "width-obs-75-wanda-20"]


@pytest.mark.slow
def test_a_study_of_widths_has_the_rows_of_what_the_commands_write(tmp_path):
    path = write_study(tmp_path, TABLES)
    prunus.study(path, out=tmp_path / "out", device="cpu")
    page = (tmp_path / "out" / "report.html").read_text()
    for label in ("OBS width 75\xa0%", "OBS width 75\xa0% + recovered"):
        assert label in page
    study = read_study(path)
    model = open_model(study, "model", tmp_path / "model")
    assert [variant.name for variant in model.variants] == NAMES and len({v.key for v in model.variants}) == len(NAMES)
    narrow, recovered, zeros = model.variants[1:]
    assert all(variant.is_whole for variant in (narrow, recovered, zeros))
    (recipe,) = narrow.steps
    assert isinstance(recipe, WidthRecipe) and recovered.steps[1] == RecoverRecipe.like(
        recipe, step_tokens=64, epochs=1, rate=None, seed=1
    )
    prunus.width(tmp_path / "model", tmp_path / "one", recipe, device="cpu")
    made = unfinished_folder(tmp_path / "out", narrow)
    assert Checkpoint(made).checksum() == Checkpoint(tmp_path / "one").checksum()
    assert isinstance(zeros.steps[1], PruneRecipe)
    prunus.prune(tmp_path / "one", tmp_path / "two", zeros.steps[1], device="cpu")
    both = unfinished_folder(tmp_path / "out", zeros)
    assert Checkpoint(both).checksum() == Checkpoint(tmp_path / "two").checksum()
    prunus.evaluate(tmp_path / "one", study.plans[0], tmp_path / "one.db", device="cpu")
    with Store(tmp_path / "out" / "results.db") as theirs, Store(tmp_path / "one.db") as ours:
        [mine] = ours.runs()
        [one] = [run for run in theirs.runs() if run.run_id == model.cells_of(narrow)[0].run_id]
        assert one.model.parameters == mine.model.parameters
        assert (mine.model.parameters or 0) < Checkpoint(tmp_path / "model").parameters
        assert one.model.bytes == mine.model.bytes and one.nbytes == Checkpoint(tmp_path / "one").nbytes
        assert theirs.samples(one.run_id, texts=True) == ours.samples(mine.run_id, texts=True)


def test_a_ladder_of_widths_goes_from_wide_to_narrow(tmp_path):
    path = write_study(tmp_path, "")
    source = Checkpoint(tmp_path / "model")
    assert path.exists()
    ladder = tmp_path / "ladder.toml"
    ladder.write_text('[[width]]\nkeep = [0.75, 0.5, 0.25]\n[calibration]\ncalibration = "text.jsonl"\n')
    (found,) = ladders_of(FindTable(ladder)).values()
    shares = [removed(entry, source) for entry in found]
    check_order("ladder", found, source)
    parts = [sum(a * b for a, b in source.linear_shapes(index).values()) for index in range(source.blocks)]
    inside = sum(
        a * b for i in range(source.blocks) for n, (a, b) in source.linear_shapes(i).items() if n.startswith("mlp")
    )
    assert shares == pytest.approx([inside / sum(parts) * share for share in (0.25, 0.5, 0.75)])
    (again,) = ladders_of(FindTable([WidthRecipe(keep=0.5), WidthRecipe(keep=0.75)])).values()
    with pytest.raises(PrunusError, match="ladder recipes is not in order"):
        check_order("recipes", again, source)
    (recovering,) = ladders_of(FindTable([WidthRecipe()], recovery={})).values()
    assert recovering[0].steps[1] == RecoverRecipe(rate=None, seed=1)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_workers_of_a_cluster_make_and_run_a_width_as_this_machine_does(tmp_path, monkeypatch):
    """One makes the whole checkpoint, which the driver fetches, and another loads what the driver has."""
    study = read_study(write_study(tmp_path, "[[width]]\nmethod = 'magnitude'\n"))
    model = open_model(study, study.models[0], tmp_path / "model")
    here, driver, variant = tmp_path / "here", tmp_path / "driver", model.variants[1]
    make_variant(model, variant, here, "cpu", keep=False)
    monkeypatch.setattr(ray_worker, "fetch", lambda reference: reference)
    (cell,) = model.cells_of(variant)
    ref = ModelRef(model.name, model.checkpoint.checksum(), {(0, 0): cell.resolved})
    sent = pickle.loads(pickle.dumps(variant))  # noqa: S301  of our own making
    maker, other = (Worker(str(tmp_path), study, "cpu") for _ in range(2))
    receive(maker.make((ref, model.name), sent, False), model, variant, driver)
    assert files(driver / "variants") == files(here / "variants")
    assert f"{variant.key}/model.safetensors" in files(driver / "variants")
    uploaded = {
        str(path.relative_to(driver)): [np.fromfile(path, np.uint8)]
        for path in files_to_load(driver, model, variant, False)
    }
    chains = [(0, 0), (1, 0)]
    [found] = other.answer((ref, model.name), sent, uploaded, (0, 0), chains, frozenset())
    with StudyEngine(study, here, "cpu") as engine:
        backend: Any = engine.hold(model, variant, 0)
        [alone] = run_chains(cell.resolved, backend, engine.grader, [chains])
    assert found.samples == alone.samples
    for one in (maker, other):
        one.scratch.close()


CHAIN = """\
[[chain]]
steps = [{ width = {} }, { prune = { sparsity = 0.3 } }, { recover = { epochs = 1, step_tokens = 32 } }]
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from prunus.checkpoint import writer
from prunus.studies.cells import open_model
from prunus.studies.file import read_study
from prunus.studies.variants import make_variant

file, folder = map(Path, sys.argv[2:])
write_block, written = writer.Partial.write_block, 0

def counted(self, *arguments):
    global written
    write_block(self, *arguments)
    written += 1
    if written == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

writer.JOURNAL_SECONDS = 0
writer.Partial.write_block = counted
study = read_study(file)
model = open_model(study, study.models[0], file.parent / "model")
make_variant(model, model.variants[1], folder, "cpu", keep=False)
"""


@pytest.mark.thorough
@pytest.mark.slow
@warm_processes.in_one_worker
def test_a_chain_that_is_killed_in_each_of_its_steps_ends_with_the_same_bytes(tmp_path):
    file = write_study(tmp_path, CHAIN)
    study = read_study(file)
    model = open_model(study, study.models[0], tmp_path / "model")
    make_variant(model, model.variants[1], tmp_path / "unbroken", "cpu", keep=False)
    for blocks, end in ((2, -signal.SIGKILL), (3, -signal.SIGKILL), (3, -signal.SIGKILL), (3, 0)):  # of nine in all
        assert warm_processes.run(KILLED, blocks, file, tmp_path / "broken") == (end, "")
    assert files(tmp_path / "broken") == files(tmp_path / "unbroken")


@pytest.mark.slow
def test_what_is_already_narrow_recovers_at_a_chosen_rate(tmp_path):
    tables = "[[recover]]\nepochs = 1\n{}[[chain]]\nsteps = [{{ prune = {{}} }}, {{ recover = {{ epochs = 1 }} }}]\n"
    write_study(tmp_path, "")
    (tmp_path / "model").rename(tmp_path / "dense")
    calibration: Any = {"calibration": str(tmp_path / "text.jsonl"), "sequences": 8, "seqlen": 16}

    def rates_and_keys(given=""):
        study = read_study(write_study(tmp_path, tables.format(given)))
        variants = open_model(study, "model", tmp_path / "model").variants[1:]
        recoveries = [variant.steps[-1] for variant in variants]
        assert all(isinstance(one, RecoverRecipe) for one in recoveries)
        return [vars(one)["rate"] for one in recoveries], [variant.key for variant in variants]

    for fit, rate in ((True, None), (False, 0.01)):
        recipe = WidthRecipe(method="magnitude", fit=fit, **calibration)
        prunus.width(tmp_path / "dense", tmp_path / "model", recipe, overwrite=True)
        rates, keys = rates_and_keys()
        assert set(rates) == {rate, 0.01}, "where the last step made zeros, the default rate is 0.01"
        assert rate is None or rates_and_keys(f"rate = {rate}\n") == (rates, keys)
    steps = [RecoverRecipe(epochs=1, step_tokens=32, **calibration), PruneRecipe(sparsity=0.3, **calibration)]
    prunus.width(tmp_path / "dense", tmp_path / "model", WidthRecipe(**calibration), overwrite=True)
    prunus.apply_steps(tmp_path / "model", tmp_path / "out", steps, device="cpu")
    assert Checkpoint(tmp_path / "out").manifest.data["history"][1]["recipe"]["rate"] is None


def test_the_networks_of_an_open_model_are_found_once(tmp_path, monkeypatch):
    write_study(tmp_path, "")
    source, recipe = Checkpoint(tmp_path / "model"), WidthRecipe()
    units = channels.find_units(source)
    monkeypatch.setattr(channels, "remade", None)
    assert channels.find_units(source) is units
    assert kind_of(recipe).removed(recipe, source) and kind_of(recipe).nbytes(recipe, source)
    with pytest.raises(PrunusError, match="cannot be made"):  # without the models that were made before
        channels.find_units(Checkpoint(tmp_path / "model"))
