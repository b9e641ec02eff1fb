"""The [[find]] tables of a study's file: searches by `prunus find` for the most compressed version of each model.

They are only described here. `prunus.finding`, which uses this package, carries them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.kinds import hints_of
from prunus.margins import MarginLike
from prunus.recipes import PruneRecipe

DEFAULT_LADDER = "0.1:0.7:0.05"
# Fields of PruneRecipe that a table may set for every rung of its ladders; these three follow from method and ladder.
OF_LADDER = ("method", "sparsity", "pattern")
OF_RECIPE = {name: hint for name, hint in hints_of(PruneRecipe).items() if name not in OF_LADDER}
REMOVED: Mapping[str, Any] = {**PruneRecipe.REMOVED, "as_given": False, "anyway": False}  # as those of a recipe
# The keys of a table but `recover`, and their types.
KINDS: Mapping[str, Any] = {
    "name": str,
    "method": str | tuple[str, ...],
    "ladder": str | tuple[float, ...],
    "margin": float | str,
    "stop_margin": float | str,
    "alpha": float,
    "max_tokens": int,
    "look": int,
    **OF_RECIPE,
}


@dataclass(frozen=True)
class FindTable:
    """One table. name: of the folder of its results. line: of the table.

    settings: fields of every PruneRecipe; shared: those of [calibration], which also hold for a ladder's file. The
    others are the arguments of `prunus.find`.
    """

    name: str
    line: int | None
    ladder: str
    methods: tuple[str, ...] | None
    settings: Mapping[str, Any]
    shared: Mapping[str, Any]
    recovery: Mapping[str, Any] | None
    margin: MarginLike
    stop_margin: MarginLike
    alpha: float = 0.05
    max_tokens: int | None = None
    look: int | None = None


@dataclass(frozen=True)
class SearchState:
    """How far a search has come, for the pages of the study and its results.

    model, plan: names. out: the folder of its results. page: its find.html; None until it is finished.
    found: name of the rung that was found; removed: the share of the weights that it removes. claims: sentences.
    runs: ids of the runs of its rungs. lines: what to expect, for a plan.
    """

    model: str
    plan: str
    name: str
    out: str
    state: str
    runs: frozenset[str] = frozenset()
    page: str | None = None
    found: str | None = None
    removed: float = 0.0
    claims: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The outcome in a sentence, such as `Search wanda: the checkpoint made by wanda-30 still solves ...`."""
        if self.state != FINISHED:
            return f"Search {self.name}: {self.state}."
        if self.found is None:
            return f"Search {self.name}: no rung was certified."
        return (
            f"Search {self.name}: the checkpoint made by {self.found} still solves and still stops; it removes"
            f" {100 * self.removed:.3g} % of the weights."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the runs."""
        data = {name: value for name, value in vars(self).items() if name != "runs"}
        return data | {"claims": list(self.claims), "lines": list(self.lines)}


FINISHED, BEGUN, WAITING = "finished", "not finished", "not begun"


def ladder_text(table: Mapping[str, Any]) -> str:
    """The ladder of a table as `prunus find --ladder` takes it; in a study it may also be a list of sparsities."""
    ladder = table.get("ladder", DEFAULT_LADDER)
    return ladder if isinstance(ladder, str) else ",".join(map(str, ladder))


def default_name(table: Mapping[str, Any]) -> str:
    """The name of a table that has none: that of its ladder's file, or of its methods."""
    if table["ladder"].endswith(".toml"):
        return Path(table["ladder"]).stem
    methods = table.get("method", "wanda")
    return methods if isinstance(methods, str) else "-".join(methods)
