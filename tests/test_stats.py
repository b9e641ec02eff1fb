"""prunus stats: one calibration, any number of variants, the same masks as if each had calibrated."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_model, random_rows

import prunus
from prunus.checkpoint.files import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning import pipeline as pipeline_module
from prunus.recipes import PruneRecipe, Scope


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in random_rows(6, 40)))
    return path


def calibrated(rows):
    return {"calibration": str(rows), "samples": 6}


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_equal_those_of_dense_propagation(tmp_path, rows, family, monkeypatch):
    folder = make_model(tmp_path / "m", family)
    prunus.stats(folder, tmp_path / "norms", **calibrated(rows))
    variants: tuple[tuple[float, Scope], ...] = ((0.2, "all"), (0.5, "attention"), (0.7, "mlp"), (0.5, "all"))
    for sparsity, scope in variants:
        asked = PruneRecipe(sparsity=sparsity, scope=scope, propagation="dense", **calibrated(rows))
        prunus.prune(folder, tmp_path / "full", asked, overwrite=True)
        with monkeypatch.context() as patch:
            patch.setattr(pipeline_module, "HiddenStates", None)  # nothing may be run
            bare = PruneRecipe(sparsity=sparsity, scope=scope, propagation="dense")
            prunus.prune(folder, tmp_path / "quick", bare, stats=tmp_path / "norms", overwrite=True)
        full, quick = (Checkpoint(tmp_path / name) for name in ("full", "quick"))
        assert full.checksum() == quick.checksum()
        steps = [model.manifest["history"][0] for model in (full, quick)]
        assert steps[0]["recipe"] == steps[1]["recipe"], "the recipe says which calibration counted"
        assert steps[0]["sparsity"] == steps[1]["sparsity"]
        for key, value in steps[0]["calibration"].items():
            assert steps[1]["calibration"][key] == value


def test_norms_are_those_of_the_inputs(tmp_path, rows):
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "m", "qwen2")
    prunus.stats(folder, tmp_path / "norms", **calibrated(rows))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _m, args, name=name: inputs.setdefault(name, []).append(args[0]))
    with torch.inference_mode():
        for line in rows.read_text().splitlines():
            model(torch.tensor([json.loads(line)["token_ids"]]))
    found = load_file(tmp_path / "norms")
    assert len(found) == 3 * 4
    for name, norm_I in found.items():
        every_SI = torch.cat([part.flatten(0, 1) for part in inputs[name.removesuffix(".norm")]]).double()
        torch.testing.assert_close(norm_I.double(), every_SI.norm(dim=0), rtol=1e-5, atol=0)


def test_other_models_recipes_and_files_are_refused_and_leave_nothing(tmp_path, rows):
    folder, other = make_model(tmp_path / "m"), make_model(tmp_path / "other", seed=1)
    norms = tmp_path / "norms"
    prunus.stats(folder, norms, **calibrated(rows))
    (tmp_path / "text").write_text("no statistics")
    save_file({"a": torch.ones(1)}, tmp_path / "weights")
    dense = PruneRecipe(propagation="dense")
    for model, recipe, file, said in (
        (other, dense, "norms", "statistics of another model"),
        (folder, PruneRecipe(), "norms", "add --propagation dense"),
        (folder, PruneRecipe(method="magnitude", propagation="dense"), "norms", "magnitude needs no statistics"),
        (folder, PruneRecipe(dtype="bfloat16", propagation="dense"), "norms", "measured in F32, not BF16"),
        (folder, PruneRecipe(allocation="owl", propagation="dense"), "norms", "give --scores FILE"),
        (folder, dense, "text", "no safetensors file"),
        (folder, dense, "weights", "holds no statistics"),
        (folder, dense, "absent", "does not exist"),
    ):
        with pytest.raises(PrunusError, match=said) as caught:
            prunus.prune(model, tmp_path / "out", recipe, stats=tmp_path / file)
        assert "\n" not in str(caught.value)
    with pytest.raises(PrunusError, match="exists; choose another file or add --overwrite"):
        prunus.stats(folder, norms, **calibrated(rows))
    with pytest.raises(PrunusError):
        prunus.stats(folder, tmp_path / "more", calibration=str(tmp_path / "gone.jsonl"))
    names = {"m", "other", "norms", "text", "weights", "rows.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_cut_off_file_and_overwrite(tmp_path, rows):
    folder, norms = make_model(tmp_path / "m"), tmp_path / "norms"
    prunus.stats(folder, norms, **calibrated(rows))
    whole = norms.read_bytes()
    norms.write_bytes(whole[:-10])
    with pytest.raises(PrunusError, match="is cut off"):
        prunus.prune(folder, tmp_path / "out", PruneRecipe(propagation="dense"), stats=norms)
    prunus.stats(folder, norms, overwrite=True, **calibrated(rows))
    assert norms.read_bytes() == whole


def test_command_line(tmp_path):
    def run(*arguments):
        subprocess.run([sys.executable, "-m", "prunus", *arguments], cwd=tmp_path, check=True, timeout=120)

    run("stats", "tiny", "norms", "--samples", "4")
    run("prune", "tiny", "out", "--stats", "norms", "--propagation", "dense", "--sparsity", "0.3")
    (step,) = Checkpoint(tmp_path / "out").manifest["history"][-1:]
    assert step["recipe"]["samples"] == 4 and step["recipe"]["sparsity"] == 0.3
