"""Steps and evaluations on the CPU and on a pretend GPU, in a process of its own: `both_devices.py FOLDER WORK...`

It prints one line of JSON for each work: in what the two devices differ, and how often the program waited for the GPU.
FOLDER has the models, calibration and statistics that tests/test_both_devices.py wrote.
"""

import gc
import io
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

NONE: dict[str, Any] = {}
NARROW: dict[str, Any] = {"intermediate_size": 16}


# By how much a tensor may differ, relative to its norm: on some processors the last bits of sums depend on where in
# memory a matrix lies.
ROUNDING = 2e-6


class Work(NamedTuple):
    """What is done on both devices.

    kind: as in `run` and `compared`. most: waits for the GPU, at most, per block; of chains per decoded step of the
    batch. settings: of the recipe, or of the chains. model: the name of a folder. apart: the relative difference that
    tensors may have: in float32, products depend on where in memory the numbers lie; and GPUs train in bfloat16. stats:
    whether saved statistics take the place of calibration. device: the GPU's name.
    """

    kind: str
    most: float
    settings: dict[str, Any] = NONE
    model: str = "model"
    apart: float = 0.0
    stats: bool = False
    device: str = "cuda"


def prune(most: float, **settings: Any) -> Work:
    """Work of `prune`, with Wanda unless the settings name another method."""
    return Work("prune", most, {"method": "wanda"} | settings)


# Limits are a seventh above what was counted, as the number of iterations may differ between processors.
WORKS: dict[str, Work] = {
    "magnitude": prune(21, method="magnitude"),
    "wanda": prune(33),
    "sparsegpt": prune(68, method="sparsegpt"),
    "alps": prune(155, method="alps"),
    "by tensor": prune(33, group="tensor"),
    "update": prune(84, update="obs"),
    "pattern": prune(33, pattern="2:4"),
    "pattern, sparsegpt": prune(68, method="sparsegpt", pattern="2:4"),
    "pattern, alps": prune(155, method="alps", pattern="2:4"),
    "rounding": prune(33, rounding="reference"),
    "sparsegpt, rounding": prune(68, method="sparsegpt", rounding="reference"),
    "dense": prune(33, propagation="dense"),
    "true_sequential": prune(73, propagation="true_sequential", method="sparsegpt"),
    "atp": prune(33, allocation="atp"),
    "owl": prune(63, allocation="owl"),
    "layerif": prune(75, allocation="layerif", influence_train=4, influence_validation=2),
    "saved wanda": prune(35, propagation="dense")._replace(stats=True),
    "saved sparsegpt": prune(76, propagation="dense", method="sparsegpt")._replace(stats=True),
    "saved owl": prune(67, propagation="dense", allocation="owl")._replace(stats=True),
    "experts' wanda": prune(126)._replace(model="moe"),
    "experts' sparsegpt": prune(241, method="sparsegpt")._replace(model="moe"),
    "second GPU": prune(33)._replace(device="cuda:1"),
    "not pinned": prune(34)._replace(device="cuda:1"),
    "8 bits": Work("quantize", 64),
    "8 bits, nearest": Work("quantize", 18, {"method": "rtn"}),
    "4 bits": Work("quantize", 64, {"bits": 4, "group": "row"}),
    "4 bits, saved": Work("quantize", 65, {"bits": 4, "group": "row"}, stats=True),
    "4 bits, trained": Work("quantize", 159, {"bits": 4, "group": "row", "recover": True}, apart=0.02),
    "recover": Work("recover", 59, {"epochs": 1, "step_tokens": 48}, "pruned", apart=0.02),
    "recover in float32": Work("recover", 59, {"epochs": 1, "step_tokens": 48}, "pruned", apart=1e-6),
    "recover in parts": Work("recover", 61, {"epochs": 1, "step_tokens": 48}, "pruned", apart=1e-3),
    **{name: Work("drop", 26, {"method": name}, "three") for name in ("shortgpt", "angular", "tail", "sleb")},
    "laco": Work("drop", 32, {"method": "laco", "threshold": -0.99}, "three"),
    "reap": Work("experts", 62, {"method": "reap", "keep": 0.5}, "moe"),
    "ean": Work("experts", 62, {"method": "ean", "keep": 0.5}, "moe"),
    "width": Work("width", 78, NARROW),
    "width of experts": Work("width", 375, NARROW, "moe"),
    **{
        f"width, {name}": Work("width", 72, {"method": name, "intermediate_size": 16})
        for name in ("wanda", "flap", "magnitude")
    },
    "stats": Work("stats", 34, {"hessians": True}),
    "stats of experts": Work("expert_stats", 23, {}, "moe"),
    "perplexity": Work("perplexity", 25),
    "chains": Work("chains", 1, {"temperature": 0.0}),
    "chains, sampled": Work("chains", 1, {"temperature": 0.9, "top_p": 0.9}),
    "chains, sliding": Work("chains", 2.2, {"temperature": 0.9, "top_p": 0.9}, "sliding"),
    "chains, hybrid": Work("chains", 1, {"temperature": 0.9, "top_p": 0.9}, "hybrid"),
    "eval": Work("evaluate", 1.3, {}, "tiny"),
    "eval of experts": Work("evaluate", 1.3, {}, "tiny-moe"),
    "too little": Work("refused", 0),
    "mixing": Work("mixed", 0),
}

