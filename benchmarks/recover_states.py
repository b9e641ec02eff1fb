"""Which state of a trained block to keep, and ways to round it to the checkpoint's dtype, on the same trained blocks.

`python benchmarks/recover_states.py PRUNED --dense MODEL --calibration traces:FILE [--apart FILE]` recovers PRUNED.
Each block is trained once, its best state kept in float32, and then rounded in every way, of which one goes on to the
next block. Printed are held-out errors, and with --apart the divergence of the whole model from the dense one.

plain: to the nearest. stochastic: up or down by chance, so that the mean is the weight. error-fed: columns in turn, the
error of each moved to the row's later kept weights, so that the Linear's outputs on the calibration tokens change least
(the rule of GPTQ, arXiv:2210.17323, with the inverse of the Hessian of each row's kept weights). none: float32, which
no way of rounding can be expected to beat by much. The mean of the last two and of all ends of epochs is in float32,
too.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from end_to_end import divergence, read_sequences
from torch import Tensor, nn

import prunus
from prunus.checkpoint.resolve import resolve
from prunus.pruning import recover as recovering
from prunus.pruning import recovery as fitting
from prunus.pruning.recovery import Examples, Fit, Trained, mean_error
from prunus.recipes import RecoverRecipe

WAYS = ("plain", "stochastic", "error-fed")
DAMPING = 0.01  # of the mean of a Hessian's diagonal
ROWS = 64  # whose inverses are in memory at once
Rounding = Callable[[Trained, Tensor], Tensor]


def plain(trained: Trained, weight: Tensor) -> Tensor:
    """Return the weight rounded to the nearest."""
    return weight.to(trained.dtype).float()


def stochastic(generator: torch.Generator) -> Rounding:
    """Return stochastic rounding of float32 to bfloat16; zeros stay."""

    def to_one_of_two(trained: Trained, weight: Tensor) -> Tensor:
        assert trained.dtype == torch.bfloat16
        bits = weight.contiguous().view(torch.int32)
        noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32)
        return ((bits + noise) & ~0xFFFF).view(torch.float32)

    return to_one_of_two


def error_fed(hessians: dict[str, Tensor]) -> Rounding:
    """Return rounding that moves errors to later weights; vectors, which have no Hessian, are rounded plainly."""

    def in_turn(trained: Trained, weight: Tensor) -> Tensor:
        if trained.zero is None:
            return plain(trained, weight)
        hessian_II, out_OI = hessians[trained.name.removesuffix(".weight")], weight.clone()
        for first in range(0, len(weight), ROWS):
            feed_rows(out_OI[first : first + ROWS], trained.zero[first : first + ROWS], hessian_II, trained.dtype)
        return out_OI

    return in_turn


def feed_rows(weight_RI: Tensor, zero_RI: Tensor, hessian_II: Tensor, dtype: torch.dtype) -> None:
    """Round rows in place, with errors moved to later kept weights; a zero is left out of the row's Hessian."""
    kept_RI = (~zero_RI).float()
    hessian_RII = hessian_II * kept_RI[:, :, None] * kept_RI[:, None, :]
    hessian_RII += torch.diag_embed(torch.where(zero_RI, 1.0, DAMPING * hessian_II.diagonal().mean()))
    inverse_RII = torch.cholesky_inverse(torch.linalg.cholesky(hessian_RII))
    upper_RII = torch.linalg.cholesky(inverse_RII, upper=True)
    for column in range(weight_RI.shape[1]):
        rounded_R = weight_RI[:, column].to(dtype).float()
        error_R = (weight_RI[:, column] - rounded_R) / upper_RII[:, column, column]
        weight_RI[:, column:] -= error_R[:, None] * upper_RII[:, column, column:] * kept_RI[:, column:]
        weight_RI[:, column] = rounded_R


