"""float32 products stay float32, whichever library makes them."""

import pytest
import torch

from prunus.pruning.precision import ROUNDING, full_float32, medium_is_float32

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
