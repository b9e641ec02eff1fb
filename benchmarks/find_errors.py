"""How often `prunus find` certifies too much, how far it gets, and what it costs: docs/measurements/verdicts.md.

    python benchmarks/find_errors.py [--ladders 2000]       ten minutes of one core
    python benchmarks/find_errors.py --repeated             repeated searches alone, a minute

Ladders of 13 rungs are simulated with a known truth. The dense model solves a problem with a probability drawn from
Beta(0.4, 0.4) and ends by itself with one from Beta(4.5, 0.5). A rung repeats the dense model's draws, but for a share
that is drawn anew (so that 4 % of the draws change), and loses some: of every problem alike, or, where problems break,
all draws of a few problems. Losses are given as multiples of the margins.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from prunus.results.ladder import ENDPOINTS, Rule, next_look
from prunus.statistics import anytime, betting

Floats = NDArray[np.float64]
Evidence = Callable[[Floats, float], tuple[Floats, Floats]]
RUNGS = 13  # 10 % to 70 % in steps of 5
SOLVES, ENDS = (0.4, 0.4), (4.5, 0.5)  # Beta distributions over problems of what the dense model does
ANEW = 0.04 / (2 * 0.4 * 0.4 / (0.8 * 1.8))  # share of draws drawn anew, with which 4 % of answers change
CHUNK = 250  # ladders simulated at once
LOOK = 64  # problems between two looks at whether those left can be enough


@dataclass(frozen=True)
class Shape:
    """True losses of the rungs, in margins; breaks: they are problems that break completely, of a sure dense model."""

    accuracy: Sequence[float] = (0,) * RUNGS
    ends: Sequence[float] = (0,) * RUNGS
    breaks: bool = False

    @property
    def sound(self) -> int:
        """The number of rungs before the first whose loss is a margin or more."""
        worst = [max(pair) for pair in zip(self.accuracy, self.ends, strict=True)]
        return next((rung for rung, loss in enumerate(worst) if loss >= 1 - 1e-9), RUNGS)


def _then(*parts: tuple[int, float]) -> list[float]:
    return [loss for times, loss in parts for _ in range(times)]


SHAPES = {
    "all harmless": Shape(),
    "a quarter of the margin": Shape(accuracy=[0.25] * RUNGS),
    "slow decline": Shape(accuracy=[rung / 6 for rung in range(RUNGS)]),
    "cliff": Shape(accuracy=_then((6, 0), (7, 6)), ends=_then((6, 0), (7, 4))),
    "bump": Shape(accuracy=_then((3, 0), (1, 1), (9, 0))),
    "at the margin": Shape(accuracy=[1] * RUNGS),
    "stops less": Shape(ends=_then((4, 0), (9, 1))),
    "a few problems break": Shape(accuracy=[1] * RUNGS, breaks=True),
}
SETS = (  # problems, draws, rule
    (60, 1, Rule(0.1, 0.1)),
    (420, 1, Rule(0.05, 0.05)),
    (420, 4, Rule(0.05, 0.05)),
    (1319, 1, Rule(0.02, 0.05)),
    (1319, 4, Rule(0.02, 0.05)),
)


def both_endpoints(
    rng: np.random.Generator, shape: Shape, n: int, draws: int, rule: Rule, ladders: int
) -> Iterator[list[Floats]]:
    """For each rung, the (n, ladders) differences of accuracy and of ending by itself; the dense draws are shared."""
    sides: list[tuple[Floats, float, NDArray[np.bool_]]] = []
    for beta, sure in ((SOLVES, shape.breaks), (ENDS, False)):
        chance = np.full((n, ladders), 0.995) if sure else rng.beta(*beta, (n, ladders))
        mean = 0.995 if sure else beta[0] / sum(beta)
        sides.append((chance, mean, rng.random((draws, n, ladders), dtype=np.float32) < chance))
    for losses in zip(shape.accuracy, shape.ends, strict=True):
        yield [
            _changed(rng, *side, loss * margin.size, shape.breaks)
            for side, loss, margin in zip(sides, losses, rule.margins.values(), strict=True)
        ]


def _changed(
    rng: np.random.Generator, chance: Floats, mean: float, dense: NDArray[np.bool_], loss: float, breaks: bool
) -> Floats:
    if breaks:
        now = dense & (rng.random(chance.shape) >= loss / mean)
    else:
        anew = rng.random(dense.shape, dtype=np.float32)
        now = np.where(anew < ANEW, anew / np.float32(ANEW) < chance, dense)
        if loss:
            now = now & (rng.random(dense.shape, dtype=np.float32) >= loss / mean)
    return now.mean(axis=0) - dense.mean(axis=0)


@dataclass(frozen=True)
class Walks:
    """Over ladders: the share with a false certificate, mean rungs certified, problems used as share of all rungs'."""

    false: float
    certified: float
    used: float


