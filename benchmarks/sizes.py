"""Bytes and times of models of known shapes: tables of docs/cost.md, one-gpu.md, laptop.md and memory.md.

`python benchmarks/sizes.py` prints them. Nothing is run. Shapes are those of Qwen2.5 (0.5B, 1.5B) and Qwen3.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

from prunus.pruning.bits.gguf_mixture import GGML_TYPES, form_in_mixture
from prunus.pruning.bits.gguf_mixture import Shape as Mixed

VOCABULARY = 151_936
TOKENS, BATCH = 128 * 2048, 2048  # of calibration by default, and at once
CHAINS, LENGTH = 64, 1500  # at once on an H100, and their mean length
STEP, BANDWIDTH = 0.002, 2.5e12  # seconds of a step beside reading, and bytes per second that it reads, as assumed
PROBLEMS, BUDGETS, ANSWER = 200, (512, 1024, 2048), 1024  # of the evaluation that is counted
CARDS = (8, 16, 24, 48, 80)  # GiB of a GPU
ROOM, USED, LONGEST, FEWEST = 2e9, 0.9, 4096, 4  # of a GPU: bytes beside, share used; tokens of a chain, least chains


class Shape(NamedTuple):
    """The sizes of a decoder. tied: whether the embeddings are the head. biases: of queries, keys and values."""

    width: int
    feed: int
    blocks: int
    heads: int
    key_heads: int
    head: int
    tied: bool
    biases: bool = False

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(O, I) of a block's Linears, by the names of llama.cpp."""
        queries, keys = self.heads * self.head, self.key_heads * self.head
        return {
            "attn_q": (queries, self.width),
            "attn_k": (keys, self.width),
            "attn_v": (keys, self.width),
            "attn_output": (self.width, queries),
            "ffn_gate": (self.feed, self.width),
            "ffn_up": (self.feed, self.width),
            "ffn_down": (self.width, self.feed),
        }

    @property
    def block(self) -> int:
        """Weights of a block's Linears."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def others(self) -> int:
        """Numbers that are not of these: embeddings, head, norms, biases."""
        small = (self.heads + 2 * self.key_heads) * self.head if self.biases else 2 * self.head
        return VOCABULARY * self.width * (2 - self.tied) + self.blocks * (2 * self.width + small) + self.width

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.blocks * self.block + self.others

    @property
    def cache(self) -> int:
        """Bytes of keys and values of a token, in 16 bits."""
        return 2 * 2 * self.blocks * self.key_heads * self.head


SHAPES = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 64, tied=True, biases=True),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 128, tied=True, biases=True),
    "4B": Shape(2560, 9728, 36, 32, 8, 128, tied=True),
    "8B": Shape(4096, 12288, 36, 32, 8, 128, tied=False),
    "14B": Shape(5120, 17408, 40, 40, 8, 128, tied=False),
    "32B": Shape(5120, 25600, 64, 64, 8, 128, tied=False),
}
FOUR = [SHAPES[name] for name in ("0.5B", "1.5B", "8B", "32B")]


def bf16(shape: Shape) -> float:
    """Bytes of the weights in 16 bits."""
    return 2 * shape.parameters


def w8a8(shape: Shape) -> float:
    """Bytes with the blocks' Linears in 8 bits and a scale for each row, as FP8 with such scales has them, too."""
    rows = sum(rows for rows, _ in shape.linears.values())
    return shape.blocks * (shape.block + 2 * rows) + 2 * shape.others


def w4(shape: Shape) -> float:
    """Bytes with the blocks' Linears in 4 bits and a scale for each group of 128."""
    return shape.blocks * shape.block * (0.5 + 2 / 128) + 2 * shape.others


def gguf(shape: Shape, kind: str) -> float:
    """Bytes of the matrices of a GGUF file of this type."""
    if kind == "q8_0":
        return (shape.blocks * shape.block + VOCABULARY * shape.width * (2 - shape.tied)) * bits_of("Q8_0") / 8
    mixed = Mixed(
        blocks=shape.blocks,
        heads_per_key=shape.heads // shape.key_heads,
        experts=0,
        tied=shape.tied,
        values=tuple(range(shape.blocks)),
        weighted=True,
    )
    bits = 0.0
    for block, (name, (rows, columns)) in product(range(shape.blocks), shape.linears.items()):
        bits += rows * columns * bits_of(form_in_mixture(f"blk.{block}.{name}.weight", block, columns, kind, mixed))
    for name in ["token_embd.weight"] + ["output.weight"] * (not shape.tied):
        bits += VOCABULARY * shape.width * bits_of(form_in_mixture(name, None, shape.width, kind, mixed))
    return bits / 8


def bits_of(form: str) -> float:
    """Bits of a weight in a form of llama.cpp."""
    return 8 * GGML_TYPES[form].nbytes / GGML_TYPES[form].weights


def pruning(shape: Shape, method: str, tokens: int = TOKENS) -> float:
    """Bytes beyond the imports that `prunus prune` takes, by the formula of docs/memory.md.

    tokens: whose states are held.
    """
    block, largest = 2 * shape.block, max(rows * columns for rows, columns in shape.linears.values())
    if method == "magnitude":
        return block + 6 * largest
    held = block + 2 * tokens * shape.width
    batch = BATCH * (14 * shape.feed + 4 * shape.width)
    if method == "wanda":
        return held + max(batch, 8 * largest)
    inputs = (shape.width, shape.heads * shape.head, shape.width, shape.feed)
    return held + 4 * sum(size**2 for size in inputs) + max(batch, 10 * largest + 6 * max(inputs) ** 2)


