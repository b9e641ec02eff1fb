"""How many bytes the cache of a sequence takes, from a model's configuration alone.

A layer of attention keeps the keys and values of every token, or of the last ones if it has a sliding window; layers of
one sequence that share keys and values keep them once. Multi-head latent attention keeps a compressed vector. State
spaces, linear attention and short convolutions keep a state that does not grow. The numbers are those for which vLLM
and llama.cpp make room; docs/runs.md says what they add by rounding up to blocks.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.plain_data import Record

# (bytes, numbers) of a block of each type, by llama.cpp's name.
TYPES: Mapping[str, tuple[int, int]] = {
    "f32": (4, 1),
    "bf16": (2, 1),
    "f16": (2, 1),
    "fp8": (1, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}
_LONG = {"float32": "f32", "float": "f32", "bfloat16": "bf16", "float16": "f16", "half": "f16"}
_MOST = 1 << 60  # bytes, or tokens
# Types of models with compressed keys and values that engines expand before they cache them.
_EXPANDED = {"minicpm3"}


class CacheSize(Record):
    """The bytes of a model's cache.

    keys, values: types of their numbers (TYPES).
    per_token: bytes that one more token adds to a sequence, beside those of windows; a fraction where tokens share an
        entry.
    windows: {tokens: bytes of each} of layers that keep only the last tokens.
    constant: bytes of states per sequence.
    """

    keys: str
    values: str
    per_token: float
    windows: Mapping[str, int]
    constant: int

    def nbytes(self, tokens: int, sequences: int = 1) -> int:
        """Bytes of the cache of `sequences`, each of this number of tokens."""
        windows = sum(size * min(tokens, int(window)) for window, size in self.windows.items())
        return sequences * (self.constant + windows + int(tokens * self.per_token))


@dataclass(frozen=True)
class _Kept:
    """The cache entries that a layer keeps for tokens.

    keys, values: how many numbers an entry has for each. window: the number of last tokens that have entries; None: all
    have. every: how many tokens share an entry.
    """

    keys: int
    values: int
    window: int | None = None
    every: int = 1


@dataclass(frozen=True)
class _State:
    """How many numbers the state of a layer has, for a sequence of any length. convolution: of the last inputs."""

    convolution: int
    recurrent: int


def in_words(cache: CacheSize) -> str:
    """`36.9 kB per token, and 2.1 MB per sequence (keys and values bf16)`."""
    found = [f"{show_bytes(round(cache.per_token))} per token"] * bool(cache.per_token)
    found += [f"{show_bytes(size)} per token of the last {int(window):,}" for window, size in cache.windows.items()]
    found += [f"{show_bytes(cache.constant)} per sequence"] * bool(cache.constant)
    same = cache.keys == cache.values
    types = f"keys and values {cache.keys}" if same else f"keys {cache.keys}, values {cache.values}"
    return " and ".join(found) + f" ({types})" * bool(cache.per_token or cache.windows)


class CacheOfChain(CacheSize):
    """The cache of a run.

    keys, values: types of their numbers.
    per_token: bytes that one more token adds to a sequence, beside those of windows.
    windows: {tokens: bytes of each} of layers that keep only the last tokens.
    constant: bytes of states per sequence.
    tokens: of its longest prompt and its largest budget together.
    """

    tokens: int

    @classmethod
    def stored(cls, data: Mapping[str, Any]) -> Self:
        """Cache size from stored data. Raises ValueError if the data are not a cache size."""
        try:
            cache = cls.of(data)
            sizes = cache.per_token, cache.constant, cache.tokens, *cache.windows.values(), cache.nbytes(1)
        except (TypeError, ValueError) as error:
            raise ValueError(f"it is no size of a cache ({error})") from error
        if not all(0 <= number < _MOST for number in sizes):
            raise ValueError("it has a number that is no number of bytes or tokens")
        return cache

    @property
    def longest(self) -> int:
        """Bytes of the cache of the longest chain."""
        return self.nbytes(self.tokens)


def in_all(runs: Iterable[tuple[int | None, CacheOfChain | None]]) -> tuple[list[int | None], int | None]:
    """(for each run the bytes of its weights and the cache of a chain, the tokens of that chain: the most of any run).

    runs: (bytes of weights, cache) of each run. If the cache of any run with known weights is unknown, all bytes are
    those of weights alone, and the tokens are None.
    """
    found = list(runs)
    tokens = [cache.tokens for weights, cache in found if weights is not None and cache is not None]
    if not tokens or len(tokens) < sum(weights is not None for weights, _ in found):
        return [weights for weights, _ in found], None
    most = max(tokens)
    return [weights and weights + (cache.nbytes(most) if cache else 0) for weights, cache in found], most


def nbytes_of(numbers: int, kind: str) -> int:
    """Bytes of a row of numbers of a type; a block that is not full takes all of its bytes."""
    size, block = TYPES[kind]
    return -(-numbers // block) * size


def type_named(name: str) -> str | None:
    """The type (a key of TYPES) that an engine calls by this name; None if there is none."""
    name = _LONG.get(name, name).lower()
    return name if name in TYPES else "fp8" if name.startswith("fp8") and "per_token" not in name else None


def cache_size(
    config: object,
    keys: str = "bf16",
    values: str | None = None,
    *,
    convolution: str = "bf16",
    recurrent: str | None = None,
    blocks: Collection[int] | None = None,
) -> CacheSize | None:
    """The cache of a model with this configuration; None where it keeps none, or its layers are not known here.

    config: transformers' configuration, or the content of a config.json as attributes, of a model or its language part.
    keys, values: types of the cache of tokens (TYPES); None: values as keys.
    convolution, recurrent: types of the parts of states; None: what the configuration says, else as convolution.
    blocks: indices of those that the model has; None: all of the configuration.

        cache_size(AutoConfig.from_pretrained("Qwen/Qwen3-8B"), "q8_0").nbytes(tokens=32_768)
    """
    for kind in filter(None, (keys, values, convolution, recurrent)):
        if kind not in TYPES:
            raise PrunusError(f"'{kind}' is no type of numbers in a cache: take {', '.join(TYPES)}")
    text = getattr(config, "get_text_config", lambda decoder: config)(decoder=True)
    encodes = _get(text, "add_cross_attention") is False and _get(text, "is_decoder") is False  # as BERT does
    if encodes or _get(text, "is_encoder_decoder", default=False):
        return None
    try:
        parts = [part for index in blocks or range(_layers(text)) for part in _layer(text, index)]
    except (_UnknownError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    values = values or keys
    named = _get(text, "mamba_ssm_cache_dtype", "mamba_ssm_dtype")
    of_config = type_named(str(named)) or ("f32" if _get(text, "linear_num_heads") else convolution)
    per_token, windows, constant = 0.0, dict[str, int](), 0
    for part in parts:
        if isinstance(part, _State):
            constant += nbytes_of(part.convolution, convolution) + nbytes_of(part.recurrent, recurrent or of_config)
            continue
        entry = nbytes_of(part.keys, keys) + nbytes_of(part.values, values)
        if part.window is None:
            per_token += entry / part.every
        else:
            windows[str(part.window)] = windows.get(str(part.window), 0) + entry
    return CacheSize(keys=keys, values=values, per_token=per_token, windows=windows, constant=constant)


class _UnknownError(Exception):
    """A layer is of a kind that is not known here, or the configuration lacks what its size follows from."""


def _get(config: object, *names: str, default: Any = None) -> Any:
    """The first of these attributes that a configuration has; an attribute that differs between layers is skipped."""
    for name in names:
        found = None
        with suppress(RuntimeError):  # transformers raises it if the attribute differs between layers
            found = getattr(config, name, None)
        if found is not None:
            return found
    return default


def _need(config: object, *names: str) -> int:
    found = _get(config, *names)
    if not isinstance(found, int | float):
        raise _UnknownError
    return int(found)


def _layers(text: object) -> int:
    return _need(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _layer(text: object, index: int) -> Sequence[_Kept | _State]:
    """Cache and state of a layer; none where it reuses another's."""
    own = _get(text, "per_layer_config")
    own = own[index] if own and index < len(own) else text
    types, shared = _get(text, "layer_types", "layers_block_type"), _get(text, "kv_sharing_modes")
    sharing = _get(text, "num_kv_shared_layers") or 0  # the last ones; transformers before 5.20 has only this
    if (shared and shared[index] == "reuse") or index >= _layers(text) - sharing:
        return []
    if not types:
        if _get(text, "model_type") in _WITHOUT_ATTENTION:
            return [_state(text)]
        kind = "sliding_attention" if _get(own, "sliding_window") else "full_attention"
        kind = "chunked_attention" if _get(own, "attention_chunk_size") else kind
    else:
        kind = types[index]
    match kind:
        case "moe" | "mlp":
            return []
        case "linear_attention" | "mamba" | "recurrent" | "conv":
            return [_state(own)]
        case "hybrid":
            return [_attention(own), _state(own)]
        case "hybrid_sliding":
            return [_attention(own, _need(own, "sliding_window")), _state(own)]
        case "full_attention" | "attention":
            return [_attention(own)]
        case "sliding_attention":
            return [_attention(own, _need(own, "sliding_window"))]
        case "chunked_attention":
            return [_attention(own, _need(own, "attention_chunk_size"))]
        case "indexed_attention" | "minimax_m3_sparse":
            return [_attention(own), *_indexer(text, own, index)]
        case "compressed_sparse_attention" | "heavily_compressed_attention":
            return _compressed(own, kind)
    raise _UnknownError


