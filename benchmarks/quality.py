"""Perplexity of SmolLM2-135M after every method, allocation and depth method, on held-out text.

`python benchmarks/quality.py` fetches the model into .cache and writes the tables and the figure of
docs/measurements/quality.md.
Each finished cell is one line of benchmarks/quality.jsonl, under a hash of its recipe, its texts and its model. It can
be stopped at any time, run in parts (--only, --minutes, --seeds), and run again after a method was added; delete the
file to measure everything again. With --table nothing is measured, but tables and figure are written from the finished
cells. It runs on one thread, one cell at a time.
"""

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from docstrings import docstrings
from finished import add_line, read_lines
from quality_page import write_page
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import prunus
from prunus.disk import partial_folder
from prunus.formats import FORMATS
from prunus.plain_data import content_hash
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.depth import DEPTH_METHODS
from prunus.pruning.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
MODEL, WORK = ROOT / ".cache/smollm2", ROOT / ".cache/benchmark/quality"
RESULTS = ROOT / "benchmarks/quality.jsonl"
SEQLEN, HELD_OUT, SAMPLES, SEEDS = 512, 8, 16, 3
INFLUENCES, INFLUENCE_TOKENS = 80, 128
OTHER_TOKENS = 8192  # of each text unlike the calibration
MORE_SAMPLES = 64  # of recovery on more text: those of the calibration, and 48 more
SLEB_SAMPLES, SLEB_SEQLEN = 4, 256
SETTINGS: dict[str, dict[str, Any]] = {
    **{f"{share} %": {"sparsity": share / 100} for share in (20, 50, 60, 70)},
    "4:8": {"pattern": "4:8"},
    "2:4": {"pattern": "2:4"},
}
# A cell of these takes minutes, so they come last, in this order. Depth methods among them have one seed, and SLEB gets
# fewer tokens.
SLOW = ("layerif", "alps", "laco", "laco, `--threshold 0.9`", "sleb")
SLOW_DEPTH = ("sleb", "laco")
# Rows of what the package no longer has; commit 0ec12a0 measured the first four, de482df7 the others.
GONE = (
    *("ria", "gblm", "wanda++", "dlp", "dsnot", "alphapruning", "layerif-sketch"),
    *("wanda, `--row-power 0.25`", "wanda, `--row-power 0.25 --update obs`"),
)


@dataclass(frozen=True)
class Cell:
    """One model to make and measure. table, row, column: the place of its perplexity.

    stats: input norms of the dense model, measured once per seed: `saved`, or `shuffled` within each Linear.
    evidence: recipe with which the importance scores of the allocation are measured, once per seed.
    recovery: how the pruned model is recovered before it is measured.
    """

    table: str
    row: str
    column: str
    seed: int
    recipe: prunus.PruneRecipe | prunus.DropRecipe
    stats: str = ""
    evidence: prunus.PruneRecipe | None = None
    random_mask: bool = False
    recovery: prunus.RecoverRecipe | None = None

    @property
    def key(self) -> str:
        """Return a hash of everything that the perplexity depends on, except the version of prunus."""
        recipes = [None if r is None else portable(r) for r in (self.recipe, self.evidence)]
        if self.recovery is not None:
            recipes.append(portable(self.recovery))
        return content_hash([*recipes, self.stats, self.random_mask, digest(text("held_out")), digest(weights())])


def portable(recipe: prunus.PruneRecipe | prunus.DropRecipe | prunus.RecoverRecipe) -> dict[str, Any]:
    """Return the non-default fields of a recipe, so that a new option changes no key; calibration files by content."""
    default = type(recipe)().to_json()
    data = {name: value for name, value in recipe.to_json().items() if value != default[name]}
    if "calibration" in data:
        data["calibration"] = digest(Path(data["calibration"]))
    return {"kind": type(recipe).__name__} | data


@cache
def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def text(name: str) -> Path:
    """Return the file of token ids: held_out, calibration-SEED, more-SEED or influence-SEED."""
    return WORK / f"{name}.jsonl"


