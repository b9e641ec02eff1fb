"""Compare runs with a base run: paired differences and a verdict for each, from the rows of a store.

The primary contrast is declared in advance: the area under accuracy over log2(budget), averaged over tasks. Its
p-values decide, corrected (Holm) over all runs of the store that could be compared, named or not (`family`); those of
single budgets are detail, corrected over all single budgets of all these runs. What the verdicts mean, and how often
they are wrong, is in docs/verdicts.md.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, takewhile
from pathlib import Path

from prunus import progress
from prunus.errors import PrunusError
from prunus.questions import order_of_bets, sampling_key
from prunus.results.as_good import as_good
from prunus.results.cells import (
    AREA,
    Base,
    Cell,
    Cells,
    Comparison,
    Ending,
    Entry,
    OfSet,
    Part,
    Repeated,
    Stopping,
    Unfinished,
)
from prunus.results.contrasts import (
    ENDINGS,
    ENDS,
    Grown,
    Pair,
    Searched,
    contrast_cells,
    noise_in_common,
    of_set,
    stop_cells,
    tokens_per_draw,
    without_claims,
)
from prunus.results.family import WITHIN_HYPOTHESIS, Family, hypothesis_of, other_comparisons
from prunus.results.growth import Growth, growth, of_both, unfinished
from prunus.results.seeds import recipes_over_seeds
from prunus.results.verdicts import (
    at_every_budget,
    at_largest,
    contradictions,
    deciding,
    judged,
    rare_endings,
    still_stops,
    verdict,
    wide_margin,
)
from prunus.results.vocabulary import Verdict
from prunus.results.words import PARTLY, SEVERAL, in_words
from prunus.settings.budgets import AS_RUN, without_off
from prunus.settings.margins import MARGIN, Margin, MarginLike
from prunus.statistics import paired
from prunus.statistics.anytime import whole_groups
from prunus.statistics.betting import ALPHA
from prunus.store.labels import Identity, identity, listed
from prunus.store.rows import KEYED_PROTOCOL, Removed, Run, Table, tables
from prunus.store.stages import removed_before
from prunus.store.starts import Apart, computed_apart, how_mixed, run_differences
from prunus.store.store import Store
from prunus.store.stored import CHOOSE, Adaptive

METHOD = {
    "p": "twice the smaller p of the two directions, by betting on the differences; McNemar's exact test for one draw",
    "margin": "p of a loss of the margin or more, and lower bound, by betting on the differences, or by an exact test"
    " (Tango's order) for one draw at one budget: valid at any n",
    "scaling": "retention by Fieller; kept and lost by betting, both at 90 % of the base's slope",
    "interval": "BCa bootstrap over problems with two pseudo-problems",
    "band": "simultaneous over the budgets of a task: max |t| of the same bootstrap",
    "p_adjusted": "Holm for each direction and for losses within the margin: the area over runs; all single budgets of"
    " all runs together; scaling over runs; over all runs of the store that could be compared, also those not shown",
    "lower_bound_adjusted": "the lower bound of the area at 5 % over the number of comparisons: valid after choosing",
    "upper_bound_adjusted": "the upper bound of the area at 2.5 % over the number of comparisons: valid after choosing",
    "order": "bets take problems in an order that follows from hashes of their questions",
    "adaptive": "p, bounds and intervals by betting without a fixed number of problems: valid whatever ended the run",
    "assumed": "problems are independent of each other; those that belong together form groups, each one observation",
    "q": "Benjamini-Hochberg over all budgets and areas of all runs, for exploring",
    "unfinished": "no word and no claim (p is 1): which chains end first is not chance",
}
ADAPTIVE = (
    "collected adaptively by `prunus find` or `choose`, so its results decided how many problems there are: verdicts,"
    " intervals and bounds hold at any time; scaling is not judged, and other p-values describe the sample only"
)
LEAST_RESAMPLES = 100
# Settings that may differ between two plans that measure the same: only what both runs have is compared.
BATCHES = {"aa_control", "batch_size"}
HARMLESS = {"aa_control", "tasks", "budgets", "samples", "limit", "limit_of", "seed", "batch_size", "reuse", "kernel"}


def compare(
    store: Path | str,
    base: str | Identity | None = None,
    others: Sequence[str | Identity] | None = None,
    margin: MarginLike = MARGIN,
    resamples: int = paired.RESAMPLES,
    stop_margin: MarginLike = MARGIN,
) -> Comparison:
    """Paired differences between other runs of a store and a base run, and a verdict on each other run.

        comparison = prunus.compare("results.db", base="tiny")
        print(comparison["wanda-20"].verdict)

    store: SQLite file of the results.
    base: the run to compare with: its id or the start of it, its model's name or its printed label, or the record that
        `evaluate` returned; by default the run of the unpruned model.
    others: the runs to compare, named like base; by default all whose plan differs from that of the base in tasks,
        budgets, samples, limit, seed, batches and kernel only. The rest is listed under `warnings`; runs that are named
        are compared in any case, with a warning.
    margin: the largest acceptable loss of accuracy, as a share of all problems (0.02: two points), or relative to the
        base ("5%": of what it solves).
    resamples: of the bootstrap that gives the intervals.
    stop_margin: the largest acceptable change for the worse in how chains end, as a share of all draws, or relative to
        the base ("5%": of its draws that end well).

    Only problems that are complete in both runs count, over the budgets that both have; of each run all draws count,
    whatever their numbers. Which runs are named changes no verdict: all p-values are corrected over all runs of the
    store that could be compared, as `looks` says. A run from an imported log has one budget, AS_RUN, so the area is the
    accuracy there; the largest budget of another run is compared with it. Budgets 0 and OFF are not part of the area,
    OFF also not of whole_curve and contradicted_at; with one positive budget the area is the accuracy there.

    With p_better_adjusted of the primary of at most .025 the verdict is `better`; with p_worse_adjusted of at most .025
    it is `worse` or, with p_margin_adjusted of at most .05, `worse, within the margin`. Else it is `non-inferior` with
    p_margin_adjusted of at most .05, or `cannot tell`.
    Raises PrunusError for unknown or ambiguous names, and if there is nothing to compare.
    """
    margin, stop_margin = _checked(margin, stop_margin, resamples)
    with Store(store) as opened:
        runs = opened.runs_with_rows() or opened.runs()
        base_run = opened.find_run(str(base)) if base is not None else dense_run(runs, opened.path)
        named = None if others is None else [opened.find_run(str(other)) for other in others]
        result = compare_runs(
            base_run,
            opened.runs() if named is None else named,
            stored=opened.runs_with_rows(),
            removed=opened.removed(),
            tables_of=lambda run_id: tables(opened.samples(run_id), opened.groups(), opened.row_starts(run_id)),
            questions=opened.questions(),
            may_leave_out=named is None,
            margin=margin,
            resamples=resamples,
            stop_margin=stop_margin,
        )
        if not result.others and not result.repeats:
            why = "; ".join(result.warnings) or "no other run"
            raise PrunusError(f"{opened.path} has nothing to compare with {_name(base_run)}: {why}")
    return result


def dense_run(runs: Sequence[Run], store: Path) -> Run:
    """The run of the unpruned model, in strict mode if both modes were run, and not under native control if it can be.

    Where all runs are imported logs, which do not tell how their models were made, it is the first one, as a line says.
    Raises PrunusError if it is ambiguous.
    """
    if not runs:
        raise PrunusError(f"the store '{store}' has no runs yet: run `prunus eval` first")
    dense = [run for run in runs if not run.model.manifest.history and not run.is_control]
    dense = [run for run in dense if not run.model.serving] or dense
    usual = [run for run in dense if run.plan.control == "forced"]
    dense = usual if len({run.model.checksum for run in dense}) == 1 and usual else dense
    dense = [run for run in dense if not any(more_draws(run, other) for other in dense)]
    strict = [run for run in dense if run.plan.mode == "strict"]
    if len({run.model.checksum for run in dense}) == 1 and len(strict) == 1:
        dense = strict  # one model in both modes
    if len(dense) == 1:
        return dense[0]
    if all(run.imported for run in runs):
        progress.say(f"compared with {_name(runs[0])}, the log that was imported first: --base names another")
        return runs[0]
    what = "several runs of unpruned models" if dense else "no run of an unpruned model"
    raise PrunusError(
        f"the store '{store}' has {what}: choose the run to compare with by --base: {listed(dense or runs)}"
    )


def compare_runs(
    base: Run,
    runs: Iterable[Run],
    tables_of: Callable[[str], Mapping[str, Table]],
    questions: Mapping[str, str],
    *,
    stored: Sequence[Run],
    removed: Sequence[Removed],
    margin: MarginLike,
    stop_margin: MarginLike,
    may_leave_out: bool = True,
    resamples: int = paired.RESAMPLES,
) -> Comparison:
    """The result of `compare` for runs that have been read; `others` may be empty.

    tables_of: the tables of the run with an id. questions: as of `Store.questions`. may_leave_out: runs with another
    plan, and runs that share no finished problem with base, are left out and listed under `warnings`; without it the
    former are compared with a warning and the latter raise PrunusError. stored, removed: all runs of the store, over
    which p-values are corrected.
    """
    margin, stop_margin = _checked(margin, stop_margin, resamples)
    again = [(run, how) for run in stored if (how := _repeats(run, base))]
    chosen, warnings = _choose(base, runs, may_leave_out)

    def alike(run: Run, other: Run) -> bool:
        return _alike(run, other, questions)

    unshown = other_comparisons(base, chosen, stored, removed, alike)
    base_tables = tables_of(base.run_id)
    base_state, compared, shown = unfinished(base, base_tables), list[_Compared](), 0
    for place, run in enumerate((*chosen, *unshown.hidden)):
        result = _compare_one(base, run, base_state, base_tables, tables_of(run.run_id), questions)
        if result.pairs:
            compared.append(result)
            shown += place < len(chosen)
            if place < len(chosen) and not result.lacking:
                before = _stored_before(base, run, stored, alike)
                result.notes.extend(missing_problems(result.pairs, before, tables_of, questions))
        elif place < len(chosen) and may_leave_out:
            warnings.append(f"{_name(run)} is left out: it shares no finished problem with {_name(base)}")
        elif place < len(chosen):
            first = "their questions differ" if base.imported or run.imported else "evaluate both first"
            raise PrunusError(f"{_name(run)} shares no finished problem with {_name(base)}: {first}")
    family = Family([hypothesis_of(result.run) for result in compared], unshown.unseen, unshown.bases)
    cells = [
        _cells(base, result, (margin, stop_margin), resamples, family.size if place < shown else None)
        for place, result in enumerate(compared)
    ]
    parts = judged(cells, family)
    endings = at_largest([of_run[-1] for of_run in parts], family)
    entries = [
        _entry(base, *of_run, (margin, stop_margin), family.size)
        for of_run in [*zip(compared, parts, endings, strict=True)][:shown]
    ]
    if entries and (note := made_from(base, stored)) is not None:
        warnings.append(note)
    if entries and (note := wide_margin(margin, min(entry.primary.base_accuracy for entry in entries))) is not None:
        warnings.append(note)
    ends = [entry.stopping.endings[ENDS] for entry in entries if ENDS in entry.stopping.endings]
    if ends and (note := rare_endings(stop_margin, min(cell.base_share for cell in ends))) is not None:
        warnings.append(note)
    seeds = [(result.run, result.pairs) for result in compared if not result.lacking]
    return Comparison(
        base=Base(**vars(identity(base)), unfinished=base_state),
        others=entries,
        looks=family.looks(shown) if entries else None,
        margin=margin,
        stop_margin=stop_margin,
        repeats=[
            found
            for run, how in again
            if (found := _against_itself(run, how, base_tables, tables_of(run.run_id), questions, resamples))
        ],
        recipes=recipes_over_seeds(seeds, margin, [entry.run for entry in entries], [lost.run for lost in removed]),
        method=METHOD | {"resamples": resamples},
        warnings=warnings,
    )


@dataclass(frozen=True)
class _Compared:
    """A run with its rows paired with the base's, before it is judged together with the others."""

    run: Run
    pairs: Mapping[str, Pair]
    notes: list[str]
    lacking: Unfinished | None
    grown: Growth | None


