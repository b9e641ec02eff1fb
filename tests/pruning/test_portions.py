"""What gradients and other measures move: in portions of any size with the same result, in files, once per study."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from small_study import write_study
from tiny_models import LINEARS, make_model, random_rows, runner_of

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.pruning.allocation import layerif
from prunus.pruning.calibration import gradients
from prunus.pruning.calibration import hidden_states as hidden
from prunus.pruning.calibration import hidden_states as portions
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.gradients import GradientModel, signs, sketches
from prunus.studies.cells import open_models
from prunus.studies.file import read_study
from prunus.studies.variants import make_variant

LENGTH, COUNT, BLOCKS = 16, 40, 3
BATCH = 4 * LENGTH
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Checkpoint:
    return Checkpoint(make_model(tmp_path_factory.mktemp("portions") / "model", "qwen3", blocks=BLOCKS))


def model_of(source, file=None) -> GradientModel:
    return GradientModel(source, runner_of(source), [LINEARS] * source.blocks, file)


# Free memory, whether there is a file: for everything, for a few batches, for next to nothing.
def settings(source, tmp_path):
    few = 2 * 8 * LENGTH * model_of(source).per_token
    return {"all": (PLENTY, None), "few": (few, None), "least": (1, None), "file": (1, tmp_path / "kept.bin")}


@pytest.mark.slow
def test_sketches_are_the_same_in_any_portions_each_of_which_reads_all_blocks_twice(source, tmp_path, monkeypatch):
    monkeypatch.setattr(hidden, "BATCH_TOKENS", BATCH)
    monkeypatch.setattr(gradients, "HiddenStates", partial(hidden.HiddenStates, batch_tokens=BATCH))
    rows, real_blocks, read = random_rows(COUNT, LENGTH), gradients.blocks_on, []

    def blocks_on(source, indices, device):
        for block in real_blocks(source, indices, device):
            read.append(block)
            yield block

    monkeypatch.setattr(gradients, "blocks_on", blocks_on)
    found, passes = {}, {}
    for name, (free, file) in settings(source, tmp_path).items():
        monkeypatch.setattr(portions, "free_memory", lambda free=free: free)
        read.clear()
        found[name] = sketches(model_of(source, file), rows, signs(0, source))
        passes[name] = len(read) / BLOCKS
    for tables in found.values():
        for ours, theirs in zip(tables, found["all"], strict=True):
            assert all(torch.equal(ours[name], theirs[name]) and ours[name].any() for name in LINEARS)
    assert passes == {"all": 2, "few": 2 * COUNT // 8, "least": 2 * COUNT * LENGTH // BATCH, "file": 2}


def test_free_memory_is_some_of_what_the_machine_has():
    with Path("/proc/meminfo").open() as lines:
        total = int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) * 1024
    assert 0 < portions.free_memory() <= total


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        {"allocation": "owl"},
        {"method": "magnitude", "allocation": "owl"},
        {"allocation": "layerif", "influence_train": 5, "influence_validation": 3},
    ],
    ids=str,
)
def test_offload_keeps_every_hidden_state_in_a_file(source, tmp_path, monkeypatch, asked):
    """And changes nothing."""
    (tmp_path / "text.jsonl").write_text(Calibration(random_rows(8, LENGTH), "random", []).to_jsonl())
    recipe = prunus.PruneRecipe(calibration=str(tmp_path / "text.jsonl"), sequences=8, seqlen=LENGTH, **asked)
    prunus.prune(source.folder, tmp_path / "memory", recipe)
    real, files = hidden._allocate, []

    def allocate(elements, dtype, file, device):
        files.append(file)
        return real(elements, dtype, file, device)

    monkeypatch.setattr(hidden, "_allocate", allocate)
    prunus.prune(source.folder, tmp_path / "file", recipe, offload=True)
    assert files and all(files)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "file"))
    assert one == other
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("memory", "file")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_variants_of_a_study_share_what_is_measured(tmp_path, monkeypatch):
    recipes = """\
[[prune]]
method = ["magnitude", "wanda"]
sparsity = [0.3, 0.4]
allocation = "layerif"
influence_train = 5
influence_validation = 3
"""
    study = read_study(write_study(tmp_path, recipes))
    (model,) = open_models(study)
    counted: Counter[str] = Counter()
    real_sketches = layerif.sketches

    def influences(*arguments):
        counted["influences"] += 1
        return real_sketches(*arguments)

    monkeypatch.setattr(layerif, "sketches", influences)
    made = {variant.name: make_variant(model, variant, tmp_path, "cpu", keep=False) for variant in model.variants[1:]}
    assert len(made) == 4 and counted == {"influences": 1}
    for variant in model.variants[1:]:  # the same as each by itself
        (recipe,) = variant.steps
        assert isinstance(recipe, prunus.PruneRecipe)
        prunus.prune(model.name, tmp_path / "alone" / variant.name, recipe)
        assert Checkpoint(tmp_path / "alone" / variant.name).checksum() == made[variant.name].checksum
