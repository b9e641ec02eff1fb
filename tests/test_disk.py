"""The one lock between processes: who is kept out, what the message says, and that a removed lock file excludes too."""

import errno
import os
import signal
import threading
import time

import pytest
import warm_processes

from prunus import disk
from prunus.disk import atomic_file, locked, write_export, write_text
from prunus.errors import PrunusError
from prunus.store.store import Store

HOLDER = """
import sys, time
from pathlib import Path
from prunus.disk import locked

with locked(Path(sys.argv[1]), "waits"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_sent_away_and_told_who_has_the_lock(tmp_path):
    path = tmp_path / "lock"
    with locked(path, "is at it"):
        assert path.read_text() == str(os.getpid())
        with (
            pytest.raises(
                PrunusError, match=rf"^another prunus process \(pid {os.getpid()}\) works here; wait for it$"
            ),
            locked(path, "works here; wait for it"),
        ):
            pass
        assert path.read_text() == str(os.getpid()), "who was sent away left the holder's file alone"
    assert not path.exists()


@pytest.mark.slow
@warm_processes.in_one_worker
def test_kill_9_leaves_the_file_but_not_the_lock(tmp_path):
    path = tmp_path / "lock"
    with warm_processes.running(HOLDER, path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(PrunusError, match=rf"\(pid {process.pid}\) works"), locked(path, "works"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.read_text() == str(process.pid)
    with locked(path, "works"):
        assert path.read_text() == str(os.getpid())


def test_only_one_at_a_time_though_each_holder_removes_the_file(tmp_path):
    """A file that is locked just after its holder removed it would let two in at once."""
    path, inside, most, rounds = tmp_path / "lock", 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, rounds
        for _ in range(6):
            with locked(path):
                with guard:
                    inside, rounds = inside + 1, rounds + 1
                    most = max(most, inside)
                time.sleep(0.002)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, rounds) == (1, 24)
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_the_work_is_done(tmp_path, monkeypatch, code):
    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk.FileLock, "acquire", no_locks)
    with locked(tmp_path / "lock", "works"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
    assert not (tmp_path / "lock").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(PrunusError, match=r"lock cannot be written .* check the folder's permissions") as found,
        locked(tmp_path / "file" / "lock", "works"),
    ):
        pass
    assert "\n" not in str(found.value)


def test_two_writers_of_one_file_do_not_mix_and_leave_nothing_behind(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as first:
        first.write(b"first, ")
        first.flush()
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"whole")
    assert path.read_bytes() == b"first, whole"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as broken:
        broken.write(b"half")
        raise KeyboardInterrupt
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"first, whole", [path])


def test_a_link_is_followed(tmp_path):
    """The link became a file, and what it had pointed to stayed as it was."""
    (tmp_path / "large disk").mkdir()
    link, file = tmp_path / "page.html", tmp_path / "large disk" / "page.html"
    link.symlink_to(file)
    for text in ("first", "second"):
        write_text(link, text)
        assert (link.readlink(), file.read_text(), [*file.parent.iterdir()]) == (file, text, [file])


def test_an_unfinished_file_is_recognised_by_its_suffix(tmp_path):
    """A resumed prune deletes what a killed one left by this suffix (checkpoint/writer.py)."""
    with atomic_file(tmp_path / "model.safetensors"):
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.suffix == ".writing"


def test_a_store_of_results_is_never_replaced(tmp_path):
    """A page, a card and statistics with --overwrite, and scores without, were written over it."""
    path = tmp_path / "results.db"
    Store(path, create=True).close()
    stored = path.read_bytes()
    with pytest.raises(PrunusError, match=r"results\.db' is a store of results, which is never replaced"):
        write_text(path, "page")
    with pytest.raises(PrunusError, match="never replaced"):
        write_export({path: lambda: "page", tmp_path / "figures" / "one.svg": lambda: "figure"})
    assert path.read_bytes() == stored and [*tmp_path.iterdir()] == [path]
