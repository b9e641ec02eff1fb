"""What a method can do with the model besides pruning one Linear after the other: the hooks of a pass."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from prunus.checkpoint.writer import Partial
    from prunus.pruning.calibration.data import Calibration
    from prunus.pruning.calibration.propagation import BlockRun, Stats
    from prunus.pruning.job import Job


class Pass:
    """The hooks, in the order in which the pipeline calls them; here none of them does anything.

    A run makes one object of each pass. A stopped run goes on with new ones: `prepare` is called again, and must leave
    what it found out in files of the unfinished work (partial.note says that they are complete). needs: what a pass
    needs beyond saved statistics of inputs. whole_model: prepare runs the whole model forwards and backwards.
    """

    needs: ClassVar[str] = "hidden states"
    whole_model: ClassVar[bool] = False

    def disk(self, job: "Job") -> int:
        """Bytes of files that prepare leaves while the run lasts."""
        return 0

    def prepare(self, job: "Job", partial: "Partial", calibration: "Calibration | None") -> None:
        """Once, before the first block."""

    def statistics(
        self, job: "Job", run: "BlockRun", tensors: dict[str, Tensor], groups: "Iterable[Stats]"
    ) -> "Iterable[Stats]":
        """The statistics that Linears of a block are pruned by, group after group, instead of groups.

        tensors: the block's, by their names in it; a pass may replace weights there before it yields.
        """
        return groups

    def after_block(self, job: "Job", run: "BlockRun | None", index: int, weights: Mapping[str, Tensor]) -> None:
        """Once all Linears of a block are pruned, before its output is what the next block reads.

        run: the block in memory and its hidden states, None where nothing is run. weights: the new ones, by name of
        their Linear; a pass may change them in place, but for their zeros, and then must change run.block too.
        Hidden states follow such a change with propagation pruned only: else the block has run already by then.
        """

    def written(self, job: "Job", index: int) -> None:
        """Once a block is on disk."""