def walk(
    shape: Shape,
    n: int,
    draws: int,
    rule: Rule,
    ladders: int,
    seed: int = 0,
    evidence: Evidence = anytime.log_e_values,
) -> Walks:
    """Simulated walks that look after every problem and end at the first rung that is not certified."""
    rng = np.random.default_rng(seed)
    certified, used = [], []
    for start in range(0, ladders, CHUNK):
        size = min(CHUNK, ladders - start)
        walking, reached, problems = np.ones(size, bool), np.zeros(size, int), np.zeros(size, int)
        for found in both_endpoints(rng, shape, n, draws, rule, size):
            if not walking.any():
                break
            logs = [
                evidence(values[:, walking], m.size) for values, m in zip(found, rule.margins.values(), strict=True)
            ]
            good = np.max([_first(certify, rule.level) for certify, _ in logs], axis=0)
            bad = np.min([_first(refuse, rule.level) for _, refuse in logs], axis=0)
            passed = (good <= n) & (good <= bad)
            took = np.minimum(np.minimum(good, bad), n)
            for one in np.flatnonzero(~passed):
                took[one] = min(took[one], hopeless([values[:, walking][:, one] for values in found], rule))
            problems[walking] += took
            reached[walking] += passed
            walking[walking] = passed
        certified.append(reached)
        used.append(problems)
    reached = np.concatenate(certified)
    total = np.concatenate(used).mean() / (RUNGS * n)
    return Walks(float(np.mean(reached > shape.sound)), float(reached.mean()), float(total))


def repeated(
    runs: int, most: int = 20, name: str = "a few problems break", n: int = 420
) -> Iterator[tuple[str, int, float, float]]:
    """(what is repeated, how many searches, share of runs in which one of them certifies falsely, sum of their alphas).

    n problems, one draw, margins of 5 points. Every rung loses the margin, so every certificate is false.
    """
    rule, rng = Rule(0.05, 0.05), np.random.default_rng(0)

    def bound(searches: int) -> float:
        return min(1.0, searches * rule.alpha)

    kinds = ("the same rows, other seeds", "new rows for each seed")
    same = next(both_endpoints(rng, SHAPES[name], n, 1, rule, runs))
    for kind in kinds:
        false = np.zeros(runs, bool)
        for search in range(1, most + 1):
            found = same if kind == kinds[0] else next(both_endpoints(rng, SHAPES[name], n, 1, rule, runs))
            order = rng.permutation(n)
            false |= certified([values[order] for values in found], rule)
            if search in (1, 5, 10, 20):
                yield kind, search, float(false.mean()), bound(search)
    rungs = [certified(found, rule) for found in both_endpoints(rng, SHAPES[name], n, 1, rule, runs)]
    yield "13 rungs, a ladder each", RUNGS, float(np.any(rungs, axis=0).mean()), bound(RUNGS)
    yield "13 rungs, one ladder", 1, float(rungs[0].mean()), bound(1)  # it ends at the first that is not certified


def certified(found: Sequence[Floats], rule: Rule) -> NDArray[np.bool_]:
    """(runs,) whether a search certifies a rung with these differences, (n, runs) of each endpoint."""
    logs = [
        anytime.log_e_values(values, margin.size) for values, margin in zip(found, rule.margins.values(), strict=True)
    ]
    good = np.max([_first(certify, rule.level) for certify, _ in logs], axis=0)
    bad = np.min([_first(refuse, rule.level) for _, refuse in logs], axis=0)
    return (good <= len(found[0])) & (good <= bad)


