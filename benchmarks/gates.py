"""How often gates pass a model that lost the margin, and alarm where nothing changed: docs/measurements/gates.md.

    python benchmarks/gates.py [--write]   # ten minutes of one core; --write: the rows, the page's tables and its chart

Of the problems of a set, with one answer each, some are lost and some gained. A rule says pass, fail or neither from
their numbers, so its shares are sums over all outcomes (binomial probabilities), without sampling. Only bets, which
also depend on the order, and several looks are simulated; their standard errors are in benchmarks/gates.jsonl.

The rules follow what these files define, at these commits:

- NVIDIA/Model-Optimizer a2fbac7 (0.47), plugins/modelopt/skills/day0-release/scripts/gate_compare.py
- NVIDIA-NeMo/Evaluator ac66aff (0.4.0), src/nemo_evaluator/engine/gate.py, comparison.py, ../metrics/paired_tests.py
- yashchimata/statgate 79c4055, src/statgate/verdict.py, core/bootstrap.py, core/sequential.py
- NVIDIA/TensorRT-LLM 00c1146, tests/integration/defs/accuracy/accuracy_core.py
- EleutherAI/lm-evaluation-harness 1c62da1, scripts/model_comparator.py
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from drawn import figure
from numpy.typing import NDArray
from pages import DOCS, write

from prunus.reporting.render.chart import Axis, Line, Point, linear_axis
from prunus.statistics import anytime, betting, exact, paired

Counts = NDArray[np.int_]
Words = NDArray[np.int_]
Row = Mapping[str, Any]
PASS, OPEN, FAIL = 1, 0, -1
MARGIN, CHURN, BASE = 0.02, 0.05, 0.8  # the loss to rule out, the share that changes either way, what the base solves
CASES = {"breaks": (MARGIN, 0.0), "shared": (CHURN + MARGIN, CHURN), "nothing": (CHURN, CHURN)}  # lost, gained
PROBLEMS, SETS, LOOKS = (50, 100, 198, 300, 500, 800, 1319), (1, 3, 6), (1, 3, 5)
OF_SETS, OF_LOOKS = 198, 500  # problems of each set, and at the last look
ROWS = Path(__file__).with_name("gates.jsonl")
RESAMPLES = 10_000  # of statgate, which clips a share of them
NEGLIGIBLE = 1e-12


def words(passed: NDArray[np.bool_], failed: NDArray[np.bool_]) -> Words:
    """Return PASS, FAIL or OPEN for each outcome; what fails does not pass."""
    return np.where(failed, FAIL, np.where(passed, PASS, OPEN))


def model_optimizer(lost: Counts, gained: Counts, n: int) -> Words:
    """Return its words: the mean may fall by the threshold, and rise by 5 points."""
    drop = (lost - gained) / n
    passed = drop <= MARGIN + 1e-9
    return words(passed, ~passed | (-drop > 0.05 + 1e-9))


def nemo_gate(lost: Counts, gained: Counts, n: int) -> Words:
    """Return its words: where the 95 % t interval of the loss lies."""
    loss = (lost - gained) / n
    variance = (lost + gained - n * loss**2) / (n - 1)
    half = scipy.stats.t.ppf(0.975, n - 1) * np.sqrt(np.maximum(variance, 0) / n)
    low, high = np.round(loss - half, 6), np.round(loss + half, 6)
    return words(high <= MARGIN, low > MARGIN)


def nemo_compare(lost: Counts, gained: Counts, n: int) -> Words:
    """Return its words: McNemar's one-sided test, an effect above the margin, and enough discordant pairs to pass."""
    discordant = lost + gained
    p = scipy.stats.binom.sf(lost - 1, discordant, 0.5)
    shown = p < 0.05
    enough = 2.8 / np.sqrt(np.maximum(discordant, 1)) <= 2 * MARGIN
    return words((discordant == 0) | (~shown & enough), shown & ((lost - gained) / n > MARGIN) & (discordant > 0))


def statgate(lost: Counts, gained: Counts, n: int) -> Words:
    """Return its words: where the 95 % BCa interval lies, with the distribution that endless resampling has.

    The words are taken to get worse the more are lost, which is wrong of a few outcomes that hardly ever happen.
    """
    passed = up_to(lost, gained, lambda a, b: _statgate(a, b, n) == PASS, n)
    return words(passed, ~up_to(lost, gained, lambda a, b: _statgate(a, b, n) != FAIL, n))


