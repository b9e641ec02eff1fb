"""Tables of bytes on pages are those of benchmarks/sizes.py, whose arithmetic is that of real models and files."""

from pathlib import Path

import pytest
import sizes

DOCS = Path(__file__).parents[1] / "docs"
# Qwen2.5-Coder-0.5B as we have it: its head is stored beside the embeddings.
CODER = sizes.SHAPES["0.5B"]._replace(tied=False)


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("one-gpu.md", sizes.weights_table),
        ("one-gpu.md", sizes.cards_table),
        ("laptop.md", sizes.files_table),
        ("memory.md", sizes.memory_table),
        ("cost.md", sizes.cost_tables),
    ],
)
def test_pages_have_the_tables(page, table):
    assert "\n".join(table()) in (DOCS / page).read_text("utf-8")


def test_bytes_are_those_of_files_that_were_measured():
    """docs/measurements/quantise.md has whole files in MB; those of GGUF have 6 of the tokenizer."""
    cells = dict[str, str]()
    for line in (DOCS / "measurements/quantise.md").read_text("utf-8").partition("## Speed")[2].splitlines():
        if line.count("|") == 6:
            name, size = line.split("|")[1:3]
            cells[name.strip()] = size.strip().replace(",", "")
    for name, made, beside in (
        ("vLLM, bf16", sizes.bf16(CODER), 0),
        ("W8A8", sizes.w8a8(CODER), 0),
        ("W4 g128", sizes.w4(CODER), 0),
        ("Q8_0", sizes.gguf(CODER, "q8_0"), 6),
    ):
        assert float(cells[name]) == pytest.approx(made / 1e6 + beside, abs=1.5), name


def test_memory_is_that_of_the_formulas_beside_measured_peaks():
    """docs/memory.md has them for Qwen3-8B's shape and 4,096 tokens of calibration."""
    page, shape, tokens = (DOCS / "memory.md").read_text("utf-8"), sizes.SHAPES["8B"], 8 * 512
    words = " ".join(page.split())
    for method in ("magnitude", "wanda", "sparsegpt"):
        line = next(line for line in page.splitlines() if line.startswith(f"| {method} | ") and line.count("|") == 6)
        assert float(line.split("|")[4]) == pytest.approx(sizes.pruning(shape, method, tokens) / 1e9, abs=0.006)
    assert f"(by formula {sizes.narrowing(shape, tokens, tokens) / 1e9:.2f})" in words
    assert f"takes {21 * shape.block / 1e9:.1f} GB for a block" in words


@pytest.mark.slow
@pytest.mark.parametrize("name", sizes.SHAPES)
def test_numbers_of_weights_are_those_of_transformers(name):
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

    shape = sizes.SHAPES[name]
    settings = {
        "vocab_size": sizes.VOCABULARY,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "tie_word_embeddings": shape.tied,
    }
    config = Qwen2Config(**settings) if shape.biases else Qwen3Config(**settings, head_dim=shape.head)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
