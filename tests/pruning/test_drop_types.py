"""Dropping blocks of any decoder: equal to transformers' own model without them, or refused; never silently wrong."""

import json
from typing import Any

import pytest
import torch
from dropped_blocks import check_drops, logits_without
from random_models import make_random_model, tiny_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from whole_models import whole_model

import prunus
from prunus.checkpoint.architecture import Architecture, skeleton
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import find_tensors
from prunus.errors import PrunusError
from prunus.pruning.depth import verification as verify
from prunus.pruning.depth.choice import KeptBlocks
from prunus.pruning.depth.verification import shorter_config
from prunus.recipes import DropRecipe, PruneRecipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
# The same of the second block, for types where another reason holds, or none does.
SECOND = {
    "deepseek_v3": None,
    "gemma4_text": r"embed_tokens_per_layer.weight' is \(128, 48\), but config.json asks for \(128, 40\)",
    "modernbert-decoder": None,
    "qwen3_moe": None,
    "recurrent_gemma": "lacks the tensor 'model.layers.1.temporal_block.linear_y.weight'",
    "zamba": "block 3 shares weights with block 1, which would be removed",
    "zamba2": "block 3 shares weights with block 1, which would be removed",
}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("model_type", SECOND)
def test_second_block(tmp_path, model_type):
    make_random_model(model_type, tmp_path / "m")
    check_drops(tmp_path / "m", (1,), SECOND[model_type], tmp_path)


def shorter(model_type, removed, content=None, **changes):
    """The new config.json; content: what the old one says, else all that there is to say."""
    config = tiny_config(model_type, **changes)
    blocks = config.get_text_config().num_hidden_layers
    return shorter_config(config.to_dict() if content is None else content, config, blocks, removed)


def test_derived_lists_are_written_out_without_the_blocks():
    content = {"num_hidden_layers": 4, "max_window_layers": 2, "eos_token_id": [1, 2, 3, 4], "architectures": ["A"] * 4}
    new = shorter("qwen3", (1, 2), content)
    assert new["layer_types"] == ["full_attention", "sliding_attention"]
    assert new["num_hidden_layers"] == 2 and new["max_window_layers"] == 1
    assert new["eos_token_id"] == content["eos_token_id"] and new["architectures"] == content["architectures"]


def test_a_step_becomes_a_list_of_dense_blocks():
    new = shorter("qwen3_moe", (0, 1), decoder_sparse_step=2, mlp_only_layers=[3])
    assert new["decoder_sparse_step"] == 1 and new["mlp_only_layers"] == [0, 1]
    new = shorter("qwen3_moe", (0,), decoder_sparse_step=2, mlp_only_layers=[3])
    assert new["mlp_only_layers"] == [1, 2]


@pytest.mark.parametrize(
    ("model_type", "removed", "field", "value"),
    [
        ("deepseek_v3", (0,), "first_k_dense_replace", 0),
        ("deepseek_v3", (1,), "first_k_dense_replace", 1),
        ("longcat_flash", (0,), "num_layers", 1),
        ("gpt_neo", (0, 1), "attention_types", [[["global", "local"], 1]]),
        ("gpt_neo", (1, 3), "attention_types", [[["global", "global"], 1]]),
        ("gpt2", (0,), "n_layer", 3),
        ("lfm2_moe", (0,), "layer_types", ["full_attention", "conv", "full_attention"]),
        ("lfm2_moe", (0,), "num_dense_layers", 1),
        ("glm4_moe", (0,), "num_nextn_predict_layers", 0),
    ],
)
def test_fields_of_a_shorter_configuration(model_type, removed, field, value):
    changes = {"num_nextn_predict_layers": 1} if field == "num_nextn_predict_layers" else {}
    if model_type == "longcat_flash":
        config = tiny_config(model_type)
        assert shorter_config(config.to_dict(), config, 2, removed)[field] == value
    else:
        content = tiny_config(model_type).to_dict() | changes
        assert shorter(model_type, removed, content)[field] == value


