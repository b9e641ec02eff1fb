"""Random models with tokenizers that llama.cpp knows the kinds of, texts to tokenize, and the content of GGUF files."""

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from random_models import make_random_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The patterns of the families' own tokenizer.json.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, list[Any]] = {
    "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated")],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
    "tekken": [pre_tokenizers.Split(Regex(TEKKEN), "isolated")],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "gpt-2": [],
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 640
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Ranges of letters and pictures.
SCRIPTS = (
    (0x41, 0x7A), (0xC0, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939),
    (0xE01, 0xE3A), (0x1100, 0x1112), (0x3041, 0x3096), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F),
)  # fmt: skip
SIGNS = " \n\t.,;:!?()[]{}<>=+-*/%#@$&_'\"`~^|\\\u00a0\u2028\u3000\u2019\u2581"


@cache
def excerpts() -> tuple[str, ...]:
    """Pieces of problems and their solutions: files that do not change, so that no tokenizer does."""
    paths = [Path(__file__).parent.parent / "data" / name for name in ("gsm8k_30.jsonl", "math500_40.jsonl")]
    text = "\n".join(path.read_text("utf-8") for path in paths)
    return tuple(text[at : at + 400] for at in range(0, len(text), 400))


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Yield texts of many scripts, with signs, numbers, contractions and code in random places."""
    draw = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 12)):
            kind = draw.randrange(6)
            if kind == 0:
                low, high = draw.choice(SCRIPTS)
                parts.append("".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 9))))
            elif kind == 1:
                parts.append(draw.choice(SIGNS) * draw.randint(1, 5))
            elif kind == 2:
                parts.append(f"{draw.choice(['', '-', ' '])}{draw.randrange(10 ** draw.randint(1, 12))}")
            elif kind == 3:
                parts.append(
                    draw.choice(["I'm", "don't", "WE'LL", "it's ", "x_1 = f(y)", "\r\n", "  \n\n ", "</s>", "café"])
                )
            else:
                text = draw.choice(excerpts())
                begin = draw.randrange(len(text))
                parts.append(text[begin : begin + draw.randint(1, 60)])
        yield "".join(parts)


@cache
def byte_tokenizer(split: str) -> str:
    """The JSON of a byte-level BPE with one of SPLITS, trained on some texts."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in ("smollm", "gpt-2"))
    steps = [*SPLITS[split], last]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else last
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(2000, seed=1), trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tokenizer.to_str()


@cache
def piece_tokenizer(family: str) -> str:
    """The JSON of a BPE over pieces, with bytes for the rest, as transformers has that of Llama 2 or Gemma."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    singles = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10, special_tokens=["<pad>", "</s>", "<s>", "<unk>", *singles], show_progress=False,
        limit_alphabet=100,
    )  # fmt: skip
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trained.train_from_iterator(texts(2000, seed=1), trainer)
    content = json.loads(trained.to_str())
    model = content["model"]
    words, rank = model["vocab"], {"".join(pair): n for n, pair in enumerate(model["merges"])}
    pairs = [
        (token[:at], token[at:]) for token in sorted(rank, key=lambda one: rank[one]) for at in range(1, len(token))
        if token[:at] in words and token[at:] in words
    ]  # fmt: skip
    pairs = sorted(pairs, key=lambda pair: rank["".join(pair)])
    full = Tokenizer(models.BPE(words, pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    full.normalizer = (
        normalizers.Replace(" ", "\u2581") if family == "gemma"
        else normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    )  # fmt: skip
    full.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    full.add_special_tokens(["<pad>", "</s>", "<s>"])
    return full.to_str()


def make_gguf_model(kind: str, folder: Path, split: str = "qwen2", **changes: Any) -> None:
    """Write a random model of a type, with a tokenizer that splits words so and a chat template."""
    usual: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "num_hidden_layers": 3}
    usual |= {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "sliding_window": None}
    if kind.startswith("qwen"):
        usual |= {"use_sliding_window": False}
    if kind == "qwen3_moe":
        usual |= {"mlp_only_layers": [], "norm_topk_prob": True, "moe_intermediate_size": 96}
    if kind == "gemma3_text":
        usual |= {"sliding_window": 512, "query_pre_attn_scalar": 32}
    make_random_model(kind, folder, **usual | changes)
    is_bytes = split in SPLITS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_tokenizer(split) if is_bytes else piece_tokenizer(split)),
        **({"eos_token": SPECIAL[2], "pad_token": SPECIAL[0]} if is_bytes else
           {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}),
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def tensors_in(path: Path) -> dict[str, np.ndarray]:
    """The float32 values of a GGUF file's tensors by name, as the library reads them."""
    return {
        one.name: gguf.quants.dequantize(one.data, one.tensor_type).reshape([int(n) for n in reversed(one.shape)])
        for one in gguf.GGUFReader(path).tensors
    }


