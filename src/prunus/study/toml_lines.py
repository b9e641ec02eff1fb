"""Line numbers of the keys in a TOML text, for error messages: tomllib does not report them."""

import re
from collections.abc import Iterable, Mapping

from prunus.errors import nearest

_HEADER = re.compile(r"\s*\[\[?\s*([\w.\-\"']+)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([\w.\-\"']+)\s*=")


class Lines:
    """The line numbers of a study file, found by table and key."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, int, str], int] = {}
        table, number, seen = "", 0, dict[str, int]()
        for line, content in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(content):
                table = _bare(header[1])
                number = seen[table] = seen.get(table, -1) + 1
                self._lines[table, number, ""] = line
            elif key := _KEY.match(content):
                self._lines.setdefault((table, number, _bare(key[1])), line)

    def of(self, table: str, key: str = "", number: int = 0) -> int | None:
        """The line of a key of the number-th table of that name; else the line of the table's header; else None.

        table: `` for the top level.
        """
        candidates = [(table, number, key), ("", 0, f"{table}.{key}"), (table, number, ""), ("", 0, table)]
        if not table:
            candidates.append((key, 0, ""))  # the file has a table where a top-level key is expected
        return next((self._lines[candidate] for candidate in candidates if candidate in self._lines), None)


def _bare(key: str) -> str:
    return key.replace('"', "").replace("'", "")


def suggestion(word: str, known: Iterable[str], elsewhere: Mapping[str, Iterable[str]]) -> str:
    """The hint that ends the message about an unknown key: its right table, a similar key, or all known keys.

    elsewhere: keys of the other tables, by the name of the table in messages.
    """
    known = sorted(known)
    for table, keys in elsewhere.items():
        if word in keys:
            return f"it belongs under {table}"
    return nearest(word, known, "known keys are")
