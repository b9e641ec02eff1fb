"""benchmarks/gates.py: shares against sums over single answers, the page's numbers against the rows."""

import math
from itertools import product
from pathlib import Path

import gates
import numpy as np
import pytest
import scipy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/measurements/gates.md").read_text("utf-8")


def of_answers(name: str, answers: tuple[int, ...]) -> int:
    """The word of a rule, from the answers themselves: -1 lost, 0 as before, 1 gained."""
    d, n, margin = np.array(answers, dtype=float), len(answers), 0.02
    mean, lost, gained = d.mean(), answers.count(-1), answers.count(1)
    if name == "Model Optimizer":
        return 1 if -0.05 - 1e-9 <= -mean <= margin else -1
    if name == "NeMo gate":
        low, high = (mean, mean) if d.std() == 0 else scipy.stats.t.interval(0.95, n - 1, mean, scipy.stats.sem(d))
        return 1 if low >= -margin else -1 if high < -margin else 0
    if name == "NeMo compare":
        if lost + gained == 0:
            return 1
        p = scipy.stats.binomtest(lost, lost + gained, alternative="greater").pvalue
        return -1 if p < 0.05 and -mean > margin else 1 if p >= 0.05 and 2.8 / math.sqrt(lost + gained) <= 0.04 else 0
    if name == "statgate":
        if len(set(answers)) == 1:
            return 1 if mean > -margin else -1
        low, high = bca(d)
        return 1 if low > -margin else -1 if high < -margin else 0
    if name == "TensorRT-LLM":
        return 1 if 100 * mean >= -1.6448536 * math.sqrt(2 * 50**2 / n) else -1
    accuracy = min(max(0.8 + mean, 0.0), 1.0)
    z = mean / math.sqrt((0.16 + accuracy * (1 - accuracy)) / (n - 1))
    return 1 if math.erfc(abs(z) / math.sqrt(2)) > 0.05 else -1


def bca(d: np.ndarray) -> list[float]:
    """The 95 % BCa interval of a mean, from leaving out each value and from the distribution of resampled sums."""
    n, sums = len(d), np.ones(1)
    for _ in d:
        sums = np.convolve(sums, [(d == value).mean() for value in (-1, 0, 1)])
    means, normal = np.arange(-n, n + 1) / n, scipy.stats.norm
    seen = round(d.sum()) + n
    z0 = normal.ppf(min(max(sums[:seen].sum() + sums[seen] / 2, 1 / 10001), 10000 / 10001))
    left = np.array([np.delete(d, place).mean() for place in range(n)])
    skew = ((left.mean() - left) ** 3).sum() / (6 * ((left.mean() - left) ** 2).sum() ** 1.5)
    levels = [normal.cdf(z0 + (z0 + z) / (1 - skew * (z0 + z))) for z in normal.ppf([0.025, 0.975])]
    return [float(means[np.argmax(np.cumsum(sums) >= level)]) for level in levels]


@pytest.mark.slow
@pytest.mark.parametrize("name", [one for one in gates.GATES if one != "Prunus"])
def test_shares_are_those_of_all_answers(name):
    """Of ten problems all 3^10 answers, grouped by how many are lost and gained."""
    n, lost, gained = 10, 0.15, 0.1
    expected = {1: 0.0, 0: 0.0, -1: 0.0}
    for a, b in product(range(n + 1), repeat=2):
        if a + b <= n:
            ways = math.factorial(n) / (math.factorial(a) * math.factorial(b) * math.factorial(n - a - b))
            chance = ways * lost**a * gained**b * (1 - lost - gained) ** (n - a - b)
            expected[of_answers(name, (-1,) * a + (1,) * b + (0,) * (n - a - b))] += chance
    assert gates.shares(gates.GATES[name], lost, gained, n) == pytest.approx((expected[1], expected[-1]), abs=1e-7)


def test_an_exact_cell_is_the_sum_over_all_outcomes():
    """1,319 problems, of which none is gained: NeMo's gate passes up to some number lost."""
    row = cell("NeMo gate", "breaks", 1319)
    most = max(lost for lost in range(1, 40) if of_answers("NeMo gate", (-1,) * lost + (0,) * (1319 - lost)) == 1)
    assert row["pass"] == pytest.approx(scipy.stats.binom.cdf(most, 1319, 0.02), abs=1e-6) and row["error"] is None


def cell(rule: str, case: str, problems: int, sets: int = 1, looks: int = 1) -> gates.Row:
    key = (rule, case, problems, sets, looks)
    (row,) = [r for r in gates.read() if key == tuple(r.get(k) for k in ("rule", "case", "problems", "sets", "looks"))]
    return row


@pytest.mark.slow
def test_rows_are_those_of_the_rules():
    """Of 100 problems, each of them; of bets, other simulations."""
    for (case, (lost, gained)), (name, rule) in product(gates.CASES.items(), gates.GATES.items()):
        found = cell(name, case, 100)
        assert gates.shares(rule, lost, gained, 100) == pytest.approx((found["pass"], found["fail"]), abs=1e-6)
    differences = gates.drawn(np.random.default_rng(5), "shared", 100, 1000)
    found = cell(gates.BETS, "shared", 100)
    assert abs(gates.by_bets([differences])[0] - found["pass"]) < 4 * math.sqrt(0.035 / 1000)


def test_the_page_and_its_chart_are_made_of_the_rows():
    rows = gates.read()
    assert gates.tables(rows) in PAGE
    assert gates.drawn_of(rows) == (ROOT / "docs/images/gates.svg").read_text("utf-8")
    (needed,) = (row["needed"] for row in rows if row.get("needed") and row["rule"] == "Prunus")
    assert f"needs {needed:,} problems" in " ".join(PAGE.split())


def test_numbers_of_the_text_follow_from_the_rules():
    assert f"three unchanged sets in {100 * cell('NeMo gate', 'nothing', gates.OF_SETS)['pass'] ** 3:.1f} %" in PAGE
    listed = (ROOT / "docs/measurements/README.md").read_text("utf-8")
    for name, words in (
        ("Model Optimizer", "Model Optimizer's"),
        ("NeMo gate", "NeMo Evaluator's"),
        ("Prunus", "ours"),
    ):
        assert f"{words} in {100 * cell(name, 'breaks', gates.OF_LOOKS)['pass']:.1f}" in listed
    lost = [row for row in gates.read() if row.get("case") in ("breaks", "shared") and row["looks"] == 1]
    assert max(row["pass"] for row in lost if row["rule"] == "Prunus") <= 0.05
    assert (math.ceil((2.8 / 0.04) ** 2), math.ceil((2.8 / 0.1) ** 2)) == (4900, 784)
    assert f"{100 * 1.6448536 * math.sqrt(0.5 / 1319):.1f} points" in PAGE
