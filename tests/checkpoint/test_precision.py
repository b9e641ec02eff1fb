"""float32 products stay float32, whichever library makes them."""

from typing import Any

import pytest
import torch
from random_models import tiny_config
from transformers import AttentionInterface, AutoModelForCausalLM

from prunus.checkpoint import precision
from prunus.checkpoint.precision import (
    FLOAT32_ATTENTION,
    ROUNDING,
    Float32ProductLinear,
    attention_for,
    full_float32,
    medium_is_float32,
    multiplies_slowly,
    use_fast_products,
)

CPU = torch.device("cpu")


def error(left: torch.Tensor, right: torch.Tensor) -> float:
    exact = left.double() @ right.double()
    return float(((left @ right).double() - exact).abs().max() / exact.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 4096, 64), (512, 576, 1536), (1, 300, 7)])
def test_products_are_as_exact_as_float32(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    with full_float32(CPU):
        assert error(left, right) < ROUNDING
        gram = left.T[:300] @ left
    torch.testing.assert_close(gram.double(), left.double().T[:300] @ left.double(), rtol=1e-4, atol=1e-3)
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


def linear_in(dtype: torch.dtype, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(40, 70, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("panel", [1, 1000, precision.PANEL])
def test_products_of_float32_copies_are_the_exact_ones_rounded_once(monkeypatch, dtype, bias, panel):
    monkeypatch.setattr(precision, "PANEL", panel)
    monkeypatch.setattr(precision, "multiplies_slowly", lambda _: True)
    network = torch.nn.Sequential(linear_in(dtype, bias))
    before = network[0].state_dict()
    use_fast_products(network)
    assert type(network[0]) is Float32ProductLinear and network[0].state_dict().keys() == before.keys()
    input_NTI = torch.randn(3, 50, 40).to(dtype)
    exact = torch.nn.functional.linear(input_NTI.double(), *(tensor.double() for tensor in before.values()))
    found = network(input_NTI)
    assert found.dtype == dtype and found.shape == exact.shape
    # Half a unit in the last place, and a little for the order of sums in float32.
    assert ((found.double() - exact).abs() <= 0.501 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


def test_few_rows_and_gradients_take_torchs_way(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_slowly", lambda _: True)
    fast = linear_in(torch.bfloat16)
    use_fast_products(fast)
    plain = linear_in(torch.bfloat16)
    rows = precision.ROWS_WORTH_COPYING
    taken = []
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: taken.append(1) or tensor.to(torch.float32))
    few, many = (torch.randn(count, 40).bfloat16() for count in (rows - 1, rows))
    assert torch.equal(fast(few), plain(few)) and not taken
    needing = many.clone().requires_grad_()
    fast(needing).sum().backward()
    assert needing.grad is not None and not taken
    fast(many)
    assert taken


def test_only_linears_in_16_bits_on_a_cpu_without_such_products_are_changed(monkeypatch):
    assert not multiplies_slowly(torch.float32)
    for dtype, slow, expected in [
        (torch.bfloat16, True, Float32ProductLinear),
        (torch.bfloat16, False, torch.nn.Linear),
        (torch.float32, None, torch.nn.Linear),
    ]:
        if slow is not None:
            monkeypatch.setattr(precision, "multiplies_slowly", lambda _, slow=slow: slow)
        linear = linear_in(dtype)
        use_fast_products(linear)
        assert type(linear) is expected
    monkeypatch.setattr(precision, "multiplies_slowly", lambda _: True)
    elsewhere = linear_in(torch.bfloat16).to("meta")
    use_fast_products(elsewhere)
    assert type(elsewhere) is torch.nn.Linear


def test_attention_on_float32_copies_keeps_to_sliding_windows():
    config = tiny_config("mistral", sliding_window=8)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits.float()
        model.set_attn_implementation(FLOAT32_ATTENTION)
        found = model(input_ids=ids).logits.float()
        model.config.sliding_window = None
        everything = model(input_ids=ids).logits.float()
    size = expected.abs().max()
    assert (found - expected).abs().max() < 0.02 * size < (everything - expected).abs().max()
