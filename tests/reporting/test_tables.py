"""Terminal tables fit, hold the numbers of summarise and compare, and show foreign text literally."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_store import BUDGETS, make_store
from rich.console import Console

from prunus.cli import main
from prunus.reporting.terminal import curve_table, detail_tables, inspection_tables, verdict_table
from prunus.results.cells import Comparison
from prunus.results.comparison import compare
from prunus.results.order import ordered
from prunus.results.summary import Summary, summarise
from prunus.results.verdicts import verdict
from prunus.results.vocabulary import Verdict
from prunus.results.words import loss_in_words
from prunus.store.store import Store
from prunus.store.stored import Environment, StoredPlan

SIGNS = {"^": "better", "v": "worse", "~": "worse, within the margin", "=": "non-inferior", "?": "cannot tell"}


def printed(*tables, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(*tables, sep="\n")
    return stream.getvalue()


def row_of(text: str, name: str, after: str = "") -> list[str]:
    """The words behind a name in its row, the first one after a line that has `after`."""
    part = text[text.index(after) :].replace("\xa0", " ")
    (line,) = [line for line in part.splitlines() if line.startswith(f"{name} ")][:1]
    return line.removeprefix(name).split()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "results.db")


@pytest.fixture(scope="module")
def summaries(store) -> list[Summary]:
    with Store(store) as opened:
        return [summarise(opened, run.run_id) for run in opened.runs()]


@pytest.fixture(scope="module")
def comparison(store) -> Comparison:
    return compare(store, "tiny")


NAMES = [
    "dense",
    "Wanda 20 %",
    "Magnitude 20 %",
    "Wanda 50 %",
    "Magnitude 50 %",
    "ShortGPT −1 block",
    "ShortGPT −2 blocks",
]


@pytest.mark.slow
def test_seven_runs_and_eight_budgets_fit_in_120_columns(summaries, comparison):
    for text in (printed(curve_table(summaries)), printed(detail_tables(comparison))):
        lines = text.replace("\xa0", " ").splitlines()
        assert max(map(len, lines)) <= 120
        assert "…" not in text  # nothing was cut
        for name in NAMES[1:]:
            assert any(line.startswith(f"{name} ") for line in lines), name  # nor wrapped


@pytest.mark.slow
def test_no_colour_codes_outside_a_terminal(summaries, comparison):
    assert "\x1b" not in printed(curve_table(summaries), detail_tables(comparison))


@pytest.mark.slow
def test_curve_table_has_the_accuracies(summaries):
    text = printed(curve_table(summaries))
    assert row_of(text, "run")[:8] == [str(budget) for budget in BUDGETS]
    for name, summary in zip(NAMES, summaries, strict=True):
        task = summary.to_json()["tasks"]["tiny"]
        words = [float(word) for word in row_of(text, name)]
        accuracies = [100 * task["budgets"][budget]["accuracy"] for budget in BUDGETS]
        tokens = task["budgets"][1024]["tokens"]["total"]["mean"]
        assert words[:9] == pytest.approx([*accuracies, 100 * task["auc"]["value"]], abs=0.051)
        assert words[9] == pytest.approx(tokens, abs=0.5)
    halves = re.findall(r"±([\d.]+)", text)
    cells = summaries[0].cells("tiny")
    expected = [50 * (cells[budget].high - cells[budget].low) for budget in BUDGETS]
    assert [float(half) for half in halves[:8]] == pytest.approx(expected, abs=0.051)
    assert "126 problems x 1 answer" in text


@pytest.mark.slow
def test_detail_tables_have_the_words_and_differences(comparison):
    text = printed(detail_tables(comparison))
    for name, entry in zip(NAMES[1:], comparison.others, strict=True):
        cell = entry.primary
        rest = " ".join(row_of(text, name)).removeprefix(brief(entry.verdict))
        assert rest != " ".join(row_of(text, name))
        numbers = [float(n.replace("−", "-")) for n in re.findall(r"[−+]?\d+\.\d+", rest)]
        wanted = [100 * cell.difference, 100 * entry.low, 100 * entry.high, cell.p_margin_adjusted]
        wanted += [100 * share for share in (cell.mde, cell.accuracy, cell.base_accuracy)]
        assert numbers == pytest.approx(wanted, abs=0.1)  # the ends of the interval are rounded outwards
        for word, budget in zip(row_of(text, name, "by thinking budget"), BUDGETS, strict=True):
            detail = entry.tasks["tiny"].budgets[budget]
            assert SIGNS[word[-1]] == verdict(detail)
            assert float(word[:-1].replace("−", "-")) == pytest.approx(100 * detail.difference, abs=0.051)


@pytest.mark.slow
def test_verdict_table_has_sizes_words_and_the_differences_that_decide(store, comparison):
    with Store(store) as opened:
        runs = opened.runs()
    first, *rest = comparison.others
    first = replace(first, bytes={"weights": 2_400_000, "scales": 26_880})
    text = printed(verdict_table(replace(comparison, others=[first, *rest])))
    assert max(map(len, text.splitlines())) <= 120
    solves = f"{100 * comparison.others[0].primary.base_accuracy:.1f}"
    own = comparison.others[0].stopping
    assert own.base_per_correct and row_of(text, "dense")[:5] == [
        *("1,213,440", "solves", solves, "%"),
        f"{own.base_per_correct:,.0f}",
    ]
    lines = [line.strip() for line in text.replace("\xa0", " ").splitlines()]
    at = {name: next(k for k, line in enumerate(lines) if line.startswith(f"{name} ")) for name in NAMES[1:]}
    assert sorted(at, key=at.__getitem__) == [NAMES[1:][place] for place in ordered(comparison).places]
    for name, run, entry in zip(NAMES[1:], runs[1:], comparison.others, strict=True):
        assert run.run_id == entry.run
        row = " ".join(row_of(text, name))
        assert row.startswith("2.4 MB" if run is runs[1] else "1,213,440")
        ends = entry.stopping.endings["ends"]
        assert loss_in_words(entry).removesuffix(" points") in row
        assert row.endswith(f" {100 * ends.share:.1f} %" + ", fewer" * (entry.stops.direction < 0))
        like = entry.as_good.estimate
        shown = "all" if like == max(BUDGETS) else "less" if like is None else f"≈ {float(f'{like:.2g}'):,.0f}"
        assert f" {shown} " in row and f"{entry.stopping.per_correct:,.0f}" in row.replace(" ", "")
        heads = [line for line in lines[: at[name]] if line.startswith(("A loss", "Not decided", "Worse"))]
        start = {"non-inferior": "A loss of 5 points is ruled out", "cannot tell": "Not decided", "worse": "Worse"}
        assert heads[-1].startswith(start[entry.verdict])


@pytest.mark.slow
def test_a_comparison_is_its_table_and_has_its_runs_by_their_printed_labels(comparison):
    assert repr(comparison).split() == printed(verdict_table(comparison)).split()
    assert [comparison[name].run for name in NAMES[1:]] == [entry.run for entry in comparison]


@pytest.mark.slow
def test_a_run_is_its_curve(summaries):
    one = summaries[1]
    assert repr(one).split() == printed(curve_table([one])).split() and str(one) == one.run_id == one.run
    assert one.accuracy == {"tiny": {budget: cell.accuracy for budget, cell in one.tasks["tiny"].budgets.items()}}


def brief(word: Verdict) -> str:
    return word.shown.replace(", within the limit", " (within limit)")


@pytest.mark.slow
def test_compare_prints_one_table_against_the_dense_model_and_all_with_details(store, comparison, capsys):
    assert len(printed(verdict_table(comparison)).splitlines()) < 18
    main(["compare", str(store)])
    assert "MDE" not in capsys.readouterr().out.partition("\n")[2].partition("`prunus compare")[0]
    main(["compare", str(store), "--details"])
    assert capsys.readouterr().out.split() == printed(detail_tables(comparison)).split()
    main(["compare", str(store), "--json", "--other", "wanda-20"])
    plain = json.loads(capsys.readouterr().out)
    assert plain == json.loads(json.dumps(compare(store, "tiny", ["wanda-20"]).to_json()))


@pytest.mark.slow
def test_several_tasks_have_a_table_each_and_one_verdict(tmp_path):
    path = make_store(
        tmp_path / "a.db", names=("tiny", "wanda-50"), problems=12, tasks=("one", "two"), budgets=(16, 64)
    )
    data = compare(path, "tiny")
    text = printed(detail_tables(data))
    assert text.count("by thinking budget") == 2 and "mean of all tasks" in text
    assert row_of(text, "Wanda 50 %")[0] == data.others[0].verdict.shown.split()[0]
    with Store(path) as store:
        curves = printed(curve_table([summarise(store, run.run_id) for run in store.runs()]))
    assert "one: accuracy" in curves and "two: accuracy" in curves


def test_foreign_text_is_no_markup_and_no_control_sequence(tmp_path):
    bad = "[bold red]x[/] [/nothing] \x1b[31m \u202e"
    path = make_store(tmp_path / "a.db", names=("tiny", "drop-1"), problems=6, budgets=(16,), tasks=(bad,),
                      rename={"tiny": bad, "drop-1": bad + "2"})  # fmt: skip
    make_store(path, names=("tiny",), problems=6, budgets=(16, 32), tasks=(bad,), rename={"tiny": bad + "3"})
    with Store(path) as store:
        runs = store.runs()
        text = printed(curve_table([summarise(store, run.run_id) for run in runs]), width=300)
    text += printed(detail_tables(compare(path, runs[0].run_id, [run.run_id for run in runs[1:]])), width=300)
    assert "\x1b" not in text and "\u202e" not in text
    assert "[bold red]x[/] [/nothing] ␛[31m ⟦U+202E⟧: dense" in text.replace("\xa0", " ")
    assert "warning: " in text


def test_nothing_finished_is_said():
    assert (
        printed(
            curve_table([Summary(run="r", model="m", recipe=[], plan=StoredPlan(), versions=Environment(), tasks={})])
        )
        == "no finished problem yet\n"
    )


def test_inspection_shows_facts_and_lists(capsys):
    data = {
        "folder": "a[b]c", "sparsity": 0.5, "patterns": ["2:4", "4:8"], "parameters": 1234567, "weight_bytes": 2469134,
        "history": [], "blocks": [{"block": b, "sparsity": 0.25 + b / 2, "zeros": 1000 + 2000 * b} for b in (0, 1)],
        "linears": [{"linear": "model.layers.0.x", "sparsity": 0.1}],
    }  # fmt: skip
    text = printed(*inspection_tables(data))
    lines = [line.split() for line in text.splitlines()]
    for expected in ("folder a[b]c", "sparsity 50.0 %", "patterns 2:4, 4:8", "history none", "parameters 1,234,567",
                     "weight bytes 2.5 MB", "1 75.0 % 3,000"):  # fmt: skip
        assert expected.split() in lines
    assert "model.layers.0.x" not in text and "--json" in text


def test_a_serving_of_all_runs_is_told_once_below_the_table(comparison):
    def served(entry):
        return replace(entry, serving="dtype half", serving_settings="dtype half")

    others = [served(entry) for entry in comparison.others]
    text = printed(verdict_table(replace(comparison, base=served(comparison.base), others=others)))
    assert text.count("dtype half") == 1
    assert "all of them: served with dtype half" in text and "\ndense " in text
    assert "served with" not in printed(verdict_table(comparison))
