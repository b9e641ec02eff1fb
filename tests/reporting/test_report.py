"""The page says what compare and summarise say, in numbers, pictures and words."""

import errno
import os
import re
from dataclasses import fields, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_store import BUDGETS, draw_samples, make_store, run_of, with_history
from html_page import Page
from many_runs import rich_store
from said import page_of

from prunus.errors import PrunusError
from prunus.manifest import StepRecord
from prunus.recipes import EvalPlan
from prunus.reporting import page as page_module
from prunus.reporting import prose
from prunus.reporting.page import report
from prunus.reporting.render.text import joined, percent, points, probability, short
from prunus.results.cells import Cell, Contradiction, Entry, Stopping
from prunus.results.comparison import compare
from prunus.results.order import best, ordered
from prunus.results.summary import describe, summarise
from prunus.results.verdicts import verdict
from prunus.results.vocabulary import Verdict
from prunus.settings.margins import Margin
from prunus.store.labels import label_of, step_label
from prunus.store.rows import tables
from prunus.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "results.db")


@pytest.fixture(scope="module")
def page(store) -> Page:
    return Page(report(store, store.parent / "report.html"))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Where only the files matter."""
    folder = tmp_path_factory.mktemp("small")
    return make_store(folder / "results.db", names=("tiny", "wanda-50"), problems=12, budgets=(16, 64))


def is_refused(call, *words: str) -> bool:
    with pytest.raises(PrunusError) as error:
        call()
    message = str(error.value)
    return "\n" not in message and all(word in message for word in words)


# Numbers


def in_percent(value: float) -> str:
    return f"{100 * value:.1f}"


def in_points(value: float) -> str:
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


@pytest.mark.slow
def test_every_number_is_compares(page, store):
    with Store(store) as opened:
        runs = opened.runs()
        others = compare(store, runs[0].run_id)
        listed = [others.others[place] for place in ordered(others).places]  # the order of the page
        summaries = [summarise(opened, run).to_json() for run in (runs[0].run_id, *(entry.run for entry in listed))]
    expected = []
    for summary, entry in zip(summaries, [None, *listed], strict=True):
        for budget in BUDGETS:
            cell = summary["tasks"]["tiny"]["budgets"][budget]
            row = [str(budget), *(in_percent(cell[key]) for key in ("accuracy", "low", "high"))]
            if entry is None:
                row += [""] * 9
            else:
                other = entry.tasks["tiny"].budgets[budget]
                row += [in_points(points) for points in (other.difference, other.low, other.high)]
                row += [verdict(other).shown, other.p_margin_adjusted, other.p, other.p_adjusted, other.q]
                row.append("" if other.mde is None else in_percent(other.mde))
            expected.append([*row, "126", "1"])
    headings, *rows = page.rows("numbers")
    assert sum("alone" in heading for heading in headings) == 2, "of intervals on which no verdict rests"
    assert len(rows) == len(expected) == 7 * 8
    for (_, *row), wanted in zip(rows, expected, strict=True):
        for shown, value in zip(row, wanted, strict=True):
            if isinstance(value, float):  # a p-value
                assert abs(float(shown) - value) <= 0.0051 if shown != "<0.001" else value < 0.001
            else:
                assert shown == value


@pytest.mark.slow
def test_verdict_rows_are_compares(page, store):
    data = compare(store, "tiny").to_json()
    rows = page.rows("verdicts")
    assert [row[0].strip() for row in rows[1:]][:3] == ["the original", "Wanda 20\xa0%", "Magnitude 20\xa0%"]
    shown = {row[0].strip(): row for row in rows[2:]}
    with Store(store) as opened:
        names = {run.run_id: label_of(run) for run in opened.runs()}
    for entry in data["others"]:
        row = shown[names[entry["run"]]]
        cell = entry["primary"]
        assert row[1].startswith(Verdict(entry["verdict"]).shown)
        interval = f"{in_points(cell['difference'])}{in_points(entry['low'])} to {in_points(entry['high'])}"
        assert row[2] == interval and row[5] == in_percent(cell["mde"])


@pytest.mark.slow
def test_tokens_and_endings_are_summarises(page, store):
    with Store(store) as opened:
        summary = summarise(opened, opened.find_run("wanda-50").run_id).to_json()
    rows = [row for row in page.rows("tokens") if "Wanda 50" in row[0]]
    assert len(rows) == len(BUDGETS)
    for row, budget in zip(rows, BUDGETS, strict=True):
        cell = summary["tasks"]["tiny"]["budgets"][budget]
        numbers = [float(text.replace("\u202f", "")) for text in row[1:]]
        used = cell["tokens"]
        means = [used["thinking"]["mean"], used["answer"]["mean"], used["total"]["mean"], used["total"]["p95"]]
        shares = [1 - cell["forced"], cell["forced"], cell["no_answer"], cell["truncated"], cell["leaked"]]
        assert numbers[0] == budget
        assert numbers[1:5] == pytest.approx(means, abs=0.5)
        assert numbers[6:] == pytest.approx([100 * share for share in shares], abs=0.051)


@pytest.mark.slow
def test_points_of_the_first_chart_lie_where_the_numbers_are(page, store):
    with Store(store) as opened:
        summaries = [describe(run, tables(opened.samples(run.run_id)), bands=True).to_json() for run in opened.runs()]
    chart = page.source[page.source.index('<svg class="chart') :].split("</svg>", 1)[0]
    groups = re.findall(r'<g class="run r(\d)[^>]*>(.*?)</g>', chart, re.DOTALL)
    marks: dict[int, list[tuple[float, float]]] = {}
    for index, body in groups:
        found = re.findall(r'class="mark" transform="translate\(([\d.]+),([\d.]+)\)"', body)
        marks.setdefault(int(index), []).extend((float(x), float(y)) for x, y in found)
    ticks = re.findall(r'<path class="grid" d="M[\d.]+,([\d.]+)H', chart)
    labels = re.findall(r'<text class="tick"[^>]*text-anchor="end">([^<]+)<', chart)
    (y0, v0), (y1, v1) = [(float(y), float(v)) for y, v in zip(ticks, labels, strict=True)][:: len(labels) - 1]
    shown = [run for run in summaries if run["model"] == "tiny"]
    listed = re.findall(r'id="run-([0-9a-f]+)"', page.source)
    shown += [next(run for run in summaries if run["run"] == name) for name in listed]
    for index, summary in enumerate(shown):
        cells = summary["tasks"]["tiny"]["budgets"]
        assert len(marks[index]) == len(BUDGETS) - 1  # 0 is no part of the curve
        for (_, y), budget in zip(marks[index], BUDGETS[1:], strict=True):
            assert v0 + (y - y0) * (v1 - v0) / (y1 - y0) == pytest.approx(100 * cells[budget]["accuracy"], abs=0.05)
        xs = [x for x, _ in marks[index]]
        steps = [b - a for a, b in pairwise(xs)]
        assert steps == pytest.approx([steps[0]] * 6, abs=0.11)  # each budget doubles
    lines = re.findall(r'<path class="line" d="([^"]+)"', chart)
    assert len(lines) == 7 and all(line.count(",") == 7 for line in lines)


@pytest.fixture
def statements(monkeypatch) -> list[tuple[str, tuple]]:
    """Every query that a store is asked, with its values."""
    asked, original = [], Store._read

    def noted(self, query, values=()):
        asked.append((query, tuple(values)))
        return original(self, query, values)

    monkeypatch.setattr(Store, "_read", noted)
    return asked


def rows_read(statements: list[tuple[str, tuple]]) -> list[str]:
    """Ids of the runs whose rows were fetched, a time each."""
    return sorted(
        values[0]
        for query, values in statements
        if "FROM sample WHERE run_id" in query
        and not any(part in query for part in ("problem_id = ?", "DISTINCT start", "LIMIT 1"))
    )


@pytest.mark.slow
def test_the_rows_of_each_run_are_read_once_and_only_those_of_the_page_are_shown(tmp_path, statements):
    store = make_store(tmp_path / "a.db", names=("tiny", "wanda-50", "drop-1"), problems=12, budgets=(16, 64))
    with Store(store) as opened:
        base, shown, left = (run.run_id for run in opened.runs())
    statements.clear()
    page = Page(report(store, tmp_path / "a.html", base=base, runs={base, shown}))
    assert rows_read(statements) == sorted([base, shown, left])  # verdicts are corrected for the run that is left out
    assert (
        left not in page.source
        and "2 comparisons that could be shown" in page.source
        and len(page.rows("verdicts")) == 3
    )


@pytest.mark.slow
def test_page_figures_and_tables_share_one_reading_of_the_rows(tmp_path, statements):
    """With a section of every kind: both modes, several draws, a run that is not finished. No texts are read."""
    store = rich_store(tmp_path / "a.db", problems=12)
    with Store(store) as opened:
        ids = [run.run_id for run in opened.runs()]
    statements.clear()
    report(store, tmp_path / "a.html", figures=tmp_path / "f", csv=tmp_path / "t")
    assert rows_read(statements) == sorted(ids)
    assert sum("FROM run LEFT JOIN adaptive" in query for query, _ in statements) == 1
    assert sum("gold, kind" in query for query, _ in statements) == 1
    assert not [query for query, _ in statements if "SELECT thinking, text" in query]


# A new section


@pytest.mark.slow
def test_a_new_section_is_one_file_and_one_line(tmp_path, monkeypatch):
    """The example of CONTRIBUTING.md, in a folder of its own: page, figures and tables have it without more."""
    (example,) = re.findall(
        r"## A report section: one file.*?```python\n(.*?)```",
        (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8"),
        re.DOTALL,
    )
    (tmp_path / "lengths.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    lengths = import_module("lengths")
    monkeypatch.setattr(page_module, "SECTIONS", (*page_module.SECTIONS, lengths.section))
    store = make_store(tmp_path / "a.db", names=("tiny", "wanda-50"), problems=12, budgets=(16, 64))
    page = Page(report(store, tmp_path / "a.html", figures=tmp_path / "f", csv=tmp_path / "t"))
    assert "Longest answers" in page.all("h2")
    rows = page.rows("lengths")
    with Store(store) as opened:
        longest = [max(s.answer_tokens for s in opened.samples(run.run_id)) for run in opened.runs()]
    assert [row[1] for row in rows[1:]] == [str(tokens) for tokens in longest]
    assert (tmp_path / "t" / "lengths.csv").exists() and (tmp_path / "t" / "lengths.tex").exists()
    assert (tmp_path / "f" / "lengths.svg").exists() and (tmp_path / "f" / "lengths.pdf").exists()


# What it says


def entry(word: str, difference: float, low: float, high: float) -> Entry:
    """An entry with what a title says; what it does not read is None."""
    cell = blank(Cell, difference=difference, low=low, high=high, base_accuracy=0.5)
    shown = {"stopping": Stopping(tokens_ratio=1.0, per_correct=1.0, base_per_correct=1.0, budget=64, endings={})}
    given = {
        "verdict": Verdict(word),
        "within_margin": word not in ("worse", "cannot tell"),
        "low": -0.0123,
        "high": high,
    }
    return blank(Entry, primary=cell, contradicted_at=[], tasks={}, margin=Margin(0.02), **given, **shown)


def blank(kind: Any, **values: Any) -> Any:
    return kind(**{field.name: None for field in fields(kind)} | values)


def test_the_title_names_the_smallest_variant_that_loses_less_than_the_margin_and_stops():
    good, better, worse, within = (
        replace(entry(word, 0.0, -0.01, 0.01), stops=Verdict.NON_INFERIOR, still_stops=True)
        for word in ("non-inferior", "better", "worse", "worse, within the margin")
    )
    unsure, endless = (replace(good, stops=word, still_stops=False) for word in (Verdict.CANNOT_TELL, Verdict.WORSE))
    at = [Contradiction(budget=64, difference=-0.3, verdict=Verdict.WORSE)]
    sizes = [(4.0, 1.0), (3.0, 1.0), (3.0, 0.5), (2.0, 1.0)]
    for entries, title in [
        ((good, good, good, worse), "C loses less than 1.3 points"),
        ((good, better, unsure, worse), "B gains more than 0 points"),
        ((worse, worse, unsure, endless), "C loses less than 1.3 points"),
        ((within, unsure, endless, worse), "A loses more than 0, up to 1.3 points"),
        ((worse, worse, worse, endless), "D loses less than 1.3 points, but stops less often"),
        ((good, worse, worse, replace(good, contradicted_at=at)), "A loses less than 1.3 points"),
        ((worse, worse, replace(good, contradicted_at=at), worse),
         "C loses less than 1.3 points, but is worse at some budgets"),
    ]:  # fmt: skip
        assert prose.title(page_of(entries, list("ABCD"), best(entries, sizes))) == title
    smaller = page_of([good], "A", 0, sizes=[55])
    assert prose.title(smaller) == "A takes 55\xa0% of the memory and loses less than 1.3 points"
    undecided, unfinished = (
        replace(worse, verdict=Verdict.CANNOT_TELL),
        replace(worse, verdict=Verdict.UNFINISHED, low=None),
    )
    nothing = (worse, undecided, unfinished, undecided)
    assert best(nothing, sizes) is None
    title = "A loss of 3 points is ruled out for no variant: 2 are not decided, 1 is worse and 1 is not finished"
    assert prose.title(page_of(nothing, list("ABCD"))) == title
    assert prose.title(page_of([undecided], "A")) == "A is not decided: it could lose up to 1.3 points"
    assert prose.title(page_of([worse], "A")) == "A is worse: it loses more than 0, up to 1.3 points"


@pytest.mark.parametrize("words", [1, 8, 12, 13, 14, 30])
def test_a_title_has_16_words_at_most(words):
    name = " ".join(["name"] * words)
    good = replace(entry("non-inferior", 0.0, -0.01, 0.01), stops=Verdict.WORSE, still_stops=False)
    title = prose.title(page_of([good], [name], 0, sizes=[55]))
    assert len(title.replace("\xa0", "").split()) <= 16 and title.startswith("name")
    assert title.endswith("of the memory and loses less than 1.3 points, but stops less often")


@pytest.mark.parametrize(
    ("names", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (list("abcdef"), "a, b, c and 3 more")]
)
def test_joined(names, text):
    assert joined(names) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0312, "−3.1"), (0.0004, "0.0"), (-0.0004, "0.0"), (0.1, "+10.0"), (None, "–"), (float("nan"), "–")],
)
def test_points(value, text):
    assert points(value) == text
    assert percent(value) == text.removeprefix("+")


@pytest.mark.parametrize(
    ("p", "text"), [(0.0001, "<0.001"), (0.0344, "0.034"), (0.214, "0.21"), (1.0, "1.00"), (None, "–")]
)
def test_probability(p, text):
    assert probability(p) == text


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a store with change(sample) for every sample of the runs after the first."""
    with Store(source) as old, Store(target, create=True) as new:
        new.add_problems(old.problems().values())
        for number, run in enumerate(old.runs()):
            new.add_run(run)
            new.add_samples(run.run_id, [change(s) if number else s for s in old.samples(run.run_id, texts=True)])
    return target


