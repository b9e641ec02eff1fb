"""The README's picture: the top of the demo's report, as a browser shows it.

`make demo && python scripts/report_picture.py demo/report.html` writes docs/images/report.png. It needs Chromium.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

WIDTH, HEIGHT = 1280, 800
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> None:
    """Photograph a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/report.png"))
    parser.add_argument("--height", type=int, default=HEIGHT, help="In pixels, from the top of the page.")
    asked = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit(f"none of {', '.join(NAMES)} is installed")
    subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--window-size={WIDTH},{asked.height}", f"--screenshot={asked.out.resolve()}"),
            asked.page.resolve().as_uri(),
        ],
        check=True,
        timeout=120,
    )


if __name__ == "__main__":
    main()
