"""What is said of one finite set of problems, beside the verdict: by a sample of it, decoded greedily."""

from dataclasses import replace

import numpy as np
import pytest
from comparable_runs import random_run
from staged_runs import add

from prunus.questions import sampling_key
from prunus.results.comparison import compare
from prunus.statistics import finite

SIZE, SAMPLE = 120, 80
OF = {"limit_of": {"seed": 0, "tasks": ["a"], "sizes": [SIZE]}}
GREEDY = {"temperature": 0, "budgets": [16]}
TAKEN = sorted((f"a-{p}" for p in range(SIZE)), key=sampling_key)[:SAMPLE]
CHANGED = {TAKEN[place]: place > 2 for place in range(8)}  # three are lost and five are gained


def compared(folder, limits=(SAMPLE, SAMPLE), budgets=(16,), more=OF, draws=1, margin=0.05, **plan):
    """The entries of runs of which eight of the sampled problems differ from the base's."""
    rows = random_run(0, 0.8, problems=SIZE, budgets=budgets, draws=draws)
    dense = [replace(s, correct=not CHANGED.get(s.problem_id, not s.correct)) for s in rows]
    other = [replace(s, correct=CHANGED.get(s.problem_id, s.correct)) for s in rows]
    for name, samples, limit in zip(("dense", "pruned"), (dense, other), limits, strict=True):
        about = GREEDY | {"budgets": list(budgets)} | plan
        add(folder / "s.db", name, samples, limit=limit, draws=draws, more=more if limit else None, **about)
    return compare(folder / "s.db", "dense", ["pruned"], margin=margin, resamples=200).others


def test_a_greedy_sample_says_more_of_its_set(tmp_path):
    (entry,) = compared(tmp_path)
    bound, within = finite.bound(np.repeat([-1.0, 0.0, 1.0], [3, SAMPLE - 8, 5]), SIZE, 0.05, 0.05, one_outcome=True)
    assert entry.to_json()["of_set"] == {"size": SIZE, "lower_bound": bound, "within_margin": within}
    assert entry.primary.lower_bound < bound < 0
    assert entry.warnings[-1] == (
        f"of these 120 problems, of which 80 are a random sample: the difference is {100 * bound:+.1f} points or more"
        " (95 %), so a loss of 5 points is ruled out; this holds for no other problems"
    )


def test_an_area_takes_bets_in_the_order_of_the_sample(tmp_path):
    (entry,) = compared(tmp_path, budgets=(16, 64))
    differences = np.zeros(SAMPLE)
    differences[:8] = [-1, -1, -1, 1, 1, 1, 1, 1]
    assert entry.of_set and entry.of_set.lower_bound == finite.bets_lower_bound(differences, SIZE, 0.05, [-0.05])
    assert finite.bets_lower_bound(differences[::-1], SIZE, 0.05, [-0.05]) != entry.of_set.lower_bound


def test_a_whole_run_beside_the_sample_changes_nothing(tmp_path):
    (entry,) = compared(tmp_path, limits=(None, SAMPLE))
    assert entry.of_set and entry.of_set.size == SIZE


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.6},
        {"draws": 2},
        {"limits": (None, None)},
        {"more": {}},
        {"more": {"limit_of": {"seed": 0, "tasks": ["a"]}}},
        {"margin": "5%"},
    ],
    ids=[
        "sampled chains",
        "several draws",
        "the whole set",
        "the first problems",
        "a set of unknown size",
        "a relative margin",
    ],
)
def test_nothing_is_said_where_more_than_the_sample_is_random_or_the_size_is_unknown(tmp_path, other):
    (entry,) = compared(tmp_path, **other)
    assert entry.of_set is None and not any("of these" in text for text in entry.warnings)
