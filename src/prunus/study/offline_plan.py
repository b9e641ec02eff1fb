"""The part of a study's plan that needs no file of a model or problem set that is not on this disk."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from prunus.budgets import without_off
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import HUB_PATTERNS, is_hub_id
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.tasks import TASKS, load_task
from prunus.recipes import EvalPlan
from prunus.study.cells import AGAIN, DENSE, folder_of, plan_names, variant_names
from prunus.study.file import Study


@dataclass(frozen=True)
class PlannedCell:
    """The plan of one cell.

    run: its id, None while that is not known. problems, answers: counts. done: answers in the store. tokens: upper
    bound of the tokens of the missing answers. tokens_expected: their number if chains stay as long as those so far,
    None without any so far.
    """

    model: str
    variant: str
    plan: str
    run: str | None
    problems: int
    answers: int
    done: int
    tokens: int
    tokens_expected: float | None


def unread_tasks(study: Study) -> dict[str, str]:
    """{task: reason} for each problem set that cannot be read here. Raises PrunusError for an unknown task."""
    found = {}
    for task in dict.fromkeys(task for plan in study.plans for task in plan.tasks):
        try:
            load_task(task)
        except PrunusError as error:
            if task not in TASKS:
                study.fail(study.eval_line, str(error))
            found[task] = str(error)
    return found


def catalogue_count(task: str) -> int:
    """Number of problems of a task by its description in the catalogue; 0 where the description has no number."""
    found = re.match(r"\d+", TASKS[task].description)
    return int(found[0]) if found else 0


def local_folder(study: Study, model: str) -> Path | None:
    """The folder of a model; None for a model of the hub that is not downloaded. Raises PrunusError for any other."""
    if Path(model).expanduser().exists() or not is_hub_id(model):
        return folder_of(study, model)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, allow_patterns=HUB_PATTERNS, local_files_only=True))
        Checkpoint(folder)
    except Exception:  # the hub client raises errors of several libraries, and a partial download cannot be opened
        return None
    return folder


def plan_from_catalogue(study: Study, model: str) -> list[PlannedCell]:
    """The cells of a model of which not everything is on this disk, with the catalogue's numbers of problems."""
    names = [DENSE, *variant_names(study.entries)]
    profile = PROFILES["s1"]  # all profiles but that of `tiny` have the same caps on answers
    lines = []
    for plan, word in zip(study.plans, plan_names(study.plans), strict=True):
        problems = tokens = 0
        for task in plan.tasks:
            kind = TASKS[task].kind if task in TASKS else load_task(task)[0].kind
            found = catalogue_count(task) if task in TASKS else len(load_task(task))
            count = min(found, plan.limit or found)
            problems += count
            cap = plan.answer_tokens or profile.answer_cap(kind, plan.mode)
            tokens += plan.samples * count * chain_tokens(plan, len(plan.budgets) * cap)
        answers = problems * plan.samples * len(plan.budgets)
        lines += [PlannedCell(model, name, word, None, problems, answers, 0, tokens, None) for name in names]
        if plan.aa_control:
            lines.append(replace(lines[-len(names)], variant=f"{DENSE}, {AGAIN}"))
    return lines


def chain_tokens(plan: EvalPlan, answers: int) -> int:
    """Upper bound of the tokens of one chain: its thinking, and its answers at all budgets.

    answers: upper bound of the tokens of these answers together.
    """
    budgets = without_off(plan.budgets)
    shared = plan.reuse and plan.wait == 0
    return (max(budgets, default=0) if shared else sum(budgets)) + answers
