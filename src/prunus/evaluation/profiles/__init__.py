"""Profiles: the exact strings with which a model family's thinking is opened, cut and closed.

The strings are those of s1 (simplescaling/s1, 77272c6) and of the Qwen3 report and documentation; `qwen3-legacy` is
what the scripts of arXiv:2510.22228 and arXiv:2604.25098 do with Qwen3 models. `Markers` are the strings as token ids.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prunus import progress
from prunus.checkpoint.resolve import one_line
from prunus.errors import PrunusError
from prunus.recipes import Mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEGACY_ANSWER_TOKENS = 32_768


@dataclass(frozen=True)
class Profile:
    """How to talk to one family of models.

    thinking_start: appended to the chat template's generation prompt. think_stops, answer_stops: markers that end a
        phase; each must be a single token. natural_closing, forced_closing: what follows the thinking text when the
        model ended it, and when the budget did. forced_break, wait_break: put before forced_closing and wait unless the
        thinking text ends in a newline (an empty text does not). answer_lead: the end of forced_closing that belongs to
        the answer text. answer_banned: markers that the answer phase must not contain in strict mode. wait: what
        replaces a refused stop.
    answer_tokens, choice_answer_tokens: caps of the strict mode, for multiple choice the second.
    temperature, top_p, top_k: the defaults; temperature 0 is greedy, top_k 0 is off.
    """

    name: str
    thinking_start: str
    think_stops: tuple[str, ...]
    natural_closing: str
    forced_closing: str
    forced_break: str
    answer_stops: tuple[str, ...]
    answer_banned: tuple[str, ...]
    wait: str = "Wait"
    wait_break: str = ""
    answer_lead: str = ""
    answer_tokens: int = 1024
    choice_answer_tokens: int = 512
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    enable_thinking: bool | None = None  # passed to the chat template unless None

    def strings(self) -> dict[str, Any]:
        """Everything that shapes the text, for the stored plan."""
        numbers = {"name", "answer_tokens", "choice_answer_tokens", "temperature", "top_p", "top_k"}
        fields = {key: value for key, value in asdict(self).items() if key not in numbers}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    def answer_cap(self, kind: str, mode: Mode) -> int:
        """Answer tokens allowed for a problem of this answer kind (`choice` is multiple choice)."""
        if mode == "legacy":
            return LEGACY_ANSWER_TOKENS
        return self.choice_answer_tokens if kind == "choice" else self.answer_tokens

    def sampling(self, mode: Mode) -> tuple[float, float, int]:
        """Default temperature, top_p and top_k; legacy mode has the papers' 1, 1, off."""
        return (1.0, 1.0, 0) if mode == "legacy" else (self.temperature, self.top_p, self.top_k)


S1 = Profile(
    name="s1",
    thinking_start="<|im_start|>think",
    think_stops=("<|im_start|>", "<|im_end|>"),
    natural_closing="<|im_start|>answer",
    forced_closing="<|im_start|>answer\nFinal Answer:",
    forced_break="\n",
    answer_lead="Final Answer:",
    answer_stops=("<|im_end|>",),
    answer_banned=("<|im_start|>",),
)
QWEN3 = Profile(
    name="qwen3",
    thinking_start="<think>\n",
    think_stops=("</think>", "<|im_end|>"),
    natural_closing="</think>\n\n",
    forced_closing=(
        "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
        "\n</think>\n\n"
    ),
    forced_break="",
    answer_stops=("<|im_end|>", "<|endoftext|>"),
    answer_banned=("<think>", "<|im_start|>"),
    wait_break="\n\n",
    top_k=20,
    enable_thinking=True,
)
QWEN3_LEGACY = replace(
    S1,
    name="qwen3-legacy",
    answer_tokens=LEGACY_ANSWER_TOKENS,
    choice_answer_tokens=LEGACY_ANSWER_TOKENS,
    temperature=1.0,
    top_p=1.0,
    enable_thinking=True,
)
TINY = replace(
    QWEN3,
    name="tiny",
    forced_closing="</think>\n\n",
    forced_break="\n",
    answer_tokens=64,
    choice_answer_tokens=64,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    enable_thinking=None,
)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in (S1, QWEN3, QWEN3_LEGACY, TINY)}


def resolve_profile(
    name: str, tokenizer: "PreTrainedTokenizerBase", manifest: Mapping[str, Any], mode: Mode = "strict"
) -> Profile:
    """The profile of that name; `auto` takes the manifest's, else the one whose markers the tokenizer has.

    In mode legacy `auto` takes s1's markers for every model whose manifest names none, as the scripts of the papers do,
    and says so. PrunusError if there is no profile, or if the tokenizer has no chat template to make prompts with.
    """
    if not tokenizer.chat_template:
        raise PrunusError("the model's tokenizer has no chat template: add chat_template.jinja of the original model")
    if name == "auto":
        name = manifest.get("profile") or _profile_by_markers(tokenizer)
        if mode == "legacy" and "profile" not in manifest:
            name = _legacy_profile(name)
    if name not in PROFILES:
        raise PrunusError(f"profile '{name}' is not known; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _legacy_profile(usual: str) -> str:
    """What the papers' scripts come to for a model whose usual profile this is."""
    name = "s1" if usual == "s1" else "qwen3-legacy"
    other = "" if name == usual else f"; its own markers: --profile {usual}"
    progress.say(f"profile {name}: mode legacy takes s1's markers for every model, as the papers' scripts do{other}")
    return name


def _profile_by_markers(tokenizer: "PreTrainedTokenizerBase") -> str:
    for marker, name in (("<think>", "qwen3"), ("<|im_start|>", "s1")):
        if find_token(tokenizer, marker) is not None:
            return name
    raise PrunusError(
        "the tokenizer has neither <think> nor <|im_start|> as a token, so no profile fits: choose one with --profile"
    )


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
