"""The folder and the store of a study, and the lock that a running study holds on both."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prunus.disk import disk_errors, locked
from prunus.errors import PrunusError
from prunus.study.file import Study


@dataclass(frozen=True)
class StudyPaths:
    """Paths of a study. folder: of all its files. store: of its results, by default `results.db` in the folder."""

    folder: Path
    store: Path

    @classmethod
    def of(cls, study: Study, out: str | Path | None, store: str | Path | None) -> "StudyPaths":
        """The paths that the user names; by default the folder `study-NAME` in the current one, NAME as of the file."""
        folder = Path(out) if out is not None else Path(f"study-{study.path.stem}")
        if folder.exists() and not folder.is_dir():
            raise PrunusError(f"'{folder}' is a file: name a folder with --out")
        return cls(folder, Path(store) if store is not None else folder / "results.db")

    @property
    def page(self) -> Path:
        """Path of the report."""
        return self.folder / "report.html"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the context this process holds the locks of the folder, which is created if missing, and of the store.

        Raises PrunusError where another process holds one of them. A folder that is still empty is deleted at the end.
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
