"""Figures and tables for papers: whole files, the same numbers and shapes as the page, nothing replaced unasked."""

import csv
import re
import zlib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_store import BUDGETS, HOSTILE, make_store
from html_page import Page

from prunus.errors import PrunusError
from prunus.reporting.drawing import Shape, drawing, text_width
from prunus.reporting.page import report
from prunus.reporting.pdf import pdf
from prunus.reporting.render.chart import Line, Point, budget_axis, chart, linear_axis
from prunus.reporting.render.table import Column, Grid, Interval, Picture, Word, slug, tex
from prunus.reporting.render.text import percent
from prunus.results.comparison import compare

RUNS = ("tiny", "wanda-20", "magnitude-50", "drop-2")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    store = make_store(folder / "results.db", names=RUNS, problems=40, draws=2)
    report(store, folder / "report.html", figures=folder / "figures", csv=folder / "tables")
    return folder


# Figures


def test_every_chart_of_the_page_is_a_figure(written):
    page = Page(written / "report.html")
    shown = Counter(str(a["class"]).split()[0] for tag, a in page.elements if tag == "svg" and a.get("role") == "img")
    names = {path.name for path in (written / "figures").iterdir()}
    stems = {name.rsplit(".", 1)[0] for name in names}
    assert names == {f"{stem}{ending}" for stem in stems for ending in (".svg", ".pdf")}
    assert len(stems) == shown["chart"] + shown["linears"] + 1  # and all differences in one
    assert {"accuracy-budget-tiny", "difference-tiny", "draws-maj-at-tiny", "linears-wanda-20"} <= stems


def test_an_svg_needs_nothing_else(written):
    for path in (written / "figures").glob("*.svg"):
        text = path.read_text("utf-8")
        ElementTree.fromstring(text)  # noqa: S314
        assert "class=" not in text and "var(" not in text and "nan" not in text
        assert text.count("http") == text.count("http://www.w3.org/2000/svg") == 1


def parsed(data: bytes) -> tuple[dict[int, bytes], bytes]:
    """Objects of a PDF by number, found by its own table of places, and the content unpacked."""
    assert data.startswith(b"%PDF-1.4\n") and data.endswith(b"%%EOF\n")
    (start,) = re.findall(rb"startxref\n(\d+)\n", data)
    assert data[int(start) :].startswith(b"xref\n")
    places = [int(place) for place in re.findall(rb"(\d{10}) 00000 n ", data[int(start) :])]
    objects = {}
    for number, place in enumerate(places, 1):
        assert data[place:].startswith(b"%d 0 obj\n" % number)
        objects[number] = data[place : data.index(b"\nendobj\n", place)]
    stream = objects[5].split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0]
    (length,) = re.findall(rb"/Length (\d+)", objects[5])
    assert int(length) == len(stream)
    return objects, zlib.decompress(stream)


def test_a_pdf_has_the_shapes_and_texts_of_its_svg(written):
    for path in (written / "figures").glob("*.svg"):
        _, content = parsed(path.with_suffix(".pdf").read_bytes())
        text = path.read_text("utf-8")
        painted = re.findall(rb"^(?:B|f|S)$", content, re.MULTILINE)
        assert len(painted) == text.count("<path ") and content.count(b" Tj ET") == text.count("<text ")


def simple_chart(name: str = "a") -> str:
    spots = [Point(16.0, 20.0, 10.0, 30.0, name), Point(64.0, 80.0, 70.0, 90.0, name)]
    return chart([Line("run r1 c2 d1", spots, 0)], budget_axis([16, 64]), linear_axis(0, 100, "%"), name)


def test_shapes_lie_where_the_chart_has_them():
    svg = simple_chart()
    whole = drawing(svg)
    lines = [part for part in whole.parts if isinstance(part, Shape) and part.dash]
    (d,) = re.findall(r'class="line" d="M([^"]+)"', svg)
    wanted = [tuple(map(float, pair.split(","))) for pair in d.split("L")]
    assert len(lines) == 1 and [step[1:] for step in lines[0].steps] == wanted
    assert lines[0].stroke == "#c14a00" and lines[0].fill is None
    circles = [part for part in whole.parts if isinstance(part, Shape) and any(step[0] == "C" for step in part.steps)]
    assert len(circles) == 2
    for circle, (x, y) in zip(circles, wanted, strict=True):
        ends = [(step[-2], step[-1]) for step in circle.steps if step[0] != "Z"]
        distances = [((a - x) ** 2 + (b - y) ** 2) ** 0.5 for a, b in ends]
        assert distances == pytest.approx([4.0] * 5) and len(set(ends)) == 4
    bands = [part for part in whole.parts if isinstance(part, Shape) and part.opacity == 0.13]
    assert len(bands) == 1 and len(bands[0].steps) == 5


def test_the_pdf_counts_from_below():
    whole = drawing(simple_chart())
    _, content = parsed(pdf(whole, "t"))
    (line,) = [part for part in whole.parts if isinstance(part, Shape) and part.dash]
    (_, x, y), (_, x2, y2) = line.steps
    assert f"{x:.2f} {whole.height - y:.2f} m\n{x2:.2f} {whole.height - y2:.2f} l\nS".encode() in content