def narrowing(shape: Shape, tokens: int = TOKENS, calibrated: int = TOKENS) -> float:
    """Bytes beyond the imports that `prunus width` takes. tokens: whose states are held, of those it calibrates on."""
    held, number = min(calibrated // 8, max(2048, shape.feed // 4)), 8 if shape.feed <= 8192 else 4
    fit = number * (3 * shape.feed**2 + 4 * shape.width * shape.feed) + 16 * held * (shape.feed + shape.width)
    batch = 4 * BATCH * (3 * shape.feed + 2 * shape.width)
    return 6 * shape.block + 8 * tokens * shape.width + max(batch, fit)


def recovering(shape: Shape, tokens: int = TOKENS) -> float:
    """Bytes beyond the imports that `prunus recover` takes on a CPU. tokens: whose states are held."""
    outputs = sum(rows for rows, _ in shape.linears.values())
    return 21 * shape.block + 8 * tokens * shape.width + BATCH * 12 * (shape.heads * shape.head + outputs)


def most_tokens() -> int:
    """Tokens that the evaluation takes at most: a chain for all budgets, and an answer for each."""
    return PROBLEMS * (max(BUDGETS) + len(BUDGETS) * ANSWER)


def minutes(shape: Shape, weights: float) -> float:
    """The minutes that an H100 takes for a number of tokens, at the speed that this file assumes."""
    step = STEP + (weights + CHAINS * LENGTH * shape.cache) / BANDWIDTH
    return most_tokens() / CHAINS * step / 60


def chains(shape: Shape, weights: float, card: int) -> int:
    """How many chains of LONGEST tokens a GPU holds beside the weights, as it is assumed."""
    return int((USED * card * 2**30 - ROOM - weights) / (LONGEST * shape.cache))


def in_gb(number: float) -> str:
    """Bytes in GB: two digits where there is one before the point."""
    return f"{number / 1e9:.1f}"


def row(name: str, *cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join((name, *cells))} |"


def weights_table() -> Iterator[str]:
    """GB of weights by form, and MB of the cache of 1,000 tokens."""
    yield row("GB", *SHAPES)
    yield "|---|" + "---:|" * len(SHAPES)
    for name, size in (("bf16", bf16), ("W8A8, FP8", w8a8), ("W4A16, AWQ, GPTQ", w4)):
        yield row(name, *(in_gb(size(shape)) for shape in SHAPES.values()))
    yield row("cache of 1,000 tokens", *(f"{shape.cache / 1e6:.2f}" for shape in SHAPES.values()))


def cards_table() -> Iterator[str]:
    """For each GPU and model the largest form that leaves room for FEWEST chains, and for how many it does."""
    yield row("GPU", *SHAPES)
    yield "|---|" + "---|" * len(SHAPES)
    for card in CARDS:
        cells = list[str]()
        for shape in SHAPES.values():
            forms = (("bf16", bf16), ("8 bits", w8a8), ("4 bits", w4))
            there = [(name, chains(shape, size(shape), card)) for name, size in forms]
            cells.append(next((f"{name}: {number}" for name, number in there if number >= FEWEST), "–"))
        yield row(f"{card} GB", *cells)


def files_table() -> Iterator[str]:
    """GB of GGUF files, and of the cache of four chains."""
    yield row("GB", *SHAPES)
    yield "|---|" + "---:|" * len(SHAPES)
    for kind in ("q8_0", "q4_k_m", "iq4_xs"):
        yield row(f"`{kind}`", *(in_gb(gguf(shape, kind)) for shape in SHAPES.values()))
    yield row("cache, 4 chains of 4,096", *(in_gb(4 * LONGEST * shape.cache) for shape in SHAPES.values()))


def memory_table() -> Iterator[str]:
    """GB beyond the imports of each command, and in brackets with --offload."""
    yield row("GB", "0.5B", "1.5B", "8B", "32B")
    yield "|---|" + "---:|" * len(FOUR)
    yield row("`prune --method magnitude`", *(in_gb(pruning(shape, "magnitude")) for shape in FOUR))
    for name, size in (
        ("prune --method wanda", partial(pruning, method="wanda")),
        ("prune --method sparsegpt", partial(pruning, method="sparsegpt")),
        ("width", narrowing),
        ("recover", recovering),
    ):
        yield row(f"`{name}`", *(f"{in_gb(size(shape))} ({in_gb(size(shape, tokens=BATCH))})" for shape in FOUR))


def cost_tables() -> Iterator[str]:
    """Rows of docs/cost.md that are computed: disk of each result, minutes of an evaluation."""
    for name, size in (("bf16", bf16), ("`quantize`: W8A8", w8a8), ("`quantize --bits 4`", w4)):
        yield row(f"{name}, GB of disk", *(in_gb(size(shape)) for shape in FOUR))
    yield row("`gguf --type q4_k_m`, GB of disk", *(in_gb(gguf(shape, "q4_k_m")) for shape in FOUR))
    yield row("`eval` in W8A8, minutes of an H100", *(f"{minutes(shape, w8a8(shape)):.0f}" for shape in FOUR))


if __name__ == "__main__":
    for table in (weights_table, cards_table, files_table, memory_table, cost_tables):
        print(*table(), "", sep="\n")
