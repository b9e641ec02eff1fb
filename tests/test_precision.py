"""float32 products stay float32, whichever library makes them."""

from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from prunus.checkpoint.precision import FLOAT32_ATTENTION, ROUNDING, attention_for, full_float32, medium_is_float32

CPU = torch.device("cpu")


def error(left: torch.Tensor, right: torch.Tensor) -> float:
    exact = left.double() @ right.double()
    return float(((left @ right).double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("shape", [(64, 4096, 64), (512, 576, 1536), (1, 300, 7)])
def test_products_are_as_exact_as_float32(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    with full_float32(CPU):
        assert error(left, right) < ROUNDING
        gram = left.T @ left
    torch.testing.assert_close(gram.double(), left.double().T @ left.double(), rtol=1e-4, atol=1e-3)
    # The bound is one that bfloat16 would break, which is what the probe must notice.
    coarse = (left.bfloat16().double() @ right.bfloat16().double() - left.double() @ right.double()).abs().max()
    assert float(coarse / (left.double() @ right.double()).abs().max()) > 10 * ROUNDING


def test_the_probe_notices_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium" and left.dtype == torch.float32:
            return plain(left.bfloat16().double(), right.bfloat16().double()).float()
        return plain(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not medium_is_float32.__wrapped__()
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_precision_of_before_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), full_float32(CPU):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
    with full_float32(torch.device("meta")):  # any other device: TF32 is not for us
        assert torch.get_float32_matmul_precision() == "highest"


def test_attention_on_float32_copies_rounds_less_than_torchs():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 96, 64).bfloat16() for heads in (6, 2, 2))
    module: Any = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    attend = AttentionInterface()
    exact, _ = attend["sdpa"](module, query.double(), key.double(), value.double(), None)
    errors = {}
    for name in ("sdpa", FLOAT32_ATTENTION):
        found, _ = attend[name](module, query, key, value, None)
        assert found.dtype == torch.bfloat16 and found.shape == exact.shape
        errors[name] = float((found.double() - exact).norm() / exact.norm())
    assert errors[FLOAT32_ATTENTION] < min(errors["sdpa"], 2**-9)


@pytest.mark.skipif(not medium_is_float32(), reason="float32 products are coarse or slow here")
def test_blocks_in_16_bits_run_it_on_a_cpu_only():
    assert attention_for(torch.bfloat16, CPU) == FLOAT32_ATTENTION
    assert attention_for(torch.float32, CPU) == "sdpa" == attention_for(torch.bfloat16, torch.device("meta"))
