"""Texts of others reach no terminal as they are: names in files and stores, replies of servers, logs of libraries."""

import ast
import io
import json
import logging
import re
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import bad_inputs
import pytest
from rich.table import Table
from rich.text import Text

import prunus
from prunus import cli, progress
from prunus.formats import FORMATS
from prunus.visible import LONGEST, shortened, visible, visible_json

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202eb\x7f"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
PACKAGE = Path(prunus.__file__).parent
# Files that may print without going through prunus.progress: what makes texts visible, and a process that only Prunus
# reads.
PRINTERS = {
    "progress.py",
    "cli/__init__.py",
    "cli/common.py",
    "evaluation/grading/worker.py",
    "evaluation/lm_eval/model.py",
    "text_table.py",  # into a string, which progress.py prints or a notebook shows
    "studies/choose/speed_process.py",
}


def given(*arguments):
    """(exit code, stdout, stderr) of a command in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([str(one) for one in arguments])
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bad_inputs.fill(tmp_path_factory.mktemp("visible") / "source")


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """A copy of the folder with one of each kind of file, which hold hostile texts."""
    import shutil

    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    bad_inputs.sql(
        f"UPDATE run SET model = json_set(model, '$.name', {quoted(HOSTILE)})",
        f"UPDATE sample SET answer = {quoted(HOSTILE)}",
        f"UPDATE problem SET gold = {quoted(HOSTILE)}",
    )(tmp_path / "here")
    manifest = json.loads(Path("pruned/prunus.json").read_text())
    manifest["history"][0]["source"]["name"] = HOSTILE
    manifest["history"][0]["warnings"] = [HOSTILE]
    Path("pruned/prunus.json").write_text(json.dumps(manifest))
    return tmp_path / "here"


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


FILES = {  # of which each has a hostile text where a message quotes it
    "study.toml": f'models = [{json.dumps(HOSTILE)}]\n[eval]\ntasks = ["task.jsonl"]\n',
    "profile.toml": f"format = 1\n[think]\nstart = {json.dumps(HOSTILE)}\n",
    "certificate.json": json.dumps(
        {
            "format": FORMATS["certificate"],
            "prunus": HOSTILE,
            "declared": {HOSTILE: 1},
            "shown": {HOSTILE: HOSTILE},
            "made": {},
            "content": "",
        }
    ),
    "model/config.json": json.dumps({"model_type": HOSTILE, "transformers_version": HOSTILE}),
    "model/generation_config.json": json.dumps({"eos_token_id": HOSTILE}),
    "task.jsonl": json.dumps({"id": HOSTILE, "problem": HOSTILE, "answer": HOSTILE, HOSTILE: 1}) + "\n" + HOSTILE,
}
READERS = [
    *[("inspect", name) for name in ("model", "pruned", HOSTILE)],
    *[("eval", *rest) for rest in ((HOSTILE, "--task", "x"), ("tiny", "--task", HOSTILE))],
    ("eval", "tiny", "--task", "task.jsonl", "--store", "new.db", "--limit", "1", "--budgets", "4"),
    ("eval", "model", "--task", "gsm8k", "--store", "new.db", "--profile", "tiny"),
    ("eval", "tiny", "--task", "task.jsonl", "--engine", "openai", "--url", f"http://{HOSTILE}"),
    ("study", "study.toml"),
    ("study", "plan", "study.toml"),
    ("profiles", "profile.toml"),
    ("profiles", "--model", "model"),
    ("verify", "certificate.json", "--store", "results.db"),
    ("runs", "results.db"),
    ("runs", "results.db", "--json"),
    ("compare", "results.db"),
    ("compare", "results.db", "--details"),
    ("report", "results.db", HOSTILE + "/x.html"),
    ("card", "pruned", "--out", "card.md"),
    ("gguf", "model", HOSTILE + ".gguf"),
    (HOSTILE,),
    ("prune", "--" + HOSTILE),
]


@pytest.mark.parametrize("arguments", READERS, ids=[visible(" ".join(one)) for one in READERS])
def test_no_command_prints_a_control_character(arguments, here):
    for name, text in FILES.items():
        if name != "model/config.json" or "model" in arguments:
            Path(name).write_text(text, errors="surrogatepass")
    _, out, err = given(*arguments)
    assert not COMMANDS.search(out + err), repr(out + err)
    if "--json" in arguments:
        assert HOSTILE in [run["model"] for run in json.loads(out)]  # the value is as it was


def test_every_way_to_print_makes_texts_visible(capsys, monkeypatch):
    table = Table("a")
    table.add_row(HOSTILE)
    progress.say(HOSTILE)
    progress.put(HOSTILE)
    progress.out_console.print(HOSTILE, Text(HOSTILE), table)
    with progress.Steps(HOSTILE, 2, HOSTILE, clock=iter(range(0, 10_000, 100)).__next__) as steps:
        steps.advance(note=HOSTILE)
    said = capsys.readouterr()
    assert not COMMANDS.search(said.out + said.err)
    assert said.out.count("owned") == 4 and said.err.count("owned") >= 3


def test_a_bar_on_a_terminal_shows_texts_and_still_moves_its_cursor():
    file = io.StringIO()
    console = progress.SafeConsole(file=file, force_terminal=True, width=80)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "console", console)
        patch.setattr(progress, "shows_bars", lambda: True)
        with progress.Steps(HOSTILE, 2, "units") as steps:
            steps.advance(note="\x1b[2J")
    assert "\x1b[2J" not in file.getvalue() and "\x1b]0" not in file.getvalue() and "\x1b[?25l" in file.getvalue()


def test_what_libraries_log_or_warn_of_is_visible(capsys):
    with cli.visible_warnings():
        logger = logging.getLogger("transformers.hostile")
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.warning("type %s", HOSTILE)
        logger.removeHandler(handler)
        text = warnings.formatwarning(HOSTILE, UserWarning, "f.py", 1, "")
    assert not COMMANDS.search(capsys.readouterr().err + text) and "owned" in text
    assert "\x1b" in warnings.formatwarning(HOSTILE, UserWarning, "f.py", 1, "")  # only within a command


@pytest.mark.parametrize("length", [10, LONGEST, LONGEST + 1, 100_000])
def test_a_message_is_short_and_keeps_both_ends(length, capsys):
    text = "begin" + "x" * (length - 8) + "end"
    assert len(shortened(text)) <= LONGEST + 3
    assert shortened(text).startswith("begin") and shortened(text).endswith("end")
    with pytest.raises(SystemExit):
        cli.fail(text, 2)
    assert len(capsys.readouterr().err) < LONGEST + 20


def test_json_keeps_its_values():
    for data in (HOSTILE, "\ud83d", "\U000e0001", {"\u2028": ["\x00"]}):
        text = visible_json(json.dumps(data, ensure_ascii=False))
        assert json.loads(text) == data and not COMMANDS.search(text)


@pytest.mark.slow
def test_nothing_prints_past_the_one_place():
    """print, click.echo and streams' write are called in PRINTERS alone; consoles are made there, too."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and re.fullmatch(
                r"print|click\.(echo|secho)|sys\.(stdout|stderr)\.write|Console|rich\.print", ast.unparse(node.func)
            ):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found <= PRINTERS and "progress.py" in found
