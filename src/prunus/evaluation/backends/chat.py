"""Chat completions of a server with OpenAI's API, for runs whose budget the engine or the model keeps (control native).

A chat request has messages instead of token ids, and its reply has the thinking apart from the answer. Its ids are read
if the server returns them (vLLM does); otherwise the texts are encoded. Every budget of a draw is a conversation of its
own. Rows keep the thinking tokens that were used, which may be more than the budget; results report how well they
adhere to it.
"""

import statistics
from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple, TypeVar

import httpx2 as httpx

from prunus.errors import PrunusError
from prunus.evaluation.backends.served import Server
from prunus.evaluation.backends.transport import in_thread, replies, reply_of, with_client
from prunus.evaluation.budget import Draw
from prunus.evaluation.engine import Batches, Done, Engine, Show, in_background
from prunus.evaluation.profiles import LEGACY_ANSWER_TOKENS
from prunus.evaluation.profiles.markers import messages_of
from prunus.evaluation.requests import NEUTRAL
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.evaluation.tasks import prompt_text
from prunus.plain_data import storable
from prunus.settings.budgets import OFF, without_off
from prunus.settings.request import EXTREME_BUDGETS
from prunus.store.rows import Key
from prunus.store.stored import Environment

Row = tuple[int, int, int]  # (index of the problem, draw, budget)
Body = dict[str, Any]  # of a request
_R = TypeVar("_R")
PROBED_CHAINS, FEW = 8, 8  # chains of a probe; chains with no more tokens of thinking do not show an ignored budget
LIMITS = ("max_tokens", "max_completion_tokens")  # names of the field with the most tokens of a reply


class ChatReply(NamedTuple):
    """A reply. thinking, answer: texts. ids: of the whole completion, None if the server does not return them.

    counted: number of thinking tokens by the server's own count, if it tells it. truncated: whether the request's limit
    or the context ended it.
    """

    thinking: str
    answer: str
    ids: list[int] | None
    counted: int | None
    truncated: bool


class ChatServer(Server, Engine):
    """A model on a server, asked by chat completions."""

    heeds_budget = False  # whether a probe was made, without a sign that the server ignores the budget

    @property
    def description(self) -> Environment:
        """Known facts about the server, stored with the run."""
        facts = {"engine": "openai", "server": self.server, "version": self.facts.version, "api": "chat completions"}
        return Environment.of(facts) | self.identity

    def check(self, work: ResolvedPlan) -> None:
        """As Engine.check; it also generates a few tokens, since the server may refuse requests or ignore fields."""
        super().check(work)
        with_client(self.engine, lambda client: self.probe(client, work))

    async def probe(self, client: httpx.AsyncClient, work: ResolvedPlan) -> None:
        """Raise PrunusError where the server refuses the plan's requests, or ignores the field of the thinking budget.

        The field is tested where the server ends the thinking, once for this object: it is ignored if a chain thinks
        far beyond an extremely small budget, or has the same reply with a large one. Several chains are tried, since
        the model may answer some problems without thinking.
        """
        body = limited(chat_request(work, self, (0, 0, work.budgets[-1])), 1)
        await self.ask(client, body, waits=True)
        budgets = without_off(work.budgets)
        if self.heeds_budget or work.native is None or not work.native.engine or not budgets:
            return
        least, most = EXTREME_BUDGETS
        least = min(least, *budgets)
        for index in range(min(PROBED_CHAINS, len(work.problems))):
            row = (index, 0, most)
            body = limited(chat_request(work, self, row), most)
            free = await self.ask(client, body)
            ended = await self.ask(client, body | self.of_budget.budget_fields(least))
            used, kept = (drawn(work, row, reply).thinking_tokens for reply in (free, ended))
            if used > FEW and (ended == free or kept > far_from(least)):
                name = ".".join(self.of_budget.budget)
                advice = [f"start it with {self.of_budget.for_budget}"] * (self.kind is not None)
                advice += ["leave budget 0 out"] * (least == 0) + ["leave --control out"]
                raise PrunusError(
                    f"{self.url} ignores the request field '{name}' ({least}), by which an engine ends the thinking:"
                    f" {', or '.join(advice)}"
                )
            if used > kept:
                break
        self.heeds_budget = True

    def draws(self, work: ResolvedPlan, batches: Batches, done: Done[_R], stored: Set[Key], show: Show) -> Iterator[_R]:
        """As Engine.draws; each budget of a chain is a conversation of its own."""
        every = ((*chain, budget) for batch in batches for chain in batch for budget in work.budgets)
        rows = [row for row in every if not work.keys([row[:2]], row[2:]) <= stored]
        places = iter(range(len(rows)))

        async def send(client: httpx.AsyncClient, at: int) -> ChatReply:
            return await self.ask(client, chat_request(work, self, rows[at]))

        answers = in_thread(replies(self.engine, self.url, self.facts.places, lambda: next(places, None), send))
        return in_background(done, ((rows[at][:2], [drawn(work, rows[at], reply)]) for at, reply in answers))

    def warning(self, work: ResolvedPlan, draws: Sequence[Sequence[Draw]]) -> str | None:
        """As Engine.warning."""
        return ignored(work, [draw for of_chain in draws for draw in of_chain])

    async def ask(self, client: httpx.AsyncClient, body: Body, waits: bool = False) -> ChatReply:
        """The reply to a request. waits: as in reply_of."""
        address, most = f"{self.url}/chat/completions", next(body[name] for name in LIMITS if name in body)
        return await reply_of(client, self.url, address, body, read=read_reply, waits=waits, tokens=most)


