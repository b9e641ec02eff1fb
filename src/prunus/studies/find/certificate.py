"""The certificate of a search: what is claimed, and on which rows it rests. `verify` checks it.

A certificate (`results.certificate`) has three parts. `declared` is what was fixed beforehand (`Search.declared`): the
model, plan, ladders, margins, alpha, problems and their order. `shown` is everything that follows from it and the
store: `computed` walks the ladders again over the rows, and reads which searches were declared before this search, and
before which rows. `made` is the checkpoint that was written. A certificate is no signature: whoever changes store and
certificate together can make it say anything.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from prunus.cards.certified import CERTIFICATE, SERVED, checkpoint_of, problems_had
from prunus.disk import show_bytes
from prunus.formats import FORMATS
from prunus.plain_data import canonical_json, content_hash
from prunus.results.certificate import (
    BoundsByRound,
    Certificate,
    Declaration,
    DeclaredRung,
    DeclaredServing,
    Endings,
    FoundRung,
    SearchResult,
    ShownDense,
    ShownLadder,
    ShownRung,
    WrittenCheckpoint,
    content_of,
)
from prunus.results.ladder import ACCURACY, DENSE, ENDS, Rule, paths
from prunus.results.verdicts import MOST, rare_endings
from prunus.results.vocabulary import RungVerdict
from prunus.settings.margins import Margin
from prunus.statistics.betting import ALPHA, interval
from prunus.statistics.metrics import auc_weights
from prunus.store.rows import ProblemRow, Sample
from prunus.store.store import COLUMNS, TEXT_COLUMNS, Store
from prunus.store.stored import StoredPlan
from prunus.studies.find.decisions import SearchRows, cautions, decided, up_to
from prunus.studies.find.trace import trace
from prunus.version import __version__

MOST_POINTS = 120  # of a path in the certificate
SCORES = ("logprob", "self_certainty")  # their last bits depend on the number of processes, and nothing rests on them
ALL = tuple(name for name in COLUMNS if name not in (*SCORES, *TEXT_COLUMNS))
ASIDE = (CERTIFICATE, "find.html", "README.md")  # files that are written after the certificate, or again later


def computed(store: Store, declared: Declaration) -> SearchResult:
    """What the declared search shows, from the store alone: the decision on every rung, and what was found.

    Raises PrunusError if the store lacks a run, or rows that a decision needs.
    """
    rows, rule, dense = SearchRows(store, declared), declared.rule, declared.dense
    order, runs = rows.order, {run.run_id: run for run in store.runs()}
    dense_looked, spent = 0, 0
    rungs: list[list[ShownRung]] = [[] for _ in declared.ladders]
    best: tuple[DeclaredRung, ShownRung, int] | None = None
    for outcome in decided(rows, declared):
        rung, decision, looked, run = outcome.rung, outcome.decision, outcome.looked, runs[outcome.rung.run]
        run_id, dense_looked, spent = run.run_id, outcome.dense_looked, outcome.spent
        shown = ShownRung(
            name=rung.name,
            run=run_id,
            word=decision.word,
            why=outcome.why,
            failed=decision.failed,
            rounds=decision.rounds,
            problems=sum(map(len, order[: decision.rounds])),
            looked=looked,
            tokens=outcome.tokens,
            evidence=decision.evidence,
            path=_path(outcome.differences, decision.rounds, rule),
            accuracy=accuracy(rows, run_id, looked) if looked else None,
            dense_accuracy=accuracy(rows, dense, looked) if looked else None,
            checksum=run.model.checksum,
            recipe=run.model.manifest.history,
            versions=run.environment,
            same_plan=_same_plan(run.plan, runs[dense].plan, declared.samples),
            rows=digest(rows, run_id, looked),
            bytes=None if rung.bytes is None else run.nbytes or rung.bytes,
            cache=rung.cache,
        )
        rungs[outcome.ladder].append(shown)
        same_ladder = best is not None and best[2] == outcome.ladder
        if decision.word == RungVerdict.CERTIFIED and rung.exceeds(best and best[0], same_ladder):
            best = rung, shown, outcome.ladder
    ladders = [ShownLadder(name=ladder.name, rungs=seen) for ladder, seen in zip(declared.ladders, rungs, strict=True)]
    problems, dense_tokens = store.problems(), rows.tokens(dense, dense_looked)
    shown_all = SearchResult(
        ladders=ladders,
        found=best and _found_rung(*best[:2]),
        dense=ShownDense(
            run=dense,
            looked=dense_looked,
            tokens=dense_tokens,
            rows=digest(rows, dense, dense_looked),
            checksum=runs[dense].model.checksum,
            plan=runs[dense].plan,
            versions=runs[dense].environment,
        ),
        tokens=spent,
        full_grid_tokens=_grid_tokens(declared, ladders, dense_tokens, dense_looked, len(order)),
        problems=content_hash(
            sorted(_problem(problems[name], task) for round in order[:dense_looked] for task, name in round), 64
        ),
        searches=trace(store, declared),
    )
    return replace(shown_all, claims=claims(declared, shown_all))


def _found_rung(rung: DeclaredRung, shown: ShownRung) -> FoundRung:
    return FoundRung(
        name=rung.name,
        run=rung.run,
        removed=rung.removed,
        checksum=shown.checksum,
        problems=shown.problems,
        bytes=shown.bytes,
        cache=shown.cache,
    )


def _same_plan(plan: StoredPlan, dense: StoredPlan, samples: int) -> bool:
    """Whether a rung's plan is the dense model's but for the number of draws, which must be the declared `samples`."""
    of_samples = {"samples": samples}
    return plan | of_samples == dense | of_samples and ("samples" not in plan.data or plan.samples == samples)


def _problem(stored: ProblemRow, task: str) -> list[Any]:
    return [task, stored.problem_id, stored.digest, stored.gold, stored.kind, list(stored.choices)]


def digest(rows: SearchRows, run_id: str, looked: int) -> str:
    """A hash of a run's rows in the first rounds: texts and all columns but the scores."""
    hasher = hashlib.sha256()
    for s in (s for round in rows.up_to(run_id, looked) for s in round):
        key = s.problem_id, s.budget, s.draw
        values = [getattr(s, name) for name in ALL]
        hasher.update(f"{canonical_json([*values, *rows.store.texts(run_id, [key])[key]])}\n".encode())
    return hasher.hexdigest()


