"""Choose a model's profile, and fit it to the model's own chat template.

The profile is the requested one, the one in the manifest or in the model's folder, or the one that its tokenizer and
chat template indicate. Nothing is generated or downloaded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prunus import plugins, progress
from prunus.checkpoint.chat_template import template_of
from prunus.errors import PrunusError, nearest
from prunus.evaluation.profiles import PROFILES, Profile, read_profile, read_system
from prunus.evaluation.profiles.markers import QUESTION, end_of_prompt, find_token, render, sampling_of, source_of
from prunus.manifest import Manifest
from prunus.recipes.drawing import PROFILE_FILE, Mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Options of chat templates that turn thinking on, in the order in which they are tried.
SWITCHES: tuple[tuple[str, Any], ...] = (
    ("enable_thinking", True),
    ("thinking", True),
    ("thinking_mode", "on"),
    ("reasoning_effort", "high"),
)
HINTS = ("reasoning_content", "reasoning_effort", "enable_thinking")  # of thinking, in a template
OPEN_TAG = re.compile(r"<([a-z_:]*(?:think|thought|reason)[a-z_:]*)>\s*\Z")
LEGACY_SAMPLING: dict[str, float] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}  # of the papers
# Profiles whose markers are special tokens that only their family has, these tokens, and the reason for the choice.
SPECIAL: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "harmony",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
        "the tokenizer has harmony's tokens and the template its analysis channel",
    ),
    ("gemma-channel", ("<|channel>", "<channel|>"), "the tokenizer has <|channel> and <channel|>"),
    ("brackets", ("[THINK]", "[/THINK]"), "the tokenizer has [THINK] and [/THINK]"),
    ("seed", ("<seed:think>",), "the tokenizer has <seed:think>"),
)
S1_NAME = re.compile(r"(^|[/_-])s1(\.1)?-[0-9]")
THINKER_NAME = re.compile(r"r1|think|reason|qwq", re.IGNORECASE)


@dataclass(frozen=True)
class DetectedProfile:
    """A profile and the reason for its choice. warning: about a possible error of the choice, if there is any."""

    profile: Profile
    why: str
    warning: str = ""


def resolve_profile(
    name: str,
    tokenizer: "PreTrainedTokenizerBase",
    manifest: Manifest,
    mode: Mode = "strict",
    folder: Path | None = None,
    given: Mapping[str, float | None] = MappingProxyType({}),
) -> Profile:
    """The profile of that name, fitted to the model's chat template and sampling defaults.

    given: temperature, top_p and top_k that take the place of the profile's, or, in mode legacy, of the papers'.

    name: a built-in profile, a .toml file, or `auto`: the profile of the manifest, else the file prunus_profile.toml in
    the model's folder, else what tokenizer and chat template indicate, which is printed with the reason. In
    mode legacy, `auto` takes s1's markers for every model whose manifest names no profile, as the papers' scripts do,
    and prints a message. Raises PrunusError if there is no such profile, if the tokenizer has no chat template for
    prompts, or if the template closes the thinking and none of its options opens it.
    """
    sampling = LEGACY_SAMPLING if mode == "legacy" else {}
    sampling = sampling | {name: value for name, value in given.items() if value is not None}

    def fitted(profile: Profile) -> Profile:
        return replace(fit(profile, tokenizer, folder), **sampling)

    if name == "auto" and manifest.profile is not None:
        name = manifest.profile
    if name != "auto":
        return fitted(profile_named(name))
    if mode == "legacy":
        return fitted(PROFILES[_legacy_profile(tokenizer)])
    choice = detect_profile(tokenizer, manifest, folder)
    profile = fitted(choice.profile)
    progress.say(f"profile {profile.name}: {choice.why}{_opening(profile)}")
    if choice.warning:
        progress.say(f"warning: {choice.warning}")
    return profile


def profile_named(name: str) -> Profile:
    """The profile of that name, or that of a .toml file."""
    if name.endswith(".toml"):
        return read_profile(Path(name))
    plugins.check(plugins.PROFILES, name)
    if name not in PROFILES:
        raise PrunusError(f"profile '{name}' is not known; {nearest(name, [*PROFILES, 'FILE.toml'])}")
    return PROFILES[name]


def detect_profile(tokenizer: "PreTrainedTokenizerBase", manifest: Manifest, folder: Path | None) -> DetectedProfile:
    """The profile that a model's files indicate."""
    if folder is not None and (folder / PROFILE_FILE).is_file():
        return DetectedProfile(read_profile(folder / PROFILE_FILE), f"by {PROFILE_FILE} of the model's folder")
    if (source := template_of(tokenizer)) is None:
        return _without_template(tokenizer, _names(manifest, folder))
    tail = end_of_prompt(tokenizer, PROFILES["plain"])
    special = [
        DetectedProfile(PROFILES[name], why)
        for name, tokens, why in SPECIAL
        if all(find_token(tokenizer, text) is not None for text in tokens)
        and (name != "harmony" or "<|channel|>analysis" in source)
    ]
    if len(special) > 1:
        raise PrunusError(
            f"the model's files indicate several profiles ({', '.join(rule.profile.name for rule in special)}):"
            " choose one with --profile"
        )
    names = _names(manifest, folder)
    return special[0] if special else _by_tags(tokenizer, source, tail) or _by_words(tokenizer, source, names)