def test_hostile_names_are_strings_in_a_pdf():
    name = "(a) Tj ET \\ ) Q " + "".join(HOSTILE)
    whole = drawing(simple_chart(), [("c1 d0", 0, name), ("c2 d0", 1, "−1 block × é")])
    objects, content = parsed(pdf(whole, name))
    strings = re.findall(rb"\(((?:[^()\\]|\\.)*)\)", content)
    assert len(strings) == content.count(b" Tj ET") - 1  # that one is inside the name
    assert strings[-2].startswith(rb"\(a\) Tj ET \\ \) Q") and strings[-1] == "–1 block × é".encode("cp1252")
    assert objects[6].count(b"\n") == 1
    texts = [one.text or "" for one in ElementTree.fromstring(whole.svg()).findall(".//{*}text")]  # noqa: S314
    assert texts[-2].startswith("(a)")


def test_width_of_text_is_helveticas():
    assert text_width("Wanda 50 %", 10) == pytest.approx(
        (944 + 556 + 556 + 556 + 556 + 278 + 556 + 556 + 278 + 889) / 100
    )


# Tables


def test_csv_has_all_digits_of_compare(written):
    rows = list(csv.DictReader((written / "tables/verdicts.csv").read_text("utf-8").splitlines()))
    data = compare(written / "results.db", "tiny")
    assert [row["run"] for row in rows] == ["dense", "Wanda 20\xa0%", "Magnitude 50\xa0%", "ShortGPT −2\xa0blocks"]
    for row, entry in zip(rows[1:], data["others"], strict=True):
        cell = entry["primary"]
        assert row["verdict"] == entry["verdict"]
        for column, key in (("difference", "difference"), ("difference_low", "low"), ("difference_high", "high")):
            assert float(row[column]) == cell[key]
    numbers = list(csv.DictReader((written / "tables/numbers-tiny.csv").read_text("utf-8").splitlines()))
    assert len(numbers) == len(RUNS) * len(BUDGETS)
    cells = data["others"][1]["tasks"]["tiny"]["budgets"]
    found = {int(row["budget"]): row for row in numbers if row["run"].startswith("Magnitude")}
    for budget, cell in cells.items():
        assert float(found[budget]["difference"]) == cell["difference"]


def test_every_table_is_there_as_csv_and_latex(written):
    names = {path.name for path in (written / "tables").iterdir()}
    stems = {"verdicts", "accuracy-tiny", "numbers-tiny", "scaling-tiny", "tokens-tiny", "costs", "linears",
             "draws-tiny", "parallel-tiny"}  # fmt: skip
    assert names == {f"{stem}{ending}" for stem in stems for ending in (".csv", ".tex")}
    linears = list(csv.DictReader((written / "tables/linears.csv").read_text("utf-8").splitlines()))
    assert len(linears) == 2 * 8 * 7 and {row["sparsity"] for row in linears} == {"0.2", "0.5"}
    for path in (written / "tables").glob("*.tex"):
        lines = path.read_text("utf-8").splitlines()
        (head,) = re.findall(r"\\begin\{tabular\}\{(l?r*)\}", path.read_text("utf-8"))
        rows = [line for line in lines if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in rows} == {len(head)}
        assert lines[-1] == r"\end{tabular}" and not re.search(r"(?<!\\)[%#_](?! needs| [A-Z])", "\n".join(rows))


def test_one_grid_in_three_forms():
    columns = [Column("run", "Run"), Column("a", "A|%", percent), Column("v", "V"), Column("", "P"), Column("n", "N")]
    rows = [("=x_1", [Interval(0.5, 0.25, 0.75), Word("cannot tell", "r"), Picture("<svg></svg>"), 3]),
            ("b", [None, None, None, None])]  # fmt: skip
    grid = Grid("g", "A & B", "data", columns, rows)
    assert list(csv.reader(grid.csv().splitlines())) == [
        ["run", "a", "a_low", "a_high", "v", "n"], ["'=x_1", "0.5", "0.25", "0.75", "cannot tell", "3"],
        ["b", "", "", "", "", ""],
    ]  # fmt: skip
    assert r"=x\_1 & 50.0 (25.0 to 75.0) & cannot tell (r) & 3 \\" in grid.latex()
    assert r"Run & A \% & V & N \\" in grid.latex() and "svg" not in grid.latex()
    html = grid.html()
    assert '<td data-v="0.5">50.0<small>25.0 to 75.0</small></td>' in html and "<svg></svg>" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_of_hostile_text_has_no_command(text):
    shown = tex(text)
    for known in (r"\textbackslash{}", r"\textasciicircum{}", r"\textasciitilde{}", r"\textless{}", r"\textgreater{}"):
        shown = shown.replace(known, "")
    assert not re.search(r"\\(?![{}$&#%_,])|(?<!\\)[{}$&#%_]|\n", shown.replace("$-$", "").replace(r"$\times$", ""))


def test_slugs_are_plain_names():
    assert slug("accuracy-../../etc/<b>ünï") == "accuracy-etc-b-n" and slug("\u202e") == "x"


# Files


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


def test_a_folder_that_cannot_be_is_refused_before_anything_is_written(written, tmp_path):
    store, out = written / "results.db", tmp_path / "a.html"
    (tmp_path / "file").write_text("x")
    for folder, words in ((tmp_path / "file", "is a file"), (tmp_path / "no" / "no", "does not exist")):
        with pytest.raises(PrunusError, match=words):
            report(store, out, csv=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_exports_are_equal(written, tmp_path):
    report(written / "results.db", tmp_path / "a.html", figures=tmp_path / "f")
    for path in (written / "figures").iterdir():
        assert (tmp_path / "f" / path.name).read_bytes() == path.read_bytes()
