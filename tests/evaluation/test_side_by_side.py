"""Parts of a batch in forked processes: same draws, errors raised here, and no process that outlives its parent."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tiny_chains import MARKERS, chains, tiny

from prunus.errors import PrunusError
from prunus.evaluation.budget import Draw, Rules, force_budgets
from prunus.evaluation.engine import Backend
from prunus.evaluation.requests import Completion, Request, Sampling, no_progress
from prunus.evaluation.side_by_side import FEWEST, cut, side_by_side

CHAINS = chains(2 * FEWEST)
LENGTHS = [len(chain.prompt) for chain in CHAINS]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Split(Backend):
    """A backend that is used in some processes."""

    @property
    def processes(self) -> int:
        return 3

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        raise NotImplementedError


@pytest.mark.slow
def test_draws_are_those_of_one_process(threads):
    rules, heard = Rules(MARKERS, Sampling(0.6, 0.95)), []

    def draws(part: Sequence[int]) -> list[tuple[list[Draw], int]]:
        found = force_budgets(tiny(), [CHAINS[index] for index in part], (4, 12), rules)
        return [(of_chain, os.getpid()) for of_chain in found]

    found, tokens = [], []
    for count in (1, 2):
        torch.set_num_threads(count)
        heard.clear()
        tiny().on_tokens = lambda _, later: heard.append(later)
        found.append(side_by_side(tiny(), LENGTHS, draws))
        tiny().on_tokens = no_progress
        tokens.append(sum(heard))
        pids = {pid for _, pid in found[-1]}
        assert len(pids) == count and os.getpid() in pids and torch.get_num_threads() == count
    for (mine, _), (theirs, _) in zip(*found, strict=True):
        assert mine == theirs and [len(draw.thinking) for draw in mine] == [len(draw.thinking) for draw in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert (one.logprob, one.self_certainty) == pytest.approx((other.logprob, other.self_certainty), abs=1e-4)
    assert tokens[0] == tokens[1] > 0
    assert not multiprocessing.active_children()


def test_few_chains_and_large_models_are_decoded_in_this_process(threads, monkeypatch):
    torch.set_num_threads(4)
    here = os.getpid()
    assert side_by_side(tiny(), LENGTHS[: 2 * FEWEST - 1], lambda part: [os.getpid() for _ in part]) == [here] * 15
    monkeypatch.setattr("prunus.evaluation.backends.hf.LEAST_PARAMETERS", 1_000_000)
    assert tiny().processes == 1


def test_parts_are_from_short_to_long_prompts_and_take_about_equally_long():
    lengths = [7, 300, 20, 41, 5, 90, 33, 8, 160, 12, 77, 54]
    for count in (1, 2, 3, 5):
        parts = cut(lengths, count)
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        assert [index for part in parts for index in part] == order and len(parts) == count
    assert cut([10] * 6, 3) == [[0, 1], [2, 3], [4, 5]]
    assert list(map(len, cut([1] * 40 + [100] * 10, 2))) == [40, 10], "40 * 33 = 10 * 132"


@pytest.mark.parametrize("what", ["error", "death"])
def test_a_part_that_fails_is_an_error_here(what):
    here = os.getpid()

    def work(part: Sequence[int]) -> list[int]:
        if os.getpid() != here:
            if what == "error":
                raise PrunusError("too long")
            os.kill(os.getpid(), signal.SIGKILL)
        return [*part]

    with pytest.raises(PrunusError, match="too long" if what == "error" else r"was ended \(exit code -9\)"):
        side_by_side(Split(), [1] * 30, work)
    assert not multiprocessing.active_children()


def test_an_interruption_ends_the_other_processes():
    here = os.getpid()

    def work(part: Sequence[int]) -> list[int]:
        if os.getpid() == here:
            raise KeyboardInterrupt
        time.sleep(60)
        return [*part]

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(Split(), [1] * 30, work)
    assert not multiprocessing.active_children() and time.monotonic() - began < 30


def test_the_other_processes_end_with_a_parent_that_is_killed(tmp_path: Path):
    def work(part: Sequence[int]) -> list[int]:
        (tmp_path / f"{os.getpid()}").touch()
        time.sleep(60)
        return [*part]

    process = multiprocessing.get_context("fork").Process(target=side_by_side, args=(Split(), [1] * 30, work))
    process.start()
    wait_until(lambda: len([*tmp_path.iterdir()]) == 3)
    process.kill()
    process.join()
    began = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: all(map(is_over, began)))
    assert len(began) == 3


def is_over(pid: int) -> bool:
    """Whether a process has ended; it may still wait for its new parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