def weights() -> Path:
    return MODEL / "model.safetensors"


def prepare() -> None:
    """Fetch model, write token ids. Seeds share no row; influences use the start of 80 rows, 16 also calibration's."""
    WORK.mkdir(parents=True, exist_ok=True)
    if not (MODEL / "config.json").exists():
        subprocess.run([sys.executable, ROOT / "scripts/fetch_model.py", "smollm2", MODEL], check=True)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = [i for each in docstrings() for i in tokenizer.encode(each + "\n\n", add_special_tokens=False).ids]
    rows = [ids[begin : begin + SEQLEN] for begin in range(0, len(ids) - SEQLEN + 1, SEQLEN)]
    parts = {"held_out": rows[:HELD_OUT]}
    for seed in range(SEEDS):
        begin = HELD_OUT + 1 + seed * INFLUENCES  # the row in between may share a document with both
        parts[f"calibration-{seed}"] = rows[begin : begin + SAMPLES]
        parts[f"more-{seed}"] = rows[begin : begin + MORE_SAMPLES]
        parts[f"influence-{seed}"] = [row[:INFLUENCE_TOKENS] for row in rows[begin : begin + INFLUENCES]]
    for name, part in parts.items():
        text(name).write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in part))


def calibrated(seed: int) -> dict[str, Any]:
    """Return the calibration fields of a recipe."""
    return {"calibration": str(text(f"calibration-{seed}")), "sequences": SAMPLES, "seqlen": SEQLEN, "seed": seed}


def method_cells() -> Iterator[Cell]:
    """Yield cells of every method at every setting, of two with SparseGPT's update, and of Wanda with row budgets."""
    for method, about in METHODS.items():
        for column, setting in SETTINGS.items():
            for seed in range(1 if about.needs == "nothing" else SEEDS):
                yield Cell("methods", method, column, seed, method_recipe(method, seed, setting))
    updated: tuple[str, ...] = ("magnitude", "wanda")
    for method in updated:
        for column in ("50 %", "60 %"):
            for seed in range(SEEDS):
                recipe = replace(method_recipe(method, seed, SETTINGS[column], data=True), update="obs")
                yield Cell("methods", f"{method}, `--update obs`", column, seed, recipe)


def propagation_cells() -> Iterator[Cell]:
    """Yield cells of Wanda with `pruned`; `dense` is under allocations, `true_sequential` under methods."""
    for column in ("20 %", "50 %", "70 %"):
        for seed in range(SEEDS):
            recipe = replace(method_recipe("wanda", seed, SETTINGS[column]), propagation="pruned")
            yield Cell("propagation", "pruned", column, seed, recipe)


def method_recipe(method: str, seed: int, setting: dict[str, Any], data: bool = False) -> prunus.PruneRecipe:
    """Return a recipe with true_sequential inputs. data: calibrate even if the method needs no data."""
    on = calibrated(seed) if data or METHODS[method].needs != "nothing" else {}
    return prunus.PruneRecipe(method=method, propagation="true_sequential", **on, **setting)


def allocation_cells() -> Iterator[Cell]:
    """Yield cells of Wanda with every allocation, all from the same input norms of the dense model."""
    for allocation, about in ALLOCATIONS.items():
        for seed in range(SEEDS):
            evidence = None if about.needs == "nothing" else evidence_recipe(allocation, seed)
            for column in ("20 %", "50 %", "70 %"):
                recipe = dense_recipe(seed, int(column.split()[0]) / 100, allocation)
                yield Cell("allocations", allocation, column, seed, recipe, "saved", evidence)


def magnitude_cells() -> Iterator[Cell]:
    """Yield cells of Magnitude at the seed study's 20 %, where LayerIF is said to help; scores as in Wanda's cells."""
    for allocation in ("uniform", "layerif"):
        for seed in range(1 if allocation == "uniform" else SEEDS):
            recipe = method_recipe("magnitude", seed, SETTINGS["20 %"])
            if allocation == "layerif":
                recipe = replace(recipe, allocation=allocation)
            evidence = evidence_recipe(allocation, seed) if allocation == "layerif" else None
            yield Cell("magnitude", allocation, "20 %", seed, recipe, evidence=evidence)


