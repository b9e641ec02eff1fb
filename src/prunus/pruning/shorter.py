"""config.json of a model without some of its blocks, and the proof that it means the blocks that are left.

No table of families is complete, so the rule is generic and every result is tried: a short sequence must come out of
the new model as it comes out of the old one's remaining blocks. Some families put a block's place into what it computes
(diffllama, minicpm3), or choose kinds of blocks by a period: they are refused by that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from prunus.checkpoint.files import Checkpoint
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.safetensors_file import Stored
from prunus.checkpoint.source import one_line, read_json
from prunus.errors import PrunusError

# Fields that count blocks from the first on, and those that list blocks by their numbers.
LEADING = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
NUMBERS = ("mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids")
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
TOKENS, SOME_IDS = 32, 20
NEAR = 1e-5  # of the largest number, in float32


def shorter_config(source: Checkpoint, removed: Sequence[int]) -> dict[str, Any]:
    """config.json for the blocks that stay: their number, and all that it says of each block.

    What it leaves to be derived from a block's number (`layer_types` from a period) is written as transformers has
    derived it.
    """
    whole: dict[str, Any] = dict(read_json(source.folder / "config.json"))
    inner = "text_config" if isinstance(whole.get("text_config"), dict) else None
    config = dict(whole["text_config"]) if inner else whole
    derived = getattr(source.text_config, "layer_types", None)
    if derived is not None and len(derived) == source.blocks and "layer_types" not in config:
        period = any(name in config for name in ("sliding_window_pattern", "full_attention_interval", "no_rope_layers"))
        if len(set(derived)) > 1 or period:
            config["layer_types"] = list(derived)
    config = without(config, removed, source.blocks)
    return {**whole, inner: config} if inner else config


def without(config: Mapping[str, Any], removed: Sequence[int], blocks: int) -> dict[str, Any]:
    """The same for the fields of one configuration."""
    result = dict(config)
    for name, value in config.items():
        if isinstance(value, list) and len(value) == blocks and name != "architectures":
            result[name] = [item for index, item in enumerate(value) if index not in removed]
        elif name in NUMBERS and isinstance(value, list):
            result[name] = [i - sum(r < i for r in removed) for i in value if i not in removed]
        elif name in LEADING and isinstance(value, int):
            result[name] = value - sum(r < value for r in removed)
    count = next((name for name in COUNTS if name in config), COUNTS[0])
    result[count] = blocks - len(removed)
    return result


@torch.no_grad()
def check_shorter(source: Checkpoint, config: Mapping[str, Any], kept: Sequence[int]) -> None:
    """Raise PrunusError unless the model of config, made of these blocks, computes what they do where they are now."""
    refusal = f"blocks of {source.folder} ({source.config.model_type}) cannot be dropped this way"
    tensors: dict[str, Stored] = source.outer_tensors()
    try:
        for new, index in enumerate(kept):
            stored = source.block_tensors(index)
            tensors |= {source.renumbered(name, index, new): place for name, place in stored.items()}
        wanted_1TX = run(Runner(source.config, source.tensors, torch.float32, torch.device("cpu")), kept)
        shorter = Runner(AutoConfig.for_model(**config), tensors, torch.float32, torch.device("cpu"))
        if shorter.blocks != len(kept):
            raise PrunusError(f"its configuration then asks for {shorter.blocks} blocks, not {len(kept)}")
        found_1TX = run(shorter, range(len(kept)))
    except PrunusError as error:
        raise PrunusError(f"{refusal}: {error}") from error
    except Exception as error:  # of transformers, about the configuration, or of a block that lacks what it needs
        raise PrunusError(f"{refusal}: {type(error).__name__}: {one_line(error)[:200]}") from error
    if not bool((wanted_1TX - found_1TX).abs().max() <= NEAR * wanted_1TX.abs().max()):
        raise PrunusError(f"{refusal}: what a block computes depends on its place in the model")


def run(runner: Runner, blocks: Sequence[int]) -> Tensor:
    """(1, T, X) what the head reads of a short sequence that goes through these blocks only."""
    batch = Batch(torch.arange(TOKENS)[None] % SOME_IDS)
    rows_1TW = runner.embed(batch)
    for index in blocks:
        rows_1TW = runner.run_block(runner.read_block(index), rows_1TW, batch)
    return runner.states(rows_1TW, batch)