def accuracy(rows: SearchRows, run_id: str, looked: int) -> list[tuple[float, float, float]]:
    """(estimate, lower bound, upper bound) of the accuracy at every budget: the mean over the first rounds.

    The accuracy of a round is the mean over its tasks, over the groups of each, and over the problems of each group.
    Each interval alone holds with 95 %.
    """
    values_TB = np.array([_accuracy(rows, round) for round in rows.up_to(run_id, looked)])
    low_B, high_B = interval(values_TB, ALPHA, len(rows.order))
    return [*zip(values_TB.mean(axis=0).tolist(), low_B.tolist(), high_B.tolist(), strict=True)]


def _accuracy(rows: SearchRows, round: Sequence[Sample]) -> NDArray[np.float64]:
    """The accuracy at every budget in a round."""
    by_task: dict[str, dict[str, list[list[float]]]] = {}
    for task, problem in sorted({(s.task, s.problem_id) for s in round}):
        mine = [s for s in round if s.problem_id == problem]
        shares = [float(np.mean([s.correct for s in mine if s.budget == b])) for b in rows.budgets]
        by_task.setdefault(task, {}).setdefault(rows.groups.get(problem, problem), []).append(shares)
    means = [np.mean([np.mean(each, axis=0) for each in of_task.values()], axis=0) for of_task in by_task.values()]
    return np.mean(np.array(means), axis=0)


def _path(differences: Mapping[str, NDArray[np.float64]], T: int, rule: Rule) -> BoundsByRound:
    """Estimate, lower and upper bound of each endpoint after some of the first T rounds, the last among them."""
    at = sorted({round(x) for x in np.linspace(1, T, min(T, MOST_POINTS))})
    seen = paths({end: values[:T] for end, values in differences.items()}, rule)
    of = {
        end: [[float(x[t - 1]) for x in (bounds.estimate, bounds.lower, bounds.upper)] for t in at]
        for end, bounds in seen.items()
    }
    return BoundsByRound(rounds=at, accuracy=of[ACCURACY], ends=of[ENDS])


def _grid_tokens(declared: Declaration, ladders: Sequence[ShownLadder], dense: int, looked: int, total: int) -> int:
    """What all rungs and the dense model in full would take, if the rest of each were like what was looked at.

    dense: tokens of the dense model over the rounds looked at. total: number of rounds.
    """
    per_round = dense / max(1, looked)
    seen = [rung.tokens / rung.looked for ladder in ladders for rung in ladder.rungs if rung.looked]
    return round(total * (per_round * (1 + len(declared.rungs) - len(seen)) + sum(seen)))


def claims(declared: Declaration, shown: SearchResult) -> list[str]:
    """What is claimed, in sentences: two about the checkpoint of each certified rung, and one about their errors.

    With a ladder by bytes there is a third about each checkpoint.
    """
    model, tasks = declared.model, " and ".join(sorted(declared.problems))
    positive = [b for b in declared.budgets if b > 0]
    measure = (
        f"its area under accuracy over log2 of the thinking budget ({positive[0]} to {positive[-1]} tokens)"
        if len(positive) > 1
        else f"its accuracy at {positive[-1]} thinking tokens"
    )
    sentences = []
    for rung in shown.rungs:
        if rung.certified:
            own = next(declared_rung.serving for declared_rung in declared.rungs if declared_rung.run == rung.run)
            dense = model.name + served_with(model.serving)
            accuracy, ends = (below(margin, dense) for margin in (declared.margin, declared.stop_margin))
            share = f"the share of its chains that end by themselves within {positive[-1]} tokens"
            about = checkpoint_of(rung.name, rung.checksum) + served_with(own or model.serving)
            sentences += [f"{about}: {measure} on {tasks} is {accuracy}", f"{about}: {share} is {ends}"]
            if rung.size is not None and model.size is not None:
                sizes = [show_bytes(size) for size in (rung.size, model.size)]
                chain = "" if model.tokens is None else f", with the cache of a chain of {model.tokens:,} tokens"
                verb = "loads" if model.tokens is None else "takes"
                sentences.append(
                    f"{about}: {model.engine} {verb} {sizes[0]} of it, and {sizes[1]} of {model.name}{chain}"
                )
    return [*sentences, _error(declared, shown)] if sentences else []


