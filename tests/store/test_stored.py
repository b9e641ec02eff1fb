import sqlite3
from contextlib import closing
from dataclasses import fields

import pytest

from prunus.errors import PrunusError
from prunus.recipes import EvalPlan
from prunus.settings.budgets import OFF
from prunus.settings.serving import Serving
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.store.stored import Environment, StoredModel, StoredPlan

PLAN = EvalPlan(
    ("a", "b"), (OFF, 16, 64), samples=3, temperature=0.6, top_p=0.9, limit=8, closing="</t>", reuse=False, seed=5
)


def test_a_stored_plan_has_the_settings_that_were_written():
    stored = StoredPlan.of(PLAN.to_json())
    shared = {field.name for field in fields(EvalPlan)} & {field.name for field in fields(StoredPlan)}
    assert len(shared) > 15
    assert {name: getattr(stored, name) for name in shared} == {name: getattr(PLAN, name) for name in shared}
    assert stored.budgets[0] is OFF and stored.data == PLAN.to_json() and StoredPlan.of(stored) == stored


def test_what_a_plan_does_not_have_is_its_default_and_other_keys_stay():
    stored = StoredPlan.of({"tool": "t", "own": 1, "limit": None})
    assert (stored.samples, stored.control, stored.reuse, stored.limit) == (1, "forced", None, None)
    changed = stored | {"samples": 2}
    assert changed.samples == 2 and changed.data == {"tool": "t", "own": 1, "limit": None, "samples": 2}
    assert stored.differing(changed) == ["samples"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"budgets": [1.5]}, "budgets: a budget is no number of tokens"),
        ({"budgets": "all"}, "budgets: it must be a list"),
        ({"samples": True}, "samples: it is no number of draws"),
        ({"limit_of": {"tasks": [1]}}, "limit_of: tasks: it must be a text"),
        ({"answer_tokens": "x"}, "answer_tokens: it must be an object"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(data, says):
    with pytest.raises(ValueError, match=says):
        StoredPlan.of(data)


def test_a_stored_model_has_its_serving_and_cache_and_what_counts_for_ids():
    serving = Serving(args={"dtype": "half"}, words=("--x 1",))
    data = {"name": "m", "checksum": "c", "serving": serving.to_json(), "served_as": "half", "bytes": {"others": 5}}
    stored = StoredModel.of(data)
    assert stored.serving == serving and stored.data == data and not StoredModel.of({}).serving
    assert (stored.name, stored.bytes, stored.parameters, stored.cache) == ("m", {"others": 5}, None, None)
    assert stored.about == {"serving": serving.to_json()} and stored.weights == "c"
    assert StoredModel.of({"name": "m", "content": ""}).about == {}
    assert StoredModel.of({"name": "m"}).weights == {"name": "m"}, "without a checksum all that is known"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"name": 5}, "name: it must be a text, not 5"),
        ({"bytes": {"others": -1}}, "bytes: it is no number of bytes"),
        ({"manifest": [1]}, "manifest: it must be an object"),
        ({"serving": {"words": "x"}}, "serving: it must be a list"),
        ({"cache": {"keys": "f16"}}, "cache: it is no size of a cache"),
        ({"parameters": True}, "parameters: it must be a whole number"),
    ],
)
def test_a_model_of_a_wrong_type_is_named_with_its_run(data, says):
    with pytest.raises(ValueError, match=f"^in the model of run r, {says}"):
        Run.of("r", data, {}, {})


def test_the_rules_of_an_environment_are_apart_from_what_computes():
    data = {"grader": "4", "protocol": "1 and 2", "torch": "2", "flags": {"A": "1"}}
    environment = Environment.of(data)
    assert environment.rules == {"grader": "4", "protocol": "1 and 2"} and environment.data == data
    assert environment.without_rules.data == {"torch": "2", "flags": {"A": "1"}}
    assert Environment.of({"protocol": ""}).rules == {}


def test_an_environment_of_a_wrong_type_is_one_line(tmp_path):
    """In the first start of a run, and in a later one."""
    for number, damage in enumerate(
        (
            """UPDATE run SET versions = '{"dtype": 16}'""",
            """INSERT INTO start (run_id, at, versions, mixed) VALUES ('r', 'now', '{"dtype": 16}', 0)""",
        )
    ):
        path = tmp_path / f"{number}.db"
        with Store(path, create=True) as store:
            store.add_run(Run.of("r", {"name": "m"}, {}, {"dtype": "float16"}))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(damage)
        with Store(path) as store, pytest.raises(PrunusError, match=r"is damaged \(.* run r, dtype: it must be a text"):
            store.runs()
