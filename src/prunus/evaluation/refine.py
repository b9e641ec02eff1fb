"""Rows of a finished run at further budgets, from the largest down, until the caller needs no more.

The chains that the store keeps are answered at one budget after the other. These rows belong to the run but not to its
plan: the store keeps them apart (table `finer`), so that its tables, comparisons and verdicts stay as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prunus.errors import PrunusError
from prunus.evaluation.grading import Grader
from prunus.evaluation.kept_chains import answer_kept_chains, copy_natural_ends, sources_of
from prunus.evaluation.pipeline import PlanOfModel
from prunus.evaluation.provenance import begin, describe_environment
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.evaluation.run import Portion, missing_batches, run_chains
from prunus.evaluation.stored_plan import plan_of, problems_of
from prunus.progress import Steps
from prunus.settings.budgets import without_off
from prunus.settings.engines import EngineOptions
from prunus.store.rows import Run, chains_of, sampled_tokens
from prunus.store.store import Store, claim


@dataclass(frozen=True)
class BudgetCost:
    """Cost of one more budget of a run.

    answers: number of forced answers to generate, one for each chain that thinks longer. tokens: of these answers, at
    the mean length of the run's forced answers. chains: number of chains whose thinking must be generated again, since
    the store does not keep it. thinking_tokens: of these chains, at most. of_run: tokens that the run generated.
    """

    budget: int
    answers: int
    tokens: int
    chains: int
    thinking_tokens: int
    of_run: int

    @property
    def share(self) -> float:
        """Tokens of answers and thinking, as a share of the run's tokens."""
        return (self.tokens + self.thinking_tokens) / max(1, self.of_run)

    def __str__(self) -> str:
        again = f" and {self.chains:,} chains thought again, {self.thinking_tokens:,}" if self.chains else ""
        answers = f"{self.answers:,} answers, about {self.tokens:,} tokens{again}"
        return f"budget {self.budget}: {answers} ({100 * self.share:.1f} % of the run's)"


def costs(store: Store, run: Run, budgets: Sequence[int]) -> list[BudgetCost]:
    """Cost of each of these budgets, from the largest down; no model is loaded.

    Rows that the store has cost nothing. Raises PrunusError for a budget that the run's chains do not reach.
    """
    samples, kept = store.samples(run.run_id), store.chains_kept(run.run_id)
    largest = checked(run, budgets)
    forced = [sample.answer_tokens for sample in samples if sample.ended == "forced"]
    each = sum(forced) / len(forced) if forced else 0.0
    of_run = sum(sampled_tokens(chains_of(samples), run.plan.reuse is not False))
    there = store.keys(run.run_id) | store.keys(run.run_id, "finer")
    shared = run.plan.reuse is not False and not run.plan.wait
    result = []
    for budget in sorted(set(budgets), reverse=True):
        longest = [s for s in samples if s.budget == largest and (s.problem_id, budget, s.draw) not in there]
        longer = [s for s in longest if s.thinking_tokens > budget or s.thinking_tokens == budget == 0]
        again = [s for s in (longer if shared else longest) if not shared or (s.problem_id, s.draw) not in kept]
        again = [s for s in again if budget]
        thinking = sum(min(budget, s.thinking_tokens) for s in again)
        result.append(BudgetCost(budget, len(longer), round(each * len(longer)), len(again), thinking, of_run))
    return result


def checked(run: Run, budgets: Sequence[int]) -> int:
    """The run's largest budget. Raises PrunusError unless it has one and no other budget is larger or negative."""
    largest = max(without_off(run.plan.budgets), default=0)
    if not largest:
        raise PrunusError(f"run {run.run_id} has no thinking budget, so there is none between its budgets")
    if wrong := [budget for budget in budgets if not 0 <= budget <= largest]:
        raise PrunusError(
            f"budget {wrong[0]} is not between 0 and {largest}, the largest of run {run.run_id}: its chains do not say"
            " how they go on; add it by --budgets of `prunus eval`"
        )
    return largest