def _without_template(tokenizer: "PreTrainedTokenizerBase", names: list[str]) -> DetectedProfile:
    """The profile of base models, with a warning if the model may be a reasoning model whose template is missing."""
    thinks = find_token(tokenizer, "<think>") is not None or any(THINKER_NAME.search(name) for name in names)
    warning = "the model may be one that thinks, without its chat_template.jinja: add that of the original model"
    why = "the tokenizer has no chat template, as those of base models, so the prompt is a few solved problems"
    return DetectedProfile(PROFILES["base"], why, warning if thinks else "")


def _by_tags(tokenizer: "PreTrainedTokenizerBase", source: str, tail: str) -> DetectedProfile | None:
    """A profile with the thinking tag that the template writes or removes; None if it has no such tag."""
    text, opened = source + tail, OPEN_TAG.search(tail)
    name = opened[1] if opened else next((tag for tag in ("think", "thought") if f"{tag}>" in text), None)
    if name is None:
        return None
    tokens = all(find_token(tokenizer, tag) is not None for tag in (f"<{name}>", f"</{name}>"))
    if not tokens and not opened and not (f"<{name}>" in text or f"</{name}>" in text):
        return None
    qwen3 = PROFILES["qwen3"]
    needed = (*qwen3.think_stops, *qwen3.answer_stops, *qwen3.answer_banned)
    if name == "think" and all(find_token(tokenizer, text) is not None for text in needed):
        profile = qwen3
    else:
        profile = with_tag(PROFILES["think-tags"], name)
    how = "tokens" if tokens else "text"
    warning = ""
    if not opened and not any(mentions(source, key) for key, _ in SWITCHES):
        warning = (
            f"the template only removes <{name}> from earlier turns, so this model may not think; if it does not, use"
            " --profile plain"
        )
    return DetectedProfile(profile, f"the chat template has <{name}>, markers are {how}", warning)


def _by_words(tokenizer: "PreTrainedTokenizerBase", source: str, names: list[str]) -> DetectedProfile:
    """The profile indicated by words in the template or by the model's name; plain if nothing indicates thinking."""
    if "Here is my thought process" in source:
        return DetectedProfile(PROFILES["granite"], "the template has 'Here is my thought process'")
    by_name = next((name for name in names if S1_NAME.search(name)), None)
    if by_name and find_token(tokenizer, "<|im_start|>") is not None:
        return DetectedProfile(PROFILES["s1"], f"by its name, {by_name}")
    warning = ""
    if find_token(tokenizer, "<think>") is not None:
        warning = "the tokenizer has <think>, which the chat template never uses; to think: --profile think-tags"
    elif thinker := next((name for name in names if THINKER_NAME.search(name)), None):
        warning = (
            f"the name '{thinker}' suggests a thinking model, but its template has no markers; see prunus profiles"
        )
    elif hint := next((word for word in HINTS if mentions(source, word)), None):
        warning = f"the template has {hint}, so the model may think, with markers that no built-in profile has"
    return DetectedProfile(
        PROFILES["plain"], "the template has no thinking markers, so the answer turn is the chain", warning
    )


def with_tag(profile: Profile, name: str) -> Profile:
    """The profile think-tags with the tag `name` instead of `think`."""

    def renamed(text: str) -> str:
        return text.replace("<think>", f"<{name}>").replace("</think>", f"</{name}>")

    texts = ("thinking_start", "natural_closing", "forced_closing", "off_block")
    changed = {field: renamed(getattr(profile, field)) for field in texts}
    lists = {field: tuple(map(renamed, getattr(profile, field))) for field in ("think_stops", "answer_banned")}
    return replace(profile, **changed, **lists)