def _compare_one(
    base: Run,
    run: Run,
    base_state: Unfinished | None,
    base_tables: Mapping[str, Table],
    other: Mapping[str, Table],
    questions: Mapping[str, str],
) -> _Compared:
    state = unfinished(run, other)
    lacking = (state and replace(state, base=False)) or (base_state and replace(base_state, base=True))
    pairs, notes = _pairs(
        base_tables, other, questions, _orders(base, run, base_tables, questions, lacking), bool(lacking)
    )
    apart = None if lacking else _computed_apart(base, run, pairs)
    if apart is not None:
        problems = sum(len(pair.base.problems) for pair in pairs.values())
        lacking = Unfinished(complete=problems - apart.problems, planned=problems, base=False, mixed=True)
    notes = _plan_notes(base, run) + removed_before(base) + removed_before(run) + notes
    pairs, grown, how_taken = taken(base, run, pairs)
    notes += [how_taken] * bool(how_taken)
    if lacking:
        why = f"{SEVERAL} ({how_mixed([base, run])})" if lacking.mixed else PARTLY
        if apart is not None:
            why = (
                f"{apart.problems} of {lacking.planned} problems were computed otherwise in the two runs, or not as the"
                f" others: {'; '.join(apart.how) or 'each in several ways'}"
            )
        notes.insert(0, f"{in_words(lacking)}: no verdict is given, since {why}")
    return _Compared(run, pairs, notes, lacking, grown)


