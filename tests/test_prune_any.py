"""Pruning of decoders that no table lists: counts, a brute force on the whole model, what stays as it is, loading."""

import json
from typing import Any

import pytest
import torch
from random_models import make_random_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.architecture import find_layers
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError

# Fused projections, norms on both sides, attention beside the MLP, latent attention, mixtures, state spaces, tensors
# under other names on disk, keys and values of earlier blocks, and language models with a vision tower.
TYPES = (
    *("mistral", "phi3", "gemma2", "glm4", "cohere2", "deepseek_v3", "mixtral", "gpt_oss", "granitemoe", "qwen3_next"),
    *("lfm2", "mamba2", "falcon", "gemma4_text", "gemma3", "qwen3_5"),
)
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models


@pytest.fixture
def recipe(tmp_path):
    """A recipe that reads a few sequences of token ids, two of them shorter."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 120, (n,), generator=generator).tolist() for n in (24, 24, 16, 24, 16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"token_ids": row}) for row in rows))

    def make(**changes):
        common = {"calibration": str(tmp_path / "rows.jsonl"), "samples": len(rows), "seqlen": 24, "sparsity": 0.5}
        return prunus.PruneRecipe(**(common | changes))

    return make


def rows_of(tmp_path):
    return [json.loads(line)["token_ids"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]


def by_wanda_on_the_whole_model(folder, source, rows):
    """Block by block: inputs of the dense block after pruned ones, half of each row to zero by |weight| times norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers = find_layers(model)[1]
    for index, layer in enumerate(layers):
        squares = {}

        def see(name, squares=squares):
            def hook(_module, inputs):
                table = inputs[0].double().reshape(-1, inputs[0].shape[-1])
                squares[name] = squares.get(name, 0) + table.square().sum(0)

            return hook

        names = [linear.name for linear in source.linears(index)]
        handles = [layer.get_submodule(name).register_forward_pre_hook(see(name)) for name in names]
        for row in rows:
            model(input_ids=torch.tensor([row]), use_cache=False)
        for handle in handles:
            handle.remove()
        for name in names:
            weight = layer.get_submodule(name).get_parameter("weight")
            order = (weight.abs().double() * squares[name].sqrt()).argsort(dim=1, stable=True)
            weight.scatter_(1, order[:, : weight.shape[1] // 2], 0.0)
    return model


@torch.no_grad()
@pytest.mark.parametrize("model_type", TYPES)
def test_wanda_equals_a_brute_force_on_the_whole_model(tmp_path, recipe, model_type):
    folder = tmp_path / "model"
    make_random_model(model_type, folder)
    told = prunus.prune(folder, tmp_path / "out", recipe())
    source, made = Checkpoint(folder), Checkpoint(tmp_path / "out")
    expected = by_wanda_on_the_whole_model(folder, source, rows_of(tmp_path))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    differing = sum(int(((a == 0) != (b == 0)).sum()) for a, b in pairs(model, expected))
    assert differing <= 4, "a score of two that are nearly equal"
    assert told["linears"] == sum(len(source.linears(index)) for index in range(source.blocks)) > 0
    for index in range(source.blocks):
        block = made.read_block(index)
        for linear in source.linears(index):
            weight = block[f"{linear.name}.weight"]
            assert (weight == 0).sum(1).eq(linear.shape_OI[1] // 2).all(), linear.name
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def pairs(one, other):
    return zip((p for _, p in one.named_parameters()), (p for _, p in other.named_parameters()), strict=True)


@pytest.mark.parametrize("model_type", ["phi3", "deepseek_v3", "gemma3", "granitemoe"])
def test_what_is_not_pruned_stays_as_it_is_on_disk(tmp_path, recipe, model_type):
    """Routers, experts, norms and vision towers: bit for bit and under their names."""
    folder = tmp_path / "model"
    make_random_model(model_type, folder)
    prunus.prune(folder, tmp_path / "out", recipe(method="sparsegpt", propagation="staged"))
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    source = Checkpoint(folder)
    places = [(index, linear.name) for index in range(source.blocks) for linear in source.linears(index)]
    pruned = {name for index, linear in places for name in source.weight_sources(index, linear)}
    assert set(before) == set(after) > pruned
    assert all(torch.equal(before[name], after[name]) == (name not in pruned) for name in before)
    assert any("vision" in name for name in before) == (model_type == "gemma3")


@pytest.mark.parametrize(
    ("model_type", "says"),
    {
        "bert": "its tokens see later ones, so it is an encoder",
        "bart": "half of a model with an encoder",
        "zamba": "blocks share weights",
        "inkling2_text": "cannot be run block by block: block 3 is called with something made of earlier hidden states",
        "gpt2": "has no Linear that can be pruned",
    }.items(),
)
def test_what_cannot_be_pruned_is_refused_in_a_line(tmp_path, recipe, model_type, says):
    make_random_model(model_type, tmp_path / "model")
    with pytest.raises(PrunusError, match=says):
        prunus.prune(tmp_path / "model", tmp_path / "out", recipe())
    assert not list(tmp_path.glob("out*"))
