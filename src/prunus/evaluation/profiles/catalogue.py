"""The content of `prunus profiles`: the built-in profiles, and one profile fitted to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES, Profile
from prunus.evaluation.profiles.control import control_of, switch_off
from prunus.evaluation.profiles.detection import profile_named, resolve_profile
from prunus.evaluation.profiles.markers import decode, encode_markers, encode_prompt, ends_of_turn
from prunus.evaluation.requests import Sampling
from prunus.plain_data import Listing, Record
from prunus.recipes.drawing import PROFILE_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLE = "2+2?"


class ProfileEntry(Record):
    """A built-in profile.

    name: of the profile.
    description: the model families to which it applies.
    """

    name: str
    description: str


Marker = tuple[str, Sequence[int]]  # a text and its token ids


class ProfileUnderModel(Record):
    """A profile with the token ids that a model's tokenizer gives.

    prompt: the rendered prompt of the problem "2+2?" with the opened thinking.
    think_stops: texts that end the thinking.
    stops_are_text: the think_stops that are searched in the text, since they are not single tokens of the tokenizer.
    end_of_turn: tokens that end the answer.
    natural_closing, forced_closing: what is put after a thinking that ended itself, and after a thinking that was cut.
    off: how the thinking is switched off; None where it cannot be.
    off_prompt: the prompt in which it is switched off, or the reason why it cannot be.
    """

    prompt: str
    think_stops: Sequence[Marker]
    stops_are_text: Sequence[str]
    end_of_turn: Sequence[Marker]
    natural_closing: Marker
    forced_closing: Marker
    off: Mapping[str, Any] | None = None
    off_prompt: Marker | str


class ShownProfile(Record):
    """The settings of a profile, and with a model also their token ids.

    profile: its name.
    settings: its texts, numbers of tokens for answers, and sampling.
    off: how the thinking is switched off (budget off).
    native: how a model's own control of its thinking is used.
    under: the profile as fitted to a model; None without a model.
    """

    profile: str
    settings: Mapping[str, Any]
    off: Mapping[str, Any]
    native: Mapping[str, Any]
    under: ProfileUnderModel | None = None

    def to_json(self) -> dict[str, Any]:
        """All settings in one mapping; those fitted to a model replace the profile's own."""
        under = {name: value for name, value in vars(self.under).items() if value is not None} if self.under else {}
        return {"profile": self.profile, **self.settings, "off": self.off, "native": self.native, **under}

    def __repr__(self) -> str:
        shown = self.to_json()
        width = max(map(len, shown))
        return "\n".join(f"{key:<{width}}  {value!r}" for key, value in shown.items())


def profiles() -> Listing[ProfileEntry]:
    """The profiles that are built in, and then those of other packages.

        print([profile.name for profile in prunus.profiles()])

    The names are those that `EvalPlan(profile=...)` takes.
    """
    texts = {name: PROFILE_FILES[name].read_text("utf-8") for name in PROFILES}
    first = {name: text.partition("\n")[0] for name, text in texts.items()}  # a comment
    return Listing(ProfileEntry(name=name, description=line.removeprefix("#").strip()) for name, line in first.items())


def show_profile(name: str = "auto", model: str | Path | None = None) -> ShownProfile:
    """The settings of a profile, and with a model also their token ids.

        print(prunus.show_profile(model="tiny").settings["think_stops"])

    name: a built-in profile, a .toml file, or `auto`, the profile that the model's files indicate.
    model: a folder, a hub id or `tiny`.

    Raises PrunusError where no profile fits, as `evaluate` does.
    """
    if model is None and name == "auto":
        raise PrunusError("auto chooses a profile by a model's files: name the model with --model")
    if model is None:
        return _settings(profile_named(name))
    folder = ModelFolder(resolve(model))
    tokenizer = load_tokenizer(folder.folder)
    profile = resolve_profile(name, tokenizer, folder.manifest, folder=folder.folder)
    return replace(_settings(profile), under=_under(profile, tokenizer, folder.folder))


def _settings(profile: Profile) -> ShownProfile:
    numbers = {name: getattr(profile, name) for name in ("answer_tokens", "choice_answer_tokens", *Sampling._fields)}
    return ShownProfile(
        profile=profile.name,
        settings={**profile.strings(), **numbers},
        off={"template": dict(profile.off_template), "block": profile.off_block},
        native=control_of(profile).describe(),
    )


def _under(profile: Profile, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> ProfileUnderModel:
    def pair(text: str) -> Marker:
        return text, list(tokenizer.encode(text, add_special_tokens=False))

    try:
        switch = switch_off(profile, tokenizer)
        off, off_prompt = switch.describe(), pair(switch.render(tokenizer, [EXAMPLE])[0])
    except PrunusError as error:
        off, off_prompt = None, str(error)
    markers = encode_markers(profile, tokenizer, "strict")
    ends = sorted(ends_of_turn(profile, tokenizer, folder))
    return ProfileUnderModel(
        prompt=decode(tokenizer, encode_prompt(profile, tokenizer, EXAMPLE)),
        think_stops=[pair(text) for text in profile.think_stops],
        stops_are_text=list(markers.think_texts.texts) if markers.think_texts else [],
        end_of_turn=[(decode(tokenizer, [token]), [token]) for token in ends],
        natural_closing=pair(profile.natural_closing),
        forced_closing=pair(profile.forced_break + profile.forced_closing),
        off=off,
        off_prompt=off_prompt,
    )