def dense_recipe(seed: int, sparsity: float, allocation: str = "uniform") -> prunus.PruneRecipe:
    """Return a recipe for Wanda on inputs of the dense model."""
    return prunus.PruneRecipe(
        method="wanda", sparsity=sparsity, allocation=allocation, propagation="dense", **calibrated(seed)
    )


def evidence_recipe(allocation: str, seed: int) -> prunus.PruneRecipe:
    """Return the recipe that measures an allocation. Influences use 80 sequences, 60 of them as training data."""
    recipe = dense_recipe(seed, 0.5, allocation)
    if ALLOCATIONS[allocation].needs != "gradients":
        return recipe
    train = INFLUENCES * 3 // 4
    name = str(text(f"influence-{seed}"))
    return replace(recipe, calibration=name, influence_train=train, influence_validation=INFLUENCES - train)


def control_cells() -> Iterator[Cell]:
    """Yield negative controls: random zeros, and Wanda with the norms of other inputs."""
    for seed in range(SEEDS):
        yield Cell(
            "controls",
            "random",
            "50 %",
            seed,
            prunus.PruneRecipe(method="magnitude", sparsity=0.5, seed=seed),
            random_mask=True,
        )
        yield Cell("controls", "shuffled", "50 %", seed, dense_recipe(seed, 0.5), "shuffled")


def depth_cells() -> Iterator[Cell]:
    """Yield cells of every depth method at 10 % and 20 % of the blocks, and more of LaCo."""
    for method, about in DEPTH_METHODS.items():
        for column, share in (("10 %", 0.1), ("20 %", 0.2)):
            for seed in range(SEEDS if about.needs_data and method not in SLOW_DEPTH else 1):
                on = calibrated(seed) if about.needs_data else {}
                if method == "sleb":
                    on |= {"sequences": SLEB_SAMPLES, "seqlen": SLEB_SEQLEN, "calibration": str(sleb_text(seed))}
                recipe = prunus.DropRecipe(method=method, match_sparsity=share, **on)
                yield Cell("depth", method, column, seed, recipe)
                if method == "laco":
                    stricter = replace(recipe, threshold=0.9)
                    yield Cell("depth", "laco, `--threshold 0.9`", column, seed, stricter)


def recovery_cells() -> Iterator[Cell]:
    """Yield cells of four methods, recovered on the text that they were pruned on, and of one on four times as much."""
    order = [("50 %", 0), ("2:4", 0), ("60 %", 0), ("70 %", 0), *(("50 %", seed) for seed in range(1, SEEDS))]
    methods: tuple[str, ...] = ("wanda", "alps", "sparsegpt", "magnitude")
    for column, seed in order:
        for method in methods:
            recipe = method_recipe(method, seed, SETTINGS[column])
            recovery = prunus.RecoverRecipe(**calibrated(seed))
            yield Cell("recovery", method, column, seed, recipe, recovery=recovery)
    more = prunus.RecoverRecipe(**calibrated(0) | {"calibration": str(text("more-0")), "sequences": MORE_SAMPLES})
    row = f"wanda, {MORE_SAMPLES} sequences"
    yield Cell("recovery", row, "50 %", 0, method_recipe("wanda", 0, SETTINGS["50 %"]), recovery=more)


def sleb_text(seed: int) -> Path:
    """Return the starts of the first calibration sequences."""
    rows = [json.loads(line)["token_ids"] for line in text(f"calibration-{seed}").read_text().splitlines()]
    cut = "".join(json.dumps({"token_ids": row[:SLEB_SEQLEN]}) + "\n" for row in rows[:SLEB_SAMPLES])
    path = text(f"sleb-{seed}")
    path.write_text(cut)
    return path


