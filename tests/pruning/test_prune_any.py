"""Pruning of decoders that no table lists: counts, a brute force on the whole model, what stays as it is, loading."""

import json
from typing import Any

import pytest
import torch
from random_models import TYPES as TYPES_THERE
from random_models import make_random_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import prunus
from prunus.checkpoint.architecture import find_layers
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError

# Fused projections, norms on both sides, attention beside the MLP, latent attention, mixtures, state spaces, tensors
# under other names on disk, keys and values of earlier blocks, and language models with a vision tower.
TYPES = (
    *("mistral", "phi3", "gemma2", "glm4", "cohere2", "deepseek_v3", "mixtral", "gpt_oss", "granitemoe", "qwen3_next"),
    *("lfm2", "mamba2", "falcon", "gemma4_text", "gemma3", "qwen3_5", "gpt2"),
)
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models


@pytest.fixture
def recipe(tmp_path):
    """A recipe that reads a few sequences of token ids, two of them shorter."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 120, (n,), generator=generator).tolist() for n in (24, 24, 16, 24, 16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"token_ids": row}) for row in rows))

    def make(**changes):
        common = {"calibration": str(tmp_path / "rows.jsonl"), "sequences": len(rows), "seqlen": 24, "sparsity": 0.5}
        return prunus.PruneRecipe(**(common | changes))

    return make


def rows_of(tmp_path):
    return [json.loads(line)["token_ids"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]


def by_wanda(weight_OI, tokens_SI):
    """Half of each row to zero by |weight| times the norm of its input."""
    order = (weight_OI.abs().double() * tokens_SI.square().sum(0).sqrt()).argsort(dim=1, stable=True)
    return weight_OI.scatter(1, order[:, : weight_OI.shape[1] // 2], 0.0)


def by_sparsegpt(weight_OI, tokens_SI):
    """Half of a matrix of at most 128 columns to zero, each column making up in all after it, as the paper derives it:
    the inverse Hessian of the columns that are left, by elimination of one after the other, in float64."""
    assert weight_OI.shape[1] <= 128
    hessian_II = tokens_SI.T @ tokens_SI
    dead_I = hessian_II.diagonal() == 0
    mean = hessian_II.diagonal()[~dead_I].mean()
    hessian_II.diagonal()[dead_I] = mean
    inverse_II = torch.linalg.inv(hessian_II + 0.01 * mean * torch.eye(len(hessian_II)))
    inverses = []
    for column in range(len(inverse_II)):
        inverses.append(inverse_II)
        row_I = inverse_II[column]
        inverse_II = inverse_II - torch.outer(row_I, row_I) / row_I[column]
    moved_OI = weight_OI.double()
    score_OI = moved_OI.square() / torch.stack([one[i, i] for i, one in enumerate(inverses)])
    score_OI[:, dead_I] = 0
    mask_OI = torch.zeros(weight_OI.shape, dtype=torch.bool)
    mask_OI.view(-1)[score_OI.flatten().argsort(stable=True)[: weight_OI.numel() // 2]] = True
    for column, inverse_II in enumerate(inverses):
        error_O = moved_OI[:, column] / inverse_II[column, column] * mask_OI[:, column]
        moved_OI[:, column:] -= torch.outer(error_O, inverse_II[column, column:])
    return moved_OI.masked_fill(mask_OI, 0).float()


def on_the_whole_model(folder, source, rows, pruned, before=None):
    """transformers' whole model, pruned block by block: its Linears by what the dense block after pruned ones reads.

    before: a model whose blocks stand for those that are already pruned, so that rounding does not add up over blocks.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    layers, made = find_layers(model)[1], {}
    for index, layer in enumerate(layers):
        routed = {linear.name: linear for linear in source.linears(index) if linear.experts}
        seen = {linear.name: [] for linear in source.linears(index)}
        handles = [
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _module, inputs, name=name, seen=seen: seen[name].append(inputs[0].double().flatten(0, -2))
            )
            for name in seen
            if name not in routed
        ]
        called = {linear.experts: [] for linear in routed.values()}
        handles += [
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _module, args, kwargs, name=name, called=called: called[name].append((*args, *kwargs.values())),
                with_kwargs=True,
            )
            for name in called
        ]
        for row in rows:
            model(input_ids=torch.tensor([row]), use_cache=False)
        for handle in handles:
            handle.remove()
        for name, calls in called.items():
            for (expert, part), tokens in tokens_of_experts(layer.get_submodule(name), calls).items():
                seen[f"{name}.{expert}.{part}"] = tokens
        for name, linear in routed.items():
            weight_OI = matrices(layer.get_submodule(linear.experts), linear.expert[1])[name.rpartition(".")[2]]
            made[index, name] = pruned(weight_OI.clone(), torch.stack(seen.pop(name)).double())
            weight_OI.copy_(made[index, name])
        for name, found in seen.items():
            module = layer.get_submodule(name)
            weight = module.get_parameter("weight")
            turned = isinstance(module, Conv1D)
            weight_OI = pruned(weight.T if turned else weight, torch.cat(found))
            made[index, name] = weight_OI.T if turned else weight_OI
            weight.copy_(made[index, name])
        if before is not None:
            layer.load_state_dict(find_layers(before)[1][index].state_dict())
    for (index, name), weight in made.items():
        place = next(linear for linear in source.linears(index) if linear.name == name)
        if place.experts:
            module = layers[index].get_submodule(place.experts)
            matrices(module, place.expert[1])[name.rpartition(".")[2]].copy_(weight)
            continue
        layers[index].get_submodule(name).get_parameter("weight").copy_(weight)
    return model


