"""Check of the rows of a search or a choice: texts are graded again; counts, endings, gold answers and ids compared.

No model is run. Token counts are compared with texts if there is a tokenizer, as `tokenizer_of` finds it. Nothing here
shows that rows come from the model to which they are attributed: `verify` with `again` draws chains anew for that.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from math import isclose
from typing import TYPE_CHECKING, Any

from prunus.evaluation.grading import GRADER_VERSION, Gradable, Grader
from prunus.evaluation.grading.matching import answer_formats
from prunus.evaluation.pipeline import has_texts
from prunus.evaluation.profiles import Profile
from prunus.evaluation.profiles.markers import encode_markers
from prunus.evaluation.resolved_plan import id_of
from prunus.evaluation.tasks.problem import content_digest
from prunus.questions import question_key
from prunus.settings.budgets import OFF
from prunus.store.looping import loops, repetition_rate
from prunus.store.rows import Run, Sample
from prunus.store.store import Store
from prunus.store.stored import StoredPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAINS = 256  # number of chains that are read and graded together
# The share and the number of tokens by which the encoding of a text may differ from what was sampled.
NEARLY, FEW = 0.1, 4
GRADES, COUNTS, NO_TEXTS = (
    "have other grades than their texts",
    "have other token counts than their texts",
    "lack texts",
)
ENDS, CHAIN = "end otherwise than their numbers of tokens say", "are of other chains than those under other budgets"
LOOPS = "have another repetition than their texts"


@dataclass(frozen=True)
class RowCheck:
    """Result of a check of rows. differences: sentences on what rows contradict. notes: on what could not be compared.

    graded: number of rows whose texts were graded again, of `rows` in all.
    """

    differences: list[str]
    notes: list[str]
    graded: int = 0
    rows: int = 0


@dataclass(frozen=True)
class CheckedRun:
    """A run to check. name: of its model. problems: those that were looked at.

    believed: whether claims rest on the run, as on those of the dense model and of certified rungs. Other models may be
    damaged and write text that its tokenizer encodes otherwise, so their token counts only give notes. dense: whether
    the run is of a model without steps, so that its id follows from weights and plan.
    """

    name: str
    run: Run
    problems: Sequence[str]
    believed: bool
    dense: bool = False


def check_runs(store: Store, runs: Sequence[CheckedRun], tokenizer: "PreTrainedTokenizerBase | None") -> RowCheck:
    """Check the rows of some runs against their texts, problems and plans. tokenizer: of all their models, or None."""
    problems, differences, notes = known_problems(store, {name for checked in runs for name in checked.problems})
    graded = rows = 0
    if tokenizer is None:
        notes.append("no tokenizer is at hand, so token counts were not compared with texts")
    with Grader() as grader:
        for checked in runs:
            graded_by = checked.run.environment.grader
            if not graded_by:
                notes.append(
                    f"the run of {checked.name} names no grader, so its id, grades and counts were not compared"
                )
                continue
            if checked.dense and checked.run.run_id != id_of(checked.run):
                differences.append(f"the run of {checked.name} has another id than one of its weights under its plan")
            differing, compared, total = contradictions(store, checked, problems, grader, tokenizer)
            graded, rows = graded + compared, rows + total
            other = graded_by != GRADER_VERSION
            for what, places in differing.items():
                problem, budget, draw = places[0]
                line = (
                    f"{len(places):,} of {total:,} rows of {checked.name} {what} (first: problem {problem}, budget"
                    f" {'off' if budget == OFF else budget}, draw {draw})"
                )
                if what == GRADES and other:
                    notes.append(f"{line}, by grader {GRADER_VERSION}; they were graded by {graded_by}")
                elif what == COUNTS and not checked.believed:
                    notes.append(f"{line}, as those of a damaged model may")
                else:
                    differences.append(line)
    return RowCheck(differences, notes, graded, rows)


def known_problems(store: Store, names: Iterable[str]) -> tuple[dict[str, Gradable], list[str], list[str]]:
    """(problems that can be graded again, sentences on what their texts contradict, notes on what is not known)."""
    problems, differ, unknown, private = dict[str, Gradable](), list[str](), 0, 0
    for name, row in store.problems(sorted(names)).items():
        if not has_texts(row):
            private += 1
            continue
        question = store.question(name)
        if question is None:
            unknown += 1
            problems[name] = row
            continue
        if row.digest != content_digest(question, row.gold, row.choices) or row.question != question_key(
            question, row.choices
        ):
            differ.append(f"the gold answer, the choices or the text of problem {name} are not those of its digest")
        problems[name] = replace(row, answer_formats=answer_formats(question))
    notes = []
    if private:
        notes.append(f"the texts of {private} problems of a gated set are not stored, so grades were not compared")
    if unknown:
        notes.append(
            f"the store lacks the questions of {unknown} problems, so gold answers were not compared with them"
        )
    return problems, differ, notes


def contradictions(
    store: Store,
    checked: CheckedRun,
    problems: Mapping[str, Gradable],
    grader: Grader,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> tuple[dict[str, list[tuple[str, int, int]]], int, int]:
    """({what is wrong: [(problem, budget, draw) of such rows]}, number of rows graded again, number of all rows)."""
    samples, plan = checked.run.plan.samples, checked.run.plan
    count = Counts(tokenizer, plan) if tokenizer is not None else None
    chains = ((problem, draw) for problem in checked.problems for draw in range(samples))
    wrong_rows, graded, total = defaultdict[str, list[tuple[str, int, int]]](list), 0, 0
    while some := list(islice(chains, CHAINS)):
        rows = [store.samples(checked.run.run_id, texts=True, chain=chain) for chain in some]
        every = [row for chain in rows for row in chain if row.problem_id in problems]
        graded, total = graded + len(every), total + sum(map(len, rows))
        grades = grader.grade([(problems[row.problem_id], row.text) for row in every])
        wrong = [
            (GRADES, row)
            for row, grade in zip(every, grades, strict=True)
            if (row.answer, row.status, row.correct) != (grade.answer, grade.status, grade.correct)
        ]
        wrong += [(what, row) for row in every for what in about_text(row, plan, count)]
        wrong += [(what, row) for chain in rows for what, row in about_chain(chain, plan)]
        for what, row in wrong:
            wrong_rows[what].append((row.problem_id, row.budget, row.draw))
    return wrong_rows, graded, total


def about_text(row: Sample, plan: StoredPlan, count: "Counts | None") -> Iterator[str]:
    """Yield what a row's own texts contradict: NO_TEXTS, LOOPS, COUNTS or ENDS. count: None without a tokenizer."""
    # All of an answer may be marks that are left out.
    if not (row.thinking or row.text or plan.strings.strip) and row.thinking_tokens + row.answer_tokens > 0:
        yield NO_TEXTS
        return
    if row.repetition is not None:
        rate = repetition_rate(row.text if row.text == row.thinking else f"{row.thinking}\n{row.text}")
        same = isclose(rate, row.repetition, abs_tol=1e-9)
        if not same or row.loops != loops(row.thinking, row.text, row.repetition):
            yield LOOPS
    if count is not None and not count.fits(row):
        yield COUNTS
    if count is not None and row.forced_tokens not in count.forced(row):
        yield ENDS


