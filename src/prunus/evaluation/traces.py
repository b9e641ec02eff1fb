"""Write a model's own chains of thought as token ids with metadata, for calibration of reasoning models.

The idea is from RAC, arXiv:2509.12464. Token ids are stored rather than texts, because a chat template may drop the
thinking. Finished batches are kept in OUT.partial, one per line, until the chains that pass the filters are written to
OUT in one step. A backend that streams gets all chains at once, and each is kept as soon as it is complete.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.contamination import evaluation_set, question_digest
from prunus.disk import disk_errors, locked, write_text
from prunus.engines import BACKENDS, EngineOptions
from prunus.errors import PrunusError
from prunus.evaluation.backends import opened
from prunus.evaluation.budget import Draw, force_budgets_as_completed
from prunus.evaluation.flow import InBackground
from prunus.evaluation.grading import Grader
from prunus.evaluation.pace import Pace
from prunus.evaluation.pipeline import graded, opened_model, run_batch
from prunus.evaluation.resolved_plan import ResolvedPlan, check_engine, resolve_plan
from prunus.evaluation.tasks import TASKS, Problem
from prunus.parse import parse_json
from prunus.progress import Steps
from prunus.recipes import TraceRecipe
from prunus.results.rows import Sample

Trace = dict[str, Any]
BYTES_PER_TOKEN = 16  # of JSON, in the partial and the final file together


def traces(
    model: str | Path,
    out: str | Path,
    recipe: TraceRecipe,
    *,
    device: str = "auto",
    engine: EngineOptions | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Draw chains of a model (`tiny`, folder or hub id), write those that pass the filters to out, return a summary.

    out: a .jsonl file. A line has token_ids (prompt, thinking and, if the model ended its thinking itself, closing and
    answer), prompt_tokens (number of ids of the prompt), thinking_tokens, ended, correct, problem_id, problem_digest
    and draw.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU if there is one. engine: options to start or reach the recipe's
    backend (docs/engines.md). overwrite: replace out, and unfinished work of another run.
    Returns out, chains (number written), of (number drawn), correct (chains), tokens (of the written chains) and
    seconds.
    Raises PrunusError for problems of evaluation sets, before anything is drawn, and if no chain passes the filters;
    then the chains stay in out.partial, so that a call with other filters draws none again.
    """
    started, target = time.monotonic(), Path(out)
    check_target(target, overwrite)
    engine = engine or EngineOptions()
    engine.check(recipe.backend)
    if BACKENDS[recipe.backend].loads_itself:
        checkpoint, _, engine = opened_model(model, recipe.backend, device, engine)
    else:
        checkpoint = ModelFolder(resolve(model))
    folder = checkpoint.folder
    work = resolve_plan(checkpoint, load_tokenizer(folder), recipe.plan())
    check_problems(work.problems)
    longest = sum(len(work.prompts[index]) + recipe.max_tokens for batch in work.batches for index, _ in batch)
    with (
        disk_errors(target.absolute().parent, BYTES_PER_TOKEN * longest),
        Journal(target, work.run_id, overwrite) as journal,
    ):
        missing = [number for number in range(len(work.batches)) if number not in journal.batches]
        if missing:
            with opened(recipe.backend, folder, device, len(work.tokenizer), engine) as backend:
                check_engine(work, backend)
                draw(work, journal, missing, backend)
        found = [trace for number in range(len(work.batches)) for trace in journal.batches[number]]
        kept = choose(found, recipe)
        if not kept:
            raise PrunusError(
                f"none of {len(found)} chains passes the filters; loosen them and run again (all are kept)"
            )
        write_text(target, "".join(json.dumps(trace) + "\n" for trace in kept))
        journal.remove()
    return {
        "out": str(target),
        "chains": len(kept),
        "of": len(found),
        "correct": sum(trace["correct"] for trace in kept),
        "tokens": sum(len(trace["token_ids"]) for trace in kept),
        "seconds": time.monotonic() - started,
    }


def check_target(target: Path, overwrite: bool) -> None:
    """Raise PrunusError unless target can be written."""
    if target.suffix != ".jsonl":
        raise PrunusError(f"{target} must end in .jsonl")
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


def draw(work: ResolvedPlan, journal: "Journal", missing: Sequence[int], backend: Any) -> None:
    """Draw and grade the missing batches; each is added to the journal as soon as it is finished."""
    total = sum(map(len, work.batches))
    to_do = sum(len(work.batches[number]) for number in missing)
    if backend.streams:
        to_do -= len(journal.chains)
    with Grader() as grader, Steps("drawing", total, "chains", done=total - to_do) as steps:
        if backend.streams:
            draw_as_completed(work, journal, missing, backend, grader, steps)
            return
        pace = Pace(work.largest_budget)
        for number in missing:
            batch = work.batches[number]
            with pace.shown(backend, len(batch), len(batch), steps.within):
                draws = run_batch(work, backend, batch)
            journal.add(number, graded_traces(work, grader, batch, draws))
            steps.advance(len(batch))


def draw_as_completed(
    work: ResolvedPlan, journal: "Journal", missing: Sequence[int], backend: Any, grader: Grader, steps: Steps
) -> None:
    """The same with a backend that streams; every chain is added as soon as it is complete, in another thread."""
    places = [(number, place) for number in missing for place in range(len(work.batches[number]))]
    places = [place for place in places if place not in journal.chains]
    asked = [work.chain(*work.batches[number][place]) for number, place in places]

    def keep(finished: Sequence[tuple[tuple[int, int], list[Draw]]]) -> None:
        batch = [work.batches[number][place] for (number, place), _ in finished]
        traces = graded_traces(work, grader, batch, [draws for _, draws in finished])
        for (place, _), trace in zip(finished, traces, strict=True):
            journal.add_chain(*place, trace)

    with InBackground(keep) as background:
        for at, draws in force_budgets_as_completed(backend, asked, work.budgets, work.rules, work.reuse):
            background.put((places[at], draws))
            steps.advance(1)
    for number in missing:
        journal.batches[number] = [journal.chains[number, place] for place in range(len(work.batches[number]))]


