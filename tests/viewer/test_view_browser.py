"""`prunus view` in a real browser, and the same as files: what is shown, keys, hostile texts, and who may ask."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from browser import Browser
from fake_store import HOSTILE, make_store
from page_in_browser import browser as browser
from page_in_browser import press

from prunus.store.characters import one_line, visible
from prunus.store.store import Store
from prunus.viewer.server import view

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]
TEXTS = [*HOSTILE, "x" * 100_000, "\x1b[2J\x1b]8;;javascript:window.pwned=1\x07link\x1b]8;;\x07"]
FILE = "<img src=x onerror=window.pwned=1>\u202e.db"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store whose name, questions, answers and thinking are hostile."""
    path = make_store(tmp_path_factory.mktemp("view") / FILE, problems=300, budgets=(0, 64, 1024), texts=TEXTS)
    with Store(path) as opened:
        asked = enumerate(opened.problems().values())
        opened.add_problems(replace(row, question=f"q{at}", text=f"Q: {TEXTS[at % len(TEXTS)]}") for at, row in asked)
    return path


class Served(NamedTuple):
    process: subprocess.Popen
    address: str
    runs: str

    def problem(self, name: str) -> str:
        """The address of a problem beside three runs."""
        return f"{self.address}#runs={self.runs}&budget=1024&filters=&task=&problem={name}&draw=0"


