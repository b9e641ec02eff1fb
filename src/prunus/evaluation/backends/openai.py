"""Any server with OpenAI's completions API that takes prompts as token ids: vLLM, SGLang, llama.cpp.

A completion is read as token ids if the server returns them, else as the texts of its tokens, else as one text that the
model's tokenizer must encode and decode unchanged. A probe at the start refuses a server that ignores stops, bans or
seeds. llama.cpp returns ids only at its own endpoint `/completion`, which is used.
"""

import contextlib
import math
from array import array
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2 as httpx

from prunus import progress
from prunus.checkpoint.model_folder import EngineFolder
from prunus.checkpoint.resolve import load_tokenizer
from prunus.errors import PrunusError
from prunus.evaluation.backends.served import Server, Started
from prunus.evaluation.backends.transport import Unfit, in_thread, replies, reply_of, with_client
from prunus.evaluation.engine import Streaming
from prunus.evaluation.profiles.markers import decode
from prunus.evaluation.requests import NEUTRAL, Completion, Outstanding, Request, Sampling, Scores
from prunus.settings.engines import EngineOptions
from prunus.settings.request import EXTREME, LLAMA_CPP
from prunus.store.stored import Environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEVER, ALWAYS = -100, 100  # logit biases that ban an id, and that force one
PROBE_TEXT, PROBE_TOKENS, PROBE_SAMPLING = "The answer is", 12, Sampling(2.0)
GREEDY = Sampling(0.0)
LLAMA_CPP_NEUTRAL = {
    sampler.name: sampler.default for of in LLAMA_CPP.values() for sampler in of if sampler.default is not None
}
NOTHING = frozenset[int]()  # stops or bans of a probe
MOST_IDS = 1 << 24  # of a vocabulary; each that the tokenizer lacks is banned in every request
PROBE_SEEDS, DRAWN_IDS, DRAWN_TOKENS = range(1, 25), 24, 32  # of draws that show whether fields are heeded
PROBED_IDS = 6  # ids whose texts show whether the server has another tokenizer


class CompletionReply(NamedTuple):
    """A server's reply to a request for a completion.

    finish: `length` or `stop`. ids, texts, logprobs: of each token. stopped_by: the stop that ended it. counted: number
    of tokens. None where the server does not tell.
    """

    text: str
    finish: str
    ids: list[int] | None = None
    texts: list[str] | None = None
    logprobs: list[float] | None = None
    stopped_by: int | str | None = None
    counted: int | None = None


