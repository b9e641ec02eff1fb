"""allocate() and prune(allocation=...): evidence against the whole model, exact budgets on disk, reuse, bad files."""

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, make_model, random_rows
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning.allocation import ALLOCATIONS
from prunus.recipes import PruneRecipe

SEQUENCES = random_rows(6, 40)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("allocate")
    make_model(folder / "m", "qwen3", blocks=4)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in SEQUENCES))
    return folder


def recipe(place, **changes):
    return PruneRecipe(**{"calibration": str(place / "rows.jsonl"), "sequences": 6, "sparsity": 0.5} | changes)


def zeros_of(folder, scope="all"):
    source, zeros, weights = Checkpoint(folder), 0, 0
    for name in sorted(source.tensors):
        inside = {"all": "_proj.weight", "attention": "self_attn", "mlp": "mlp."}[scope]
        if inside in name and name.endswith("_proj.weight"):
            tensor = source.read(name)
            zeros += tensor.numel() - int(tensor.count_nonzero())
            weights += tensor.numel()
    return zeros, weights


def whole_model_scores(folder):
    """Wanda scores of every block by hooks on transformers' own model."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    squares, linears = {}, {n: m for n, m in model.named_modules() if n.endswith("_proj")}
    for name, module in linears.items():

        def hook(_module, inputs, name=name):
            squares[name] = squares.get(name, 0) + inputs[0].double().pow(2).flatten(0, -2).sum(0)

        module.register_forward_pre_hook(hook)
    with torch.inference_mode():
        for ids in SEQUENCES:
            model(input_ids=torch.tensor([ids]))
    blocks = [[] for _ in model.model.layers]
    for name, module in linears.items():
        blocks[int(name.split(".")[2])].append((module.weight.abs().double() * squares[name].sqrt()).flatten())
    return [torch.cat(scores) for scores in blocks]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_owl_evidence_equals_that_of_the_whole_model(tmp_path, family):
    make_model(tmp_path / "m", family)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in SEQUENCES))
    scores = whole_model_scores(tmp_path / "m")
    asked = recipe(tmp_path, allocation="owl", outlier_threshold=3.0)
    found = prunus.allocate(tmp_path / "m", asked).evidence
    expected = [100 * (s > 3 * s.mean()).double().mean().item() for s in scores]
    assert found["scores"]["block"] == pytest.approx(expected, abs=100 * 1.5 / len(scores[0]))
    assert found["details"]["mean"] == pytest.approx([s.mean().item() for s in scores], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "sparsity"), [("all", 0.29), ("mlp", 0.6)])
@pytest.mark.parametrize("allocation", sorted(set(ALLOCATIONS) - {"uniform"}))
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_zeros_on_disk_are_the_budget(place, tmp_path, method, allocation, sparsity, scope):
    asked = recipe(place, method=method, allocation=allocation, sparsity=sparsity, scope=scope)
    summary = prunus.prune(place / "m", tmp_path / "out", asked)
    zeros, weights = zeros_of(tmp_path / "out", scope)
    assert zeros == round(Fraction(str(sparsity)) * weights)
    shares = list(summary.linear_sparsity.values())
    assert max(shares) - min(shares) > 0.02
    step = Checkpoint(tmp_path / "out").manifest.data["history"][-1]
    assert step["allocation"]["allocation"] == allocation
    assert (tmp_path / "out" / "evidence.json").exists() == (ALLOCATIONS[allocation].needs != "nothing")


@pytest.mark.slow
def test_blocks_get_what_allocate_says(place, tmp_path):
    asked = recipe(place, method="magnitude", allocation="owl", sparsity=0.5)
    rows = prunus.allocate(place / "m", asked).blocks
    shares = prunus.prune(place / "m", tmp_path / "out", asked).linear_sparsity
    assert len(shares) == 4 * 7
    for name, share in shares.items():
        assert share == pytest.approx(rows[int(name.split(".")[2])].sparsity, abs=1 / 300)


@pytest.mark.slow
def test_uniform_is_the_default_and_changes_nothing(place, tmp_path):
    prunus.prune(place / "m", tmp_path / "out", recipe(place, sparsity=0.4))
    assert Checkpoint(tmp_path / "out").manifest.data["history"][-1]["allocation"] is None
    assert not (tmp_path / "out" / "evidence.json").exists()
    rows = prunus.allocate(place / "m", recipe(place, sparsity=0.4)).blocks
    assert [row.sparsity for row in rows] == pytest.approx([0.4] * 4)


@pytest.mark.slow
def test_saved_evidence_makes_the_same_masks_without_measuring(place, tmp_path, monkeypatch):
    asked = recipe(place, method="magnitude", allocation="owl", sparsity=0.5)
    measured = prunus.allocate(place / "m", asked, save=tmp_path / "owl.json")
    prunus.prune(place / "m", tmp_path / "a", asked)
    assert json.loads((tmp_path / "owl.json").read_text()) == measured.evidence
    assert (tmp_path / "a" / "evidence.json").read_bytes() == (tmp_path / "owl.json").read_bytes()
    monkeypatch.setattr("prunus.pruning.prune.allocate.measure_scores", lambda *_: 1 / 0)
    saved = recipe(place, method="magnitude", allocation="owl", sparsity=0.5, scores=str(tmp_path / "owl.json"))
    prunus.prune(place / "m", tmp_path / "b", saved)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_resumed_run_does_not_measure_again(place, tmp_path, monkeypatch):
    asked = recipe(place, allocation="owl")
    prunus.prune(place / "m", tmp_path / "whole", asked)
    from prunus.checkpoint.writer import Partial

    write = Partial.write_block

    def stop_at_2(self, index, *rest):
        if index == 2:
            raise KeyboardInterrupt
        write(self, index, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Partial, "write_block", stop_at_2)
        prunus.prune(place / "m", tmp_path / "out", asked)
    monkeypatch.setattr("prunus.pruning.prune.allocate.measure_scores", lambda *_: 1 / 0)
    prunus.prune(place / "m", tmp_path / "out", asked)
    for name in ("model.safetensors", "evidence.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_list_of_the_users_own_scores(place, tmp_path):
    (tmp_path / "mine.json").write_text("[1, 2, 3, 4]")
    asked = recipe(place, allocation="owl", spread=0.15, scores=str(tmp_path / "mine.json"))
    rows = prunus.allocate(place / "m", asked).blocks
    assert [row.sparsity for row in rows] == pytest.approx([0.65, 0.55, 0.45, 0.35])


BAD = {
    "length": ("[1, 2, 3]", "3 scores for 'block', but the model has 4 blocks"),
    "no number": ('[1, 2, "x", 4]', "score 2 of 'block' is 'x'"),
    "nan": ("[1, 2, NaN, 4]", "score 2 of 'block' is nan"),
    "no list": ('{"blok": [1, 2, 3, 4]}', "has no list 'block'"),
    "no json": ("1, 2", "cannot be read as JSON"),
    "version": ('{"evidence": 99}', "has format 99; this is prunus"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_scores_are_refused_and_leave_nothing(place, tmp_path, case):
    text, words = BAD[case]
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(PrunusError, match=words):
        prunus.prune(place / "m", tmp_path / "out", recipe(place, allocation="owl", scores=str(path)))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["not JSON", "3", "[0.1, 0.2]", '{"evidence": 0}'])
def test_evidence_replaces_no_file_but_evidence(place, tmp_path, text):
    path = tmp_path / "saved.json"
    path.write_text(text)
    with pytest.raises(PrunusError, match="exists and holds no importance scores"):
        prunus.allocate(place / "m", recipe(place, allocation="owl"), save=path)
    assert path.read_text() == text
    path.unlink()
    for _ in range(2):
        prunus.allocate(place / "m", recipe(place, allocation="owl"), save=path)


@pytest.mark.slow
def test_evidence_of_something_else_is_refused(place, tmp_path):
    prunus.allocate(place / "m", recipe(place, allocation="owl"), save=tmp_path / "owl.json")
    make_model(tmp_path / "other", "qwen3", blocks=4, seed=9)
    for model, changes, words in (
        (tmp_path / "other", {}, "measured on another model"),
        (place / "m", {"outlier_threshold": 5.0}, "measured with --outlier-threshold 7.0, not 5.0"),
        (place / "m", {"scope": "mlp"}, "measured with --scope all, not mlp"),
        (place / "m", {"allocation": "layerif"}, "holds scores of owl, not of layerif"),
    ):
        asked = recipe(place, **{"allocation": "owl", "scores": str(tmp_path / "owl.json")} | changes)
        with pytest.raises(PrunusError, match=words):
            prunus.allocate(model, asked)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"allocation": "owls"}, "allocation 'owls' is not known; did you mean 'owl'?"),
        ({"allocation": "uniform", "spread": 0.1}, "spread belongs to allocation owl"),
        ({"allocation": "owl", "step": 0.1}, "step belongs to allocation atp"),
        ({"allocation": "atp", "outlier_threshold": 3}, "outlier_threshold belongs to allocation owl"),
        ({"influence_train": 3}, "influence_train belongs to allocation layerif, not to uniform"),
        ({"allocation": "owl", "spread": 0.7}, r"spread must lie in \[0, 0.5\)"),
        ({"allocation": "owl", "outlier_threshold": 0}, "outlier_threshold must be above 0"),
        ({"allocation": "atp", "scores": "x"}, "uses no scores"),
    ],
)
def test_recipes_that_make_no_sense(changes, words):
    with pytest.raises(PrunusError, match=words):
        PruneRecipe(**changes)


@pytest.mark.parametrize(("method", "least", "mean"), [("wanda", 0.01, 0.1075), ("magnitude", 0.0, 0.105)])
def test_rounding_reference_loses_the_mean_as_the_studys_code_does_and_says_so(place, tmp_path, method, least, mean):
    path = tmp_path / "scores.json"
    path.write_text("[0, 0, 0, 1]")
    asked = recipe(place, method=method, allocation="owl", sparsity=0.1, scores=str(path), rounding="reference")
    data = prunus.allocate(place / "m", asked)
    assert [row.sparsity for row in data.blocks] == pytest.approx([0.14, 0.14, 0.14, least])  # -0.02 by the rule
    assert f"the mean sparsity is {mean:.4f}, not 0.1" in data.warnings[0]
    exact = prunus.allocate(place / "m", replace(asked, rounding="exact"))
    assert sum(row.sparsity or 0 for row in exact.blocks) == pytest.approx(0.4)
    assert "the others compensate" in exact.warnings[0]


def test_limits_that_bind_are_said(place):
    asked = recipe(place, allocation="owl", sparsity=0.95, spread=0.4)
    warnings = prunus.allocate(place / "m", asked).warnings
    assert any("were limited to sparsity 0.99" in warning for warning in warnings)
    with pytest.raises(PrunusError, match="cannot be reached"):
        prunus.allocate(place / "m", recipe(place, allocation="atp", sparsity=0.995))


def test_dry_run_counts_and_notices_a_wrong_step(place, tmp_path):
    asked = recipe(place, method="magnitude", allocation="atp", sparsity=0.29)
    said = prunus.plan(place / "m", asked, tmp_path / "out")
    prunus.prune(place / "m", tmp_path / "out", asked)
    assert said.zeros == zeros_of(tmp_path / "out")[0]
    with pytest.raises(PrunusError, match="is outside"):
        prunus.plan(place / "m", recipe(place, allocation="atp", step=0.9), tmp_path / "x")
