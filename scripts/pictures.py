"""The pictures of the README and of docs/: the tops of the demo's report, of a problem in view, and of find.html.

`make demo && python scripts/pictures.py demo` writes docs/images/report.png and view.png; with `--found FOLDER`, where
`prunus find` wrote, also find.png. It needs Chromium.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import prunus

WIDTH = 1280
HEIGHTS = {"report": 765, "view": 800, "find": 1105}  # which cut through nothing
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBLEM = 9  # of the 40 that view exports: a short question with short chains


def main() -> None:
    """Photograph the pages of a demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="The folder that prunus demo wrote.")
    parser.add_argument("--found", type=Path, help="The folder that prunus find wrote.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit(f"none of {', '.join(NAMES)} is installed")
    asked.out.mkdir(parents=True, exist_ok=True)  # else Chromium writes nothing, and ends as if it had
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


if __name__ == "__main__":
    main()
