"""The metadata of a GGUF file from a model's own files: architecture, sizes and tokenizer, of a few families.

llama.cpp knows a way of splitting words by its name alone, so these names are listed here with the patterns that they
stand for. A SentencePiece vocabulary has a score for each token instead of merges; scores with the same effect are made
from the order of the merges.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.gguf_file import library
from prunus.checkpoint.resolve import load_tokenizer
from prunus.disk import read_object
from prunus.errors import PrunusError
from prunus.plain_data import parse_json
from prunus.pruning.bits.gguf_tensors import PLUS_ONE

if TYPE_CHECKING:
    from gguf import GGUFWriter

# llama.cpp's architecture of each type of model.
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
}  # fmt: skip
# What llama.cpp computes whatever a configuration says.
FIXED: Mapping[str, Mapping[str, Any]] = {
    "llama": {"hidden_act": "silu"},
    "qwen2": {"hidden_act": "silu"},
    "qwen3": {"hidden_act": "silu"},
    "qwen3moe": {"hidden_act": "silu", "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "gemma3": {
        "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
}  # fmt: skip
GEMMA_PERIOD = 6  # every sixth block of Gemma 3 attends to all tokens
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
OTHER = r"[^\r\n\p{L}\p{N}]?"
# llama.cpp's names of ways to split words, by the steps of a tokenizer.json that they stand for.
SPLITS = {
    (f"{WORDS}\\p{{N}}{REST}", "bytes"): "qwen2",
    (f"{WORDS}\\p{{N}}{{1,3}}{REST}", "bytes"): "llama-bpe",
    (
        f"{OTHER}{UPPER}*{LOWER}+|{OTHER}{UPPER}+{LOWER}*|\\p{{N}}" + REST.replace(r"[\r\n]*", r"[\r\n/]*"), "bytes",
    ): "tekken",
    ("digits", "words and bytes"): "smollm",
    ("words and bytes",): "gpt-2",
}  # fmt: skip
UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
CARRIED = ("Replace", "Prepend")  # steps of a normaliser that llama.cpp does, too, for SentencePiece vocabularies
BOTH_WAYS = "give --like an existing GGUF of the base model, or run llama.cpp's convert_hf_to_gguf.py on the folder"


class GgufContent(NamedTuple):
    """Metadata and further tensors of a GGUF file, besides the model's weights.

    writer: a gguf.GGUFWriter with the metadata. changes: how tensors differ from the model's, by kind_of of their
    names (tensors.changed); AS_IS if not named. constants: tensors that follow from the configuration, by name.
    """

    architecture: str
    writer: "GGUFWriter"
    changes: Mapping[str, int]
    constants: Mapping[str, np.ndarray]


def form_of(source: Checkpoint, name: str) -> GgufContent:
    """The GgufContent of a model from its own files. Raises PrunusError if GGUF cannot express the model.

    Its writer still lacks the file's type and the manifest. name: of the model, for people.
    """
    gguf, architecture = library(), architecture_of(source)
    config = source.text_config
    for key, value in FIXED[architecture].items():
        if getattr(config, key, value) != value:
            raise refusal(source, f"has {key} = {getattr(config, key)}, which llama.cpp does not compute")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_name(name)
    writer.add_block_count(source.blocks)
    writer.add_context_length(context_of(source, architecture))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    changes: dict[str, int] = {}
    if architecture == "llama":
        writer.add_rope_dimension_count(size)
        changes = {"blk.attn_q": heads, "blk.attn_k": kv_heads}
    if architecture == "qwen3moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        names = [f"{of}_norm" for of in ("attn", "attn_q", "attn_k", "post_attention", "ffn", "post_ffw")]
        changes = {f"blk.{norm}": PLUS_ONE for norm in names} | {"output_norm": PLUS_ONE}
    constants = add_rotation(source, writer, size)
    add_tokenizer(writer, source.folder, config.vocab_size)
    return GgufContent(architecture, writer, changes, constants)


def architecture_of(source: Checkpoint) -> str:
    """llama.cpp's name of a model's architecture; PrunusError where Prunus knows none."""
    architecture = ARCHITECTURES.get(str(source.text_config.model_type))
    if architecture is None or source.text_config is not source.config:
        raise PrunusError(
            f"{source.folder} is of type {source.config.model_type}, of which Prunus knows no GGUF form: {BOTH_WAYS}"
        )
    return architecture


def refusal(source: Checkpoint, what: str) -> PrunusError:
    """The error for a model of a known family that differs from what llama.cpp has for it."""
    return PrunusError(f"{source.folder} {what}: {BOTH_WAYS}")


def context_of(source: Checkpoint, architecture: str) -> int:
    """The longest context in tokens for which llama.cpp computes what the model does; PrunusError if there is none."""
    config = source.text_config
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None) or source.context
    if type(window) is not int:
        raise refusal(source, f"has a sliding_window that is no number of tokens ({str(window)[:50]})")
    if architecture != "gemma3":
        return source.context if kinds is not None and "sliding_attention" not in kinds else min(source.context, window)
    if config.query_pre_attn_scalar != config.head_dim:
        raise refusal(source, "scales attention by query_pre_attn_scalar, which is not the size of a head")
    wanted = ["full_attention" if n % GEMMA_PERIOD == 0 else "sliding_attention" for n in range(1, source.blocks + 1)]
    if kinds != wanted and source.context > window:
        raise refusal(source, f"has other kinds of blocks than llama.cpp, where every {GEMMA_PERIOD}th sees all tokens")
    return source.context


def add_rotation(source: Checkpoint, writer: "GGUFWriter", size: int) -> dict[str, np.ndarray]:
    """Add the rotary embedding of heads of this size to the metadata; returns the tensors that it needs, by name.

    Raises PrunusError for a rotation that llama.cpp does not compute.
    """
    gguf = library()
    rotation = dict(source.text_config.rope_parameters)
    if "full_attention" in rotation:
        local, rotation = rotation["sliding_attention"], dict(rotation["full_attention"])
        if (local["rope_type"], local["rope_theta"]) != ("default", 10_000.0):
            raise refusal(source, "rotates heads of blocks with a window in another way than llama.cpp")
    base, kind = float(rotation.pop("rope_theta")), rotation.pop("rope_type", "default")
    writer.add_rope_freq_base(base)
    if kind == "llama3" and writer.arch == "llama":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](source.text_config, "cpu")
        plain = base ** -(np.arange(0, size, 2) / size)
        return {"rope_freqs.weight": (plain / slowed.double().numpy()).astype(np.float32)}
    known = {"default": set(), "linear": {"factor"}, "yarn": {"factor", "original_max_position_embeddings"}}
    if kind not in known or not set(rotation) <= known[kind] | {"original_max_position_embeddings"}:
        raise refusal(source, f"rotates heads by '{kind}', or with settings of their own")
    if kind != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(rotation["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rotation["original_max_position_embeddings"])
    return {}


def add_tokenizer(writer: "GGUFWriter", folder: Path, vocabulary: int) -> None:
    """Add a folder's tokenizer; PrunusError if GGUF cannot express it. vocabulary: number of embeddings."""
    kinds = library().TokenType
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = {} if backend is None else parse_json(backend.to_str())
    model = content.get("model") or {}
    if backend is None or model.get("type") != "BPE":
        raise inexpressible(folder, f"is a {model.get('type') or type(tokenizer).__name__}, not a BPE")
    words, added = backend.get_vocab(with_added_tokens=False), backend.get_added_tokens_decoder()
    tokens, types = [f"[PAD{n}]" for n in range(vocabulary)], [kinds.UNUSED] * vocabulary
    if max([*words.values(), *added]) >= vocabulary:
        raise inexpressible(folder, f"has ids for which the model's {vocabulary} embeddings have no row")
    is_pieces = bool(model.get("byte_fallback"))
    for token, index in words.items():
        is_byte = is_pieces and len(token) == 6 and token.startswith("<0x")
        tokens[index], types[index] = token, kinds.BYTE if is_byte else kinds.NORMAL
    for index, token in added.items():
        tokens[index], types[index] = token.content, kinds.CONTROL if token.special else kinds.USER_DEFINED
    if is_pieces and isinstance(unknown := tokenizer.unk_token_id, int):
        types[unknown] = kinds.UNKNOWN
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("llama" if is_pieces else "gpt2")
    writer.add_tokenizer_pre("default" if is_pieces else split_of(folder, content))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if is_pieces:
        writer.add_token_scores(scores_of(tokens, pairs))
        writer.add_add_space_prefix(has_prefix(folder, content))
    else:
        writer.add_token_merges([" ".join(pair) for pair in pairs])
    for role in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(token)
    ids = tokenizer.encode("a")
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if named := template.get("default") if isinstance(template, dict) else template:
        writer.add_chat_template(named)


