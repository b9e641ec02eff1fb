"""transformers, in a loop of Prunus (prunus.evaluation.backends.hf)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunus.settings.cache_size import CacheSize
from prunus.settings.engines.facts import COMPRESSED, TORCH_VARIABLES, BackendEntry, EngineFacts
from prunus.settings.request import OF_TRANSFORMERS


@dataclass(frozen=True, kw_only=True)
class Transformers(EngineFacts):
    """The facts of transformers."""

    def script(self, name: str, serve: str | None, args: Mapping[str, Any], room: tuple[int, int, CacheSize]) -> str:
        """The command that serves a folder, as of EngineFacts."""
        return 'transformers serve --port "$port" --force-model "$here"'


TRANSFORMERS = Transformers(
    name="hf",
    entry=BackendEntry(
        "prunus.evaluation.backends.hf:HFBackend.load",
        64,
        ("serving", "request", "exact"),
        in_torch=True,
        request=OF_TRANSFORMERS,
    ),
    variables=TORCH_VARIABLES,
    packages=("torch", "transformers"),
    unpacks=True,
    forms=COMPRESSED,
)
