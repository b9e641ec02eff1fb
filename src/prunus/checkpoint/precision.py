"""Products of float32 matrices that are float32, by the fastest library that gives them, and what is made of them in 16
bits: attention, and Linears where the processor has no products of 16-bit floats.

Shapes: N rows of numbers, I input features, O output features.
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

ROUNDING = 1e-5  # of the largest element: above what float32 leaves of sums of 1024, far below what TF32 or bfloat16 do
# With fewer rows, copying a weight takes longer than multiplying it as slowly as torch does.
ROWS_WORTH_COPYING = 32
PANEL = 1 << 20  # weights that are copied at a time
_ASK_TORCH = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


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
AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)  # without it sliding windows would not be honoured


def use_fast_products(network: nn.Module) -> None:
    """Make the Linears of a network on a CPU Float32ProductLinears where that is faster; nothing else changes."""
    for module in network.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and multiplies_slowly(module.weight.dtype):
            module.__class__ = Float32ProductLinear


@cache
def multiplies_slowly(dtype: torch.dtype) -> bool:
    """Whether torch has but a plain loop for products of this type on this CPU, such as AVX2 for bfloat16."""
    if dtype not in _ASK_TORCH:
        return False
    has_products = getattr(torch.ops.mkldnn, _ASK_TORCH[dtype], None)  # absent: torch without oneDNN
    return has_products is None or not has_products()


class Float32ProductLinear(nn.Linear):
    """A Linear in 16 bits that multiplies float32 copies, a panel of its weight at a time, and rounds the sums once.

    So do processors with products of 16-bit floats, and torch's loop: only the order of the sums is another.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) to (..., O). A few rows take torch's loop, and so does what needs a gradient."""
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
