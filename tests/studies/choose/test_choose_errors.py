"""The benchmark of choices on real rows: what it reads, and that it counts false claims."""

from pathlib import Path

import numpy as np
import pytest
from choose_errors import COSTLIEST, ROWS, costliest_table, of_rows, of_store, sizes_table, write
from helpers.small_choice import BUDGETS, FORMS, Made, declared_of
from simulations import choose as simulated
from simulations.choose import KINDS

import prunus

ROOT = Path(__file__).parents[3]


def test_rows_of_a_published_table_are_choices_by_problems():
    found = dict(of_rows(ROOT / "benchmarks/serving.csv"))
    assert {name: values.shape for name, values in found.items()} == {
        "vLLM, 0.5B": (100, 6 * 3),
        "vLLM, 1.5B": (40, 5 * 3),
        "vLLM, 0.5B, Magnitude 50 %": (60, 3 * 3),
        "llama.cpp, 0.5B": (40, 7 * 3),
    }
    shares = 100 * found["vLLM, 0.5B"][:, :3].mean(axis=0)
    assert list(shares) == pytest.approx([2, 20, 21])  # the page's KV bf16


def test_the_page_has_the_tables_that_follow_from_the_rows():
    page = (ROOT / "docs/measurements/choose.md").read_text("utf-8")
    for table in (sizes_table, costliest_table):
        assert "\n".join(table()) in page


@pytest.mark.slow
@pytest.mark.parametrize(("name", "costliest"), [("sizes", False), ("costliest", True)])
def test_rows_of_the_tables_are_those_that_the_command_writes_today(tmp_path, name, costliest):
    """The first run of each truth of six choices, with up to 200 problems."""
    sizes = [("all equal", 6, 40), ("all equal", 6, 100)]
    write(tmp_path / "rows.csv", [(kind, *COSTLIEST) for kind in KINDS] if costliest else sizes, 1, costliest)
    first = [line.split(",") for line in (tmp_path / "rows.csv").read_text().splitlines()]
    published = [line.split(",") for line in ROWS[name].read_text().splitlines()]
    assert all(line in published for line in first) and len(first) == 1 + 2 * (len(KINDS) if costliest else 2)


@pytest.mark.slow
def test_rows_of_a_store_and_those_exported_from_it_are_the_same(tmp_path):
    made = Made(tmp_path / "results.db", declared_of(40, samples=2))
    made.provide([form.run for form in made.declared.forms], 0, 40)
    prunus.export(made.store.path, tmp_path / "out")
    ((_, exported),) = of_rows(tmp_path / "out" / "samples.csv")
    ((task, stored),) = of_store(made.store.path)
    assert task == "sums" and stored.shape == (40, len(FORMS) * len(BUDGETS))
    assert sorted(map(tuple, exported.T)) == sorted(map(tuple, stored.T))
    assert set(np.unique(stored)) <= {0.0, 0.5, 1.0} and len(np.unique(stored)) > 1


@pytest.mark.slow
def test_false_claims_on_real_rows_are_counted(monkeypatch):
    values = np.random.default_rng(0).random((60, 4)) < 0.5
    found = simulated.resampled(values.astype(float), 20)
    assert found["x false"] == 0 and found["x"] > 0.03 and found["regret"] > 0
    monkeypatch.setattr(simulated, "excess", lambda seen, *_: np.zeros(seen.shape[1]))
    assert simulated.resampled(values.astype(float), 20)["x false"] > 0.2
