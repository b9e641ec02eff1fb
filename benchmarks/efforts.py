"""How often levels of `prunus efforts` are false, what they find, and what they lose on held-out problems.

    python benchmarks/efforts.py [--write]   # some minutes of one core; --write: benchmarks/efforts.jsonl

Tables are made of a truth: what each budget loses and gains against the largest one. A row counts tables by how many
budgets, from the largest down, each level passes; docs/efforts.md says what follows from it. Held-out: levels of random
halves of the problems of benchmarks/gsm8k.csv, and what the other halves lose there.
"""

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import erf, log, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunus.results.as_good import shown_apart
from prunus.results.contrasts import Pair, claims_at_budgets
from prunus.settings.margins import Margin
from prunus.statistics import betting, exact
from prunus.store.rows import Table

Row = Mapping[str, Any]
Floats = NDArray[np.float64]
HERE = Path(__file__).parent
ROWS = HERE / "efforts.jsonl"
MARGINS = (0.02, 0.05, 0.10)
TABLES, EXCHANGED, HALVES, SEED = 1000, 500, 200, 67
RIGHT, WRONG = (np.array(SimpleNamespace(correct=right), object) for right in (True, False))  # rows of a table
STAIRS = (0, 2, 2, 5, 5, 10, 10, 30)  # points that the budgets lose, the largest first
INDEPENDENT = "cuts are independent"  # the luck of a problem at one budget says nothing of another
TRUTHS: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {  # lost and gained, in points
    "stairs": (STAIRS, (0,) * 8),
    "stairs, 2 points either way": ([lost + 2 for lost in STAIRS], (2,) * 8),
    "dip": ((1, 1, 6, 1, 1, 1, 1, 1), (1,) * 8),
    "skewed": ((5, 5, 11, 11, 11, 11, 11, 30), (5, 5, 9, 9, 6, 6, 1, 1)),
    "cliff": ((0, 0, 0, 0, 25, 25, 25, 25), (0,) * 8),
    "up, then down": ((1, 1, 2, 4, 7, 12, 22, 41), (3, 3, 2, 2, 2, 2, 2, 1)),
    "some chains are longer": ((0, 0, 0, 2, 2, 2, 2, 2), (0,) * 8),
    INDEPENDENT: ([lost + 2 for lost in STAIRS], (2,) * 8),
}
SIZES = {1: (40, 100, 200, 400, 1000), 4: (100, 200)}  # problems, by draws
CLUSTERS = (4, 10)  # problems of a group, which share their fate
# A variant against the base at one budget: octaves below the variant's largest budget at which it is as right.
CROSSINGS, STEPS = (0.5, 1.5), np.arange(16, -1, -1) / 4  # the smallest budget first
AGAIN = 4000  # more tables of the cell in which 1,000 had the most false levels
EXCHANGES = ((100, 1), (200, 1), (400, 1), (200, 4))  # problems and draws
POWER_SIZES = ((200, 1), (400, 1), (1000, 1), (400, 4))  # problems and draws


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
    rng: np.random.Generator,
    lost: Sequence[float],
    gained: Sequence[float],
    problems: int,
    draws: int,
    tables: int,
    independent: bool = False,
) -> Floats:
    """(P, S, K) differences of S tables; a problem that is lost at a budget is lost at those that lose more.

    independent: whether it has other luck at each budget.
    """
    luck_PSN, means = rng.random((problems, tables, draws)), list[Floats]()
    for loss, gain in zip(lost, gained, strict=True):
        means.append(((luck_PSN > 1 - gain / 100).astype(float) - (luck_PSN < loss / 100)).mean(axis=2))
        if independent:
            luck_PSN = rng.random(luck_PSN.shape)
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
                made = drawn(rng, lost, gained, problems, draws, TABLES, truth == INDEPENDENT)
                about = {"part": "errors", "truth": truth, "problems": problems, "draws": draws}
                ways = {"level": passed(made, draws)}
                if draws == 1:
                    ways["uncorrected"] = passed(made, draws, betting.ALPHA)
                    point = np.stack([made.mean(axis=0) >= -m - 1e-12 for m in MARGINS], axis=2)
                    ways["estimate"] = np.logical_and.accumulate(point, axis=1).sum(axis=1)
                for way, walks in ways.items():
                    yield {**about, "way": way, "passed": counted(walks)}
    made = drawn(np.random.default_rng([SEED, AGAIN]), *TRUTHS[INDEPENDENT], 1000, 1, AGAIN, independent=True)
    yield {"part": "errors again", "truth": INDEPENDENT, "problems": 1000, "draws": 1, "passed": counted(passed(made))}
    _, lost, gained = curve()
    for problems, draws in POWER_SIZES:
        made = drawn(np.random.default_rng([SEED, problems]), lost, gained, problems, draws, TABLES)
        yield {"part": "power", "problems": problems, "draws": draws, "passed": counted(passed(made, draws))}


