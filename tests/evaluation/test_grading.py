"""Grading: hand-made strings, measured facts of math-verify, excerpts against themselves, brute force for boxes."""

import os
import random
import time
from pathlib import Path

import pytest

from prunus.evaluation.grading import GRADER_VERSION, Grade, Grader, normalise
from prunus.evaluation.grading.extract import MAX_ANSWER, MAX_TEXT, find_answer, last_integer
from prunus.evaluation.tasks import Problem, load_task

DATA = Path(__file__).parents[1] / "data"
FOUR = ("12 m/s", "the red one", "no change", r"$\frac{1}{2}$")


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=1) as grader:
        yield grader


def problem(kind, gold, choices=()):
    return Problem("i", "t", "q", gold, kind, tuple(choices))


def one(grader, kind, gold, text, choices=()):
    [grade] = grader.grade([(problem(kind, gold, choices), text)])
    return grade


HAND_MADE = [
    # whole numbers: boxes
    ("integer", "42", r"So \boxed{42}.", "42", "ok", True),
    ("integer", "42", r"\boxed{41} no, \boxed{42}", "42", "ok", True),
    ("integer", "42", r"\boxed{42} and also \boxed{41}", "41", "ok", False),
    ("integer", "42", r"\boxed{42}, that is \boxed{4", None, "malformed", False),
    ("integer", "42", r"\boxed{42} in \boxed{}", None, "no_answer", False),
    ("integer", "1234", r"\boxed{\$1,234.00}", "1234", "ok", True),
    ("integer", "1234", r"\boxed{1{,}234\text{ dollars per day}}", "1234", "ok", True),
    ("integer", "10080", r"\boxed{10,\!080}", "10080", "ok", True),
    ("integer", "73", r"\boxed{073}", "73", "ok", True),
    ("integer", "-7", r"\boxed{x = −7}", "-7", "ok", True),
    ("integer", "0", r"\boxed{-0}", "0", "ok", True),
    ("integer", "90", r"\boxed{\mathbf{90}^{\circ}}", "90", "ok", True),
    ("integer", "15", r"\boxed{15 \text{ cm}^2}", "15", "ok", True),
    ("integer", "42", r"\boxed{\frac{84}{2}}", r"\frac{84}{2}", "ok", False),
    ("integer", "42", r"\boxed{42\pi}", r"42\pi", "ok", False),
    ("integer", "3", r"\boxed{3 million}", "3000000", "ok", False),
    ("integer", "3000000", r"\boxed{3 million}", "3000000", "ok", True),
    ("integer", "1500000", "The answer is 1.5 million dollars.", "1500000", "ok", True),
    ("integer", "2220", r"\boxed{2 220}", "2220", "ok", True),
    ("integer", "540", r"\boxed{\textbf{(C)}\ 540}", "540", "ok", True),
    ("integer", "12", r"$\boxed 12$", "12", "ok", True),
    ("integer", "12", r"\fbox{12}", "12", "ok", True),
    ("integer", "12", r"\boxed{12\%}", "12%", "ok", False),  # nobody asked for percent
    ("integer", "5", r"\boxed{5!}", "5!", "ok", False),
    ("integer", "204", r"\boxed{1204}", "1204", "ok", False),
    # whole numbers: phrases and bare numbers
    ("integer", "42", "First 7. **Final Answer:** 42", "42", "ok", True),
    ("integer", "42", "The final answer is $42$, because 6 times 7.", "42", "ok", True),
    ("integer", "42", "The answer is 40. Wait. The answer is 42 apples.\nBye 3.", "42", "ok", True),
    ("integer", "12", "The answer is 18 - 6 = 12.", "12", "ok", True),
    ("integer", "42", "Final Answer:\n\n42", "42", "ok", True),
    ("integer", "42", "so it is 6 * 7 = 42 dollars.", "42", "weak", True),
    ("integer", "42", "The answer is unclear, maybe 42", "42", "weak", True),
    ("integer", "2", "between 2 and 2.5", "2", "weak", True),
    ("integer", "-3", "we get -3", "-3", "weak", True),
    ("integer", "3", "we get 10-3", "3", "weak", True),
    ("integer", "42", "I do not know.", None, "no_answer", False),
    ("integer", "42", "", None, "no_answer", False),
    ("integer", "42", None, None, "no_answer", False),
    # mathematics without a worker
    ("math", r"\frac{3}{2}", r"\boxed{ \dfrac 32 }", r"\frac{3}{2}", "ok", True),
    ("math", r"\{1,2\}", r"\boxed{\left\{1,\, 2\right\}}", r"\{1,2\}", "ok", True),
    ("math", r"x \in [-2,7]", r"The answer is $x\in[-2,7]$.", r"x\in[-2,7]", "ok", True),
    ("math", "12", r"\boxed{13}", "13", "ok", False),
    ("math", "12", "it must be 12", None, "no_answer", False),
    ("math", "12", "Therefore the result equals 12.", "12", "weak", True),
    ("math", "12", "Therefore the result equals 12.\nNow let x = 3", None, "no_answer", False),
    ("math", "12", r"\boxed{12", None, "malformed", False),
    ("math", "12", r"\boxed{" + "1+" * MAX_ANSWER + "1}", None, "malformed", False),
    # exact text
    ("exact", "b c a", "\n\n\\boxed{b  c\na}", "b c a", "ok", True),
    ("exact", "09:10", r"\boxed{9:10}", "9:10", "ok", False),
    ("exact", "14+19", r"\boxed{19+14}", "19+14", "ok", False),
    ("exact", "14+19", "answer: 14+19", "14+19", "ok", True),
    ("exact", "14+19", "14+19", None, "no_answer", False),
]


