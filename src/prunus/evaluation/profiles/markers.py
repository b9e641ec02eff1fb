"""A model's chat template, prompts made with it, and a profile's strings as token ids of its tokenizer.

A template is a program, so only rendering shows how it ends a prompt, which decides how thinking starts.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.chat_template import TemplateError, dated, rendered, template_of
from prunus.checkpoint.resolve import load_end_ids
from prunus.disk import read_object
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROBLEM, Profile
from prunus.evaluation.requests import TextStops
from prunus.recipes.drawing import Mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "Q7F3A", "A9K2B"  # texts that no template changes, so that they can be found in a prompt
# Cache of the latest rendered texts, since a command probes a template several times, and each call forks a process.
_RENDERED: dict[str, list[str]] = {}
CALLS_KEPT, MOST_KEPT = 32, 1 << 20  # calls; characters of one of them


def source_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of the tokenizer's chat template. Raises PrunusError if it has none."""
    if (template := template_of(tokenizer)) is None:
        raise no_template()
    return template


def no_template() -> PrunusError:
    """The error for a model without a chat template whose profile needs one."""
    return PrunusError(
        "the model's tokenizer has no chat template: add chat_template.jinja of the original model, or, for a base"
        " model, use --profile base"
    )


def render(
    tokenizer: "PreTrainedTokenizerBase",
    profile: Profile,
    texts: Sequence[str],
    more: Mapping[str, Any] = MappingProxyType({}),
    answer: str = "",
) -> list[str]:
    """The model's chat template with each text as the only user message, up to the place where the model continues.

    profile: gives the system prompt, the options and the date. more: further options. answer: if not empty, a reply of
    the model that is added as the last message; then nothing is left to continue. Raises PrunusError where the template
    fails, is stopped by the sandbox in which templates run, or takes too much time or memory.
    """
    answered = [{"role": "assistant", "content": answer}] if answer else []
    conversations = [[*messages_of(text, profile.system), *answered] for text in texts]
    options = {**profile.template_options(), **more}
    source = dated(source_of(tokenizer), profile.date)
    key = repr((type(tokenizer), tokenizer.special_tokens_map, source, options, conversations))
    if (known := _RENDERED.pop(key, None)) is None:
        try:
            known = list(
                rendered(tokenizer, conversations, chat_template=source, add_generation_prompt=not answer, **options)
            )
        except TemplateError as error:
            raise PrunusError(f"the model's chat template cannot be used: {error}") from error
    if len(key) + sum(map(len, known)) <= MOST_KEPT:
        _RENDERED[key] = known
    if len(_RENDERED) > CALLS_KEPT:
        _RENDERED.pop(next(iter(_RENDERED)), None)  # the least recently used
    return list(known)


def end_of_prompt(tokenizer: "PreTrainedTokenizerBase", profile: Profile) -> str:
    """The text that the template writes after the user's. Raises PrunusError unless the user's occurs exactly once."""
    [text] = render(tokenizer, profile, [QUESTION])
    if text.count(QUESTION) != 1:
        raise PrunusError(f"the model's chat template writes the user's text {text.count(QUESTION)} times, not once")
    return text.partition(QUESTION)[2]


