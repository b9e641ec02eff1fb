"""Error rates and power of the verdicts: the tables of docs/measurements/verdicts.md.

    python benchmarks/verdicts.py [--runs 1000] [--only chosen] [--write] [--demo demo/results.db]      seven minutes

The simulations are in `simulations`; each function here prints some of their tables. The tests run the same simulations
with fewer repetitions. --write: the tables of --only to benchmarks/verdicts.jsonl. --demo: the store of `prunus demo`,
to compare its verdicts with those by sign flips.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finished import read_lines
from simulations import one_comparison as one
from simulations import several_comparisons as several
from simulations.differences import SCENARIOS, SKEWED, UNEQUAL, coupled, differences, skewed
from simulations.one_comparison import DRAWS, PROBLEMS

from prunus.results.comparison import compare
from prunus.results.verdicts import word_of
from prunus.statistics import betting, paired

COUPLED = [
    *((f"{share:g}", [share], ()) for share in (0.0, 0.4, 0.7, 0.93)),
    ("0.93, then 0", [0.93, 0.0], ()),
    ("0, then 0.93", [0.0, 0.93], ()),
    ("0.93, then antithetic", [0.93, -0.93], ()),
    ("antithetic", [-0.93], ()),
    ("0.7, base solves 2 or 97 %", [0.7], (0.02, 0.97)),
    ("0.93, base solves 97 %", [0.93], (0.97,)),
    *((f"{share:g}, 7 % break, the rest gain", [share], (0.9,), 0.07) for share in (0.0, 0.7, 0.93)),
]
SIZES = [str(n) for n in PROBLEMS]
ROWS = Path(__file__).with_name("verdicts.jsonl")
PRINTED: list[dict[str, Any]] = []  # tables


def directions(runs: int) -> None:
    print(f"False better / worse in %, true difference 0, {runs} runs; in brackets by sign flips, of {runs // 4}")
    found = {key: shares for *key_, shares in one.false_directions(runs) for key in [tuple(key_)]}
    rng, rows = np.random.default_rng(1), []
    for shape in SKEWED:
        for draws in DRAWS:
            cells = []
            for n in PROBLEMS:
                now, flips = found[shape, n, draws], one.called_by_flips(skewed(rng, shape, n, draws, 0.0, runs // 4))
                now = [percent(now[f"{word} at 0"]) for word in ("better", "worse")]
                cells.append(f"{now[0]} / {now[1]} ({percent(flips[0])} / {percent(flips[1])})")
            rows.append([shape, draws, *cells])
    table(["shape", "draws", *SIZES], rows)

    print("\nThe largest error over all numbers of problems, in %, true difference at the margin of 2 points")
    names = ("better at a loss", "worse at a gain", "non-inferior at the margin")
    rows = [
        [shape, draws, *(percent(max(found[shape, n, draws][name] for n in PROBLEMS)) for name in names)]
        for shape in SKEWED
        for draws in DRAWS
    ]
    table(["shape", "draws", *names], rows)

    print("\nPower in %: a loss called worse, and by sign flips (which are not valid)")
    rows = []
    for name, n, draws, losses in (
        ("GSM8K, 200 x 1", 200, 1, (0.05, 0.1, 0.15)),
        ("AIME-like, 30 x 64", 30, 64, (0.05, 0.1, 0.2, 0.3)),
        ("100 x 4", 100, 4, (0.05, 0.1, 0.15)),
        ("500 x 1", 500, 1, (0.02, 0.05, 0.1)),
    ):
        for loss in losses:
            for scenario in SCENARIOS[:2]:
                values = differences(rng, scenario, n, draws, loss, runs)
                row = [one.called(values, draws)[1], one.called_by_flips(values)[1]]
                rows.append([name, scenario, f"{100 * loss:g}", *map(percent, row)])
    table(["run", "scenario", "true loss", "worse", "by sign flips"], rows)


def chosen(runs: int) -> None:
    print("\nWrongly non-inferior in %: the best of several, alone and (as corrected); all lose the margin")
    rows, shares = [], {}
    for n, draws, margin in ((500, 4, 0.02), (200, 1, 0.05)):
        shares = several.chosen_after_seeing(n, draws, margin, runs)
        rows.append([f"{n} x {draws}, {100 * margin:g}", *(f"{percent(a)} ({percent(b)})" for a, b in shares.values())])
    table(["problems, margin", *shares], rows)

    print("\nThe same where the same questions are compared again in another form: by earlier rules and (now)")
    rows, again = [], {}
    for n, draws, margin in ((500, 4, 0.02), (200, 1, 0.05)):
        again = several.same_questions_again(n, draws, margin, runs)
        rows.append([f"{n} x {draws}, {100 * margin:g}", *(f"{percent(a)} ({percent(b)})" for a, b in again.values())])
    table(["problems, margin", *again], rows)

    print("\nThe best of 14 variants in %: its interval and adjusted bound are wrong, its estimate is too high by")
    rows = []
    for n, draws in ((500, 16), (500, 4), (200, 1)):
        for loss in (0.01, 0.05):
            found = several.of_the_best(n, draws, loss, runs // 4)
            rows.append([f"{n} x {draws}", f"{100 * loss:g}", *map(percent, found)])
    table(["problems", "true loss", "interval", "adjusted bound", "estimate"], rows)


def stopping(runs: int) -> None:
    print("\nSaid to still stop in %, margin 5 points: by the margin alone, and by Prunus")
    rows = []
    for ours, theirs in ((0.06, 0.015), (0.3, 0.28), (0.95, 0.95)):
        shares = one.said_to_still_stop(ours, theirs, 500, 4, 0.05, max(runs // 10, 20))
        rows.append([f"{100 * ours:g}", f"{100 * theirs:g}", *map(percent, shares)])
    table(["base's chains that end", "variant's", "by the margin", "by Prunus"], rows)


def recipes(runs: int) -> None:
    print("\nRecipes of which some seeds collapse, wrongly called so in %, and by a t test; margin 2 points, 500 x 4")
    rows, shares = [], {}
    for seeds in (3, 5):
        for collapse in (0.05, 0.1, 0.2):
            shares = several.collapsing_seeds(seeds, collapse, max(runs // 4, 20))
            rows.append([seeds, f"{100 * collapse:g}", *map(percent, shares.values())])
    table(["seeds", "collapse, %", *shares], rows)


def pages(runs: int) -> None:
    print("\nPages in % with any wrong word of a kind, margin 5 points, five budgets")
    rows, wrong = [], {}
    for variants in (1, 4, 14):
        for n, draws in ((30, 16), (200, 1), (200, 4)):
            of = variants, n, draws, max(runs // 5, 100)
            wrong = several.false_on_a_page(*of) | several.scaling_on_a_page(*of)
            rows.append([variants, n, draws, *map(percent, wrong.values())])
    table(["variants", "problems", "draws", *wrong], rows)


def limits(runs: int) -> None:
    print(f"\nNon-inferior at any look in % of {4 * runs}, true loss at the margin; the limit grows from 50 to 500")
    rows = []
    for margin, change in ((0.05, 0.05), (0.05, 0.2), (0.1, 0.2)):
        for step in (450, 90, 45, 10):
            looks = list(range(50, 501, step))
            shares = several.while_the_limit_grows(looks, margin, change, 4 * runs)
            rows.append([f"{100 * margin:g}", f"{100 * change:g}", len(looks), *map(percent, shares)])
    table(["margin", "changes, %", "looks", "by one game", "each alone"], rows)


def margins(runs: int) -> None:
    print(f"\nFalse non-inferior in %, true loss at the margin of 2 points, {runs} runs")
    claims = {key: share for *key_, share in one.false_claims(runs) for key in [tuple(key_)]}
    rows = [
        [scenario, draws, *(percent(claims[scenario, n, draws]) for n in PROBLEMS)]
        for scenario in SCENARIOS
        for draws in DRAWS
    ]
    table(["scenario", "draws", *SIZES], rows)

    print("\nLower bound in points where no draw differs")
    cells = [f"{100 * betting.lower_bound([np.zeros((n, 1))])[0]:.1f}" for n in (*PROBLEMS, 1319)]
    table([*SIZES, "1319"], [cells])

    print("\nCalled non-inferior in %, equal models and a homogeneous loss of half the margin")
    more = (100, 200, 500, 1319, 3000)
    rows = [
        [f"{100 * margin:g}", variants, f"{100 * loss:g}", draws]
        + [percent(several.power_of(n, draws, loss, margin, variants, max(runs // 10, 50))) for n in more]
        for margin in (0.02, 0.05)
        for variants in (1, 14)
        for loss in (0.0, margin / 2)
        for draws in (1, 4, 16)
    ]
    table(["margin", "variants", "true loss", "draws", *map(str, more)], rows)


def draws_of_the_base(runs: int) -> None:
    print(f"\nMore draws of the base: equal models called non-inferior and certified in % of {2 * runs}; 3 draws;")
    print("margin 2 points; a loss of 4 called worse; the MDE of an equal model, in points: how often it is found")
    rows, found = [], {}
    for n in (200, 500, 1000):
        for base in (3, 8, 16, 64):
            found = one.power_of_unequal(n, 3, base, 2 * runs)
            loss, share = one.found_at_detectable(n, 3, 1, 2 * runs, base_draws=base)
            rows.append([n, base, *map(percent, found.values()), f"{percent(loss)}: {percent(share)}"])
    table(["problems", "draws of the base", *found, "MDE"], rows)

    print("\nThe same for 14 variants of one base, non-inferior after Holm's correction")
    few = max(runs // 10, 50)
    rows = [
        [n, *(percent(several.power_of(n, 3, 0.0, 0.02, 14, few, base_draws=base)) for base in (3, 8, 16, 64))]
        for n in (500, 1000)
    ]
    table(["problems", "3", "8", "16", "64"], rows)

    print("\nThe same if the variant repeats the base's first draws, 500 problems, one variant, no correction")
    rows = [
        percent(one.claimed(coupled(np.random.default_rng(0), 500, 3, 0.0, runs, base, alike=0.0), 0.02, base))
        for base in (3, 8, 16, 64)
    ]
    table(["3", "8", "16", "64"], [rows])

    print(f"\nWrong words in % of {20 * runs}, 16 draws of the base: true loss at the margin, 2 points; equal models")
    rows = []
    for shape in UNEQUAL:
        for n, draws in ((30, 3), (100, 3), (500, 3), (500, 1)):
            parts = [one.errors_of_unequal(shape, n, draws, 16, runs, seed=seed) for seed in range(20)]
            found = {word: sum(part[word] for part in parts) / len(parts) for word in parts[0]}
            rows.append([shape, n, draws, *map(percent, found.values())])
    table(["shape", "problems", "draws", *found], rows)


def coupled_draws(runs: int) -> None:
    print(f"\nMatched draws with a share of their noise in common, 16 draws of the base, in % of {2 * runs}:")
    print("equal models called non-inferior with all draws alike, with the weight of matched draws, and certified")
    rows = []
    for n, draws, base, margin in ((500, 3, 16, 0.02), (200, 1, 8, 0.05)):
        for share in (0.0, 0.4, 0.7, 0.93):
            rows.append(
                [f"{n} x {draws}", share, *map(percent, one.by_weights(n, draws, base, [share], 2 * runs, margin))]
            )
    table(["problems", "share", "alike", "weighted", "certified"], rows)

    print(f"\nThe same where the margin is lost by problems that break, in % of {4 * runs}")
    rows = []
    for name, shares, chances, *breaking in COUPLED:
        for n, draws, base, margin in ((500, 3, 16, 0.02), (200, 1, 8, 0.05)):
            found = one.by_weights(n, draws, base, shares, 4 * runs, margin, margin, chances, *breaking)
            rows.append([name, f"{n} x {draws}", *map(percent, found)])
    table(["shares", "problems", "alike", "weighted", "certified"], rows)


def tasks(_: int) -> None:
    print("\nLower bound of equal models in points, mean over tasks")
    rows, bounds = [], {}
    for sizes in ((30, 30), (198, 500), (30, 500), (30, 40, 198, 500), (198,) * 4):
        for draws in (0, 16, 4, 1):
            bounds = one.bounds_of_several_tasks(sizes, draws, 1 if draws == 0 else 20)
            rows.append(
                [", ".join(map(str, sizes)), draws or "no draw differs", *(f"{100 * b:.1f}" for b in bounds.values())]
            )
    table(["problems", "draws", *bounds], rows)


def detectable(runs: int) -> None:
    print(f"\nThe MDE printed for an equal model, in points: how often such a loss is called worse, in % of {3 * runs}")
    rows = []
    for n, draws in ((30, 3), (30, 16), (30, 64), (60, 4), (100, 1), (100, 4), (200, 1), (200, 4), (500, 16)):
        row: list[Any] = [n, draws]
        for variants in (1, 14):
            for base in (None, 0.9):
                loss, share = one.found_at_detectable(n, draws, variants, 3 * runs, base)
                row.append(f"{percent(loss)}: {percent(share)}")
        rows.append(row)
    table(["problems", "draws", "1 variant", "1, base solves 90 %", "14", "14, base solves 90 %"], rows)


def groups(runs: int) -> None:
    print("\nProblems that belong together: wrong claims in %, by problem and (by group); margin 5 points")
    rows, errors = [], {}
    for n in (100, 500):
        for size in (1, 2, 4, 10):
            errors = one.cluster_errors(n, size, runs)
            rows.append([n, size, *(f"{percent(before)} ({percent(now)})" for before, now in errors.values())])
    table(["problems", "in each group", *errors], rows)


def scaling(runs: int) -> None:
    print("\nScaling in %: kept, lost, and interval that misses, by the share truly kept (0.9: both words are wrong)")
    rows = []
    for scenario in SCENARIOS:
        for draws in (1, 4, 16):
            for n in (5, 15, 30, 100, 198, 500):
                at = {kept: one.scaling_words(scenario, n, draws, kept, runs) for kept in (0.9, 1.0, 0.5)}
                flat = one.scaling_words(scenario, n, draws, 1.0, runs, rising=False)
                cells = [at[0.9]["kept"], at[0.9]["lost"], max(found["missed"] for found in at.values()),
                         flat["kept"] + flat["lost"], at[1.0]["kept"], at[0.5]["lost"]]  # fmt: skip
                rows.append([scenario, draws, n, *map(percent, cells)])
    table(["scenario", "draws", "problems", "kept at 0.9", "lost at 0.9", "missed", "any word, base flat",
           "kept at 1", "lost at 0.5"], rows)  # fmt: skip


TABLES: Mapping[str, Callable[[int], None]] = {
    function.__name__: function
    for function in (
        directions, chosen, stopping, recipes, pages, limits,
        margins, draws_of_the_base, coupled_draws, tasks, detectable, groups, scaling,
    )
}  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table, and keep it in PRINTED."""
    cells = [[str(cell) for cell in row] for row in rows]
    PRINTED.append({"head": list(head), "rows": cells})
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in cells:
        print("| " + " | ".join(row) + " |", flush=True)