class OpenAIBackend(Server, Streaming):
    """A Backend over a server; `load` makes one and probes it.

    folder: of the model, or of its tokenizer only. vocabulary: ids of this size and above are never sampled.
    """

    def __init__(self, folder: Path, engine: EngineOptions, vocabulary: int) -> None:
        super().__init__(folder, engine, vocabulary)
        # Without the model's configuration its vocabulary is that of the tokenizer, unless the server tells it.
        size = vocabulary if engine.tokenizer else EngineFolder(folder).vocabulary
        self.unknown = range(vocabulary, size)
        self.completions = self.url + "/completions"
        self.stop_texts, self.token_ids, self.warned = False, "ids", False
        self.tokenizer = load_tokenizer(folder)
        self.first_ids = list[int]()
        self.probed = set[int]()  # stops at which the server was seen to stop

    @property
    def description(self) -> Environment:
        """Known facts about the server, stored with the run. first_ids: its greedy reply to a probe."""
        stops, server = "texts" if self.stop_texts else "ids", f"{self.server} {self.facts.version}".rstrip()
        facts = {"engine": "openai", "server": server, "token_ids": self.token_ids, "stops": stops}
        first_ids = {} if isinstance(self.engine, Started) else {"first_ids": self.first_ids}
        return Environment.of(facts) | self.identity | first_ids

    def completed(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[int]:
        """As Completer.completed, with as many requests at once as the server takes."""
        return in_thread(self._chains(Outstanding(requests), sampling))

    async def _chains(self, waiting: Outstanding, sampling: Sampling) -> AsyncIterator[int]:
        """Yield chains as they are completed. Follow-up requests are sent before new chains."""
        following: deque[int] = deque()  # requests that go before new chains

        def next_request() -> int | None:
            return following.popleft() if following else waiting.take()

        async def send(client: httpx.AsyncClient, number: int) -> Completion:
            return await self._complete(client, waiting.requests[number], sampling)

        numbered = replies(self.engine, self.url, self.facts.places, next_request, send)
        async with contextlib.aclosing(numbered) as completions:
            async for number, completion in completions:
                more, chain = waiting.complete(number, completion)
                following.extend(more)
                if chain is not None:
                    yield chain

    async def _complete(self, client: httpx.AsyncClient, request: Request, sampling: Sampling) -> Completion:
        if not self.is_llama_cpp:
            return await self._checked(client, request, sampling)
        ids: list[int] = []
        while len(ids) < request.max_new_tokens:
            completion = await self._checked(client, after(request, ids), sampling)
            seen = len(ids)
            ids += completion.ids
            if request.texts is not None and (marker := request.texts.first(ids, seen)):
                return Completion(ids[: marker[1]], None, marker=marker[0])
            if completion.stopped is not None:
                return Completion(ids, completion.stopped)
        return Completion(ids, None)

    async def _checked(self, client: httpx.AsyncClient, request: Request, sampling: Sampling) -> Completion:
        completion = await self._once(client, request, sampling, waits=False)
        if request.stops.intersection(completion.ids):
            raise PrunusError(f"{self.url} continued after a stop, although it stopped there in the probe")
        return completion

    async def _once(
        self,
        client: httpx.AsyncClient,
        request: Request,
        sampling: Sampling,
        bias: Mapping[str, int] | None = None,
        waits: bool = True,
    ) -> Completion:
        """The completion of one request. bias: logit biases that replace the request's. waits: as reply_of's."""
        payload = self._payload(request, sampling)
        if bias is not None:
            payload["logit_bias"] = bias
        read, tokens = partial(self._completion, request), request.max_new_tokens
        return await reply_of(client, self.url, self.completions, payload, read=read, waits=waits, tokens=tokens)

    def _texts(self, ids: Iterable[int]) -> list[str]:
        return [decode(self.tokenizer, [token]) for token in sorted(ids)]

    def _bias(self, banned: Iterable[int]) -> dict[str, int]:
        return {str(token): NEVER for token in [*sorted(banned), *self.unknown]}

    def _payload(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """A request that sets every parameter with a default, under the names of vLLM and other servers."""
        if self.is_llama_cpp:
            return self._llama_cpp_payload(request, sampling)
        payload = self.payload(request.seed, sampling) | {
            "prompt": request.prompt,
            "max_tokens": request.max_new_tokens,
            "n": 1,
            "top_k": sampling.top_k or -1,
            **NEUTRAL,
            **self.request,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if not self.is_vllm:
            payload["repeat_penalty"] = 1.0
        if request.min_new_tokens:
            payload["min_tokens"] = request.min_new_tokens
        if request.stops and self.stop_texts:
            payload["stop"] = self._texts(request.stops)
        elif request.stops:
            payload["stop_token_ids"] = sorted(request.stops)
        if request.texts is not None and self.is_vllm:
            # Other servers would remove the text from the ids, so with them the model continues until the cap.
            payload["stop"] = [*payload.get("stop", ()), *request.texts.texts]
            payload["include_stop_str_in_output"] = True
        if request.banned or self.unknown:
            payload["logit_bias"] = self._bias(request.banned)
        return payload

    def _llama_cpp_payload(self, request: Request, sampling: Sampling) -> dict[str, object]:
        """A request under the names of llama.cpp."""
        stops = self._texts(request.stops)
        return self.payload(request.seed, sampling) | {
            "prompt": request.prompt,
            "n_predict": request.max_new_tokens,
            "samplers": samplers_for(self.request),
            "top_k": sampling.top_k,
            "dynatemp_range": 0.0,
            "mirostat": 0,
            "stop": stops,
            "preserved_tokens": stops,  # without this, special tokens have no text and cannot be stops
            "ignore_eos": False,  # True would ban the tokens that end an answer
            "logit_bias": self._bias(request.banned),
            "return_tokens": True,
            "cache_prompt": False,  # with a cached prompt, logits differ in their last bits
            **(LLAMA_CPP_NEUTRAL | dict(self.request) if self.request else {}),
        }

    def _read(self, reply: Any) -> CompletionReply:
        """The parts of a reply, also of llama.cpp's. KeyError or another error if it is incomplete."""
        if self.is_llama_cpp:
            finish = {"limit": "length", "word": "stop", "eos": "stop"}[reply["stop_type"]]
            return CompletionReply(reply["content"], finish, reply["tokens"])
        choice = reply["choices"][0]
        scored = choice.get("logprobs") or {}
        return CompletionReply(
            text=choice["text"],
            finish=choice["finish_reason"],
            ids=choice.get("token_ids"),
            texts=scored.get("tokens"),
            logprobs=scored.get("token_logprobs"),
            stopped_by=choice.get("stop_reason"),
            counted=(reply.get("usage") or {}).get("completion_tokens"),
        )

    def _completion(self, request: Request, data: Any) -> Completion:
        reply = self._read(data)
        finish, (ids, logprobs) = reply.finish, self._ids(reply)
        if not all(0 <= token < max(self.unknown.start, self.unknown.stop) for token in ids):
            raise Unfit("with an id that the model does not have")
        if finish not in ("stop", "length"):
            raise Unfit(f"with an answer that ended in '{finish}'")
        stopped, marker = None, None
        if request.texts is not None and (place := request.texts.first(ids)):
            marker, end = place
            ids, finish = ids[:end], "length"
        elif ids and ids[-1] in request.stops:
            stopped = ids.pop()
        elif self.is_llama_cpp and not ids:
            raise Unfit("with no token")
        elif finish == "length" and self.token_ids == "ids" and len(ids) < request.max_new_tokens:
            raise PrunusError(f"{self.url} ended after {len(ids)} of {request.max_new_tokens} ids: its context is full")
        elif finish == "stop" and not self.is_llama_cpp:
            stopped = reply.stopped_by if reply.stopped_by in request.stops else min(request.stops, default=-1)
        if len(ids) + (stopped is not None) > request.max_new_tokens:
            if self.token_ids == "ids":
                raise PrunusError(f"{self.url} ignores max_tokens; no budget can be held with it")
            ids, stopped = ids[: request.max_new_tokens], None
        if stopped is not None and len(ids) < request.min_new_tokens:
            raise PrunusError(f"{self.url} ignores min_tokens, which --wait needs")
        if banned := [token for token in ids if token in request.banned or token in self.unknown]:
            raise PrunusError(f"{self.url} sampled id {banned[0]} although it was banned")
        if logprobs is None or len(logprobs) < len(ids) or not self.is_vllm:
            return Completion(ids, stopped, marker=marker)
        of_ids = array("f", logprobs[: len(ids)])
        return Completion(ids, stopped, Scores(of_ids, array("f", [math.nan]) * len(ids)), marker)

    def _ids(self, reply: CompletionReply) -> tuple[list[int], list[float] | None]:
        """The ids of a reply and any log-probabilities of them; sets token_ids to the source of the ids."""
        text, texts, logprobs = reply.text, reply.texts, reply.logprobs
        if isinstance(reply.ids, list):
            return [int(token) for token in reply.ids], logprobs
        if texts and all(text.startswith("token_id:") for text in texts):
            return [int(text.removeprefix("token_id:")) for text in texts], logprobs
        self.token_ids = "texts of tokens" if texts else "text"
        if texts and "".join(texts) == text and all(text in self._ids_of_texts for text in texts):
            return [self._ids_of_texts[text] for text in texts], logprobs
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if decode(self.tokenizer, ids) != text:
            raise PrunusError(
                f"{self.url} wrote a text that changes when the tokenizer of {self.folder} encodes and decodes it"
            )
        if not self.warned and reply.counted is not None and reply.counted - len(ids) not in (0, 1):
            self.warned = True
            progress.say(
                f"warning: the server returns texts, not token ids, and counts {reply.counted} tokens where the"
                f" tokenizer counts {len(ids)}; budgets use the tokenizer's count"
            )
        return ids, None

    @cached_property
    def _ids_of_texts(self) -> dict[str, int]:
        """A dict from the text of a token to its id, for texts that only one token has."""
        seen: dict[str, int] = {}
        twice = {""}
        for token in range(self.unknown.start):
            text = decode(self.tokenizer, [token])
            if text in seen or "\N{REPLACEMENT CHARACTER}" in text:
                twice.add(text)
            seen[text] = token
        return {text: token for text, token in seen.items() if text not in twice}

    async def connect(self, client: httpx.AsyncClient) -> None:
        """Find the model on the server and probe it; PrunusError says what the server lacks."""
        await super().connect(client)
        rows = self.entry.meta.n_vocab
        if rows is not None and rows <= MOST_IDS and self.engine.tokenizer:
            self.unknown = range(self.unknown.start, max(self.unknown.start, rows))
        if self.server == "me":
            raise PrunusError(
                f"{self.url} is llama-cpp-python's server, which takes texts and no token ids: llama.cpp's own,"
                " llama-server, takes token ids"
            )
        if self.is_llama_cpp:
            self.completions = self.url.removesuffix("/v1") + "/completion"
        request, self.request = self.request, {}  # they would change the reply to the probe
        await self._probe(client)
        await self._probe_fields(client, request)
        self.request = request

    async def _probe(self, client: httpx.AsyncClient) -> None:
        """Raise PrunusError unless a few short completions show that stops, bans and seeds work."""
        free = Request(self.tokenizer.encode(PROBE_TEXT, add_special_tokens=False), PROBE_TOKENS, NOTHING, NOTHING, 0)
        first = (await self._once(client, free, GREEDY)).ids
        self.first_ids = first
        if not first:
            raise PrunusError(f"{self.url} answers a probe with no token; check that it serves the model")
        await self._check_tokenizer(client, free._replace(max_new_tokens=1))
        stop = frozenset(first[:1])
        for self.stop_texts in (False, True):
            completion = await self._once(client, free._replace(stops=stop), GREEDY)
            if completion.stopped is not None and not completion.ids:
                break
        else:
            raise PrunusError(
                f"{self.url} ignores stop_token_ids and stop: thinking and answers could not be told apart"
            )
        banned = (await self._once(client, free, GREEDY, self._bias(stop))).ids
        if not banned or banned[0] in stop:
            raise PrunusError(f"{self.url} ignores logit_bias, so that markers could not be banned from answers")
        seeded = [free._replace(seed=seed) for seed in (1, 1, 2, 2, 3, 3)]
        drawn = [(await self._once(client, request, PROBE_SAMPLING)).ids for request in seeded]
        repeated = any(drawn[at] == drawn[at + 1] for at in (0, 2, 4))
        if not repeated or len(set(map(tuple, drawn))) == 1:
            option = "" if self.kind is None else self.kind.for_seeds
            hint = f", unless it is started with {option}" if option else ""
            raise PrunusError(f"{self.url} ignores seed{hint}: draws could not be reproduced")

    async def _probe_fields(self, client: httpx.AsyncClient, fields: Mapping[str, float]) -> None:
        """Raise PrunusError that names a field of requests that the server ignores, if there is one.

        llama.cpp reports the settings with which it sampled. To other servers, each field is sent with an extreme
        value, which must change a draw of a few ids with the same seed.
        """
        if not fields:
            return
        ids = distinct_tokens(self.tokenizer, self.unknown.start, DRAWN_IDS)
        bias = {str(token): ALWAYS for token in ids}
        prompt = self.tokenizer.encode(PROBE_TEXT, add_special_tokens=False)

        async def drawn(extra: Mapping[str, float], seed: int) -> list[int]:
            self.request = extra
            request = Request(prompt, DRAWN_TOKENS, NOTHING, NOTHING, seed)
            return (await self._once(client, request, PROBE_SAMPLING, bias)).ids

        if self.is_llama_cpp:
            self.request = fields
            payload = self._payload(Request(prompt, 1, NOTHING, NOTHING, 0), GREEDY)

            def untold(reply: Any) -> list[str]:
                stated = reply.get("generation_settings")
                told = stated if isinstance(stated, dict) else {}
                return [name for name, value in fields.items() if not _is_told(value, told.get(name))]

            ignored = await reply_of(client, self.url, self.completions, payload, read=untold)
        else:
            plain = dict[int, list[int]]()

            async def heeds(name: str) -> bool:
                for seed in PROBE_SEEDS:
                    if seed not in plain:
                        plain[seed] = await drawn({}, seed)
                        if await drawn({}, seed) != plain[seed]:  # rounding in another batch
                            plain[seed] = []
                    if plain[seed] and await drawn({name: EXTREME[name]}, seed) != plain[seed]:
                        return True
                return not any(plain.values())

            ignored = [name for name in fields if not await heeds(name)]
        if ignored:
            raise PrunusError(
                f"{self.url} ignores the request field '{ignored[0]}': leave it out, or take another engine"
            )

    async def _check_tokenizer(self, client: httpx.AsyncClient, request: Request) -> None:
        """Raise PrunusError unless a few ids that the server is made to sample have the texts of our tokenizer."""

        def read(reply: Any) -> str:
            return str(self._read(reply).text).strip()

        texts = dict[int, str]()
        for token in distinct_tokens(self.tokenizer, self.unknown.start):
            payload = self._payload(request, GREEDY) | {"logit_bias": {str(token): ALWAYS}}
            texts[token] = await reply_of(client, self.url, self.completions, payload, read=read)
        if len(set(texts.values())) == 1:
            return  # the server ignores the bias, which is said later
        for token, server_text in texts.items():
            local_text = decode(self.tokenizer, [token]).strip()
            if server_text != local_text:
                raise PrunusError(
                    f"the tokenizer of {self.folder} is not that of {self.url}: id {token} is '{local_text[:40]}' here"
                    f" and '{server_text[:40]}' there"
                )

    def check_stops(self, stops: frozenset[int]) -> None:
        """As Engine.check_stops. Special tokens may be treated differently, so the server is made to sample each."""

        async def check(client: httpx.AsyncClient) -> None:
            prompt = self.tokenizer.encode(PROBE_TEXT, add_special_tokens=False)
            for stop in sorted(stops - self.probed):
                request = Request(prompt, PROBE_TOKENS, frozenset({stop}), NOTHING, 0)
                completion = await self._once(client, request, GREEDY, {str(stop): ALWAYS})
                if completion != Completion([], stop):
                    [text] = self._texts([stop])
                    raise PrunusError(
                        f"{self.url} does not stop at {text}: thinking and answers could not be told apart"
                    )
                self.probed.add(stop)

        if stops - self.probed:
            with_client(self.engine, check)


def samplers_for(request: Mapping[str, float]) -> list[str]:
    """llama.cpp's samplers in the order of the other engines: penalties, temperature, min-p, then top-k and top-p.

    By default llama.cpp has temperature last. Penalties and min-p are left out if the request has no field of theirs.
    """
    used = [name for name, settings in LLAMA_CPP.items() if any(sampler.name in request for sampler in settings)]
    return [*(name for name in used if name != "min_p"), "temperature", *({"min_p"} & {*used}), "top_k", "top_p"]


def _is_told(requested: float, reported: object) -> bool:
    """Whether llama.cpp reports that it sampled with this value, in float32; for -1 (all ids) any number counts."""
    return isinstance(reported, int | float) and (
        requested < 0 or math.isclose(requested, reported, rel_tol=1e-5, abs_tol=1e-6)
    )


def after(request: Request, ids: list[int]) -> Request:
    """The request for the rest of a completion of which llama.cpp has returned the first ids.

    llama.cpp also stops where it should not: at any end token of its model file, and at a stop spelled out in ordinary
    tokens. It has no minimum number of tokens, so these are requested first, without stops.
    """
    rest, missing = request.max_new_tokens - len(ids), request.min_new_tokens - len(ids)
    if missing > 0:
        request = request._replace(stops=frozenset(), banned=request.banned | request.stops)
        rest = min(rest, missing)
    seed = request.seed ^ len(ids)
    return request._replace(prompt=request.prompt + ids, max_new_tokens=rest, seed=seed, min_new_tokens=0)


def distinct_tokens(tokenizer: "PreTrainedTokenizerBase", vocabulary: int, number: int = PROBED_IDS) -> list[int]:
    """At most this number of ids, spread over a vocabulary of this size, whose texts are words that no other id has."""
    ids: list[int] = []
    special = set(tokenizer.all_special_ids)
    for part in range(number):
        for token in range(part * vocabulary // number, (part + 1) * vocabulary // number):
            text = decode(tokenizer, [token]).strip()
            if len(text) > 1 and text.isascii() and text.isalnum() and token not in special:
                ids.append(token)
                break
    return ids
