"""Which blocks a page calls pruned, and which problems it calls flipped."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fake_store import VARIANTS, make_store, manifest
from html_page import Page

from prunus.reporting.page import report
from prunus.reporting.sections.flips import find_flips
from prunus.reporting.sections.sparsity import block_sparsities
from prunus.store.rows import Run
from prunus.store.store import Store


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
    run = Run.of("r", {"blocks": 2, "manifest": {"history": steps}}, {}, {})
    assert block_sparsities(run) == [None, None, None, 0.75, 0.0]
    one = Run.of("r", {"blocks": 4, "manifest": {"history": steps[:1]}}, {}, {})
    assert block_sparsities(one) == [pytest.approx(0.3), 0.0, 0.0, 0.5]


@pytest.mark.parametrize("broken", [None, {"history": None}, {"history": [{"action": "drop"}]}])
def test_a_broken_manifest_is_no_pruning(broken):
    assert block_sparsities(Run.of("r", {"blocks": 3, "manifest": broken}, {}, {})) == [0.0, 0.0, 0.0]


@pytest.mark.slow
def test_heat_map_shows_blocks(page):
    rows = {row[0].strip(): row[1:] for row in page.rows("strip")}
    assert "dense" not in rows
    assert rows["Wanda 50\xa0%"] == ["50"] * 8
    assert rows["ShortGPT −2\xa0blocks"] == ["0"] * 5 + ["×", "×", "0"]


@pytest.mark.slow
def test_recipes_are_spelled_out_with_the_method_first(page):
    texts = page.all("dd")
    assert any(text.startswith("prune: method wanda, sparsity 0.5, ") and "calibration tiny" in text for text in texts)
    assert any(
        text.startswith("drop: method shortgpt, blocks 2, ") and text.endswith("removed blocks 5, 6") for text in texts
    )
    assert not any("None" in text for text in texts)


@pytest.mark.slow
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
    assert "192 of 256 channels kept" in page.all("table", "list")[0]


@pytest.mark.slow
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


@pytest.mark.slow
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
