"""Recipe of `quantize`."""

from dataclasses import dataclass
from typing import Literal

from prunus.errors import PrunusError
from prunus.recipes.base import Calibrated
from prunus.recipes.prune import DtypeName
from prunus.settings import Conflict, advanced, setting

GROUPS = (128, 64, 32)  # sizes of groups of weights that share a scale


@dataclass(frozen=True)
class QuantizeRecipe(Calibrated):
    """In how many bits the weights of Linears are stored (docs/quantize.md)."""

    bits: int = setting(8, "8, with activations in 8 bits (W8A8), or 4 (W4A16).")
    activations: int | None = advanced(None, "Bits of activations: 8 where weights have 8, 16 where they have 4.")
    group: Literal["128", "64", "32", "row"] | None = setting(
        None,
        "Most inputs that share a scale; default: 128, with 8 bits a row.",
    )
    method: Literal["gptq", "rtn"] = setting(
        "gptq", "gptq: later weights make up for each error; rtn: round to nearest, much faster."
    )
    dtype: DtypeName = advanced("auto", "Dtype in which blocks run; auto: the checkpoint's.")
    recover: bool = setting(
        False,
        "With 4 bits: then train the scales and norms of each block.",
        conflicts=(
            Conflict("bits", 8, "8 bits cost nothing that training would mend: give bits 4, or leave recover out"),
            Conflict("method", "rtn", "method rtn looks at no tokens, on which recover trains: leave one of them out"),
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (8, 4):
            raise PrunusError(f"bits must be 8 or 4, not {self.bits}: engines load no other format that Prunus writes")
        activations = 8 if self.bits == 8 else 16
        if self.activations not in (None, activations):
            raise PrunusError(
                f"there is no format with weights of {self.bits} bits and activations of {self.activations}: give"
                " --bits 8 --activations 8, or --bits 4 --activations 16"
            )
        if self.bits == 8 and self.group not in (None, "row"):
            raise PrunusError("with 8 bits each row has one scale: leave group out")
        object.__setattr__(self, "activations", activations)
        object.__setattr__(self, "group", self.group or ("row" if self.bits == 8 else "128"))

    @property
    def needs_data(self) -> bool:
        """Whether it looks at the inputs of Linears."""
        return self.method == "gptq"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of groups to try, the largest first; none where a row has one scale."""
        return () if self.group == "row" else tuple(size for size in GROUPS if size <= int(str(self.group)))
