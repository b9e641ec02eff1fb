"""Recipe of `experts`."""

from dataclasses import dataclass

from prunus.errors import PrunusError
from prunus.recipes.base import KEEP, Calibrated, with_options
from prunus.recipes.declarations import Criterion, declared
from prunus.recipes.prune import DtypeName
from prunus.settings import Conflict, advanced, setting


@dataclass(frozen=True)
@with_options(declared(Criterion))
class ExpertsRecipe(Calibrated):
    """Which routed experts of a mixture of experts to remove. The seed is also that of method `random`."""

    method: str = setting(
        "reap",
        "How the experts to keep are chosen.",
        choices=tuple(declared(Criterion)),
    )
    keep: float | None = setting(
        None,
        f"Share of experts that each block keeps, in (0, 1); default: {KEEP:g}.",
        above=0,
        below=1,
        note="0.75 keeps three experts in four",
    )
    drop: int | None = setting(
        None,
        "Number of experts that it loses, instead.",
        at_least=1,
        conflicts=(Conflict("keep", None, "--keep and --drop both set the number of experts; give one of them"),),
    )
    dtype: DtypeName = advanced("auto", "Dtype in which blocks run; auto: the checkpoint's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options("method", declared(Criterion))
        if self.keep is None and self.drop is None:
            object.__setattr__(self, "keep", KEEP)

    def count(self, experts: int) -> int:
        """How many of `experts` are kept. Raises PrunusError where these are all of them, or none."""
        kept = experts - self.drop if self.drop is not None else int((self.keep or KEEP) * experts + 0.5)
        if not 0 < kept < experts:
            what = f"drop {self.drop}" if self.drop is not None else f"keep {self.keep}"
            raise PrunusError(
                f"{what} would keep {max(0, kept)} of {experts} experts; some must go, and some must stay"
            )
        return kept
