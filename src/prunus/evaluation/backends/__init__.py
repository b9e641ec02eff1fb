"""Engines, one file each; prunus.settings.engines.BACKENDS lists them."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from prunus.evaluation.engine import Engine
from prunus.progress import named_if_slow
from prunus.recipes.drawing import Control
from prunus.settings.engines import BACKENDS, ENGINES, EngineOptions


def check_installed(name: str) -> None:
    """Raise PrunusError where a program that this engine needs in this process is not installed."""
    if name in ENGINES and (check := ENGINES[name].check):
        resolve_name(check)()


@contextmanager
def opened(
    name: str,
    folder: Path,
    device: str,
    vocabulary: int,
    engine: EngineOptions | None = None,
    control: Control = "forced",
) -> Iterator[Any]:
    """Within the context, the engine of this name with the model of a folder; a Backend if control is `forced`.

    vocabulary: number of ids of the tokenizer. Leaving the context closes the engine. Raises PrunusError if `engine`
    has a setting that this backend lacks, or the model cannot be loaded.
    """
    engine, entry = engine or EngineOptions(), BACKENDS[name]
    engine.check(name)
    load = entry.load if control == "forced" else entry.chats
    with named_if_slow(f"{'reading' if name == 'hf' else f'starting {name} for'} {folder}"):
        made: Engine = resolve_name(load)(folder, device, vocabulary, engine)
    with closing(made):
        yield made
