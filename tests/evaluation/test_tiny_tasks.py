"""The tiny problem sets: fixed, balanced, and solved again here by code that shares nothing with the generator."""

import hashlib
import random
import re
from collections import Counter

import pytest

from prunus.evaluation.tasks import load_task
from prunus.evaluation.tasks.tiny import (
    FAMILIES,
    FRESH_SEED,
    LEVELS,
    held_out,
    problem_set,
    question_hash,
    sample,
    stream,
)


def solve(family: str, question: str) -> str:
    """The answer, worked out from the words of the question alone."""
    if family == "chain":
        return str(sum(map(int, re.findall(r"[+-]?\d+", question))))
    if family == "mult":
        first, second = map(int, re.findall(r"\d+", question))
        return str(first * second)
    if family == "twosum":
        *numbers, goal = map(int, re.findall(r"\d+", question))
        found = [f"{a}+{b}" for i, a in enumerate(numbers) for b in numbers[i + 1 :] if a + b == goal]
        assert len(found) == 1, "the pair must be the only one"
        return found[0]
    if family == "hops":
        [(pairs, start, steps)] = re.findall(r"^Map (.*)\. From (\w) take (\d+) steps\.$", question)
        following = dict(pair.split() for pair in pairs.split(","))
        for _ in range(int(steps)):
            start = following[start]
        return start
    if family == "listops":
        [(listed, operations)] = re.findall(r"^List: (.*)\. Apply (.*)\.$", question)
        items = listed.split()
        for operation in re.findall(r"\d+ (\w+)", operations):
            if operation == "reverse":
                items.reverse()
            elif operation == "swap":
                items[0], items[1] = items[1], items[0]
            else:
                items.insert(0, items.pop()) if operation == "right" else items.append(items.pop(0))
        return " ".join(items)
    signs_and_times = re.findall(r"([+-]?)(\d\d):(\d\d)", question)
    minutes = sum((-1 if sign == "-" else 1) * (60 * int(h) + int(m)) for sign, h, m in signs_and_times)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


@pytest.fixture(scope="module")
def problems():
    return load_task("tiny")


def test_every_answer_is_right(problems):
    for problem in problems:
        assert problem.answer == solve(problem.id.split("/")[1], problem.question), problem.id


def test_the_set_is_fixed(problems):
    """The published curves of the tiny reasoner rest on exactly these problems."""
    text = "\n".join(f"{p.id}\t{p.question}\t{p.answer}" for p in problems)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7187726244dd89a6"
    assert (len(problems), {p.kind for p in problems}, {p.task for p in problems}) == (630, {"exact"}, {"tiny"})


def test_ids_are_distinct_and_name_the_cell(problems):
    assert len({p.id for p in problems}) == 630
    for problem in problems:
        name, family, level, digest = problem.id.split("/")
        assert name == "tiny" and family in FAMILIES and level in "1234567"
        assert digest == hashlib.sha256(problem.question.encode()).hexdigest()[:8]


@pytest.mark.parametrize("limit", [1, 5, 6, 7, 41, 42, 43, 100, 420, 629])
def test_a_limited_set_is_balanced(limit):
    some = load_task("tiny", limit)
    families, levels = (Counter(p.id.split("/")[part] for p in some) for part in (1, 2))
    assert len(some) == limit
    assert max(families.values()) - (min(families.values()) if len(families) == 6 else 0) <= 1
    assert max(levels.values()) - (min(levels.values()) if len(levels) == 7 else 0) <= 1


def test_each_42_in_a_row_hold_every_cell(problems):
    for start in range(0, 630, 42):
        assert len({tuple(p.id.split("/")[1:3]) for p in problems[start : start + 42]}) == 42


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_its_part_of_the_whole(family, problems):
    own = load_task(f"tiny/{family}")
    whole = {p.id: p for p in problems if p.id.split("/")[1] == family}
    assert {p.id: (p.question, p.answer) for p in own} == {i: (p.question, p.answer) for i, p in whole.items()}
    assert {p.task for p in own} == {f"tiny/{family}"}
    assert [p.id.split("/")[2] for p in own[:7]] == list("1234567")


def test_a_smaller_set_is_the_start_of_a_larger_one():
    small, large = (problem_set(FRESH_SEED, n, ["chain", "clock"]) for n in (2, 5))
    assert small == [p for i, p in enumerate(large) if i % 5 < 2]


@pytest.mark.slow
def test_the_stream_leaves_out_the_evaluation_problems(problems):
    """Short multiplications recur by chance, so a stream without the filter would contain some."""
    assert {question_hash(p.question) for p in problems} <= held_out()
    rng, source = random.Random(1), stream("test", ["mult"])
    unfiltered = (sample("mult", rng.choice(LEVELS), rng) for _ in range(5000))
    assert any(question_hash(problem.question) in held_out() for problem in unfiltered)
    assert not any(question_hash(next(source).question) in held_out() for _ in range(5000))
