"""Engines, which compute, each with its facts in a file of this folder; backends, which evaluate models in them.

EngineOptions start or reach a backend; prunus.settings.serving decides which of them are part of a run's id.
"""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

from prunus.errors import PrunusError
from prunus.plain_data import parse_json
from prunus.settings import ADVANCED, ENGINE, Conflict, about, check_settings, described, setting
from prunus.settings.engines.facts import GGUF, BackendEntry, EngineFacts
from prunus.settings.engines.llama_cpp import LLAMA_CPP
from prunus.settings.engines.sglang import SGLANG
from prunus.settings.engines.transformers import TRANSFORMERS
from prunus.settings.engines.vllm import VLLM
from prunus.settings.request import check_taken, checked

FLOAT32_PARAMETERS = 1_000_000_000  # up to this size a model runs in float32 on a CPU
LONGEST_ADDRESS = 2000  # characters
EXAMPLE = "tensor_parallel_size=2"
REQUEST_EXAMPLE = "repetition_penalty=1.05"

# A new engine is a file in this folder, and its name here.
ENGINES: Mapping[str, EngineFacts] = {
    engine.name: engine
    for engine in (
        TRANSFORMERS,
        VLLM,
        SGLANG,
        LLAMA_CPP,
    )
}
BACKENDS: dict[str, BackendEntry] = {
    **{name: engine.entry for name, engine in ENGINES.items() if engine.entry is not None},
    "openai": BackendEntry(
        "prunus.evaluation.backends.openai:OpenAIBackend.load",
        512,
        (
            *("url", "serve", "served_model", "tokenizer", "concurrency", "timeout"),
            *("serving", "request", "environment", "exact"),
        ),
        needs={"url": "the server's address: --url http://localhost:8000/v1"},
        loads_itself=True,
        gguf=True,
        streams=True,
        chats="prunus.evaluation.backends.chat:ChatServer.load",
        request=frozenset().union(*(engine.request for engine in ENGINES.values() if engine.owner)),
        conflicts=(),
    ),
}
# The names that users give for engines.
NAMES = tuple(dict.fromkeys([*(engine.name for engine in ENGINES.values() if engine.entry or engine.serve), *BACKENDS]))
IN_CHOOSE = tuple(sorted(name for name, engine in ENGINES.items() if engine.forms))
IN_FIND = tuple(name for name, engine in ENGINES.items() if engine.ladder)  # `find` has ladders by bytes for them

MODEL_FLAGS = frozenset({"m", "model", "model_path"})  # count for nothing where they name the model itself


def backend_of(engine: str) -> str:
    """The backend (a key of BACKENDS) that evaluates models in an engine: `openai` if the engine is a server."""
    return ENGINES[engine].backend if engine in ENGINES else engine


def users_of(setting: str) -> str:
    """The names of the engines that use a setting, separated by commas."""
    return ", ".join(name for name in NAMES if setting in BACKENDS[backend_of(name)].settings)


