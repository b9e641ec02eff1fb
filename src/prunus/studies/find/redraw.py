"""Random chains of a search are drawn again, to show whether stored rows come from the models that they claim.

The models are the dense model, where its name still leads to a folder with its weights, and the checkpoint beside the
certificate; other rungs were deleted. Problems come from the store, so no task is needed.

A chain follows from its model, its plan and its key, apart from rounding. In float32, with the libraries and the kind
of device of the stored rows, rounding hardly ever changes a token, so there a chain that comes out otherwise is a
difference. In 16 bits, and in engines that make their own batches, rounding parts many long chains of the very same
model; then the report says how much of the texts is the same before they part, and leaves the judgement to the reader.
"""

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from prunus.checkpoint.longrope import has_longrope
from prunus.checkpoint.resolve import load_tokenizer
from prunus.errors import PrunusError
from prunus.evaluation import backends
from prunus.evaluation.grading import Grader
from prunus.evaluation.provenance import describe_environment, open_for
from prunus.evaluation.resolved_plan import cut_into_batches, resolve_plan
from prunus.evaluation.run import run_chains
from prunus.evaluation.stored_plan import plan_of, problems_of
from prunus.results.certificate import Declaration, SearchResult
from prunus.settings.engines import BACKENDS, EngineOptions
from prunus.settings.serving import Serving
from prunus.store.rows import Run, Sample
from prunus.store.store import Store
from prunus.studies.find.row_check import checked_runs
from prunus.studies.looks.declared import at_hand
from prunus.studies.looks.row_check import CheckedRun, RowCheck

SETTINGS_OF_ROWS = (
    "device",
    "gpu",
    "dtype",
    "torch",
    "transformers",
    "protocol",
)  # what rows depend on besides the processor
MOST_NAMED = 5  # differing chains that are named
COMPARED = ("thinking", "text", "thinking_tokens", "answer_tokens", "ended", "answer", "correct")


def redraw(
    store: Store, declared: Declaration, now: SearchResult, beside: Path, number: int, seed: int | None, device: str
) -> RowCheck:
    """Draw `number` random chains of each model at hand anew, and compare them with the stored rows.

    now: as `certificate.computed` returns it. beside: the folder of the certificate. seed: None for a random one.
    """
    seed = secrets.randbelow(2**32) if seed is None else seed
    differences, notes = list[str](), list[str]()
    for checked in checked_runs(store, declared, now):
        if checked.run.run_id == declared.dense:
            folder = at_hand(declared.model.source)
        elif checked.run.run_id == (now.found and now.found.run):
            folder = beside if (beside / "config.json").exists() else None
        else:
            continue  # it was deleted when it was not needed any more
        if folder is None:
            notes.append(f"{checked.name} is not at hand, so none of its chains was drawn again")
            continue
        try:
            redrawn = redraw_run(store, checked, folder, number, f"{seed}/{checked.run.run_id}", device)
        except PrunusError as error:
            notes.append(f"no chain of {checked.name} was drawn again: {error}")
            continue
        if redrawn.exact and redrawn.differing:
            differences.append(redrawn.sentence(seed))
        else:
            notes.append(redrawn.sentence(seed))
    return RowCheck(differences, notes)


@dataclass(frozen=True)
class Redrawn:
    """Chains that were drawn again. differing: (problem, draw, characters in common, characters) of those that differ.

    exact: whether rounding hardly ever changes a token under these conditions. why: the reason if not.
    """

    name: str
    chains: int
    differing: Sequence[tuple[str, int, int, int]]
    exact: bool
    why: str

    def sentence(self, seed: int) -> str:
        """The result in a sentence: what was drawn, and which chains came out otherwise. seed: as of redraw."""
        drawn = f"{self.chains} chains of {self.name} were drawn again (seed {seed})"
        if not self.differing:
            return f"{drawn}, and all came out the same"
        named = ", ".join(f"{problem} draw {draw}" for problem, draw, *_ in self.differing[:MOST_NAMED])
        more = f" and {len(self.differing) - MOST_NAMED} more" if len(self.differing) > MOST_NAMED else ""
        common = median(same / max(1, total) for *_, same, total in self.differing)
        text = (
            f"{drawn}, and {len(self.differing)} came out otherwise ({named}{more}); half of these have less than"
            f" {100 * common:.0f} % of their text in common before they part"
        )
        return text if self.exact else f"{text}; {self.why}, so rounding may have parted them"


