"""Bad inputs of all commands end with one line and exit code 2: never with an internal error, and never not at all.

These are some of the cases of tests/helpers/bad_inputs.py, which tries all when it is run by itself.
"""

import errno
import math
import os
import random
from dataclasses import fields
from pathlib import Path

import bad_inputs
import click
import pytest

import prunus
from prunus.cli import cli, main
from prunus.disk import EXPORTING, DiskFull, disk_errors, write_export
from prunus.errors import PrunusError
from prunus.recipes import DropRecipe, EvalPlan, ExpertsRecipe, PruneRecipe, RecoverRecipe, TraceRecipe
from prunus.settings import hints_of
from prunus.settings.engines import EngineOptions
from prunus.store.store import Store

SLOW = ("demo", "find", "study", "traces", "eval")  # commands that take seconds where they succeed
EVERY = {"files": 15, "settings": 14, "numbers": 18, "stores": 9, "models": 7, "paths": 9, "own_files": 211}
CELLS = 12  # of a store, which every run of the tests spoils otherwise
CASES = [
    case for kind in bad_inputs.KINDS if kind.__name__ in EVERY for case in list(kind())[3 :: EVERY[kind.__name__]]
]
LIMITS = [case for case in bad_inputs.limits() if case.arguments[0] not in SLOW and case.limit in (700, 20_000)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return bad_inputs.fill(tmp_path_factory.mktemp("bad") / "source")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_one_line(case, source, tmp_path):
    outcome = bad_inputs.run(case, source, tmp_path / "here")
    assert not outcome.wrong(case), outcome


# Cells that ended with an internal error once.
MENDED = (
    "found/found.db adaptive.how spoiled 1306: report", "found/found.db adaptive.how spoiled 785: compare",
    "found/found.db run.plan spoiled 2457: regrade", "found/found.db run.model spoiled 3166: report",
    "choice.db run.plan spoiled 226: export", "choice.db run.plan spoiled 3512: runs",
    "choice.db log.event spoiled 1775: verify", "choice.db log.event spoiled 2681: verify",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True], ids=["mended", "others in each run"])
def test_json_in_a_store_that_was_spoiled_is_one_line(drawn, source, tmp_path):
    every = list(bad_inputs.cells())
    some = random.sample(every, CELLS) if drawn else [case for case in every if case.name in MENDED]
    assert len(some) == (CELLS if drawn else len(MENDED))
    for number, case in enumerate(some):
        outcome = bad_inputs.run(case, source, tmp_path / str(number))
        assert not outcome.wrong(case), (case.name, outcome)


@pytest.mark.slow
@pytest.mark.parametrize("case", LIMITS, ids=lambda case: case.name)
def test_a_limit_of_file_sizes_is_one_line_and_nothing_left_is_in_the_way(case, source, tmp_path):
    outcome = bad_inputs.run(case, source, tmp_path / "here")
    assert not outcome.wrong(case), outcome
    if outcome.code == 2:
        assert not outcome.left or (outcome.left == ["out"] and case.arguments[0] == "import")  # a store without rows
        assert bad_inputs.give(case._replace(limit=None), tmp_path / "here").code == 0