@pytest.mark.parametrize(("kind", "gold", "text", "answer", "status", "correct"), HAND_MADE)
def test_hand_made_answers(kind, gold, text, answer, status, correct):
    with Grader() as grader:
        assert one(grader, kind, gold, text) == Grade(answer, correct, status)
        assert grader.pool.started == 0  # none of these needs a worker


CHOICES = [
    (r"\boxed{C}", "C"),
    (r"\boxed{c}", "C"),
    (r"\boxed{(C)}", "C"),
    (r"\boxed{C)}", "C"),
    (r"\boxed{C.}", "C"),
    (r"\boxed{\text{C}}", "C"),
    (r"\boxed{\textbf{(C)}\ \text{no change}}", "C"),
    (r"\boxed{\mathrm{C}}", "C"),
    (r"\boxed{$C$}", "C"),
    (r"\boxed{option C}", "C"),
    (r"\boxed{Option (C)}", "C"),
    (r"\boxed{C) no change}", "C"),
    (r"\boxed{C: A thing}", "C"),
    (r"\boxed{[C]}", "C"),
    ("The correct answer is C", "C"),
    ("The answer is (C), since B and D fail.", "C"),
    ("The answer is C because it is.", "C"),
    ("**Answer:** **C**", "C"),
    ("Answer: C. no change", "C"),
    (r"\boxed{no change}", "C"),
    ("The answer is no  change.", "C"),
    ("The answer is that there is no change at all", "C"),
    (r"\boxed{\tfrac12}", "D"),
    (r"\boxed{12 m/s}", "A"),
    ("The answer is a red one", None),  # "a" is an article
    ("The answer is A thing of beauty", None),
    ("The answer is either the red one or no change", None),
    (r"\boxed{A, C}", None),
    (r"\boxed{B and C}", None),
    ("The answer is (A) or (B)", None),
    (r"\boxed{E}", None),
    (r"\boxed{5}", None),
    ("It is C", None),  # neither a box nor the word answer: the reference order of rules
    ("no idea", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letter"), CHOICES)
def test_choices_in_all_shapes(grader, text, letter):
    """What names no single choice is no answer and wrong, whatever the gold; never counted as A."""
    for gold in "ABCD":
        status = "ok" if letter else "no_answer"
        assert one(grader, "choice", gold, text, FOUR) == Grade(letter, letter == gold, status)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{x}", "A"),
        (r"\boxed{(x)}", "A"),
        ("The answer is $x$, since it is odd.", "A"),
        ("The answer is the value 2 because it is even", "B"),
        (r"\boxed{2 meters}", "B"),
        (r"\boxed{v = 2}", "B"),
        (r"\boxed{D > B}", "C"),
        ("The answer is that it is $\\sqrt{3}$.", "D"),
        (r"\boxed{x^2}", None),
        (r"\boxed{\frac{x}{3}}", None),
        (r"\boxed{f(x)}", None),
        (r"\boxed{x + 1}", None),
        (r"\boxed{1 - x}", None),
        (r"\boxed{x = 5}", None),
        (r"\boxed{-2}", None),
        (r"\boxed{1/2}", None),
        (r"\boxed{2, 3}", None),
        ("The answer is about 2.5 meters", None),
        (r"\boxed{-\sqrt{3}}", None),
        (r"\boxed{5 \sqrt{3}}", None),
    ],
)
def test_a_choice_is_no_part_of_a_larger_formula(grader, text, letter):
    choices = ("x", "2", "D > B", r"\sqrt{3}")
    for gold in "ABCD":
        assert one(grader, "choice", gold, text, choices).answer == letter


