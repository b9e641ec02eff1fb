"""What every method keeps to, whatever it is: counts, patterns, determinism, dtype, zeros that stay."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from method_cases import case, stats

from prunus.errors import PrunusError
from prunus.pruning.masks import Target, lowest_per_pattern, zeros_of
from prunus.pruning.methods import METHODS, with_update
from prunus.recipes import PruneRecipe

EVERY = dict(METHODS) | {f"{name}+obs": with_update(method) for name, method in METHODS.items() if not method.updates}
SHAPES = [(1, 1), (1, 9), (9, 1), (3, 7), (10, 33), (6, 300)]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_exact_in_the_group(name, shape):
    weight, tokens = case(shape)
    before, inputs = weight.clone(), stats(tokens)
    for sparsity in (0.0, 0.1, 0.29, 0.5, 0.73, 0.97):
        zeros = EVERY[name].prune(weight, inputs, Target(sparsity)) == 0
        assert torch.equal(weight, before), "the input is left alone"
        if EVERY[name].group == "row":
            assert zeros.sum(1).tolist() == [round(Fraction(str(sparsity)) * shape[1])] * shape[0], sparsity
        else:
            assert zeros.sum().item() == round(Fraction(str(sparsity)) * weight.numel()), sparsity


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dead", [(0,), (2, 3, 11), tuple(range(33))])
def test_dead_inputs_change_no_count_and_go_first(name, dead):
    weight, tokens = case((10, 33), dead=dead)
    pruned = EVERY[name].prune(weight, stats(tokens), Target(0.5))
    zeros = pruned == 0
    assert zeros.sum().item() == zeros_of(Target(0.5), weight.shape, EVERY[name].group)
    assert pruned.isfinite().all()
    if len(dead) < 10 and EVERY[name].needs != "nothing" and "magnitude" not in name:
        assert zeros[:, list(dead)].all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8])
def test_the_authors_rule_takes_about_as_many(name, sparsity):
    """Per row it rounds down; per tensor it takes the value at the threshold as well, SparseGPT in every block."""
    weight, tokens = case((8, 300))
    zeros = EVERY[name].prune(weight, stats(tokens), Target(sparsity, "reference")) == 0
    if EVERY[name].group == "row":
        assert set(zeros.sum(1).tolist()) == {int(Fraction(str(sparsity)) * 300)}
    else:
        assert 0 <= zeros.sum().item() - sparsity * 2400 <= 3


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sparsity_zero_changes_no_bit(name, dtype):
    weight, tokens = case((6, 200), dtype=dtype)
    weight[0, :9] = -0.0
    result = EVERY[name].prune(weight, stats(tokens), Target(0.0))
    assert result.dtype == dtype
    assert torch.equal(result.view(torch.uint8), weight.view(torch.uint8))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("target", [Target(0.5), Target(0.5, pattern=(2, 4))])
def test_same_input_same_bytes_same_layout(name, target):
    weight, tokens = case((12, 160), dtype=torch.bfloat16)
    first, second = (EVERY[name].prune(weight, stats(tokens), target) for _ in range(2))
    assert first.dtype == weight.dtype and first.is_contiguous()
    assert torch.equal(first.view(torch.uint8), second.view(torch.uint8))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("columns", [8, 130, 264, 3])
def test_patterns_keep_n_of_every_m_and_leave_the_tail(name, columns):
    weight, tokens = case((5, columns))
    inputs = stats(tokens)
    for pattern in ((2, 4), (1, 4), (3, 4), (4, 8)):
        keep, width = pattern
        pruned = EVERY[name].prune(weight, inputs, Target(0.9, pattern=pattern))
        covered = columns // width * width
        groups = (pruned[:, :covered] != 0).unflatten(1, (-1, width)).sum(2) if covered else torch.tensor([keep])
        assert set(groups.flatten().tolist()) == {keep}, pattern
        assert (pruned[:, covered:] != 0).all(), pattern
        if not EVERY[name].updates:
            assert torch.equal(pruned[:, covered:], weight[:, covered:]), pattern


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_pruning_further_keeps_the_zeros_and_reaches_the_new_share(name):
    weight, tokens = case((12, 40), seed=3)
    once = METHODS[name].prune(weight, stats(tokens), Target(0.25))
    twice = METHODS[name].prune(once, stats(tokens), Target(0.5))
    assert ((twice == 0) | (once != 0)).all()
    assert torch.equal(twice, METHODS[name].prune(weight, stats(tokens), Target(0.5)))


@pytest.mark.parametrize("width", [2, 3, 4, 8, 255, 256])
def test_groups_are_sorted_stably(width):
    generator = torch.Generator().manual_seed(4)
    score = torch.randint(0, 3, (7, 5 * width), generator=generator).float()  # many ties
    for count in {0, 1, width // 2, width - 1, width}:
        expected = [[False] * 5 * width for _ in range(7)]
        for row in range(7):
            for begin in range(0, 5 * width, width):
                order = sorted(range(begin, begin + width), key=score[row].tolist().__getitem__)
                for column in order[:count]:
                    expected[row][column] = True
        assert lowest_per_pattern(score, count, width).tolist() == expected


def test_every_method_says_what_it_is():
    for method in METHODS.values():
        assert method.source and method.description


@pytest.mark.parametrize("pattern", ["4:2", "0:4", "2:2", "2", "a:b", "2:4:8", "-1:4", "", "1:257"])
def test_wrong_patterns_are_refused(pattern):
    with pytest.raises(PrunusError, match="is not N:M"):
        PruneRecipe(pattern=pattern)


def test_a_pattern_is_a_sparsity_and_comes_alone():
    recipe = PruneRecipe(pattern="1:4")
    assert (recipe.sparsity, recipe.groups) == (0.75, (1, 4))
    assert PruneRecipe.from_json(recipe.to_json()) == recipe
    assert PruneRecipe(pattern="1:4", sparsity=0.2) == recipe  # the default says no more than none
    for given in (0.3, 0.5):
        with pytest.raises(PrunusError, match=r"1:4 is a sparsity of 0\.75 already"):
            PruneRecipe(pattern="1:4", sparsity=given)
    assert replace(PruneRecipe(), pattern="1:4").sparsity == 0.75
    with pytest.raises(PrunusError, match="allocation must be uniform"):
        PruneRecipe(pattern="2:4", allocation="owl")
