"""Documentation stays in step with the command line and the layout."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_docstrings import to_rst

import prunus
from prunus.cli import cli
from prunus.evaluation.profiles import PROFILES
from prunus.recipes.eval import USUAL_BUDGETS

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "training/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.slow
def test_command_reference_is_in_step():
    script = ROOT / "scripts" / "command_reference.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False, timeout=60).returncode == 0


NEGATIVE = {
    *(
        "but",
        "cannot",
        "may",
        "not",
        "without",
        "untested",
        "worse",
        "unless",
        "only",
        "yet",
        "nothing",
        "loss",
        "lose",
    ),
    *("no", "wrong"),
}


def test_the_readme_is_short_and_tells_gains_first():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 110 and len(text.split()) <= 750
    first = [word.lower() for word in re.findall(r"[A-Za-z']+", text)[:150]]
    assert sum(word in NEGATIVE for word in first) <= 4


def test_the_documentation_can_be_read_in_an_evening():
    assert sum(len(page.read_text("utf-8").split()) for page in (ROOT / "docs").rglob("*.md")) <= 42_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_named_in_a_page_exist(page):
    for line in page.read_text().splitlines():
        for name, rest in re.findall(r"prunus ([a-z]+)\b([^`|]*)", line):
            if not re.search(r"(^|[`$ ])prunus " + name, line) or (
                name not in cli.commands and not rest.lstrip().startswith("-")
            ):
                continue
            if page.name == "CONTRIBUTING.md" and name == "scale":
                continue  # which its example adds
            assert name in cli.commands, line
            known = {
                option
                for parameter in cli.commands[name].params
                for option in [*parameter.opts, *parameter.secondary_opts]
            }
            for option in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", rest):
                assert option in known | {"--help"}, f"{page.name}: {line}"


PROMPT = 256  # tokens that a slot has besides thinking and answer
LONGEST_ANSWER = PROFILES["qwen3"].answer_tokens


def slots(text: str) -> Iterator[tuple[str, int, int]]:
    """(command, tokens of each slot, tokens that a chain needs) of every llama-server in a text.

    A chain needs the largest of the budgets that stand last before the command or first after it in its block, or those
    that commands have by default, and the longest answer.
    """
    blocks = re.findall(r"^```.*?^```", text, flags=re.M | re.S) or [text]
    last = ",".join(map(str, USUAL_BUDGETS))
    for block in blocks:
        budgets = re.search(r"budgets(?: = \[|[ =])([\d, ]+)", block)
        answer = re.search(r"answer[_-]tokens(?: = |[ =])(\d+)", block)
        last = budgets[1] if budgets else ",".join(map(str, USUAL_BUDGETS)) if "prunus eval" in block else last
        for command in re.findall(r"llama-server -m .*", block):
            context, number = (re.search(rf"(?<!\S)-{flag} (\d+)", command) for flag in ("c", "np"))
            if context and number:
                needed = max(map(int, last.split(","))) + (int(answer[1]) if answer else LONGEST_ANSWER) + PROMPT
                yield command, int(context[1]) // int(number[1]), needed


def test_documented_servers_have_room_for_the_budgets_beside_them():
    texts = {page: page.read_text() for page in [*PAGES, *sorted((ROOT / "examples").glob("*.toml"))]}
    texts |= {name: f"{command.help}" for name, command in cli.commands.items()}
    found = [(name, *one) for name, text in texts.items() for one in slots(text)]
    assert len(found) >= 5
    for name, command, there, needed in found:
        assert there >= needed, f"{name}: {command} has {there} tokens for a chain, which needs {needed}"


def test_design_has_a_row_for_every_folder():
    table = (ROOT / "docs" / "design.md").read_text().split("## ")[0]
    named = re.findall(r"^\| `(\w+)/` \|", table, re.M)
    inside = (path.relative_to(ROOT / "src" / "prunus") for path in (ROOT / "src" / "prunus").rglob("*"))
    folders = {path.parts[0] for path in inside if len(path.parts) > 1 and "__pycache__" not in path.parts}
    assert set(named) == folders


def anchors(page: Path) -> set[str]:
    """What GitHub and the site call the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        linked = (page.parent / target) if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}#{anchor}"


def test_every_public_name_is_in_the_api_reference():
    text = (ROOT / "docs" / "api.md").read_text()
    assert {name for name in prunus.__all__ if not re.search(rf"auto\w+:: prunus\.{name}\b", text)} == set()


def test_docstrings_become_lists_and_literal_blocks():
    text = """Scores of a weight_OI, 2 * 3.

    a, b: of the `rows
    `: and more. Returns
    Returns nothing.
    `key` -> what
        it holds
    end"""
    lines = [line[4:] if line.startswith("    ") else line for line in text.split("\n")]
    assert to_rst(lines) == [
        *("Scores of a weight\\_OI, 2 \\* 3.", ""),
        *("- **a, b**: of the \\ ``rows``\\ : and more. Returns", ""),
        *("Returns nothing.", ""),
        *("- \\ ``key``\\  -> what it holds", ""),
        *("end", ""),
    ]
    assert to_rst(["First.", "", "    x = 1"]) == ["First.", "", "::", "", "    x = 1", ""]
