"""Whatever models, and people who share a store, wrote stands on the page as text and does nothing."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_store import HOSTILE, make_store, run_of, with_history
from html_page import Page

from prunus.recipes import EvalPlan
from prunus.reporting.page import report
from prunus.reporting.render.text import clip, script_json, visible
from prunus.results.comparison import compare
from prunus.results.summary import summarise
from prunus.store.rows import ProblemRow, Sample
from prunus.store.store import Store

TAGS = """
    html head meta title style body header nav main footer section h1 h2 h3 h4 p strong b small span sub br ul li div
    bdi table thead tbody tr th td fieldset legend label input figure figcaption details summary pre dl dt dd script
    svg path text rect g a code
"""
LINK = re.compile(r"#[a-z0-9-]+")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "results.db")


@pytest.fixture(scope="module")
def page(store) -> Page:
    return Page(report(store, store.parent / "report.html"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Page, Path]:
    """A store in which everything that a stranger can choose is hostile; the base is a pruned run with such a label."""
    path = tmp_path_factory.mktemp("hostile") / "hostile.db"
    bad = HOSTILE[1] + HOSTILE[2] + HOSTILE[3] + "\x00\u202e"
    plan = EvalPlan(tasks=("t",), budgets=(0, 16))
    ids = [f"{index}{bad}" for index in range(8)]
    with Store(path, create=True) as opened:
        opened.add_problems(ProblemRow(bad, problem_id, bad, "exact", (bad,), "d") for problem_id in ids)
        for number, name in enumerate(("tiny", "wanda-20", "drop-1")):
            run = run_of(name, plan, number)
            named = run.model | {"name": f"{bad} {number}"}
            environment = run.environment | {bad: f"{bad} {number}"}
            run = replace(run, model=named, plan=run.plan | {"profile": bad, bad: bad}, environment=environment)
            steps = [
                {
                    **step.data,
                    "recipe": {**step.recipe.data, "method": bad, "scope": bad, "blocks": bad, bad: bad},
                    "warnings": [bad],
                    "sparsity": {**step.sparsity, bad: 0.5},
                }
                for step in run.model.manifest.history
            ]
            opened.add_run(with_history(run, steps))
            rows = [
                Sample(bad, key, budget, 0, 9, 9, 3, "forced", False, False, bad, "ok", (index + number) % 2 == 0,
                       bad + "A" * 1_000_000 + bad, "\n".join(HOSTILE) + bad)
                for index, key in enumerate(ids) for budget in (0, 16)
            ]  # fmt: skip
            opened.add_samples(run.run_id, rows)
    return Page(report(path, path.parent / "report.html", base=run_of("wanda-20", plan, 1).run_id)), path


@pytest.mark.slow
def test_hostile_text_makes_no_element_and_no_attribute(hostile):
    page, _ = hostile
    assert page.open == []
    assert {tag for tag, _ in page.elements} <= set(TAGS.split())
    assert [tag for tag, _ in page.elements].count("script") == 2
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "action", "srcdoc")], tag
        for name in ("src", "href"):
            assert name not in attributes or (tag == "a" and LINK.fullmatch(attributes[name] or ""))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", page.source)


@pytest.mark.slow
def test_hostile_text_is_there_to_read(hostile):
    page, _ = hostile
    rows = page.rows("flipped")[1:]
    assert len(rows) == 16  # two variants, eight problems that flipped
    for _, problem, _, *answers in rows:
        assert re.match(rf"\d{re.escape(HOSTILE[1])}", problem)
        assert all(answer.startswith(HOSTILE[1]) and answer.endswith("…") for answer in answers)


@pytest.mark.slow
def test_long_texts_do_not_make_a_long_page(hostile):
    page, path = hostile
    assert path.stat().st_size > 40e6 and len(page.source) < 1.5e6


@pytest.mark.slow
def test_policy_names_exactly_our_style_and_script(hostile, page):
    for one in (hostile[0], page):
        policy = next(a["content"] for tag, a in one.elements if tag == "meta" and a.get("http-equiv")) or ""
        rules = {rule.split()[0]: rule.split()[1] for rule in policy.split(";")}
        (style,) = re.findall(r"<style>(.*?)</style>", one.source, re.DOTALL)
        (script,) = re.findall(r"<script>(.*?)</script>", one.source, re.DOTALL)
        for name, text in (("style-src", style), ("script-src", script)):
            assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "http" not in page.source.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_json_in_a_script_element_comes_back_and_cannot_end_it():
    texts = ["</script><!--<script>", "\u2028\u2029 & é 😀"]
    text = script_json({"a": [*texts, float("nan"), float("inf"), 1.5], "1": None})
    assert not set("<>&") & set(text) and text.isascii()
    assert json.loads(text) == {"a": [*texts, None, None, 1.5], "1": None}


@pytest.mark.slow
def test_embedded_data_are_compares(page, store):
    raw = page.all("script")[0]
    with Store(store) as opened:
        runs = [run.run_id for run in opened.runs()]
        summaries = [summarise(opened, run).to_json() for run in runs]
    embedded = json.loads(raw)
    for summary in embedded["summaries"]:
        for cell in summary["tasks"]["tiny"]["budgets"].values():
            assert cell.pop("band_low") <= cell["low"] <= cell["high"] <= cell.pop("band_high")
    expected = json.loads(json.dumps({"comparison": compare(store, runs[0]).to_json(), "summaries": summaries}))
    for data in (embedded, expected):  # the page has them in its own order
        data["comparison"]["others"].sort(key=lambda entry: entry["run"])
        data["summaries"].sort(key=lambda summary: summary["run"])
    assert embedded == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\x1b\x7f\r\nc\rd\te", "a␀b␛␡\nc␍d\te"),
        ("\u202eabc\u2066\u200f\u2028\ufeff\x85", "⟦U+202E⟧abc⟦U+2066⟧⟦U+200F⟧⟦U+2028⟧⟦U+FEFF⟧⟦U+0085⟧"),
        ("\ud800x\uffff", "⟦U+D800⟧x⟦U+FFFF⟧"),
        ("é 😀 日本語 ‍ a\u0301", "é 😀 日本語 ‍ a\u0301"),
    ],
)
def test_control_characters_become_visible(text, shown):
    assert visible(text) == shown


def test_clip_keeps_both_ends():
    text = "".join(chr(0x4E00 + index) for index in range(1000))
    got = clip(text, 30)
    assert got.startswith(text[:20]) and got.endswith(text[-10:]) and "970 characters" in got
    assert clip(text, 1000) == text
