"""Write a model's own chains of thought as token ids with metadata, for calibration of reasoning models.

The idea is from RAC, arXiv:2509.12464. Token ids are stored rather than texts, because a chat template may drop the
thinking. Chains that are complete are kept in OUT.partial, until they are written to OUT in one step.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field
from pathlib import Path
from typing import IO, Any, NamedTuple

from prunus.disk import as_path, disk_errors, locked, write_text
from prunus.errors import PrunusError
from prunus.evaluation.backends.served import serving_file
from prunus.evaluation.budget import Draw
from prunus.evaluation.engine import Engine
from prunus.evaluation.grading import Grader
from prunus.evaluation.pipeline import PlanOfModel
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.evaluation.run import Portion, run_chains
from prunus.evaluation.tasks import TASKS, Problem
from prunus.plain_data import PrintedRecord, parse_json
from prunus.progress import Steps
from prunus.questions import evaluation_set, question_digest
from prunus.recipes import TraceRecipe
from prunus.settings.engines import EngineOptions, options_for
from prunus.store.labels import FOLLOWS
from prunus.store.rows import Sample
from prunus.store.starts import value_text

BYTES_PER_TOKEN = 16  # of JSON, in the partial and the final file together


class Trace(NamedTuple):
    """A chain with its metadata: one line of the output file (see `traces`)."""

    token_ids: list[int]
    prompt_tokens: int
    thinking_tokens: int
    ended: str
    correct: bool
    problem_id: str
    problem_digest: str
    draw: int


class Traces(PrintedRecord):
    """A file of chains of thought.

    out: the file.
    chains, drawn: number of chains that were written, and that were drawn; the key of `drawn` in JSON is `of`.
    correct: number of those written whose answer is correct.
    tokens: of the written chains.
    seconds: run time.
    """

    out: str
    chains: int
    drawn: int = field(metadata={"key": "of"})
    correct: int
    tokens: int
    seconds: float


def traces(
    model: str | Path,
    out: str | Path,
    recipe: TraceRecipe,
    *,
    device: str = "auto",
    options: EngineOptions | None = None,
    overwrite: bool = False,
) -> Traces:
    """Draw chains of a model, and write those that pass the filters to the file out.

        drawn = prunus.traces("tiny", "own.jsonl", prunus.TraceRecipe(tasks=("tiny-train",), limit=20, chain_tokens=64))
        prunus.prune("tiny", "wanda-own-50", prunus.PruneRecipe(calibration=f"traces:{drawn.out}", sequences=16))

    model: a folder, a hub id or `tiny`.
    out: a .jsonl file. A line has token_ids (prompt, thinking and, if the model ended its thinking itself, closing and
        answer), prompt_tokens (number of ids of the prompt), thinking_tokens, ended, correct, problem_id,
        problem_digest and draw.
    recipe: the problems, the filters and the sampling.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    options: how the recipe's engine is started or reached (docs/engines.md).
    overwrite: replace out, and unfinished work of another run.

    Raises PrunusError for problems of evaluation sets, before anything is drawn, and if no chain passes the filters;
    then the chains stay in out.partial, so that a call with other filters draws none of them again.
    """
    started, target = time.monotonic(), as_path(out)
    if not isinstance(recipe, TraceRecipe):
        raise PrunusError(f"traces takes TraceRecipe, not {type(recipe).__name__}")
    check_traces_file(target, overwrite, recipe.tasks)
    with serving_file(model, recipe.engine, options or EngineOptions()) as reached:
        drawn, kept = draw_and_write(model, target, recipe, device, options_for(recipe.engine, reached), overwrite)
    return Traces(
        out=str(target),
        chains=len(kept),
        drawn=drawn,
        correct=sum(trace.correct for trace in kept),
        tokens=sum(len(trace.token_ids) for trace in kept),
        seconds=time.monotonic() - started,
    )


def draw_and_write(
    model: str | Path, target: Path, recipe: TraceRecipe, device: str, engine: EngineOptions, overwrite: bool
) -> tuple[int, list[Trace]]:
    """Number of drawn chains, and the chains that were written to target; arguments and errors as of traces."""
    resolved = PlanOfModel.of(model, recipe.plan(), engine)
    work = resolved.work
    check_problems(work.problems)
    longest = sum(len(work.chains[index].prompt) + work.largest_budget for batch in work.batches for index, _ in batch)
    with (
        disk_errors(target.absolute().parent, BYTES_PER_TOKEN * longest),
        journal_of(target, work, overwrite) as journal,
    ):
        keys = [(work.problems[index].id, draw) for batch in work.batches for index, draw in batch]
        if not journal.chains.keys() >= set(keys):
            with resolved.loaded(device) as backend:
                draw(work, journal, backend)
        chains = [journal.chains[key] for key in keys]
        kept = filter_chains(chains, recipe)
        if not kept:
            raise PrunusError(f"none of {len(chains)} chains passes the filters; all are kept in {journal.path}")
        write_text(target, "".join(json.dumps(trace._asdict()) + "\n" for trace in kept))
        journal.path.unlink()
    return len(chains), kept


def check_traces_file(target: Path, overwrite: bool, tasks: Sequence[str]) -> None:
    """Raise PrunusError unless target can be written, and is none of the tasks' files."""
    if target.suffix != ".jsonl":
        raise PrunusError(f"{target} must end in .jsonl")
    if target.resolve() in {Path(task).resolve() for task in tasks}:
        raise PrunusError(f"{target} is the file of the problems; choose another output")
    if target.exists() and (target.is_dir() or not overwrite):
        raise PrunusError(f"{target} exists; choose another output or add --overwrite")
    if not target.absolute().parent.is_dir():
        raise PrunusError(f"{target.parent} is not a folder; create it first")


