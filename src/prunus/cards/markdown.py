"""Markdown for model cards: escaped text, tables, numbers; and of paths only what may be published."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prunus.store.characters import DASH, one_line, percent

if TYPE_CHECKING:
    from prunus.results.summary import BudgetCell  # imports scipy

LIMIT = 1000  # characters of a warning or of a word of a command
PATHS = {"calibration", "scores", "profile"}  # settings that may be paths
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~&$])")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_PATH = re.compile(r"(?<![\w/.])(?:~[\w.-]*|\.{1,2}|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`<>|:;,()]+){2,}[/\\]?")


def fenced(lines: Iterable[str]) -> str:
    """Lines as a block of code, with a fence that they do not contain."""
    text = "\n".join(lines)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}sh\n{text}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right. Cells are Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(text: str, limit: int = 200) -> str:
    """text on one line, with every character that Markdown or HTML would read escaped."""
    return _SPECIAL.sub(r"\\\1", one_line(text, limit))


def shown(setting: str, value: object) -> str:
    """The value of a setting as text; of a path only its last part."""
    return public(str(value)) if setting in PATHS else str(value)


def public(name: str) -> str:
    """A name, but of a path only the last part: traces:/home/me/own.jsonl is traces:own.jsonl."""
    start, colon, rest = name.partition(":") if name.startswith("traces:") else ("", "", name)
    return start + colon + (re.split(r"[/\\]", rest.rstrip("/\\"))[-1] or rest)


def redacted(text: str, names: Sequence[str] = ()) -> str:
    """text in which these names, and everything that looks like an absolute path, are cut to their last part."""
    for name in sorted({name for name in names if public(name) != name}, key=len, reverse=True):
        text = text.replace(name, public(name))
    return _PATH.sub(lambda path: public(path[0]), text)


def hub_id(value: object) -> str | None:
    """value if it is a model's id on the Hub, else None."""
    return value if isinstance(value, str) and len(value) <= 96 and _HUB_ID.fullmatch(value) else None


def number(value: object) -> str:
    """A whole number with commas between thousands; a dash for None."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if isinstance(value, float) else DASH


def estimate(cell: "BudgetCell | None") -> str:
    """An accuracy in percent with its interval."""
    if cell is None:
        return DASH
    return f"{percent(cell.accuracy)} ({percent(cell.low)} to {percent(cell.high)})"
