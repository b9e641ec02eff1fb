"""Send requests to a server, as many at once as its window allows, and yield their replies as they come."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import httpx2 as httpx

from prunus.errors import PrunusError
from prunus.evaluation.backends.transport import STAYS, TRIES, Busy, pause, received
from prunus.evaluation.backends.window import POLL_SECONDS, Window, queue_of

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
