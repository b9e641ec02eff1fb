"""What recovery is worth on the tiny reasoner: `python benchmarks/recover.py FOLDER [--only cells] [--minutes 30]`.

Every cell is pruned on the model's own chains, recovered on tokens of such chains, and evaluated before and after at
all budgets on held-out problems; differences are paired by problem. Each seed draws its own 395 chains for pruning, and
its own tokens, held-out part and order for recovery. `--only` chooses parts: `cells` (methods and sparsities),
`end-to-end` (all blocks trained together for the same CPU seconds, at several settings), `sources` (other calibration
texts of the same size) and `tokens`. `--second CHECKPOINT` measures the model of `training/train.py --seed 1` instead.

FOLDER keeps chains, models and answers. Each finished model is one line of benchmarks/recover.jsonl, so that a stopped
run goes on where it was; delete a line to measure it again. The tables of docs/measurements/recover.md are written from
these lines (recover_page.py). It runs on one thread.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from end_to_end import cpu_seconds, divergence, read_sequences, train_end_to_end
from finished import add_line, read_lines
from recover_page import SECOND, SHIPPED, of_reasoner, write_page

import prunus
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.disk import partial_folder
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.markers import render_prompts
from prunus.evaluation.tasks import load_task
from prunus.questions import question_digest
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe, RecoverRecipe, TraceRecipe
from prunus.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/recover.jsonl"
CHAINS, APART, PRUNING = 1700, 100, 395  # chains drawn; apart: for the divergence; how many pruning sees
BUDGETS = (32, 64, 128, 256, 512)
TOKENS, RATE, STEP_TOKENS = 16_000, 0.02, 1024
METHODS = ("magnitude", "wanda", "sparsegpt", "alps")
TELLING = ("wanda-50", "magnitude-60", "wanda-60", "sparsegpt-60", "alps-60", "shortgpt-1", "shortgpt-2")
CELLS = (
    *TELLING,
    *("wanda-2:4", "sparsegpt-2:4", *(f"{method}-70" for method in METHODS)),
    *("magnitude-50", "sparsegpt-50", "alps-50", "magnitude-2:4", "alps-2:4", *(f"{method}-80" for method in METHODS)),
)
# Settings of the rival: the learning rate as a share of each tensor's root mean square, and the tokens of one step.
RIVALS = [(rate, step) for rate in (0.01, 0.003) for step in (256, 1024)]
RIVAL_CELLS = ("wanda-60", "wanda-50", "magnitude-60")


@dataclass(frozen=True)
class Variant:
    """One model to make and measure. how: `` (only pruned), `blocks` (prunus recover) or `end-to-end`.

    source: calibration of recovery: `chains`, `prompts` or `text`. rate, step_tokens: as in RecoverRecipe.
    """

    part: str
    cell: str
    seed: int
    how: str = "blocks"
    source: str = "chains"
    tokens: int = TOKENS
    rate: float = RATE
    step_tokens: int = STEP_TOKENS

    @property
    def before(self) -> "Variant":
        """The model that is only pruned."""
        return Variant("cells", self.cell, self.seed, how="")

    @property
    def beside(self) -> "Variant":
        """The usual recovery, whose CPU seconds and tokens end-to-end training gets."""
        return Variant("cells", self.cell, self.seed)

    @property
    def name(self) -> str:
        """A name for its folder and its line."""
        pruned = f"{self.cell}-{self.seed}"
        if not self.how:
            return pruned
        return f"{pruned}-{self.how}-{self.source}-{self.tokens}-{self.rate:g}-{self.step_tokens}"


def variants(seeds: int) -> Iterator[Variant]:
    """All models but the dense one, in the order of the parts."""
    for cell in CELLS:
        for seed in range(seeds):
            yield from (Variant("cells", cell, seed, how=""), Variant("cells", cell, seed))
    for cell in RIVAL_CELLS:
        for seed in range(seeds if cell == RIVAL_CELLS[0] else 1):
            for rate, step_tokens in RIVALS:
                yield Variant("end-to-end", cell, seed, how="end-to-end", rate=rate, step_tokens=step_tokens)
    for cell in ("wanda-50", "wanda-60"):
        for seed in range(seeds):
            yield from (Variant("sources", cell, seed, source=source) for source in ("prompts", "text"))
    for tokens in (4_000, 64_000, 256_000):
        for seed in range(1 if tokens > 64_000 else seeds):
            yield Variant("tokens", "wanda-60", seed, tokens=tokens)


class Bench:
    """A folder with chains, models and answers, and the lines of what is finished, which are in the file `results`."""

    results = RESULTS

    def __init__(
        self, folder: Path, problems: int, second: Path | None, shipped: str = "tiny", reasoner: int = SHIPPED
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.store = folder, folder / "results.db"
        self.dense, self.reasoner = (resolve(shipped), reasoner) if second is None else (second, SECOND)
        self.plan = EvalPlan(tasks=("tiny",), budgets=BUDGETS, limit=problems, profile="tiny")
        self.sources = write_sources(self.dense, folder)
        self.apart = read_sequences(folder / "apart.jsonl")
        self.finished = {line["name"]: line for line in of_reasoner(self.reasoner, read_lines(self.results))}
        if "dense" not in self.finished:
            self.append({"name": "dense", **self.answers(self.dense, self.evaluate(self.dense))})

    def append(self, line: dict[str, Any]) -> None:
        """Add a finished line."""
        add_line(self.results, {**line, "reasoner": self.reasoner})
        self.finished[line["name"]] = line

    def evaluate(self, model: str | Path) -> str:
        """The run id of a model's answers; they are drawn unless they are there."""
        return prunus.evaluate(model, self.plan, self.store).run_id

    def measure(self, variant: Variant) -> None:
        """Make and evaluate a model, and append its line; nothing happens if it has one."""
        if variant.name in self.finished:
            return
        about: dict[str, Any] = {"cpu_s": 0.0}
        if variant.how:
            self.measure(variant.before)
            about = self.recovered(variant)
        else:
            self.pruned(variant)
        path = self.folder / variant.name
        answers = self.answers(path, self.evaluate(path))
        self.append({"name": variant.name, **asdict(variant), **about, **answers, "prunus": prunus.__version__})

    def pruned(self, variant: Variant) -> None:
        """Write the pruned model, unless it exists."""
        out, (method, _, amount) = self.folder / variant.name, variant.cell.rpartition("-")
        on: dict[str, Any] = {"calibration": self.sources["chains"], "sequences": PRUNING, "seed": variant.seed}
        if out.exists():
            return
        if method == "shortgpt":
            prunus.drop(self.dense, out, DropRecipe(blocks=amount, **on))
        else:
            how: dict[str, Any] = {"pattern": amount} if ":" in amount else {"sparsity": int(amount) / 100}
            prunus.prune(self.dense, out, PruneRecipe(method=method, **how, **on))  # pyright: ignore[reportArgumentType]

    def recovered(self, variant: Variant) -> dict[str, Any]:
        """Write the recovered model anew, so that its time is measured; returns what is to be told of it."""
        self.pruned(variant.before)
        pruned, out = self.folder / variant.before.name, self.folder / variant.name
        shutil.rmtree(partial_folder(out), ignore_errors=True)  # else the time of its blocks would be missing
        begin = cpu_seconds()
        if variant.how == "blocks":
            recipe = RecoverRecipe(
                calibration=self.sources[variant.source], calibration_tokens=variant.tokens, seqlen=256,
                rate=variant.rate, step_tokens=variant.step_tokens, seed=variant.seed,
            )  # fmt: skip
            told = prunus.recover(pruned, out, recipe, dense=self.dense, overwrite=True)
            kept = {"left": [index for index, (before, after) in enumerate(told.errors) if not after < before]}
        else:
            self.measure(variant.beside)
            budget = self.finished[variant.beside.name]["cpu_s"]
            sequences = read_sequences(self.folder / variant.beside.name / "calibration.jsonl")
            settings = {"rate": variant.rate, "step_tokens": variant.step_tokens, "seed": variant.seed}
            kept = {"steps": train_end_to_end(pruned, self.dense, out, sequences, budget, **settings)}
        return {"cpu_s": round(cpu_seconds() - begin, 1), **kept}

    def answers(self, path: Path, run: str) -> dict[str, Any]:
        """What a line says of a model's answers: by budget a digit per problem, 1 where it is right or ends by itself.

        used: mean tokens at the largest budget. divergence: from the dense model, on chains that no calibration has.
        """
        with Store(self.store) as rows:
            samples = rows.samples(run)
        at = {b: sorted((s for s in samples if s.budget == b), key=lambda s: s.problem_id) for b in BUDGETS}
        return {
            "correct": {b: "".join(str(int(s.correct)) for s in found) for b, found in at.items()},
            "ends": {b: "".join(str(int(s.ended == "natural")) for s in found) for b, found in at.items()},
            "used": float(np.mean([s.thinking_tokens + s.answer_tokens for s in at[BUDGETS[-1]]])),
            "divergence": divergence(path, self.dense, self.apart),
        }