def redraw_run(store: Store, checked: CheckedRun, folder: Path, number: int, seed: str, device: str) -> Redrawn:
    """Chains of a run drawn again from the model in a folder. Raises PrunusError where they cannot be."""
    stored, name = checked.run.plan, str(checked.run.plan.backend)
    if "serve" in BACKENDS[name].settings:
        raise PrunusError(f"its rows come from a server (backend {name}), and none is started for it")
    checkpoint, known = open_for(name, folder), checked.run.model
    recorded = known.serving
    engine = engine_of(name, recorded)
    if checkpoint.checksum() != known.checksum:
        raise PrunusError(f"{folder} has other weights than its rows are of")
    if known.content not in (None, checkpoint.content()):
        raise PrunusError(f"{folder} has another configuration, tokenizer or chat template than its rows are of")
    serving = Serving.of(name, engine, longrope=has_longrope(folder))
    if recorded != serving:
        raise PrunusError(
            f"its rows were served with {recorded.label or 'no setting that counts'}, and would be here with"
            f" {serving.label or 'none'}: set the environment as it was"
        )
    work = resolve_plan(checkpoint, load_tokenizer(folder), plan_of(stored), serving, problems_of(store, checked.run))
    if differing := stored.differing(work.plan):
        raise PrunusError(f"its plan cannot be had here: {' and '.join(differing)} would differ")
    place = {problem.id: index for index, problem in enumerate(work.problems)}
    every = [(place[problem], draw) for problem in checked.problems for draw in range(stored.samples)]
    chosen = sorted(random.Random(seed).sample(every, min(number, len(every))))
    lengths = [len(work.chains[index].prompt) for index, _ in chosen]
    batches = [[chosen[at] for at, _ in batch] for batch in cut_into_batches(lengths, 1, work.rows)]
    with backends.opened(name, folder, device, len(work.tokenizer), engine) as backend, Grader() as grader:
        backend.check(work)
        now, before = describe_environment(backend, work.plan), checked.run.environment
        portions = run_chains(work, backend, grader, batches)
        samples = [sample for portion in portions for sample in portion.samples]
    other = [key for key in SETTINGS_OF_ROWS if key in before.data and key in before.differing(now)]
    why = (
        f"{' and '.join(other)} of the stored rows differ from here"
        if other
        else f"the engine of {name} makes its own batches"
        if not backend.keeps_batches
        else f"they were computed in {now.dtype}"
    )
    exact = not other and backend.keeps_batches and now.dtype == "float32"
    return Redrawn(checked.name, len(chosen), differing_chains(store, checked.run, samples), exact, why)


def engine_of(backend: str, serving: Serving) -> EngineOptions:
    """Options that start a backend with the settings of a serving, as far as the backend has such options."""
    values: dict[str, Any] = {name: getattr(serving, name) for name in ("request", "environment")}
    values |= {"serving": serving.name, "exact": bool(serving.exact)}
    values["args"] = {**serving.args, **(serving.exact.args if serving.exact else {})}
    return EngineOptions(**{name: values[name] for name in BACKENDS[backend].settings if values.get(name)})


def differing_chains(store: Store, run: Run, samples: Sequence[Sample]) -> list[tuple[str, int, int, int]]:
    """(problem, draw, characters in common, characters) of each chain whose new rows differ from those of the run."""
    chains = []
    for problem, draw in sorted({(sample.problem_id, sample.draw) for sample in samples}):
        new = {s.budget: s for s in samples if (s.problem_id, s.draw) == (problem, draw)}
        old = {s.budget: s for s in store.samples(run.run_id, texts=True, chain=(problem, draw))}
        differs = [b for b in new if b not in old or any(getattr(new[b], f) != getattr(old[b], f) for f in COMPARED)]
        if differs:
            text, other = (
                f"{rows[max(new)].thinking}\n{rows[max(new)].text}" if max(new) in rows else "" for rows in (new, old)
            )
            same = next(
                (at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(map(len, (text, other)))
            )
            chains.append((problem, draw, same, max(len(text), len(other))))
    return chains
