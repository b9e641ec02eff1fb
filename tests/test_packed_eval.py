"""Packed checkpoints under evaluation: on the sparse kernel or dense, the same model, and two runs of one store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from real_llm import half_of_smollm2
from tiny_models import make_model

import prunus
from prunus.checkpoint.resolve import load_tokenizer
from prunus.cli import main
from prunus.engines import EngineOptions
from prunus.evaluation import lm_eval as harness
from prunus.evaluation.backends.hf import describe, is_sparse, load_model
from prunus.evaluation.provenance import open_for
from prunus.evaluation.resolved_plan import resolve_plan
from prunus.native import load as library
from prunus.native.build import BuildError
from prunus.recipes import EvalPlan, PruneRecipe
from prunus.reporting.page import report
from prunus.results.store import Store

pytestmark = pytest.mark.xdist_group("packed eval")  # fixtures of the module are made once

PLAN = EvalPlan(tasks=("tiny",), budgets=(8, 24), limit=12, batch_size=12)
needs_kernel = pytest.mark.skipif(library.kernel().library is None, reason=library.kernel().reason)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The tiny reasoner at 40 %: dense, packed, and as masks alone."""
    folder = tmp_path_factory.mktemp("models")
    prunus.prune("tiny", folder / "dense", PruneRecipe(method="wanda", sparsity=0.4, samples=8))
    prunus.pack(folder / "dense", folder / "packed")
    prunus.pack(folder / "dense", folder / "masks", masks_only=True)
    return folder


@pytest.fixture(scope="module")
def store(models) -> Path:
    """Dense and packed evaluated into one store."""
    prunus.evaluate("tiny", PLAN, models / "s.db")
    prunus.evaluate(models / "dense", PLAN, models / "s.db")
    prunus.evaluate(models / "packed", PLAN, models / "s.db")
    return models / "s.db"


def forget_kernel() -> None:
    """Have the next call look for a kernel anew, and say again if there is none."""
    for cached in (library.kernel, library.say_why_dense):
        cached.cache_clear()


def find_none(_source) -> None:
    raise BuildError("no C++ compiler was found")


class OldProcessor:
    """The library on a processor that it has no instructions for."""

    def __init__(self, _source):
        pass

    def prunus_isa(self) -> int:
        return 0


MACHINES = {
    "PRUNUS_KERNEL is off": lambda patch: patch.setenv(library.SWITCH, "off"),
    "it is for Linux on x86-64 only": lambda patch: patch.setattr(library, "supported", lambda: False),
    "this processor has no AVX2": lambda patch: patch.setattr(library, "load", OldProcessor),
    "no C++ compiler was found": lambda patch: patch.setattr(library, "load", find_none),
}


@pytest.fixture(params=MACHINES)
def no_kernel(request, monkeypatch) -> Iterator[str]:
    """A machine without the kernel, and why."""
    monkeypatch.delenv(library.SWITCH, raising=False)
    MACHINES[request.param](monkeypatch)
    forget_kernel()
    yield request.param
    monkeypatch.undo()
    forget_kernel()


def logits_of(model) -> torch.Tensor:
    ids_RT = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(ids_RT).logits.float()


@needs_kernel
def test_dense_and_packed_are_two_runs_that_agree(store):
    with Store(store) as opened:
        tiny, dense, packed = opened.runs()
        ours, theirs = (opened.samples(run.run_id, texts=True) for run in (packed, dense))
    assert packed.plan == dense.plan | {"kernel": "sparse"} and "kernel" not in tiny.plan
    assert packed.model["checksum"] == dense.model["checksum"]
    assert packed.versions["kernel"].startswith("sparse kernel (") and "kernel" not in dense.versions
    assert [step["action"] for step in packed.model["manifest"]["history"]] == ["prune", "pack"]
    found = prunus.compare(store, base=dense.run_id, others=[packed.run_id])["others"][0]
    assert found["warnings"] == [] and found["primary"]["p"] > 0.05
    assert abs(found["primary"]["difference"]) < 0.05 < found["primary"]["accuracy"]
    # In float32 sums differ in their last bits only: few chains ever meet a tie that these could break.
    same = sum(
        one.text == other.text and one.thinking == other.thinking for one, other in zip(ours, theirs, strict=True)
    )
    assert same > 0.9 * len(theirs)


