"""Files that somebody made to mislead, to hang or to fill the memory: each is one line that says what is wrong."""

import gzip
import json
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import bad_inputs
import pytest
import warm_processes
from fake_store import make_store
from gguf import GGUFReader
from gguf_models import make_gguf_model

import prunus
from prunus.checkpoint.gguf_file import MANIFEST_KEY
from prunus.cli import main
from prunus.disk import EXPORTING, atomic_file, scratch_folder, write_export, write_text
from prunus.errors import PrunusError
from prunus.evaluation.backends import transport
from prunus.evaluation.backends.served import running_server
from prunus.formats import FORMATS
from prunus.recipes import GgufRecipe, QuantizeRecipe
from prunus.settings.engines import EngineOptions

SECONDS = 20  # for each, with what it takes beside other tests; most need less than one
LARGE = "9" * 400
Q = "model.layers.0.self_attn.q_proj"
EVAL = ("eval", "model", "--task", "task.jsonl", "--budgets", "4", "--profile", "tiny", "--store", "new.db")


class Hostile(NamedTuple):
    """name: what is wrong. arguments: of a command. change: of the folder before. says: part of the error."""

    name: str
    arguments: tuple[str, ...]
    change: Callable[[Path], object]
    says: str


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "source"
    folder.mkdir()
    make_gguf_model("llama", folder / "model", "llama-bpe")
    prunus.gguf(folder / "model", folder / "m.gguf", GgufRecipe(type="q8_0"))
    prunus.gguf(folder / "model", folder / "served", GgufRecipe(type="q8_0"))
    prunus.quantize(folder / "model", folder / "w4", QuantizeRecipe(bits=4, group="32", method="rtn"))
    prunus.quantize(folder / "model", folder / "w8", QuantizeRecipe(bits=8, method="rtn"))
    bad_inputs.write_in_fp8(folder / "model", folder / "fp8")
    make_store(folder / "results.db", problems=12, budgets=(0, 16))
    (folder / "task.jsonl").write_text('{"id": "a", "problem": "1+1?", "answer": "2"}\n')
    (folder / "study.toml").write_text('models = ["model"]\n[eval]\ntasks = ["task.jsonl"]\nbudgets = [8]\n')
    (folder / "certificate.json").write_text(
        json.dumps(
            {"format": FORMATS["certificate"], "prunus": "1", "declared": {}, "shown": {}, "made": {}, "content": ""}
        )
    )
    return folder