def graded_traces(
    work: ResolvedPlan, grader: Grader, batch: Sequence[tuple[int, int]], draws: Sequence[Sequence[Draw]]
) -> list[Trace]:
    """The lines of some chains."""
    samples = graded(work, grader, batch, draws)
    return [
        trace_of(work.problems[index], work.prompts[index], drawn, sample)
        for (index, _), (drawn,), sample in zip(batch, draws, samples, strict=True)
    ]


def trace_of(problem: Problem, prompt: list[int], drawn: Draw, sample: Sample) -> Trace:
    """One line of the result; after a forced ending, without the closing, which the model did not choose."""
    answer = [*drawn.closing, *drawn.answer] if drawn.ended == "natural" else []
    return {
        "token_ids": [*prompt, *drawn.thinking, *answer],
        "prompt_tokens": len(prompt),
        "thinking_tokens": len(drawn.thinking),
        "ended": drawn.ended,
        "correct": sample.correct,
        "problem_id": problem.id,
        "problem_digest": question_digest(problem.question),
        "draw": sample.draw,
    }


def choose(found: Sequence[Trace], recipe: TraceRecipe) -> list[Trace]:
    """The chains that pass the filters, by problem (in the order of their first chain), then by draw.

    hardest: of the problems that still have a chain, only the half (rounded up) that was solved least often over all
    draws is kept; among equals, those with the longest thinking.
    """
    by_problem: dict[str, list[Trace]] = defaultdict(list)
    for trace in found:
        by_problem[trace["problem_id"]].append(trace)
    passing = {
        problem: [trace for trace in of_problem if passes(trace, recipe)] for problem, of_problem in by_problem.items()
    }
    problems = [problem for problem, kept in passing.items() if kept]
    if recipe.hardest:
        ordered = sorted(problems, key=lambda problem: difficulty(by_problem[problem]), reverse=True)
        harder = set(ordered[: (len(ordered) + 1) // 2])
        problems = [problem for problem in problems if problem in harder]
    return [trace for problem in problems for trace in sorted(passing[problem], key=lambda trace: trace["draw"])]


def passes(trace: Trace, recipe: TraceRecipe) -> bool:
    """Whether a chain passes the recipe's filters on length and correctness."""
    return trace["thinking_tokens"] >= recipe.min_tokens and (recipe.only == "all" or trace["correct"])


def difficulty(of_problem: Sequence[Trace]) -> tuple[float, float]:
    """(share of draws that failed, mean thinking tokens)."""
    count = len(of_problem)
    failed = sum(not trace["correct"] for trace in of_problem) / count
    return failed, sum(trace["thinking_tokens"] for trace in of_problem) / count


class Journal:
    """The file OUT.partial: a line that identifies the run, then a line per finished batch, each flushed to disk.

    batches: the finished ones, also those of an earlier call for the same run; an incomplete line is dropped.
    chains: those that were added one by one, by (batch, place in it).
    """

    def __init__(self, target: Path, run_id: str, overwrite: bool) -> None:
        self.path, self.run_id, self.overwrite = target.with_name(target.name + ".partial"), run_id, overwrite
        self.batches: dict[int, list[Trace]] = {}
        self.chains: dict[tuple[int, int], Trace] = {}

    def __enter__(self) -> "Journal":
        lock = self.path.with_name(self.path.name + ".lock")
        with ExitStack() as stack:
            stack.enter_context(locked(lock, f"is working on {self.path}; wait for it"))
            self.stream: IO[bytes] = stack.enter_context(self.path.open("a+b"))
            self._read()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self.stack:  # closes the journal, then releases the lock
            if not self.batches and not self.chains:
                self.path.unlink(missing_ok=True)

    def add(self, number: int, rows: list[Trace]) -> None:
        """Add a finished batch."""
        self._append({"batch": number, "rows": rows})
        self.batches[number] = rows

    def add_chain(self, number: int, place: int, trace: Trace) -> None:
        """Add one chain of a batch."""
        self._append({"chain": [number, place], "row": trace})
        self.chains[number, place] = trace

    def remove(self) -> None:
        """Delete the journal, once the result is written."""
        self.path.unlink()

    def _append(self, data: Mapping[str, Any]) -> None:
        self.stream.write(json.dumps(data).encode() + b"\n")
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def _read(self) -> None:
        self.stream.seek(0)
        whole = b""
        for line in self.stream:
            if not line.endswith(b"\n"):
                break
            data = _parse(line)
            if not whole and data.get("traces") != self.run_id:
                if not self.overwrite:
                    raise PrunusError(f"{self.path} holds unfinished work of another run; delete it or add --overwrite")
                break
            if whole and "chain" in data:
                number, place = data["chain"]
                self.chains[number, place] = data["row"]
            elif whole:
                self.batches[data["batch"]] = data["rows"]
            whole += line
        self.stream.truncate(len(whole))
        if not whole:
            self._append({"traces": self.run_id})


def _parse(line: bytes) -> dict[str, Any]:
    try:
        data = parse_json(line)
    except ValueError:
        data = None
    return data if isinstance(data, dict) else {}
