"""prune(): masks against transformers' own forward, untouched tensors, scope, propagation, reload, manifest."""

import json
import os
from fractions import Fraction
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ATTENTION, FAMILIES, make_model, random_rows
from tiny_models import LINEARS as ALL
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning.calibration import hidden_states as hidden_module
from prunus.pruning.calibration import statistics as hessian_module
from prunus.pruning.calibration.statistics import Hessian, InputStats
from prunus.pruning.masks import Target
from prunus.pruning.methods import METHODS
from prunus.recipes import PruneRecipe, QuantizeRecipe, WidthRecipe

SCOPES, DTYPES = ("all", "attention", "mlp"), (torch.float32, torch.bfloat16, torch.float16)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, random_rows(12, 50))
    return path


def write_rows(path, sequences):
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in sequences))


def recipe(rows, **changes):
    usual = {"calibration": str(rows), "sequences": 12, "sparsity": 0.5}
    return PruneRecipe(**usual | changes)


def weights(folder):
    opened = Checkpoint(folder)
    return {name: opened.read(name) for name in sorted(opened.tensors)}


def wanda_by_whole_model(folder, sequences, sparsity, propagation):
    """Prune a transformers model in memory: hooks on all Linears, the whole forward again for every block."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pruned = {}
    for index, block in enumerate(model.model.layers):
        squares = {}

        def watch(name, squares=squares):
            def hook(_module, inputs):
                total = inputs[0].double().pow(2).flatten(0, -2).sum(0)
                squares[name] = squares.get(name, 0) + total

            return hook

        linears = {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
        handles = [m.register_forward_pre_hook(watch(n)) for n, m in linears.items()]
        with torch.inference_mode():
            for ids in sequences:
                model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            weight = linear.weight.data.clone()
            scores = weight.abs() * squares[name].sqrt().float()
            count = round(Fraction(str(sparsity)) * weight.shape[1])
            weight.scatter_(1, scores.sort(dim=1, stable=True).indices[:, :count], 0)
            pruned[f"model.layers.{index}.{name}.weight"] = weight
            if propagation == "pruned":
                linear.weight.data = weight
    return pruned


def wanda_by_running_again(folder, sequences, sparsity, linears):
    """Slow reference of `true_sequential`: the whole forward again before each group of Linears."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pruned = {}
    for index, block in enumerate(model.model.layers):
        for group in (LINEARS[:3], LINEARS[3:4], LINEARS[4:6], LINEARS[6:]):
            names = [n for n, _ in block.named_modules() if n.rpartition(".")[2] in group and n in linears]
            for name, weight in prune_group(model, block, names, sequences, sparsity).items():
                pruned[f"model.layers.{index}.{name}.weight"] = block.get_submodule(name).weight.data = weight
    return pruned


