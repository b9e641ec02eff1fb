"""`--figures` and `--csv`: write every figure as .svg and .pdf, and every table as .csv and .tex, into folders."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prunus.disk import write_together
from prunus.errors import PrunusError
from prunus.reporting.render.table import slug
from prunus.reporting.section import Section

Content = Callable[[], str | bytes]  # called when the file is written


def figure_files(sections: Iterable[Section], folder: Path) -> dict[Path, Content]:
    """{path: function that returns the content} of the files of all figures."""
    found, names = {}, Counter()
    for figure in (figure for section in sections for figure in section.figures):
        name = _unique(figure.name, names)
        found |= {folder / f"{name}.svg": figure.svg, folder / f"{name}.pdf": figure.pdf}
    return found


def table_files(sections: Iterable[Section], folder: Path) -> dict[Path, Content]:
    """{path: function that returns the content} of the files of all tables that have rows."""
    found, names = {}, Counter()
    for table in (table for section in sections for table in section.tables if table.rows):
        name = _unique(table.name, names)
        found |= {folder / f"{name}.csv": table.csv, folder / f"{name}.tex": table.latex}
    return found


def _unique(name: str, seen: Counter[str]) -> str:
    """The file name for a figure or table; a number is appended where it occurs again."""
    short = slug(name)
    seen[short] += 1
    return short if seen[short] == 1 else f"{short}-{seen[short]}"


def check(files: Iterable[Path], overwrite: bool) -> None:
    """Raise PrunusError if any file exists (unless overwrite) or its folder cannot be created."""
    files = list(files)
    for folder in {path.parent for path in files}:
        if folder.exists() and not folder.is_dir():
            raise PrunusError(f"'{folder}' is a file: name a folder")
        if not folder.absolute().parent.is_dir():
            raise PrunusError(f"the folder of '{folder}' does not exist: create it or name another folder")
    existing = [path for path in files if path.exists()]
    if existing and not overwrite:
        raise PrunusError(f"'{existing[0]}' exists: name another folder, or add --overwrite")


def write(files: Mapping[Path, Content]) -> None:
    """Write the files: after an error, none of them."""
    made = ((path, content()) for path, content in files.items())
    write_together({path: text.encode() if isinstance(text, str) else text for path, text in made})
