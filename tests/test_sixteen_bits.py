"""Models that compute in float32 with weights in 16 bits: as the float32 model, in half of its memory."""

from typing import Any, cast

import pytest
import torch
from tiny_models import FAMILIES, make_model
from torch import nn
from transformers import AutoModelForCausalLM

from prunus.evaluation.backends.hf import HFBackend, load_model
from prunus.evaluation.requests import Request, Sampling
from prunus.native import load as library
from prunus.sparse import DenseLinear, sixteen_bits
from prunus.sparse.linear import ANY_ROWS
from prunus.sparse.sixteen_bits import WideningEmbedding, compute_dtype, kept_of, to_float32
from prunus.study.engine import blocks_kept, overwrite

pytestmark = pytest.mark.skipif(library.kernel().library is None, reason=library.kernel().reason)
IDS = torch.tensor([[5, 9, 200, 31, 7], [1, 2, 3, 4, 300]])


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Small models count, and nothing is timed: the kernel multiplies up to 64 rows, panels are for more."""
    monkeypatch.setattr(sixteen_bits, "LEAST_PARAMETERS", 0)
    monkeypatch.setattr(sixteen_bits, "kernel_rows", lambda weight, dtype: 64)


def made(folder, family="qwen2", dtype=torch.bfloat16, tied=True):
    return make_model(folder, family, dtype=dtype, tied=tied, hidden_size=64)


def in_float32(folder) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def nbytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@torch.inference_mode()
def logits(model, ids=IDS):
    return model(ids).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_are_those_of_float32_in_half_of_the_memory(family, dtype, tmp_path):
    folder = made(tmp_path / "model", family, dtype, tied=family != "llama")
    expected, model = in_float32(folder), cast("Any", load_model(folder, "cpu"))
    kept = kept_of(model)
    assert kept is not None and kept.linears == kept.of == 22 and kept.dtype == dtype
    assert compute_dtype(model) == torch.float32
    assert nbytes(model) < 0.52 * nbytes(expected)
    for ids in (IDS, IDS[:1, :1], IDS.repeat(1, 40)):  # few rows, one, and panels
        found = logits(model, ids)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, logits(expected, ids), rtol=1e-4, atol=1e-4)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (family != "llama")


def test_rows_of_a_batch_are_those_of_float32(tmp_path):
    folder = made(tmp_path / "model")
    ours = HFBackend.load(folder, "cpu")
    assert ours.description["dtype"] == "float32"
    assert str(ours.description["kernel"]).startswith(f"bfloat16 weights ({library.kernel().name}): 22 of 22 Linears, ")
    theirs = HFBackend(in_float32(folder), ours.vocabulary)
    requests = [Request(list(range(3, 8 + n)), 12, frozenset({5}), frozenset(), n) for n in range(5)]
    for sampling in (Sampling(0.0), Sampling(1.0, 0.95, 20)):
        assert ours.generate(requests, sampling) == theirs.generate(requests, sampling)


def test_a_variant_is_swapped_in_and_out(tmp_path):
    folder = made(tmp_path / "model")
    stored = (folder / "model.safetensors").read_bytes()
    model, expected, name = load_model(folder, "cpu"), in_float32(folder), "model.layers.0.mlp.up_proj.weight"
    before, pruned = model.get_parameter(name).clone(), model.get_parameter(name).detach().clone()
    pruned[::2] = 0
    dense = logits(model)
    overwrite(model, name, pruned)
    expected.get_parameter(name).data.copy_(pruned)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
    with blocks_kept(model, [0, 2]), blocks_kept(expected, [0, 2]):
        torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
    overwrite(model, name, before)
    assert torch.equal(logits(model), dense)
    assert (folder / "model.safetensors").read_bytes() == stored, "weights may be mapped from the file"


def test_what_is_left_as_it_is(tmp_path, monkeypatch):
    folder = made(tmp_path / "model")
    assert kept_of(load_model(folder, "cpu", sparse=False)) is None
    assert kept_of(load_model(folder, "cpu", torch.bfloat16)) is None
    assert kept_of(load_model(made(tmp_path / "wide", dtype=torch.float32), "cpu")) is None
    monkeypatch.setattr(sixteen_bits, "LEAST_PARAMETERS", 10**9)
    assert kept_of(load_model(folder, "cpu")) is None


def test_only_shapes_where_the_kernel_wins(tmp_path, monkeypatch):
    folder = made(tmp_path / "model")
    monkeypatch.setattr(sixteen_bits, "kernel_rows", lambda weight, dtype: ANY_ROWS if len(weight) > 64 else 0)
    model = load_model(folder, "cpu")
    kinds = {
        (type(module), module.weight.dtype) for module in model.modules() if isinstance(module, nn.Linear | DenseLinear)
    }
    assert kinds == {(nn.Linear, torch.float32), (DenseLinear, torch.bfloat16)}
    torch.testing.assert_close(logits(model), logits(in_float32(folder)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flaw", ["converts x", "uses the weight", "wrong"])
def test_a_model_whose_code_needs_one_dtype_becomes_float32(flaw, tmp_path, monkeypatch):
    """It is tried with a few tokens; if that fails, nothing of the attempt is left."""
    folder = made(tmp_path / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    if flaw == "converts x":
        mlp.forward = lambda x: plain(x.to(mlp.up_proj.weight.dtype)).to(x.dtype)
    elif flaw == "uses the weight":
        mlp.forward = lambda x: plain(x) + nn.functional.linear(x, mlp.up_proj.weight).mean(-1, keepdim=True)
    else:
        monkeypatch.setattr(
            WideningEmbedding, "forward", lambda self, ids: nn.Embedding.forward(self, ids).float() * 3 + 1
        )
    model = to_float32(model)
    assert kept_of(model) is None and model.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(isinstance(module, DenseLinear | WideningEmbedding) for module in model.modules())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    if flaw != "uses the weight":
        torch.testing.assert_close(logits(model), logits(in_float32(folder)))
