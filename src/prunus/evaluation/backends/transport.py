"""HTTP requests to a server, with retries for temporary failures and a one-line error for others."""

import asyncio
import json
import os
import queue
import random
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, cast

import httpx2 as httpx

from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.parse import parse_json

TRIES = 6
BACKOFF_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
CONNECT_SECONDS = 10.0
TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # status codes that are worth a retry
KEYS = ("PRUNUS_API_KEY", "OPENAI_API_KEY")
STAYS = "stored results are kept, and the same command resumes"
BUSY = {429, 503, 529}  # of these: the server has too much to do
# The most bytes of a reply: those that any may have, for each byte of the request (some servers return the prompt), and
# for each token that was asked for (its id, text and log-probability, some of them twice).
LEAST_BYTES, BYTES_PER_BYTE, BYTES_PER_TOKEN = 1 << 24, 16, 1 << 10
# What reading the parts of a reply of another form than expected may raise.
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
    """A client with the API key of the environment and the options' timeout."""
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    limits = httpx.Limits(max_connections=None)
    timeout = httpx.Timeout(engine.timeout, connect=CONNECT_SECONDS, pool=None)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout)


async def received(
    client: httpx.AsyncClient, method: str, address: str, payload: Any = None, most: int = LEAST_BYTES
) -> Reply:
    """The reply to one request, which is bounded: a server may send without end.

    It has to be complete within the client's time limit for reading, else httpx.ReadTimeout is raised. most: its bytes;
    PrunusError if there are more.
    """
    seconds = client.timeout.read
    try:
        async with asyncio.timeout(seconds), client.stream(method, address, json=payload) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > most:
                    raise PrunusError(f"{address} sends more than {most:,} bytes, the most that its reply may have")
            return Reply(response.status_code, response.headers, bytes(body))
    except TimeoutError as error:
        raise httpx.ReadTimeout(f"no complete reply within {seconds:g} s") from error


async def reply_of(
    client: httpx.AsyncClient,
    url: str,
    method: str,
    address: str,
    payload: Any = None,
    tries: int = TRIES,
    waits: bool = True,
    tokens: int = 0,
) -> Any:
    """The server's reply as data, with retries for temporary failures; PrunusError names the url.

    tokens: the most that the reply may hold. waits: whether to wait for a server that is busy or cannot be reached;
    otherwise Busy is raised.
    """
    problem = ""
    most = LEAST_BYTES + BYTES_PER_BYTE * len(json.dumps(payload)) + BYTES_PER_TOKEN * tokens
    for attempt in range(1, tries + 1):
        wait = pause(attempt)
        try:
            response = await received(client, method, address, payload, most)
            if response.status == httpx.codes.OK:
                return parse_json(response.body)
            problem = f"answers {response.status}: {first_words(response)}"
            if response.status not in TEMPORARY:
                raise PrunusError(refusal(url, response.status, problem))
            if not waits and response.status in BUSY:
                raise Busy(problem, seconds_to_wait(response), broke_off=False)
            wait = max(wait, seconds_to_wait(response))
        except ValueError:
            problem = "answers with something that is not JSON"
        except (httpx.ConnectError, httpx.ConnectTimeout):
            problem = "cannot be reached; is it running there?"
        except httpx.TimeoutException:
            problem = f"did not answer in full within {client.timeout.read:g} s (--timeout)"
        except httpx.TransportError as error:
            problem = f"broke off: {' '.join(str(error).split()) or type(error).__name__}"
        if not waits and not problem.startswith("answers"):
            raise Busy(problem, 0.0, broke_off=True)
        if attempt < tries:
            await asyncio.sleep(wait)
    often = f" ({tries} tries)" if tries > 1 else ""
    raise PrunusError(f"{url} {problem}{often}; {STAYS}")


def refusal(url: str, status: int, problem: str) -> str:
    """One line for a reply that a retry would not change."""
    if status in (401, 403):
        return f"{url} needs another key ({status}): set {KEYS[0]} (or {KEYS[1]})"
    if status == httpx.codes.NOT_FOUND:
        return f"{url} {problem}; the address must be that of the API, such as http://localhost:8000/v1"
    return f"{url} {problem}; {STAYS} once that is fixed"


def first_words(response: Reply) -> str:
    """The server's own explanation, in one line."""
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
    """The seconds that the server requests in Retry-After, within limits."""
    try:
        return min(LONGEST_WAIT_SECONDS, float(response.headers.get("Retry-After", "0")))
    except ValueError:  # a date
        return 0.0


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
    items: queue.SimpleQueue[tuple[_T | None, BaseException | None, bool]] = queue.SimpleQueue()
    ready = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def consume() -> None:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))  # type: ignore[arg-type]
        ready.set()
        async for item in work:
            items.put((item, None, False))

    def body() -> None:
        try:
            asyncio.run(consume())
        except BaseException as error:  # including asyncio.CancelledError
            items.put((None, error, True))
        else:
            items.put((None, None, True))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    ended = False
    try:
        while True:
            item, error, ended = items.get()
            if error is not None:
                raise error
            if ended:
                return
            yield cast(_T, item)
    finally:
        if not ended:
            ready.wait()
            loop, task = running[0]
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
