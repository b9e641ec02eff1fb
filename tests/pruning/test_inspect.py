"""inspect(): what any model is made of; counts against a plain count over all tensors; N:M patterns; history; JSON."""

import json

import pytest
import torch
from click.testing import CliRunner
from random_models import make_random_model
from safetensors.torch import load_file, save_file
from tiny_models import make_model

import prunus
from prunus.checkpoint.model_folder import EngineFolder
from prunus.checkpoint.safetensors_file import Stored
from prunus.cli import cli
from prunus.errors import PrunusError
from prunus.pruning.inspection import PATTERNS, find_patterns
from prunus.recipes import DropRecipe, PruneRecipe


def test_counts_are_those_of_the_tensors(tmp_path):
    folder = make_model(tmp_path / "m", "qwen2", dtype=torch.bfloat16, tied=True)
    prunus.prune(folder, tmp_path / "out", PruneRecipe(method="magnitude", sparsity=0.3, scope="mlp"))
    found = prunus.inspect(tmp_path / "out").to_json()
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    linears = {n.removesuffix(".weight"): t for n, t in tensors.items() if n.endswith("proj.weight")}
    assert {row["linear"]: row["sparsity"] for row in found["linears"]} == {
        name: (tensor == 0).double().mean().item() for name, tensor in linears.items()
    }
    zeros, weights = sum((t == 0).sum().item() for t in linears.values()), sum(t.numel() for t in linears.values())
    assert found["sparsity"] == zeros / weights
    assert (found["prunable"], found["nonzero"]) == (weights, weights - zeros)
    assert found["parameters"] == sum(t.numel() for t in tensors.values())
    assert found["weight_bytes"] == 2 * found["parameters"] and found["prunable_bytes"] == 2 * weights
    for row in found["blocks"]:
        inside = [t for name, t in linears.items() if f"layers.{row['block']}." in name]
        assert row["zeros"] == sum((t == 0).sum().item() for t in inside)
        assert row["weights"] == sum(t.numel() for t in inside)
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert len(kinds) == 7 and {kinds[k]["sparsity"] == 0 for k in kinds if "self_attn" in k} == {True}
    assert all(row["sparsity"] == pytest.approx(0.3, abs=1e-3) for row in kinds.values() if row["part"] == "mlp")
    assert (found["family"], found["dtype"], len(found["blocks"])) == ("qwen2", "bfloat16", 3)


def test_dense_model_and_tiny_have_no_pattern_and_no_history():
    found = prunus.inspect("tiny", weights=True).to_json()
    assert found["patterns"] == [] and found["history"] == [] and found["sparsity"] < 0.01
    json.dumps(found)


