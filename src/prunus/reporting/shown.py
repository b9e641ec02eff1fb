"""A store as a page reads it: only the runs that it shows, and the draws of each once."""

from collections.abc import Collection
from pathlib import Path

from prunus.results.store import Run, Sample, Store


class Shown(Store):
    """An open store that has no other runs than these (ids; None: all of them). Draws without texts are kept in memory,
    as every section asks for them."""

    def __init__(self, path: Path | str, runs: Collection[str] | None = None) -> None:
        super().__init__(path)
        self._shown = runs
        self._samples: dict[str, list[Sample]] = {}

    def runs(self) -> list[Run]:
        """Those shown, oldest first."""
        return [run for run in super().runs() if self._shown is None or run.run_id in self._shown]

    def samples(self, run_id: str, texts: bool = False) -> list[Sample]:
        """As the store has them when first asked."""
        if texts:
            return super().samples(run_id, texts)
        if run_id not in self._samples:
            self._samples[run_id] = super().samples(run_id)
        return self._samples[run_id]
