"""A store that fills all sections of a report: both modes, several draws, a run that is not finished."""

from dataclasses import replace
from pathlib import Path

from fake_store import HOSTILE, draw_samples, make_store, run_of

from prunus.recipes import EvalPlan
from prunus.store.store import Store

BUDGETS = (0, 64, 128, 256, 512, 1024)
NAMES = ("tiny", "wanda-20", "wanda-50", "drop-1")
DRAWS = 4


def rich_store(path: Path, problems: int = 60) -> Path:
    """Write strict runs of four models, of which drop-1 has half of its rows, and legacy runs of two, which leak."""
    make_store(path, names=NAMES[:3], problems=problems, budgets=BUDGETS, draws=DRAWS)
    plan = EvalPlan(tasks=("tiny",), budgets=BUDGETS, samples=DRAWS)
    with Store(path) as store:
        rows = list(store.problems().values())
        half = run_of("drop-1", plan, 3, rows)
        store.add_run(half)
        store.add_samples(half.run_id, draw_samples("drop-1", rows[: problems // 2], BUDGETS, DRAWS, HOSTILE))
        for number, name in enumerate(NAMES[:2]):
            run = run_of(name, replace(plan, mode="legacy"), number, rows)
            run = replace(run, plan=run.plan | {"answer_tokens": 32768})
            store.add_run(run)
            samples = draw_samples(name, rows, BUDGETS, DRAWS, ())
            store.add_samples(run.run_id, [leaking(s) for s in samples])
    return path


def leaking(sample):
    """The draw, with half of the forced ends changed into long correct answers, as if thinking continued in them."""
    if sample.ended == "natural" or sample.draw % 2:
        return sample
    gold = sample.problem_id.rsplit("-", 1)[1].lstrip("0") or "0"
    return replace(sample, answer_tokens=900, correct=True, answer=gold, status="ok")
