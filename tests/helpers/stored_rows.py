"""A run, a problem and a draw to store."""

from prunus.store.rows import ProblemRow, Run, Sample

RUN = Run.of(
    "0123456789ab", {"name": "tiny", "source": "tiny"}, {"tasks": ["tiny"], "budgets": [16, 64]}, {"torch": "2"}
)

PROBLEM = ProblemRow("tiny", "chain-0", "7", "exact", ("a", "é"), "d1")

SAMPLE = Sample("tiny", "chain-0", 16, 0, 16, 4, 2, "forced", True, False, None, "no_answer", False, "1 + 1\n", "é 😀",
                -0.25, 3.5, 0.125, 64)  # fmt: skip
