"""Models through the sparse kernel: as dense, for every family; compiled, forked, saved; not where it loses."""

import copy
import json
import multiprocessing
import pickle
import shutil
from typing import Any

import pytest
import torch
from packed_models import rounded_folder
from real_llm import half_of_smollm2
from tiny_models import FAMILIES, make_model
from torch import nn
from transformers import AutoModelForCausalLM

import prunus
import prunus.sparse as models_module
from prunus.errors import PrunusError
from prunus.native import load as library
from prunus.recipes import PruneRecipe
from prunus.sparse import DenseLinear, SparseLinear, choose, pack
from prunus.sparse.choose import kernel_rows, race
from prunus.sparse.linear import ANY_ROWS

pytestmark = pytest.mark.xdist_group("sparse model")  # fixtures of the module are made once

needs_kernel = pytest.mark.skipif(library.kernel().library is None, reason=library.kernel().reason)
IDS = torch.tensor([[5, 9, 200, 31, 7], [1, 2, 3, 4, 300]])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """For each family, in bfloat16: a folder with half of the weights zero, and the same packed."""
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        source = make_model(folder / "dense", family, dtype=torch.bfloat16, tied=family != "llama", hidden_size=64)
        prunus.prune(source, folder / "half", PruneRecipe(method="magnitude", sparsity=0.5))
        prunus.pack(folder / "half", folder / "packed")
        made[family] = folder / "half", folder / "packed"
    return made


def dense_model(folder, dtype=torch.float32):
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval()


@torch.inference_mode()
def logits(model, ids=IDS):
    return model(ids).logits


@needs_kernel
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_dense_model(models, family):
    half, packed = models[family]
    expected = logits(dense_model(half))
    for path in (packed, half):
        model = prunus.sparse.load(path, dtype=torch.float32, always_sparse=True)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
        summary = prunus.sparse.describe(model)
        assert (summary.sparse, summary.dense, summary.stock) == (21, 1, 0)
    rounded = prunus.sparse.load(packed, always_sparse=True)
    assert rounded.dtype == torch.bfloat16
    torch_error = (logits(dense_model(half, torch.bfloat16)).float() - expected).norm()
    assert (logits(rounded).float() - expected).norm() < 1.5 * torch_error


@needs_kernel
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_says_what_the_dense_model_says(models, family):
    half, packed = models[family]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = dense_model(half).generate(IDS, **options)
    model: Any = prunus.sparse.load(packed, dtype=torch.float32, always_sparse=True)
    assert model.generate(IDS, **options).tolist() == expected.tolist()


@needs_kernel
def test_sparsify_a_model_in_memory(models):
    half, packed = models["qwen2"]
    model = dense_model(half, torch.bfloat16)
    summary = prunus.sparse.sparsify(model, always_sparse=True)
    assert (summary.sparse, summary.dense, summary.stock) == (21, 1, 0)
    assert summary.nbytes < summary.dense_nbytes
    assert "21 Linears packed" in str(summary)
    assert torch.equal(logits(model), logits(prunus.sparse.load(packed, always_sparse=True)))
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")


@needs_kernel
def test_rounded_and_masked_checkpoints_load_too(models, tmp_path):
    half, _ = models["qwen3"]
    prunus.pack(half, tmp_path / "masks", masks_only=True)
    prunus.unpack(rounded_folder(tmp_path / "rounded"), tmp_path / "unpacked")
    for name, dense, linears in (("rounded", tmp_path / "unpacked", 10), ("masks", half, 21)):
        model = prunus.sparse.load(tmp_path / name, dtype=torch.float32, always_sparse=True)
        assert prunus.sparse.describe(model).sparse == linears
        assert (logits(model) - logits(dense_model(dense))).norm() < 1e-4 * logits(dense_model(dense)).norm()


@needs_kernel
def test_what_is_saved_is_the_dense_model(models, tmp_path):
    half, packed = models["qwen2"]
    prunus.sparse.load(packed, always_sparse=True).save_pretrained(tmp_path)
    again, before = dense_model(tmp_path, torch.bfloat16).state_dict(), dense_model(half, torch.bfloat16).state_dict()
    assert set(again) == set(before)
    assert all(torch.equal(again[name], before[name]) for name in before)
    with pytest.raises(PrunusError, match="cannot load weights"):
        prunus.sparse.load(packed, always_sparse=True).load_state_dict(before)


