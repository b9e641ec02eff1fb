"""Facts that Prunus needs about engines and backends: the records that every other file here fills for its engine."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunus.settings import Conflict
from prunus.settings.cache_size import CacheSize
from prunus.settings.request import OF_SERVERS

GGUF = "{gguf}"  # placeholder in a command for the model's GGUF file
CONTEXT, SLOTS = "{context}", "{slots}"  # in a command of `choose`: tokens of all chains at once, number of chains

NO_NATIVE = Conflict("control", "native", "control native needs the engine openai, whose engine keeps the budget")

# Environment variables that change how torch rounds; steps that compress a model, for engines that read the result.
TORCH_VARIABLES = frozenset({"NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"})
Steps = tuple[Mapping[str, Mapping[str, int | float | str]], ...]  # each as {action: settings of its recipe}
COMPRESSED: tuple[Steps, ...] = (
    ({"quantize": {"bits": 8}},),
    ({"quantize": {"bits": 4, "group": "32"}},),
    ({"quantize": {"bits": 4, "group": "128"}},),
)


@dataclass(frozen=True)
class BackendEntry:
    """The facts about a backend that are known without importing it.

    load: "module:function" that takes a model folder, a device, the number of ids that the tokenizer knows and
    EngineOptions, and returns a prunus.evaluation.engine.Backend. batch_size: chains decoded and stored together
    unless the plan sets it; engines with continuous batching need many requests at once.
    settings: the EngineOptions that it uses. needs: those that it requires, with the advice of the error message.
    loads_itself: whether another program reads the weights, so that any type of model will do. in_torch: whether torch
    computes in this process, on a device that is known beforehand. fills_gpu: whether it occupies a whole GPU from its
    start. gguf: whether it evaluates GGUF files. streams: whether it is a prunus.evaluation.engine.Streaming, which
    makes its own batches. chats: as load, for a server's chat completions, which control native needs; empty if it has
    none. request: the fields of requests that it takes. conflicts: what an EvalPlan cannot have together with it;
    without chats, control native.
    """

    load: str
    batch_size: int
    settings: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    loads_itself: bool = False
    in_torch: bool = False
    fills_gpu: bool = False
    gguf: bool = False
    streams: bool = False
    chats: str = ""
    request: frozenset[str] = frozenset()
    conflicts: tuple[Conflict, ...] = (NO_NATIVE,)


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """The facts about a program that computes, in this process or as a server.

    name: its name in commands. entry: the backend of this name, which evaluates models in it; None: the backend
    `openai` does, on its server.

    Of its servers:
    starts: the words of the commands that start one; `python` stands for any Python. owner: how `owned_by` of its
    list of models begins. version_at: path and key of its version. request: fields of requests that it takes.
    for_seeds: the option without which it ignores seeds. budget: names, from the outside inwards, of the field of a
    chat request that ends the thinking after a number of tokens; empty if it has none. for_budget: what the server has
    to be started with for it. parsers: by the marker that ends thinking, the name of the reasoning parser that finds
    it, empty where none has to be named; it keeps no budget of thinking with other markers. takes_closing: whether it
    can be started with any text that ends thinking; of_closing: a note on texts with more than the marker.

    Of a run's id:
    speed: options that only cost speed or memory, without leading dashes and with underscores; all others count.
    of_length: those of them by which it chooses the factors of LongRoPE, so that they count for a model that has it.
    variables: environment variables that change what is computed. prefix: the beginning of variables from which it also
    reads options. packages: those whose versions count where it computes in this process. check: "module:function" that
    raises PrunusError where it is not installed.

    Of models:
    gguf: whether it loads GGUF files instead of checkpoints. unpacks: whether its weights in memory are plain numbers,
    however a checkpoint stores them. forms: steps to each form that `choose` tries, from more bytes to fewer; ladder:
    to each rung of `find`; empty where the command does not take the engine.
    lacks: "module:function" that takes the bits of weights and the type of a device, and says why the engine cannot
    multiply them there.

    Of the cache:
    cache: the type of keys and values without an option for it; empty: the weights'. states: as cache, of states.
    cache_options: names of the options that set the types of keys and of values. block: tokens to which the room of a
    chain is rounded up.

    Of serving:
    serve: the command that serves a model to `find`; empty if none is needed. room: its options that make room for the
    chains of `choose`, with CONTEXT and SLOTS.
    """

    name: str
    entry: BackendEntry | None = None
    starts: tuple[tuple[str, ...], ...] = ()
    owner: str = ""
    version_at: tuple[str, str] | None = None
    request: frozenset[str] = OF_SERVERS
    for_seeds: str = ""
    budget: tuple[str, ...] = ()
    for_budget: str = ""
    parsers: Mapping[str, str] = field(default_factory=dict)
    takes_closing: bool = False
    of_closing: str = ""
    speed: frozenset[str] = frozenset()
    of_length: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()
    prefix: str = ""
    packages: tuple[str, ...] = ()
    check: str = ""
    gguf: bool = False
    unpacks: bool = False
    forms: tuple[Steps, ...] = ()
    ladder: tuple[Steps, ...] = ()
    lacks: str = ""
    cache: str = ""
    states: str = ""
    cache_options: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    block: int = 1
    serve: str = ""
    room: str = ""

    @property
    def backend(self) -> str:
        """The name of the backend that evaluates models in it."""
        return "openai" if self.entry is None else self.name

    def is_speed(self, option: str) -> bool:
        """Whether an option, without leading dashes and with underscores, only costs speed or memory."""
        return option in self.speed or option.removeprefix("no_") in self.speed

    def option_of(self, variable: str) -> str | None:
        """The option that the engine reads from an environment variable; None if it reads none."""
        if not self.prefix or not variable.startswith(self.prefix):
            return None
        return variable.removeprefix(self.prefix).lower()

    def budget_fields(self, budget: int) -> dict[str, int | dict[str, int]]:
        """The fields of a chat request that end the thinking after a number of tokens; {} if the engine has none."""
        match self.budget:
            case (name,):
                return {name: budget}
            case (outer, name):
                return {outer: {name: budget}}
        return {}

    def closing_options(self, start: str, stop: str, closing: str) -> tuple[str, ...]:
        """The command-line words with which its server ends thinking, with the closing as far as it supports that.

        start, stop: the markers that begin and end the thinking. closing: with the stop in it; empty: the engine's own.
        """
        return ("--reasoning-parser", self.parsers[stop]) if self.parsers.get(stop) else ()

    def sized(self, command: str, tokens: int, slots: int) -> str:
        """The command with CONTEXT and SLOTS, if it has them, filled in for `slots` chains of `tokens` tokens each."""
        context = slots * -(-tokens // self.block) * self.block
        return command.replace(CONTEXT, str(context)).replace(SLOTS, str(slots))

    def args_for(self, tokens: int, slots: int, cache: CacheSize) -> Mapping[str, int]:
        """The arguments of an engine in this process that make room for `slots` chains of `tokens` tokens at once."""
        return {}

    def script(self, name: str, serve: str | None, args: Mapping[str, Any], room: tuple[int, int, CacheSize]) -> str:
        """Shell command that serves the model in the folder $here under a name on port $port.

        serve, args: as of EngineOptions. room: the arguments of args_for.
        """
        tokens, slots, _ = room
        values = {GGUF: '"$here/model.gguf"', "{model}": '"$here"', "{name}": shlex.quote(name), "{port}": '"$port"'}
        return filled(self.sized(serve or self.serve, tokens, slots), values)


def filled(command: str, values: Mapping[str, str]) -> str:
    """Shell command in which each placeholder (a key of values) is replaced by its text, and all else stays quoted."""
    places = re.compile(f"({'|'.join(map(re.escape, values))})")
    return " ".join(
        "".join(values.get(part) or shlex.quote(part) for part in places.split(word) if part)
        for word in shlex.split(command)
    )
