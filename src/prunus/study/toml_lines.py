"""Where in a TOML text a key stands: tomllib does not say, and a message without a line is of little help."""

import difflib
import re
from collections.abc import Iterable, Mapping

_HEADER = re.compile(r"\s*\[\[?\s*([\w.\-\"']+)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([\w.\-\"']+)\s*=")


class Lines:
    """Lines of a study file by table and key."""

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
        """The line of a key of the number-th table of that name ("": top level), else of its header, else None."""
        places = [(table, number, key), ("", 0, f"{table}.{key}"), (table, number, ""), ("", 0, table)]
        if not table:
            places.append((key, 0, ""))  # a table where a key was to be
        return next((self._lines[place] for place in places if place in self._lines), None)


def _bare(key: str) -> str:
    return key.replace('"', "").replace("'", "")


def suggestion(word: str, known: Iterable[str], elsewhere: Mapping[str, Iterable[str]]) -> str:
    """What was perhaps meant by an unknown key. elsewhere: keys of the other tables, by what the file calls these."""
    known = sorted(known)
    for table, keys in elsewhere.items():
        if word in keys:
            return f"it belongs under {table}"
    if near := difflib.get_close_matches(word, known, n=1):
        return f"did you mean '{near[0]}'?"
    return f"known keys are {', '.join(known)}"
