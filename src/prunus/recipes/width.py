"""Recipe of `width`."""

from dataclasses import dataclass
from typing import Literal

from prunus.errors import PrunusError
from prunus.recipes.base import KEEP, Calibrated
from prunus.recipes.recover import Target
from prunus.settings import Conflict, advanced, setting

MULTIPLE = 128  # new widths are multiples of it, or of an eighth of the old width where that is less


@dataclass(frozen=True)
class WidthRecipe(Calibrated):
    """Which channels of feed-forward networks to remove (docs/width.md). The seed is also that of method `random`."""

    method: Literal["obs", "wanda", "flap", "magnitude", "random"] = setting(
        "obs",
        "How channels are chosen (docs/width.md).",
    )
    keep: float | None = setting(
        None,
        f"Share of channels that each network keeps, in (0, 1); default: {KEEP:g}.",
        above=0,
        below=1,
        note="0.75 keeps three channels in four",
    )
    intermediate_size: int | None = setting(
        None,
        "Number of channels that it keeps, instead.",
        at_least=1,
        conflicts=(
            Conflict("keep", None, "--keep and --intermediate-size both set the number of channels; give one of them"),
            Conflict("multiple", None, "intermediate_size is the number of channels itself; leave multiple out"),
        ),
    )
    multiple: int | None = advanced(
        None, f"Round --keep to a multiple of it; default: {MULTIPLE}, or an eighth of a smaller width.", at_least=1
    )
    of: Literal["mlp", "experts", "shared"] | None = setting(
        None, "Networks to narrow; default: experts of a mixture, else mlp."
    )
    target: Target = setting(
        "dense",
        "Fit to the dense model's blocks, or to what the network gave before (where a norm or gate follows: own).",
    )
    fit: bool = setting(True, "Fit the last Linear to the kept channels, by least squares.")
    damping: float | None = advanced(
        None,
        "Weight of the old weights in the fit, as a share of the mean squared input; default: what errs least on"
        " held-out sequences.",
        above=0,
        conflicts=(Conflict("fit", False, "damping is that of the fit; leave it out with fit off"),),
    )
    tensor_parallel: int | None = advanced(None, "GPUs that will share each network; warns if they cannot.", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is None and self.intermediate_size is None:
            object.__setattr__(self, "keep", KEEP)

    @property
    def needs_data(self) -> bool:
        """Whether it looks at the inputs of the networks' last Linears."""
        return self.fit or self.method in ("obs", "wanda", "flap")

    def count(self, channels: int) -> int:
        """How many of `channels` are kept. Raises PrunusError where these are all of them, or none."""
        if self.intermediate_size is not None:
            kept, what = self.intermediate_size, f"intermediate_size {self.intermediate_size}"
        else:
            multiple = self.multiple or min(MULTIPLE, max(1, channels // 8))
            kept = int((self.keep or KEEP) * channels / multiple + 0.5) * multiple
            what = f"keep {self.keep} in multiples of {multiple}"
        if not 0 < kept < channels:
            raise PrunusError(
                f"{what} would keep {kept} of {channels} channels; some must go, and some must stay"
                + ("" if self.keep is None else ": give another --keep or --multiple")
            )
        return kept