def up_to(lost: Counts, gained: Counts, holds: Callable[[int, int], bool], n: int) -> NDArray[np.bool_]:
    """Return where something holds of the numbers lost and gained that holds up to some number lost."""
    most = {}
    for number in np.unique(gained).tolist():
        low, high = -1, n - number + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle, number) else (low, middle)
        most[number] = low
    return lost <= np.vectorize(most.__getitem__)(gained)


def _statgate(lost: int, gained: int, n: int) -> int:
    seen, floor = gained - lost, -MARGIN * n
    if max(lost, gained, n - lost - gained) == n:  # no width
        return PASS if seen > floor + 1e-9 else FAIL if seen < floor - 1e-9 else OPEN
    size = scipy.fft.next_fast_len(2 * n + 1, real=True)
    steps = np.fft.rfft([lost / n, (n - lost - gained) / n, gained / n], size)
    chance = np.maximum(np.fft.irfft(steps**n, size)[: 2 * n + 1], 0.0)  # of sums from -n to n
    below = chance[: seen + n].sum()
    share = np.clip(below + chance[seen + n] / 2, 1 / (RESAMPLES + 1), RESAMPLES / (RESAMPLES + 1))
    z0, mean = scipy.special.ndtri(share), seen / n
    squares = lost + gained - n * mean**2
    cubes = lost * (-1 - mean) ** 3 + gained * (1 - mean) ** 3 - (n - lost - gained) * mean**3
    skew = cubes / (6 * squares**1.5)
    ends = []
    for z in scipy.special.ndtri([0.025, 0.975]):
        level = scipy.special.ndtr(z0 + (z0 + z) / (1 - skew * (z0 + z)))
        ends.append(int(np.searchsorted(np.cumsum(chance), level)) - n)
    return PASS if ends[0] > floor + 1e-9 else FAIL if ends[1] < floor - 1e-9 else OPEN


def tensorrt_llm(lost: Counts, gained: Counts, n: int) -> Words:
    """Return its words: an unpaired z test at 5 %, with a deviation of 50 points taken for granted."""
    passed = (gained - lost) / n >= scipy.special.ndtri(0.05) * sqrt(2 * 0.5**2 / n)
    return words(passed, ~passed)


def lm_eval(lost: Counts, gained: Counts, n: int) -> Words:
    """Return its words: an unpaired two-sided z test at 5 %; the base is taken to solve BASE of the set."""
    accuracy = np.clip(BASE + (gained - lost) / n, 0, 1)
    variance = (BASE * (1 - BASE) + accuracy * (1 - accuracy)) / (n - 1)
    passed = 2 * scipy.stats.norm.sf(np.abs(gained - lost) / n / np.sqrt(variance)) > 0.05
    return words(passed, ~passed)


def prunus(lost: Counts, gained: Counts, n: int) -> Words:
    """Return the words of `prunus compare` on one budget with one draw: non-inferior, else worse."""
    passed = up_to(lost, gained, lambda a, b: exact.p_value(a, b, n, MARGIN)[0] <= betting.ALPHA, n)
    lost, gained = np.broadcast_arrays(lost, gained)
    worse = paired.mcnemar_p(gained.ravel(), lost.ravel()).reshape(lost.shape) <= betting.ALPHA / 2
    return words(passed, ~passed & worse)


Rule = Callable[[Counts, Counts, int], Words]
GATES: Mapping[str, Rule] = {
    "Model Optimizer": model_optimizer,
    "NeMo gate": nemo_gate,
    "NeMo compare": nemo_compare,
    "statgate": statgate,
    "TensorRT-LLM": tensorrt_llm,
    "lm-eval": lm_eval,
    "Prunus": prunus,
}
BETS = "Prunus, bets"  # for curves, several draws or sets, and any number of looks


