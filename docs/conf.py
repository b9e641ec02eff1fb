"""Settings of the documentation site, which `make site` builds from the repository's Markdown.

The source folder is the root of the repository, so that links between files work on GitHub and on the site.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from plain_docstrings import to_rst

project = "Prunus"
author = "the Prunus authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "training/README.md", "tests/data/LICENSES.md"]
exclude_patterns = [".*", "site", "runs", "demo", "dist", "src", "benchmarks", "scripts", "SKILL.md"]
html_theme = "furo"
html_title = "Prunus"
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

# What lists all pages, under the headings of the sidebar. Sphinx warns of a page that is not in it.
INDEX = Path(__file__).with_name("README.md")


def shelves() -> dict[str, list[str]]:
    """The pages of each heading of the index, by their names from the root of the repository, without an ending."""
    found, root = dict[str, list[str]](), INDEX.parents[1]
    for part in INDEX.read_text("utf-8").split("\n## ")[1:]:
        links = re.findall(r"\]\(([^)#]+)\.md\)", part)
        found[part.partition("\n")[0]] = [f"{(INDEX.parent / link).resolve().relative_to(root)}" for link in links]
    return found


def add_contents(_app: Any, docname: str, source: list[str]) -> None:
    """Append the tables of contents to the front page. In its file, GitHub would show them as code."""
    if docname == root_doc:
        source[0] += toctree([f"docs/{INDEX.stem}"], "Documentation")
        source[0] += "".join(toctree(pages, heading) for heading, pages in shelves().items())


def toctree(pages: list[str], caption: str) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def plain_docstring(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def copy_index(app: Any, error: Exception | None) -> None:
    """Copy the front page to index.html, which servers expect."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("build-finished", copy_index)
