"""Chat completions of a server with OpenAI's API, for runs whose budget the engine or the model keeps (control native).

A chat request has messages instead of token ids, and its reply has the thinking apart from the answer. Its ids are read
if the server returns them (vLLM does); otherwise the texts are encoded.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx

from prunus.checkpoint.resolve import one_line
from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation.backends.openai import names_of
from prunus.evaluation.backends.rolling import replies
from prunus.evaluation.backends.served import api_of, context_of, find_model, version_of
from prunus.evaluation.backends.transport import MALFORMED, STAYS, TRIES, in_thread, new_client, pause, reply_of, run
from prunus.evaluation.backends.window import Window, files_at_once
from prunus.evaluation.requests import Engine, Sampling


class ChatRequest(NamedTuple):
    """One conversation to continue. fields: of the request's body, beside those that ChatServer sets itself."""

    messages: list[dict[str, str]]
    max_new_tokens: int
    seed: int
    fields: Mapping[str, Any]


class ChatReply(NamedTuple):
    """A reply. thinking, answer: texts. ids: of the whole completion, None if the server does not return them.

    counted: number of thinking tokens by the server's own count, if it tells it. truncated: whether max_new_tokens or
    the context ended it.
    """

    thinking: str
    answer: str
    ids: list[int] | None
    counted: int | None
    truncated: bool


class ChatServer(Engine):
    """A model on a server, asked by chat completions.

    folder: of the model, for its names. Making it raises PrunusError if the server is not reached or has another model.
    """

    def __init__(self, folder: Path, engine: EngineOptions) -> None:
        assert engine.url is not None
        self.engine, self.url = engine, api_of(engine.url)
        self.name, self.server = "", ""
        self.places: int | None = None  # requests that the server runs at once
        run(self._connect(names_of(folder)))

    @property
    def description(self) -> dict[str, Any]:
        """What is known of the server, stored with the run; its address is not."""
        return {"engine": "openai", "server": self.server, "api": "chat completions"}

    def replies(self, requests: Iterable[ChatRequest], sampling: Sampling) -> Iterator[tuple[int, ChatReply]]:
        """Yield the number of each request and its reply as soon as it comes; as many at once as the server takes."""
        return in_thread(self._flow(iter(requests), sampling))

    def check(self, request: ChatRequest, sampling: Sampling) -> None:
        """Raise PrunusError if the server refuses a request with these fields; it generates one token."""
        run(self._check(request._replace(max_new_tokens=1), sampling))

    async def _connect(self, names: set[str]) -> None:
        async with new_client(self.engine) as client:
            entry = await find_model(client, self.url, names, self.engine.served_model)
            self.name, self.context, self.server = entry["id"], context_of(entry), str(entry.get("owned_by"))
            _, self.places = await version_of(client, self.url, self.server)

    async def _check(self, request: ChatRequest, sampling: Sampling) -> None:
        async with new_client(self.engine) as client:
            await self._ask(client, request, sampling)

    async def _flow(self, requests: Iterator[ChatRequest], sampling: Sampling) -> AsyncIterator[tuple[int, ChatReply]]:
        numbered, asked = enumerate(requests), dict[int, ChatRequest]()
        window = Window(self.engine.concurrency, files_at_once(), self.places)

        def pick() -> int | None:
            number, request = next(numbered, (None, None))
            if number is not None and request is not None:
                asked[number] = request
            return number

        async with new_client(self.engine) as client:

            async def send(number: int) -> ChatReply:
                return await self._ask(client, asked[number], sampling, waits=False)

            async with aclosing(replies(client, self.url, window, pick, send)) as found:
                async for number, reply in found:
                    del asked[number]
                    yield number, reply

    async def _ask(
        self, client: httpx.AsyncClient, request: ChatRequest, sampling: Sampling, waits: bool = True
    ) -> ChatReply:
        body, address, most = self._body(request, sampling), f"{self.url}/chat/completions", request.max_new_tokens
        for tries in range(1, TRIES + 1):
            reply = await reply_of(client, self.url, "POST", address, body, waits=waits, tokens=most)
            try:
                return read_reply(reply)
            except MALFORMED as error:
                if tries == TRIES:
                    shown = one_line(ValueError(json.dumps(reply)))[:200]
                    raise PrunusError(f"{self.url} answers with an incomplete reply ({shown}); {STAYS}") from error
                await asyncio.sleep(pause(tries))
        raise AssertionError

    def _body(self, request: ChatRequest, sampling: Sampling) -> dict[str, Any]:
        """The body of a request; for vLLM it sets every parameter for which a model's own files have defaults."""
        body: dict[str, Any] = {
            "model": self.name,
            "messages": request.messages,
            "stream": False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed if self.server == "vllm" else request.seed & 0x7FFFFFFF,  # others take 32 bits
        }
        if self.server == "vllm":
            penalties = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
            body |= {"max_tokens": request.max_new_tokens, "top_k": sampling.top_k or -1, "min_p": 0.0, **penalties}
            body |= {"return_token_ids": True, "skip_special_tokens": False}
        else:
            body["max_completion_tokens"] = request.max_new_tokens
            body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        return body | dict(request.fields)


def read_reply(reply: Any) -> ChatReply:
    """The reply in the form of vLLM, SGLang, llama.cpp or OpenAI. KeyError or another error if it is incomplete."""
    choice = reply["choices"][0]
    message, finish = choice["message"], choice["finish_reason"]
    if finish not in ("stop", "length"):
        raise ValueError(finish)
    details = (reply.get("usage") or {}).get("completion_tokens_details") or {}
    counted, ids = details.get("reasoning_tokens"), choice.get("token_ids")
    return ChatReply(
        thinking=str(message.get("reasoning") or message.get("reasoning_content") or ""),
        answer=str(message.get("content") or ""),
        ids=[int(token) for token in ids] if isinstance(ids, list) else None,
        counted=counted if isinstance(counted, int) else None,
        truncated=finish == "length",
    )
