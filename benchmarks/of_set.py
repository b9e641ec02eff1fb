"""Errors and power of what is said of one finite set: `python benchmarks/of_set.py`, a minute.

Samples without replacement of sets in which a share of the problems is gained and as many are lost, or more by the
margin. It prints how often a loss of the margin is ruled out of the set, and how often of all problems like it, in %:
with one draw at one budget exactly, by adding up the probabilities of all samples; *area*: by bets, of which half of
each difference is at one budget, with the standard error. docs/measurements/verdicts.md has the figures.
"""

import argparse
from collections.abc import Callable
from math import ceil

import numpy as np
from scipy.stats import hypergeom

from prunus.statistics import betting, exact, finite

ALPHA = betting.ALPHA
CASES = ((1319, 800, 0.02), (500, 300, 0.05))
SHARES = (0.01, 0.02, 0.04, 0.08)


def ruled_out(p_value: Callable[[int, int], float], lost: int, gained: int, size: int, n: int) -> float:
    """The probability of a sample that has a p-value of at most ALPHA."""
    total, most = 0.0, -1
    for here in range(min(gained, n) + 1):  # the more are gained, the more may be lost
        while most + 1 <= n - here and p_value(most + 1, here) <= ALPHA:
            most += 1
        total += hypergeom.pmf(here, size, gained, n) * hypergeom.cdf(
            min(most, n - here), size - gained, lost, n - here
        )
    return float(total)


def by_bets(sample: np.ndarray, size: int, margin: float) -> tuple[bool, bool]:
    """Whether bets rule the margin out of the set, and of all problems."""
    goal = np.log(1 / ALPHA)
    of_set = finite.wealth(sample, np.full(1, -margin), goal, size) >= goal
    usual = betting.reaches(sample[:, None], np.full((1, 1), -margin), np.full((1, 1), goal))
    return bool(of_set[0]), bool(usual[0, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of each area")
    runs = parser.parse_args().runs
    for size, n, margin in CASES:
        for share in SHARES:
            for loss in (0, ceil(margin * size - 1e-9)):
                gained = round(share * size)
                lost = gained + loss
                case = f"{n} of {size}, margin {100 * margin:g}, gained {100 * share:g} %, {loss} more lost:"
                tests = (
                    lambda lost, gained, n=n, size=size, margin=margin: finite.p_value(lost, gained, n, size, margin),
                    lambda lost, gained, n=n, margin=margin: float(exact.p_value(lost, gained, n, margin)[0]),
                )
                of_set, usual = (100 * ruled_out(test, lost, gained, size, n) for test in tests)
                print(f"{case} of the set {of_set:.1f}, of all {usual:.1f}", flush=True)
                halves = np.repeat([-0.5, 0.5, 0.0], [2 * lost, 2 * gained, size - 2 * lost - 2 * gained])
                generator = np.random.default_rng(1)
                found = [by_bets(generator.permutation(halves)[:n], size, margin) for _ in range(runs)]
                shares = np.mean(found, axis=0)
                error = 100 * np.sqrt(shares * (1 - shares) / runs)
                of_set, usual = (f"{100 * p:.1f} ± {e:.1f}" for p, e in zip(shares, error, strict=True))
                print(f"area, {case} of the set {of_set}, of all {usual}", flush=True)


if __name__ == "__main__":
    main()
