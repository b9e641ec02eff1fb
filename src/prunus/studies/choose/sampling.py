"""Compute the rows that a choice asks for, portion by portion, with the time left."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Self

from prunus.evaluation.resolved_plan import cut_into_batches
from prunus.evaluation.reused_rows import reuse_rows
from prunus.progress import Steps, say
from prunus.store.rows import CHOOSE, Sample
from prunus.store.store import Store
from prunus.studies.choose.forms import OpenedForm
from prunus.studies.choose.records import Declared
from prunus.studies.choose.rows import FormRows
from prunus.studies.engine import Batch, StudyEngine
from prunus.studies.variants import is_made, make_variant


class ChoiceSampling:
    """`with ChoiceSampling(works, declared, rows, store, device) as sampling: sampling.provide(runs, first, last)`.

    One model is loaded at a time. Each batch is one transaction, so a process that is killed loses one at most.
    """

    def __init__(
        self, works: Sequence[OpenedForm], declared: Declared, rows: FormRows, store: Store, device: str
    ) -> None:
        self.works: Mapping[str, OpenedForm] = {work.form.run: work for work in works}
        self.declared, self.rows, self.store, self.device = declared, rows, store, device
        self.engine: StudyEngine | None = None
        self.stack = ExitStack()
        self.adaptive = {"by": CHOOSE}

    def __enter__(self) -> Self:
        for work in self.works.values():
            reuse_rows(self.store, work.resolved, in_part=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def missing(self, work: OpenedForm, first: int, last: int) -> list[Batch]:
        """The chains of a form in these rounds of which rows are missing, in batches."""
        resolved = work.resolved
        index = {problem.id: place for place, problem in enumerate(resolved.problems)}
        places = [index[problem] for round in self.declared.order[first:last] for _, problem in round]
        lengths = [len(resolved.chains[place].prompt) for place in places]
        batches = cut_into_batches(lengths, resolved.plan.samples, resolved.rows)
        stored = self.store.keys(work.form.run)
        left = [
            [chain for place, draw in batch if not resolved.keys([chain := (places[place], draw)]) <= stored]
            for batch in batches
        ]
        return [batch for batch in left if batch]

    def provide(self, runs: Sequence[str], first: int, last: int) -> None:
        """Compute what is missing of the rows of these runs in the rounds from first up to last."""
        waiting = [
            (self.works[run], missing) for run in runs if (missing := self.missing(self.works[run], first, last))
        ]
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
        if self.engine is None or self.engine.study is not work.study:
            self.stack.close()
            self.engine = self.stack.enter_context(StudyEngine(work.study, work.folder, self.device))
        if not work.study.serves and not is_made(work.folder, work.cell.variant):
            self.engine.release()
            say(f"making {work.form.name}")
            make_variant(work.model, work.cell.variant, work.folder, self.device, True, leave=True)
        of = work.model, work.cell, batches, self.store
        yield from self.engine.evaluate(*of, adaptive=self.adaptive)
