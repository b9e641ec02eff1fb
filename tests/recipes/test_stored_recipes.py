"""Recipes as earlier versions wrote them: the same hashes, and the same ids of what was made from them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunus.cards.text import options_of
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.cli import cli
from prunus.errors import PrunusError
from prunus.plain_data import content_hash
from prunus.recipes import DropRecipe, ExpertsRecipe, PruneRecipe, QuantizeRecipe, RecoverRecipe, WidthRecipe
from prunus.store import labels
from prunus.studies.cells import effective

RECIPES = {"prune": PruneRecipe, "drop": DropRecipe}
# [kind, settings, hash of the recipe, hash of what decides its result on `tiny`], computed by the code of 97f2ae7.
STORED = json.loads((Path(__file__).parents[1] / "data" / "recipe_ids.json").read_text())


@pytest.fixture(scope="module")
def tiny():
    return Checkpoint(resolve("tiny"))


LEFT = {"dsnot", "alphapruning", "layerif-sketch"}


def test_hashes_and_result_ids_are_those_of_earlier_versions(tiny):
    assert len(STORED) == 62
    for kind, settings, hash_before, id_before in STORED:
        if {*map(str, settings.values())} & LEFT or settings.keys() & {"row_power", "window"}:
            with pytest.raises(PrunusError, match="only earlier versions have"):
                RECIPES[kind].from_json(settings)
            continue
        recipe = RECIPES[kind](**settings)
        assert recipe.hash == hash_before, settings
        assert content_hash(effective(recipe, tiny)) == id_before, settings
        assert RECIPES[kind].from_json(recipe.to_json()) == recipe


TOKEN_WEIGHTS = {"closing_weight": (None, 4.0), "prompt_weight": (1.0, 0.0), "chain_weight": (1.0, 8.0)}
# [kind, hash of its default before the settings were removed, {setting: (its default, another value)}].
REMOVED = [
    (
        PruneRecipe,
        "cdb9ddacc9a8",
        {
            **TOKEN_WEIGHTS,
            "expert_spread": (0.0, 0.1),
            "gradient_scale": (100.0, 50.0),
            "repair_rounds": (5, 1),
            "repair_rate": (3e-7, 1e-3),
            "statistic": ("mean", "median"),
            "swap_cycles": (50, 1),
            "swap_threshold": (0.1, 0.0),
            "admm_iterations": (300, 1),
            "admm_rho": (0.1, 1.0),
            "min_expert_tokens": (64, 1),
            "row_power": (0.0, 0.5),
            "window": ("fixed", "reference"),
        },
    ),
    (DropRecipe, "cb529e5d2273", {"telescoping": (False, True)}),
    (
        ExpertsRecipe,
        "94e908a5ed32",
        {**TOKEN_WEIGHTS, "distill_router": (False, True), "spread": ("uniform", "global")},
    ),
    (RecoverRecipe, "6bc5b1fe772e", TOKEN_WEIGHTS | {"norms": (True, False)}),
    (WidthRecipe, "eea5f2e0f1f6", TOKEN_WEIGHTS),
    (QuantizeRecipe, "3221131589a0", TOKEN_WEIGHTS | {"min_expert_tokens": (64, 1)}),
]


@pytest.mark.parametrize(("kind", "hash_before", "removed"), REMOVED)
def test_a_removed_setting_is_ignored_at_its_default_and_refused_elsewhere(kind, hash_before, removed):
    assert kind().hash == hash_before
    usual = {name: value for name, (value, _) in removed.items()}
    assert kind.from_json(kind(seed=3).to_json() | usual) == kind(seed=3)
    for name, (_, other) in removed.items():
        with pytest.raises(
            PrunusError, match=f"'{name}' {other!r} is a setting that only earlier versions have: leave"
        ):
            kind.from_json({name: other})


# [settings, label, options on a card], as the code of 0ec12a0, the last with these methods, wrote them.
GONE = [
    ({"method": "ria"}, "RIA 50\xa0%", "--method ria --sparsity 0.5"),
    ({"method": "ria", "group": "tensor"}, "RIA 50\xa0%", "--group tensor --method ria --sparsity 0.5"),
    ({"method": "gblm", "group": "tensor"}, "GBLM by tensor 50\xa0%", "--group tensor --method gblm --sparsity 0.5"),
    (
        {"method": "wanda++", "repair_rounds": 1, "pattern": "2:4"},
        "Wanda++ 2:4",
        "--method wanda++ --pattern 2:4 --repair-rounds 1",
    ),
    (
        {"allocation": "dlp", "statistic": "median"},
        "Wanda DLP 50\xa0%",
        "--allocation dlp --method wanda --sparsity 0.5 --statistic median",
    ),
]


@pytest.mark.parametrize(("changes", "label", "options"), GONE)
def test_methods_of_earlier_versions_are_read_and_not_made(changes, label, options, tmp_path):
    stored = dict(sorted((PruneRecipe().to_json() | changes).items()))
    step = {"action": "prune", "recipe": stored}
    assert labels.step_label(step) == label and " ".join(options_of("prune", stored)) == options
    assert {name: value for name, value in labels.settings(step) if name in changes} == changes
    (name,) = [name for name in ("method", "allocation") if name in changes]
    said = f"'{changes[name]}' is one that only earlier versions have; use {'wanda' if name == 'method' else 'atp'}"
    with pytest.raises(PrunusError) as refused:
        PruneRecipe(**{name: changes[name]})
    assert str(refused.value) == f"{name} {said}"
    told = CliRunner().invoke(cli, ["prune", "tiny", str(tmp_path / "out"), f"--{name}", changes[name]])
    assert told.exit_code == 2 and said in told.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["output", "router"])
def test_criteria_of_earlier_versions_are_read_and_not_made(method):
    stored = ExpertsRecipe().to_json() | {"method": method}
    step = {"action": "experts", "recipe": dict(sorted(stored.items()))}
    assert labels.step_label(step) == f"{method.capitalize()} 75\xa0% of experts"
    assert options_of("experts", step["recipe"]) == ["--keep", "0.75", "--method", method]
    with pytest.raises(PrunusError, match=f"^method '{method}' is one that only earlier versions have; use reap$"):
        ExpertsRecipe(method=method)
