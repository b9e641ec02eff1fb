"""A profile, the exact strings that open, cut and close the thinking of one model family, and its TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prunus.errors import PrunusError
from prunus.kinds import settle
from prunus.recipes import PROFILE_FOLDER, PROFILE_NAMES, Mode

FORMAT = 1
LEGACY_ANSWER_TOKENS = 32_768
# table of the file -> key in it -> field of Profile
KEYS = {
    "think": {"start": "thinking_start", "stops": "think_stops", "wait": "wait", "wait_break": "wait_break"},
    "close": {
        "natural": "natural_closing",
        "forced": "forced_closing",
        "forced_break": "forced_break",
        "answer_lead": "answer_lead",
    },
    "answer": {
        "stops": "answer_stops",
        "banned": "answer_banned",
        "tokens": "answer_tokens",
        "choice_tokens": "choice_answer_tokens",
    },
    "template": {"enable_thinking": "enable_thinking"},
    "sampling": {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"},
}


@dataclass(frozen=True)
class Profile:
    """The strings and defaults of one model family.

    thinking_start: appended to the chat template's generation prompt. think_stops, answer_stops: markers that end a
        phase; each must be a single token. natural_closing: follows the thinking text if the model ended it.
        forced_closing: follows it if the budget ended it. forced_break, wait_break: inserted before forced_closing and
        wait unless the thinking text ends in a newline (an empty text does not). answer_lead: the end of forced_closing
        that is part of the answer's text. answer_banned: markers that are never sampled in an answer in mode strict.
        wait: replaces a suppressed stop.
    answer_tokens, choice_answer_tokens: caps on the answer in mode strict; the second is for multiple choice.
    temperature, top_p, top_k: default sampling settings; temperature 0 is greedy, top_k 0 is off.
    enable_thinking: passed to the chat template unless None.
    """

    name: str
    thinking_start: str
    think_stops: tuple[str, ...]
    natural_closing: str
    forced_closing: str
    answer_stops: tuple[str, ...]
    answer_banned: tuple[str, ...]
    forced_break: str = ""
    wait: str = "Wait"
    wait_break: str = ""
    answer_lead: str = ""
    answer_tokens: int = 1024
    choice_answer_tokens: int = 512
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    enable_thinking: bool | None = None

    def __post_init__(self) -> None:
        settle(self)

    def strings(self) -> dict[str, Any]:
        """All settings that affect the text, for the stored plan."""
        numbers = {"name", "answer_tokens", "choice_answer_tokens", "temperature", "top_p", "top_k"}
        fields = {key: value for key, value in asdict(self).items() if key not in numbers}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    def answer_cap(self, kind: str, mode: Mode) -> int:
        """Cap in tokens on an answer of this kind (`choice` is multiple choice)."""
        if mode == "legacy":
            return LEGACY_ANSWER_TOKENS
        return self.choice_answer_tokens if kind == "choice" else self.answer_tokens

    def sampling(self, mode: Mode) -> tuple[float, float, int]:
        """Default temperature, top_p and top_k; in mode legacy those of the papers: 1, 1 and 0 (off)."""
        return (1.0, 1.0, 0) if mode == "legacy" else (self.temperature, self.top_p, self.top_k)


def read_profile(path: Path) -> Profile:
    """The profile in a TOML file. Raises PrunusError, with the file's name, where the file is wrong.

    `extends` names a built-in profile, whose values apply where the file has none. A table [template], even an empty
    one, replaces that of the built-in profile.
    """
    try:
        values = _values(path)
        required = {field.name for field in fields(Profile) if field.default is MISSING}.difference(values)
        for table, keys in KEYS.items():
            for key in (key for key, name in keys.items() if name in required):
                raise PrunusError(f"'{key}' is missing in [{table}]")
        return Profile(**values)
    except OSError as error:
        raise PrunusError(f"the profile {path} cannot be read: {error.strerror}") from error
    except (PrunusError, ValueError) as error:  # ValueError: not TOML, or not UTF-8
        raise PrunusError(f"profile {path}: {error}") from error


def _values(path: Path) -> dict[str, Any]:
    """{field of Profile: value} of a profile file, with the values of the profile that it extends."""
    data = tomllib.loads(path.read_text("utf-8"))
    if data.pop("format", None) != FORMAT:
        raise PrunusError(f"the first line must be `format = {FORMAT}`")
    base = data.pop("extends", None)
    if base is not None and base not in PROFILE_NAMES[1:]:
        raise PrunusError(f"extends '{base}', which is no built-in profile; there are {', '.join(PROFILE_NAMES[1:])}")
    found = {} if base is None else _values(PROFILE_FOLDER / f"{base}.toml")
    found["name"] = data.pop("name", path.stem)
    if "template" in data:
        found.pop("enable_thinking", None)
    for table, values in data.items():
        if table not in KEYS or not isinstance(values, Mapping):
            raise PrunusError(
                f"'{table}' is none of the tables of a profile: {', '.join(f'[{name}]' for name in KEYS)}"
            )
        for key, value in values.items():
            if key not in KEYS[table]:
                raise PrunusError(f"'{key}' is not known in [{table}]; there are {', '.join(KEYS[table])}")
            found[KEYS[table][key]] = value
    return found
