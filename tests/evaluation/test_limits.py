"""A limit takes a sample of a built-in set, always the same."""

import json
from pathlib import Path

import pytest

import prunus
from prunus.evaluation.tasks import TASKS, Problem, Task, load_task
from prunus.recipes import EvalPlan
from prunus.store.labels import plan_in_short
from prunus.store.store import Store

SIZE = 60
PLAN = EvalPlan(tasks=("ordered",), budgets=(4,), limit=3, answer_tokens=4, profile="tiny")


def problems() -> list[Problem]:
    """A set that begins with its easy problems."""
    return [Problem(f"ordered/{n:02d}", "ordered", f"{n} + {n * n} =", str(n + n * n), "exact") for n in range(SIZE)]


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "ordered", Task("ordered", "made", "exact", "sums", problems, SIZE))


def ids(name: str | Path, limit: int | None = None) -> list[str]:
    return [problem.id for problem in load_task(name, limit)]


def test_a_limit_takes_a_sample_to_which_a_larger_one_adds(ordered):
    whole, few, many = ids("ordered"), ids("ordered", 10), ids("ordered", 40)
    assert whole == ids("ordered", SIZE) == ids("ordered", 99) == sorted(whole), "all of them are in their own order"
    assert few == ids("ordered", 10) == many[:10] and set(many) < set(whole)
    numbers = [int(name[-2:]) for name in few]
    assert max(numbers) >= SIZE // 2 and few != whole[:10], "they are from the whole set"


def test_files_and_sets_whose_order_is_random_keep_their_first_problems(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"p{n}", "problem": f"{n}?", "answer": "1"}) for n in range(20)))
    assert ids(file, 4) == ["p0", "p1", "p2", "p3"]
    assert ids("tiny", 84) == ids("tiny")[:84] and TASKS["mmlu_pro"].mixed and TASKS["supergpqa"].mixed
    assert not any(TASKS[name].mixed for name in ("gsm8k", "math500", "aime24", "gpqa_diamond", "arc_challenge"))


@pytest.mark.slow
def test_a_run_of_a_sample_says_so(ordered, tmp_path, capsys):
    run = prunus.evaluate("tiny", PLAN, tmp_path / "new.db").run_id
    assert "limit 3 of ordered: a sample, always the same one" in capsys.readouterr().err
    with Store(tmp_path / "new.db") as opened:
        plan = opened.run(run).plan
        assert "ordered, a sample of 3 problems" in plan_in_short(plan)
        assert plan.data["limit_of"] == {"seed": 0, "tasks": ["ordered"], "sizes": [SIZE]}
        assert {key[0] for key in opened.keys(run)} == set(ids("ordered", 3))
