"""The page in a real browser: it draws, fits, answers to clicks and keys, prints, loads nothing, obeys its policy."""

import csv
import io
import json
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser
from certified_search import make
from choose_page import CHOICE
from fake_store import BUDGETS, make_store, run_of, with_history
from many_runs import rich_store
from page_in_browser import browser as browser
from page_in_browser import press
from pypdf import PdfReader

from prunus.recipes import EvalPlan
from prunus.reporting.page import report
from prunus.results.certificate import read_certificate
from prunus.store.store import Store
from prunus.studies.choose.files import read_choice
from prunus.studies.choose.page import page as choice_page
from prunus.studies.find.page import write_page
from prunus.studies.records import PlanContrast
from prunus.studies.run import contents

# One browser for all.
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return report(make_store(folder / "results.db", problems=84), folder / "report.html")


@pytest.fixture(scope="module")
def rich(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rich")
    return report(rich_store(folder / "results.db"), folder / "report.html", published=True)


@pytest.fixture
def opened(browser, page) -> Browser:
    browser.problems.clear()
    browser.requests.clear()
    browser.open(page)
    return browser


def visible_count(browser: Browser, selector: str) -> int:
    return browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].filter(e => e.getClientRects().length).length"
    )


def centre(browser: Browser, script: str) -> tuple[float, float]:
    """Where the element of a JavaScript expression is, scrolled into view."""
    box = browser.evaluate(
        f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
        f" return [b.x + b.width / 2, b.y + b.height / 2]; }})({script})"
    )
    return box[0], box[1]


OVERLAPS = """[...document.querySelectorAll("svg:is(.chart, .scale)")].flatMap(svg => {
    const boxes = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
    return boxes.flatMap(([s, a], i) => boxes.slice(i + 1).filter(([t, b]) =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
        .map(([t]) => s + " / " + t)); })"""  # of texts in charts
CROSSED = """[...document.querySelectorAll("svg.chart")].flatMap(svg => {
    const lines = [...svg.querySelectorAll(".line, .margin, .whisker")].filter(e => e.getClientRects().length);
    const spots = lines.flatMap(line => Array.from({ length: line.getTotalLength() / 2 + 1 }, (_, k) =>
        line.getPointAtLength(2 * k)));
    return [...svg.querySelectorAll("text.name")].filter(e => { const b = e.getBBox();
        return spots.some(p => b.x + 1 < p.x && p.x < b.x + b.width - 1 && b.y + 3 < p.y && p.y < b.y + b.height - 3);
    }).map(e => e.textContent); })"""  # names in charts through which lines run
OUTSIDE = """[...document.querySelectorAll("table.list :is(th, td)")].filter(e =>
    e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"""  # cells whose text lies on the next one
WORDS = """[...document.querySelectorAll("header, main")].map(e => e.innerText).join(" ").split(/\\s+/)
    .filter(word => /[A-Za-z]{2}/.test(word)).length"""  # that are shown at once
LEAVING = """[...document.querySelectorAll("svg")].flatMap(svg => { const f = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text, .mark, .line, .band, .bar")].filter(e => {
        const b = e.getBoundingClientRect();
        return b.width && Math.max(f.left - b.left, b.right - f.right, f.top - b.top, b.bottom - f.bottom) > 2;
    }).map(e => e.outerHTML.slice(0, 120)); })"""  # shapes and texts outside of their picture


