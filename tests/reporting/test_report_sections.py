"""The sections beyond curves: both modes, several draws, scaling, every Linear, what is missing, all that flipped."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_store import make_store, run_of
from html_page import Page
from many_runs import BUDGETS, DRAWS, NAMES, rich_store

import prunus
from prunus.errors import PrunusError
from prunus.recipes import EvalPlan
from prunus.reporting.page import report
from prunus.reporting.render.text import one_line
from prunus.reporting.sections import flips
from prunus.reporting.sections.flips import find_flips
from prunus.reporting.sections.method import run_totals
from prunus.reporting.sections.sparsity import linear_sparsities
from prunus.results.comparison import compare
from prunus.results.order import two_digits
from prunus.results.summary import summarise
from prunus.results.vocabulary import Scaling
from prunus.store.labels import label_of
from prunus.store.rows import PlannedProblems, Run
from prunus.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return rich_store(tmp_path_factory.mktemp("rich") / "results.db")


@pytest.fixture(scope="module")
def page(store) -> Page:
    return Page(report(store, store.parent / "report.html"))


def section(page: Page, name: str) -> str:
    (index,) = [k for k, (_, attributes) in enumerate(page.elements) if attributes.get("id") == name]
    return page.text(index)


# Strict and legacy


@pytest.mark.slow
def test_the_strict_dense_run_is_the_base_and_legacy_stands_beside_it(page, store):
    with Store(store) as opened:
        runs = {(run.model.name, run.plan.mode): run.run_id for run in opened.runs()}
        summaries = {key: summarise(opened, run).to_json()["tasks"]["tiny"]["budgets"] for key, run in runs.items()}
    assert runs["tiny", "strict"] in page.all("details", "forward")[0]
    rows = page.rows("modes")[1:]
    assert [(row[0].strip(), int(row[2])) for row in rows] == [
        (name, budget) for name in ("the original", "Wanda 20\xa0%") for budget in BUDGETS
    ]
    for row, (name, budget) in zip(rows, [(n, b) for n in NAMES[:2] for b in BUDGETS], strict=True):
        strict, legacy = (summaries[name, mode][budget] for mode in ("strict", "legacy"))
        shares = [strict["accuracy"], legacy["accuracy"], legacy["accuracy"] - strict["accuracy"]]
        shares += [strict["leaked"], legacy["leaked"]]
        shown = [float(text.replace("−", "-")) for text in row[3:8]]
        assert shown == pytest.approx([100 * share for share in shares], abs=0.051)
        assert float(row[10].replace("\u202f", "")) == pytest.approx(legacy["tokens"]["answer"]["mean"], abs=0.5)
    assert page.source.count("in strict and legacy mode") == 2


@pytest.mark.slow
def test_runs_that_the_section_shows_are_not_said_to_be_left_out(page):
    (warning,) = page.all("details", "warnings")
    assert "left out: mode" not in warning and "legacy" not in warning


@pytest.mark.slow
def test_a_legacy_base_is_said_to_bound_the_thinking_only(store, tmp_path):
    with Store(store) as opened:
        (base,) = [r.run_id for r in opened.runs() if (r.model.name, r.plan.mode) == ("tiny", "legacy")]
    page = Page(report(store, tmp_path / "a.html", base=base))
    (warning,) = page.all("details", "warnings")
    assert "the budget bounds the thinking only, and an answer may have up to 32\u202f768 tokens" in warning
    assert "does not bound the tokens of the original and Wanda 20\xa0%" in warning
    assert len(page.rows("modes")) == 1 + 2 * len(BUDGETS)


@pytest.mark.slow
def test_a_dense_model_in_both_modes_is_a_page_before_anything_else_is_run(store, tmp_path):
    with Store(store) as old, Store(tmp_path / "a.db", create=True) as new:
        new.add_problems(old.problems().values())
        for run in old.runs():
            if run.model.name == "tiny":
                new.add_run(run)
                samples = old.samples(run.run_id)
                half = sorted({sample.problem_id for sample in samples})[::2]
                kept = samples if run.plan.mode == "strict" else [s for s in samples if s.problem_id in half]
                new.add_samples(run.run_id, kept)
    page = Page(report(tmp_path / "a.db", tmp_path / "a.html"))
    assert "There is nothing to compare with the original yet" in page.all("p", "lead")[0]
    (warning,) = page.all("details", "warnings")
    assert "Not finished: the original in legacy mode has 30 of 60 problems." in warning
    assert "legacy" in section(page, "modes") and page.all("table", "verdicts sortable") == []


def test_without_two_modes_there_is_no_such_section(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny", "wanda-50"), problems=6, budgets=(16,))
    page = Page(report(path, tmp_path / "a.html"))
    assert not [1 for _, attributes in page.elements if attributes.get("id") == "modes"]


def test_two_dense_models_still_need_a_base(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny",), problems=6, budgets=(16,))
    with Store(path) as opened:
        other = run_of("tiny", EvalPlan(tasks=("tiny",), budgets=(16,), mode="legacy"), 9)  # other weights
        opened.add_run(other)
        (first,) = opened.runs_with_rows()
        opened.add_samples(other.run_id, opened.samples(first.run_id))
    with pytest.raises(PrunusError, match="--base"):
        report(path, tmp_path / "a.html")


@pytest.mark.slow
def test_what_is_not_decided_says_how_many_problems_would_do(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny", "wanda-20"), problems=12, budgets=(64, 1024), draws=3)
    entry = compare(path, "tiny").to_json()["others"][0]
    assert entry["verdict"] == "cannot tell" and entry["primary"]["settle"]["problems"] > 12
    (listed,) = Page(report(path, tmp_path / "a.html")).all("table", "list")
    about = f"about {two_digits(entry['primary']['settle']['problems']):,} problems probably would"
    assert f"? Not decided {about}" in listed


# Several draws


@pytest.mark.slow
def test_several_draws_are_summarises(page, store):
    with Store(store) as opened:
        summary = summarise(opened, opened.runs()[0].run_id).to_json()["tasks"]["tiny"]
    rows = [row for row in page.rows("draws")[1:] if row[0].strip() == "the original"]
    assert page.rows("draws")[0][3:] == ["k = 1", "k = 2", "k = 4"] and DRAWS == 4
    for way, key in (("Any of k correct", "pass_at"), ("Majority of k", "maj_at")):
        found = {int(row[1]): [float(text) for text in row[3:]] for row in rows if row[2] == way}
        for budget in BUDGETS:
            values = [100 * value for value in summary["budgets"][budget][key].values()]
            assert found[budget] == pytest.approx(values, abs=0.051)
    rows = [row for row in page.rows("parallel")[1:] if row[0].strip() == "the original"]
    assert len(rows) == len(summary["parallel"]) > 0
    for row, wanted in zip(rows, summary["parallel"], strict=True):
        assert row[1:3] == [str(wanted["budget"]), f"{wanted['chains']} × {wanted['chain_budget']}"]
        assert float(row[4]) == pytest.approx(100 * wanted["sequential"], abs=0.051)
        assert (row[10] == "") == (wanted["used"] is None)


def test_one_draw_has_no_such_section(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny", "wanda-50"), problems=6, budgets=(16, 64))
    page = Page(report(path, tmp_path / "a.html"))
    assert page.rows("draws") == [] and "Several answers per problem" not in page.all("h2")


# Scaling


@pytest.mark.slow
def test_scaling_is_summarises(page, store):
    with Store(store) as opened:
        summary = summarise(opened, opened.find_runs("wanda-50")[0].run_id).to_json()["tasks"]["tiny"]
    head, *rows = page.rows("scaling")
    (row,) = [row for row in rows if row[0].strip().startswith("Wanda 50")]
    cells = dict(zip(head, row, strict=True))
    for title, value in (
        ("Area,%", summary["auc"]["value"]), ("Per doubling,points", summary["slope"]["value"]),
        ("First to lastbudget, points", summary["gain"]["value"]), ("Best,%", summary["performance"]["value"]),
        ("Withinbudget, %", summary["control_total"]),
    ):  # fmt: skip
        (number,) = re.findall(r"^[+−]?\d+\.\d", cells[title])
        assert float(number.replace("−", "-")) == pytest.approx(100 * value, abs=0.051), title
    slope = compare(store, summary_base(store), ["wanda-50"]).to_json()["others"][0]["tasks"]["tiny"]["slope"]
    shown = [float(number) for number in re.findall(r"\d+\.\d", cells["Slope kept,%"])]
    wanted = [slope[key] for key in ("retention", "retention_low", "retention_high")]
    assert shown == pytest.approx([100 * value for value in wanted], abs=0.051)
    (row,) = [row for row in page.rows("verdicts") if row[0].strip().startswith("Wanda 50")]
    shown = [float(number) for number in re.findall(r"\d+\.\d", row[6])]
    assert row[6].startswith(Scaling(slope["word"]).shown) and shown == pytest.approx(
        [100 * value for value in wanted], abs=0.051
    )


def summary_base(store: Path) -> str:
    with Store(store) as opened:
        return opened.runs()[0].run_id


# What is missing


def totals(store: Store, run: Run) -> list[int | None]:
    return run_totals(run, store.samples(run.run_id))


@pytest.mark.slow
def test_a_run_that_is_not_finished_is_named_with_its_share(page, store):
    (warning,) = page.all("details", "warnings")
    assert "Not finished: ShortGPT −1\xa0block has 30 of 60 problems." in warning
    with Store(store) as opened:
        runs = {(run.model.name, run.plan.mode): run for run in opened.runs()}
        assert totals(opened, runs["drop-1", "strict"])[:2] == [30 * 6 * DRAWS, 60 * 6 * DRAWS]
        answers, planned, *_ = totals(opened, runs["tiny", "strict"])
        assert answers == planned
    rows = {row[0].strip(): row[1:] for row in page.rows("costs")}
    assert [rows["ShortGPT −1\xa0block"][k].replace("\u202f", "") for k in (0, 1)] == ["720", "1440"]


@pytest.mark.slow
def test_a_name_and_notes_stand_above_all_else_as_text(store, page, tmp_path):
    named = Page(report(store, tmp_path / "r.html", name="<b>My study</b>", notes=["Not started: <i>x</i>."]))
    assert named.all("p", "kicker")[0].startswith("<b>My study</b> · 3 variants of tiny against the original")
    assert re.match(r"Read with care \(\d notes\): Not started: <i>x</i>\.", named.all("details", "warnings")[0])
    assert "Prunus report · 3 variants" in page.all("p", "kicker")[0]


@pytest.mark.slow
def test_tokens_that_budgets_share_are_counted_once(store):
    with Store(store) as opened:
        run = opened.runs()[0]
        samples = opened.samples(run.run_id)
        _, _, thinking, answer, both = totals(opened, run)
    chains: dict = {}
    for s in samples:
        chains.setdefault((s.problem_id, s.draw), {})[s.budget] = s
    assert thinking == sum(chain[max(BUDGETS)].thinking_tokens for chain in chains.values())
    answers = 0
    for chain in chains.values():
        lengths = [chain[budget].thinking_tokens for budget in BUDGETS]
        answers += sum(s.answer_tokens for s in chain.values() if s.ended == "forced")
        answers += next((s.answer_tokens for s in chain.values() if s.ended == "natural"), 0)
        assert lengths == sorted(lengths)
    assert thinking is not None and (answer, both) == (answers, thinking + answers)


@pytest.mark.slow
def test_a_plan_with_a_limit_or_of_unknown_problems(store, tmp_path):
    copy = shutil.copy(store, tmp_path / "copy.db")
    with Store(copy) as opened:
        run = opened.runs()[0]
        plan, seven = (
            run.plan | {"limit": 7, "problems": "7"},
            PlannedProblems(7, {"tiny": list(opened.problems())[:7]}),
        )
        opened.add_run(replace(run, run_id="limited", plan=plan, planned=seven))
        plan = run.plan | {"tasks": ["other"], "problems": "unknown"}
        opened.add_run(replace(run, run_id="elsewhere", plan=plan, planned=None))
        assert totals(opened, opened.run("limited"))[1] == 7 * 6 * DRAWS
        assert totals(opened, opened.run("elsewhere"))[1] is None


# Every Linear


def test_every_linear_in_the_numbering_of_the_original():
    steps = [
        {"action": "prune", "sparsity": {"model.layers.0.mlp.up": 0.2, "model.layers.2.mlp.up": 0.4, "lm_head": 1.0}},
        {"action": "drop", "blocks_removed": [1]},
        {"action": "prune", "sparsity": {"model.layers.1.mlp.up": 0.6, "model.layers.1.attn.q": 0.1}},
    ]
    run = Run.of("r", {"blocks": 2, "manifest": {"history": steps}}, {}, {})
    assert linear_sparsities(run) == [(0, "mlp.up", 0.2), (2, "mlp.up", 0.6), (2, "attn.q", 0.1)]


# All that flipped


@pytest.mark.slow
def test_every_flip_is_counted_and_listed_with_both_answers(page, store):
    with Store(store) as opened:
        listed = re.findall(r'id="run-([0-9a-f]+)"', page.source)
        base, *others = (opened.samples(run) for run in [opened.runs()[0].run_id, *listed])
        gold = {key: problem.gold for key, problem in opened.problems().items()}
    found = [find_flips(base, other) for other in others]
    wanted = [
        [
            name,
            "newly right" if flip.other.correct else "newly wrong",
            gold[name],
            flip.base.answer or "",
            flip.other.answer or "",
        ]
        for flips in found
        for flip in flips
        for name, answers in [(flip.base.problem_id, (flip.base.answer or "", flip.other.answer or ""))]
    ]
    assert [row[1:] for row in page.rows("flipped")[1:]] == [list(map(one_line, row)) for row in wanted]
    counts = [[sum(flip.gained == won for flip in of_run) for won in (False, True)] for of_run in found]
    head, own, *rows = page.rows("flips")
    assert [list(map(int, row[1:3])) for row in rows] == counts and sum(lost for lost, _ in counts) > 0
    assert head[3:] == ["chain", "hops", "mult"]  # the kinds of problems, as the ids have them
    largest = max(sample.budget for sample in base)
    for column, kind in enumerate(head[3:], 3):
        solved = [s for s in base if s.budget == largest and s.draw == 0 and s.correct and f"/{kind}-" in s.problem_id]
        assert int(own[column]) == len(solved)
        wrong = [sum(not f.gained and f"/{kind}-" in f.base.problem_id for f in flips) for flips in found]
        assert [int(row[column]) for row in rows] == wrong
    assert "prunus view" in section(page, "flips")


@pytest.mark.slow
def test_a_page_lists_no_more_flips_than_it_can_show_and_files_have_all(store, tmp_path, monkeypatch):
    report(store, tmp_path / "a.html", csv=tmp_path / "csv")
    with (tmp_path / "csv" / "flipped-problems.csv").open() as lines:
        every = list(csv.DictReader(lines))
    monkeypatch.setattr(flips, "LISTED", 10)
    page = Page(report(store, tmp_path / "b.html", csv=tmp_path / "csv", overwrite=True))
    with (tmp_path / "csv" / "flipped-problems.csv").open() as lines:
        assert list(csv.DictReader(lines)) == every
    rows = page.rows("flipped")[1:]
    assert 5 < len(rows) <= 10 < len(every) and len({row[0].strip() for row in rows}) == 3
    assert f"{len(rows)} of {len(every)} are here." in section(page, "flips")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html", "csv"]


# Accuracy against bytes

KINDS: tuple[str, ...] = ("quantised", "scales", "embeddings", "head", "others")


@pytest.mark.slow
def test_the_table_of_bytes_and_the_list_have_those_of_each_run(tmp_path):
    """drop-2 stands for a run of an older store, whose bytes are not known."""
    sizes = {"tiny": 269, "wanda-20": 269, "magnitude-20": 150, "wanda-50": 140, "magnitude-50": 160, "drop-1": 100}
    kinds = {
        name: dict.fromkeys(KINDS, 0) | {"head": 50 * 10**6, "others": (n - 50) * 10**6} for name, n in sizes.items()
    }
    store = make_store(tmp_path / "results.db", problems=24, budgets=(16, 64, 256), texts=(), kinds=kinds)
    page = Page(report(store, tmp_path / "report.html", csv=tmp_path / "csv"))
    with (tmp_path / "csv" / "bytes-tiny.csv").open() as lines:
        rows = {row["run"].replace("\xa0", " "): row for row in csv.DictReader(lines)}
    with Store(store) as opened:
        runs = opened.runs()
        areas = {run.model.name: summarise(opened, run.run_id).tasks["tiny"].auc for run in runs}
    labels = {run.model.name: label_of(run).replace("\xa0", " ") for run in runs} | {"tiny": "the original"}
    for name, area in areas.items():
        row = rows[labels[name]]
        assert area is not None and float(row["area"]) == area.value
        assert row["bytes"] == (str(10**6 * sizes[name]) if name in sizes else "")
    assert {row["head"] for row in rows.values()} == {str(50 * 10**6), ""}
    (listed,) = page.all("table", "list")
    assert "Memoryof 269\xa0MB" in listed and "52\xa0%" in listed  # 140 of 269 MB
    found = compare(store, "dense").to_json()
    assert [sum(one.get("bytes", {}).values()) for one in found["others"]] == [
        10**6 * n for n in list(sizes.values())[1:]
    ] + [0]
    assert found["base"]["bytes"] == kinds["tiny"]
    frame: Any = prunus.open(store).runs()
    assert frame["model_bytes"].isna().tolist() == [False] * 6 + [True]
    assert frame["model_bytes"].dropna().tolist() == [10**6 * n for n in sizes.values()]


def test_of_a_variant_that_is_not_finished_there_is_no_curve_and_the_base_row_is_of_all_problems(tmp_path):
    plan = EvalPlan(tasks=("tiny",), budgets=(16, 64))
    store = make_store(tmp_path / "a.db", names=("tiny", "wanda-20"), problems=40, budgets=(16, 64), texts=())
    with Store(store) as opened:
        problems, base = list(opened.problems().values()), opened.runs()[0]
        run = run_of("wanda-50", plan, 9, problems)
        first = sorted(problem.problem_id for problem in problems)[:10]
        opened.add_run(run)
        opened.add_samples(run.run_id, [s for s in opened.samples(base.run_id) if s.problem_id in first])
        right = [
            sum(s.correct for s in opened.samples(base.run_id) if s.budget == budget and s.problem_id in ids)
            for ids in (first, [problem.problem_id for problem in problems])
            for budget in (16, 64)
        ]
    page = Page(report(store, tmp_path / "a.html", base="tiny"))
    (heads, own, *_) = page.rows("heat")
    assert right[0] / 10 != right[2] / 40 and heads[1:] == ["16", "64"]
    assert own[1:] == [f"{100 * count / 40:.0f}" for count in right[2:]]
    names = page.all("text", "name")
    assert any("Wanda 20" in name for name in names) and not any("Wanda 50" in name for name in names)
    assert "without variants that are not finished" in page.source