def _computed_apart(base: Run, run: Run, pairs: Mapping[str, Pair]) -> Apart | None:
    def starts(pair: Pair, of_base: str, of_run: str) -> set[tuple[int, int]]:
        alike = pair.base.draws == pair.other.draws
        draws = (
            zip(pair.base.draws, pair.other.draws, strict=True) if alike else product(pair.base.draws, pair.other.draws)
        )
        return {
            numbers
            for first, second in draws
            for numbers in product(pair.base.started(of_base, first), pair.other.started(of_run, second))
        }

    return computed_apart(
        base,
        run,
        (
            starts(pair, *names)
            for pair in pairs.values()
            for names in zip(pair.base.problems, pair.other.problems, strict=True)
        ),
    )


def _entry(
    base: Run,
    result: _Compared,
    parts: Sequence[Part],
    endings: Mapping[str, Ending],
    margins: tuple[Margin, Margin],
    comparisons: int,
) -> Entry:
    margin, stop_margin = margins
    pairs = list(result.pairs.values())
    common, size = noise_in_common(pairs), None if margin.relative else _size_of_set(base, result)
    whole_set = of_set(pairs[0], size, margin, comparisons) if size else None
    tasks, whole = dict(zip(result.pairs, parts, strict=False)), parts[-1]
    word, stops = verdict(whole.auc), endings[ENDS].verdict if ENDS in endings else None
    budgets = {budget: whole.budgets[budget] for budget in without_off(whole.budgets) or whole.budgets}
    against = contradictions(word, budgets)
    low, high = None, None
    if not result.lacking:
        low, high = _decided(whole.auc, margin)
        endings = {name: _decided_ending(name, cell, stop_margin) for name, cell in endings.items()}
    return Entry(
        **vars(identity(result.run)),
        tasks=tasks,
        margin=margin,
        warnings=result.notes + _noise_in_words(common, pairs[0]) + _of_set_in_words(whole_set, pairs[0], margin),
        macro=whole if len(parts) > 1 else None,
        noise_in_common=common,
        primary=whole.auc,
        low=low,
        high=high,
        of_set=whole_set,
        nothing_to_lose=margin.covers(whole.auc.base_accuracy),
        adaptive=any(pair.adaptive is not None for pair in result.pairs.values()),
        stopping=Stopping(**tokens_per_draw(pairs), budget=max(whole.stopping, default=None), endings=endings),
        as_good=None if result.lacking else as_good(pairs),
        unfinished=result.lacking,
        grown=result.grown and result.grown.looks,
        within_margin=whole.auc.p_margin_adjusted <= ALPHA,
        verdict=word,
        scaling=whole.slope,
        whole_curve=at_every_budget(word, budgets),
        contradicted_at=against,
        stops=stops,
        still_stops=still_stops(endings.get(ENDS), stops, stop_margin),
        relies_on_cutting=stops == Verdict.WORSE and word.rules_out_margin,
    )


