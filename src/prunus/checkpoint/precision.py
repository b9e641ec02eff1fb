"""Products of float32 matrices that are float32, by the fastest library that gives them, and attention made of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

ROUNDING = 1e-5  # of the largest element: above what float32 leaves of sums of 1024, far below what TF32 or bfloat16 do


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Let torch multiply float32 matrices on a device in float32: with less, Hessians would lose definiteness."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" and medium_is_float32() else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def medium_is_float32() -> bool:
    """Whether torch's `medium` precision costs nothing on this processor.

    It hands products to oneDNN with leave to round to bfloat16, of which oneDNN makes use only where that is faster
    (AMX, Arm). On other processors its float32 products are as exact as MKL's, and on AMD, where MKL leaves AVX-512
    alone, twice as fast. So this measures the error of some products instead of trusting a list of processors.
    """
    before, generator = torch.get_float32_matmul_precision(), torch.Generator().manual_seed(0)
    torch.set_float32_matmul_precision("medium")
    try:
        for rows, inner, columns in ((256, 1024, 512), (2048, 512, 576), (33, 65, 31)):
            left, right = (torch.randn(*shape, generator=generator) for shape in ((rows, inner), (inner, columns)))
            exact = left.double() @ right.double()
            for product in (left @ right, left @ right.T.contiguous().T, left.T.contiguous().T @ right):
                if float((product.double() - exact).abs().max()) > ROUNDING * float(exact.abs().max()):
                    return False
        return True
    finally:
        torch.set_float32_matmul_precision(before)


def attention_for(dtype: torch.dtype, device: torch.device) -> str:
    """Name, for transformers, of the attention that a block in dtype runs on a device.

    Where float32 products are fast, torch's fused attention takes half of its time in 16 bits when given float32
    copies, and rounds less.
    """
    fast = device.type == "cpu" and dtype != torch.float32 and medium_is_float32()
    return FLOAT32_ATTENTION if fast else "sdpa"


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    sdpa: Any = AttentionInterface()["sdpa"]
    output, _ = sdpa(module, query.float(), key.float(), value.float(), mask, **options)
    return output.to(query.dtype), None


FLOAT32_ATTENTION = "prunus_float32"
AttentionInterface.register(FLOAT32_ATTENTION, _attend)
