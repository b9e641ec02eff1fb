"""docs/tutorial.md does what it shows: its blocks are run from top to bottom, and their output is compared."""

import math
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from prunus.cli import main

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
# Where two tokens are nearly tied, another processor's rounding may change an answer, and one of 36 is 2.8 points.
TOLERANCE = 6.0


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """(command, what the page shows of its output); of a console block one per line that begins with `$`."""
    found = list(blocks(text))
    for i, (language, content) in enumerate(found):
        if language == "console":
            for part in re.split(r"^\$ ", content, flags=re.M)[1:]:
                command, _, shown = part.partition("\n")
                yield command, shown
        elif language == "python":
            yield content, found[i + 1][1] if found[i + 1 : i + 2] and found[i + 1][0] == "text" else ""


def printed(command: str, names: dict[str, object]) -> str:
    """What a user sees of a command or of Python code: results and messages."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(out):
        if command.startswith("prunus "):
            main(command.split()[1:])
        else:
            exec(compile(command, str(PAGE), "exec"), names)  # noqa: S102
    return out.getvalue()


def agrees(shown: str, got: str, tolerance: float) -> bool:
    """Whether every line shown is printed, in order and, but for `...`, without others between; blanks do not count.

    Numbers may differ by the tolerance.
    """
    wanted, lines = shown.strip().splitlines(), iter([line for line in got.splitlines() if line.strip()])
    skip = False
    for line in filter(str.strip, wanted):
        if line.strip() == "...":
            skip = True
            continue
        for candidate in lines:
            if same_line(line, candidate, tolerance):
                break
            if not skip:
                return False
        else:
            return False
        skip = False
    return skip or next(lines, None) is None


def same_line(shown: str, got: str, tolerance: float) -> bool:
    ours, theirs = ([float(n.replace(",", "")) for n in NUMBER.findall(line)] for line in (shown, got))
    words = [NUMBER.sub("0", line).split() for line in (shown, got)]
    return words[0] == words[1] and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=tolerance) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.thorough
@pytest.mark.slow
def test_the_tutorial_does_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text("utf-8")
    for language, content in blocks(text):
        if language == "toml":
            (tmp_path / content.partition("\n")[0].removeprefix("# ")).write_text(content)
    names: dict[str, object] = {}
    for command, shown in steps(text):
        got = printed(command, names)
        exact = command.startswith(("prunus inspect", "prunus prune", "prunus drop"))
        assert agrees(shown, got, 0 if exact else TOLERANCE), f"{command}\nshown:\n{shown}\nprinted:\n{got}"
    assert (tmp_path / "report.html").exists()


def test_output_that_differs_from_the_page_is_noticed():
    got = "a 12.0 b\n\nsecond -3\nthird\n"
    assert agrees("a 12.0 b\nsecond -3\nthird\n", got, 0)
    assert agrees("a 12.0 b\n...\n", got, 0)
    assert agrees("...\nthird\n", got, 0)
    assert agrees("a 13.0  b\nsecond -3\nthird\n", got, 1.5)
    for wrong in (
        "a 12.0 b\n",
        "a 13.0 b\n...\n",
        "...\nfourth\n",
        "a 12.0 b\nthird\n",
        "third\n...\n",
        "a 12.0 c\n...",
    ):
        assert not agrees(wrong, got, 0), wrong
