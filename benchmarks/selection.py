"""Speed of the selection in prunus.pruning.masks over a stable full sort: `python benchmarks/selection.py`.

Both do the whole step, from weight to pruned weight, by the same rule on one thread, and must agree bit by bit. Times
are the best of several alternating runs, so that the ratios hold on a busy machine too.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from prunus.pruning.masks import zero_lowest_in_tensor, zero_lowest_per_pattern, zero_lowest_per_row, zeros_wanted


def sorted_rows(weight_OI: Tensor, score_OI: Tensor, sparsity: float) -> Tensor:
    """Return the weight pruned per row by a stable sort of whole rows, as in the Wanda code."""
    order_OI = torch.sort(score_OI, dim=1, stable=True).indices
    count = zeros_wanted(weight_OI.shape[1], sparsity)
    return weight_OI.clone().scatter_(1, order_OI[:, :count], 0)


def sorted_tensor(weight_OI: Tensor, score_OI: Tensor, sparsity: float) -> Tensor:
    """Return the weight pruned over the whole tensor, by a stable sort of all of it."""
    order_N = torch.sort(score_OI.flatten(), stable=True).indices
    pruned_N = weight_OI.flatten().clone()
    pruned_N[order_N[: zeros_wanted(weight_OI.numel(), sparsity)]] = 0
    return pruned_N.view_as(weight_OI)


def sorted_groups(weight_OI: Tensor, score_OI: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Return the weight pruned to n of m by a stable sort of each group; m divides the width."""
    keep, width = pattern
    order_OGM = torch.sort(score_OI.unflatten(1, (-1, width)), dim=2, stable=True).indices
    pruned_OGM = weight_OI.clone().unflatten(1, (-1, width))
    return pruned_OGM.scatter_(2, order_OGM[:, :, : width - keep], 0).flatten(1)


def best_times(functions: list[Callable[[], Tensor]], repeats: int) -> list[float]:
    """Return the seconds of the fastest run of each; runs alternate."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for index, function in enumerate(functions):
            started = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    size = (arguments.size, arguments.size)
    print("| group | weight | sparsity | full sort, ms | selection, ms | ratio |\n|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        weight_OI = torch.randn(size, generator=generator).to(dtype)
        wanda_OI = weight_OI.float().abs() * torch.rand(size[1], generator=generator)
        cases = [
            (group, how, ours, theirs, score_OI)
            for group, hows, ours, theirs, score_OI in (
                ("row (Wanda)", (0.2, 0.5), zero_lowest_per_row, sorted_rows, wanda_OI),
                ("tensor (Magnitude)", (0.2, 0.5), zero_lowest_in_tensor, sorted_tensor, weight_OI.abs()),
                ("pattern (Wanda)", ((2, 4), (4, 8)), zero_lowest_per_pattern, sorted_groups, wanda_OI),
            )
            for how in hows
        ]
        for group, how, ours, theirs, score_OI in cases:
            runs = [partial(function, weight_OI, score_OI, how) for function in (theirs, ours)]
            assert torch.equal(*(run() for run in runs))
            slow, fast = best_times(runs, arguments.repeats)
            name, share = str(dtype).removeprefix("torch."), "{}:{}".format(*how) if isinstance(how, tuple) else how
            print(f"| {group} | {name} | {share} | {1e3 * slow:.0f} | {1e3 * fast:.0f} | {slow / fast:.1f}x |")


if __name__ == "__main__":
    main()
