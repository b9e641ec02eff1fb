"""Which blocks a page calls pruned, and which problems it calls flipped."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fake_store import VARIANTS, make_store, manifest
from html_page import Page

from prunus.reporting.page import report
from prunus.reporting.render.text import visible
from prunus.reporting.sections.flips import Lost, find_flips, lost_answers, lost_in, spread_out
from prunus.reporting.sections.sparsity import block_sparsities
from prunus.results.rows import Run, Sample
from prunus.results.store import Store

# Fixtures of the module are made once.
pytestmark = pytest.mark.xdist_group("report evidence")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "results.db")


@pytest.fixture(scope="module")
def page(store) -> Page:
    return Page(report(store, store.parent / "report.html"))


def test_sparsity_per_block_follows_the_steps_through_renumbering():
    steps = [
        {"action": "prune", "sparsity": {"model.layers.0.a": 0.2, "model.layers.0.b": 0.4, "model.layers.3.a": 0.5}},
        {"action": "drop", "blocks_removed": [1, 2]},  # what was block 3 is now block 1
        {"action": "prune", "sparsity": {"model.layers.1.a": 0.75}},
        {"action": "drop", "blocks_removed": [0]},
    ]
    run = Run("r", {"blocks": 2, "manifest": {"history": steps}}, {}, {})
    assert block_sparsities(run) == [None, None, None, 0.75, 0.0]
    one = Run("r", {"blocks": 4, "manifest": {"history": steps[:1]}}, {}, {})
    assert block_sparsities(one) == [pytest.approx(0.3), 0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    "broken", [None, [], "x", {"history": None}, {"history": [1, {"action": "drop", "blocks_removed": "x"}]}]
)
def test_a_broken_manifest_is_no_pruning(broken):
    assert block_sparsities(Run("r", {"blocks": 3, "manifest": broken}, {}, {})) == [0.0, 0.0, 0.0]


def test_heat_map_shows_blocks(page):
    rows = {row[0].strip(): row[1:] for row in page.rows("strip")}
    assert rows["dense"] == ["0"] * 8
    assert rows["Wanda 50\xa0%"] == ["50"] * 8
    assert rows["ShortGPT −2\xa0blocks"] == ["0"] * 5 + ["×", "×", "0"]


def test_recipes_are_spelled_out_with_the_method_first(page):
    texts = page.all("dd")
    assert any(text.startswith("prune: method wanda, sparsity 0.5, ") and "calibration tiny" in text for text in texts)
    assert any(
        text.startswith("drop: method shortgpt, blocks 2, ") and text.endswith("removed blocks 5, 6") for text in texts
    )
    assert not any("None" in text for text in texts)


def test_a_narrow_model_is_said_to_have_fewer_channels_and_parameters(tmp_path):
    path = make_store(tmp_path / "results.db", names=("tiny", "wanda-20", "drop-1"), problems=12)
    step = {"action": "width", "recipe": {"method": "obs", "keep": 0.75}, "channels": {"before": 256, "after": 192}}
    with closing(sqlite3.connect(path)) as store, store:
        for run, model in [(run, json.loads(text)) for run, text in store.execute("SELECT run_id, model FROM run")]:
            if model["name"] == "drop-1":
                model |= {"parameters": 910_080, "blocks": 8, "manifest": {"history": [step]}}
                store.execute("UPDATE run SET model = ? WHERE run_id = ?", (json.dumps(model), run))
    page = Page(report(path, tmp_path / "report.html"))
    (narrow,) = (text for text in page.all("dd") if text.startswith("width: "))
    assert narrow == (
        "width: method obs, keep 0.75; 192 of 256 channels kept"
        " · 910\u202f080 of 1\u202f213\u202f440 parameters (75.0\xa0%)"
    )
    assert not any("parameters (" in text for text in page.all("dd") if text.startswith("prune: "))
    assert "What became narrower or lost experts" in page.source


def test_flips_are_the_problems_that_only_one_side_solves(store):
    with Store(store) as opened:
        base, other = (opened.samples(opened.find_run(name).run_id) for name in ("tiny", "wanda-50"))
    by_hand = {
        s.problem_id: t.correct
        for s, t in zip(base, other, strict=True)
        if s.budget == 1024 and s.correct is not t.correct
    }
    found = find_flips(base, other)
    assert {flip.base.problem_id: flip.gained for flip in found} == by_hand and len(found) == len(by_hand)
    assert find_flips(base, []) == []


def chain(correct: str, problem: str = "p", budgets: tuple[int, ...] = (0, 8, 64, 256)) -> list[Sample]:
    """Draw 0 of a problem under these budgets. correct: `+` or `-` for each of them."""
    plain = Sample("t", problem, 0, 0, 0, 0, 0, "forced", False, False, None, "ok", True)
    pairs = zip(budgets, correct, strict=True)
    return [replace(plain, budget=budget, correct=sign == "+", thinking_tokens=budget) for budget, sign in pairs]


@pytest.mark.parametrize(
    ("correct", "where"),
    [("-+--", (8, 64)), ("++-+", None), ("+-+-", (64, 256)), ("----", None), ("+---", (0, 8)), ("---+", None)],
)
def test_the_last_budget_at_which_a_wrong_chain_was_right(correct, where):
    run = Run("r", {}, {"reuse": True}, {})
    expected = {} if where is None else {("p", 0): where}
    assert lost_answers(run, reversed(chain(correct))) == expected
    assert lost_answers(replace(run, plan={"reuse": False}), chain(correct)) == {}, "other chains under other budgets"
    assert lost_answers(run, [*chain("+", budgets=(-1,)), *chain(correct)]) == expected, (
        "budget off is no part of the chain"
    )


def test_the_part_of_the_chain_in_which_an_answer_was_lost():
    key, texts = ("p", 256, 0), {("p", 8, 0): ("so it is 4", "4"), ("p", 64, 0): ("so it is 4. But wait, 5", "5")}
    assert lost_in(key, (8, 64), texts) == Lost(8, 64, ". But wait, 5")
    assert lost_in(key, (8, 64), texts | {("p", 8, 0): ("so it is 4\ufffd", "4")}) == Lost(8, 64, ". But wait, 5")
    assert lost_in(key, (8, 64), {}) == Lost(8, 64, ""), "the store does not keep the texts"
    assert lost_in(key, (8, 64), texts | {("p", 8, 0): ("another chain", "4")}) == Lost(8, 64, "")
    assert lost_in(key, None, texts) is None


def test_the_page_says_where_an_answer_was_lost(tmp_path):
    """Of the two problems that the pruned model lost, one was right before; its texts are hostile."""
    path = make_store(tmp_path / "s.db", names=("tiny", "wanda-50"), problems=2, budgets=(0, 8, 64, 256))
    with Store(path) as opened:
        runs = {str(run.model["name"]): run for run in opened.runs()}
        first, second = opened.problems()
    with Store(path) as old, Store(path.with_name("t.db"), create=True) as opened:
        opened.add_problems(old.problems().values())
        for name, patterns in (("tiny", ("++++", "++++")), ("wanda-50", ("----", "-+--"))):
            opened.add_run(runs[name])
            rows = [*chain(patterns[0], first), *chain(patterns[1], second)]
            thought = "<b>1+1=2. No, 3"
            opened.add_samples(
                runs[name].run_id,
                [replace(one, thinking=thought[: 3 + one.budget // 8] if one.budget < 64 else thought) for one in rows],
            )
    page = Page(report(path.with_name("t.db"), tmp_path / "report.html"))
    [found] = [text for text in page.all("p") if "lost it between" in text]
    assert "had the right answer at budget 8 and lost it between 8 and 64 tokens of the same chain:" in found
    assert "+1=2. No, 3" in [text.strip() for text in page.all("pre")]


@pytest.mark.parametrize("lost", [0, 1, 5, 40])
@pytest.mark.parametrize("gained", [0, 1, 2, 40])
@pytest.mark.parametrize("most", [2, 6, 7])
def test_chosen_flips_are_few_and_of_both_kinds(lost, gained, most):
    sample = Sample("t", "p", 1, 0, 0, 0, 0, "forced", False, False, None, "ok", True)
    pairs = [(sample, replace(sample, correct=False))] * lost + [(replace(sample, correct=False), sample)] * gained
    found = find_flips(
        [replace(a, problem_id=str(k)) for k, (a, _) in enumerate(pairs)],
        [replace(b, problem_id=str(k)) for k, (_, b) in enumerate(pairs)],
    )
    chosen = spread_out(found, most)
    assert len(chosen) == min(most, lost + gained) == len({flip.key for flip in chosen})
    assert len([f for f in chosen if f.gained]) >= min(gained, most // 2)
    assert len([f for f in chosen if not f.gained]) >= min(lost, most // 2)


def test_texts_beside_each_other_are_those_of_the_draws(page, store):
    with Store(store) as opened:
        runs = opened.runs()
        kept = {
            run.run_id: {s.text for s in opened.samples(run.run_id, texts=True) if s.budget == 1024} for run in runs
        }
    everything = {visible(text) for texts in kept.values() for text in texts}
    shown = page.all("pre", "answer")
    assert len(shown) > 40 and set(shown) <= everything


def test_store_gives_the_texts_of_some_draws_only(store):
    with Store(store) as opened:
        run = opened.runs()[1].run_id
        samples = opened.samples(run, texts=True)
        wanted = [(s.problem_id, s.budget, s.draw) for s in samples[5:300:50]]
        expected = {(s.problem_id, s.budget, s.draw): (s.thinking, s.text) for s in samples[5:300:50]}
        assert opened.texts(run, wanted) == expected
        assert opened.texts(run, [("none", 1, 0)]) == {}


def test_every_variant_of_the_fake_store_has_the_manifest_it_says():
    assert [bool(manifest(recipe)["history"]) for recipe, _ in VARIANTS.values()] == [False, *[True] * 6]
