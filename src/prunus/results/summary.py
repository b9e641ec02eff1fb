"""The statistics of one run, computed from its rows."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.budgets import AS_RUN
from prunus.results import best_of, metrics, paired, scaling
from prunus.results.completeness import unfinished
from prunus.results.labels import control_steps, dtypes_of
from prunus.results.metrics import AUC
from prunus.results.parallel import compare_parallel
from prunus.results.rows import Run
from prunus.results.store import Store
from prunus.results.table import Table, tables

Floats = NDArray[np.float64]
SCORES = ("logprob", "self_certainty", "shortest")
SCALING = ("auc_tokens", "scaling", "performance", "control", "control_total", "monotonicity")


def summarise(store: Store, run_id: str) -> dict[str, Any]:
    """The statistics of one run, as plain data. Raises PrunusError if the store has no such run.

    A budget's cell covers the problems with all draws at that budget; everything else those complete at every budget.

    Keys: `run`, `model`, `recipe`, `plan`, `versions`, and `tasks` -> task ->
    `problems` (finished), `started`, `samples` (draws of each);
    `groups` (finished, where problems form fewer groups that count as one observation each);
    `budgets` -> budget -> n (problems or groups; then also `problems`), samples, accuracy (avg@N), se, low, high (95
        %), pass_at, maj_at by k, best_of by score (logprob, self_certainty, shortest) and k, a score being None where
        rows lack it, tokens (thinking, answer, forced, total -> mean, p95; total is thinking and answer), adherence
        (used: median of thinking tokens over the budget, over: share of draws that thought more; None at budgets 0 and
        OFF), tokens_per_correct (None if no draw is), repetition (mean share of a chain's end that is repetition; None
        where rows lack it), and shares of draws: looping (`looping.loops`), forced, leaked, no_answer, malformed,
        failed (the grader, not the model), truncated, reopened;
    `auc` (value, se, low, high), `slope` (per doubling; None with fewer than two positive budgets) and `gain` (value,
        se); None while no problem is finished. Budget 0 counts for the gain only;
    `auc_tokens` (area under accuracy over mean tokens used, as share of their range: value, se, from, to), `scaling`
        (s1's, accuracy per 1000 thinking tokens used: value, se; None with one budget), `performance` (s1's, the best
        accuracy, biased upwards as a maximum: value, budget), `control` (s1's, share of draws whose
        thinking tokens the budget bounds: 1 unless a backend ignores it), `control_total` (whose thinking and answer
        tokens are at most budget + `metrics.answer_allowance`) and `monotonicity` (steps between budgets, rises, and
        falls by more than two paired standard errors); all with budget 0, and None while no problem is finished.
        Budget OFF (prunus.budgets.OFF) counts for none of these numbers, unless it is the only budget. A run from an
        imported log (AS_RUN) has none that depends on budgets, and None for tokens and ends that its log does not tell;
    `parallel`: one long chain against k short ones, from `parallel.compare_parallel`.
    `unfinished` -> complete, planned: problems with all rows of the plan, and problems of the plan; left out for a
        finished run.
    With several tasks `macro` -> `budgets` -> accuracy, se and `auc` -> value, se: means over tasks.
    """
    return describe(store.run(run_id), tables(store.samples(run_id), store.groups()))


def describe(run: Run, by_task: Mapping[str, Table]) -> dict[str, Any]:
    """The result of `summarise`, for rows that have been read."""
    tasks = {task: _curve(table) for task, table in by_task.items()}
    state = unfinished(run, by_task)
    result = identity(run) | {"plan": run.plan, "versions": run.versions, "tasks": tasks}
    result |= {"unfinished": state} if state else {}
    if len(tasks) > 1:
        result["macro"] = _macro(list(tasks.values()))
    return plain(result)


def _curve(table: Table) -> dict[str, Any]:
    cells = {}
    for budget in table.budgets:
        column = table.select(table.problems, [budget], table.draws)
        if complete := column.complete():
            cells[budget] = _describe(column.select(complete, [budget], table.draws), budget)
    whole = table.select(table.complete(), table.budgets, table.draws)
    curve = {
        "problems": len(whole.problems),
        **({"groups": len(whole.groups)} if whole.grouped else {}),
        "started": len(table.problems),
        "samples": len(table.draws),
        "budgets": cells,
    }
    if not whole.problems:
        return curve | dict.fromkeys((AUC, "slope", "gain", *SCALING)) | {"parallel": []}
    numbers = whole.curve()
    return curve | _functionals(numbers) | _scaling(numbers) | {"parallel": compare_parallel(numbers)}


def _functionals(table: Table) -> dict[str, Any]:
    """Area, slope and gain with standard errors over problems; each is a weighted sum over budgets."""
    shares_PB = table.by_group(table.correct.mean(axis=2))
    draws = _draws(table) * len(table.budgets)
    area = metrics.estimate(shares_PB @ metrics.auc_weights(table.budgets), draws)
    found: dict[str, Any] = {AUC: area._asdict()}
    for name, weights in (("slope", metrics.slope_weights), ("gain", metrics.gain_weights)):
        values_P = (shares_PB @ weights(table.budgets))[:, None]
        value = float(paired.estimate([values_P])[0])
        found[name] = {"value": value, "se": float(paired.standard_error([values_P])[0])} if isfinite(value) else None
    return found


def _scaling(table: Table) -> dict[str, Any]:
    """The metrics that depend on tokens used, s1's three among them."""
    budgets_B1 = np.array(table.budgets)[:, None]
    thinking = table.values("thinking_tokens")
    shares_PB, used_PB, thinking_PB = (
        table.by_group(values.mean(axis=2)) for values in (table.correct, table.used, thinking)
    )
    used = table.used
    accuracy_B, used_B = shares_PB.mean(axis=0), table.by_group(used).mean(axis=(0, 2))
    best = int(np.argmax(accuracy_B))
    rises, falls = scaling.steps(shares_PB)
    bounded = AS_RUN not in table.budgets
    area = {"from": float(used_B.min()), "to": float(used_B.max())} | (
        _over_tokens(shares_PB, used_PB, scaling.token_area) or {}
    )
    values = (
        area if bounded else None,
        _over_tokens(shares_PB, thinking_PB, scaling.scaling),
        {"value": float(accuracy_B[best]), "budget": table.budgets[best]},
        scaling.control(thinking, 0, budgets_B1) if bounded else None,
        scaling.control(used, 0, budgets_B1 + metrics.answer_allowance(budgets_B1)) if bounded else None,
        {"steps": len(table.budgets) - 1, "rises": rises, "falls": falls},
    )
    return dict(zip(SCALING, values, strict=True))


