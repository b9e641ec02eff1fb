"""A profile's strings as the token ids of one tokenizer, and prompts and texts by the same tokenizer."""

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
    """The id of the one token that is this text, None if it takes several or an unknown token."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) == text else None


@dataclass(frozen=True)
class Markers:
    """A profile's strings as the ids of one tokenizer.

    Every string is encoded alone; a text that continues is the concatenation of ids. reopening: what thinking_start is
    without its line end, whose appearance in an answer means that the model thinks on.
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
        """What follows these thinking ids to start the answer."""
        if natural:
            return self.natural_closing
        after_newline = bool(thinking) and self.ends_in_newline(thinking[-1])
        return self.forced_closing_after_newline if after_newline else self.forced_closing

    def refusal(self, thinking: list[int]) -> tuple[int, ...]:
        """What replaces a stop that is refused after these thinking ids."""
        after_newline = bool(thinking) and self.ends_in_newline(thinking[-1])
        return self.wait_after_newline if after_newline else self.wait

    def ending_at(self, end_ids: Collection[int]) -> "Markers":
        """The same, with both phases also ended by these ids, as vLLM and so the papers' harness do with those of a
        model's generation_config.json."""
        return replace(self, think_stops=self.think_stops.union(end_ids), answer_stops=self.answer_stops.union(end_ids))

    @property
    def longest(self) -> int:
        """Most ids that start and closing can take together."""
        return len(self.start) + max(map(len, self._closings))

    @property
    def shortest_closing(self) -> int:
        """Least ids that a closing can take."""
        return min(map(len, self._closings))

    @property
    def _closings(self) -> tuple[tuple[int, ...], ...]:
        return self.natural_closing, self.forced_closing, self.forced_closing_after_newline


def encode_markers(profile: Profile, tokenizer: "PreTrainedTokenizerBase", mode: Mode) -> Markers:
    """The profile under this tokenizer; PrunusError names a stop that is not a single token."""

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
    """Whether a text of this last token ends in a newline, which its last byte alone tells."""
    return decode(tokenizer, [token]).endswith("\n")


def encode_prompt(profile: Profile, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of the chat template with text as the one user message, up to where thinking_start belongs.

    Templates that open the thinking themselves (newer Qwen) lose that part, so that it is not there twice. PrunusError
    where the template fails, or is stopped by the sandbox in which templates run.
    """
    options: dict[str, Any] = {} if profile.enable_thinking is None else {"enable_thinking": profile.enable_thinking}
    messages = [{"role": "user", "content": text}]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
        for start in (profile.thinking_start, profile.thinking_start.rstrip("\n")):
            rendered = rendered.removesuffix(start)
        return tokenizer.encode(rendered, add_special_tokens=False)
    except Exception as error:  # templates are programs, and raise and write what they like
        raise PrunusError(f"the model's chat template cannot be used: {one_line(error)[:300]}") from error


def decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The text of ids as the model wrote it: markers shown, blanks untouched."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