def test_an_unfinished_box_of_a_choice_is_malformed(grader):
    assert one(grader, "choice", "C", r"\boxed{C} or \boxed{D", FOUR) == Grade(None, False, "malformed")


def test_choices_without_texts_still_take_letters(grader):
    """Private sets are stored without their texts."""
    assert one(grader, "choice", "D", r"\boxed{D}", ("", "", "", "")) == Grade("D", True, "ok")


MEASURED_SAME = [  # gold, answer: math-verify 0.9.0, or rules of ours where they say otherwise
    (r"\left(3,\frac{\pi}{2}\right)", r"(3,\pi/2)"),
    (r"\text{Evelyn}", "Evelyn"),
    ("1,-2", "-2,1"),
    ("204", r"204^\circ"),
    ("0.35", r"35\%"),
    ("10080", r"10,\!080"),
    (r"10,\!080", "10080"),
    ("5", "x=5"),
    ("x=5", "5"),
    (r"\frac{3}{2}", r"\frac32"),
    ("73", "073"),
    ("27", "27.0"),
    (r"\text{(C)}", "C"),
    ("(x+1)^2", "x^2+2x+1"),
    ("[-2,7]", r"-2 \le x \le 7"),
    (r"(-\infty,0)", "x<0"),
]
MEASURED_DIFFERENT = [
    (r"\frac13", "0.333"),
    (r"11\sqrt2", "15.556"),
    ("2516_8", "2516"),
    ("3", "4"),
    ("3", "3 or 4"),
]


@pytest.mark.slow
def test_measured_facts_hold_through_our_grader(grader):
    grades = grader.grade(
        [(problem("math", gold), rf"Thus \boxed{{{said}}}.") for gold, said in MEASURED_SAME + MEASURED_DIFFERENT]
    )
    assert {grade.status for grade in grades} == {"ok"}
    assert [grade.correct for grade in grades] == [True] * len(MEASURED_SAME) + [False] * len(MEASURED_DIFFERENT)
    for (gold, _), grade in zip(MEASURED_SAME, grades, strict=False):
        assert grade.answer == normalise.math(gold)  # all correct answers vote for the same


def test_of_two_boxes_the_last_counts(grader):
    """math-verify alone reads the set {3, 4} and finds neither 3 nor 4."""
    text = r"\boxed{3} and \boxed{4}"
    assert one(grader, "math", "3", text) == Grade("4", False, "ok")
    assert one(grader, "math", "4", text) == Grade("4", True, "ok")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k_30", "math500_40"])
def test_excerpt_golds_verify_against_themselves(grader, name):
    """By strings, and for LaTeX also by the workers' algebra where it can read them, so that both accept them."""
    problems = load_task(DATA / f"{name}.jsonl")
    grades = grader.grade([(p, rf"Hence the answer is \boxed{{{p.answer}}}.") for p in problems])
    assert all(grade.correct and grade.status == "ok" for grade in grades)
    if problems[0].kind == "math":
        verdicts = grader.pool.map(grader.pool.verdict, [(p.answer, p.answer) for p in problems])
        assert set(verdicts) <= {"same", "error"} and verdicts.count("same") > 35


