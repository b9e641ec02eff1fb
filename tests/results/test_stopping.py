"""How chains end, compared with the base's: against plain loops over the rows, and the words for it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparable_runs import fill, random_run
from html_page import Page
from said import page_of

from prunus.reporting import prose
from prunus.reporting.page import report
from prunus.reporting.sections.result import remark
from prunus.results.cells import Entry
from prunus.results.comparison import compare
from prunus.settings.margins import Margin
from prunus.store.rows import Sample

BUDGETS = (0, 16, 64)


def run(seed: int, natural: float, tokens: float = 0.6, **shape: object) -> list[Sample]:
    """Draws of which this share ends naturally at the largest budget, with loops and cut answers among the others."""
    rng = np.random.default_rng(seed)
    found = []
    for sample in random_run(seed, 0.6, budgets=BUDGETS, **shape):
        ends = sample.budget == 64 and rng.random() < natural
        found.append(
            replace(
                sample,
                ended="natural" if ends else "forced",
                loops=not ends and bool(rng.random() < 0.5),
                answer_truncated=bool(rng.random() < 0.1),
                status="no_answer" if rng.random() < 0.1 else "ok",
                thinking_tokens=int(sample.budget * tokens) if ends else sample.budget,
            )
        )
    return found


def entry(*rows: Any, **settings: Any) -> dict[str, Any]:
    return record(*rows, **settings).to_json()


def record(
    folder: Path, base: list[Sample], other: list[Sample], plans: dict | None = None, margin: float = 0.02
) -> Entry:
    (one,) = compare(fill(folder / "s.db", {"dense": base, "pruned": other}, plans), "dense", margin=margin)
    return one


def test_shares_and_differences_equal_plain_loops(tmp_path):
    base, other = run(0, 0.9, problems=12, draws=2), run(1, 0.5, tokens=0.9, problems=12, draws=2)
    found = entry(tmp_path, base, other)
    key = {(s.problem_id, s.budget, s.draw): s for s in other}

    def lost(rows: list[Sample], sample: Sample) -> bool:
        before = [s for s in rows if (s.problem_id, s.draw) == (sample.problem_id, sample.draw) and s.budget == 16]
        return before[0].correct and not sample.correct

    rules = {
        "ends": lambda rows, s: s.ended == "natural",
        "loops": lambda rows, s: s.loops,
        "lost": lost,
        "unanswered": lambda rows, s: s.status == "no_answer",
        "truncated": lambda rows, s: s.answer_truncated,
        "leaked": lambda rows, s: s.answer_tokens > 512,
        "budget_used": lambda rows, s: s.thinking_tokens / s.budget,
    }
    for name, rule in rules.items():
        cell = found["stopping"]["endings"][name]
        theirs = [float(rule(base, s)) for s in base if s.budget == 64]
        ours = [float(rule(other, s)) for s in other if s.budget == 64]
        assert cell["share"] == pytest.approx(sum(ours) / len(ours)), name
        assert cell["base_share"] == pytest.approx(sum(theirs) / len(theirs)), name
        assert cell["difference"] == pytest.approx(cell["share"] - cell["base_share"]), name
        assert cell["low"] <= cell["difference"] <= cell["high"]
        assert cell["gain"] == pytest.approx(cell["difference"] * (1 if name == "ends" else -1))
        assert (cell["bound"] <= cell["difference"]) if name == "ends" else (cell["bound"] >= cell["difference"])
    assert set(found["tasks"]["a"]["stopping"]) == {16, 64} and len(key) == len(other)
    used = [sum(s.thinking_tokens + s.answer_tokens for s in rows if s.budget == 64) for rows in (base, other)]
    right = [sum(s.correct for s in rows if s.budget == 64) for rows in (base, other)]
    assert found["stopping"]["tokens_ratio"] == pytest.approx(used[1] / used[0])
    each = [found["stopping"][name] for name in ("base_per_correct", "per_correct")]
    assert each == pytest.approx([tokens / correct for tokens, correct in zip(used, right, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("natural", "word"), [(0.2, "worse"), (0.84, "cannot tell"), (1.0, "better"), (None, "non-inferior")]
)
def test_the_verdict_on_stopping(tmp_path, natural, word):
    base = run(0, 0.85, problems=160)
    other = base if natural is None else run(2, natural, problems=160)
    found = entry(tmp_path, base, [replace(s, correct=b.correct) for s, b in zip(other, base, strict=True)])
    assert found["stops"] == found["stopping"]["endings"]["ends"]["verdict"] == word
    assert found["verdict"] in ("non-inferior", "cannot tell")
    assert found["relies_on_cutting"] == (found["verdict"] == "non-inferior" and word == "worse")


@pytest.mark.slow
def test_accuracy_that_holds_although_more_chains_are_cut_has_a_remark(tmp_path):
    base = run(0, 1.0, problems=200)
    cut = [replace(s, ended="forced", thinking_tokens=s.budget) for s in base]
    found = record(tmp_path, base, cut, margin=0.05)
    assert (found.verdict, found.stops, found.relies_on_cutting) == ("non-inferior", "worse", True)
    what = page_of([found], ["W"], 0, Margin(0.05))
    assert remark(found).remark == "but more of its thinking is cut"
    assert "your limit is 5 points" in (said := prose.lead(what))
    assert said.endswith(" 0 of its 200 answers stop by themselves, 200 of the original's.")
    assert re.fullmatch(r"W loses less than [\d.]+ points, but stops less often", prose.title(what))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("natural", "said"),
    [
        (0.2, "prune 50\xa0% is shown to have fewer answers that stop by themselves than the original."),
        (1.0, "no variant is shown to have fewer answers that stop by themselves than the original."),
    ],
)
def test_the_page_claims_nothing_of_a_variant_that_is_not_shown_to_stop_less_often(tmp_path, natural, said):
    other = run(2, natural, problems=160)
    store = fill(tmp_path / "s.db", {"dense": run(0, 0.85, problems=160), "pruned": other})
    text = Page(report(store, tmp_path / "r.html", base="dense")).text(0)
    assert f"At the largest budget, {said}" in text


@pytest.mark.slow
def test_several_tasks_weigh_alike_and_runs_correct_each_other(tmp_path):
    shape = {"tasks": ("a", "b"), "problems": 40}
    base, worse = run(0, 0.9, **shape), run(1, 0.4, **shape)
    store = fill(tmp_path / "s.db", {"dense": base, "one": worse, "two": run(2, 0.8, **shape)})
    one, two = compare(store, "dense").to_json()["others"]
    cells = [one["tasks"][task]["stopping"][64]["ends"] for task in ("a", "b")]
    whole = one["stopping"]["endings"]["ends"]
    assert whole["difference"] == pytest.approx(np.mean([cell["difference"] for cell in cells]))
    assert whole["p_adjusted"] == pytest.approx(min(1, 2 * whole["p"]))
    assert whole["p"] < two["stopping"]["endings"]["ends"]["p"]


def test_chains_of_their_own_for_every_budget_lose_nothing(tmp_path):
    base = run(0, 0.9)
    plans = {"dense": {"reuse": False}, "pruned": {"reuse": False}}
    assert "lost" not in entry(tmp_path, base, run(1, 0.9), plans=plans)["stopping"]["endings"]


def test_a_budget_that_an_engine_exceeds_counts_as_used_up(tmp_path):
    """The tests need shares in [0, 1]; how far it is exceeded is told by adherence."""
    base = run(0, 0.9)
    beyond = [replace(s, thinking_tokens=3 * s.budget) for s in base]
    cell = entry(tmp_path, base, beyond)["stopping"]["endings"]["budget_used"]
    assert cell["share"] == 1 and cell["difference"] == pytest.approx(1 - cell["base_share"]) and cell["bound"] <= 1


def test_without_a_positive_budget_there_is_no_verdict_on_stopping(tmp_path):
    base, other = ([s for s in run(seed, 0.9) if s.budget == 0] for seed in (0, 1))
    found = record(tmp_path, base, other)
    assert found.stops is None and found.stopping.endings == {} and not found.relies_on_cutting
    assert prose.lead(page_of([found], ["W"], None, Margin(0.05))).endswith("probably would decide.")


@pytest.mark.slow
@pytest.mark.parametrize("stop_margin", [0.05, "5%"])
def test_of_a_base_whose_chains_never_end_no_run_is_said_to_still_stop(tmp_path, stop_margin):
    never = random_run(0, 0.6, problems=400)  # every chain is cut
    store = fill(tmp_path / "s.db", {"dense": never, "pruned": never})
    (entry,) = compare(store, "dense", stop_margin=stop_margin, resamples=200).to_json()["others"]
    assert (entry["verdict"], entry["stops"]) == ("non-inferior", "cannot tell")
