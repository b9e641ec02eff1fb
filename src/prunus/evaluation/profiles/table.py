"""The built-in profiles by name."""

from prunus.evaluation.profiles.profile import Profile, read_profile
from prunus.recipes import PROFILE_FOLDER

PROFILES: dict[str, Profile] = {path.stem: read_profile(path) for path in sorted(PROFILE_FOLDER.glob("*.toml"))}
