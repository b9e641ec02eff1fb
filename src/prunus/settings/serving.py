"""How a model is served: what can change what is sampled besides model, plan and seed. It is part of a run's id.

Settings of an engine that only cost speed or memory are listed (`EngineFacts.speed`) and left out; every other one
counts, so a new flag never merges two runs.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from itertools import chain
from pathlib import PurePath
from typing import Any, Self

from prunus.errors import PrunusError
from prunus.plain_data import StoredData, content_hash, plain, read_hints, read_value
from prunus.settings.cache_size import type_named
from prunus.settings.engines import BACKENDS, ENGINES, MODEL_FLAGS, EngineOptions

PLACEHOLDERS = ("{model}", "{gguf}", "{port}", "{name}")
NUMBER = re.compile(r"-\.?\d")
LONGEST = 40  # characters of a value in a label; a longer one is named by its hash
INT4 = "VLLM_CPU_INT4_W4A8"
SECRET = frozenset({"api_key", "api_key_file"})  # options that never count, since nothing that is secret is stored


@dataclass(frozen=True, kw_only=True)
class ExactServing(StoredData):
    """Settings and versions that count only in a serving in which everything counts.

    args, words: as in Serving, but those that only cost speed or memory. versions: of the packages that compute.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Serving:
    """Settings of serving that are part of a run's id; an empty serving is false, and adds nothing to the id.

    name: the user's name for settings that a server does not tell. args: of the engine. words: of the command that
    starts a server, each an option with its values, sorted. request: fields of every request. environment: variables.
    exact: None unless everything counts.
    """

    name: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    request: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    exact: ExactServing | None = None

    @classmethod
    def of(
        cls,
        backend: str,
        engine: EngineOptions,
        environment: Mapping[str, str] | None = None,
        longrope: bool = False,
    ) -> Self:
        """Stored: the serving of a backend with these options.

        environment: by default that of this process; variables that the options set all count. longrope: whether the
        model has LongRoPE: then EngineFacts.of_length counts.
        """
        variables = {**(os.environ if environment is None else environment), **engine.environment}
        program, words, fast = ("", (), ()) if engine.serve is None else read_command(engine.serve, longrope)
        args = {key: value for key, value in sorted(engine.args.items()) if not is_speed(key, backend, longrope)}
        exact = None
        if engine.exact:
            left = {key: value for key, value in sorted(engine.args.items()) if key not in (args.keys() | SECRET)}
            quick = [*fast, *speed_variables(variables, program)]
            exact = ExactServing.of({"args": left, "words": quick, "versions": versions_of(backend)})
        runs = program if engine.serve is not None else "" if "url" in BACKENDS[backend].settings else backend
        return cls(
            name=engine.serving,
            args=args,
            words=words,
            request=engine.request,
            environment=dict(sorted({**counting(variables, runs, longrope), **engine.environment}.items())),
            exact=exact,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Self:
        """The serving that was stored as this. Raises ValueError for a value of another type."""
        hints, given = read_hints(cls), data or {}
        return cls(**{name: read_value(hint, given[name]) for name, hint in hints.items() if name in given})

    def to_json(self) -> dict[str, Any]:
        """Stored: the fields that are not empty, as plain data."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: plain(value) for key, value in values.items() if value}

    def cache_types(self, dtype: str) -> tuple[str, str] | None:
        """The types of keys and of values in the cache, by llama.cpp's names; None for types of other names.

        dtype: the type where no setting says another. A server elsewhere is assumed to have no such setting.
        """
        given = {flag_name(name): value for name, _, value in (word.partition(" ") for word in self.words)}
        for engine in ENGINES.values():
            given |= {option: value for name, value in self.environment.items() if (option := engine.option_of(name))}
        given |= self.args
        names = zip(*(engine.cache_options for engine in ENGINES.values()), strict=True)
        names_of_types = [next((given[name] for name in chain(*of) if name in given), "auto") for of in names]
        found = [dtype if name == "auto" else type_named(str(name)) for name in names_of_types]
        return None if None in found else (str(found[0]), str(found[1]))

    def __bool__(self) -> bool:
        return bool(self.to_json())

    @property
    def digest(self) -> str:
        """12 hex digits of its content."""
        return content_hash(self.to_json())

    @property
    def label(self) -> str:
        """Its name, else its settings in short; empty for an empty one."""
        return self.name or self.settings

    @property
    def settings(self) -> str:
        """Its settings in short, without the name."""
        pairs = [*self.args.items(), *self.request.items()]
        texts = [f"{key} {shown(value)}" for key, value in pairs] + list(self.words)
        texts += [f"{key}={value}" for key, value in self.environment.items()]
        if self.exact:
            versions = sorted(self.exact.versions.items(), reverse=True)  # vLLM's first
            pairs = [*self.exact.args.items(), *versions]
            texts += ["exact", *self.exact.words, *(f"{key} {shown(value)}" for key, value in pairs)]
        return ", ".join(texts)


NO_SERVING = Serving()


def shown(value: object) -> str:
    """The text of a value in a label; for a long value, the start of its hash."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST else content_hash(value)[:8]


def flag_name(word: str) -> str:
    """`kv_cache_dtype` for `--kv-cache-dtype`, and for itself."""
    return word.lstrip("-").replace("-", "_")


def is_speed(word: str, program: str, longrope: bool) -> bool:
    """Whether an option of an engine only costs speed or memory. program: a key of ENGINES; any other has none.

    longrope: as in Serving.of.
    """
    name, engine = flag_name(word), ENGINES.get(program)
    return engine is not None and engine.is_speed(name) and not (longrope and name in engine.of_length)


def counting(environment: Mapping[str, str], program: str, longrope: bool = False) -> dict[str, str]:
    """The variables that change what a program computes. program: as of program_of; empty for a server elsewhere."""
    if not program:
        return {}
    engines = [ENGINES[program]] if program in ENGINES else ENGINES.values()
    return {
        name: value
        for name, value in sorted(environment.items())
        if value
        and any(
            name in engine.variables
            or ((option := engine.option_of(name)) is not None and not is_speed(option, engine.name, longrope))
            for engine in engines
        )
    }


def speed_variables(environment: Mapping[str, str], program: str) -> list[str]:
    """`LLAMA_ARG_THREADS 2` for each variable by which an engine reads an option that only costs speed or memory."""
    if program not in ENGINES:
        return []
    options = {name: option for name in environment if (option := ENGINES[program].option_of(name)) is not None}
    return [
        f"{name} {environment[name]}"
        for name, option in sorted(options.items())
        if option not in SECRET and is_speed(option, program, longrope=False) and environment[name]
    ]


def program_of(words: Sequence[str]) -> tuple[str, int]:
    """(what a command starts: a key of ENGINES or `another`, how many words name it)."""
    names = [PurePath(word).name.removesuffix(".exe") for word in words]
    if re.fullmatch(r"python[\d.]*", names[0]):
        names[0] = "python"
    for engine in ENGINES.values():
        for start in map(list, engine.starts):
            for begin in (start, ["python", *start]):  # of a script, too
                if names[: len(begin)] == begin:
                    return engine.name, len(begin)
    return "another", 0


@cache
def versions_of(backend: str) -> Mapping[str, str]:
    """The versions of the packages that compute in this process, by name; none of a backend that reaches a server.

    Raises PrunusError for a package that is not installed.
    """
    found = {}
    for package in ENGINES[backend].packages if backend in ENGINES else ():
        try:
            found[package] = version(package)
        except PackageNotFoundError as error:
            names = packages_distributions().get(package)  # vLLM's build for CPUs has another name
            if not names:
                raise PrunusError(
                    f"exact needs the version of {package}, which is not installed here: install it, or leave exact out"
                ) from error
            found[package] = version(names[0])
    return found


def read_command(command: str, longrope: bool = False) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(program as program_of, its options that count, those that only cost speed) of a command that starts a server.

    An option is a word that begins with a dash, with the words up to the next. Places that stand for the model, its
    name and the port count for nothing.
    """
    words = shlex.split(command)
    program, named = program_of(words)
    options: list[list[str]] = [[""]]
    for word in words[named:]:
        if word.startswith("-") and not NUMBER.match(word):
            name, equals, value = word.partition("=")
            options.append([name, value] if equals else [name])
        else:
            options[-1].append(word)
    kept, fast = list[str](), list[str]()
    for name, *values in options:
        left = [value for value in values if value not in PLACEHOLDERS]
        only_places, text = len(left) < len(values) and not left, " ".join([name, *left]).strip()
        if is_speed(name, program, longrope):
            fast += [text] * (not only_places and flag_name(name) not in SECRET)
        elif (name or left) and not (only_places and flag_name(name) in MODEL_FLAGS):
            kept.append(text)
    return program, tuple(sorted(kept)), tuple(sorted(fast))
