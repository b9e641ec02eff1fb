"""What it costs to remove channels, beside blocks and zeros: `python benchmarks/width.py FOLDER [--only tiny]`.

    tiny      the tiny reasoner: channels by number, method, fit and target; blocks and zeros of as many parameters
    second    the same, fewer cells, with the reasoner of `training/train.py --seed 1`: --second CHECKPOINT
    moe       the small mixture: channels of its experts beside whole experts
    smollm2   perplexity of SmolLM2 on the texts of benchmarks/quality.py
    cost      CPU seconds and peak memory of `prunus width` on SmolLM2, beside those of Wanda

FOLDER keeps chains, models and answers. Each finished model is one line of benchmarks/width.jsonl, so that a stopped
run goes on where it was; delete a line to measure it again. --table prints the tables from these lines. It runs on one
thread, one model at a time. How fast models are is measured by benchmarks/engines.py.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import quality
import torch
from end_to_end import cpu_seconds
from finished import add_line, read_lines
from recover import PRUNING, Bench
from recover_page import SECOND, SHIPPED, Line, area, dense_of, gain, markdown, of_reasoner, share, values

import prunus
from prunus.disk import partial_folder
from prunus.recipes import DropRecipe, ExpertsRecipe, PruneRecipe, RecoverRecipe, WidthRecipe
from prunus.recipes.base import Recipe
from prunus.step import steps_name

RESULTS = Path(__file__).with_name("width.jsonl")
TOKENS, SEEDS = 16_000, 3
MIXTURE = 2  # beside the seeds of the two reasoners, in `reasoner`
WIDTHS = (224, 192, 160, 128, 96)  # of 256: 12.5 to 62.5 % are removed
RECOVERY = {"calibration_tokens": 4 * TOKENS, "seqlen": 256, "step_tokens": 1024}
SMOLLM2_WIDTHS = (1152, 960, 768)  # of 1536: 25, 37.5 and 50 % are removed


@dataclass(frozen=True)
class Model:
    """A model to make and measure: a row of a table. saved: what it saves, in words; name: its line."""

    part: str
    saved: str
    steps: tuple[Recipe, ...]
    seed: int = 0

    @property
    def name(self) -> str:
        """A name for its folder and its line."""
        return f"{self.part}-{steps_name(self.steps)}-{self.seed}"

    @property
    def row(self) -> str:
        """What lines of several seeds have in common."""
        return steps_name(self.steps)


def on(chains: str, seed: int) -> dict[str, Any]:
    """Calibration on the model's own chains."""
    return {"calibration": chains, "calibration_tokens": TOKENS, "seqlen": 256, "seed": seed}


def tiny_models(chains: str) -> Iterator[Model]:
    """All models of the tiny reasoner."""

    def narrow(kept: int, seed: int, **how: Any) -> WidthRecipe:
        return WidthRecipe(intermediate_size=kept, **how, **on(chains, seed))

    def recovery(seed: int, **how: Any) -> RecoverRecipe:
        return RecoverRecipe(calibration=chains, seed=seed, **RECOVERY, **how)

    def seeds(first: int, last: int) -> Iterator[Model]:
        for seed in range(first, last):
            for kept in WIDTHS:
                removed = f"{100 * (256 - kept) / 256:g} % of the channels"
                yield Model("tiny", removed, (narrow(kept, seed),), seed)
                if kept <= 160:
                    yield Model("tiny", removed, (narrow(kept, seed), recovery(seed)), seed)

    yield from seeds(0, 1)
    for method in ("obs", "wanda", "flap", "magnitude", "random"):
        for how in ({"fit": False}, {"target": "own"}, {}):
            if method != "obs" or how:
                yield Model("methods", "37.5 % of the channels", (narrow(160, 0, method=method, **how),))
    fewer = {"calibration": chains, "sequences": PRUNING, "seed": 0}
    for blocks in (1, 2):
        for method in ("shortgpt", "angular", "laco", "sleb"):
            recipe = DropRecipe(method=method, blocks=str(blocks), **fewer)  # pyright: ignore[reportArgumentType]
            yield Model("others", f"{blocks} of 8 blocks", (recipe,))
            if method == "shortgpt":
                yield Model("others", f"{blocks} of 8 blocks", (recipe, recovery(0, rate=0.02)))
        for method in ("wanda", "alps"):
            recipe = PruneRecipe(method=method, sparsity=blocks / 8, **fewer)
            yield Model("others", f"zeros, as many as {blocks} of 8 blocks have weights", (recipe,))
    yield from seeds(1, SEEDS)