def prune_group(model, block, names, sequences, sparsity):
    squares = dict.fromkeys(names, 0)

    def watch(name):
        def hook(_module, inputs):
            squares[name] += inputs[0].double().pow(2).flatten(0, -2).sum(0)

        return hook

    handles = [block.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    with torch.inference_mode():
        for ids in sequences:
            model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    pruned = {}
    for name in names:
        weight = block.get_submodule(name).weight.data.clone()
        scores = weight.abs() * torch.as_tensor(squares[name]).sqrt().float()
        count = round(Fraction(str(sparsity)) * weight.shape[1])
        pruned[name] = weight.scatter_(1, scores.sort(dim=1, stable=True).indices[:, :count], 0)
    return pruned


@pytest.mark.slow
@pytest.mark.parametrize(("family", "scope"), list(zip(FAMILIES, SCOPES, strict=True)))
def test_true_sequential_equals_running_the_block_again_before_each_group(tmp_path, family, scope):
    folder = make_model(tmp_path / "m", family)
    sequences = [row[:length] for row, length in zip(random_rows(8, 60), [60, 20, 33, 60, 20, 7, 60, 1], strict=True)]
    write_rows(tmp_path / "rows.jsonl", sequences)
    asked = recipe(tmp_path / "rows.jsonl", sequences=8, sparsity=0.4, propagation="true_sequential", scope=scope)
    linears = [name for name in ALL if scope == "all" or (scope == "attention") == (name in ATTENTION)]
    expected = wanda_by_running_again(folder, sequences, 0.4, linears)
    for offload in (False, True):
        prunus.prune(folder, tmp_path / "out", asked, offload=offload, overwrite=True)
        got = weights(tmp_path / "out")
        assert len(expected) == 3 * len(linears)
        for name, weight in expected.items():
            assert torch.equal(got[name], weight), name


@pytest.mark.slow
@pytest.mark.parametrize("propagation", ["pruned", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_masks_equal_those_of_the_whole_model(tmp_path, family, propagation):
    folder = make_model(tmp_path / "m", family)
    sequences = [row[:length] for row, length in zip(random_rows(8, 60), [60, 20, 33, 60, 20, 7, 60, 1], strict=True)]
    write_rows(tmp_path / "rows.jsonl", sequences)
    asked = recipe(tmp_path / "rows.jsonl", sequences=8, sparsity=0.4, propagation=propagation)
    prunus.prune(folder, tmp_path / "out", asked)
    expected = wanda_by_whole_model(folder, sequences, 0.4, propagation)
    got = weights(tmp_path / "out")
    assert len(expected) == 21
    for name, weight in expected.items():
        assert torch.equal(got[name], weight), name


@pytest.mark.slow
def test_propagation_matters(tmp_path, rows):
    folder = make_model(tmp_path / "m")
    results = []
    for propagation in ("pruned", "dense", "true_sequential"):
        prunus.prune(folder, tmp_path / propagation, recipe(rows, propagation=propagation))
        results.append(weights(tmp_path / propagation))
    first = {name: torch.equal(results[0][name], results[2][name]) for name in results[0] if ".0." in name}
    assert all(first[f"model.layers.0.self_attn.{name}.weight"] for name in LINEARS[:3])
    assert not all(first.values()), "true_sequential: o, gate, up and down of the first block see pruned ones already"
    same = {name: torch.equal(results[0][name], results[1][name]) for name in results[0] if "proj" in name}
    assert all(equal for name, equal in same.items() if ".0." in name)
    assert not all(equal for name, equal in same.items() if ".2." in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scope", "dtype"),
    [(m, s, DTYPES[(i + j) % 3]) for i, m in enumerate(METHODS) for j, s in enumerate(SCOPES)],
)
def test_only_the_linears_in_scope_change_and_reach_their_share(tmp_path, rows, method, scope, dtype):
    folder = make_model(tmp_path / "m", "qwen2", dtype=dtype, tied=True)
    summary = prunus.prune(folder, tmp_path / "out", recipe(rows, method=method, scope=scope, sparsity=0.3))
    before, after = weights(folder), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        kind = "attention" if "self_attn" in name else "mlp"
        assert after[name].dtype == dtype
        if "proj.weight" in name and scope in ("all", kind):
            kept = after[name] != 0
            assert torch.equal(after[name][kept], weight[kept]) != METHODS[method].updates
            rows_or_all = after[name] if METHODS[method].group == "row" else after[name].flatten()[None]
            size = rows_or_all.shape[1]
            assert set((rows_or_all == 0).sum(1).tolist()) == {round(Fraction(3, 10) * size)}
            share = (after[name] == 0).double().mean().item()
            assert summary.linear_sparsity[name.removesuffix(".weight")] == pytest.approx(share, abs=1e-12)
        else:
            assert torch.equal(after[name].view(torch.uint8), weight.view(torch.uint8)), name
    assert len(summary.linear_sparsity) == {"all": 21, "attention": 12, "mlp": 9}[scope]


@pytest.mark.parametrize("method", METHODS)
def test_sparsity_zero_changes_nothing(tmp_path, rows, method):
    folder = make_model(tmp_path / "m", "qwen3")
    prunus.prune(folder, tmp_path / "out", recipe(rows, method=method, sparsity=0.0))
    assert Checkpoint(tmp_path / "out").checksum() == Checkpoint(folder).checksum()


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False), ("qwen3", True)])
def test_result_loads_in_transformers_and_says_what_was_done(tmp_path, rows, family, tied):
    folder = make_model(tmp_path / "m", family, tied=tied)
    (folder / "pytorch_model.bin").write_bytes(b"not to be copied")
    (folder / "prunus_profile.toml").write_text('format = 1\nname = "lab"\nextends = "think-tags"\n')
    summary = prunus.prune(folder, tmp_path / "out", recipe(rows))
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied
    got = {n: p for n, p in model.named_parameters() if n.endswith("proj.weight")}
    assert {(p == 0).double().mean().item() for p in got.values()} == {0.5}
    assert len(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)[0]) > 3
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    copied = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "prunus_profile.toml")
    for name in copied:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert not list((tmp_path / "out").glob("*.bin"))

    (step,) = Checkpoint(tmp_path / "out").manifest.data["history"]
    assert PruneRecipe.from_json(step["recipe"]) == recipe(rows)
    assert step["source"] == {"name": str(folder), "checksum": Checkpoint(folder).checksum()}
    assert step["calibration"]["sequences"] == 12 and step["calibration"]["tokens"] == 600
    assert step["sparsity"] == summary.linear_sparsity and len(step["sparsity"]) == 21
    assert set(step["versions"]) == {"prunus", "torch", "transformers"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "out", "rows.jsonl"]


