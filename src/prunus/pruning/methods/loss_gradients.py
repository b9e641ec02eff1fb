"""A pass that measures the dense model's squared loss gradients before pruning, in one file per block."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from prunus.checkpoint.runner import Runner
from prunus.checkpoint.safetensors_file import read_header, write_file
from prunus.checkpoint.writer import Partial
from prunus.disk import disk_errors
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.gradients import Model, square_sums
from prunus.pruning.calibration.propagation import BlockRun, Stats
from prunus.pruning.passes import Pass, PruneJob, gradients_key, once


class OutputGradients(Pass):
    """Adds fisher_O to the statistics: per output, the sum over tokens of squared gradients (Fisher information)."""

    needs = "gradients"
    whole_model = True

    folder = Path()

    def prepare(self, job: PruneJob, partial: Partial, calibration: Calibration | None) -> None:
        """Write the sums to files in the unfinished output, or in the folder shared by the variants of a study."""
        assert calibration is not None
        dtype = torch.float32 if job.recipe.dtype == "auto" else job.dtype
        runner = Runner(job.source.config, job.source.tensors, dtype, job.device)
        names = [[linear.name for linear in linears] for linears in job.linears]
        model = Model(job.source, runner, names, job.hidden_file(partial))

        def save(folder: Path) -> None:
            with disk_errors(partial.folder, partial.needed):
                for index, sums in enumerate(square_sums(model, calibration.sequences)):
                    write_file(file_in(folder, index), sums, sync=False)

        if job.where.shared is None:
            if "gradients" not in partial.notes:
                save(partial.folder)
                partial.note("gradients", True, {})
            self.folder = partial.folder
            return
        about: dict[str, object] = {"linears": names, "dtype": str(dtype)}
        with once(job.where.shared, gradients_key(job.source, calibration, about, job.device)) as place:
            if not place.exists():
                unfinished = place.with_suffix(".partial")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                save(unfinished)
                unfinished.rename(place)
        self.folder = place

    def statistics(
        self, job: PruneJob, run: BlockRun, tensors: dict[str, Tensor], groups: Iterable[Stats]
    ) -> Iterator[Stats]:
        """The groups' statistics, with the Fisher information of the outputs of each Linear added."""
        for group in groups:
            sums = {name: row for name, row in read_header(file_in(self.folder, run.number)).items() if name in group}
            yield {name: replace(group[name], fisher_O=sums[name].read().to(job.device)) for name in sums}

    def written(self, job: PruneJob, index: int) -> None:
        """Delete the file of a finished block, unless other variants share it."""
        if job.where.shared is None:
            file_in(self.folder, index).unlink(missing_ok=True)


def file_in(folder: Path, index: int) -> Path:
    """The file with the sums of one block."""
    return folder / f"gradients-{index:05d}.safetensors"
