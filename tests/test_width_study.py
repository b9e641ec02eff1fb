"""Studies and searches of narrower models: names, keys, labels, chains, and the rows of whole checkpoints."""

import pytest
from small_study import write_study

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.recipes import PruneRecipe, RecoverRecipe, WidthRecipe
from prunus.results.store import Store
from prunus.study.cells import open_model
from prunus.study.file import read_study
from prunus.study.find.ladders import check_order, ladders_of, removed
from prunus.study.variants import unfinished_folder

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
    prunus.run_study(path, out=tmp_path / "out", device="cpu")
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
        recipe, step_tokens=64, epochs=1, rate=0.003
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
        assert one.model["parameters"] == mine.model["parameters"] < Checkpoint(tmp_path / "model").parameters
        assert theirs.samples(one.run_id, texts=True) == ours.samples(mine.run_id, texts=True)


def test_a_ladder_of_widths_goes_from_wide_to_narrow(tmp_path):
    path = write_study(tmp_path, "")
    source = Checkpoint(tmp_path / "model")
    assert path.exists()
    ladder = tmp_path / "ladder.toml"
    ladder.write_text('[[width]]\nkeep = [0.75, 0.5, 0.25]\n[calibration]\ncalibration = "text.jsonl"\n')
    (found,) = ladders_of(ladder, None, {}, None)
    shares = [removed(entry, source) for entry in found.entries]
    check_order(found, source)
    parts = [sum(a * b for a, b in source.linear_shapes(index).values()) for index in range(source.blocks)]
    inside = sum(
        a * b for i in range(source.blocks) for n, (a, b) in source.linear_shapes(i).items() if n.startswith("mlp")
    )
    assert shares == pytest.approx([inside / sum(parts) * share for share in (0.25, 0.5, 0.75)])
    (again,) = ladders_of([WidthRecipe(keep=0.5), WidthRecipe(keep=0.75)], None, {}, None)
    with pytest.raises(PrunusError, match="not in order"):
        check_order(again, source)
    (recovering,) = ladders_of([WidthRecipe()], None, {}, {})
    assert recovering.entries[0].steps[1] == RecoverRecipe(rate=0.003)
