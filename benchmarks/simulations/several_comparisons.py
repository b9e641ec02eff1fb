"""How often a word is wrong where there are several comparisons, of which one is chosen after seeing all of them."""

from collections.abc import Sequence
from itertools import combinations
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prunus.results import family, verdicts
from prunus.results.family import Family
from prunus.results.growth import Growth
from prunus.results.seeds import over_seeds, p_values
from prunus.results.verdicts import CLAIMS, word_of
from prunus.results.vocabulary import Verdict
from prunus.statistics import anytime, betting, exact, metrics, paired
from prunus.statistics.betting import direction_p
from simulations.differences import BUDGETS, Floats, differences, slopes


def false_on_a_page(
    variants: int, problems: int, draws: int, pages: int, margin: float = 0.05, seed: int = 0
) -> dict[str, float]:
    """Return the shares of pages with any wrong word of a kind, with the variants of one base at five budgets.

    better or worse: all variants are equal to the base. non-inferior: all lose the margin at every budget.
    """
    rng, found = np.random.default_rng(seed), {}
    within = (Verdict.NON_INFERIOR, Verdict.WORSE_WITHIN_MARGIN)
    for loss, words in ((0.0, (Verdict.BETTER, Verdict.WORSE)), (margin, within)):
        budgets = [differences(rng, "few break", problems, draws, loss, pages, variants) for _ in BUDGETS]
        for where, several in (("area", [np.mean(budgets, axis=0)]), ("single budgets", budgets)):
            cells = [_p_values(values, draws, margin, where == "single budgets", pages) for values in several]
            wrong = np.zeros(pages, dtype=bool)
            for page in range(pages):
                together = np.concatenate([at_budget[page] for at_budget in cells])
                adjusted = [paired.holm(column) for column in together.T]
                wrong[page] = any(word_of(*p) in words for p in zip(*adjusted, strict=True))
            found[f"{'better or worse' if loss == 0 else 'non-inferior'}, {where}"] = float(wrong.mean())
    return found


def scaling_on_a_page(variants: int, problems: int, draws: int, pages: int, seed: int = 0) -> dict[str, float]:
    """Return the shares of pages on which any variant's scaling is called kept, or lost, if all keep exactly 90 %."""
    rng = np.random.default_rng(seed)
    base, other = slopes(rng, "few break", problems, draws, 0.9, pages * variants, columns=variants)
    reach = float(metrics.slope_weights(BUDGETS).clip(0).sum())
    found = {}
    for word in ("kept", "lost"):
        p = verdicts.p_scaling(word, base, other, reach, draws).reshape(pages, variants)
        found[f"scaling {word}"] = float(np.mean([(paired.holm(row) <= betting.ALPHA).any() for row in p]))
    return found


def _p_values(values: Floats, draws: int, margin: float, one_budget: bool, pages: int) -> Floats:
    """Return the p-values (pages, variants, claims)."""
    single = one_budget and draws == 1
    p_margin = _exact_p(values, margin) if single else betting.p_value([values], margin)
    columns = direction_p([values], draws, np.full(values.shape[1], single)) | {"p_margin": p_margin}
    return np.stack([columns[name] for name in CLAIMS], axis=1).reshape(pages, -1, len(CLAIMS))


def _exact_p(values: Floats, margin: float) -> Floats:
    return exact.p_value((values < 0).sum(axis=0), (values > 0).sum(axis=0), len(values), margin)


def power_of(
    problems: int,
    draws: int,
    loss: float,
    margin: float,
    variants: int,
    runs: int,
    seed: int = 0,
    base_draws: int | None = None,
) -> float:
    """Return the share of variants called non-inferior, at one budget, if all have this loss, spread homogeneously."""
    of = "homogeneous", problems, draws, loss, runs, variants, base_draws
    values = differences(np.random.default_rng(seed), *of)
    if draws == 1 and base_draws in (None, 1):
        p = _exact_p(values, margin)
    else:
        levels = betting.ALPHA / np.arange(1, variants + 1)
        reached = betting.reaches(values, np.full((1, 1), -margin), -np.log(levels)[:, None])
        p = np.where(reached, levels[:, None], 1.0).min(axis=0)
    return float(np.mean([paired.holm(row) <= betting.ALPHA for row in p.reshape(runs, variants)]))


