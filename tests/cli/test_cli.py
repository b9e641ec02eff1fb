"""The command line: a thin, honest wrapper of the Python API."""

import builtins
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from typing import Any

import click
import pytest
from fake_store import make_store

import prunus
from prunus.cli import cli, main
from prunus.errors import PrunusError
from prunus.plain_data import plain
from prunus.recipes import (
    DropRecipe,
    EvalPlan,
    ExpertsRecipe,
    PruneRecipe,
    QuantizeRecipe,
    RecoverRecipe,
    TraceRecipe,
    WidthRecipe,
)

ENGINE_OPTIONS = {
    "engine_args", "url", "serve", "served_model", "tokenizer", "concurrency", "timeout", "serving", "request", "exact",
}  # fmt: skip
COMMANDS = sorted(cli.commands)
API_NAME = {
    "eval": "evaluate",
    "import": "import_",
}
# `prunus study plan`, `prunus study report`, `prunus prune --recover`, and a module
ALSO = {
    "expert_stats",
    "plan",
    "plan_choose",
    "plan_find",
    "plan_refine_efforts",
    "plan_study",
    "refine_efforts",
    "apply_steps",
    "report_study",
    "show_profile",
}


def options_of(command):
    return {p.name for p in cli.commands[command].params if isinstance(p, click.Option) and p.expose_value}


@pytest.mark.parametrize(
    ("command", "recipe", "more"),
    [
        ("prune", PruneRecipe, {"offload", "device", "dry_run", "overwrite", "stats", "recover"}),
        ("recover", RecoverRecipe, {"dense", "offload", "device", "dry_run", "overwrite"}),
        ("drop", DropRecipe, {"device", "dry_run", "overwrite", "recover"}),
        ("experts", ExpertsRecipe, {"device", "dry_run", "overwrite", "stats", "recover"}),
        ("width", WidthRecipe, {"device", "dry_run", "offload", "overwrite", "stats", "recover"}),
        ("quantize", QuantizeRecipe, {"device", "dry_run", "offload", "overwrite", "stats"}),
        ("eval", EvalPlan, {"store", "device", "mixed", *ENGINE_OPTIONS}),
        ("traces", TraceRecipe, {"device", "overwrite", *ENGINE_OPTIONS}),
    ],
)
def test_options_are_the_fields_of_the_recipe(command, recipe, more):
    of_others = {"base_samples"} if recipe is EvalPlan else set()  # of studies and searches, which have a base
    assert options_of(command) == ({field.name for field in fields(recipe)} - of_others) | more | {"as_json"}


@pytest.mark.parametrize("command", ["prune", "drop", "experts", "width", "quantize", "recover", "eval", "traces"])
def test_defaults_are_those_of_the_recipe(command):
    recipe = {
        "prune": PruneRecipe, "drop": DropRecipe, "experts": ExpertsRecipe, "recover": RecoverRecipe, "eval": EvalPlan,
        "width": WidthRecipe, "quantize": QuantizeRecipe, "traces": TraceRecipe,
    }[command]  # fmt: skip
    defaults = {field.name: field.default for field in fields(recipe)}
    for parameter in cli.commands[command].params:
        if parameter.name and parameter.name in defaults and not parameter.required:
            assert parameter.default == defaults[parameter.name], parameter.name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_function_and_every_function_its_command(command):
    assert callable(getattr(prunus, str(API_NAME.get(command, command))))
    verbs = {name for name in prunus.__all__ if name[0].islower()}
    assert verbs - ALSO == {API_NAME.get(c, c) for c in COMMANDS}


def test_import_of_all_names_replaces_no_builtin():
    assert set(prunus.__all__).isdisjoint(dir(builtins))
    assert callable(prunus.open)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command, capsys):
    main([command, "--help"])
    text = capsys.readouterr().out
    assert f"prunus {command}" in text.split("Example:")[1]
    assert "--quiet" in text and "--verbose" in text
    epilog = cli.commands[command].epilog or ""
    for line in epilog.splitlines():
        if line.strip().startswith("prunus "):
            arguments = line.split()[2:]
            cli.commands[command].make_context(command, arguments)


def help_of(capsys, *words):
    main([*words])
    return capsys.readouterr().out


