"""Evaluate under native control: the engine or the model keeps the thinking budget, asked by chat completions.

Every budget of a draw is a conversation of its own. Rows keep the thinking tokens that were used, which may be more
than the budget; results report how well they adhere to it.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prunus import progress
from prunus.budgets import OFF
from prunus.evaluation.backends.chat import ChatReply, ChatRequest
from prunus.evaluation.budget import Draw
from prunus.evaluation.flow import Grade, fill_as_completed, judged
from prunus.evaluation.profiles.profile import LEGACY_ANSWER_TOKENS
from prunus.evaluation.profiles.template import messages_of
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.evaluation.tasks import prompt_text
from prunus.results.rows import Sample
from prunus.results.store import Store

if TYPE_CHECKING:
    from prunus.evaluation.backends.chat import ChatServer

Row = tuple[int, int, int]  # (index of the problem, draw, budget)


def check_server(work: ResolvedPlan, server: "ChatServer") -> None:
    """Raise PrunusError with the server's reason if it refuses a request of this plan."""
    server.check(chat_request(work, server, (0, 0, work.budgets[-1])), work.rules.sampling)


def fill_native(
    store: Store,
    work: ResolvedPlan,
    server: "ChatServer",
    batches: Sequence[Sequence[tuple[int, int]]],
    grade: Grade,
    show: Callable[[list[Sample], int], None],
) -> None:
    """Compute, grade and store the missing rows of some batches; each is stored as soon as its reply has come.

    grade, show: as of fill_as_completed.
    """
    rows = missing_rows(store, work, batches)
    asked = (chat_request(work, server, row) for row in rows)
    replies = server.replies(asked, work.rules.sampling)
    finished = ((rows[number][:2], [drawn(work, rows[number], reply)]) for number, reply in replies)

    def judge(draws: Sequence[Sequence[Draw]]) -> None:
        if warning := ignored(work, [draw for (draw,) in draws]):
            progress.say(f"warning: {warning}")

    fill_as_completed(store.path, work.run_id, judged(finished, len(rows), judge), grade, show)


def missing_rows(store: Store, work: ResolvedPlan, batches: Sequence[Sequence[tuple[int, int]]]) -> list[Row]:
    """The rows of some batches that the store lacks, in order."""
    stored = store.keys(work.run_id)
    rows = [(index, draw, budget) for batch in batches for index, draw in batch for budget in work.budgets]
    return [row for row in rows if (work.problems[row[0]].id, row[2], row[1]) not in stored]


def chat_request(work: ResolvedPlan, server: "ChatServer", row: Row) -> ChatRequest:
    """The conversation of a row. Where the model is only told the budget, its tokens are bounded as in mode legacy."""
    index, number, budget = row
    assert work.native is not None
    chain, markers, profile = work.chain(index, number), work.rules.markers, work.profile
    options, fields = profile.template_options(), dict[str, Any]()
    if budget == OFF:
        assert work.switch is not None
        options |= work.switch.template
    else:
        fields = work.native.fields(budget)
    options |= fields.pop("chat_template_kwargs", {})
    context = min(work.rules.context or 10**9, server.context or 10**9)
    answer = chain.answer_tokens + markers.answer_slack
    if budget == OFF:
        most = answer
    elif work.native.bounds:
        most = budget + markers.longest - len(markers.start) + answer
    else:
        most = budget + LEGACY_ANSWER_TOKENS
    return ChatRequest(
        messages=messages_of(prompt_text(work.problems[index], work.plan["prompt"]), profile.system),
        max_new_tokens=max(1, min(most, context - len(chain.prompt))),
        seed=work.rules.seed_of(chain, "native", budget),
        fields=fields | ({"chat_template_kwargs": options} if options else {}),
    )


def drawn(work: ResolvedPlan, row: Row, reply: ChatReply) -> Draw:
    """The draw in a reply. A longer answer than the plan allows is cut, as if it had been generated under its cap."""
    index, number, budget = row
    thinking, answer = split(work, reply)
    chain = work.chain(index, number)
    cap = min(chain.answer_tokens, max(1, (work.rules.context or 10**9) - len(chain.prompt) - len(thinking)))
    opening = work.profile.thinking_start.strip()
    counted = reply.counted if not thinking and reply.counted else None
    used = len(thinking) if counted is None else counted
    reached = work.native is not None and work.native.bounds and budget != OFF and used >= budget
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
    """The ids of thinking and answer, without markers and ends: the server's, else those of its texts.

    A text that holds the profile's marker, from a server that does not tell thinking from answer, is split there.
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


def ignored(work: ResolvedPlan, draws: Sequence[Draw]) -> str | None:
    """What these draws show of an engine that ignores the budget, or returns no thinking; None if nothing.

    Only chains that reach their budget can show it, and a few tokens beyond it may be the engine's own closing.
    """
    asked = [draw for draw in draws if draw.budget > 0]
    if asked and not any(draw.thinking_tokens for draw in asked):
        return (
            "no reply has any thinking, so that its tokens cannot be told from the answer's: start the server with a"
            " reasoning parser, unless the model does not think"
        )
    reached = [draw for draw in asked if draw.thinking_tokens >= draw.budget]
    far = [draw for draw in reached if draw.thinking_tokens > 1.5 * draw.budget + 32]
    if work.native is None or work.native.efforts or 2 * len(far) <= len(reached):
        return None
    median = statistics.median(draw.thinking_tokens / draw.budget for draw in far)
    return (
        f"the engine seems to ignore the budget ({work.native}): {len(far)} of {len(reached)} chains that reached it"
        f" thought far longer, {median:.1f} times the budget in the median"
    )