def _attention(own: object, window: int | None = None) -> _Kept:
    """The entry of a token in a layer. own: the configuration of that layer."""
    if (latent := _get(own, "kv_lora_rank")) and _get(own, "model_type") not in _EXPANDED:
        return _Kept(latent + _need(own, "qk_rope_head_dim"), 0, window)
    heads = _need(own, "num_attention_heads", "n_head", "n_heads", "num_heads")
    kept = _kv_heads(own, heads)
    if _get(own, "kv_lora_rank"):  # vLLM pads values to the size of keys
        size = _need(own, "qk_nope_head_dim") + _need(own, "qk_rope_head_dim")
        return _Kept(heads * size, heads * size, window)
    if window is not None and _get(own, "swa_num_key_value_heads"):
        size = _need(own, "swa_head_dim", "head_dim")
        entry = _need(own, "swa_num_key_value_heads") * size
        return _Kept(entry, entry, window)
    size = _get(own, "attention_head_dim", "head_dim", "dim_head", "kv_channels")
    size = size or _need(own, "hidden_size", "n_embd", "d_model") // heads
    if window is not None and _get(own, "model_type") == "mimo_v2_flash":
        kept *= 2
    return _Kept(kept * size, kept * (_get(own, "v_head_dim") or size), window)


def _kv_heads(own: object, heads: int) -> int:
    """The number of heads that keep keys and values."""
    if _get(own, "multi_query") and not _get(own, "new_decoder_architecture"):
        return 1
    return _get(own, "num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)


def _indexer(text: object, own: object, index: int) -> list[_Kept]:
    """The key by which a layer finds the tokens that it attends to, unless it takes those that another layer found."""
    types = _get(text, "indexer_types")
    if types and types[index] == "shared":
        return []
    return [_Kept(_need(own, "index_head_dim", "indexer_head_dim"), 0)]


def _compressed(own: object, kind: str) -> list[_Kept]:
    """DeepSeek-V4: entries of the last tokens, whose values are their keys, and entries that several tokens share."""
    size, rates = _need(own, "head_dim"), _get(own, "compress_rates", default={})
    if kind not in rates:
        raise _UnknownError
    found = [_Kept(size, 0, _need(own, "sliding_window")), _Kept(size, 0, every=rates[kind])]
    return [*found, _Kept(_need(own, "index_head_dim"), 0, every=rates[kind])] if "sparse" in kind else found


# Names of a state space's heads, the size of a head, groups and the state's size, and of the convolution's kernel.
_MAMBA2 = (
    ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"),
    ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"),
    ("n_mamba_heads", "mamba_headdim", "mamba_ngroups", "mamba_d_state", "mamba_d_conv"),
    ("num_heads", "head_dim", "n_groups", "state_size", "conv_kernel"),
)
_WITHOUT_ATTENTION = {"rwkv", "xlstm", "mamba", "mamba2", "falcon_mamba"}


def _state(own: object) -> _State:
    """The state of a layer: linear attention, a state space or a short convolution."""
    model_type = _get(own, "model_type")
    if special := _STATES.get(str(model_type)):
        return special(own)
    if _get(own, "linear_num_value_heads"):  # gated delta nets
        keys = _need(own, "linear_num_key_heads") * (size := _need(own, "linear_key_head_dim"))
        values = _need(own, "linear_num_value_heads") * _need(own, "linear_value_head_dim")
        return _State((2 * keys + values) * (_need(own, "linear_conv_kernel_dim") - 1), values * size)
    if heads := _get(own, "linear_num_heads"):  # Kimi's delta attention
        size = _need(own, "linear_head_dim")
        return _State(3 * heads * size * (_need(own, "linear_conv_kernel_dim") - 1), heads * size * size)
    if kernel := _get(own, "conv_L_cache"):
        return _State(_need(own, "hidden_size") * (kernel - 1), 0)
    for names in _MAMBA2:
        found = [_get(own, name) for name in names]
        if all(isinstance(size, int) for size in found):
            heads, size, groups, state, kernel = found
            return _State((heads * size + 2 * groups * state) * (kernel - 1), heads * size * state)
    width = _get(own, "mamba_expand")
    inner = int(width * _need(own, "hidden_size")) if width else _need(own, "intermediate_size")
    kernel, state = _need(own, "mamba_d_conv", "conv_kernel"), _need(own, "mamba_d_state", "state_size")
    return _State(inner * (kernel - 1), inner * state)


def _lightning(own: object) -> _State:
    heads = _need(own, "num_attention_heads")
    return _State(0, heads * (_get(own, "head_dim") or _need(own, "hidden_size") // heads) ** 2)


def _recurrent_gemma(own: object) -> _State:
    width = _need(own, "lru_width")
    return _State(width * (_need(own, "conv1d_width") - 1), width)


def _rwkv(own: object) -> _State:
    return _State(2 * _need(own, "hidden_size"), 3 * _need(own, "attention_hidden_size"))


def _xlstm(own: object) -> _State:
    size = _need(own, "qk_head_dim")
    return _State(0, _need(own, "num_heads") * (size * _need(own, "v_head_dim") + size + 1))


def _inkling(own: object) -> _State:
    """Short convolutions of keys, values, and the inputs of both halves of a layer."""
    kept = _attention(own, _get(own, "sliding_window"))
    return _State((kept.keys + kept.values + 2 * _need(own, "hidden_size")) * (_need(own, "conv_kernel_size") - 1), 0)


def _zaya(own: object) -> _State:
    size, heads = _need(own, "head_dim"), _need(own, "num_key_value_heads")
    channels = size * (heads + _need(own, "num_attention_heads"))
    return _State(channels * (_need(own, "cca_time0") + _need(own, "cca_time1") - 2), heads * size // 2)


_STATES = {
    "minimax": _lightning,
    "recurrent_gemma": _recurrent_gemma,
    "rwkv": _rwkv,
    "xlstm": _xlstm,
    "inkling_text": _inkling,
    "inkling2_text": _inkling,
    "inkling2_loop_text": _inkling,
    "zaya": _zaya,
}
