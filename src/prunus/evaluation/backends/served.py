"""Server of a model: how it is reached or started, and the facts that it reports about the model."""

import os
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

import httpx2 as httpx

from prunus.checkpoint.longrope import has_longrope
from prunus.checkpoint.model_folder import UNLIMITED
from prunus.checkpoint.resolve import GGUF_FILE, GGUF_SUFFIX, hub_origin, load_tokenizer, resolve_tokenizer
from prunus.errors import PrunusError
from prunus.evaluation.backends.transport import MALFORMED, received, reply_of, run, with_client
from prunus.evaluation.requests import Sampling
from prunus.machine_load import of_programs
from prunus.manifest import Manifest
from prunus.plain_data import StoredData, content_hash, parse_json, storable
from prunus.settings.engines import ENGINES, EngineOptions, engine_of_server, options_for
from prunus.settings.engines.facts import CONTEXT, GGUF, SLOTS, EngineFacts
from prunus.settings.engines.llama_cpp import LLAMA_CPP
from prunus.settings.engines.vllm import VLLM
from prunus.settings.request import OF_SERVERS, check_taken
from prunus.settings.serving import Serving
from prunus.store.stored import Environment

# Facts that llama.cpp reports about a model and that do not depend on the server's options.
OF_MODEL = ("n_params", "size", "n_vocab", "n_embd", "n_ctx_train")

LONGEST_FACT = 200
UNSETTLED = {"seed", "n_predict", "max_tokens", "stream", "timings_per_token"}  # defaults that every request sets


class ServerFacts(NamedTuple):
    """Facts that a server tells of itself: its version, requests that it runs at once, and settings that may count."""

    version: str = ""
    places: int | None = None
    settings: Mapping[str, str] = {}


def api_of(url: str) -> str:
    """The address of the API, ending in /v1, from what the user gave."""
    url = url.rstrip("/").removesuffix("/completions").rstrip("/")
    return url if url.endswith("/v1") else url + "/v1"