@pytest.mark.parametrize(("width", "dark"), [(320, False), (400, True), (900, False), (1400, True)])
def test_page_draws_and_fits_and_labels_do_not_overlap(browser, page, tmp_path, width, dark):
    """Opened in one colour scheme, and then switched to the other."""
    browser.problems.clear()
    browser.requests.clear()
    browser.open(page, width, dark=dark)
    assert browser.problems == [] and browser.evaluate(OVERLAPS) == [] and browser.evaluate(CROSSED) == []
    assert list(browser.requests.values()) == [page.resolve().as_uri()]  # nothing else was asked for
    assert browser.evaluate("window.pwned") is None
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.settle()
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert visible_count(browser, ".result svg.chart") == 1
    assert visible_count(browser, ".result svg.chart path.line") >= 6
    assert browser.evaluate(LEAVING) == [] and browser.evaluate(OUTSIDE) == []
    letters = """(sizes => [Math.min(...sizes), Math.max(...sizes)])([...document.querySelectorAll("svg.chart text")]
        .filter(e => e.getClientRects().length).map(e => { const svg = e.ownerSVGElement;
        const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
        return parseFloat(getComputedStyle(e).fontSize) * scale; }))"""
    least, most = browser.evaluate(letters)
    assert most < 12.2 and (least > 11.8 or (width == 320 and least > 9.8))  # pixels, in every chart
    assert browser.screenshot(tmp_path / "page.png").stat().st_size > 20_000
    for chosen in (dark, not dark):
        browser.choose_scheme(chosen)
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(part) for part in background[4:-1].split(",")) < 200) == chosen
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(LEAVING) == [] and browser.problems == []


@pytest.mark.parametrize(("width", "height"), [(1280, 860), (390, 844)])
def test_the_first_screen_has_the_list_and_few_words(browser, page, width, height):
    browser.open(page, width, height)
    bottom = "(e => e.getBoundingClientRect().bottom)"
    assert browser.evaluate(f"{bottom}(document.querySelector('.lead'))") < height / 2
    said = browser.evaluate("document.querySelector('header').innerText")
    assert all(word in said for word in ("the original", "points", "95 % confidence", "stop by themselves"))
    if width > 1000:
        assert browser.evaluate(f"{bottom}(document.querySelector('.result svg.narrow'))") < height
        assert browser.evaluate(f"{bottom}(document.querySelector('table.list'))") < height
    else:
        assert browser.evaluate(f"{bottom}([...document.querySelectorAll('tr.run')].at(1))") < height
    assert browser.evaluate(WORDS) <= 400


@pytest.mark.parametrize(("width", "most"), [(1280, 2300), (390, 4000)])
def test_a_page_with_everything_shows_few_words_at_once(browser, rich, width, most):
    browser.open(rich, width)
    assert browser.evaluate(WORDS) <= 400
    assert browser.evaluate("document.documentElement.scrollHeight") < most


@pytest.fixture(scope="module", params=["one", "budgets", "long", "many"])
def crowded(request, tmp_path_factory) -> Path:
    """Pages of 1, 7, 14 and 40 variants: at one budget, at nine, with long names, and at three."""
    folder = tmp_path_factory.mktemp(request.param)
    shape = {
        "one": {"variants": 1, "budgets": (64,)},
        "many": {"variants": 40, "budgets": (16, 64, 256)},
        "long": {"variants": 14, "budgets": (16, 64, 256), "name": "a-very-long-name-of-an-organisation/a-model-of-it"},
        "budgets": {"variants": 7, "budgets": (0, 16, 32, 64, 128, 256, 512, 1024, 2048)},
    }[request.param]
    return report(crowd(folder / "results.db", **shape), folder / "report.html", margin=0.05, base="tiny")


def crowd(path: Path, variants: int, budgets: tuple[int, ...], name: str = "") -> Path:
    """A store with many variants, of which some lose nothing and some nearly all."""
    plan = EvalPlan(tasks=("tiny",), budgets=budgets)
    make_store(path, names=("tiny",), problems=40, budgets=budgets, texts=())
    with Store(path) as store:
        problems, (base,) = list(store.problems().values()), store.runs()
        samples = store.samples(base.run_id)
        for number in range(variants):
            run = run_of("wanda-50", plan, number + 1, problems)
            (step,) = run.model.manifest.history
            recipe = {**step.recipe.data, "sparsity": round(0.01 * (number + 1), 2)}
            # Without a step a model is called by its name.
            run = with_history(run, [] if name else [{**step.data, "recipe": recipe}])
            run = replace(run, run_id=f"{number + 1:012x}", model=run.model | {"name": f"{name}{number}"})
            store.add_run(run)
            lost = 2 * max(0, number - 1)  # problems
            kept = [replace(s, correct=s.correct and int(s.problem_id[-3:]) >= lost) for s in samples]
            store.add_samples(run.run_id, kept)
    return path


