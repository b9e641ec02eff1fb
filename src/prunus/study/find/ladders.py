"""Ladders: the recipes that are tried, in the declared order from gentle to harsh."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.recipe_base import Recipe
from prunus.recipes import PruneRecipe, RecoverRecipe
from prunus.step import kind_of
from prunus.study.file import Entry, read_entries

MOST_RUNGS = 1000


@dataclass(frozen=True)
class Ladder:
    """The rungs of one method, or of a file. name: of the method or file."""

    name: str
    entries: tuple[Entry, ...]


def ladders_of(
    ladder: str | Path | Sequence[Recipe | Sequence[Recipe]],
    methods: Sequence[str] | None,
    settings: Mapping[str, Any],
    recovery: Mapping[str, Any] | None,
    shared: Mapping[str, Any] | None = None,
) -> list[Ladder]:
    """The ladders that a user asks for: one for each method, or one of a file or of a list of recipes.

    ladder: sparsities (`0.1:0.7:0.05` or `0.2,0.4,0.5`), a .toml file, or a recipe or several for each rung.
    settings: fields of every recipe, for sparsities only. recovery: settings of the recovery of every rung; None: none.
    shared: settings of calibration that hold where neither settings nor the file has others.
    """
    if isinstance(ladder, str | Path) and str(ladder).endswith(".toml"):
        given = ", ".join(
            [*(["the method"] if methods else []), *settings, *(["recover"] if recovery is not None else [])]
        )
        if given:
            raise PrunusError(f"{ladder} sets the recipes of its rungs: write {given} into it instead")
        return [Ladder(Path(ladder).stem, tuple(read_entries(ladder, shared)))]
    if isinstance(ladder, str | Path):
        names = list(methods or ["wanda"])
        if len(set(names)) < len(names):
            raise PrunusError(f"method {max(names, key=names.count)} is named twice")
        shares = sparsities(str(ladder))
        by_method = {
            name: [PruneRecipe(**{**(shared or {}), **settings, "method": name, "sparsity": s}) for s in shares]
            for name in names
        }
    else:
        if not ladder:
            raise PrunusError("a ladder needs at least one recipe")
        by_method = {"recipes": list(ladder)}
    entries = {name: tuple(Entry(steps_of(one, recovery), None) for one in rungs) for name, rungs in by_method.items()}
    return [Ladder(name, rungs) for name, rungs in entries.items()]


def steps_of(rung: Recipe | Sequence[Recipe], recovery: Mapping[str, Any] | None) -> tuple[Recipe, ...]:
    """The steps of a rung. recovery: settings of one more step, with the calibration of the first; None: none."""
    steps = (rung,) if isinstance(rung, Recipe) else tuple(rung)
    return steps if recovery is None else (*steps, RecoverRecipe.like(steps[0], **recovery))


def sparsities(text: str) -> list[float]:
    """The sparsities of `0.1:0.7:0.05` (from, to, step; the end is included if a step meets it) or of `0.2,0.4,0.5`."""
    try:
        if ":" not in text:
            found = [Decimal(part.strip()) for part in text.split(",")]
        else:
            first, last, step = (Decimal(part.strip()) for part in text.split(":"))
            if not all(number.is_finite() for number in (first, last, step)) or step <= 0 or last < first:
                raise PrunusError(f"ladder '{text}' has no rung: write FROM:TO:STEP with FROM <= TO and STEP above 0")
            count = int((last - first) / step) + 1
            if count > MOST_RUNGS:
                raise PrunusError(f"ladder '{text}' has {count} rungs, of which at most {MOST_RUNGS} are allowed")
            found = [first + step * number for number in range(count)]
    except (InvalidOperation, ValueError) as error:
        raise PrunusError(
            f"ladder '{text}' is not FROM:TO:STEP such as 0.1:0.7:0.05, a list such as 0.2,0.4, or a FILE.toml"
        ) from error
    for number in found:
        if not 0 < number < 1:
            raise PrunusError(f"ladder '{text}': a sparsity must lie in (0, 1), not {number}")
    return list(map(float, found))


def removed(entry: Entry, source: Checkpoint) -> float:
    """The share of the weights of the blocks' Linears that a rung removes, as asked by its recipes; or of experts.

    Of several steps, 1 - (1 - one) * (1 - other) * ...
    """
    shares = [share for recipe in entry.steps if (share := kind_of(recipe).removed(recipe, source))]
    # A single share is declared as it is, without the rounding of 1 - (1 - share).
    return shares[0] if len(shares) == 1 else 1 - prod(1 - share for share in shares)


def check_order(ladder: Ladder, source: Checkpoint) -> None:
    """Raise PrunusError for a ladder with a rung that removes less than the one before."""
    shares = [removed(entry, source) for entry in ladder.entries]
    for number, (share, later) in enumerate(pairwise(shares), 1):
        if later < share - 1e-9:
            raise PrunusError(
                f"ladder {ladder.name} is not in order: rung {number + 1} removes {100 * later:.3g} % of the weights,"
                f" rung {number} {100 * share:.3g} %; order it from gentle to harsh"
            )
