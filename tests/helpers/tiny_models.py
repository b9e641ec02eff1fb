"""Small random checkpoints on disk: Llama, Qwen2 and Qwen3 with their special features."""

import shutil
from pathlib import Path
from typing import Any

import torch
from made_once import made_once
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.initialization import no_init_weights

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import tiny_folder
from prunus.checkpoint.runner import Runner

FAMILIES = ("llama", "qwen2", "qwen3")
# The prunable Linears of all three, in the order of a forward pass.
ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
LINEARS = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
VOCABULARY = 368  # size of the built-in tokenizer, which these models use
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def make_model(
    folder: Path,
    family: str = "llama",
    *,
    blocks: int = 3,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_size: str = "1GB",
    **config,
) -> Path:
    """Write a random model and a tokenizer to folder, and return folder.

    Four query heads share two key/value heads. Biases, norms and embeddings are random too, and large enough that every
    block matters.
    """
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    if family == "qwen3":
        settings["head_dim"] = 12
    settings |= config
    key = repr(("make_model", family, dtype, seed, shard_size, settings))
    made_once(folder, key, lambda place: _write_model(place, family, settings, dtype, seed, shard_size))
    return folder


def _write_model(
    folder: Path, family: str, settings: dict[str, Any], dtype: torch.dtype, seed: int, shard_size: str
) -> None:
    config_class, model_class = _CLASSES[family]
    with no_init_weights():  # all are drawn below
        model: PreTrainedModel = model_class(config_class(**settings))
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.25 * noise)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder, max_shard_size=shard_size)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_folder() / name, folder / name)


def runner_of(source: Checkpoint, dtype: torch.dtype = torch.float32) -> Runner:
    """The runner of a checkpoint's blocks on the CPU."""
    return Runner(source, dtype, torch.device("cpu"))


def random_rows(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random token ids for calibration, `count` sequences of `length`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count, length), generator=generator).tolist()
