"""Markers that a tokenizer has no token for, against budget forcing written again on decoded text.

In the made-up vocabulary a marker `</t>` can be spelled in several ways, begin inside a token and end inside one.
"""

import random
from collections.abc import Iterator, Sequence

import pytest
from chat_tokenizer import byte_tokenizer
from scripted_backend import ScriptedBackend
from tiny_chains import TOKENIZER, TwoPhases, chains, spelled, tiny

from prunus.evaluation.budget import Chain, Draw, Rules, answer_text, force_budgets
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.markers import Markers, encode_markers
from prunus.evaluation.requests import Sampling, TextStops

WORDS = ["a", "b", "\n", "</", "t", ">", ">\n", ".</t", "</t>", "<", "/t", "<t>", "END", "Z"]
MARKER, END, OPEN = "</t>", WORDS.index("END"), WORDS.index("<t>")
CLOSED, FORCED = WORDS.index("Z"), [WORDS.index("a"), WORDS.index("</t>"), WORDS.index("Z")]
GREEDY = Sampling(0.0)


def read(ids: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in ids)


MARKERS = Markers(
    start=(OPEN,),
    reopening=(),
    think_stops=frozenset({END}),
    natural_closing=(WORDS.index("</t>"), CLOSED),
    forced_closing=tuple(FORCED),
    forced_closing_after_newline=tuple(FORCED[1:]),
    wait=(0, 0),
    wait_after_newline=(0,),
    answer_stops=frozenset({END}),
    answer_banned=frozenset(),
    ends_in_newline=lambda token: WORDS[token].endswith("\n"),
    think_texts=TextStops((MARKER,), read),
    answer_texts=TextStops(("b<t>",), read),
    reopening_texts=("b<t>",),
    ends=frozenset({END}),
    missing_closing=lambda written: (CLOSED,) if not read(written).endswith("\n") else (),
)
CHAINS = [Chain([1, number, OPEN], ("task", f"p{number}", number % 2), 1 + number % 5) for number in range(200)]
BUDGETS = (0, 1, 2, 3, 4, 5, 7, 10)


def noise(prompt: Sequence[int], seed: int) -> Iterator[int]:
    """Endless ids that depend on prompt and seed; markers and parts of them are frequent."""
    rng = random.Random(str((tuple(prompt), seed)))
    while True:
        parts = [0, 1, 2, OPEN, END, *5 * [WORDS.index(part) for part in ("</", "t", ">", ">\n", ".</t")]]
        yield rng.choice([*parts, WORDS.index("</t>")])


def first_marker(ids: Sequence[int], text: str) -> tuple[int, int] | None:
    """(begin, end) by the positions of characters: the first end of a marker decides, then its latest beginning."""
    for end in range(1, len(ids) + 1):
        whole = read(ids[:end])
        at = whole.rfind(text)
        if at >= 0:
            starts = [len(read(ids[:index])) for index in range(end)]
            return max(index for index in range(end) if starts[index] <= at), end
    return None


def by_the_book(chain: Chain, budget: int, rules: Rules) -> Draw:
    """Thinking is written out far beyond the budget; where the marker or END comes first decides."""
    ids: list[int] = []
    for token in noise(chain.prompt, rules.seed_of(chain, "think", 0)):
        if len(ids) == 60:
            break
        ids.append(token)
    at_end = ids.index(END) if END in ids else len(ids)
    marker = first_marker(ids[:at_end], MARKER)
    thinking, written, ended = ids[:budget], [], "forced"
    if budget and marker and marker[0] <= budget:
        thinking, written, ended = ids[: marker[0]], ids[marker[0] : marker[1]], "natural"
    elif budget and not marker and at_end <= budget:
        thinking, ended = ids[:at_end], "natural"
    if written:
        closing = [*written, *([] if read(written).endswith("\n") else [CLOSED])]
    elif ended == "natural":
        closing = list(MARKERS.natural_closing)
    else:
        closing = FORCED[1:] if thinking and read(thinking).endswith("\n") else FORCED
    seed = rules.seed_of(chain, "answer") if ended == "natural" else rules.seed_of(chain, "forced answer", budget)
    answer: list[int] = []
    stopped = reopened = False
    for token in noise([*chain.prompt, *thinking, *closing], seed):
        if token == END:
            stopped = True
            break
        answer.append(token)
        if found := first_marker(answer, "b<t>"):
            answer, stopped, reopened = answer[: found[0]], True, True
            break
        if len(answer) == chain.answer_tokens + 12:  # more than a marker has
            break
    if len(answer) > chain.answer_tokens:
        answer, stopped, reopened = answer[: chain.answer_tokens], False, False
    forced = 1 + len(closing) - len(written)
    return Draw(budget, thinking, tuple(closing), answer, forced, ended, not stopped, reopened, chain.answer_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [True, False])
def test_equals_the_algorithm_written_by_hand(reuse):
    rules = Rules(MARKERS, GREEDY, seed=3)
    found = force_budgets(ScriptedBackend(noise), CHAINS, BUDGETS, rules, reuse)
    assert found == [[by_the_book(chain, budget, rules) for budget in BUDGETS] for chain in CHAINS]
    draws = [draw for of_chain in found for draw in of_chain]
    assert {draw.ended for draw in draws} == {"natural", "forced"} and any(draw.reopened_think for draw in draws)
    assert len({len(draw.closing) for draw in draws if draw.ended == "natural"}) > 2, "several spellings"


