"""The bytes of a cache are those that transformers itself allocates, for every type that it can run.

transformers keeps one input more than a convolution needs, and a window less the token that is coming.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import TYPES, tiny_config
from transformers import AutoModelForCausalLM

import prunus
from prunus.cache_size import CacheSize, Kept, cache_size
from prunus.errors import PrunusError

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
    "gemma4_text": {"per_layer_config": dict.fromkeys((1, 3, 5), {"head_dim": 32, "num_key_value_heads": 1})},
    "llama4_text": {"attention_chunk_size": 8},
    "xlstm": {"qk_dim_factor": 1.0},
}
