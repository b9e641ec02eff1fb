"""A declared search over the rows of a store: how its runs differ from the dense model's, and what follows for a rung.

Every decision follows from rows alone. So a search that was interrupted takes the same decisions again, and so does
`verify`, which evaluates nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from prunus.errors import PrunusError
from prunus.results.certificate import Declaration, DeclaredRung
from prunus.results.ladder import ACCURACY, ENDS, Decision, Rule, decide, differences, next_look
from prunus.results.verdicts import rare_endings, wide_margin
from prunus.results.vocabulary import RungVerdict
from prunus.statistics.paired import Floats
from prunus.store.rows import Sample, Table, chains_of, sampled_tokens, tables
from prunus.store.store import Store

OUT_OF_TOKENS, NOT_ENOUGH = "the tokens are used up", "the problems left would not be enough"
NOTHING_TO_LOSE = "losing all that the original has would be within the margin"


class SearchRows:
    """Rows of the runs of a declared search, each run read once until `forget`.

    order: the rounds of problems. Rows of other budgets, and of more draws, are left out.
    """

    def __init__(self, store: Store, declared: Declaration) -> None:
        self.store, self.dense, self.budgets = store, declared.dense, declared.budgets
        self.draws, self.dense_draws = declared.samples, declared.dense_draws
        self.reuse, self.groups = declared.reuse, declared.groups or {}
        self.order = declared.order(sorted(declared.problems))
        self.forget()

    def forget(self) -> None:
        """Read runs again when they are needed next, since rows were added."""
        self._samples, self._table, self._spent = cache(self._read), cache(self._tabled), cache(self._summed)
        self.differences = cache(self._differences)

    def _read(self, run_id: str) -> dict[str, list[Sample]]:
        """The rows of a run by problem."""
        by_problem: dict[str, list[Sample]] = {}
        draws = self.dense_draws if run_id == self.dense else self.draws
        for sample in self.store.samples(run_id):
            if sample.draw < draws and sample.budget in self.budgets:
                by_problem.setdefault(sample.problem_id, []).append(sample)
        return by_problem

    def up_to(self, run_id: str, rounds: int) -> list[list[Sample]]:
        """The rows of a run in each of the first rounds, in their order."""
        by_problem = self._samples(run_id)
        return [[s for _, problem in round for s in by_problem.get(problem, [])] for round in self.order[:rounds]]

    def _differences(self, run_id: str) -> dict[str, Floats]:
        """{endpoint: this run minus the dense model's} of the first rounds that both have completely."""
        draws = self.dense_draws if run_id == self.dense else self.draws
        of = self.order, self.budgets, draws, self.dense_draws
        return differences(self._table(self.dense), self._table(run_id), *of)

    def tokens(self, run_id: str, rounds: int) -> int:
        """The tokens sampled for the rows of a run in the first rounds, whoever computed them."""
        return self._spent(run_id)[rounds]

    def _summed(self, run_id: str) -> list[int]:
        each = [sum(sampled_tokens(chains_of(rows), self.reuse)) for rows in self.up_to(run_id, len(self.order))]
        return [0, *accumulate(each)]

    def _tabled(self, run_id: str) -> dict[str, Table]:
        return tables((s for rows in self._samples(run_id).values() for s in rows), self.groups)


@dataclass(frozen=True)
class Decided:
    """A rung that was decided. ladder: index of its ladder. rung: as declared. differences: of all rounds with rows.

    looked: number of rounds whose rows the decision took. why: as why_open returns it. tokens: sampled for the rung's
    own rows. spent: tokens of all rows looked at so far, with those of the dense model in dense_looked rounds.
    """

    ladder: int
    rung: DeclaredRung
    decision: Decision
    differences: Mapping[str, Floats]
    looked: int
    why: str
    tokens: int
    spent: int
    dense_looked: int


# Called with (rung, rounds looked at, rounds of the next look, tokens spent) before each look, to add missing rows.
Provide = Callable[[DeclaredRung, int, int, int], None]


def decided(rows: SearchRows, declared: Declaration, provide: Provide | None = None) -> Iterator[Decided]:
    """Yield every rung that the search looks at, in order: each ladder ends at the first that is not certified.

    provide: None for a search that is finished. Raises PrunusError if the store lacks a run, or rows that a decision
    needs.
    """
    store, dense, total, most = rows.store, declared.dense, len(rows.order), declared.max_tokens
    runs, rule = {run.run_id for run in store.runs()}, declared.rule
    if provide is None and dense not in runs:
        raise PrunusError(f"the store {store.path} has no run {dense}, the original's")
    dense_looked, finished = 0, 0
    for number, ladder in enumerate(declared.ladders):
        for rung in ladder.rungs:
            run_id = rung.run
            if most is not None and rows.tokens(dense, dense_looked) + finished >= most:
                break
            if provide is None and run_id not in runs:
                raise PrunusError(f"the store {store.path} has no run {run_id}, that of {rung.name}")
            differences, looked = rows.differences(run_id), 0
            while True:
                dense_looked = max(dense_looked, looked)
                tokens = rows.tokens(run_id, looked)
                spent = rows.tokens(dense, dense_looked) + finished + tokens
                ended = most is not None and spent >= most
                seen = up_to(differences, looked)
                until = next_look(seen, rule, declared.look, total)
                decision = decide(seen, rule, ended or until == looked)
                if decision.word != RungVerdict.GO_ON:
                    break
                if provide is not None:
                    provide(rung, looked, until, spent)
                    differences = rows.differences(run_id)
                looked = until
                if len(differences[ACCURACY]) < looked:
                    raise PrunusError(
                        f"the store {store.path} lacks rows: {rung.name} is not decided by the"
                        f" {len(differences[ACCURACY])} rounds of problems that are complete"
                    )
            finished += tokens
            why = why_open(decision, ended, total)
            yield Decided(number, rung, decision, differences, looked, why, tokens, spent, dense_looked)
            if decision.word != RungVerdict.CERTIFIED:
                break


def up_to(differences: Mapping[str, Floats], rounds: int) -> dict[str, Floats]:
    """Differences of the first rounds."""
    return {name: values[:rounds] for name, values in differences.items()}


def cautions(rule: Rule, dense: Mapping[str, float], base: str) -> str:
    """Warnings where the dense model solves so little, or ends so few chains, that a margin says little; empty if none.

    dense: its results by endpoint, as far as they are known. base: what to call it.
    """
    checks = {ACCURACY: wide_margin, ENDS: rare_endings}
    notes = [check(rule.margins[end], dense[end], base) for end, check in checks.items() if end in dense]
    return "; ".join(filter(None, notes))


def why_open(decision: Decision, ended: bool, total: int) -> str:
    """The reason why a rung is left open if problems did not run out; else empty. ended: whether tokens are used up."""
    if decision.covered:
        return NOTHING_TO_LOSE
    if decision.word != RungVerdict.CANNOT_TELL or decision.rounds == total:
        return ""
    return OUT_OF_TOKENS if ended else NOT_ENOUGH