def served_with(serving: DeclaredServing | None) -> str:
    """` served with KV q4_0 (-ctk q4_0)`; empty without a setting that counts."""
    return "" if serving is None else f"{SERVED}{serving.words}"


def _error(declared: Declaration, shown: SearchResult) -> str:
    """Sentence on the largest probability of a false claim, with earlier searches counted, and on its conditions."""
    many, traced = len(declared.ladders), shown.searches
    over = f", over all {many} ladders" if many > 1 else ""
    if not traced or not traced.before:
        text = f"The probability that any claim is false is at most {100 * declared.alpha:g} %{over}"
    else:
        before = len(traced.before)
        others = f"the {before} searches" if before > 1 else "the search"
        text = (
            f"The probability that any claim of this search{over} or of {others} before it on the same model and tasks"
            f" is false is at most {100 * traced.alpha:g} %, the sum of their alphas"
        )
    if declared.groups:
        text += f", if the {declared.number_of_groups} groups of problems are independent"
    if traced and traced.had:
        also = " and" if declared.groups else ","
        text += f"{also} if its declaration did not depend on the rows that existed then ({problems_had(traced.had)})"
    return text


def below(margin: Margin, dense: str) -> str:
    """`less than 2 points below tiny's`, or `less than 5 % of tiny's below it`."""
    whose = f"{dense}'s"
    return f"less than {margin.words(whose)} below {'it' if margin.relative else whose}"


def dense_area(declared: Declaration, shown: SearchResult) -> float | None:
    """What the dense model solves on average over the budgets, on all problems looked at; None if there are none."""
    longest = max(shown.rungs, key=lambda rung: rung.looked, default=None)
    if longest is None or longest.dense_accuracy is None:
        return None
    return float(auc_weights(declared.budgets) @ [estimate for estimate, _, _ in longest.dense_accuracy])


def endings(store: Store, declared: Declaration, shown: SearchResult) -> Endings | None:
    """The shares of chains that end by themselves: of the dense model, and of the rung that was found.

    They are over the problems looked at for the rung that was found, or else for the rung with the most; None if no
    problem was looked at.
    """
    rows, rungs = SearchRows(store, declared), [rung for rung in shown.rungs if rung.looked]
    if not rungs:
        return None
    found = [rung for rung in rungs if shown.found and rung.run == shown.found.run]
    rung = found[0] if found else max(rungs, key=lambda rung: rung.looked)
    differences = up_to(rows.differences(rung.run), rung.looked)
    dense, apart = (float(differences[name].mean()) for name in (DENSE[ENDS], ENDS))
    return Endings(dense=dense, found=dense + apart if found else None)


def caution(declared: Declaration, shown: SearchResult, ended: Endings | None) -> str | None:
    """A warning where the dense model solves so little, or ends so few chains, that a margin says little.

    ended: of `endings`. None where it solves and ends enough.
    """
    area = dense_area(declared, shown)
    dense = {} if area is None else {ACCURACY: area}
    if ended is not None:
        dense[ENDS] = ended.dense
    return cautions(declared.rule, dense, "the original") or None


def stops(declared: Declaration, ended: Endings | None) -> bool:
    """Whether the rung that was found may be said to still stop: most of its chains end, and the margin is small.

    ended: as of caution; None: it may.
    """
    if ended is None or ended.found is None:
        return ended is None
    return ended.found >= MOST and rare_endings(declared.stop_margin, ended.dense) is None


def certificate(
    store: Store, declared: Declaration, checksum: str | None, files: Mapping[str, str] | None = None
) -> Certificate:
    """The certificate of a finished search, which was declared in the store.

    checksum: of the checkpoint that was written; None if none was. files: those of its folder, as `files_of`.
    """
    shown = computed(store, declared)
    assert shown.searches is not None, "the search was not declared"
    ended = endings(store, declared, shown)
    made = Certificate(
        format=FORMATS["certificate"],
        prunus=__version__,
        declared=declared,
        shown=shown,
        endings=ended,
        caution=caution(declared, shown, ended),
        made=WrittenCheckpoint(checksum=checksum, files=dict(files or {})),
        content="",
    )
    return replace(made, content=content_of(made.to_json()))


def files_of(folder: Path) -> dict[str, str]:
    """{name: BLAKE3} of the files of a checkpoint's folder, without hidden ones, the model card and those of `find`."""
    digests = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if file.is_file() and not hidden and name not in ASIDE and file.suffix != ".writing":
            digests[name] = blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()
    return digests