def limited(body: Body, tokens: int) -> Body:
    """A request for at most so many tokens."""
    return body | {name: min(tokens, body[name]) for name in LIMITS if name in body}


def read_reply(reply: Any) -> ChatReply:
    """The reply in the form of vLLM, SGLang, llama.cpp or OpenAI. KeyError or another error if it is incomplete."""
    choice = reply["choices"][0]
    message, finish = choice["message"], choice["finish_reason"]
    if finish not in ("stop", "length"):
        raise ValueError(finish)
    details = (reply.get("usage") or {}).get("completion_tokens_details") or {}
    counted, ids = details.get("reasoning_tokens"), choice.get("token_ids")
    return ChatReply(
        thinking=storable(str(message.get("reasoning") or message.get("reasoning_content") or "")),
        answer=storable(str(message.get("content") or "")),
        ids=[int(token) for token in ids] if isinstance(ids, list) else None,
        counted=counted if isinstance(counted, int) else None,
        truncated=finish == "length",
    )


def chat_request(work: ResolvedPlan, server: ChatServer, row: Row) -> Body:
    """The conversation of a row. Where the model is only told the budget, its tokens are bounded as in mode legacy.

    For vLLM it sets every parameter for which a model's own files have defaults.
    """
    index, number, budget = row
    assert work.native is not None
    chain, markers, profile, sampling = work.chain(index, number), work.rules.markers, work.profile, work.rules.sampling
    if budget == OFF:
        assert work.switch is not None
        fields = {"chat_template_kwargs": dict(work.switch.template)}
    else:
        fields = work.native.fields(budget, server.of_budget)
    options = profile.template_options() | fields.pop("chat_template_kwargs", {})
    most = chain.answer_tokens + markers.answer_slack
    if budget != OFF and work.native.engine:
        most += budget + markers.longest - len(markers.start)
    elif budget != OFF:
        most = budget + LEGACY_ANSWER_TOKENS
    context = min(work.rules.context or 10**9, server.context or 10**9)
    most = max(1, min(most, context - len(chain.prompt)))
    body = server.payload(work.rules.seed_of(chain, "native", budget), sampling)
    body["messages"] = messages_of(prompt_text(work.problems[index], work.plan.prompt), profile.system)
    if server.is_vllm:
        body |= {"max_tokens": most, "top_k": sampling.top_k or -1, **NEUTRAL}
        body |= {"return_token_ids": True, "skip_special_tokens": False}
    else:
        body |= {"max_completion_tokens": most} | ({"top_k": sampling.top_k} if sampling.top_k else {})
    return body | dict(server.request) | fields | ({"chat_template_kwargs": options} if options else {})


