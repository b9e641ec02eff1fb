"""Backends, which complete prompts of token ids; one file each. BACKENDS of prunus.settings.engines has them all."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from prunus.evaluation.requests import Engine
from prunus.settings.engines import BACKENDS, EngineOptions


@contextmanager
def opened(
    name: str,
    folder: Path,
    device: str,
    vocabulary: int,
    engine: EngineOptions | None = None,
    native: bool = False,
) -> Iterator[Any]:
    """The backend of this name with the model of a folder, a Backend; with native a ChatServer, for control native.

    vocabulary: number of ids of the tokenizer. Leaving the context closes it. Raises PrunusError if engine has a
    setting that this backend lacks, or the model cannot be loaded.
    """
    engine, entry = engine or EngineOptions(), BACKENDS[name]
    engine.check(name)
    backend: Engine = resolve_name(entry.chats if native else entry.load)(folder, device, vocabulary, engine)
    with closing(backend):
        yield backend