@pytest.mark.parametrize("words", ["a .</t >\n", "a </ t >", "a </t>", "a < /t >", "a .</t >"])
def test_where_a_marker_begins_and_ends(words):
    ids = [WORDS.index(word) for word in words.replace("\n", "N").split(" ") if word != ">N"]
    ids += [WORDS.index(">\n")] if words.endswith("\n") else []
    stops = TextStops((MARKER,), read)
    assert stops.first([*ids, 0]) == (1, len(ids))
    assert stops.first([*ids, 0], seen=len(ids)) is None, "what was searched is not searched again"
    assert all(stops.may_begin_by(ids[:size], 1) for size in range(2, len(ids)))


def test_the_text_of_a_marker_that_is_a_token_does_not_end_thinking():
    """Rule 0: a model that talks about tags writes them in ordinary tokens."""
    tokenizer = byte_tokenizer(("<think>", "</think>", "<|im_end|>"))
    markers = encode_markers(PROFILES["think-tags"], tokenizer, "strict")
    assert markers.think_texts is None and markers.think_stops == {257}
    without = encode_markers(PROFILES["think-tags"], byte_tokenizer(("<|im_end|>",)), "strict")
    assert without.think_texts is not None and without.think_texts.texts == ("</think>",) and not without.think_stops
    assert without.slack == len("</think>") and without.reopening_texts == ("<think>",) and not without.reopening


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0)], ids=["greedy", "sampled"])
def test_forked_caches_give_the_draws_of_two_phases(sampling):
    """On a real model: cut, undecided at a cut, and not cut; with `=` as half a marker in nearly every place."""
    markers = encode_markers(spelled(), TOKENIZER, "strict")
    assert markers.think_texts is not None and markers.answer_texts is not None
    rules, budgets = Rules(markers, sampling, seed=7), (0, 1, 2, 3, 5, 8, 9, 13)
    some = chains(18)[::3]  # two of them are cut after a `=`, and one ends by itself
    forked = force_budgets(tiny(), some, budgets, rules)
    assert forked == force_budgets(TwoPhases(tiny()), some, budgets, rules)
    assert forked == force_budgets(tiny(), some, budgets, rules, reuse=False)
    draws = [draw for of_chain in forked for draw in of_chain]
    assert {draw.ended for draw in draws} == {"natural", "forced"}
    assert any(draw.ended == "forced" and draw.thinking[-1:] == TOKENIZER.encode("=") for draw in draws)
    assert all("=4" not in TOKENIZER.decode(draw.thinking) for draw in draws)


def test_a_chain_that_ends_by_itself_is_the_answer_of_a_plain_model():
    """One request where the chain ends, two where it is cut."""
    tokenizer = byte_tokenizer(("<|im_end|>",))
    profile = PROFILES["plain"]
    markers = encode_markers(profile, tokenizer, "strict").ending_at([256])
    chain, lead = Chain([1, 2], ("task", "p", 0), 8), tokenizer.encode("\n\nFinal Answer:")

    def replay(prompt: Sequence[int], seed: int) -> list[int]:
        return [*tokenizer.encode(" 7"), 256] if len(prompt) > 2 else [*tokenizer.encode("2+5=7"), 256]

    backend = ScriptedBackend(replay)
    [[draw]] = force_budgets(backend, [chain], [5], Rules(markers, GREEDY))
    assert (draw.ended, draw.closing, draw.answer, draw.answer_truncated) == ("natural", (), [], False)
    assert len(backend.calls) == 1
    assert answer_text(profile, tokenizer, draw) == "2+5=7"
    backend.calls.clear()
    [[nothing, cut, whole]] = force_budgets(backend, [chain], [0, 3, 9], Rules(markers, GREEDY))
    assert (nothing.ended, cut.ended, whole.ended, len(backend.calls)) == ("forced", "forced", "natural", 3)
    assert cut.thinking == tokenizer.encode("2+5") and list(cut.closing) == lead and list(nothing.closing) == lead
    assert answer_text(profile, tokenizer, cut) == "Final Answer: 7"


def test_two_analysis_messages_of_gpt_oss_are_one_chain():
    names = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
    tokenizer = byte_tokenizer(names)
    profile = PROFILES["harmony"]
    markers = encode_markers(profile, tokenizer, "strict").ending_at(tokenizer.encode("<|return|>"))
    prompt = [1, *markers.start]
    thought = "a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant"

    def replay(ids: Sequence[int], seed: int) -> list[int]:
        if "final" in tokenizer.decode(list(ids)):
            return tokenizer.encode("7<|return|>")
        return tokenizer.encode(f"{thought}<|channel|>final<|message|>")[len(ids) - len(prompt) :]

    [[draw]] = force_budgets(ScriptedBackend(replay), [Chain(prompt, ("t", "p", 0), 8)], [200], Rules(markers, GREEDY))
    assert tokenizer.decode(draw.thinking) == thought and draw.ended == "natural"
    assert tokenizer.decode(list(draw.closing)) == "<|channel|>final<|message|>"
    assert answer_text(profile, tokenizer, draw) == "7"
