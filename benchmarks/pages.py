"""The tables that scripts write into pages of docs, each between two comments of which the first names the script."""

from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
END = "<!-- end of tables -->"


def begin(script: str) -> str:
    """Return the comment before the tables that a script of benchmarks writes."""
    return f"<!-- tables: written by benchmarks/{script}.py -->"


def written(page: Path, script: str) -> str:
    """Return the tables that stand in a page."""
    return page.read_text("utf-8").partition(begin(script))[2].partition(END)[0].strip()


def write(page: Path, script: str, text: str) -> None:
    """Put tables in the place of those of a page."""
    before, comment, rest = page.read_text("utf-8").partition(begin(script))
    page.write_text(f"{before}{comment}\n\n{text}\n\n{END}{rest.partition(END)[2]}", "utf-8")