def drawn(work: ResolvedPlan, row: Row, reply: ChatReply) -> Draw:
    """The draw in a reply. A longer answer than the plan allows is cut, as if it had been generated under its cap."""
    index, number, budget = row
    thinking, answer = split(work, reply)
    chain = work.chain(index, number)
    cap = min(chain.answer_tokens, max(1, (work.rules.context or 10**9) - len(chain.prompt) - len(thinking)))
    opening = work.profile.thinking_start.strip()
    counted = reply.counted if not thinking and reply.counted else None
    used = len(thinking) if counted is None else counted
    reached = work.native is not None and work.native.engine and budget != OFF and used >= budget
    return Draw(
        budget=budget,
        thinking=thinking,
        closing=(),
        answer=answer[:cap],
        forced_tokens=0,
        ended="forced" if reached else "natural",
        answer_truncated=reply.truncated or len(answer) > cap,
        reopened_think=bool(opening) and opening in reply.answer.removeprefix(opening),
        answer_cap=cap,
        counted=counted,
    )


def split(work: ResolvedPlan, reply: ChatReply) -> tuple[list[int], list[int]]:
    """The ids of thinking and answer, without markers and ends, from the server's ids or else from its texts.

    A text that holds the profile's marker, from a server that does not separate thinking from answer, is split there.
    """
    markers, profile, ids = work.rules.markers, work.profile, reply.ids
    ends = markers.ends | markers.answer_stops
    marks = markers.think_stops - ends
    if ids is not None and marks:
        begin = len(markers.start) if tuple(ids[: len(markers.start)]) == markers.start else 0
        end = next((place for place, token in enumerate(ids) if token in marks), None)
        if end is not None or (reply.thinking and not reply.answer):
            answer = [] if end is None else ids[end + 1 :]
            while answer and answer[-1] in ends:
                answer.pop()
            return [token for token in ids[begin:end] if token not in ends], answer

    def encode(text: str) -> list[int]:
        return list(work.tokenizer.encode(text, add_special_tokens=False))

    thinking, answer = reply.thinking, reply.answer
    if not thinking and profile.think_stops and profile.think_stops[0] in answer:
        thinking, _, answer = answer.partition(profile.think_stops[0])
        thinking = thinking.lstrip().removeprefix(profile.thinking_start.strip())
    return encode(thinking), encode(answer)


def far_from(budget: int) -> float:
    """The most thinking tokens of an engine that keeps this budget, including a closing of its own."""
    return 1.5 * budget + 32


def ignored(work: ResolvedPlan, draws: Sequence[Draw]) -> str | None:
    """A warning if these draws show that the engine ignores the budget, or returns no thinking; else None.

    Only chains that reach their budget can show it, and a few tokens beyond it may be the engine's own closing.
    """
    budgeted = [draw for draw in draws if draw.budget > 0]
    if budgeted and not any(draw.thinking_tokens for draw in budgeted):
        return (
            "no reply has any thinking, so that its tokens cannot be told from the answer's: start the server with a"
            " reasoning parser, unless the model does not think"
        )
    reached = [draw for draw in budgeted if draw.thinking_tokens >= draw.budget]
    far = [draw for draw in reached if draw.thinking_tokens > far_from(draw.budget)]
    if work.native is None or work.native.efforts or 2 * len(far) <= len(reached):
        return None
    median = statistics.median(draw.thinking_tokens / draw.budget for draw in far)
    return (
        f"the engine seems to ignore the budget ({work.native}): {len(far)} of {len(reached)} chains that reached it"
        f" thought far longer, {median:.1f} times the budget in the median"
    )