@pytest.mark.thorough
@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_pages_of_few_and_of_many_variants_fit_and_no_labels_overlap(browser, crowded, width):
    browser.problems.clear()
    for dark in (False, True):
        browser.open(crowded, width, dark=dark)
        assert browser.evaluate(OVERLAPS) == [] and browser.evaluate(LEAVING) == []
        assert browser.evaluate(CROSSED) == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(OUTSIDE) == [] and browser.problems == []
    assert browser.evaluate(WORDS) <= 400
    assert browser.evaluate("document.documentElement.scrollHeight") < 4300


def test_of_many_variants_the_first_of_each_group_are_shown_and_a_click_shows_all(browser, tmp_path):
    page = report(crowd(tmp_path / "a.db", 14, (16, 64)), tmp_path / "a.html", margin=0.05, base="tiny")
    browser.open(page)
    lists = ("table.list tr.run", ".heat tr.run", ".flips tr.run")
    assert [visible_count(browser, rows) for rows in lists] == [8, 8, 8]
    groups = "[...document.querySelectorAll('table.list tbody')].map(of => [...of.querySelectorAll('tr.run')]"
    shown = browser.evaluate(f"{groups}.map(row => row.getClientRects().length > 0))")
    assert len(shown) > 1 and all(of == sorted(of, reverse=True) and of[0] for of in shown)
    browser.click(*centre(browser, "document.querySelector('#all')"))
    assert [visible_count(browser, rows) for rows in lists] == [14, 14, 14]
    assert browser.evaluate("location.hash") == "#&all"
    last = browser.evaluate("[...document.querySelectorAll('table.list tr.rest')].at(-1).id")
    browser.open(page, fragment=f"#{last}")  # a link to a variant shows it
    assert [visible_count(browser, rows) for rows in lists] == [9, 8, 8]


@pytest.mark.parametrize("width", [1280, 1400])
def test_no_table_is_cut_off(browser, rich, width):
    browser.open(rich, width)
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    cut = """[...document.querySelectorAll(".wide")].filter(e => e.scrollWidth > e.clientWidth + 1)
        .map(e => e.getAttribute("aria-label"))"""
    assert browser.evaluate(cut) == []


@pytest.mark.parametrize("width", [320, 1400])
def test_the_page_of_a_search_draws_fits_and_runs_its_script(browser, tmp_path, width):
    _, certificate = make(tmp_path)
    write_page(read_certificate(certificate), tmp_path / "find.html")
    browser.problems.clear()
    browser.open(tmp_path / "find.html", width)
    assert browser.problems == [] and browser.evaluate(OVERLAPS) == []
    assert visible_count(browser, "svg.chart") == 5
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    table, chart = (f"document.querySelector('#ladder {one}').getBoundingClientRect()" for one in ("table", "figure"))
    assert browser.evaluate(f"{table}.top < Math.min({chart}.bottom, 330)")  # on a phone before the chart
    assert browser.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('#ladder .wide'))") <= 1


@pytest.mark.parametrize("width", [390, 1280])
def test_names_of_the_page_of_a_choice_cross_no_line_and_that_of_the_choice_is_there(browser, tmp_path, width):
    data = read_choice(CHOICE)
    (tmp_path / "choice.html").write_text(choice_page(data), "utf-8")
    browser.problems.clear()
    browser.open(tmp_path / "choice.html", width)
    assert browser.problems == [] and browser.evaluate(OVERLAPS) == [] and browser.evaluate(CROSSED) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    cut = "(e => e.scrollWidth - e.clientWidth)(document.querySelector('#choices .wide'))"
    assert browser.evaluate(cut) <= 1  # on a phone rows are cards, with the accuracy
    names = """[...document.querySelectorAll("svg.chart")].filter(e => e.getClientRects().length)
        .map(svg => [...svg.querySelectorAll("text.name")].map(e => e.textContent))"""
    for shown in browser.evaluate(names):
        assert len(shown) >= (2 if width == 390 else 4) and [
            text for text in shown if text.startswith("qwen-1.5") and text.endswith("q8_0")
        ]