def while_the_limit_grows(looks: Sequence[int], margin: float, change: float, runs: int, seed: int = 11) -> list[float]:
    """Return the shares of comparisons called non-inferior at any of these limits, at a loss of the margin.

    First as `compare` calls them, by bets that go on over all looks; then if each look is judged as the only one. One
    draw of each problem, of which this share changes.
    """
    chance, lost = np.random.default_rng(seed).random((looks[-1], runs)), (change + margin) / 2
    d = np.where(chance < lost, -1.0, np.where(chance < change, 1.0, 0.0))
    ids = [f"{number:04d}" for number in range(looks[-1])]
    rounds, start = anytime.in_plan_order([d], [ids], [ids], looks)
    null, goal = np.full((1, 1), -margin), np.full((1, 1), log(1 / betting.ALPHA))
    alone = [betting.reaches(d[betting.random_order(n, 0)], null, goal)[0] for n in looks]
    # The largest wealth of the last look includes those of all looks before it.
    later = np.cumsum(anytime.steps(rounds, anytime.bets(rounds, margin), -margin)[start:], axis=0)
    begun = betting.aimed_wealth(rounds[:start], null, goal)[0]
    together = begun + later.max(axis=0, initial=0.0) >= goal[0]
    return [float(together.mean()), float(np.any(alone, axis=0).mean())]


