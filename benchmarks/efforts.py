"""How often levels of `prunus efforts` are false, what they find, and what they lose on held-out problems.

    python benchmarks/efforts.py [--write]   # about a minute of one core; --write: benchmarks/efforts.jsonl

Tables are made of a truth: what each budget loses and gains against the largest one. A row counts tables by how many
budgets, from the largest down, each level passes; docs/efforts.md says what follows from it. Held-out: levels of random
halves of the problems of benchmarks/gsm8k.csv, and what the other halves lose there.
"""

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import erf, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.statistics import betting, exact

Row = Mapping[str, Any]
Floats = NDArray[np.float64]
HERE = Path(__file__).parent
ROWS = HERE / "efforts.jsonl"
MARGINS = (0.02, 0.05, 0.10)
TABLES, HALVES, SEED = 1000, 200, 67
STAIRS = (0, 2, 2, 5, 5, 10, 10, 30)  # points that the budgets lose, the largest first
TRUTHS: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {  # lost and gained, in points
    "stairs": (STAIRS, (0,) * 8),
    "stairs, 2 points either way": ([lost + 2 for lost in STAIRS], (2,) * 8),
    "dip": ((1, 1, 6, 1, 1, 1, 1, 1), (1,) * 8),
    "skewed": ((5, 5, 11, 11, 11, 11, 11, 30), (5, 5, 9, 9, 6, 6, 1, 1)),
}
SIZES = {1: (100, 200, 400), 4: (100, 200)}  # problems, by draws
POWER_SIZES = (200, 400, 1000)


def curve() -> tuple[list[int], list[float], list[float]]:
    """(budgets below 1,024 in steps of 2^(1/4), points lost, points gained) of chains with log-normal lengths.

    Of the chains that a budget cuts a part loses, the more the earlier it is cut, and a few gain.
    """
    full, median, spread = 1024, 220, 0.55
    budgets = [round(full * 2 ** (-k / 4)) for k in range(1, 13)]
    longer = [0.5 * (1 - erf(log(budget / median) / spread / sqrt(2))) for budget in (full, *budgets)]
    cut = [share - longer[0] for share in longer[1:]]
    lost = [45 * c * (1 - b / full) ** 2 + 4 * c for b, c in zip(budgets, cut, strict=True)]
    return budgets, lost, [4 * c for c in cut]


def losses(lost: Sequence[float], gained: Sequence[float]) -> Floats:
    """What each budget loses, as shares."""
    return np.round((np.array(lost) - np.array(gained)) / 100, 9)


def drawn(
    rng: np.random.Generator, lost: Sequence[float], gained: Sequence[float], problems: int, draws: int, tables: int
) -> Floats:
    """(P, S, K) differences of S tables; a problem that is lost at a budget is lost at those that lose more."""
    luck_PSN = rng.random((problems, tables, draws))
    means = [
        ((luck_PSN > 1 - gain / 100).astype(float) - (luck_PSN < loss / 100)).mean(axis=2)
        for loss, gain in zip(lost, gained, strict=True)
    ]
    return np.stack(means, axis=2)


def p_values(differences_PSK: Floats, margin: float, draws: int) -> Floats:
    """(S, K) p-values of a loss of the margin or more."""
    problems, tables, budgets = differences_PSK.shape
    columns = differences_PSK.reshape(problems, tables * budgets)
    if draws == 1:
        found = exact.p_value((columns < 0).sum(axis=0), (columns > 0).sum(axis=0), problems, margin)
    else:
        found = betting.p_value([columns], margin, draws)
    return found.reshape(tables, budgets)


def passed(differences_PSK: Floats, draws: int = 1, alpha: float = betting.ALPHA / len(MARGINS)) -> NDArray[np.int_]:
    """(S, M) how many budgets the walk of each margin passes."""
    walks = [np.logical_and.accumulate(p_values(differences_PSK, m, draws) <= alpha, axis=1) for m in MARGINS]
    return np.stack([walk.sum(axis=1) for walk in walks], axis=1)


def counted(walks_SM: NDArray[np.int_]) -> list[list[int]]:
    """[budgets passed by each margin, number of tables] of every outcome."""
    return [[*outcome, number] for outcome, number in sorted(Counter(map(tuple, walks_SM.tolist())).items())]