IN_FLOAT32 = ("recover in float32", "recover in parts")
REFUSED = ("wanda", "8 bits", "recover", "sleb", "reap", "width", "stats", "stats of experts", "perplexity")


def calibration(work: Work, folder: Path) -> dict[str, Any]:
    """The settings of calibration, unless statistics were saved."""
    return {} if work.stats else {"calibration": str(folder / "text.jsonl"), "sequences": 6, "seqlen": 24}


def run(work: Work, folder: Path, out: Path, device: str) -> Any:
    """What a work returns, as far as it depends neither on time nor on the device."""
    import prunus

    source, given = folder / work.model, work.settings
    cases: dict[str, tuple[Any, Any]] = {
        "prune": (prunus.prune, prunus.PruneRecipe),
        "quantize": (prunus.quantize, prunus.QuantizeRecipe),
        "recover": (prunus.recover, prunus.RecoverRecipe),
        "drop": (prunus.drop, prunus.DropRecipe),
        "experts": (prunus.experts, prunus.ExpertsRecipe),
        "width": (prunus.width, prunus.WidthRecipe),
    }
    if work.kind in cases:
        function, recipe = cases[work.kind]
        more = {"blocks": "1"} if work.kind == "drop" else {}
        stats = {"stats": folder / "stats"} if work.stats else {}
        recipe = recipe(**given, **more, **calibration(work, folder))
        told = function(source, out, recipe, device=device, **stats)
    elif work.kind in ("stats", "expert_stats"):
        told = getattr(prunus, work.kind)(source, out, device=device, **given, **calibration(work, folder))
    elif work.kind == "perplexity":
        told = prunus.perplexity(source, folder / "text.jsonl", seqlen=24, device=device)
    elif work.kind == "chains":
        return chains(work, source, device)
    else:
        return rows(work, out, device)
    return {key: value for key, value in told.to_json().items() if key not in ("out", "seconds")}


def chains(work: Work, source: Path, device: str) -> Any:
    """Ids that a model in float32 samples after three prompts, with their log-probabilities."""
    import torch

    from prunus.evaluation.backends.hf import HFBackend, load_model
    from prunus.evaluation.requests import Request, Sampling

    backend = HFBackend(load_model(source, device, torch.float32), 100)
    none = frozenset[int]()
    requests = [Request([5 + n] * (3 + n), 6 + n, none, none, n) for n in range(3)]
    found = backend.generate(requests, Sampling(**work.settings))
    return [[one.ids, list(one.scores.logprobs) if one.scores else None] for one in found]


