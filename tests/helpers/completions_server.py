"""An OpenAI-compatible server on loopback over any Backend, with the flaws and faults that a test chooses."""

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tiny_chains import complete

from prunus.evaluation.engine import Backend
from prunus.evaluation.profiles.markers import decode
from prunus.evaluation.requests import Completion, Sampling
from prunus.settings.request import LLAMA_CPP

COMMON = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
Flaw = Literal[
    "stop_token_ids", "stop", "seed", "logit_bias", "max_tokens", "special tokens", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "repeat_penalty",
]  # fmt: skip


@cache
def texts_of(tokenizer: Any) -> list[str]:
    """The text of every id, which takes longer than a request's completion."""
    return [decode(tokenizer, [token]) for token in range(len(tokenizer))]


@dataclass
class Server:
    """A server's behaviour and record.

    form: in which form ids are returned. flaws: request fields that it ignores. faults: one is used per request before
    anything else: a status, `half` for an answer that breaks off, or None. seen: bodies of all requests. ends: ids at
    which it ends a completion by itself, as llama.cpp does. owner: "llamacpp" makes it behave as llama.cpp's server.
    """

    backend: Backend
    tokenizer: Any
    name: str = "tiny"
    owner: str = "vllm"
    form: Literal["token_ids", "token_id texts", "token texts", "text"] = "token_ids"
    flaws: frozenset[Flaw] = frozenset()
    ends: frozenset[int] = frozenset()
    faults: list[int | str | None] = field(default_factory=list)
    limit: int | None = None  # requests that it takes at once; more are refused with 429
    retry_after: str = "0"
    queue: tuple[int, int] | None = None  # (waiting, running) requests that its metrics tell
    key: str | None = None
    context: int | None = 2048
    meta: dict[str, Any] = field(default_factory=dict)  # what llama.cpp tells of the model, besides its context
    seconds: float = 0.0  # duration of an answer
    seen: list[dict[str, Any]] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)  # requests at once, whenever one was taken
    refused: int = 0
    together: int = 0
    most_together: int = 0
    counter: int = 0
    lock: Any = field(default_factory=threading.Lock)
    counting: Any = field(default_factory=threading.Lock)
    url: str = ""

    def models(self) -> dict[str, Any]:
        """The answer to GET /v1/models."""
        model = {"id": self.name, "owned_by": self.owner}
        more = {"meta": {"n_ctx": self.context, **self.meta}} if self.is_llama_cpp else {"max_model_len": self.context}
        return {"data": [model | more]}

    @property
    def is_llama_cpp(self) -> bool:
        return self.owner == "llamacpp"

    def takes_one(self) -> bool:
        """Whether there is room for a request, which is then counted until it is answered."""
        with self.counting:
            if self.limit is not None and self.together >= self.limit:
                self.refused += 1
                return False
            self.together += 1
            self.loads.append(self.together)
            self.most_together = max(self.most_together, self.together)
            return True

    def metrics(self) -> str:
        """The answer to GET /metrics, with two replicas."""
        assert self.queue is not None
        lines = ["# HELP vllm:num_requests_waiting Number of requests waiting to be processed."]
        for name, value in zip(("waiting", "running"), self.queue, strict=True):
            for engine, part in enumerate((value // 2, value - value // 2)):
                lines.append(f'vllm:num_requests_{name}{{engine="{engine}",model_name="m"}} {float(part)}')
        return "\n".join([*lines, 'vllm:num_requests_waiting_by_reason{engine="0"} 99.0', ""])

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to POST /v1/completions."""
        stops = frozenset(body.get("stop_token_ids", ()) if "stop_token_ids" not in self.flaws else ())
        texts = body.get("stop", []) if "stop" not in self.flaws else []
        if texts:
            stops |= {token for token, text in enumerate(texts_of(self.tokenizer)) if text in texts}
        if "special tokens" in self.flaws:
            stops -= frozenset(self.tokenizer.all_special_ids)
        cap = body["max_tokens"] + (3 if "max_tokens" in self.flaws else 0)
        found = self.sample(body, cap, stops, body.get("min_tokens", 0))
        return {
            "choices": [self.choice(found)],
            "usage": {"completion_tokens": len(found.ids) + (found.stopped is not None)},
        }

    def sample(
        self, body: dict[str, Any], cap: int, stops: frozenset[int] = frozenset(), minimum: int = 0
    ) -> Completion:
        """The model's completion; an id with a positive bias is the only one that is generated."""
        bias = {int(token): value for token, value in body.get("logit_bias", {}).items()}
        wanted = [token for token, value in bias.items() if value > 0]
        if len(wanted) > 1:  # some of them are drawn, otherwise for other values of the fields that it heeds
            heeded = [body[name] for name in COMMON if name not in self.flaws]
            drawn = random.Random(str((body["seed"], heeded)))
            return Completion([drawn.choice(wanted) for _ in range(cap)], None)
        for token, value in bias.items():
            if value > 0:
                return Completion([], token) if token in stops else Completion([token] * cap, None)
        banned = frozenset(bias) if "logit_bias" not in self.flaws else frozenset[int]()
        if body["ignore_eos"]:
            banned |= self.ends
        sampling = Sampling(body["temperature"], body["top_p"], max(0, body["top_k"]))
        with self.lock:
            self.counter += 1
            seed = self.counter if "seed" in self.flaws and body["temperature"] else body["seed"]
            [found] = complete(self.backend, [body["prompt"]], [cap], stops, banned, [seed], sampling, minimum)
        return found

    def complete_as_llama_cpp(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to POST /completion of llama.cpp, which stops where the text ends in a stop or at its own ends."""
        special = set(self.tokenizer.all_special_ids)
        text, kind, tokens = "", "limit", []
        for token in self.sample(body, body["n_predict"]).ids:
            tokens.append(token)
            piece = decode(self.tokenizer, [token])
            text += "" if token in special and piece not in body["preserved_tokens"] else piece
            if token in self.ends or any(text.endswith(stop) for stop in body["stop"]):
                kind = "eos" if token in self.ends else "word"
                break
            if self.context is not None and len(body["prompt"]) + len(tokens) == self.context:
                break
        known = {one.name: one.default for of in LLAMA_CPP.values() for one in of}
        told = {name: body.get(name, value) if name not in self.flaws else value for name, value in known.items()}
        return {"content": text, "tokens": tokens, "stop_type": kind, "generation_settings": told}

    def choice(self, found: Completion) -> dict[str, Any]:
        """The completion in this server's form."""
        ids, text = list(found.ids), decode(self.tokenizer, found.ids)
        if found.stopped is not None and self.form.startswith("token_id"):
            ids.append(found.stopped)
        texts = [decode(self.tokenizer, [token]) for token in ids]
        logprobs = [*(found.scores.logprobs if found.scores else []), -1.0][: len(ids)]
        choice: dict[str, Any] = {"text": text, "finish_reason": "length" if found.stopped is None else "stop"}
        if self.form == "token_ids":
            choice |= {"token_ids": ids, "logprobs": {"token_logprobs": logprobs, "tokens": texts}}
        elif self.form == "token_id texts":
            choice["logprobs"] = {"token_logprobs": logprobs, "tokens": [f"token_id:{token}" for token in ids]}
        elif self.form == "token texts":
            choice["logprobs"] = {"token_logprobs": logprobs, "tokens": texts}
        return choice


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer's text would wait 40 ms for its headers to be acknowledged
    server_of: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        known: dict[str, Any] = {"/v1/models": self.server_of.models()}
        known |= {"/props": {"build_info": "b1"}} if self.server_of.is_llama_cpp else {"/version": {"version": "0.0"}}
        if self.path == "/metrics" and self.server_of.queue is not None:
            self.send(200, self.server_of.metrics().encode())
            return
        self.reply(200 if self.path in known else 404, known.get(self.path, {"error": "nothing here"}))

    def body(self) -> dict[str, Any]:
        """The JSON of the request."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def do_POST(self) -> None:
        body = self.body()
        server = self.server_of
        server.seen.append(body)
        if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
            self.reply(401, {"error": {"message": "no such key"}})
        elif self.path != ("/completion" if server.is_llama_cpp else "/v1/completions"):
            self.reply(404, {"error": {"message": "nothing here"}})
        else:
            fault = server.faults.pop(0) if server.faults else None
            if isinstance(fault, int):
                self.reply(fault, {"error": {"message": f"trouble {fault}"}})
                return
            if not server.takes_one():
                self.reply(429, {"error": {"message": "too many requests"}})
                return
            time.sleep(server.seconds)
            reply = server.complete_as_llama_cpp(body) if server.is_llama_cpp else server.complete(body)
            with server.counting:
                server.together -= 1
            self.reply(200, reply, half=fault == "half")

    def reply(self, status: int, data: Any, half: bool = False) -> None:
        self.send(status, json.dumps(data).encode(), half)

    def send(self, status: int, text: bytes, half: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", self.server_of.retry_after)
        self.end_headers()
        self.wfile.write(text[: len(text) // 2] if half else text)
        if half:
            self.close_connection = True


class _Listening(ThreadingHTTPServer):
    request_queue_size = 1024  # connections that wait to be accepted


@contextmanager
def serving(server: Server, answers: type[_Handler] = _Handler) -> Iterator[Server]:
    """Within the context, the server answers at server.url."""
    handler = type("Handler", (answers,), {"server_of": server})
    with _Listening(("127.0.0.1", 0), handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
