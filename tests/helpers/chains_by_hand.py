"""Chains of a scripted model, and what the protocol must make of them."""

import random
from collections.abc import Iterator, Sequence

from prunus.evaluation.budget import Chain
from prunus.evaluation.profiles.markers import Markers
from prunus.evaluation.requests import Sampling

NEWLINE, OPEN, STOP, TURN, WAIT = 7, 8, 9, 10, 11

START, NATURAL, FORCED, FORCED_AFTER_NEWLINE = (OPEN,), (STOP, 20), (NEWLINE, STOP, 21), (STOP, 21)

MARKERS = Markers(
    start=START,
    reopening=(OPEN,),
    think_stops=frozenset({STOP, TURN}),
    natural_closing=NATURAL,
    forced_closing=FORCED,
    forced_closing_after_newline=FORCED_AFTER_NEWLINE,
    wait=(NEWLINE, WAIT),
    wait_after_newline=(WAIT,),
    answer_stops=frozenset({TURN}),
    answer_banned=frozenset({OPEN}),
    ends_in_newline=lambda token: token == NEWLINE,
)

GREEDY = Sampling(0.0)


def noise(prompt: Sequence[int], seed: int) -> Iterator[int]:
    """Endless ids that depend on everything they may depend on; about one in six is a stop, one in eight a newline."""
    rng = random.Random(str((tuple(prompt), seed)))
    while True:
        yield rng.choice([2, 3, 4, 5, NEWLINE, OPEN, STOP, TURN] if rng.random() < 0.6 else [2, 3, 4, NEWLINE])


def answer_by_hand(prompt: Sequence[int], seed: int, cap: int, context: int | None) -> tuple[list[int], bool]:
    """The ids of an answer to a prompt, one after the other, and whether the model ended it.

    What follows the last id that the cap allows is looked at, if the context has room for it.
    """
    answer: list[int] = []
    for token in noise(prompt, seed):
        if token == TURN:
            return answer, True
        if token == OPEN:
            continue
        if len(answer) == cap:
            return answer, False
        answer.append(token)
        if len(prompt) + len(answer) == context:
            return answer, False
    raise AssertionError


CHAINS = [Chain([1, number, *START], ("task", f"p{number}", number % 2), 1 + number % 5) for number in range(60)]
