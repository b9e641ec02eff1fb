"""What a reader makes of an evaluation tool's log; every format has the same contract.

A reader has `detect(path, head)`, which tells whether a file is a log of its tool, and `read(path)`, which returns a
`Log` or raises PrunusError. It changes nothing and runs nothing of the log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Grade:
    """What one metric says of an output: its score (None if the tool gave none), and the answer that it extracted."""

    score: float | None
    answer: str | None = None


@dataclass(frozen=True)
class Record:
    """One output of a model for one problem.

    question, choices: as the log has them, without few-shot examples and templates where it has them apart; they
    identify the problem. place: the problem's place or id in its data set, which tells equal questions apart. draw: 0,
    1, ... for the outputs for one problem. grades: by metric. thinking: the reasoning, where the log keeps it apart
    from the text. output_tokens: all tokens that the model generated, with reasoning_tokens of reasoning among them;
    stopped: whether it ended by itself (True) or was cut at a limit (False). None: the log does not say.
    """

    task: str
    question: str
    place: str
    draw: int
    grades: Mapping[str, Grade]
    target: str
    text: str
    thinking: str = ""
    choices: tuple[str, ...] = ()
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    stopped: bool | None = None


@dataclass(frozen=True)
class Log:
    """A log that has been read. version: the tool's, or that of its format; None if the log does not say.

    model: the tool's name for the model. settings: plain data on which the outputs depend (sampling, prompts), for
    comparing runs.
    """

    tool: str
    version: str | None
    model: str
    records: Sequence[Record]
    settings: Mapping[str, Any] = field(default_factory=dict)
