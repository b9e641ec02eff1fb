"""Cost of a 16-bit Linear by torch's own product and by float32 copies: `python benchmarks/products.py`.

Figures are CPU times on one thread, each the best of several alternating runs. prunus.checkpoint.precision uses copies
where torch reports no 16-bit matrix products for this processor; that report is printed first.
"""

import argparse
import time
from math import ceil

import torch
from torch import nn

from prunus.checkpoint import precision
from prunus.checkpoint.precision import Float32ProductLinear, full_float32, multiplies_slowly

SHAPES = ((1536, 576), (576, 1536), (4096, 4096))
LEAST_SECONDS, ROUNDS = 0.05, 5


def cost(linear: nn.Linear, input_NI: torch.Tensor) -> float:
    """Return the CPU seconds of one call, averaged over enough calls to be timed."""
    started = time.process_time()
    linear(input_NI)
    repeats = ceil(LEAST_SECONDS / max(1e-6, time.process_time() - started))
    started = time.process_time()
    for _ in range(repeats):
        linear(input_NI)
    return (time.process_time() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    dtype = getattr(torch, parser.parse_args().dtype)
    torch.set_num_threads(1)
    precision.ROWS_WORTH_COPYING = 0  # also forced, to see where it pays
    print(f"torch has no fast product of {dtype} here: {multiplies_slowly(dtype)}\n")
    print(
        "| O x I | rows | torch's, ms | float32 copies, ms | ratio | results that differ |\n|---|---|---|---|---|---|"
    )
    with torch.inference_mode(), full_float32(torch.device("cpu")):
        for outputs, inputs in SHAPES:
            plain = nn.Linear(inputs, outputs, bias=False).to(dtype)
            copying = Float32ProductLinear(inputs, outputs, bias=False).to(dtype)
            copying.load_state_dict(plain.state_dict())
            for rows in (1, 8, 32, 512):
                input_NI = torch.randn(rows, inputs).to(dtype)
                differ = float((plain(input_NI) != copying(input_NI)).float().mean())
                found = [(cost(plain, input_NI), cost(copying, input_NI)) for _ in range(ROUNDS)]
                slow, fast = map(min, zip(*found, strict=True))
                ratio = f"{slow / fast:.1f}x | {100 * differ:.2f} %"
                print(f"| {outputs} x {inputs} | {rows} | {1e3 * slow:.2f} | {1e3 * fast:.2f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
