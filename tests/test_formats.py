"""A file of another format is refused in one line, which names both formats and says what to do."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import make_model

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.formats import FORMATS, check_format
from prunus.manifest import read_manifest
from prunus.pruning.allocation.measurement import read_scores
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.results.certificate import read_certificate
from prunus.store.store import Store
from prunus.studies.choose.files import read_choice


def store(path: Path, number: int) -> None:
    Store(path, create=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("UPDATE meta SET value = '9.9'")
    connection.close()
    Store(path)


def written(data: dict[str, Any], read: Callable[[Path], object]) -> Callable[[Path, int], None]:
    """Write a file with a format under the key of this data whose value is None, and read it."""

    def case(path: Path, number: int) -> None:
        path.write_text(json.dumps({key: number if value is None else value for key, value in data.items()}))
        read(path)

    return case


def statistics(path: Path, number: int) -> None:
    save_file({"a": torch.ones(1)}, path, {"prunus": json.dumps({"format": number})})
    SavedStats(path, Checkpoint(make_model(path.with_name("model"))))


def manifest(path: Path, number: int) -> None:
    path.mkdir()
    (path / "prunus.json").write_text(json.dumps({"format": number, "history": []}))
    read_manifest(path)


CERTIFICATE = {"format": None, "declared": {}, "shown": {}, "made": {}, "content": ""}
KINDS = {
    "store": (store, "use that prunus, or name another --store"),
    "certificate": (written(CERTIFICATE, read_certificate), "`prunus find` into another folder makes a new one"),
    "choice": (written({"format": None}, read_choice), "`prunus choose` with the same --store makes a new one"),
    "manifest": (manifest, "make the model again"),
    "file of statistics": (statistics, "write it again with `prunus stats`"),
    "file of importance scores": (
        written({"evidence": None}, lambda path: read_scores(path, "owl", ("block",), 2)),
        "measure them again with `prunus allocate --save`",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("other", [-1, 1], ids=["older", "newer"])
@pytest.mark.parametrize("kind", FORMATS)
def test_another_format_is_refused_in_a_line_that_says_what_to_do(tmp_path, kind, other):
    write_and_read, advice = KINDS[kind]
    path, number = tmp_path / "file", FORMATS[kind] + other
    line = f"^the {kind} '.*file.*' has format {number}.*reads format {FORMATS[kind]}: .*{advice}"
    with pytest.raises(PrunusError, match=line) as error:
        write_and_read(path, number)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("found", [True, None, "1\n2", 1e300, {"a": 1}])
def test_what_is_no_number_is_no_format(found):
    with pytest.raises(PrunusError, match=r"has format .*write it again$") as error:
        check_format("choice", "x", found, "write it again")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