def apply_pattern(weight, keep, group):
    """Keep the first `keep` of every `group` inputs, shuffled within the group."""
    generator = torch.Generator().manual_seed(keep)
    rank = torch.rand(weight.shape[0], weight.shape[1] // group, group, generator=generator).argsort(-1)
    return weight * (rank < keep).flatten(1)


@pytest.mark.parametrize(("keep", "group"), PATTERNS)
def test_patterns_are_found_and_only_those_that_follow(keep, group):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    found = find_patterns(apply_pattern(weight, keep, group))
    assert f"{keep}:{group}" in found
    for n, m in PATTERNS:
        groups = apply_pattern(weight, keep, group).view(64, -1, m)
        assert (f"{n}:{m}" in found) == all(sum(x != 0 for x in g) <= n for row in groups.tolist() for g in row)


def test_one_weight_too_many_breaks_a_pattern_and_odd_widths_have_none():
    weight = apply_pattern(torch.ones(8, 16), 2, 4)
    assert "2:4" in find_patterns(weight)
    weight[5] = 1
    assert find_patterns(weight) == []
    assert find_patterns(torch.zeros(4, 7)) == []
    assert find_patterns(torch.zeros(4, 12)) == ["1:2", "1:4", "2:4"]


@pytest.mark.slow
def test_patterns_of_the_model_are_those_of_every_linear(tmp_path):
    folder = make_model(tmp_path / "m", hidden_size=32, intermediate_size=64)
    tensors = load_file(folder / "model.safetensors")
    pruned = {n: apply_pattern(t, 2, 4) if n.endswith("proj.weight") else t for n, t in tensors.items()}
    save_file(pruned, folder / "model.safetensors", {"format": "pt"})
    assert prunus.inspect(folder, weights=True).to_json()["patterns"] == ["2:4", "4:8", "8:16"]
    pruned["model.layers.2.mlp.down_proj.weight"] = tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(pruned, folder / "model.safetensors", {"format": "pt"})
    found = prunus.inspect(folder, weights=True).to_json()
    assert found["patterns"] == []
    assert {row["linear"] for row in found["linears"] if not row["patterns"]} == {"model.layers.2.mlp.down_proj"}


@pytest.mark.slow
def test_history_tells_what_was_done_in_order(tmp_path):
    folder = make_model(tmp_path / "m")
    prunus.prune(folder, tmp_path / "a", PruneRecipe(method="magnitude", sparsity=0.25))
    prunus.drop(tmp_path / "a", tmp_path / "b", DropRecipe(blocks="1,"))
    history = prunus.inspect(tmp_path / "b").to_json()["history"]
    assert [row["action"] for row in history] == ["prune", "drop"]
    assert history[0]["recipe"] == {"method": "magnitude", "sparsity": 0.25}
    assert PruneRecipe.from_json(history[0]["recipe"]) == PruneRecipe(method="magnitude", sparsity=0.25)
    assert history[1]["recipe"] == {"method": "shortgpt", "blocks": "1,"}
    assert history[1]["blocks_removed"] == [1] and history[1]["source"] == str(tmp_path / "a")


def uses(found):
    return {row["use"]: (row["possible"], row["note"]) for row in found["uses"]}


def test_a_model_is_described_without_reading_weights(tmp_path, monkeypatch):
    """A hybrid: two kinds of block, each with its own Linears."""
    make_random_model("lfm2", tmp_path, layer_types=["conv", "full_attention"] * 2)
    tensors = load_file(tmp_path / "model.safetensors")

    def never(_self):
        raise AssertionError("weights are read")

    monkeypatch.setattr(Stored, "read", never)
    found = prunus.inspect(tmp_path).to_json()
    assert (found["family"], found["class"], found["number_of_blocks"]) == ("lfm2", "Lfm2ForCausalLM", 4)
    assert (found["refused"], found["history"]) == (None, [])
    assert "sparsity" not in found and "linears" not in found
    groups = [(row["blocks"], row["part"], row["linears"]) for row in found["groups"]]
    assert groups == [
        ([0, 2], "attention", ["conv.in_proj"]),
        ([0, 2], "attention", ["conv.out_proj"]),
        ([0, 2], "mlp", ["feed_forward.w1", "feed_forward.w3"]),
        ([0, 2], "mlp", ["feed_forward.w2"]),
        ([1, 3], "attention", [f"self_attn.{name}_proj" for name in "qkv"]),
        ([1, 3], "attention", ["self_attn.out_proj"]),
        ([1, 3], "mlp", ["feed_forward.w1", "feed_forward.w3"]),
        ([1, 3], "mlp", ["feed_forward.w2"]),
    ]
    for row in found["groups"]:
        for local, shape in zip(row["linears"], row["shapes"], strict=True):
            assert tensors[f"model.layers.{row['blocks'][0]}.{local}.weight"].shape == tuple(shape)
    listed = {
        f"model.layers.{index}.{local}.weight"
        for row in found["groups"]
        for index in row["blocks"]
        for local in row["linears"]
    }
    assert found["prunable"] == sum(tensors[name].numel() for name in listed)
    assert found["of_parameters"] == pytest.approx(found["prunable"] / found["parameters"])
    dense = {(row["matrix"], tuple(row["blocks"])): row["why"] for row in found["left_dense"]}
    assert dense == {
        ("conv.conv.weight", (0, 2)): "not a Linear",
        ("model.embed_tokens.weight", ()): "embedding, and head",
    }
    assert all(possible for possible, _ in uses(found).values())
    json.dumps(found)


@pytest.mark.slow
def test_what_chooses_experts_and_experts_are_named_once_each(tmp_path):
    make_random_model("mixtral", tmp_path)
    found = prunus.inspect(tmp_path).to_json()
    dense = {row["matrix"]: row["why"] for row in found["left_dense"]}
    assert dense["mlp.gate.weight"] == "not a Linear"
    experts = [row["linears"] for row in found["groups"] if "experts" in row["linears"][0]]
    assert experts == [["mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"], ["mlp.experts.*.down_proj"]]
    assert dense["lm_head.weight"] == "head" and dense["model.embed_tokens.weight"] == "embedding"
    assert len(dense) == len(found["left_dense"])


def test_a_model_that_cannot_be_run_by_blocks_is_described_with_the_check_that_fails(tmp_path):
    make_random_model("inkling2_text", tmp_path)
    found = prunus.inspect(tmp_path).to_json()
    reason = "an argument of block 3 depends on earlier hidden states"
    assert found["refused"].endswith(reason)
    assert found["parameters"] == sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values())
    assert all(not possible and note.endswith(reason) for possible, note in uses(found).values())
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path)])
    assert shown.exit_code == 0 and reason in " ".join(shown.output.split())