def hessians_of(block: nn.Module, training: Examples) -> dict[str, Tensor]:
    """Return X^T X of each Linear's inputs on the training examples, in float32."""
    found: dict[str, Tensor] = {}

    def add(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows_SI = inputs[0].detach().flatten(0, -2).float()
            found[name] = found.get(name, 0) + rows_SI.T @ rows_SI

        return hook

    linears = [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(add(name)) for name, module in linears]
    with torch.no_grad():
        for example in training:
            example.run(example.input_NTW, 0)
    for handle in handles:
        handle.remove()
    return found


class Stop(Exception):
    """Raised after the last block that is asked for."""


class Bench:
    """Recovers a model with one way of rounding; errors: of every block, by way, and before training."""

    def __init__(self, way: str, blocks: int | None) -> None:
        self.way, self.blocks, self.errors = way, blocks, []
        self.block: nn.Module | None = None
        self.fit, self.trainable = fitting.fit, recovering.trainable
        self.generator = torch.Generator().manual_seed(0)

    def find(self, block: nn.Module, *arguments: Any) -> list[Trained]:
        """recover's trainable, which remembers the block."""
        self.block = block
        return self.trainable(block, *arguments)

    @torch.no_grad()
    def set(self, parameters: list[Trained], state: list[Tensor], rounding: Rounding | None) -> None:
        """Set the parameters to a state, rounded."""
        for trained, weight in zip(parameters, state, strict=True):
            trained.parameter.copy_(weight if rounding is None else rounding(trained, weight))

    def trained(self, parameters: list[Trained], training: Examples, held_out: Examples, **settings: Any) -> Fit:
        """recover's fit with the best state in float32, which is then rounded in every way."""
        if len(self.errors) == self.blocks:
            raise Stop
        states: list[list[Tensor]] = []  # at the start, at the ends of the epochs, and the best

        def seen(examples: Examples) -> float:
            states.append([p.parameter.detach().clone() for p in parameters])
            return mean_error(examples)

        fitting.mean_error = seen
        try:
            found = self.fit(parameters, training, held_out, **settings)
        finally:
            fitting.mean_error = mean_error
        assert self.block is not None
        state, ends = [p.parameter.detach().clone() for p in parameters], states[1:-1]
        feed = error_fed(hessians_of(self.block, training))
        ways = {"plain": plain, "stochastic": stochastic(self.generator), "error-fed": feed}
        errors = {"before": found.before, "none": found.after}
        for name, some in (("mean of the last two epochs", ends[-2:]), ("mean of all epochs", ends)):
            self.set(parameters, [torch.stack(tensors).mean(0) for tensors in zip(*some, strict=True)], None)
            errors[name] = mean_error(held_out)
        for name in sorted(ways, key=self.way.__eq__):  # the one that is kept comes last
            self.set(parameters, state, ways[name])
            errors[name] = mean_error(held_out)
        self.errors.append(errors)
        return found._replace(after=errors[self.way])

    def run(self, asked: argparse.Namespace, out: Path) -> None:
        """Recover."""
        recipe = RecoverRecipe(
            asked.calibration, calibration_tokens=asked.tokens, seqlen=asked.seqlen, rate=asked.rate,
            step_tokens=asked.step_tokens, seed=asked.seed,
        )  # fmt: skip
        snapshot = fitting.snapshot
        try:
            fitting.snapshot = lambda parameters: [p.parameter.detach().clone() for p in parameters]
            fitting.fit, recovering.trainable = self.trained, self.find  # pyright: ignore
            prunus.recover(asked.pruned, out, recipe, dense=asked.dense, overwrite=True)
        except Stop:
            shutil.rmtree(out.with_name(f"{out.name}.partial"))
        finally:
            fitting.snapshot = snapshot
            fitting.fit, recovering.trainable = self.fit, self.trainable


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--dense", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--apart", type=Path, help="Traces that no calibration has, for the divergence.")
    parser.add_argument("--blocks", type=int, help="Only the first N blocks, with plain rounding between them.")
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--step-tokens", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| way | held-out error, mean of blocks | against float32, % | divergence |\n|---|---:|---:|---:|", flush=True
    )
    for way in WAYS if asked.blocks is None else WAYS[:1]:
        bench, out = Bench(way, asked.blocks), asked.pruned.with_name(f"{asked.pruned.name}-rounded-{way}")
        bench.run(asked, out)
        found = {name: sum(e[name] for e in bench.errors) / len(bench.errors) for name in bench.errors[0]}
        gap = divergence(out, resolve(asked.dense), read_sequences(asked.apart)) if asked.apart else None
        for name, error in found.items():
            kept = f"{gap:.6f}" if gap is not None and name == way else ""
            print(f"| {name} | {error:.6f} | {100 * (error / found['none'] - 1):+.3f} | {kept} |", flush=True)
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
