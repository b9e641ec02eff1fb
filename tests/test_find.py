"""`find` walks a ladder and certifies what holds; rows, order and marks that it leaves in the store."""

from pathlib import Path

import numpy as np

from prunus.results.order import interleaved, seeded_order
from prunus.results.rows import Run
from prunus.results.store import Store


def test_the_order_of_problems_is_that_of_any_part_of_them():
    ids = [f"p{number}" for number in range(200)]
    whole = seeded_order(ids, 3)
    assert sorted(whole) == sorted(ids) and whole != seeded_order(ids, 4)
    assert seeded_order(reversed(ids[50:]), 3) == [problem for problem in whole if problem in ids[50:]]


def test_tasks_are_interleaved_so_that_every_part_has_the_same_share_of_each():
    tasks = {"small": [f"s{n}" for n in range(20)], "large": [f"l{n}" for n in range(60)]}
    order = interleaved(tasks, 0)
    assert {problem for _, problem in order} == {*tasks["small"], *tasks["large"]}
    small = np.cumsum([task == "small" for task, _ in order])
    assert np.abs(small - np.arange(1, 81) / 4).max() <= 1
    for task, ids in tasks.items():
        assert [problem for name, problem in order if name == task] == seeded_order(ids, 0)


def test_a_run_is_marked_as_adaptively_collected_once_and_other_runs_are_not(tmp_path: Path):
    runs = [Run(name, {}, {}, {}) for name in ("a", "b")]
    with Store(tmp_path / "r.db", create=True) as store:
        for run in runs:
            store.add_run(run)
        assert store.runs() == runs  # also without the table
        store.mark_adaptive("b", {"by": "find", "seed": 1})
        store.mark_adaptive("b", {"by": "find", "seed": 2})
        assert [run.adaptive for run in store.runs()] == [None, {"by": "find", "seed": 1}]