def test_a_run_whose_row_is_pointed_at_stands_out(opened):
    look = """(n => Number(getComputedStyle(document.querySelector(
        "svg.chart:not(.panel) > g.r" + n + ":has(.line)")).opacity))"""
    assert [opened.evaluate(f"{look}({n})") for n in (0, 2, 3)] == [1, 1, 1]
    x, y = centre(opened, "document.querySelector('table.list tr.r3')")
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    opened.settle()
    assert [opened.evaluate(f"{look}({n})") for n in (0, 2, 3)] == [1, 0.12, 1]
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    opened.evaluate("document.querySelector('table.list tr.r2 a').focus({focusVisible: true})")
    opened.settle()
    assert [opened.evaluate(f"{look}({n})") for n in (0, 2, 3)] == [1, 1, 0.12]


def test_filters_choose_families_and_verdicts_and_show_all_resets_them(opened):
    rows = "[...document.querySelectorAll('table.list tr.run')].filter(e => e.getClientRects().length).length"
    opened.click(*centre(opened, "document.querySelector('.filter > summary')"))
    groups = opened.evaluate("[...document.querySelectorAll('.filter legend')].map(e => e.textContent)")
    assert groups == ["Variants", "Verdict"] and opened.evaluate(rows) == 6
    opened.click(*centre(opened, "document.querySelector('#f0')"))  # Wanda
    assert opened.evaluate(rows) == 4 and visible_count(opened, ".result .chart .run") < 7 * 3
    opened.click(*centre(opened, "document.querySelector('#w1')"))  # worse
    assert opened.evaluate(rows) == 1
    opened.click(*centre(opened, "document.querySelector('.filter .actions button')"))
    assert opened.evaluate(rows) == 6 and opened.evaluate("location.hash") == ""
    press(opened, "Escape", 27)
    assert opened.evaluate("document.querySelector('.filter').open") is False


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_filter_opens_on_the_screen(browser, page, width):
    browser.open(page, width)
    browser.evaluate("document.querySelector('.filter').open = true")
    browser.settle()
    left, right = browser.evaluate(
        "(b => [b.left, b.right])(document.querySelector('.filter > div').getBoundingClientRect())"
    )
    assert left >= 0 and right <= width


def test_an_address_keeps_the_part_the_variant_and_what_is_hidden(opened, page):
    opened.evaluate("document.querySelector('#f0').click()")
    opened.click(*centre(opened, "document.querySelector('table.list tr.r6 a')"))
    address = opened.evaluate("location.hash")
    assert re.fullmatch(r"#run-[0-9a-f]+&f0", address)
    shown = "[document.querySelector('tr:target').classList.contains('r6'), document.querySelector('#f0').checked]"
    assert opened.evaluate(shown) == [True, False]
    opened.open(page, fragment=address)
    assert opened.evaluate(shown) == [True, False] and opened.evaluate("location.hash") == address
    opened.click(*centre(opened, "document.querySelector('#budgets h2 a')"))
    assert opened.evaluate("location.hash") == "#budgets&f0"
    opened.evaluate("document.querySelector('#f0').click()")
    assert opened.evaluate("location.hash") == "#budgets" and opened.problems == []


def test_a_pointer_on_a_chart_reads_all_runs_that_are_shown(opened):
    hidden = opened.evaluate("(e => { e.click(); return e.parentElement.textContent; })(document.querySelector('#f0'))")
    x, y = centre(opened, "document.querySelector('svg.narrow')")
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    opened.settle()
    lines = opened.evaluate(
        "[...document.querySelector('svg.narrow ~ .readout:not([hidden])').children].map(e => e.innerText)"
    )
    assert lines[0].startswith("Budget ") and len(lines) == 1 + 5
    assert any(line.startswith("the original") for line in lines) and not any(hidden in line for line in lines)
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    opened.settle()
    assert visible_count(opened, ".readout") == 0