def lost_in_texts(folder: Path) -> list[str]:
    """A warning for each step of normalisation of a folder's tokenizer that GGUF cannot express."""
    path = folder / "tokenizer.json"
    normalizer = read_object(path).get("normalizer") if path.is_file() else None
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    kinds = [str(step.get("type")) for step in steps if isinstance(step, dict)]
    return [
        f"the tokenizer brings texts into Unicode's form {kind} first, which GGUF cannot say: llama.cpp gives other ids"
        f" for texts that are not in {kind}"
        if kind in UNICODE_FORMS
        else f"the tokenizer changes texts by '{kind}' first, which GGUF cannot say: llama.cpp may give other ids"
        for kind in kinds
        if kind not in CARRIED
    ]


def inexpressible(folder: Path, why: str) -> PrunusError:
    """The error for a tokenizer that GGUF cannot express."""
    return PrunusError(f"the tokenizer of {folder} {why}, which GGUF cannot express: {BOTH_WAYS}")


def split_of(folder: Path, content: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way in which a tokenizer splits words."""
    normal, before = content.get("normalizer"), content.get("pre_tokenizer") or {}
    steps = tuple(map(split_step, before.get("pretokenizers", [before])))
    if steps not in SPLITS or (normal is not None and normal["type"] != "NFC"):
        raise inexpressible(folder, "splits words in a way of its own")
    return SPLITS[steps]


def split_step(step: Mapping[str, Any]) -> str:
    """A short form of a step by which a tokenizer.json splits words: its pattern, or what it does."""
    match step:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use}:
            return "words and bytes" if use else "bytes"
    return ""


def scores_of(tokens: list[str], pairs: list[tuple[str, ...]]) -> list[float]:
    """The score of each token: the earlier a merge makes it, the higher."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        first.setdefault("".join(pair), rank)
    return [-float(first.get(token, len(pairs))) for token in tokens]


def has_prefix(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer with blanks as `\u2581` puts a blank before a text; PrunusError if it does more, or less."""
    normal, before = content.get("normalizer"), content.get("pre_tokenizer")
    steps = [] if normal is None else normal.get("normalizers", [normal])
    match [step.get("type") for step in steps], before:
        case ["Replace"] | ["Prepend", "Replace"], None | {"type": "Split"}:
            return len(steps) == 2
        case [], {"type": "Metaspace", "split": False, "prepend_scheme": scheme}:
            return scheme != "never"
    raise inexpressible(folder, "changes texts in a way of its own")
