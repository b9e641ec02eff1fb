"""A model's chat template: prompts made with it, and what it says about thinking, found by rendering it once.

Rendering is the only way to know: templates are programs, and what they end a prompt with decides how thinking starts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.resolve import load_end_ids, one_line, read_object
from prunus.errors import PrunusError
from prunus.evaluation.profiles.profile import Profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "Q7F3A", "A9K2B"  # texts that no template changes, and whose place in a prompt is thus known
TODAY = re.compile(r"strftime_now\(\s*(?P<format>'[^']*'|\"[^\"]*\")\s*\)")


@dataclass(frozen=True)
class Probe:
    """What a chat template does with one user message.

    tail: the prompt after the user's text. source: the template itself. end_of_turn: the first special token that the
    template writes after an assistant's text, None where it writes none.
    """

    tail: str
    source: str
    end_of_turn: int | None


def source_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of the tokenizer's chat template; PrunusError where it has none."""
    template: Any = tokenizer.chat_template
    if isinstance(template, Mapping):  # several, by name
        template = template.get("default")
    if not template:
        raise PrunusError("the model's tokenizer has no chat template: add chat_template.jinja of the original model")
    return str(template)


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, str]],
    options: Mapping[str, Any],
    date: str,
    prompt: bool = True,
) -> str:
    """The text of messages; with prompt, up to where the model goes on.

    date: what the template writes as today's date, year-month-day. PrunusError where the template fails, or is stopped
    by the sandbox in which templates run.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=dated(source_of(tokenizer), date),
                tokenize=False,
                add_generation_prompt=prompt,
                **options,
            )
        )
    except PrunusError:
        raise
    except Exception as error:  # templates are programs, and raise and write what they like
        raise PrunusError(f"the model's chat template cannot be used: {one_line(error)[:300]}") from error


@cache
def dated(source: str, date: str) -> str:
    """A chat template that writes this date, and not today's, so that a plan has the same prompts tomorrow."""
    if "strftime_now" not in source:
        return source
    import datetime

    day = datetime.date.fromisoformat(date)
    formats = {match["format"][1:-1] for match in TODAY.finditer(source)}
    if len(TODAY.findall(source)) < source.count("strftime_now("):
        raise PrunusError("the model's chat template writes today's date in a way that cannot be held still")
    known = ", ".join(f"{_quoted(one)}: {_quoted(day.strftime(one))}" for one in sorted(formats))
    return f"{{%- macro strftime_now(format) -%}}{{{{ {{{known}}}[format] }}}}{{%- endmacro -%}}{source}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def probe(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any], system: str, date: str) -> Probe:
    """What the template does under these options; PrunusError where a user's text is not once in the prompt."""
    messages = messages_of(QUESTION, system)
    rendered = render(tokenizer, messages, options, date)
    if rendered.count(QUESTION) != 1:
        raise PrunusError(
            f"the model's chat template has the user's text {rendered.count(QUESTION)} times in its prompt, not once"
        )
    tail = rendered.partition(QUESTION)[2]
    return Probe(tail, source_of(tokenizer), _end_of_turn(tokenizer, messages, options, date))


def _end_of_turn(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], options: Mapping[str, Any], date: str
) -> int | None:
    answered = [*messages, {"role": "assistant", "content": ANSWER}]
    try:
        rendered = render(tokenizer, answered, options, date, prompt=False)
    except PrunusError:  # some templates accept no assistant's text
        return None
    special = set(tokenizer.all_special_ids) | {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    ids = tokenizer.encode(rendered.rpartition(ANSWER)[2], add_special_tokens=False)
    return next((token for token in ids if token in special), None)


def messages_of(text: str, system: str) -> list[dict[str, str]]:
    """A conversation of one user's message, after a system prompt if there is one."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def end_ids(tokenizer: "PreTrainedTokenizerBase", folder: Path, found: Probe) -> frozenset[int]:
    """The ids that end a model's turn by any of its files: generation_config.json, config.json, its tokenizer, its
    template. Of a model that ends its turns with <|return|>, <|end|> only ends a message."""
    ids = set(load_end_ids(folder, len(tokenizer)))
    config = folder / "config.json"
    named = read_object(config).get("eos_token_id") if config.is_file() else None
    for token in (*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id, found.end_of_turn):
        if type(token) is int and 0 <= token < len(tokenizer):
            ids.add(token)
    returned, ended = (tokenizer.convert_tokens_to_ids(text) for text in ("<|return|>", "<|end|>"))
    if returned in ids:
        ids.discard(ended)
    if not ids:
        raise PrunusError(
            "no file of the model says what ends its turn: name eos_token_id in generation_config.json,"
            " or `stops` of [answer] in a --profile FILE.toml"
        )
    return frozenset(ids)


def ends_of_turn(profile: Profile, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> frozenset[int]:
    """The ids that end the model's turn, by generation_config.json, or by all its files if the profile names none."""
    if profile.answer_stops:
        return load_end_ids(folder, len(tokenizer))
    return end_ids(tokenizer, folder, probe(tokenizer, profile.template_options(), profile.system, profile.date))


def sampling_of(folder: Path) -> dict[str, float | int]:
    """temperature, top_p and top_k of generation_config.json, where it says that the model is sampled."""
    path = folder / "generation_config.json"
    found = read_object(path) if path.is_file() else {}
    if not found.get("do_sample"):
        return {}
    kinds: dict[str, tuple[type, ...]] = {"temperature": (int, float), "top_p": (int, float), "top_k": (int,)}
    return {name: found[name] for name, kind in kinds.items() if type(found.get(name)) in kind}
