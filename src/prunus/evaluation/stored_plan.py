"""Rebuild the plan and the problems of a stored run from the store."""

from dataclasses import fields
from typing import cast

from prunus.errors import PrunusError
from prunus.evaluation.tasks.problem import AnswerKind, Problem
from prunus.recipes import EvalPlan
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.store.stored import StoredPlan


def plan_of(stored: StoredPlan) -> EvalPlan:
    """The EvalPlan that resolves to a stored plan, apart from its problems."""
    names = {field.name for field in fields(EvalPlan)}
    given = {name: value for name, value in stored.data.items() if name in {*names, "backend"}}
    if not isinstance(given["answer_tokens"], int):  # they differ by kind, as they do by default
        given["answer_tokens"] = None
    return EvalPlan.from_json(given)


def problems_of(store: Store, run: Run) -> list[Problem]:
    """All problems of a run's plan, in its order, as stored. Raises PrunusError where the store lacks a question."""
    order = run.planned.order if run.planned else None
    if order is None:
        raise PrunusError("the store does not list the problems of its plan")
    rows, problems = store.problems(), list[Problem]()
    for task, names in order.items():
        for name in names:
            row, question = rows[name], store.question(name)
            if question is None:
                raise PrunusError(f"the store lacks the question of problem {name}")
            group = row.group if row.group not in (None, name) else ""
            kind = cast(AnswerKind, row.kind)
            problems.append(Problem(name, task, question, row.gold, kind, row.choices, group=group or ""))
    return problems