@needs_kernel
def test_copies_and_changes_of_dtype_leave_packed_weights_alone(models):
    _, packed = models["qwen2"]
    model = prunus.sparse.load(packed, always_sparse=True)
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    linear: Any = model.get_submodule("model.layers.0.mlp.up_proj")
    again = pickle.loads(pickle.dumps(linear))  # noqa: S301  our own bytes
    assert torch.equal(again.weight, linear.weight)
    widened = copy.deepcopy(model).float()
    assert widened.get_submodule("model.layers.0.mlp.up_proj").weight.dtype == torch.bfloat16
    assert (logits(widened) - expected.float()).norm() < 0.05 * expected.float().norm()


@needs_kernel
def test_compiles_without_a_break():
    torch.manual_seed(0)
    dense = torch.randn(70, 90).bfloat16()
    dense[torch.rand(70, 90) < 0.5] = 0
    bias = torch.randn(70).bfloat16()
    model = nn.Sequential(
        SparseLinear(pack(dense), bias), nn.SiLU(), DenseLinear(nn.Parameter(torch.randn(33, 70).bfloat16()), None)
    ).requires_grad_(False)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    for rows in (1, 3, 40):
        x = torch.randn(rows, 90).bfloat16()
        assert torch.equal(compiled(x), model(x))
    packed, x = pack(dense), torch.randn(2, 3, 90).bfloat16()
    sparse = x, packed.values, [packed.masks, packed.starts]
    for arguments in [(*sparse, bias, 70, 8), (*sparse, None, 70, 2), (x, dense, [], bias, 70, 8)]:
        torch.library.opcheck(torch.ops.prunus.linear.default, arguments)
    flipped = packed.masks.clone()
    flipped[3] ^= 2
    with pytest.raises(PrunusError, match="not those of a weight"):
        torch.ops.prunus.linear(x, packed.values, [flipped, packed.starts], bias, 70, 8)


def _in_child(model, x, expected, queue):
    torch.set_num_threads(2)
    queue.put(bool(torch.equal(model(x), expected)))


@needs_kernel
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("rows", [2, 64])  # by threads of our own, and by torch's
def test_works_after_a_fork(monkeypatch, rows):
    monkeypatch.setattr("prunus.sparse.linear.threads", lambda: 2)
    model, x = SparseLinear(pack(torch.randn(300, 400).bfloat16()), None), torch.randn(rows, 400).bfloat16()
    expected = model(x)  # the parent has its threads now
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(model, x, expected, queue))
    child.start()
    assert queue.get(timeout=60)
    child.join()
    assert torch.equal(model(x), expected)


def test_without_a_kernel_everything_is_dense_and_one_line_says_why(models, monkeypatch, capsys):
    monkeypatch.setattr(models_module, "kernel", lambda: library.Kernel(None, 0, "there is no compiler"))
    library.say_why_dense.cache_clear()
    half, packed = models["qwen3"]
    for path in (packed, half):
        model = prunus.sparse.load(path)
        assert torch.equal(logits(model), logits(dense_model(half, torch.bfloat16)))
    summary = prunus.sparse.sparsify(model)
    assert (summary.sparse, summary.dense, summary.stock) == (0, 0, 22)
    assert "there is no compiler" in str(summary)
    said = [line for line in capsys.readouterr().err.splitlines() if "kernel" in line]
    assert said == ["the sparse kernel cannot be used: there is no compiler; weights stay dense"]


def test_the_switch(monkeypatch):
    monkeypatch.setenv(library.SWITCH, "off")
    assert library.kernel.__wrapped__() == library.Kernel(None, 0, "PRUNUS_KERNEL is off")
    monkeypatch.setenv(library.SWITCH, "sse")
    with pytest.raises(PrunusError, match="it can be off, avx2, avx512"):
        library.kernel.__wrapped__()


@needs_kernel
def test_a_model_elsewhere_or_of_another_dtype_is_refused(models):
    _, packed = models["qwen2"]
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(PrunusError, match="not on the CPU"):
        prunus.sparse.sparsify(model)
    with pytest.raises(PrunusError, match="float64"):
        prunus.sparse.load(packed, dtype=torch.float64)


@needs_kernel
def test_damaged_checkpoints_are_refused(models, tmp_path):
    _, packed = models["qwen2"]
    shutil.copytree(packed, tmp_path / "bad")
    file = tmp_path / "bad" / "packed.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(PrunusError, match="damaged"):
        prunus.sparse.load(tmp_path / "bad", always_sparse=True)


