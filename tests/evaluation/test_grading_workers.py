"""Grading workers: bounded in time and memory, replaced when they fail, gone when their parent is."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prunus.errors import PrunusError
from prunus.evaluation.grading import Grade, Grader
from prunus.evaluation.grading.pool import WORKER, Pool
from prunus.evaluation.tasks import Problem

MONSTER = "9^{9^{9^{9}}}"
# The real worker's loop and limits around a comparison that misbehaves on demand.
MISCHIEF = """
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("worker", sys.argv.pop(1))
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

def compare(gold, answer):
    if answer == "hang":
        while True:
            pass
    if answer == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if answer == "allocate":
        return "same" if bytearray(700 << 20) else "different"
    if answer == "hoard":
        hoard = []
        while True:
            hoard.append(bytearray(1 << 20))
    if answer == "noise":
        print("noise on standard output", flush=True)
    if answer == "pid":
        return str(os.getpid())
    return "same" if gold == answer else "different"

worker.compare = compare
worker.main()
"""


def mischief(workers=1, timeout_s=2.0, memory_mb=512, recycle_after=500):
    command = [sys.executable, "-c", MISCHIEF, str(WORKER), str(timeout_s + 5), str(memory_mb)]
    return Pool(workers, timeout_s, memory_mb, recycle_after, command)


def math(gold):
    return Problem("i", "t", "q", gold, "math")


def alive(pid):
    """Whether a process still runs (one that has ended but is not collected does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.slow
def test_a_monster_power_costs_its_time_limit_and_nothing_else():
    items = [(math("7x"), rf"\boxed{{{said}}}") for said in ("x+6x", MONSTER, "7 x", MONSTER, r"\frac{14x}{2}")]
    with Grader(workers=1, timeout_s=1.5) as grader:
        grader.grade(items[:1])  # starts the worker, so that the clock below sees comparisons alone
        before = time.monotonic()
        grades = grader.grade(items)
        first = time.monotonic() - before
        again = grader.grade(items)
        assert time.monotonic() - before < 1.5 + 20, "one limit and one restart"
    assert [grade.status for grade in grades] == ["ok", "timeout", "ok", "timeout", "ok"]
    assert [grade.correct for grade in grades] == [True, False, True, False, True]
    assert grades[1] == Grade(MONSTER, False, "timeout") and first > 1.5
    assert again == grades and grader.pool.started == 2  # remembered, not waited for again


@pytest.mark.slow
@pytest.mark.parametrize("evil", ["hang", "crash", "allocate", "hoard"])
def test_a_failing_comparison_leaves_the_others_alone(evil):
    pool = mischief(timeout_s=1.0 if evil == "hang" else 60.0)
    try:
        requests = [("a", "a"), ("a", evil), ("a", "b"), ("c", "c")]
        expected = "timeout" if evil == "hang" else "error"
        assert pool.map(pool.verdict, requests) == ["same", expected, "different", "same"]
        assert pool.started == 2
    finally:
        pool.close()


@pytest.mark.slow
def test_the_memory_limit_is_what_stops_an_allocation():
    pool = mischief(timeout_s=60.0, memory_mb=2048)
    try:
        assert pool.map(pool.verdict, [("a", "allocate")]) == ["same"]
    finally:
        pool.close()


@pytest.mark.slow
def test_several_workers_keep_the_order():
    pool = mischief(workers=3, timeout_s=1.0)
    try:
        requests = [(str(i), "hang" if i == 4 else str(i - i % 2)) for i in range(40)]
        expected = ["timeout" if i == 4 else "same" if i % 2 == 0 else "different" for i in range(40)]
        assert pool.map(pool.verdict, requests) == expected
    finally:
        pool.close()


def test_workers_are_recycled_and_their_prints_are_no_replies():
    pool = mischief(recycle_after=3)
    try:
        assert pool.map(pool.verdict, [("noise", "noise")] * 7) == ["same"] * 7
        assert pool.started == 3
    finally:
        pool.close()


def test_a_worker_that_dies_idle_is_replaced():
    pool = mischief()
    try:
        [pid] = pool.map(pool.verdict, [("a", "pid")])
        os.kill(int(pid), signal.SIGKILL)
        assert wait_until(lambda: not alive(pid), 5)
        assert pool.map(pool.verdict, [("a", "a")]) == ["same"]
    finally:
        pool.close()


def test_closing_ends_the_workers():
    pool = mischief(workers=2)
    pids = pool.map(pool.verdict, [("a", "pid")] * 8)
    assert any(alive(pid) for pid in pids)
    pool.close()
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise SystemExit(3)", "ended without a word"),
        ('print(\'{"failed": "No module named x"}\')', "No module named x"),
    ],
)
def test_a_worker_that_cannot_start_is_told(script, reason):
    pool = Pool(2, 1.0, 512, command=[sys.executable, "-c", script])
    with pytest.raises(PrunusError, match=f"the grading worker did not start .*{reason}"):
        pool.map(pool.verdict, [("a", "b")] * 4)
    pool.close()


@pytest.mark.slow
def test_grading_works_in_another_thread_and_from_two_at_once():
    """math-verify's own timeouts need the main thread; ours do not."""
    grades: dict[int, list[Grade]] = {}
    with Grader(workers=1) as grader:

        def work(index):
            grades[index] = grader.grade([(math("7x"), r"\boxed{x+6x}"), (math("7x"), r"\boxed{8x}")])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert grades[0] == grades[1] == [Grade("7x", True, "ok"), Grade("8x", False, "ok")]


PARENT = """
import sys, time
from prunus.evaluation.grading import Grader
from prunus.evaluation.tasks import Problem
grader = Grader(workers=1)
grader.grade([(Problem("i", "t", "q", "7x", "math"), r"\\boxed{x+6x}")])
print(grader.pool.workers[0].process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_no_worker_outlives_a_killed_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.kill()
    assert wait_until(lambda: not alive(worker), 10)


@pytest.mark.slow
def test_a_hung_worker_ends_by_itself():
    """Its parent may have been killed meanwhile, and a hang inside C code lets no Python run: the kernel does it."""
    command = [sys.executable, "-P", "-W", "ignore", str(WORKER), "1.0", "1024"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        assert json.loads(worker.stdout.readline()) == {"ready": True}
        worker.stdin.write(json.dumps(["7x", MONSTER]).encode() + b"\n")
        worker.stdin.flush()
        assert worker.wait(30) == -signal.SIGALRM


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_workers_do_not_load_torch():
    with Grader(workers=1) as grader:
        assert grader.grade([(math("7x"), r"\boxed{x+6x}")])[0].correct
        worker = grader.pool.workers[0]
        assert worker is not None
        maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
    assert "python" in maps and "libtorch" not in maps and "numpy" not in maps
