"""Grade texts by rules: find the answer in a text and decide whether it means the same as the gold answer.

The rules, in the order in which they apply (docs/grading.md):
    find       the last balanced \\boxed{}; else the rest of the line after the last "answer is"; else, as a weak
               answer, the conclusion of the last line, or the last whole number if the task asks for integers
    integer    compared as whole numbers; \\frac{84}{2} is not a whole number
    math       equal after normalisation, else parsed (reading.py) and matched part by part (matching.py); formulas are
               compared in a worker process with a limit on time and memory
    choice     one letter, or the text of exactly one choice; anything else counts as no answer, never as "A"
    exact      equal up to blanks
A correct answer is reported in the form of the gold answer, so that all correct draws give majority voting the same
answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from prunus.evaluation.grading import matching, normalise
from prunus.evaluation.grading.extract import MAX_ANSWER, find_answer, first_clause, last_integer
from prunus.evaluation.grading.pool import Pool, Verdict
from prunus.evaluation.grading.reading import readings

if TYPE_CHECKING:
    from prunus.evaluation.tasks.problem import Problem  # which imports grading.matching
    from prunus.store.rows import ProblemRow

__all__ = ["GRADER_VERSION", "Grade", "Grader"]

GRADER_VERSION = f"4/math-verify-{version('math-verify')}"
Gradable: TypeAlias = "Problem | ProblemRow"  # of which grading reads kind, gold, choices and answer_formats
Status = Literal["ok", "weak", "malformed", "no_answer", "timeout", "error"]


@dataclass(frozen=True)
class Grade:
    """The verdict on one text.

    answer: canonical form that majority voting counts (digits, letter, LaTeX or text); None where none was found.
    status: `ok`; `weak` (no box or "answer is", only a conclusion or a last number); `malformed` (the last box never
    closes); `no_answer`; `timeout` or `error` (math-verify took too long, or failed). Only `ok` and `weak` can be
    correct.
    """

    answer: str | None
    correct: bool
    status: Status


@dataclass(frozen=True)
class _Reading:
    """An answer found in a text. written: its original form. canonical: its normal form, None where it has none."""

    written: str
    canonical: str | None
    status: Status


class Grader:
    """A grader with its worker processes: `with Grader() as grader: grader.grade([(problem, text), ...])`.

    workers: processes for math-verify, started only when comparing strings does not settle a case. timeout_s:
    wall-clock limit per comparison. memory_mb: memory limit per worker. Verdicts are cached while the grader is open.
    """

    def __init__(self, workers: int = 2, timeout_s: float = 10.0, memory_mb: int = 1024) -> None:
        self.pool = Pool(workers, timeout_s, memory_mb)
        self._known: dict[tuple[str, str, tuple[str, ...] | None], Verdict] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def grade(self, items: Sequence[tuple[Gradable, str | None]]) -> list[Grade]:
        """One Grade per (problem, answer text), in order. The text None (the model gave none) is `no_answer`."""
        return self.pool.map(self._grade, items)

    def _grade(self, item: tuple[Gradable, str | None]) -> Grade:
        problem, text = item
        reading, gold = _read(problem, text), _canonical(problem, problem.gold)
        answer = reading.canonical
        correct = answer is not None and answer == gold
        if answer and gold and not correct and _needs_algebra(problem, gold, answer):
            question = (
                problem.gold,
                reading.written,
                None if problem.answer_formats is None else tuple(problem.answer_formats),
            )
            if question not in self._known:
                self._known[question] = self._compare(*question)
            if (verdict := self._known[question]) in ("timeout", "error"):
                return Grade(answer, False, verdict)
            correct = verdict == "same"
        return Grade(gold if correct else answer, correct, reading.status)

    def _compare(self, gold: str, answer: str, answer_formats: Sequence[str] | None) -> Verdict:
        """The verdict on whether an answer means the same as the gold answer; formulas that differ go to math-verify.

        Each reading of the answer is tried. After a timeout, the others are only compared as texts.
        """
        expected, failed = readings(gold)[0], set[Verdict]()
        if expected.kind == "letter" and normalise.choice(answer, [""] * len(ascii_uppercase)) == expected.text:
            return "same"

        def equal(*request: str) -> bool:
            verdict = "different" if "timeout" in failed else self.pool.verdict(request)
            failed.add(verdict)
            return verdict == "same"

        if any(matching.same(expected, given, equal, answer_formats) for given in readings(answer)):
            return "same"
        return "timeout" if "timeout" in failed else "error" if "error" in failed else "different"


def _read(problem: Gradable, text: str | None) -> _Reading:
    """The answer found in a text, normalised; the value of the gold answer plays no part."""
    answer = find_answer(text or "")
    if answer.how == "malformed":
        return _Reading("", None, "malformed")
    if answer.how == "phrase":
        return _read_phrase(problem, answer.text, text or "")
    if answer.how == "conclusion" and problem.kind == "math":
        return replace(_read_phrase(problem, answer.text, text or ""), status="weak")
    if answer.how == "box":
        canonical = _canonical(problem, answer.text)
        return _Reading(answer.text, canonical, "ok" if canonical else "no_answer")
    return _read_weakly(problem, text or "")


def _read_phrase(problem: Gradable, phrase: str, text: str) -> _Reading:
    """The answer in the phrase after "answer is". For integer tasks it must be written as a whole number."""
    clause = first_clause(phrase)
    if problem.kind == "integer":
        written = next((part for part in (phrase, clause, clause.split(",")[0]) if normalise.integer(part)), None)
        if written is None:
            return _read_weakly(problem, phrase if last_integer(phrase) else text)
    else:
        written = clause if problem.kind == "math" else phrase
    canonical = _canonical(problem, written)
    return _Reading(written, canonical, "ok" if canonical else "no_answer")


def _read_weakly(problem: Gradable, text: str) -> _Reading:
    number = last_integer(text) if problem.kind == "integer" else None
    return _Reading(number or "", number, "weak" if number else "no_answer")


def _canonical(problem: Gradable, written: str) -> str | None:
    """The canonical form of an answer; None where it names no choice, or is empty after normalisation."""
    if problem.kind == "integer":
        number = normalise.integer(written)
        if number and "%" in written and problem.answer_formats is not None and "percent" not in problem.answer_formats:
            return f"{number}%"
        return number or normalise.math(written) or None
    if problem.kind == "choice":
        return normalise.choice(written, problem.choices)
    if problem.kind == "exact":
        return normalise.exact(written) or None
    # w = 2x differs from y = 2x, although both equal 2x if the gold answer names no variable.
    names = {normalise.name_of(normalise.latex(text)) for text in (problem.gold, written)} - {""}
    return (normalise.math(written) if len(names) < 2 else normalise.latex(written)) or None


def _needs_algebra(problem: Gradable, gold: str, answer: str) -> bool:
    """Whether two canonical answers that differ may mean the same; different whole numbers cannot."""
    both_whole = normalise.is_integer(gold) and normalise.is_integer(answer)
    return problem.kind == "math" and len(problem.gold) <= MAX_ANSWER and not both_whole