def matrices(module, expert):
    """Views (O, I) of the matrices of one routed expert, from the layouts of transformers' classes."""
    first = (module.gate_up_proj if module.has_gate else module.up_proj).data[expert]
    down = module.down_proj.data[expert]
    if module.is_transposed:
        first, down = first.T, down.T
    if not module.has_gate:
        return {"up_proj": first, "down_proj": down}
    half = len(first) // 2
    gate, up = (first[:half], first[half:]) if module.is_concatenated else (first[::2], first[1::2])
    return {"gate_proj": gate, "up_proj": up, "down_proj": down}


def tokens_of_experts(module, calls):
    """By (expert, matrix): what it reads, token by token; of an expert that met none, of all tokens."""
    experts = {expert: [] for expert in range(module.num_experts)}
    for hidden_ND, index_NK, _ in calls:
        for x_D, chosen in zip(hidden_ND, index_NK.tolist(), strict=True):
            for expert in chosen:
                experts[expert].append(x_D)
    found = {}
    for expert, tokens in experts.items():
        tokens = tokens or [x_D for hidden_ND, _, _ in calls for x_D in hidden_ND]
        own = matrices(module, expert)
        first = torch.cat([own["gate_proj"], own["up_proj"]]) if module.has_gate else own["up_proj"]
        if not module.is_concatenated:
            first = first.view(2, len(first) // 2, -1).transpose(0, 1).flatten(0, 1)  # as _apply_gate reads it
        bias = (module.gate_up_proj_bias if module.has_gate else module.up_proj_bias)[expert] if module.has_bias else 0
        ups = [first @ x_D + bias for x_D in tokens]
        middles = [module._apply_gate(up) if module.has_gate else module.act_fn(up) for up in ups]
        found |= {(expert, part): middles if part == "down_proj" else tokens for part in own}
    return found


def check_loads(folder):
    """transformers loads a checkpoint with each tensor in its place, and it goes on with a text."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids_1T = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    written_1T = model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), **options)
    assert written_1T.shape == (1, 6)
    assert model(input_ids=ids_1T).logits.isfinite().all()
    return model


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("model_type", TYPES)
def test_wanda_equals_a_brute_force_on_the_whole_model(tmp_path, recipe, model_type, monkeypatch):
    monkeypatch.setattr("prunus.pruning.calibration.statistics.LEAST_TOKENS", 1)
    folder = tmp_path / "model"
    make_random_model(model_type, folder)
    told = prunus.prune(folder, tmp_path / "out", recipe())
    source, made = Checkpoint(folder), Checkpoint(tmp_path / "out")
    expected = on_the_whole_model(folder, source, rows_of(tmp_path), by_wanda)
    model = check_loads(tmp_path / "out")
    differing = sum(int(((a == 0) != (b == 0)).sum()) for a, b in pairs(model, expected))
    assert differing <= 4, "a score of two that are nearly equal"
    assert told.linears == sum(len(source.linears(index)) for index in range(source.blocks)) > 0
    for index in range(source.blocks):
        block = made.read_block(index)
        for linear in source.linears(index):
            weight = block[f"{linear.name}.weight"]
            assert (weight == 0).sum(1).eq(linear.shape_OI[1] // 2).all(), linear.name


# Blocks one part after the other and side by side, sliding windows, fused projections, experts, state spaces, Conv1D.
UPDATED = ("llama", "falcon", "gemma3_text", "phi3", "qwen3_moe", "bamba", "gpt2")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("model_type", UPDATED)
def test_sparsegpt_equals_a_brute_force_on_the_whole_model(tmp_path, recipe, model_type, monkeypatch):
    """But for rounding: of a thousand zeros one may lie elsewhere, which moves its row."""
    monkeypatch.setattr("prunus.pruning.calibration.statistics.LEAST_TOKENS", 1)
    folder = tmp_path / "model"
    make_random_model(model_type, folder, **({"attn_layer_indices": [1, 3]} if model_type == "bamba" else {}))
    prunus.prune(folder, tmp_path / "out", recipe(method="sparsegpt"))
    source = Checkpoint(folder)
    model, dense = check_loads(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = on_the_whole_model(folder, source, rows_of(tmp_path), by_sparsegpt, model)
    zeros = differing = moved = 0
    for (ours, theirs), (_, before) in zip(pairs(model, expected), pairs(model, dense), strict=True):
        zeros += int((ours == 0).sum())
        differing += int(((ours == 0) != (theirs == 0)).sum())
        both = (ours != 0) & (theirs != 0)
        moved += int((ours != before)[both].sum())
        far = (ours - theirs)[both].abs() > 1e-3 * before.abs().max()
        assert int(far.sum()) <= ours.numel() / 50
    assert differing <= zeros / 1000 and moved > zeros / 4


def pairs(one, other):
    return zip((p for _, p in one.named_parameters()), (p for _, p in other.named_parameters()), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["phi3", "deepseek_v3", "gemma3", "granitemoe"])
def test_what_is_not_pruned_stays_as_it_is_on_disk(tmp_path, recipe, model_type):
    """Routers, norms and vision towers: bit for bit and under their names."""
    folder = tmp_path / "model"
    make_random_model(model_type, folder)
    prunus.prune(folder, tmp_path / "out", recipe(method="sparsegpt", propagation="true_sequential"))
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
        "bert": "its tokens attend to later ones, so it is an encoder",
        "bart": "part of an encoder-decoder model",
        "zamba": "blocks share weights",
        "zamba2": "blocks share weights",
        "inkling2_text": "cannot be run block by block: an argument of block 3 depends on earlier hidden states",
    }.items(),
)
def test_what_cannot_be_pruned_is_refused_in_a_line(tmp_path, recipe, model_type, says):
    if model_type not in TYPES_THERE:
        pytest.skip("this transformers does not know it")
    make_random_model(model_type, tmp_path / "model")
    with pytest.raises(PrunusError, match=says):
        prunus.prune(tmp_path / "model", tmp_path / "out", recipe())
    assert not list(tmp_path.glob("out*"))