@pytest.mark.slow
def test_large_models_stay_in_one_file_per_block(tmp_path, rows, monkeypatch):
    folder = make_model(tmp_path / "m")
    prunus.prune(folder, tmp_path / "one", recipe(rows))
    monkeypatch.setattr("prunus.checkpoint.writer.SINGLE_FILE_BYTES", 1000)
    prunus.prune(folder, tmp_path / "many", recipe(rows))
    assert [p.name for p in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    assert len(list((tmp_path / "many").glob("model-0000?-of-00004.safetensors"))) == 4
    assert Checkpoint(tmp_path / "one").checksum() == Checkpoint(tmp_path / "many").checksum()
    states = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "many")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_calibration_is_kept_and_replays_to_the_same_masks(tmp_path):
    folder = make_model(tmp_path / "m")
    (tmp_path / "text.txt").write_text("Compute 97-3-33. Map c g, g s. From c take 2 steps. " * 60)
    asked = {"sequences": 6, "seqlen": 40, "sparsity": 0.5}
    prunus.prune(folder, tmp_path / "out", PruneRecipe(calibration=str(tmp_path / "text.txt"), **asked))
    (tmp_path / "text.txt").unlink()
    again = PruneRecipe(calibration=f"traces:{tmp_path / 'out' / 'calibration.jsonl'}", **asked)
    prunus.prune(folder, tmp_path / "again", again)
    first, second = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "again")
    assert first.checksum() == second.checksum()
    shas = [c.manifest.data["history"][0]["calibration"]["sha256"] for c in (first, second)]
    assert shas[0] == shas[1]


@pytest.mark.slow
def test_batches_and_offloading_do_not_change_masks(tmp_path, rows, monkeypatch):
    folder = make_model(tmp_path / "m", "qwen3")
    prunus.prune(folder, tmp_path / "plain", recipe(rows))
    prunus.prune(folder, tmp_path / "offloaded", recipe(rows), offload=True)
    monkeypatch.setattr(hidden_module, "BATCH_TOKENS", 1)
    prunus.prune(folder, tmp_path / "single", recipe(rows))
    sums = {Checkpoint(tmp_path / name).checksum() for name in ("plain", "offloaded", "single")}
    assert len(sums) == 1
    assert not list(tmp_path.glob("*/hidden.bin"))


def test_head_never_runs(tmp_path, rows, monkeypatch):
    folder = make_model(tmp_path / "m")
    ran = []
    forward = torch.nn.Linear.forward

    def watched(self, x):
        ran.append(tuple(self.weight.shape))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    prunus.prune(folder, tmp_path / "out", recipe(rows))
    assert (32, 32) in ran and (368, 32) not in ran


