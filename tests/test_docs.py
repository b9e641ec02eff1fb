"""Documentation stays in step with the command line and the layout."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_command_reference_is_in_step():
    script = ROOT / "scripts" / "command_reference.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_named_in_a_page_exist(page):
    for line in page.read_text().splitlines():
        for name, rest in re.findall(r"prunus ([a-z]+)\b([^`|]*)", line):
            if not re.search(r"(^|[`$ ])prunus " + name, line) or (
                name not in cli.commands and not rest.lstrip().startswith("-")
            ):
                continue
            assert name in cli.commands, line
            known = {
                option
                for parameter in cli.commands[name].params
                for option in [*parameter.opts, *parameter.secondary_opts]
            }
            for option in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", rest):
                assert option in known | {"--help"}, f"{page.name}: {line}"


def test_design_names_only_what_exists():
    text = (ROOT / "docs" / "design.md").read_text()
    layout = text.split("```")[1]
    for name in re.findall(r"\b([a-z_]+\.py)\b", layout):
        assert list((ROOT / "src").rglob(name)), f"docs/design.md names {name}"


def test_links_inside_the_repository_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
