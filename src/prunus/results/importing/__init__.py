"""Import logs of other evaluation tools: each becomes a run of the store, at AS_RUN or at budgets of its files."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prunus import plain_data
from prunus.disk import as_path
from prunus.errors import PrunusError
from prunus.plain_data import content_hash
from prunus.questions import held_out_in, is_gated, leaders, question_key
from prunus.results.importing import evalscope, inspect_ai, lighteval, lm_eval, nemo_evaluator, nemo_skills
from prunus.results.importing.files import ImportedLog, LogGrade, LogRecord, first_line
from prunus.settings.budgets import AS_RUN
from prunus.store.characters import one_line
from prunus.store.labels import checked_name
from prunus.store.looping import loops
from prunus.store.rows import IMPORTED, UNKNOWN, ProblemRow, Run, Sample
from prunus.store.store import Store, check_folder, claim
from prunus.store.stored import Environment, StoredModel, StoredPlan
from prunus.version import __version__

FORMATS = (lm_eval, inspect_ai, lighteval, evalscope, nemo_skills, nemo_evaluator)


def read_log(path: Path) -> ImportedLog:
    """The log in a file. Raises PrunusError if it is of no known format, or has no outputs."""
    head = first_line(path)
    for tool in FORMATS:
        if tool.detect(path, head):
            log_of = f"a log of {tool.TOOL}"
            try:
                log = tool.read(path)
            except (TypeError, AttributeError, LookupError, ValueError, NotImplementedError) as error:
                # Values of other types than the tool writes are the file's fault, not an internal error.
                raise PrunusError(f"'{path}' is not {log_of} that this prunus can read ({error})") from error
            if not log.records:
                raise PrunusError(f"'{path}' is {log_of} without any output")
            return log
    known = ", ".join(f"{tool.TOOL} ({tool.FILES})" for tool in FORMATS)
    raise PrunusError(f"'{path}' is not recognised as a log; formats that can be imported: {known}")


Place = tuple[str, str]  # task and place of a record


def keys_of(records: Sequence[LogRecord]) -> dict[Place, str]:
    """{(task, place): hash of the question and its choices}.

    Questions that a task has twice are numbered in the order of their places, so that they stay two problems.
    """
    keys = {(record.task, record.place): question_key(record.question, record.choices) for record in records}
    seen: Counter[tuple[str, str]] = Counter()
    for task, place in sorted(keys, key=lambda at: (len(at[1]), at[1])):
        key = keys[task, place]
        seen[task, key] += 1
        if seen[task, key] > 1:
            keys[task, place] = f"{key}#{seen[task, key]}"
    return keys


def problem_rows(
    records: Sequence[LogRecord], keys: Mapping[Place, str], stored: Mapping[str, ProblemRow]
) -> dict[Place, ProblemRow]:
    """The problem of each (task, place). stored: the problems of the store by key.

    A problem that the store has keeps its id. The new ones of a log's task get the task's name in the store, if that
    has any problem of it.
    """
    known = {place: stored[key] for place, key in keys.items() if key in stored}
    names: dict[str, Counter[str]] = defaultdict(Counter)
    for (task, _), row in known.items():
        names[task][row.task] += 1
    rows: dict[Place, ProblemRow] = {}
    for record in records:
        place = record.task, record.place
        if place in known:
            rows[place] = known[place]
        elif place not in rows:
            task, key = max(names[record.task], key=names[record.task].__getitem__, default=record.task), keys[place]
            rows[place] = ProblemRow(
                task, f"{task}/{key}", record.target, IMPORTED, (), key, question=key, text=_kept(record)
            )
    return _grouped(
        rows, {(record.task, record.place): "\n".join([record.question, *sorted(record.choices)]) for record in records}
    )


def _kept(record: LogRecord) -> str | None:
    """The question with its choices as the store keeps it: not of gated sets."""
    gated = is_gated(record.task) or is_gated(held_out_in(record.question) or "")
    return None if gated else "\n".join([record.question, *record.choices])


def _grouped(rows: Mapping[Place, ProblemRow], texts: Mapping[Place, str]) -> dict[Place, ProblemRow]:
    """The rows with their groups, by the questions of each task; only imported rows without a group are changed."""
    grouped = dict(rows)
    for task in dict.fromkeys(row.task for row in rows.values()):
        places = [place for place, row in rows.items() if row.task == task]
        keys = [rows[place].group or "" for place in places]
        for place, first in zip(places, leaders([texts[place] for place in places], keys), strict=True):
            row, of = rows[place], rows[places[first]]
            if row.kind == IMPORTED and row.group is None:
                grouped[place] = replace(row, group=of.group or of.problem_id)
    return grouped


class Imported(plain_data.PrintedRecord):
    """What an import added.

    run: the id of the run, which is also the record's text.
    tool: with its version.
    metric: which says whether an output is correct.
    tasks: names, in one text.
    problems: number of problems.
    rows: number of rows; only those that are new in the store count.
    ungraded: outputs that the tool did not grade, which are left out.
    has: which of tokens and ends the log records.
    """

    run: str
    tool: str
    metric: str
    tasks: str
    problems: int
    rows: int
    ungraded: int
    has: str

    def __str__(self) -> str:
        return self.run


def import_(
    store: str | Path,
    files: str | Path | Sequence[str | Path],
    name: str,
    metric: str | None = None,
    threshold: float | None = None,
    budgets: Sequence[int] = (),
) -> Imported:
    """Add the outputs in logs of another evaluation tool to a store, as one run under a name, in a transaction.

        print(prunus.import_("results.db", "samples_gsm8k.jsonl", "my-model", metric="exact_match,strict-match").rows)

    store: SQLite file, created if missing.
    files: a log, or several of one model by one tool, such as a log of each task: of lm-eval (samples_*.jsonl),
        inspect_ai (.eval, .json), lighteval (details, .parquet), evalscope (reviews, .jsonl), NeMo-Skills
        (output-rs*.jsonl) or NeMo Evaluator (results.jsonl); docs/import.md says what is read of each.
    name: of the run, in tables and for `compare`.
    metric: which of a log's metrics says whether an output is correct; needed if it has several.
    threshold: least score that counts as correct; needed if scores lie between 0 and 1.
    budgets: thinking tokens that the run of each file allowed, so that logs of several budgets become one run with a
        curve; none: outputs are stored at the budget AS_RUN ("as run").

    Problems with equal questions are the same problem in every run of the store, so imported runs can be compared with
    each other and with runs of `evaluate`. An import that the store already has adds nothing. Raises PrunusError, and
    leaves the store as it is, if a log is not recognised, damaged, incomplete or of an unknown version, if several
    metrics or scores leave a choice, and if the name is taken.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    label = checked_name(name)
    logs = _with_budgets([read_log(path) for path in paths], budgets)
    log = _together(logs, paths)
    chosen = _metric(log.records, metric)
    graded = [record for record in log.records if _grade(record, chosen).score is not None]
    if not graded:
        raise PrunusError(f"no output in '{paths[0]}' has a score by {chosen}: choose another --metric")
    _check_scores(graded, chosen, threshold)
    keys = keys_of(graded)
    plan = _plan(log, graded, keys, chosen, threshold)
    digests = sorted(_digest(path) for path in paths)
    identity = {"import": label, "files": digests, "metric": chosen, "threshold": threshold}
    run_id = content_hash(identity | ({"budgets": list(budgets)} if budgets else {}))
    path, ungraded = as_path(store, "store"), len(log.records) - len(graded)
    check_folder(path)
    with claim(path, run_id), Store(path, create=True) as opened:
        _check_free(opened, label, run_id)
        stored = {row.question: row for row in opened.problems().values() if row.question is not None}
        problems = problem_rows(graded, keys, stored)
        versions = Environment.of({"prunus": __version__, log.tool: log.version})
        run = Run(run_id, _model(label, log, digests, ungraded), plan, versions)
        samples = [_sample(record, problems[record.task, record.place], chosen, threshold) for record in graded]
        _check_draws(samples)
        done = bool(opened.keys(run_id))
        added = 0 if done else opened.add_complete_run(run, list(problems.values()), samples)
    return Imported(
        run=run_id,
        tool=log.tool if log.version is None else f"{log.tool} {log.version}",
        metric=chosen,
        tasks=", ".join(sorted({row.task for row in problems.values()})),
        problems=len({row.problem_id for row in problems.values()}),
        rows=added,
        ungraded=ungraded,
        has=_recorded(graded),
    )