def without_user(url: str) -> str:
    """An address without the name and password that it may contain, which must not be stored."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def whole(value: object) -> int | None:
    """The value where it is a whole number, else None."""
    return value if isinstance(value, int) else None


@dataclass(frozen=True, kw_only=True)
class LlamaCppMeta(StoredData):
    """Facts that llama.cpp reports about its model; None where it reports no whole number.

    n_ctx: the longest sequence. n_vocab, n_params: numbers of ids and of weights. size: of the file.
    """

    n_ctx: Annotated[int | None, whole] = None
    n_vocab: Annotated[int | None, whole] = None
    n_params: Annotated[int | None, whole] = None
    size: Annotated[int | None, whole] = None


@dataclass(frozen=True, kw_only=True)
class ModelEntry(StoredData):
    """A server's entry for a model.

    id, aliases, root: its names. owned_by: who serves it. max_model_len: the longest sequence, of vLLM and SGLang.
    meta: of llama.cpp; empty for other servers.
    """

    id: str
    aliases: tuple[str, ...] = ()
    root: str | None = None
    owned_by: Annotated[str, str] = ""
    max_model_len: Annotated[int | None, whole] = None
    meta: Annotated[LlamaCppMeta, lambda meta: LlamaCppMeta.of(meta if isinstance(meta, dict) else {})] = LlamaCppMeta()

    @property
    def context(self) -> int | None:
        """The maximum number of ids per chain; None if it is not told."""
        limit = self.max_model_len or self.meta.n_ctx
        return limit if limit and limit > 0 else None


async def find_model(
    client: httpx.AsyncClient, url: str, names: Collection[str], served_model: str | None
) -> ModelEntry:
    """The server's entry for a model that has one of these names. url: ends in /v1.

    served_model: the name that the user gave with --served-model, if any. Raises PrunusError if the server has no such
    model.
    """
    reply = await reply_of(client, url, url + "/models", read=lambda reply: reply, tries=1)
    try:
        models = [ModelEntry.of(model) for model in reply["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise PrunusError(f"{url} does not list its models; is this an OpenAI-compatible server?") from error
    wanted = {served_model} if served_model else set(names)
    entries = [model for model in models if wanted & {model.id, *model.aliases}]
    if not entries and not served_model:
        entries = [model for model in models if model.root in wanted]
    if not entries:
        served = ", ".join(model.id for model in models) or "none"
        name = served_model or min(names, key=len)
        raise PrunusError(
            f"{url} does not serve '{name}' but {served}; if that is the same model, add --served-model NAME"
        )
    return entries[0]


async def server_facts(client: httpx.AsyncClient, url: str, owner: str) -> ServerFacts:
    """The facts that the server reports; empty if it reports none.

    url: ends in /v1. owner: `owned_by` of its entry for a model. llama.cpp reports its model's file, and the sampling
    settings that apply where a request has none.
    """
    engine = engine_of_server(owner)
    if engine is not None and engine.version_at is not None:
        path, key = engine.version_at
        with suppress(httpx.HTTPError, PrunusError, *MALFORMED):  # a proxy may not forward this path
            reply = parse_json((await received(client, url.removesuffix("/v1") + path)).body)
            slots = reply.get("total_slots")  # of llama.cpp, whose queue has no limit
            defaults = reply.get("default_generation_settings")
            params = defaults.get("params") if isinstance(defaults, dict) else None
            values = {name: reply[name] for name in reply if name == "model_path" or name.startswith("cache_type")}
            if isinstance(params, dict):
                values |= {f"default {name}": params[name] for name in sorted(params.keys() - UNSETTLED)}
            settings = {name: in_short(value) for name, value in values.items()}
            return ServerFacts(in_short(reply[key]), slots if isinstance(slots, int) and slots > 0 else None, settings)
    return ServerFacts()


def in_short(value: object) -> str:
    """Text of a value that a server reports, cut to LONGEST_FACT characters."""
    return storable(str(value))[:LONGEST_FACT]


@dataclass(frozen=True)
class Started(EngineOptions):
    """Options to reach a server that this process started. printed: what it said of its threads and kernels."""

    printed: str = ""


class Server:
    """A model on a server. Making one raises PrunusError if the server is not reached or has another model.

    folder: of the model, for its names. name: of the model on the server.
    """

    def __init__(self, folder: Path, engine: EngineOptions, vocabulary: int) -> None:
        """vocabulary: number of ids of the tokenizer, for kinds of servers that sample ids."""
        assert engine.url is not None
        self.folder, self.engine, self.url = folder, engine, api_of(engine.url)
        self.name, self.facts = "", ServerFacts()
        self.server: str = ""  # its owner, as it tells
        self.kind: EngineFacts | None = None  # of its engine, where that is known
        self.request: Mapping[str, float] = {}  # fields of every request except those of a probe
        self.owned = ExitStack()

    @classmethod
    def load(cls, folder: Path, device: str, vocabulary: int, engine: EngineOptions) -> Self:
        """Connect to a server, which is first started if the options have a command. The server chooses the device."""
        with ExitStack() as stack:
            made = cls(folder, stack.enter_context(running_server(engine, folder)), vocabulary)
            with_client(made.engine, made.connect)
            made.owned = stack.pop_all()
        return made

    def close(self) -> None:
        """Stop the server if `load` started it."""
        self.owned.close()

    async def connect(self, client: httpx.AsyncClient) -> None:
        """Find the model on the server."""
        self.entry = await find_model(client, self.url, names_of(self.folder), self.engine.served_model)
        self.name, self.context = self.entry.id, self.entry.context
        self.server = self.entry.owned_by or "unknown"
        self.kind = engine_of_server(self.server)
        self.facts = await server_facts(client, self.url, self.server)
        taken = OF_SERVERS if self.kind is None else self.kind.request
        check_taken(self.engine.request, f"{self.url} ({self.server})", taken)
        self.request = self.engine.request

    @property
    def is_llama_cpp(self) -> bool:
        """Whether the server is llama.cpp's own."""
        return self.kind is LLAMA_CPP

    @property
    def of_budget(self) -> EngineFacts:
        """The engine whose request field ends the thinking: the server's, or vLLM if that is not known."""
        return self.kind or VLLM

    @property
    def is_vllm(self) -> bool:
        """Whether the server is vLLM's."""
        return self.kind is VLLM

    @property
    def identity(self) -> Environment:
        """Facts that distinguish this server from others: address, name of the model there, and its reported facts.

        For a server that Prunus starts, name and paths are left out, as they follow from the folder of its model. For a
        model with LongRoPE the longest sequence is added, since engines choose the factors by it.
        """
        length = {"context": self.context} if self.context and has_longrope(self.folder) else {}
        if isinstance(self.engine, Started):
            told = {key: value for key, value in self.facts.settings.items() if key != "model_path"}
            printed = {"printed": self.engine.printed} if self.engine.printed else {}
            return Environment.of({**length, "told": told, **printed})
        meta, root = self.entry.meta.data, self.entry.root
        facts = {key: in_short(meta[key]) for key in OF_MODEL if key in meta} | dict(self.facts.settings)
        facts |= {"root": in_short(root)} if root else {}
        address = without_user(self.url)
        return Environment.of({**length, "address": address, "served": in_short(self.name), "told": facts})

    def payload(self, seed: int, sampling: Sampling) -> dict[str, Any]:
        """The fields of a request that all servers understand: model, sampling and seed, without prompt and limits."""
        return {
            "model": self.name,
            "stream": False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed if self.is_vllm else seed & 0x7FFFFFFF,  # others take 32 bits
        }


