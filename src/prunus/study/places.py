"""Where a study keeps things, and the lock that keeps a second process out."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunus.checkpoint.partial import disk_errors
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
        """The folder, made where missing, and the store are ours meanwhile; PrunusError where another has them."""
        with disk_errors(self.folder, 0):
            self.folder.mkdir(parents=True, exist_ok=True)
        locks = [self.folder / "lock"]
        if self.store.absolute().parent != self.folder.absolute():
            locks.append(self.store.with_name(f"{self.store.name}.lock"))
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(taken(lock))
            yield


@contextmanager
def taken(lock: Path) -> Iterator[None]:
    """Hold a lock file; the system lets go of it however the process ends."""
    if not lock.absolute().parent.is_dir():
        raise PrunusError(f"the folder of '{lock.with_suffix('')}' does not exist: create it or name another store")
    with disk_errors(lock.parent, 0), lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrunusError(
                f"another prunus process works on {lock.parent} (it holds {lock}): wait for it, or name another --out"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
