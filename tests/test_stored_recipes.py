"""Recipes as earlier versions wrote them: the same hashes, and the same ids of what was made from them."""

import json
from pathlib import Path

import pytest

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.errors import PrunusError
from prunus.plain_data import content_hash
from prunus.recipes import DropRecipe, ExpertsRecipe, PruneRecipe, RecoverRecipe
from prunus.study.cells import effective

RECIPES = {"prune": PruneRecipe, "drop": DropRecipe}
# [kind, settings, hash of the recipe, hash of what decides its result on `tiny`], computed by the code of 97f2ae7.
STORED = json.loads((Path(__file__).parent / "data" / "recipe_ids.json").read_text())


@pytest.fixture(scope="module")
def tiny():
    return Checkpoint(resolve("tiny"))


def test_hashes_and_result_ids_are_those_of_earlier_versions(tiny):
    assert len(STORED) == 92
    for kind, settings, hash_before, id_before in STORED:
        recipe = RECIPES[kind](**settings)
        assert recipe.hash == hash_before, settings
        assert content_hash(effective(recipe, tiny)) == id_before, settings
        assert RECIPES[kind].from_json(recipe.to_json()) == recipe


# [kind, hash of its default before the settings were removed, {setting: (its default, another value)}].
REMOVED = [
    (PruneRecipe, "cdb9ddacc9a8", {"closing_weight": (None, 4.0), "expert_spread": (0.0, 0.1)}),
    (DropRecipe, "cb529e5d2273", {"telescoping": (False, True)}),
    (
        ExpertsRecipe,
        "94e908a5ed32",
        {"closing_weight": (None, 4.0), "distill_router": (False, True), "spread": ("uniform", "global")},
    ),
    (RecoverRecipe, "6bc5b1fe772e", {"closing_weight": (None, 4.0)}),
]


@pytest.mark.parametrize(("kind", "hash_before", "removed"), REMOVED)
def test_a_removed_setting_is_ignored_at_its_default_and_refused_elsewhere(kind, hash_before, removed):
    assert kind().hash == hash_before
    assert kind.from_json({name: usual for name, (usual, _) in removed.items()} | {"seed": 3}) == kind(seed=3)
    for name, (_, other) in removed.items():
        with pytest.raises(
            PrunusError, match=f"'{name}' {other!r} is a setting that only earlier versions have: leave"
        ):
            kind.from_json({name: other})
