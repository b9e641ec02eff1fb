"""Files that are there whole or not at all, one lock between processes, and what to say when the disk is full."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from prunus.errors import PrunusError

RESERVE_BYTES = 1 << 24  # left free for whatever else writes to the disk
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class DiskFull(PrunusError):
    """No space left; finished blocks are kept, unlike after other errors."""


@contextmanager
def atomic_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the name path only when it is complete, and is removed after an error.

    The bytes are written to `NAME.RANDOM.writing` in the same folder, under a name that no other writer uses: when two
    write the same path at once, the last one to finish wins with a whole file. A killed process leaves its file behind.
    sync: flush it to disk before it takes its name, so that it survives a power cut and not only a killed process.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.writing")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        temporary.replace(path)
        if sync:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path, sync) as stream:
        stream.write(text.encode())


def replace_folder(new: Path, target: Path, overwrite: bool) -> None:
    """Rename new to target; with overwrite an old target is moved away first and deleted afterwards."""
    old = target.parent / f"{target.name}.replaced"
    if overwrite and target.exists() and any(target.iterdir()):
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    new.rename(target)
    sync_folder(target.parent)
    if overwrite and old.exists():
        shutil.rmtree(old)


@contextmanager
def locked(path: Path, why: str | None = None) -> Iterator[None]:
    """Hold the lock file at path while the block runs; PrunusError at once where another process holds it.

    The file contains its holder's process id and is removed at the end. The kernel releases the lock of a process that
    was killed. File systems without locks, as some network mounts are, exclude nobody. why: the message after
    `another prunus process (pid 1)`; None waits until the other process is done.
    """
    lock = FileLock(path, timeout=-1 if why is None else 0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise PrunusError(f"{_holder(path)} {why}") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise PrunusError(f"{path} cannot be written ({error.strerror}): check the folder's permissions") from error
    try:
        with suppress(OSError):
            path.write_text(str(os.getpid()))
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release, so that nobody can lock a file that is about to go
        lock.release()


def _holder(path: Path) -> str:
    """Return `another prunus process (pid 1)`, without the number where the lock file does not say it."""
    try:
        pid = path.read_text("utf-8")
    except (OSError, ValueError):
        pid = ""
    return f"another prunus process (pid {pid})" if pid.isdigit() else "another prunus process"


def take_room(stream: BinaryIO, size: int) -> None:
    """Give a new file its size, so that a full disk is noticed now."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)
    else:  # macOS
        stream.truncate(size)


def sync_file(path: Path) -> None:
    """Make what was written to a file survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    sync_file(folder)  # a folder is synchronised as a file is


def check_space(folder: Path, needed: int) -> None:
    """Raise DiskFull unless the disk of folder (which need not exist yet) has `needed` bytes free and some to spare."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed + RESERVE_BYTES:
        raise DiskFull(
            f"{folder.parent} has {show_bytes(free)} free, but {show_bytes(needed)} are needed; free some space"
        )


@contextmanager
def disk_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turn what the system says when it cannot write into a PrunusError that names the folder and the space needed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"the disk of {folder} is full: {show_bytes(needed)} are needed in all; free some space and run again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise PrunusError(f"{error.filename or folder} cannot be written: {os.strerror(error.errno)}") from error
        raise


def show_bytes(count: int) -> str:
    """Bytes for people: 16.1 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
