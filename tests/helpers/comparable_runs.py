"""Stores of runs with given or random grades."""

from itertools import product
from pathlib import Path

import numpy as np

from prunus.store.rows import ProblemRow, Run, Sample
from prunus.store.store import Store

BUDGETS = (0, 16, 64)

PLAN = {"mode": "strict", "temperature": 0.6, "budgets": list(BUDGETS)}


def row(task, problem, budget, draw, correct, **values):
    usual = {
        "thinking_tokens": budget,
        "answer_tokens": 5,
        "forced_tokens": 2,
        "ended": "forced",
        "answer_truncated": False,
        "reopened_think": False,
        "answer": "1" if correct else "0",
        "status": "ok",
    }
    return Sample(task, f"{task}-{problem}", budget, draw, correct=bool(correct), **usual | values)


def grid(correct, tasks=("a",), problems=6, budgets=BUDGETS, draws=1):
    """Samples of a full grid; correct(task, problem, budget, draw) decides."""
    keys = product(tasks, range(problems), budgets, range(draws))
    return [
        row(task, problem, budget, draw, correct(task, problem, budget, draw)) for task, problem, budget, draw in keys
    ]


def fill(path: Path, runs, plans=None, versions=None):
    """A store with a run per name; runs: name -> samples. versions: of the runs; None: with a grader."""
    with Store(path, create=True) as store:
        for number, (name, samples) in enumerate(runs.items()):
            problems = {s.problem_id: ProblemRow(s.task, s.problem_id, "1", "exact", (), "d") for s in samples}
            store.add_problems(problems.values())
            plan = PLAN | (plans or {}).get(name, {})
            history = (
                [] if name == "dense" else [{"action": "prune", "recipe": {"sparsity": 0.5}, "sparsity": {"x": 0.5}}]
            )
            model = {"name": name, "manifest": {"history": history}}
            store.add_run(
                Run.of(f"{number:x}{'f' * 11}", model, plan, {"grader": "1"} if versions is None else versions)
            )
            store.add_samples(f"{number:x}{'f' * 11}", samples)
    return path


def random_run(seed, chance, **shape):
    rng = np.random.default_rng(seed)
    return grid(lambda *_: rng.random() < chance, **shape)


def mean(values):
    values = list(values)
    return sum(values) / len(values)
