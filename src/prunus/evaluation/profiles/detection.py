"""Which profile a model gets: the one that was asked for, that of its manifest, or the one that its tokenizer fits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunus import progress
from prunus.errors import PrunusError
from prunus.evaluation.profiles.markers import find_token
from prunus.evaluation.profiles.profile import Profile
from prunus.evaluation.profiles.table import PROFILES
from prunus.recipes import Mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What `auto` looks for in a tokenizer, in this order: a marker that is one token, and the profile that it speaks for.
EVIDENCE = (("<think>", "qwen3"), ("<|im_start|>", "s1"))


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
    for marker, name in EVIDENCE:
        if find_token(tokenizer, marker) is not None:
            return name
    raise PrunusError(
        "the tokenizer has neither <think> nor <|im_start|> as a token, so no profile fits: choose one with --profile"
    )
