"""A chat server on loopback whose model thinks for as long as its seed says, and keeps to a budget or does not."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from completions_server import Server, _Handler, serving  # pyright: ignore[reportPrivateUsage]
from scripted_backend import ScriptedBackend

from prunus.evaluation.profiles.markers import decode


@dataclass
class Chats(Server):
    """The behaviour and record of the server.

    says: how a reply holds the thinking: in the field `reasoning` or `reasoning_content`, within the content between
    tags (`inline`), or only as a number in the usage (`counted`). with_ids: whether the completion's ids are returned.
    keeps: whether the budget in the request ends the thinking. budget: the field that has it, with a dot before one
    inside another. least: the smallest that it heeds. lengths: numbers of thinking tokens, drawn from by seed.
    refuses: a field that it answers with status 400. written: (body, thinking ids, answer ids) of each reply.
    """

    says: Literal["reasoning", "reasoning_content", "inline", "counted"] = "reasoning"
    with_ids: bool = False
    keeps: bool = True
    budget: str = "thinking_token_budget"
    least: int = 0
    lengths: tuple[int, ...] = (3, 9, 30)
    refuses: str = ""
    written: list[tuple[dict[str, Any], list[int], list[int]]] = field(default_factory=list)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to POST /v1/chat/completions."""
        rng = random.Random(f"{body['seed']} {body['messages']}")
        thinking, answer = ([rng.choice(range(20, 60)) for _ in range(n)] for n in (rng.choice(self.lengths), 4))
        budget: Any = body
        for name in self.budget.split("."):
            budget = (budget or {}).get(name)
        if budget is not None and budget >= self.least and self.keeps:
            thinking = thinking[:budget]
        most = body.get("max_tokens") or body["max_completion_tokens"]
        cut = len(thinking) + len(answer) > most
        thinking, answer = thinking[:most], answer[: max(0, most - len(thinking))]
        self.written.append((body, thinking, answer))
        texts = [decode(self.tokenizer, ids) for ids in (thinking, answer)]
        message: dict[str, Any] = {"content": texts[1]}
        if self.says == "inline":
            message["content"] = f"<think>{texts[0]}</think>{texts[1]}"
        elif self.says != "counted":
            message[self.says] = texts[0]
        choice: dict[str, Any] = {"message": message, "finish_reason": "length" if cut else "stop"}
        if self.with_ids:
            [stop], [end] = self.tokenizer.encode("</think>"), self.tokenizer.encode("<|im_end|>")
            choice["token_ids"] = [*thinking, stop, *answer, end]
        usage = {"completion_tokens_details": {"reasoning_tokens": len(thinking)}} if self.says == "counted" else {}
        return {"choices": [choice], "usage": usage}


class ChatHandler(_Handler):
    """Answers chat requests."""

    def do_POST(self) -> None:
        body, server = self.body(), self.server_of
        assert isinstance(server, Chats)
        server.seen.append(body)
        if self.path == "/v1/completions":
            self.reply(200, server.complete(body))
        elif self.path != "/v1/chat/completions":
            self.reply(404, {"error": {"message": "nothing here"}})
        elif server.refuses in body:
            self.reply(400, {"error": {"message": f"{server.refuses} is set but reasoning_config is not configured"}})
        elif not server.takes_one():
            self.reply(429, {"error": {"message": "too many requests"}})
        else:
            time.sleep(server.seconds)
            reply = server.chat(body)
            with server.counting:
                server.together -= 1
            self.reply(200, reply)


@contextmanager
def chatting(tokenizer: Any, **settings: Any) -> Iterator[Chats]:
    """Within the context, a server with these settings answers at its url."""
    backend = settings.pop("backend", None) or ScriptedBackend(lambda prompt, seed: ())
    server = Chats(backend, tokenizer, **settings)
    with serving(server, ChatHandler):
        yield server