def _decided(cell: Cell, margin: Margin) -> tuple[float, float]:
    """(low, high): the interval of the difference in a primary cell that agrees with its verdict."""
    low, high = cell.lower_bound_adjusted, cell.upper_bound_adjusted
    assert low is not None and high is not None
    return deciding(cell, low, high, margin.points(cell.base_accuracy))


def _decided_ending(name: str, cell: Ending, margin: Margin) -> Ending:
    """An ending at the largest budget with the interval of its gain that agrees with its verdict."""
    assert cell.gain_low is not None and cell.gain_high is not None
    good = cell.base_share if ENDINGS[name].sign > 0 else 1 - cell.base_share
    low, high = deciding(cell, cell.gain_low, cell.gain_high, margin.points(good))
    return replace(cell, gain_low=low, gain_high=high)


def _noise_in_words(common: float | None, pair: Pair) -> list[str]:
    """A note on the noise that matched draws have in common, where not all draws are matched; else none."""
    if common is None or pair.matched:
        return []
    return [
        f"draws of equal numbers have {100 * common:.0f} % of their noise in common, estimated from these rows: the"
        " more it is, the more weight verdicts give to them"
    ]


def taken(base: Run, other: Run, pairs: dict[str, Pair]) -> tuple[dict[str, Pair], Growth | None, str]:
    """(pairs, growth, note): each pair with how rows decided its number of problems; no note if they did not."""
    if (how := other.adaptive or base.adaptive) is not None:
        order = Searched(seed_of(how))
        return {task: replace(pair, adaptive=order) for task, pair in pairs.items()}, None, ADAPTIVE
    grown = growth(base, other)
    if grown is None:
        return pairs, None, ""
    orders = {task: sorted(pair.base.problems) for task, pair in pairs.items()} | of_both(base, other)
    # A plan without a limit has the set's own order, and takes in the samples of those before in theirs.
    orders |= {task: sorted(orders[task], key=sampling_key) for task in grown.sampled if task in orders}
    taken = {task: replace(pair, adaptive=Grown(grown, tuple(orders[task]))) for task, pair in pairs.items()}
    return taken, grown, str(grown)


