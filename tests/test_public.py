"""The public API as it is: names, parameters and the fields of records. A difference breaks scripts of users."""

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import prunus
from prunus.plain_data import Record

ROOT = Path(__file__).parent.parent
# {function: its parameters; those after * by name only, those with = have defaults}
FUNCTIONS = {
    "allocate": "model, recipe, *, save=, device=",
    "apply_steps": "model, out, steps, *, device=, offload=, overwrite=, dry_run=",
    "card": "checkpoint, *, store=, run=, base=, base_model=, margin=, out=, overwrite=",
    "dequantize": "model, out, *, overwrite=",
    "drop": "model, out, recipe, *, device=, overwrite=, dry_run=, name=",
    "expert_stats": "model, out, *, device=, overwrite=, **options",
    "experts": "model, out, recipe=, *, device=, overwrite=, dry_run=, stats=, name=",
    "gguf": "model, out, recipe=, *, dense=, overwrite=, dry_run=, name=",
    "inspect": "checkpoint, *, weights=",
    "methods": "",
    "perplexity": "model, text, *, seqlen=, max_tokens=, device=",
    "profiles": "",
    "prune": "model, out, recipe, *, device=, offload=, overwrite=, dry_run=, stats=, shared=, name=",
    "quantize": "model, out, recipe=, *, stats=, device=, offload=, overwrite=, dry_run=, name=",
    "recover": "pruned, out, recipe=, *, dense=, device=, offload=, overwrite=, dry_run=, name=",
    "show_profile": "name=, model=",
    "stats": "model, out, *, hessians=, device=, overwrite=, **options",
    "tasks": "",
    "traces": "model, out, recipe, *, device=, engine=, overwrite=",
    "width": "model, out, recipe=, *, stats=, device=, offload=, overwrite=, dry_run=, name=",
}
PLANNED = "would_write warnings then recovery_calibration recovery_memory"
PLANNED_JOB = f"{PLANNED} disk calibration"
# {record: its fields}
RECORDS = {
    "Allocated": "allocation sparsity scope score blocks evidence warnings",
    "CardMade": "out run base verdict warnings",
    "Dequantized": "out seconds warnings quantisation blocks",
    "Dropped": "out seconds warnings method removed blocks blocks_removed scores",
    "ExpertsMeasured": "out size sequences tokens warnings experts",
    "FewerExperts": "out seconds warnings method experts blocks parameters experts_removed scores tokens difference",
    "GgufFacts": "file family stored parameters weight_bytes types history",
    "GgufMade": "out seconds warnings type architecture tensors exact size before",
    "InputsMeasured": "out size sequences tokens warnings inputs hessians",
    "Made": "out seconds warnings",
    "MethodEntry": "kind name source description needs",
    "ModelFacts": "folder family language_model model_class transformers dtype stored parameters weight_bytes bytes"
    " history refused structure uses weights",
    "Narrowed": "out seconds warnings method channels blocks parameters removed error difference",
    "Perplexity": "perplexity nll tokens windows seqlen",
    "Planned": PLANNED,
    "PlannedDrop": f"{PLANNED_JOB} blocks would_remove",
    "PlannedExperts": f"{PLANNED_JOB} experts blocks",
    "PlannedGguf": f"{PLANNED} type architecture tensors exact size before",
    "PlannedPrune": f"{PLANNED_JOB} method blocks linears weights zeros influences",
    "PlannedQuantize": f"{PLANNED_JOB} method format blocks linears size before",
    "PlannedRecover": f"{PLANNED_JOB} dense blocks streams",
    "PlannedWidth": f"{PLANNED_JOB} channels blocks parameters removed",
    "ProfileEntry": "name description",
    "ProfileUnderModel": "prompt think_stops stops_are_text end_of_turn natural_closing forced_closing off off_prompt",
    "Pruned": "out seconds warnings method blocks linears sparsity linear_sparsity",
    "Quantized": "out seconds warnings method format blocks linears size before error_before error_after",
    "Recovered": "out seconds warnings blocks recovered tokens trained_tokens error_before error_after errors",
    "ShownProfile": "profile settings off native under",
    "TaskEntry": "name source description",
    "Traces": "out chains drawn correct tokens seconds",
}


