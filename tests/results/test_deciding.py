"""The interval that decides says what the verdict says: it lies right of the limit, left of 0, or is open."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunus.results import contrasts
from prunus.results.cells import Comparison
from prunus.results.comparison import compare
from prunus.results.contrasts import ENDINGS
from prunus.results.words import interval_in_words, loss_in_words
from prunus.store.rows import PlannedProblems, ProblemRow, Run, Sample
from prunus.store.store import Store
from prunus.store.stored import Adaptive


def disagreements(comparison: Comparison) -> list[str]:
    """What contradicts: a word and its interval, or a sentence on it; by the rule of the page, and nothing else."""
    found = []
    for entry in comparison:
        size = entry.margin.points(entry.primary.base_accuracy)
        if entry.unfinished:
            found += [f"{entry.model}: unfinished"] if entry.low is not None or loss_in_words(entry) else []
            continue
        low, high, text = entry.low, entry.high, loss_in_words(entry)
        assert low is not None and high is not None and low <= entry.primary.difference <= high
        found += wrong(f"{entry.model} accuracy", entry.verdict, low, high, size, entry.within_margin)
        least, most = (float(end.replace("−", "-")) for end in interval_in_words(entry).split(" to "))
        ends = least / 100, most / 100
        found += wrong(f"{entry.model} text", entry.verdict, *ends, size, entry.within_margin, 1e-4)
        start = {"better": "gains", "worse": "loses"}.get(entry.verdict.partition(",")[0])
        start = start or ("loses" if entry.within_margin else "could lose up to")
        found += [] if text.startswith(start) else [f"{entry.model}: {entry.verdict}, {text}"]
        for name, cell in entry.stopping.endings.items():
            assert cell.gain_low is not None and cell.gain_high is not None and cell.verdict is not None
            assert cell.gain_low <= cell.gain <= cell.gain_high
            good = cell.base_share if ENDINGS[name].sign > 0 else 1 - cell.base_share
            limit, within = comparison.stop_margin.points(good), cell.p_margin_adjusted <= 0.05
            found += wrong(f"{entry.model} {name}", cell.verdict, cell.gain_low, cell.gain_high, limit, within)
    return found


def wrong(what: str, word: str, low: float, high: float, size: float, within: bool, near: float = 1e-9) -> list[str]:
    """The rule: right of the limit the loss is ruled out, left of 0 is worse, right of 0 better. Ends may touch."""
    said = {"ruled out": within, "worse": word.startswith("worse"), "better": word == "better"}
    inside = {"ruled out": low + size, "worse": -high, "better": low}  # by how much the bar is where the word says
    return [
        f"{what}: {word} ({key}), {low:+.4f} to {high:+.4f}, limit {-size:+.4f}"
        for key, value in inside.items()
        if (value < -near if said[key] else value > near)
    ]


def simulated(path: Path, rng: np.random.Generator) -> dict[str, Any]:
    """A store with made-up outcomes of every shape of comparison, and the options to compare it with."""
    tasks, draws = ("a", "b")[: 1 + (rng.random() < 0.3)], 1 + (rng.random() < 0.3)
    budgets = (16, 64, 256)[: 1 + int(rng.integers(3))]
    problems, grouped = int(rng.choice([12, 30, 80])), rng.random() < 0.3
    names = [f"v{k}" for k in range(1 + int(rng.integers(3)))]
    change = dict(zip(names, rng.choice([-0.4, -0.15, -0.15, -0.05, 0.0, 0.15], len(names)), strict=True))
    (apart,) = rng.spawn(1)  # which leaves the outcomes as they are
    with Store(path, create=True) as store:
        keys = [(task, number) for task in tasks for number in range(problems)]
        store.add_problems(
            ProblemRow(task, f"{task}-{n}", "1", "exact", (), "d", group=f"{task}-{n // 2 * 2}" if grouped else None)
            for task, n in keys
        )
        hard = {key: rng.random() for key in keys}
        for number, name in enumerate(["dense", *names]):
            history = [] if name == "dense" else [{"action": "prune", "recipe": {"sparsity": 0.5, "seed": number}}]
            plan = {"mode": "strict", "temperature": 0.6, "budgets": list(budgets), "samples": draws, "problems": "x"}
            order = {task: [f"{task}-{n}" for n in range(problems)] for task in tasks}
            model = {"name": name, "manifest": {"history": history}}
            run = Run.of(
                f"{number:x}{'f' * 11}", model, plan, {"grader": "1"}, planned=PlannedProblems(len(keys), order)
            )
            store.add_run(run)
            samples = [
                sample(rng, hard[task, n], change.get(name, 0.0), task, n, budget, draw)
                for task, n in keys for budget in budgets for draw in range(draws)
            ]  # fmt: skip
            cut = rng.random() < 0.03 and name != "dense"  # an unfinished run
            store.add_samples(run.run_id, samples[: len(samples) // 2] if cut else samples)
            if apart.random() < 0.1 and name != "dense":  # rows decided how many problems there are
                store.mark_adaptive(run.run_id, Adaptive.of({"by": "find", "seed": 0}))
    margin = rng.choice([0.02, 0.1, 0.35]) if rng.random() < 0.7 else str(rng.choice(["5%", "20%"]))
    return {"margin": margin, "stop_margin": rng.choice([0.05, 0.2]) if rng.random() < 0.7 else "10%"}


def sample(
    rng: np.random.Generator, hard: float, change: float, task: str, number: int, budget: int, draw: int
) -> Sample:
    """An answer that is right where the problem is not hard, but for a tenth of them; change: of how many are right."""
    right, ends = (bool((rng.random() < 0.5) if rng.random() < 0.1 else hard < 0.7 + change) for _ in range(2))
    return Sample(
        task, f"{task}-{number}", budget, draw, int(budget * rng.random()), 5, 2, "natural" if ends else "forced",
        False, False, "1" if right else "0", "ok", right,
    )  # fmt: skip


@pytest.mark.slow
def test_words_and_intervals_agree_over_simulated_stores(tmp_path, monkeypatch):
    """Several tasks, groups, draws, single budgets, relative margins, searched runs, small and large losses."""
    monkeypatch.setattr(contrasts.power, "minimum_detectable", lambda shares, *_: np.full(shares[0].shape[1], np.nan))
    rng, words, found, moved = np.random.default_rng(0), dict[str, int](), list[str](), list[float]()
    searched = 0
    for number in range(100):
        path = tmp_path / f"{number}.db"
        comparison = compare(path, "dense", resamples=100, **simulated(path, rng))
        found += [f"{number} {text}" for text in disagreements(comparison)]
        for entry in comparison:
            searched += entry.adaptive
            words[entry.verdict] = words.get(entry.verdict, 0) + 1
            cell = entry.primary
            if entry.low is not None and entry.high is not None and not entry.margin.relative:
                bounds = cell.lower_bound_adjusted, cell.upper_bound_adjusted
                pairs = zip((entry.low, entry.high), bounds, strict=True)
                moved.append(max(abs(end - bound) for end, bound in pairs if bound is not None))
    assert found == [] and searched >= 10
    assert len(words) == 6 and min(words.values()) >= 3, words
    # Only Holm moves a bound, and seldom: without it both are the same tests.
    assert sum(distance > 1e-9 for distance in moved) < 0.05 * len(moved) and max(moved) < 0.05
