"""Settings of the documentation site, which `make site` builds from the repository's Markdown.

The source folder is the root of the repository, so that links between files work on GitHub and on the site.
"""

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
exclude_patterns = [".*", "site", "runs", "demo", "dist", "src", "benchmarks", "scripts"]
html_theme = "furo"
html_title = "Prunus"
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

# The groups of pages in the sidebar. A page without a group is an error, since Sphinx warns of it.
CONTENTS = {
    "Start": ["docs/install", "docs/tutorial"],
    "Guides": [
        "docs/pruning",
        "docs/recover",
        "docs/experts",
        "docs/width",
        "docs/quantize",
        "docs/gguf",
        "docs/find",
        "docs/evaluating",
        "docs/profiles",
        "docs/study",
        "docs/serving",
        "docs/scale",
        "docs/engines",
        "docs/lm-eval",
        "docs/import",
        "docs/grading",
        "docs/reports",
        "docs/view",
        "docs/memory",
    ],
    "Reference": [
        "docs/commands",
        "docs/api",
        "docs/models",
        "docs/protocol",
        "docs/verdicts",
        "docs/format",
    ],
    "Measurements": ["docs/measurements/README"],
    "Project": ["docs/design", "CONTRIBUTING", "CHANGELOG", "training/README", "tests/data/LICENSES"],
}


def add_contents(_app: Any, docname: str, source: list[str]) -> None:
    """Append tables of contents to the two pages that lead to others. In the files, GitHub would show them as code."""
    if docname == "README":
        source[0] += "".join(toctree(pages, group) for group, pages in CONTENTS.items())
    elif docname == "docs/measurements/README":
        pages = sorted(page.stem for page in Path(__file__).with_name("measurements").glob("*.md"))
        source[0] += toctree([page for page in pages if page != "README"])


def toctree(pages: list[str], caption: str = "") -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


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
