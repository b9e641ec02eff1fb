"""Runs that were begun one after the other."""

from prunus.plain_data import content_hash
from prunus.questions import sampling_key
from prunus.store.rows import PlannedProblems, ProblemRow, Run
from prunus.store.store import Store

PLAN = {"mode": "strict", "temperature": 0.6, "budgets": [0, 16, 64], "tasks": ["a"], "samples": 1, "limit": None}

STEP = {"action": "prune", "recipe": {"sparsity": 0.5}, "sparsity": {"x": 0.5}, "source": {"name": "dense"}}

HISTORY = {"dense": [], "pruned": [STEP]}

IDS = [f"a-{p}" for p in range(120)]


def add(store, model, samples, limit=None, draws=1, left_out=(), more=None, ids=IDS, **plan):
    """Add a run of the first `limit` of these problems and return its id; left_out: numbers of problems without rows.

    more: of the plan; with `limit_of` the limit takes a sample.
    """
    ids = (sorted(ids, key=sampling_key) if more and limit else list(ids))[:limit]
    plan = PLAN | {"limit": limit, "samples": draws, "problems": f"first {limit}"} | plan | (more or {})
    run_id = content_hash([model, plan])
    wanted = set(ids) - {f"a-{p}" for p in left_out}
    planned = PlannedProblems(len(ids), {plan["tasks"][0]: ids})
    with Store(store, create=True) as opened:
        opened.add_problems(ProblemRow(plan["tasks"][0], one, "1", "exact", (), "d") for one in ids)
        history = {"history": HISTORY[model]}
        described = {"name": model, "manifest": history, "checksum": model}
        opened.add_run(Run.of(run_id, described, plan, {"grader": "1"}, planned=planned))
        opened.add_samples(run_id, [s for s in samples if s.problem_id in wanted and s.draw < draws])
    return run_id
