"""A model's chat template: prompts made with it, and the state of thinking at their end, found by rendering it once.

A template is a program, so only rendering shows how it ends a prompt, which decides how thinking starts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.chat_template import TemplateError, rendered
from prunus.checkpoint.resolve import load_end_ids, read_object
from prunus.errors import PrunusError
from prunus.evaluation.profiles.profile import Profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "Q7F3A", "A9K2B"  # texts that no template changes, so that they can be found in a prompt
TODAY = re.compile(r"strftime_now\(\s*(?P<format>'[^']*'|\"[^\"]*\")\s*\)")


@dataclass(frozen=True)
class Probe:
    """The result of rendering a chat template with one user message.

    tail: the prompt after the user's text. source: the template itself. end_of_turn: the first special token after an
    assistant's text, None without any.
    """

    tail: str
    source: str
    end_of_turn: int | None


def source_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of the tokenizer's chat template. Raises PrunusError if it has none."""
    if (template := template_of(tokenizer)) is None:
        raise no_template()
    return template


def no_template() -> PrunusError:
    """The error of a profile that needs a chat template, for a model that has none."""
    return PrunusError(
        "the model's tokenizer has no chat template: add chat_template.jinja of the original model, or, for a base"
        " model, use --profile base"
    )


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The text of the tokenizer's chat template; None if it has none, as those of base models."""
    template: Any = tokenizer.chat_template
    if isinstance(template, Mapping):  # several, by name
        template = template.get("default")
    return str(template) if template else None


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, str]],
    options: Mapping[str, Any],
    date: str,
    prompt: bool = True,
) -> str:
    """The text of messages; see render_all, which is faster for several conversations."""
    [text] = render_all(tokenizer, [messages], options, date, prompt)
    return text


def render_all(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[list[dict[str, str]]],
    options: Mapping[str, Any],
    date: str,
    prompt: bool = True,
) -> list[str]:
    """The text of the messages of each conversation; with prompt, it ends where the model continues.

    date: written by the template as today's date, year-month-day. Raises PrunusError where the template fails, is
    stopped by the sandbox in which templates run, or takes too much time or memory.
    """
    source = dated(source_of(tokenizer), date)
    try:
        return list(rendered(tokenizer, conversations, chat_template=source, add_generation_prompt=prompt, **options))
    except TemplateError as error:
        raise PrunusError(f"the model's chat template cannot be used: {error}") from error


@cache
def dated(source: str, date: str) -> str:
    """The chat template with this date instead of today's, so that a plan has the same prompts on every day."""
    if "strftime_now" not in source:
        return source
    import datetime

    day = datetime.date.fromisoformat(date)
    formats = {match["format"][1:-1] for match in TODAY.finditer(source)}
    if len(TODAY.findall(source)) < source.count("strftime_now("):
        raise PrunusError("the model's chat template writes today's date in a way that cannot be replaced")
    known = ", ".join(f"{_quoted(one)}: {_quoted(day.strftime(one))}" for one in sorted(formats))
    return f"{{%- macro strftime_now(format) -%}}{{{{ {{{known}}}[format] }}}}{{%- endmacro -%}}{source}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def probe(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any], system: str, date: str) -> Probe:
    """The probe of a template with these options. Raises PrunusError unless the user's text occurs exactly once."""
    messages = messages_of(QUESTION, system)
    text = render(tokenizer, messages, options, date)
    if text.count(QUESTION) != 1:
        raise PrunusError(f"the model's chat template writes the user's text {text.count(QUESTION)} times, not once")
    tail = text.partition(QUESTION)[2]
    return Probe(tail, source_of(tokenizer), _end_of_turn(tokenizer, messages, options, date))


def _end_of_turn(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], options: Mapping[str, Any], date: str
) -> int | None:
    answered = [*messages, {"role": "assistant", "content": ANSWER}]
    try:
        text = render(tokenizer, answered, options, date, prompt=False)
    except PrunusError:  # some templates accept no assistant's text
        return None
    special = set(tokenizer.all_special_ids) | {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    ids = tokenizer.encode(text.rpartition(ANSWER)[2], add_special_tokens=False)
    return next((token for token in ids if token in special), None)


def messages_of(text: str, system: str) -> list[dict[str, str]]:
    """A conversation of one user message, after the system prompt if there is one."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def end_ids(tokenizer: "PreTrainedTokenizerBase", folder: Path, found: Probe) -> frozenset[int]:
    """The ids that end a model's turn by generation_config.json, config.json, the tokenizer or the template.

    If <|return|> ends its turns, <|end|> is left out, since it only ends a message. Raises PrunusError if no file names
    any.
    """
    ids = set(named_ends(tokenizer, folder))
    if found.end_of_turn is not None:
        ids.add(found.end_of_turn)
    returned, ended = (tokenizer.convert_tokens_to_ids(text) for text in ("<|return|>", "<|end|>"))
    if returned in ids:
        ids.discard(ended)
    if not ids:
        raise PrunusError(
            "no file of the model names a token that ends its turn: set eos_token_id in generation_config.json,"
            " or `stops` of [answer] in a --profile FILE.toml"
        )
    return frozenset(ids)


def named_ends(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> frozenset[int]:
    """The ids that end a text by generation_config.json, config.json or the tokenizer."""
    config = folder / "config.json"
    named = read_object(config).get("eos_token_id") if config.is_file() else None
    ends = (*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id)
    return load_end_ids(folder, len(tokenizer)).union(
        token for token in ends if type(token) is int and 0 <= token < len(tokenizer)
    )


def ends_of_turn(profile: Profile, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> frozenset[int]:
    """The ids that end the model's turn, by generation_config.json, or by all its files if the profile names none.

    With a prompt of the profile's own they are those that end a text by any file. There may be none.
    """
    if profile.prompt:
        return named_ends(tokenizer, folder)
    if profile.answer_stops:
        return load_end_ids(folder, len(tokenizer))
    return end_ids(tokenizer, folder, probe(tokenizer, profile.template_options(), profile.system, profile.date))


def sampling_of(folder: Path) -> dict[str, float | int]:
    """temperature, top_p and top_k of generation_config.json, as far as set; empty unless it has do_sample."""
    path = folder / "generation_config.json"
    found = read_object(path) if path.is_file() else {}
    if not found.get("do_sample"):
        return {}
    kinds: dict[str, tuple[type, ...]] = {"temperature": (int, float), "top_p": (int, float), "top_k": (int,)}
    return {name: found[name] for name, kind in kinds.items() if type(found.get(name)) in kind}
