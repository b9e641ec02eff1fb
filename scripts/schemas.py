"""Write docs/schemas/*.json, the JSON Schemas of Prunus' TOML files for editors, or check that they are up to date.

python scripts/schemas.py [--check]
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from prunus.evaluation.profiles import CHOICES, Profile
from prunus.recipes import EvalPlan, RecoverRecipe
from prunus.settings import choices_of, hints_of, settings_of
from prunus.settings.budgets import OFF, Off
from prunus.settings.engines import EngineOptions
from prunus.step import STEPS
from prunus.studies import file as study

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number"}
Schema = dict[str, Any]


def of_hint(hint: Any) -> Schema:
    """Return the schema of a type of the settings."""
    if hint is Any or hint is None:
        return {}
    if choices := choices_of(hint):
        return of_choices(choices)
    if hint is Off:
        return {"const": str(OFF)}
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    origin, parts = get_origin(hint), [part for part in get_args(hint) if part not in (NoneType, ...)]
    if origin is tuple:
        return {"type": "array", "items": of_hint(parts[0])}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object"}
    if len(parts) > 1:
        return {"anyOf": [of_hint(part) for part in parts]}
    return of_hint(parts[0]) if parts else {}


def of_choices(choices: Sequence[str]) -> Schema:
    """Return the schema of one of some texts, of which numbers may be written as such."""
    return {"enum": [*choices, *(int(choice) for choice in choices if choice.isdecimal())]}


def table(hints: Mapping[str, Any], described: type | None = None, grid: bool = False, **more: Schema) -> Schema:
    """Return the schema of a table. described: a class of settings with texts. grid: whether a list stands for each."""
    known = settings_of(described) if described else {}
    found = dict[str, Schema]()
    for name, hint in hints.items():
        value = of_choices(known[name].choices) if name in known and known[name].choices else of_hint(hint)
        if grid and value:
            value = {"anyOf": [value, {"type": "array", "items": value}]}
        found[name] = value | ({"description": known[name].help} if name in known else {})
    return {"type": "object", "properties": found | more, "additionalProperties": False}


def steps() -> dict[str, Schema]:
    """Return the schemas of the tables of steps, each of which may be there several times."""
    names = {study.SERVINGS: of_hint(tuple[str, ...])}
    recover = table(hints_of(RecoverRecipe), RecoverRecipe, True)
    after: Schema = {"anyOf": [{"type": "boolean"}, recover, {"type": "array"}]}
    found = dict[str, Schema]()
    for action, recipe in study.RECIPES.items():
        own = names | {study.AFTER: after} | ({study.BEFORE: after | {"anyOf": [{}]}} if action == "prune" else {})
        hints = dict(hints_of(recipe))
        if action == "drop":
            hints["blocks"] = str | int
        found[action] = {"type": "array", "items": table(hints, recipe, True, **own)}
    step = {"type": "object", "propertyNames": {"enum": [*STEPS, study.SERVING]}}
    chain = {"steps": {"type": "array", "items": step}} | names
    found[study.CHAIN] = {
        "type": "array",
        "items": {"type": "object", "properties": chain, "additionalProperties": False},
    }
    found[study.SERVING] = {"type": "array", "items": table(study.OF_SERVING, EngineOptions)}
    return found | {"calibration": table(study.SHARED)}


def schemas() -> dict[str, Schema]:
    """Return {name: schema} of studies, of forms and ladders, and of profiles."""
    plan: Schema = table(dict.fromkeys(hints_of(EvalPlan)))
    plan["properties"] = table(hints_of(EvalPlan), EvalPlan, True)["properties"]
    plan["properties"]["budgets"] = {"type": "array"}
    plan["properties"]["tasks"] = {"type": "array"}
    find = {"type": "array", "items": table(study.FIND_KEYS, study.FindRules, recover={})}
    top = {
        "name": {"type": "string"}, "models": of_hint(str | tuple[str, ...]), "keep_checkpoints": {"type": "boolean"},
        "by_batch": {"type": "boolean"}, "eval": plan, "engine": table(hints_of(EngineOptions), EngineOptions),
        "find": find, "report": table(study.REPORT), **steps(),
    }  # fmt: skip
    profile: dict[str, Any] = {name: {"type": "string"} for name in ("name", "extends")} | {
        "format": {"type": "integer"}
    }
    for one in fields(Profile):
        where, key = one.metadata.get("table", ""), one.metadata.get("key", "")
        if not key:
            continue
        value = {"enum": [*CHOICES[one.name]]} if one.name in CHOICES else of_hint(hints_of(Profile)[one.name])
        if value.get("type") == "array":
            value = {"anyOf": [value, {"const": "auto"}]}
        if where:
            inside = profile.setdefault(where, {"type": "object", "properties": {}})
            inside["properties"][key] = value
        else:
            profile[key] = value
    made = {"study": top, "forms": steps(), "profile": profile}
    assert {*top} == {*study.TOP}, "a study's file has other tables"
    kinds = {name: {"type": "object", "properties": content} for name, content in made.items()}
    for name in ("study", "forms"):
        kinds[name]["additionalProperties"] = False
    return {name: {"$schema": "http://json-schema.org/draft-07/schema#", **kind} for name, kind in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail unless the files are up to date")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        path, text = FOLDER / f"{name}.json", json.dumps(schema, indent=1) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path} is not up to date: run `make docs`")


if __name__ == "__main__":
    main()
