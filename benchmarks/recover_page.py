"""The tables of docs/measurements/recover.md, from the finished lines of benchmarks/recover.py."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pages import write

from prunus.statistics.metrics import auc_weights
from prunus.statistics.paired import infer

Line = dict[str, Any]
Floats = NDArray[np.float64]
NAMES = {"magnitude": "Magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT", "alps": "ALPS"}
SHIPPED, SECOND = 0, 1  # the seeds that the reasoners were trained from; lines without one are of the first
SOURCES = {"chains": "own chains", "prompts": "prompts alone", "text": "English text"}


def write_page(docs: Path, lines: Sequence[Line]) -> str:
    """Write the tables between the markers of the page; return them."""
    text = tables(of_reasoner(SHIPPED, lines), of_reasoner(SECOND, lines))
    write(docs / "measurements/recover.md", "recover", text)
    return text


def of_reasoner(reasoner: int, lines: Sequence[Line]) -> list[Line]:
    """Return the lines of one reasoner."""
    return [line for line in lines if line.get("reasoner", SHIPPED) == reasoner]


def cells(lines: Sequence[Line]) -> tuple[list[Line], dict[str, Line]]:
    """Return the usual recoveries of all cells, and the models that were only pruned by name."""
    found = [line for line in lines if line.get("part") == "cells"]
    return [line for line in found if line["how"]], {line["name"]: line for line in found if not line["how"]}


def dense_of(lines: Sequence[Line]) -> Line:
    """Return the line of the dense model."""
    return next(line for line in lines if line["name"] == "dense")


def tables(lines: Sequence[Line], second: Sequence[Line]) -> str:
    """Return all tables as Markdown. second: the lines of the second reasoner, which has two columns of the first."""
    of_part = {part: [line for line in lines if line.get("part") == part] for part in PARTS}
    usual, pruned = cells(lines)
    dense = dense_of(lines)
    solved = values(dense, "correct")
    found = [
        "## By method and sparsity\n",
        f"Dense: {share(solved)} % of {len(solved)} problems at {largest(dense)} tokens, {share(area(dense))} % over "
        f"all budgets; {share(values(dense, 'ends'))} % end by themselves. Second reasoner: "
        f"{share(values(dense_of(second), 'correct'))} % at {largest(dense)} tokens.\n",
        methods_table(usual, pruned, cells(second)),
    ]
    of_part["end-to-end"] = sorted(of_part["end-to-end"], key=lambda line: area(line).mean())[-1:]  # the best setting
    for part, heading in PARTS.items():
        if not of_part[part]:
            continue
        for cell in dict.fromkeys(line["cell"] for line in of_part[part]):
            others = [line for line in of_part[part] if line["cell"] == cell]
            found += [f"\n## {heading}, {title(cell)}\n", part_table(part, usual, others, pruned)]
    return "\n".join(found)


PARTS = {
    "end-to-end": "Against end-to-end training",
    "sources": "Calibration text",
    "tokens": "Tokens",
}


def methods_table(usual: Sequence[Line], pruned: dict[str, Line], second: tuple[list[Line], dict[str, Line]]) -> str:
    """Return a row per cell: means over its seeds, and intervals of the mean of the paired differences."""
    head = ["pruned by", "at 512, % [the gain, 95 %]", "second reasoner"]
    rows = []
    for cell in sorted({line["cell"] for line in usual}, key=place):
        after = [line for line in usual if line["cell"] == cell]
        before = [pruned[f"{cell}-{line['seed']}"] for line in after]
        after_second = [line for line in second[0] if line["cell"] == cell]
        before_second = [second[1][f"{cell}-{line['seed']}"] for line in after_second]
        rows.append([
            title(cell),
            f"{change(before, after, correct)} {gain(before, after, correct).partition(' ')[2]}",
            change(before_second, after_second, correct) if after_second else "",
        ])  # fmt: skip
    return markdown(head, rows)


def part_table(part: str, usual: Sequence[Line], others: Sequence[Line], pruned: dict[str, Line]) -> str:
    """Return a row per setting of a cell: the usual recovery's first; means over seeds, differences to it paired."""
    seeds, cell = {line["seed"] for line in others}, others[0]["cell"]
    first = [line for line in usual if line["cell"] == cell and line["seed"] in seeds]
    before = [pruned[f"{cell}-{line['seed']}"] for line in first]
    settings: dict[str, list[Line]] = {}
    for line in in_order(part, [*first, *others, *before]):
        settings.setdefault(setting(part, line), []).append(line)
    rows = []
    for name, found in settings.items():
        beside = [next(one for one in first if one["seed"] == line["seed"]) for line in found]
        rows.append([
            name,
            f"{100 * np.mean([values(line, 'correct') for line in found]):.1f}",
            "" if found[0] in first else gain(beside, found, area),
            f"{np.mean([line['cpu_s'] for line in found]):.0f}" if found[0]["how"] else "",
        ])  # fmt: skip
    return markdown([COLUMNS[part], "at 512, %", "all budgets, to the usual", "CPU s"], rows)


