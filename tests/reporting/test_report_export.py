"""Figures and tables for papers: whole files, the same numbers and shapes as the page, nothing replaced unasked."""

import csv
import io
import math
import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_store import BUDGETS, HOSTILE, make_store
from html_page import Page
from pypdf import PdfReader

from prunus.errors import PrunusError
from prunus.reporting.page import report
from prunus.reporting.render.chart import Line, Picture, Point, budget_axis, chart, linear_axis
from prunus.reporting.render.figure import Figure, Key
from prunus.reporting.render.table import Column, Interval, Table, Word, slug, tex
from prunus.reporting.render.text import percent
from prunus.results.comparison import compare
from prunus.results.vocabulary import Verdict

RUNS = ("tiny", "wanda-20", "magnitude-50", "drop-2")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    store = make_store(folder / "results.db", names=RUNS, problems=40, draws=2)
    report(store, folder / "report.html", figures=folder / "figures", csv=folder / "tables")
    return folder


# Figures


@pytest.mark.slow
def test_every_chart_of_the_page_is_a_figure(written):
    page = Page(written / "report.html")
    pictures = [str(a["class"]).split() for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
    shown = Counter(css[0] for css in pictures if "narrow" not in css)
    names = {path.name for path in (written / "figures").iterdir()}
    stems = {name.rsplit(".", 1)[0] for name in names}
    assert names == {f"{stem}{ending}" for stem in stems for ending in (".svg", ".pdf")}
    assert shown["chart"] < len(stems)  # those of differences, tokens and endings are files alone
    assert {"accuracy-budget-tiny", "difference-tiny", "draws-maj-at-tiny"} <= stems


@pytest.mark.slow
def test_an_svg_needs_nothing_else(written):
    for path in (written / "figures").glob("*.svg"):
        text = path.read_text("utf-8")
        ElementTree.fromstring(text)  # noqa: S314
        assert "class=" not in text and "var(" not in text and "nan" not in text
        assert text.count("http") == text.count("http://www.w3.org/2000/svg") == 1


@pytest.mark.slow
def test_a_pdf_shows_the_texts_of_its_svg_on_one_page_of_its_size(written):
    for path in (written / "figures").glob("accuracy-*.svg"):
        (page,) = PdfReader(path.with_suffix(".pdf")).pages
        svg = ElementTree.parse(path).getroot()  # noqa: S314
        wanted = " ".join(element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text"))
        assert sorted(page.extract_text().split()) == sorted(wanted.split())
        assert [float(side) for side in page.mediabox[2:]] == pytest.approx(
            [0.75 * float(svg.attrib[name]) for name in ("width", "height")], abs=0.6
        )


def simple_chart(name: str = "a") -> Picture:
    spots = [Point(16.0, 20.0, 10.0, 30.0, name), Point(64.0, 80.0, 70.0, 90.0, name)]
    return chart([Line("run r1 t-bad d1", spots, 0)], budget_axis([16, 64]), linear_axis(0, 100, "%"), name)


def shapes(svg: str, role: str) -> list[tuple[str, str]]:
    """(where, transform) of the shapes of a role in HTML of the page."""
    found = re.findall(rf'<path class="{role}" (?:transform="([^"]*)" )?d="([^"]*)"', svg)
    return [(d, at) for at, d in found]


def test_the_file_has_every_shape_of_the_page_and_a_style_for_each():
    picture = simple_chart()
    page, file = picture.html(), Figure("x", picture).svg()
    paths = ElementTree.fromstring(file).findall("{http://www.w3.org/2000/svg}path")  # noqa: S314
    for role, style in (
        ("line", {"fill": "none", "stroke": "#b23c00", "stroke-width": "1.6", "stroke-dasharray": "6 4"}),
        ("band", {"fill": "#b23c00", "fill-opacity": "0.13"}),
        ("mark", {"fill": "#b23c00", "stroke": "#ffffff", "stroke-width": "1"}),
        ("grid", {"fill": "none", "stroke": "#dfe2e6", "stroke-width": "1"}),
    ):
        wanted = shapes(page, role)
        styled = [
            (path.attrib["d"], path.get("transform", ""))
            for path in paths
            if {k: v for k, v in path.attrib.items() if k not in ("d", "transform")} == style
        ]
        assert wanted and styled == wanted, role


def test_published_curves_are_hollow_and_dotted():
    spots = [Point(16.0, 20.0, math.nan, math.nan, ""), Point(64.0, 80.0, math.nan, math.nan, "")]
    picture = chart([Line("run r1 t-bad d1 pub", spots, 1)], budget_axis([16, 64]), linear_axis(0, 100, "%"), "a")
    file = Figure("x", picture).svg()
    assert file.count('stroke-dasharray="1.5 4"') == 1
    assert file.count('fill="#ffffff" stroke="#b23c00" stroke-width="1.5"') == 2


@pytest.mark.slow
def test_hostile_names_are_text_in_a_figure():
    name = "(a) </text><script>x</script> " + "".join(HOSTILE)
    keys = [Key("t-ok d0", 0, name), Key("t-bad d0", 1, "−1 block × é")]
    figure = Figure(name, simple_chart(name), keys)
    root = ElementTree.fromstring(figure.svg())  # noqa: S314
    texts = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[-2].startswith("(a) </text><script>") and texts[-1] == "−1 block × é"
    assert {one.tag.rpartition("}")[2] for one in root.iter()} == {"svg", "g", "rect", "path", "text"}
    (page,) = PdfReader(io.BytesIO(figure.pdf())).pages
    assert "−1 block × é" in page.extract_text()


@pytest.mark.slow
def test_without_the_extra_one_line_says_what_to_install(written, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(PrunusError, match=r"pip install '\.\[figures\]'"):
        report(written / "results.db", tmp_path / "a.html", figures=tmp_path / "f")
    assert not list(tmp_path.iterdir())
    assert report(written / "results.db", tmp_path / "a.html", csv=tmp_path / "t").exists()


# Tables


@pytest.mark.slow
def test_csv_has_all_digits_of_compare(written):
    rows = list(csv.DictReader((written / "tables/verdicts.csv").read_text("utf-8").splitlines()))
    data = compare(written / "results.db", "tiny").to_json()
    variants = [row["run"] for row in rows[1:]]
    assert rows[0]["run"] == "the original"
    assert variants == ["Wanda 20\xa0%", "Magnitude 50\xa0%", "ShortGPT −2\xa0blocks"]
    for row, entry in zip(rows[1:], data["others"], strict=True):
        cell = entry["primary"]
        assert row["verdict"] == Verdict(entry["verdict"]).shown
        assert float(row["difference"]) == float(row["bootstrap"]) == cell["difference"]
        for side in ("low", "high"):
            assert float(row[f"difference_{side}"]) == entry[side] and float(row[f"bootstrap_{side}"]) == cell[side]
    numbers = list(csv.DictReader((written / "tables/numbers-tiny.csv").read_text("utf-8").splitlines()))
    assert len(numbers) == len(RUNS) * len(BUDGETS)
    cells = data["others"][1]["tasks"]["tiny"]["budgets"]
    found = {int(row["budget"]): row for row in numbers if row["run"].startswith("Magnitude")}
    for budget, cell in cells.items():
        assert float(found[budget]["difference"]) == cell["difference"]


@pytest.mark.slow
def test_every_table_is_there_as_csv_and_latex(written):
    names = {path.name for path in (written / "tables").iterdir()}
    stems = {"verdicts", "accuracy-tiny", "numbers-tiny", "scaling-tiny", "tokens-tiny", "costs", "linears",
             "draws-tiny", "parallel-tiny", "stopping", "endings-tiny", "flips", "flipped-problems",
             "efforts"}  # fmt: skip
    assert names == {f"{stem}{ending}" for stem in stems for ending in (".csv", ".tex")}
    linears = list(csv.DictReader((written / "tables/linears.csv").read_text("utf-8").splitlines()))
    assert len(linears) == 2 * 8 * 7 and {row["sparsity"] for row in linears} == {"0.2", "0.5"}
    for path in (written / "tables").glob("*.tex"):
        lines = path.read_text("utf-8").splitlines()
        (head,) = re.findall(r"\\begin\{tabular\}\{(l?r*)\}", path.read_text("utf-8"))
        rows = [line for line in lines if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in rows} == {len(head)}
        assert lines[-1] == r"\end{tabular}" and not re.search(r"(?<!\\)[%#_](?! needs| [A-Z])", "\n".join(rows))


def test_one_table_in_three_forms():
    columns = [Column("run", "Run"), Column("a", "A|%", percent), Column("v", "V"), Column("n", "N")]
    rows = [("=x_1", [Interval(0.5, 0.25, 0.75), Word("cannot tell", "r"), 3]), ("b", [None, None, None])]  # fmt: skip
    table = Table("g", "A & B", "data", columns, rows)
    assert list(csv.reader(table.csv().splitlines())) == [
        ["run", "a", "a_low", "a_high", "v", "n"], ["'=x_1", "0.5", "0.25", "0.75", "cannot tell", "3"],
        ["b", "", "", "", "", ""],
    ]  # fmt: skip
    assert r"=x\_1 & 50.0 (25.0 to 75.0) & cannot tell (r) & 3 \\" in table.latex()
    assert r"Run & A \% & V & N \\" in table.latex()
    html = table.html()
    assert '<td data-v="0.5">50.0<small>25.0 to 75.0</small></td>' in html


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_of_hostile_text_has_no_command(text):
    shown = tex(text)
    for known in (r"\textbackslash{}", r"\textasciicircum{}", r"\textasciitilde{}", r"\textless{}", r"\textgreater{}"):
        shown = shown.replace(known, "")
    assert not re.search(r"\\(?![{}$&#%_,])|(?<!\\)[{}$&#%_]|\n", shown.replace("$-$", "").replace(r"$\times$", ""))


def test_slugs_are_plain_names():
    assert slug("accuracy-../../etc/<b>ünï") == "accuracy-etc-b-n" and slug("\u202e") == "x"


# Files


@pytest.mark.slow
def test_nothing_is_replaced_unless_told(written, tmp_path):
    store, out = written / "results.db", tmp_path / "a.html"
    (tmp_path / "figures").mkdir()
    mine = tmp_path / "figures" / "accuracy-budget-tiny.svg"
    mine.write_text("mine")
    with pytest.raises(PrunusError, match="exists"):
        report(store, out, figures=tmp_path / "figures")
    assert mine.read_text() == "mine" and not out.exists() and len(list((tmp_path / "figures").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
    report(store, out, figures=tmp_path / "figures", overwrite=True)
    assert mine.read_text().startswith("<svg") and out.exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_is_refused_before_anything_is_written(written, tmp_path):
    store, out = written / "results.db", tmp_path / "a.html"
    (tmp_path / "file").write_text("x")
    for folder, words in ((tmp_path / "file", "is a file"), (tmp_path / "no" / "no", "does not exist")):
        with pytest.raises(PrunusError, match=words):
            report(store, out, csv=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_two_exports_are_equal(written, tmp_path):
    report(written / "results.db", tmp_path / "a.html", figures=tmp_path / "f")
    for path in (written / "figures").iterdir():
        same = [(folder / path.name).read_bytes() for folder in (written / "figures", tmp_path / "f")]
        if path.suffix == ".pdf":  # names stand in another order each time
            same = [sorted(data.splitlines()) for data in same]
        assert same[0] == same[1]