def moe_models(chains: str) -> Iterator[Model]:
    """All models of the small mixture, whose 8 experts have 128 channels each."""
    for removed in (1, 2, 4):
        at = {"calibration": chains, "calibration_tokens": TOKENS, "seqlen": 256}
        yield Model("moe", f"{removed} of 8", (ExpertsRecipe(drop=removed, **at),))
        yield Model("moe", f"{removed} of 8", (WidthRecipe(of="experts", keep=1 - removed / 8, multiple=1, **at),))
        yield Model(
            "moe", f"{removed} of 8", (PruneRecipe(method="wanda", scope="experts", sparsity=removed / 8, **at),)
        )


class Reasoner(Bench):
    """Models of a tiny reasoner, measured like those of benchmarks/recover.py."""

    results = RESULTS

    def measure(self, model: Model) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make and evaluate a model, and append its line; nothing happens if it has one."""
        if model.name in self.finished:
            return
        out, begin = self.folder / model.name, cpu_seconds()
        shutil.rmtree(partial_folder(out), ignore_errors=True)  # else the time of its blocks would be missing
        prunus.apply_steps(self.dense, out, model.steps, overwrite=True)
        about = {"cpu_s": round(cpu_seconds() - begin, 1), "parameters": parameters(out) / parameters(self.dense)}
        labels = {"part": model.part, "row": model.row, "saved": model.saved, "seed": model.seed}
        answers = self.answers(out, self.evaluate(out))
        self.append({"name": model.name, **labels, **about, **answers, "prunus": prunus.__version__})


def parameters(folder: Path) -> int:
    """The number of weights that are not zero."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(int(file.get_tensor(name).count_nonzero()) for name in file.keys())  # noqa: SIM118


def smollm2_models() -> Iterator[Model]:
    """All models of SmolLM2."""
    last = []
    for kept in SMOLLM2_WIDTHS:
        removed = f"{100 * (1536 - kept) / 1536:g} %"
        for seed in range(SEEDS if kept == SMOLLM2_WIDTHS[0] else 1):
            at: dict[str, Any] = {"intermediate_size": kept, **quality.calibrated(seed)}
            narrow = WidthRecipe(**at)
            yield Model("smollm2", removed, (narrow,), seed)
            if not seed:
                more: dict[str, Any] = {"sequences": quality.MORE_SAMPLES, "seqlen": quality.SEQLEN, "seed": seed}
                recovery = RecoverRecipe(calibration=str(quality.text(f"more-{seed}")), rate=None, **more)
                last.append(Model("smollm2", removed, (narrow, recovery)))
    at = {"intermediate_size": SMOLLM2_WIDTHS[0], **quality.calibrated(0)}
    others: list[dict[str, Any]] = [{"damping": damping} for damping in (0.01, 0.1, 1.0)]
    others += [{"target": "own"}, {"fit": False}, {"method": "wanda"}, {"method": "magnitude"}]
    yield from (Model("smollm2", "25 %", (WidthRecipe(**at | how),)) for how in others)
    yield from last


class Perplexity:
    """Models of SmolLM2, measured by their perplexity on held-out text."""

    def __init__(self, folder: Path) -> None:
        quality.prepare()
        self.folder = folder
        self.finished = {line["name"] for line in read_lines(RESULTS)}

    def measure(self, model: Model) -> None:
        """Make and measure a model, and append its line; nothing happens if it has one."""
        if model.name in self.finished:
            return
        out, begin = self.folder / model.name, cpu_seconds()
        shutil.rmtree(partial_folder(out), ignore_errors=True)
        if len(model.steps) == 2:  # its first step stays, so that it is not made again
            before = self.folder / f"{model.part}-{steps_name(model.steps[:1])}-{model.seed}"
            prunus.recover(before, out, model.steps[1], dense=quality.MODEL, overwrite=True)  # pyright: ignore
        else:
            prunus.width(quality.MODEL, out, model.steps[0], overwrite=True)  # pyright: ignore
        seconds = round(cpu_seconds() - begin, 1)
        found = prunus.perplexity(out, quality.text("held_out"), seqlen=quality.SEQLEN).perplexity
        labels = {"part": model.part, "row": model.row, "saved": model.saved, "seed": model.seed}
        share_left = parameters(out) / parameters(quality.MODEL)
        line = {"name": model.name, **labels, "cpu_s": seconds, "parameters": share_left, "perplexity": found}
        add_line(RESULTS, {**line, "prunus": prunus.__version__})


