"""The figure of docs/protocol.md: `python benchmarks/protocol.py FOLDER`, about a minute on one core.

The tiny reasoner, greedy, on the same problems under thinking budgets: in strict mode, in legacy mode, and in legacy
mode with the markers of another family (`qwen3-legacy`, as the scripts of arXiv:2604.25098 set them for Qwen3 models).
FOLDER keeps the answers, so that a second call only draws the figure.
"""

import argparse
from pathlib import Path

import torch
from drawn import figure

import prunus
from prunus.recipes import EvalPlan
from prunus.reporting.render.chart import Line, Point, budget_axis, linear_axis, log_axis
from prunus.results.summary import BudgetCell, summarise
from prunus.store.store import Store

BUDGETS = (0, 16, 64, 256, 1024)
ANSWER_TOKENS = 700  # in legacy mode, instead of 32768: the tiny model's context is 2048
# name -> (mode, profile)
VARIANTS = {
    "strict": ("strict", "auto"),
    "legacy": ("legacy", "auto"),
    "another family's markers": ("legacy", "qwen3-legacy"),
}


def measure(store: Path, problems: int) -> dict[str, dict[int, BudgetCell]]:
    """Return the cells of every variant by budget."""
    found = {}
    for name, (mode, profile) in VARIANTS.items():
        plan = EvalPlan(
            tasks=("tiny",),
            budgets=BUDGETS,
            limit=problems,
            mode=mode,  # pyright: ignore[reportArgumentType]
            profile=profile,  # pyright: ignore[reportArgumentType]
            temperature=0.0,
            answer_tokens=None if mode == "strict" else ANSWER_TOKENS,
            batch_size=problems,
        )
        run_id = prunus.evaluate("tiny", plan, store).run_id
        with Store(store) as opened:
            found[name] = summarise(opened, run_id).cells("tiny")
    return found


def drawn_of(cells: dict[str, dict[int, BudgetCell]]) -> str:
    """Return an SVG file: accuracy and mean answer tokens against the budget."""
    accuracy, tokens = [], []
    for number, (name, every) in enumerate(cells.items(), 1):
        of_budget = {budget: cell for budget, cell in every.items() if budget > 0}  # which the axis can show
        shares = [Point(b, 100 * c.accuracy, 100 * c.low, 100 * c.high) for b, c in of_budget.items()]
        means = [Point(b, c.tokens.answer.mean or 0.0) for b, c in of_budget.items()]
        accuracy.append(Line(f"c{number}", shares, number, name))
        tokens.append(Line(f"c{number}", means, number, name))
    values = [point.y for line in tokens for point in line.points]
    label = (
        "Strict and legacy mode rise from 12 to 100 % with answers of 6 tokens; with another family's markers the model"
        " thinks in its answers, and the rise is gone"
    )
    charts = [
        (accuracy, budget_axis(BUDGETS), linear_axis(0, 100, "Accuracy, %, with 95 % intervals")),
        (tokens, budget_axis(BUDGETS), log_axis(values, "Answer tokens, mean")),
    ]
    return figure(charts, label)


def show(cells: dict[str, dict[int, BudgetCell]]) -> None:
    """Print the numbers as a Markdown table."""
    print("| run | budget | accuracy | answer tokens, mean | 95th percentile | forced | leaked | truncated |")
    print("|---|---|---|---|---|---|---|---|")
    for name, of_budget in cells.items():
        for budget, cell in of_budget.items():
            answer = cell.tokens.answer
            shares = [f"{100 * (share or 0.0):.1f} %" for share in (cell.forced, cell.leaked, cell.truncated)]
            texts = [f"{100 * cell.accuracy:.1f} %", f"{answer.mean:.1f}", f"{answer.p95:.0f}", *shares]
            print(f"| {name} | {budget} | " + " | ".join(texts) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--problems", type=int, default=42)
    parser.add_argument("--out", type=Path, default=Path("docs/images/protocol.svg"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    cells = measure(arguments.folder / "protocol.db", arguments.problems)
    arguments.out.write_text(drawn_of(cells))
    show(cells)


if __name__ == "__main__":
    main()