def _size_of_set(base: Run, result: _Compared) -> int | None:
    """The size of the set of which the problems are a random sample, if only that is random; else None.

    That holds for greedy chains of a single task whose number of problems was fixed beforehand, all of them complete.
    """
    runs, (task, pair) = (base, result.run), next(iter(result.pairs.items()))
    if result.lacking or pair.adaptive is not None or pair.draws > 1:
        return None
    if any(run.plan.temperature != 0 or run.plan.tasks != (task,) for run in runs):
        return None
    plans = [run.plan for run in runs if run.plan.limit]
    sizes = [(plan.limit or 0, *(plan.limit_of.sizes if plan.limit_of else ())) for plan in plans]  # of a file none
    if not sizes or min(map(len, sizes)) < 2 or min(sizes)[0] != len(pair.base.problems):
        return None
    return min(sizes)[1]


def _of_set_in_words(found: OfSet | None, pair: Pair, margin: Margin) -> list[str]:
    """A note on the bound for the finite set of which the problems are a sample; none without a bound."""
    if not found:
        return []
    return [
        f"of these {found.size:,} problems, of which {len(pair.base.problems):,} are a random sample: the difference is"
        f" {100 * found.lower_bound:+.1f} points or more (95 %), so a loss of {margin.words()} is"
        f" {'' if found.within_margin else 'not '}ruled out; this holds for no other problems"
    ]


def _checked(margin: MarginLike, stop_margin: MarginLike, resamples: int) -> tuple[Margin, Margin]:
    if resamples < LEAST_RESAMPLES:
        raise PrunusError(f"resamples must be at least {LEAST_RESAMPLES}, not {resamples}")
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
    others = [run for run in others if not more_draws(run, base)]  # which are draws of the base itself
    checked = [(run, plan_differences(base, run)) for run in others]
    left_out = [f"{_name(run)} is left out: {why}; name it to compare" for run, why in checked if why]
    return [run for run, why in checked if not why], left_out


def more_draws(run: Run, other: Run) -> bool:
    """Whether the other run is the same but for more draws of each problem, so that it has this run's among its own."""
    checksum = run.model.checksum
    same = checksum is not None and checksum == other.model.checksum
    draws = [side.plan.samples for side in (run, other)]
    return same and draws[0] < draws[1] and run.plan | {"samples": draws[1]} == other.plan


def _repeats(run: Run, base: Run) -> str:
    """How a run repeats the computation of the base, such as `in other batches`; empty if it does not repeat it."""
    serving, base_serving = run.model.serving, base.model.serving
    same = (run.model.checksum, run.model.content) == (base.model.checksum, base.model.content)
    same = same and (run.is_control or run.model.checksum is not None)  # of a control the plan says it
    same = same and (run.plan.seed, run.plan.reuse) == (base.plan.seed, base.plan.reuse)
    if (
        not same
        or run.imported
        or plan_differences(base, run)
        or replace(serving, exact=None) != replace(base_serving, exact=None)
    ):
        return ""
    batches = not BATCHES.isdisjoint(run.plan.differing(base.plan))
    served = f"served as {identity(run).serving or 'usual'}" * (serving.exact != base_serving.exact)
    return " and ".join(filter(None, ["in other batches" * batches, served]))


