"""Rows whose budget Prunus forced, beside rows whose budget, one token more, a server kept by its own field."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prunus.store.rows import Sample
from prunus.store.store import Store

Native = Mapping[tuple[str, int], Sample]


def native_rows(store: Path, run: str) -> Native:
    """{(problem, forced budget): draw} of a run under native control."""
    with Store(store) as opened:
        return {(row.problem_id, row.budget - 1): row for row in opened.samples(run, texts=True)}


def check_pairs(forced: Sequence[Sample], native: Native, text: Callable[[str], str] = str) -> list[Sample]:
    """Assert that pairs have the same chains, and the same answers but behind line breaks; returns the cut draws.

    There the forced answer follows without one line break that engines write. text: what counts of an answer.
    """
    apart = []
    for row in forced:
        other = native[row.problem_id, row.budget]
        assert other.thinking.rstrip("\n") == row.thinking.rstrip("\n") and other.thinking_tokens <= other.budget
        if text(other.text) != text(row.text):
            apart.append((row.ended, row.thinking[-1:]))
    cut = [row for row in forced if row.ended == "forced"]
    print(len(forced), len(cut), apart)
    assert len(cut) > 40 and len(apart) <= 0.1 * len(cut) and set(apart) <= {("forced", "\n")}
    return cut
