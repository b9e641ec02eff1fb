"""`--figures` and `--csv`: every figure as .svg and .pdf, every table as .csv and .tex, in folders of their own."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prunus.errors import PrunusError
from prunus.reporting.output_files import write_whole
from prunus.reporting.render.table import slug
from prunus.reporting.section import Section

Content = Callable[[], str | bytes]  # made when it is written


def figure_files(sections: Iterable[Section], folder: Path) -> dict[Path, Content]:
    """The files of all figures, each with a function that makes its content."""
    found, names = {}, Counter()
    for figure in (figure for section in sections for figure in section.figures):
        name = _unique(figure.name, names)
        found |= {folder / f"{name}.svg": figure.svg, folder / f"{name}.pdf": figure.pdf}
    return found


def table_files(sections: Iterable[Section], folder: Path) -> dict[Path, Content]:
    """The files of all tables that have rows, each with a function that makes its content."""
    found, names = {}, Counter()
    for table in (table for section in sections for table in section.tables if table.rows):
        name = _unique(table.name, names)
        found |= {folder / f"{name}.csv": table.csv, folder / f"{name}.tex": table.latex}
    return found


def _unique(name: str, seen: Counter[str]) -> str:
    """A file name for name; a number tells equal ones apart."""
    short = slug(name)
    seen[short] += 1
    return short if seen[short] == 1 else f"{short}-{seen[short]}"


def check(files: Iterable[Path], overwrite: bool) -> None:
    """PrunusError if any file exists (unless overwrite) or its folder cannot be made."""
    files = list(files)
    for folder in {path.parent for path in files}:
        if folder.exists() and not folder.is_dir():
            raise PrunusError(f"'{folder}' is a file: name a folder")
        if not folder.absolute().parent.is_dir():
            raise PrunusError(f"the folder of '{folder}' does not exist: create it or name another folder")
    taken = [path for path in files if path.exists()]
    if taken and not overwrite:
        raise PrunusError(f"'{taken[0]}' exists: name another folder, or add --overwrite")


def write(files: Mapping[Path, Content]) -> None:
    """Write the files, each completely or not at all."""
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        write_whole(path, content())
