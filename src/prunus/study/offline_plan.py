"""Cells of a study whose models or problem sets are not on this disk, as far as they can be known."""

import re
from dataclasses import dataclass
from pathlib import Path

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import HUB_PATTERNS, is_hub_id
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.tasks import TASKS, load_task
from prunus.recipes import EvalPlan
from prunus.study.cells import DENSE, folder_of, plan_names, variant_names
from prunus.study.file import Study


@dataclass(frozen=True)
class Line:
    """What is planned for one cell. run: its id, None while that is not known. tokens: at most, of what is missing."""

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
    """Problem sets that cannot be read here, and why not; PrunusError for one that nobody has."""
    found = {}
    for task in dict.fromkeys(task for plan in study.plans for task in plan.tasks):
        try:
            load_task(task)
        except PrunusError as error:
            if task not in TASKS:
                study.fail(study.eval_line, str(error))
            found[task] = str(error)
    return found


def promised(task: str) -> int:
    """The number of problems that the catalogue gives."""
    found = re.match(r"\d+", TASKS[task].description)
    return int(found[0]) if found else 0


def local_folder(study: Study, typed: str) -> Path | None:
    """The folder of a model that is on this disk, None for one of the hub that is not; PrunusError for others."""
    if Path(typed).expanduser().exists() or not is_hub_id(typed):
        return folder_of(study, typed)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(typed, allow_patterns=HUB_PATTERNS, local_files_only=True))
        Checkpoint(folder)
    except Exception:  # the hub client raises errors of several libraries; a half download is none
        return None
    return folder


def outline(study: Study, typed: str) -> list[Line]:
    """Cells of a model, or of tasks, that are not here: counts from the catalogue."""
    names = [DENSE, *variant_names([entry.recipe for entry in study.entries])]
    profile = PROFILES["s1"]  # its caps are those of every profile but tiny's
    lines = []
    for plan, word in zip(study.plans, plan_names(study.plans), strict=True):
        problems = tokens = 0
        for task in plan.tasks:
            kind = TASKS[task].kind if task in TASKS else load_task(task)[0].kind
            found = promised(task) if task in TASKS else len(load_task(task))
            count = min(found, plan.limit or found)
            problems += count
            cap = plan.answer_tokens or profile.answer_cap(kind, plan.mode)
            tokens += plan.samples * count * chain_tokens(plan, len(plan.budgets) * cap)
        answers = problems * plan.samples * len(plan.budgets)
        lines += [Line(typed, name, word, None, problems, answers, 0, tokens, None) for name in names]
    return lines


def chain_tokens(plan: EvalPlan, answers: int) -> int:
    """What one chain takes at most: thinking, and an answer for every budget, which take so many tokens together."""
    shared = plan.reuse and plan.wait == 0
    return (max(plan.budgets) if shared else sum(plan.budgets)) + answers
