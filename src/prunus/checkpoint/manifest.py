"""What manifests say of the models that steps were applied to. They may be of other programs, or damaged."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class SourceModel(NamedTuple):
    """A model from which a step made another, as a manifest says it. hub: its id there; None if it has none."""

    name: str
    checksum: str
    hub: object


def sources_of(step: Mapping[str, Any]) -> list[SourceModel]:
    """The model to which a step in a manifest was applied, and the dense model, if it needed that."""
    given = [model for model in (step.get("source"), step.get("dense")) if isinstance(model, Mapping)]
    return [SourceModel(str(model.get("name")), str(model.get("checksum")), model.get("hub")) for model in given]


def blocks_kept(count: int, steps: Iterable[Mapping[str, Any]]) -> list[int]:
    """Indices of a model's blocks that remain after the steps of a manifest. count: its number of blocks."""
    kept = list(range(count))
    for step in steps:
        removed = set(step.get("blocks_removed", ()))
        kept = [number for index, number in enumerate(kept) if index not in removed]
    return kept


def source_of(step: Mapping[str, Any]) -> SourceModel:
    """The model to which a step in a manifest was applied."""
    return sources_of(step)[0]
