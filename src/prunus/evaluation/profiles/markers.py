"""A profile's strings as token ids of one tokenizer, and the prompts and texts of that tokenizer."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.resolve import one_line
from prunus.errors import PrunusError
from prunus.evaluation.profiles.profile import Profile
from prunus.recipes import Mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_token(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """The id of the single token that is this text; None if the text is several tokens or an unknown one."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) == text else None


@dataclass(frozen=True)
class Markers:
    """A profile's strings as ids of one tokenizer.

    Every string is encoded separately, and a chain is the concatenation of ids. reopening: thinking_start without its
    newline; in an answer it means that the model continues to think.
    """

    start: tuple[int, ...]
    reopening: tuple[int, ...]
    think_stops: frozenset[int]
    natural_closing: tuple[int, ...]
    forced_closing: tuple[int, ...]
    forced_closing_after_newline: tuple[int, ...]
    wait: tuple[int, ...]
    wait_after_newline: tuple[int, ...]
    answer_stops: frozenset[int]
    answer_banned: frozenset[int]
    ends_in_newline: Callable[[int], bool]

    def closing(self, thinking: list[int], natural: bool) -> tuple[int, ...]:
        """The ids that close these thinking ids and start the answer. natural: whether the model ended its thinking."""
        if natural:
            return self.natural_closing
        after_newline = bool(thinking) and self.ends_in_newline(thinking[-1])
        return self.forced_closing_after_newline if after_newline else self.forced_closing

    def refusal(self, thinking: list[int]) -> tuple[int, ...]:
        """The ids that replace a suppressed stop after these thinking ids."""
        after_newline = bool(thinking) and self.ends_in_newline(thinking[-1])
        return self.wait_after_newline if after_newline else self.wait

    def ending_at(self, end_ids: Collection[int]) -> "Markers":
        """These markers, with end_ids as further stops of both phases.

        vLLM, and so the papers' harness, ends at the ids in a model's generation_config.json.
        """
        return replace(self, think_stops=self.think_stops.union(end_ids), answer_stops=self.answer_stops.union(end_ids))

    @property
    def longest(self) -> int:
        """Maximum number of ids of start and closing together."""
        return len(self.start) + max(map(len, self._closings))

    @property
    def shortest_closing(self) -> int:
        """Minimum number of ids of a closing."""
        return min(map(len, self._closings))

    @property
    def _closings(self) -> tuple[tuple[int, ...], ...]:
        return self.natural_closing, self.forced_closing, self.forced_closing_after_newline


def encode_markers(profile: Profile, tokenizer: "PreTrainedTokenizerBase", mode: Mode) -> Markers:
    """The profile's markers for this tokenizer. Raises PrunusError for a stop that is not a single token."""

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def single(text: str) -> int:
        token = find_token(tokenizer, text)
        if token is None:
            raise PrunusError(
                f"profile '{profile.name}' needs {text} as a single token, which this model's tokenizer lacks:"
                " choose another --profile"
            )
        return token

    return Markers(
        start=encode(profile.thinking_start),
        reopening=encode(profile.thinking_start.rstrip("\n")),
        think_stops=frozenset(map(single, profile.think_stops)),
        natural_closing=encode(profile.natural_closing),
        forced_closing=encode(profile.forced_break + profile.forced_closing),
        forced_closing_after_newline=encode(profile.forced_closing),
        wait=encode(profile.wait_break + profile.wait),
        wait_after_newline=encode(profile.wait),
        answer_stops=frozenset(map(single, profile.answer_stops)),
        answer_banned=frozenset(map(single, profile.answer_banned)) if mode == "strict" else frozenset(),
        ends_in_newline=partial(ends_in_newline, tokenizer),
    )


def ends_in_newline(tokenizer: "PreTrainedTokenizerBase", token: int) -> bool:
    """Whether a text that ends in this token ends in a newline. Its last byte decides, so no other token is needed."""
    return decode(tokenizer, [token]).endswith("\n")


def encode_prompt(profile: Profile, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of the chat template with text as the only user message, up to the place of thinking_start.

    A thinking_start that the template itself adds (newer Qwen models) is removed, so that it does not occur twice.
    Raises PrunusError where the template fails or is stopped by the sandbox in which templates run.
    """
    options: dict[str, Any] = {} if profile.enable_thinking is None else {"enable_thinking": profile.enable_thinking}
    messages = [{"role": "user", "content": text}]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
        for start in (profile.thinking_start, profile.thinking_start.rstrip("\n")):
            rendered = rendered.removesuffix(start)
        return tokenizer.encode(rendered, add_special_tokens=False)
    except Exception as error:  # a template is a program, which may raise any error
        raise PrunusError(f"the model's chat template cannot be used: {one_line(error)[:300]}") from error


def decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The text of ids as the model wrote it, including markers and all whitespace."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
