"""Where a study keeps things, and the lock that keeps a second process out."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prunus.disk import disk_errors, locked
from prunus.errors import PrunusError
from prunus.study.file import Study


@dataclass(frozen=True)
class Places:
    """folder: everything of the study. store: its results, in the folder unless named otherwise."""

    folder: Path
    store: Path

    @classmethod
    def of(cls, study: Study, out: str | Path | None, store: str | Path | None) -> "Places":
        """Where the user says, else a folder here named after the file."""
        folder = Path(out) if out is not None else Path(f"study-{study.path.stem}")
        if folder.exists() and not folder.is_dir():
            raise PrunusError(f"'{folder}' is a file: name a folder with --out")
        return cls(folder, Path(store) if store is not None else folder / "results.db")

    @property
    def page(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, made where missing, and the store are ours meanwhile; PrunusError where another has them.

        A folder in which nothing came to be, as a check refused, is gone afterwards.
        """
        locks = [self.folder / "lock"]
        if self.store.absolute().parent != self.folder.absolute():
            if not self.store.absolute().parent.is_dir():
                raise PrunusError(f"the folder of '{self.store}' does not exist: create it or name another store")
            locks.append(self.store.with_name(f"{self.store.name}.lock"))
        with disk_errors(self.folder, 0):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with ExitStack() as stack:
                for lock in locks:
                    why = f"works on {lock.parent} (it holds {lock}): wait for it, or name another --out"
                    stack.enter_context(locked(lock, why))
                yield
        finally:
            with suppress(OSError):
                self.folder.rmdir()
