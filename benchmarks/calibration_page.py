"""The tables of docs/measurements/calibration.md, from the lines of own_traces.py and comparison_group.py.

Both add to benchmarks/calibration.jsonl by --rows; a line says which problems a model solved.
"""

from collections.abc import Sequence
from pathlib import Path

from finished import add_line
from recover_page import Line, correct, gain, markdown, share

from prunus.store.store import Store

SOURCES = ("text", "prompts", "chains")
PAIRS = (
    ("Wanda, row", "Magnitude, tensor"),  # as published
    ("Wanda, row", "Magnitude, row"),
    ("Wanda, tensor", "Magnitude, tensor"),
    ("Wanda, tensor", "Wanda, row"),
    ("Magnitude, tensor", "Magnitude, row"),
)


def added(rows: Path | None, store: Path, run: str, **what: object) -> Line:
    """The line of a run: what it was, and by budget a digit per problem, 1 where it is right. It is added to rows."""
    with Store(store) as opened:
        samples = sorted(opened.samples(run), key=lambda one: one.problem_id)
    right = dict[str, str]()
    for one in samples:
        right[str(one.budget)] = right.get(str(one.budget), "") + str(int(one.correct))
    line: Line = {**what, "correct": right}
    add_line(rows, line)
    return line


def texts(lines: Sequence[Line], seed: int = 0) -> str:
    """A row per sparsity: accuracy after calibration on each text, and how much better own chains are."""
    head = ["sparsity", "text, %", "prompts, %", "own chains, %", "chains - text", "chains - prompts"]
    found = {(line["sparsity"], line["source"]): line for line in lines if line.get("seed") == seed}
    rows = []
    for sparsity in sorted({sparsity for sparsity, _ in found}):
        text, prompts, chains = (found[sparsity, source] for source in SOURCES)
        rows.append([
            f"{sparsity} %",
            *(share(correct(line)) for line in (text, prompts, chains)),
            *(gain([line], [chains], correct) for line in (text, prompts)),
        ])  # fmt: skip
    return markdown(head, rows)


def groups(lines: Sequence[Line], sparsity: int) -> str:
    """A row per pair of scores and comparison groups."""
    found = {line["kind"]: line for line in lines if "kind" in line and line["sparsity"] == sparsity}
    rows = []
    for ours, other in PAIRS:
        solved = [share(correct(found[kind])) for kind in (ours, other)]
        rows.append([ours, solved[0], other, solved[1], gain([found[other]], [found[ours]], correct)])
    return markdown(["pruned", "%", "against", "%", "difference"], rows)
