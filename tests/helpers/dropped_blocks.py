"""Models without some of their blocks, beside the blocks run one by one."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from whole_models import whole_model

import prunus
from prunus.checkpoint.architecture import Architecture, find_layers
from prunus.errors import PrunusError
from prunus.recipes import DropRecipe

# Encoders, and decoders of an encoder's output, which are no decoders in our sense.
OTHERS = (
    *("bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot", "blenderbot-small", "camembert"),
    *("data2vec-text", "electra", "ernie", "marian", "mbart", "megatron-bert", "mvp", "pegasus", "plbart", "rembert"),
    *("roberta", "roberta-prelayernorm", "roformer", "trocr", "whisper", "xlm-roberta", "xlm-roberta-xl"),
)

PLACE, CARRIED = "would have other settings", "reads an output of block 0"

# Types of which the first and third block cannot go, and what is said.
KEPT = {
    "beam": PLACE,
    "diffllama": rf"renumbered 0, {PLACE}: self_attn.lambda_init is",
    "gemma3n_text": "different than the set of layer types using them",
    "gemma4": "different than the set of layer types using them",
    "gemma4_text": "different than the set of layer types using them",
    "glm_moe_dsa": CARRIED,
    "hy_v4": CARRIED,
    "jamba": "it lacks the tensor 'model.layers.0.feed_forward.gate_proj.weight'",
    "minicpm3": rf"renumbered 0, {PLACE}: residual_scale is",
    "minimax": PLACE,
    "modernbert-decoder": "'model.layers.0.attn_norm.weight', for which modernbert-decoder as config.json describes it",
    "rwkv": CARRIED,
    "zaya": CARRIED,
}


def logits_without(model, removed, ids_NT):
    """Of transformers' whole model, some blocks of which hand on what they read from now on; others are as before."""
    outputs = Architecture(model).outputs

    def hand_on(*args, **kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *[None] * (outputs - 1)) if outputs else hidden

    for index in removed:
        find_layers(model)[1][index].forward = hand_on
    return model(input_ids=ids_NT, use_cache=False).logits


def check_drops(folder, removed, reason, tmp_path, whole=None):
    """The blocks are refused for a reason, or the model without them says what transformers' own says without them.

    whole: transformers' model of the folder, which is changed; None to load it.
    """
    out, asked = tmp_path / "out", DropRecipe(blocks=",".join(map(str, removed)) + ",")
    if reason is not None:
        with pytest.raises(PrunusError, match=reason) as caught:
            prunus.drop(folder, out, asked, device="cpu")
        assert "\n" not in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
        return
    prunus.drop(folder, out, asked, device="cpu")
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    model, loading = loaded
    assert not any(loading.values()), loading
    ids_NT = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(0))
    expected = logits_without(whole_model(folder) if whole is None else whole, removed, ids_NT)
    logits = model.eval()(input_ids=ids_NT, use_cache=False).logits
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
