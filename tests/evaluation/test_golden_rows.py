"""Rows of the tiny reasoner as the first version with protocol 3 computed them: ids of runs, seeds and texts stay.

data/golden_rows.json has them; `python tests/evaluation/test_golden_rows.py` writes it anew.
"""

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import prunus
from prunus.errors import PrunusError
from prunus.recipes import EvalPlan
from prunus.store.store import Store

FILE = Path(__file__).parents[1] / "data" / "golden_rows.json"
FEW = {"tasks": ("tiny",), "limit": 7, "batch_size": 5}
PLANS = {
    "one chain for all budgets": EvalPlan(**FEW, budgets=(0, 1, 6, 24), samples=2, temperature=0.9, top_k=12),
    "a chain for each budget": EvalPlan(**FEW, budgets=(0, 4, 16), temperature=0.9, reuse=False),
    "refused stops": EvalPlan(**FEW, budgets=(30,), temperature=0.8, wait=2),
    "legacy": EvalPlan(**FEW, budgets=(4, 40), mode="legacy", answer_tokens=200),
}


def rows(plan: EvalPlan) -> dict[str, list]:
    """Run id, and of every row its counts, a digest of its texts and its scores."""
    with TemporaryDirectory() as folder:
        run_id = prunus.evaluate("tiny", plan, Path(folder) / "results.db", device="cpu").run_id
        with Store(Path(folder) / "results.db") as store:
            samples = store.samples(run_id, texts=True)
    found: dict[str, list] = {"run": [run_id]}
    for s in samples:
        digest = hashlib.sha256(f"{s.thinking}\n{s.text}\n{s.answer}".encode()).hexdigest()[:12]
        counts = [s.thinking_tokens, s.answer_tokens, s.forced_tokens, s.answer_cap, s.ended, s.correct, digest]
        scores = [s.logprob, s.self_certainty]
        found[f"{s.problem_id} {s.budget} {s.draw}"] = [*counts, *(x and round(x, 9) for x in scores)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_rows_stay(name):
    expected = json.loads(FILE.read_text())[name]
    found = rows(PLANS[name])
    assert {key: row[:7] for key, row in found.items()} == {key: row[:7] for key, row in expected.items()}
    for key, row in found.items():  # the last bits depend on the processor, and on how rows are put together
        assert row[7:] == pytest.approx(expected[key][7:], rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_sampled_runs_of_an_earlier_protocol_are_not_continued(tmp_path):
    few = replace(PLANS["a chain for each budget"], limit=2)
    path = tmp_path / "results.db"
    run_id = prunus.evaluate("tiny", few, path, device="cpu").run_id
    plan = replace(few, budgets=(4,), temperature=None, reuse=True)
    greedy = prunus.evaluate("tiny", plan, path, device="cpu").run_id
    with Store(path) as store:
        assert [store.run(one).environment.protocol for one in (run_id, greedy)] == ["3", "2"]
        store.update_environment(run_id, {"protocol": "2"})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM sample WHERE run_id = ? AND budget = 16", (run_id,))
    with pytest.raises(PrunusError, match="protocol is 3, not 2"):
        prunus.evaluate("tiny", few, path, device="cpu")


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: rows(plan) for name, plan in PLANS.items()}, indent=0) + "\n")
