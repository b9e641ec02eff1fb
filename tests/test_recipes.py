"""Recipes: what they refuse, their JSON and their hash."""

import json

import pytest

from prunus.errors import PrunusError
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe, check_budgets


@pytest.mark.parametrize(
    "recipe", [PruneRecipe(sparsity=0.25), DropRecipe(blocks="3,1"), EvalPlan(tasks=("tiny", "x"))]
)
def test_json_and_back_is_the_same_recipe(recipe):
    back = type(recipe).from_json(json.loads(json.dumps(recipe.to_json())))
    assert back == recipe
    assert back.hash == recipe.hash


def test_hash_changes_with_every_field_and_not_with_key_order():
    base = PruneRecipe()
    changed = [PruneRecipe(method="magnitude"), PruneRecipe(sparsity=0.4), PruneRecipe(seed=1), PruneRecipe(samples=64)]
    assert len({recipe.hash for recipe in [base, *changed]}) == 5
    shuffled = dict(reversed(base.to_json().items()))
    assert PruneRecipe.from_json(shuffled).hash == base.hash


def test_unknown_key_is_named():
    with pytest.raises(PrunusError, match="unknown key 'sparsty'"):
        PruneRecipe.from_json({"sparsty": 0.5})


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 20, float("nan")])
def test_sparsity_outside_the_range_is_refused(sparsity):
    with pytest.raises(PrunusError, match="sparsity must lie in"):
        PruneRecipe(sparsity=sparsity)


@pytest.mark.parametrize(
    ("blocks", "indices", "count"), [("2", None, 2), ("16,17", (16, 17), 2), ("5,", (5,), 1), ("4,4,1", (1, 4), 2)]
)
def test_blocks_is_a_number_or_a_list(blocks, indices, count):
    recipe = DropRecipe(blocks=blocks)
    assert (recipe.indices, recipe.count(40)) == (indices, count)


@pytest.mark.parametrize("blocks", ["", "0", "-1", "two", "1.5", ","])
def test_other_blocks_are_refused(blocks):
    with pytest.raises(PrunusError, match="blocks"):
        DropRecipe(blocks=blocks)


@pytest.mark.parametrize(
    ("budgets", "words"),
    [((), "at least one"), ((64, 64), "must increase: 64 follows 64"), ((64, 32), "32 follows"), ((-1,), "negative")],
)
def test_budgets_that_do_not_increase_are_refused(budgets, words):
    with pytest.raises(PrunusError, match=words):
        check_budgets(budgets)


def test_refusing_to_stop_cannot_share_chains():
    with pytest.raises(PrunusError, match="--no-reuse"):
        EvalPlan(tasks=("tiny",), wait=1)
    assert EvalPlan(tasks=("tiny",), wait=1, reuse=False).wait == 1