RECIPES = (PruneRecipe, DropRecipe, ExpertsRecipe, RecoverRecipe, EvalPlan, TraceRecipe, EngineOptions)
SETTINGS = [
    (recipe, name) for recipe in RECIPES for name, hint in hints_of(recipe).items() if hint in (float, float | None)
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("recipe", "name"), SETTINGS, ids=[f"{recipe.__name__}.{name}" for recipe, name in SETTINGS])
def test_no_setting_is_nan_or_infinite(recipe, name, value):
    needed = {field.name: ("tiny",) for field in fields(recipe) if field.name == "tasks"}
    with pytest.raises(PrunusError, match=f"'{name}' must be a number"):
        recipe(**needed | {name: value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_option_is_nan_or_infinite(value, tmp_path, monkeypatch, capsys):
    """Every option of every command that takes a number with a point."""
    monkeypatch.chdir(tmp_path)
    seen = 0
    for case in bad_inputs.numbers():
        if case.name.endswith(f" {value!r}") and isinstance(option_of(case).type, click.types.FloatParamType):
            with pytest.raises(SystemExit) as ended:
                main(list(case.arguments))
            said = capsys.readouterr().err
            assert (ended.value.code == 2 and "finite number" in said) or "range" in said, case.name
            assert option_of(case).opts[0] in said, case.name
            seen += 1
    assert seen > 25


def option_of(case):
    [option] = [one for one in cli.commands[case.arguments[0]].params if one.opts[0] == case.name.split()[1]]
    return option


def test_a_threshold_that_is_no_number_is_refused(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("")
    from prunus.results.importing import _check_scores

    for threshold in (math.nan, math.inf):
        with pytest.raises(PrunusError, match="--threshold must be a finite number"):
            _check_scores([], "m", threshold)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[think]\nstops = 5", "line 4: 'stops' must be a list, each a text, not 5"),
        ("[sampling]\ntemperature = nan", "line 4: 'temperature' must be a number, not nan"),
        ("[off]\nblock = 5", "line 4: 'block' must be a text, not 5"),
        ("[think]\nstops = ['a']\n[answer]\nstops = 5", "line 6: 'stops' must be a list"),
        ("[answer]\nstop = 5", r"line 4: 'stop' is not known in \[answer\]"),
        ("[thinking]\nstops = 5", "line 3: 'thinking' is none of the tables"),
        ("thinking = 5", "line 3: 'thinking' is none of the tables"),
    ],
)
def test_a_profile_names_the_line_of_what_is_wrong(text, words, tmp_path):
    (tmp_path / "p.toml").write_text(f'format = 1\nextends = "qwen3"\n{text}\n')
    with pytest.raises(PrunusError, match=words):
        prunus.show_profile(str(tmp_path / "p.toml"))


CLASSES = {
    prunus.prune: DropRecipe(),
    prunus.drop: PruneRecipe(),
    prunus.experts: PruneRecipe(),
    prunus.recover: PruneRecipe(),
    prunus.width: PruneRecipe(),
    prunus.quantize: PruneRecipe(),
    prunus.gguf: PruneRecipe(),
    prunus.find: PruneRecipe(),
}


@pytest.mark.parametrize("function", CLASSES, ids=lambda one: one.__name__)
def test_a_recipe_of_another_class_is_named(function, tmp_path):
    recipe = CLASSES[function]
    with pytest.raises(PrunusError, match=f"this takes .*, not {type(recipe).__name__}"):
        function("tiny", tmp_path / "out", recipe)


@pytest.mark.parametrize("tokens", [math.nan, 1.5, True, 0, "x"])
def test_tokens_of_a_cache_are_a_whole_number(tokens):
    with pytest.raises(PrunusError, match="tokens must be a whole number of at least 1"):
        prunus.inspect("tiny", tokens=tokens)


def test_calibration_of_a_form_that_takes_none_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["gguf", "tiny", str(tmp_path / "out"), "--type", "q8_0", "--calibration", "gone.txt"])
    assert ended.value.code == 2
    assert "gguf-q8_0 takes no calibration: leave --calibration" in capsys.readouterr().err


FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
OTHER = [
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ELOOP,
]


@pytest.mark.parametrize("code", FULL + OTHER, ids=errno.errorcode.get)
def test_every_error_of_the_system_is_one_line(code, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise OSError(code, os.strerror(code), str(tmp_path / "out"))

    kind = DiskFull if code in FULL else PrunusError
    with pytest.raises(kind) as found, disk_errors(tmp_path, 10):
        broken()
    assert (type(found.value) is kind) and "\n" not in str(found.value)
    monkeypatch.setattr(prunus, "inspect", broken)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "tiny"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "internal" not in said and "out" in said


def test_files_are_written_together_or_not_at_all(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(OSError, match="too long"):
        write_export({folder / "a": lambda: b"1", folder / ("n" * 300): lambda: b"2"})
    assert list(tmp_path.iterdir()) == []
    write_export({folder / "a": lambda: b"1", folder / "b": lambda: b"2"})
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"1", b"2"]


def test_files_are_not_left_by_an_interruption_between_their_renamings(tmp_path, monkeypatch):
    """The same command was refused afterwards, since some of the files existed."""
    folder, replace, renamed = tmp_path / "new", Path.replace, []

    def interrupted(file, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        (folder / "a").write_bytes(b"of another process")
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    (tmp_path / "old").write_bytes(b"0")
    with pytest.raises(KeyboardInterrupt):
        write_export({folder / "a": lambda: b"1", tmp_path / "old": lambda: b"2", folder / "b": lambda: b"3"})
    left = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert renamed == [folder / EXPORTING]
    assert left == {"old": b"0", "a": b"of another process"}


@pytest.mark.slow
def test_an_export_of_a_damaged_store_leaves_nothing(source, tmp_path):
    damaged = bad_inputs.Case(
        "export", ("export", "results.db", "out"), bad_inputs.sql("UPDATE sample SET correct = 'yes'")
    )
    outcome = bad_inputs.run(damaged, source, tmp_path / "here")
    assert outcome.code == 2 and "correct of a draw is of a wrong type" in outcome.said[0] and outcome.left == []


@pytest.mark.slow
@pytest.mark.parametrize("table", ["meta", "run", "problem", "sample"])
def test_a_store_without_a_table_is_named(table, source, tmp_path):
    (tmp_path / "results.db").write_bytes((source / "results.db").read_bytes())
    bad_inputs.sql(f"DROP TABLE {table}")(tmp_path)
    with pytest.raises(PrunusError, match=f"damaged .it lacks the table {table}.: restore a copy"):
        Store(tmp_path / "results.db")
