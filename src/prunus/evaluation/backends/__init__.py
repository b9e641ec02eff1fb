"""Backends: what continues token ids. A new one is one file here and one line in BACKENDS."""

from collections.abc import Callable
from pathlib import Path

from prunus.evaluation.budget import Backend


def _hf(folder: Path, device: str, vocabulary: int) -> Backend:
    from prunus.evaluation.backends.hf import HFBackend

    return HFBackend.load(folder, device, vocabulary)


# name -> (model folder, device, number of ids the tokenizer knows) -> backend
BACKENDS: dict[str, Callable[[Path, str, int], Backend]] = {"hf": _hf}
