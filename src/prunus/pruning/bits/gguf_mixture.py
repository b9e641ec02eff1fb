"""The form of each tensor of a GGUF file in the mixtures of llama.cpp's file types, and what replaces unfit forms.

The rules are those of llama.cpp's src/llama-quant.cpp at commit 007dbbf3 (2026), but for Falcon, which has its own.
Some tensors hurt more when they are rounded, so they have more bits; a row that is no multiple of 256 weights gets a
form with groups of 32.
"""

from collections.abc import Sequence
from typing import NamedTuple

from prunus.recipes.gguf import BY_NAME

BIG, GROUP = 256, 32  # weights of a block of the forms with scales of scales, and of the others


class GgmlType(NamedTuple):
    """A form of numbers. nbytes, weights: bytes of a block, and its weights. scales: its bytes of scales and minima."""

    nbytes: int
    weights: int
    scales: int = 0


GGML_TYPES = {
    "F32": GgmlType(4, 1),
    "F16": GgmlType(2, 1),
    "Q8_0": GgmlType(34, GROUP, 2),
    "Q5_1": GgmlType(24, GROUP, 4),
    "Q5_0": GgmlType(22, GROUP, 2),
    "Q4_0": GgmlType(18, GROUP, 2),
    "IQ4_NL": GgmlType(18, GROUP, 2),
    "Q6_K": GgmlType(210, BIG, 18),
    "Q5_K": GgmlType(176, BIG, 16),
    "Q4_K": GgmlType(144, BIG, 16),
    "IQ4_XS": GgmlType(136, BIG, 8),
}
INSTEAD = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "IQ4_XS": "IQ4_NL"}  # in groups of 32
HEAD, EMBEDDINGS = "output.weight", "token_embd.weight"
VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
MANY_BLOCKS = 80  # of a model of 70B, whose values are few and cheap


class Shape(NamedTuple):
    """What the mixture depends on: number of blocks, heads for each key, experts, and whether the embeddings are the
    head. values: blocks whose attention has values, in order. weighted: whether weights have an importance."""

    blocks: int
    heads_per_key: int
    experts: int
    tied: bool
    values: Sequence[int]
    weighted: bool


def form_in_mixture(name: str, block: int | None, row: int, type: str, shape: Shape) -> str:
    """The form of a matrix in a file of this type, by llama.cpp's name. row: weights of a row."""
    return fitting(wanted(name, block, row, type, shape), row)


def wanted(name: str, block: int | None, row: int, type: str, shape: Shape) -> str:
    """The form that llama.cpp gives a matrix if its rows can have it."""
    file_type = BY_NAME[type]
    assert file_type.usual is not None, "only mixtures have several forms"
    usual = file_type.usual
    if name == HEAD or (shape.tied and name == EMBEDDINGS):
        return "Q6_K" if row % GGML_TYPES[usual].weights == 0 else "Q8_0"
    if block is None:
        return usual
    more = file_type.better or usual
    if name.endswith(VALUES):
        at = shape.values.index(block)
        form = more if gets_more(at, len(shape.values)) else usual
        if type == "iq4_xs" and shape.heads_per_key >= 4:
            form = "Q5_K"
        if shape.blocks == MANY_BLOCKS and shape.heads_per_key > 1 and form == "Q4_K":
            form = "Q5_K"
        return "Q8_0" if shape.experts == 8 else form
    if shape.experts == 8 and name.endswith("attn_k.weight"):
        return "Q8_0"
    if shape.experts == 8 and name.endswith("attn_output.weight") and type in ("q4_k_m", "iq4_xs"):
        return "Q5_K"
    if "ffn_down" in name:
        if type == "iq4_xs":
            return "Q5_K" if block < shape.blocks // 8 and not shape.weighted else usual
        return more if gets_more(block, shape.blocks) else usual
    return usual


def gets_more(number: int, of: int) -> bool:
    """Whether a block's values and ffn_down have more bits: the first and last eighth, and every third between."""
    return number < of // 8 or number >= 7 * of // 8 or (number - of // 8) % 3 == 2


def fitting(form: str, row: int) -> str:
    """The form, or what llama.cpp takes instead where a row is no multiple of its blocks."""
    if row % GGML_TYPES[form].weights:
        form = INSTEAD.get(form, "F16")
    return form if row % GGML_TYPES[form].weights == 0 else "F16"