def in_order(part: str, lines: Sequence[Line]) -> Sequence[Line]:
    """Return the lines of a cell in the order of their rows."""
    return sorted(lines, key=lambda line: line["tokens"] if line["how"] else 0) if part == "tokens" else lines


COLUMNS = {"end-to-end": "trained", "sources": "recovered on", "tokens": "tokens"}


def setting(part: str, line: Line) -> str:
    """Return what a row of a part is about."""
    if not line["how"]:
        return {"end-to-end": "not", "sources": "nothing", "tokens": "0"}[part]
    if part == "end-to-end":
        return "block by block" if line["how"] == "blocks" else "end to end"
    return SOURCES[line["source"]] if part == "sources" else f"{line['tokens']:,}"


def place(cell: str) -> tuple[bool, bool, str, int]:
    """Return the place of a cell's row: sparsities, patterns and removed blocks, each from little to much."""
    method, _, amount = cell.rpartition("-")
    return method == "shortgpt", ":" in amount, amount, [*NAMES, "shortgpt"].index(method)


def title(cell: str) -> str:
    """Return the words for a cell."""
    method, _, amount = cell.rpartition("-")
    if method == "shortgpt":
        return f"ShortGPT, {amount} of 8 blocks"
    return f"{NAMES[method]} {amount}{'' if ':' in amount else ' %'}"


def largest(line: Line) -> str:
    """Return the largest budget."""
    return max(line["correct"], key=int)


def values(line: Line, what: str) -> Floats:
    """Return (P,) what of every problem at the largest budget: 0 or 1."""
    return np.array([float(digit) for digit in line[what][largest(line)]])


def correct(line: Line) -> Floats:
    """Return (P,) whether every problem is solved at the largest budget: 0 or 1."""
    return values(line, "correct")


def area(line: Line) -> Floats:
    """Return (P,) the area under accuracy over log2 of the budget, of every problem."""
    budgets = sorted(line["correct"], key=int)
    correct_BP = np.array([[float(digit) for digit in line["correct"][budget]] for budget in budgets])
    return auc_weights([int(budget) for budget in budgets]) @ correct_BP


def share(found: Floats) -> str:
    """Return a mean in percent."""
    return f"{100 * found.mean():.1f}"


def change(before: Sequence[Line], after: Sequence[Line], of: Any) -> str:
    """Return the means before and after, in percent."""
    return " to ".join(f"{100 * np.mean([of(line) for line in lines]):.1f}" for lines in (before, after))


def gain(before: Sequence[Line], after: Sequence[Line], of: Any) -> str:
    """Return the paired difference in points, mean over seeds, and its 95 % interval over problems."""
    differences = np.mean([of(b) - of(a) for a, b in zip(before, after, strict=True)], axis=0)
    (cell,) = infer([differences[:, None]]).cells()
    return f"{100 * cell['difference']:+.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; all columns but the first are aligned to the right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
