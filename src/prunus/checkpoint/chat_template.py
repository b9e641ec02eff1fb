"""Render conversations with a model's chat template, within limits of time and memory.

A template is a program that comes with the model. jinja's sandbox keeps it from files and from Python's own objects,
but not from nested loops, nor from texts that double. So templates run in a forked process under kernel limits:
one process for all conversations of a call, in which each takes as long as it would in this process.
"""

import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from datetime import date as Day
from functools import cache, partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.resolve import one_line
from prunus.errors import PrunusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, Any]]

DATE = "2026-01-01"  # replaces today's date in templates, so that their texts are the same on every day
TODAY = re.compile(r"strftime_now\(\s*('[^']*'|\"[^\"]*\")\s*\)")
SECONDS = 10.0  # for a conversation; usual templates take a millisecond
MOST_BYTES = 1 << 30  # of memory, beside that of this process
MOST_CHARACTERS = 1 << 24  # of a rendered conversation
CAN_FORK = sys.platform == "linux"  # elsewhere a process that uses threads may not be forked: there are no limits


class TemplateError(PrunusError):
    """A chat template failed, was stopped by the sandbox, or exceeded a limit; the message says which."""


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The text of the tokenizer's chat template; None if it has none, as those of base models."""
    template: Any = tokenizer.chat_template
    if isinstance(template, Mapping):  # several, by name
        if "default" not in template:
            raise PrunusError(
                f"the model has chat templates by name ({', '.join(template)}), but none is the 'default':"
                " give the one to use that name"
            )
        template = template["default"]
    return str(template) if template else None


@cache
def dated(source: str, date: str) -> str:
    """The chat template with this date instead of today's, so that a plan has the same prompts on every day."""
    if "strftime_now" not in source:
        return source
    day = Day.fromisoformat(date)
    formats = {match[1][1:-1] for match in TODAY.finditer(source)}
    if len(TODAY.findall(source)) < source.count("strftime_now("):
        raise PrunusError("the model's chat template writes today's date in a way that cannot be replaced")
    known = ", ".join(f"{_quoted(code)}: {_quoted(day.strftime(code))}" for code in sorted(formats))
    return f"{{%- macro strftime_now(format) -%}}{{{{ {{{known}}}[format] }}}}{{%- endmacro +%}}{source}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def rendered(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Conversation], **options: Any
) -> Generator[str]:
    """Yield the text of each conversation. options: of apply_chat_template. Raises TemplateError for the first failure.

    The iterator has to be used up or closed, since it holds a process.
    """
    render = partial(tokenizer.apply_chat_template, tokenize=False, **options)
    if not CAN_FORK:
        for conversation in conversations:
            text, fault = _one(render, conversation)
            if fault:
                raise TemplateError(fault)
            yield text
        return
    reader, writer = Pipe(duplex=False)
    with warnings.catch_warnings():
        # Python 3.12 warns where there are other threads; the child takes none of their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _serve(render, conversations, writer)
    writer.close()
    status = None
    try:
        for _ in conversations:
            try:
                text, fault = reader.recv()
            except EOFError:
                status = os.waitpid(child, 0)[1]
                raise TemplateError(_how_ended(status)) from None
            if fault:
                raise TemplateError(fault)
            yield text
    finally:
        reader.close()
        if status is None:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _serve(render: Callable[..., object], conversations: Sequence[Conversation], connection: Connection) -> None:
    """Render the conversations in the forked process, send each result of _one to the parent, and exit."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, which ends this process
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process even inside C code, and without a parent
        gc.freeze()  # what the parent has is not to be finalised here
        _limit_memory()
        for conversation in conversations:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            connection.send(_one(render, conversation))
    except BaseException:  # the parent has gone, or there is no memory to say anything
        os._exit(1)
    os._exit(0)


def _one(render: Callable[..., object], conversation: Conversation) -> tuple[str, str]:
    """(text, "") of a conversation, or ("", the reason why it cannot be rendered)."""
    try:
        text = str(render([dict(message) for message in conversation]))
    except MemoryError:
        return "", f"it takes more than {MOST_BYTES >> 30} GiB of memory"
    except Exception as error:  # a template is a program, which may raise any error
        return "", one_line(error)[:300]
    if len(text) > MOST_CHARACTERS:
        return "", f"it writes more than {MOST_CHARACTERS:,} characters"
    return text, ""


def _limit_memory() -> None:
    """Limit the address space of this process to MOST_BYTES more than it has."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _how_ended(status: int) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return f"it takes longer than {SECONDS:g} s for one conversation"
    return "the process in which it ran was ended: it takes too much memory"