def test_golds_of_other_problems_are_wrong(grader):
    """Correct exactly where two problems happen to have answers of the same value."""
    problems = load_task(DATA / "math500_40.jsonl")
    said = [p.answer for p in problems[1:] + problems[:1]]
    grades = grader.grade([(p, rf"\boxed{{{answer}}}") for p, answer in zip(problems, said, strict=True)])
    assert [(p.answer, a) for p, a, grade in zip(problems, said, grades, strict=True) if grade.correct] == []


def test_full_benchmarks_verify_against_themselves(grader):
    folder = os.environ.get("PRUNUS_BENCHMARKS")
    if not folder:
        pytest.skip(
            "set PRUNUS_BENCHMARKS to a folder with math500.jsonl and gsm8k_test.jsonl (not part of the repository)"
        )
    for name, count in (("math500", 500), ("gsm8k_test", 1319)):
        problems = load_task(Path(folder) / f"{name}.jsonl")
        grades = grader.grade([(p, rf"\boxed{{{p.answer}}}") for p in problems])
        assert sum(grade.correct for grade in grades) == len(problems) == count


# Extraction against brute force, and in bounded time


def boxes_by_hand(text):
    """Every box opening, left to right: its content, or None if it never closes. Character by character.

    Without a brace it holds the rest of the line, if that starts with a digit or a command.
    """
    found = []
    for start in range(len(text)):
        if not text.startswith("\\boxed", start) or text[start + 6 : start + 7].isalpha():
            continue
        at = start + 6
        while at < len(text) and text[at].isspace():
            at += 1
        command = text[at : at + 1] == "\\" and (text[at + 1 : at + 2].isalpha() or text[at + 1 : at + 2] == "{")
        if (text[at : at + 1].isdigit() or command) and not text.startswith("\\boxed", at):
            found.append(text[at:].partition("\n")[0])
        if at == len(text) or text[at] != "{":
            continue
        depth, end = 0, at
        while end < len(text):
            if text[end] == "\\":
                end += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                break
            end += 1
        found.append(text[at + 1 : end] if end < len(text) else None)
    return found


@pytest.mark.slow
def test_boxes_equal_brute_force():
    rng = random.Random(0)
    pieces = ["\\boxed{", "\\boxed", "{", "}", "}", "\\{", "\\}", "\\\\", "\\", "x", "7", " ", "\n", "\\frac"]
    outcomes = set()
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 14)))
        boxes, found = boxes_by_hand(text), find_answer(text)
        if not boxes:
            assert found.how == "nothing", text
        elif boxes[-1] is None:
            assert found.how == "malformed", text
        else:
            assert found == ("box", boxes[-1].strip()), text
        outcomes.add((len(boxes) > 1, found.how))
    assert outcomes == {(False, "nothing"), (False, "malformed"), (True, "malformed"), (False, "box"), (True, "box")}


def test_last_integers_equal_brute_force():
    """Word by word on texts of separated numbers, where what a number is needs no judgement."""
    rng = random.Random(1)
    for _ in range(2000):
        words = [
            rng.choice(["x", "7", "-12", "1,234", "0.5", "18.00", "007", "-0", "−3"]) for _ in range(rng.randint(1, 6))
        ]
        expected = None
        for word in words:
            value = word.replace(",", "").replace("−", "-").replace("x", "nan")
            if float(value) == float(value) and float(value).is_integer():
                expected = str(int(float(value)))
        assert last_integer(" and ".join(words) + ".") == expected


