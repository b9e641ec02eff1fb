"""Bad inputs of all commands: what is changed in a folder with one of each kind of file, and the command that reads it.

`every` yields some hundred of them. Each is a Case; `run` copies the folder, changes it, and gives the command in this
process. A test takes some of them; `python tests/helpers/bad_inputs.py` tries all and counts what went wrong.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import small_search
import torch
from fake_store import make_store
from helpers.small_choice import Made, declared_of
from safetensors.torch import load_file, save_file
from tiny_models import make_model, random_rows

import prunus
from prunus import progress
from prunus.cli import cli, main
from prunus.formats import FORMATS
from prunus.plain_data import canonical_json
from prunus.recipes import PruneRecipe, QuantizeRecipe

NOT_FOUND = 3  # exit code of a search that certified nothing
SECONDS = 60  # after which a command counts as hung
TEXTS: dict[str, bytes] = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "a number": b"5",
    "a huge number": b"1e999",
    "five thousand digits": b"9" * 5000,
    "a text": b'"x"',
    "half": b'{"a": [1, ',
    "not UTF-8": b"\xff\xfe\x00{",
    "zeros": b"\x00" * 100,
    "a list of lists": b"[[[1]], {}]",
    "an object of objects": b'{"format": 1, "history": {"a": 1}, "data": {}, "declared": [], "shown": 5}',
}
TOMLS: dict[str, bytes] = {
    "deep lists": b"a = " + b"[" * 100_000,
    "deep tables": b"[" + b"a." * 50_000 + b"a]",
    "nothing": b"",
    "not UTF-8": b"\xff\xfe",
    "half": b'name = "a',
    "zeros": b"\x00" * 100,
    "twice": b"a = 1\na = 2",
    "a huge number": b"format = 1e999",
    "numbers for tables": b"format = 1\nthink = 5\neval = 5\nprune = 5\nmodels = 5\nfind = 5\nreport = 5",
    "lists for tables": b"format = 1\nthink = []\neval = []\nprune = [5]\nmodels = [5]\nfind = [5]\nreport = []",
}
VALUES = ("5", "nan", "inf", "-1", "true", '"x"', "[]", "[[]]", "{}", "[nan]", "1e400", "9" * 30)
# An option of one of these types cannot have these values; the others may be right, but must not fail unexpectedly.
NEVER = {"float": ("nan", "inf", "-inf", "x", ""), "int": ("nan", "1.5", "x", "", "9" * 5000)}
EXTREME = {"float": ("-1e308", "1e308"), "int": ("-1", "-" + "9" * 30)}


class Case(NamedTuple):
    """name: what is bad. arguments: of the command. change: what is done to the folder before.

    fails: whether the command has to refuse it; otherwise it may also succeed. limit: of a file's size in bytes.
    """

    name: str
    arguments: tuple[str, ...]
    change: Callable[[Path], None] = lambda folder: None
    fails: bool = True
    limit: int | None = None


class Outcome(NamedTuple):
    """code: exit code, None where the command hung. said: lines on stderr. left: new paths in the folder."""

    code: int | None
    said: list[str]
    left: list[str]

    def wrong(self, case: Case) -> str:
        """What the command did that it must not; empty where it refused the input properly."""
        last = self.said[-1] if self.said else ""
        if self.code is None:
            return "hung"
        if self.code == 1 and "internal error" in last:
            return f"internal error: {last}"
        if (self.code in (0, NOT_FOUND) and not case.fails) or (self.code == 1 and case.arguments[0] == "verify"):
            return ""  # verify exits with 1 where something differs
        if self.code != 2:
            return f"exit code {self.code}: {last}"
        if (
            any("Traceback" in line for line in self.said)
            or not last
            or len([x for x in self.said if "error:" in x]) > 1
        ):
            return f"not one line: {self.said}"
        return ""


def fill(folder: Path) -> Path:
    """Write one of each kind of file that commands read, by relative names; returns the folder."""
    make_model(folder / "model", blocks=2)
    write_in_fp8(folder / "model", folder / "quantised")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in random_rows(8, 24)))
    (folder / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "2+2?"}]}) + "\n")
    (folder / "task.jsonl").write_text('{"id": "a", "problem": "1+1?", "answer": "2"}\n')
    rows = str(folder / "rows.jsonl")
    prunus.prune(folder / "model", folder / "pruned", PruneRecipe(calibration=rows, sequences=8, seqlen=24))
    prunus.stats(folder / "model", folder / "stats.safetensors", calibration=rows, sequences=8, seqlen=24)
    make_store(folder / "results.db", problems=12, budgets=(0, 16))
    (folder / "study.toml").write_text(
        'models = ["model"]\n[eval]\ntasks = ["task.jsonl"]\nbudgets = [8]\nprofile = "tiny"\n'
        '[[prune]]\nmethod = "magnitude"\nsparsity = 0.3\n'
    )
    (folder / "ladder.toml").write_text('[[prune]]\nmethod = "magnitude"\nsparsity = 0.3\n')
    (folder / "profile.toml").write_text('format = 1\nextends = "tiny"\n')
    (folder / "certificate.json").write_text(
        json.dumps(
            {"format": FORMATS["certificate"], "prunus": "1", "declared": {}, "shown": {}, "made": {}, "content": ""}
        )
    )
    (folder / "log.jsonl").write_text("{}\n")
    [log] = (Path(__file__).parents[1] / "data/imported/lm_eval/beta").glob("samples_sums_*.jsonl")
    shutil.copy(log, folder / "samples.jsonl")
    for name, bits in (("w4", 4), ("w8", 8)):
        prunus.quantize(folder / "model", folder / name, QuantizeRecipe(bits=bits, method="rtn", group="row"))
    made = Made(folder / "choice.db", declared_of(60))
    (folder / "choice.json").write_text(canonical_json(made.chosen().to_json()))
    made.store.close()
    write_found(folder / "found")
    (folder / "scores.json").write_text('{"block": [1.0, 2.0]}')
    return folder


def write_found(folder: Path) -> None:
    """Write the certificate of a search by scripted answers, and its store found.db."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch, contextlib.chdir(name):
        small_search.fill(Path(name))
        small_search.script(patch)
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            main([*small_search.COMMAND, "--ladder", "0.2,0.3"])
        folder.mkdir()
        shutil.copy("out/certificate.json", folder / "certificate.json")
        shutil.copy("rows.db", folder / "found.db")