def _with_budgets(logs: Sequence[ImportedLog], budgets: Sequence[int]) -> list[ImportedLog]:
    """The logs with the budget of each file. Raises PrunusError for budgets that do not fit the files."""
    if not budgets:
        return list(logs)
    if len(budgets) != len(logs):
        raise PrunusError(f"{len(logs)} files have {len(budgets)} budgets: give --budget for each, in their order")
    if wrong := [budget for budget in budgets if type(budget) is not int or budget < 1]:
        raise PrunusError(f"a budget is a number of thinking tokens above 0, not {wrong[0]}")
    return [
        replace(log, records=[replace(record, budget=budget) for record in log.records])
        for log, budget in zip(logs, budgets, strict=True)
    ]


def _together(logs: Sequence[ImportedLog], paths: Sequence[Path]) -> ImportedLog:
    """Several logs as one. Raises PrunusError if they are of several tools or models, or if two have the same task."""
    first = logs[0]
    for path, log in zip(paths, logs, strict=True):
        for what in ("tool", "version", "model"):
            expected, value = getattr(first, what), getattr(log, what)
            if expected != value:
                raise PrunusError(
                    f"'{paths[0]}' and '{path}' differ in {what} ({expected}, {value}): import each --as its own"
                )
    found: dict[tuple[str, int, int], Path] = {}  # files of several draws or budgets have the same task
    for path, log in zip(paths, logs, strict=True):
        for key in dict.fromkeys((record.task, record.draw, record.budget) for record in log.records):
            if key in found:
                raise PrunusError(
                    f"'{found[key]}' and '{path}' both have task '{key[0]}': import each --as its own, or give the"
                    " --budget of each"
                )
            found[key] = path
    settings = first.settings if len(logs) == 1 else {"of each file": [dict(log.settings) for log in logs]}
    return ImportedLog(
        first.tool, first.version, first.model, [record for log in logs for record in log.records], settings
    )


