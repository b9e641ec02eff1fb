"""Answer runs at budgets in steps of 2^(1/4), so that `prunus efforts` can choose its levels from more budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prunus import progress
from prunus.errors import PrunusError
from prunus.evaluation.refine import BudgetCost, costs, refine
from prunus.plain_data import Listing, Record
from prunus.results.efforts import Measured, checked_levels, goes_on
from prunus.settings.engines import EngineOptions
from prunus.settings.margins import LEVELS, Margin, MarginLike
from prunus.store.labels import Identity
from prunus.store.rows import Run
from prunus.store.store import Store

STEP = 2**0.25
DOUBLINGS = 4  # below the only budget of a run


class FinerBudgets(Record):
    """Further budgets of a run, and their cost.

    run, model: id of the run, and name of its model.
    budgets: budgets that may be needed, from the largest down.
    tokens: maximum number of tokens to answer the run's chains at all of them.
    of_run: tokens that the run generated.
    answered: budgets that were needed, at which the run has answers now; empty for a plan.
    """

    run: str
    model: str
    budgets: Sequence[int]
    tokens: int
    of_run: int
    answered: Sequence[int] = ()

    def __str__(self) -> str:
        share = 100 * self.tokens / max(1, self.of_run)
        down = f"{len(self.budgets)} more budgets down to {self.budgets[-1]:,}" if self.budgets else "no more budgets"
        return f"{self.model} ({self.run}): {down}, at most {self.tokens:,} tokens ({share:.1f} % of the run's)"


def refine_efforts(
    store: str | Path,
    run: str | Identity | None = None,
    levels: Mapping[str, MarginLike] | None = None,
    *,
    device: str = "auto",
    options: EngineOptions | None = None,
) -> Listing[FinerBudgets]:
    """Answer the chains of finished runs at budgets in steps of 2^(1/4), down to the smallest that a level may have.

        prunus.refine_efforts("results.db")
        print(prunus.efforts("results.db"))

    store: SQLite file of the results.
    run: the only run, as in `efforts`; None for all whose chains the store keeps.
    levels: as in `efforts`; the walk of the largest margin ends the search.
    device: as in `evaluate`.
    options: how the run's engine is started or reached, as for the run itself.

    After an interruption the same call goes on. Raises PrunusError for a run that is unfinished or imported, or whose
    source is another model by now.
    """
    plans = plan_refine_efforts(store, run, levels)
    return Listing(_refined(store, plan, _margins(levels), device, options) for plan in plans)


def plan_refine_efforts(
    store: str | Path, run: str | Identity | None = None, levels: Mapping[str, MarginLike] | None = None
) -> Listing[FinerBudgets]:
    """Budgets that `refine_efforts` may answer, and what they cost at most; nothing is answered.

        print(prunus.plan_refine_efforts("results.db"))

    store: as of `refine_efforts`.
    run: as of `refine_efforts`.
    levels: as of `refine_efforts`.

    Raises PrunusError where `refine_efforts` does.
    """
    with Store(store) as opened:
        chosen = (
            [opened.find_run(str(run))]
            if run is not None
            else [stored for stored in opened.runs_with_rows() if _keeps(opened, stored)]
        )
        if not chosen:
            raise PrunusError("no run keeps its chains, from which further budgets are answered: evaluate it again")
        plans = Listing(_planned(opened, found, _margins(levels)) for found in chosen)
    for plan in plans:
        progress.say(str(plan))
    return plans


def _margins(levels: Mapping[str, MarginLike] | None) -> Mapping[str, Margin]:
    return checked_levels(LEVELS if levels is None else levels)


def _keeps(store: Store, run: Run) -> bool:
    return not run.imported and not run.is_control and bool(store.chains_kept(run.run_id))


def _measured(store: Store, run: Run) -> Measured:
    return Measured.read(store, run, store.samples(run.run_id), store.groups(), store.questions())


def _planned(store: Store, run: Run, margins: Mapping[str, Margin]) -> FinerBudgets:
    """The budgets that the run may need, down to the first measured budget at which the walk ends, and their cost."""
    if run.imported:
        raise PrunusError(f"run {run.run_id} is an imported log, which has no chains to go on with")
    measured = _measured(store, run)
    if measured.unfinished is not None or not measured.budgets:
        raise PrunusError(
            f"run {run.run_id} is unfinished, or has no thinking budget: finish it by `prunus eval` first"
        )
    full = measured.budgets[-1]
    least = measured.budgets[0] if len(measured.budgets) > 1 else full >> DOUBLINGS
    below = [budget for budget in reversed(measured.budgets) if budget < full]
    end = next((budget for budget in below if not goes_on(measured, margins, budget)), least)
    budgets = [budget for budget in grid(full, least, measured.budgets) if budget > end]
    cost = costs(store, run, budgets) if budgets else list[BudgetCost]()
    return FinerBudgets(
        run=run.run_id,
        model=run.model.name,
        budgets=budgets,
        tokens=sum(of.tokens + of.thinking_tokens for of in cost),
        of_run=cost[0].of_run if cost else 0,
    )


def grid(full: int, least: int, measured: Sequence[int] = ()) -> list[int]:
    """Budgets from `full` down to `least`, both excluded, in steps of 2^(1/4), without those near a measured one."""
    budgets, budget = list[int](), full / STEP
    while round(budget) > max(1, least):
        if all(max(budget / near, near / budget) > STEP**0.5 for near in measured):
            budgets.append(round(budget))
        budget /= STEP
    return list(dict.fromkeys(budgets))


def _refined(
    store: str | Path, plan: FinerBudgets, margins: Mapping[str, Margin], device: str, options: EngineOptions | None
) -> FinerBudgets:
    """The plan with the budgets that were answered, until the walk ends."""

    def stop(budget: int) -> bool:
        with Store(store) as opened:
            return not goes_on(_measured(opened, opened.run(plan.run)), margins, budget)

    answered = refine(store, plan.run, plan.budgets, stop, device=device, options=options) if plan.budgets else []
    return replace(plan, answered=answered)