def edited(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A change of a JSON file."""

    def edit(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return edit


def replaced(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    """A change of bytes of a file, which must be there."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        assert old in data
        (folder / name).write_bytes(data.replace(old, new, 1))

    return change


def pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def header(change: Callable[[str], str]) -> Callable[[Path], None]:
    """A change of the header of the model's weights, as text."""

    def edit(folder: Path) -> None:
        path = folder / "model/model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        text = change(data[8 : 8 + length].decode()).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return edit


def offset_of_first(number: int) -> Callable[[Path], None]:
    """Another position of the first tensor of a GGUF file."""

    def change(folder: Path) -> None:
        reader = GGUFReader(folder / "m.gguf", "r+")
        reader.tensors[0].field.parts[5][0] = number
        reader.data.flush()

    return change


def long_array(folder: Path) -> None:
    """An array of metadata that would have 2^60 entries."""
    data = bytearray((folder / "m.gguf").read_bytes())
    key = b"tokenizer.ggml.token_type"
    at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4 + 4
    data[at : at + 8] = struct.pack("<Q", 1 << 60)
    (folder / "m.gguf").write_bytes(data)


def first_token(number: int) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        content["model"]["vocab"][next(iter(content["model"]["vocab"]))] = number

    return change


def named_templates(folder: Path) -> None:
    (folder / "model/additional_chat_templates").mkdir()
    (folder / "model/additional_chat_templates/tool.jinja").write_text("{{ 1 }}" * 1_500_000)


def models() -> Iterator[Hostile]:
    for name, command in {
        "model.safetensors": ("inspect", "model"),
        "config.json": ("inspect", "model"),
        "prunus.json": ("inspect", "model"),
        "tokenizer.json": EVAL,
        "chat_template.jinja": ("profiles", "--model", "model"),
        "generation_config.json": EVAL,
        "model.safetensors.index.json": ("drop", "model", "out", "--blocks", "1,"),
    }.items():
        says = "has no config.json" if name == "config.json" else "is not a regular file but a pipe"
        yield Hostile(f"{name} is a pipe", command, pipe(f"model/{name}"), says)
    yield Hostile("statistics are a pipe", ("prune", "model", "out", "--stats", "s"), pipe("s"), "s cannot be read")
    for name, command in {"inspect": ("inspect", "model"), "card": ("card", "model", "--out", "c.md")}.items():
        step = {"action": "prune", "recipe": {}, "source": {"name": "a", "checksum": "b"}, "warnings": []}
        manifest = json.dumps({"format": 1, "history": [step] * 100_000}).encode()
        yield Hostile(
            f"100,000 steps: {name}",
            command,
            bad_inputs.write("model/prunus.json", manifest),
            "history has 100,000 steps",
        )
    for name, command in {"eval": EVAL, "profiles": ("profiles", "--model", "model")}.items():
        text = b"{% if a %}b{% endif %}" * 500_000
        yield Hostile(
            f"a template of 10 MB: {name}", command, bad_inputs.write("model/chat_template.jinja", text),
            "has 11,000,000 characters, more than the 524,288 that are read",
        )  # fmt: skip
        yield Hostile(f"a template of 10 MB by name: {name}", command, named_templates, "has 10,500,000 characters")
    for name, command in {"gguf": ("gguf", "model", "o.gguf"), "eval": EVAL}.items():
        for number in (1 << 31, (1 << 32) - 1, 1 << 24):
            yield Hostile(
                f"token {number}: {name}", command, edited("model/tokenizer.json", first_token(number)),
                f"has a token with id {number}, more than any vocabulary has",
            )  # fmt: skip
        yield Hostile(
            f"added token: {name}", command,
            edited("model/tokenizer.json", lambda c: c["added_tokens"][0].update(id=(1 << 31) + 5)),
            f"has a token with id {(1 << 31) + 5}",
        )  # fmt: skip
    yield Hostile(
        "a token beyond the embeddings", ("gguf", "model", "o.gguf"),
        edited("model/tokenizer.json", first_token(100_000)), "ids for which the model's 640 embeddings have no row",
    )  # fmt: skip
    for value in (10**18, 1 << 31, 0, -1, "10", 1e300, [5]):
        for command in (
            ("gguf", "model", "o.gguf"),
            ("inspect", "model"),
            EVAL,
            ("drop", "model", "out", "--blocks", "1,"),
        ):
            says = "max_position_embeddings" if isinstance(value, int | float) else "config.json"
            change = edited("model/config.json", lambda c, value=value: c.update(max_position_embeddings=value))
            yield Hostile(f"{value} positions: {command[0]}", command, change, says)
    for key, value in {"rms_norm_eps": 1e300, "num_attention_heads": int(LARGE)}.items():
        change = edited("model/config.json", lambda c, key=key, value=value: c.update({key: value}))
        says = (
            "layer_norm_rms_epsilon' would be 1e+300, which GGUF cannot hold"
            if "eps" in key
            else "a number has 400 digits"
        )
        yield Hostile(f"{key}: gguf", ("gguf", "model", "o.gguf", "--dry-run"), change, says)
    twin = header(
        lambda text: text.replace("{", '{"lm_head.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},', 1)
    )
    for command in (("inspect", "model"), ("drop", "model", "out", "--blocks", "1,")):
        yield Hostile(f"a tensor twice: {command[0]}", command, twin, "it has 'lm_head.weight' twice")
    index = b'{"weight_map": {"a": "model.safetensors", "a": "other.safetensors"}}'
    change = bad_inputs.write("model/model.safetensors.index.json", index)
    yield Hostile("an index that has a tensor twice", ("inspect", "model"), change, "it has 'a' twice")


def ggufs() -> Iterator[Hostile]:
    inspect = ("inspect", "m.gguf")
    for number in ((1 << 64) - 64, (1 << 64) - (1 << 12), 1 << 63, 1 << 40):
        yield Hostile(f"a tensor at {number}", inspect, offset_of_first(number), "m.gguf is damaged")
    yield Hostile("a tensor within another", inspect, offset_of_first(64 * 10), "begins within what comes before it")
    yield Hostile("2^60 entries", inspect, long_array, "it ends early")
    key = MANIFEST_KEY.encode()
    at = replaced("m.gguf", b'{"prunus": "', b'{"prunus\xff\xfe "')
    yield Hostile("a manifest that is no UTF-8", inspect, at, f"its '{key.decode()}' cannot be read")
    change = replaced("served/model.gguf", b'{"prunus": "', b'{"prunus\xff\xfe "')
    yield Hostile("the same in a folder", ("inspect", "served"), change, "cannot be read")


def stores() -> Iterator[Hostile]:
    plans = {
        "no plan": ("plan = '{}'", "has no tasks"),
        "a huge budget": ("plan = json_set(plan, '$.budgets', json('[1e308]'))", "is no number of tokens"),
        "a negative budget": ("plan = json_set(plan, '$.budgets', json('[-3]'))", "is no number of tokens"),
        "a budget of 400 digits": (f"plan = json_set(plan, '$.budgets', json('[{LARGE}]'))", "a number has 400 digits"),
        "no budgets": ("plan = json_set(plan, '$.budgets', json('[]'))", "has no budgets"),
        "no draws": ("plan = json_set(plan, '$.samples', 0)", "samples: it is no number of draws"),
        "tasks that are no names": ("plan = json_set(plan, '$.tasks', json('[5]'))", "tasks: it must be a text, not 5"),
        "bytes of 2^63": (
            "model = json_set(model, '$.bytes', json('{\"head\": 9223372036854775808}'))",
            "is no number of bytes",
        ),
        "bytes below zero": ("model = json_set(model, '$.bytes', json('{\"head\": -1}'))", "is no number of bytes"),
    }
    commands = [
        ("compare", "results.db"), ("report", "results.db", "p.html"), ("export", "results.db", "out"),
        ("runs", "results.db"), ("view", "results.db", "--export", "out"), ("regrade", "results.db"),
    ]  # fmt: skip
    for name, (change, says) in plans.items():
        for command in commands if name in ("no plan", "a huge budget") else commands[:1]:
            yield Hostile(f"{name}: {command[0]}", command, bad_inputs.sql(f"UPDATE run SET {change}"), says)


def planned() -> Iterator[Hostile]:
    for what, text, says in (
        ("a number of problems", '{"tiny": 5}', "the problems of a plan are no list of names"),
        ("numbers for problems", '{"tiny": [5]}', "the problems of a plan are no list of names"),
    ):
        change = bad_inputs.sql(f"INSERT INTO planned VALUES ('0', '{text}')")
        yield Hostile(what, ("runs", "results.db"), change, says)
    change = bad_inputs.sql("INSERT INTO run SELECT NULL, model, plan, versions FROM run LIMIT 1")
    yield Hostile("a run without an id", ("runs", "results.db"), change, "a run has no id")
    window = edited("model/config.json", lambda c: c.update(sliding_window="x", use_sliding_window=True))
    yield Hostile("a window that is a word", ("gguf", "model", "out.gguf"), window, "sliding_window")


def numbers() -> Iterator[Hostile]:
    large = int(LARGE)
    verify = ("verify", "certificate.json", "--store", "results.db")
    for part in ("format", "declared", "shown", "made"):
        change = edited("certificate.json", lambda c, part=part: c.update({part: {"alpha": large}}))
        yield Hostile(f"certificate: {part}", verify, change, "is not a certificate")
    text = f'{{"id": "a", "problem": "p", "answer": "2", "x": {LARGE}}}\n'.encode()
    yield Hostile("a task", EVAL, bad_inputs.write("task.jsonl", text), "a number too long")
    for key in ("budgets", "samples"):
        text = f'models = ["model"]\n[eval]\ntasks = ["task.jsonl"]\n{key} = [{LARGE}]\n'.encode()
        yield Hostile(
            f"study: {key}", ("study", "study.toml"), bad_inputs.write("study.toml", text), "more than 300 digits"
        )


def settings(change: Callable[[Any, Any], object]) -> Callable[[Any], None]:
    """A change of a quantization_config and of the weights of its only group."""

    def edit(config: Any) -> None:
        whole = config["quantization_config"]
        change(whole, whole["config_groups"]["group_0"]["weights"])

    return edit


def group(**changes: Any) -> Callable[[Any, Any], object]:
    return lambda whole, _: whole["config_groups"]["group_0"].update(changes)


QUANTISED: dict[str, tuple[str, Callable[[Any, Any], object], str]] = {
    "group_size 0": ("w4", lambda _, w: w.update(group_size=0), "group_size 0 with scales by group"),
    "group_size 64": ("w4", lambda _, w: w.update(group_size=64), "group_size 64, and its tensors are otherwise"),
    "group_size -1": ("w4", lambda _, w: w.update(group_size=-1), "group_size -1 with scales by group"),
    "group_size true": ("w4", lambda _, w: w.update(group_size=True), "group_size True"),
    "by row": ("w4", lambda _, w: w.update(strategy="channel", group_size=None), "one scale for a row"),
    "whole": ("w8", lambda _, w: w.update(strategy="tensor"), "one scale in all"),
    "marlin-24": ("w4", lambda c, _: c.update(format="marlin-24"), "format marlin-24"),
    "marlin-24 of the group": ("w4", group(format="marlin-24"), "format marlin-24"),
    "another format": ("w4", lambda c, _: c.update(format="int-quantized"), "in format int-quantized"),
    "both formats": (
        "w4", lambda c, w: (c.update(format="int-quantized"), group(format="int-quantized")(c, w)),
        "format int-quantized, and",
    ),
    "asymmetric": ("w4", lambda _, w: w.update(symmetric=False), "symmetric false"),
    "asymmetric w8": ("w8", lambda _, w: w.update(symmetric=False), "symmetric false"),
    "symmetric": ("w4", lambda _, w: w.update(symmetric="no"), "symmetric no"),
    "actorder group": ("w4", lambda _, w: w.update(actorder="group"), "an actorder"),
    "actorder": ("w4", lambda _, w: w.update(actorder="random"), "actorder random"),
    "actorder of rows": ("w8", lambda _, w: w.update(actorder="weight"), "actorder weight with scales by channel"),
    "8 bits": ("w4", lambda _, w: w.update(num_bits=8), "num_bits 8"),
    "bits true": ("w4", lambda _, w: w.update(num_bits=True), "weights that are not integers of 4 or 8 bits"),
    "scales": ("w4", lambda _, w: w.update(scale_dtype="torch.float64"), "scale_dtype float64"),
    "other scales": ("w4", lambda _, w: w.update(scale_dtype="torch.float16"), "scale_dtype float16"),
    "zero points": ("w4", lambda _, w: w.update(zp_dtype="torch.float8"), "zp_dtype torch.float8"),
    "blocks": ("w4", lambda _, w: w.update(block_structure=[128, 128]), "block_structure in weights"),
    "dynamic": ("w4", lambda _, w: w.update(dynamic=True), "dynamic in weights"),
    "unknown": ("w4", lambda _, w: w.update(rotation="hadamard"), "rotation in weights"),
    "unknown of all": ("w4", lambda c, _: c.update(scrambled=True), "scrambled in quantization_config"),
    "unknown of a group": ("w4", group(scrambled=1), "scrambled in config_groups"),
    "target": ("w4", group(targets=["Conv2d"]), "that it is not quantised (targets)"),
    "targets": ("w4", group(targets=5), "targets that are no names"),
    "no targets": ("w4", group(targets=[]), "targets that name nothing"),
    "pattern": ("w4", group(targets=["re:("]), "which is none"),
    "other Linears": ("w4", group(targets=["re:.*gate_proj$"]), "that it is not quantised (targets)"),
    "slow pattern": ("w4", group(targets=["re:(.*.*)*(.*.*)*(.*.*)*~"]), "(targets)"),
    "ignored": ("w4", lambda c, _: c["ignore"].append(Q), f"of '{Q}' that it is not quantised (ignore)"),
    "ignored by pattern": ("w4", lambda c, _: c["ignore"].append("re:.*q_proj"), "not quantised (ignore)"),
    "ignore": ("w4", lambda c, _: c.update(ignore=[[1]]), "ignore that are no names"),
    "status": ("w4", lambda c, _: c.update(quantization_status="initialized"), "quantization_status initialized"),
    "cache": ("w4", lambda c, _: c.update(kv_cache_scheme={"num_bits": 8, "type": "float"}), "(kv_cache_scheme)"),
    "inputs": (
        "w4", group(input_activations={"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}),
        "(input_activations)",
    ),
    "outputs": ("w8", group(output_activations={"num_bits": 8, "type": "int"}), "activations that weights of 8 bits"),
    "static inputs": ("w8", group(input_activations={"num_bits": 8, "type": "int", "strategy": "tensor"}), "(input_"),
    "sparse": ("w4", lambda c, _: c.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
}  # fmt: skip


def quantised() -> Iterator[Hostile]:
    for name, (folder, change, says) in QUANTISED.items():
        yield Hostile(
            f"{name}: dequantize",
            ("dequantize", folder, "out"),
            edited(f"{folder}/config.json", settings(change)),
            says,
        )
    for size in ([0, 0], [128], "x", [128, "x"], [-1, 128], [True, 128]):
        change = edited("fp8/config.json", lambda c, size=size: c["quantization_config"].update(weight_block_size=size))
        yield Hostile(f"fp8 in blocks of {size}", ("dequantize", "fp8", "out"), change, f"weight_block_size {size}")


CASES = [case for kind in (models, ggufs, stores, planned, numbers, quantised) for case in kind()]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_hostile_is_one_line(case, source, tmp_path):
    began = time.monotonic()
    bad = bad_inputs.Case(case.name, case.arguments, case.change)
    outcome = bad_inputs.run(bad, source, tmp_path / "here")
    assert not outcome.wrong(bad), outcome
    assert outcome.code == 2 and case.says in outcome.said[-1], outcome
    assert len(outcome.said[-1]) < 2100 and time.monotonic() - began < SECONDS


# What a killed command leaves.

KILLED = """
import os, signal, sys
from pathlib import Path

replace, count = Path.replace, 0

def replaced(self, target):
    global count
    count += 1
    if count > int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replaced
"""


def killed(at: int, script: str, *arguments: object) -> int:
    """The exit status of a Python process that is killed before it renames more than `at` files."""
    return warm_processes.run(KILLED + script, at, *arguments)[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


WRITE = "from prunus.disk import write_text; write_text(Path(sys.argv[2]), 'x')"


@pytest.mark.thorough
@pytest.mark.slow
def test_what_a_killed_writer_left_is_deleted_by_the_next_one_in_the_folder(tmp_path):
    """And what another process is just writing is not, nor other files."""
    assert killed(0, WRITE, tmp_path / "a") == -9 and killed(0, WRITE, tmp_path / "b") == -9
    (left,) = names(tmp_path)
    assert left.startswith("b.") and left.endswith(".writing")  # the second one has deleted that of the first
    (tmp_path / "mine.writing").write_text("of a user")
    with atomic_file(tmp_path / "c") as first:
        write_text(tmp_path / "d", "x")
        assert names(tmp_path) == {"mine.writing", "d", Path(first.name).name}
        command = "from prunus.disk import write_text; write_text(Path(sys.argv[2]), 'x')"
        assert killed(9, command, tmp_path / "e") == 0
        assert names(tmp_path) == {"mine.writing", "d", "e", Path(first.name).name}
        first.write(b"whole")
    assert names(tmp_path) == {"mine.writing", "c", "d", "e"} and (tmp_path / "c").read_bytes() == b"whole"


EXPORT = "import prunus; prunus.view(sys.argv[2], export=sys.argv[3])"


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1, 2, -1, None])
def test_a_killed_export_is_made_by_the_same_command(source, tmp_path, at):
    """Some files had their names, so that the command was refused. -1: only the last has none. None: not killed."""
    prunus.view(source / "results.db", export=tmp_path / "whole")
    files = len(names(tmp_path / "whole"))
    assert files > 2
    renamed = 99 if at is None else at % (files + 1)  # the list is renamed, too
    assert killed(renamed, EXPORT, source / "results.db", tmp_path / "out") == (0 if at is None else -9)
    if at is not None:
        assert len(names(tmp_path / "out")) > files
        prunus.view(source / "results.db", export=tmp_path / "out")
    assert names(tmp_path / "out") == names(tmp_path / "whole")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    with pytest.raises(PrunusError, match="exists: name another folder, or add --overwrite"):
        prunus.view(source / "results.db", export=tmp_path / "out")


def test_the_list_of_a_killed_export_names_only_files_of_its_folder(tmp_path):
    (tmp_path / "out").mkdir()
    for text in ('["../mine", "/etc/passwd", "", 5]', "5", "[[", '{"a": 1}'):
        (tmp_path / "mine").write_text("x")
        (tmp_path / "out" / EXPORTING).write_text(text)
        write_export({tmp_path / "out" / "a": lambda: b"1"})
        assert names(tmp_path) == {"mine", "out"} and names(tmp_path / "out") == {"a"}


GGUF = "import prunus; prunus.gguf(sys.argv[2], sys.argv[3])"
DROP = """
import prunus
from prunus.recipes import DropRecipe
prunus.drop(sys.argv[2], sys.argv[3], DropRecipe(blocks="1,"))
"""


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(("script", "out"), [(GGUF, "x.gguf"), (GGUF, "x"), (DROP, "x")])
def test_a_killed_command_leaves_nothing_for_good(source, tmp_path, script, out):
    """Killed at every renaming of a file: the same command then ends, and nothing else is left."""
    for at in (0, 1, 2, 5, 30):
        folder = tmp_path / str(at)
        folder.mkdir()
        status = killed(at, script, source / "model", folder / out)
        if status == 0:
            break
        assert status == -9 and names(folder)
        assert killed(99, script, source / "model", folder / out) == 0, at
        assert names(folder) == {out}
    assert at > 0
    left = {
        path.name
        for path in tmp_path.rglob("*")
        if path.name.endswith((".writing", ".partial")) or "journal" in path.name
    }
    assert not left


SCRATCH = """
import tempfile
from prunus.disk import scratch_folder, write_text
tempfile.tempdir = sys.argv[2]
with scratch_folder() as folder:
    (folder / "large").write_text("x")
    write_text(folder / "a", "x")
"""


@pytest.mark.slow
def test_folders_for_temporary_files_of_killed_processes_are_deleted(tmp_path, monkeypatch):
    (tmp_path / "prunus-of-others").mkdir()
    assert killed(0, SCRATCH, tmp_path) == -9  # before the next line: a server of processes makes a folder, too
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(names(tmp_path)) == 2
    with scratch_folder() as folder:
        (folder / "a").write_text("x")
        with scratch_folder() as second:
            assert folder.is_dir() and second.is_dir() and len(names(tmp_path)) == 3
    assert names(tmp_path) == {"prunus-of-others"}


# What a server may send.


@pytest.mark.slow
def test_a_server_that_asks_for_a_billion_seconds_is_waited_for_as_long_as_it_is_said(monkeypatch, capsys):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(transport.asyncio, "sleep", sleep)
    for asked, least in (("1000000000", 60), ("1e400", 60), ("60", 60), ("-5", 0), ("nan", 0), ("soon", 0)):
        slept.clear()
        with (
            answering(b"HTTP/1.1 503 Busy\r\nRetry-After: " + asked.encode() + b"\r\nContent-Length: 0\r\n\r\n") as url,
            pytest.raises(PrunusError, match=r"answers 503.*\(3 tries\)"),
        ):
            asked_of(url, tries=3)
        assert len(slept) == 2 and all(least <= seconds <= 75 for seconds in slept)
        said = capsys.readouterr().err
        assert said.count("waiting 60 s before try 2 of 3") == (least == 60), said


def asked_of(url: str, tries: int = 1) -> Any:
    engine = EngineOptions(url=url, timeout=20.0)
    read = transport.reply_of
    return transport.with_client(engine, lambda client: read(client, url, url + "/models", read=dict, tries=tries))


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """The address of a server that sends these bytes to whoever asks, each time over a connection of its own."""
    reply = reply.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(reply)
                        connection.shutdown(socket.SHUT_WR)
                        connection.recv(1 << 16)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def with_body(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


REPLIES = {
    "broken gzip": (with_body(b"not gzip", "Content-Encoding: gzip"), "not compressed as its headers say"),
    "half of gzip": (with_body(gzip.compress(b'{"data": []}' * 99)[:-30], "Content-Encoding: gzip"), "answers"),
    "gzip in gzip": (with_body(gzip.compress(b"\x00"), "Content-Encoding: gzip, gzip"), "answers with something"),
    "a large body in gzip": (
        with_body(gzip.compress(bytes(1 << 27), 9), "Content-Encoding: gzip"), r"sends more than 16,777,\d+ bytes",
    ),
    "400 digits": (with_body(b'{"data": ' + LARGE.encode() + b"}"), "something that is not JSON"),
    "an escape sequence": (with_body(b'{"error": "\x1b[2J"}'), "not JSON"),
    "no HTTP": (b"\x1b]0;owned\x07" * 50, "broke off"),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, "broke off"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_a_hostile_reply_is_one_line(name):
    reply, says = REPLIES[name]
    with answering(reply) as url, pytest.raises(PrunusError, match=says):
        asked_of(url)


ADDRESSES = [
    "http://a\x1b[2J",
    "http://a\r\nb",
    "http://" + "a" * 100_000,
    "http://a b/",
    "http://\u202ea",
    "http://[::1",
    "http://\u3002/",
]


@pytest.mark.parametrize("url", ADDRESSES, ids=lambda url: ascii(url[:12]))
def test_a_hostile_address_is_one_line(url, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", "tiny", "--task", "tiny", "--engine", "openai", "--url", url, "--store", "/nowhere/x.db"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and len(said) < 2100 and "internal" not in said
    assert "is not the address of a server" in said or "does not exist" in said


def test_a_key_or_a_command_that_cannot_be_sent_is_one_line(monkeypatch):
    monkeypatch.setenv("PRUNUS_API_KEY", "\u00e9")
    with pytest.raises(PrunusError, match=r"the key .PRUNUS_API_KEY or OPENAI_API_KEY. or the proxy"):
        asked_of("http://127.0.0.1:1")
    null = running_server(EngineOptions(serve="a {model} {port} '\0'"), Path("x"))
    with pytest.raises(PrunusError, match="the server cannot be started: 'a': embedded null byte"), null:
        pass


# A tokenizer that GGUF cannot say in full.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("normal", "says"),
    [
        ({"type": "NFC"}, "brings texts into Unicode's form NFC first, which GGUF cannot say"),
        (None, ""),
    ],
)
def test_a_normaliser_that_gguf_cannot_carry_is_told(source, tmp_path, normal, says):
    shutil.copytree(source / "model", tmp_path / "model")
    edited("model/tokenizer.json", lambda content: content.update(normalizer=normal))(tmp_path)
    warnings = prunus.plan(tmp_path / "model", prunus.GgufRecipe(), tmp_path / "x.gguf").warnings
    like = prunus.plan(tmp_path / "model", GgufRecipe(like=str(source / "m.gguf")), tmp_path / "x.gguf")
    for told in (warnings, like.warnings):
        assert [one for one in told if "tokenizer" in one] == [one for one in told if says and says in one]
        assert bool(says) == any("tokenizer" in one for one in told)