def hopeless(found: Sequence[Floats], rule: Rule) -> int:
    """The number of problems at which a search gives up this rung, or all; it looks after every 64."""
    n = len(found[0])
    for looked in range(LOOK, n, LOOK):
        part = {end: values[:looked] for end, values in zip(ENDPOINTS, found, strict=True)}
        if next_look(part, rule, LOOK, n) == looked:
            return looked
    return n


def _first(logs: Floats, level: float) -> NDArray[np.int_]:
    reached = logs >= level
    return np.where(reached.any(axis=0), reached.argmax(axis=0) + 1, 10**9)


def every_rung(shape: Shape, n: int, draws: int, rule: Rule, ladders: int, seed: int = 0) -> Walks:
    """The usual way: all rungs in full, each tested once at alpha / rungs; certified are those before a failure."""
    rng, level = np.random.default_rng(seed), rule.alpha / RUNGS
    reached, false = np.zeros(ladders, int), np.zeros(ladders, bool)
    walking = np.ones(ladders, bool)
    for number, found in enumerate(both_endpoints(rng, shape, n, draws, rule, ladders)):
        p = np.max([betting.p_value([v], m.size) for v, m in zip(found, rule.margins.values(), strict=True)], axis=0)
        walking &= p <= level
        reached += walking
        worst = max(shape.accuracy[number], shape.ends[number])
        false |= (p <= level) & (worst >= 1 - 1e-9)
    return Walks(float(false.mean()), float(reached.mean()), 1.0)


def normal_looks(differences: Floats, margin: float) -> tuple[Floats, Floats]:
    """A bound that does not hold when one looks often, to show that the simulation finds it out: mean and its error."""
    t = np.arange(1, len(differences) + 1)[:, None]
    mean = np.cumsum(differences, axis=0) / t
    error = np.sqrt(np.maximum(np.cumsum(differences**2, axis=0) / t - mean**2, 1e-9) / t)
    late = t >= 20
    return tuple(np.where(late & (sign * (mean + margin) > 1.645 * error), 9.0, 0.0) for sign in (1, -1))  # pyright: ignore


def rules(margin: float, n: int) -> dict[str, Callable[[Floats], Floats]]:
    """Ways to bet on differences, towards certification; in all but the first a bet loses 3/4 of the wealth at most."""
    level, most = log(1 / betting.ALPHA), betting.LARGEST_STAKE / ((1 - margin) / 2)

    def spread(d: Floats) -> Floats:
        return betting.variance_before((d + 1) / 2)

    def all_times(d: Floats) -> Floats:
        t = np.arange(1, len(d) + 1)[:, None]
        return np.sqrt(2 * level / (spread(d) * t * np.log(1 + t)))

    def small(d: Floats) -> Floats:
        return margin / 2 / (spread(d) + margin**2 / 4)

    return {
        "of a harmless model (used)": lambda d: anytime.bets(d, margin),
        "of a harmless model, if bets were small": lambda d: np.minimum(small(d), most),
        "for n problems": lambda d: np.minimum(np.sqrt(2 * level / (spread(d) * n)), most),
        "for all times": lambda d: np.minimum(all_times(d), most),
    }


DATA = {
    "no draw differs": lambda rng, n, runs: np.zeros((n, 1)),
    "4 % of problems change": lambda rng, n, runs: rng.choice([-1.0, 0.0, 1.0], (n, runs), p=[0.02, 0.96, 0.02]),
    "area: 10 % change by 15 points": lambda rng, n, runs: (
        rng.choice([-1.0, 0.0, 1.0], (n, runs), p=[0.05, 0.9, 0.05]) * rng.uniform(0, 0.3, (n, runs))
    ),
    "all draws anew, 4 draws": lambda rng, n, runs: _anew(rng, n, runs, 4),
    "all draws anew, 16 draws": lambda rng, n, runs: _anew(rng, n, runs, 16),
    "a quarter of the margin is lost": lambda rng, n, runs: -(rng.random((n, runs)) < 0.005).astype(float),
}


def _anew(rng: np.random.Generator, n: int, runs: int, draws: int) -> Floats:
    chance = rng.beta(*SOLVES, (n, runs))
    return (rng.binomial(draws, chance) - rng.binomial(draws, chance)) / draws