def rows(work: Work, out: Path, device: str) -> Any:
    """What `eval` stores of two problems: with which budgets, and whether thinking came to its end."""
    import prunus
    from prunus.store.store import Store

    plan = prunus.EvalPlan(("tiny",), budgets=(8,), limit=2, answer_tokens=4, batch_size=4)
    run_id = prunus.evaluate(work.model, plan, out.with_suffix(".db"), device=device).run_id
    with Store(out.with_suffix(".db")) as store:
        return sorted([row.problem_id, row.budget, row.ended] for row in store.samples(run_id))


def gpu_of(out: Path) -> str | None:
    """The model of GPU that the run of `eval` recorded."""
    from prunus.store.store import Store

    with Store(out.with_suffix(".db")) as store:
        return store.runs()[0].environment.data.get("gpu")


def refused(folder: Path, ledger: Any) -> dict[str, list[Any]]:
    """By kind, the errors where memory ends during the work, and where too little is free at the start.

    With each error the names of what the work left.
    """
    from prunus.errors import PrunusError

    found: dict[str, list[Any]] = {}
    for name in REFUSED:
        for total, free in ((4_000, 1 << 40), (1 << 40, 1_000)):
            ledger.total, ledger.free = total, free
            try:
                run(WORKS[name], folder, folder / "refused" / name, "cuda")
            except PrunusError as error:
                left = [path.name for path in (folder / "refused").glob("*")]
                found.setdefault(name, []).append([str(error), left])
            gc.collect()
    return found


def mixed(ledger: Any) -> dict[str, Any]:
    """What the pretend GPU itself does: {"waits": of some operators}, and which of some mixtures it does not refuse."""
    import torch

    here, there, second = torch.ones(3), torch.ones(3, device="cuda"), torch.ones(3, device="cuda:1")
    mixtures: dict[str, Callable[[], Any]] = {
        "sum": lambda: here + there,
        "two GPUs": lambda: second + there,
        "cat": lambda: torch.cat([here, there]),
        "numpy": there.numpy,
        "index": lambda: here[there.long()],
        "dot": lambda: torch.dot(here, there),
        "integers": lambda: there.long()[None] @ there.long(),
        "generator": lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    }
    taken: list[str] = []
    for name, mixture in mixtures.items():
        try:
            mixture()
        except (RuntimeError, TypeError):
            continue
        taken.append(name)
    assert torch.equal(here + there.cpu(), torch.full((3,), 2.0)) and (there * torch.tensor(2.0)).is_cuda
    calls: dict[str, Callable[[], Any]] = {
        "number": lambda: float(there[0]),
        "list": there.tolist,
        "mask": lambda: there[there > 0],
        "places": there.nonzero,
        "sent": lambda: here.to("cuda"),
        "sent asynchronously": lambda: here.to("cuda", non_blocking=True),
        "sent from pinned memory": lambda: here.pin_memory().to("cuda", non_blocking=True),
        "computed": lambda: (there * 2).cumsum(0) @ there,
        "solved": lambda: torch.linalg.solve(torch.eye(3, device="cuda"), there),
        "solved, unchecked": lambda: torch.linalg.solve_ex(torch.eye(3, device="cuda"), there),
    }
    waits: dict[str, int] = {}
    for name, call in calls.items():
        ledger.clear()
        call()
        waits[name] = ledger.waits.total()
    return {"taken": taken, "waits": waits}


def differing(ours: Path, theirs: Path, apart: float) -> list[str]:
    """Tensors of two files or folders whose bits differ, or which are more than `apart` from each other."""
    import torch
    from safetensors.torch import load_file

    files = [ours] if ours.is_file() else sorted(ours.glob("*.safetensors"))
    found: list[str] = []
    for file in files:
        here, there = load_file(file), load_file(theirs if theirs.is_file() else theirs / file.name)
        assert here.keys() == there.keys()
        for name, tensor in here.items():
            if torch.equal(tensor.view(-1).view(torch.uint8), there[name].view(-1).view(torch.uint8)):
                continue
            distance = float((tensor.double() - there[name].double()).norm() / there[name].double().norm())
            same_zeros = tensor.dtype.itemsize == 1 or torch.equal(tensor == 0, there[name] == 0)
            if not (distance <= max(apart, ROUNDING) and same_zeros):
                found.append(f"{name} by {distance:.3g}")
    return found