def test_help_has_a_whole_line_of_every_command(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_of(capsys, "--help").splitlines()
    assert max(map(len, lines)) <= 80
    found = {line.split()[0]: line for line in lines if line.startswith("  ") and line.split()[0] in COMMANDS}
    assert set(found) == set(COMMANDS)
    for command, line in found.items():
        sentence = line.split(maxsplit=1)[1]
        assert sentence.endswith(".") and "..." not in sentence  # neither cut nor wrapped
        assert (cli.commands[command].help or "").replace("\n", " ").startswith(sentence)
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "In this order:", "Begin here:", "Make:", "Evaluate:", "Decide:", "Show:", "Look:"]
    assert lines[lines.index("Begin here:") + 1].startswith("  demo ")
    decide = lines[lines.index("Decide:") + 1 : lines.index("Show:") - 1]
    in_order_of_use = ["compare", "efforts", "find", "choose", "verify"]
    assert [line.split()[0] for line in decide] == in_order_of_use


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_once_if_asked_for_all(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    options = [p for p in cli.commands[command].params if isinstance(p, click.Option)]
    short = re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_of(capsys, command, "--help"), re.M)
    if "--help-all" not in short:
        assert sorted(short) == sorted([*(p.opts[-1] for p in options), "--help"])
        return
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_of(capsys, command, "--help-all"), re.M)
    assert sorted(listed) == sorted([*(p.opts[-1] for p in options), "--help"]) and set(short) < set(listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_at_most_20_options(command, capsys):
    assert len(re.findall(r"^  (?:-\w, )?--[\w-]+", help_of(capsys, command, "--help"), re.M)) <= 20


def test_help_of_a_word_finds_options_by_name_and_text(capsys):
    assert re.findall(r"^  --\w+", help_of(capsys, "eval", "--help", "CLOSING"), re.M) == ["  --closing"]
    everywhere = help_of(capsys, "--help", "tokenizer")
    assert "prunus eval:" in everywhere and "prunus gguf:" in everywhere and "--budgets" not in everywhere
    assert help_of(capsys, "--help", "eval") == help_of(capsys, "eval", "-h")
    with pytest.raises(SystemExit):
        main(["eval", "--help", "zzz"])
    assert "no option of prunus eval has 'zzz'" in capsys.readouterr().err


WITHOUT_RESULT = {"demo", "view"}


@pytest.mark.parametrize("command", sorted({*COMMANDS} - WITHOUT_RESULT))
def test_every_command_with_a_result_prints_it_as_json(command):
    assert "as_json" in {parameter.name for parameter in cli.commands[command].params}


def called(monkeypatch, capsys, function, *words):
    """(arguments, keywords) of the function that a command calls, or the message of its error."""
    calls: list[tuple[Any, Any]] = []

    def noted(*given: Any, **more: Any) -> Any:
        calls.append((given, more))
        raise PrunusError("called")

    monkeypatch.setattr(prunus, function, noted)
    with pytest.raises(SystemExit):
        main([*words])
    said = capsys.readouterr().err
    return calls[0] if calls else said


def test_the_store_is_the_first_argument_the_option_the_environment_or_results_db(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def store(*words: str) -> Any:
        found = called(monkeypatch, capsys, {"compare": "compare", "report": "report"}[words[0]], *words)
        return found if isinstance(found, str) else [str(part) for part in found[0][: 1 + (words[0] == "report")]]

    assert store("compare") == ["results.db"]
    assert store("compare", "a.db") == store("compare", "--store", "a.db") == ["a.db"]
    assert "a.db and --store b.db are two stores" in store("compare", "a.db", "--store", "b.db")
    assert "too many arguments" in store("compare", "a.db", "b.db")
    assert store("report") == ["results.db", "report.html"] and store("report", "a.db") == ["a.db", "report.html"]
    assert store("report", "p.html") == ["results.db", "p.html"]
    assert store("report", "a.db", "p.html") == ["a.db", "p.html"]
    monkeypatch.setenv("PRUNUS_STORE", "env.db")
    assert store("compare") == ["env.db"] and store("compare", "a.db") == ["a.db"]
    make_store(tmp_path / "there.db")
    assert "name the file or folder OUT" in called(monkeypatch, capsys, "export", "export", "there.db")
    monkeypatch.delenv("PRUNUS_STORE")
    (tmp_path / "log.jsonl").write_text("{}")
    for words, expected in (
        (("new.db", "log.jsonl"), ("new.db", ["log.jsonl"])),
        (("there.db", "log.jsonl"), ("there.db", ["log.jsonl"])),
        (("log.jsonl",), ("results.db", ["log.jsonl"])),
        (("log.jsonl", "log.jsonl", "--store", "x.db"), ("x.db", ["log.jsonl", "log.jsonl"])),
    ):
        (where, files), _ = called(monkeypatch, capsys, "import_", "import", *words, "--as", "a")
        assert (str(where), [str(file) for file in files]) == expected


def test_numbers_lists_and_engines_of_a_command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd,name.jsonl").write_text('{"id": "a", "problem": "1+1", "answer": "2", "kind": "integer"}\n')

    def plan(*words: str) -> tuple[prunus.EvalPlan, prunus.EngineOptions]:
        given, more = called(monkeypatch, capsys, "evaluate", "eval", "tiny", *words)
        return given[1], more["options"]

    asked, options = plan("--task", "tiny", "--task", "odd,name.jsonl", "--budgets", "off,0,1k,2K", "--limit", "1k")
    assert asked.tasks == ("tiny", "odd,name.jsonl")  # a file of that name
    assert asked.budgets == (prunus.OFF, 0, 1000, 2048) and asked.limit == 1000
    asked, options = plan("--task", "tiny,tiny-train", "--url", "http://localhost:1/v1")
    assert asked.tasks == ("tiny", "tiny-train") and asked.engine == "openai" and options.url
    monkeypatch.setenv("PRUNUS_ENGINE", "vllm")
    asked, options = plan("--task", "tiny", "--engine-args", "max_model_len=4096", "--engine-args", '{"dtype": "half"}')
    assert asked.engine == "vllm" and options.args == {"max_model_len": 4096, "dtype": "half"}
    assert plan("--task", "tiny", "--engine", "hf")[0].engine == "hf"
    given, _ = called(monkeypatch, capsys, "compare", "compare", "--other", "a, b,c", "--other", "d")
    assert given[2] == ("a, b", "c", "d")
    told = called(monkeypatch, capsys, "compare", "compare", "--require", "non-inferior,stop")
    assert "did you mean 'stops'" in told


def test_help_of_prune_fits_one_screen_and_says_how_many_options_it_leaves_out(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    text, everything = help_of(capsys, "prune", "--help"), help_of(capsys, "prune", "--help-all")
    assert len(text.splitlines()) <= 60 and max(map(len, text.splitlines())) <= 80
    (count,) = re.findall(r"^(\d+) more, .*: prunus prune --help-all$", text, re.M)
    listed = [re.findall(r"^  (?:-\w, )?(--[\w-]+)", one, re.M) for one in (text, everything)]
    assert len(listed[1]) - len(listed[0]) == int(count) > 0
    assert "--outlier-threshold" in everything and "--outlier-threshold" not in text
    headings = re.findall(r"^(\w[\w ]+):$", everything, re.M)
    assert headings == ["Options", "Calibration", "Where and how", "Advanced", "General"]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("prune tiny out --method wonda", "did you mean 'wanda'?"),
        ("prune tiny out --allocation owls", "did you mean 'owl'?"),
        ("eval tiny --task tinny", "did you mean 'tiny'?"),
        ("eval tiny --task tiny --profile qwn3", "did you mean 'qwen3'?"),
        ("gguf tiny out.gguf --type Q5_K", "did you mean 'q5_k_m'?"),
        ("export a.db out --format parket", "did you mean 'parquet'?"),
        ("prune tiny out --sparsty 0.5", "'--sparsity'"),
        ("quantise tiny out", "'quantize'"),
        ("find tiny out --engine vlm", "did you mean 'vllm'?"),
        ("prune tiny out --method zzzz", "choose one of magnitude, wanda, sparsegpt"),
    ],
)
def test_a_typo_names_the_nearest(words, nearest, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2 and nearest in capsys.readouterr().err


def test_a_typo_in_toml_names_the_nearest(tmp_path, capsys):
    (tmp_path / "grid.toml").write_text(
        'models = ["tiny"]\n[eval]\ntasks = ["tiny"]\n[[prune]]\nmethod = "wonda"\nsparsity = 0.5\n'
    )
    with pytest.raises(SystemExit):
        main(["study", "plan", str(tmp_path / "grid.toml")])
    assert "did you mean 'wanda'?" in capsys.readouterr().err


def test_an_option_has_one_name(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["drop", "tiny", "out", "--blocks", "1,", "--samples", "4"])
    assert ended.value.code == 2 and "No such option '--samples'" in capsys.readouterr().err


BAD = {
    "no such model": (("prune", "no/such/folder/here", "out"), "no/such/folder/here"),
    "sparsity": (("prune", "tiny", "out", "--sparsity", "1.5"), "sparsity must lie in [0, 1), not 1.5"),
    "pattern twice": (
        ("prune", "tiny", "out", "--pattern", "2:4", "--sparsity", "0.5"),
        "--pattern and --sparsity both set the number of zeros",
    ),
    "pattern": (("prune", "tiny", "out", "--pattern", "4:2"), "pattern '4:2' is not N:M with 0 < N < M"),
    "method": (("prune", "tiny", "out", "--method", "wonda"), "wonda"),
    "budgets": (("eval", "tiny", "--task", "tiny", "--budgets", "64,32"), "budgets must increase: 32 follows 64"),
    "budget words": (("eval", "tiny", "--task", "tiny", "--budgets", "some"), "not a list of whole numbers"),
    "task": (("eval", "tiny", "--task", "tinny", "--budgets", "16"), "tinny"),
    "store": (("compare", "none.db", "--base", "tiny"), "none.db"),
    "report store": (("report", "none.db", "page.html"), "none.db"),
    "nothing to say yes to": (("runs", "none.db", "--yes"), "--yes is for --remove: leave it out or add --remove"),
    "margin of no results": (("card", "tiny", "--margin", "0.1"), "--margin is for --store"),
    "nothing to replace": (("view", "none.db", "--overwrite"), "--overwrite is for --export"),
    "port of files": (("view", "none.db", "--export", "out", "--port", "8000"), "serves nothing: leave out --port"),
    "nobody's home": (
        ("perplexity", "tiny", "--text", "~no-such-user/x.txt"),
        "'~no-such-user/x.txt' cannot be opened",
    ),
    "nobody's text": (("prune", "tiny", "out", "--calibration", "~no-such-user/x.txt"), "cannot be opened"),
    "dense of no file": (("gguf", "tiny", "out.gguf", "--dense", "tiny"), "--dense is for --like: leave it out or add"),
    "missing argument": (("prune", "tiny"), "OUT"),
    "unknown command": (("prunne",), "prunne"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_and_leaves_nothing(case, tmp_path, monkeypatch, capsys):
    arguments, words = BAD[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith("error: ") and words in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recover", "tiny", "out"], "error: tiny has no manifest that says what it was pruned from"),
        (["prune"], "error: Missing argument 'MODEL'; usage: prunus prune [OPTIONS] MODEL OUT"),
    ],
)
def test_messages_name_a_built_in_model_and_the_usage(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


def test_internal_errors_exit_1_and_show_a_traceback_only_when_asked(monkeypatch, capsys):
    monkeypatch.setattr(prunus, "inspect", lambda *_, **__: 1 / 0, raising=False)
    for arguments, lines in ((["inspect", "tiny"], 1), (["inspect", "tiny", "-v"], None)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr().err
        assert ended.value.code == 1
        assert "ZeroDivisionError" in printed
        assert ("Traceback" in printed) == (lines is None)


def test_interruption_exits_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prunus, "inspect", interrupted, raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "tiny"])
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_sigterm_stops_a_command_as_ctrl_c_does(monkeypatch, capsys):
    """Work in progress is cleaned up, forked processes end at once, and Python's own callers keep their handler."""
    found = []

    def killed(*_, **__):
        child = os.fork()
        if child == 0:
            os._exit(int(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL))
        found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            found.append("cleaned up")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(prunus, "inspect", killed, raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "tiny"])
    assert ended.value.code == 130 and found == [0, "cleaned up"] and signal.getsignal(signal.SIGTERM) == before
    assert "interrupted; finished work is kept" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.slow
def test_json_is_all_there_is_on_stdout():
    """In a process of its own, for what libraries might print when they are loaded."""

    code = """if True:
        import runpy, sys
        sys.argv = ["prunus", "tasks", "--json"]
        runpy.run_module("prunus", run_name="__main__")  # as `python -m prunus`
        from prunus.cli import main
        print("and"); main(["inspect", "tiny", "--json"]); print("and"); main(["methods", "--json"])"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    printed = done.stdout.split("\nand\n")
    assert len(printed) == 3 and all(map(json.loads, printed))


REMOVE = "s.db --remove tiny"


@pytest.mark.thorough("012-none.db")
@pytest.mark.slow
@pytest.mark.parametrize(("closed", "wrong"), [("0", REMOVE), ("1", "none.db"), ("2", REMOVE), ("012", "none.db")])
def test_streams_may_be_closed(closed, wrong, tmp_path):
    """What is printed on them is dropped, and no file that is opened has their numbers."""
    make_store(tmp_path / "s.db")
    shell = f'exec "$@" {" ".join(f"{number}>&-" for number in closed)}'
    for arguments, ends in (("s.db", 0), (wrong, 2)):
        command = ["sh", "-c", shell, "sh", sys.executable, "-m", "prunus", "runs", *arguments.split()]
        done = subprocess.run(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == ends and "internal" not in done.stderr and "Traceback" not in done.stderr
        assert bool(done.stdout) == (ends == 0 and "1" not in closed)
        assert bool(done.stderr) == (ends == 2 and "2" not in closed)


@pytest.mark.slow
def test_a_stream_without_our_characters_shows_others(tmp_path, monkeypatch):
    store = make_store(tmp_path / "results.db")
    told = prunus.runs(store, rename=("wanda-20", "é😀"))
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    main(["compare", str(store), "--base", "dense"])
    main(["runs", str(store), "--json"])
    stream.flush()
    table, _, data = stream.buffer.getvalue().decode("ascii").partition("\n[")
    assert "Wanda 20 %" in table and re.search(r" -\d+\.\d ", table) and "?" not in table
    assert json.loads("[" + data) == plain(told)


@pytest.mark.slow
def test_python_without_docstrings_is_refused():
    command = [sys.executable, "-OO", "-m", "prunus", "tasks"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "") and "PYTHONOPTIMIZE=2" in done.stderr


def test_methods_say_what_they_need(capsys):
    main(["methods", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    needed = {name: rows[name]["needs"] for name in ("magnitude", "wanda", "alps", "owl", "tail", "sleb")}
    assert list(needed.values()) == ["nothing", "norms", "hessian", "norms", "nothing", "hidden states"]
    assert all(row["source"] and row["description"] for row in rows.values())
    main(["methods"])
    assert "arXiv:2301.00774; needs hessian)" in capsys.readouterr().out


def test_the_lists_are_those_of_the_api(capsys):
    for command, rows in (("tasks", plain(prunus.tasks())), ("methods", plain(prunus.methods()))):
        main([command, "--json"])
        assert json.loads(capsys.readouterr().out) == rows
        main([command])
        lines = [line for line in capsys.readouterr().out.splitlines() if line]
        assert [line.split()[0] for line in lines if not line.endswith(":")] == [row["name"] for row in rows]
        kinds = [f"{row['kind']}:" for row in rows if "kind" in row]
        assert [line for line in lines if line.endswith(":")] == list(dict.fromkeys(kinds))


@pytest.mark.parametrize(
    "given",
    [
        ["plan", "--ray", "auto"],
        ["report", "--cpus-per-task", "1"],
    ],
)
def test_a_study_refuses_options_of_another_action(given, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", *given, "x.toml"])
    assert ended.value.code == 2 and "belongs to `prunus study" in capsys.readouterr().err


@pytest.mark.slow
def test_import_is_light_and_results_need_no_torch():
    code = "import sys, prunus.cli, prunus.reporting.page; print({'torch', 'scipy.stats'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True).stdout
    assert printed == b"set()\n"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["prune", "--sparsity", "0.5"], ["drop", "--blocks", "1,"]])
def test_recover_prunes_and_recovers(words, tmp_path, monkeypatch, capsys):
    command, *given = words
    calls = []
    monkeypatch.setattr(prunus, "apply_steps", lambda *a, **k: calls.append((a, k)) or {})
    main([command, "tiny", str(tmp_path / "out"), *given, "--sequences", "4", "--recover"])
    recipe = PruneRecipe(sparsity=0.5, sequences=4) if command == "prune" else DropRecipe(blocks="1,", sequences=4)
    (((model, _, asked), _),) = calls
    assert (model, asked) == ("tiny", [recipe, RecoverRecipe(sequences=4)])
    monkeypatch.undo()
    main([command, "tiny", str(tmp_path / "out"), *given, "--sequences", "4", "--recover", "--dry-run"])
    told = capsys.readouterr().err
    assert f"would write: {tmp_path / 'out'}\n" in told and "then: recover, 4 epochs" in told
    assert "recovery calibration: " in told and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_recover_needs_tokens_and_zeros(tmp_path, capsys):
    for given, words in [(["--stats", "x"], "--stats does not hold"), (["--sparsity", "0"], "nothing to recover")]:
        with pytest.raises(SystemExit) as ended:
            main(["prune", "tiny", str(tmp_path / "out"), "--recover", *given])
        assert ended.value.code == 2 and words in capsys.readouterr().err
