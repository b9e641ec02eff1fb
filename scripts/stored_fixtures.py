"""Write one file of every kind that Prunus stores, with the installed version, to tests/data/stored/VERSION.

    git worktree add --detach /tmp/old REVISION
    PYTHONPATH=/tmp/old/src python scripts/stored_fixtures.py tests/data/stored/0.1.0-REVISION

Only the public Python API is used, so that the script runs with old and new versions. expected.json holds what that
version itself read from the files; tests/store/test_stored_fixtures.py compares it with what the current version reads.
A folder is written once, by the version that it is named after, and never again by a later one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import prunus
from prunus.progress import Steps
from prunus.store.store import Store

# `staged` is this version's name for true_sequential.
STAGED = {"method": "sparsegpt", "sparsity": 0.5, "propagation": "staged"}
AMOUNT = {"calibration": "text.txt", "samples": 4, "seqlen": 16}
PLAN = prunus.EvalPlan(tasks=("tiny",), budgets=(16, 256), limit=6, samples=2, batch_size=12)
CELL = ("n", "accuracy", "base_accuracy", "difference", "low", "high", "p", "tokens")
CONTENT = ("parameters", "weight_bytes", "sparsity", "nonzero")
STUDY = """\
models = ["model"]
[eval]
tasks = ["tiny"]
limit = 4
budgets = [0, 8]
answer_tokens = 4
batch_size = 2
profile = "s1"
[calibration]
calibration = "text.txt"
samples = 4
seqlen = 16
[[prune]]
method = "wanda"
[[prune]]
method = "sparsegpt"
propagation = "staged"
[[drop]]
blocks = 1
"""

# Variants of every kind: experts removed, pruned after that, recovered, blocks removed and recovered.
CHAINS = """\
models = ["mixture"]
[eval]
tasks = ["tiny"]
limit = 2
budgets = [0, 8]
answer_tokens = 4
batch_size = 2
profile = "s1"
[calibration]
calibration = "text.txt"
samples = 4
seqlen = 16
[[prune]]
method = "magnitude"
allocation = "owl"
scope = "mlp"
recover = [false, {epochs = 1}]
experts = [false, {keep = 0.5}]
[[experts]]
keep = 0.5
recover = [false, {epochs = 1}]
[[drop]]
method = "tail"
recover = {epochs = 1, target = "own"}
"""


def make_model(folder: Path) -> None:
    """Write a random Qwen2 of two blocks (22 KB of weights in bfloat16) with the built-in model's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(Path(prunus.__file__).parent / "data" / "tiny")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.25,
    )
    model: Any = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_mixture(folder: Path) -> None:
    """Write a random mixture of two blocks with four experts each, with the built-in model's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(Path(prunus.__file__).parent / "data" / "tiny")
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,  # pyright: ignore[reportCallIssue]
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
        initializer_range=0.25,
    )
    model: Any = Qwen3MoeForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_checkpoints() -> dict[str, Any]:
    """Write the dense model, checkpoints and files made from it, and a run interrupted after its first block."""
    make_model(Path("model"))
    Path("text.txt").write_text("\n".join(f"{n} plus {n + 1} is {2 * n + 1}." for n in range(60)) + "\n")
    recipe = prunus.PruneRecipe(**STAGED, **AMOUNT)
    prunus.prune("model", "pruned", recipe)
    with interrupted():
        prunus.prune("model", "stopped", recipe)
    prunus.stats("model", "stats.safetensors", hessians=True, **AMOUNT)
    prunus.prune("model", "wanda", prunus.PruneRecipe(propagation="dense", **AMOUNT), stats="stats.safetensors")
    wanda = digest(Path("wanda/model.safetensors"))
    shutil.rmtree("wanda")
    Path("stopped.partial").rename("stopped")  # git ignores *.partial
    prunus.allocate("model", replace(recipe, propagation="pruned", allocation="owl"), save="evidence.json")
    return {
        "recipe": recipe.to_json(),
        "recipe_hash": recipe.hash,
        "pruned": digest(Path("pruned/model.safetensors")),
        "wanda": wanda,
        "inspect": {
            name: pick(prunus.inspect(name, weights=True).to_json(), CONTENT) for name in ("model", "pruned", "tiny")
        },
        "perplexity": {name: prunus.perplexity(name, "text.txt", seqlen=64).perplexity for name in ("model", "pruned")},
    }


def write_store() -> dict[str, Any]:
    """Write runs of the built-in model, of it pruned, and of it in legacy mode."""
    prunus.prune("tiny", "wanda-60", prunus.PruneRecipe(method="wanda", sparsity=0.6, calibration="tiny", samples=16))
    runs = {
        "dense": prunus.evaluate("tiny", PLAN, "results.db").run_id,
        "pruned": prunus.evaluate("wanda-60", PLAN, "results.db").run_id,
        "legacy": prunus.evaluate("tiny", replace(PLAN, mode="legacy"), "results.db").run_id,
    }
    prunus.traces("tiny", "traces.jsonl", prunus.TraceRecipe(tasks=("tiny-train",), limit=3, max_tokens=64))
    shutil.rmtree("wanda-60")  # a megabyte
    return {"runs": runs, "compare": summary(prunus.compare("results.db", runs["dense"], [runs["pruned"]]).to_json())}


def write_study() -> dict[str, Any]:
    """Run a study of three recipes to its end."""
    Path("study.toml").write_text(STUDY)
    done = prunus.study("study.toml", out="study").to_json()
    (Path("study") / "report.html").unlink()
    compared = [summary(entry["comparison"]) for entry in done["comparisons"]]
    return {"cells": done["cells"], "compare": compared[0]}


def write_chains() -> dict[str, Any]:
    """Run a study of all kinds of steps, in chains, to its end."""
    make_mixture(Path("mixture"))
    Path("chains.toml").write_text(CHAINS)
    done = prunus.study("chains.toml", out="chains").to_json()
    for path in (
        Path("chains/report.html"),
        *Path("chains").rglob("tokenizer.json"),
    ):  # these are copies of the model's
        path.unlink(missing_ok=True)
    with Store("chains/results.db") as store:
        return {"cells": done["cells"], "runs": sorted(run.run_id for run in store.runs())}


def write_search() -> dict[str, Any]:
    """Search the built-in model with a wide margin, so that few rows decide."""
    plan = prunus.EvalPlan(tasks=("tiny",), budgets=(16, 256), limit=60, batch_size=20)
    settings = {"calibration": "tiny", "samples": 16}
    prunus.find("tiny", "found", plan, "0.1,0.9", settings=settings, margin=0.3, stop_margin=0.5, store="found.db")
    Path("found/certificate.json").rename("certificate.json")
    shutil.rmtree("found")  # a megabyte
    return {"verify": prunus.verify("certificate.json", "found.db").to_json()}


def pick(data: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return only these keys of the data, since later versions may add others."""
    return {key: data[key] for key in keys}


def summary(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return the run ids, verdicts and main numbers from the result of `compare`."""
    others = {
        other["run"]: {
            "verdict": other["verdict"],
            "primary": pick(other["primary"], CELL[:-1]),
            "budgets": {key: pick(cell, CELL) for key, cell in other["tasks"]["tiny"]["budgets"].items()},
        }
        for other in comparison["others"]
    }
    return {"base": comparison["base"]["run"], "others": others}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def interrupted() -> Any:
    """Within this, raise KeyboardInterrupt when the first block has been written."""
    advance = Steps.advance

    def stop(self: Steps, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    Steps.advance = stop
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        Steps.advance = advance


def main(folder: Path) -> None:
    """Write everything into the folder, which must not exist yet."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    expected = {"checkpoints": write_checkpoints(), "store": write_store(), "study": write_study()}
    expected |= {"chains": write_chains(), "search": write_search()}
    for name in ("pruned", "packed", "masks"):  # these are copies of the model's
        Path(name, "tokenizer.json").unlink()
    Path("expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
