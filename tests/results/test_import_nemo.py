"""Logs of NeMo-Skills and NeMo Evaluator, written here as their documentation describes them."""

import json
from pathlib import Path
from typing import Any

import pytest

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.store.store import Store

PROBLEMS = 12


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outputs(folder: Path, seed: int, right: int, **more: Any) -> Path:
    """A file of NeMo-Skills, in which the first `right` problems are solved."""
    rows = [
        {
            "problem": f"What is {n} times {n}?", "expected_answer": str(n * n), "id": f"p{n}",
            "generation": f"so \\boxed{{{n}}}", "predicted_answer": str(n), "symbolic_correct": n < right,
            "num_generated_tokens": 10 + n, **more,
        }
        for n in range(PROBLEMS)
    ]  # fmt: skip
    return lines(folder / "eval-results" / "squares" / f"output-rs{seed}.jsonl", rows)


@pytest.mark.slow
def test_the_seeds_of_nemo_skills_are_draws_of_one_run(tmp_path, capsys):
    store = tmp_path / "r.db"
    for name, right in (("dense", 9), ("w4", 6)):
        files = [outputs(tmp_path / name, seed, right - seed) for seed in (0, 1)]
        made = prunus.import_(store, files, name)
        assert (made.tool, made.metric, made.problems, made.rows) == ("NeMo-Skills", "symbolic_correct", 12, 24)
    with Store(store) as opened:
        run = opened.find_run("dense")
        rows = {(row.draw, row.problem_id): row for row in opened.samples(run.run_id, texts=True)}
        assert {draw for draw, _ in rows} == {0, 1}
        assert [sum(row.correct for (draw, _), row in rows.items() if draw == seed) for seed in (0, 1)] == [9, 8]
        assert {row.task for row in opened.problems().values()} == {"squares"}
    (entry,) = prunus.compare(store, "dense")
    assert entry.primary.difference == pytest.approx(-3 / 12)
    with pytest.raises(PrunusError, match="both have task 'squares'"):
        prunus.import_(store, [outputs(tmp_path / "a", 0, 1), outputs(tmp_path / "b", 0, 1)], "twice")
    judged = outputs(tmp_path / "judge", 0, 3, judgement="Reasoning: same.\nJudgement: Yes")
    main(["import", str(store), str(judged), "--as", "judged", "--metric", "judgement", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"] == 12
    with Store(store) as opened:
        assert all(row.correct for row in opened.samples(opened.find_run("judged").run_id))


@pytest.mark.slow
def test_repeats_of_nemo_evaluator_are_draws_and_its_numbers_are_problems(tmp_path):
    store = tmp_path / "r.db"
    for name, right in (("dense", 9), ("w4", 6)):
        rows = [
            {"problem_idx": n, "reward": float(n < right - repeat), "repeat": repeat, "expected_answer": "42",
             "model_response": f"It is {n}.", "metadata": {"category": "sums"}}
            for n in range(PROBLEMS) for repeat in (0, 1)
        ]  # fmt: skip
        made = prunus.import_(store, lines(tmp_path / name / "results.jsonl", rows), name)
        assert (made.tool, made.metric, made.problems, made.rows) == ("NeMo Evaluator", "reward", 12, 24)
    (entry,) = prunus.compare(store, "dense")
    assert entry.primary.difference == pytest.approx(-3 / 12)
    with Store(store) as opened:
        assert len({row.group or row.problem_id for row in opened.problems().values()}) == PROBLEMS, (
            "equal answers are no equal problems"
        )
    broken = lines(tmp_path / "results.jsonl", [{"problem_idx": "a", "reward": 1.0}])
    with pytest.raises(PrunusError, match="has no usable 'problem_idx'"):
        prunus.import_(store, broken, "broken")
