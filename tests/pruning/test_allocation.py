"""Allocations: golden values, exact budgets, clipping, flat scores, whole weights."""

from fractions import Fraction
from itertools import pairwise

import pytest

from prunus.errors import PrunusError
from prunus.pruning.allocation import ALLOCATIONS
from prunus.pruning.allocation.arithmetic import HIGHEST, row_counts, scaled, shifted, tensor_counts
from prunus.recipes import PruneRecipe

EQUAL = [100] * 4
SIZES = [147, 1480, 33, 260, 999, 512]
SCORES = [3.0, 0.5, 7.25, 7.0, 1.0, 2.0]


def weighted(sparsities, sizes):
    """Mean in exact fractions."""
    return sum(Fraction(s) * n for s, n in zip(sparsities, sizes, strict=True)) / sum(sizes)


def allocated(name, scores, sizes, target, **options):
    """The sparsities of an allocation."""
    return ALLOCATIONS[name].allocate(scores, sizes, PruneRecipe(allocation=name, sparsity=target, **options))


@pytest.mark.parametrize(
    ("found", "golden"),
    [
        (allocated("owl", [2, 1, 0.5, 0.5], EQUAL, 0.5, spread=0.08), [0.393333, 0.5, 0.553333, 0.553333]),
        (allocated("atp", [], EQUAL, 0.5, step=0.04), [0.44, 0.48, 0.52, 0.56]),
    ],
)
def test_golden_values(found, golden):
    assert found == pytest.approx(golden, abs=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.03, 0.2, 0.5, 0.7, 0.95, 0.99])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_weighted_mean_is_the_target_even_where_limits_bind(name, target):
    found = allocated(name, SCORES, SIZES, target)
    assert float(weighted(found, SIZES)) == pytest.approx(target, abs=1e-12)
    assert all(0 <= s <= HIGHEST for s in found)


@pytest.mark.parametrize("name", sorted(set(ALLOCATIONS) - {"atp"}))
def test_blocks_that_look_alike_lose_the_same(name):
    assert allocated(name, [2.5] * 6, SIZES, 0.37) == pytest.approx([0.37] * 6, abs=1e-12)


@pytest.mark.parametrize("name", sorted(set(ALLOCATIONS) - {"atp", "uniform"}))
def test_scores_are_free_of_their_unit(name):
    recipe = PruneRecipe(allocation=name, sparsity=0.4)
    allocation = ALLOCATIONS[name].allocate
    assert allocation([1e3 * s for s in SCORES], SIZES, recipe) == pytest.approx(allocation(SCORES, SIZES, recipe))


def test_direction_of_each():
    recipe = PruneRecipe(sparsity=0.5)
    rising = [1.0, 2.0, 3.0, 4.0]
    signs: dict[str, int] = {
        "owl": -1,
        "atp": 1,
        "layerif": -1,
    }
    for name, sign in signs.items():
        found = ALLOCATIONS[name].allocate(rising, EQUAL, recipe)
        assert all(sign * (b - a) > 0 for a, b in pairwise(found)), name


def test_what_is_clipped_is_made_up_by_the_rest():
    found = shifted([-0.2, 0.1, 0.3, 0.4], EQUAL, 0.2)
    assert found == pytest.approx([0, 0.1, 0.3, 0.4])  # 0 + 0.1 + 0.3 + 0.4 is 4 * 0.2 without any shift
    assert shifted([-0.2, 0.1, 0.3, 0.4], EQUAL, 0.35) == pytest.approx([0, 0.3, 0.5, 0.6])
    assert scaled([0.1, 1.0, 2.0, 2.0], EQUAL, 0.64) == pytest.approx([0.58 / 11, 5.8 / 11, HIGHEST, HIGHEST])


def test_targets_beyond_the_limit_are_refused():
    with pytest.raises(PrunusError, match=r"0\.995 cannot be reached"):
        allocated("owl", SCORES, SIZES, 0.995)


def test_atp_step_has_a_limit():
    assert allocated("atp", [], EQUAL, 0.5, step=1 / 3) == pytest.approx([0, 1 / 3, 2 / 3, HIGHEST], abs=0.01)
    with pytest.raises(PrunusError, match=r"step 0\.4 is outside \[0, 0\.3333\] for sparsity 0\.5 and 4 blocks"):
        allocated("atp", [], EQUAL, 0.5, step=0.4)
    assert allocated("atp", [], [7], 0.5) == pytest.approx([0.5])


@pytest.mark.parametrize("target", ["0.01", "0.29", "0.5", "0.77"])
def test_tensor_counts_sum_to_the_budget_and_stay_within_one_weight(target):
    sparsities = shifted([float(target) + 0.01 * i for i in (-1, 3, 2, -4, 0, 1)], SIZES, float(target))
    total = round(Fraction(target) * sum(SIZES))
    counts = tensor_counts(sparsities, SIZES, total)
    assert sum(counts) == total
    assert all(abs(c - s * n) < 1 for c, s, n in zip(counts, sparsities, SIZES, strict=True))


def test_row_counts_sum_to_the_budget_and_stay_within_one_weight_a_row():
    shapes = [(8, 10), (3, 17), (5, 9), (2, 31)]
    for target in (0.1, 0.35, 0.5, 0.81):
        sizes = [o * i for o, i in shapes]
        sparsities = allocated("owl", [1, 2, 3, 5], sizes, target, spread=0.1)
        counts = row_counts(sparsities, shapes, round(target * sum(sizes)))
        rows = [[c + (r < more) for r in range(o)] for (c, more), (o, _) in zip(counts, shapes, strict=True)]
        assert sum(map(sum, rows)) == round(target * sum(sizes))
        assert sum(len(set(row)) > 1 for row in rows) <= 1  # of one Linear at most rows differ
        for row, share, (_, columns) in zip(rows, sparsities, shapes, strict=True):
            assert all(abs(count - share * columns) < 1 for count in row)


def test_row_counts_without_remainders_give_back_what_is_too_much():
    assert row_counts([0.5, 0.5], [(4, 2), (3, 4)], 9) == [(0, 3), (2, 0)]
