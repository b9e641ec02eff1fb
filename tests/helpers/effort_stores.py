"""Stores of runs whose accuracy rises with the budget."""

from math import comb
from pathlib import Path

import numpy as np

from prunus.store.rows import ProblemRow, Run, Sample
from prunus.store.store import Store

BUDGETS = (64, 96, 128, 192, 256)

LENGTH, ENDS = 150, ("forced", "natural")  # of chains


def sample(problem: str, budget: int, draw: int, correct: bool, tokens: int, ended: str) -> Sample:
    status = "ok" if correct else "no_answer"
    return Sample("a", problem, budget, draw, tokens, 5, 0, ended, False, False, "1", status, correct)  # pyright: ignore[reportArgumentType]


def store_of(path: Path, models, planned=None, budgets=BUDGETS, together=1, **of_plan) -> Path:
    """A store with a run for each model: {name: (P, B, N) whether each draw is right}; chains end at 150 tokens.

    together: how many problems each group has. of_plan: settings of the runs' plans.
    """
    with Store(path, create=True) as store:
        for number, (name, right_PBN) in enumerate(models.items()):
            problems = [f"a-{number:04d}" for number in range(len(right_PBN))]
            groups = [f"g-{p // together:04d}" if together > 1 else None for p in range(len(problems))]
            store.add_problems(
                ProblemRow("a", problem, "1", "exact", (), problem, group=group)
                for problem, group in zip(problems, groups, strict=True)
            )
            history = [] if number == 0 else [{"action": "prune", "recipe": {"method": "wanda"}}]
            model = {"name": name, "checksum": name, "manifest": {"history": history}}
            draws = right_PBN.shape[2]
            plan = {"tasks": ["a"], "mode": "strict", "budgets": list(budgets), "samples": draws, "problems": "p"}
            plan |= of_plan
            store.add_run(Run.of(name, model, plan, {"grader": "4"}, planned=planned))
            rows = [
                sample(problem, budget, n, bool(right_PBN[p, b, n]), min(budget, LENGTH), ENDS[budget >= LENGTH])
                for p, problem in enumerate(problems)
                for b, budget in enumerate(budgets)
                for n in range(draws)
            ]
            store.add_samples(name, rows)
    return path


def rising(generator, problems=120, draws=1, shares=(0.3, 0.55, 0.8, 0.86, 0.88)):
    """Rows whose problems have one threshold each, so that accuracy rises, with a little noise per row."""
    luck = generator.random((problems, 1, draws))
    right = luck < np.array(shares)[None, :, None]
    return right ^ (generator.random(right.shape) < 0.02)


def exact_p(lost: int, gained: int, n: int, margin: float) -> float:
    """Tango's order and every outcome, over a fine grid of the share gained, by plain loops."""

    def statistic(x: int, y: int) -> float:
        b = (x + y) * (1 + margin) - 2 * margin * y - 2 * margin * n
        q = (b + np.sqrt(b * b + 8 * n * y * margin * (1 - margin))) / (4 * n)
        return ((y - x) / n + margin) / np.sqrt((2 * q + margin - margin**2) / n)

    seen = statistic(lost, gained)
    good = [(x, y) for x in range(n + 1) for y in range(n + 1 - x) if statistic(x, y) >= seen - 1e-9]
    worst = 0.0
    for share in np.linspace(1e-9, (1 - margin) / 2, 400):
        p = sum(
            comb(n, x) * comb(n - x, y) * (share + margin) ** x * share**y * (1 - 2 * share - margin) ** (n - x - y)
            for x, y in good
        )
        worst = max(worst, p)
    return worst
