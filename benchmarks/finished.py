"""Files of finished lines, one JSON object each, of which pages of measurements are made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_line(file: Path | None, line: Mapping[str, Any]) -> None:
    """Add a line to a file, unless there is none or it has this line, as where a benchmark is resumed."""
    if file is None:
        return
    text = json.dumps(line) + "\n"
    if not file.exists() or text not in file.read_text("utf-8").splitlines(keepends=True):
        with file.open("a", encoding="utf-8") as opened:
            opened.write(text)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it is not there."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