def _metric(records: Iterable[LogRecord], wanted: str | None) -> str:
    """The metric that grades. Raises PrunusError with the choices if it has to be named, or is not there."""
    by_task: dict[str, set[str]] = {}
    for record in records:
        by_task.setdefault(record.task, set()).update(record.grades)
    shared = sorted(set.intersection(*by_task.values()))
    listed = ", ".join(shared) or "none"
    if wanted is not None:
        if wanted not in shared:
            raise PrunusError(f"the log has no metric '{wanted}' (for every task): choose --metric of {listed}")
        return wanted
    if not shared:
        raise PrunusError("the log has no metric that all its tasks share: import the tasks --as runs of their own")
    if len(shared) > 1:
        raise PrunusError(f"the log has several metrics: choose --metric of {listed}")
    return shared[0]


def _grade(record: LogRecord, metric: str) -> LogGrade:
    return record.grades.get(metric, LogGrade(None))


def _check_scores(graded: Iterable[LogRecord], metric: str, threshold: float | None) -> None:
    """Raise PrunusError if a score is neither 0 nor 1 and no finite threshold says what that means."""
    if threshold is not None:
        if not math.isfinite(threshold):
            raise PrunusError(f"--threshold must be a finite number, not {threshold}")
        return
    for record in graded:
        if (score := _grade(record, metric).score) not in (0, 1):
            raise PrunusError(
                f"{metric} has scores besides 0 and 1, such as {score:g}, but verdicts need right or wrong: choose"
                " another --metric, or the least score that counts as correct with --threshold"
            )


