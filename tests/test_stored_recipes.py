"""Recipes as earlier versions wrote them: the same hashes, and the same ids of what was made from them."""

import json
from pathlib import Path

import pytest

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.hashing import content_hash
from prunus.recipes import DropRecipe, PruneRecipe
from prunus.study.cells import effective

RECIPES = {"prune": PruneRecipe, "drop": DropRecipe}
# [kind, settings, hash of the recipe, hash of what decides its result on `tiny`], computed by the code of 97f2ae7.
STORED = json.loads((Path(__file__).parent / "data" / "recipe_ids.json").read_text())


@pytest.fixture(scope="module")
def tiny():
    return Checkpoint(resolve("tiny"))


def test_hashes_and_result_ids_are_those_of_earlier_versions(tiny):
    assert len(STORED) == 93
    for kind, settings, hash_before, id_before in STORED:
        recipe = RECIPES[kind](**settings)
        assert recipe.hash == hash_before, settings
        assert content_hash(effective(recipe, tiny)) == id_before, settings
        assert RECIPES[kind].from_json(recipe.to_json()) == recipe