def make(cell: Cell, out: Path) -> Mapping[str, Any]:
    """Write the cell's model; return the summary of prune or drop."""
    if cell.random_mask:
        return random_mask(out, cell.seed)
    if isinstance(cell.recipe, prunus.DropRecipe):
        return prunus.drop(MODEL, out, cell.recipe, overwrite=True).to_json()
    recipe = cell.recipe
    if cell.evidence is not None:
        recipe = replace(recipe, scores=str(evidence_file(cell.evidence)))
    stats = stats_file(cell.seed, cell.stats == "shuffled") if cell.stats else None
    return prunus.prune(MODEL, out, recipe, stats=stats, overwrite=True).to_json()


def evidence_file(recipe: prunus.PruneRecipe) -> Path:
    """Return the file of importance scores, measured unless it exists."""
    path = WORK / f"evidence-{content_hash(portable(recipe))}.json"
    if not path.exists():
        found = prunus.allocate(MODEL, recipe, save=path)
        print(f"{recipe.allocation}: {found.warnings}", file=sys.stderr)
    return path


def stats_file(seed: int, shuffled: bool) -> Path:
    """Return the file of the dense model's input norms, if requested shuffled within each input."""
    path = WORK / f"stats-{FORMATS['file of statistics']}-{digest(text(f'calibration-{seed}'))[:12]}.safetensors"
    if not path.exists():
        prunus.stats(MODEL, path, **calibrated(seed))
    if not shuffled:
        return path
    with safe_open(path, "pt") as opened:
        about, names = opened.metadata(), sorted(opened.keys())
        norms = {name: opened.get_tensor(name) for name in names}
    generator = torch.Generator().manual_seed(seed)
    norms = {name: norm_I[torch.randperm(len(norm_I), generator=generator)] for name, norm_I in norms.items()}
    target = path.with_suffix(".shuffled")
    save_file(norms, target, about)
    return target


def random_mask(out: Path, seed: int) -> dict[str, Any]:
    """Write a copy of the model in which each weight of the blocks' Linears is zero with probability one half."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(MODEL, out)
    tensors, generator = load_file(weights()), torch.Generator().manual_seed(seed)
    for name, weight_OI in tensors.items():
        if "_proj." in name:
            weight_OI[torch.rand(weight_OI.shape, generator=generator) < 0.5] = 0
    save_file(tensors, out / weights().name, {"format": "pt"})
    return {"warnings": []}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_recovery(cell: Cell, others: dict[str, Path]) -> dict[str, Any]:
    """Return the line of a recovered cell; the pruned model is kept for the next one.

    others: texts unlike the calibration, whose perplexities before and after are in `others`. cpu_seconds: to recover.
    """
    assert cell.recovery is not None
    pruned_cell = replace(cell, recovery=None)
    pruned, out = WORK / f"pruned-{pruned_cell.key}", WORK / f"model-{cell.key}"
    if not pruned.exists():
        make(pruned_cell, pruned)
    shutil.rmtree(partial_folder(out), ignore_errors=True)  # else the time of its blocks would be missing
    started = cpu_seconds()
    told = prunus.recover(pruned, out, cell.recovery, dense=MODEL, overwrite=True)
    seconds = cpu_seconds() - started
    found = {
        name: [prunus.perplexity(model, path, seqlen=SEQLEN, tokens=limit).perplexity for model in (pruned, out)]
        for name, path, limit in [
            ("held_out", text("held_out"), None),
            *((name, path, OTHER_TOKENS) for name, path in others.items()),
        ]
    }
    shutil.rmtree(out)
    before, after = found.pop("held_out")
    errors = {"held_out_error": [round(told.error_before, 5), round(told.error_after, 5)]}
    return line_of(cell, after, seconds) | {"before": before, "others": found, **errors, "warnings": told.warnings}


def measure(cell: Cell) -> dict[str, Any]:
    """Return the line of a cell. cpu_seconds: to make the model, without measurements that several cells share."""
    out = WORK / f"model-{cell.key}"
    if cell.evidence is not None:
        evidence_file(cell.evidence)
    if cell.stats:
        stats_file(cell.seed, False)
    shutil.rmtree(partial_folder(out), ignore_errors=True)  # else the time of its blocks would be missing
    started = cpu_seconds()
    made = make(cell, out)
    seconds = cpu_seconds() - started
    found = prunus.perplexity(out, text("held_out"), seqlen=SEQLEN).perplexity
    shutil.rmtree(out)
    kept = {name: made[name] for name in ("blocks_removed", "warnings") if made.get(name)}
    return line_of(cell, found, seconds) | kept


def line_of(cell: Cell, perplexity: float, seconds: float) -> dict[str, Any]:
    """Return what every line says."""
    return {
        "key": cell.key,
        "table": cell.table,
        "row": cell.row,
        "column": cell.column,
        "seed": cell.seed,
        "perplexity": perplexity,
        "cpu_seconds": round(seconds, 1),
        "prunus": prunus.__version__,
    }


def grid() -> list[Cell]:
    """Return all cells, table by table and row by row."""
    allocated = [*allocation_cells(), *magnitude_cells()]
    return [*method_cells(), *propagation_cells(), *allocated, *control_cells(), *depth_cells(), *recovery_cells()]


def in_turn(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells in the order to measure: fast ones, slow ones seed by seed, and recovery in its own order."""

    def place(cell: Cell) -> tuple[int, int, int]:
        if cell.table == "recovery":
            return 2, 0, 0
        slow = cell.row in SLOW
        return slow, cell.seed * slow, SLOW.index(cell.row) if slow else 0

    return sorted(cells, key=place)


