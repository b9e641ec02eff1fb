"""Why Wanda does not beat Magnitude on the tiny reasoner: because of the comparison group, not of the score.

    python benchmarks/comparison_group.py [--sparsity 50 60] [--problems 420] [--rows benchmarks/calibration.jsonl]

As published, Wanda ranks each output row by itself and Magnitude ranks the whole tensor. Here both scores are ranked in
both ways (norms of the dense model on the built-in calibration, plain sorting, no code of prunus.pruning), evaluated on
the same problems, and compared in pairs: the same score with two groups, and two scores with the same group.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from calibration_page import PAIRS, added, groups
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import prunus
from prunus.checkpoint.resolve import tiny_folder


def linears(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Return the Linears of the decoder blocks."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name: m for name, m in found.items() if ".layers." in name}


def input_norms(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the L2 norm of every input feature of every Linear over the calibration sequences."""
    squares: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
            squares[name] = squares.get(name, torch.zeros(())) + inputs[0].float().square().sum((0, 1))

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears(model).items()]
    lines = (tiny_folder() / "calibration.jsonl").read_text().splitlines()[:128]
    with torch.inference_mode():
        for line in lines:
            model(torch.tensor([json.loads(line)["token_ids"]]))
    for handle in handles:
        handle.remove()
    return {name: total.sqrt() for name, total in squares.items()}


def make_variant(folder: Path, kind: str, sparsity: int) -> None:
    """Write a copy of the tiny reasoner. kind: score and comparison group. sparsity: percent of zeros."""
    score_name, group = kind.split(", ")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    norms = input_norms(model)
    for name, module in linears(model).items():
        weight = module.weight.data
        score = weight.abs() * (norms[name] if score_name == "Wanda" else 1.0)
        ranked = score if group == "row" else score.view(1, -1)
        lowest = ranked.argsort(dim=1, stable=True)[:, : round(sparsity / 100 * ranked.shape[1])]
        weight.view_as(ranked).scatter_(1, lowest, 0.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(folder)
    shutil.copy(tiny_folder() / "prunus.json", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=int, nargs="+", default=[50, 60])
    parser.add_argument("--problems", type=int, default=420)
    parser.add_argument("--rows", type=Path, help="as benchmarks/calibration.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = prunus.EvalPlan(tasks=("tiny",), budgets=(1024,), limit=arguments.problems, batch_size=210)
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "results.db"
        for sparsity in arguments.sparsity:
            lines = []
            for kind in sorted({kind for pair in PAIRS for kind in pair}):
                folder = Path(scratch) / f"{kind}-{sparsity}"
                make_variant(folder, kind, sparsity)
                run = prunus.evaluate(folder, plan, store).run_id
                lines.append(added(arguments.rows, store, run, sparsity=sparsity, kind=kind))
            print(f"\n{sparsity} %\n\n{groups(lines, sparsity)}", flush=True)


if __name__ == "__main__":
    main()