def test_a_chart_can_be_read_with_arrow_keys(opened):
    opened.evaluate("document.querySelector('svg.narrow').focus()")
    seen = []
    for _ in range(3):
        press(opened, "ArrowRight", 39)
        seen.append(opened.evaluate("document.querySelector('.readout b').textContent"))
    assert seen == [f"Budget {budget}" for budget in BUDGETS[1:4]]
    press(opened, "Escape", 27)
    assert visible_count(opened, ".readout") == 0


def test_a_click_on_a_title_sorts_the_table(opened):
    opened.evaluate("document.querySelector('table.numbers').closest('details').open = true")
    column = "[...document.querySelectorAll('table.numbers tbody tr')].map(row => row.cells[5].textContent)"
    original = opened.evaluate(column)
    orders = []
    for _ in range(3):
        opened.click(*centre(opened, "document.querySelectorAll('table.numbers th button')[5]"))
        orders.append(opened.evaluate(column))
    numbers = [[float(text.replace("−", "-")) for text in order if text] for order in orders]
    assert numbers[0] == sorted(numbers[0]) and numbers[1] == sorted(numbers[1], reverse=True)
    assert orders[0][-8:] == orders[1][-8:] == [""] * 8  # the base has no difference
    assert orders[2] == original


def downloaded(browser: Browser, folder: Path, button: str) -> str:
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.click(*centre(browser, button))
    deadline = time.monotonic() + 20
    endings = (".csv", ".json")
    while not (files := [path for path in folder.iterdir() if path.suffix in endings and path.stat().st_size]):
        assert time.monotonic() < deadline, "nothing was downloaded"
        time.sleep(0.05)
    return files[0].read_text("utf-8")


def test_numbers_can_be_downloaded(opened, tmp_path):
    opened.evaluate("document.querySelector('table.numbers').closest('details').open = true")
    cells = "[...row.cells].map(cell => cell.textContent.trim())"
    table = opened.evaluate(f"[...document.querySelectorAll('table.numbers tr')].map(row => {cells})")
    text = downloaded(
        opened,
        tmp_path,
        "document.querySelector('table.numbers').parentElement.previousElementSibling.querySelector('button')",
    )
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == 1 + 7 * len(BUDGETS)
    assert [row[1:] for row in rows[1:]] == [[cell.replace("−", "-") for cell in row[1:]] for row in table[1:]]
    (tmp_path / "json").mkdir()
    data = json.loads(downloaded(opened, tmp_path / "json", "document.querySelector('#method .actions button')"))
    assert len(data["comparison"]["others"]) == 6 and len(data["summaries"]) == 7
    assert opened.problems == []


def test_values_with_an_interval_sort_by_the_value(opened):
    opened.evaluate("document.querySelector('table.verdicts').closest('details').open = true")
    column = (
        "[...document.querySelectorAll('table.verdicts tbody tr')].map(row => row.cells[2].innerText.split('\\n')[0])"
    )
    opened.click(*centre(opened, "document.querySelectorAll('table.verdicts th button')[2]"))
    numbers = [float(text.replace("−", "-")) for text in opened.evaluate(column) if text]
    assert len(numbers) == 6 and numbers == sorted(numbers) and numbers[0] < -30