def test_steps_add_up(tmp_path, rows):
    folder = make_model(tmp_path / "m")
    prunus.prune(folder, tmp_path / "a", recipe(rows, method="magnitude", scope="mlp", sparsity=0.25))
    prunus.prune(tmp_path / "a", tmp_path / "b", recipe(rows, sparsity=0.5))
    history = Checkpoint(tmp_path / "b").manifest.data["history"]
    assert [step["recipe"]["method"] for step in history] == ["magnitude", "wanda"]
    assert history[1]["source"]["checksum"] == Checkpoint(tmp_path / "a").checksum()
    assert set(history[1]["sparsity"].values()) == {0.5}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_dry_run_writes_nothing_and_counts_right(tmp_path, rows, method):
    folder = make_model(tmp_path / "m")
    asked = recipe(rows, method=method, sparsity=0.3)
    said = prunus.plan(folder, asked, tmp_path / "deep" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "rows.jsonl"]
    prunus.prune(folder, tmp_path / "deep" / "out", asked)
    linears = [w for n, w in weights(tmp_path / "deep" / "out").items() if "proj" in n]
    zeros, total = sum((w == 0).sum().item() for w in linears), sum(w.numel() for w in linears)
    assert (said.zeros, said.weights, said.blocks, said.linears) == (zeros, total, 3, 21)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PruneRecipe, WidthRecipe, QuantizeRecipe])
def test_dry_run_says_the_disk_that_hidden_states_take(tmp_path, rows, kind):
    folder = make_model(tmp_path / "m")
    sequences, numbered = [
        kind(calibration=str(rows), seqlen=64, **many) for many in ({"sequences": 9}, {"calibration_tokens": 9 * 64})
    ]
    said = [
        prunus.plan(folder, [asked], tmp_path / "out", offload=offload).to_json()["disk"]
        for asked in (sequences, numbered)
        for offload in (True, False)
    ]
    assert said[0] == said[2] != said[1] == said[3]


def test_old_output_is_replaced_only_by_a_complete_new_one(tmp_path, rows):
    folder = make_model(tmp_path / "m")
    prunus.prune(folder, tmp_path / "out", recipe(rows))
    with pytest.raises(PrunusError, match="exists; choose another output or add --overwrite"):
        prunus.prune(folder, tmp_path / "out", recipe(rows, sparsity=0.2))
    old = Checkpoint(tmp_path / "out").checksum()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"token_ids": [9999]}\n')
    with pytest.raises(PrunusError, match="token id 9999"):
        prunus.prune(folder, tmp_path / "out", recipe(bad), overwrite=True)
    assert Checkpoint(tmp_path / "out").checksum() == old
    assert prunus.prune(folder, tmp_path / "out", recipe(rows, sparsity=0.2), overwrite=True).sparsity < 0.25
    assert Checkpoint(tmp_path / "out").checksum() != old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "m", "out", "rows.jsonl"]


def test_folders_whose_names_are_not_utf_8(tmp_path, rows):
    """The manifest, written last, could not hold the name."""
    folder, out = make_model(tmp_path / "m"), tmp_path / os.fsdecode(b"out\xff")
    folder = folder.rename(tmp_path / os.fsdecode(b"m\xff"))
    prunus.prune(folder, out, recipe(rows))
    assert json.loads((out / "prunus.json").read_text())["history"][0]["source"]["name"] == str(tmp_path / "m?")


def test_tensors_that_no_block_uses_are_copied(tmp_path, rows):
    folder = make_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    extra = {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.rand(4), "counts": torch.arange(3)}
    save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})
    prunus.prune(folder, tmp_path / "out", recipe(rows))
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(got[name], tensor) for name, tensor in extra.items())


def test_inputs_that_calibration_never_used_are_reported_and_go_first(tmp_path, rows):
    folder = make_model(tmp_path / "m", blocks=2)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][[3, 8]] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    summary = prunus.prune(folder, tmp_path / "out", recipe(rows, sparsity=2 / 32))
    assert any("3 Linears" in w and "model.layers.1.self_attn.q_proj (2)" in w for w in summary.warnings)
    assert (weights(tmp_path / "out")["model.layers.1.self_attn.v_proj.weight"][:, [3, 8]] == 0).all()