def test_text_models_of_composites_and_patterns_as_text():
    new = shorter("gemma3", (0,))
    assert new["text_config"]["num_hidden_layers"] == 3 and len(new["text_config"]["layer_types"]) == 3
    assert new["vision_config"]["num_hidden_layers"] == 1
    content = {"hybrid_override_pattern": "M*ME", "num_hidden_layers": 4}
    assert shorter("llama", (1,), content)["hybrid_override_pattern"] == "MME"


# A model, what to change in the check that alone catches it, and what is said.
SILENT = {
    "settings": ("diffllama", {}, "_difference", None, "self_attn.lambda_init is"),
    "numbers": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "difference", 0.0, "compute something else"),
    "masks": ("olmo3", {"sliding_window": 64}, "_alike", True, "called with another mask or positions"),
}


@pytest.mark.slow
@pytest.mark.parametrize("trick", SILENT)
def test_what_loads_but_computes_something_else_is_refused_by_one_check(tmp_path, monkeypatch, trick):
    """Without it a folder is written that loads and is wrong, be it beyond the length of the short sequence only."""
    model_type, changes, check, passes, says = SILENT[trick]
    make_random_model(model_type, tmp_path / "m", **changes)
    if trick == "masks":  # a rule that forgets a list: a window of 64 does not show on 32 tokens
        keep = {"layer_types": ["sliding_attention"] * 3}
        monkeypatch.setattr(verify, "shorter_config", lambda *asked: shorter_config(*asked) | keep)
    if trick != "settings":
        monkeypatch.setattr(verify, "settings_of", lambda _: {})
    else:
        monkeypatch.setattr("prunus.pruning.drop.check_outputs", lambda *_: None)
    asked, out = DropRecipe(blocks="0,"), tmp_path / "out"
    with pytest.raises(PrunusError, match=says):
        prunus.drop(tmp_path / "m", out, asked, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    monkeypatch.setattr(verify, check, lambda *_: passes)
    prunus.drop(tmp_path / "m", out, asked, device="cpu")
    ids_NT = torch.randint(3, 100, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out)(ids_NT, use_cache=False).logits
        assert not torch.allclose(logits, logits_without(whole_model(tmp_path / "m"), (0,), ids_NT), atol=1e-3)


@pytest.mark.slow
def test_tensors_of_no_module_are_copied_by_prune_and_left_out_by_drop(tmp_path):
    """Such as layers that predict further tokens, by the numbers that transformers ignores."""
    folder = tmp_path / "m"
    make_random_model("glm4_moe", folder)
    extra = {"model.layers.46.enorm.weight": torch.ones(64), "mtp.fc.weight": torch.ones(4, 4)}
    inside = {"model.layers.3.self_attn.rotary_emb.inv_freq": torch.arange(8.0)}
    save_file(load_file(folder / "model.safetensors") | extra | inside, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    prunus.prune(folder, tmp_path / "pruned", PruneRecipe(method="magnitude", sparsity=0.5), device="cpu")
    pruned = load_file(tmp_path / "pruned" / "model.safetensors")
    assert all(torch.equal(pruned[name], tensor) for name, tensor in (extra | inside).items())
    for said in (
        prunus.plan(folder, DropRecipe(blocks="1,"), tmp_path / "out"),
        prunus.drop(folder, tmp_path / "out", DropRecipe(blocks="1,"), device="cpu"),
    ):
        assert "left out" in said.warnings[0] and "and 1 more" in said.warnings[0]
    dropped = {name: stored.read() for name, stored in find_tensors(tmp_path / "out").items()}
    assert not extra.keys() & dropped.keys()
    assert torch.equal(dropped["model.layers.2.self_attn.rotary_emb.inv_freq"], torch.arange(8.0))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert Checkpoint(tmp_path / "out").manifest.data["history"][0]["warnings"] == said.warnings


@pytest.mark.slow
def test_what_the_configuration_tells_and_what_a_dry_run_says(tmp_path):
    found_out = (("llama", True, None), ("recurrent_gemma", True, "linear_y"), ("jamba", False, ""))
    for model_type, possible, note in found_out:
        make_random_model(model_type, tmp_path / model_type)
        source = Checkpoint(tmp_path / model_type)
        found = verify.try_drops(source)
        said = next((why for why in found if why is not None), None)
        assert (None in found) is possible
        assert said is None if note is None else note in str(said)
        if said is None:
            choice = KeptBlocks.without((1,), source.blocks, [])
            verify.check_outputs(source, choice, verify.planned(source, choice), torch.device("cpu"))
    with pytest.raises(PrunusError, match="it lacks the tensor"):
        prunus.plan(tmp_path / "jamba", DropRecipe(blocks="1,"), tmp_path / "out")


def test_what_one_block_alone_returns_is_known():
    """No other block is there to notice that [0] strips a tensor of its sequences."""
    assert Architecture(skeleton(tiny_config("bloom", n_layer=1), torch.float32)).outputs == 1
    assert Architecture(skeleton(tiny_config("llama", num_hidden_layers=1), torch.float32)).outputs == 0


def calibration(tmp_path):
    rows = torch.randint(3, 100, (4, 24), generator=torch.Generator().manual_seed(1)).tolist()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
    return str(tmp_path / "rows.jsonl")


METHODS: dict[str, dict[str, Any]] = {
    "shortgpt": {},
    "angular": {},
    "tail": {},
    "laco": {"threshold": -1.0, "merge": 1},
    "sleb": {},
}


# Those that run models without some blocks, on all; those that score blocks by their hidden states, on half of them.
KINDS = ("phi3", "gemma2", "cohere2", "bloom", "mamba", "lfm2", "mixtral", "qwen3_next")
CHOSEN: dict[str, tuple[str, ...]] = {
    kind: ("laco", "sleb", "shortgpt" if at % 2 else "angular") for at, kind in enumerate(KINDS)
}
CHOSEN["bloom"] = tuple(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KINDS)
def test_every_method_on_decoders_of_all_kinds(tmp_path, model_type):
    changes = {"layer_types": ["conv", "full_attention"] * 2} if model_type == "lfm2" else {}
    make_random_model(model_type, tmp_path / "m", **changes)
    file = calibration(tmp_path)
    for method in CHOSEN[model_type]:
        out, settings = tmp_path / method, METHODS[method]
        asked = DropRecipe(method=method, blocks="1", calibration=file, sequences=4, **settings)
        if method == "laco" and model_type == "lfm2":  # no two neighbours are alike
            with pytest.raises(PrunusError, match="no merge of 1 \\+ 1 blocks with the same Linears"):
                prunus.drop(tmp_path / "m", out, asked, device="cpu")
            continue
        summary = prunus.drop(tmp_path / "m", out, asked, device="cpu")
        assert summary.blocks == 3
        loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
        assert not any(loaded[1].values())
        told = any("merges prunable Linears only" in warning for warning in summary.warnings)
        assert told == (method == "laco" and model_type in ("mamba", "mixtral", "qwen3_next"))


@pytest.mark.slow
def test_methods_that_leave_out_blocks_in_trials_refuse_a_model_whose_blocks_share_more(tmp_path):
    make_random_model("glm_moe_dsa", tmp_path / "m")
    file = calibration(tmp_path)
    for method in ("laco", "sleb"):
        asked = DropRecipe(method=method, blocks="1", calibration=file, sequences=4)
        with pytest.raises(PrunusError, match=f"{method} runs the model without some blocks"):
            prunus.drop(tmp_path / "m", tmp_path / "out", asked, device="cpu")
    asked = DropRecipe(method="tail", blocks="1")
    assert prunus.drop(tmp_path / "m", tmp_path / "out", asked, device="cpu").blocks_removed == [3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out", "rows.jsonl"]