@needs_kernel
def test_the_winner_is_kept_for_each_shape(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def fake(ours, rival):
        """The kernel wins three times, then never: up to 32 rows."""
        asked.append(ours)
        return len(asked) < 4

    monkeypatch.setattr(choose, "is_faster", fake)
    weight = pack(torch.eye(32).bfloat16())
    assert kernel_rows(weight, torch.bfloat16) == 32 and len(asked) == 4
    assert kernel_rows(weight, torch.bfloat16) == 32 and len(asked) == 4
    assert kernel_rows(weight, torch.float32) == 0 and len(asked) == 5
    file = tmp_path / "prunus" / "choices.json"
    assert sorted(json.loads(file.read_text()).values()) == [0, 32]
    file.write_text("{")
    assert kernel_rows(weight, torch.bfloat16) == 0  # timed again
    monkeypatch.setattr(choose, "is_faster", lambda ours, rival: True)
    assert kernel_rows(weight, torch.float16) == ANY_ROWS
    assert kernel_rows(torch.eye(32), torch.float32) == 64
    assert kernel_rows(torch.eye(32).half(), torch.float32) == ANY_ROWS
    monkeypatch.setattr(models_module, "kernel_rows", lambda weight, dtype: 0)
    linear = nn.Linear(64, 64, dtype=torch.bfloat16)
    linear.weight.data[:, ::2] = 0
    summary = prunus.sparse.sparsify(nn.Sequential(linear))
    assert (summary.sparse, summary.stock) == (0, 1)


@needs_kernel
def test_the_rival_is_what_would_be_done_instead(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choose, "_pass", lambda linears, x: (linears[0], x.shape[1]))
    rivals = {}

    def fake(ours, rival):
        rivals[ours[1]] = type(rival[0])
        return True

    monkeypatch.setattr(choose, "is_faster", fake)
    weight = pack(torch.eye(32).bfloat16())
    kernel_rows(weight, torch.bfloat16)
    assert rivals == {1: nn.Linear, 8: SparseLinear, 32: SparseLinear, 128: SparseLinear, 512: SparseLinear}
    rivals.clear()
    monkeypatch.setattr(choose, "_pass", lambda linears, *some: (linears[0], sum(x.shape[1] for x in some)))
    kernel_rows(
        torch.eye(32).half(), torch.float32
    )  # in 16 bits, for x in float32: against a float32 copy, then panels
    decoded = sum(choose.DECODED_ROWS)
    assert rivals == {decoded: nn.Linear} | dict.fromkeys((128, 512), choose.DenseLinear)


def test_a_choice_is_timed_until_rounds_agree(monkeypatch):
    def answer(ratios):
        """The choice, and how many rounds it took; ratios: torch's time over the kernel's in each round."""
        rounds = iter(ratios)
        monkeypatch.setattr(choose, "race", lambda runners, repeats: [1.0, next(rounds)])
        return choose.is_faster(print, print), len(ratios) - len(list(rounds))

    assert answer([1.5, 1.4, 0.5]) == (True, 2)
    assert answer([0.7, 0.8, 2.0]) == (False, 2)
    assert answer([0.5, 1.5, 1.6, 0.5]) == (True, 3)  # the first round was disturbed
    assert answer([1.5, 0.9, 0.8, 0.5]) == (False, 3)
    assert answer([1.01, 0.99, 1.02, 1.01, 0.98, 2]) == (True, 5)  # a tie: the median
    assert answer([0.99, 1.02, 0.98, 0.99, 1.01, 2]) == (False, 5)


def test_a_race_is_the_median_of_turns():
    order = []
    seconds = race([lambda: order.append(0), lambda: order.append(1)], 3)
    assert order == [0, 1] * 4 and len(seconds) == 2 and min(seconds) > 0


@needs_kernel
@pytest.mark.real_llm
@pytest.mark.slow
def test_a_real_llm_is_as_near_to_float32_as_torchs_bfloat16():
    half = half_of_smollm2()
    ids = torch.randint(0, 49152, (1, 24), generator=torch.Generator().manual_seed(0))
    exact = logits(dense_model(half), ids)
    model = dense_model(half, torch.bfloat16)
    torchs = (logits(model, ids).float() - exact).norm()
    prunus.sparse.sparsify(model, always_sparse=True)
    tokens = [logits(model, ids[:, : t + 1])[:, -1:] for t in range(8)]  # up to 8 rows: the kernel
    ours = (torch.cat(tokens, 1).float() - exact[:, :8]).norm()
    assert ours < 1.25 * torchs