def about_chain(rows: Sequence[Sample], plan: StoredPlan) -> Iterator[tuple[str, Sample]]:
    """Yield (ENDS or CHAIN, row) for rows of a draw that cannot be so by the plan. rows: by budget, OFF first."""
    if plan.is_native:  # a server counts, and every budget is a conversation of its own
        return
    for row in rows:
        cut = row.ended == "forced" and row.thinking_tokens != row.budget
        long = row.budget != OFF and row.thinking_tokens > row.budget
        if cut or long or (row.answer_cap is not None and row.answer_tokens > row.answer_cap):
            yield ENDS, row
    if plan.reuse is False or plan.wait:
        return
    for shorter, longer in pairwise(row for row in rows if row.budget > 0):
        # A chain that ended is the same under larger budgets, and a chain that was cut went on with more.
        same = (shorter.thinking_tokens, shorter.answer_tokens, shorter.answer, shorter.ended) == (
            longer.thinking_tokens,
            longer.answer_tokens,
            longer.answer,
            longer.ended,
        )
        begins = longer.thinking.startswith(shorter.thinking.rstrip("\ufffd"))
        ended = shorter.ended == "natural"
        if not begins or (ended and not same) or (not ended and longer.thinking_tokens <= shorter.thinking_tokens):
            yield CHAIN, longer


class Counts:
    """Check of a row's numbers of tokens, those of its texts and those inserted, by a tokenizer and a plan."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", plan: StoredPlan) -> None:
        self.tokenizer, self.plan = tokenizer, plan

    @cached_property
    def profile(self) -> Profile:
        """The profile with the plan's strings; how markers are matched is not stored, and is inferred from them."""
        strings, pairs = self.plan.strings, self.plan.strings.data.items()
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in pairs}
        if any(stop in strings.thinking_start for stop in strings.think_stops):
            given["match"] = "token"
        elif strings.think_stops and strings.answer_in_chain:
            given["match"] = "text"
        return Profile(**{"name": self.plan.profile, **given})

    def fits(self, row: Sample) -> bool:
        """Whether a row's texts have about as many tokens as it says."""
        answer = row.text
        if self.profile.answer_in_chain and row.ended == "natural":  # the chain is the answer
            answer = ""
        elif row.ended == "forced":
            answer = answer.removeprefix(self.profile.answer_lead)
        strips = FEW * len(self.profile.strip)
        parts = (row.thinking, row.thinking_tokens, 0), (answer, row.answer_tokens, strips)
        return all(self._about(text, number, spare) for text, number, spare in parts)

    def _about(self, text: str, number: int, spare: int) -> bool:
        encoded = len(self.tokenizer.encode(text, add_special_tokens=False))
        # A replacement character, of a character that was cut or invalid, stands for up to three tokens.
        spare += 3 * text.count("\ufffd") + FEW
        return abs(encoded - number) <= spare + NEARLY * max(encoded, number)

    @cached_property
    def _inserted(self) -> tuple[int, int, int] | None:
        """Numbers of inserted tokens (natural closing, forced, forced after a newline); None where they vary by row.

        Each number includes the tokens that start the thinking.
        """
        if self.plan.is_native:
            return None
        markers = encode_markers(self.profile, self.tokenizer, "legacy" if self.plan.mode == "legacy" else "strict")
        if markers.think_texts is not None or self.plan.closing is not None:
            return None
        start, alone = len(markers.start), () if markers.answer_in_chain else markers.natural_closing
        closings = (alone, markers.forced_closing, markers.forced_closing_after_newline)
        natural, forced, after_newline = (start + len(closing) for closing in closings)
        return natural, forced, after_newline

    def forced(self, row: Sample) -> Sequence[int]:
        """The numbers of inserted tokens that a row may have."""
        if row.budget == OFF or self._inserted is None:
            return [row.forced_tokens]
        natural, forced, after_newline = self._inserted
        if row.ended == "natural":
            return [natural]
        return [after_newline if row.thinking.endswith("\n") else forced]
