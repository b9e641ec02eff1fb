"""Format numbers and foreign text for the page. Model text is untrusted and always escaped."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

from prunus.plain_data import plain
from prunus.results.cells import Sized
from prunus.results.words import observations
from prunus.settings.budgets import with_names
from prunus.store.characters import DASH, THIN, visible
from prunus.store.characters import NBSP as NBSP
from prunus.store.characters import one_line as one_line
from prunus.store.characters import percent as percent
from prunus.store.characters import points as points
from prunus.store.characters import signed as signed
from prunus.version import __version__

VERSION = __version__


def esc(text: object) -> str:
    """text escaped for HTML text or attribute values, with control characters made visible."""
    return html.escape(visible(str(text)), quote=True)


def linked(text: str, address: str) -> str:
    """The HTML of text, as a link unless the address is empty."""
    shown = f"<bdi>{esc(text)}</bdi>"
    return f'<a href="{esc(address)}">{shown}</a>' if address else shown


def clip(text: str, limit: int) -> str:
    """text, or if it is longer than `limit` characters, its start (two thirds) and end with a note between them."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n[… {len(text) - limit:,} characters left out …]\n{text[len(text) - tail :]}"


def script_json(data: object) -> str:
    """JSON that is safe inside a <script> element: ASCII without <, > and &; NaN and infinity are null."""
    text = json.dumps(with_names(plain(data)), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def probability(p: float | None) -> str:
    """A p-value with two or three digits: <0.001, 0.034, 0.21."""
    if p is None or not math.isfinite(p):
        return DASH
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(number: float | None) -> str:
    """A number of tokens: one decimal below 10, else whole, with thin spaces between thousands."""
    if number is None or not math.isfinite(number):
        return DASH
    return f"{number:,.0f}".replace(",", THIN) if number >= 10 or number == int(number) else f"{number:.1f}"


def short(number: int | None, units: tuple[str, str, str]) -> str:
    """A large number with three digits: 1_213_440 -> 1.21 M. units: for thousands, millions and thousand millions."""
    for power, unit in zip((1e9, 1e6, 1e3), reversed(units), strict=True):
        if number is not None and number >= 0.9995 * power:
            value = number / power
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{NBSP}{unit}"
    return DASH if number is None else str(number)


def times(ratio: float | None) -> str:
    """A ratio with two decimals: 1.4 -> 1.40."""
    return DASH if ratio is None or not math.isfinite(ratio) else f"{ratio:.2f}"


def sizes(cells: Iterable[Sized], times: str) -> str:
    """`30 problems × 1 answer or 120 problems × 4 answers`: the sizes of cells without repetitions; times: the sign."""
    kinds = {(cell.n, cell.samples, cell.problems or 0): cell for cell in cells}
    texts = [
        f"{observations(cell)} {times} {cell.samples} answer{'s' * (cell.samples != 1)}"
        for _, cell in sorted(kinds.items(), key=lambda kind: kind[0])
    ]
    return " or ".join(texts)


def joined(names: list[str], most: int = 4) -> str:
    """`a, b and c`; a list of more than `most` names ends with `and 3 more`."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


# HTML files with a content security policy that allows only our own style sheet and script, by their hashes.


def resource(name: str, package: str = "prunus.reporting.render") -> str:
    """The text of a file in the folder of a package, by default this one."""
    return files(package).joinpath(name).read_text("utf-8")


FOOTER = f"<footer>Made by Prunus {esc(__version__)}. This page loads nothing from the network.</footer>"


def top(facts: str, title: str, lead: str = "", notes: Sequence[str] = (), forward: str = "") -> str:
    """The header of a page. facts: HTML. lead: sentences. notes: caveats; one is shown until they are opened.

    forward: the page as a text to copy.
    """
    lead = f'<p class="lead"><bdi>{esc(lead)}</bdi></p>' if lead else ""
    care = ""
    if notes:
        more = f" ({len(notes)} notes)" if len(notes) > 1 else ""
        first = f"<strong>Read with care{more}:</strong> <bdi>{esc(notes[0])}</bdi>"
        others = "".join(f"<li><bdi>{esc(note)}</bdi></li>" for note in notes[1:])
        care = f'<details class="warnings"><summary>{first}</summary>{f"<ul>{others}</ul>" if others else ""}</details>'
    lines = "\n".join(map(esc, forward.split("\n")))  # not at once, since control characters are made visible
    copied = forward and f'<details class="forward"><summary>As text</summary><pre tabindex="0">{lines}</pre></details>'
    return f'<header><p class="kicker">{facts}</p><h1><bdi>{esc(title)}</bdi></h1>{lead}{copied}{care}</header>'


def whole_page(title: str, body: str, data: object, styles: str = "") -> str:
    """The text of the HTML file of a page with our style sheet, script and footer. styles: further CSS."""
    return document(title, body + FOOTER, data, resource("page.css") + styles)


def document(title: str, body: str, data: object, styles: str, script: str = "", allowed: str = "") -> str:
    """The text of an HTML file with a script, by default the report's.

    Its policy allows only this style sheet and script, and no loading or sending but what `allowed` says.
    """
    script = script or resource("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(styles)}; script-src {_hash(script)}; img-src 'none'"
        f"{allowed and f'; {allowed}'}; base-uri 'none'; form-action 'none'"
    )
    end = f'<script type="application/json" id="data">{script_json(data)}</script>\n<script>{script}</script>\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="referrer" content="no-referrer">\n<meta name="generator" content="Prunus {esc(__version__)}">\n'
        f"<title>{esc(title)}</title>\n<style>{styles}</style>\n</head>\n<body>\n{body}\n{end}</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
