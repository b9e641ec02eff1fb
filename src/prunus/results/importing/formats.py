"""The formats that can be imported."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from prunus.errors import PrunusError
from prunus.results.importing import evalscope, inspect_ai, lighteval, lm_eval
from prunus.results.importing.files import first_line
from prunus.results.importing.log import Log


class Format(NamedTuple):
    """A tool's format. files: the files that it reads, for messages."""

    files: str
    detect: Callable[[Path, bytes], bool]
    read: Callable[[Path], Log]


FORMATS = {
    lm_eval.TOOL: Format("samples_*.jsonl", lm_eval.detect, lm_eval.read),
    inspect_ai.TOOL: Format(".eval or .json", inspect_ai.detect, inspect_ai.read),
    lighteval.TOOL: Format("details_*.parquet", lighteval.detect, lighteval.read),
    evalscope.TOOL: Format("reviews/*/*.jsonl", evalscope.detect, evalscope.read),
}


def _read(tool: str, entry: Format, path: Path) -> Log:
    """The log; values of other types than the tool writes are the file's fault, not an internal error."""
    try:
        return entry.read(path)
    except (TypeError, AttributeError, LookupError, ValueError, NotImplementedError) as error:
        raise PrunusError(f"'{path}' is not a log of {tool} that this prunus can read ({error})") from error


def read_log(path: Path) -> Log:
    """The log in a file. Raises PrunusError if it is of no known format, or has no outputs."""
    head = first_line(path)
    for tool, entry in FORMATS.items():
        if entry.detect(path, head):
            log = _read(tool, entry, path)
            if not log.records:
                raise PrunusError(f"'{path}' is a log of {tool} without any output")
            return log
    known = ", ".join(f"{tool} ({entry.files})" for tool, entry in FORMATS.items())
    raise PrunusError(f"'{path}' is not recognised as a log; formats that can be imported: {known}")
