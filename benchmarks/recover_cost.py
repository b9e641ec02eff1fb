"""Cost of recovering an 8B model on one GPU, by formula: `python benchmarks/recover_cost.py [--tokens N] [--epochs N]`.

docs/measurements/recover.md has the main numbers. Prints floating-point operations, bytes moved, hours at stated speeds
and peak memory. Nothing is run; the shape is that of Qwen3-8B.
"""

import argparse
from typing import NamedTuple

from prunus.pruning.recover.training import ACTIVATION_BYTES, HELD_OUT, TRAINING_BYTES

HALF, FULL = 2, 4  # bytes of bfloat16 and float32
ADAM_BYTES = 7 * FULL  # of a step, per weight: weight, gradient and moments are read, all but the gradient written


class Speed(NamedTuple):
    """What a GPU is assumed to reach: 40 to 50 % of its peak in bfloat16, two thirds in float32; bytes a second."""

    bfloat16: float
    float32: float
    memory: float


SPEEDS = {
    "H100": Speed(400e12, 45e12, 2.5e12),
    "A100": Speed(150e12, 13e12, 1.5e12),
    "RTX 4090": Speed(80e12, 50e12, 0.8e12),
}


class Shape(NamedTuple):
    """A decoder: blocks, hidden size, width of the attention output, keys and values, MLP, vocabulary."""

    blocks: int = 36
    width: int = 4096
    attention: int = 4096
    keys: int = 1024
    feed: int = 12288
    vocabulary: int = 151_936

    @property
    def block(self) -> int:
        """Weights of the Linears of a block."""
        return self.width * (2 * self.attention + 2 * self.keys + 3 * self.feed)

    @property
    def outputs(self) -> int:
        """Numbers that the Linears of a block give out per token."""
        return 2 * self.width + self.attention + 2 * self.keys + 2 * self.feed

    @property
    def whole(self) -> int:
        """All weights, of embedding and head too."""
        return self.blocks * self.block + 2 * self.vocabulary * self.width


class Cost(NamedTuple):
    """Of a recovery. training: operations in bfloat16, there and back. forward: those in float32, of both streams and
    held-out errors. adam_moved, disk_moved: bytes. memory: bytes at the peak, on the device. streams: bytes of hidden
    states, in memory or on the disk. steps: of Adam, of each block.
    """

    training: float
    forward: float
    adam_moved: float
    disk_moved: float
    memory: float
    streams: float
    steps: int

    def hours(self, speed: Speed) -> float:
        """Hours of products and of Adam; without the disk, and without what hides between them."""
        products = self.training / speed.bfloat16 + self.forward / speed.float32
        return (products + self.adam_moved / speed.memory) / 3600


def cost_of(shape: Shape, tokens: int, epochs: int, length: int, step_tokens: int) -> Cost:
    """The cost of a recovery on sequences of a length.

    A pass forward takes 2 operations per weight and token, with attention 4 * T * A per token and block (halved, as no
    token looks ahead); a pass back takes twice that. Training passes forward and back over all but the held-out eighth
    in every epoch. Both streams move through each block once, and held-out tokens run before, after each epoch, and
    at the end.
    """
    trained, held_out = tokens * (1 - 1 / HELD_OUT), tokens / HELD_OUT
    per_token = shape.blocks * (2 * shape.block + 2 * length * shape.attention)
    steps = epochs * round(trained / max(step_tokens, length))
    batch = max(step_tokens, length)
    return Cost(
        training=3 * per_token * trained * epochs,
        forward=per_token * (2 * tokens + held_out * (epochs + 2)),
        adam_moved=steps * ADAM_BYTES * shape.blocks * shape.block,
        disk_moved=HALF * (2 * shape.whole + shape.whole),  # both models read, one written
        memory=(TRAINING_BYTES + HALF) * shape.block + batch * ACTIVATION_BYTES * (shape.width + shape.outputs),
        streams=2 * FULL * tokens * shape.width,
        steps=steps,
    )


def end_to_end_memory(shape: Shape) -> float:
    """Bytes of all weights with Adam in mixed precision, without activations: 2 + 2 + 4 + 4 + 4 a weight."""
    return 16 * shape.whole


def distillation(student: float, teacher: float, tokens: float) -> float:
    """Operations to train a student of `student` weights with the outputs of a teacher on a number of tokens."""
    return (6 * student + 2 * teacher) * tokens


def main() -> None:
    """Print the table, and what others take by the same formulas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128 * 2048)
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--length", type=int, default=2048, help="Tokens of a sequence.")
    parser.add_argument("--step-tokens", type=int, default=512)
    asked = parser.parse_args()
    shape = Shape()
    costs = [cost_of(shape, asked.tokens, epochs, asked.length, asked.step_tokens) for epochs in asked.epochs]
    titles = [f"{epochs} epoch{'s' if epochs > 1 else ''}" for epochs in asked.epochs]
    rows = [
        ("tokens trained on", *(f"{asked.tokens * (1 - 1 / HELD_OUT) * e / 1e3:,.0f}k" for e in asked.epochs)),
        ("steps of Adam per block", *(f"{cost.steps}" for cost in costs)),
        ("operations in bfloat16: training", *(f"{cost.training:.1e}" for cost in costs)),
        ("operations in float32: streams, held-out errors", *(f"{cost.forward:.1e}" for cost in costs)),
        ("bytes that Adam moves", *(f"{cost.adam_moved / 1e12:.1f} TB" for cost in costs)),
        ("bytes read and written on the disk", *(f"{cost.disk_moved / 1e9:.0f} GB" for cost in costs)),
        *((f"hours, {name}", *(f"{cost.hours(speed):.2f}" for cost in costs)) for name, speed in SPEEDS.items()),
        ("peak memory of the device", *(f"{cost.memory / 1e9:.1f} GB" for cost in costs)),
        ("hidden states, in memory or on the disk", *(f"{cost.streams / 1e9:.1f} GB" for cost in costs)),
    ]
    print(f"| Qwen3-8B, {asked.tokens:,} tokens | {' | '.join(titles)} |\n|---|{'---:|' * len(titles)}")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    minitron = distillation(8.4e9, 12.2e9, 380e9)
    hours = minitron / SPEEDS["H100"].bfloat16 / 3600
    print(f"\nMN-Minitron-8B, 380e9 tokens: {minitron:.1e} operations, {hours:,.0f} hours of an H100")
    print(f"end to end with Adam: {end_to_end_memory(shape) / 1e9:.0f} GB without activations")


if __name__ == "__main__":
    main()
