"""HTML files with a content security policy that allows only our own style sheet and script, by their hashes."""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from prunus import __version__
from prunus.reporting.render.text import esc, script_json


def resource(name: str) -> str:
    """The text of a file in this folder."""
    return files("prunus.reporting.render").joinpath(name).read_text("utf-8")


def document(title: str, body: str, data: Mapping[str, Any], styles: str) -> str:
    """The text of the report's HTML file. It allows only this style sheet and script, and no loading or sending.

    Frames may show files beside the page, which cannot run scripts (`small_page`). `file:` is allowed because a page
    opened from disk has no origin for 'self'.
    """
    script = resource("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(styles)}; script-src {_hash(script)}; img-src 'none'; "
        "frame-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    end = f'<script type="application/json" id="data">{script_json(data)}</script>\n<script>{script}</script>\n'
    return _html(title, policy, styles, f"{body}\n{end}")


def small_page(title: str, body: str) -> str:
    """The text of an HTML file for a frame, with a style sheet and without scripts."""
    styles = resource("flip.css")
    policy = f"default-src 'none'; style-src {_hash(styles)}; base-uri 'none'; form-action 'none'"
    return _html(title, policy, styles, body)


def _html(title: str, policy: str, styles: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="referrer" content="no-referrer">\n<meta name="generator" content="Prunus {esc(__version__)}">\n'
        f"<title>{esc(title)}</title>\n<style>{styles}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
