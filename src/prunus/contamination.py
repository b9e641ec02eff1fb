"""Find questions of the built-in evaluation sets, which calibration must not contain, by their hashes.

scripts/held_out.py writes the hashes to data/held_out.txt, so the check needs neither a network nor the questions.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

DIGITS = 16
FILE = Path(__file__).parent / "data" / "held_out.txt"


def question_digest(question: str) -> str:
    """A hash of the question (16 hex digits) that ignores case, whitespace and Unicode normal forms."""
    plain = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return hashlib.sha256(plain.encode()).hexdigest()[:DIGITS]


def question_key(question: str, choices: Sequence[str] = ()) -> str:
    """The question_digest of a question with its choices in any order, which is the same in runs of any tool."""
    return question_digest("\n".join([question, *sorted(choices)]))


@cache
def held_out() -> dict[str, str]:
    """{digest: name of its evaluation set, the first that has it}. In the file, `# NAME` precedes a set's digests."""
    found, name = {}, ""
    for line in FILE.read_text().splitlines():
        if line.startswith("# "):
            name = line[2:]
        else:
            found.setdefault(line, name)
    return found


def evaluation_set(digest: str) -> str | None:
    """The name of the evaluation set that has a question with this digest; None if no built-in set has one."""
    return held_out().get(digest)


def held_out_in(text: str) -> str | None:
    """The name of an evaluation set, one of whose questions is the whole text, a paragraph or a line of it; else None.

    A question with other words in the same line is not found, since hashes only identify whole texts.
    """
    return next((name for part in _parts(text) if (name := evaluation_set(question_digest(part)))), None)


def _parts(text: str) -> Iterator[str]:
    yield text
    yield from text.split("\n\n")
    yield from text.splitlines()


def file_text(sets: Iterable[tuple[str, Iterable[str]]]) -> str:
    """The content of data/held_out.txt. sets: (name, digests) of each evaluation set."""
    lines = []
    for name, digests in sets:
        lines += [f"# {name}", *sorted(set(digests))]
    return "\n".join(lines) + "\n"