def write_in_fp8(model: Path, out: Path) -> None:
    """Write a copy of a model whose matrices are 8-bit floats, each with one scale."""
    shutil.copytree(model, out)
    tensors = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if tensor.ndim == 2 and "layers" in name:
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.float().reshape(1, 1)
        else:
            tensors[name] = tensor
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    made_by = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    edit("config.json", "quantization_config", made_by)(out)


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def sql(*statements: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with contextlib.closing(sqlite3.connect(folder / "results.db")) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return change


def flip(name: str, seed: int, first: int | None = None) -> Callable[[Path], None]:
    """Change 20 bytes, of the first ones only if `first` is given."""

    def change(folder: Path) -> None:
        rng, data = random.Random(seed), bytearray((folder / name).read_bytes())
        for _ in range(20):
            data[rng.randrange(min(len(data), first or len(data)))] = rng.randrange(256)
        (folder / name).write_bytes(data)

    return change


def edit(name: str, key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        data[key] = value
        (folder / name).write_text(json.dumps(data))

    return change


CALIBRATED = ("--calibration", "rows.jsonl", "--sequences", "8", "--seqlen", "24")
WRITING: dict[str, tuple[str, ...]] = {
    "prune": ("prune", "model", "OUT", *CALIBRATED),
    "drop": ("drop", "model", "OUT", "--blocks", "1,"),
    "experts": ("experts", "tiny-moe", "OUT", "--method", "random"),
    "dequantize": ("dequantize", "quantised", "OUT"),
    "recover": ("recover", "pruned", "OUT", *CALIBRATED, "--epochs", "1"),
    "stats": ("stats", "model", "OUT", *CALIBRATED),
    "traces": ("traces", "model", "OUT", "--task", "task.jsonl", "--chain-tokens", "4", "--profile", "tiny"),
    "allocate": ("allocate", "model", "--allocation", "owl", "--save", "OUT", *CALIBRATED),
    "export": ("export", "results.db", "OUT"),
    "report": ("report", "results.db", "OUT"),
    "report --csv": ("report", "results.db", "page.html", "--csv", "OUT"),
    "card": ("card", "pruned", "--out", "OUT"),
    "eval": ("eval", "model", "--task", "task.jsonl", "--budgets", "4", "--profile", "tiny", "--store", "OUT"),
    "import": ("import", "OUT", "samples.jsonl", "--as", "x", "--metric", "exact_match,whole"),
    "find": (
        "find", "model", "OUT", "--task", "task.jsonl", "--budgets", "4", "--profile", "tiny", "--store", "rows.db",
        "--method", "magnitude", "--ladder", "0.2", "--margin", "0.96", "--stop-margin", "0.96",
    ),
    "study": ("study", "study.toml", "--out", "OUT"),
    "demo": ("demo", "--quick", "--out", "OUT"),
}  # fmt: skip
# One that can certify its rung, so that it succeeds where nothing is in the way.
SEARCH = (
    "find", "tiny", "OUT", "--task", "tiny", "--limit", "40", "--budgets", "128", "--store", "rows.db",
    "--method", "magnitude", "--ladder", "0.05", "--margin", "0.3", "--stop-margin", "0.3",
)  # fmt: skip
EVAL = ("eval", "model", "--task", "task.jsonl", "--budgets", "4", "--profile", "tiny", "--store", "new.db")


def _out(arguments: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(name if one == "OUT" else one for one in arguments)


def files() -> Iterator[Case]:
    """Malformed files."""
    readers: dict[str, list[tuple[str, ...]]] = {
        "model/config.json": [("inspect", "model"), ("prune", "model", "out", *CALIBRATED), ("drop", "model", "out")],
        "model/generation_config.json": [EVAL],
        "model/tokenizer.json": [
            EVAL,
            ("prune", "model", "out", "--calibration", "chats.jsonl", "--sequences", "1"),
        ],
        "model/tokenizer_config.json": [EVAL],
        "pruned/prunus.json": [("inspect", "pruned"), ("recover", "pruned", "out"), ("card", "pruned", "--out", "c")],
        "pruned/config.json": [("card", "pruned", "--out", "c.md")],
        "certificate.json": [("verify", "certificate.json", "--store", "results.db")],
        "rows.jsonl": [
            ("prune", "model", "out", *CALIBRATED),
            ("stats", "model", "out", *CALIBRATED),
            ("perplexity", "model", "--text", "rows.jsonl", "--seqlen", "8"),
        ],
        "task.jsonl": [EVAL],
        "log.jsonl": [("import", "new.db", "log.jsonl", "--as", "x")],
        "scores.json": [("prune", "model", "out", "--scores", "scores.json", "--allocation", "owl", *CALIBRATED)],
        "stats.safetensors": [("prune", "model", "out", "--stats", "stats.safetensors", "--propagation", "dense")],
        "model/model.safetensors": [("inspect", "model"), ("prune", "model", "out", *CALIBRATED)],
    }
    may_pass = ("generation_config", "tokenizer_config", "perplexity", "prunus.json")
    for file, commands in readers.items():
        for arguments in commands:
            fails = not any(word in file for word in may_pass) and "card" not in arguments
            for what, content in TEXTS.items():
                yield Case(f"{file}: {what}: {arguments[0]}", arguments, write(file, content), fails and what != "null")
            yield Case(f"{file} is a folder: {arguments[0]}", arguments, as_folder(file), fails)
    toml: dict[str, tuple[str, ...]] = {
        "study.toml": ("study", "study.toml"),
        "ladder.toml": ("find", "model", "out", "--task", "task.jsonl", "--ladder", "ladder.toml", "--profile", "tiny"),
        "profile.toml": ("profiles", "profile.toml"),
    }
    for file, arguments in toml.items():
        for what, content in TOMLS.items():
            yield Case(f"{file}: {what}", arguments, write(file, content))
        yield Case(f"{file} is a folder", arguments, as_folder(file))
        yield Case(f"{file} is missing", arguments, remove(file))


def settings() -> Iterator[Case]:
    """Values of a wrong type in files."""
    for table, keys in {
        "think": ("start", "stops", "match", "wait"),
        "close": ("natural", "answer_in_chain"),
        "answer": ("stops", "tokens"),
        "off": ("template", "block"),
        "native": ("efforts", "engine"),
        "sampling": ("temperature", "top_p", "top_k"),
        "template": ("system_file", "date", "enable_thinking"),
    }.items():
        for key in keys:
            for value in VALUES:
                text = f'format = 1\nextends = "qwen3"\n[{table}]\n{key} = {value}\n'.encode()
                yield Case(
                    f"profile [{table}] {key} = {value[:9]}",
                    ("profiles", "profile.toml"),
                    write("profile.toml", text),
                    False,
                )
    for key in ("sparsity", "method", "samples", "recover", "blocks", "experts"):
        for value in VALUES:
            text = f'models = ["model"]\n[eval]\ntasks = ["task.jsonl"]\n[[prune]]\n{key} = {value}\n'.encode()
            yield Case(f"study {key} = {value[:9]}", ("study", "plan", "study.toml"), write("study.toml", text), False)
    for key in (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "model_type", "rms_norm_eps",
        "rope_parameters", "eos_token_id", "tie_word_embeddings", "torch_dtype", "quantization_config",
        "max_position_embeddings", "layer_types",
    ):  # fmt: skip
        for value in (-1, 0, 10**9, 10**30, "x", [], {}, None, [[1]], 1e308):
            yield Case(
                f"config {key} = {str(value)[:9]}", ("inspect", "model"), edit("model/config.json", key, value), False
            )


def numbers() -> Iterator[Case]:
    """Numbers of the command line."""
    for name, command in sorted(cli.commands.items()):
        for option in command.params:
            kind = getattr(option.type, "name", "").split()[0].replace("integer", "int")
            if not isinstance(option, click.Option) or kind not in NEVER or option.name is None:
                continue
            needed = [
                f"./no-such-{argument.name}" for argument in command.params if isinstance(argument, click.Argument)
            ]
            more = [part for other in command.params if other.required and isinstance(other, click.Option)
                    for part in (other.opts[0], "1" if other.type is click.FLOAT else "x")]  # fmt: skip
            for value in NEVER[kind]:
                yield Case(
                    f"{name} {option.opts[0]} {value[:9]!r}", (name, *needed, *more, f"{option.opts[0]}={value}")
                )


def extremes() -> Iterator[Case]:
    """Numbers out of range, for commands that would work otherwise."""
    for name in ("prune", "drop", "recover", "stats", "eval", "traces"):
        arguments = _out(WRITING[name], "t.jsonl" if name == "traces" else "out")
        for option in cli.commands[name].params:
            kind = getattr(option.type, "name", "").split()[0].replace("integer", "int")
            if isinstance(option, click.Option) and kind in EXTREME and not option.opts[0].startswith("--traces"):
                for value in EXTREME[kind]:
                    yield Case(
                        f"{name} {option.opts[0]}={value[:9]}", (*arguments, f"{option.opts[0]}={value}"), fails=False
                    )


def stores() -> Iterator[Case]:
    """Damaged stores."""
    commands = [
        ("compare", "results.db", "--base", "tiny"),
        ("report", "results.db", "page.html"),
        ("export", "results.db", "out"),
        ("verify", "certificate.json", "--store", "results.db"),
        ("card", "pruned", "--store", "results.db", "--out", "c.md"),
        (*EVAL[:-1], "results.db"),
        ("regrade", "results.db"),
        ("runs", "results.db"),
        ("runs", "results.db", "--remove", "tiny", "--yes"),
    ]
    changes = {
        **{f"no table {name}": sql(f"DROP TABLE {name}") for name in ("problem", "sample", "run", "meta")},
        "no column": sql("ALTER TABLE sample DROP COLUMN correct"),
        "bytes that are no numbers": sql("UPDATE run SET model = json_set(model, '$.bytes.head', 'x')"),
        "bytes that are a text": sql("UPDATE run SET model = json_set(model, '$.bytes', 'x')"),
        "a text for a budget": sql("UPDATE sample SET budget = 'x' WHERE budget = 16"),
        "bytes for an answer": sql("UPDATE sample SET answer = x'ff00'"),
        "a text for correct": sql("UPDATE sample SET correct = 'yes'"),
        "a huge number of tokens": sql("UPDATE sample SET thinking_tokens = 9223372036854775807"),
        "a negative budget": sql("UPDATE sample SET budget = -7 WHERE budget = 16"),
        "deep JSON": sql(f"UPDATE run SET model = '{'[' * 50_000}'"),
        "a list for a plan": sql("UPDATE run SET plan = '[]'"),
        "an empty plan": sql("UPDATE run SET plan = '{}'"),
        "an empty model": sql("UPDATE run SET model = '{}'"),
        "numbers in a model": sql("""UPDATE run SET model = '{"name": 5, "manifest": 5, "checksum": 5}'"""),
        "numbers in a plan": sql("""UPDATE run SET plan = '{"tasks": 5, "budgets": 5, "samples": "x", "mode": []}'"""),
        "no JSON": sql("UPDATE problem SET choices = 'x'"),
        "no problem": sql("DELETE FROM problem"),
        "no sample": sql("DELETE FROM sample"),
        "no run": sql("DELETE FROM run"),
        "a newer format": sql("PRAGMA user_version = 99"),
        "a plan of a number": sql("""INSERT INTO planned VALUES ('0', '{"tiny": 5}')"""),
        "a plan of numbers": sql("""INSERT INTO planned VALUES ('0', '{"tiny": [5]}')"""),
        "no run id": sql("INSERT INTO run SELECT NULL, model, plan, versions FROM run LIMIT 1"),
        "half": cut("results.db", 0.5),
        "a tenth": cut("results.db", 0.1),
        "nothing": write("results.db", b""),
        "a text": write("results.db", b"hello " * 100),
        **{f"changed bytes {seed}": flip("results.db", seed) for seed in range(3)},
        "a changed header": flip("results.db", 0, 100),
        "a folder": as_folder("results.db"),
    }  # fmt: skip
    for what, change in changes.items():
        for arguments in commands:
            yield Case(f"store with {what}: {arguments[0]}", arguments, change, fails=False)


def models() -> Iterator[Case]:
    """Damaged models."""
    for what, change in {
        "half": cut("model/model.safetensors", 0.5),
        "an empty file": write("model/model.safetensors", b""),
        "deep header": write("model/model.safetensors", (200_000).to_bytes(8, "little") + b"[" * 200_000),
        "no tensors": write("model/model.safetensors", (2).to_bytes(8, "little") + b"{}"),
        **{f"changed header {seed}": flip("model/model.safetensors", seed, 3000) for seed in range(6)},
        "no weights": remove("model/model.safetensors"),
        "no tokenizer": remove("model/tokenizer.json"),
        "no configuration": remove("model/config.json"),
        "an index of nothing": write("model/model.safetensors.index.json", b"{}"),
        "a deep index": write("model/model.safetensors.index.json", b"[" * 100_000),
    }.items():
        for arguments in (("inspect", "model"), ("prune", "model", "out", *CALIBRATED), ("drop", "model", "out"), EVAL):
            yield Case(f"model with {what}: {arguments[0]}", arguments, change, fails=False)


def paths() -> Iterator[Case]:
    """Outputs that cannot be written."""
    for name, arguments in WRITING.items():
        suffix = ".jsonl" if name == "traces" else ""
        for what, out in {
            "under a file": f"task.jsonl/out{suffix}",
            "deep under a file": f"task.jsonl/a/b/out{suffix}",
            "a long name": "n" * 300 + suffix,
            "under a long name": "n" * 300 + f"/out{suffix}",
            **({} if name == "demo" else {"a nearly too long name": "n" * 245 + suffix, "an existing folder": "model"}),
            "a device's child": f"/dev/null/out{suffix}",
            "of the kernel": f"/proc/prunus{suffix}",
            "an existing file": "task.jsonl",
            **({} if name in ("import", "eval", "card", "report") else {"the root": "/"}),
            **({} if name == "demo" else {"empty": ""}),  # which is the current folder
        }.items():
            yield Case(f"{name} to {what}", _out(arguments, out), fails=what == "the root")


def limits() -> Iterator[Case]:
    """Files larger than the system allows."""
    for name, arguments in (WRITING | {"find": SEARCH}).items():
        for limit in (0, 700, 20_000, 150_000):
            out = "t.jsonl" if name == "traces" else "out"
            yield Case(f"{name} with files of at most {limit} bytes", _out(arguments, out), fails=False, limit=limit)


LEAVES: tuple[Any, ...] = (
    None, True, -1, 0, 5, float("nan"), float("inf"), 10**30, "x", "\ud800", [], {}, [[1]], {"a": 1}, "without",
)  # fmt: skip
Place = tuple[str | int, ...]


def places(data: object, at: Place = ()) -> Iterator[Place]:
    """Where values stand in plain data; of a list the first one."""
    found = data.items() if isinstance(data, dict) else enumerate(data[:1]) if isinstance(data, list) else ()
    for key, value in found:
        yield (*at, key)
        yield from places(value, (*at, key))


def spoiled(data: Any, number: int, part: Place = ()) -> Any:
    """Plain data with one of LEAVES at another place: by number, each leaf at each place once. part: of the data."""
    at = (*part, *(every := list(places(reduce(getitem, part, data))))[number // len(LEAVES) % len(every)])
    inner, value = reduce(getitem, at[:-1], data), LEAVES[number % len(LEAVES)]
    inner[at[-1]] = value
    if value == "without":
        del inner[at[-1]]
    return data


def spoil(name: str, number: int, *part: str) -> Callable[[Path], None]:
    return lambda folder: write(
        name, json.dumps(spoiled(json.loads((folder / name).read_text()), number, part)).encode()
    )(folder)


def own_files() -> Iterator[Case]:
    """JSON files that Prunus writes, with another value at each place."""
    for file, many, part, commands in (
        ("choice.json", 2200, (), [("verify", "choice.json", "--store", "choice.db")]),
        ("found/certificate.json", 3000, (), [("verify", "found", "--store", "found/found.db")]),
        ("pruned/prunus.json", 1000, (), [("inspect", "pruned"), ("card", "pruned", "--out", "c.md")]),
        ("w4/config.json", 600, ("quantization_config",), [("inspect", "w4"), ("dequantize", "w4", "out")]),
        ("w8/config.json", 600, ("quantization_config",), [("dequantize", "w8", "out")]),
    ):
        for number in range(many):
            for arguments in commands:
                yield Case(f"{file} spoiled {number}: {arguments[0]}", arguments, spoil(file, number, *part), False)


# store: {table: columns that hold JSON}
JSON_COLUMNS = {
    "results.db": {"run": ("model", "plan", "versions"), "problem": ("choices",)},
    "choice.db": {"run": ("plan", "versions"), "log": ("event",), "begun": ("earlier",)},
    "found/found.db": {
        "run": ("model", "plan"),
        "adaptive": ("how",),
        "asks": ("wishes",),
        "search": ("declared", "had"),
        "log": ("event",),
        "planned": ("problems",),
        "begun": ("earlier",),
    },
}
CELLS = 4000  # cases of each column, which are at least as many as there are places and leaves


def spoil_cell(store: str, table: str, column: str, number: int) -> Callable[[Path], None]:
    """Put one of LEAVES at a place of the JSON in a column: by number, of each row in turn."""

    def change(folder: Path) -> None:
        with contextlib.closing(sqlite3.connect(folder / store)) as connection, connection:
            key = (
                "rowid"
                if table in ("run", "log", "search")
                else connection.execute(f"PRAGMA table_info({table})").fetchone()[1]
            )
            rows = connection.execute(f"SELECT {key}, {column} FROM {table} ORDER BY {key}").fetchall()
            if rows:
                row, text = rows[number % len(rows)]
                data = spoiled({"": json.loads(text)}, number // len(rows)).get("", 0)
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (json.dumps(data), row))

    return change


def cells() -> Iterator[Case]:
    """Stores with another value at each place of the JSON in their columns."""
    for store, tables in JSON_COLUMNS.items():
        commands = [
            ("compare", store), ("report", store, "page.html"), ("runs", store), ("export", store, "out"),
            ("regrade", store),
        ]  # fmt: skip
        commands += [("verify", "choice.json", "--store", store)] * (store == "choice.db")
        commands += [("verify", "found", "--store", store)] * store.startswith("found")
        commands += [("card", "pruned", "--store", store, "--out", "c.md"), (*EVAL[:-1], store)] * (
            store == "results.db"
        )
        for table, columns in tables.items():
            for column in columns:
                for number in range(CELLS):
                    arguments = commands[number * 7 % 1009 % len(commands)]
                    name = f"{store} {table}.{column} spoiled {number}: {arguments[0]}"
                    yield Case(name, arguments, spoil_cell(store, table, column, number), fails=False)


KINDS = (files, settings, numbers, extremes, stores, models, paths, limits, own_files, cells)


def every(kinds: tuple[Callable[[], Iterator[Case]], ...] = KINDS) -> list[Case]:
    """All cases of some kinds."""
    return [case for kind in kinds for case in kind()]


def run(case: Case, source: Path, folder: Path) -> Outcome:
    """Copy the folder `source` to `folder`, change it, and give the command there."""
    shutil.copytree(source, folder)
    case.change(folder)
    return give(case, folder)


def give(case: Case, folder: Path) -> Outcome:
    """Give the command of a case in a folder."""

    before, said, out = set(_names(folder)), io.StringIO(), io.StringIO()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiles = sys.dont_write_bytecode
    here, alarm = Path.cwd(), signal.signal(signal.SIGALRM, _raise_hung)
    os.chdir(folder)
    code: int | None = 0
    try:
        signal.alarm(SECONDS)
        if case.limit is not None:
            sys.dont_write_bytecode = True  # else the limit cuts what is compiled, and later processes cannot read it
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.limit, hard))
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
            main(list(case.arguments))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except Hung:
        code = None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = compiles
        os.chdir(here)
        progress.set_quiet(False)
    return Outcome(code, said.getvalue().strip().splitlines(), sorted(set(_names(folder)) - before))


class Hung(BaseException):
    """The command took longer than SECONDS."""


def _raise_hung(*_: object) -> None:
    raise Hung


def _names(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in folder.rglob("*"))


def report(cases: list[Case]) -> Counter[str]:
    """Run cases, print those that went wrong, and count outcomes."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        source = fill(Path(name) / "source")
        for number, case in enumerate(cases):
            began, folder = time.monotonic(), Path(name) / "case"
            outcome = run(case, source, folder)
            wrong = outcome.wrong(case)
            # Nothing that was left is in the way; a whole demo takes longer than SECONDS.
            if not wrong and case.limit is not None and outcome.code == 2 and case.arguments[0] != "demo":
                again = give(case._replace(limit=None), folder)
                wrong = "" if again.code in (0, NOT_FOUND) else f"then: {again.code} {again.said[-1:]}"
            if number % 50 == 0:
                print(number, flush=True)
            counts["wrong" if wrong else f"exit {outcome.code}"] += 1
            counts[wrong.partition(":")[0]] += bool(wrong)
            if wrong or time.monotonic() - began > 20:
                print(f"{number} {case.name} ({time.monotonic() - began:.0f} s): {wrong[:600]}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return counts


if __name__ == "__main__":
    chosen = {kind.__name__: kind for kind in KINDS}
    asked = every(tuple(chosen[word] for word in sys.argv[1:]) or KINDS)
    print(len(asked), "cases", flush=True)
    print(dict(report(asked)))