def write(tables: Sequence[Mapping[str, Any]], path: Path = ROWS) -> None:
    """Replace the tables of the functions that have printed again."""
    again = {table["by"] for table in tables}
    kept = [*(table for table in read_lines(path) if table["by"] not in again), *tables]
    path.write_text("".join(json.dumps(table) + "\n" for table in sorted(kept, key=lambda of: of["by"])), "utf-8")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def words_of(store: str, base: str = "tiny") -> list[tuple[str, str, str]]:
    """Return (variant, verdict, verdict by the sign flips that decided earlier) of every run of a store."""
    entries = compare(store, base).to_json()["others"]
    flips = paired.holm([entry["primary"]["p_flip"] for entry in entries])
    found = []
    for entry, p in zip(entries, flips, strict=True):
        gain = entry["primary"]["difference"] > 0
        sides = (p / 2, 1.0) if gain else (1.0, p / 2)
        found.append((entry["model"], entry["verdict"], word_of(*sides, entry["primary"]["p_margin_adjusted"])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="made-up comparisons for each number")
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--demo", help="the store of `prunus demo`")
    given = parser.parse_args()
    for name in given.only:
        PRINTED.clear()
        TABLES[name](given.runs)
        if given.write:
            write([{"by": name, "runs": given.runs, **printed} for printed in PRINTED])
    if given.demo:
        table(["demo", "verdict", "by sign flips"], words_of(given.demo))


if __name__ == "__main__":
    main()