def until_certified(name: str, rule: str, n: int, margin: float, runs: int, seed: int = 0) -> tuple[float, float]:
    """(share certified, mean problems used) of one rung at one endpoint, with one way to bet."""
    d = DATA[name](np.random.default_rng(seed), n, runs)
    times = _first(anytime.largest_wealth(d, rules(margin, n)[rule](d), -margin), log(1 / betting.ALPHA))
    return float(np.mean(times <= n)), float(np.minimum(times, n).mean())


def several_tasks(sizes: Sequence[int], draws: int, runs: int, margin: float, seed: int = 0) -> tuple[float, float]:
    """Mean final lower bounds of a harmless rung: over rounds, and of each task at alpha / tasks.

    draws 0: no draw differs.
    """
    rng = np.random.default_rng(seed)
    tasks = [_anew(rng, n, runs, draws) if draws else np.zeros((n, 1)) for n in sizes]
    T = min(sizes)
    starts = [np.arange(T) * n // T for n in sizes]
    together = np.mean(
        [
            np.add.reduceat(task, start, axis=0) / np.diff(np.append(start, len(task)))[:, None]
            for task, start in zip(tasks, starts, strict=True)
        ],
        axis=0,
    )
    alone = [np.mean(_last_bounds(task, margin, betting.ALPHA / len(sizes))) for task in tasks]
    return float(np.mean(_last_bounds(together, margin, betting.ALPHA))), float(np.mean(alone))


def _last_bounds(values: Floats, margin: float, alpha: float) -> list[float]:
    return [float(anytime.lower_path(column, anytime.bets(column, margin), alpha, -margin)[-1]) for column in values.T]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ladders", type=int, default=2000)
    parser.add_argument("--repeated", action="store_true", help="print the table of repeated searches alone")
    asked = parser.parse_args()
    ladders = asked.ladders
    if asked.repeated:
        print_repeated(ladders)
        return
    heads = ("shape", "problems", "draws", "margins", "false, %", "certified", "of", "problems used, %")
    line(*heads, "in full: false, %", "certified")
    line("---", *["---:"] * 9)
    for name, shape in SHAPES.items():
        for n, draws, rule in SETS:
            ours = walk(shape, n, draws, rule, ladders)
            usual = every_rung(shape, n, draws, rule, max(1, ladders // 8))
            margins = ", ".join(f"{100 * margin.size:g}" for margin in rule.margins.values())
            numbers = (f"{100 * ours.false:.1f}", f"{ours.certified:.1f}", shape.sound, f"{100 * ours.used:.0f}")
            line(name, n, draws, margins, *numbers, f"{100 * usual.false:.1f}", f"{usual.certified:.1f}")
    print()
    line("bets", *DATA)
    line("---", *["---:"] * len(DATA))
    for rule in rules(0.02, 1319):
        cells = [until_certified(name, rule, 1319, 0.02, max(1, ladders // 2)) for name in DATA]
        line(rule, *(f"{100 * share:.0f} %, {used:.0f}" for share, used in cells))
    print()
    line("problems", "draws", "rounds", "each at alpha / tasks")
    line("---", "---", "---:", "---:")
    for sizes in ((420, 420), (198, 500), (30, 500), (198, 198, 198, 198), (30, 40, 198, 500)):
        for draws in (0, 4, 1):
            bounds = several_tasks(sizes, draws, max(1, ladders // 20), 0.05)
            line(", ".join(map(str, sizes)), draws or "no draw differs", *(f"{100 * bound:.1f}" for bound in bounds))
    print()
    print_repeated(ladders)


def print_repeated(runs: int) -> None:
    """Print the table of repeated searches, for two shapes of loss."""
    shapes = ("at the margin", "a few problems break")
    line("searches", "number", *(f"{name}: false, %" for name in shapes), "sum of their alphas, %")
    line("---", *["---:"] * 4)
    for one, other in zip(*(repeated(runs, name=name) for name in shapes), strict=True):
        kind, number, rate, bound = one
        line(kind, number, f"{100 * rate:.1f}", f"{100 * other[2]:.1f}", f"{100 * bound:g}")


def line(*cells: object) -> None:
    """Print a line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
