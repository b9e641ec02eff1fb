"""The comparison group: rows or the whole tensor for every method that scores, exact counts, and what it goes with."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from click.testing import CliRunner
from method_cases import case, stats
from safetensors.torch import load_file
from tiny_models import make_model, random_rows

import prunus
from prunus.cli import cli
from prunus.errors import PrunusError
from prunus.manifest import StepRecord
from prunus.plain_data import content_hash
from prunus.pruning.masks import Target
from prunus.pruning.methods import METHODS
from prunus.recipes import PruneRecipe
from prunus.recipes.declarations import Group
from prunus.recipes.prune import OWN_GROUP
from prunus.step import steps_name
from prunus.store.labels import step_label
from prunus.studies.cells import effective

SCORES = {
    "magnitude": lambda w, _: w.abs(),
    "wanda": lambda w, inputs: w.abs() * inputs.norm_I,
}

NO_MODEL: Any = SimpleNamespace(manifest={})  # more is only asked where a recipe leaves something open


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    make_model(folder / "m", "qwen2", dtype=torch.bfloat16)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in random_rows(6, 20)))
    return folder


def pruned(place, out, stats_file=None, **changes) -> dict[str, torch.Tensor]:
    """The Linears' weights after pruning."""
    on: dict[str, Any] = {} if stats_file else {"calibration": str(place / "rows.jsonl"), "sequences": 6}
    settings: dict[str, Any] = on | {"sparsity": 0.5} | changes
    prunus.prune(place / "m", out, PruneRecipe(**settings), stats=stats_file, overwrite=True)
    return {name: w for name, w in load_file(out / "model.safetensors").items() if "_proj.weight" in name}


@pytest.mark.parametrize("group", get_args(Group))
@pytest.mark.parametrize("name", sorted(SCORES))
def test_the_lowest_scores_of_the_group_go(name, group: Group):
    weight, tokens = case((10, 33))
    inputs = stats(tokens)
    score = SCORES[name](weight, inputs).double()
    found = METHODS[name].prune(weight, inputs, Target(0.4, group=group)) == 0
    expected = torch.zeros_like(found)
    if group == "row":
        for o, row in enumerate(score.tolist()):
            for i in sorted(range(33), key=row.__getitem__)[:13]:
                expected[o, i] = True
    else:
        flat = score.flatten().tolist()
        for place in sorted(range(330), key=flat.__getitem__)[:132]:
            expected[place // 33, place % 33] = True
    assert torch.equal(found, expected)


def test_own_groups_are_those_of_the_methods():
    own: dict[str, Any] = {name: METHODS[name].group for name in METHODS if name in OWN_GROUP}
    assert own == OWN_GROUP
    weight, tokens = case((10, 33))
    inputs = stats(tokens)
    for name, group in own.items():
        plain = METHODS[name].prune(weight, inputs, Target(0.4))
        assert torch.equal(METHODS[name].prune(weight, inputs, Target(0.4, group=group)), plain)


@pytest.mark.slow
@pytest.mark.parametrize("allocation", ["uniform", "owl"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_counts_of_a_checkpoint(place, tmp_path, method, allocation):
    rows = pruned(place, tmp_path / "a", method=method, group="row", allocation=allocation)
    assert all(len(set((w == 0).sum(1).tolist())) == 1 for w in rows.values())
    whole = pruned(place, tmp_path / "b", method=method, group="tensor", allocation=allocation)
    assert sum(int((w == 0).sum()) for w in whole.values()) == sum(w.numel() for w in whole.values()) // 2
    assert any(len(set((w == 0).sum(1).tolist())) > 1 for w in whole.values())
    step = json.loads((tmp_path / "b/prunus.json").read_text())["history"][0]
    assert step["recipe"]["group"] == "tensor"
    assert prunus.inspect(tmp_path / "b").history[0].recipe["group"] == "tensor"


@pytest.mark.slow
def test_saved_statistics_give_the_same(place, tmp_path):
    prunus.stats(place / "m", tmp_path / "stats", calibration=str(place / "rows.jsonl"), sequences=6)
    asked: dict[str, Any] = {"method": "wanda", "group": "tensor", "propagation": "dense"}
    full = pruned(place, tmp_path / "full", **asked)
    quick = pruned(place, tmp_path / "quick", tmp_path / "stats", **asked)
    assert all(torch.equal(full[name], quick[name]) for name in full)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "sparsegpt", "group": "row"}, "group belongs to method magnitude or wanda, not to sparsegpt"),
        ({"method": "alps", "group": "tensor"}, "not to alps"),
        ({"pattern": "2:4", "group": "row"}, "pattern 2:4 says which weights are ranked together; leave group out"),
        ({"group": "column"}, "group 'column' is not known; choose one of row, tensor"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(changes, words):
    with pytest.raises(PrunusError, match=words):
        PruneRecipe(**changes)


def test_cells_are_told_apart_by_their_group():
    asked = PruneRecipe(group="tensor")
    assert PruneRecipe.from_json(asked.to_json()) == asked and asked.hash != PruneRecipe().hash
    cell = PruneRecipe(calibration="c4")

    def key(recipe):
        return content_hash(effective(recipe, NO_MODEL))

    assert key(replace(cell, group="row")) == key(cell)  # Wanda's own
    assert key(replace(cell, group="tensor")) != key(cell)
    assert steps_name([replace(cell, group="row")]) == "wanda-20" and steps_name([asked]) == "wanda-tensor-20"


def test_labels_say_it_where_it_is_not_the_methods_own():
    step = {"action": "prune", "recipe": {"method": "wanda", "sparsity": 0.2, "group": "tensor"}}
    assert step_label(StepRecord.of(step)) == "Wanda by tensor 20\xa0%"
    step["recipe"]["group"] = "row"
    assert step_label(StepRecord.of(step)) == "Wanda 20\xa0%"


def test_the_command_takes_it(place, tmp_path):
    command = ["prune", str(place / "m"), str(tmp_path / "out"), "--method", "magnitude", "--group", "row"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    weight = load_file(tmp_path / "out/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert set((weight == 0).sum(1).tolist()) == {6}  # a fifth of 32
