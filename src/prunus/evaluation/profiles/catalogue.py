"""The content of `prunus profiles`: the built-in profiles, and one profile fitted to a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES, Profile
from prunus.evaluation.profiles.control import control_of, switch_off
from prunus.evaluation.profiles.detection import named, resolve_profile
from prunus.evaluation.profiles.markers import decode, encode_markers, encode_prompt, ends_of_turn
from prunus.evaluation.requests import Sampling
from prunus.recipes.drawing import PROFILE_FOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLE = "2+2?"


def profiles() -> list[dict[str, str]]:
    """The built-in profiles, each with `name` and `description`, the model families to which it applies."""
    texts = {name: (PROFILE_FOLDER / f"{name}.toml").read_text("utf-8") for name in PROFILES}
    first = {name: text.partition("\n")[0] for name, text in texts.items()}  # a comment
    return [{"name": name, "description": line.removeprefix("#").strip()} for name, line in first.items()]


def show_profile(name: str = "auto", model: str | Path | None = None) -> dict[str, Any]:
    """The settings of a profile as a dict, and with a model (`tiny`, a folder or a hub id) also their token ids.

    name: a built-in profile, a .toml file, or `auto`, the profile that the model's files indicate. With a model,
    `prompt` is the rendered prompt of the problem "2+2?" with the opened thinking, and every marker and closing is a
    pair of its text and its token ids. `off` tells how the thinking is switched off (budget off); with a model,
    `off_prompt` is the prompt in which it is, or the reason why it cannot be. Raises PrunusError where no profile fits,
    as `evaluate` does.
    """
    if model is None and name == "auto":
        raise PrunusError("auto chooses a profile by a model's files: name the model with --model")
    if model is None:
        return _settings(named(name))
    folder = ModelFolder(resolve(model))
    tokenizer = load_tokenizer(folder.folder)
    profile = resolve_profile(name, tokenizer, folder.manifest, folder=folder.folder)
    return _settings(profile) | _under(profile, tokenizer, folder.folder)


def _settings(profile: Profile) -> dict[str, Any]:
    return {
        "profile": profile.name,
        **profile.strings(),
        **{name: getattr(profile, name) for name in ("answer_tokens", "choice_answer_tokens", *Sampling._fields)},
        "off": {"template": dict(profile.off_template), "block": profile.off_block},
        "native": control_of(profile).describe(),
    }


def _under(profile: Profile, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> dict[str, Any]:
    def pair(text: str) -> tuple[str, list[int]]:
        return text, list(tokenizer.encode(text, add_special_tokens=False))

    off: dict[str, Any]
    try:
        switch = switch_off(profile, tokenizer)
        off = {"off": switch.describe(), "off_prompt": pair(switch.render(tokenizer, [EXAMPLE])[0])}
    except PrunusError as error:
        off = {"off_prompt": str(error)}
    markers = encode_markers(profile, tokenizer, "strict")
    ends = sorted(ends_of_turn(profile, tokenizer, folder))
    return {
        "prompt": decode(tokenizer, encode_prompt(profile, tokenizer, EXAMPLE)),
        "think_stops": [pair(text) for text in profile.think_stops],
        "stops_are_text": list(markers.think_texts.texts) if markers.think_texts else [],
        "end_of_turn": [(decode(tokenizer, [token]), [token]) for token in ends],
        "natural_closing": pair(profile.natural_closing),
        "forced_closing": pair(profile.forced_break + profile.forced_closing),
        **off,
    }
