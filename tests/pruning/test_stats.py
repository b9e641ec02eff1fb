"""prunus stats: one calibration, any number of variants, the same masks as if each had calibrated."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_model, random_rows

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.cli import cli, main
from prunus.errors import PrunusError
from prunus.pruning.prune import prune as pipeline_module
from prunus.recipes import PruneRecipe
from prunus.recipes.prune import Scope

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in random_rows(6, 40)))
    return path


def calibrated(rows) -> dict[str, Any]:
    return {"calibration": str(rows), "sequences": 6}


@pytest.mark.slow
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
        steps = [model.manifest.data["history"][0] for model in (full, quick)]
        assert steps[0]["recipe"] == steps[1]["recipe"], "the recipe says which calibration counted"
        assert steps[0]["sparsity"] == steps[1]["sparsity"]
        for key, value in steps[0]["calibration"].items():
            assert steps[1]["calibration"][key] == value


@pytest.mark.parametrize("hessians", [False, True])
def test_statistics_are_those_of_the_inputs(tmp_path, rows, hessians):
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "m", "qwen2")
    prunus.stats(folder, tmp_path / "stats", hessians=hessians, **calibrated(rows))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _m, args, name=name: inputs.setdefault(name, []).append(args[0]))
    with torch.inference_mode():
        for line in rows.read_text().splitlines():
            model(torch.tensor([json.loads(line)["token_ids"]]))
    found = load_file(tmp_path / "stats")
    assert len(found) == 3 * 4 * (4 if hessians else 3)
    for name, got in found.items():
        linear, _, kind = name.rpartition(".")
        every_SI = torch.cat([part.flatten(0, 1) for part in inputs[linear]]).double()
        expected = {
            "norm": every_SI.norm(dim=0),
            "mean": every_SI.mean(0),
            "variance": every_SI.var(0, correction=0),
            "hessian": every_SI.T @ every_SI,
        }[kind]
        # Sums of products that cancel are as exact as what was summed, whose size is on the diagonal.
        slack = 1e-6 * float(expected.max()) if kind == "hessian" else 1e-6
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=slack)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "update", "hessians"),
    [
        ("wanda", "none", False),
        ("wanda", "none", True),
        ("sparsegpt", "none", True),
        ("alps", "none", True),
        ("wanda", "obs", True),
    ],
)
def test_every_method_makes_the_same_bytes_as_a_dense_run(tmp_path, rows, method, update, hessians, monkeypatch):
    folder = make_model(tmp_path / "m", "llama", dtype=torch.bfloat16)
    prunus.stats(folder, tmp_path / "stats", hessians=hessians, **calibrated(rows))
    asked = PruneRecipe(method=method, update=update, propagation="dense", **calibrated(rows))
    full, quick = compared(folder, asked, tmp_path, monkeypatch)
    assert full == quick


@pytest.mark.slow
def test_tiny_reasoner_the_same_bytes(tmp_path, monkeypatch):
    """Of one file of statistics for all three."""
    prunus.stats("tiny", tmp_path / "stats", hessians=True, sequences=8)
    for method in ("wanda", "sparsegpt"):
        asked = PruneRecipe(method=method, propagation="dense", sequences=8)
        full, quick = compared("tiny", asked, tmp_path, monkeypatch)
        assert full == quick, method
        shutil.rmtree(tmp_path / "full")
        shutil.rmtree(tmp_path / "quick")


@pytest.mark.slow
def test_how_many_tokens_is_in_the_file(tmp_path, monkeypatch):
    folder = make_model(tmp_path / "m")
    lines = [{"token_ids": ids, "prompt_tokens": 10 + i} for i, ids in enumerate(random_rows(8, 40))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own: dict[str, Any] = {"calibration": f"traces:{tmp_path / 'rows.jsonl'}", "calibration_tokens": 131}
    said = prunus.stats(folder, tmp_path / "stats", **own)
    assert said.tokens == 131
    full, quick = compared(folder, PruneRecipe(propagation="dense", **own), tmp_path, monkeypatch)
    assert full == quick


def compared(model, asked, folder, monkeypatch):
    """Checksum of the weights and recipe in the manifest, of a dense run and of one from the statistics."""
    prunus.prune(model, folder / "full", asked)
    fields = ("calibration", "sequences", "calibration_tokens")
    bare = replace(asked, **{name: getattr(PruneRecipe, name) for name in fields})
    with monkeypatch.context() as patch:
        patch.setattr(pipeline_module, "HiddenStates", None)  # nothing may be run
        prunus.prune(model, folder / "quick", bare, stats=folder / "stats")
    made = [Checkpoint(folder / name) for name in ("full", "quick")]
    assert made[0].checksum() != Checkpoint(resolve(model)).checksum()
    return [(model.checksum(), model.manifest.data["history"][-1]["recipe"]) for model in made]


@pytest.mark.slow
def test_other_models_recipes_and_files_are_refused_and_leave_nothing(tmp_path, rows):
    folder, other = make_model(tmp_path / "m"), make_model(tmp_path / "other", seed=1)
    norms = tmp_path / "norms"
    prunus.stats(folder, norms, **calibrated(rows))
    (tmp_path / "text").write_text("no statistics")
    save_file({"a": torch.ones(1)}, tmp_path / "weights")
    save_file({"a": torch.ones(1)}, tmp_path / "old", {"prunus": json.dumps({"format": 1})})
    retokenised = shutil.copytree(folder, tmp_path / "retokenised")
    (retokenised / "chat_template.jinja").write_text("{{ messages }}")
    dense = PruneRecipe(propagation="dense")
    for model, recipe, file, said in (
        (other, dense, "norms", "statistics of another model"),
        (folder, PruneRecipe(), "norms", "add --propagation dense"),
        (folder, PruneRecipe(method="magnitude", propagation="dense"), "norms", "magnitude needs no statistics"),
        (folder, PruneRecipe(dtype="bfloat16", propagation="dense"), "norms", "measured in F32, not BF16"),
        (folder, PruneRecipe(method="sparsegpt", propagation="dense"), "norms", "sparsegpt needs; .*stats --hessians"),
        (folder, PruneRecipe(update="obs", propagation="dense"), "norms", "--update obs needs; .*stats --hessians"),
        (folder, PruneRecipe(sequences=7, propagation="dense"), "norms", "with sequences 6, not 7"),
        (folder, PruneRecipe(seed=1, propagation="dense"), "norms", "with seed 0, not 1"),
        (folder, PruneRecipe(calibration="c4", propagation="dense"), "norms", "with calibration .*rows.jsonl, not c4"),
        (folder, PruneRecipe(calibration_tokens=9, propagation="dense"), "norms", "calibration_tokens None, not 9"),
        (retokenised, dense, "norms", "another tokenizer"),
        (folder, dense, "old", "has format 1; .*write it again with `prunus stats`"),
        (folder, dense, "text", "not a safetensors file"),
        (folder, dense, "weights", "holds no statistics"),
        (folder, dense, "absent", "cannot be read: No such file"),
    ):
        with pytest.raises(PrunusError, match=said) as caught:
            prunus.prune(model, tmp_path / "out", recipe, stats=tmp_path / file)
        assert "\n" not in str(caught.value)
    with pytest.raises(PrunusError, match="exists; choose another file or add --overwrite"):
        prunus.stats(folder, norms, **calibrated(rows))
    with pytest.raises(PrunusError):
        prunus.stats(folder, tmp_path / "more", calibration=str(tmp_path / "gone.jsonl"))
    names = {"m", "other", "norms", "text", "weights", "old", "retokenised", "rows.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_cut_off_file_and_overwrite(tmp_path, rows):
    folder, norms = make_model(tmp_path / "m"), tmp_path / "norms"
    prunus.stats(folder, norms, **calibrated(rows))
    whole = norms.read_bytes()
    norms.write_bytes(whole[:-10])
    with pytest.raises(PrunusError, match="is truncated"):
        prunus.prune(folder, tmp_path / "out", PruneRecipe(propagation="dense"), stats=norms)
    prunus.stats(folder, norms, overwrite=True, **calibrated(rows))
    assert norms.read_bytes() == whole


def test_too_little_space_is_said_before_anything_is_read(tmp_path, rows, monkeypatch):
    folder = make_model(tmp_path / "m")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(PrunusError, match=r"1\.0 kB free, but 80\.0 kB are needed"):
        # 3 blocks, float32: widths 32, 32, 32, 56, three vectors and a matrix of each
        prunus.stats(folder, tmp_path / "deep" / "stats", hessians=True, **calibrated(rows))
    assert not (tmp_path / "deep").exists()


def test_given_options_must_be_those_of_the_file_even_at_their_default(tmp_path, rows):
    folder = make_model(tmp_path / "m")
    prunus.stats(folder, tmp_path / "stats", **calibrated(rows))
    common = ["prune", str(folder), str(tmp_path / "out"), "--stats", str(tmp_path / "stats"), "--propagation", "dense"]
    for options, said in (
        (("--sequences", "128"), "sequences 6, not 128"),
        (("--calibration", "auto"), "rows.jsonl, not c4"),
        (("--seqlen", "512"), "seqlen 2048, not 512"),
    ):
        result = CliRunner().invoke(cli, [*common, *options])
        assert isinstance(result.exception, PrunusError) and said in str(result.exception)
    for options in ((), ("--sequences", "6", "--seed", "0", "--calibration", str(rows), "--overwrite")):
        assert CliRunner().invoke(cli, [*common, *options]).exit_code == 0


@pytest.mark.slow
def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["stats", "tiny", "norms", "--sequences", "4"])
    vary = ["prune", "tiny", "out", "--stats", "norms", "--propagation", "dense", "--sparsity", "0.3"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*vary, "--sequences", "128"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "sequences 4, not 128" in said and len(said.strip().splitlines()) == 1
    main([*vary, "--calibration", "tiny"])
    (step,) = Checkpoint(tmp_path / "out").manifest.data["history"][-1:]
    assert step["recipe"]["sequences"] == 4 and step["recipe"]["sparsity"] == 0.3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_allocations_by_scores_need_no_run_of_their_own(tmp_path, rows, monkeypatch, method):
    folder = make_model(tmp_path / "m")
    prunus.stats(folder, tmp_path / "norms", **calibrated(rows))
    owl: dict[str, Any] = {"allocation": "owl", "outlier_threshold": 3.0}
    asked = PruneRecipe(method=method, propagation="dense", **owl, **calibrated(rows))
    prunus.prune(folder, tmp_path / "run", asked)
    monkeypatch.setattr("prunus.checkpoint.runner.Runner.run_block", None)
    prunus.prune(folder, tmp_path / "saved", asked, stats=tmp_path / "norms")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("saved", "run")]
    assert weights[0] == weights[1]
    found = [json.loads((tmp_path / name / "evidence.json").read_text())["scores"] for name in ("saved", "run")]
    assert found[0] == found[1]
