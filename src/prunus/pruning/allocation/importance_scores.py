"""Importance scores: the numbers per block that an allocation has measured, and the JSON file from which to reuse them.

In the file, and in the results of the API, they are called `evidence`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from prunus.checkpoint.resolve import read_json
from prunus.errors import PrunusError
from prunus.pruning.allocation.sample_scores import is_by_sample, sums_of_samples

FORMAT = 1
WHOLE, PARTS = "block", ("attention", "mlp")


class ImportanceScores(NamedTuple):
    """The scores of an allocation, and how they were measured.

    scores: one number per block under `block`, or under `attention` and `mlp`. model: checksum of the weights they were
    measured on; None if they come from a user's file. settings: the options and the calibration that they depend on.
    details: further measurements, for information only.
    """

    allocation: str
    model: str | None
    settings: Mapping[str, Any]
    scores: Mapping[str, Sequence[float]]
    details: Mapping[str, Any]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, object]:
        """The scores as JSON data."""
        fields = json.loads(json.dumps(self._asdict()))
        return {"prunus": version("prunus"), "evidence": FORMAT, **fields}

    @classmethod
    def none(cls, allocation: str) -> "ImportanceScores":
        """Those of an allocation that needs none."""
        return cls(allocation, None, {}, {}, {}, [])

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ImportanceScores":
        """The inverse of to_json."""
        return cls(**{name: data[name] for name in cls._fields})


def read_scores(path: Path, allocation: str, groups: Sequence[str], blocks: int) -> ImportanceScores:
    """Importance scores from a JSON file written by prunus or by a user.

    A user's file holds a list with one number per block (used for every group), an object with such lists under
    `attention` and `mlp`, or influences by sample (see sample_scores). Raises PrunusError for other content, or if it
    does not fit the model or the allocation.
    """
    data = read_json(path)
    if isinstance(data, Mapping) and "evidence" in data:
        if data["evidence"] != FORMAT or not set(ImportanceScores._fields) <= set(data):
            raise PrunusError(f"{path} holds no scores of format {FORMAT}: it is from another version of prunus")
        found = ImportanceScores.from_json(data)
        if found.allocation != allocation:
            raise PrunusError(f"{path} holds scores of {found.allocation}, not of {allocation}; measure again")
    elif is_by_sample(data):
        if WHOLE in groups:
            raise PrunusError(
                f"{path} holds scores of attention and mlp, which allocation layerif uses, not {allocation}"
            )
        sums, count = sums_of_samples(path, data, groups, blocks)
        found = ImportanceScores(allocation, None, {"file": path.name, "samples": count}, sums, {}, [])
    else:
        scores = dict.fromkeys(groups, data) if isinstance(data, list) else data
        found = ImportanceScores(allocation, None, {"file": path.name}, scores, {}, [])
    check_scores(path, found.scores, groups, blocks)
    return found


def check_scores(path: Path, scores: Any, groups: Sequence[str], blocks: int) -> None:
    """Raise PrunusError unless scores hold a list with one finite number per block for every group."""
    for group in groups:
        values = scores.get(group) if isinstance(scores, Mapping) else None
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise PrunusError(f"{path} has no list '{group}'; write one score per block, as a list or under that name")
        if len(values) != blocks:
            raise PrunusError(f"{path} has {len(values)} scores for '{group}', but the model has {blocks} blocks")
        for index, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise PrunusError(f"{path}: score {index} of '{group}' is {value!r}, which is not a finite number")