def fit(profile: Profile, tokenizer: "PreTrainedTokenizerBase", folder: Path | None) -> Profile:
    """The profile with the system prompt, sampling defaults and template options that a model's files determine.

    Raises PrunusError if there is no template and the profile has no prompt of its own, or if the template closes the
    thinking and none of its options opens it.
    """
    if not profile.prompt:
        source_of(tokenizer)
    if folder is not None and profile.model_system_file and (folder / profile.model_system_file).is_file():
        profile = replace(profile, system=read_system(folder / profile.model_system_file))
        progress.say(f"the system prompt is {profile.model_system_file} of the model's folder")
    if folder is not None and profile.sampling_from_model:
        profile = replace(profile, **sampling_of(folder))
    if not profile.thinking_start or any(stop in profile.thinking_start for stop in profile.think_stops):
        return profile  # nothing opens the thinking, or the marker opens every turn (s1)
    tail = end_of_prompt(tokenizer, profile)
    if state_of(tail, profile) != "opened":
        profile, tail = _switched_on(profile, tokenizer, tail)
    opened = state_of(tail, profile) == "opened"
    if profile.template_opens != "auto" and opened != (profile.template_opens == "yes"):
        raise PrunusError(
            f"profile '{profile.name}' says template_opens = \"{profile.template_opens}\", but the model's chat"
            f" template {'opens' if opened else 'does not open'} the thinking"
        )
    if opened and not tail.endswith(profile.thinking_start):
        return replace(profile, template_opens="yes")
    return replace(profile, template_opens="auto")  # thinking_start is appended, or replaced by itself


def state_of(tail: str, profile: Profile) -> str:
    """The state of the thinking at the end of a prompt: `opened`, `closed` or `absent`."""
    start, stop = profile.thinking_start.strip(), profile.think_stops[0]
    started, ended = tail.rfind(start) if start else -1, tail.rfind(stop)
    if ended > started:
        return "closed"
    return "opened" if started >= 0 else "absent"


def _switched_on(profile: Profile, tokenizer: "PreTrainedTokenizerBase", tail: str) -> tuple[Profile, str]:
    """The profile with the first template option that turns the thinking on, and the end of a prompt with that option.

    tail: the end of a prompt without it. An option is taken if it changes the prompt and the thinking is then not
    closed; it may only add an instruction to think. `reasoning_effort` is tried only if tail closes the thinking.
    Without such an option the profile is returned as it is, or PrunusError is raised if tail closes the thinking.
    """
    given, source, closed = profile.template_options(), source_of(tokenizer), state_of(tail, profile) == "closed"
    switches = SWITCHES if closed else SWITCHES[:-1]
    tried = [(key, value) for key, value in switches if mentions(source, key) and key not in given]
    usual = render(tokenizer, profile, [QUESTION])
    for key, value in tried:
        switched = replace(profile, template={**profile.template, key: value})
        try:
            end = end_of_prompt(tokenizer, switched)
        except PrunusError:
            continue
        changed = render(tokenizer, switched, [QUESTION]) != usual
        if changed and state_of(end, profile) != "closed":
            return switched, end
    if not closed:
        return profile, tail
    options = f" (tried {', '.join(key for key, _ in tried)})" if tried else ""
    raise PrunusError(
        f"the model's chat template ends a prompt with closed thinking, and no option of it opens it{options}:"
        " name one in [template] of a --profile FILE.toml, or use --profile plain"
    )


def mentions(source: str, name: str) -> bool:
    """Whether a template has this word."""
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def _opening(profile: Profile) -> str:
    """The end of the message that names the chosen profile: how it was fitted to the model, and its sampling."""
    opened = ", which opens the thinking itself" if profile.template_opens == "yes" else ""
    options = ", ".join(f"{key}={value}" for key, value in profile.template.items())
    shown = f"temperature {profile.temperature:g}, top_p {profile.top_p:g}, top_k {profile.top_k:g}"
    sampling = f"; {shown if profile.temperature else 'temperature 0 (greedy)'}"
    return f"{opened}{f'; template options {options}' if options else ''}{sampling}"


def _names(manifest: Manifest, folder: Path | None) -> list[str]:
    """Names of a model: its folder, its hub id, and the name of the model that it was pruned from."""
    names = [step.source.name for step in manifest.history[:1]]
    if folder is not None:
        hub = [part.removeprefix("models--").replace("--", "/") for part in folder.parts if part.startswith("models--")]
        names += [*hub, folder.name]
    return names


def _legacy_profile(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The name of the profile that the papers' scripts use for a model."""
    own = {"<think>": "qwen3", "<|im_start|>": "s1"}
    usual = next((name for marker, name in own.items() if find_token(tokenizer, marker) is not None), None)
    if usual is None:
        raise PrunusError(
            "the tokenizer has neither <think> nor <|im_start|> as a token, so mode legacy cannot be used:"
            " choose a --profile"
        )
    name = "s1" if usual == "s1" else "qwen3-legacy"
    other = "" if name == usual else f"; its own markers: --profile {usual}"
    progress.say(f"profile {name}: mode legacy takes s1's markers for every model, as the papers' scripts do{other}")
    return name
