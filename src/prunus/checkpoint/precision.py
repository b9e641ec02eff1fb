"""Exact float32 matrix products on CPUs; attention and Linears for 16-bit weights that accumulate in float32.

Shapes: N rows, I input features, O output features, P outputs of a panel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# Relative to the largest element: above the rounding of float32 sums of 1024 terms, far below that of TF32 or bfloat16.
ROUNDING = 1e-5
# With fewer rows, converting a weight to float32 takes longer than torch's slow product.
ROWS_WORTH_COPYING = 32
PANEL = 1 << 20  # weights that are converted at a time
_ASK_TORCH = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within the context, torch multiplies float32 matrices in full float32.

    With less precision, Hessians may not stay positive definite. On CPUs the fastest setting that is still exact is
    chosen. The old setting is restored afterwards.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if device.type == "cpu" and medium_is_float32() else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def medium_is_float32() -> bool:
    """Whether torch's `medium` precision is as exact as float32 on this processor, from the error of some products.

    With `medium`, torch calls oneDNN and allows it to round to bfloat16, which oneDNN does only where that is faster
    (AMX, Arm). On other processors its float32 products are as exact as MKL's, and on AMD, where MKL does not use
    AVX-512, twice as fast.
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
    """transformers' name of the attention implementation for blocks of this dtype on this device.

    Where float32 products are fast, torch's fused attention takes half the time on float32 copies of 16-bit inputs, and
    rounds less.
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
AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)  # without it sliding windows would be ignored


def with_even_rows(input_SI: Tensor) -> Tensor:
    """The rows, followed on a CPU by rows of zeros, so that their number is one of four between two powers of two.

    oneDNN compiles half a megabyte of code for every number of rows that it multiplies, and keeps that of thousands;
    the numbers of tokens of routed experts are all different.
    """
    rows = len(input_SI)
    missing = -rows % max(1, 1 << max(0, rows.bit_length() - 3)) if input_SI.device.type == "cpu" else 0
    return functional.pad(input_SI, (0, 0, 0, missing)) if missing else input_SI


def use_fast_products(network: nn.Module) -> None:
    """Turn the Linears of a network on a CPU into Float32ProductLinears, in place, where that is faster."""
    for module in network.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and multiplies_slowly(module.weight.dtype):
            module.__class__ = Float32ProductLinear


@cache
def multiplies_slowly(dtype: torch.dtype) -> bool:
    """Whether torch has only a slow loop for products of this dtype on this CPU, as for bfloat16 without AVX-512."""
    if dtype not in _ASK_TORCH:
        return False
    has_products = getattr(torch.ops.mkldnn, _ASK_TORCH[dtype], None)  # None where torch is built without oneDNN
    return has_products is None or not has_products()


class Float32ProductLinear(nn.Linear):
    """A 16-bit Linear that multiplies float32 copies, one panel of its weight at a time, and rounds each sum once.

    16-bit products of processors, and torch's loop, round in the same way; only the order of the sums differs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., O) from (..., I). torch's own loop is used for few rows, and where gradients are needed."""
        needs_grad = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        if needs_grad or input.numel() < ROWS_WORTH_COPYING * self.in_features:
            return super().forward(input)
        input_NI = input.reshape(-1, self.in_features).float()
        output_NO = input.new_empty(len(input_NI), self.out_features)
        panel = max(1, PANEL // self.in_features)
        for begin in range(0, self.out_features, panel):
            weight_PI = self.weight[begin : begin + panel].float()
            bias_P = None if self.bias is None else self.bias[begin : begin + panel].float()
            output_NO[:, begin : begin + panel] = functional.linear(input_NI, weight_PI, bias_P)
        return output_NO.view(*input.shape[:-1], self.out_features)
