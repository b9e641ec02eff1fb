"""What manifests say of the models that steps were applied to. They may be of other programs, or damaged."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class SourceModel(NamedTuple):
    """A model from which a step made another, as a manifest says it. hub: its id there; None if it has none."""

    name: str
    checksum: str
    hub: object


def sources_of(step: Mapping[str, Any]) -> list[SourceModel]:
    """The model to which a step in a manifest was applied, and the dense one, if it needed that."""
    given = [one for one in (step.get("source"), step.get("dense")) if isinstance(one, Mapping)]
    return [SourceModel(str(one.get("name")), str(one.get("checksum")), one.get("hub")) for one in given]


def source_of(step: Mapping[str, Any]) -> SourceModel:
    """The model to which a step in a manifest was applied."""
    return sources_of(step)[0]
