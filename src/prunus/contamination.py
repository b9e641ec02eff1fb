"""Which questions must never be calibrated on: those of the built-in evaluation sets, known by their hashes alone.

data/held_out.txt is made by scripts/held_out.py from the sets themselves, so the check needs neither network nor texts.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

DIGITS = 16
FILE = Path(__file__).parent / "data" / "held_out.txt"


def question_digest(question: str) -> str:
    """16 hex digits of the question without regard to case, blanks, line ends and Unicode forms."""
    plain = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return hashlib.sha256(plain.encode()).hexdigest()[:DIGITS]


@cache
def held_out() -> dict[str, str]:
    """Digest -> evaluation set. The file has a line `# NAME` before the digests of each set."""
    found, name = {}, ""
    for line in FILE.read_text().splitlines():
        if line.startswith("# "):
            name = line[2:]
        else:
            found[line] = name
    return found


def evaluation_set(digest: str) -> str | None:
    """The set that a question of this digest belongs to, None where it belongs to none that we know."""
    return held_out().get(digest)


def held_out_in(text: str) -> str | None:
    """The evaluation set of which the text holds a question: as all of it, as a paragraph or as a line; else None.

    A question inside a sentence of other words is not found: hashes cannot see into a text.
    """
    return next((name for part in _parts(text) if (name := evaluation_set(question_digest(part)))), None)


def _parts(text: str) -> Iterator[str]:
    yield text
    yield from text.split("\n\n")
    yield from text.splitlines()


def file_text(sets: Iterable[tuple[str, Iterable[str]]]) -> str:
    """Content of data/held_out.txt for (name, questions)."""
    lines = []
    for name, questions in sets:
        lines += [f"# {name}", *sorted({question_digest(question) for question in questions})]
    return "\n".join(lines) + "\n"
