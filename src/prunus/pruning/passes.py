"""Passes: hooks for methods that need more from the model than the input statistics of one Linear after the other."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from prunus.checkpoint.writer import Partial
    from prunus.pruning.calibration.data import Calibration
    from prunus.pruning.calibration.propagation import BlockRun, Stats
    from prunus.pruning.job import Job


class Pass:
    """Base class of passes: the hooks in the order in which the pipeline calls them. These do nothing.

    Each run creates one object per pass. A resumed run creates new ones and calls `prepare` again, so `prepare` must
    store its results in files of the unfinished output and record with partial.note that they are complete.
    needs: what the pass needs that saved input statistics do not hold. whole_model: `prepare` runs the whole model
    forwards and backwards.
    """

    needs: ClassVar[str] = "hidden states"
    whole_model: ClassVar[bool] = False

    def disk(self, job: "Job") -> int:
        """Bytes of the files that `prepare` keeps until the run ends."""
        return 0

    def prepare(self, job: "Job", partial: "Partial", calibration: "Calibration | None") -> None:
        """Called once, before the first block."""

    def statistics(
        self, job: "Job", run: "BlockRun", tensors: dict[str, Tensor], groups: "Iterable[Stats]"
    ) -> "Iterable[Stats]":
        """The input statistics that a block's Linears are pruned by, one group of Linears after the other.

        groups: the statistics without this pass. tensors: the block's, by their names within the block; a pass may
        replace weights in it before it yields.
        """
        return groups

    def after_block(self, job: "Job", run: "BlockRun | None", index: int, weights: Mapping[str, Tensor]) -> None:
        """Called once all Linears of a block are pruned, before its output becomes the input of the next block.

        run: the block in memory and its hidden states; None if no tokens are run. weights: the pruned weights, by
        Linear. A pass may change their nonzero entries in place, and must then change run.block in the same way. Only
        with propagation `pruned` do hidden states follow such a change; with others the block has run already.
        """

    def written(self, job: "Job", index: int) -> None:
        """Called once a block is on disk."""
