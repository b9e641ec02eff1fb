"""Where Llama, Qwen2 and Qwen3 keep blocks and Linears, and how to run one block as the whole model would.

Shapes: N sequences, T tokens, D hidden width.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from prunus.checkpoint.precision import attention_for, use_fast_products
from prunus.errors import PrunusError

Kind = Literal["attention", "mlp"]


class Family(NamedTuple):
    """One architecture: the transformers module and classes of a decoder block and of the rotary embedding."""

    module: str
    block: str
    rotary: str


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family("transformers.models.llama.modeling_llama", "LlamaDecoderLayer", "LlamaRotaryEmbedding"),
        "qwen2": Family("transformers.models.qwen2.modeling_qwen2", "Qwen2DecoderLayer", "Qwen2RotaryEmbedding"),
        "qwen3": Family("transformers.models.qwen3.modeling_qwen3", "Qwen3DecoderLayer", "Qwen3RotaryEmbedding"),
    }
)
BLOCK_PREFIX = "model.layers."
_MOST_BLOCKS = 10_000  # no model has a tenth of it; a damaged config.json may ask for billions
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# The prunable Linears of a block, in the order in which a forward pass meets them.
LINEARS: Mapping[str, Kind] = MappingProxyType(
    {
        "self_attn.q_proj": "attention",
        "self_attn.k_proj": "attention",
        "self_attn.v_proj": "attention",
        "self_attn.o_proj": "attention",
        "mlp.gate_proj": "mlp",
        "mlp.up_proj": "mlp",
        "mlp.down_proj": "mlp",
    }
)
# Linears that read the same tensor as an earlier one, and which: its statistics are theirs.
SAME_INPUT_AS: Mapping[str, str] = MappingProxyType(
    {
        "self_attn.k_proj": "self_attn.q_proj",
        "self_attn.v_proj": "self_attn.q_proj",
        "mlp.up_proj": "mlp.gate_proj",
    }
)


def block_name(index: int, local: str) -> str:
    """The checkpoint's name of a tensor or Linear of one block."""
    return f"{BLOCK_PREFIX}{index}.{local}"


def block_index(name: str) -> int | None:
    """The block a tensor belongs to, None outside the blocks."""
    found = re.match(r"model\.layers\.([0-9]{1,9})\.", name)
    return int(found[1]) if found else None


def check_family(folder: Any, config: Mapping[str, Any]) -> None:
    """Raise PrunusError unless config.json (as a dict) is of a family that we can run."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise PrunusError(f"{folder}: model_type '{model_type}' is not supported; supported families are {known}")
    blocks = config.get("num_hidden_layers", 1)
    if not isinstance(blocks, int) or not 1 <= blocks <= _MOST_BLOCKS:
        raise PrunusError(f"{folder}: config.json asks for {blocks} blocks (num_hidden_layers), which no model has")
    if "quantization_config" in config:
        raise PrunusError(f"{folder} is quantised; give the unquantised model (float32, bfloat16 or float16)")


def family_class(config: PreTrainedConfig, which: Literal["block", "rotary"]) -> Any:
    """The transformers class of a decoder block or of the rotary embedding."""
    family = FAMILIES[config.model_type]
    return getattr(import_module(family.module), getattr(family, which))


def block_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name within the block and shape of every weight of a decoder block."""
    with torch.device("meta"):
        block = family_class(config, "block")(config, 0)
    return {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}


def expected_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this configuration must hold; PrunusError if none can be."""
    width, vocabulary = config.hidden_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocabulary, width), FINAL_NORM: (width,)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = (vocabulary, width)
    try:
        per_block = block_shapes(config)
    except Exception as error:  # sizes that torch cannot count are errors of several kinds
        reason = str(error).split("\n")[0]
        raise PrunusError(
            f"{config.name_or_path}: config.json asks for blocks that cannot be made: {reason}"
        ) from error
    for index in range(config.num_hidden_layers):
        shapes |= {block_name(index, local): shape for local, shape in per_block.items()}
    return shapes


def pick_device(device: str) -> torch.device:
    """The torch device of a name; `auto` is a GPU where there is one. An unknown or absent one raises PrunusError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise PrunusError(f"device '{device}' cannot be used here; try --device cpu") from error
    return chosen


class Runner:
    """Runs single decoder blocks outside their model: what the family's forward does between embedding and final norm.

    Sequences of a batch have equal length and no padding, so attention is causal without a mask. dtype: in which blocks
    run; norms and rotary embedding take care of their own float32 parts as in transformers.
    """

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = deepcopy(config), dtype, device
        self.config._attn_implementation = attention_for(dtype, device)
        self._rotary = self._make_rotary()

    @property
    def rotary(self) -> nn.Module:
        """The rotary embedding, for one pass: with dynamic NTK it remembers the longest sequence that it has met, and
        turns shorter ones by its angles, so that every pass gets a fresh one."""
        return self._make_rotary() if "dynamic" in getattr(self._rotary, "rope_type", "default") else self._rotary

    def _make_rotary(self) -> nn.Module:
        return family_class(self.config, "rotary")(self.config).to(self.device)

    def embed(self, embedding_VD: Tensor, ids_NT: Tensor) -> Tensor:
        """(N, T, D) input of block 0."""
        return functional.embedding(ids_NT, embedding_VD).to(self.device, self.dtype)

    def make_block(self, index: int, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Block number index with these weights (names within the block; others are ignored), ready to run."""
        with torch.device("meta"):
            block: nn.Module = family_class(self.config, "block")(self.config, index)
        state = {name: tensors[name].to(self.device, self.dtype) for name in block.state_dict()}
        block.load_state_dict(state, assign=True)
        use_fast_products(block)
        return block.eval().requires_grad_(False)

    def run_block(self, block: nn.Module, hidden_NTD: Tensor) -> Tensor:
        """(N, T, D) output of a block: the residual stream, before any final norm."""
        output = block(hidden_NTD, **self._positions(block, hidden_NTD))
        # Some transformers versions return a tuple; [0] of a tensor would silently strip the batch axis.
        return output[0] if isinstance(output, tuple) else output

    def attend(self, block: nn.Module, hidden_NTD: Tensor) -> Tensor:
        """The first half of run_block without its residual: what attention adds to (N, T, D)."""
        normed_NTD = block.get_submodule("input_layernorm")(hidden_NTD)
        return block.get_submodule("self_attn")(hidden_states=normed_NTD, **self._positions(block, hidden_NTD))[0]

    def feed(self, block: nn.Module, hidden_NTD: Tensor) -> Tensor:
        """The second half of run_block without its residual: what the MLP adds to (N, T, D)."""
        return block.get_submodule("mlp")(block.get_submodule("post_attention_layernorm")(hidden_NTD))

    def _positions(self, block: nn.Module, hidden_NTD: Tensor) -> dict[str, Any]:
        """What attention needs to know of where tokens stand and which of them they see."""
        tokens = hidden_NTD.shape[1]
        positions_1T = torch.arange(tokens, device=self.device)[None]
        return {
            "attention_mask": self._mask(block, tokens),
            "position_ids": positions_1T,
            "position_embeddings": self.rotary(hidden_NTD, positions_1T),
        }

    def _mask(self, block: nn.Module, tokens: int) -> Tensor | None:
        """None: plain causal attention. Else (1, 1, T, T), true where a token is seen through the sliding window."""
        window = getattr(block.self_attn, "sliding_window", None)
        if window is None or tokens <= window:
            return None
        distance_TT = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
        return ((distance_TT >= 0) & (distance_TT < window))[None, None].to(self.device)
