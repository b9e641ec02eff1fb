"""Compare runs with a base run: paired differences and a verdict for each, from the rows of a store.

The primary contrast is declared in advance: the area under accuracy over log2(budget), averaged over tasks. Its
p-values decide, corrected over the runs compared (Holm); those of single budgets are detail, corrected over all single
budgets of all runs (Holm). What the verdicts mean, and how often they are wrong, is in docs/verdicts.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from prunus.budgets import AS_RUN
from prunus.errors import PrunusError
from prunus.margins import Margin, MarginLike
from prunus.results import paired
from prunus.results.completeness import PARTLY, in_words, of_both, unfinished
from prunus.results.contrasts import Claims, Grown, Pair, contrast_cells
from prunus.results.metrics import AUC
from prunus.results.rows import FIRST_PROTOCOL, Run
from prunus.results.seeds import recipes_over_seeds
from prunus.results.stages import Growth, growth
from prunus.results.stopping import judge_stopping, stop_cells, tokens_per_draw, withhold_stopping
from prunus.results.store import Store
from prunus.results.summary import identity, plain
from prunus.results.table import Table, tables
from prunus.results.verdicts import adjust_and_judge, wide_margin, withhold

METHOD = {
    "p": "twice the smaller p of the two directions, by betting on the differences; McNemar's exact test for one draw",
    "margin": "p of a loss of the margin or more, and lower bound, by betting on the differences: valid at any n",
    "scaling": "retention by Fieller; kept and lost by betting, both at 90 % of the base's slope",
    "interval": "BCa bootstrap over problems with two pseudo-problems",
    "band": "simultaneous over the budgets of a task: max |t| of the same bootstrap",
    "p_adjusted": "Holm for each direction and for losses within the margin: the area over runs; all single budgets of"
    " all runs together; scaling over runs",
    "adaptive": "p, bounds and intervals by betting without a fixed number of problems: valid whatever ended the run",
    "assumed": "problems are independent of each other; those that belong together form groups, each one observation",
    "q": "Benjamini-Hochberg over all budgets and areas of all runs, for exploring",
    "unfinished": "no word and no claim (p is 1): which chains end first is not chance",
}
ADAPTIVE = (
    "collected adaptively by `prunus find`, so its results decided how many problems there are: verdicts, intervals and"
    " bounds hold at any time; scaling is not judged, and other p-values describe the sample only"
)
ESTIMATED = (
    "the store was written by an older version and does not list the problems of the plan: that there are more is taken"
    " from its limit and the problems that the store has of its tasks"
)
# Settings that may differ between two plans that measure the same. Of the first four, what both runs have is compared.
HARMLESS = {"tasks", "budgets", "samples", "limit", "seed", "batch_size", "reuse", "kernel"}


def compare(
    store: Path | str,
    base: str,
    others: Sequence[str] | None = None,
    margin: MarginLike = 0.02,
    seed: int = 0,
    resamples: int = paired.RESAMPLES,
    stop_margin: MarginLike = 0.05,
) -> dict[str, Any]:
    """Paired differences between other runs of a store and a base run, and a verdict on each other run.

    base, others: run id or its start, model name or printed label. margin, stop_margin: the largest acceptable loss of
    accuracy, and the largest acceptable change for the worse in how chains end, as shares of all problems or draws
    (0.02: two points), or relative to the base ("5%": of what it solves, or of its draws that end well). Without
    others, every run is compared whose plan differs from that of the base in tasks, budgets, samples, limit, seed,
    batches and kernel only; the other runs are listed under `warnings`. Runs that are named are compared in any case,
    with a warning. Only problems that are complete in both runs count, over the budgets and draws that both have. A run
    from an imported log has one budget, AS_RUN, so the area is the accuracy there; the largest budget of another run is
    compared with it.

    Returns plain data: `base` and each of `others` have `run`, `model` and `recipe` (the steps done to the model). Each
    of `others` has
    `tasks` -> task -> `budgets` -> budget, `auc` and `slope` (per doubling of the budget; None with fewer than two
        positive budgets): cells with n (problems, or groups of them that count as one observation: then `problems` is
        the number of problems), samples (draws of each), accuracy, base_accuracy, difference, se,
        low, high (95 %); p_better and p_worse (one-sided), p (two-sided), and the same with _adjusted; lower_bound
        (one-sided 95 %, valid for any number of problems), p_margin (of a loss of the margin or more, by betting),
        p_margin_adjusted; mde, the true difference that would be detected with
        80 % power at the first step of Holm's correction, None where no difference could be detected with so few
        problems; se_fixed (standard error for these problems alone, from the noise of draws; None for one draw), t_low,
        t_high (paired t interval; None from 60 problems on), correlation (of the two runs over problems), q
        (Benjamini-Hochberg over all budgets and areas of all runs, for exploration), and settle: the draws per problem,
        or the problems at the present number of draws, with 80 % power for the effect (the observed difference, or the
        margin if that is larger); None where no number is enough or one draw is too few to estimate it, explained in
        `note`. Budgets also have band_low, band_high, which cover all budgets of the task simultaneously (95 %);
        tokens, base_tokens (mean thinking and answer tokens of a draw), tokens_ratio, tokens_ratio_low,
        tokens_ratio_high (95 %); and with one draw per problem lost and won (problems that only base or only other
        solves). In `slope` the accuracies are slopes; it has no adjusted p, q, settle nor
        anything about the margin, but retention (slope over base's slope), retention_low, retention_high (95 %; all
        None unless base's slope is clearly above 0), and p_kept and p_lost, of retention above 0.9 and below;
    `tasks` -> task -> `auc_tokens`: n, samples, accuracy, base_accuracy, difference, se, low, high, p as above, of the
        area under accuracy over mean tokens used, between the token counts (from, to) that the budgets of both runs
        span, so that longer thinking is no advantage; None where the two spans do not overlap;
    `tasks` -> task -> `parallel`: whether k short chains gain more over one long in this run than in base, as
        `parallel.compare_change` tells;
    `macro`, with several tasks: the same over all, weighing tasks alike, without correlation, lost, won, tokens,
        auc_tokens and parallel;
    `largest`: the task and budget with the most significant difference, its p, and p_adjusted over all single budgets
        of all runs;
    `adaptive`: whether rows decided how many problems there are: of one of the two runs by `find`, or of earlier runs
        of the same models with another limit or number of draws (a note says from what to what it changed); then p,
        low, high, lower_bound, p_margin, band_low, band_high and those of stopping hold at any time
        (`results/anytime.py`), t_low and t_high are None, and scaling cannot be told;
    `grown`: the comparisons of these two models that could be seen, in their order, this one last, if their size
        changed: limit (None: all), samples, runs (base's and this model's), and for both begun (UTC) and complete (its
        complete problems when its next run began); None for what an older store does not tell, and else;
    `unfinished`: None, or complete, planned (problems of the plan) and base (whether that is the base's) where a run
        lacks rows of its plan; then the words are `unfinished`, p is 1, bounds rule nothing out, and the other numbers
        are of the first problems in the plan's order that both runs have wholly, if it begins with such. `base` has the
        same key (complete, planned) if it is unfinished;
    `primary`: the cell of the primary contrast, the area (that of `macro` with several tasks; the areas of single tasks
        are then corrected within the run); `verdict`, `within_margin`, `margin` (a number, or
        {"relative": share}), `nothing_to_lose` (whether losing all that the base solves would be within the margin,
        so that no run is non-inferior), `warnings`;
    `whole_curve`: whether the difference has the same sign at every budget and no budget's verdict contradicts the
        run's; `contradicted_at`: budget, difference and verdict of the budgets that contradict it;
    `tasks` -> task -> `stopping` -> budget -> ending -> cell (and `macro` -> `stopping` likewise), as
        `stopping.stop_cells` tells, for ends (by itself), loops, lost (right under a smaller budget), unanswered,
        truncated, leaked and budget_used;
    `stopping`: tokens_ratio and per_correct_ratio (tokens used in terms of base's, per draw and per correct draw, at
        the largest budget), budget (the largest), and `endings`, the cells there with verdicts and p-values corrected
        over the runs; `stops`: the verdict on `ends`; `relies_on_cutting`: whether chains end by themselves less often
        although the accuracy is not worse by the margin;
    `scaling`: the slope of all tasks together, with p_kept_adjusted, p_lost_adjusted and word: kept, lost or cannot
        tell; None with fewer than two positive budgets.
    Beside `others`, `control` tells how much rounding alone moves, if the store has an A/A control of the base
    (EvalPlan.aa_control; else it is None): run, difference, low, high, n, samples, answers, differ and grades.
    `recipes` has an entry for each recipe of which at least three runs differ in the calibration seed only, with a
    verdict on the recipe for which seeds are a random effect (`seeds.recipes_over_seeds`). The verdict on a run is
    about its checkpoint.
    Budgets 0 and OFF are not part of the area, OFF also not of whole_curve and contradicted_at; with one positive
    budget the area is the accuracy there.

    With p_better_adjusted of the primary of at most .025 the verdict is `better`; with p_worse_adjusted of at most .025
    it is `worse` or, with p_margin_adjusted of at most .05, `worse, within the margin`. Else it is `non-inferior` with
    p_margin_adjusted of at most .05, or `cannot tell`.
    Raises PrunusError for unknown or ambiguous names, and if there is nothing to compare.
    """
    margin, stop_margin = _checked(margin, stop_margin, resamples)
    with Store(store) as opened:
        base_run = opened.find_run(base)
        named = None if others is None else [opened.find_run(other) for other in others]
        result = compare_runs(
            base_run,
            opened.runs() if named is None else named,
            controls=opened.runs(),
            tables_of=lambda run_id: tables(opened.samples(run_id), opened.groups()),
            may_leave_out=named is None,
            margin=margin,
            seed=seed,
            resamples=resamples,
            stop_margin=stop_margin,
        )
        if not result["others"] and result["control"] is None:
            why = "; ".join(result["warnings"]) or "no other run"
            raise PrunusError(f"{opened.path} has nothing to compare with {_name(base_run)}: {why}")
    return result


def compare_runs(
    base: Run,
    runs: Iterable[Run],
    tables_of: Callable[[str], Mapping[str, Table]],
    *,
    may_leave_out: bool = True,
    margin: MarginLike = 0.02,
    seed: int = 0,
    resamples: int = paired.RESAMPLES,
    stop_margin: MarginLike = 0.05,
    controls: Iterable[Run] | None = None,
) -> dict[str, Any]:
    """The result of `compare` for runs that have been read; `others` may be empty.

    tables_of: the tables of the run with an id. may_leave_out: runs with another plan, and runs that share no finished
    problem with base, are left out and listed under `warnings`; without it the former are compared with a warning and
    the latter raise PrunusError. controls: runs among which an A/A control of base may be; None: the same.
    """
    margin, stop_margin = _checked(margin, stop_margin, resamples)
    runs = list(runs)
    again = next((run for run in (runs if controls is None else controls) if _repeats(run, base)), None)
    chosen, warnings = _choose(base, runs, may_leave_out)
    base_tables, entries, compared = tables_of(base.run_id), [], []
    base_state = unfinished(base, base_tables)
    for run in chosen:
        run_tables = tables_of(run.run_id)
        state = unfinished(run, run_tables)
        lacking = (state and state | {"base": False}) or (base_state and base_state | {"base": True})
        pairs, notes = _pairs(base_tables, run_tables, of_both(base, run) if lacking else {})
        notes = _plan_notes(base, run) + notes
        pairs, grown, how_taken = _taken(base, run, pairs, seed)
        notes += [how_taken] * bool(how_taken)
        if pairs:
            if lacking:
                notes.insert(0, f"{in_words(lacking)}: no verdict is given, since {PARTLY}")
                notes += [ESTIMATED] * any(one.planned and one.planned.order is None for one in (base, run))
            entry = _entry(run, pairs, notes, margin, seed, resamples, len(chosen))
            same_chains = all(one.plan.get("reuse", True) for one in (base, run))
            entry["adaptive"] = bool(how_taken)
            entry = _with_stopping(entry, pairs, stop_margin, seed, resamples, same_chains)
            if lacking:
                _withhold(entry)
            else:
                compared.append((run, pairs))
            entries.append(entry | {"unfinished": lacking, "grown": grown and grown.to_json()})
        elif may_leave_out:
            warnings.append(f"{_name(run)} is left out: it shares no finished problem with {_name(base)}")
        else:
            first = "their questions differ" if base.imported or run.imported else "evaluate both first"
            raise PrunusError(f"{_name(run)} shares no finished problem with {_name(base)}: {first}")
    if entries:
        adjust_and_judge(entries)
        judge_stopping(entries)
        if (note := wide_margin(margin, min(entry["primary"]["base_accuracy"] for entry in entries))) is not None:
            warnings.append(note)
    method = METHOD | {"resamples": resamples, "seed": seed}
    more = {"margin": margin.to_json(), "stop_margin": stop_margin.to_json()}
    more["control"] = again and _against_itself(again, base_tables, tables_of(again.run_id), seed, resamples)
    more["recipes"] = recipes_over_seeds(compared, margin, seed)
    shown = identity(base) | ({"unfinished": base_state} if base_state else {})
    return plain({"base": shown, "others": entries, **more, "method": method, "warnings": warnings})


def _taken(base: Run, other: Run, pairs: dict[str, Pair], seed: int) -> tuple[dict[str, Pair], Growth | None, str]:
    """The pairs with how rows decided the number of their problems, and a note on it; empty if they did not."""
    if (how := other.adaptive or base.adaptive) is not None:
        return {task: replace(pair, adaptive=int(how.get("seed", 0))) for task, pair in pairs.items()}, None, ADAPTIVE
    grown = growth(base, other)
    if grown is None:
        return pairs, None, ""
    orders = of_both(base, other)
    taken = {
        task: Grown(tuple(orders.get(task, pair.base.problems)), grown.limits, seed, grown.share)
        for task, pair in pairs.items()
    }
    return {task: replace(pair, adaptive=taken[task]) for task, pair in pairs.items()}, grown, str(grown)


def _withhold(entry: dict[str, Any]) -> None:
    """Take, in place, all claims out of the entry of an unfinished run."""
    withhold(entry)
    for part in (*entry["tasks"].values(), *([entry["macro"]] if "macro" in entry else [])):
        withhold_stopping(part["stopping"])


def _checked(margin: MarginLike, stop_margin: MarginLike, resamples: int) -> tuple[Margin, Margin]:
    if resamples < 100:
        raise PrunusError(f"resamples must be at least 100, not {resamples}")
    return Margin.of(margin), Margin.of(stop_margin, "stop margin")


def _choose(base: Run, runs: Iterable[Run], may_leave_out: bool) -> tuple[list[Run], list[str]]:
    """The runs to compare, and a warning for each run that is left out."""
    if base.is_control:
        raise PrunusError(f"{_name(base)} is an A/A control, which repeats another run: name that run as the base")
    by_id = {run.run_id: run for run in runs if may_leave_out or not run.is_control}
    if not may_leave_out:
        if not by_id:
            raise PrunusError("A/A controls are no variants: they are shown beside the run that they repeat")
        if base.run_id in by_id:
            raise PrunusError(f"{_name(base)} is the base and cannot be compared with itself: name another run")
        return list(by_id.values()), []
    others = [run for run in by_id.values() if run.run_id != base.run_id and not run.is_control]
    notes = {run.run_id: _plan_differences(base, run) for run in others}
    left_out = [
        f"{_name(run)} is left out: {notes[run.run_id]}; name it to compare" for run in others if notes[run.run_id]
    ]
    return [run for run in others if not notes[run.run_id]], left_out


def _repeats(run: Run, base: Run) -> bool:
    """Whether a run is an A/A control of base: the same model and plan in other batches."""
    plan = {key: value for key, value in run.plan.items() if key != "aa_control"}
    same = run.model.get("checksum") == base.model.get("checksum")
    return run.is_control and same and not _plan_differences(base, replace(run, plan=plan))


def _against_itself(
    again: Run, base: Mapping[str, Table], other: Mapping[str, Table], seed: int, resamples: int
) -> dict[str, Any] | None:
    """How much rounding alone moves: the base's control against the base; None without a problem that both have.

    run: of the control. difference, low, high (95 %), n and samples: of the area. answers: number of those compared,
    over all budgets and draws; differ: how many of them are not the same, grades: of how many the grade is not.
    """
    pairs = list(_pairs(base, other, {})[0].values())
    if not pairs:
        return None
    cell = contrast_cells(pairs, Margin(0.0), seed, resamples, Claims(1, 1))[AUC]
    counts = {"answers": 0, "differ": 0, "grades": 0}
    for pair in pairs:
        answers = [table.values("answer").ravel().tolist() for table in (pair.base, pair.other)]
        counts["answers"] += len(answers[0])
        counts["differ"] += sum(one != two for one, two in zip(*answers, strict=True))
        counts["grades"] += int((pair.base.correct != pair.other.correct).sum())
    kept = ("difference", "low", "high", "n", "samples")
    return {"run": again.run_id, **{key: cell[key] for key in kept}, **counts}


def _plan_differences(base: Run, other: Run) -> str:
    """The settings that differ between two plans and matter, such as `mode is legacy, not strict`; empty if none do."""
    if base.imported != other.imported:
        tool = (base if base.imported else other).plan.get("tool")
        return f"one is a log of {tool}, with its own prompts, limits and grades"
    keys = sorted((base.plan.keys() | other.plan.keys()) - HARMLESS)
    found = []
    for key in keys:
        ours, theirs = other.plan.get(key), base.plan.get(key)
        if key in ("context", "off") and None in (ours, theirs):
            # Without it no context limit was in force, or budget OFF was not drawn; what both runs have may be equal.
            continue
        if key == "native" and None in (ours, theirs):
            continue  # the key `control` says so
        if key == "control" and ours != theirs:
            ours, theirs = ours or "forced", theirs or "forced"
        if ours != theirs:
            short = len(f"{ours}{theirs}") <= 60
            found.append(f"{key} is {ours}, not {theirs}" if short else f"{key} differs")
    return ", ".join(found)


def _plan_notes(base: Run, other: Run) -> list[str]:
    notes = []
    if differences := _plan_differences(base, other):
        notes.append(f"plans differ, so the difference is not the model's alone: {differences}")
    if base.imported or other.imported:
        return notes  # the plans say which tool graded
    graders = [run.versions.get("grader") for run in (base, other)]
    if graders[0] != graders[1] or " and " in str(graders[0]):
        notes.append(f"graded by different versions ({graders[1]}, base {graders[0]}): run `prunus regrade`")
    rules = [run.versions.get("protocol", FIRST_PROTOCOL) for run in (base, other)]
    if rules[0] != rules[1] or " and " in str(rules[0]):
        notes.append(
            f"answers of exactly their cap are counted as truncated by different rules (protocol {rules[1]}, base"
            f" {rules[0]}), so compare `truncated` with care"
        )
    return notes


def _pairs(
    base: Mapping[str, Table], other: Mapping[str, Table], orders: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Pair], list[str]]:
    """For each task the rows that both runs have, and a note on everything that only one of them has.

    orders: of tasks of an unfinished run, the problems in the plan's order; if the first ones are complete in both
    runs, only those that precede the first that is not are compared.
    """
    notes = []
    if apart := sorted(base.keys() ^ other.keys()):
        notes.append(f"not both runs have task {', '.join(apart)}: left out")
    shared = sorted(base.keys() & other.keys())
    base, other = _as_run(base, other, shared, notes), _as_run(other, base, shared, notes)
    everything = [tables[task] for tables in (base, other) for task in shared]
    axes = {}
    for axis in ("budgets", "draws"):
        sets = [set(getattr(table, axis)) for table in everything]
        axes[axis] = sorted(set.intersection(*sets)) if sets else []
        if sets and (apart := sorted(set.union(*sets) - set(axes[axis]))):
            notes.append(f"not both runs have {axis} {', '.join(map(str, apart))}: left out")
    pairs = {}
    if not all(axes.values()):
        return pairs, notes
    for task in shared:
        problems = sorted(set(base[task].problems) & set(other[task].problems))
        ours, theirs = (tables[task].select(problems, **axes) for tables in (base, other))
        complete = sorted(set(ours.complete()) & set(theirs.complete()))
        either = len(set(base[task].problems) | set(other[task].problems))
        if first := list(takewhile(set(complete).__contains__, orders.get(task, ()))):
            notes.append(
                f"{task}: the first {len(first)} problems of the plan are finished in both runs and compared;"
                f" {len(complete) - len(first)} later ones that are finished, too, are left out"
            )
            complete = sorted(first)
        elif len(complete) < either:
            notes.append(f"{task}: {len(complete)} of {either} problems are finished in both runs and compared")
        if complete:
            pairs[task] = Pair(ours.select(complete, **axes), theirs.select(complete, **axes))
    return pairs, notes


def _as_run(
    tables: Mapping[str, Table], others: Mapping[str, Table], tasks: Sequence[str], notes: list[str]
) -> Mapping[str, Table]:
    """The tables of one run; against a run from a log, which has no budget, those of its own largest budget only."""
    found = dict(tables)
    for task in tasks:
        mine, theirs = tables[task], others[task]
        if AS_RUN in theirs.budgets and AS_RUN not in mine.budgets:
            largest = mine.select(mine.problems, [max(mine.budgets)], mine.draws)
            found[task] = replace(largest, budgets=(AS_RUN,))
            notes.append(f"{task}: budget {max(mine.budgets)}, the largest, is compared with the outputs of the log")
    return found


def _entry(
    run: Run, pairs: Mapping[str, Pair], notes: list[str], margin: Margin, seed: int, resamples: int, runs: int
) -> dict[str, Any]:
    """One entry of `others`, without what depends on the other entries: the primary's adjusted p, q and the verdicts.

    runs: how many entries there will be.
    """
    columns = sum(len(pair.base.budgets) for pair in pairs.values())
    several = len(pairs) > 1
    details = runs * (columns + several * (len(pairs) + columns // len(pairs)))  # as `verdicts.details`
    alone = Claims(details, details if several else runs)
    done = {task: contrast_cells([pair], margin, seed, resamples, alone) for task, pair in pairs.items()}
    entry = identity(run) | {"tasks": done, "margin": margin.to_json(), "warnings": notes}
    if not several:
        (entry["primary"],) = (task[AUC] for task in done.values())
    else:
        together = Claims(details, runs)
        entry["macro"] = contrast_cells(list(pairs.values()), margin, seed, resamples, together)
        entry["primary"] = entry["macro"][AUC]
    entry["nothing_to_lose"] = margin.covers(entry["primary"]["base_accuracy"])
    return entry


def _with_stopping(
    entry: dict[str, Any],
    pairs: Mapping[str, Pair],
    stop_margin: Margin,
    seed: int,
    resamples: int,
    same_chains: bool,
) -> dict[str, Any]:
    """The entry with how chains end in each task (and on average), without what depends on the other entries."""
    for task, pair in pairs.items():
        entry["tasks"][task]["stopping"] = stop_cells([pair], stop_margin, seed, resamples, same_chains)
    if "macro" in entry:
        entry["macro"]["stopping"] = stop_cells(list(pairs.values()), stop_margin, seed, resamples, same_chains)
    return entry | {"stopping": tokens_per_draw(list(pairs.values()))}


def _name(run: Run) -> str:
    return f"{run.model.get('name')} ({run.run_id})"
