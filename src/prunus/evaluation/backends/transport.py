"""HTTP requests to a server: retries, errors in one line, and as many requests at once as the server takes.

The window of requests starts high, and grows by one with every completion until it is first reduced. A refusal (429,
503, a broken connection) reduces it to the requests that the server has kept, less a tenth; completions let it grow
again, by 1 in four windows, or by 5 % per window if that is more. These are TCP's slow start, additive increase and
multiplicative decrease, and in large windows the growth of scalable TCP (Kelly 2003). Where a server tells the length
of its queue, the window also follows that: the queue is kept short, but not empty.
"""

import asyncio
import contextlib
import json
import os
import queue
import random
import re
import resource
import threading
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import httpx2 as httpx

from prunus import progress
from prunus.checkpoint.resolve import one_line
from prunus.errors import PrunusError
from prunus.plain_data import parse_json
from prunus.settings.engines import EngineOptions

TRIES = 6
BACKOFF_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
CONNECT_SECONDS = 10.0
REPORTED_SECONDS = 5.0  # longer waits are printed
TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # status codes that are worth a retry
KEYS = ("PRUNUS_API_KEY", "OPENAI_API_KEY")
STAYS = "stored results are kept, and the same command resumes"
BUSY = {429, 503, 529}  # those of TEMPORARY that say that the server has too much to do
# The most bytes of a reply: those that any may have, for each byte of the request (some servers return the prompt), and
# for each token that was asked for (its id, text and log-probability, some of them twice).
LEAST_BYTES, BYTES_PER_BYTE, BYTES_PER_TOKEN = 1 << 24, 16, 1 << 10
# Errors that may be raised when parts of a reply of unexpected form are read.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
_T = TypeVar("_T")


class Busy(Exception):
    """The server does not take a request now; the message continues a sentence about it.

    wait: seconds that it requests. broke_off: whether the request may be the reason: the connection ended, or nothing
    came in time.
    """

    def __init__(self, message: str, wait: float, broke_off: bool) -> None:
        super().__init__(message)
        self.wait, self.broke_off = wait, broke_off


class Unfit(Exception):
    """The reply cannot be used; the message continues a sentence about the server."""