@needs_kernel
def test_without_the_kernel_it_is_the_dense_run(models, store):
    with Store(store) as opened:
        before = [run.run_id for run in opened.runs()]
    for folder in ("packed", "masks"):
        found = prunus.evaluate(models / folder, PLAN, store, engine=EngineOptions(sparse=False))
        assert found == before[1], "the rows are there already"
    with Store(store) as opened:
        assert [run.run_id for run in opened.runs()] == before


@pytest.mark.parametrize("name", ["packed", "masks"])
def test_a_packed_folder_is_unpacked_in_memory_where_there_is_no_kernel(models, no_kernel, capsys, name):
    dense, found = load_model(models / "dense", "cpu"), load_model(models / name, "cpu")
    assert not is_sparse(found) and type(found) is type(dense)
    ours, theirs = found.state_dict(), dense.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(logits_of(found), logits_of(dense))
    said = capsys.readouterr().err.splitlines()
    assert said == [f"the sparse kernel cannot be used: {no_kernel}; weights stay dense"]
    _, kernel = open_for("hf", models / name, "cpu", EngineOptions())
    assert kernel is None


@needs_kernel
def test_sparse_and_dense_logits_are_close(models):
    dense = logits_of(load_model(models / "dense", "cpu"))
    for name in ("packed", "masks"):
        model = load_model(models / name, "cpu")
        assert is_sparse(model) and model.dtype == torch.float32
        torch.testing.assert_close(logits_of(model), dense, atol=1e-3, rtol=1e-3)


@needs_kernel
def test_the_page_tells_dense_and_packed_apart(store, tmp_path):
    page = report(store, tmp_path / "page.html").read_text("utf-8")
    assert "Wanda 40\xa0% + packed" in page


def test_ordinary_plans_say_nothing_of_a_kernel(tmp_path):
    folder = make_model(tmp_path / "m", max_position_embeddings=2048)
    checkpoint, kernel = open_for("hf", folder, "cpu", EngineOptions())
    assert kernel is None
    work = resolve_plan(checkpoint, load_tokenizer(folder), EvalPlan(tasks=("tiny",), budgets=(16,), limit=2))
    assert "kernel" not in work.plan


@needs_kernel
def test_the_command_takes_packed_folders_and_no_sparse(models, tmp_path, capsys):
    common = ["--task", "tiny", "--budgets", "16", "--limit", "4", "--store", str(tmp_path / "s.db")]
    main(["eval", str(models / "packed"), *common])
    main(["eval", str(models / "packed"), "--no-sparse", *common])
    with Store(tmp_path / "s.db") as opened:
        assert [run.plan.get("kernel") for run in opened.runs()] == ["sparse", None]
    with pytest.raises(SystemExit) as ended:
        main(["eval", "tiny", "--backend", "openai", "--url", "http://localhost:1/v1", "--no-sparse", *common])
    assert ended.value.code == 2 and "sparse is for the backend hf, not for openai" in capsys.readouterr().err


@needs_kernel
@pytest.mark.real_llm
def test_a_real_llm_has_the_same_logits_packed(tmp_path):
    prunus.pack(half_of_smollm2(), tmp_path / "packed")
    dense, packed = load_model(half_of_smollm2(), "cpu"), load_model(tmp_path / "packed", "cpu")
    assert describe(packed).sparse > 0
    expected = logits_of(dense)
    assert (logits_of(packed) - expected).norm() / expected.norm() < 1e-4


@needs_kernel
def test_a_run_of_the_harness_on_the_kernel_is_not_the_dense_run(models, tmp_path, monkeypatch):
    stored = {"tasks": ["lm_eval:x"], "lm_eval": "0", "batch_size": 1, "seed": 0, "limit": None}
    monkeypatch.setattr("prunus.evaluation.beforehand.find_spec", lambda _: True)
    monkeypatch.setattr(harness, "harness_plan", lambda _plan: stored)
    monkeypatch.setattr(harness, "ask", lambda *_: ([], []))
    plan = EvalPlan(tasks=("lm_eval:x",), budgets=(0,))
    ids = {name: prunus.evaluate(models / name, plan, tmp_path / "s.db") for name in ("dense", "packed")}
    assert ids["dense"] != ids["packed"] and "kernel" not in stored