@pytest.mark.parametrize(("width", "dark"), [(390, True), (900, False), (1440, True)])
def test_a_page_with_everything_fits(browser, rich, tmp_path, width, dark):
    browser.problems.clear()
    browser.open(rich, width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.settle()
    assert browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    for css, count in ((".modes", 1), (".draws", 1), (".parallel", 1), (".scaling", 1)):
        assert visible_count(browser, css) == count, css
    assert visible_count(browser, "#modes svg.chart") == 2
    browser.choose_scheme(not dark)
    assert browser.problems == [] and browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.screenshot(tmp_path / "page.png").stat().st_size > 20_000


def test_the_policy_stops_what_an_escape_would_have_missed(opened):
    opened.evaluate("""new Promise(done => {
        const script = document.createElement("script");
        script.textContent = "window.pwned = 1";
        document.body.append(script);
        const html = "<img src=x onerror='window.pwned = 1'><p style='color: red'>p</p>";
        document.body.insertAdjacentHTML("beforeend", html);
        setTimeout(() => done(true), 200);
    })""")
    assert opened.evaluate("window.pwned") is None
    assert len([problem for problem in opened.problems if "Content Security Policy" in problem]) >= 3
    assert len(opened.requests) == 1


def test_the_page_prints(opened, tmp_path):
    """Short tables that were folded are open on paper only; the heads of one of several pages are on each of them."""
    opened.evaluate("[...document.querySelectorAll('#budgets details')].at(-1).open = true")
    states = "[...document.querySelectorAll('details')].map(one => one.open)"
    before = opened.evaluate(states)
    pages = [page.extract_text() for page in PdfReader(opened.pdf(tmp_path / "page.pdf")).pages]
    assert opened.evaluate(states) == before and sum(before) == 1
    assert opened.evaluate("document.querySelector('style').textContent.split('body:has(').length") == 2  # see page.py
    sought = "MDE,\npoints", "p adjusted", '"versions"'
    shown = [sum(words in page or words.replace(" ", "\n") in page for page in pages) for words in sought]
    assert shown[0] in (1, 2) and shown[1] > 1 and shown[2] == 0 and len(pages) - shown[1] <= 13
    opened.call("Emulation.setEmulatedMedia", media="print")
    opened.resize(1030)
    opened.settle()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 1030
    assert visible_count(opened, ".actions") == 0 and opened.evaluate(OUTSIDE) == []
    opened.call("Emulation.setEmulatedMedia", media="")


def test_the_page_is_whole_without_scripts(browser, page):
    browser.let_scripts_run(False)
    try:
        browser.open(page)
        assert visible_count(browser, ".result svg.chart") == 1 and visible_count(browser, "table.list tr.run") == 6
        assert visible_count(browser, ".filter") == 0  # which would do nothing
        assert browser.evaluate(OUTSIDE) == []
    finally:
        browser.let_scripts_run(True)


OF_COLOURS = ["color-contrast", "link-in-text-block"]  # rules of axe-core whose outcome depends on colours


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The source of axe-core, a checker of accessibility; the test is skipped where npm cannot load it."""
    folder = tmp_path_factory.mktemp("axe")
    install = ["npm", "install", "--no-save", "--ignore-scripts", "--prefix", str(folder), "axe-core@4.14.1"]
    try:
        subprocess.run(install, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("npm or its registry is missing")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


@pytest.mark.thorough
@pytest.mark.parametrize("which", ["report", "search", "study"])
def test_axe_finds_nothing(browser, rich, axe, tmp_path, which):
    """Names, roles, contrast, headings, landmarks and what else axe-core checks, with everything opened.

    In the dark scheme, where nothing but colours differs, by the rules that look at colours.
    """
    path = rich if which == "report" else tmp_path / "a.html"
    if which == "search":
        write_page(read_certificate(make(tmp_path)[1]), path)
    elif which == "study":
        words = {"model": "tiny", "plan": "", "base": "a", "comparison": None, "not_started": ("wanda-20",)}
        shown = {Path("report-1.html"): [PlanContrast(**words, started=True, others=(), controls=())]}
        path.write_text(contents("A study", shown, [], [("Found.", "find.html")]), "utf-8")
    for width in (1280, 390):
        browser.open(path, width)
        browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        browser.evaluate(f"{axe}; 0")
        found = "done.violations.map(one => [one.id, one.nodes.slice(0, 3).map(node => node.html.slice(0, 200))])"
        assert browser.evaluate(f"axe.run().then(done => {found})") == []
        browser.choose_scheme(dark=True)
        assert browser.evaluate(f"axe.run({{runOnly: {OF_COLOURS}}}).then(done => {found})") == []
