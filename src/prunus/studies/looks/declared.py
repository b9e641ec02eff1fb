"""Contradictions between a store and the plan, the problems and the groups that a search or a choice declares."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.checkpoint.resolve import BUILT_IN, resolve
from prunus.errors import PrunusError
from prunus.statistics.anytime import First
from prunus.store.store import Store, same_groups
from prunus.store.stored import StoredPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def about_plan(plan: StoredPlan, declared: Mapping[str, int | Sequence[int]], who: str) -> list[str]:
    """A sentence for each setting of a run's plan that differs from its declared value; unset ones are left out.

    declared: values by name of the setting. who: the kind of document that declares them, such as `certificate`.
    """
    differences = []
    for name, value in declared.items():
        stored = getattr(plan, name)
        sides = [sorted(map(str, side)) if isinstance(side, Sequence) else side for side in (stored, value)]
        if stored not in (None, [], ()) and sides[0] != sides[1]:
            stored = [*stored] if isinstance(stored, tuple) else stored
            differences.append(f"{name} of the runs in the store are {stored}, the {who} declares {value}")
    return differences


def about_problems(store: Store, problems: Mapping[str, Sequence[str]], plan: StoredPlan) -> list[str]:
    """A sentence if the declared problems, ids by task, are not those of the runs' plan, by its hash of them."""
    if plan.problems is None:
        return []
    stored = store.problems()
    if missing := sorted(name for names in problems.values() for name in names if name not in stored):
        return [f"the store lacks problem '{missing[0]}' ({len(missing)} in all), which are declared"]
    tasks = [*(task for task in plan.tasks if task in problems), *sorted(problems.keys() - {*plan.tasks})]
    lines = (f"{task}\t{name}\t{stored[name].digest}" for task in tasks for name in problems[task])
    if hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == plan.problems:
        return []
    number = sum(map(len, problems.values()))
    return [f"the {number} problems that are declared are not those of the runs' plan, by its hash of them"]


def about_groups(by_task: Mapping[str, Sequence[str]], declared: First, stored: First) -> list[str]:
    """A sentence if the store groups the problems otherwise than declared.

    by_task: ids of the problems. declared, stored: first problem of the group, for problems that are not alone.
    """
    problems = [problem for of_task in by_task.values() for problem in of_task]
    sides = [{p: groups.get(p, p) for p in problems} for groups in (declared, stored)]
    if same_groups(*sides):
        return []
    declared_groups, stored_groups = (len(set(side.values())) for side in sides)
    return [
        f"the {len(problems)} problems are {stored_groups} groups in the store, which are declared as {declared_groups}"
    ]


def tokenizer_of(beside: Path | None, source: str) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of the rows that are verified: from the folder `beside` if it has one, else the model's, else None.

    beside: the folder of the certificate or choice. source: the model as it was named.
    """
    from prunus.checkpoint.resolve import load_tokenizer

    folder = beside if beside is not None and (beside / "tokenizer.json").exists() else at_hand(source)
    try:
        return None if folder is None else load_tokenizer(folder)
    except PrunusError:
        return None


def at_hand(source: str) -> Path | None:
    """The folder of a model as it was named; None if there is none. Nothing is downloaded."""
    return resolve(source) if source in BUILT_IN or (Path(source) / "config.json").exists() else None
