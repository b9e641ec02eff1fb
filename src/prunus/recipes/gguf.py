"""What `gguf` is asked for."""

from dataclasses import dataclass
from typing import Literal

from prunus.recipes.base import CALIBRATED, Calibrated
from prunus.settings import setting

NONE = "none"  # calibration without which no input is more important than another
MIXTURES = ("q6_k", "q5_k_m", "q4_k_m", "iq4_xs")  # types whose rounding weighs inputs


@dataclass(frozen=True)
class GgufRecipe(Calibrated):
    """The form of a model in a GGUF file (docs/gguf.md)."""

    type: Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q4_0"] = setting(
        "f16",
        "Form of the blocks' Linears; of other tensors see docs/gguf.md.",
        asked=True,
    )
    like: str | None = setting(  # pyright: ignore[reportIncompatibleMethodOverride]  # it has no calibration to copy
        None,
        "A GGUF file of the dense model, to copy metadata and tokenizer from.",
        metavar="FILE",
    )
    calibration: str = setting(
        NONE,
        "q6_k to iq4_xs: as for prune; weights of larger inputs are rounded with more care.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weighs:  # as of a study, whose calibration is for all steps
            for name in CALIBRATED:
                object.__setattr__(self, name, getattr(type(self), name))

    @property
    def weighs(self) -> bool:
        """Whether some inputs are more important than others."""
        return self.type in MIXTURES and self.calibration != NONE
