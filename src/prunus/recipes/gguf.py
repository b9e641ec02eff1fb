"""Recipe of `gguf`."""

from dataclasses import dataclass
from types import MappingProxyType

from prunus.recipes.base import CALIBRATED, Calibrated
from prunus.settings import setting

NONE = "none"  # no calibration: all inputs are equally important


@dataclass(frozen=True)
class FileType:
    """A type of GGUF files, by llama.cpp's name in lower case.

    bits: of most weights. usual: for a mixture of forms, ggml's name of the form of most tensors, whose rounding weighs
    inputs; None where all Linears have one form. better: the form of tensors with more bits; None where none have more.
    group: weights that share a scale; None where each has its own.
    """

    name: str
    bits: int
    usual: str | None = None
    better: str | None = None
    group: int | None = 32


FILE_TYPES = (
    FileType("f16", 16, group=None),
    FileType("q8_0", 8),
    FileType("q6_k", 6, "Q6_K", group=16),
    FileType("q5_k_m", 5, "Q5_K", "Q6_K"),
    FileType("q4_k_m", 4, "Q4_K", "Q6_K"),
    FileType("iq4_xs", 4, "IQ4_XS"),
    FileType("q4_0", 4),
)
BY_NAME = MappingProxyType({file_type.name: file_type for file_type in FILE_TYPES})
MIXTURES = tuple(file_type.name for file_type in FILE_TYPES if file_type.usual)


@dataclass(frozen=True)
class GgufRecipe(Calibrated):
    """The form of a model in a GGUF file (docs/gguf.md)."""

    type: str = setting(
        "f16",
        "Form of the blocks' Linears; of other tensors see docs/gguf.md.",
        choices=tuple(BY_NAME),
        required=True,
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
        if not self.weighs:  # a study gives its calibration to all steps
            for name in CALIBRATED:
                object.__setattr__(self, name, getattr(type(self), name))

    @property
    def file_type(self) -> FileType:
        """The FileType of the recipe's type."""
        return BY_NAME[self.type]

    @property
    def weighs(self) -> bool:
        """Whether calibration tells which inputs matter more when weights are rounded."""
        return self.file_type.usual is not None and self.calibration != NONE
