"""What `find` returns: the rungs that were looked at, which of them was found, and what is claimed."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

from rich.text import Text

from prunus.disk import show_bytes
from prunus.plain_data import HIDDEN, Record
from prunus.results.certificate import Certificate
from prunus.results.vocabulary import RungVerdict
from prunus.text_table import UNLIMITED, TextTable, printed

HEADINGS = ("rung", "decision", "problems", "tokens")


class RungWord(Record):
    """What was decided about a rung.

    name: of the rung.
    run: its id in the store.
    word: certified, refused or cannot tell.
    why: what left it open.
    problems: that it took.
    tokens: sampled for its own rows.
    bytes: of weights and the cache of a chain, for a ladder by bytes; to_json leaves them out.
    """

    name: str
    run: str
    word: RungVerdict
    why: str
    problems: int
    tokens: int
    bytes: int | None = field(default=None, metadata=HIDDEN)

    @property
    def cells(self) -> list[str]:
        """Its row of a table."""
        word = f"{self.word} ({self.why})" if self.why else self.word
        size = [] if self.bytes is None else [show_bytes(self.bytes)]
        return [self.name, word, f"{self.problems:,}", f"{self.tokens:,}", *size]


class Found(Record):
    """Result of a search; its repr is a table of the rungs that were looked at.

    out: the folder that was written; None if no rung is certified, and then it is not written.
    model: the dense model as it was named.
    found: name of the rung; None if there is none.
    removed: share of the weights that the rung removes.
    bytes: of the rung's weights and the cache of a chain, for a ladder by bytes.
    ladders: the rungs that were looked at, by the name of their ladder.
    tokens: sampled for all rows that were looked at.
    dense_tokens: those of the dense model.
    full_grid_tokens: what all rungs and the dense model in full would have taken.
    claims: sentences, which hold with the certificate's confidence.
    """

    out: str | None
    model: str
    found: str | None
    removed: float
    bytes: int | None = None
    ladders: Mapping[str, Sequence[RungWord]]
    tokens: int
    dense_tokens: int
    full_grid_tokens: int
    claims: Sequence[str]

    def __repr__(self) -> str:
        rows = [rung.cells for rungs in self.ladders.values() for rung in rungs]
        if not rows:
            return "no rung was looked at"
        table = TextTable(*[*HEADINGS, "bytes"][: len(rows[0])], left=HEADINGS[:2], gap=2)
        for row in rows:
            table.add_row(*row)
        found = f"found: {self.found}" if self.found else "no rung is certified"
        return printed(table, Text(found), width=UNLIMITED)


def found_of(certified: Certificate, target: Path) -> Found:
    """The result of `find` for a search with this certificate. target: the folder that is written."""
    shown, best = certified.shown, certified.shown.found
    ladders = {
        ladder.name: [
            RungWord(
                name=rung.name,
                run=rung.run,
                word=rung.word,
                why=rung.why,
                problems=rung.problems,
                tokens=rung.tokens,
                bytes=rung.size,
            )
            for rung in ladder.rungs
        ]
        for ladder in shown.ladders
    }
    return Found(
        out=str(target) if best else None,
        model=certified.declared.model.source,
        found=best.name if best else None,
        removed=best.removed if best else 0.0,
        bytes=best.size if best else None,
        ladders=ladders,
        tokens=shown.tokens,
        dense_tokens=shown.dense.tokens,
        full_grid_tokens=shown.full_grid_tokens,
        claims=shown.claims,
    )
