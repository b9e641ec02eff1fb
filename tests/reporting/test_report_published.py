"""Published figures: the data are the papers', matching finds what means the same, z is what its formula says."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_store import draw_samples, run_of, with_history
from html_page import Page

from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe
from prunus.reporting.page import report
from prunus.reporting.published import PublishedVariant, cells, matches, notes, sources, standard_error, variant_of
from prunus.results.summary import summarise
from prunus.store.rows import ProblemRow, Run
from prunus.store.store import Store

BUDGETS = (256, 512, 8192)
S1 = "s1.1-7B"


def find(variant: PublishedVariant, task: str, budget: int, source: str = "2604.25098"):
    (cell,) = [c for c in cells() if (c.variant, c.task, c.budget, c.source) == (variant, task, budget, source)]
    return cell


# The data


def test_every_cell_is_there_once():
    assert Counter((c.source, c.variant.method, c.mark) for c in cells()) == {
        ("2604.25098", "magnitude", "A"): 240, ("2604.25098", "wanda", "A"): 240, ("2604.25098", "dense", "B"): 40,
        ("2604.25098", "shortgpt", "B"): 80, ("2510.22228", "dense", "B"): 15, ("2510.22228", "shortgpt", "B"): 45,
        ("2510.22228", "laco", "B"): 15, ("2510.22228", "tail", "B"): 15,
    }  # fmt: skip
    keys = Counter((c.source, c.variant, c.task, c.budget) for c in cells())
    assert max(keys.values()) == 1
    exact = [c for c in cells() if c.mark == "A"]
    shape = Counter((c.variant, c.task) for c in exact)
    assert len(shape) == 2 * 2 * 3 * 2 * 4 and set(shape.values()) == {5}
    assert all(c.sd is not None and c.error == 0 for c in exact)
    assert all(c.sd is None and 0 < c.error < 0.02 for c in cells() if c.mark == "B")
    assert all(0 <= c.accuracy <= 1 and c.where for c in cells())


@pytest.mark.parametrize(
    ("variant", "task", "budget", "accuracy", "sd"),
    [
        (PublishedVariant(S1, "magnitude", "uniform", 0.1), "aime24", 512, 0.1332, 0.0272),
        (PublishedVariant(S1, "wanda", "layerif", 0.1), "gpqa_diamond", 8192, 0.4192, 0.0051),
        (PublishedVariant(S1, "magnitude", "uniform", 0.2), "math500", 8192, 0.6360, 0.0251),
        (PublishedVariant("Qwen3-8B", "magnitude", "owl", 0.1), "aime24", 8192, 0.5778, 0.0416),
        (PublishedVariant("Qwen3-8B", "wanda", "layerif", 0.2), "math500", 8192, 0.9480, 0.0043),
        (PublishedVariant(S1, "dense"), "amc23", 8192, 0.546, None),
        (PublishedVariant("Qwen3-8B", "dense"), "aime24", 2048, 0.433, None),
        (PublishedVariant(S1, "shortgpt", blocks=2), "aime24", 1024, 0.0, None),
        (PublishedVariant("Qwen3-8B", "shortgpt", blocks=1), "gpqa_diamond", 4096, 0.499, None),
    ],
)
def test_some_cells_of_the_seed_study(variant, task, budget, accuracy, sd):
    cell = find(variant, task, budget)
    assert (cell.accuracy, cell.sd) == (accuracy, sd)


def test_some_cells_of_the_layer_study():
    qwen = "Qwen3-8B"
    found = [
        find(PublishedVariant(qwen, method, blocks=blocks), task, budget, "2510.22228").accuracy
        for method, blocks, task, budget in [
            ("dense", None, "aime24", 8192), ("shortgpt", 3, "math500", 512), ("laco", 1, "gpqa_diamond", 8192),
            ("tail", 1, "aime24", 2048),
        ]
    ]  # fmt: skip
    assert found == [0.667, 0.34, 0.615, 0.155]


# Of Appendix A's 60 rows a model: accuracies and SDs added up, and accuracies weighed by their place in the order of
# allocation, method, sparsity and budget, so that no two can be exchanged unseen.
SUMS = {
    (S1, "aime24"): (6.0075, 1.4656, 185.1964), (S1, "gpqa_diamond"): (21.3985, 1.0070, 650.0445),
    (S1, "amc23"): (28.1750, 2.2243, 860.7772), (S1, "math500"): (43.3287, 0.7254, 1316.9652),
    ("Qwen3-8B", "aime24"): (33.6446, 2.8637, 1024.8418), ("Qwen3-8B", "gpqa_diamond"): (30.1091, 1.1684, 924.3048),
    ("Qwen3-8B", "amc23"): (51.9002, 1.9346, 1588.1965), ("Qwen3-8B", "math500"): (55.4329, 0.3578, 1690.8398),
}  # fmt: skip


@pytest.mark.parametrize(("model", "task"), SUMS)
def test_the_printed_tables_add_up(model, task):
    printed = [c for c in cells() if c.mark == "A" and (c.variant.model, c.task) == (model, task)]
    order = ("layerif", "owl", "uniform", "magnitude", "wanda")
    kinds = {c: (order.index(str(c.variant.allocation)), order.index(c.variant.method)) for c in printed}
    printed.sort(key=lambda c: (*kinds[c], c.variant.sparsity, c.budget))
    assert len(printed) == 60
    sums = sum(c.accuracy for c in printed), sum(c.sd or 0 for c in printed)
    weighed = sum(place * c.accuracy for place, c in enumerate(printed, 1))
    assert (*sums, weighed) == pytest.approx(SUMS[model, task], abs=1e-6)


def test_oddities_are_in_the_data():
    owl = [PublishedVariant("Qwen3-8B", method, "owl", 0.1) for method in ("magnitude", "wanda")]
    for task in ("aime24", "gpqa_diamond"):
        one, other = (find(variant, task, 8192) for variant in owl)
        assert (one.accuracy, one.sd) == (other.accuracy, other.sd)
    for budget in (1024, 2048, 4096):
        one, other = (find(variant, "gpqa_diamond", budget) for variant in owl)
        assert one.sd == other.sd and one.accuracy != other.accuracy
    wanda = PublishedVariant(S1, "wanda", "uniform", 0.2)
    one, other = (find(wanda, "gpqa_diamond", budget) for budget in (512, 1024))
    assert (one.accuracy, one.sd) == (other.accuracy, other.sd) == (0.3463, 0.0118)
    assert find(wanda, "aime24", 8192).accuracy == 0.1775
    dense = [find(PublishedVariant("Qwen3-8B", "dense"), "aime24", 8192, source).accuracy for source in sources()]
    assert dense == [0.578, 0.667]


def test_sources_say_where_from_and_how_read():
    for source in sources().values():
        assert source.to_json().keys() == {"name", "paper", "code", "runs", "draws", "answer_tokens", "read"}
    assert {c.source for c in cells()} == sources().keys()


# Its error


def test_error_of_a_printed_mean_undoes_the_divisor():
    """Of three run means with these spreads: SD with divisor 3 as printed, standard error with divisor 2."""
    means = [0.10, 0.14, 0.18]
    printed = math.sqrt(sum((m - 0.14) ** 2 for m in means) / 3)
    wanted = math.sqrt(sum((m - 0.14) ** 2 for m in means) / 2) / math.sqrt(3)
    cell = find(PublishedVariant(S1, "magnitude", "uniform", 0.1), "aime24", 512)
    assert cell.sd is not None
    assert standard_error(cell) == pytest.approx(wanted * cell.sd / printed)


def test_error_of_a_read_value_is_the_usual_one_and_that_of_reading():
    sds = [c.sd for c in cells() if c.sd is not None and c.variant.model == S1 and c.task == "math500"]
    usual = sum(sd**2 for sd in sds) / len(sds) / 2
    assert len(sds) == 60
    assert standard_error(find(PublishedVariant(S1, "dense"), "math500", 512)) == pytest.approx(
        math.sqrt(usual + 0.012**2 / 3)
    )


# Matching


def run_with(
    recipe: PruneRecipe | DropRecipe | None, source: str = "simplescaling/s1.1-7B", change: dict | None = None
) -> Run:
    name = "tiny" if recipe is None else "wanda-20" if isinstance(recipe, PruneRecipe) else "drop-2"
    run = run_of(name, EvalPlan(tasks=("aime24",)))
    run = replace(run, model=run.model | {"source": source})
    if recipe is None:
        return run
    changes = {"recipe": recipe.to_json(), "source": {"name": source, "checksum": "0"}} | (change or {})
    return with_history(run, [{**step.data, **changes} for step in run.model.manifest.history])


@pytest.mark.parametrize(
    ("run", "variant"),
    [
        (run_with(None), PublishedVariant(S1, "dense")),
        (run_with(None, "/models/S1.1-7b/"), PublishedVariant("S1.1-7b", "dense")),
        (run_with(PruneRecipe(method="wanda", sparsity=0.2)), PublishedVariant(S1, "wanda", "uniform", 0.2)),
        (run_with(PruneRecipe(method="magnitude", sparsity=0.1, allocation="owl")),
         PublishedVariant(S1, "magnitude", "owl", 0.1)),
        (run_with(DropRecipe(blocks="2"), change={"blocks_removed": [16, 17]}),
         PublishedVariant(S1, "shortgpt", blocks=2)),
        (run_with(PruneRecipe(method="wanda", pattern="2:4")), None),
        (run_with(PruneRecipe(method="wanda", sparsity=0.2, scope="mlp")), None),
        (run_with(PruneRecipe(method="wanda", sparsity=0.2), change={"recipe": None}), None),
        (run_with(PruneRecipe(method="wanda", sparsity=0.2), change={"source": None}), None),
    ],
)  # fmt: skip
def test_variant_of_a_run(run, variant):
    assert variant_of(run) == variant


def test_two_steps_are_no_published_variant():
    run = run_with(PruneRecipe(method="wanda", sparsity=0.2))
    assert variant_of(with_history(run, [step.data for step in run.model.manifest.history] * 2)) is None


def s1_store(path: Path, task: str = "aime24", model: str = "simplescaling/s1.1-7B") -> Path:
    """Dense, Wanda 20 %, Magnitude 50 % (which no paper has) and two blocks gone of a model called s1.1-7B."""
    rows = [ProblemRow(task, f"{task}/{i}", str(i), "integer", (), f"{i:016x}") for i in range(30)]
    plan = EvalPlan(tasks=(task,), budgets=BUDGETS, mode="legacy", samples=2)
    with Store(path, create=True) as store:
        store.add_problems(rows)
        for number, name in enumerate(("tiny", "wanda-20", "magnitude-50", "drop-2")):
            run = run_of(name, plan, number)
            called = {"name": model, "source": model} if name == "tiny" else {"name": name, "source": f"/out/{name}"}
            run = replace(run, model=run.model | called)
            source = {"name": model, "checksum": "0" * 64}
            store.add_run(with_history(run, [{**step.data, "source": source} for step in run.model.manifest.history]))
            store.add_samples(run.run_id, draw_samples(name, rows, BUDGETS, 2, ()))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return s1_store(tmp_path_factory.mktemp("published") / "results.db")


@pytest.fixture(scope="module")
def page(store) -> Page:
    return Page(report(store, store.parent / "report.html", published=True))


@pytest.mark.slow
def test_the_page_sets_matching_cells_beside_ours(page, store):
    rows = page.rows("published")[1:]
    assert [(row[0].strip(), row[1], row[2], row[3]) for row in rows] == [
        (name, "aime24", budget, "legacy")
        for name in ("the original", "Wanda 20\xa0%", "ShortGPT −2\xa0blocks") for budget in ("512", "8192")
    ]  # fmt: skip
    with Store(store) as opened:
        summary = summarise(opened, opened.find_run("wanda-20").run_id).to_json()
    ours = summary["tasks"]["aime24"]["budgets"][8192]
    z = (ours["accuracy"] - 0.1775) / math.sqrt(ours["se"] ** 2 + 0.0159**2 / 2)
    (row,) = [row for row in rows if row[0].strip().startswith("Wanda") and row[2] == "8192"]
    wanted = [100 * ours["accuracy"], 100 * ours["se"], 17.75, 1.59, 1.59 / math.sqrt(2)]
    assert [float(text) for text in row[4:9]] == pytest.approx(wanted, abs=0.051)
    assert float(row[9].replace("−", "-")) == pytest.approx(100 * (ours["accuracy"] - 0.1775), abs=0.051)
    assert float(row[10].replace("−", "-")) == pytest.approx(z, abs=0.051)
    assert row[11:] == ["A", "seed study, tables 1-10"]


@pytest.mark.slow
def test_the_curves_are_overlaid_where_theirs_are(page):
    chart = page.source[page.source.index('<svg class="chart') :].split("</svg>", 1)[0]
    groups = [part.split("</g>", 1)[0] for part in chart.split("<g class=")[1:]]
    theirs = [part for part in groups if part.split(">", 1)[0].endswith(' pub"') and "mark" in part]
    assert len(theirs) == 3 and all(part.count('class="mark"') == 2 for part in theirs)
    (wanda,) = [part for part in theirs if part.startswith('"run r1 ')]
    assert "Wanda 20\xa0%, seed study" in wanda and "17.8 %" in wanda
    assert "published" in page.all("label")


@pytest.mark.slow
def test_notes_are_those_of_the_cells_that_matched(page, store):
    texts = page.all("li")
    assert any("divisor 3" in text for text in texts) and any("figure only" in text for text in texts)
    assert any("17.75" in text for text in texts)
    assert not any("copied" in text or "markers" in text for text in texts)  # of Qwen3-8B
    with Store(store) as opened:
        runs = opened.runs()[:1]
        summaries = [summarise(opened, run.run_id) for run in runs]
    from prunus.reporting.render.table import run_styles

    found = matches(list(zip(run_styles(runs[0], [], []), runs, summaries, strict=True)))
    assert len(found) == 2 and not any("17.75" in text or "divisor" in text for text in notes(found))


@pytest.mark.slow
def test_without_a_match_one_line_says_where_they_are(tmp_path):
    path = s1_store(tmp_path / "a.db", task="tiny", model="tiny")
    page = Page(report(path, tmp_path / "a.html", published=True))
    (index,) = [k for k, (_, a) in enumerate(page.elements) if a.get("id") == "published"]
    text = page.text(index)
    assert "No published figure matches these runs" in text and "docs/reports.md" in text
    assert page.rows("published") == [] and "published" not in page.all("label")
    quiet = Page(report(path, tmp_path / "b.html"))
    assert not [1 for _, attributes in quiet.elements if attributes.get("id") == "published"]