def chosen_after_seeing(
    problems: int, draws: int, margin: float, runs: int, variants: int = 14, chunk: int = 100, seed: int = 0
) -> dict[str, list[float]]:
    """Return how often the best of several comparisons is wrongly non-inferior, alone and as Prunus corrects it.

    variants: all lose the margin. one after another: the same, each looked at before the next is made, at its time
    corrected for those that there are. seeds: of one variant that loses the margin, drawn 20 times on the same
    problems. seeds of the base: the same, of the base. budget lists: all 26 of at least two of five budgets, of one
    variant that loses the margin at each. orders: 20 orders of the same bets, of which Prunus has one.
    """
    wrong: dict[str, list[list[float]]] = {}

    def note(name: str, values: Floats, sizes: Sequence[int]) -> None:
        """values: (problems, runs * choices); sizes: of the family of each choice, or one of all."""
        levels = betting.ALPHA / np.array([1, *sizes])
        reached = betting.reaches(values, np.full((1, 1), -margin), -np.log(levels)[:, None])
        by_choice = reached.reshape(len(levels), -1, values.shape[1] // chunk)
        corrected = (
            by_choice[1] if len(sizes) == 1 else np.stack([by_choice[k + 1, :, k] for k in range(len(sizes))], 1)
        )
        wrong.setdefault(name, []).append([float(of.any(axis=1).mean()) for of in (by_choice[0], corrected)])

    lists = [of for size in range(2, 6) for of in combinations(BUDGETS, size)]
    for part in range(max(1, runs // chunk)):
        rng = np.random.default_rng([seed, part])
        values = differences(rng, "few break", problems, draws, margin, chunk, variants)
        note(f"{variants} variants", values, [family.Family(range(variants)).size])
        note(
            f"{variants} variants, one after another",
            values,
            [family.Family(range(k + 1)).size for k in range(variants)],
        )
        base = rng.beta(0.4, 0.4, (problems, chunk, 1))
        kept = rng.random(base.shape) >= margin / 0.5
        fixed, again = (1, 20), Family(range(20))
        for name, (ours, theirs), of in (
            ("20 seeds", fixed, again), ("20 seeds of the base", fixed[::-1], Family([0], bases=20))
        ):  # fmt: skip
            first = rng.binomial(draws, base, (problems, chunk, ours)) / draws
            other = rng.binomial(draws, base * kept, (problems, chunk, theirs)) / draws
            note(name, (other - first).reshape(problems, -1), [of.size])
        at = np.stack([differences(rng, "few break", problems, draws, margin, chunk) for _ in BUDGETS])
        places = [[BUDGETS.index(budget) for budget in of] for of in lists]
        areas = [np.tensordot(metrics.auc_weights(of), at[place], 1) for of, place in zip(lists, places, strict=True)]
        note("26 budget lists", np.stack(areas, 2).reshape(problems, -1), [family.Family(range(len(lists))).size])
        alone = differences(rng, "few break", problems, draws, margin, chunk)
        orders = np.stack([alone[betting.random_order(problems, k)] for k in range(20)], 2)
        null, goal = np.full((1, 1), -margin), np.full((1, 1), log(1 / betting.ALPHA))
        shown = betting.reaches(orders.reshape(problems, -1), null, goal).reshape(chunk, 20)
        wrong.setdefault("20 orders of bets", []).append([float(shown.any(axis=1).mean()), float(shown[:, 0].mean())])
    return {name: np.mean(shares, axis=0).tolist() for name, shares in wrong.items()}


def same_questions_again(
    problems: int, draws: int, margin: float, runs: int, times: int = 20, chunk: int = 100, seed: int = 0
) -> dict[str, list[float]]:
    """Return how often the best of several forms of the same questions is wrongly non-inferior: earlier, and now.

    A variant loses the margin. groupings: each after the first joins two problems; earlier this changed the order of
    bets and was no look, now each begins a series. ids: of files with the same rows; earlier each had its order. files
    or caps: base and variant drawn anew in each, which was not counted. bases: of 3 to 32 draws, nested, that stood
    before the variant and counted as one.
    """
    found: dict[str, list[Floats]] = {}

    def reached(values: Floats, level: float) -> NDArray[np.bool_]:
        return betting.reaches(values, np.full((1, 1), -margin), np.full((1, 1), -log(level)))[0]

    def note(name: str, earlier: Sequence[NDArray[np.bool_]], now: Sequence[NDArray[np.bool_]]) -> None:
        found.setdefault(name, []).append(np.array([np.any(each, axis=0).mean() for each in (earlier, now)]))

    for part in range(max(1, runs // chunk)):
        rng = np.random.default_rng([seed, part])
        base = rng.beta(0.4, 0.4, (problems, chunk))
        other = base * (rng.random(base.shape) >= margin / 0.5)

        def drawn(chance: Floats, number: int = draws, rng: np.random.Generator = rng) -> Floats:
            return rng.binomial(number, chance) / number

        d = drawn(other) - drawn(base)
        orders = [betting.random_order(problems, k) for k in range(times)]
        earlier, now = [reached(d[orders[0]], betting.ALPHA)], [reached(d, betting.ALPHA)]
        for series in range(2, times + 1):
            first, second = sorted(rng.choice(problems, 2, replace=False))
            joined = d.copy()
            joined[first] = (d[first] + d[second]) / 2
            joined = np.delete(joined, second, axis=0)
            earlier.append(reached(joined[betting.random_order(problems - 1, series)], betting.ALPHA))
            now.append(reached(joined, betting.ALPHA * Growth((), series, ()).share))
        note(f"{times} groupings", earlier, now)
        size = Family([0], bases=times).size
        alone, counted = ([reached(d[order], betting.ALPHA) for order in orders], [reached(d, betting.ALPHA / size)])
        note(f"{times} files with other ids", alone, counted)
        again = [drawn(other) - drawn(base) for _ in range(times)]
        note(f"{times} files or caps", *([reached(one, betting.ALPHA / k) for one in again] for k in (1, size)))
        nested = (rng.random((32, *base.shape)) < base).cumsum(axis=0)
        ours, numbers = drawn(other), range(3, 33)
        chosen, size = [ours - nested[k - 1] / k for k in numbers], Family([0], bases=len(numbers)).size
        note("30 bases", *([reached(one, betting.ALPHA / k) for one in chosen] for k in (1, size)))
    return {name: np.mean(shares, axis=0).tolist() for name, shares in found.items()}


def of_the_best(problems: int, draws: int, loss: float, runs: int, variants: int = 14, seed: int = 0) -> list[float]:
    """Return what is said of the best of variants that all have this loss: how often wrongly, and how far too well.

    Shares of its own 95 % interval and of its bound that holds for all variants together, and the mean of its estimate
    minus the truth.
    """
    rng, missed, above, over = np.random.default_rng(seed), 0, 0, 0.0
    for _ in range(runs):
        values = differences(rng, "few break", problems, draws, loss, 1, variants)
        best = values[:, [int(values.mean(axis=0).argmax())]]
        columns = paired.infer([best], 1000).columns
        missed += not columns["low"][0] <= -loss <= columns["high"][0]
        above += betting.lower_bound([best], betting.ALPHA / family.Family(range(variants)).size)[0] > -loss
        over += float(best.mean()) + loss
    return [missed / runs, above / runs, over / runs]


def collapsing_seeds(
    seeds: int, collapse: float, runs: int, margin: float = 0.02, problems: int = 500, draws: int = 4
) -> dict[str, float]:
    """Return how often a recipe is wrongly called so, of whose calibration seeds this share collapses.

    non-inferior: the collapsed seeds lose so much that the mean over all seeds is the margin. better: they lose 40
    points, and the others gain as much together. by t: by a t test with seeds as a random effect, and bets on the mean
    of these checkpoints, the earlier rule.
    """
    rng, wrong = np.random.default_rng([seeds, round(100 * collapse)]), {}
    for word, loss in (("non-inferior", margin / collapse), ("better", 0.4)):
        found = np.zeros(2)
        for _ in range(runs):
            base = rng.beta(8, 2, problems)
            gone = rng.random((seeds, 1)) < collapse
            kept = rng.random((seeds, problems)) >= loss / 0.8
            gain = 0.0 if word == "non-inferior" else collapse * loss / (1 - collapse)
            other = np.where(gone, base * kept, np.minimum(base + gain, 1))
            y = (rng.binomial(draws, other) - rng.binomial(draws, base)) / draws
            null, claim, level = (-margin, "p_margin", 0.05) if word == "non-inferior" else (0.0, "p_better", 0.05)
            found[0] += p_values([y], [y], -margin)[claim] <= level
            by_t = over_seeds([y])
            t = stats.t.sf((by_t["difference"] - null) / max(by_t["se"], 1e-12), by_t["freedom"])
            bet = betting.p_value([y.mean(axis=0)[:, None]], -null)[0]
            found[1] += max(float(t), float(bet)) <= (0.05 if word == "non-inferior" else 0.025)
        wrong |= {word: found[0] / runs, f"{word}, by t": found[1] / runs}
    return wrong
