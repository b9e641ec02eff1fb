"""config.json of a model without some of its blocks, by rules that hold for all families.

Fields that count blocks are reduced; lists with one entry per block lose the entries of removed blocks; lists of block
numbers are renumbered; counts of leading blocks are reduced by those removed among them. A per-block list that a
configuration derives (which attention a block has, for example, from a period) is written out, since the pattern would
shift otherwise. These lists of fields cannot be complete, so verification.py checks every result.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

# Fields with the number of blocks, or a multiple of it if a block counts as several layers.
NUMBERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers")
# Fields with the number of leading blocks of some kind, or the index of the first block that is not of it.
LEADING = (
    "first_k_dense_replace",
    "num_dense_layers",
    "n_dense_layers",
    "max_window_layers",
    "moe_layer_start_index",
    "num_hash_layers",
)
# Fields that are lists of block indices, from 0.
INDICES = (
    "mlp_only_layers",
    "moe_layers",
    "attn_layer_indices",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "cross_attention_layers",
)
# Fields with the number of extra blocks for multi-token prediction; these are removed when blocks are dropped.
PREDICTING = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "n_predict_layers")
# Parts of the names of other lists, whose length may equal the number of blocks by coincidence.
_OTHER_LISTS = ("architectures", "token_id", "time_step", "labels", "_grid", "auto_map")


def shorter_config(
    content: Mapping[str, Any], config: PreTrainedConfig, blocks: int, removed: Collection[int]
) -> dict[str, object]:
    """The content of config.json without the removed blocks. content: the old one; config: as transformers reads it."""
    text = config.get_text_config(decoder=True)
    part = next((name for name in config.sub_configs if getattr(config, name, None) is text), None)
    if part is None or not isinstance(content.get(part), dict):
        return _shorter(content, text, blocks, removed)
    return {**content, part: _shorter(content[part], text, blocks, removed)}


def _shorter(
    content: Mapping[str, Any], config: PreTrainedConfig, blocks: int, removed: Collection[int]
) -> dict[str, object]:
    known: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    kept = [index for index in range(blocks) if index not in removed]
    shorter = dict(content)
    # A step makes every n-th block sparse. Renumbering would break it, so list the dense blocks explicitly.
    step = known.get("decoder_sparse_step")
    if isinstance(step, int) and step > 1:
        only: Sequence[int] = known.get("mlp_only_layers") or ()
        dense = [index for index in range(blocks) if index in only or (index + 1) % step]
        known |= {"mlp_only_layers": dense}
        shorter |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    ahead = max((n for name in PREDICTING if isinstance(n := known.get(name), int)), default=0)
    for name, value in {**known, **shorter}.items():
        new = _shorter_value(name, value, blocks, kept, ahead)
        if new != value and (name in shorter or isinstance(value, list)):
            shorter[name] = new
    number = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if not any(name in shorter for name in NUMBERS) and not any("pattern" in n or "block_type" in n for n in shorter):
        shorter[number] = len(kept)
    if "attention_types" in shorter and isinstance(shorter.get("attention_layers"), list):  # gpt_neo repeats a list
        shorter["attention_types"] = [[shorter["attention_layers"], 1]]
    return shorter


def _shorter_value(name: str, value: Any, blocks: int, kept: Sequence[int], ahead: int) -> Any:
    """The new value of a field; the old one if the field does not depend on the blocks."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if name in NUMBERS and value and value % blocks == 0:
            return value // blocks * len(kept)
        if name in LEADING:
            return sum(index < value for index in kept) + max(0, value - blocks)
        return 0 if name in PREDICTING else value
    if isinstance(value, list) and name in INDICES:
        return [kept.index(index) for index in value if index in kept]
    if isinstance(value, dict) and "layer" in name and value and all(str(key).isdigit() for key in value):
        return {str(kept.index(int(key))): of for key, of in value.items() if int(key) in kept}
    per_block = isinstance(value, list) and not any(part in name for part in _OTHER_LISTS)
    if (per_block or (isinstance(value, str) and "pattern" in name)) and len(value) in {blocks, blocks + ahead}:
        chosen = [value[index] for index in kept]
        return "".join(chosen) if isinstance(value, str) else chosen
    return value