@dataclass(frozen=True)
class EngineOptions:
    """The options to start or reach a backend, each with the backends that use it."""

    GROUP: ClassVar[str] = ADVANCED

    args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=about(
            f"arguments of vllm.LLM, such as {EXAMPLE}; repeatable, or an object of JSON.",
            metavar="KEY=VALUE",
            group=ENGINE,
        ),
    )
    url: str | None = setting(None, "the server's address, such as http://localhost:8000/v1.", group=ENGINE)
    serve: str | None = setting(
        None,
        "command that starts a server, such as 'vllm serve {model} --port {port}'; choose has {context} and {slots}.",
        group=ENGINE,
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
        None, "the served model's tokenizer; MODEL is then only its name.", metavar="FOLDER|HUB-ID", group=ENGINE
    )
    concurrency: int | None = setting(None, "most requests at once; the default follows the server.", at_least=1)
    timeout: float = setting(1800.0, "seconds for the whole reply.", above=0, note="it is in seconds")
    serving: str | None = setting(
        None,
        "name of settings that change samples and that a server does not tell; part of the run's id.",
        metavar="NAME",
        group=ENGINE,
    )
    request: Mapping[str, float] = field(
        default_factory=dict,
        metadata=about(
            f"fields of every request, such as {REQUEST_EXAMPLE}; part of the run's id.",
            metavar="KEY=VALUE",
            group=ENGINE,
        ),
    )
    environment: Mapping[str, str] = field(
        default_factory=dict,
        metadata=about("environment variables of the engine or of the server that is started; part of the run's id."),
    )
    exact: bool = setting(
        False,
        "settings that only cost speed or memory, and versions, are part of the run's id, too.",
        conflicts=(
            Conflict(
                "url",
                None,
                "exact is for an engine that is started here: name what a running server does not tell by serving",
            ),
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "request", checked(self.request))
        for name, value in self.environment.items():
            if not isinstance(value, str) or not name or "=" in name or "\0" in name + value:
                raise PrunusError(
                    f'environment takes names and texts, such as {{ {name or "NAME"} = "1" }}, not {value!r}'
                )
        if self.environment and self.url is not None:
            raise PrunusError("environment is for a server that is started: one that runs has its own")
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
        """Raise PrunusError for a given setting that the backend does not use, or one missing that it requires."""
        default, entry = EngineOptions(), BACKENDS[backend]
        for option in fields(EngineOptions):  # those of a started server have more
            is_set = getattr(self, option.name) != getattr(default, option.name)
            if is_set and option.name not in entry.settings:
                raise PrunusError(
                    f"{option.name.replace('_', ' ')} is for the engine {users_of(option.name)}, not for {backend}"
                )
            if not is_set and option.name in entry.needs and self.serve is None:
                raise PrunusError(f"the engine {backend} needs {entry.needs[option.name]}")
        check_taken(self.request, f"the engine {backend}", entry.request)


EngineOptions.__doc__ = described(EngineOptions, users_of)


def options_for(name: str, options: EngineOptions, room: bool = False) -> EngineOptions:
    """The options with which models are evaluated in an engine: for a server, with a command that starts it.

    The engine's own command is taken if the options have neither a command nor the address of a running server. room:
    add its options that make room for the chains. Raises PrunusError if the program of that command is not on the PATH.
    """
    engine = ENGINES.get(name)
    if engine is None or not engine.serve or options.serve is not None or options.url is not None:
        return options
    program = engine.serve.partition(" ")[0]
    if shutil.which(program) is None:
        raise PrunusError(
            f"{program} of {name} is not on the PATH: add the folder that has it, or --serve '{engine.serve}'"
            " with its path"
        )
    return replace(options, serve=f"{engine.serve} {engine.room}" if room else engine.serve)


def engine_of_server(owner: str) -> EngineFacts | None:
    """The engine of a server; None if it is not known. owner: `owned_by` of its entry for a model."""
    return next((engine for engine in ENGINES.values() if engine.owner and owner.startswith(engine.owner)), None)


def is_address(url: str) -> bool:
    """Whether a URL has the scheme http or https, a host and, if given, a valid port, and could be of a server."""
    if len(url) > LONGEST_ADDRESS or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def parse_args(texts: Sequence[str], what: str = "engine arguments", example: str = EXAMPLE) -> dict[str, Any]:
    """A dict from texts `key=value` and JSON objects, such as the `args` of EngineOptions; later texts win.

    A value is JSON, or else a text; dashes in a key become underscores. what, example: for the message. Raises
    PrunusError for other texts.
    """
    args = dict[str, Any]()
    for text in texts:
        key, equals, value = text.partition("=")
        if equals and key.replace("-", "_").isidentifier():
            try:
                args[key.replace("-", "_")] = parse_json(value)
            except ValueError:
                args[key.replace("-", "_")] = value
            continue
        try:
            read = parse_json(text)
        except ValueError as error:
            raise PrunusError(f"{what} are neither key=value nor JSON ({error}); write {example}") from error
        if not isinstance(read, dict):
            raise PrunusError(f"{what} must be key=value or a JSON object, such as {example}")
        args |= read
    return args
