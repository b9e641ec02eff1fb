"""Is the engine kept full? Lots of 512, 64 requests at once, the rolling window, and one big pool.

    python benchmarks/full_engine.py simulate        a data-parallel server of 8 H100, by a discrete simulation
    python benchmarks/full_engine.py lengths STORE   the lengths of chains and answers in a store, as quantiles
    .venv-vllm/bin/python benchmarks/full_engine.py offline   vLLM's CPU build and the tiny reasoner: lots, flow, pool
    .venv-vllm/bin/python benchmarks/full_engine.py served    the same behind `vllm serve`; lots with 64 at once

The simulated server: each of 8 replicas decodes one token of every running request per step. A step takes OVERHEAD
plus the time to read the weights and the cache of all running requests at BANDWIDTH. Requests start in the order in
which they arrive, while there are places (256) and room in the cache; if the cache gets full, the newest request waits
again and is read again. Reading takes PREFILL per token. A chain goes to the replica that has the fewest requests, and
an answer to that of its chain; there it reads only its closing if its chain is still in the prefix cache, that is, if
fewer tokens have been written and read since than there is room beside the running requests.
"""

# ruff: noqa: E402  the settings come before the libraries that read them
import argparse
import os
import random
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from statistics import mean
from typing import Any

for name, value in {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that the scheduler can be looked at
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # so that a server's prefix cache can be emptied between the ways
}.items():
    os.environ.setdefault(name, value)

from prunus.evaluation.backends.transport import POLL_SECONDS, RequestLimit

# Quantiles (0, 5, ..., 100 %) of the tiny reasoner's thinking and answers on its 630 problems, greedy, with a budget of
# 1024: `prunus eval tiny --task tiny --budgets 1024`, then `lengths`.
THINKING = (9, 18, 25, 35, 45, 52, 63, 71, 86, 93, 108, 123, 144, 162, 189, 213, 249, 275, 313, 354, 1024)
ANSWERS = (3, 3, 3, 3, 4, 4, 4, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 8, 9, 13, 64)

# Qwen3-8B in bfloat16 on H100s. The published bandwidth is 3.35e12; 0.75 of it is assumed to be reached.
REPLICAS, PLACES = 8, 256
WEIGHT_BYTES, CACHE_BYTES, BYTES_PER_TOKEN = 16.4e9, 53e9, 147_456  # 36 layers, 8 heads of 128, key and value
BANDWIDTH, OVERHEAD, PREFILL = 0.75 * 3.35e12, 2e-3, 4e-5
PROMPT, CLOSING = 150, 10
BUDGETS = (512, 1024, 2048, 4096, 8192)
# The study of arXiv 2604.25098: 30 + 198 + 40 + 500 problems, 3 draws.
CHAINS = 768 * 3
MEAN_THINKING, MEAN_ANSWER = 8000, 400  # to which the tiny reasoner's distributions are stretched
CHUNK = 16  # steps after which a replica looks for new requests


def sampled(quantiles: Sequence[int], scale: float, noise: random.Random) -> int:
    """A length drawn from quantiles at equal distances, linear between them."""
    at = noise.random() * (len(quantiles) - 1)
    low = quantiles[int(at)]
    return max(1, round(scale * (low + (at - int(at)) * (quantiles[int(at) + 1] - low))))


@dataclass(eq=False)
class Asked:
    """A request: tokens to read at the start, ids before them in the cache, tokens to write, and what follows."""

    read: int
    before: int
    left: int
    follows: list["Asked"] = field(default_factory=list)
    home: int | None = None  # replica of its chain
    stamp: int = 0  # tokens that this replica had read and written when the chain ended
    done: int = 0

    @property
    def held(self) -> int:
        """Tokens in the cache."""
        return self.before + self.read + self.done


def chains(count: int, seed: int) -> list[Asked]:
    """Requests to think, each followed by an answer for every budget that cut it and one for its own end."""
    noise, found = random.Random(seed), []
    thinking, answers = MEAN_THINKING / mean(THINKING), MEAN_ANSWER / mean(ANSWERS)
    for _ in range(count):
        length = sampled(THINKING, thinking, noise)
        ends = [budget for budget in BUDGETS if budget < length]
        ends += [length] if length <= BUDGETS[-1] else []
        follows = [Asked(CLOSING, PROMPT + end, sampled(ANSWERS, answers, noise)) for end in ends]
        found.append(Asked(PROMPT, 0, min(length, BUDGETS[-1] + 1), follows))
    return found


