"""Profiles: the exact strings that open, cut and close the thinking of a model family.

A profile is one TOML file in this folder; `PROFILES` has all of them by name. profile.py reads them, detection.py
chooses one for a model by its chat template (template.py), and markers.py encodes its strings with the model's
tokenizer. off.py switches the thinking off, and native.py is for budgets that the engine or the model keeps itself.
catalogue.py describes profiles for `prunus profiles`.
"""

from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.profiles.markers import (
    Markers,
    decode,
    encode_markers,
    encode_opened,
    encode_prompt,
    ends_in_newline,
    find_token,
    render_prompts,
)
from prunus.evaluation.profiles.native import NativeControl, native_control
from prunus.evaluation.profiles.off import Switch, switch_off
from prunus.evaluation.profiles.profile import PROFILES, Profile

__all__ = [
    "PROFILES",
    "Markers",
    "NativeControl",
    "Profile",
    "Switch",
    "decode",
    "encode_markers",
    "encode_opened",
    "encode_prompt",
    "ends_in_newline",
    "find_token",
    "native_control",
    "render_prompts",
    "resolve_profile",
    "switch_off",
]