def finished() -> dict[str, dict[str, Any]]:
    """Return the finished lines by key."""
    return {row["key"]: row for row in read_lines(RESULTS)}


def dense_perplexity(path: Path, name: str = "") -> float:
    """Return the perplexity of the unpruned model on held-out text, or on another of this name, stored like a cell."""
    key = content_hash(["dense", digest(path), digest(weights())])
    done = finished()
    if key not in done:
        limit = OTHER_TOKENS if name else None
        found = prunus.perplexity(MODEL, path, seqlen=SEQLEN, tokens=limit).perplexity
        add_line(RESULTS, {"key": key, "table": "dense", "perplexity": found} | ({"text": name} if name else {}))
        return found
    return done[key]["perplexity"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tables = ("methods", "propagation", "allocations", "magnitude", "controls", "depth", "recovery")
    parser.add_argument("--only", choices=tables, action="append", help="default: all")
    parser.add_argument("--row", action="append", help="only this method or allocation")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="the first N seeds")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after N minutes")
    parser.add_argument("--table", action="store_true", help="only write the tables and the figure")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=FILE", help="text unlike the calibration")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepare()
    others = {name: Path(path) for name, _, path in (other.partition("=") for other in arguments.other)}
    for name, path in others.items():
        dense_perplexity(path, name)
    dense, cells, began = dense_perplexity(text("held_out")), grid(), time.monotonic()
    for cell in [] if arguments.table else in_turn(cells):
        wanted = cell.table in (arguments.only or tables) and cell.row in (arguments.row or [cell.row])
        if not wanted or cell.seed >= arguments.seeds or cell.key in finished():
            continue
        if time.monotonic() - began > 60 * arguments.minutes:
            break
        line = measure(cell) if cell.recovery is None else measure_recovery(cell, others)
        add_line(RESULTS, line)
        print(json.dumps(line), file=sys.stderr, flush=True)
    done = finished()
    rows = [done[cell.key] | {"table": cell.table, "row": cell.row} for cell in cells if cell.key in done]
    gone = [line for line in done.values() if line.get("row") in GONE]
    rows += [*gone, *(line for line in done.values() if line["table"] == "dense")]
    print(write_page(ROOT / "docs", dense, rows))


if __name__ == "__main__":
    main()
