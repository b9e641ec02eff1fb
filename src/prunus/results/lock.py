"""One process at a time on one thing: a lock that the kernel lets go of when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunus.errors import PrunusError


@contextmanager
def claimed(store: Path, run_id: str) -> Iterator[None]:
    """Hold a run of a store for as long as the block takes; PrunusError at once where somebody holds it already."""
    store = store.resolve()  # a link to the store is the same store
    lock = store.with_name(f"{store.name}.{run_id}.lock")
    with held(lock, f"is evaluating this run into {store}; wait for it"):
        yield


@contextmanager
def held(path: Path, why: str) -> Iterator[None]:
    """Hold the lock file for as long as the block takes; PrunusError at once where somebody holds it already.

    The file names its holder's process and is removed at the end. One that a killed process left behind is taken over.
    Where the file system has no locks nothing is checked. why: the message after `another prunus process (pid 1)`.
    """
    descriptor = _take(path, why)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path, why: str) -> int:
    """The lock file, open and locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise PrunusError(f"{path} cannot be written ({error.strerror}): check the folder's permissions") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace")
            os.close(descriptor)
            process = f"another prunus process (pid {holder})" if holder.isdigit() else "another prunus process"
            raise PrunusError(f"{process} {why}") from error
        except OSError:  # a file system without locks
            return descriptor
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed it after we had opened it


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
