"""The bytes of a cache are those that transformers itself allocates, for every type that it can run.

transformers keeps one input more than a convolution needs, and a window less the token that is coming.
"""

import io
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_models import TYPES, tiny_config
from rich.console import Console
from tiny_models import make_model
from transformers import AutoModelForCausalLM, DynamicCache

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import resolve_plan
from prunus.reporting.terminal import detail_tables, verdict_table
from prunus.settings.cache_size import CacheOfChain, CacheSize, cache_size, in_all
from prunus.settings.serving import Serving

FACTS = json.loads((Path(__file__).parents[2] / "docs" / "models.json").read_text())["types"]
# A transformers that is newer than the page has types that the page does not know yet.
KEEPING = [kind for kind in TYPES if (of := FACTS.get(kind, {})).get("kind") == "decoder" or "refused" in of]
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
    "gemma4_text": {"per_layer_config": {block: {"head_dim": 32, "num_key_value_heads": 1} for block in (1, 3, 5)}},
    "llama4_text": {"attention_chunk_size": 8},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 5}},
    "xlstm": {"qk_dim_factor": 1.0},
}
# Of these transformers keeps other numbers than engines do, which test_other_numbers compares.
ELSEWHERE = {"cpmant", "minicpm3", "openai-gpt", "xlm", "dory", "xmod"}


def printed(table: Any) -> str:
    """A table as 120 columns of plain text."""
    stream = io.StringIO()
    Console(file=stream, width=120).print(table)
    return stream.getvalue()


def shaped(kind: str) -> Any:
    """A tiny configuration whose sizes differ."""
    # That of Gemma 4 differs between its layers, which have all of its sizes.
    text = tiny_config(kind).get_text_config(decoder=True)
    found = {} if kind.startswith("gemma4") else {k: n for k, n in DISTINCT.items() if getattr(text, k, None)}
    return tiny_config(kind, **found | OWN.get(kind, {}))