def table(correct_PBN: NDArray[np.bool_], group: int = 1) -> Table:
    """A run's task with these outcomes. group: how many problems, one after the other, are a group."""
    problems, budgets, draws = correct_PBN.shape
    names = [f"{place:05}" for place in range(problems)]
    first_of = {name: names[place - place % group] for place, name in enumerate(names) if place % group}
    rows = np.where(correct_PBN, RIGHT, WRONG)
    return Table(tuple(names), tuple(range(1, budgets + 1)), tuple(range(draws)), rows, first_of)


def pair(
    rng: np.random.Generator, lost: ArrayLike, gained: ArrayLike, problems: int, draws: int, group: int = 1
) -> Pair:
    """A variant at budgets that lose and gain so much, in points, beside the base, which is the same at each."""
    luck_P1N = np.repeat(rng.random((problems // group, 1, draws)), group, axis=0)
    loss_B1, gain_B1 = (np.asarray(points, float)[:, None] / 100 for points in (lost, gained))
    lost_PBN, gained_PBN = luck_P1N < loss_B1, luck_P1N > 1 - gain_B1
    base_P1N = lost_PBN.any(1, keepdims=True) | (~gained_PBN.any(1, keepdims=True) & (rng.random(luck_P1N.shape) < 0.5))
    base_PBN = np.repeat(base_P1N, len(loss_B1), axis=1)
    return Pair(table(base_PBN, group), table((base_PBN & ~lost_PBN) | gained_PBN, group))


def crossed(at: float) -> tuple[Floats, Floats]:
    """(points lost, points gained) by budget, of a variant that is as right as the base so many octaves below."""
    below = STEPS - at
    return 6 + 10 * np.maximum(below, 0) ** 1.5, 6 + 3 * np.maximum(-below, 0)


def exchanged() -> Iterator[Row]:
    """Rows of an exchange: levels of a variant against the base, and the budgets between which it is as right."""
    lost, gained = ([*reversed(points)] for points in TRUTHS["stairs, 2 points either way"])
    for problems, draws, group in [*((n, d, 1) for n, d in EXCHANGES), *((400, 1, size) for size in CLUSTERS)]:
        rng, walks = np.random.default_rng([SEED, problems, draws, group]), list[list[int]]()
        for _ in range(EXCHANGED):
            pairs = [pair(rng, lost, gained, problems, draws, group)]
            shown = [claims_at_budgets(pairs, Margin(m)).p_margin <= betting.ALPHA / len(MARGINS) for m in MARGINS]
            walks.append([int(np.logical_and.accumulate(passes[::-1]).sum()) for passes in shown])
        about = {"problems": problems, "draws": draws, "group": group}
        yield {"part": "against the base", **about, "passed": counted(np.array(walks))}
    for at in CROSSINGS:
        for problems, draws in EXCHANGES:
            rng = np.random.default_rng([SEED, problems, draws, int(4 * at)])
            apart = [shown_apart([pair(rng, *crossed(at), problems, draws)]) for _ in range(EXCHANGED)]
            yield {
                "part": "crossing",
                "octaves": at,
                "problems": problems,
                "draws": draws,
                "apart": counted(np.array(apart)),
            }


def outside(row: Row) -> float:
    """The share of tables of a row that leave out the budget at which the variant is as right as the base."""
    place = int(np.argmin(np.abs(STEPS - row["octaves"])))
    wrong = sum(n for worse, better, n in row["apart"] if worse > place or better > len(STEPS) - 1 - place)
    return wrong / EXCHANGED


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
    """How many tables of a row name a budget at which, or above which, the margin is lost."""
    lost = losses(*TRUTHS[row.get("truth", "stairs, 2 points either way")])
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


FOLLOWS: Mapping[str, Callable[[Row], object]] = {
    "errors": lambda row: false_tables(row) / TABLES,
    "errors again": lambda row: false_tables(row) / AGAIN,
    "against the base": lambda row: false_tables(row) / EXCHANGED,
    "power": octaves_above,
    "crossing": outside,
}


def main() -> None:
    """Print the rows with what follows from them, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write, rows = parser.parse_args().write, []
    for row in chain(simulated(), exchanged(), held_out()):
        rows.append(row)
        about = {key: value for key, value in row.items() if key not in ("passed", "apart")}
        follows = FOLLOWS.get(row["part"])
        print(about, follows(row) if follows else "", flush=True)
    if write:
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
