"""Send requests to a server, as many at once as it takes, and yield their replies as they come.

The window of requests starts high, and grows by one with every completion until it is first reduced. A refusal (429,
503, a broken connection) reduces it to the requests that the server has kept, less a tenth; completions let it grow
again, by 1 in four windows, or by 5 % per window if that is more. These are TCP's slow start, additive increase and
multiplicative decrease, and in large windows the growth of scalable TCP (Kelly 2003). Where a server tells the length
of its queue, the window also follows that: the queue is kept short, but not empty.
"""

import asyncio
import contextlib
import re
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import httpx2 as httpx

from prunus.errors import PrunusError
from prunus.evaluation.backends.transport import STAYS, TRIES, Busy, pause, received

START, MOST = 1024, 4096  # requests at once: at first, and ever
KEPT = 0.9  # share of the window that is left after a refusal
GROWTH = 0.05  # growth in the time in which all requests of the window are completed, as a share of it
SLOWEST_GROWTH = 0.25  # the same in requests, for small windows
RESERVE = 8  # the queue may hold one request for every 8 that run
FEWEST_QUEUED = 4
POLL_SECONDS = 2.0
# Names of a server's metrics: requests that wait, and requests that run.
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})? ([-+.\deE]+)", re.MULTILINE)


class Window:
    """The number of requests that a server may have at once; at most `most`."""

    def __init__(self, most: int | None = None, files: int = MOST, places: int | None = None) -> None:
        """most: of the user, None without a limit. files: connections that this process may open.

        places: requests that the server runs at once; None if that is unknown.
        """
        known = MOST if places is None else places + max(FEWEST_QUEUED, places // RESERVE)
        self.most = max(1, min(most or MOST, files, known))
        self.size = float(min(self.most, START))
        self.reduced_at, self.resume_at = float("-inf"), float("-inf")
        self.ran, self.strikes = 0.0, 0

    def has_room(self, in_flight: int, now: float) -> bool:
        """Whether another request may be sent."""
        return in_flight < int(self.size) and now >= self.resume_at

    def completed(self, in_flight: int) -> None:
        """Note a completion. in_flight: requests at the server, including this one."""
        self.strikes = 0
        if in_flight >= int(self.size):
            is_new = self.reduced_at == float("-inf")
            self._set(self.size + (1.0 if is_new else max(SLOWEST_GROWTH / self.size, GROWTH)))

    def refused(self, sent_at: float, in_flight: int, now: float, wait: float) -> None:
        """Note a refusal of a request that was sent at sent_at. in_flight: requests that are left at the server.

        wait: seconds that the server requests. While it works on others, their completions show when there is room.
        """
        self._set(min(self.size, in_flight))
        if sent_at >= self.reduced_at:
            self._set(KEPT * self.size)
            self.reduced_at = now
        self.strikes += in_flight == 0
        if wait > 0:
            self.resume_at = max(self.resume_at, now + wait)

    def follow(self, waiting: float, running: float, in_flight: int, now: float) -> None:
        """Adapt to the server's queue. in_flight: our requests, waiting or running."""
        allowed = max(FEWEST_QUEUED, running / RESERVE)
        if waiting == 0 and in_flight >= int(self.size):
            self._set(1.25 * self.size + 1)
        elif waiting > allowed and running <= self.ran:  # else it is still starting
            self._set(min(self.size, max(in_flight - waiting, running) + allowed))
            self.reduced_at = now
        self.ran = running

    def _set(self, size: float) -> None:
        self.size = max(1.0, min(size, float(self.most)))


def queue_of(metrics: str) -> tuple[float, float] | None:
    """(waiting, running) requests by a server's metrics in Prometheus' format; None if it does not tell.

    Of several replicas the shortest queue counts, times their number: where one has nothing to do, more are needed.
    """
    values: dict[str, list[float]] = {}  # one for each replica
    for name, value in _LINE.findall(metrics):
        values.setdefault(name, []).append(float(value))
    waiting, running = (next((values[name] for name in names if name in values), None) for names in (WAITING, RUNNING))
    return None if waiting is None or running is None else (len(waiting) * min(waiting), sum(running))


def files_at_once() -> int:
    """Number of connections that this process may open; its limit is raised where the system allows it."""
    try:
        import resource
    except ImportError:  # Windows
        return 480
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MOST if soft == resource.RLIM_INFINITY else max(1, soft - 256)


_T = TypeVar("_T")


async def replies(
    client: httpx.AsyncClient,
    url: str,
    window: Window,
    pick: Callable[[], int | None],
    send: Callable[[int], Coroutine[Any, Any, _T]],
) -> AsyncGenerator[tuple[int, _T], None]:
    """Yield (number, reply) of each request as it comes.

    url: ends in /v1. pick: returns the number of the next request, or None if there is none at present. send: sends a
    request, or raises Busy. Raises PrunusError if one request breaks off too often, or the server has none of ours and
    refuses too often.
    """
    again: deque[int] = deque()  # requests that the server refused
    running: dict[asyncio.Task[_T], tuple[int, float]] = {}  # number, when it was sent
    broken: Counter[int] = Counter()
    now = asyncio.get_running_loop().time
    watching = asyncio.create_task(_watch(client, url, window, lambda: len(running)))
    try:
        while True:
            while has_room := window.has_room(len(running), now()):
                number = again.popleft() if again else pick()
                if number is None:
                    break
                running[asyncio.create_task(send(number))] = number, now()
            if not running and has_room:
                return
            if not running:
                await asyncio.sleep(max(0.0, window.resume_at - now()))
                continue
            finished, _ = await asyncio.wait(running, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                number, sent_at = running.pop(task)
                try:
                    found = task.result()
                except Busy as error:
                    broken[number] += error.broke_off
                    window.refused(sent_at, len(running), now(), error.wait)
                    if max(broken[number], window.strikes) >= TRIES:
                        raise PrunusError(f"{url} {error} ({TRIES} tries); {STAYS}") from error
                    if not running:
                        window.resume_at = max(window.resume_at, now() + pause(window.strikes))
                    again.appendleft(number)
                    continue
                window.completed(len(running) + 1)
                yield number, found
    finally:
        for task in (watching, *running):
            task.cancel()
        await asyncio.gather(watching, *running, return_exceptions=True)


async def _watch(client: httpx.AsyncClient, url: str, window: Window, in_flight: Callable[[], int]) -> None:
    """Let the window follow the server's queue, for as long as the server tells it."""
    with contextlib.suppress(httpx.HTTPError, PrunusError, ValueError):
        while True:
            await asyncio.sleep(POLL_SECONDS)
            reply = await received(client, "GET", url.removesuffix("/v1") + "/metrics")
            queue = queue_of(reply.text) if reply.status == httpx.codes.OK else None
            if queue is None:
                return
            window.follow(*queue, in_flight(), asyncio.get_running_loop().time())