@pytest.fixture(scope="module")
def served(store) -> Iterator[Served]:
    """The command, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "prunus", "view", str(store)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.match(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", line)
        assert found, line
        with Store(store) as opened:
            runs = ",".join(run.run_id for run in opened.runs()[:3])
        yield Served(process, found.group(), runs)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def clean(browser: Browser) -> Browser:
    browser.problems.clear()
    browser.requests.clear()
    return browser


@pytest.fixture
def opened(browser, served) -> Browser:
    clean(browser).open(served.address)
    wait(browser, "document.querySelector('#rows .row')")
    return browser


def wait(browser: Browser, script: str) -> None:
    """Wait until an expression is true."""
    browser.evaluate(
        f"new Promise(done => {{ const look = () => ({script}) ? done(1) : requestAnimationFrame(look); look(); }})"
    )


def texts(browser: Browser, selector: str, within: str = "document") -> list[str]:
    return browser.evaluate(f"[...{within}.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def is_harmless(browser: Browser, origin: str, width: int) -> bool:
    """Whether nothing ran, nothing was asked for elsewhere, and nothing sticks out of the window."""
    assert browser.evaluate("window.pwned") is None and browser.problems == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert texts(browser, "main script, main img, main math, main style, main iframe") == []
    assert not re.search("[\x1b\u202e\u2066]", texts(browser, "body")[0])
    return all(url.startswith(origin) for url in browser.requests.values())


def test_only_this_machine_with_the_token_is_answered(served):
    found = re.match(r"http://([\d.]+):(\d+)/(.*)", served.address)
    assert found
    host, port, token = found.groups()

    def status(path: str, name: str = host) -> int:
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.request("GET", path, headers={"Host": name})
        answer = connection.getresponse()
        connection.close()
        return answer.status

    for name in (host, f"{host}:{port}", f"localhost:{port}"):
        assert status(f"/{token}", name) == 200
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
        assert status(f"/{token}", name) == status(f"/{token}list", name) == 400
    for path in ("/", "/list", f"/{token[:-2]}/", f"/x{token}", f"/{token}../", f"/{token}view.js"):
        assert status(path) == 404
    for query in ("list?runs=99", "list?start=x", "problem?problem=none", "problem?draw=x"):
        assert status(f"/{token}{query}") == 400


def test_the_list_has_every_problem_and_filters_it(opened, store, served):
    assert texts(opened, "#total") == ["300"] and len(texts(opened, "#rows .row")) == 100
    opened.evaluate("scrollTo(0, document.body.scrollHeight)")
    wait(opened, "document.querySelector('#rows .row[data-place=\"299\"]')")
    at = opened.evaluate("document.querySelector('#rows .row[data-place=\"299\"]').offsetTop")
    assert opened.evaluate("299 * list.height") == at, "else rows of a long list are not found"
    rows = "[...document.querySelectorAll('#rows .row')].map(e => [+e.dataset.place, e.firstChild.title])"
    with Store(store) as stored:
        names = sorted(stored.problems())
        asked = {name: one_line(stored.question(name) or "", 200) for name in names}
        right = [
            {s.problem_id for s in stored.samples(run.run_id) if s.budget == 1024 and s.correct}
            for run in stored.runs()[:4]
        ]
    assert all(names[place] == name for place, name in opened.evaluate(rows))
    assert {*texts(opened, "#rows .row > :first-child")} <= {*asked.values()}
    assert texts(opened, "#head small") == [f"{len(of)} of 300 right" for of in right]
    flipped = [name for name in names if len({name in of for of in right}) > 1]
    opened.evaluate("document.querySelector('#filters input[value=flipped]').click()")
    wait(opened, "document.querySelector('#total').textContent !== '300'")
    assert texts(opened, "#total") == [str(len(flipped))] and flipped
    counts = [f"{len(of.intersection(flipped))} of {len(flipped)} right" for of in right]
    assert texts(opened, "#head small") == counts
    assert [name for _, name in opened.evaluate(rows)][:100] == flipped[:100]
    assert "filters=flipped" in opened.evaluate("location.hash") and is_harmless(opened, served.address, 1400)


def test_problems_are_read_by_keyboard(opened):
    for _ in range(2):
        press(opened, "ArrowDown", 40)
    name = opened.evaluate("document.activeElement.firstChild.title")
    assert opened.evaluate("document.activeElement.dataset.place") == "1"
    opened.evaluate("document.activeElement.click()")
    wait(opened, "!document.querySelector('#problem').hidden")
    assert texts(opened, "#title bdi") == [name]
    for key, code, place in (("ArrowRight", 39, 3), ("ArrowLeft", 37, 2), ("ArrowLeft", 37, 1)):
        press(opened, key, code)
        wait(opened, f"document.querySelector('#place').textContent === '{place} of 300'")
    assert opened.evaluate("document.querySelector('#previous').hasAttribute('href')") is False
    press(opened, "Escape", 27)
    wait(opened, "document.querySelector('#problem').hidden")
    assert len(texts(opened, "#rows .row")) >= 100


@pytest.mark.thorough
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_texts_are_texts(browser, served, store, width):
    with Store(store) as stored:
        run, names = stored.runs()[0].run_id, sorted(stored.problems())[: 2 * len(TEXTS)]
        asked = {name: visible(stored.question(name) or "") for name in names}
        samples = {name: stored.samples(run, texts=True, chain=(name, 0))[-1] for name in names}
    assert {text for text in TEXTS if any(visible(text) in question for question in asked.values())} == {*TEXTS}
    first = "document.querySelector('.chain')"
    for at, name in enumerate(names):
        clean(browser).open(served.problem(name), width, dark=at % 2 == 1)
        wait(browser, f"document.querySelector('#title bdi')?.textContent === '{name}'")
        assert texts(browser, "#question") == [asked[name]]
        pieces = texts(browser, ".before > span, .after > span, .after > mark", first)
        assert "".join(pieces) == visible(samples[name].thinking)
        assert texts(browser, ".stop .text", first)[-1] == visible(samples[name].text)
        assert is_harmless(browser, served.address, width)
    assert texts(browser, ".kicker bdi") == [visible(FILE)]


def test_chains_begin_to_differ_at_one_height(opened, served, store):
    with Store(store) as stored:
        name = sorted(stored.problems())[0]
    opened.open(served.problem(name))
    wait(opened, "document.querySelectorAll('.after').length === 3")
    tops = opened.evaluate("[...document.querySelectorAll('.after')].map(e => e.getBoundingClientRect().top)")
    assert len(set(tops)) == 1 and tops[0] > 100


def test_files_open_from_disk(browser, store, tmp_path):
    view(store, export=tmp_path / "out")
    clean(browser).open(tmp_path / "out" / "index.html", 390)
    assert len(texts(browser, "#rows .row")) == len(list((tmp_path / "out").glob("problem-*.html"))) > 3
    assert is_harmless(browser, "file:", 390)
    assert re.fullmatch(
        r"\d+ of the \d+ that exactly one of the first run and another solves", texts(browser, "#total")[0]
    )
    chips = "[...document.querySelectorAll('.chip')].filter(e => e.getClientRects().length).length"
    assert browser.evaluate(chips) == len(texts(browser, "#head small")) == 4
    name = browser.evaluate("document.querySelector('#rows .row').firstChild.title")
    browser.open(tmp_path / "out" / "problem-1.html", 390)
    assert texts(browser, "#title bdi") == [name] and len(texts(browser, ".chain .after .stop")) >= 4
    press(browser, "ArrowRight", 39)
    wait(browser, "location.href.endsWith('problem-2.html') && document.readyState === 'complete'")
    assert is_harmless(browser, "file:", 390)


def test_rows_that_come_meanwhile_are_there_after_a_reload(browser, served, store):
    with Store(store) as stored:
        run, row = stored.runs()[0].run_id, next(iter(stored.problems().values()))
        sample: Any = stored.samples(run, texts=True, chain=(row.problem_id, 0))[-1]
        stored.add_problems([replace(row, problem_id="tiny/new", group=None)])
        stored.add_samples(run, [replace(sample, problem_id="tiny/new")])
    browser.open(served.address)
    wait(browser, "document.querySelector('#total').textContent !== ''")
    assert texts(browser, "#total") == ["301"]


def test_ctrl_c_ends_it_cleanly(served):
    os.kill(served.process.pid, signal.SIGINT)
    assert served.process.wait(60) == 0
    assert served.process.stderr.read() == ""
