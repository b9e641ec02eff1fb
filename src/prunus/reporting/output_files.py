"""Write files and folders completely or not at all, and replace existing ones only with overwrite.

`--figures` and `--csv` write every figure as .svg and .pdf, and every table as .csv and .tex, into folders.
"""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from prunus.disk import atomic_file, explained, replace_folder, write_together
from prunus.errors import PrunusError
from prunus.reporting.render.table import slug
from prunus.reporting.section import Section

Content = Callable[[], str | bytes]  # called when the file is written

OURS = re.compile(r"flip-\d+-\d+\.html")  # a folder is replaced only if all its files have such names


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise PrunusError if path exists (unless overwrite) or its folder does not."""
    if path.exists() and not overwrite:
        raise PrunusError(f"'{path}' exists: name another file, or add --overwrite")
    if not path.absolute().parent.is_dir():
        raise PrunusError(f"the folder of '{path}' does not exist: create it or name another file")


@contextmanager
def written_last(path: Path, content: str) -> Iterator[None]:
    """Write a file completely or not at all, but rename it after the block, so that no error of its own comes later.

    Raises PrunusError, with the reason, if it cannot be written.
    """
    with _explained(path), atomic_file(path) as stream:
        stream.write(content.encode())
        stream.flush()
        yield


class Folder:
    """A folder filled under a temporary name: `with Folder(path, overwrite) as f: f.write(name, text); f.keep()`.

    It is created by the first write. Without keep() it is deleted, and an older folder stays.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self.temporary: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def write(self, name: str, text: str) -> None:
        """Add a file."""
        if self.temporary is None:
            self._refuse()
            with _explained(self.path):
                temporary = self.path.with_name(f".{self.path.name}.{token_hex(8)}.partial")
                temporary.mkdir()
            self.temporary = temporary
        with _explained(self.path):
            (self.temporary / name).write_text(text, "utf-8", newline="\n")

    def keep(self) -> None:
        """Rename the folder to its path, replacing an older one; if nothing was written, only delete the older one."""
        with _explained(self.path):
            if self.temporary is not None:
                replace_folder(self.temporary, self.path, self.overwrite)
                self.temporary = None
            elif self.overwrite and self.path.is_dir() and self._is_ours():
                shutil.rmtree(self.path)

    def _refuse(self) -> None:
        if self.path.exists() and not self.overwrite:
            raise PrunusError(f"'{self.path}' exists: move it, name another page, or add --overwrite")
        if self.path.exists() and not self._is_ours():
            raise PrunusError(f"'{self.path}' has files that are not of a report: move it, or name another page")

    def _is_ours(self) -> bool:
        return self.path.is_dir() and all(OURS.fullmatch(one.name) for one in self.path.iterdir())


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explained(error, path) from error


def files_of(sections: Sequence[Section], figures: Path | None, tables: Path | None) -> dict[Path, Content]:
    """{path: function that returns the content} of the files of all figures and of all tables that have rows.

    figures, tables: folders; None for neither. A number is appended to a name that occurs again.
    """
    found: dict[Path, Content] = {}
    for folder, made in (
        (figures, [(one.name, {"svg": one.svg, "pdf": one.pdf}) for of in sections for one in of.figures]),
        (tables, [(one.name, {"csv": one.csv, "tex": one.latex}) for of in sections for one in of.tables if one.rows]),
    ):
        seen: Counter[str] = Counter()
        if folder is None:
            continue
        for name, contents in made:
            short = slug(name)
            seen[short] += 1
            stem = short if seen[short] == 1 else f"{short}-{seen[short]}"
            found |= {folder / f"{stem}.{kind}": content for kind, content in contents.items()}
    return found


def check_export(files: Iterable[Path], overwrite: bool) -> None:
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


def write_export(files: Mapping[Path, Content]) -> None:
    """Write the files: after an error, none of them."""
    made = ((path, content()) for path, content in files.items())
    write_together({path: text.encode() if isinstance(text, str) else text for path, text in made})