def check_problems(problems: Sequence[Problem]) -> None:
    """Raise PrunusError where a problem is in an evaluation set: models must not be calibrated on their test data."""
    for problem in problems:
        name = evaluation_set(question_digest(problem.question))
        if name or problem.private or (problem.task in TASKS and not TASKS[problem.task].trains):
            raise PrunusError(
                f"problem '{problem.id}' is in the evaluation set {name or problem.task}, which calibration must not "
                "see; draw chains on other problems, such as tiny-train or a training set of your own (FILE.jsonl)"
            )


def draw(work: ResolvedPlan, journal: "Journal", engine: Engine) -> None:
    """Draw and grade the chains that the journal lacks; they are added to it as soon as they are graded."""

    def keep(portion: Portion) -> None:
        chains = zip(portion.finished, portion.samples, strict=True)
        journal.add([trace_of(work, index, drawn, sample) for ((index, _), (drawn,)), sample in chains])

    stored = {(problem, work.largest_budget, number) for problem, number in journal.chains}
    total = sum(map(len, work.batches))
    with Grader() as grader, Steps("drawing", total, "chains", done=len(stored)) as steps:
        for portion in run_chains(work, engine, grader, work.batches, keep, stored, steps.within):
            steps.advance(len(portion.samples))


def trace_of(work: ResolvedPlan, index: int, drawn: Draw, sample: Sample) -> Trace:
    """One line of the result; a forced ending has no closing or answer, since the model did not choose to end."""
    problem, prompt = work.problems[index], work.chains[index].prompt
    answer = [*drawn.closing, *drawn.answer] if drawn.ended == "natural" else []
    return Trace(
        token_ids=[*prompt, *drawn.thinking, *answer],
        prompt_tokens=len(prompt),
        thinking_tokens=len(drawn.thinking),
        ended=drawn.ended,
        correct=sample.correct,
        problem_id=problem.id,
        problem_digest=question_digest(problem.question),
        draw=sample.draw,
    )


def filter_chains(chains: Sequence[Trace], recipe: TraceRecipe) -> list[Trace]:
    """The chains that pass the filters, by problem (in the order of their first chain), then by draw."""
    place = {problem: at for at, problem in enumerate(dict.fromkeys(trace.problem_id for trace in chains))}
    kept = [
        trace
        for trace in chains
        if trace.thinking_tokens >= recipe.min_tokens and (recipe.only == "all" or trace.correct)
    ]
    return sorted(kept, key=lambda trace: (place[trace.problem_id], trace.draw))


class Journal:
    """The file OUT.partial: a line that identifies the run, then a line per portion of chains, each flushed to disk.

    chains: by problem and draw, also those of an earlier call for the same run.
    """

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream, self.chains = path, stream, dict[tuple[str, int], Trace]()

    def add(self, chains: list[Trace]) -> None:
        """Add chains that are complete."""
        self.append({"rows": [chain._asdict() for chain in chains]})
        self.know(chains)

    def know(self, chains: list[Trace]) -> None:
        """Note chains that the file has."""
        self.chains |= {(chain.problem_id, chain.draw): chain for chain in chains}

    def append(self, data: object) -> None:
        """Write a line of JSON."""
        self.stream.write(json.dumps(data).encode() + b"\n")
        self.stream.flush()
        os.fsync(self.stream.fileno())


@contextmanager
def journal_of(target: Path, work: ResolvedPlan, overwrite: bool) -> Iterator[Journal]:
    """Within the context, the journal of the unfinished work on a target, which no other process can open meanwhile.

    An incomplete last line is dropped, and a journal without chains is deleted at the end. Raises PrunusError for the
    journal of another run, unless overwrite, which empties it.
    """
    settings = {**work.subject, **work.about.data, **work.plan.data}
    path = target.with_name(target.name + ".partial")
    lock = locked(path.with_name(path.name + ".lock"), f"is working on {path}; wait for it")
    with lock, path.open("a+b") as stream:
        journal = Journal(path, stream)
        stream.seek(0)
        lines = [line for line in stream if line.endswith(b"\n")]
        if lines and (stored := _parse(lines[0])).get("traces") != work.run_id:
            if not overwrite:
                differing = in_what(stored.get("settings"), settings)
                raise PrunusError(
                    f"{path} holds unfinished work of another run ({differing}): give that run's settings"
                    " to go on with it, move the file to keep its chains, or add --overwrite to lose them"
                )
            lines = []
        stream.truncate(sum(map(len, lines)))
        if not lines:
            journal.append({"traces": work.run_id, "settings": settings})
        for data in map(_parse, lines[1:]):
            journal.know([Trace(**row) for row in data["rows"]])
        try:
            yield journal
        finally:
            if not journal.chains:
                path.unlink(missing_ok=True)


def in_what(before: Any, after: Mapping[str, Any]) -> str:
    """The differences between a journal's settings and those here, such as `temperature 0.6, here 0.0`."""
    if not isinstance(before, dict):
        return "its first line is damaged"
    changed = [key for key in (*after, *before) if before.get(key) != after.get(key)]
    texts = [
        "another model"
        if key in ("model", "content")
        else f"{key.replace('_', ' ')} {value_text(before.get(key))}, here {value_text(after.get(key))}"
        for key in [key for key in changed if key not in FOLLOWS] or changed
    ]
    return "; ".join(dict.fromkeys(texts))


def _parse(line: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        if isinstance(data := parse_json(line), dict):
            return data
    return {}
