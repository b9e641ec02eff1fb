"""Problems that are equal but for numbers and names are told apart from a sample, and `group` is asked for."""

import json
import random
from pathlib import Path

from prunus.evaluation.resolved_plan import templates_line
from prunus.evaluation.tasks import load_task

NAMES = ("Ana", "Liam", "Mrs. O'Neil", "Wei Chen", "Fatima", "Tom")
PARAPHRASES: list[str] = [
    "How many pears are left over if Ana, who owns 12 of them, hands 5 to a friend?",
    "After giving away 5 of her 12 pears, what number of pears does Ana still have?",
    "Ana starts with a dozen pears. Five go to a friend. Count those that remain.",
    "A friend gets 5 pears from Ana's 12. What remains?",
]
OTHERS: list[str] = [
    "What is the largest prime below 100?",
    "A train leaves Rome at noon and drives 90 kilometres an hour. When does it pass a town 225 kilometres away?",
    "Compute the area of a triangle with sides 13, 14 and 15.",
    "In how many ways can seven books be put on a shelf so that two of them are not beside each other?",
]


def instance(name: str, have: int, give: int) -> str:
    she = "He" if name in ("Liam", "Tom") else "She"
    return f"{name} has {have:,} pears. {she} gives {give} of them to a friend. How many pears does {name} have left?"


def write(folder: Path, questions: list[str], groups: list[str] | None = None) -> Path:
    lines = [{"id": f"p{n}", "problem": question, "answer": "7"} for n, question in enumerate(questions)]
    if groups:
        lines = [line | {"group": group} for line, group in zip(lines, groups, strict=True)]
    file = folder / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def review_set() -> list[str]:
    """Fifty instances with other numbers, six with other names, and four paraphrases, as the third review had them."""
    rng = random.Random(0)
    numbers = [instance("Ana", have, rng.randint(2, 9)) for have in rng.sample(range(20, 3000), 50)]
    return [*numbers, *(instance(name, 12, 5) for name in NAMES), *PARAPHRASES]


def test_instances_of_a_template_are_found_and_paraphrases_are_not(tmp_path):
    line = templates_line(load_task(write(tmp_path, review_set())))
    assert line is not None and line.startswith(
        "warning: 56 of 60 problems are equal but for numbers and names, as of one template, such as 'Ana has "
    )
    assert "`group`" in line and "friend" in line


def test_a_group_ends_the_warning(tmp_path):
    assert templates_line(load_task(write(tmp_path, review_set(), ["pears"] * 60))) is None
    assert templates_line(load_task(write(tmp_path, review_set(), [f"g{n}" for n in range(60)]))) is None


def test_several_templates_among_other_questions_are_counted(tmp_path):
    """As in GSM-Symbolic: instances also differ in what is counted, where a template is rare in its set."""
    rng, questions = random.Random(1), [*OTHERS]
    for place, (unit, made) in enumerate([("hour", "loaves"), ("shift", "chairs"), ("morning", "kites")]):
        for name in NAMES[:4]:
            a, b = rng.sample(range(3, 90), 2)
            questions.append(
                f"Every {unit} {name} makes {a} {made} and sells them for ${b} each in town number {place}."
            )
    line = templates_line(load_task(write(tmp_path, questions)))
    assert line is not None and "12 of 16 problems" in line and "of 3 templates" in line


def test_other_questions_and_generated_sets_that_say_so_get_no_warning(tmp_path):
    assert templates_line(load_task(write(tmp_path, [*OTHERS, *PARAPHRASES]))) is None
    assert templates_line(load_task("tiny")) is None and templates_line(load_task("tiny/mult", 20)) is None
