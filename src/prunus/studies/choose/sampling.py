"""Compute the rows that a choice asks for, portion by portion, with the time left."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Self

from prunus.evaluation.engine import Batch
from prunus.evaluation.reused_rows import reuse_rows
from prunus.progress import Steps, say
from prunus.store.rows import Sample
from prunus.store.store import Store
from prunus.store.stored import CHOOSE, Adaptive
from prunus.studies.choose.forms import OpenedForm
from prunus.studies.choose.records import Declared
from prunus.studies.choose.rows import FormRows
from prunus.studies.engine import StudyEngine
from prunus.studies.looks.missing import missing_in
from prunus.studies.variants import is_made, make_variant


class ChoiceSampling:
    """Computes the rows that a choice needs: `with ChoiceSampling(works, declared, rows, store, device) as sampling`.

    One model is loaded at a time. Each batch is one transaction, so a process that is killed loses one at most.
    """

    def __init__(
        self, works: Sequence[OpenedForm], declared: Declared, rows: FormRows, store: Store, device: str
    ) -> None:
        self.works: Mapping[str, OpenedForm] = {work.form.run: work for work in works}
        self.declared, self.rows, self.store, self.device = declared, rows, store, device
        self.engine: StudyEngine | None = None
        self.stack = ExitStack()
        self.adaptive = Adaptive.of({"by": CHOOSE})

    def __enter__(self) -> Self:
        for work in self.works.values():
            reuse_rows(self.store, work.resolved, in_part=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def provide(self, runs: Sequence[str], first: int, last: int) -> None:
        """Compute what is missing of the rows of these runs in the rounds from first up to last."""
        works, rounds = [self.works[run] for run in runs], self.declared.order[first:last]
        waiting = [(work, left) for work in works if (left := missing_in(self.store, work.resolved, rounds))]
        if not waiting:
            return
        total = len(runs) * len(self.declared.order)
        with Steps("choosing", total, "rounds, at most", done=len(runs) * first) as steps:
            for place, (work, batches) in enumerate(waiting):
                chains, done = sum(map(len, batches)), 0.0
                for samples in self.samples(work, batches):
                    done += len(samples) / len(self.declared.budgets) / chains
                    steps.within((last - first) * (place + min(1.0, done)), work.form.name)
                self.rows.forget(work.form.run)

    def samples(self, work: OpenedForm, batches: Sequence[Batch]) -> Iterator[list[Sample]]:
        """Yield the rows of batches of a form as they are stored."""
        if self.engine is None or self.engine.grid is not work.grid:
            self.stack.close()
            self.engine = self.stack.enter_context(StudyEngine(work.grid, work.folder, self.device))
        if not work.grid.serves and not is_made(work.folder, work.cell.variant):
            self.engine.release()
            say(f"making {work.form.name}")
            make_variant(work.model, work.cell.variant, work.folder, self.device, True, leave=True)
        of = work.model, work.cell, batches, self.store
        yield from self.engine.evaluate(*of, adaptive=self.adaptive)
