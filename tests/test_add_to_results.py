"""A verdict's word and a column of the page are added, as CONTRIBUTING says, to a copy of the package."""

import shutil
from pathlib import Path

import contributing
import fake_store
import pytest
import warm_processes

import prunus

pytestmark = warm_processes.in_one_worker  # the fixture is made once

SCRIPT = """
import json
import prunus
from prunus.cli import main
from prunus.results.vocabulary import Verdict

found = prunus.compare("rows.db", margin=0.046)
(entry,) = found
assert entry.verdict is Verdict.NEARLY and 0.05 < entry.primary.p_margin_adjusted <= 0.1 and not entry.within_margin
assert prunus.Comparison.of(json.loads(json.dumps(found.to_json())))[entry.run].verdict is Verdict.NEARLY
prunus.report("rows.db", "page.html", margin=found.margin, csv="tables")
main(["compare", "rows.db", "--details", "--margin", str(found.margin.size)])
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which a copy of the package, with the word and the column, has compared; and what it printed."""
    folder = tmp_path_factory.mktemp("extended")
    package = folder / "src" / "prunus"
    shutil.copytree(Path(prunus.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    contributing.apply("A verdict's word", package)
    contributing.apply("A column of the list", package)
    fake_store.make_store(folder / "rows.db", names=("tiny", "wanda-20"), problems=60, budgets=(16, 64))
    status, printed = warm_processes.run_with(folder / "src", SCRIPT, folder)
    assert status == 0, printed
    return folder, printed


@pytest.mark.slow
def test_the_word_of_the_page_is_said_by_tables_pages_and_json(extended):
    folder, printed = extended
    assert "loss nearly ruled out" in printed and "- loss nearly ruled out" in printed
    assert "loss nearly ruled out" in (folder / "tables" / "verdicts.csv").read_text()


@pytest.mark.slow
def test_the_column_of_the_page_stands_in_its_list(extended):
    page = (extended[0] / "page.html").read_text("utf-8")
    assert page.count("Tokens<small>× the original's</small>") == 1
    (entry,) = prunus.compare(extended[0] / "rows.db")
    assert entry.stopping.tokens_ratio and f'<td class="q">{entry.stopping.tokens_ratio:.2f}</td>' in page
