"""Backends, which complete prompts of token ids; one file each. `prunus.engines.BACKENDS` is the table of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from prunus.engines import BACKENDS, EngineOptions
from prunus.evaluation.backends.served import reached
from prunus.evaluation.requests import Backend

if TYPE_CHECKING:
    from prunus.evaluation.backends.chat import ChatServer


@contextmanager
def opened_chat(name: str, folder: Path, engine: EngineOptions) -> Iterator["ChatServer"]:
    """The chat completions of the backend of this name; closed on leaving the context.

    Raises PrunusError as opened does.
    """
    engine.check(name)
    with reached(engine, folder) as options:
        server: ChatServer = resolve_name(BACKENDS[name].chats)(folder, options)
        try:
            yield server
        finally:
            server.close()


@contextmanager
def opened(
    name: str, folder: Path, device: str, vocabulary: int, engine: EngineOptions | None = None
) -> Iterator[Backend]:
    """The backend of this name, with the model of a folder loaded; it is closed on leaving the context.

    vocabulary: number of ids of the tokenizer. Raises PrunusError if engine has a setting that this backend lacks, or
    the model cannot be loaded.
    """
    engine = engine or EngineOptions()
    engine.check(name)
    backend: Backend = resolve_name(BACKENDS[name].load)(folder, device, vocabulary, engine)
    try:
        yield backend
    finally:
        backend.close()
