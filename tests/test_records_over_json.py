"""Records that the API returns are equal after JSON, pickle and `dataclasses.replace`."""

import inspect
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import prunus
from prunus.plain_data import Record, read_hints
from prunus.results.vocabulary import Verdict
from prunus.settings.budgets import with_names
from prunus.settings.margins import Margin
from prunus.store.stored import StoredData

# Their plain data leaves out a field or a level that only Python has, or they are tables of a terminal.
NOT_READ = {
    "Allocated",
    "BlockSparsity",
    "Exported",
    "Found",
    "ModelFacts",
    "PlanContrast",
    "RungWord",
    "ShownProfile",
    "StudyPlan",
    "StudyResult",
}


def records(hint: Any) -> set[type[Record]]:
    """The classes of records in a type, and in their fields."""
    own = isinstance(hint, type) and issubclass(hint, Record)
    inside = get_type_hints(hint).values() if own else get_args(hint)
    return ({hint} if own else set[type[Record]]()).union(*map(records, inside))


def example(hint: Any) -> Any:
    """A value of a type."""
    kind, of = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return example(next(option for option in of if option is not NoneType))
    if kind is Annotated or kind is Literal:
        return of[0] if kind is Literal else example(of[0])
    if kind is Mapping:
        return {example(of[0]): example(of[1])}
    if kind in (Sequence, list):
        return [example(of[0])]
    if kind is tuple:
        return tuple(example(part) for part in of if part is not ...)
    if isinstance(kind, type) and issubclass(kind, StoredData):
        return kind.of({"tasks": ["a"], "budgets": ["off", 16], "samples": 2})
    if isinstance(kind, type) and issubclass(kind, Record):
        return filled(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    if kind is Margin:
        return Margin.of("5%")
    return {int: 3, float: 0.5, str: "a", bool: True, Any: "x", object: "x"}[kind]


def filled(kind: type[Record]) -> Record:
    """A record with a value in every field that its plain data has."""
    hints = read_hints(kind)
    shown = [field for field in fields(kind) if field.metadata.get("key", field.name) is not None]
    return kind(**{field.name: example(hints[field.name]) for field in shown})


FUNCTIONS = [getattr(prunus, name) for name in prunus.__all__ if inspect.isfunction(getattr(prunus, name))]
RETURNED = set[type[Record]]().union(*(records(get_type_hints(function)["return"]) for function in FUNCTIONS))
READ = sorted((kind for kind in RETURNED if kind.__name__ not in NOT_READ), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.__name__)
def test_a_record_is_equal_after_json_and_pickle(kind):
    record = filled(kind)
    assert kind.of(json.loads(json.dumps(with_names(record.to_json())))) == record
    assert pickle.loads(pickle.dumps(record)) == replace(record) == record  # noqa: S301


def test_most_records_are_read_and_numbers_stay_keys_and_verdicts_words():
    assert len(READ) > 70 and {kind.__name__ for kind in RETURNED} >= NOT_READ
    comparison = prunus.Comparison.of(json.loads(json.dumps(filled(prunus.Comparison).to_json())))
    (part,) = comparison.others[0].tasks.values()
    assert [*part.budgets] == [3]
    assert comparison.others[0].verdict is Verdict.WORSE