def write_sources(dense: Path, folder: Path) -> dict[str, str]:
    """The `--calibration` of each source, the dense model's own chains among them; drawn and written unless they exist.

    The last chains go to apart.jsonl.
    """
    drawn, chains, apart = folder / "drawn.jsonl", folder / "chains.jsonl", folder / "apart.jsonl"
    if not drawn.exists():
        recipe = TraceRecipe(
            tasks=("tiny-train",), limit=CHAINS, chain_tokens=512, only="correct", batch_size=200, profile="tiny"
        )
        prunus.traces(dense, drawn, recipe)
    lines = drawn.read_text().splitlines(keepends=True)
    check_disjoint([json.loads(line)["problem_digest"] for line in lines])
    chains.write_text("".join(lines[:-APART]))
    apart.write_text("".join(lines[-APART:]))
    text, prompts = folder / "text.txt", folder / "prompts.jsonl"
    text.write_text("\n\n".join(topics[name] for name in sorted(topics)))
    tokenizer, problems = load_tokenizer(dense), load_task("tiny-train")
    check_disjoint([question_digest(problem.question) for problem in problems])
    rendered = render_prompts(PROFILES["tiny"], tokenizer, [problem.question for problem in problems])
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in rendered]
    prompts.write_text("".join(json.dumps({"token_ids": prompt}) + "\n" for prompt in ids))
    return {"chains": f"traces:{chains}", "prompts": str(prompts), "text": str(text)}


def check_disjoint(digests: Sequence[str]) -> None:
    """Raise AssertionError where a calibration problem is one that models are evaluated on, by the hash of its text."""
    shared = set(digests) & {question_digest(problem.question) for problem in load_task("tiny")}
    if shared or not digests:
        raise AssertionError(f"{len(shared)} problems are in both calibration and evaluation")


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--second", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--table", action="store_true", help="Only write the tables.")
    parser.add_argument("--only", action="append", choices=("cells", "end-to-end", "sources", "tokens"))
    parser.add_argument("--cells", default=",".join(CELLS), help="Which, with commas between them.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--problems", type=int, default=210)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Begin no model after this time.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.table:
        if asked.folder is None:
            parser.error("give FOLDER or --table")
        bench, began = Bench(asked.folder, asked.problems, asked.second), time.monotonic()
        for variant in variants(asked.seeds):
            wanted = variant.part in (asked.only or [variant.part]) and variant.cell in asked.cells.split(",")
            if wanted and time.monotonic() - began < 60 * asked.minutes:
                bench.measure(variant)
    print(write_page(ROOT / "docs", read_lines(RESULTS)))


if __name__ == "__main__":
    main()
