"""Backends: what continues token ids. A new one is one file here and one line in BACKENDS."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prunus.engines import EngineOptions
from prunus.evaluation.requests import Backend


def _hf(folder: Path, device: str, vocabulary: int, engine: EngineOptions) -> Backend:
    from prunus.evaluation.backends.hf import HFBackend

    return HFBackend.load(folder, device, vocabulary, engine.sparse)


def _vllm(folder: Path, device: str, vocabulary: int, engine: EngineOptions) -> Backend:
    from prunus.evaluation.backends.vllm import VLLMBackend

    return VLLMBackend.load(folder, device, vocabulary, engine.args)


def _openai(folder: Path, device: str, vocabulary: int, engine: EngineOptions) -> Backend:
    from prunus.evaluation.backends.openai import OpenAIBackend

    return OpenAIBackend.connect(folder, engine, vocabulary)


# name -> (model folder, device, number of ids the tokenizer knows, how it is started or reached) -> backend
BACKENDS: dict[str, Callable[[Path, str, int, EngineOptions], Backend]] = {
    "hf": _hf,
    "vllm": _vllm,
    "openai": _openai,
}


@contextmanager
def opened(
    name: str, folder: Path, device: str, vocabulary: int, engine: EngineOptions | None = None
) -> Iterator[Backend]:
    """The backend of that name with a model loaded; at the end it lets go of processes and connections it holds.

    PrunusError where engine says something that this backend does not know.
    """
    engine = engine or EngineOptions()
    engine.check(name)
    backend = BACKENDS[name](folder, device, vocabulary, engine)
    try:
        yield backend
    finally:
        backend.close()