def _against_itself(
    again: Run,
    how: str,
    base: Mapping[str, Table],
    other: Mapping[str, Table],
    questions: Mapping[str, str],
    resamples: int,
) -> Repeated | None:
    """The differences between a repetition of the base and the base; None without a problem that both have."""
    # A draw and its repetition have the same seed, so what only one of the runs has says nothing.
    pairs = [pair.draw_by_draw() for pair in _pairs(base, other, questions)[0].values()]
    if not pairs or not pairs[0].base.draws:
        return None
    cell = contrast_cells(pairs, Margin(0.0), resamples, None)[AREA, 0]
    counts = {"answers": 0, "differ": 0, "grades": 0}
    for pair in pairs:
        answers = [table.values("answer").ravel().tolist() for table in (pair.base, pair.other)]
        counts["answers"] += len(answers[0])
        counts["differ"] += sum(first != second for first, second in zip(*answers, strict=True))
        counts["grades"] += int((pair.base.correct != pair.other.correct).sum())
    kept = {name: getattr(cell, name) for name in ("difference", "low", "high", "n", "samples")}
    return Repeated(run=again.run_id, how=how, **kept, **counts)


def _alike(run: Run, other: Run, questions: Mapping[str, str]) -> bool:
    """Whether two runs belong to one family: they have a task or question in common, and plans that measure the same.

    A copy of a file under another name, or with other ids, is another task with the same questions. The cap of answers
    may differ: whoever tries several caps chooses one of them.
    """
    tasks = [set(run.plan.tasks) for run in (run, other)]
    apart = all(tasks) and tasks[0].isdisjoint(tasks[1]) and _asked(run, questions).isdisjoint(_asked(other, questions))
    return not apart and not plan_differences(run, other, {*WITHIN_HYPOTHESIS, "answer_tokens"})


def _asked(run: Run, questions: Mapping[str, str]) -> set[str]:
    """The questions of a run's plan, as far as they are known."""
    order = run.planned.order if run.planned else {}
    return {questions.get(name, name) for names in order.values() for name in names}


def _stored_before(base: Run, run: Run, stored: Sequence[Run], alike: Callable[[Run, Run], bool]) -> list[Run]:
    """The runs that measure the same as these two, and were in the store before the later of them."""
    pair, before = {base.run_id, run.run_id}, list[Run]()
    for earlier in stored:
        pair -= {earlier.run_id}
        if not pair:
            break
        before.append(earlier)
    own = {base.run_id, run.run_id}
    return [
        earlier for earlier in before if earlier.run_id not in own and not earlier.is_control and alike(base, earlier)
    ]


def missing_problems(
    pairs: Mapping[str, Pair],
    before: Sequence[Run],
    tables_of: Callable[[str], Mapping[str, Table]],
    questions: Mapping[str, str],
) -> list[str]:
    """A sentence if an earlier run had some of the problems that are compared, and others that are missing.

    It tells readers that problems may have been picked after their rows could be seen; ids and file are no matter.
    """
    how = [pair.adaptive for pair in pairs.values()]
    if any(isinstance(adaptive, Searched) or (adaptive and not adaptive.growth.edited) for adaptive in how):
        return []  # a search takes what it needs, and of a limit that changed this is said otherwise
    compared = {questions.get(name, name) for pair in pairs.values() for name in pair.base.problems}
    most: tuple[int, int] = 0, 0
    for run in before:
        known = (run.planned.order if run.planned else None) or {
            task: table.problems for task, table in tables_of(run.run_id).items()
        }
        for names in known.values():
            seen = {questions.get(name, name) for name in names}
            if not seen.isdisjoint(compared):
                most = max(most, (len(seen - compared), len(seen)))
    missing, seen = most
    return [f"{missing} of {seen} problems seen before are missing, so these may have been chosen"] if missing else []