def metadata_in(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, as the library reads it."""
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def halves_to_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of heads in llama.cpp's order, in which the two that rotate together are neighbours."""
    size = len(rows) // heads
    order = [head * size + part * (size // 2) + n for head in range(heads) for n in range(size // 2) for part in (0, 1)]
    return rows[order]


def write_gguf(path: Path, like: Path, architecture: str, settings: dict[str, Any], shapes: dict[str, Any]) -> None:
    """Write a GGUF file of zeros with the tokenizer of another. settings: keys without the architecture's name.

    shapes: of tensors outside blocks, and, with `{}` for the number, of those of each block.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, field in gguf.GGUFReader(like).fields.items():
        if key.startswith("tokenizer."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for key, value in settings.items():
        kind = gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.UINT32
        writer.add_key_value(f"{architecture}.{key}", value, kind)
    for name, shape in shapes.items():
        for block in range(settings["block_count"] if "{}" in name else 1):
            writer.add_tensor(name.format(block), np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_mamba_gguf(path: Path, like: Path, layers: int, width: int, state: int, kernel: int) -> None:
    """Write a GGUF file of Mamba, whose inner width is twice its width."""
    inner, rank = 2 * width, 8
    settings = {
        "context_length": 32768, "embedding_length": width, "feed_forward_length": 0, "block_count": layers,
        "attention.head_count": 0, "attention.layer_norm_rms_epsilon": 1e-5, "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": rank,
    }  # fmt: skip
    of_block = {
        "attn_norm.weight": width, "ssm_in.weight": (2 * inner, width), "ssm_conv1d.weight": (inner, kernel),
        "ssm_conv1d.bias": inner, "ssm_x.weight": (rank + 2 * state, inner), "ssm_dt.weight": (inner, rank),
        "ssm_dt.bias": inner, "ssm_a": (inner, state), "ssm_d": inner, "ssm_out.weight": (width, inner),
    }  # fmt: skip
    outer = {"token_embd.weight": (VOCABULARY, width), "output_norm.weight": width}
    write_gguf(path, like, "mamba", settings, outer | {f"blk.{{}}.{name}": shape for name, shape in of_block.items()})


def write_mla_gguf(path: Path, like: Path, layers: int, latent: int, rotated: int) -> None:
    """Write a GGUF file of DeepSeek's latent attention. latent, rotated: numbers of a token that it keeps."""
    width, heads, plain, value, inner, rank = 64, 4, 32, 32, 96, 24
    settings = {
        "context_length": 32768, "embedding_length": width, "feed_forward_length": inner, "block_count": layers,
        "attention.head_count": heads, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5,
        "leading_dense_block_count": layers, "attention.kv_lora_rank": latent, "attention.q_lora_rank": rank,
        "attention.key_length": latent + rotated, "attention.value_length": latent, "vocab_size": VOCABULARY,
        "attention.key_length_mla": plain + rotated, "attention.value_length_mla": value, "expert_count": 4,
        "rope.dimension_count": rotated, "expert_used_count": 2, "expert_feed_forward_length": inner,
        "expert_shared_count": 1, "expert_weights_scale": 1.0,
    }  # fmt: skip
    of_block = {
        "attn_norm.weight": width, "attn_q_a_norm.weight": rank, "attn_kv_a_norm.weight": latent,
        "attn_q_a.weight": (rank, width), "attn_q_b.weight": (heads * (plain + rotated), rank),
        "attn_kv_a_mqa.weight": (latent + rotated, width), "attn_k_b.weight": (heads, latent, plain),
        "attn_v_b.weight": (heads, value, latent), "attn_output.weight": (width, heads * value),
        "ffn_norm.weight": width, "ffn_gate.weight": (inner, width), "ffn_down.weight": (width, inner),
        "ffn_up.weight": (inner, width),
    }  # fmt: skip
    shape = (VOCABULARY, width)
    outer = {"token_embd.weight": shape, "output_norm.weight": width, "output.weight": shape}
    write_gguf(path, like, "deepseek2", settings, outer | {f"blk.{{}}.{name}": one for name, one in of_block.items()})
