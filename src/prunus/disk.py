"""Files that are written completely or not at all, the lock between processes, reading ahead, errors of the system."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout

from prunus.errors import PrunusError
from prunus.plain_data import parse_json

Item = TypeVar("Item")
Result = TypeVar("Result")
Content = Callable[[], str | bytes]  # called when the file is written
EXPORTING = ".prunus-export.json"  # the list of files that are being written to a folder
RESERVE_BYTES = 1 << 24  # left free for other processes
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.writing$")  # the end of the name that atomic_file writes under
_SCRATCH, _HOLDER = "prunus-", "held"  # prefix of folders for temporary files; file in them that their owner locks
_STORE = b"SQLite format 3\0"  # first bytes of a store of results
_LONGEST = 200  # characters of a path in an error message
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class DiskFull(PrunusError):
    """The disk is full, or a file reached a limit of size. Unlike after other errors, finished blocks are kept."""


@contextmanager
def atomic_file(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that is renamed to path once it is complete, and deleted after an error.

    The bytes are written to `NAME.RANDOM.writing` in the same folder, a name that no other writer uses: if two write
    the same path at once, the last one to finish leaves its complete file. A killed process leaves its temporary file,
    which the next writer in the folder deletes.
    A symbolic link is followed: the file that it leads to is replaced.
    sync: flush the file to disk before it is renamed, so that it also survives a power failure. Raises PrunusError if
    path is a store of results, which took longer to make than any other file.
    """
    if not path.name:  # `.`, `/`, or nothing
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_store(path):
        raise PrunusError(f"'{path}' is a store of results, which is never replaced: name another file")
    path = Path(os.path.realpath(path))
    remove_stale(path.parent)
    temporary, stream = _held(lambda: path.with_name(f"{path.name}.{secrets.token_hex(4)}.writing"))
    try:
        with stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
            temporary.replace(path)  # before the file is closed, and so no longer held
        if sync:
            sync_file(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _held(name: Callable[[], Path]) -> tuple[Path, BinaryIO]:
    """Path and stream of a new file, which this process locks as long as it is open. name: gives a new path."""
    while True:
        path = name()
        stream = path.open("xb")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        if path.exists():  # else another process deleted it as a leftover before it was locked
            return path, stream
        stream.close()


def _is_left(path: Path) -> bool:
    """Whether the process that held a file has ended; False also where that cannot be told."""
    with suppress(OSError), path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def remove_stale(folder: Path) -> None:
    """Delete the temporary files in a folder whose writers were killed, as far as that can be told and is allowed."""
    with suppress(OSError), os.scandir(folder) as entries:
        for path in [Path(entry.path) for entry in entries if _UNFINISHED.search(entry.name) and entry.is_file()]:
            if _is_left(path):
                path.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Within the context, a new folder for temporary files; those that killed processes left are deleted."""
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*/{_HOLDER}"):
        with suppress(OSError):
            if left.stat().st_uid == os.getuid() and _is_left(left):
                shutil.rmtree(left.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, ignore_cleanup_errors=True) as name, ExitStack() as held:
        held.enter_context(_held(lambda: Path(name) / _HOLDER)[1])
        (Path(name) / "files").mkdir()
        yield Path(name) / "files"


def _is_store(path: Path) -> bool:
    """Whether a file is an SQLite file, as stores of results are."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                return stream.read(len(_STORE)) == _STORE
    return False


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """Write a text file completely or not at all."""
    with atomic_file(path, sync) as stream:
        stream.write(text.encode())


def as_path(given: object, name: str = "out") -> Path:
    """The path that a user gave. Raises PrunusError for a value that is no path, such as a number, and for `/`.

    name: of the argument, for the message.
    """
    if not isinstance(given, str | os.PathLike):
        raise PrunusError(f"{name} must be a path, not {str(given)[:80]} ({type(given).__name__})")
    return with_name(Path(given))


def with_name(target: Path) -> Path:
    """The path itself. Raises PrunusError for the root folder `/`, where no file or folder can be written."""
    if not target.absolute().name:
        raise PrunusError(f"'{target}' is the root of all folders: name a folder in it")
    return target


def beside(target: Path, ending: str) -> Path:
    """The path in target's folder with this ending added to its name. Raises PrunusError for the root folder `/`."""
    whole = with_name(target.absolute())
    return whole.with_name(f"{whole.name}{ending}")


def partial_folder(target: Path) -> Path:
    """The folder for unfinished work on target: `NAME.partial` beside it."""
    return beside(target.resolve(), ".partial")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise PrunusError if path exists (unless overwrite) or its folder does not."""
    if path.exists() and not overwrite:
        raise PrunusError(f"'{path}' exists: name another file, or add --overwrite")
    if not path.absolute().parent.is_dir():
        raise PrunusError(f"the folder of '{path}' does not exist: create it or name another file")


def check_export(files: Iterable[Path], overwrite: bool) -> None:
    """Raise PrunusError if any file exists (unless overwrite) or its folder cannot be created."""
    files = list(files)
    for folder in {path.parent for path in files}:
        beside(folder.resolve(), "")
        if folder.exists() and not folder.is_dir():
            raise PrunusError(f"'{folder}' is a file: name a folder")
        if not folder.absolute().parent.is_dir():
            raise PrunusError(f"the folder of '{folder}' does not exist: create it or name another folder")
    left = {path for folder in {path.parent for path in files} for path in _left_by_export(folder)}
    existing = [path for path in files if path.exists() and path not in left]
    if existing and not overwrite:
        raise PrunusError(f"'{existing[0]}' exists: name another folder, or add --overwrite")


def _left_by_export(folder: Path) -> list[Path]:
    """Paths in a folder that a killed export was renaming files to, from the list (EXPORTING) that it left there."""
    try:
        names = json.loads((folder / EXPORTING).read_text("utf-8"))
        return [folder / name for name in names if Path(name).name == name]
    except (OSError, ValueError, TypeError):
        return []


def write_export(files: Mapping[Path, Content]) -> None:
    """Write several files, the first of which is renamed last; after an error, new files and folders are deleted again.

    Folders of the files are created, but not their parents. While new files are renamed, each folder holds a list of
    them, so that the next call deletes the files of a process that was killed meanwhile.
    """
    folders = {path.parent for path in files}
    for left in (path for folder in folders for path in _left_by_export(folder)):
        left.unlink(missing_ok=True)
    missing = [folder for folder in folders if not folder.exists()]
    new, inodes = [path for path in files if not path.exists()], dict[Path, int]()
    try:
        with ExitStack() as opened:
            for folder in missing:
                folder.mkdir(exist_ok=True)
            for path, content in files.items():
                stream, made = opened.enter_context(atomic_file(path)), content()
                inodes[path] = os.fstat(stream.fileno()).st_ino
                stream.write(made.encode() if isinstance(made, str) else made)
                stream.flush()  # so that a full disk is noticed before any of them is renamed
            for folder in {path.parent for path in new}:
                write_text(folder / EXPORTING, json.dumps([path.name for path in new if path.parent == folder]))
    except BaseException:
        for path in new:  # some may have been renamed before an interruption
            with suppress(OSError):
                if path.stat().st_ino == inodes.get(path):  # else another process has written it meanwhile
                    path.unlink()
        raise
    finally:
        for folder in folders:
            with suppress(OSError):
                (folder / EXPORTING).unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):  # it was not created, or has files
                folder.rmdir()


def replace_folder(new: Path, target: Path, overwrite: bool) -> None:
    """Rename new to target. With overwrite, an existing target is first renamed, and deleted afterwards."""
    old = target.parent / f"{target.name}.replaced"
    if overwrite and target.exists() and any(target.iterdir()):
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    new.rename(target)
    sync_file(target.parent)
    if overwrite and old.exists():
        shutil.rmtree(old)


@contextmanager
def locked(path: Path, why: str | None = None) -> Iterator[None]:
    """Within the context this process holds the lock file at path.

    The file contains the holder's process id and is deleted at the end; the kernel releases the lock of a process that
    was killed. On file systems without locks, such as some network mounts, there is no exclusion. why: if another
    process holds the lock, a PrunusError is raised immediately that says `another prunus process (pid 1)` and `why`;
    with None, the call waits for the other process instead.
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
        path.unlink(missing_ok=True)  # before the release: nobody can lock a file that is about to be deleted
        lock.release()


def _holder(path: Path) -> str:
    """`another prunus process (pid 1)`, without the number if the lock file does not contain it."""
    try:
        pid = path.read_text("utf-8")
    except (OSError, ValueError):
        pid = ""
    return f"another prunus process (pid {pid})" if pid.isdigit() else "another prunus process"


def reserve(stream: BinaryIO, size: int) -> None:
    """Allocate `size` bytes for a new file, so that a full disk is noticed now."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)
    else:  # macOS
        stream.truncate(size)


def sync_file(path: Path) -> None:
    """Flush a file to disk, or the names in a folder, so that they survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: Path) -> None:
    """Raise PrunusError if nothing can be written at path (whose folder may not exist yet), before any work for it."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK):
        raise PrunusError(f"{path} cannot be written: {folder} is write-protected")


def check_space(folder: Path, needed: int) -> None:
    """Raise DiskFull unless the disk of folder (which may not exist yet) has `needed` + RESERVE_BYTES bytes free."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + RESERVE_BYTES:
        raise DiskFull(
            f"{folder.parent} has {show_bytes(free)} free, but {show_bytes(needed)} are needed; free some space"
        )


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Within the context, turn errors of writing to path into a PrunusError. needed: bytes in all, where known."""
    try:
        yield
    except OSError as error:
        if needed is not None and error.errno in _FULL:
            raise DiskFull(
                f"the disk of {path} is full: {show_bytes(needed)} are needed in all; free some space and run again"
            ) from error
        raise explained(error, path) from error


def explained(error: OSError, path: Path | None = None) -> PrunusError:
    """The PrunusError that explains an OSError. path: the file being written, if any; named if the error names none."""
    name = error.filename if isinstance(error.filename, str | bytes | Path) else path
    shown = "a file" if name is None else _UNFINISHED.sub("", os.fsdecode(name))
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
    reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    if error.errno in _FULL:
        return DiskFull(f"the disk is full ({shown}); free some space and give the same command again")
    if error.errno == errno.EFBIG:
        return DiskFull(f"{shown} would be larger than a file may be here: raise the limit (ulimit -f) and run again")
    if error.errno == errno.ENAMETOOLONG:
        return PrunusError(f"{shown} has too long a name for the file system: choose a shorter one")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return PrunusError(f"too many files are open ({shown}): raise the limit (ulimit -n)")
    if path is not None:
        return PrunusError(f"{shown} cannot be written: {reason}")
    return PrunusError(f"{shown} cannot be read or written: {reason}")


def prefetch(work: Callable[[Item], Result], items: Iterable[Item], most: int = 1) -> Generator[Result, None, None]:
    """Yield work(item) of each item in order, while a thread computes up to `most` of the next results.

    An error in work is raised when its item is due. Close the generator (contextlib.closing), so that the thread ends
    after its current item if the loop over the results ends early.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        waiting = deque(thread.submit(work, item) for item in islice(remaining, 1))
        try:
            while waiting:
                while len(waiting) <= most and (upcoming := list(islice(remaining, 1))):
                    waiting.append(thread.submit(work, *upcoming))
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def show_bytes(count: int) -> str:
    """A number of bytes as text, such as `16.1 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def read_json(path: Path, **hooks: Any) -> Any:
    """The content of a JSON file; PrunusError if it cannot be read. hooks: of parse_json."""
    try:
        return parse_json(path.read_text("utf-8"), **hooks)
    except OSError as error:
        raise PrunusError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PrunusError(f"{path} cannot be read as JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that must be an object, as all of a model's files are; else PrunusError."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise PrunusError(f"{path} is damaged: it holds a {type(content).__name__}, not a JSON object; fetch it again")
    return content
