"""Backends: what completes prompts of token ids. One file each; `prunus.engines.BACKENDS` is the table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name

from prunus.engines import BACKENDS, EngineOptions
from prunus.evaluation.requests import Backend


@contextmanager
def opened(
    name: str, folder: Path, device: str, vocabulary: int, engine: EngineOptions | None = None
) -> Iterator[Backend]:
    """The backend of that name with the model of a folder loaded; closed at the end.

    vocabulary: number of ids the tokenizer knows. PrunusError where engine has a setting that this backend does not.
    """
    engine = engine or EngineOptions()
    engine.check(name)
    backend: Backend = resolve_name(BACKENDS[name].load)(folder, device, vocabulary, engine)
    try:
        yield backend
    finally:
        backend.close()
