"""Recipe of `prune`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

from prunus import plugins
from prunus.errors import PrunusError
from prunus.recipes.base import DECLARED, Calibrated, with_options
from prunus.recipes.declarations import Allocation, Group, Method, declared
from prunus.settings import Conflict, advanced, setting

Scope = Literal["all", "attention", "mlp", "experts", "shared"]
Propagation = Literal["pruned", "dense", "true_sequential"]
Rounding = Literal["exact", "reference"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DEFAULT_SPARSITY = 0.2  # which a pattern replaces by its own
WIDEST_PATTERN = 256
# Methods that rank weights by scores, and the weights that each ranks together unless the recipe says otherwise.
OWN_GROUP: Mapping[str, Group] = MappingProxyType(
    {name: method.group for name, method in declared(Method).items() if method.ranks}
)


@dataclass(frozen=True)
# pyright checks files in an order of its own, and in some orders takes the decorator to refer to itself.
@with_options(declared(Method), declared(Allocation))  # pyright: ignore[reportGeneralTypeIssues]
class PruneRecipe(Calibrated):
    """How to zero weights."""

    method: str = setting(
        "wanda",
        "How weights are chosen.",
        choices=tuple(declared(Method)),
    )
    sparsity: float = setting(
        DEFAULT_SPARSITY,
        "Share of zeros in the Linears in scope, in [0, 1).",
        at_least=0,
        below=1,
        note="0.2 removes one weight in five",
    )
    pattern: str | None = setting(
        None,
        "Keep N of every M consecutive inputs, instead of --sparsity.",
        metavar="N:M",
        conflicts=(
            Conflict(
                "allocation",
                None,
                "pattern {pattern} gives all blocks the same sparsity; allocation must be uniform",
            ),
        ),
    )
    scope: Scope = setting(
        "all",
        "Linears to prune; mlp includes experts; shared: experts for every token.",
    )
    group: Group | None = advanced(
        None,
        "Weights that are ranked together; default: the method's own.",
        conflicts=(
            Conflict("pattern", None, "pattern {pattern} says which weights are ranked together; leave group out"),
        ),
    )
    propagation: Propagation = advanced(
        "pruned",
        "Inputs on which a Linear is calibrated: those from pruned earlier blocks, of the dense model, or from all"
        " pruned earlier Linears, as in SparseGPT's code.",
    )
    update: Literal["none", "obs"] = advanced("none", "obs: SparseGPT's update of kept weights.")
    allocation: str = setting(
        "uniform",
        "How blocks share the sparsity.",
        choices=tuple(declared(Allocation)),
    )
    step: float | None = DECLARED
    spread: float | None = DECLARED
    outlier_threshold: float = DECLARED
    influence_train: int = DECLARED
    influence_validation: int = DECLARED
    scores: str | None = advanced(None, "File of `prunus allocate --save`, or your own, instead of measuring.")
    rounding: Rounding = advanced(
        "exact", "How zeros are counted: exactly, with ties by index, or as in the authors' code."
    )
    dtype: DtypeName = advanced("auto", "Dtype in which blocks run; auto: the checkpoint's.")

    def __post_init__(self) -> None:
        plugins.check(plugins.METHODS, self.method)
        super().__post_init__()
        if self.groups is not None:
            implied = 1 - self.groups[0] / self.groups[1]
            if self.sparsity not in (DEFAULT_SPARSITY, implied):
                raise PrunusError(f"pattern {self.pattern} is a sparsity of {implied:g} already; leave sparsity out")
            object.__setattr__(self, "sparsity", implied)
        if self.group is not None and self.method not in OWN_GROUP:
            raise PrunusError(f"group belongs to method {' or '.join(OWN_GROUP)}, not to {self.method}")
        if self.scores is not None and declared(Allocation)[self.allocation].needs == "nothing":
            raise PrunusError(f"allocation {self.allocation} uses no scores; leave --scores out")
        self.check_options("allocation", declared(Allocation))
        self.check_options("method", declared(Method))

    def to_json(self) -> dict[str, Any]:
        """Stored: the settings as plain data, with the package and version of a method that is not Prunus's own."""
        package = plugins.origin(plugins.METHODS, self.method)
        return super().to_json() | ({} if package is None else {"package": package})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The recipe that to_json described. Raises PrunusError where the method's package has another version."""
        settings = {name: value for name, value in data.items() if name != "package"}
        made, stated = super().from_json(settings), data.get("package")
        if stated is not None and stated != (here := plugins.origin(plugins.METHODS, made.method)):
            raise PrunusError(f"method {made.method} was that of {stated}, and here it is that of {here or 'Prunus'}")
        return made

    @property
    def groups(self) -> tuple[int, int] | None:
        """The pattern N:M as (N, M): keep N of every M. None without a pattern."""
        if self.pattern is None:
            return None
        keep, _, width = self.pattern.partition(":")
        if not (keep.isdecimal() and width.isdecimal() and 0 < int(keep) < int(width) <= WIDEST_PATTERN):
            raise PrunusError(
                f"pattern '{self.pattern}' is not N:M with 0 < N < M <= {WIDEST_PATTERN}, such as 2:4, "
                "which keeps 2 of 4"
            )
        return int(keep), int(width)

    @property
    def measured(self) -> str:
        """What the allocation's scores are measured from; `nothing` if it has none, or the recipe holds them."""
        return declared(Allocation)[self.allocation].needs if self.scores is None else "nothing"