def allocated(config: Any, tokens: int = TOKENS) -> tuple[int, int]:
    """(numbers that grow with tokens, numbers of states) that transformers keeps after it has read `tokens` ids."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).float().eval()
    given = {"cache": DynamicCache(config=config)} if config.model_type == "recurrent_gemma" else {}
    with torch.no_grad():
        out = model(torch.randint(3, 100, (1, tokens)), use_cache=True, **given)
    out = {**out, **given}
    cache, kept, states = out.get("cache", out.get("past_key_values")), 0, 0
    for layer in getattr(cache, "layers", ()):
        parts = vars(layer)
        values = None if parts.get("values") is parts.get("keys") else parts.get("values")
        compressed = parts.get("compressed_kv", {}).values()
        tensors = [parts.get("keys"), values, parts.get("indexer_keys"), parts.get("idx_keys"), *compressed]
        kept += sum(one.numel() for one in tensors if one is not None)
        for one in parts.get("conv_states", {}).values():
            # ZAYA has two convolutions and keeps what both need.
            states += 0 if one is None else one.numel() - one[..., 0].numel() * (config.model_type != "zaya")
        states += sum(one.numel() for one in parts.get("recurrent_states", {}).values() if one is not None)
    states += sum(len(one) and one.numel() for one in getattr(cache, "linear_cache", ()))  # MiniMax
    states += sum(one.numel() for of in getattr(cache, "rnn_state", {}).values() for one in of)  # xLSTM
    states += sum(one.numel() for one in out.get("state") or ())  # RWKV
    for module in model.modules():  # RecurrentGemma
        for name in ("conv1d_state", "recurrent_states"):
            states += one.numel() if torch.is_tensor(one := getattr(module, name, None)) else 0
    return kept, states


def without_the_next(found: CacheSize) -> int:
    """The numbers that grow with tokens, in windows less the token that is coming."""
    windows = {str(int(window) - 1): size for window, size in found.windows.items()}
    return replace(found, windows=windows, constant=0).nbytes(TOKENS) // 4


@pytest.mark.thorough("llama", "qwen3", "gemma3_text", "deepseek_v3", "mamba2", "qwen3_next", "gpt_oss")
@pytest.mark.parametrize("kind", [kind for kind in KEEPING if kind not in ELSEWHERE])
def test_numbers_are_those_that_transformers_keeps(kind):
    config = shaped(kind)
    found = cache_size(config, "f32", convolution="f32", recurrent="f32")
    assert found is not None
    assert (without_the_next(found), found.constant // 4) == allocated(config)
    assert found.nbytes(TOKENS) > 0


def test_other_numbers():
    """Those of which transformers keeps others than engines, none at all, or does not run the type."""
    expanded = tiny_config("minicpm3")  # transformers keeps latents; vLLM and llama.cpp keys and values of all heads
    found, size = cache_size(expanded), expanded.qk_nope_head_dim + expanded.qk_rope_head_dim
    assert found is not None and found.per_token == 4 * 4 * 2 * size * 2
    for kind, blocks in (("openai-gpt", 4), ("xlm", 4), ("cpmant", 4)):
        found = cache_size(tiny_config(kind))
        assert found is not None and found.per_token == blocks * 2 * 64 * 2, kind
    assert cache_size(tiny_config("bart")) is None and cache_size(tiny_config("bert")) is None


def test_types_of_numbers():
    """A block of llama.cpp has 32 numbers; what is left over takes a whole one."""
    config = tiny_config("qwen3", use_sliding_window=False)  # 4 blocks with 2 heads of 16
    for keys, values, row in (("f16", None, 128), ("fp8", None, 64), ("q8_0", "q4_0", 34 + 18), ("q5_1", "f16", 88)):
        found = cache_size(config, keys, values)
        assert found is not None and found.per_token == 4 * row
        assert (found.nbytes(10), found.nbytes(10, sequences=3)) == (40 * row, 120 * row)
    odd = cache_size(tiny_config("qwen3", use_sliding_window=False, head_dim=20), "q8_0")
    assert odd is not None and odd.per_token == 4 * 2 * 2 * 34
    with pytest.raises(PrunusError, match="'q9' is no type of numbers in a cache: take f32, bf16, "):
        cache_size(config, "q9")


def test_windows_stop_growing_and_states_never_do():
    config = tiny_config("gemma2")  # 2 of 4 blocks with a window of 8
    found = cache_size(config)
    assert found == CacheSize(keys="bf16", values="bf16", per_token=256, windows={"8": 256}, constant=0)
    assert found is not None and [found.nbytes(n) for n in (1, 8, 9)] == [512, 4096, 4352]
    found = cache_size(tiny_config("mamba"), recurrent="f32")
    assert found is not None and found.nbytes(1) == found.nbytes(1000) == 4 * (96 * 3 * 2 + 96 * 16 * 4)
    assert cache_size(tiny_config("qwen3_5_text", mamba_ssm_dtype="float32")) != cache_size(tiny_config("qwen3_5_text"))


def test_damaged_configurations_have_no_size():
    """Nor does one of a kind that nobody knows; a plain one has that of the same type."""
    content = tiny_config("qwen3").to_dict()
    assert cache_size(SimpleNamespace(**content)) == cache_size(tiny_config("qwen3"))
    for changes in (
        {"num_hidden_layers": None}, {"num_attention_heads": 0, "head_dim": None}, {"layer_types": ["new"] * 4},
        {"hidden_size": "wide", "head_dim": None}, {"layer_types": ["full_attention"]},
    ):  # fmt: skip
        assert cache_size(SimpleNamespace(**content | changes)) is None, changes


@pytest.mark.slow
def test_fewer_blocks_and_heads_keep_less(tmp_path):
    dense = make_model(tmp_path / "m", "qwen3", blocks=3)
    prunus.drop(dense, tmp_path / "dropped", prunus.DropRecipe(blocks="1,"))
    prunus.width(dense, tmp_path / "narrow", prunus.WidthRecipe(method="random", fit=False, keep=0.5))
    whole, dropped, narrow = (
        prunus.inspect(folder, tokens=1000).to_json() for folder in (dense, tmp_path / "dropped", tmp_path / "narrow")
    )
    per_token = 3 * 2 * 2 * 12 * 2  # blocks, keys and values, heads, their size, bytes
    assert [one["cache"]["per_token"] for one in (whole, dropped, narrow)] == [per_token, per_token * 2 / 3, per_token]
    for one in (whole, dropped, narrow):
        assert one["memory_bytes"] == sum(one["bytes"].values()) + 1000 * one["cache"]["per_token"]
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 1}))
    found = ModelFolder(dense).cache_size()
    assert found is not None and found.per_token == per_token / 2


@pytest.mark.parametrize(
    ("given", "types"),
    [
        (Serving(), ("bf16", "bf16")),
        (Serving(args={"kv_cache_dtype": "fp8_e5m2"}), ("fp8", "fp8")),
        (Serving(args={"kv_cache_dtype": "turboquant_4bit"}), None),
        (Serving(words=("-ctk q8_0", "-fa on")), ("q8_0", "bf16")),
        (Serving(words=("--cache-type-k q5_1", "--cache-type-v q4_0")), ("q5_1", "q4_0")),
        (Serving(words=("--kv-cache-dtype fp8",)), ("fp8", "fp8")),
        (Serving(environment={"LLAMA_ARG_CACHE_TYPE_V": "f32"}), ("bf16", "f32")),
    ],
)
def test_a_serving_says_the_types(given, types):
    assert given.cache_types("bf16") == types


def test_what_is_no_size_of_a_cache_is_refused():
    sound = CacheOfChain(keys="f16", values="f16", per_token=10, windows={"4": 2}, constant=3, tokens=6)
    assert CacheOfChain.stored(sound.to_json()) == sound and sound.longest == 71
    for changes in (
        {"per_token": "10"}, {"tokens": -1}, {"windows": {"x": 1}}, {"windows": [1]}, {"constant": None}, {"new": 1},
        {"per_token": float("inf")}, {"tokens": 1 << 70},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^it "):
            CacheOfChain.stored(sound.to_json() | changes)


def test_sizes_are_compared_at_the_same_number_of_tokens():
    """And of weights alone where a cache is not known, as in stores of earlier versions."""
    cache = CacheOfChain(keys="f16", values="f16", per_token=10, windows={}, constant=3, tokens=6)
    assert in_all([(100, cache), (50, replace(cache, tokens=20)), (None, None)]) == ([303, 253, None], 20)
    assert in_all([(100, cache), (50, None)]) == ([100, 50], None)
    assert in_all([(None, None)]) == ([None], None)


@pytest.mark.slow
def test_runs_tell_the_cache_of_their_longest_chain(tmp_path):
    """In the comparison, its table, the page and the card; a run of an earlier version has none, and then no run."""
    prunus.drop("tiny", tmp_path / "drop-1", prunus.DropRecipe(method="tail", blocks="1"))
    plan, store = prunus.EvalPlan(tasks=("tiny",), limit=2, budgets=(4, 16), answer_tokens=4), tmp_path / "results.db"
    for model in ("tiny", str(tmp_path / "drop-1")):
        prunus.evaluate(model, plan, store, device="cpu")
    found = prunus.compare(store, resamples=100)
    base, (entry,) = found.base, found.others
    assert base.cache is not None and entry.cache is not None and base.bytes is not None and entry.bytes is not None
    of_block = 2 * 2 * 32 * 2  # keys and values, heads, their size, bytes
    assert (base.cache.per_token, entry.cache.per_token) == (8 * of_block, 7 * of_block)
    tokens = base.cache.tokens
    source = Checkpoint(resolve("tiny"))
    work = resolve_plan(source, load_tokenizer(source.folder), plan)
    assert tokens == entry.cache.tokens == max(len(chain.prompt) for chain in work.chains) + 16
    both = (base.bytes, base.cache), (entry.bytes, entry.cache)
    sizes = [sum(weights.values()) + tokens * int(cache.per_token) for weights, cache in both]
    assert found.to_json()["others"][0]["cache"]["windows"] == {}
    table = printed(verdict_table(found))
    assert f" {sizes[0] / 1e6:,.1f} MB" in table and f" {100 * sizes[1] / sizes[0]:.0f} % " in table
    assert f"size: weights, and the cache of a chain of {tokens} tokens, the longest prompt and the largest" in table
    assert "kB per token" in printed(detail_tables(found)) and max(map(len, table.splitlines())) <= 120
    prunus.report(store, tmp_path / "page.html", csv=tmp_path / "csv")
    assert f"weights, and the cache of an answer of {tokens} tokens" in (tmp_path / "page.html").read_text()
    (rows,) = [path.read_text() for path in (tmp_path / "csv").glob("bytes*.csv")]
    assert f",{tokens * int(base.cache.per_token)}," in rows and f",{sizes[1]}," in rows
    prunus.card(tmp_path / "drop-1", store=store)
    card = (tmp_path / "drop-1" / "README.md").read_text()
    assert "The cache of a sequence adds 1.8 kB per token (keys and values bf16)." in card
    assert f"({tokens} tokens) it is {show_bytes(sizes[1])}." in card
    with sqlite3.connect(store) as opened:
        opened.execute("UPDATE run SET model = json_remove(model, '$.cache') WHERE run_id = ?", (base.run,))
    table = printed(verdict_table(prunus.compare(store, resamples=100)))
    assert "size: weights" not in table and f" {sum(base.bytes.values()) / 1e6:,.1f} MB" in table
