"""The wealth of bets on the rungs of a ladder, by loops."""

from math import log1p

import numpy as np


def loop_bets(values, margin, above=False):
    """The bet on each difference from those before it, one by one."""
    found, seen = [], []
    for d in values:
        found.append(bet_above(seen, margin) if above else best_bet(seen, margin))
        seen.append(d)
    return found


def best_bet(seen, margin):
    """By bisection of its derivative: the largest mean logarithm if 1 and -1 have half of this chance each."""
    chance = (0.04 * 10 + sum(d * d for d in seen)) / (10 + len(seen))
    outcomes = ((1, chance / 2), (0, 1 - chance), (-1, chance / 2))
    low, high = 0.0, 2 / (1 - margin)
    for _ in range(60):
        bet = (low + high) / 2
        slope = sum(p * (d + margin) / 2 / (1 + bet * (d + margin) / 2) for d, p in outcomes)
        low, high = (bet, high) if slope > 0 else (low, bet)
    return low


def bet_above(seen, margin):
    """The bet that the mean is above the margin; at most 3/4 of the wealth is lost."""
    weight = 0.25 + len(seen)
    squares, total = 0.0625, 0.125
    for t, past in enumerate((d + 1) / 2 for d in seen):
        total += past
        squares += (past - total / (1.25 + t)) ** 2
    gain = max(margin / 2, total / weight - (1 + margin) / 2)
    return min(gain / (squares / weight + gain**2), 0.75 / ((1 + margin) / 2))


def loop_wealth(values, bets, null):
    """Logarithm of the wealth after each difference, betting that the mean is above `null`; at most 99 % is lost."""
    m = (1 + null) / 2
    found = [0.0]
    for d, bet in zip(values, bets, strict=True):
        found.append(found[-1] + log1p(min(bet, 0.99 / m) * ((d + 1) / 2 - m)))
    return found[1:]


def some(seed, n, mean, spread=0.3):
    return np.random.default_rng(seed).normal(mean, spread, n).clip(-1, 1)
