"""A tiny random model of every causal language model that transformers lists.

transformers' default configurations, shrunk by one table (_SIZES), with the few corrections that a type needs (_OWN).
"""

from pathlib import Path
from typing import Any

import torch
from made_once import made_once
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prunus.checkpoint.architecture import skeleton

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MOST_PARAMETERS = 8_000_000  # a model with more parameters has a configuration that the table did not shrink

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "d_model": 64,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_layers": 4,
    "n_heads": 4,
    "n_positions": 128,
    "n_ctx": 128,
    "n_inner": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_num_experts": 8,
    "moe_k": 2,
    "moe_top_k": 2,
    "num_shared_experts": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "qk_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_d_ssm": 128,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
    "mamba_dt_rank": 8,
    "state_size": 16,
    "expand": 2,
    "num_heads": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "time_step_rank": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "mamba_headdim": 16,
    "mamba_ngroups": 1,
    "n_mamba_heads": 2,
    "block_size": 8,
    "lightning_nope": False,
    "conv_L_cache": 3,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 128,
    "laurel_rank": 8,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "embedding_size": 64,
    "attention_window": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "num_kv_heads": 2,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "shared_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "dff": 96,
    "dense_intermediate_size": 96,
    "mlp_hidden_size": 96,
    "attention_head_dim": 16,
    "lru_width": 64,
    "attention_window_size": 8,
    "embed_dim": 64,
    "query_pre_attn_scalar": 16,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 8,
}
_ALTERNATING = ["sliding_attention", "full_attention"]
_INKLING2 = {
    "unpadded_vocab_size": 128,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "sliding_window_size": 8,
    "rel_extent": 16,
    "num_hidden_layers": 6,
    "n_layers_per_attn_res_block": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "phi": {"num_key_value_heads": 4},
    "phi3": {"partial_rotary_factor": 1.0, "original_max_position_embeddings": 128},
    "gpt_oss": {"num_experts": None},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_moe": {"use_sliding_window": True, "mlp_only_layers": [1]},
    "deepseek_v2": {"num_key_value_heads": 4, "head_dim": 8, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 8},
    "axk1": {"num_key_value_heads": 4, "head_dim": 8},
    "axk2": {"num_key_value_heads": 4, "head_dim": 8},
    "deepseek_v32": {"num_key_value_heads": 4, "head_dim": 8},
    "glm4_moe_lite": {"num_key_value_heads": 4, "head_dim": 8},
    "glm_moe_dsa": {"num_key_value_heads": 4, "head_dim": 8},
    "minicpm3": {"num_key_value_heads": 4, "head_dim": 8},
    "youtu": {"num_key_value_heads": 4, "head_dim": 8},
    "sarvam_mla": {"num_key_value_heads": 4, "head_dim": 8},
    "longcat_flash": {
        "num_key_value_heads": 4,
        "head_dim": 8,
        "num_layers": 2,
        "num_hidden_layers": 4,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
    },
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": None},
    "falcon": {"head_dim": None},
    "xlstm": {"v_head_dim": None, "qk_head_dim": None, "num_heads": 4},
    "gpt_neo": {
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
        "num_hidden_layers": None,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "cohere_compass_text": {
        "layer_types": _ALTERNATING * 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "num_key_value_heads": 4,
    },
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid", "linear_attention"],
        "num_hidden_layers": 6,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid", "linear_attention"],
        "num_hidden_layers": 6,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "adapter_rank": 8,
    },
    "zaya": {
        "sliding_window": None,
        "layer_types": ["hybrid", "hybrid", "hybrid", "hybrid"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "router_hidden_size": 16,
        "num_experts_per_tok": 1,
    },
    "gemma3n_text": {
        "layer_types": _ALTERNATING * 3,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "intermediate_size": [96, 96, 96, 96, 96, 96],
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "layer_types": _ALTERNATING * 3,
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "num_experts": None,
        "moe_intermediate_size": None,
        "per_layer_config": None,
    },
    "kimi_linear": {
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "num_experts_per_token": 2,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 64,
        "ple_embed_dim": 16,
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
        "split_ngram_parts": 2,
    },
    "inkling2_text": _INKLING2,
    "inkling2_loop_text": _INKLING2,
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "cpmant": {"dim_head": 16, "dim_ff": 96, "prompt_length": 4},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "reformer": {"is_decoder": True},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_heads": 2,
    "out_hidden_size": 64,
    "vision_output_dim": 64,
    "image_size": 28,
    "patch_size": 14,
}
# Models of several parts: the type of the language model, and what else the configuration needs.
_COMPOSITE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"vision_config": _VISION}),
    "qwen3_5": ("qwen3_5_text", {"vision_config": _VISION}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {"vision_config": _VISION}),
    "llama4": ("llama4_text", {"vision_config": _VISION}),
    "qwen4_exp": ("qwen4_exp_text", {"vision_config": _VISION}),
    "gemma4": ("gemma4_text", {"vision_config": _VISION, "audio_config": None}),
    "got_ocr2": ("qwen2", {"vision_config": _VISION}),
    "mllama": ("mllama_text_model", {"vision_config": _VISION}),
    "fuyu": ("persimmon", {}),
    "dots3_note": ("dots3_note_text", {}),
    "gemma4_unified": ("gemma4_unified_text", {}),
    "gemma3n": ("gemma3n_text", {"audio_config": None}),
}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The default configuration of a type with small sizes."""
    config_class: Any = CONFIG_MAPPING[model_type]
    if model_type in _COMPOSITE:
        text_type, others = _COMPOSITE[model_type]
        return config_class(text_config=tiny_config(text_type).to_dict(), **others)
    default: Any = config_class()
    aliases: dict[str, str] = getattr(default, "attribute_map", {})
    known = {*dir(default), *aliases, *default.to_dict()} - {"partial_rotary_factor"}
    chosen = {name: value for name, value in _SIZES.items() if name in known} | _OWN.get(model_type, {}) | changes
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return config_class(**{n: v for n, v in chosen.items() if aliases.get(n, n) == n or aliases[n] not in chosen})


def make_random_model(model_type: str, folder: Path, **changes: Any) -> PreTrainedConfig:
    """Write a random model of a type to a folder, in float32. Raises RuntimeError if its configuration is not small."""
    key = repr(("make_random_model", model_type, changes))
    made_once(folder, key, lambda place: _write_random_model(tiny_config(model_type, **changes), place))
    torch.manual_seed(0)  # so that later random numbers do not depend on whether the model was made now or before
    return tiny_config(model_type, **changes)


def _write_random_model(config: PreTrainedConfig, folder: Path) -> None:
    size = sum(parameter.numel() for parameter in skeleton(config, torch.float32).parameters())
    if size > MOST_PARAMETERS:
        raise RuntimeError(f"not tiny: {size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0  # as after training; some models set it to 0 whenever they load
        stored = model.state_dict()
        for name, buffer in model.named_buffers():
            if "bias" in name and name in stored and buffer.is_floating_point():
                buffer.add_(torch.randn_like(buffer) * 0.05)
    model.save_pretrained(folder)
