"""One command per function of the Python API: parse, call, print. Data goes to stdout, everything else to stderr."""

import codecs
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from prunus.checkpoint.resolve import without_installation

# Importing them is what adds the commands.
from prunus.cli import choose, evaluation, models, reporting  # noqa: F401
from prunus.cli.common import cli, verbose
from prunus.disk import explained
from prunus.errors import PrunusError, missing_package
from prunus.visible import shortened, visible

PLAIN = {"−": "-", "≥": ">=", "≈": "~", "\N{NO-BREAK SPACE}": " "}  # ASCII for some characters of tables
EXIT_INTERNAL, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit codes 0 done, 1 internal error, 2 wrong input or environment, 130 interrupted."""
    open_streams()
    try:
        if sys.flags.optimize > 1:
            raise PrunusError("python -OO (PYTHONOPTIMIZE=2) removes texts that transformers needs: leave it out")
        with ended_by_sigterm(), visible_warnings():
            cli.main(arguments, prog_name="prunus", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted; finished work is kept; run the same command again to continue", EXIT_INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(EXIT_INPUT)
    except click.MissingParameter as error:
        usage = "" if error.ctx is None else f"; usage: {error.ctx.get_usage().removeprefix('Usage: ')}"
        fail(error.format_message().rstrip(".") + usage, EXIT_INPUT)
    except click.ClickException as error:
        fail(error.format_message(), EXIT_INPUT)
    except PrunusError as error:
        fail(str(error), EXIT_INPUT)
    except OSError as error:
        fail(str(explained(error)), EXIT_INPUT)
    except RecursionError:
        fail("a file that was read is nested too deeply", EXIT_INPUT)
    except MemoryError as error:
        fail(f"the memory is not large enough ({str(error) or 'no details'})", EXIT_INPUT)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (line := missing_package(error)) is not None:
            fail(line, EXIT_INPUT)
        if verbose():
            click.echo(visible(traceback.format_exc()), err=True)
        fail(
            f"{type(error).__name__}: {error} (internal error; please report it, -v shows the traceback)", EXIT_INTERNAL
        )


def open_streams() -> None:
    """Open streams that were closed before Python began (`>&-`), and let stdout replace what its encoding lacks.

    Output to a closed stream is dropped. Otherwise the next file that is opened would get its file descriptor, and
    libraries would write their messages into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  open as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("plain", plain)
        sys.stdout.reconfigure(errors="plain")


def plain(error: UnicodeError) -> tuple[str, int]:
    """Replacement for a character that the encoding lacks, and the position after it: a handler of codec errors."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return PLAIN.get(error.object[error.start], "?"), error.start + 1


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Within the context, SIGTERM (`kill`, a time limit) ends a command as Ctrl-C does: engines are stopped."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def visible_warnings() -> Iterator[None]:
    """Within the context, libraries' logs and warnings are made visible: they quote a model's files as they are."""
    record, warning = logging.getLogRecordFactory(), warnings.formatwarning

    def made(*given: Any, **rest: Any) -> logging.LogRecord:
        entry = record(*given, **rest)
        with suppress(TypeError, ValueError):  # logging itself reports a message that does not fit its arguments
            entry.msg, entry.args = visible(entry.getMessage()), None
        return entry

    logging.setLogRecordFactory(made)
    warnings.formatwarning = lambda *given, **rest: visible(warning(*given, **rest))
    try:
        yield
    finally:
        logging.setLogRecordFactory(record)
        warnings.formatwarning = warning


def interrupt(*_: object) -> None:
    """Signal handler that does what Ctrl-C does."""
    raise KeyboardInterrupt


def end_at_once() -> None:
    """In a forked process, let SIGTERM end it at once, even within code that is not Python's."""
    if signal.getsignal(signal.SIGTERM) is interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=end_at_once)


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit with this code."""
    click.echo("error: " + shortened(" ".join(without_installation(message).split())), err=True)
    sys.exit(code)
