"""A declared search, walked again over the rows of a store: its decisions, without any model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prunus.errors import PrunusError
from prunus.finding.rows import Floats, Rows
from prunus.results.ladder import ACCURACY, CERTIFIED, GO_ON, OPEN, Decision, Rule, decide, next_look
from prunus.results.order import whole_groups
from prunus.results.store import Store

OUT_OF_TOKENS, NOT_ENOUGH = "the tokens are used up", "the problems left would not be enough"
NOTHING_TO_LOSE = "losing all that the dense model has would be within the margin"

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """A rung that was looked at. ladder: its number. rung: as declared. found: differences of all rounds with rows.

    looked: rounds whose rows the decision took. ended: whether the tokens were used up.
    """

    ladder: int
    rung: Data
    decision: Decision
    found: Mapping[str, Floats]
    looked: int
    ended: bool


def rows_of(store: Store, declared: Data) -> Rows:
    """The rows of a declared search, in its order of problems."""
    problems = {task: declared["problems"][task] for task in sorted(declared["problems"])}
    groups = declared.get("groups", {})
    order = whole_groups(problems, declared["seed"], groups)
    return Rows(store, declared["dense"], order, declared["budgets"], declared["samples"], declared["reuse"], groups)


def rule_of(declared: Data) -> Rule:
    """The rule by which each ladder of a declared search is walked."""
    return Rule(declared["margin"], declared["stop_margin"], declared["alpha"] / len(declared["ladders"]))


def judged(rows: Rows, declared: Data) -> Iterator[Judged]:
    """Every rung that the search looked at, in its order.

    Raises PrunusError if the store lacks a run, or rows that a decision needs.
    """
    store, dense, order, most = rows.store, declared["dense"], rows.order, declared["max_tokens"]
    runs, rule = {run.run_id for run in store.runs()}, rule_of(declared)
    if dense not in runs:
        raise PrunusError(f"the store {store.path} has no run {dense}, the dense model's")
    dense_looked, finished = 0, 0
    for number, ladder in enumerate(declared["ladders"]):
        for rung in ladder["rungs"]:
            run_id = rung["run"]
            if most is not None and rows.tokens(dense, dense_looked) + finished >= most:
                break
            if run_id not in runs:
                raise PrunusError(f"the store {store.path} has no run {run_id}, that of {rung['name']}")
            found, looked = rows.differences(run_id), 0
            while True:
                dense_looked = max(dense_looked, looked)
                spent = rows.tokens(dense, dense_looked) + finished + rows.tokens(run_id, looked)
                ended = most is not None and spent >= most
                seen = {name: values[:looked] for name, values in found.items()}
                until = next_look(seen, rule, declared["look"], len(order))
                decision = decide(seen, rule, ended or until == looked)
                if decision.word != GO_ON:
                    break
                looked = until
                if len(found[ACCURACY]) < looked:
                    raise PrunusError(
                        f"the store {store.path} lacks rows: {rung['name']} is not decided by the"
                        f" {len(found[ACCURACY])} rounds of problems that are complete"
                    )
            finished += rows.tokens(run_id, looked)
            yield Judged(number, rung, decision, found, looked, ended)
            if decision.word != CERTIFIED:
                break


def why_open(decision: Decision, ended: bool, total: int) -> str:
    """Why a rung is left open although there are more rounds; empty for others. ended: whether tokens are used up."""
    if decision.covered:
        return NOTHING_TO_LOSE
    if decision.word != OPEN or decision.rounds == total:
        return ""
    return OUT_OF_TOKENS if ended else NOT_ENOUGH
