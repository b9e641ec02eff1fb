"""Effect of calibrating on a model's own chains of thought: `python benchmarks/own_traces.py FOLDER`.

The tiny reasoner is pruned by Wanda at 40, 50 and 60 %, calibrated on the same number of tokens of plain English text
(the Python manual's help topics), of prompts alone, and of its own chains (prompt and chain). All are evaluated on the
same problems with the same seeds; differences are paired. FOLDER keeps models and answers, so a second call resumes.
"""

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

import prunus
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.markers import render_prompts
from prunus.evaluation.tasks import load_task
from prunus.recipes import EvalPlan, PruneRecipe, TraceRecipe

SPARSITIES = (40, 50, 60)
SOURCES = ("text", "prompts", "traces")
BUDGET = 512


def write_sources(folder: Path, problems: int) -> dict[str, str]:
    """Return the `--calibration` argument of each source, by name; the model's chains are drawn unless they exist."""
    text, prompts, own = folder / "text.txt", folder / "prompts.jsonl", folder / "traces.jsonl"
    if not own.exists():
        recipe = TraceRecipe(tasks=("tiny-train",), limit=problems, max_tokens=BUDGET, batch_size=200)
        prunus.traces("tiny", own, recipe)
    text.write_text("\n\n".join(topics[name] for name in sorted(topics)))
    tokenizer = load_tokenizer(resolve("tiny"))
    rendered = render_prompts(PROFILES["tiny"], tokenizer, [problem.question for problem in load_task("tiny-train")])
    ids = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in rendered]
    prompts.write_text("".join(json.dumps({"token_ids": prompt}) + "\n" for prompt in ids))
    return {"text": str(text), "prompts": str(prompts), "traces": f"traces:{own}"}


def evaluate_all(folder: Path, tokens: int, problems: int, seeds: int) -> dict[str, str]:
    """Return the run id of every variant, by its name."""
    sources = write_sources(folder, problems=400)
    plan = EvalPlan(tasks=("tiny",), budgets=(BUDGET,), limit=problems, batch_size=210)
    store = folder / "results.db"
    runs = {"dense": prunus.evaluate("tiny", plan, store).run_id}
    for sparsity in SPARSITIES:
        for source in SOURCES:
            for seed in range(seeds):
                name = f"{source}-{sparsity}-{seed}"
                recipe = PruneRecipe(
                    sparsity=sparsity / 100,
                    calibration=sources[source],
                    calibration_tokens=tokens,
                    seqlen=256,
                    seed=seed,
                )
                if not (folder / name).exists():
                    prunus.prune("tiny", folder / name, recipe)
                runs[name] = prunus.evaluate(folder / name, plan, store).run_id
    return runs


def difference(store: Path, base: str, other: str) -> dict[str, Any]:
    """Return the paired contrast of `compare` at the only budget."""
    (entry,) = prunus.compare(store, base, [other]).to_json()["others"]
    return entry["tasks"]["tiny"]["budgets"][BUDGET]


def show(store: Path, runs: dict[str, str], seeds: int) -> None:
    """Print Markdown: accuracy with each source, and the differences of own chains to the others."""
    print("| sparsity | seed | text | prompts | own traces | traces - text | traces - prompts |")
    print("|---|---|---|---|---|---|---|")
    for sparsity in SPARSITIES:
        for seed in range(seeds):
            of = {source: runs[f"{source}-{sparsity}-{seed}"] for source in SOURCES}
            to_text, to_prompts = (difference(store, of[source], of["traces"]) for source in ("text", "prompts"))
            accuracies = (to_text["base_accuracy"], to_prompts["base_accuracy"], to_text["accuracy"])
            gains = [
                f"{100 * c['difference']:+.1f} [{100 * c['low']:.1f}, {100 * c['high']:.1f}]"
                for c in (to_text, to_prompts)
            ]
            cells = [f"{sparsity} %", str(seed), *(f"{100 * value:.1f}" for value in accuracies), *gains]
            print("| " + " | ".join(cells) + " |")
    dense = difference(store, runs["traces-40-0"], runs["dense"])
    print(f"\ndense: {100 * dense['accuracy']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=32_768, help="calibration tokens of every source")
    parser.add_argument("--problems", type=int, default=210)
    parser.add_argument("--seeds", type=int, default=1, help="calibration samples per source")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    runs = evaluate_all(arguments.folder, arguments.tokens, arguments.problems, arguments.seeds)
    show(arguments.folder / "results.db", runs, arguments.seeds)


if __name__ == "__main__":
    main()
