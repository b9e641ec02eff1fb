"""Problem sets: built in, from the hub, or from a JSONL file. TASKS lists them, and `load_task` loads one.

A new set is either one more entry of `TASKS` in a file here (name, source, kind of answers, description and loader), or
a new file with such a `TASKS`, whose name is added to FILES below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from string import ascii_uppercase
from typing import Any, get_args

from prunus import plugins
from prunus.errors import PrunusError, nearest
from prunus.evaluation.tasks.problem import AnswerKind, Problem, Task, check_package, load_file
from prunus.plain_data import Listing, Record
from prunus.questions import leaders, sampling_key
from prunus.recipes.drawing import PromptStyle

__all__ = ["TASKS", "AnswerKind", "Problem", "Task", "TaskEntry", "load_task", "prompt_text", "tasks"]

FILES = (
    "tiny",
    "maths",
    "options",
)
_BUILT_IN: dict[str, Task] = {task.name: task for file in FILES for task in import_module(f"{__name__}.{file}").TASKS}


def _of_package(name: str, package: str, fields: Mapping[str, Any]) -> Task:
    """A task of another package, from the fields of its entry, whose `load` is the name of a function as text."""
    task = Task(**{**fields, "name": name, "load": plugins.Code(package, fields["load"])})
    if task.kind not in get_args(AnswerKind):
        raise PrunusError(f"the kind of a task is {', '.join(get_args(AnswerKind))}, not {task.kind!r}")
    return task


TASKS: dict[str, Task] = _BUILT_IN | plugins.entries(plugins.TASKS, _of_package, _BUILT_IN)

BOXED_OPEN = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
BOXED_CHOICE = "\n\nPlease reason step by step, and put only the letter of your choice within \\boxed{}."


class TaskEntry(Record):
    """A problem set.

    name: of the set.
    source: where it is from.
    description: one line.
    """

    name: str
    source: str
    description: str


def tasks() -> Listing[TaskEntry]:
    """The problem sets that are built in, and then those of other packages.

        print([task.name for task in prunus.tasks()])

    The names are those that `EvalPlan(tasks=...)` takes.
    """
    return Listing(
        TaskEntry(name=task.name, source=task.source, description=task.description) for task in TASKS.values()
    )


def load_task(name_or_path: str | Path, limit: int | None = None) -> list[Problem]:
    """The problems of a task of TASKS or of a JSONL file, or `limit` of them, grouped as the whole set is.

    A limit takes the first problems of a file, and a sample of a built-in set, whose order may go by subject or
    difficulty. The sample is always the same, and a larger limit adds problems to it. Raises PrunusError for an unknown
    name, a bad file, or a set that cannot be fetched.
    """
    if limit is not None and limit < 1:
        raise PrunusError(f"limit must be at least 1 problem, not {limit}")
    plugins.check(plugins.TASKS, name_or_path)
    if task := TASKS.get(str(name_or_path)):
        problems = task.load()
    elif (path := Path(name_or_path)).suffix == ".jsonl" or path.exists():
        problems = load_file(path)
    else:
        raise PrunusError(f"no task '{name_or_path}'; {nearest(name_or_path, [*TASKS, 'FILE.jsonl'])}")
    problems = grouped(problems)
    if limit is None or limit >= len(problems):
        return problems
    if is_sampled(name_or_path, limit):
        problems = sorted(problems, key=lambda problem: sampling_key(problem.id))
    return problems[:limit]


def is_sampled(name_or_path: str | Path, limit: int | None) -> bool:
    """Whether a limit takes a sample of a task rather than its first problems, or all of them."""
    task = TASKS.get(str(name_or_path))
    if limit is None or task is None or task.mixed:
        return False
    return limit < size_of(task)


def size_of(task: Task) -> int:
    """The number of problems of a set."""
    return len(task.load()) if task.problems is None else task.problems


def grouped(problems: Sequence[Problem]) -> list[Problem]:
    """The problems of a whole set with the `group` and `keyed` of Problem, from given groups and similar texts."""
    texts = ["\n".join([problem.question, *sorted(problem.choices)]) for problem in problems]
    first = leaders(texts, [problem.group for problem in problems])
    ids = ["" if place == number else problems[place].id for number, place in enumerate(first)]
    keyed = [replace(problem, keyed=True) if problem.group else problem for problem in problems]
    return [p if p.group == id else replace(p, group=id) for p, id in zip(keyed, ids, strict=True)]


def check_task(name_or_path: str | Path) -> None:
    """Raise PrunusError for an unknown name, a bad file, or a set of the hub without the package that fetches it."""
    task = TASKS.get(str(name_or_path))
    if task is None:
        load_task(name_or_path)
    elif task.hub is not None:
        check_package(task.name)


def prompt_text(problem: Problem, style: PromptStyle = "bare") -> str:
    """The user's message to the model: the question, a blank line, the choices one per line (`A) ...`).

    `boxed` adds the instruction to put the answer into a box (docs/protocol.md); `bare` adds nothing.
    """
    text = problem.question
    if problem.choices:
        lines = (f"{letter}) {choice}" for letter, choice in zip(ascii_uppercase, problem.choices, strict=False))
        text += "\n\n" + "\n".join(lines)
    if style == "boxed":
        text += BOXED_CHOICE if problem.choices else BOXED_OPEN
    return text