class Replica:
    """One engine: the requests that wait and that run."""

    def __init__(self) -> None:
        self.waiting: deque[Asked] = deque()
        self.running: list[Asked] = []
        self.busy_until, self.is_busy, self.ran, self.handled = 0.0, False, 0.0, 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def start(self, now: float) -> int:
        """Begin a few steps; returns their number. The time at which they end is in busy_until."""
        held, most, spent = sum(one.held for one in self.running), CACHE_BYTES / BYTES_PER_TOKEN, 0.0
        while self.waiting and len(self.running) < PLACES:
            one = self.waiting[0]
            if one.home is not None and self.handled - one.stamp > most - held:  # its chain was evicted
                one.read, one.before, one.home = one.read + one.before, 0, None
            if held + one.held + CHUNK * (len(self.running) + 1) > most and self.running:
                break
            self.running.append(self.waiting.popleft())
            held += one.held
            spent += PREFILL * (one.read + one.done)
            self.handled += one.read + one.done
        while held + CHUNK * len(self.running) > most and len(self.running) > 1:
            newest = self.running.pop()
            held -= newest.held
            newest.read, newest.before = newest.read + newest.before, 0
            self.waiting.appendleft(newest)
        steps = min(CHUNK, *(one.left for one in self.running)) if self.running else 0
        size = len(self.running)
        self.handled += steps * size
        cache = held + size * (steps + 1) / 2
        spent += steps * (OVERHEAD + (WEIGHT_BYTES + cache * BYTES_PER_TOKEN) / BANDWIDTH)
        self.busy_until, self.is_busy = now + spent, steps > 0
        self.ran += spent * size
        return steps

    def finish(self, steps: int) -> list[Asked]:
        """End these steps; returns the requests that are complete."""
        for one in self.running:
            one.done += steps
            one.left -= steps
        ended = [one for one in self.running if one.left == 0]
        self.running = [one for one in self.running if one.left > 0]
        return ended


def simulated(lot: int | None, at_once: int | None, window: RequestLimit | None, seed: int) -> tuple[float, int, float]:
    """(seconds, tokens, requests that run on a replica on average) until all chains are complete.

    lot: chains that must all be complete before the next ones begin. at_once: most requests in flight. window: that
    limits them instead, and follows the queue.
    """
    source = chains(CHAINS, seed)
    total = sum(one.left + sum(answer.left for answer in one.follows) for one in source)
    lots = [source[at : at + lot] for at in range(0, len(source), lot)] if lot else [source]
    replicas, now, looked = [Replica() for _ in range(REPLICAS)], 0.0, 0.0
    for some in lots:
        new, first, flying = deque(some), deque[Asked](), 0
        events: list[tuple[float, int, int]] = []

        while True:
            while (first or new) and (window.has_room(flying, now) if window else flying < (at_once or CHAINS * 9)):
                one = first.popleft() if first else new.popleft()
                (min(replicas, key=len) if one.home is None else replicas[one.home]).waiting.append(one)
                flying += 1
            for number, replica in enumerate(replicas):
                if not replica.is_busy and len(replica):
                    steps = replica.start(now)
                    heappush(events, (replica.busy_until, number, steps))
            if not events:
                break
            now, number, steps = heappop(events)
            replicas[number].is_busy = False
            for ended in replicas[number].finish(steps):
                if window:
                    window.completed(flying)
                flying -= 1
                for one in ended.follows:
                    one.home, one.stamp = number, replicas[number].handled
                first.extend(ended.follows)
            if window and now - looked >= POLL_SECONDS:
                looked = now
                waiting = REPLICAS * min(len(replica.waiting) for replica in replicas)
                window.follow(waiting, sum(len(replica.running) for replica in replicas), flying, now)
    return now, total, sum(replica.ran for replica in replicas) / REPLICAS / now


