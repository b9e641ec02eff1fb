"""Other devices than the CPU: the way that tensors take there, on a CPU as well; and a GPU, where there is one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, random_rows

import prunus
from prunus.checkpoint import loader
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning import masks
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import sent_ahead

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]
ELSEWHERE = ["cpu", pytest.param("cuda", marks=gpu)]
Tensor = torch.Tensor

SELECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "row": lambda weight_OI, score_OI: masks.zero_lowest_per_row(weight_OI, score_OI, 0.37),
    "tensor": lambda weight_OI, score_OI: masks.zero_lowest_in_tensor(weight_OI, score_OI, 0.37),
    "reference": lambda weight_OI, score_OI: masks.zero_lowest_in_tensor(weight_OI, score_OI, 0.37, "reference"),
    "pattern": lambda weight_OI, score_OI: masks.zero_lowest_per_pattern(weight_OI, score_OI, (2, 4)),
}


@pytest.fixture(params=ELSEWHERE)
def elsewhere(request, monkeypatch) -> torch.device:
    """A device on which tensors take the way that is not numpy's: a GPU, or a CPU that is made to."""
    monkeypatch.setattr(masks, "_on_cpu", lambda _: False)
    return torch.device(request.param)


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("levels", [3, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_are_those_of_the_cpu_bit_for_bit(name, levels, dtype, elsewhere):
    """With few levels most scores are equal, so that the order among equals shows."""
    draw = torch.Generator().manual_seed(levels)
    weight_OI = torch.randn(67, 100, generator=draw).to(dtype)
    score_OI = torch.randint(0, levels, (67, 100), generator=draw).to(dtype) / 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_on_cpu", lambda tensor: tensor.device.type == "cpu")
        expected_OI = SELECTIONS[name](weight_OI.clone(), score_OI.clone())
        zeros = masks.count_zeros(expected_OI)
    got_OI = SELECTIONS[name](weight_OI.to(elsewhere), score_OI.to(elsewhere))
    assert got_OI.device.type == elsewhere.type and masks.count_zeros(got_OI) == zeros > 0
    integer = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(got_OI.cpu().view(integer), expected_OI.view(integer))


@pytest.mark.parametrize("numbers", ["random", "few", "one", "zeros of both signs", "tiny and huge"])
def test_the_kth_lowest_of_a_whole_tensor_is_that_of_sorting(numbers, elsewhere, monkeypatch):
    """Found without kthvalue, which gives a whole tensor to one processor of a GPU."""
    draw = torch.Generator().manual_seed(0)
    table = {
        "random": torch.rand(5000, generator=draw),
        "few": torch.randint(0, 4, (5000,), generator=draw) / 7,
        "one": torch.tensor([0.3]),
        "zeros of both signs": torch.randint(-2, 3, (500,), generator=draw).clamp(-1, 1) * 0.0,
        "tiny and huge": torch.tensor([1e-45, 3e38, 0.0, -0.0, 1.1754944e-38, float("inf"), 1.0, 1e-45]),
    }[numbers]
    monkeypatch.setattr(torch, "kthvalue", None)
    ordered = table.sort().values
    for k in {1, 2, len(table) // 3 + 1, len(table)} & set(range(1, len(table) + 1)):
        found = masks.kth_lowest(table.to(elsewhere), k).cpu()
        assert found.dtype == torch.float32 and found.shape == () and found == ordered[k - 1], k


@pytest.mark.parametrize("device", ELSEWHERE)
def test_batches_that_travel_ahead_arrive_in_order_and_may_be_written_back(device):
    table_SD = torch.arange(120.0).view(30, 4)
    expected_SD = table_SD * 2 + 1
    views = [table_SD[start : start + 7] for start in range(0, 30, 7)]
    seen = 0
    for batch, there in sent_ahead(iter(views), torch.device(device)):
        assert batch is views[seen] and there.device.type == device
        batch.copy_(there * 2 + 1)
        seen += 1
    assert seen == len(views) and torch.equal(table_SD, expected_SD)
    assert list(sent_ahead(iter([]), torch.device(device))) == []


@pytest.mark.parametrize("device", ELSEWHERE)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0], []])
def test_blocks_sent_ahead_are_those_read_here(device, order, tmp_path):
    source = Checkpoint(make_model(tmp_path / "m", dtype=torch.bfloat16))
    expected = [source.read_block(index) for index in order]
    for way in (loader.prefetched_blocks, loader.blocks_on):
        found = list(way(source, order, torch.device(device)))
        assert len(found) == len(order)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(
                ours[name].device.type == device and torch.equal(ours[name].cpu(), theirs[name]) for name in ours
            )


def test_a_block_that_cannot_be_read_is_told_where_its_turn_is(tmp_path):
    source = Checkpoint(make_model(tmp_path / "m"))
    sent = loader.prefetched_blocks(source, range(3), torch.device("cpu"))
    next(sent)
    place = source.tensors["model.layers.2.mlp.down_proj.weight"]
    with place.file.open("r+b") as stream:
        stream.truncate(min(stored.start for stored in source.block_tensors(2).values()))
    next(sent)
    with pytest.raises(PrunusError, match="ended early while it was read"):
        next(sent)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "alps"])
def test_a_gpu_prunes_as_the_cpu_does(method, tmp_path):
    """Exactly as many zeros; where sums differ in their last bits a few weights may be others."""
    make_model(tmp_path / "model", family="qwen3", dtype=torch.float32)
    (tmp_path / "text.jsonl").write_text(Calibration(random_rows(8, 16), "random", []).to_jsonl())
    recipe = prunus.PruneRecipe(method=method, calibration=str(tmp_path / "text.jsonl"), sequences=8, seqlen=16)
    for device in ("cpu", "cuda"):
        prunus.prune(tmp_path / "model", tmp_path / device, recipe, device=device)
    ours, theirs = (Checkpoint(tmp_path / device) for device in ("cuda", "cpu"))
    for name, stored in theirs.tensors.items():
        one, other = ours.tensors[name].read() == 0, stored.read() == 0
        assert one.sum() == other.sum() and (one == other).float().mean() > 0.98, name


@pytest.mark.thorough
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which this benchmark would use")
def test_the_benchmark_says_that_there_is_no_gpu(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "no CUDA GPU here: nothing is measured\n")
    assert not list(tmp_path.iterdir())