@pytest.mark.slow
def test_a_budget_that_does_not_bound_the_tokens_is_said(tmp_path):
    source = make_store(tmp_path / "a.db", names=("tiny", "wanda-50"), problems=30, budgets=(16, 64))
    quiet = Page(report(source, tmp_path / "a.html"))
    assert quiet.all("details", "warnings") == []
    leaking = rewrite(source, tmp_path / "b.db", lambda s: replace(s, answer_tokens=600 if s.budget == 16 else 5))
    (warning,) = Page(report(leaking, tmp_path / "b.html")).all("details", "warnings")
    assert "does not bound the tokens of Wanda 50\xa0%" in warning and "budget 16, where 100.0 %" in warning


@pytest.mark.slow
def test_what_differs_and_what_is_missing_is_said(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny",), problems=20, budgets=(16, 64))
    plan = EvalPlan(tasks=("tiny",), budgets=(16, 64))
    with Store(path) as store:
        rows = list(store.problems().values())
        run = run_of("wanda-50", plan, 1, rows)
        run = replace(run, environment=run.environment | {"torch": "2.9"})
        run = with_history(run, [{**run.model.manifest.history[0].data, "warnings": ["calibrated on 3 tokens"]}])
        store.add_run(run)
        store.add_samples(run.run_id, draw_samples("wanda-50", rows[:12], (16, 64), 1, ())[:-1])
    (warning,) = Page(report(path, tmp_path / "a.html")).all("details", "warnings")
    assert "Not finished: Wanda 50\xa0% has 11 of 20 problems" in warning  # of the twelfth, one budget lacks its answer
    assert "same torch" in warning
    assert "calibrated on 3 tokens." in warning


def test_runs_left_out_for_one_reason_are_named_together():
    reason = "profile is qwen3, not s1; name it to compare"
    texts = [f"{name} (id{k}) is left out: {reason}" for k, name in enumerate("abcde")] + ["f (id6) is left out: other"]
    assert prose.grouped(texts) == [f"a (id0), b (id1), c (id2) and 2 more are left out: {reason}", texts[-1]]


@pytest.mark.slow
def test_what_was_said_of_several_models_is_said_once(store, tmp_path):
    with Store(store) as old, Store(tmp_path / "a.db", create=True) as new:
        new.add_problems(old.problems().values())
        for run in old.runs():
            said = {0.5: ["a block was held at 0.99"]}
            steps = [
                step | {"warnings": said.get(step.recipe.sparsity or 0, [])} for step in run.model.manifest.history
            ]
            new.add_run(with_history(run, [step.data for step in steps]))
            new.add_samples(run.run_id, old.samples(run.run_id))
    (care,) = Page(report(tmp_path / "a.db", tmp_path / "a.html")).all("details", "warnings")
    assert care.count("a block was held at 0.99.") == 1
    assert "Warning from making Wanda 50\xa0% and Magnitude 50\xa0%: a block" in care


@pytest.mark.parametrize("kind", ["owl", "layerif", "mlp"])
def test_names_are_spelled_as_their_authors_do(kind):
    key = "scope" if kind == "mlp" else "allocation"
    step = {"action": "prune", "recipe": {"method": "wanda", "sparsity": 0.2, key: kind}}
    assert step_label(StepRecord.of(step)) == f"Wanda {'LayerIF' if kind == 'layerif' else kind.upper()} 20\xa0%"


# The file


@pytest.mark.slow
def test_the_file_is_whole_or_not_there(small, tmp_path, monkeypatch):
    out = tmp_path / "page.html"

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert is_refused(lambda: report(small, out), "the disk is full", str(out))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert report(small, out) == out and list(tmp_path.iterdir()) == [out]
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.slow
def test_an_existing_file_stays_unless_told(small, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("mine")
    assert is_refused(lambda: report(small, out), "exists", "--overwrite") and out.read_text() == "mine"
    report(small, out, overwrite=True)
    assert out.read_text().startswith("<!doctype html>")
    assert is_refused(lambda: report(small, tmp_path, overwrite=True), "is a folder")
    assert is_refused(lambda: report(small, tmp_path / "none" / "page.html"), "does not exist")
    assert is_refused(lambda: report(tmp_path / "none.db", tmp_path / "b.html"), "cannot be read: No such file")


@pytest.mark.slow
def test_two_reports_of_one_store_are_equal(small, tmp_path):
    pages = [report(small, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_base_is_the_dense_run_or_the_one_named(store, page, tmp_path):
    assert "6 variants of tiny against the original" in page.all("p", "kicker")[0]
    named = Page(report(store, tmp_path / "a.html", base="wanda-50"))
    assert "against Wanda 50\xa0%" in named.all("p", "kicker")[0]
    assert [row[0].strip() for row in named.rows("verdicts")][1] == "Wanda 50\xa0%"
    assert is_refused(lambda: report(store, tmp_path / "b.html", base="none"), "no run of 'none'")


def test_no_clear_base_is_refused(tmp_path):
    none = make_store(tmp_path / "none.db", names=("wanda-20", "wanda-50"), problems=6, budgets=(16,))
    assert is_refused(lambda: report(none, tmp_path / "a.html"), "no run of an unpruned model", "--base")
    two = make_store(tmp_path / "two.db", names=("tiny",), problems=6, budgets=(16,))
    make_store(two, names=("tiny",), problems=6, budgets=(16, 32))
    assert is_refused(lambda: report(two, tmp_path / "a.html"), "several runs of unpruned models", "--base")
    with Store(tmp_path / "empty.db", create=True):
        pass
    assert is_refused(lambda: report(tmp_path / "empty.db", tmp_path / "a.html"), "no runs yet")
    assert not (tmp_path / "a.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("budgets", [(0,), (512,), (0, 512), (16, 24, 1000), tuple(range(0, 400, 20))])
def test_any_budgets_make_a_page(tmp_path, budgets):
    path = make_store(tmp_path / "a.db", names=("tiny", "drop-2"), problems=5, budgets=budgets, draws=2)
    page = Page(report(path, tmp_path / "a.html"))
    shown = page.source.replace("</script>", "").split("<main>")[1].split("<script")[0]
    assert page.open == [] and not re.search(r"(?<![A-Za-z])nan", shown)
    several = 3  # any, majority, shortest of k
    efforts = sum(budget > 0 for budget in budgets) > 1  # the picture of the exchange
    assert page.source.count('<svg class="chart') == 2 * any(budgets) + several + efforts  # broad and narrow


def test_a_smaller_model_is_said_to_be_smaller(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny",), problems=20, budgets=(16, 64))
    plan = EvalPlan(tasks=("tiny",), budgets=(16, 64))
    with Store(path) as store:
        run, (base,) = run_of("drop-1", plan, 1, list(store.problems().values())), store.runs()
        smaller = {"parameters": 1_081_664, "bytes": {"embeddings": 32_768, "others": 2_130_560}}
        store.add_run(replace(run, model=run.model | smaller))
        store.add_samples(run.run_id, store.samples(base.run_id))
    page = Page(report(path, tmp_path / "a.html"))
    assert "Parametersof 1\u202f213\u202f440" in page.all("table", "list")[0]  # the base's bytes are unknown
    assert "89\xa0%" in page.all("table", "list")[0]


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "–"), (999, "999"), (1_000, "1.00 k"), (9_996, "10.0 k"), (99_960, "100 k"), (999_600, "1.00 M"),
     (1_213_440, "1.21 M"), (494_032_768, "494 M"), (7_615_616_512, "7.62 B")],
)  # fmt: skip
def test_large_numbers_have_three_digits(number, text):
    assert short(number, ("k", "M", "B")).replace("\xa0", " ") == text


def test_one_run_is_a_page_of_curves(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny",), problems=5)
    page = Page(report(path, tmp_path / "a.html"))
    assert "nothing to compare with the original yet" in page.all("header")[0] and page.rows("verdicts") == []
    assert len(page.rows("numbers")) == 1 + len(BUDGETS)


@pytest.mark.slow
def test_several_tasks_have_a_section_each_and_one_verdict(tmp_path):
    path = make_store(tmp_path / "a.db", names=("tiny", "wanda-50"), problems=12, tasks=("one", "two"))
    page = Page(report(path, tmp_path / "a.html"))
    titles = [f"At which budget is it lost? on {task}" for task in ("one", "two")]
    assert [title for title in page.all("h2") if title.startswith("At which")] == titles
    macro = compare(path, "tiny").to_json()["others"][0]["macro"]["auc"]
    assert page.rows("verdicts")[2][2].startswith(in_points(macro["difference"]))


def test_colours_can_be_told_from_the_background():
    """WCAG: 4.5 for text, 3 for lines, in both schemes."""
    css = (Path(prose.__file__).parent / "render/page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", part))
        for part in re.findall(r":root \{(.*?)\n *\}", css, re.DOTALL)[:2]
    )
    for scheme in (light, dark):
        for name, least in [("ink", 7), ("soft", 4.5), *[(c, 4.5) for c in ("ok", "bad", "link", "open")]]:
            for back in ("paper", "card"):
                assert contrast(scheme[name], scheme[back]) >= least, (name, back)


def contrast(one: str, other: str) -> float:
    levels = []
    for colour in (one, other):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(levels) + 0.05) / (min(levels) + 0.05)
