"""The thinking of a chain as token ids, from which a later budget is answered without thinking again.

The texts in the store do not suffice, since encoding a text may give other ids than the model sampled.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IDS, SCORES = "<u4", "<f4"
LEVEL = 1  # of the compression: higher ones gain little and take longer


class Thought(NamedTuple):
    """The thinking of a chain under the largest budget of its run.

    scores_2T: log-probability and self-certainty of each id, as evaluation.requests.Scores has them; None if unknown.
    """

    problem_id: str
    draw: int
    ids: Sequence[int]
    scores_2T: NDArray[np.float32] | None

    def packed(self) -> tuple[bytes, bytes | None]:
        """The columns ids and scores of the store."""
        scores = None if self.scores_2T is None else _packed(self.scores_2T, SCORES)
        return _packed(self.ids, IDS), scores

    @classmethod
    def unpacked(cls, problem_id: str, draw: int, ids: bytes, scores: bytes | None) -> "Thought":
        """The thinking of a chain from the columns that `packed` returned. Raises ValueError for anything else."""
        try:
            numbers = _unpacked(ids, IDS).tolist()
            scores_2T = None if scores is None else _unpacked(scores, SCORES).reshape(2, len(numbers))
        except (zlib.error, TypeError) as error:
            raise ValueError(str(error)) from error
        return cls(problem_id, draw, numbers, scores_2T)


def _packed(numbers: object, kind: str) -> bytes:
    return zlib.compress(np.asarray(numbers, kind).tobytes(), LEVEL)


def _unpacked(data: bytes, kind: str) -> NDArray[Any]:
    return np.frombuffer(zlib.decompress(data), kind)