def simulate(seeds: int) -> None:
    """Print the table of all ways."""
    ways: dict[str, tuple[int | None, int | None, bool]] = {
        "lots of 512, 64 requests at once (as before)": (512, 64, False),
        "64 requests at once, no lots": (None, 64, False),
        "lots of 512, all at once": (512, None, False),
        "rolling window that follows the server": (None, None, True),
        "one big pool": (None, None, False),
    }
    found = {
        way: [simulated(lot, at_once, RequestLimit() if rolls else None, seed) for seed in range(seeds)]
        for way, (lot, at_once, rolls) in ways.items()
    }
    best = mean(tokens / seconds for seconds, tokens, _ in found["one big pool"])
    print("| requests | minutes | tokens/s | running on a replica | of one big pool |\n|---|---:|---:|---:|---:|")
    for way, runs in found.items():
        speed = mean(tokens / seconds for seconds, tokens, _ in runs)
        minutes, running = mean(run[0] for run in runs) / 60, mean(run[2] for run in runs)
        print(f"| {way} | {minutes:.1f} | {speed:,.0f} | {running:.0f} | {100 * speed / best:.0f} % |")


def lengths(store: Path) -> None:
    """Print quantiles of the lengths in a store, at its largest budget."""
    with sqlite3.connect(store) as opened:
        rows = opened.execute(
            "SELECT thinking_tokens, answer_tokens FROM sample WHERE budget = (SELECT max(budget) FROM sample)"
        ).fetchall()
    for name, values in zip(("THINKING", "ANSWERS"), zip(*rows, strict=True), strict=True):
        ordered = sorted(values)
        print(f"{name} = {tuple(ordered[round(part * (len(ordered) - 1) / 20)] for part in range(21))}")


