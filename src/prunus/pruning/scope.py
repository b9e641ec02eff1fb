"""The Linears of a model that a recipe applies to."""

from collections.abc import Iterable

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.errors import PrunusError
from prunus.plain_data import Record


class Use(Record):
    """Whether a command can be used on a model.

    use: the command.
    possible: whether it can.
    note: why not; else details, such as how many experts there are.
    """

    use: str
    possible: bool
    note: str


def linears_in_scope(source: Checkpoint, scope: str = "all") -> list[list[Linear]]:
    """The Linears in a scope of `PruneRecipe`, by block and in the order of a forward pass.

    Raises PrunusError if there are none.
    """
    if reason := why_unprunable(source):
        raise PrunusError(f"{source.folder} ({source.config.model_type}): {reason}")
    linears = [[linear for linear in source.linears(index) if is_in(scope, linear)] for index in range(source.blocks)]
    if not any(linears):
        names = {"all": "Linear", "experts": "routed expert", "shared": "shared expert"}
        what = names.get(scope, f"Linear of its {scope}")
        raise PrunusError(
            f"{source.folder} ({source.config.model_type}) has no {what} that can be pruned; `prunus inspect` says why"
        )
    return linears


def is_in(scope: str, linear: Linear) -> bool:
    """Whether a Linear is in a recipe's scope. `mlp` has all experts; `shared` those that every token goes through."""
    if scope == "experts":
        return bool(linear.experts)
    if scope == "shared":
        return not linear.experts and linear.kind == "mlp" and "shared" in linear.name
    return scope in ("all", linear.kind)


def why_unprunable(source: Checkpoint) -> str | None:
    """Why no Linear of a model can be pruned with any recipe, in a line; None if some can."""
    if source.names.is_shared:
        return "blocks share weights, so they cannot be pruned one by one"
    others = (name for index in range(source.blocks) for name in source.left_dense(index))
    if half := next((name for name in others if "encoder_attn" in name or "crossattention" in name), None):
        return f"it belongs to an encoder-decoder model ({half}); only decoder-only models can be pruned"
    if not any(source.linears(index) for index in range(source.blocks)):
        return "its blocks have no Linear that can be pruned; `prunus inspect` says why of each matrix"
    return None


def weights_of(linears: Iterable[Linear]) -> int:
    """Total number of weights of the Linears."""
    return sum(linear.shape_OI[0] * linear.shape_OI[1] for linear in linears)