def made_from(base: Run, stored: Sequence[Run]) -> str | None:
    """A sentence if the base was made from another model of the store; None if it was not."""
    checksums = [step.source.checksum for step in base.model.manifest.history if step.source.checksum]
    origin = next((run for checksum in checksums for run in stored if run.model.checksum == checksum), None)
    if origin is None or origin.model.checksum == base.model.checksum:
        return None
    return (
        f"{base.model.name} was itself made from {origin.model.name}: losses of several steps, each"
        f" within its margin, add up, so compare with that, too (--base {origin.run_id})"
    )


def plan_differences(base: Run, other: Run, but: Collection[str] = ()) -> str:
    """The settings that differ between two plans and matter, such as `mode is legacy, not strict`; empty if none do.

    but: settings that are not looked at.
    """
    if base.imported != other.imported:
        tool = (base if base.imported else other).plan.tool
        return f"one is a log of {tool}, with its own prompts, limits and grades"
    keys = [key for key in base.plan.differing(other.plan) if key not in HARMLESS and key not in but]
    differences = []
    for key in keys:
        value, base_value = (run.plan.data.get(key) for run in (other, base))
        if key in ("context", "off", "native") and None in (value, base_value):
            # Without it no context limit was in force, or budget OFF was not drawn; what both runs have may be equal.
            continue  # without `native`, the key `control` says so
        if key == "control" and value != base_value:
            value, base_value = value or "forced", base_value or "forced"
        if (
            key == "problems" and value != base_value
        ):  # hashes; what made them differ is in no key but, perhaps, the limit
            key, (value, base_value) = "limit", (run.plan.limit or "all" for run in (other, base))
            differences += ["problems differ"] if value == base_value else []
        if value != base_value:
            short = len(f"{value}{base_value}") <= 60
            differences.append(f"{key} is {value}, not {base_value}" if short else f"{key} differs")
    return ", ".join(differences)


def _plan_notes(base: Run, other: Run) -> list[str]:
    notes = []
    if differences := plan_differences(base, other):
        notes.append(f"plans differ, so the difference is not the model's alone: {differences}")
    if base.imported or other.imported:
        return notes  # the plans say which tool graded
    if apart := run_differences(base, other):
        notes.append(f"computed otherwise than the base: {', '.join(apart)}, so the difference may be theirs")
    graders = [run.environment.grader for run in (base, other)]
    if graders[0] != graders[1] or " and " in str(graders[0]):
        notes.append(f"graded by different versions ({graders[1]}, base {graders[0]}): run `prunus regrade`")
    rules = [run.environment.protocol for run in (base, other)]
    if rules[0] != rules[1] and KEYED_PROTOCOL in rules:
        notes.append(
            f"sampled by other random numbers (protocol {rules[1]}, base {rules[0]}), so draws of equal numbers have no"
            " noise in common"
        )
    elif rules[0] != rules[1] or " and " in str(rules[0]):
        notes.append(
            f"answers of exactly their cap are counted as truncated by different rules (protocol {rules[1]}, base"
            f" {rules[0]}), so compare `truncated` with care"
        )
    return notes


def seed_of(how: Adaptive) -> int | None:
    """The seed of the order in which an adaptive run took problems; None: they are taken in the order of bets."""
    return None if how.by == CHOOSE and how.seed is None else how.seed or 0


def _orders(
    base: Run, other: Run, tables: Mapping[str, Table], questions: Mapping[str, str], lacking: Unfinished | None
) -> dict[str, Sequence[str]]:
    """The `orders` of _pairs: the plan's of an unfinished run, the search's of an adaptive run; else empty."""
    how, orders = other.adaptive or base.adaptive, of_both(base, other)
    if lacking or how is None:
        return orders if lacking else {}
    seed = seed_of(how)
    return {
        task: [problem for group in whole_groups({task: taken}, seed, first_of) for _, problem in group]
        for task, ids in orders.items()
        for taken in [order_of_bets(ids, questions) if seed is None else ids]
        for first_of in [tables[task].first_of if task in tables else {}]
    }


