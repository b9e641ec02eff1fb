"""How chains of thought are drawn, by evaluations and for traces."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from prunus import plugins
from prunus.recipes.base import Recipe
from prunus.settings import ENGINE, OPTIONS, SAMPLING, setting
from prunus.settings.engines import BACKENDS, NAMES, backend_of

Mode = Literal["strict", "legacy"]
Control = Literal["forced", "native"]
PromptStyle = Literal["bare", "boxed"]
_BUILT_IN = {path.stem: path for path in (Path(__file__).parent.parent / "evaluation" / "profiles").glob("*.toml")}
# {name: its file} of the profiles that are built in, and then of those of other packages.
PROFILE_FILES: Mapping[str, Path] = MappingProxyType(
    dict(sorted(_BUILT_IN.items()))
    | plugins.entries(plugins.PROFILES, lambda name, package, file: Path(file), [*_BUILT_IN, "auto"])
)
PROFILE_NAMES = ("auto", *PROFILE_FILES)
PROFILE_FILE = "prunus_profile.toml"  # in a model's folder: the profile that its maker ships with it


@dataclass(frozen=True, kw_only=True)
class Drawing(Recipe):
    """How chains of thought are drawn."""

    GROUP: ClassVar[str] = SAMPLING

    profile: str = setting(
        "auto",
        "Strings that open, cut and close thinking, of `prunus profiles` or a FILE.toml; auto: by the model's files.",
        metavar="NAME|FILE.toml",
    )
    temperature: float | None = setting(
        None, "0 is greedy; the default is the profile's.", at_least=0, note="0 is greedy"
    )
    prompt: PromptStyle = setting("bare", "boxed: also ask for a \\boxed{} answer.")
    limit: int | None = setting(
        None,
        "N problems of each task: a fixed sample of a built-in set, the first of a file.",
        at_least=1,
        group=OPTIONS,
    )
    seed: int = setting(0, "Seed of all sampling.")
    batch_size: int | None = setting(
        None,
        "Chains decoded and stored together; default: "
        + ", ".join(f"{entry.batch_size} on {name}" for name, entry in BACKENDS.items())
        + ".",
        at_least=1,
        group=ENGINE,
    )
    engine: str = setting("hf", "Who computes (docs/engines.md).", choices=NAMES, group=ENGINE)

    @property
    def backend(self) -> str:
        """The backend (a key of BACKENDS) that draws the chains."""
        return backend_of(self.engine)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data, with the backend in the place of the engine."""
        data = super().to_json()
        return {name: value for name, value in data.items() if name != "engine"} | {"backend": self.backend}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The settings that to_json described."""
        return super().from_json({"engine" if name == "backend" else name: value for name, value in data.items()})


NATIVE = "control native leaves the end of thinking to the engine: leave --wait and --closing out"
