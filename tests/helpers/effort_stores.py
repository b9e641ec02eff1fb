"""Stores of runs whose accuracy rises with the budget."""

from pathlib import Path

from prunus.store.rows import ProblemRow, Run, Sample
from prunus.store.store import Store

BUDGETS = (64, 96, 128, 192, 256)

LENGTH, ENDS = 150, ("forced", "natural")  # of chains


def sample(problem: str, budget: int, draw: int, correct: bool, tokens: int, ended: str) -> Sample:
    status = "ok" if correct else "no_answer"
    return Sample("a", problem, budget, draw, tokens, 5, 0, ended, False, False, "1", status, correct)  # pyright: ignore[reportArgumentType]


def store_of(path: Path, models, planned=None, budgets=BUDGETS) -> Path:
    """A store with a run for each model: {name: (P, B, N) whether each draw is right}; chains end at 150 tokens."""
    with Store(path, create=True) as store:
        for number, (name, right_PBN) in enumerate(models.items()):
            problems = [f"a-{number:04d}" for number in range(len(right_PBN))]
            store.add_problems([ProblemRow("a", problem, "1", "exact", (), problem) for problem in problems])
            history = [] if number == 0 else [{"action": "prune", "recipe": {"method": "wanda"}}]
            model = {"name": name, "checksum": name, "manifest": {"history": history}}
            draws = right_PBN.shape[2]
            plan = {"tasks": ["a"], "mode": "strict", "budgets": list(budgets), "samples": draws, "problems": "p"}
            store.add_run(Run(name, model, plan, {"grader": "4"}, planned=planned))
            rows = [
                sample(problem, budget, n, bool(right_PBN[p, b, n]), min(budget, LENGTH), ENDS[budget >= LENGTH])
                for p, problem in enumerate(problems)
                for b, budget in enumerate(budgets)
                for n in range(draws)
            ]
            store.add_samples(name, rows)
    return path
