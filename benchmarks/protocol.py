"""The figure of docs/protocol.md: `python benchmarks/protocol.py FOLDER`, about a minute on one core.

The tiny reasoner, greedy, on the same problems under thinking budgets: in strict mode, in legacy mode, and in legacy
mode with the markers of another family (`qwen3-legacy`, as the scripts of arXiv:2604.25098 set them for Qwen3 models).
FOLDER keeps the answers, so that a second call only draws the figure.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.recipes import EvalPlan
from prunus.reporting.render.chart import MARKERS, Frame, Line, Point, budget_axis, chart, linear_axis, log_axis
from prunus.results.summary import BudgetCell, summarise
from prunus.store.store import Store

BUDGETS = (0, 16, 64, 256, 1024)
ANSWER_TOKENS = 700  # in legacy mode, instead of 32768: the tiny model's context is 2048
# name -> (mode, profile); the colour of each line follows in STYLE
VARIANTS = {
    "strict": ("strict", "auto"),
    "legacy": ("legacy", "auto"),
    "legacy, another family's markers": ("legacy", "qwen3-legacy"),
}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #333 } .axis-title { font-weight: 600 }
.grid { stroke: #e4e4e4 } .base-line, .tick-mark, .break { stroke: #888; fill: none } .gap { stroke: #fff }
.line { fill: none; stroke-width: 2 } .mark { stroke: #fff; stroke-width: 1 } .band { opacity: .15 }
.v0 .line, .v0 .whisker { stroke: #1b6ca8 } .v0 .mark, .v0 .band { fill: #1b6ca8 }
.v1 .line, .v1 .whisker { stroke: #2a8c4a; stroke-dasharray: 6 4 } .v1 .mark, .v1 .band { fill: #2a8c4a }
.v2 .line, .v2 .whisker { stroke: #c2491d } .v2 .mark, .v2 .band { fill: #c2491d }
"""


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


def panel(lines: list[Line], y_axis: Any, label: str, left: int) -> str:
    """Return the SVG of one chart at its place in the figure."""
    frame = Frame(width=440, height=330)
    picture = chart(lines, budget_axis(BUDGETS), y_axis, label, frame=frame).html()
    place = f'x="{left}" y="30" width="{frame.width}" height="{frame.height}"'
    return picture.replace("<svg ", f"<svg {place} ", 1)


def figure(cells: dict[str, dict[int, BudgetCell]]) -> str:
    """Return an SVG file: accuracy and mean answer tokens against the budget."""
    accuracy, tokens, legend = [], [], []
    for number, (name, of_budget) in enumerate(cells.items()):
        shares = [Point(b, 100 * c.accuracy, 100 * c.low, 100 * c.high, "") for b, c in of_budget.items()]
        means = [(b, c.tokens.answer.mean or 0.0) for b, c in of_budget.items()]
        accuracy.append(Line(f"v{number}", shares, number))
        tokens.append(Line(f"v{number}", [Point(b, mean, float("nan"), float("nan"), "") for b, mean in means], number))
        x = 50 + 130 * number
        legend.append(
            f'<g class="v{number}"><path class="line" d="M{x},14h30"/>'
            f'<path class="mark" transform="translate({x + 15},14)" d="{MARKERS[number]}"/>'
            f'<text x="{x + 37}" y="18">{name}</text></g>'
        )
    values = [point.y for line in tokens for point in line.points]
    left = panel(accuracy, linear_axis(0, 100, "Accuracy, %, with 95 % intervals"), "Accuracy against budget", 0)
    right = panel(tokens, log_axis(values, "Answer tokens, mean"), "Answer tokens against budget", 460)
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 370" width="900" height="370">'
    background = '<rect width="900" height="370" fill="#fff"/>'
    return f"{head}<style>{STYLE}</style>{background}{''.join(legend)}{left}{right}</svg>\n"


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
    arguments.out.write_text(figure(cells))
    show(cells)


if __name__ == "__main__":
    main()