def parameters(function):
    """The parameters of a function, in one line."""
    found, named = [], False
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not named:
            found.append("*")
            named = True
        stars = {one.VAR_KEYWORD: "**", one.VAR_POSITIONAL: "*"}.get(one.kind, "")
        found.append(f"{stars}{one.name}{'' if one.default is one.empty else '='}")
    return ", ".join(found)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_what_scripts_of_users_give(name):
    assert parameters(getattr(prunus, name)) == FUNCTIONS[name], (
        f"calls of prunus.{name} in users' scripts would fail: keep what they give, or say in CHANGELOG.md what is new"
    )


@pytest.mark.parametrize("name", RECORDS)
def test_records_have_what_scripts_of_users_read(name):
    assert " ".join(one.name for one in fields(getattr(prunus, name))) == RECORDS[name], (
        f"scripts of users read these attributes of prunus.{name}, and the keys that --json prints are theirs"
    )


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_of_a_record_is_described(name):
    record = getattr(prunus, name)
    described = "\n".join(base.__doc__ or "" for base in record.__mro__ if issubclass(base, Record))
    assert [one.name for one in fields(record) if not _says(described, one.name)] == []


def _says(text, name):
    heads = (line.partition(":")[0] for line in text.splitlines() if line.startswith("    "))
    return any(name in head.replace(",", " ").split() for head in heads)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_described_and_there_is_an_example(name):
    text, function = getattr(prunus, name).__doc__ or "", getattr(prunus, name)
    missing = [one for one in inspect.signature(function).parameters if not _says(text, one)]
    assert missing == []
    assert f"prunus.{name}(" in text


def test_all_is_what_the_package_has():
    tree = ast.parse(Path(prunus.__file__).read_text())
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.If)
        for part in node.body
        if isinstance(part, ast.ImportFrom)
        for alias in part.names
    }
    homes = {name for names in prunus._NAMES.values() for name in names}  # pyright: ignore[reportPrivateUsage]
    assert imported == homes
    old = {"import_rows", "run_study"}
    assert set(prunus.__all__) == (imported - old - {"open"}) | {"import_", "study"}
    assert [name for name in (*prunus.__all__, *old) if not hasattr(prunus, name)] == []


def test_old_names_are_the_same_functions():
    assert prunus.drop_blocks is prunus.drop and prunus.drop_experts is prunus.experts
    assert prunus.run_study is prunus.study and prunus.import_rows is prunus.import_
    assert prunus.eval is prunus.evaluate


def test_help_of_a_recipe_says_every_setting_with_its_default():
    text = prunus.PruneRecipe.__doc__ or ""
    assert [one.name for one in fields(prunus.PruneRecipe) if f"    {one.name}: " not in text] == []
    assert "sparsity: Share of zeros in the Linears in scope, in [0, 1). Default: 0.5." in text


def test_a_record_is_shown_as_its_command_prints_it():
    made = prunus.Pruned(
        out="o", seconds=1.23456, warnings=["w"], method="wanda", blocks=8, linears=56, sparsity=0.2, linear_sparsity={}
    )
    shown = ["Pruned", "out: o", "method: wanda", "blocks: 8", "linears: 56", "sparsity: 0.2", "seconds: 1.235"]
    assert repr(made) == "\n  ".join([*shown, "warning: w"])
    assert list(made.to_json()) == ["out", *RECORDS["Pruned"].split()[3:], "seconds", "warnings"]


@pytest.mark.slow
def test_a_strict_type_checker_accepts_a_script_of_a_user(tmp_path):
    (tmp_path / "api.py").write_text((ROOT / "examples/api.py").read_text())
    (tmp_path / "bad.py").write_text("import prunus\nprunus.inspect('tiny').no_such_fact\n")
    settings = {"include": ["."], "typeCheckingMode": "strict", "extraPaths": [str(ROOT / "src")]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    checker = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(tmp_path)]
    found = json.loads(subprocess.run(checker, check=False, capture_output=True, text=True).stdout)
    wrong = {(Path(one["file"]).name, one["message"]) for one in found["generalDiagnostics"]}
    assert {name for name, _ in wrong} == {"bad.py"}, wrong