class Reply(NamedTuple):
    """A complete reply of a server."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


def new_client(engine: EngineOptions) -> httpx.AsyncClient:
    """A client with the API key of the environment and the options' timeout.

    For servers on this machine the proxy of the environment is not used, since it would look for them on its own
    machine.
    """
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    limits = httpx.Limits(max_connections=None)
    timeout = httpx.Timeout(engine.timeout, connect=CONNECT_SECONDS, pool=None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    here: dict[str, None] = {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")}
    try:
        return httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout, mounts=here)
    except (ValueError, httpx.InvalidURL) as error:  # a key that is no ASCII; the address of a proxy
        raise PrunusError(
            f"the key ({' or '.join(KEYS)}) or the proxy (HTTP_PROXY, HTTPS_PROXY) in the environment cannot be used:"
            f" {type(error).__name__}"
        ) from error


async def received(client: httpx.AsyncClient, address: str, payload: object = None, most: int = LEAST_BYTES) -> Reply:
    """The reply to one request (a GET without payload), bounded in time and size, since a server may send without end.

    most: maximum number of bytes. Raises PrunusError if there are more, and httpx.ReadTimeout if the reply is not
    complete within the client's read timeout.
    """
    seconds, method = client.timeout.read, "GET" if payload is None else "POST"
    try:
        async with asyncio.timeout(seconds), client.stream(method, address, json=payload) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > most:
                    raise PrunusError(f"{address} sends more than {most:,} bytes, the most that its reply may have")
            return Reply(response.status_code, response.headers, bytes(body))
    except httpx.InvalidURL as error:
        raise PrunusError(f"'{address}' is not the address of a server ({one_line(error)})") from error
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"no complete reply within {seconds:g} s") from error


async def reply_of(
    client: httpx.AsyncClient,
    url: str,
    address: str,
    payload: object = None,
    *,
    read: Callable[[Any], _T],
    tries: int = TRIES,
    waits: bool = True,
    tokens: int = 0,
) -> _T:
    """The result of `read` on the server's reply, with retries for temporary failures; PrunusError names the url.

    read: raises Unfit, or an error of MALFORMED, for data that cannot be used; then the request is repeated. tokens:
    the most that the reply may hold. waits: whether to wait for a server that is busy or cannot be reached; otherwise
    Busy is raised.
    """
    fault = ""
    most = LEAST_BYTES + BYTES_PER_BYTE * len(json.dumps(payload)) + BYTES_PER_TOKEN * tokens
    for attempt in range(1, tries + 1):
        wait = pause(attempt)
        try:
            response = await received(client, address, payload, most)
            if response.status == httpx.codes.OK:
                return as_read(response, read)
            fault = f"answers {response.status}: {first_words(response)}"
            if response.status not in TEMPORARY:
                raise PrunusError(refusal(url, response.status, fault))
            if not waits and response.status in BUSY:
                raise Busy(fault, seconds_to_wait(response), broke_off=False)
            wait = max(wait, seconds_to_wait(response))
        except Unfit as error:
            fault = f"answers {error}"
        except (httpx.ConnectError, httpx.ConnectTimeout):
            fault = "cannot be reached; is it running there?"
        except httpx.TimeoutException:
            fault = f"did not answer in full within {client.timeout.read:g} s (--timeout)"
        except httpx.DecodingError:
            fault = "answers with a body that is not compressed as its headers say"
        except httpx.HTTPError as error:
            fault = f"broke off: {one_line(error)}"
        if not waits and not fault.startswith("answers"):
            raise Busy(fault, 0.0, broke_off=True)
        if attempt < tries:
            if wait > REPORTED_SECONDS:
                progress.say(f"{url} {fault}: waiting {wait:.0f} s before try {attempt + 1} of {tries}")
            await asyncio.sleep(wait)
    often = f" ({tries} tries)" if tries > 1 else ""
    raise PrunusError(f"{url} {fault}{often}; {STAYS}")


def as_read(response: Reply, read: Callable[[Any], _T]) -> _T:
    """The result of `read` on a reply; Unfit where it is not JSON, or malformed."""
    try:
        reply = parse_json(response.body)
    except ValueError as error:
        raise Unfit("with something that is not JSON") from error
    try:
        return read(reply)
    except MALFORMED as error:
        raise Unfit(f"with an incomplete reply ({one_line(ValueError(json.dumps(reply)))[:200]})") from error


def with_client(engine: EngineOptions, work: Callable[[httpx.AsyncClient], Coroutine[Any, Any, _T]]) -> _T:
    """The result of a coroutine that is given a client."""

    async def started() -> _T:
        async with new_client(engine) as client:
            return await work(client)

    return run(started())


def refusal(url: str, status: int, fault: str) -> str:
    """One line for a reply that a retry would not change."""
    if status in (401, 403):
        return f"{url} needs another key ({status}): set {KEYS[0]} (or {KEYS[1]})"
    if status == httpx.codes.NOT_FOUND:
        return f"{url} {fault}; the address must be that of the API, such as http://localhost:8000/v1"
    return f"{url} {fault}; {STAYS} once that is fixed"


def first_words(response: Reply) -> str:
    """The server's own explanation, in a line."""
    try:
        data = parse_json(response.body)
        error = data.get("error", data)
        text = error.get("message", "") if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        text = response.text
    text = " ".join(str(text).split())
    return (text if len(text) <= 300 else text[:300] + " ...") or httpx.codes.get_reason_phrase(response.status)


def pause(attempt: int) -> float:
    """The seconds before the next try: doubled each time, with jitter."""
    return min(LONGEST_WAIT_SECONDS, BACKOFF_SECONDS * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)


