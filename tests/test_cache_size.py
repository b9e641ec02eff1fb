"""The bytes of a cache are those that transformers itself allocates, for every type that it can run.

transformers keeps one input more than a convolution needs, and a window less the token that is coming.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import TYPES, tiny_config
from transformers import AutoModelForCausalLM, DynamicCache

from prunus.cache_size import CacheSize, cache_size

FACTS = json.loads((Path(__file__).parent.parent / "docs" / "models.json").read_text())["types"]
KEEPING = [kind for kind in TYPES if FACTS[kind].get("kind") == "decoder" or "refused" in FACTS[kind]]
TOKENS = 20
# Sizes that differ from each other, where a configuration has them: of no two that could be taken for each other.
DISTINCT = {
    "kv_lora_rank": 20, "qk_rope_head_dim": 8, "index_head_dim": 40, "indexer_head_dim": 24, "linear_key_head_dim": 8,
    "linear_value_head_dim": 24, "linear_num_key_heads": 2, "linear_num_value_heads": 6, "mamba_d_state": 12,
    "ssm_state_size": 12, "state_size": 12, "mamba_d_conv": 3, "conv_kernel": 3, "linear_conv_kernel_dim": 5,
    "conv_L_cache": 5, "conv1d_width": 3,
}  # fmt: skip
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]}
# What has attention only in deeper models, and what the sizes of all types do not fit.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": HYBRID,
    "bailing_hybrid": HYBRID | {"num_key_value_heads": 4},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "mimo_v2_flash": {"v_head_dim": 12},
    "gemma4_text": {"per_layer_config": {block: {"head_dim": 32, "num_key_value_heads": 1} for block in (1, 3, 5)}},
    "llama4_text": {"attention_chunk_size": 8},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 5}},
    "xlstm": {"qk_dim_factor": 1.0},
}
# Of these transformers keeps other numbers than engines do, which test_other_numbers compares.
ELSEWHERE = {"cpmant", "minicpm3", "openai-gpt", "xlm", "dory", "xmod"}


def shaped(kind: str) -> Any:
    """A tiny configuration whose sizes differ."""
    # That of Gemma 4 differs between its layers, which have all of its sizes.
    text = tiny_config(kind).get_text_config(decoder=True)
    found = {} if kind.startswith("gemma4") else {k: n for k, n in DISTINCT.items() if getattr(text, k, None)}
    return tiny_config(kind, **found | OWN.get(kind, {}))


def allocated(config: Any, tokens: int = TOKENS) -> tuple[int, int]:
    """(numbers that grow with tokens, numbers of states) that transformers keeps after reading so many tokens."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).float().eval()
    given = {"cache": DynamicCache(config=config)} if config.model_type == "recurrent_gemma" else {}
    with torch.no_grad():
        out = model(torch.randint(3, 100, (1, tokens)), use_cache=True, **given)
    out = {**out, **given}
    cache, kept, states = out.get("cache", out.get("past_key_values")), 0, 0
    for layer in getattr(cache, "layers", ()):
        parts = vars(layer)
        values = None if parts.get("values") is parts.get("keys") else parts.get("values")
        compressed = parts.get("compressed_kv", {}).values()
        tensors = [parts.get("keys"), values, parts.get("indexer_keys"), parts.get("idx_keys"), *compressed]
        kept += sum(one.numel() for one in tensors if one is not None)
        for one in parts.get("conv_states", {}).values():
            # ZAYA has two convolutions and keeps what both need.
            states += 0 if one is None else one.numel() - one[..., 0].numel() * (config.model_type != "zaya")
        states += sum(one.numel() for one in parts.get("recurrent_states", {}).values() if one is not None)
    states += sum(len(one) and one.numel() for one in getattr(cache, "linear_cache", ()))  # MiniMax
    states += sum(one.numel() for of in getattr(cache, "rnn_state", {}).values() for one in of)  # xLSTM
    states += sum(one.numel() for one in out.get("state") or ())  # RWKV
    for module in model.modules():  # RecurrentGemma
        for name in ("conv1d_state", "recurrent_states"):
            states += one.numel() if torch.is_tensor(one := getattr(module, name, None)) else 0
    return kept, states


def without_the_next(found: CacheSize) -> int:
    """The numbers that grow with tokens, in windows less the token that is coming."""
    windows = {str(int(window) - 1): size for window, size in found.windows.items()}
    return replace(found, windows=windows, constant=0).nbytes(TOKENS) // 4


@pytest.mark.parametrize("kind", [kind for kind in KEEPING if kind not in ELSEWHERE])
def test_numbers_are_those_that_transformers_keeps(kind):
    config = shaped(kind)
    found = cache_size(config, "f32", convolution="f32", recurrent="f32")
    assert found is not None
    assert (without_the_next(found), found.constant // 4) == allocated(config)
    assert found.nbytes(TOKENS) > 0
