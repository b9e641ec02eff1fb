"""The table of backends, and the options to start or reach them, which are not part of a run's id."""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

from prunus.errors import PrunusError
from prunus.plain_data import parse_json
from prunus.settings import ADVANCED, ENGINE, Conflict, about, check_settings, setting

GGUF = "{gguf}"  # stands in a command for the model's GGUF file
FLOAT32_PARAMETERS = 1_000_000_000  # up to this size a model runs in float32 on a CPU
LONGEST_ADDRESS = 2000  # characters
EXAMPLE = '{"tensor_parallel_size": 2}'


@dataclass(frozen=True)
class BackendEntry:
    """The facts about a backend that are known without importing it.

    load: "module:function" that takes a model folder, a device, the number of ids that the tokenizer knows and
    EngineOptions, and returns a prunus.evaluation.requests.Backend. batch_size: chains decoded and stored together
    unless the plan sets it; engines with continuous batching need many requests at once.
    settings: the EngineOptions that it uses. needs: those that it requires, with the advice of the error message.
    loads_itself: whether another program reads the weights, so that any type of model will do. streams: as
    Backend.streams. chats: as load, of the server's chat completions, for control native; empty without any.
    """

    load: str
    batch_size: int
    settings: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    loads_itself: bool = False
    streams: bool = False
    chats: str = ""


# A new backend is one file and one line here.
BACKENDS: dict[str, BackendEntry] = {
    "hf": BackendEntry("prunus.evaluation.backends.hf:HFBackend.load", 64),
    "vllm": BackendEntry(
        "prunus.evaluation.backends.vllm:VLLMBackend.load", 512, ("args",), loads_itself=True, streams=True
    ),
    "openai": BackendEntry(
        "prunus.evaluation.backends.openai:OpenAIBackend.load",
        512,
        ("url", "serve", "served_model", "tokenizer", "concurrency", "timeout"),
        needs={"url": "the server's address: --url http://localhost:8000/v1"},
        loads_itself=True,
        streams=True,
        chats="prunus.evaluation.backends.chat:ChatServer.load",
    ),
}


# Engines for which `find` has a ladder by bytes, and the backends that evaluate its rungs in them.
SMALLEST: Mapping[str, str] = {"vllm": "vllm", "llama.cpp": "openai"}


LLAMA_SERVER = "llama-server"  # of llama.cpp
SERVES_GGUF = f"{LLAMA_SERVER} -m {GGUF} --alias {{name}} --port {{port}}"


def users_of(setting: str) -> str:
    """The names of the backends that use a setting, separated by commas."""
    return ", ".join(name for name, entry in BACKENDS.items() if setting in entry.settings)


@dataclass(frozen=True)
class EngineOptions:
    """The options to start or reach a backend; BACKENDS says which backend uses which."""

    GROUP: ClassVar[str] = ADVANCED

    args: Mapping[str, Any] = field(default_factory=dict, metadata=about("arguments of vllm.LLM.", metavar="JSON"))
    url: str | None = setting(None, "the server's address, such as http://localhost:8000/v1.", group=ENGINE)
    serve: str | None = setting(
        None,
        "command that starts a server, such as 'vllm serve {model} --port {port}'.",
        conflicts=(
            Conflict(
                "url", None, "url and serve exclude each other: a server that is started has an address of its own"
            ),
            Conflict(
                "tokenizer",
                None,
                "tokenizer and serve exclude each other: a server is started with a model's folder",
            ),
        ),
    )
    served_model: str | None = setting(None, "the server's name for MODEL, if it differs.", metavar="NAME")
    tokenizer: str | None = setting(
        None, "the served model's tokenizer; MODEL is then only its name.", metavar="FOLDER|HUB-ID"
    )
    concurrency: int | None = setting(None, "most simultaneous requests; the default follows the server.", at_least=1)
    timeout: float = setting(1800.0, "seconds for the whole reply to a request.", above=0, note="it is in seconds")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.url is not None and not is_address(self.url):
            raise PrunusError(f"'{self.url}' is not the address of a server, such as http://localhost:8000/v1")
        if self.serve is not None:
            self._check_serve(self.serve)

    def _check_serve(self, serve: str) -> None:
        try:
            words = shlex.split(serve)
        except ValueError as error:
            raise PrunusError(f"serve is not a command: {error}") from error
        for parts in (("{model}", GGUF), ("{port}",)):
            if not any(part in word for word in words for part in parts):
                raise PrunusError(f'serve lacks {parts[0]}; write "vllm serve {{model}} --port {{port}}"')

    def check(self, backend: str) -> None:
        """Raise PrunusError for a given setting that the backend does not use, or a missing one that it requires."""
        default, entry = EngineOptions(), BACKENDS[backend]
        for one in fields(self):
            is_set = getattr(self, one.name) != getattr(default, one.name)
            if is_set and one.name not in entry.settings:
                raise PrunusError(
                    f"{one.name.replace('_', ' ')} is for the backend {users_of(one.name)}, not for {backend}"
                )
            if not is_set and one.name in entry.needs and self.serve is None:
                raise PrunusError(f"the backend {backend} needs {entry.needs[one.name]}")


def engine_for(smallest: str, engine: EngineOptions) -> tuple[str, EngineOptions]:
    """The backend in which rungs of a ladder by the bytes of an engine are evaluated, and its options.

    Without a command that serves GGUF files it is that of llama.cpp's own server. Raises PrunusError where that is not
    on the PATH.
    """
    if smallest != "llama.cpp" or engine.serve is not None:
        return SMALLEST[smallest], engine
    if shutil.which(LLAMA_SERVER) is None:
        raise PrunusError(
            f"{LLAMA_SERVER} of llama.cpp is not on the PATH: add the folder that has it, or --serve '{SERVES_GGUF}'"
            " with its path"
        )
    return SMALLEST[smallest], replace(engine, serve=SERVES_GGUF)


def is_address(url: str) -> bool:
    """Whether a URL has the scheme http or https, a host and, if given, a valid port, and could be of a server."""
    if len(url) > LONGEST_ADDRESS or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def parse_args(text: str | None) -> dict[str, Any]:
    """The `args` of EngineOptions from JSON; PrunusError unless it is an object."""
    try:
        found = parse_json(text or "{}")
    except ValueError as error:
        raise PrunusError(f"engine arguments are not JSON ({error}); write '{EXAMPLE}'") from error
    if not isinstance(found, dict):
        raise PrunusError(f"engine arguments must be a JSON object, such as {EXAMPLE}")
    return found
