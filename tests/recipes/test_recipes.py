"""Recipes: what they refuse, their JSON and their hash."""

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest

from prunus.errors import PrunusError
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe, QuantizeRecipe, TraceRecipe, WidthRecipe
from prunus.recipes.eval import check_budgets
from prunus.settings.budgets import Off
from prunus.settings.engines import EngineOptions
from prunus.step import STEPS, step_kind, with_defaults


@pytest.mark.parametrize(
    "recipe", [PruneRecipe(sparsity=0.25), DropRecipe(blocks="3,1"), EvalPlan(tasks=("tiny", "x"))]
)
def test_json_and_back_is_the_same_recipe(recipe):
    back = type(recipe).from_json(json.loads(json.dumps(recipe.to_json())))
    assert back == recipe
    assert back.hash == recipe.hash


def test_hash_changes_with_every_field_and_not_with_key_order():
    base = PruneRecipe()
    changed = [
        PruneRecipe(method="magnitude"),
        PruneRecipe(sparsity=0.4),
        PruneRecipe(seed=1),
        PruneRecipe(sequences=64),
    ]
    assert len({recipe.hash for recipe in [base, *changed]}) == 5
    shuffled = dict(reversed(base.to_json().items()))
    assert PruneRecipe.from_json(shuffled).hash == base.hash


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("prune", "1a9d1a72e413"),
        ("drop", "aeac7b0ef97a"),
        ("experts", "5457cf6923be"),
        ("width", "6659c55ac128"),
        ("recover", "1886ee4c1515"),
        ("quantize", "024166d3f4a1"),
        ("gguf", "362e5caaa013"),
    ],
)
def test_hashes_stay(kind, expected):
    """Unfinished work and cached variants of studies are made anew where a hash changes."""
    assert step_kind(kind).recipe().hash == expected


@pytest.mark.parametrize(
    ("blocks", "indices", "count"), [("2", None, 2), ("16,17", (16, 17), 2), ("5,", (5,), 1), ("4,4,1", (1, 4), 2)]
)
def test_blocks_is_a_number_or_a_list(blocks, indices, count):
    recipe = DropRecipe(blocks=blocks)
    assert (recipe.indices, recipe.count(40)) == (indices, count)


REFUSED = [
    (lambda: PruneRecipe.from_json({"sparsty": 0.5}), "unknown key 'sparsty'"),
    *((partial(PruneRecipe, sparsity=value), "sparsity must lie in") for value in (-0.1, 1.0, 20)),
    *((partial(DropRecipe, blocks=value), "blocks") for value in ("", "0", "-1", "two", "1.5", ",", "²")),
    (partial(check_budgets, ()), "at least one"),
    (partial(check_budgets, (64, 64)), "must increase: 64 follows 64"),
    (partial(check_budgets, (64, 32)), "32 follows"),
    (partial(check_budgets, (-1,)), "negative"),
    (lambda: EvalPlan(tasks=("tiny",), wait=1), "--no-reuse"),  # refusing to stop cannot share chains
    # Python reads an argument that is not UTF-8 so.
    (
        lambda: EvalPlan(tasks=("tiny",), closing="\udcff</think>"),
        r"'closing' must be a text, not '\\udcff</think>'",
    ),
    (lambda: QuantizeRecipe.from_json({"bits": 4, "group": 48}), "'group' must be a text, not 48"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_is_refused_is_one_line(call, message):
    with pytest.raises(PrunusError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_refusing_to_stop_takes_a_chain_for_each_budget():
    assert EvalPlan(tasks=("tiny",), wait=1, reuse=False).wait == 1


SETTINGS = {PruneRecipe: {}, DropRecipe: {}, EvalPlan: {"tasks": ("tiny",)}, TraceRecipe: {"tasks": ("tiny",)}}
SETTINGS[EngineOptions] = {}
FIELDS = [(cls, field.name) for cls in SETTINGS for field in fields(cls)]
VALUES = [
    None,
    True,
    3,
    0.5,
    "0.5",
    b"x",
    ["x"],
    ("x", "y"),
    [1],
    (True,),
    [0.5],
    {"a": 1},
    {1: 2},
    object(),
    1 << 2000,
]
# Which of them a field of a type may have, written out: what fits is refused for its value at most.
ALLOWED = {
    int: [3, 1 << 2000],
    float: [3, 0.5],
    bool: [True],
    str: ["0.5"],
    tuple[str, ...]: [["x"], ("x", "y")],
    tuple[int | Off, ...]: [[1]],
    Mapping: [{"a": 1}],
    Literal: ["0.5"],
    NoneType: [None],
}


def allowed(hint) -> set[str]:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {repr(value) for part in parts for value in ALLOWED.get(part) or ALLOWED[get_origin(part)]}


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name in FIELDS])
def test_a_value_of_a_wrong_type_names_field_value_and_type(cls, name):
    fitting = allowed(get_type_hints(cls)[name])
    for value in VALUES:
        if repr(value) in fitting:
            try:
                cls(**SETTINGS[cls] | {name: value})
            except PrunusError as error:  # for what it is, not for its type
                assert f"'{name}' must be" not in str(error)
            continue
        with pytest.raises(PrunusError) as caught:
            cls(**SETTINGS[cls] | {name: value})
        said = str(caught.value)
        assert said.startswith(f"'{name}' must be a ") or said.startswith(f"'{name}' must be true or false"), said
        assert repr(value)[:90] in said and "\n" not in said


def test_whole_numbers_and_lists_are_the_recipes_that_floats_and_tuples_are():
    assert PruneRecipe(sparsity=0, outlier_threshold=7).to_json() == PruneRecipe(sparsity=0.0).to_json()
    listed, usual = EvalPlan(tasks=["tiny"], budgets=[1, 2]), EvalPlan(tasks=("tiny",), budgets=(1, 2))  # type: ignore[arg-type]
    assert listed == usual and hash(listed) == hash(usual) and listed.hash == usual.hash


def test_a_whole_number_is_the_choice_that_it_spells():
    """As in TOML, `group = 32`."""
    number, text = (QuantizeRecipe.from_json({"bits": 4, "group": group}) for group in (32, "32"))
    assert number == text and number.group == "32" and number.hash == text.hash


def same_values(recipe):
    """A recipe again, in every way in which one is passed on."""
    yield copy.copy(recipe)
    yield copy.deepcopy(recipe)
    yield pickle.loads(pickle.dumps(recipe))  # noqa: S301  our own
    yield type(recipe).from_json(json.loads(json.dumps(recipe.to_json())))
    yield replace(recipe)
    yield type(recipe)(**{field.name: getattr(recipe, field.name) for field in fields(recipe)})


@pytest.mark.parametrize("action", STEPS)
@pytest.mark.parametrize("fit", [True, False])
def test_equal_recipes_act_equally(action, fit):
    """A default used to be told from the same value by the identity of a float, which no copy keeps."""
    recipe = step_kind(action).recipe()
    before = WidthRecipe(fit=fit)
    for again in same_values(recipe):
        assert again == recipe and again.hash == recipe.hash
        assert with_defaults([before, again]) == with_defaults([before, recipe])
        assert with_defaults(with_defaults([before, again])) == with_defaults([before, recipe])
    if action == "prune":
        for again in same_values(recipe):
            assert isinstance(again, PruneRecipe) and replace(again, pattern="1:4").sparsity == 0.75
    if action == "recover":
        assert vars(with_defaults([before, recipe])[-1])["rate"] == (None if fit else 0.01)