def test_blocks_can_run_in_another_dtype_than_they_are_stored(tmp_path, rows):
    folder = make_model(tmp_path / "m", dtype=torch.bfloat16)
    prunus.prune(folder, tmp_path / "out", recipe(rows, dtype="float32"))
    before, after = weights(folder), weights(tmp_path / "out")
    assert all(after[name].dtype == torch.bfloat16 for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before if "proj.weight" not in name)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_patterns_reach_every_linear_and_tails_are_reported(tmp_path, rows, method):
    folder = make_model(tmp_path / "m", intermediate_size=50)
    asked = PruneRecipe(calibration=str(rows), sequences=12, method=method, pattern="1:4")
    said = prunus.plan(folder, asked, tmp_path / "out")
    summary = prunus.prune(folder, tmp_path / "out", asked)
    (tail,) = [warning for warning in summary.warnings if "1:4" in warning]
    assert tail in said.warnings and "mlp.down_proj (2 of 50)" in tail and "q_proj" not in tail
    linears = {name: w for name, w in weights(tmp_path / "out").items() if "proj.weight" in name}
    assert said.zeros == sum((w == 0).sum().item() for w in linears.values())
    for name, weight in linears.items():
        covered = weight.shape[1] // 4 * 4
        assert ((weight[:, :covered] != 0).unflatten(1, (-1, 4)).sum(2) == 1).all(), name
        assert (weight[:, covered:] != 0).all()


def sparsegpt_by_whole_model(folder, sequences):
    """Hooks on a transformers model, block after block, with a Hessian per Linear in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pruned = {}
    for index, block in enumerate(model.model.layers):
        products = {}

        def watch(name, products=products):
            def hook(_module, read):
                tokens = read[0].double().flatten(0, -2)
                products[name] = products.get(name, 0) + tokens.T @ tokens

            return hook

        linears = {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
        handles = [m.register_forward_pre_hook(watch(n)) for n, m in linears.items()]
        with torch.inference_mode():
            for ids in sequences:
                model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            inputs = InputStats(products[name].diagonal().sqrt(), 0, hessian=Hessian(products[name].float()))
            linear.weight.data = METHODS["sparsegpt"].prune(linear.weight.data, inputs, Target(0.5))
            pruned[f"model.layers.{index}.{name}.weight"] = linear.weight.data
    return pruned


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_sparsegpt_equals_that_of_the_whole_model(tmp_path, family):
    folder = make_model(tmp_path / "m", family)
    sequences = [row[:length] for row, length in zip(random_rows(6, 60), [60, 20, 33, 60, 20, 57], strict=True)]
    write_rows(tmp_path / "rows.jsonl", sequences)
    asked = recipe(tmp_path / "rows.jsonl", sequences=6, method="sparsegpt")
    prunus.prune(folder, tmp_path / "out", asked)
    got = weights(tmp_path / "out")
    for name, weight in sparsegpt_by_whole_model(folder, sequences).items():
        assert ((got[name] == 0) == (weight == 0)).double().mean() > 0.99, name
        torch.testing.assert_close(got[name].norm(), weight.norm(), rtol=2e-3, atol=0)


@pytest.mark.slow
def test_update_keeps_the_mask_of_the_first_block(tmp_path, rows):
    folder = make_model(tmp_path / "m")
    prunus.prune(folder, tmp_path / "wanda", recipe(rows))
    prunus.prune(folder, tmp_path / "updated", recipe(rows, update="obs"))
    plain, updated = weights(tmp_path / "wanda"), weights(tmp_path / "updated")
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(plain[name] == 0, updated[name] == 0) and not torch.equal(plain[name], updated[name])
    with pytest.raises(PrunusError, match="sparsegpt updates weights itself; leave --update out"):
        prunus.prune(folder, tmp_path / "x", recipe(rows, method="sparsegpt", update="obs"))


def test_damping_beyond_the_usual_is_in_the_manifest(tmp_path, rows, monkeypatch):
    factor = hessian_module.inverse_factor
    calls = []

    def fails_once(matrix):
        calls.append(1)
        return None if len(calls) == 1 else factor(matrix)

    monkeypatch.setattr(hessian_module, "inverse_factor", fails_once)
    folder = make_model(tmp_path / "m")
    prunus.prune(folder, tmp_path / "out", recipe(rows, method="sparsegpt"))
    (step,) = Checkpoint(tmp_path / "out").manifest.data["history"]
    said = "block 0, self_attn.q_proj: the Hessian needed damping 0.1 instead of 0.01"
    assert step["warnings"].count(said) == 1
    assert len(calls) == 1 + 3 * 4, "Linears that read the same input share the factor"