def end_of_turn(tokenizer: "PreTrainedTokenizerBase", profile: Profile) -> int | None:
    """The first special token that a profile's template writes after an assistant's text; None without any."""
    try:
        [text] = render(tokenizer, profile, [QUESTION], answer=ANSWER)
    except PrunusError:  # some templates accept no assistant's text
        return None
    special = set(tokenizer.all_special_ids) | {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    ids = tokenizer.encode(text.rpartition(ANSWER)[2], add_special_tokens=False)
    return next((token for token in ids if token in special), None)


def messages_of(text: str, system: str) -> list[dict[str, str]]:
    """A conversation of one user message, after the system prompt if there is any."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def end_ids(tokenizer: "PreTrainedTokenizerBase", folder: Path, by_template: int | None) -> frozenset[int]:
    """The ids that end a model's turn according to generation_config.json, config.json, the tokenizer or the template.

    If <|return|> ends its turns, <|end|> is left out, since it only ends a message. Raises PrunusError if no file names
    any.
    """
    ids = set(named_ends(tokenizer, folder))
    if by_template is not None:
        ids.add(by_template)
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
    """The ids that end a text according to generation_config.json, config.json or the tokenizer."""
    config = folder / "config.json"
    named = read_object(config).get("eos_token_id") if config.is_file() else None
    ends = (*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id)
    return load_end_ids(folder, len(tokenizer)).union(
        token for token in ends if type(token) is int and 0 <= token < len(tokenizer)
    )


def ends_of_turn(profile: Profile, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> frozenset[int]:
    """The ids that end the model's turn: of generation_config.json, or of all files if the profile has no stops.

    For a profile with a prompt of its own, they are the ids that end a text according to any file. There may be none.
    """
    if profile.prompt:
        return named_ends(tokenizer, folder)
    if profile.answer_stops:
        return load_end_ids(folder, len(tokenizer))
    end_of_prompt(tokenizer, profile)  # an unusable template is an error
    return end_ids(tokenizer, folder, end_of_turn(tokenizer, profile))


def sampling_of(folder: Path) -> dict[str, float | int]:
    """temperature, top_p and top_k of generation_config.json, as far as set; empty unless it has do_sample."""
    path = folder / "generation_config.json"
    settings = read_object(path) if path.is_file() else {}
    if not settings.get("do_sample"):
        return {}
    kinds: dict[str, tuple[type, ...]] = {"temperature": (int, float), "top_p": (int, float), "top_k": (int,)}
    return {name: settings[name] for name, kind in kinds.items() if type(settings.get(name)) in kind}


def find_token(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """The id of the single token that is this text; None if the text is several tokens or an unknown one."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) == text else None


@dataclass(frozen=True)
class Markers:
    """A profile's strings as ids of a tokenizer.

    Every string is encoded separately, and a chain is the concatenation of ids. start: appended to the template's
    prompt; empty if the template opens the thinking. reopening: thinking_start without its newline; in an answer it
    means that the model continues to think; empty if answers end at it.
    think_stops, answer_stops: single tokens that end a phase. think_texts, answer_texts: markers of several tokens that
    end a phase. ends: the think_stops that end the model's turn, not only its thinking. missing_closing: takes the ids
    with which a model wrote a marker of think_texts, and returns the remaining ids of the natural closing.
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
    answer_in_chain: bool = False
    think_texts: TextStops | None = None
    answer_texts: TextStops | None = None
    reopening_texts: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    missing_closing: Callable[[Sequence[int]], tuple[int, ...]] | None = None

    def closing(self, thinking: Sequence[int], natural: bool, written: Sequence[int] = ()) -> tuple[int, ...]:
        """The ids that close these thinking ids and start the answer. natural: whether the model ended its thinking.

        written: ids of the marker as the model wrote it, if it has several; they begin the closing.
        """
        if written:
            assert self.missing_closing is not None
            return (*written, *self.missing_closing(written))
        if natural:
            return self.natural_closing
        after_newline = bool(thinking) and self.ends_in_newline(thinking[-1])
        return self.forced_closing_after_newline if after_newline else self.forced_closing

    def refusal(self, thinking: Sequence[int]) -> tuple[int, ...]:
        """The ids that replace a suppressed stop after these thinking ids."""
        after_newline = bool(thinking) and self.ends_in_newline(thinking[-1])
        return self.wait_after_newline if after_newline else self.wait

    def ending_at(self, end_ids: Collection[int]) -> "Markers":
        """These markers, with end_ids as further ids that stop thinking and answer and that end the turn.

        vLLM, which the paper's experiments ran on, stops at the ids in a model's generation_config.json.
        """
        return replace(
            self,
            think_stops=self.think_stops.union(end_ids),
            answer_stops=self.answer_stops.union(end_ids),
            ends=self.ends.union(end_ids),
        )

    def reopens(self, written: Sequence[int]) -> bool:
        """Whether these ids, which ended an answer, contain a marker that opens thinking."""
        if not written or self.answer_texts is None:
            return False
        text = self.answer_texts.decode(list(written))
        return any(marker in text for marker in self.reopening_texts)

    @property
    def slack(self) -> int:
        """Number of ids requested beyond a budget, to see whether the thinking ends directly after it."""
        return 1 if self.think_texts is None else self.think_texts.slack

    @property
    def answer_slack(self) -> int:
        """Number of ids requested beyond the cap on an answer, to see whether it ends directly after it."""
        return 1 if self.answer_texts is None else self.answer_texts.slack

    @property
    def longest(self) -> int:
        """Maximum number of ids of start, closing and those requested beyond a budget."""
        return len(self.start) + max(map(len, self._closings)) + self.slack - 1

    @property
    def shortest_closing(self) -> int:
        """Minimum number of ids of a closing."""
        return min(map(len, self._closings))

    @property
    def _closings(self) -> tuple[tuple[int, ...], ...]:
        natural = () if self.answer_in_chain else (self.natural_closing,)
        return *natural, self.forced_closing, self.forced_closing_after_newline


def encode_markers(profile: Profile, tokenizer: "PreTrainedTokenizerBase", mode: Mode) -> Markers:
    """The profile's markers for this tokenizer. Raises PrunusError if a stop must be a single token and is not."""

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def split(texts: Sequence[str]) -> tuple[frozenset[int], tuple[str, ...]]:
        """The ids of the texts that are single tokens, and the other texts."""
        tokens = {text: None if profile.match == "text" else find_token(tokenizer, text) for text in texts}
        several = tuple(text for text, token in tokens.items() if token is None)
        if several and profile.match == "token":
            raise PrunusError(
                f"profile '{profile.name}' needs {several[0]} as a single token, which this model's tokenizer lacks:"
                " choose another --profile"
            )
        return frozenset(token for token in tokens.values() if token is not None), several

    banned = profile.answer_banned if mode == "strict" else ()
    think_stops, think_texts = split(profile.think_stops)
    answer_stops, answer_texts = split(profile.answer_stops)
    answer_banned, reopening_texts = split(banned)
    read = partial(decode, tokenizer)
    opening = profile.thinking_start.rstrip("\n")
    marker = profile.think_stops[0] if profile.think_stops else ""

    def missing_closing(written: Sequence[int]) -> tuple[int, ...]:
        after = read(list(written)).partition(marker)[2]
        wanted = profile.natural_closing.partition(marker)[2]
        return encode(wanted[len(after) :]) if wanted.startswith(after) else ()

    return Markers(
        start=() if profile.template_opens == "yes" else encode(profile.thinking_start),
        reopening=() if opening in reopening_texts else encode(opening),
        think_stops=think_stops,
        natural_closing=encode(profile.natural_closing),
        forced_closing=encode(profile.forced_break + profile.forced_closing),
        forced_closing_after_newline=encode(profile.forced_closing),
        wait=encode(profile.wait_break + profile.wait),
        wait_after_newline=encode(profile.wait),
        answer_stops=answer_stops,
        answer_banned=answer_banned,
        ends_in_newline=lambda token: read([token]).endswith("\n"),  # a text's last byte decides
        answer_in_chain=profile.answer_in_chain,
        think_texts=TextStops(think_texts, read) if think_texts else None,
        answer_texts=TextStops((*answer_texts, *reopening_texts), read) if answer_texts or reopening_texts else None,
        reopening_texts=reopening_texts,
        ends=think_stops & answer_stops,
        missing_closing=missing_closing,
    )


def encode_prompt(profile: Profile, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The ids of the chat template with text as the only user message, followed by the opened thinking."""
    [rendered] = render_prompts(profile, tokenizer, [text])
    return encode_opened(profile, tokenizer, rendered)


def render_prompts(profile: Profile, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[str]:
    """The chat template with each text as the only user message, up to the place where the model continues.

    For a profile with a prompt of its own, it is that prompt with a text as the problem, after the token that begins a
    text, if the tokenizer adds one.
    """
    if profile.prompt:
        begins = tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
        before = str(tokenizer.bos_token) if begins else ""
        return [f"{before}{profile.prompt.replace(PROBLEM, text)}" for text in texts]
    return render(tokenizer, profile, texts)


def encode_opened(profile: Profile, tokenizer: "PreTrainedTokenizerBase", rendered: str) -> list[int]:
    """The ids of a rendered prompt, followed by thinking_start unless the template opens the thinking.

    If thinking_start begins with an added token, prompt and thinking_start are encoded separately; otherwise as one
    text, since a tokenizer may merge them.
    """

    def encode(part: str) -> list[int]:
        return list(tokenizer.encode(part, add_special_tokens=False))

    start = profile.thinking_start
    if profile.template_opens == "yes" or not start:
        return encode(rendered)
    for opened in (start, start.rstrip("\n")):
        rendered = rendered.removesuffix(opened)
    first = encode(start)[0]
    if start.startswith(decode(tokenizer, [first])) and first in tokenizer.added_tokens_decoder:
        return encode(rendered) + encode(start)
    return encode(rendered + start)


def decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The text of ids as the model wrote it, including markers and all whitespace."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