def refine(
    store: str | Path,
    run: str,
    budgets: Sequence[int],
    stop: Callable[[int], bool] = lambda budget: False,
    *,
    model: str | Path | None = None,
    device: str = "auto",
    options: EngineOptions | None = None,
) -> list[int]:
    """Answer a finished run's chains at further budgets, from the largest down; return those that it now has.

    store: SQLite file. run: an id, or as `Store.find_run` takes it. budgets: also those that the run already has, which
    cost nothing. stop: is called with each budget as soon as all its rows are stored; True ends the walk. model: the
    run's model; None for the source that the store names. options: how the run's engine is started or reached, as for
    the run itself.

    The model is loaded only if a row is missing. After an interruption the same call goes on. Raises PrunusError if the
    run is not complete, if the model, plan or serving is not the run's, or if this environment differs from the run's.
    """
    with Store(store) as opened, ExitStack() as stack:
        found, answered = opened.find_run(run), list[int]()
        checked(found, budgets)
        draw: Callable[[int], None] | None = None
        for budget in sorted(set(budgets), reverse=True):
            if not opened.has_budget(found.run_id, budget):
                draw = draw or stack.enter_context(drawing(opened, found, model, device, options or EngineOptions()))
                draw(budget)
            answered.append(budget)
            if stop(budget):
                break
        return answered


@contextmanager
def drawing(
    store: Store, run: Run, model: str | Path | None, device: str, engine: EngineOptions
) -> Iterator[Callable[[int], None]]:
    """Load the model, and yield a function that adds the run's missing rows at a budget. Arguments as of refine."""
    plan, source = plan_of(run.plan), str(model or run.model.source)
    private = any(store.question(problem) is None for problem, *_ in store.keys(run.run_id))
    resolved = PlanOfModel.of(source, plan, engine, None if private else problems_of(store, run))
    work = resolved.work
    if work.run_id != run.run_id:
        raise PrunusError(f"{source} is not what run {run.run_id} is of: {other_than(run, work)}")
    if missing_batches(store, work):
        raise PrunusError(f"run {run.run_id} is not complete: finish it by `prunus eval` first")
    with claim(store.path, run.run_id), resolved.loaded(device) as backend, Grader() as grader:
        environment = describe_environment(backend, work.plan)
        begin(store, replace(run, environment=environment, starts=()), mixed=False)
        own = work.cuts_chains and not run.mixed
        sources = [*[run.run_id] * own, *sources_of(store, work, environment)]

        def keep(portion: Portion) -> None:
            with Store(store.path) as opened:  # since this may be in another thread
                opened.add_samples(run.run_id, portion.samples, table="finer")

        def draw(budget: int) -> None:
            at_budget, total = replace(work, budgets=(budget,)), sum(map(len, work.batches))
            copy_natural_ends(store, at_budget, sources, "finer")
            done = sum(at == budget for _, at, _ in store.keys(run.run_id, "finer"))
            with Steps(f"budget {budget}", total, "answers", done=done) as steps:
                for samples in answer_kept_chains(
                    store, at_budget, backend, grader, at_budget.batches, sources, "finer"
                ):
                    steps.advance(len(samples))
                there = store.keys(run.run_id, "finer")
                for portion in run_chains(at_budget, backend, grader, at_budget.batches, keep, there, steps.within):
                    new = {(sample.problem_id, budget, sample.draw) for sample in portion.samples} - there
                    steps.advance(len(new))

        yield draw


def other_than(run: Run, work: ResolvedPlan) -> str:
    """The differences between a resolved plan and that of a stored run, as the end of an error message."""
    differing = [f"{key} of the plan" for key in run.plan.differing(work.plan)]
    differing += ["the configuration, tokenizer or chat template"] * (run.model.content != work.content)
    differing += ["the settings of the engine"] * (run.model.serving != work.serving)
    differing += ["the weights"] * (run.model.checksum != work.subject["model"])
    return f"{', '.join(differing) or 'what was done to the model'} would differ"