def test_a_model_whose_blocks_share_weights_says_what_cannot_be_done(tmp_path):
    make_random_model("zamba", tmp_path / "model")
    found = uses(prunus.inspect(tmp_path / "model").to_json())
    reason = "blocks share weights, so they cannot be pruned one by one"
    assert {use for use, (possible, note) in found.items() if not possible and note == reason} == {"prune"}
    assert not found["drop"][0] or "shares weights" in found["drop"][1]
    with pytest.raises(PrunusError, match=reason):
        prunus.prune(tmp_path / "model", tmp_path / "out", prunus.PruneRecipe(method="magnitude"))


def test_the_table_in_the_terminal_says_which_blocks(tmp_path):
    make_random_model("lfm2", tmp_path, layer_types=["conv", "full_attention"] * 2)
    lines = CliRunner().invoke(cli, ["inspect", str(tmp_path)]).output.splitlines()
    rows = [" ".join(line.split()) for line in lines]
    assert "0, 2 feed_forward.w1, feed_forward.w3 mlp 96x64, 96x64" in rows or any(
        row.startswith("0, 2 feed_forward.w1, feed_forward.w3 mlp") for row in rows
    )
    assert "prune yes" in rows


@pytest.mark.slow
def test_drop_is_said_to_be_impossible_where_blocks_know_their_place(tmp_path):
    make_random_model("diffllama", tmp_path / "model")
    possible, note = uses(prunus.inspect(tmp_path / "model").to_json())["drop"]
    assert not possible and "lambda_init" in note
    with pytest.raises(PrunusError, match="lambda_init"):
        prunus.drop(tmp_path / "model", tmp_path / "out", DropRecipe(blocks="1,"))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_that_an_engine_loads_are_counted_by_kind(tmp_path, tied):
    """A head that is tied to the embedding is loaded once, also where a file has it twice."""
    make_random_model("qwen3", tmp_path, tie_word_embeddings=tied, vocab_size=128, intermediate_size=128)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    own = sum(tensor.nbytes for name, tensor in tensors.items() if "embed" not in name and "head" not in name)
    found = prunus.inspect(tmp_path).to_json()["bytes"]
    assert found == {
        "quantised": 0, "scales": 0, "embeddings": embedding.nbytes, "head": 0 if tied else embedding.nbytes,
        "others": own,
    }  # fmt: skip
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path)]).output
    assert f"embeddings {embedding.nbytes / 1e6:,.1f} MB" in shown


def test_eight_bit_floats_and_their_scales_are_bytes_of_their_own(tmp_path):
    make_random_model("qwen3", tmp_path)
    tensors, numbers = load_file(tmp_path / "model.safetensors"), 0
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"], numbers = torch.ones(1, 1), numbers + tensors[name].numel()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    found = EngineFolder(tmp_path).engine_bytes
    assert (found["quantised"], found["scales"]) == (numbers, 4 * sum("scale" in name for name in tensors))
    assert sum(found.values()) == sum(tensor.nbytes for tensor in tensors.values())