def cost(folder: Path) -> str:
    """CPU seconds and peak memory of commands, each in a process of its own."""
    at = ["--calibration", str(quality.text("calibration-0")), "--sequences", "16", "--seqlen", "512"]
    commands = {
        "Wanda 50 %": ["prune", "--method", "wanda", "--sparsity", "0.5"],
        "SparseGPT 50 %": ["prune", "--method", "sparsegpt", "--sparsity", "0.5"],
        "width 75 %": ["width", "--keep", "0.75"],
        "width 75 %, own target": ["width", "--keep", "0.75", "--target", "own"],
        "width 75 %, Wanda": ["width", "--keep", "0.75", "--method", "wanda"],
    }
    rows = []
    for name, (command, *options) in commands.items():
        script = (
            "import resource, sys, torch; from prunus.cli import main; torch.set_num_threads(1)\n"
            "try: main(sys.argv[1:])\n"
            "except SystemExit as end:\n"
            "    if end.code: raise\n"
            "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, used.ru_maxrss)"
        )
        out = folder / "cost"
        shutil.rmtree(out, ignore_errors=True)
        told = subprocess.run(
            [sys.executable, "-c", script, command, quality.MODEL, out, "--quiet", *options, *at],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        seconds, peak = map(float, told.stdout.split()[-2:])
        rows.append([name, f"{seconds:.0f}", f"{peak / 1e6:.2f}"])
    return markdown(["command", "CPU s", "peak GB"], rows)


def tables(lines: Sequence[Line]) -> str:
    """The tables of all parts as Markdown: means over seeds, and intervals of mean paired differences to dense."""
    found = []
    for reasoner, parts in (
        (SHIPPED, ("tiny", "methods", "others")),
        (SECOND, ("tiny", "methods", "others")),
        (MIXTURE, ("moe",)),
    ):
        own = of_reasoner(reasoner, lines)
        for part in parts:
            of_part = [line for line in own if line.get("part") == part]
            if of_part:
                found.append(f"{part}, reasoner {reasoner}\n\n{answers_table(of_part, dense_of(own))}")
    if perplexities := [line for line in lines if line.get("part") == "smollm2"]:
        head = ["model", "seeds", "weights left, %", "perplexity", "CPU s"]
        rows = [
            [
                name, str(len(each)), f"{100 * each[0]['parameters']:.1f}",
                ", ".join(f"{line['perplexity']:.2f}" for line in each), f"{mean(line['cpu_s'] for line in each):.0f}",
            ]
            for name, each in by_row(perplexities).items()
        ]  # fmt: skip
        found.append(markdown(head, rows))
    return "\n\n".join(found)


def answers_table(lines: Sequence[Line], dense: Line) -> str:
    """A row per model: accuracy at the largest budget and over all budgets, chains that end, and the divergence."""
    head = ["removed", "by", "seeds", "weights left, %", "at 512", "area", "to dense", "ends", "divergence", "CPU s"]
    rows = [
        [
            "",
            "dense",
            "",
            "100.0",
            share(values(dense, "correct")),
            share(area(dense)),
            "",
            share(values(dense, "ends")),
            "",
            "",
        ]
    ]
    for name, each in by_row(lines).items():
        rows.append([
            each[0]["saved"], name, str(len(each)), f"{100 * each[0]['parameters']:.1f}",
            f"{100 * mean(values(line, 'correct').mean() for line in each):.1f}",
            f"{100 * mean(area(line).mean() for line in each):.1f}",
            gain([dense] * len(each), each, area),
            f"{100 * mean(values(line, 'ends').mean() for line in each):.1f}",
            f"{mean(line['divergence'] for line in each):.5f}", f"{mean(line['cpu_s'] for line in each):.0f}",
        ])  # fmt: skip
    return markdown(head, rows)


def by_row(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines of the same model with other seeds together."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["row"], []).append(line)
    return found


def main() -> None:
    """Measure what is missing, and print the tables."""
    parts = ("tiny", "methods", "others", "moe", "smollm2", "cost")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--second", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--table", action="store_true", help="Only print the tables.")
    parser.add_argument("--only", action="append", choices=parts)
    parser.add_argument("--problems", type=int, default=210)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Begin no model after this time.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.table:
        if asked.folder is None:
            parser.error("give FOLDER or --table")
        measure(asked.folder, asked.only or parts, asked.problems, asked.second, time.monotonic() + 60 * asked.minutes)
    print(tables(read_lines(RESULTS)))


def measure(folder: Path, parts: Sequence[str], problems: int, second: Path | None, until: float) -> None:
    """Measure what is missing of these parts."""
    work: list[tuple[Any, Model]] = []
    if {"tiny", "methods", "others"} & set(parts):
        bench = Reasoner(folder / ("second" if second else "tiny"), problems, second)
        work += [(bench, model) for model in tiny_models(bench.sources["chains"]) if model.part in parts]
    if "moe" in parts:
        mixture = Reasoner(folder / "moe", problems, None, "tiny-moe", MIXTURE)
        work += [(mixture, model) for model in moe_models(mixture.sources["chains"])]
    if "smollm2" in parts:
        texts = Perplexity(folder)
        work += [(texts, model) for model in smollm2_models()]
    for bench, model in work:
        if time.monotonic() < until:
            bench.measure(model)
    if "cost" in parts:
        print(cost(folder))


if __name__ == "__main__":
    main()