def _pairs(
    base: Mapping[str, Table],
    other: Mapping[str, Table],
    questions: Mapping[str, str],
    orders: Mapping[str, Sequence[str]] | None = None,
    unfinished: bool = False,
) -> tuple[dict[str, Pair], list[str]]:
    """For each task the problems and budgets that both runs have, with all draws of each run, and notes on the rest.

    questions: of the problems, from which the order in which bets take them follows.
    orders: {task: problems in the order in which they are taken}, of tasks whose number of problems was decided by rows
    or by an interruption. Of these only the problems before the first that is not complete in both runs are compared.
    If there are none, all complete ones are for an unfinished run, which gets no verdict, and none for any other run.
    """
    notes = []
    if apart := sorted(base.keys() ^ other.keys()):
        notes.append(f"not both runs have task {', '.join(apart)}: left out")
    shared = sorted(base.keys() & other.keys())
    base, other = _as_run(base, other, shared, notes), _as_run(other, base, shared, notes)
    everything = [tables[task] for tables in (base, other) for task in shared]
    budgets = _in_all([table.budgets for table in everything])
    if apart := sorted({budget for table in everything for budget in table.budgets} - set(budgets)):
        notes.append(f"not both runs have budgets {', '.join(map(str, apart))}: left out")
    draws = [_in_all([tables[task].draws for task in shared]) for tables in (base, other)]
    pairs = {}
    if not (budgets and all(draws)):
        return pairs, notes
    if len(draws[0]) != len(draws[1]):
        notes.append(
            f"of each problem the mean over {len(draws[1])} draws is compared with that over the base's {len(draws[0])}"
        )
    for task in shared:
        problems = sorted(set(base[task].problems) & set(other[task].problems))
        base_table, other_table = (
            tables[task].select(problems, budgets, some) for tables, some in zip((base, other), draws, strict=True)
        )
        complete = sorted(set(base_table.complete()) & set(other_table.complete()))
        either = len(set(base[task].problems) | set(other[task].problems))
        order = (orders or {}).get(task, ())
        first = list(takewhile(set(complete).__contains__, order))
        if order and (first if unfinished else len(first) < len(complete)):
            notes.append(
                f"{task}: the first {len(first)} problems of the {'plan' if unfinished else 'search'} are finished in"
                f" both runs and compared; {len(complete) - len(first)} later ones that are finished, too, are left out"
            )
            complete = sorted(first)
        elif len(complete) < either:
            notes.append(f"{task}: {len(complete)} of {either} problems are finished in both runs and compared")
        if complete:
            complete = order_of_bets(complete, questions)
            base_table, other_table = (
                table.select(complete, budgets, table.draws) for table in (base_table, other_table)
            )
            pairs[task] = Pair(base_table, other_table)
    return pairs, notes


def _in_all(axes: Sequence[Sequence[int]]) -> list[int]:
    """The labels that all of these axes have, in order."""
    return sorted(set.intersection(*map(set, axes))) if axes else []


def _as_run(
    tables: Mapping[str, Table], others: Mapping[str, Table], tasks: Sequence[str], notes: list[str]
) -> Mapping[str, Table]:
    """The tables of a run; against a run from a log, which has no budget, those of its own largest budget only."""
    as_run = dict(tables)
    for task in tasks:
        own, against = tables[task], others[task]
        if AS_RUN in against.budgets and AS_RUN not in own.budgets:
            largest = own.select(own.problems, [max(own.budgets)], own.draws)
            as_run[task] = replace(largest, budgets=(AS_RUN,))
            notes.append(f"{task}: budget {max(own.budgets)}, the largest, is compared with the outputs of the log")
    return as_run


def _cells(
    base: Run, result: _Compared, margins: tuple[Margin, Margin], resamples: int, comparisons: int | None
) -> list[Cells]:
    """The cells of a run: of each task, and last of all of them.

    comparisons: number over which p-values are corrected; None for a run that is not shown.
    """
    pairs, same_chains = result.pairs, all(run.plan.reuse is not False for run in (base, result.run))
    columns = sum(len(pair.base.budgets) for pair in pairs.values())
    several = len(pairs) > 1
    tested = [[pair] for pair in pairs.values()] + [list(pairs.values())] * several
    cells = []
    for place, of in enumerate(tested):
        claims = None
        if comparisons is not None:
            details = comparisons * (columns + several * (len(pairs) + columns // len(pairs)))  # as `verdicts.judged`
            claims = details, comparisons if place == len(tested) - 1 else details
        few = resamples if claims else LEAST_RESAMPLES
        whole = comparisons if place == len(tested) - 1 else None
        endings = stop_cells(of, margins[1], few, same_chains, whole, base.imported or result.run.imported)
        cells.append(contrast_cells(of, margins[0], few, claims) | endings)
    return [*map(without_claims, cells)] if result.lacking else cells


def _name(run: Run) -> str:
    return f"{run.model.name} ({run.run_id})"