@contextmanager
def watching(ledger: Any, tally: dict[str, int]) -> Iterator[None]:
    """Meanwhile, tally gets the steps that chains take, and the waits of these."""
    from prunus.evaluation.backends import hf, rows

    def watched(function: Callable[..., Any], steps: int) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            before = ledger.waits.total()
            found = function(self, *args, **kwargs)
            if sys._getframe(1).f_code.co_name == "_decode":  # not while it is found out how the model decodes
                tally["steps"] += steps
                tally["waits"] += ledger.waits.total() - before
            return found

        return call

    real = [(rows.PaddedRows, "step", 0), (rows.SeparateRows, "step", 0), (hf.HFBackend, "_pick", 1)]
    functions = [getattr(owner, name) for owner, name, _ in real]
    for (owner, name, steps), function in zip(real, functions, strict=True):
        setattr(owner, name, watched(function, steps))
    try:
        yield
    finally:
        for (owner, name, _), function in zip(real, functions, strict=True):
            setattr(owner, name, function)


def compared(name: str, folder: Path, ledger: Any) -> dict[str, Any]:
    """How the results of a work differ between the devices, and the waits."""
    import torch

    from prunus.checkpoint.checkpoint import Checkpoint
    from prunus.pruning.calibration import hidden_states
    from prunus.pruning.calibration.hidden_states import largest_block
    from prunus.pruning.recover.training import TRAINING_BYTES, activation_bytes

    work, out = WORKS[name], folder / "out" / name
    out.mkdir(parents=True)
    gc.freeze()  # what is there stays, so that collecting garbage need not look at it
    if work.kind == "refused":
        return {"refused": refused(folder, ledger)}
    if work.kind == "mixed":
        return mixed(ledger)
    said: list[str] = []
    told, tally = [run(work, folder, out / "cpu", "cpu")], {"steps": 0, "waits": 0}
    ledger.clear()
    hidden_states.say, say = said.append, hidden_states.say
    ledger.pins = name != "not pinned"
    if name == "recover in parts":
        source = Checkpoint(folder / work.model)
        ledger.free = TRAINING_BYTES * largest_block(source) + 24 * activation_bytes(source, 0)[0]
    torch.cuda.is_available, available = (lambda: name not in IN_FLOAT32), torch.cuda.is_available
    try:
        with watching(ledger, tally):
            told.append(run(work, folder, out / "cuda", work.device))
    finally:
        hidden_states.say, ledger.pins, torch.cuda.is_available = say, True, available
    gc.collect()
    chained = work.kind in ("chains", "evaluate")
    parts = tally["steps"] if chained else Checkpoint(folder / work.model).blocks
    files = (out / "cuda").exists()
    made = [Checkpoint(out / device) for device in ("cpu", "cuda") if work.kind == "recover"]
    return {
        "micro_batch": [one.manifest.data["history"][-1]["arithmetic"]["micro_batch"] for one in made],
        "told": told,
        "gpu": [gpu_of(out / device) for device in ("cpu", "cuda") if work.kind == "evaluate"],
        "differing": differing(out / "cuda", out / "cpu", work.apart) if files else [],
        "waits": (tally["waits"] if chained else ledger.waits.total()) / parts,
        "places": dict(ledger.waits.most_common(12)),
        "streams": sorted(ledger.streams),
        "said": said,
        "left": ledger.live,
    }


def main() -> None:
    """Compare the devices in each work."""
    import pretend_gpu

    ledger = pretend_gpu.install()
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(WORKS)
    import torch

    from prunus.pruning.methods import alps

    torch.set_num_threads(1)
    alps.ITERATIONS, alps.SETTLED_AFTER = 7, 6  # each line of it runs, and few of them often
    for name in names:
        sys.stderr = io.StringIO()
        try:
            found = compared(name, folder, ledger)
        except Exception:  # which the test shows
            found = {"error": traceback.format_exc()}
        ledger.total, ledger.free = 80 << 30, None
        print(json.dumps({"name": name, **found}, default=str), flush=True)


if __name__ == "__main__":
    main()
