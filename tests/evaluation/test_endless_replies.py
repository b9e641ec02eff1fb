"""A reply of a server is bounded in time and size, whatever it is a reply to, and may hold anything."""

import json
import resource
import socketserver
import threading
import time
from contextlib import contextmanager
from typing import Any

import pytest

from prunus.checkpoint.resolve import tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.backends import served, transport
from prunus.evaluation.backends.chat import ChatServer
from prunus.evaluation.backends.openai import OpenAIBackend
from prunus.settings.engines import EngineOptions

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ENTRY = {"id": "tiny", "owned_by": "vllm", "max_model_len": 2048}


class _Answer(socketserver.StreamRequestHandler):
    """Answers a path by the server's `answers`: JSON, or the number of seconds between two parts of endless blanks."""

    def handle(self):
        server, head = self.server, b""
        assert isinstance(server, _Server)
        while not head.endswith(b"\r\n\r\n"):
            head += self.rfile.readline()
        path = head.split()[1].decode()
        length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:")), 0)
        self.rfile.read(length)
        answer = server.answers[path]
        if not isinstance(answer, float):
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.wfile.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            return
        self.wfile.write(HEAD + b"\r\n")
        try:
            while not server.ended:
                self.wfile.write(b" " * (1 << 16 if answer == 0 else 1))
                time.sleep(answer)
        except OSError:  # the client has had enough
            pass


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address, ended = True, True, False

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = {"/v1/models": {"data": [ENTRY]}, "/version": {"version": "1"}} | answers
        super().__init__(("127.0.0.1", 0), _Answer)


@contextmanager
def serving(answers):
    with _Server(answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.ended = True
            server.shutdown()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(transport, "BACKOFF_SECONDS", 0.01)


SLOW, FAST = 0.05, 0.0
REQUEST = {"messages": [{"role": "user", "content": "2+2?"}], "max_tokens": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pace", "words"), [(SLOW, r"did not answer in full within 0\.5 s"), (FAST, "sends more than")]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/v1/chat/completions"])
def test_an_endless_reply_ends_with_one_line(path, pace, words):
    with serving({path: pace}) as url:
        engine, began = EngineOptions(url=url, timeout=0.5 if pace else 30.0), time.monotonic()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(PrunusError, match=words):
            if path == "/v1/chat/completions":
                server = ChatServer.load(tiny_folder(), "cpu", 64, engine)
                transport.with_client(engine, lambda client: server.ask(client, REQUEST, waits=True))
            else:
                OpenAIBackend.load(tiny_folder(), "cpu", 64, engine)
        assert time.monotonic() - began < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.slow
@pytest.mark.parametrize("pace", [SLOW, FAST])
def test_what_a_server_need_not_tell_does_not_hold_it_up(pace):
    """A version that does not end is left out; a server whose list of models does not end has not started."""

    async def told(url):
        async with transport.new_client(EngineOptions(url=url, timeout=0.5)) as client:
            return await served.server_facts(client, url, "vllm")

    with serving({"/version": pace}) as url:
        assert transport.run(told(url)) == served.ServerFacts()
    with serving({"/v1/models": pace}) as url:
        began = time.monotonic()
        assert not transport.run(served._answers(url))
        assert time.monotonic() - began < 15


@pytest.mark.slow
def test_the_bound_follows_what_was_asked_for():
    """A text as long as its tokens allow is read: the longest tokens have some hundred characters."""
    text = json.dumps({"text": "x" * (20 << 20)}).encode()

    async def length(url, tokens):
        async with transport.new_client(EngineOptions(url=url)) as client:
            at = f"{url}/completions"
            return await transport.reply_of(client, url, at, {}, read=lambda r: len(r["text"]), tokens=tokens)

    with serving({"/v1/completions": text}) as url:
        assert transport.run(length(url, 32_768)) == 20 << 20
        with pytest.raises(PrunusError, match="sends more than"):
            transport.run(length(url, 16))


ODD = {
    "deep": b"[" * 100_000,
    "a list": [],
    "a text for a choice": {"choices": ["x"]},
    "a list for the logprobs": {"choices": [{"finish_reason": "stop", "logprobs": [1], "token_ids": [1]}]},
    "infinite ids": b'{"choices": [{"finish_reason": "length", "token_ids": [Infinity]}]}',
    "an id that there is not": {"choices": [{"finish_reason": "length", "token_ids": [10**30] * 12}]},
    "texts that are numbers": {"choices": [{"finish_reason": "length", "logprobs": {"tokens": [1]}, "text": 5}]},
    "logprobs that are a text": {
        "choices": [{"finish_reason": "length", "token_ids": [5] * 12, "logprobs": {"token_logprobs": "abcabcabcabc"}}]
    },
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_reply_is_one_line(odd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with serving({"/v1/completions": ODD[odd]}) as url, pytest.raises(SystemExit) as ended:
        main(["eval", "tiny", "--task", "tiny", "--budgets", "16", "--limit", "2", "--engine", "openai", "--url", url])
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert said[-1].startswith("error: http://127.0.0.1") and "internal" not in said[-1]


@pytest.mark.parametrize(
    "entries",
    [5, [5], [{}], [{"id": 5}], [{"id": []}], [{"id": "a", "aliases": 5}], [{"id": "a", "aliases": [[]]}],
     [{"id": "a", "root": []}]],
)  # fmt: skip
def test_an_odd_list_of_models_is_one_line(entries):
    with (
        serving({"/v1/models": {"data": entries}}) as url,
        pytest.raises(PrunusError, match="does not list its models"),
    ):
        OpenAIBackend.load(tiny_folder(), "cpu", 64, EngineOptions(url=url))
