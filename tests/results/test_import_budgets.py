"""Logs of several budgets, imported as one run, which then has a curve."""

import json
from pathlib import Path

import pytest

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.store.store import Store

PROBLEMS = 200
# Of the problems, those that are solved within each budget, by model; outputs are as long as their budget.
SOLVED = {"dense": {64: 40, 128: 120, 256: 160, 512: 161}, "pruned": {64: 0, 128: 40, 256: 120, 512: 160}}


def log(folder: Path, name: str, budget: int) -> Path:
    """A file of NeMo-Skills of a budget."""
    rows = [
        {
            "problem": f"What is {number} times {number}?", "expected_answer": str(number * number),
            "id": f"p{number}", "generation": "so", "predicted_answer": "1",
            "symbolic_correct": number < SOLVED[name][budget], "num_generated_tokens": budget,
        }
        for number in range(PROBLEMS)
    ]  # fmt: skip
    path = folder / name / str(budget) / "squares" / "output-rs0.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("budgets")
    for name, solved in SOLVED.items():
        files = [log(folder, name, budget) for budget in solved]
        options = [word for budget in solved for word in ("--budget", str(budget))]
        main(["import", str(folder / "r.db"), *map(str, files), "--as", name, *options])
    return folder / "r.db"


@pytest.mark.slow
def test_logs_of_several_budgets_are_one_curve(store, tmp_path):
    (entry,) = prunus.compare(store, "dense")
    areas = [
        (shares[64] / 2 + shares[128] + shares[256] + shares[512] / 2) / 3 / PROBLEMS for shares in SOLVED.values()
    ]
    assert entry.primary.difference == pytest.approx(areas[1] - areas[0])
    assert entry.verdict == "worse"
    prunus.report(store, tmp_path / "page.html", base="dense")
    page = (tmp_path / "page.html").read_text()
    assert "(as run)" not in page and "Budget 256" in page


@pytest.mark.slow
def test_efforts_are_read_from_logs(store, capsys):
    dense, pruned = prunus.efforts(store, base="dense").runs
    assert list(dense.budgets) == [64, 128, 256, 512]
    assert list(dense.solves) == pytest.approx([solved / PROBLEMS for solved in SOLVED["dense"].values()])
    levels = {level.name: level.budget for level in dense.levels}
    assert levels == {"full": 512, "high": 512, "medium": 256, "low": 256}  # 256 loses half a point, 128 loses 20
    assert dense.levels[1].note == "200 problems are too few where nothing differs: at least 220"
    assert pruned.exchange is not None
    # With 512 tokens the pruned model solves what the original does with 256, and with 256 what that does with 128.
    assert [(step.base_budget, step.above, step.below) for step in pruned.exchange.as_right] == [
        (256, 256, None),
        (512, 256, None),
    ]
    capsys.readouterr()
    main(["efforts", str(store), "--run", "dense", "--for", "json"])
    assert "256" in capsys.readouterr().out


@pytest.mark.slow
def test_budgets_that_do_not_fit_the_files_are_refused(tmp_path):
    files = [log(tmp_path, "dense", budget) for budget in (64, 128)]
    for budgets, words in (
        ([64], "2 files have 1 budgets"),
        ([64, 0], "above 0, not 0"),
        ([64, 64], "give the --budget of each"),
        ([], "give the --budget of each"),
    ):
        with pytest.raises(PrunusError, match=words):
            prunus.import_(tmp_path / "r.db", files, "dense", budgets=budgets)
    assert not (tmp_path / "r.db").exists()
    prunus.import_(tmp_path / "r.db", files, "dense", budgets=[64, 128])
    with Store(tmp_path / "r.db") as opened:
        assert {row.budget for row in opened.samples(opened.find_run("dense").run_id)} == {64, 128}