def names_of(folder: Path) -> set[str]:
    """The names a server may give a folder's model: its path, its name, its hub id if in the hub's cache."""
    return {str(folder), str(folder.resolve()), folder.name, hub_origin(folder).get("hub", folder.name)}


class ServedModel:
    """A model behind a server, of which only the tokenizer is on this machine.

    folder: of the tokenizer. Its checksum is a hash of the model's name, of what the server tells of it (not its
    address, context or version) and of the tokenizer. A server does not tell its weights, so another model under the
    same name would continue the run.
    """

    blocks, dtype = 0, None

    def __init__(self, name: str, engine: EngineOptions) -> None:
        """Ask the server. name: MODEL of the command. Raises PrunusError if it is not reached or lacks the model."""
        assert engine.url is not None and engine.tokenizer is not None
        url = api_of(engine.url)
        self.folder, self.manifest = resolve_tokenizer(engine.tokenizer), Manifest()
        tokenizer = load_tokenizer(self.folder)
        entry = with_client(engine, lambda client: find_model(client, url, {name}, engine.served_model))
        self.context, meta, root = entry.context or UNLIMITED, entry.meta, entry.root or ""
        # Only llama.cpp reports the number of weights and the size of their file, and so their bits if fewer than 16.
        self.parameters, size = meta.n_params, meta.size
        self.engine_bytes = None if size is None else {"file": size}
        bits = 8 * size / self.parameters if size is not None and self.parameters else 16.0
        self.quantisation = f"{bits:.2g} bits per weight" if bits < 15 else None
        self._checksum = content_hash(
            {
                "served": name,
                "id": entry.id,
                "root": Path(root).name if root.startswith("/") else root,
                "told": {key: meta.data[key] for key in OF_MODEL if key in meta.data},
                "vocabulary": sorted(tokenizer.get_vocab().items()),
                "template": tokenizer.chat_template,
            },
            64,
        )

    def cache_size(self, serving: Serving) -> None:
        """None: a server does not report from what the size of its cache follows."""

    def checksum(self) -> str:
        """Stored: the hash that identifies the model."""
        return self._checksum

    def content(self) -> str | None:
        """None: the checksum already covers everything that is known."""
        return None


# A server that Prunus starts for a model folder by the user's command, and stops again.

LISTING_SECONDS = 5.0  # for the list of models
LOOK_SECONDS = 0.2  # between two questions whether the server answers
STOP_SECONDS = 30.0  # between the request to end and the kill
MOST_PRINTED = 1 << 20  # bytes in which threads and instructions are looked for
LINES, CHARACTERS = 5, 600  # of the server's output in an error message


