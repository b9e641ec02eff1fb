"""Output of a study on a terminal: while it runs, a bar of all answers with the time left."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prunus import progress
from prunus.store.rows import Key, Sample
from prunus.store.store import Store
from prunus.studies.cells import Model, plan_names
from prunus.studies.file import Study


class StudyBar(progress.Steps):
    """Bar of the answers of all cells of a study: `with StudyBar(study, models, store) as bar: bar.add(run, samples)`.

    A line is printed whenever a cell is complete.
    """

    def __init__(self, study: Study, models: Sequence[Model], store: Store) -> None:
        self.cells: dict[str, tuple[str, int, dict[Key, bool]]] = {}  # name, answers in all, whether each is right
        self.activity = ""
        for model in models:
            for cell in model.cells:
                name = cell.name if len(study.models) == 1 else f"{model.label} {cell.name}"
                name += f" ({plan_names(study.plans)[cell.plan]})" if len(study.plans) > 1 else ""
                total = sum(map(len, cell.resolved.batches)) * len(cell.resolved.budgets)
                *keys, correct = store.columns(cell.run_id, ("problem_id", "budget", "draw", "correct"))
                self.cells[cell.run_id] = name, total, dict(zip(zip(*keys, strict=True), correct, strict=True))
        total, done = sum(total for _, total, _ in self.cells.values()), sum(len(of) for *_, of in self.cells.values())
        super().__init__(f"study {study.name}", total, "answers", done)

    def say(self, activity: str) -> None:
        """Show the current activity."""
        self.activity = activity
        self.within(0.0)

    def within(self, part: float, note: str = "") -> None:
        """As Steps.within, with the activity before the note."""
        super().within(part, f"{self.activity}: {note}" if note else self.activity)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Within the context the bar is not drawn, so that others can use the screen."""
        if self.bar is None:
            yield
            return
        self.bar.live.transient = True
        self.bar.stop()
        try:
            yield
        finally:
            self.bar.live.transient = False
            self.bar.start()

    def add(self, run_id: str, samples: Sequence[Sample]) -> None:
        """Add answers of a cell."""
        name, total, right = self.cells[run_id]
        before = len(right)
        right |= {(s.problem_id, s.budget, s.draw): s.correct for s in samples}
        self.advance(len(right) - before)
        if before < total <= len(right):
            complete = sum(len(of) >= wanted for _, wanted, of in self.cells.values())
            share = f"{100 * sum(right.values()) / total:.1f} % right"
            progress.say(f"{name}: {total:,} answers, {share}; {complete} of {len(self.cells)} cells are complete")