def some_chains(count: int) -> tuple[list[Any], Any, Any]:
    """(chains of the tiny reasoner's problems, rules, tokenizer)."""
    from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
    from prunus.evaluation.budget import Chain, Rules
    from prunus.evaluation.profiles import PROFILES
    from prunus.evaluation.profiles.markers import encode_markers, encode_prompt
    from prunus.evaluation.requests import Sampling
    from prunus.evaluation.tasks import load_task

    tokenizer, profile = load_tokenizer(tiny_folder()), PROFILES["tiny"]
    rules = Rules(encode_markers(profile, tokenizer, "strict"), Sampling(0.6, 0.95))
    problems = load_task("tiny")
    found = []
    for number in range(count):
        problem = problems[(number * 37) % len(problems)]
        prompt = encode_prompt(profile, tokenizer, problem.question)
        found.append(Chain(prompt, ("t", problem.id, number // len(problems)), 64))
    return found, rules, tokenizer


def in_lots(backend: Any, some: Sequence[Any], budgets: tuple[int, ...], rules: Any, lot: int) -> Iterator[list[Any]]:
    """The draws of every chain, computed lot by lot as Prunus 97f2ae7 did."""
    from prunus.evaluation.budget import force_budgets

    for at in range(0, len(some), lot):
        yield from force_budgets(backend, some[at : at + lot], budgets, rules)


def tokens_of(draws: Sequence[Sequence[Any]]) -> int:
    """Number of tokens sampled for these draws."""
    from prunus.evaluation.run import sampled_tokens

    return sampled_tokens(draws)


def offline(count: int, places: int, lot: int) -> None:
    """Print steps, idle places and speed of vLLM's offline engine for lots, the flow and one big pool."""
    from prunus.checkpoint.resolve import tiny_folder
    from prunus.evaluation.backends import opened
    from prunus.evaluation.budget import force_budgets_as_completed
    from prunus.settings.engines import EngineOptions

    some, rules, tokenizer = some_chains(count)
    budgets = (16, 64, 256)
    options = EngineOptions(args={"enforce_eager": True, "max_num_seqs": places, "max_model_len": 512})
    with opened("vllm", tiny_folder(), "cpu", len(tokenizer), options) as backend:
        engine: Any = backend.engine  # type: ignore[attr-defined]
        step, ran = engine.step, list[int]()

        def counting() -> Any:
            found = step()
            ran.append(len(engine.engine_core.engine_core.scheduler.running))
            return found

        engine.step = counting
        ways = {
            f"lots of {lot}": lambda: list(in_lots(backend, some, budgets, rules, lot)),
            "flow": lambda: [
                draws
                for _, draws in sorted(force_budgets_as_completed(backend, some, budgets, rules), key=lambda x: x[0])
            ],
            "one big pool": lambda: list(in_lots(backend, some, budgets, rules, count)),
        }
        backend_warm = list(in_lots(backend, some[:8], budgets, rules, 8))
        assert backend_warm
        rows, found = [], {}
        for way, draw in ways.items():
            backend.llm.reset_prefix_cache()  # type: ignore[attr-defined]
            ran.clear()
            wall, cpu = time.monotonic(), time.process_time()
            found[way] = draw()
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
            tokens = tokens_of(found[way])
            rows.append((way, len(ran), 1 - mean(ran) / places, tokens / len(ran), tokens / cpu, tokens / wall))
    assert all(draws == found["flow"] for draws in found.values()), "rows must not depend on the way"
    print(f"{count} chains, {places} places, budgets {budgets}\n")
    print("| requests | steps | idle places | tokens a step | of one big pool | tokens a CPU s | tokens/s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, steps, idle, per_step, per_cpu, per_second in rows:
        share = 100 * per_step / rows[-1][3]
        print(
            f"| {way} | {steps} | {100 * idle:.0f} % | {per_step:.1f} | {share:.0f} % | {per_cpu:.0f} |"
            f" {per_second:.0f} |"
        )


def served(count: int, places: int, lot: int) -> None:
    """Print speed and idle places of `vllm serve` for lots with 64 requests at once, the flow, and one big pool."""
    import threading

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
    import httpx2 as httpx
    from vllm_server import vllm_serve  # type: ignore[import-not-found]

    from prunus.checkpoint.resolve import tiny_folder
    from prunus.evaluation.backends import opened
    from prunus.evaluation.backends.transport import queue_of
    from prunus.evaluation.budget import force_budgets_as_completed
    from prunus.settings.engines import EngineOptions

    some, rules, tokenizer = some_chains(count)
    budgets = (16, 64, 256)
    rows, found = [], {}
    # vLLM's build for CPUs ends where it samples after a part of a prompt.
    flags = ("--max-num-seqs", str(places), "--max-model-len", "512", "--no-enable-chunked-prefill")
    with vllm_serve(tiny_folder(), *flags) as url:
        ways = ((f"lots of {lot}, 64 at once", 64, lot), ("flow", None, 0), ("one big pool", None, count))
        for way, at_once, size in ways:
            httpx.post(url.removesuffix("/v1") + "/reset_prefix_cache").raise_for_status()
            options = EngineOptions(url=url, concurrency=at_once)
            with opened("openai", tiny_folder(), "auto", len(tokenizer), options) as backend:
                ran, ended = list[float](), threading.Event()

                def look(ran: list[float] = ran, ended: threading.Event = ended) -> None:
                    while not ended.wait(0.2):
                        queue = queue_of(httpx.get(url.removesuffix("/v1") + "/metrics").text)
                        ran.append(queue[1] if queue else 0.0)

                looking = threading.Thread(target=look)
                looking.start()
                begin = time.monotonic()
                if size:
                    draws = list(in_lots(backend, some, budgets, rules, size))
                else:
                    done = sorted(force_budgets_as_completed(backend, some, budgets, rules), key=lambda x: x[0])
                    draws = [one for _, one in done]
                wall = time.monotonic() - begin
                ended.set()
                looking.join()
            found[way] = draws
            rows.append((way, wall, tokens_of(draws) / wall, 1 - mean(ran) / places))
    same = len({str([[d.thinking for d in one] for one in draws]) for draws in found.values()}) == 1
    print(f"{count} chains, {places} places, budgets {budgets}; the same thinking: {same}\n")
    print("| requests | seconds | tokens/s | idle places |\n|---|---:|---:|---:|")
    for way, wall, speed, idle in rows:
        print(f"| {way} | {wall:.0f} | {speed:.0f} | {100 * idle:.0f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulate", "lengths", "offline", "served"))
    parser.add_argument("store", nargs="?", type=Path, help="lengths: a store")
    parser.add_argument("--seeds", type=int, default=3, help="simulate: repetitions")
    parser.add_argument("--chains", type=int, default=1024, help="offline, served")
    parser.add_argument("--places", type=int, default=128, help="offline, served: requests that vLLM runs at once")
    parser.add_argument("--lot", type=int, default=512, help="offline, served: chains of a lot")
    asked = parser.parse_args()
    if asked.what == "simulate":
        simulate(asked.seeds)
    elif asked.what == "lengths":
        lengths(asked.store)
    elif asked.what == "offline":
        offline(asked.chains, asked.places, asked.lot)
    else:
        served(asked.chains, asked.places, asked.lot)


if __name__ == "__main__":
    main()