def seconds_to_wait(response: Reply) -> float:
    """The seconds that the server requests in Retry-After, within limits; 0 for a date, or what is no number."""
    try:
        seconds = float(response.headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
    return min(LONGEST_WAIT_SECONDS, seconds) if seconds > 0 else 0.0


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine, also in a notebook, whose event loop is already running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def in_thread(work: AsyncIterator[_T]) -> Iterator[_T]:
    """Yield the items of an asynchronous iterator, which runs in a separate thread and continues between items.

    Its error is raised here. Closing this iterator cancels it.
    """
    items: queue.SimpleQueue[tuple[_T] | None] = queue.SimpleQueue()  # None: there are no more
    loop = asyncio.new_event_loop()

    async def consume() -> None:
        try:
            async for item in work:
                items.put((item,))
        finally:
            items.put(None)

    def body() -> None:
        with contextlib.closing(loop), contextlib.suppress(BaseException):  # the task keeps it
            loop.run_until_complete(task)

    task, thread = loop.create_task(consume()), threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            yield item[0]
        thread.join()
        task.result()
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


START, MOST_REQUESTS = 1024, 4096  # requests at once: in the beginning, and at most
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


class RequestLimit:
    """The number of requests that a server may have at once; at most `most`."""

    def __init__(self, most: int | None = None, files: int = MOST_REQUESTS, places: int | None = None) -> None:
        """most: of the user, None without a limit. files: connections that this process may open.

        places: requests that the server runs at once; None if that is unknown.
        """
        known = MOST_REQUESTS if places is None else places + max(FEWEST_QUEUED, places // RESERVE)
        self.most = max(1, min(most or MOST_REQUESTS, files, known))
        self.size = float(min(self.most, START))
        self.reduced_at, self.resume_at = float("-inf"), float("-inf")
        self.ran, self.strikes, self.reported = 0.0, 0, float("-inf")

    def has_room(self, in_flight: int, now: float) -> bool:
        """Whether another request may be sent."""
        return in_flight < int(self.size) and now >= self.resume_at

    def completed(self, in_flight: int) -> None:
        """Note a completion. in_flight: requests at the server, including this request."""
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

    def pauses(self, now: float) -> float | None:
        """Seconds for which nothing is sent, returned once per pause; None if it is short or was already returned."""
        if self.resume_at - max(now, self.reported) <= REPORTED_SECONDS:
            return None
        self.reported = self.resume_at
        return self.resume_at - now

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
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_REQUESTS + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MOST_REQUESTS if soft == resource.RLIM_INFINITY else max(1, soft - 256)


async def replies(
    engine: EngineOptions,
    url: str,
    places: int | None,
    next_request: Callable[[], int | None],
    send: Callable[[httpx.AsyncClient, int], Coroutine[Any, Any, _T]],
) -> AsyncGenerator[tuple[int, _T], None]:
    """Yield (number, reply) of each request as it comes.

    url: ends in /v1. places: requests that the server runs at once; None if that is unknown. next_request: returns the
    number of the next request, or None if there is none at present. send: sends a request, or raises Busy. Raises
    PrunusError if one request breaks off too often, or the server has none of ours and refuses too often.
    """
    window = RequestLimit(engine.concurrency, files_at_once(), places)
    again: deque[int] = deque()  # requests that the server refused
    running: dict[asyncio.Task[_T], tuple[int, float]] = {}  # number, when it was sent
    broken: Counter[int] = Counter()
    now = asyncio.get_running_loop().time
    client = new_client(engine)
    watching = asyncio.create_task(_watch(client, url, window, lambda: len(running)))
    try:
        while True:
            while has_room := window.has_room(len(running), now()):
                number = again.popleft() if again else next_request()
                if number is None:
                    break
                running[asyncio.create_task(send(client, number))] = number, now()
            if not running and has_room:
                return
            if not running:
                await asyncio.sleep(max(0.0, window.resume_at - now()))
                continue
            finished, _ = await asyncio.wait(running, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                number, sent_at = running.pop(task)
                try:
                    reply = task.result()
                except Busy as error:
                    broken[number] += error.broke_off
                    window.refused(sent_at, len(running), now(), error.wait)
                    if max(broken[number], window.strikes) >= TRIES:
                        raise PrunusError(f"{url} {error} ({TRIES} tries); {STAYS}") from error
                    if not running:
                        window.resume_at = max(window.resume_at, now() + pause(window.strikes))
                    again.appendleft(number)
                    if (seconds := window.pauses(now())) is not None:
                        progress.say(f"{url} {error}: sending nothing for {seconds:.0f} s")
                    continue
                window.completed(len(running) + 1)
                yield number, reply
    finally:
        for task in (watching, *running):
            task.cancel()
        await asyncio.gather(watching, *running, return_exceptions=True)
        await client.aclose()


async def _watch(client: httpx.AsyncClient, url: str, window: RequestLimit, in_flight: Callable[[], int]) -> None:
    """Let the window follow the server's queue, for as long as the server tells it."""
    with contextlib.suppress(httpx.HTTPError, PrunusError, ValueError):
        while True:
            await asyncio.sleep(POLL_SECONDS)
            reply = await received(client, url.removesuffix("/v1") + "/metrics")
            queue = queue_of(reply.text) if reply.status == httpx.codes.OK else None
            if queue is None:
                return
            window.follow(*queue, in_flight(), asyncio.get_running_loop().time())
