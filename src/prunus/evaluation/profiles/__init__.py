"""Profiles: the exact strings with which a model family's thinking is opened, cut and closed, and how they are used.

A profile is one TOML file in this folder. `PROFILES` has all of them by name.
"""

from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.profiles.markers import (
    Markers,
    decode,
    encode_markers,
    encode_prompt,
    ends_in_newline,
    find_token,
)
from prunus.evaluation.profiles.profile import Profile
from prunus.evaluation.profiles.table import PROFILES

__all__ = [
    "PROFILES",
    "Markers",
    "Profile",
    "decode",
    "encode_markers",
    "encode_prompt",
    "ends_in_newline",
    "find_token",
    "resolve_profile",
]
