"""The pictures of the README and of docs/: the tops of the demo's report, of a problem in view, and of find.html.

`make demo && python scripts/pictures.py demo` writes docs/images/report.png and view.png; with `--found FOLDER`, where
`prunus find` wrote, also find.png. It needs Chromium. `python scripts/pictures.py` alone draws gsm8k.svg from the
table of docs/measurements/gsm8k.md.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import prunus
from prunus.reporting.render.chart import Line, Point, budget_axis, linear_axis

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from drawn import figure  # noqa: E402  found there

WIDTH = 1280
HEIGHTS = {"report": 800, "view": 800, "find": 1105}  # which cut through nothing
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Rows of the table that are drawn.
DRAWN = ("dense", "Wanda 20 %", "SparseGPT 50 %", "Wanda 50 %", "Magnitude 50 %", "ShortGPT, 1 of 24 blocks")
BUDGETS = (32, 128, 256)
PROBLEM = 9  # of the 40 that view exports: a short question with short chains


def main() -> None:
    """Photograph the pages of a demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", nargs="?", type=Path, help="The folder that prunus demo wrote.")
    parser.add_argument("--found", type=Path, help="The folder that prunus find wrote.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    if asked.demo is None:
        (asked.out / "gsm8k.svg").write_text(gsm8k((ROOT / "docs/measurements/gsm8k.md").read_text("utf-8")), "utf-8")
        return
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit(f"none of {', '.join(NAMES)} is installed")
    with tempfile.TemporaryDirectory() as scratch:
        chains = Path(scratch) / "chains"
        prunus.view(asked.demo / "results.db", export=chains)
        pages = {
            "report": asked.demo / "report.html",
            "view": chains / f"problem-{PROBLEM}.html",
        }
        if asked.found is not None:
            pages["find"] = asked.found / "find.html"
        for name, page in pages.items():
            subprocess.run(
                [
                    *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                    *(f"--user-data-dir={scratch}/profile", f"--window-size={WIDTH},{HEIGHTS[name]}"),
                    *(f"--screenshot={(asked.out / name).resolve()}.png", page.resolve().as_uri()),
                ],
                check=True,
                capture_output=True,
                timeout=120,
            )


def gsm8k(page: str) -> str:
    """Return the SVG file of accuracies by budget, from the table of the page."""
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in page.splitlines() if line.startswith("| ")]
    shown = {row[0]: [float(cell) for cell in row[1 : 1 + len(BUDGETS)]] for row in rows if row[0] in DRAWN}
    lines = [
        Line(f"c{k}", [Point(b, y) for b, y in zip(BUDGETS, shown[name], strict=True)], k, name)
        for k, name in enumerate(DRAWN)
    ]
    label = (
        "Accuracy on GSM8K by thinking budget: at 256 tokens Wanda at 20 % solves as much as the dense model; with half"
        " of the weights at zero, or without one block, at most 16 % instead of 22"
    )
    return figure([(lines, budget_axis(BUDGETS), linear_axis(0, 30, "Accuracy, %"))], label)


if __name__ == "__main__":
    main()
