"""What can be planned without a model or a problem set that is not on this disk."""

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
class PlannedCell:
    """What is planned for one cell.

    run: its id, None while that is not known. problems, answers: counts. done: answers in the store. tokens: most that
    the missing answers can take; tokens_expected: what they take if chains stay as long as those so far.
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
    """Name and reason of each problem set that cannot be read here; PrunusError for one that does not exist."""
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
    """Number of problems of a task by its description in the catalogue; 0 where that gives none."""
    found = re.match(r"\d+", TASKS[task].description)
    return int(found[0]) if found else 0


def local_folder(study: Study, model: str) -> Path | None:
    """The folder of a model, None for one of the hub that is not downloaded; PrunusError for any other model."""
    if Path(model).expanduser().exists() or not is_hub_id(model):
        return folder_of(study, model)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, allow_patterns=HUB_PATTERNS, local_files_only=True))
        Checkpoint(folder)
    except Exception:  # the hub client raises errors of several libraries; half a download cannot be opened
        return None
    return folder


def plan_from_catalogue(study: Study, model: str) -> list[PlannedCell]:
    """The cells of a model where it or a problem set is not on this disk: counts are the catalogue's."""
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
    return lines


def chain_tokens(plan: EvalPlan, answers: int) -> int:
    """Most tokens that one chain can take: its thinking, and the answers of all budgets (answers: their sum)."""
    shared = plan.reuse and plan.wait == 0
    return (max(plan.budgets) if shared else sum(plan.budgets)) + answers