def simulated() -> Iterator[Row]:
    """The rows of errors and of power."""
    for truth, (lost, gained) in TRUTHS.items():
        for draws, sizes in SIZES.items():
            for problems in sizes:
                rng = np.random.default_rng([SEED, problems, draws])
                made = drawn(rng, lost, gained, problems, draws, TABLES)
                about = {"part": "errors", "truth": truth, "problems": problems, "draws": draws}
                ways = {"level": passed(made, draws)}
                if draws == 1:
                    ways["uncorrected"] = passed(made, draws, betting.ALPHA)
                    point = np.stack([made.mean(axis=0) >= -m - 1e-12 for m in MARGINS], axis=2)
                    ways["estimate"] = np.logical_and.accumulate(point, axis=1).sum(axis=1)
                for way, walks in ways.items():
                    yield {**about, "way": way, "passed": counted(walks)}
    _, lost, gained = curve()
    for problems in POWER_SIZES:
        made = drawn(np.random.default_rng([SEED, problems]), lost, gained, problems, 1, TABLES)
        yield {"part": "power", "problems": problems, "draws": 1, "passed": counted(passed(made))}


def real() -> dict[str, Floats]:
    """{variant: (P, K) differences to the largest budget, the second largest first} of benchmarks/gsm8k.csv."""
    rows = defaultdict[str, dict[tuple[str, int], int]](dict)
    with (HERE / "gsm8k.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows[row["variant"]][row["problem_id"], int(row["budget"])] = int(row["correct"])
    found = {}
    for variant, of in rows.items():
        problems, budgets = sorted({key[0] for key in of}), sorted({key[1] for key in of}, reverse=True)
        right = np.array([[of[problem, budget] for budget in budgets] for problem in problems], float)
        found[variant] = right[:, 1:] - right[:, :1]
    return found


def held_out() -> Iterator[Row]:
    """A row for each variant: for each margin, the halves that name a budget, and how the rest loses there."""
    for variant, differences_PK in real().items():
        rng, n = np.random.default_rng(SEED), len(differences_PK)
        orders = [rng.permutation(n) for _ in range(HALVES)]
        walks = passed(np.stack([differences_PK[order[: n // 2]] for order in orders], axis=1))
        for place, margin in enumerate(MARGINS):
            named = [(order, k) for order, k in zip(orders, walks[:, place], strict=True) if k]
            other = [-differences_PK[order[n // 2 :], k - 1].mean() for order, k in named]
            of_all = [-differences_PK[:, k - 1].mean() for _, k in named]
            yield {
                "part": "halves",
                "variant": variant,
                "margin": margin,
                "halves": HALVES,
                "named": len(named),
                "above": sum(bool(loss > margin + 1e-9) for loss in other),
                "above_of_all": sum(bool(loss > margin + 1e-9) for loss in of_all),
            }


def false_tables(row: Row) -> int:
    """How many tables of a row of errors name a budget at which, or above which, the margin is lost."""
    lost = losses(*TRUTHS[row["truth"]])
    first = [int(np.argmax(lost >= m - 1e-9)) if (lost >= m - 1e-9).any() else len(lost) for m in MARGINS]
    return sum(
        number for *walks, number in row["passed"] if any(k > limit for k, limit in zip(walks, first, strict=True))
    )


def octaves_above(row: Row) -> list[float]:
    """The mean number of doublings by which the named budget is above the best one, for each margin."""
    budgets, lost, gained = curve()
    every, loss = [1024, *budgets], losses(lost, gained)
    best = [int(np.argmax(loss >= m)) for m in MARGINS]
    totals, tables = [0.0] * len(MARGINS), sum(number for *_, number in row["passed"])
    for *walks, number in row["passed"]:
        for place, (k, limit) in enumerate(zip(walks, best, strict=True)):
            totals[place] += number * log(every[min(k, limit)] / every[limit]) / log(2)
    return [total / tables for total in totals]


def main() -> None:
    """Print the rows with what follows from them, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write, rows = parser.parse_args().write, []
    for row in (*simulated(), *held_out()):
        rows.append(row)
        about = {key: value for key, value in row.items() if key != "passed"}
        follows = {"errors": lambda row: false_tables(row) / TABLES, "power": octaves_above}.get(row["part"])
        print(about, follows(row) if follows else "", flush=True)
    if write:
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
