"""JSON and TOML as plain data; whatever is wrong with the text is a ValueError."""

import json
import tomllib
from typing import Any

MOST_DOTS = 1000  # in a line of TOML: tomllib takes minutes for a key of very many parts
DEEP = "it is nested too deeply"


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, or is nested so deeply that it cannot be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(DEEP) from error


def parse_toml(text: str) -> dict[str, Any]:
    """The content of a TOML text. Raises ValueError as parse_json does."""
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise ValueError(f"a line has more than {MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(DEEP) from error