@contextmanager
def running_server(engine: EngineOptions, folder: Path) -> Iterator[EngineOptions]:
    """Within the context, options with the address of a server, which is started if they have a command for it.

    In the command {model} is the folder, {gguf} its GGUF file, {port} a free port and {name} the folder's last part; no
    shell reads it. On leaving, the process group is stopped. Raises PrunusError with the server's last lines if it
    cannot be started, ends, or does not answer before the timeout.
    """
    if engine.serve is None:
        yield engine
        return
    port, whole = free_port(), folder.resolve()
    values = {"{model}": str(whole), GGUF: str(whole / GGUF_FILE), "{port}": str(port), "{name}": folder.name}
    # Other braces stay, since arguments may be JSON.
    named = re.compile("|".join(map(re.escape, values)))
    command = [named.sub(lambda mark: values[mark[0]], part) for part in shlex.split(engine.serve)]
    for place in {CONTEXT, SLOTS} & set(re.findall(r"\{\w+\}", engine.serve)):
        raise PrunusError(f"{place} of a serve command is filled in by `choose` alone: write a number instead")
    url, environment = f"http://127.0.0.1:{port}/v1", {**of_programs(), **engine.environment}
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PrunusError(f"the server cannot be started: '{command[0]}': {reason}") from error
        try:
            wait(process, url, engine.timeout, log)
            options = {**vars(engine), "url": url, "serve": None, "environment": {}}
            yield Started(**options, printed=printed_by(log))
        finally:
            stop(process)


@contextmanager
def serving_file(model: str | Path, engine: str, options: EngineOptions) -> Iterator[EngineOptions]:
    """Within the context, options with the address of a server for a GGUF file that is no part of a model's folder.

    engine: its name; if it serves such files, its server is started. The options are returned unchanged for a folder,
    for an engine that is not in ENGINES, and if they have an address or no tokenizer.
    """
    file, name = Path(model), options.tokenizer
    if file.suffix != GGUF_SUFFIX or not file.is_file() or name is None or options.url or engine not in ENGINES:
        yield options
        return
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / file.stem  # the server is told its name
        folder.mkdir()
        (folder / GGUF_FILE).symlink_to(file.resolve())
        with running_server(options_for(engine, replace(options, tokenizer=None)), folder) as started:
            yield replace(started, tokenizer=name, served_model=options.served_model or file.stem)


def printed_by(log: IO[bytes]) -> str:
    """Threads and instructions that a started llama.cpp has printed, in short; nothing else of its log."""
    begin = os.pread(log.fileno(), MOST_PRINTED, 0)  # a seek would move the place at which the server writes
    found = re.findall(rb"\bn_threads = \d+|\b[A-Z][A-Z0-9_]+ = 1\b", begin)
    return in_short(", ".join(dict.fromkeys(line.decode() for line in found)))


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait(process: "subprocess.Popen[bytes]", url: str, seconds: float, log: IO[bytes]) -> None:
    """Wait until the server lists its models; PrunusError if it ends, or does not do so within these seconds."""
    until = time.monotonic() + seconds
    while True:
        if run(_answers(url)):
            return
        if (code := process.poll()) is not None:
            raise PrunusError(f"the server ended with exit code {code} before it answered: {last_lines(log)}")
        if time.monotonic() > until:
            raise PrunusError(f"the server did not answer within {seconds:g} s (timeout): {last_lines(log)}")
        time.sleep(LOOK_SECONDS)


async def _answers(url: str) -> bool:
    """Whether the server lists its models."""
    async with httpx.AsyncClient(timeout=LISTING_SECONDS) as client:
        with suppress(httpx.HTTPError, PrunusError):
            return (await received(client, f"{url}/models")).status == httpx.codes.OK
    return False


def last_lines(log: IO[bytes]) -> str:
    """The last lines of the server's output in one line; only those that contain `error`, if there are any."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 10_000))
    lines = [" ".join(line.split()) for line in log.read().decode("utf-8", "replace").splitlines()]
    chosen = [line for line in lines if "error" in line.casefold()] or [line for line in lines if line]
    return " | ".join(chosen[-LINES:])[-CHARACTERS:] or "it printed nothing"


def stop(process: "subprocess.Popen[Any]") -> None:
    """Ask the server and its children to end, and kill what is left."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