def _over_tokens(
    shares_PB: Floats, tokens_PB: Floats, statistic: Callable[[Floats, Floats], Floats]
) -> dict[str, float] | None:
    """A statistic of accuracy and mean tokens at each budget with its jackknife error; None where it has no value."""
    B = shares_PB.shape[1]
    both_PC = np.hstack([shares_PB, tokens_PB])
    found = scaling.jackknife(both_PC, lambda means: statistic(means[..., :B], means[..., B:]))
    return found._asdict() if isfinite(found.value) else None


def _describe(table: Table, budget: int) -> dict[str, Any]:
    """The cell of one budget; table has that budget only."""
    correct_PN = table.correct[:, 0]
    answers_PN = table.answers(budget)
    draws = len(table.draws)
    accuracy = metrics.estimate(table.by_group(correct_PN.mean(axis=1)), _draws(table))

    def mean(values_P: Floats) -> float:
        return float(table.by_group(values_P).mean())

    counts = {phase: table.values(f"{phase}_tokens") for phase in ("thinking", "answer", "forced")}
    used = table.used
    status = table.values("status")
    scores, repetition = table.scores(), table.numbers("repetition")
    sizes = sorted({2**power for power in range(draws.bit_length())} | {draws})
    return {
        **table.sizes(),
        "samples": draws,
        "accuracy": accuracy.value,
        "se": accuracy.se,
        "low": accuracy.low,
        "high": accuracy.high,
        "pass_at": {k: mean(metrics.pass_values(correct_PN, k)) for k in sizes},
        "maj_at": {k: mean(metrics.majority_values(answers_PN, correct_PN, k)) for k in sizes},
        "best_of": {
            name: {k: mean(best_of.best_of_values(scores[name][:, 0], correct_PN, k)) for k in sizes}
            if name in scores
            else None
            for name in SCORES
        },
        "tokens": {phase: metrics.tokens(count)._asdict() for phase, count in (counts | {"total": used}).items()},
        "tokens_per_correct": metrics.tokens_per_correct(used, correct_PN),
        "repetition": None if repetition is None else metrics.share(np.maximum(repetition, 0)),
        "looping": metrics.share(table.values("loops")),
        "forced": metrics.share(table.forced),
        "leaked": metrics.share(metrics.leaked(counts["answer"], budget)),
        "no_answer": metrics.share(status == "no_answer"),
        "malformed": metrics.share(status == "malformed"),
        "failed": metrics.share(np.isin(status, ["timeout", "error"])),
        "adherence": metrics.adherence(counts["thinking"], budget),
        "truncated": metrics.share(table.values("answer_truncated")),
        "reopened": metrics.share(table.values("reopened_think")),
    }


def _draws(table: Table) -> float:
    """The mean number of draws of a group of problems."""
    return len(table.draws) * len(table.problems) / len(table.groups)


def _macro(curves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over tasks with equal weights, at the budgets that all of them have."""
    budgets = sorted(set.intersection(*(set(curve["budgets"]) for curve in curves)))
    cells = {b: _mean([(c["budgets"][b]["accuracy"], c["budgets"][b]["se"]) for c in curves]) for b in budgets}
    areas = [(c[AUC]["value"], c[AUC]["se"]) for c in curves if c[AUC]]
    return {
        "budgets": {b: {"accuracy": value, "se": se} for b, (value, se) in cells.items()},
        AUC: dict(zip(("value", "se"), _mean(areas), strict=True)) if len(areas) == len(curves) else None,
    }


def _mean(estimates: Sequence[tuple[float, float]]) -> tuple[float, float]:
    values, errors = zip(*estimates, strict=True)
    return float(np.mean(values)), float(np.linalg.norm(errors) / len(errors))


def identity(run: Run) -> dict[str, Any]:
    """The run's id, its model, the steps that made it, and its dtypes; an empty recipe means a dense model.

    Native control of the budget is the last step, so that labels name it. dtypes: of the weights, and of the
    computation; None where one is unknown; left out where both are.
    """
    steps = [*((run.model.get("manifest") or {}).get("history") or []), *control_steps(run)]
    # blocks_removed and experts are kept because recipes may have a share instead of a number.
    kept = ("action", "recipe", "blocks_removed", "experts", "calibration")
    recipe = [{key: step[key] for key in kept if key in step} for step in steps]
    dtypes = dtypes_of(run)
    known = {"dtypes": dtypes} if any(dtypes) else {}
    return {"run": run.run_id, "model": run.model.get("name"), "recipe": recipe} | known


def plain(data: Any) -> Any:
    """The same data with None for nan and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data
