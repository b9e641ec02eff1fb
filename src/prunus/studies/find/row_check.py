"""Check of the rows of a search, and of how its runs were served, against its declaration."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prunus.results.certificate import Declaration, SearchResult
from prunus.settings.serving import NO_SERVING
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.studies.looks.row_check import CheckedRun, RowCheck, check_runs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_rows(
    store: Store, declared: Declaration, now: SearchResult, tokenizer: "PreTrainedTokenizerBase | None"
) -> RowCheck:
    """Check the rows on which a search rests. now: as `certificate.computed` returns it. tokenizer: of all models."""
    runs = checked_runs(store, declared, now)
    found = check_runs(store, runs, tokenizer)
    about_search = about_servings(declared, [checked.run for checked in runs])
    return replace(found, differences=[*about_search, *found.differences])


def checked_runs(store: Store, declared: Declaration, now: SearchResult) -> list[CheckedRun]:
    """The runs that a search looked at, the dense model's first."""
    order, runs = declared.order(sorted(declared.problems)), {run.run_id: run for run in store.runs()}
    parts = [(declared.model.name, declared.dense, now.dense.looked, True, True)]
    parts += [(rung.name, rung.run, rung.looked, rung.certified, False) for rung in now.rungs]
    return [
        CheckedRun(name, runs[run], [problem for r in order[:rounds] for _, problem in r], believed, dense)
        for name, run, rounds, believed, dense in parts
    ]


def about_servings(declared: Declaration, runs: Sequence[Run]) -> Iterator[str]:
    """Yield a sentence for each run that was served with other settings than the search declared."""
    rungs = {rung.run: rung for rung in declared.rungs}
    for run in runs:
        rung = rungs.get(run.run_id)
        wanted = (rung and rung.serving) or declared.model.serving
        if run.model.serving != (wanted.content if wanted else NO_SERVING):
            nothing = "no setting that counts"
            served, said = run.model.serving.label or nothing, wanted.words if wanted else nothing
            name = rung.name if rung else declared.model.name
            yield f"the run of {name} was served with {served}, and not with {said} as declared"
