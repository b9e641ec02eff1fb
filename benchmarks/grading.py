r"""Error rates of the grader and of math-verify alone, on answers that are right or wrong by construction.

`python benchmarks/grading.py [MATH500.jsonl]` writes every gold answer in forms that mean the same (perturbations.py)
and in forms that mean something else, grades all of them, and prints both error rates by kind. A few gold answers are
made up, of shapes that MATH500 lacks (times of day, primes). Without a file the set comes from the hub (`pip install
'.[hub]'`). math-verify alone is used as documented: with the gold answer in $...$ and the whole text, both of its
extractors and its own limits.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from perturbations import MADE_UP, Form, forms

from prunus.evaluation.grading import GRADER_VERSION, Grader
from prunus.evaluation.tasks import Problem, load_task

GRADERS = ("Prunus", "math-verify alone")


@dataclass(frozen=True)
class Case:
    """One form of one gold answer, with the verdict of each of GRADERS."""

    problem: Problem
    form: Form
    accepted: tuple[bool, bool]


def verdicts_of_ours(items: Sequence[tuple[Problem, str]]) -> list[bool]:
    """Return whether Prunus grades each text as correct."""
    with Grader() as grader:
        return [grade.correct for grade in grader.grade(items)]


def verdicts_of_math_verify(items: Iterable[tuple[Problem, str]]) -> list[bool]:
    """Return whether math-verify alone grades each text as correct; what it cannot parse in time is wrong."""
    from math_verify import parse, verify

    golds: dict[str, list[Any]] = {}
    known: dict[tuple[str, str], bool] = {}
    for problem, text in items:
        gold = problem.answer
        if gold not in golds:
            golds[gold] = parse(f"${gold}$")
        if (gold, text) not in known:
            known[gold, text] = bool(verify(golds[gold], parse(text)))
    return [known[problem.answer, text] for problem, text in items]


def measure(problems: Sequence[Problem]) -> list[Case]:
    """Return the graded forms of all gold answers that math-verify finds equal to themselves."""
    boxed = [(problem, rf"$\boxed{{{problem.answer}}}$") for problem in problems]
    usable = [problem for problem, accepted in zip(problems, verdicts_of_math_verify(boxed), strict=True) if accepted]
    made = [(problem, form) for problem in usable for form in forms(problem.answer, problem.question)]
    items = [(problem, form.text) for problem, form in made]
    both = zip(verdicts_of_ours(items), verdicts_of_math_verify(items), strict=True)
    return [Case(problem, form, accepted) for (problem, form), accepted in zip(made, both, strict=True)]


def errors(cases: Iterable[Case], grader: int, same: bool) -> list[Case]:
    """Return the correct answers that a grader rejects (same), or the wrong ones that it accepts."""
    return [case for case in cases if case.form.same == same and case.accepted[grader] != same]


def table(cases: Sequence[Case], same: bool) -> list[str]:
    """Return a Markdown table: a row per kind of form with its count and each grader's errors."""
    wrong = [Counter(case.form.kind for case in errors(cases, grader, same)) for grader in range(len(GRADERS))]
    counts = Counter(case.form.kind for case in cases if case.form.same == same)
    what = "same meaning: wrongly rejected" if same else "another meaning: wrongly accepted"
    lines = [f"| {what} | forms | {' | '.join(GRADERS)} |", "|---|---|---|---|"]
    lines += [f"| {kind} | {counts[kind]:,} | {wrong[0][kind]:,} | {wrong[1][kind]:,} |" for kind in sorted(counts)]
    total = sum(counts.values())
    shares = " | ".join(f"**{sum(kinds.values()):,} ({sum(kinds.values()) / total:.2%})**" for kinds in wrong)
    return [*lines, f"| **all** | **{total:,}** | {shares} |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", nargs="?", default="math500", help="a JSONL file of MATH500, or the name of a task")
    parser.add_argument("--examples", type=int, default=3, help="errors to print of each kind (default 3)")
    parser.add_argument("--of", choices=GRADERS, default=GRADERS[0], help="whose errors to print")
    arguments = parser.parse_args()
    path = Path(arguments.task)
    started = monotonic()
    made_up = [Problem(f"made-up-{n}", "made-up", "What is it?", gold, "math") for n, gold in enumerate(MADE_UP)]
    cases = measure([*load_task(path if path.exists() else arguments.task), *made_up])
    print(f"grader {GRADER_VERSION}; {monotonic() - started:.0f} s\n")
    for same in (True, False):
        print("\n".join(table(cases, same)), end="\n\n")
    printed: Counter[str] = Counter()
    for same in (True, False):
        for case in errors(cases, GRADERS.index(arguments.of), same):
            printed[case.form.kind] += 1
            if printed[case.form.kind] <= arguments.examples:
                verdict = "rejected" if same else "accepted"
                print(f"{verdict} ({case.form.kind}): gold {case.problem.answer!r}, text {case.form.text!r}")


if __name__ == "__main__":
    main()