HOSTILE = {
    "openings": "\\boxed{" * 150_000,
    "nested": "\\boxed{" * 70_000 + "}" * 70_000,
    "braces": "\\boxed" + "{" * 1_000_000,
    "backslashes": "\\boxed{" + "\\" * 1_000_000,
    "blanks": "\\boxed" + " " * 1_000_000,
    "phrases": "the answer is " * 75_000,
    "stars": "answer" + "*" * 1_000_000,
    "phrase blanks": "answer" + " " * 1_000_000 + "is",
    "digits": "1" * 1_000_000,
    "commas": "1," * 500_000,
    "dots": "1." * 500_000,
    "numbers": "2.5 " * 250_000,
    "dollars": "answer is " + "$" * 1_000_000,
    "lines": "answer:" + "\n" * 1_000_000,
    "long line": "answer is " + "( \\(" * 250_000,
    "words": "answer is 5 " + "because " * 120_000,
    "unicode": "\u0660" * 1_000_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_anything_takes_under_a_second(name):
    """Reading only: what is left for math-verify has at most MAX_ANSWER characters and its own time limit."""
    text = HOSTILE[name]
    items = [(problem(kind, "5", FOUR if kind == "choice" else ()), text) for kind in ("integer", "choice", "exact")]
    with Grader() as grader:
        before = time.process_time()
        grades = grader.grade(items)
        find_answer(text)
        assert time.process_time() - before < 1.0
    assert not any(grade.correct and grade.status == "ok" for grade in grades if name != "words")


@pytest.mark.parametrize(
    "piece", ["\\frac", "{", "x", "\\text{", "1 ", "\\left", "^{\\circ}", "=", "( ", "€", "A, ", "-"]
)
def test_normalising_a_long_answer_is_fast(piece):
    answer = (piece * MAX_ANSWER)[:MAX_ANSWER]
    before = time.process_time()
    for normal_form in (normalise.math, normalise.integer, normalise.exact, lambda text: normalise.choice(text, FOUR)):
        normal_form(answer)
    assert time.process_time() - before < 0.2


def test_long_texts_are_read_from_their_end(grader):
    tail = r"so \boxed{42}"
    assert one(grader, "integer", "42", "x" * 3 * MAX_TEXT + tail).correct
    assert one(grader, "integer", "42", tail + "x" * MAX_TEXT).status == "no_answer"


# Normal forms


def test_normalising_twice_changes_nothing():
    golds = [p.answer for p in load_task(DATA / "math500_40.jsonl")]
    rng = random.Random(2)
    pieces = [
        "\\frac",
        "\\sqrt",
        "{",
        "}",
        "1",
        "2",
        "x",
        " ",
        "\\left(",
        "\\right)",
        "\\text",
        "\\pi",
        "=",
        ".",
        "[",
        "]",
    ]
    golds += ["".join(rng.choices(pieces, k=rng.randint(1, 10))) for _ in range(3000)]
    for gold in golds:
        once = normalise.math(gold)
        assert normalise.math(once) == once, gold


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac 1 2", r"\frac{1}{2}"),
        (r"\frac\pi2", r"\frac{\pi}{2}"),
        (r"\frac{1}2", r"\frac{1}{2}"),
        (r"\frac9{19}", r"\frac{9}{19}"),
        (r"\frac{\frac12}3", r"\frac{\frac{1}{2}}{3}"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\sqrt[3]{2}", r"\sqrt[3]{2}"),
        (r"\sin x", r"\sin x"),
        (r"2 \pi", r"2\pi"),
        ("1 2", "1 2"),
        (r"\text{even and odd}", "evenandodd"),
        (r"\mbox{\textbf{x}}^{2}", "x^{2}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("x = 5.", "5"),
        ("x=1, y=2", "x=1,y=2"),
        (r"\$32,\!348", "32348"),
        ("2 220", "2220"),
        ("3, 500", "3,500"),
        ("(1,200)", "(1,200)"),
        (r"\bigl(1, 2\bigr)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"\left[0, 1\right)", "[0,1)"),
        (r"\leftarrow", r"\leftarrow"),
        ("−7", "-7"),
    ],
)
def test_normal_forms(written, normal):
    assert normalise.math(written) == normal


def test_the_version_names_both_graders():
    assert GRADER_VERSION.count("math-verify-") == 1