def _check_free(store: Store, name: str, run_id: str) -> None:
    """Raise PrunusError if another run of the store has the name."""
    for run in store.runs():
        if run.model.name == name and run.run_id != run_id:
            raise PrunusError(f"{store.path} already has a run named '{name}' ({run.run_id}): choose another --as")


def _check_draws(samples: Iterable[Sample]) -> None:
    seen: set[tuple[str, int, int]] = set()
    for sample in samples:
        if (key := (sample.problem_id, sample.budget, sample.draw)) in seen:
            raise PrunusError(
                f"the log has two outputs of number {sample.draw} for problem {sample.problem_id}: it is of two runs"
            )
        seen.add(key)


def _plan(
    log: ImportedLog, graded: Sequence[LogRecord], keys: dict[Place, str], metric: str, threshold: float | None
) -> StoredPlan:
    """Stored: the settings by which runs are compared; other settings, tool or metric make another import."""
    plan = {
        "tasks": sorted({record.task for record in graded}),
        "budgets": [str(AS_RUN) if budget == AS_RUN else budget for budget in sorted({r.budget for r in graded})],
        "samples": max(record.draw for record in graded) + 1,
        "mode": str(AS_RUN),
        "tool": log.tool,
        "metric": metric,
        "problems": content_hash(sorted(keys.values()), 16),
        **{key: value for key, value in log.settings.items() if value not in (None, {}, [])},
    }
    return StoredPlan.of(plan if threshold is None else plan | {"threshold": threshold})


def _model(name: str, log: ImportedLog, digests: Sequence[str], ungraded: int) -> StoredModel:
    """The description of the model, whose checksum is a hash of the logs' digests, since its weights are not known."""
    recipe = {"as": name, "tool": log.tool, "model": one_line(log.model)}
    notes = [f"{ungraded} of {len(log.records)} outputs of its log are left out, as {log.tool} did not grade them"]
    step = {"action": "import", "recipe": recipe, "versions": {}, "warnings": notes * bool(ungraded)}
    checksum = hashlib.sha256("".join(digests).encode()).hexdigest()
    model = {"name": name, "source": log.model, "checksum": checksum, "manifest": {"history": [step]}}
    return StoredModel.of(model | {"parameters": None, "blocks": None})


def _recorded(graded: Sequence[LogRecord]) -> str:
    present = {
        "tokens": any(record.output_tokens is not None for record in graded),
        "ends": any(record.stopped is not None for record in graded),
    }
    return " and ".join(name for name, there in present.items() if there) or "neither tokens nor ends"


def _sample(record: LogRecord, problem: ProblemRow, metric: str, threshold: float | None) -> Sample:
    """The row of a graded output. Its answer tokens are all tokens that the log does not call reasoning."""
    grade = _grade(record, metric)
    tokens, reasoning = record.output_tokens, record.reasoning_tokens or 0
    return Sample(
        task=problem.task,
        problem_id=problem.problem_id,
        budget=record.budget,
        draw=record.draw,
        thinking_tokens=UNKNOWN if tokens is None else min(reasoning, tokens),
        answer_tokens=UNKNOWN if tokens is None else max(0, tokens - reasoning),
        forced_tokens=UNKNOWN if record.stopped is None else 0,
        ended="forced" if record.stopped is False else "natural",
        answer_truncated=False,
        reopened_think=False,
        answer=grade.answer,
        status="ok",
        correct=(grade.score or 0) >= (1 if threshold is None else threshold),
        thinking=record.thinking,
        text=record.text,
        loops=loops(record.thinking, record.text, None),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
