"""Effect of calibrating on a model's own chains of thought: `python benchmarks/own_traces.py FOLDER`.

The tiny reasoner is pruned by Wanda at 40, 50 and 60 %, calibrated on the same number of tokens of plain English text
(the Python manual's help topics), of prompts alone, and of its own chains (prompt and chain). All are evaluated on the
same problems with the same seeds; differences are paired. FOLDER keeps models and answers, so a second call resumes.
--rows: a line for each model is added, of which calibration_page.py makes the table.
"""

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics

import torch
from calibration_page import SOURCES, added, texts
from recover_page import Line, correct, share

import prunus
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.markers import render_prompts
from prunus.evaluation.tasks import load_task
from prunus.recipes import EvalPlan, PruneRecipe, TraceRecipe

SPARSITIES = (40, 50, 60)
BUDGET = 512


def write_sources(folder: Path, problems: int) -> dict[str, str]:
    """Return the `--calibration` argument of each of SOURCES; the model's chains are drawn unless they exist."""
    text, prompts, own = folder / "text.txt", folder / "prompts.jsonl", folder / "traces.jsonl"
    if not own.exists():
        recipe = TraceRecipe(tasks=("tiny-train",), limit=problems, chain_tokens=BUDGET, batch_size=200)
        prunus.traces("tiny", own, recipe)
    text.write_text("\n\n".join(topics[name] for name in sorted(topics)))
    tokenizer = load_tokenizer(resolve("tiny"))
    rendered = render_prompts(PROFILES["tiny"], tokenizer, [problem.question for problem in load_task("tiny-train")])
    ids = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in rendered]
    prompts.write_text("".join(json.dumps({"token_ids": prompt}) + "\n" for prompt in ids))
    return {"text": str(text), "prompts": str(prompts), "chains": f"traces:{own}"}


def evaluate_all(folder: Path, tokens: int, problems: int, seeds: int, rows: Path | None) -> list[Line]:
    """Return the line of every variant."""
    sources = write_sources(folder, problems=400)
    plan = EvalPlan(tasks=("tiny",), budgets=(BUDGET,), limit=problems, batch_size=210)
    store = folder / "results.db"
    lines = [added(rows, store, prunus.evaluate("tiny", plan, store).run_id, source="dense")]
    for sparsity in SPARSITIES:
        for source in SOURCES:
            for seed in range(seeds):
                out = folder / f"{source}-{sparsity}-{seed}"
                recipe = PruneRecipe(
                    sparsity=sparsity / 100,
                    calibration=sources[source],
                    calibration_tokens=tokens,
                    seqlen=256,
                    seed=seed,
                )
                if not out.exists():
                    prunus.prune("tiny", out, recipe)
                run = prunus.evaluate(out, plan, store).run_id
                lines.append(added(rows, store, run, sparsity=sparsity, source=source, seed=seed))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=32_768, help="calibration tokens of every source")
    parser.add_argument("--problems", type=int, default=210)
    parser.add_argument("--seeds", type=int, default=1, help="calibration samples per source")
    parser.add_argument("--rows", type=Path, help="as benchmarks/calibration.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lines = evaluate_all(arguments.folder, arguments.tokens, arguments.problems, arguments.seeds, arguments.rows)
    print(f"dense: {share(correct(lines[0]))} %")
    for seed in range(arguments.seeds):
        print(f"\nseed {seed}\n\n{texts(lines, seed)}")


if __name__ == "__main__":
    main()
