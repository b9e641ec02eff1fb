"""Prompt and chain may count differently, in statistics and in the loss of recovery."""

import json
import random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import LINEARS, make_model, random_rows, runner_of
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import HiddenStates
from prunus.pruning.calibration.statistics import Observer
from prunus.pruning.recovery import split
from prunus.recipes import PruneRecipe, RecoverRecipe

LONG = 80
LENGTHS, PROMPTS = (30, 12, 30, 1, 19), (7, 12, 30, 0, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("weights") / "m", "qwen3")


@pytest.fixture(scope="module")
def sequences():
    return [row[:length] for row, length in zip(random_rows(5, 30), LENGTHS, strict=True)]


def calibration(sequences):
    return Calibration(sequences, "traces", [], PROMPTS)


@torch.inference_mode()
def seen(folder, sequences, weights) -> Any:
    source = Checkpoint(folder)
    runner = runner_of(source)
    hidden = HiddenStates(runner, sequences, None, token_weights=weights)
    tensors = {n.split(".", 3)[3]: source.read(n) for n in source.tensor_names if n.startswith("model.layers.0.")}
    block = runner.make_block(0, tensors)
    with Observer(runner, block, source.linears(0), needs="hessian") as observer:
        for batch, rows in hidden.batches():
            runner.run_block(block, rows, batch)
    return observer.stats(0)


@torch.inference_mode()
def inputs_by_hand(folder, sequences):
    """name -> one (T, I) float64 tensor per sequence, in their own order, from transformers' block."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {name: [] for name in LINEARS}
    for name in LINEARS:
        module = model.model.layers[0].get_submodule(name)
        module.register_forward_pre_hook(lambda _m, inputs, name=name: found[name].append(inputs[0][0].double()))
    for ids in sequences:
        model(torch.tensor([ids]))
    return found


@pytest.mark.parametrize(("prompt", "chain"), [(0.0, 1.0), (1.0, 0.0), (0.25, 2.0), (1.0, 1.0)])
def test_statistics_are_weighted_sums_over_tokens(folder, sequences, prompt, chain):
    recipe = PruneRecipe(prompt_weight=prompt, chain_weight=chain)
    weights = calibration(sequences).token_weights(recipe) or [[1.0] * length for length in LENGTHS]
    assert [len(w) for w in weights] == list(LENGTHS)
    stats = seen(folder, sequences, weights)
    for name, inputs in inputs_by_hand(folder, sequences).items():
        all_SI = torch.cat(inputs)
        weight_S = torch.tensor([w for row in weights for w in row], dtype=torch.float64)
        norm_I = (weight_S @ all_SI.square()).sqrt()
        torch.testing.assert_close(stats[name].norm_I.double(), norm_I, rtol=1e-4, atol=1e-5)
        mean_I = weight_S @ all_SI / weight_S.sum()
        torch.testing.assert_close(stats[name].mean_I.double(), mean_I, rtol=1e-4, atol=1e-5)
        hessian_II = all_SI.T @ (weight_S[:, None] * all_SI)
        torch.testing.assert_close(stats[name].hessian.matrix_II.double(), hessian_II, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("prompt", "chain"), [(1.0, 1.0), (0.0, 1.0), (6.0, 0.5)])
def test_recovery_weighs_its_error_so(folder, tmp_path, prompt, chain):
    sequences, prompts = random_rows(5, LONG), (5, 30, 20, 10, 12)
    source = write(tmp_path / "t.jsonl", sequences, prompts)
    prunus.prune(folder, tmp_path / "pruned", PruneRecipe(method="magnitude", sparsity=0.5))
    recipe = RecoverRecipe(source, samples=5, epochs=1, step_tokens=LONG, prompt_weight=prompt, chain_weight=chain)
    prunus.recover(tmp_path / "pruned", tmp_path / "out", recipe)
    record = json.loads((tmp_path / "out" / "prunus.json").read_text())["history"][-1]["blocks"][0]
    _, held_out = split(len(sequences), random.Random("0 held out"))
    errors, total = 0.0, 0.0
    dense, pruned = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (folder, tmp_path / "pruned")
    )
    for index in held_out:
        with torch.no_grad():
            target, output = (m(torch.tensor([sequences[index]]), output_hidden_states=True) for m in (dense, pruned))
        target_TW, output_TW = target.hidden_states[1][0].double(), output.hidden_states[1][0].double()
        weight_T = torch.tensor([prompt] * prompts[index] + [chain] * (LONG - prompts[index]), dtype=torch.float64)
        error_T = (output_TW - target_TW).square().sum(-1) / target_TW.square().sum(-1)
        errors, total = errors + float(weight_T @ error_T), total + float(weight_T.sum())
    assert record["before"] == pytest.approx(errors / total, rel=1e-4)


def test_equal_weights_change_no_bit(folder, sequences):
    assert calibration(sequences).token_weights(PruneRecipe()) is None
    weights = [[1.0] * length for length in LENGTHS]
    plain, weighted = seen(folder, sequences, None), seen(folder, sequences, weights)
    assert all(torch.equal(plain[name].norm_I, weighted[name].norm_I) for name in LINEARS)


def write(path, sequences, prompts):
    rows = [{"token_ids": ids, "prompt_tokens": p} for ids, p in zip(sequences, prompts, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"traces:{path}"


@pytest.mark.parametrize("propagation", ["pruned", "dense", "staged"])
def test_a_prompt_of_weight_0_still_is_context_but_chooses_nothing(folder, sequences, tmp_path, propagation):
    source = write(tmp_path / "t.jsonl", sequences, PROMPTS)
    made = {}
    weights = {"both": (1.0, 1.0), "chain": (0.0, 1.0), "scaled": (0.0, 3.0)}
    for name, (prompt, chain) in weights.items():
        recipe = PruneRecipe(
            calibration=source, samples=5, propagation=propagation, prompt_weight=prompt, chain_weight=chain
        )
        prunus.prune(folder, tmp_path / name, recipe)
        made[name] = load_file(tmp_path / name / "model.safetensors")
    assert all(torch.equal(made["chain"][name], made["scaled"][name]) for name in made["chain"])
    assert any(not torch.equal(made["chain"][name], made["both"][name]) for name in made["both"])


def test_what_cannot_be_weighted_is_refused(folder, sequences, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in sequences))
    prompts_only = write(tmp_path / "p.jsonl", sequences, LENGTHS)
    for source, words in ((str(bare), "does not say where prompts end"), (prompts_only, "no token counts")):
        with pytest.raises(PrunusError, match=words):
            prunus.prune(folder, tmp_path / "out", PruneRecipe(calibration=source, samples=5, prompt_weight=0.0))
    bare.write_text(json.dumps({"token_ids": sequences[0], "prompt_tokens": 3, "thinking_tokens": 28}))
    with pytest.raises(PrunusError, match="line 1: thinking_tokens 28 is not between 0 and 27"):
        prunus.prune(folder, tmp_path / "out", PruneRecipe(calibration=str(bare), samples=1, prompt_weight=0.0))
    assert not (tmp_path / "out.partial").exists()
    for prompt, chain, words in ((-1.0, 1.0, "0 or more"), (1.0, float("nan"), "a number"), (0.0, 0.0, "both 0")):
        with pytest.raises(PrunusError, match=words):
            PruneRecipe(prompt_weight=prompt, chain_weight=chain)
