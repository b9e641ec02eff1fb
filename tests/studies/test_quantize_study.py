"""Studies of quantised models: names, keys, labels, a chain, and the rows of whole checkpoints."""

import pytest
from small_study import write_study

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.recipes import QuantizeRecipe
from prunus.store.store import Store
from prunus.studies.cells import open_model
from prunus.studies.file import read_study
from prunus.studies.plan import variant_bytes
from prunus.studies.variants import unfinished_folder

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("few_resamples")]
TABLES = """\
[[quantize]]
bits = 4
group = "row"
[[chain]]
steps = [{ prune = { sparsity = 0.2 } }, { quantize = { method = "rtn" } }]
"""


@pytest.mark.slow
def test_a_study_of_bits_has_the_rows_of_what_the_commands_write(tmp_path):
    path = write_study(tmp_path, TABLES)
    prunus.study(path, out=tmp_path / "out", device="cpu")
    page = (tmp_path / "out" / "report.html").read_text()
    for label in ("W4 rows", "Wanda 20\xa0% + W8A8 RTN"):
        assert label in page
    study = read_study(path)
    model = open_model(study, "model", tmp_path / "model")
    assert [variant.name for variant in model.variants] == ["dense", "w4-row", "wanda-20-w8a8-rtn"]
    assert len({variant.key for variant in model.variants}) == 3
    quantised, both = model.variants[1:]
    assert quantised.is_whole and both.is_whole
    (recipe,) = quantised.steps
    assert isinstance(recipe, QuantizeRecipe)
    prunus.quantize(tmp_path / "model", tmp_path / "one", recipe, device="cpu")
    made = Checkpoint(unfinished_folder(tmp_path / "out", quantised))
    assert made.checksum() == Checkpoint(tmp_path / "one").checksum()
    assert variant_bytes(model.source, quantised) == sum(stored.nbytes for stored in made.stored.values())
    prunus.apply_steps(tmp_path / "model", tmp_path / "two", both.steps, device="cpu")
    there = Checkpoint(unfinished_folder(tmp_path / "out", both))
    assert there.checksum() == Checkpoint(tmp_path / "two").checksum()
    prunus.evaluate(tmp_path / "one", study.plans[0], tmp_path / "one.db", device="cpu")
    with Store(tmp_path / "out" / "results.db") as theirs, Store(tmp_path / "one.db") as ours:
        [mine] = ours.runs()
        run_id = model.cells_of(quantised)[0].run_id
        assert theirs.samples(run_id, texts=True) == ours.samples(mine.run_id, texts=True)
        (run,) = [run for run in theirs.runs() if run.run_id == run_id]
        (step,) = run.model.manifest.data["history"]
        assert step["bytes"]["after"] == variant_bytes(model.source, quantised) == run.nbytes
        assert run.model.bytes == mine.model.bytes
        dense = next(run for run in theirs.runs() if run.run_id == model.cells[0].run_id)
        assert dense.model.bytes == model.source.engine_bytes and dense.nbytes == step["bytes"]["before"]


@pytest.mark.slow
def test_a_chain_is_planned_with_the_groups_that_a_narrower_model_has(tmp_path):
    """No group divides the 104 inputs of the model before all steps, of which keys are made."""
    narrow, rounded = "intermediate_size = 96, method = 'magnitude', fit = false", "bits = 4, method = 'rtn'"
    chain = f"[[chain]]\nsteps = [{{ width = {{ {narrow} }} }}, {{ quantize = {{ {rounded} }} }}]\n"
    path = write_study(tmp_path, chain, hidden_size=64, intermediate_size=104)
    (planned,) = prunus.plan_study(path, out=tmp_path / "out").to_json()["variants"]
    (variant,) = open_model(read_study(path), "model", tmp_path / "model").variants[1:]
    prunus.apply_steps(tmp_path / "model", tmp_path / "both", variant.steps, device="cpu")
    assert planned["bytes"] == sum(stored.nbytes for stored in Checkpoint(tmp_path / "both").stored.values())
    path.write_text(path.read_text().replace("96", "90"))
    with pytest.raises(PrunusError, match=r"small\.toml, line .* divides the 90 of mlp\.down_proj: use --group row"):
        prunus.plan_study(path, out=tmp_path / "out")


def test_recover_is_a_setting_of_this_step_not_a_step_after_it(tmp_path):
    path = write_study(tmp_path, "[[quantize]]\nbits = 4\ngroup = 'row'\nrecover = [false, true]\n")
    model = open_model(read_study(path), "model", tmp_path / "model")
    assert [variant.name for variant in model.variants] == ["dense", "w4-row", "w4-row-recovered"]
    assert len({variant.key for variant in model.variants}) == 3
    path.write_text(path.read_text().replace("[false, true]", "{ epochs = 2 }"))
    with pytest.raises(PrunusError, match=r"small\.toml, line .*'recover' must be"):
        read_study(path)


def test_a_chain_that_goes_on_after_bits_is_refused_before_anything_runs(tmp_path):
    path = write_study(tmp_path, "[[chain]]\nsteps = [{ quantize = { bits = 8 } }, { prune = { sparsity = 0.2 } }]\n")
    with pytest.raises(PrunusError, match="nothing comes after quantize: put prune before it"):
        prunus.study(path, out=tmp_path / "out", device="cpu")
