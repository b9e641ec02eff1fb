"""Every step and evaluation on a pretend GPU: the results are those of the CPU, and waits for it are few."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import both_devices
import pytest
from both_devices import WORKS
from random_models import make_random_model
from tiny_models import VOCABULARY, make_model, random_rows

import prunus
from prunus.checkpoint.resolve import tiny_folder
from prunus.pruning.calibration.data import Calibration

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.slow,
    pytest.mark.xdist_group("pretend GPU"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the pretend GPU needs g++, once, to be compiled"),
]


def write_models(folder: Path) -> None:
    """What the works read: models, token ids, some of them the prompt's, and statistics."""
    for name, blocks in (("model", 2), ("three", 3)):
        make_model(folder / name, "qwen3", blocks=blocks, hidden_size=16, intermediate_size=32, head_dim=4)
    small: dict[str, Any] = {"hidden_size": 32, "num_experts": 4, "vocab_size": VOCABULARY}
    make_random_model("qwen3_moe", folder / "moe", num_hidden_layers=1, mlp_only_layers=[], **small)
    types = ["linear_attention", "full_attention"]
    make_random_model("qwen3_next", folder / "hybrid", num_hidden_layers=2, layer_types=types, **small)
    make_random_model("gemma3_text", folder / "sliding", num_hidden_layers=2, layer_types=["sliding_attention"] * 2)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_folder() / file, folder / "moe" / file)
    (folder / "text.jsonl").write_text(Calibration(random_rows(6, 24), "random", [], [4] * 6).to_jsonl())
    how: dict[str, Any] = {"calibration": str(folder / "text.jsonl"), "sequences": 6, "seqlen": 24}
    prunus.stats(folder / "model", folder / "stats", hessians=True, device="cpu", **how)
    prunus.prune(folder / "model", folder / "pruned", prunus.PruneRecipe(method="wanda", **how), device="cpu")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What the process found, by work."""
    folder = tmp_path_factory.mktemp("both")
    write_models(folder)
    command = [sys.executable, both_devices.__file__, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line.pop("name"): line for line in lines}


def same_but_for_rounding(ours: object, theirs: object) -> bool:
    """Whether plain data are equal, but for the last bits of numbers."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same_but_for_rounding(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same_but_for_rounding, ours, theirs))
    return ours == theirs or (isinstance(ours, float) and ours == pytest.approx(theirs, rel=1e-5, abs=1e-6))


@pytest.mark.parametrize("name", [name for name, work in WORKS.items() if work.kind not in ("refused", "mixed")])
def test_a_gpu_computes_what_the_cpu_does_and_is_seldom_waited_for(name, found):
    one, work = found[name], WORKS[name]
    assert "error" not in one, one["error"]
    assert not one["differing"]
    ours, theirs = one["told"]
    if work.kind == "chains":
        assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
        for (_, here), (_, there) in zip(ours, theirs, strict=True):
            assert here == pytest.approx(there, abs=1e-5)
    elif work.apart:
        assert ours.keys() == theirs.keys()
    else:
        assert same_but_for_rounding(ours, theirs)
    assert one["waits"] <= work.most, one["places"]
    assert one["left"] == 0, "tensors stay on the GPU"
    assert one["streams"] in ([], ["cuda:1" if work.device == "cuda:1" else "cuda:0"])


def test_the_pretend_gpu_refuses_mixed_devices_and_counts_what_waits(found):
    """As a GPU does; copies that are not from pinned memory wait, whatever they are told."""
    one = found["mixing"]
    assert one["taken"] == []
    assert one["waits"] == {
        "number": 1, "list": 1, "mask": 1, "places": 1, "sent": 1, "sent asynchronously": 1,
        "sent from pinned memory": 0, "computed": 0, "solved": 1, "solved, unchecked": 0,
    }  # fmt: skip


def test_a_run_says_which_gpu_computed_it(found):
    assert found["eval"]["gpu"] == [None, "Pretend GPU"]


def test_what_cannot_be_pinned_travels_all_the_same_with_a_line_about_it(found):
    assert found["second GPU"]["said"] == []
    (line,) = found["not pinned"]["said"]
    assert line.startswith("9.2 kB of hidden states cannot be pinned (CUDA error: out of memory") and "\n" not in line


def test_training_takes_parts_of_a_step_where_memory_is_small(found):
    """And gives the same up to rounding."""
    one = found["recover in parts"]
    assert one["micro_batch"] == [48, 24]
    whole, parts = ([error for pair in told["errors"] for error in pair] for told in one["told"])
    assert parts == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("name", both_devices.REFUSED)
def test_too_little_memory_is_one_line_that_says_what_helps(name, found):
    (ended, left), *others = found["too little"]["refused"][name]
    assert ended.startswith("the memory of cuda") and "CUDA out of memory. Tried to allocate" in ended
    assert "--device" in ended and "ALLOC_CONF" not in ended and "\n" not in ended
    assert left == []
    ((refused, begun),) = others
    assert "of memory of cuda" in refused and "are free; end other programs, or " in refused
    assert begun == []
