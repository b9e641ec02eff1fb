"""Error rates and power of the verdicts: the tables of docs/verdicts.md.

    python benchmarks/verdicts.py [--runs 2000]       about a minute on one core

Comparisons are simulated with a known truth, many at once as contrasts of one array. A scenario defines how a loss is
spread over problems; every problem and its answers are drawn from it independently. The tests run the same functions
with fewer repetitions.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.results import anytime, betting, metrics, paired, retention
from prunus.results.table import Table

Floats = NDArray[np.float64]
PROBLEMS, DRAWS = (2, 5, 15, 30, 100, 198, 500), (1, 4, 16, 64)
SCENARIOS = ("homogeneous", "few break", "near-deterministic")
BUDGETS = (512, 1024, 2048, 4096, 8192)


def differences(
    rng: np.random.Generator, scenario: str, problems: int, draws: int, loss: float, runs: int, columns: int = 1
) -> Floats:
    """Return (problems, runs * columns) differences of shares correct, with true mean -loss.

    homogeneous: every problem's loss is proportional to the base's accuracy on it. few break: some problems are never
    solved any more, the others do not change. The base's accuracy per problem is drawn from Beta(0.4, 0.4), so most are
    solved nearly always or nearly never. near-deterministic: as few break, with a base that solves 99.5 % of all draws.
    columns: number of consecutive comparisons that share the base's answers.
    """
    shape = (problems, runs, 1)
    base = np.full(shape, 0.995) if scenario == "near-deterministic" else rng.beta(0.4, 0.4, shape)
    share = loss / (0.995 if scenario == "near-deterministic" else 0.5)
    wide = (problems, runs, columns)
    kept = np.full(wide, 1 - share) if scenario == "homogeneous" else (rng.random(wide) >= share).astype(float)
    found = rng.binomial(draws, base * kept) - rng.binomial(draws, base)
    return found.reshape(problems, -1) / draws


def false_claims(runs: int, margin: float = 0.02, seed: int = 0) -> Iterator[tuple[str, int, int, float]]:
    """Return (scenario, problems, draws, share of runs called non-inferior), with the true loss at the margin."""
    rng = np.random.default_rng(seed)
    for scenario in SCENARIOS:
        for problems in PROBLEMS:
            for draws in DRAWS:
                p_C = betting.p_value([differences(rng, scenario, problems, draws, margin, runs)], margin)
                yield scenario, problems, draws, float(np.mean(p_C <= betting.ALPHA))


def bootstrap_claims(problems: int, draws: int, scenario: str, runs: int, margin: float = 0.02, seed: int = 0) -> float:
    """Return the same share by the BCa bound with two pseudo-problems, the earlier decision rule."""
    strata = [differences(np.random.default_rng(seed), scenario, problems, draws, margin, runs)]
    extended = paired.with_pseudo_problems(strata)
    low, _ = paired.bca_interval(extended, paired.bootstrap(extended, 1000), 0.9)
    return float(np.mean(low > -margin))


def power(problems: int, draws: int, loss: float, margin: float, variants: int, runs: int, seed: int = 0) -> float:
    """Return the share of variants called non-inferior if all of them have this true loss, spread homogeneously."""
    values = differences(np.random.default_rng(seed), "homogeneous", problems, draws, loss, runs, variants)
    p = betting.p_value([values], margin).reshape(runs, variants)
    return float(np.mean([paired.holm(row) <= betting.ALPHA for row in p]))


def found_at_detectable(
    problems: int, draws: int, variants: int, scenario: str, runs: int, seed: int = 0
) -> tuple[float, float]:
    """Return (loss, share found) of one variant whose loss is the mean minimum detectable effect printed for it.

    The other variants are assumed harmless, so that Holm requires p < .05 / variants.
    """
    rng, loss = np.random.default_rng(seed), 0.1
    for _ in range(12):
        values = differences(rng, scenario, problems, draws, loss, runs)
        printed = paired.minimum_detectable([values], np.full(values.shape[1], variants), draws)
        loss = min(0.3 * loss + 0.7 * float(printed.mean()), 0.5)
    p = paired.sign_flip_p([differences(rng, scenario, problems, draws, loss, runs)])
    return loss, float(np.mean(p < betting.ALPHA / variants))


def bounds_of_several_tasks(sizes: Sequence[int], draws: int, runs: int, seed: int = 0) -> dict[str, float]:
    """Return the mean lower bounds of equal models over tasks of these sizes, by three valid methods."""
    rng = np.random.default_rng(seed)
    strata = [differences(rng, "homogeneous", n, draws, 0.0, runs) if draws else np.zeros((n, 1)) for n in sizes]
    one_by_one = np.mean([betting.lower_bound([task], betting.ALPHA / len(sizes)) for task in strata])
    return {
        "each at alpha / tasks": float(one_by_one),
        "rounds": float(np.mean(betting.lower_bound([in_rounds(strata)]))),
        "shared out": float(np.mean(betting.lower_bound(strata))),
    }


def in_rounds(strata: Sequence[Floats]) -> Floats:
    """Return (T, C) means over tasks of T rounds, T the size of the smallest; larger tasks are spread over them."""
    T = min(map(len, strata))
    total = np.zeros((T, strata[0].shape[1]))
    for task in strata:
        starts = np.arange(T) * len(task) // T
        total += np.add.reduceat(task, starts, axis=0) / np.diff(np.append(starts, len(task)))[:, None]
    return total / len(strata)


def clustered(rng: np.random.Generator, problems: int, size: int, change: float, runs: int) -> tuple[Floats, Floats]:
    """Return differences of clusters of this size whose problems share one fate, by problem and by group.

    (problems, runs) and (problems / size, runs), one draw each. A negative change is the share of clusters that break;
    a positive one is the share that breaks and the share that is mended.
    """
    fate = rng.random((problems // size, runs))
    broken, mended = fate < abs(change), (change > 0) & (fate > 1 - change)
    each = np.repeat(mended.astype(float) - broken, size, axis=0)
    names = tuple(map(str, range(problems)))
    first_of = {name: names[place - place % size] for place, name in enumerate(names)}
    return each, Table(names, (), (), np.empty((problems, 0, 0)), first_of).by_group(each)


def cluster_errors(problems: int, size: int, runs: int, margin: float = 0.05, seed: int = 0) -> dict[str, list[float]]:
    """Return the shares of runs with each wrong claim, by problem and by group.

    non-inferior, certified (by `find`): with a true loss of the margin. different: models that are equal on average, of
    which a tenth of the problems differ.
    """
    rng = np.random.default_rng(seed)
    harmed, equal = clustered(rng, problems, size, -margin, runs), clustered(rng, problems, size, 0.05, runs)
    level = np.log(1 / betting.ALPHA)
    return {
        "non-inferior": [float(np.mean(betting.p_value([d], margin) <= betting.ALPHA)) for d in harmed],
        "different": [float(np.mean(paired.sign_flip_p([d], 2000) < betting.ALPHA)) for d in equal],
        "certified": [
            float(np.mean(anytime.evidence(rng.permuted(d, axis=0), margin)[0][-1] >= level)) for d in harmed
        ],
    }


def slopes(
    rng: np.random.Generator, scenario: str, problems: int, draws: int, kept: float, runs: int, rising: bool = True
) -> tuple[list[Floats], list[Floats]]:
    """Return slopes of base and other, (problems, runs) each; other truly keeps this share of the base's mean slope.

    A problem is solved from one of six budgets on, of which the last is never reached; not rising: always or never.
    homogeneous: other gains less from every budget. few break: some problems gain nothing. near-deterministic: as few
    break, and all draws of a problem agree.
    """
    budgets_B11 = np.arange(len(BUDGETS))[:, None, None]
    shape = (problems, runs)
    first = rng.integers(0, 6, shape) if rising else rng.integers(0, 2, shape) * 9
    most, least = (1.0, 0.0) if scenario == "near-deterministic" else (0.9, 0.02)
    base = (budgets_B11 >= first) * most + least
    gain = np.full(shape, kept) if scenario == "homogeneous" else (rng.random(shape) < kept).astype(float)
    other = base[0] + (base - base[0]) * gain
    weights = metrics.slope_weights(BUDGETS)
    ours, theirs = (np.tensordot(weights, rng.binomial(draws, chance) / draws, 1) for chance in (base, other))
    return [ours], [theirs]


def scaling_words(
    scenario: str, problems: int, draws: int, kept: float, runs: int, rising: bool = True, seed: int = 0
) -> dict[str, float]:
    """Return the shares of runs called kept, called lost, given an interval, and given one that misses the truth."""
    base, other = slopes(np.random.default_rng(seed), scenario, problems, draws, kept, runs, rising)
    reach = float(metrics.slope_weights(BUDGETS).clip(0).sum())
    share, low, high = retention.retention(base, other)
    given = np.isfinite(share)
    return {
        "kept": float(np.mean(retention.p_kept(base, other, reach) <= betting.ALPHA)),
        "lost": float(np.mean(retention.p_lost(base, other) <= betting.ALPHA)),
        "given": float(np.mean(given)),
        "missed": float(np.mean(given & ~((low <= kept) & (kept <= high)))),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="made-up comparisons for each number")
    runs = parser.parse_args().runs
    sizes = [str(n) for n in PROBLEMS]

    print(f"False non-inferior in %, true loss at the margin of 2 points, {runs} runs; behind it the BCa bound's")
    found = {key: share for *key_, share in false_claims(runs) for key in [tuple(key_)]}
    rows = []
    for scenario in SCENARIOS:
        for draws in DRAWS:
            before = [percent(bootstrap_claims(n, draws, scenario, min(runs, 500))) for n in PROBLEMS]
            now = [percent(found[scenario, n, draws]) for n in PROBLEMS]
            rows.append([scenario, draws, *(f"{new} ({old})" for new, old in zip(now, before, strict=True))])
    table(["scenario", "draws", *sizes], rows)

    print("\nLower bound in points where no draw differs")
    cells = [f"{100 * betting.lower_bound([np.zeros((n, 1))])[0]:.1f}" for n in (*PROBLEMS, 1319)]
    table([*sizes, "1319"], [cells])

    print("\nCalled non-inferior in %, equal models and a homogeneous loss of half the margin")
    more = (100, 198, 500, 1319, 3000)
    rows = [
        [f"{100 * margin:g}", variants, f"{100 * loss:g}", draws]
        + [percent(power(n, draws, loss, margin, variants, max(runs // 10, 50))) for n in more]
        for margin in (0.02, 0.05)
        for variants in (1, 14)
        for loss in (0.0, margin / 2)
        for draws in (1, 4, 16)
    ]
    table(["margin", "variants", "true loss", "draws", *map(str, more)], rows)

    print("\nLower bound of equal models in points, mean over tasks")
    rows = []
    for tasks in ((30, 30), (198, 500), (30, 500), (30, 40, 198, 500), (198,) * 4):
        for draws in (0, 16, 4, 1):
            bounds = bounds_of_several_tasks(tasks, draws, 1 if draws == 0 else 20)
            rows.append(
                [", ".join(map(str, tasks)), draws or "no draw differs", *(f"{100 * b:.1f}" for b in bounds.values())]
            )
    table(["problems", "draws", *bounds], rows)

    print("\nA loss as large as the MDE printed for it: points, and % found")
    rows = []
    for n, draws in ((15, 16), (30, 1), (30, 4), (30, 16), (100, 1), (100, 4), (198, 4)):
        row: list[Any] = [n, draws]
        for variants in (1, 14):
            for scenario in SCENARIOS[:2]:
                loss, share = found_at_detectable(n, draws, variants, scenario, min(runs, 1000))
                row.append(f"{percent(loss)}: {percent(share)}")
        rows.append(row)
    table(["problems", "draws", "1, homogeneous", "1, few break", "14, homogeneous", "14, few break"], rows)

    print("\nProblems that belong together: wrong claims in %, by problem and (by group); margin 5 points")
    rows = []
    for n in (100, 500):
        for size in (1, 2, 4, 10):
            errors = cluster_errors(n, size, runs)
            rows.append([n, size, *(f"{percent(before)} ({percent(now)})" for before, now in errors.values())])
    table(["problems", "in each group", *errors], rows)

    print("\nScaling in %: kept, lost, and interval that misses, by the share truly kept (0.9: both words are wrong)")
    rows = []
    for scenario in SCENARIOS:
        for draws in (1, 4, 16):
            for n in (5, 15, 30, 100, 198, 500):
                at = {kept: scaling_words(scenario, n, draws, kept, runs) for kept in (0.9, 1.0, 0.5)}
                flat = scaling_words(scenario, n, draws, 1.0, runs, rising=False)
                cells = [at[0.9]["kept"], at[0.9]["lost"], max(one["missed"] for one in at.values()),
                         flat["kept"] + flat["lost"], at[1.0]["kept"], at[0.5]["lost"]]  # fmt: skip
                rows.append([scenario, draws, n, *map(percent, cells)])
    table(["scenario", "draws", "problems", "kept at 0.9", "lost at 0.9", "missed", "any word, base flat",
           "kept at 1", "lost at 0.5"], rows)  # fmt: skip


if __name__ == "__main__":
    main()
