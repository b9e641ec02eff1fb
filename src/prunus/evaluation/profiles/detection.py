"""Choose a model's profile: the one requested, the one in its manifest, or the one that its tokenizer's markers fit."""

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

# For `auto`, in this order: a marker that must be a single token of the tokenizer, and the profile that it indicates.
PROFILE_MARKERS = (("<think>", "qwen3"), ("<|im_start|>", "s1"))


def resolve_profile(
    name: str, tokenizer: "PreTrainedTokenizerBase", manifest: Mapping[str, Any], mode: Mode = "strict"
) -> Profile:
    """The profile of that name; for `auto` the one in the manifest, else the one whose marker the tokenizer has.

    In mode legacy, `auto` takes s1's markers for every model whose manifest names no profile, as the papers' scripts
    do, and prints a message. Raises PrunusError if no profile fits or the tokenizer has no chat template for prompts.
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
    """The name of the profile that the papers' scripts use for a model. usual: name of the profile of its markers."""
    name = "s1" if usual == "s1" else "qwen3-legacy"
    other = "" if name == usual else f"; its own markers: --profile {usual}"
    progress.say(f"profile {name}: mode legacy takes s1's markers for every model, as the papers' scripts do{other}")
    return name


def _profile_by_markers(tokenizer: "PreTrainedTokenizerBase") -> str:
    for marker, name in PROFILE_MARKERS:
        if find_token(tokenizer, marker) is not None:
            return name
    raise PrunusError(
        "the tokenizer has neither <think> nor <|im_start|> as a token, so no profile fits: choose one with --profile"
    )
