"""How an engine is started or reached. No part of what a run is; the versions stored with it say what it came to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from prunus.errors import PrunusError
from prunus.kinds import settle

EXAMPLE = '{"tensor_parallel_size": 2}'
# Which backends know a setting.
KNOWN = {
    "args": ("vllm",),
    "url": ("openai",),
    "served_model": ("openai",),
    "concurrency": ("openai",),
    "timeout": ("openai",),
    "sparse": ("hf",),
}


@dataclass(frozen=True)
class EngineOptions:
    """Settings of vllm and of openai, and one of hf.

    args: keyword arguments of vllm.LLM, such as {"tensor_parallel_size": 2}. url: of a server's OpenAI API, such as
    http://localhost:8000/v1. served_model: what the server calls the model, where that is not its name here.
    concurrency: requests under way at once. timeout: seconds for one request.
    sparse: whether a packed checkpoint runs on the sparse kernel where the CPU has it (docs/sparse.md).
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    url: str | None = None
    served_model: str | None = None
    concurrency: int = 64
    timeout: float = 1800.0
    sparse: bool = True

    def __post_init__(self) -> None:
        settle(self)
        if self.concurrency < 1:
            raise PrunusError(f"concurrency must be at least 1, not {self.concurrency}")
        if not self.timeout > 0:
            raise PrunusError(f"timeout must be more than 0 seconds, not {self.timeout}")
        if self.url is not None and not is_address(self.url):
            raise PrunusError(f"'{self.url}' is no address of a server, such as http://localhost:8000/v1")

    def check(self, backend: str) -> None:
        """PrunusError where a setting is given that the backend does not know, or one is missing that it needs."""
        default = EngineOptions()
        for setting in fields(self):
            if getattr(self, setting.name) != getattr(default, setting.name) and backend not in KNOWN[setting.name]:
                raise PrunusError(
                    f"{setting.name.replace('_', ' ')} is for the backend {KNOWN[setting.name][0]}, not for {backend}"
                )
        if backend == "openai" and self.url is None:
            raise PrunusError("the backend openai needs the server's address: --url http://localhost:8000/v1")


def is_address(url: str) -> bool:
    """Whether it says http or https, a host and perhaps a port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def parse_args(text: str | None) -> dict[str, Any]:
    """EngineOptions arguments from JSON; PrunusError unless it is an object."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise PrunusError(
            f"engine arguments are not JSON ({error}); write '{{\"tensor_parallel_size\": 2}}'"
        ) from error
    if not isinstance(found, dict):
        raise PrunusError(f"engine arguments must be a JSON object, such as {EXAMPLE}")
    return found
