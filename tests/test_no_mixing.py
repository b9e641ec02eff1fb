"""All of pruning with weights on another device than the statistics and files: nothing of the two may meet."""

from pathlib import Path
from typing import Any

import pytest
import torch
from other_device import other_device
from tiny_models import make_model, random_rows

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning.calibration import hidden_states as hidden
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.recovery import TRAINING_BYTES, activation_bytes, largest_block

WANDA: dict[str, Any] = {"method": "wanda"}
ALPS: dict[str, Any] = {"method": "alps"}
RUNS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in ("magnitude", "wanda", "sparsegpt")},
    "alps": ALPS,
    "by tensor": WANDA | {"group": "tensor"},
    "update": WANDA | {"update": "obs"},
    "magnitude, update": {"method": "magnitude", "update": "obs"},
    **{f"pattern, {m}": {"method": m, "pattern": "2:4"} for m in ("magnitude", "wanda", "sparsegpt")},
    "pattern, alps": ALPS | {"pattern": "2:4"},
    "rounding": WANDA | {"rounding": "reference"},
    "magnitude, rounding": {"method": "magnitude", "rounding": "reference"},
    **{way: WANDA | {"propagation": way} for way in ("dense", "staged")},
    **{name: WANDA | {"allocation": name} for name in ("atp", "owl")},
    "layerif": WANDA | {"allocation": "layerif", "influence_train": 4, "influence_validation": 2},
}
SAVED: dict[str, dict[str, Any]] = {
    name: RUNS[name] | {"propagation": "dense"} for name in ("wanda", "sparsegpt", "owl")
}
DROPS: dict[str, dict[str, Any]] = {
    "shortgpt": {},
    "angular": {},
    "tail": {},
    "laco": {"threshold": -0.99},
    "sleb": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models of two blocks and of three, and token ids, some of them the prompt's."""
    folder = tmp_path_factory.mktemp("mixing")
    for name, blocks in (("model", 2), ("three", 3)):
        make_model(folder / name, "qwen3", blocks=blocks, hidden_size=16, intermediate_size=24, head_dim=4)
    (folder / "text.jsonl").write_text(Calibration(random_rows(6, 24), "random", [], [4] * 6).to_jsonl())
    return folder


def on(folder: Path) -> dict[str, Any]:
    return {"calibration": str(folder / "text.jsonl"), "samples": 6, "seqlen": 24}


def differing(ours: Path, theirs: Path) -> list[str]:
    """The tensors with other numbers of zeros, or others; where sums differ in their last bits a few weights may be."""
    one, other, found = Checkpoint(ours), Checkpoint(theirs), list[str]()
    for name, stored in other.tensors.items():
        here, there = one.tensors[name].read() == 0, stored.read() == 0
        if here.sum() != there.sum() or (here == there).float().mean() <= 0.98:
            found.append(name)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_device_prunes_as_the_cpu_does(name, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.pruning.methods.alps.ITERATIONS", 8)
    recipe = prunus.PruneRecipe(**RUNS[name], **on(folder))
    prunus.prune(folder / "model", tmp_path / "cpu", recipe, device="cpu")
    with other_device(monkeypatch):
        prunus.prune(folder / "model", tmp_path / "there", recipe, device="cuda")
    assert not differing(tmp_path / "there", tmp_path / "cpu")


@pytest.mark.parametrize("way", ["w4", "w4, trained", "w8", "rtn", "saved"])
def test_a_device_quantises_as_the_cpu_does(way, folder, saved, tmp_path, monkeypatch):
    four = {"bits": 4, "group": "row", "recover": way == "w4, trained"}
    settings: dict[str, Any] = {"w8": {}, "rtn": {"method": "rtn"}}.get(way, four)
    recipe = prunus.QuantizeRecipe(**settings, **({} if way == "saved" else on(folder)))
    stats = saved if way == "saved" else None
    prunus.quantize(folder / "model", tmp_path / "cpu", recipe, stats=stats, device="cpu")
    with other_device(monkeypatch, "cuda:0"):
        prunus.quantize(folder / "model", tmp_path / "there", recipe, stats=stats, device="cuda:0")
    ours, theirs = Checkpoint(tmp_path / "there"), Checkpoint(tmp_path / "cpu")
    for name, stored in theirs.tensors.items():
        assert (ours.tensors[name].read() == stored.read()).float().mean() > 0.98, name


def test_recovery_on_a_device_is_that_of_the_cpu(folder, tmp_path, monkeypatch):
    prunus.prune(folder / "model", tmp_path / "pruned", prunus.PruneRecipe(**WANDA, **on(folder)), device="cpu")
    recipe = prunus.RecoverRecipe(**on(folder), epochs=1, step_tokens=48)
    prunus.recover(tmp_path / "pruned", tmp_path / "cpu", recipe, device="cpu")
    source = Checkpoint(tmp_path / "pruned")
    with other_device(monkeypatch, "cuda:0") as device:
        device.free = TRAINING_BYTES * largest_block(source) + 24 * activation_bytes(source, 0)[0]
        prunus.recover(tmp_path / "pruned", tmp_path / "there", recipe, device="cuda:0")
        device.free = TRAINING_BYTES * largest_block(source) - 1
        with pytest.raises(PrunusError, match=r"of memory of cuda:0, and .* are free"):
            prunus.recover(tmp_path / "pruned", tmp_path / "out", recipe, device="cuda:0")
    assert not list(tmp_path.glob("out*"))
    steps = [Checkpoint(tmp_path / name).manifest["history"][-1] for name in ("cpu", "there")]
    assert [step["arithmetic"]["micro_batch"] for step in steps] == [48, 24]
    for ours, theirs in zip(*(step["blocks"] for step in steps), strict=True):
        assert ours["after"] == pytest.approx(theirs["after"], rel=1e-3)
    assert not differing(tmp_path / "there", tmp_path / "cpu")


@pytest.fixture(scope="module")
def saved(folder) -> Path:
    """Statistics of the dense model, measured on the CPU."""
    prunus.stats(folder / "model", folder / "stats", hessians=True, device="cpu", **on(folder))
    return folder / "stats"


@pytest.mark.parametrize("name", SAVED)
def test_saved_statistics_go_to_the_device(name, folder, saved, tmp_path, monkeypatch):
    recipe = prunus.PruneRecipe(**SAVED[name])
    prunus.prune(folder / "model", tmp_path / "cpu", recipe, stats=saved, device="cpu")
    with other_device(monkeypatch):
        prunus.prune(folder / "model", tmp_path / "there", recipe, stats=saved, device="cuda")
    assert not differing(tmp_path / "there", tmp_path / "cpu")


@pytest.mark.parametrize("method", DROPS)
def test_a_device_drops_the_blocks_that_the_cpu_does(method, folder, tmp_path, monkeypatch):
    recipe = prunus.DropRecipe(method=method, blocks="1", **DROPS[method], **on(folder))
    expected = prunus.drop_blocks(folder / "three", tmp_path / "cpu", recipe, device="cpu")
    with other_device(monkeypatch):
        found = prunus.drop_blocks(folder / "three", tmp_path / "there", recipe, device="cuda")
    assert found["blocks_removed"] == expected["blocks_removed"]
    assert found["scores"] == pytest.approx(expected["scores"], rel=1e-2)


def test_statistics_and_perplexity_are_those_of_the_cpu(folder, saved, tmp_path, monkeypatch):
    expected = prunus.perplexity(folder / "model", folder / "text.jsonl", seqlen=24, device="cpu")
    with other_device(monkeypatch):
        prunus.stats(folder / "model", tmp_path / "stats", hessians=True, device="cuda", **on(folder))
        found = prunus.perplexity(folder / "model", folder / "text.jsonl", seqlen=24, device="cuda")
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-2)
    assert (tmp_path / "stats").stat().st_size == saved.stat().st_size


def test_streams_are_those_of_the_chosen_device(folder, tmp_path, monkeypatch):
    """And what cannot be pinned travels all the same, with a line about it."""
    recipe = prunus.PruneRecipe(**WANDA, **on(folder))
    told: list[str] = []
    monkeypatch.setattr(hidden, "say", told.append)
    for pins in (True, False):
        with other_device(monkeypatch, "cuda:1") as device:
            device.pins = pins
            prunus.prune(folder / "model", tmp_path / str(pins), recipe, device="cuda:1")
        assert device.streams == {torch.device("cuda:1")}
    assert len(told) == 1 and told[0].startswith("9.2 kB of hidden states cannot be pinned (CUDA error: out of memory")
    assert "\n" not in told[0]
    assert not differing(tmp_path / "True", tmp_path / "False")


def test_the_other_device_does_refuse(monkeypatch):
    with other_device(monkeypatch):
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.device.type == "cuda" and (there * 2)[1:].abs().device.type == "cuda" and not here.is_cuda
        for mixed in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            there.numpy,
            lambda: here[there.long()],
            lambda: torch.dot(here, there),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
        assert torch.equal(here + there.cpu(), torch.full((3,), 2.0)) and (there * torch.tensor(2.0)).is_cuda
        there.copy_(here)
    with pytest.raises(RuntimeError):
        _ = there + 1