def shares(rule: Rule, lost: float, gained: float, n: int) -> tuple[float, float]:
    """Return the probabilities of PASS and of FAIL, summed over all outcomes that are not negligible.

    lost, gained: shares of the problems in the population.
    """
    ends = [scipy.stats.binom(n, share).ppf([NEGLIGIBLE, 1 - NEGLIGIBLE]).astype(int) for share in (lost, gained)]
    lost_A1, gained_B = (np.arange(max(0, low), high + 1) for low, high in ends)
    lost_A1 = lost_A1[:, None]
    chance = scipy.stats.binom.pmf(lost_A1, n, lost)
    chance = chance * scipy.stats.binom.pmf(gained_B, n - lost_A1, gained / (1 - lost))
    found = rule(lost_A1, gained_B, n)
    return float(chance[found == PASS].sum()), float(chance[found == FAIL].sum())


def drawn(rng: np.random.Generator, case: str, problems: int, runs: int) -> NDArray[np.float64]:
    """Return differences, (problems, runs), of a case: -1 lost, 1 gained."""
    lost, gained = CASES[case]
    chance = rng.random((problems, runs))
    return np.where(chance < lost, -1.0, np.where(chance < lost + gained, 1.0, 0.0))


def by_bets(strata: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the shares of runs called non-inferior, else worse, in the mean over these sets."""
    rounds = betting.in_rounds(strata, 1)
    assert rounds is not None
    within = betting.reaches(rounds, np.full((1, 1), -MARGIN), np.full((1, 1), log(1 / betting.ALPHA)))[0]
    worse = betting.reaches(-rounds, np.zeros((1, 1)), np.full((1, 1), log(2 / betting.ALPHA)))[0]
    return float(within.mean()), float((worse & ~within).mean())


def passed_at_a_look(rule: Rule, differences: NDArray[np.float64], looks: int) -> float:
    """Return the share of runs that pass at one of these looks, at equal numbers of problems."""
    n, found = len(differences), np.zeros(differences.shape[1], dtype=bool)
    for look in range(1, looks + 1):
        size = n * look // looks
        counts = np.stack([(sign * differences[:size] > 0).sum(axis=0) for sign in (-1, 1)])
        unique, place = np.unique(counts, axis=1, return_inverse=True)
        found |= (rule(unique[0], unique[1], size) == PASS)[place.ravel()]
    return float(found.mean())


def measured(runs: int, problems: Sequence[int] = PROBLEMS) -> Iterator[dict[str, Any]]:
    """Yield the rows: shares of pass and of fail; error: the standard error of a pass that was simulated, else None."""
    for case, (lost, gained) in CASES.items():
        rng = np.random.default_rng(len(case))
        for n in problems:
            row = {"case": case, "problems": n, "sets": 1, "looks": 1}
            for name, rule in GATES.items():
                passed, failed = shares(rule, lost, gained, n)
                yield {"rule": name, **row, "pass": round(passed, 6), "fail": round(failed, 6), "error": None}
            yield row_of(BETS, case, n, 1, 1, *by_bets([drawn(rng, case, n, runs)]), runs)
        for sets in SETS[1:]:
            strata = [drawn(rng, case, OF_SETS, runs) for _ in range(sets)]
            yield row_of(BETS, case, OF_SETS, sets, 1, *by_bets(strata), runs)
    for case in ("breaks", "shared"):
        differences = drawn(np.random.default_rng(1), case, OF_LOOKS, runs)
        for looks in LOOKS[1:]:
            for name, rule in GATES.items():
                yield row_of(name, case, OF_LOOKS, 1, looks, passed_at_a_look(rule, differences, looks), None, runs)
        at_any = float((anytime.log_e_values(differences, MARGIN)[0][-1] >= log(1 / betting.ALPHA)).mean())
        yield row_of(BETS, case, OF_LOOKS, 1, OF_LOOKS, at_any, None, runs)
    lost, gained = CASES["nothing"]
    for name, rule in GATES.items():
        yield {"rule": name, "needed": needed(lambda n, rule=rule: shares(rule, lost, gained, n)[0])}
    rng = np.random.default_rng(2)
    yield {"rule": BETS, "needed": needed(lambda n: by_bets([drawn(rng, "nothing", n, 1000)])[0])}


def row_of(
    rule: str, case: str, n: int, sets: int, looks: int, passed: float, failed: float | None, runs: int
) -> dict[str, Any]:
    """Return a row that was simulated."""
    error = round(sqrt(passed * (1 - passed) / runs), 6)
    row = {"rule": rule, "case": case, "problems": n, "sets": sets, "looks": looks}
    return row | {"pass": passed, "fail": failed, "error": error}


def needed(passes: Callable[[int], float], most: int = 4000, step: int = 50) -> int | None:
    """Return how many problems are passed in 80 %, in steps; None: more than most. passes: the share of a number."""
    low, high = 0, most // step
    if passes(most) < 0.8:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle * step) >= 0.8 else (middle, high)
    return high * step


def over_sets(share: float, sets: int) -> float:
    """Return the probability that it happens in at least one of independent sets."""
    return 1 - (1 - share) ** sets


def read(path: Path = ROWS) -> list[Row]:
    """Return the rows."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def tables(rows: Sequence[Row]) -> str:
    """Return the tables of the page."""
    of = {(r["rule"], r["case"], r["problems"], r["sets"], r["looks"]): r for r in rows if "case" in r}
    enough = {row["rule"]: row["needed"] for row in rows if "needed" in row}
    lines = [
        "| rule | false passes: *breaks* | *shared* | *breaks*, any of 3, 6 sets | *breaks*, 3, 5 looks |"
        " false alarms | any of 3, 6 sets | needed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rule in (*GATES, BETS):
        breaks, shared, nothing = (of[rule, case, OF_LOOKS, 1, 1] for case in CASES)
        if rule == BETS:
            sets = [[of[rule, case, OF_SETS, k, 1][word] for k in SETS[1:]] for case, word in OF_SET]
            looks = [of[rule, "breaks", OF_LOOKS, 1, OF_LOOKS]["pass"]]
        else:
            sets = [[over_sets(of[rule, case, OF_SETS, 1, 1][word], k) for k in SETS[1:]] for case, word in OF_SET]
            looks = [of[rule, "breaks", OF_LOOKS, 1, k]["pass"] for k in LOOKS[1:]]
        cells = [[breaks["pass"]], [shared["pass"]], sets[0], looks, [nothing["fail"]], sets[1]]
        texts = [", ".join(f"{100 * value:.1f}" for value in cell) for cell in cells]
        if rule == "Prunus":  # which takes the bets there
            texts[2] = texts[3] = texts[5] = "bets"
        texts.append(f"{enough[rule]:,}" if enough[rule] else "> 4,000")
        lines.append(f"| {rule} | {' | '.join(texts)} |")
    return "\n".join(lines)


OF_SET = (("breaks", "pass"), ("nothing", "fail"))


def drawn_of(rows: Sequence[Row]) -> str:
    """Return the chart: false passes and passes of an unchanged model, against the number of problems."""
    x_axis = Axis("Problems", tuple((float(n), f"{n:,}") for n in (50, 200, 500, 800, 1319)), 50, 1319)
    charts = []
    for case, title in (("breaks", "Passes, %: the margin is lost"), ("nothing", "Passes, %: nothing changed")):
        lines = [Line("c0", [Point(50, 5), Point(1319, 5)], 0, "5 %")] if case == "breaks" else []
        for place, rule in enumerate(("Model Optimizer", "NeMo gate", "statgate", "TensorRT-LLM", "Prunus", BETS), 1):
            points = [
                Point(row["problems"], 100 * row["pass"])
                for row in rows
                if row.get("case") == case and (row["rule"], row["sets"], row["looks"]) == (rule, 1, 1)
            ]
            lines.append(Line(f"c{place}", points, place, rule))
        charts.append((lines, x_axis, linear_axis(0, 100, title)))
    return figure(charts, "How often gates pass a model that lost the margin, and one of which nothing changed")


def write_page(rows: Sequence[Row]) -> None:
    """Write the tables between the markers of the page, and the chart."""
    write(DOCS / "measurements/gates.md", "gates", tables(rows))
    (DOCS / "images/gates.svg").write_text(drawn_of(rows), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--runs", type=int, default=4000)
    arguments = parser.parse_args()
    rows = list(measured(arguments.runs))
    if arguments.write:
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        write_page(rows)
    print(tables(rows))


if __name__ == "__main__":
    main()
