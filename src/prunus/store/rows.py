"""The rows of a store: runs, their draws (samples), and problems; and the draws of a run as a table.

Axes of tables: P: problems, G: groups of problems, B: budgets, N: draws. Problems that belong together
(`prunus.questions`) are one observation: what is inferred from problems counts groups, and a group's value is the mean
over its problems.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from prunus.settings.budgets import OFF, without_off
from prunus.store.stored import Adaptive, Environment, StoredModel, StoredPlan

Ended = Literal["natural", "forced"]
Key = tuple[str, int, int]  # problem_id, budget, draw
UNKNOWN = -1  # a number of tokens that an imported log does not tell
KEYED_PROTOCOL = "3"  # of runs that hf sampled with a number per token id
IMPORTED = "imported"  # the kind of a problem that is known from imported logs only


@dataclass(frozen=True)
class PlannedProblems:
    """The problems of a run's plan: how many, and their ids by task in the plan's order."""

    count: int
    order: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Stage:
    """A run of a model among those whose plans differ only in the limit, the number of draws and the seed.

    A run whose problems were given other groups when it had rows is one more stage from then on.

    place: of the run in the store, by time. limit: None means all problems. started: UTC time at which the last
    evaluation began that lacked rows of it. complete: how many of its problems were complete when
    the next stage began; None if that is not known. removed: UTC time at which it was removed from the store. sampled:
    the tasks of which its limit took a sample rather than the first problems. problems: the plan's hash of its
    problems. order: as of PlannedProblems. groups: how often the groups of its problems had changed.
    """

    run_id: str
    place: int
    limit: int | None
    samples: int
    started: str | None = None
    complete: int | None = None
    removed: str | None = None
    sampled: tuple[str, ...] = ()
    problems: str | None = None
    order: Mapping[str, Sequence[str]] | None = field(default=None, repr=False)
    groups: int = 0


@dataclass(frozen=True)
class Start:
    """A later start of a run that recorded something else than the start before.

    number: counts the later starts of the store. at: UTC time. content: digest of the model's configuration, tokenizer
    and template. environment: in which its rows are computed. mixed: whether something that changes numbers was not as
    before, which the user allowed.
    """

    number: int
    at: str
    content: str | None
    environment: Environment
    mixed: bool


@dataclass(frozen=True)
class Run:
    """One model under one plan.

    environment: in which the first start computes.
    adaptive: None if the number of problems was fixed beforehand. planned: None where it is not known, and
    for an imported log, which is complete by definition. stages: the run itself, after the earlier ones of its model;
    empty before it is stored. starts: those after the first.
    """

    run_id: str
    model: StoredModel
    plan: StoredPlan
    environment: Environment
    adaptive: Adaptive | None = None
    planned: PlannedProblems | None = field(default=None, compare=False)
    stages: tuple[Stage, ...] = field(default=(), compare=False)
    starts: tuple[Start, ...] = field(default=(), compare=False)

    @classmethod
    def of(
        cls,
        run_id: str,
        model: Mapping[str, Any] | StoredModel,
        plan: Mapping[str, Any] | StoredPlan,
        environment: Mapping[str, Any] | Environment,
        **more: Any,
    ) -> Self:
        """The run of this plain data. Raises ValueError for data of another type. more: the other fields."""
        part = "model"
        try:
            described = StoredModel.of(model)
            part = "plan"
            planned = StoredPlan.of(plan)
            part = "environment"
            return cls(run_id, described, planned, Environment.of(environment), **more)
        except ValueError as error:
            raise ValueError(f"in the {part} of run {run_id}, {error}") from error

    @property
    def mixed(self) -> bool:
        """Whether its rows were computed in several ways, so that a verdict rests only on problems computed alike."""
        return any(start.mixed for start in self.starts)

    @property
    def imported(self) -> bool:
        """Whether the run is an imported log of another tool, whose plan says how that was read."""
        return self.plan.imported

    @property
    def nbytes(self) -> int | None:
        """The bytes that an engine loads of the model; None where they are unknown."""
        return sum(self.model.bytes.values()) if self.model.bytes else None

    @property
    def is_control(self) -> bool:
        """Whether the run repeats another in other batches (EvalPlan.aa_control), and so is no variant."""
        return self.plan.aa_control


@dataclass(frozen=True)
class Removed:
    """A run that was removed with its rows.

    started: as of its Stage. at: when it was removed, in UTC. complete: problems of which it had all rows. problems,
    samples: numbers of problems with rows, and of rows.
    """

    run: Run
    started: str | None
    at: str
    complete: int
    problems: int
    samples: int


@dataclass(frozen=True)
class DeclaredSearch:
    """A search by `find`, as it was declared before it looked at any row.

    number: 1 for the first of the store. search_id: hash of declared, which is that part of its certificate. at: when,
    in UTC. had: {run: (problems with rows, rows)} that its runs had then, without runs that had none.
    """

    number: int
    search_id: str
    declared: dict[str, Any]
    at: str
    had: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Sample:
    """One draw of a problem at a budget.

    budget: thinking tokens allowed, or prunus.settings.budgets.OFF for thinking switched off, which is stored as -1.
    thinking_tokens, answer_tokens: tokens that were sampled; thinking_tokens <= budget, and suppressed stops count as
    thinking. forced_tokens: markers and closings that the protocol inserted. answer: normalised; None if none was
    found. status: the grader's. thinking, text: the decoded phases; empty when read without texts. answer_cap: limit of
    answer tokens, by the plan or by the rest of the context; None in imported rows.
    loops: whether the chain loops, by prunus.store.looping.

    Rows of an imported log have budget AS_RUN. Their thinking_tokens are those that the log calls reasoning, and their
    answer_tokens all others. UNKNOWN stands for counts that the log does not tell; forced_tokens are UNKNOWN if it does
    not tell how the output ended, and ended then says nothing. `forced` there means: cut at a limit of the engine.

    logprob and self_certainty are means over the thinking and answer tokens that the model sampled itself (no stops,
    markers or inserted text). p is the softmax of its logits over the whole vocabulary of V tokens, at temperature 1
    and before any token is banned or cut off. logprob: mean of log p(token), natural logarithm. self_certainty: mean of
    KL(uniform || p), which is -log V - mean over the vocabulary of log p (arXiv:2502.18581). Both are None where the
    backend returns no scores or nothing was sampled. repetition: prunus.store.looping.repetition_rate of both
    phases.
    """

    task: str
    problem_id: str
    budget: int
    draw: int
    thinking_tokens: int
    answer_tokens: int
    forced_tokens: int
    ended: Ended
    answer_truncated: bool
    reopened_think: bool
    answer: str | None
    status: str
    correct: bool
    thinking: str = ""
    text: str = ""
    logprob: float | None = None
    self_certainty: float | None = None
    repetition: float | None = None
    answer_cap: int | None = None
    loops: bool = False


@dataclass(frozen=True)
class ProblemRow:
    """A problem with everything that regrading needs.

    digest: of question, correct answer and choices, equal in two runs only if they had the same problem.
    answer_formats: that the question asks for; None if the problem is private. group: id of the first of the problems
    that count as one observation with it (`prunus.questions`), its own if it is alone; None if it is unknown, so
    that the group in the store stays. question: hash of the question and its choices (`prunus.questions.question_key`).
    text: the question, which `Store.question` reads; None in rows that were read, and for private problems.
    """

    task: str
    problem_id: str
    gold: str
    kind: str
    choices: tuple[str, ...]
    digest: str
    answer_formats: tuple[str, ...] | None = None
    question: str | None = None
    group: str | None = None
    text: str | None = field(default=None, repr=False, compare=False)


Chain = Sequence[tuple[int, int, int, str]]  # (budget, thinking tokens, answer tokens, ended) of a draw, per budget


def sampled_tokens(chains: Iterable[Chain], reuse: bool = True) -> tuple[int, int]:
    """(thinking, answer) tokens that were generated for these chains; tokens shared by several budgets count once.

    reuse: all budgets of a draw are cut from one chain. They share its longest thinking and the answer after its
    natural end; each forced answer, and that of budget OFF, is generated separately. Without reuse every budget was
    generated separately.
    """
    thinking = answer = 0
    share = max if reuse else sum
    for chain in chains:
        thinking += share(tokens for _, tokens, _, _ in chain)
        natural = [tokens for budget, _, tokens, ended in chain if ended == "natural" and budget != OFF]
        separate = sum(tokens for budget, _, tokens, ended in chain if ended == "forced" or budget == OFF)
        answer += separate + (share(natural) if natural else 0)
    return thinking, answer


def chains_of(samples: Iterable[Sample]) -> list[Chain]:
    """A run's samples grouped into chains: one for each draw of each problem."""
    chains: dict[tuple[str, int], list[tuple[int, int, int, str]]] = defaultdict(list)
    for sample in samples:
        chain = chains[sample.problem_id, sample.draw]
        chain.append((sample.budget, sample.thinking_tokens, sample.answer_tokens, sample.ended))
    return list(chains.values())


@dataclass(frozen=True)
class Table:
    """One task of a run. rows_PBN holds Samples, None where a draw is missing; the axes are sorted.

    first_of: the first problem of the group of each problem, as `Store.groups` has it; others are groups by themselves.
    starts: as of `Store.row_starts`; what is not there is of the first start.
    """

    problems: tuple[str, ...]
    budgets: tuple[int, ...]
    draws: tuple[int, ...]
    rows_PBN: NDArray[Any]
    first_of: Mapping[str, str] = field(default_factory=dict)
    starts: Mapping[tuple[str, int], frozenset[int]] = field(default_factory=dict)

    def select(self, problems: Sequence[str], budgets: Sequence[int], draws: Sequence[int]) -> "Table":
        """The subtable with these labels, in the given order; all must exist."""
        axes = ((self.problems, problems), (self.budgets, budgets), (self.draws, draws))
        places = [[index[label] for label in wanted] for have, wanted in axes for index in [_index(have)]]
        rows_PBN = self.rows_PBN[np.ix_(*places)]
        return Table(tuple(problems), tuple(budgets), tuple(draws), rows_PBN, self.first_of, self.starts)

    def curve(self) -> "Table":
        """The table without budget OFF, which is not on the curve; all of it if it has no other budget."""
        return self.select(self.problems, without_off(self.budgets) or self.budgets, self.draws)

    def started(self, problem: str, draw: int) -> frozenset[int]:
        """The numbers of the starts that computed the rows of a draw; 0 for the first."""
        return self.starts.get((problem, draw), frozenset({0}))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of these problems, in the order of the first problem of each."""
        return tuple(dict.fromkeys(self.first_of.get(problem, problem) for problem in self.problems))

    @property
    def grouped(self) -> bool:
        """Whether any group has several problems."""
        return len(self.groups) < len(self.problems)

    def by_group(self, values: NDArray[Any]) -> NDArray[Any]:
        """(G, ...) means over the problems of each group, from (P, ...); the same array if no group has several."""
        if not self.grouped:
            return values
        place = _index(self.groups)
        group_P = np.array([place[self.first_of.get(problem, problem)] for problem in self.problems])
        sums = np.zeros((len(self.groups), *values.shape[1:]))
        np.add.at(sums, group_P, values)
        return sums / np.bincount(group_P).reshape(-1, *[1] * (values.ndim - 1))

    def complete(self) -> tuple[str, ...]:
        """Problems with every draw at every budget."""
        present_P = (self.rows_PBN != None).all(axis=(1, 2))  # noqa: E711  element by element
        return tuple(problem for problem, present in zip(self.problems, present_P, strict=True) if present)

    def values(self, field: str) -> NDArray[Any]:
        """(P, B, N) array of a field of the samples; none may be missing. Unknown numbers of tokens are nan."""
        get = attrgetter(field)
        values = np.array([get(sample) for sample in self.rows_PBN.ravel()]).reshape(self.rows_PBN.shape)
        unknown = values == UNKNOWN if field.endswith("_tokens") else np.zeros(())
        return np.where(unknown, np.nan, values) if unknown.any() else values

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(P, B, N) whether the answer is correct."""
        return self.values("correct")

    @cached_property
    def used(self) -> NDArray[Any]:
        """(P, B, N) sampled tokens: thinking and answer; nan where they are unknown."""
        return self.values("thinking_tokens") + self.values("answer_tokens")

    @cached_property
    def forced(self) -> NDArray[Any]:
        """(P, B, N) whether the draw was stopped rather than ended by itself; nan where that is unknown."""
        return np.where(np.isnan(self.values("forced_tokens")), np.nan, self.values("ended") == "forced")

    def answers(self, budget: int) -> list[list[str | None]]:
        """Answers of each problem's draws at one budget."""
        place = self.budgets.index(budget)
        return [[sample.answer for sample in row] for row in self.rows_PBN[:, place]]

    def numbers(self, field: str) -> NDArray[np.float64] | None:
        """(P, B, N) array of a field that some engines do not tell; None if any draw that sampled tokens lacks it.

        Draws without sampled tokens have no such value and get -inf.
        """
        numbers = self.values(field).astype(float)  # None turns into nan
        missing = np.isnan(numbers)
        if missing.any():
            if (missing & (self.used != 0)).any():  # nan is unequal, too
                return None
            numbers[missing] = -np.inf
        return numbers

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """(P, B, N) scores for best-of-n, for those scores that all rows have."""
        by_name = {name: self.numbers(name) for name in ("logprob", "self_certainty")}
        by_name["shortest"] = None if np.isnan(self.used).any() else -self.used.astype(float)
        return {name: values for name, values in by_name.items() if values is not None}


def tables(
    samples: Iterable[Sample],
    first_of: Mapping[str, str] | None = None,
    starts: Mapping[tuple[str, int], frozenset[int]] | None = None,
) -> dict[str, Table]:
    """A table for each task, in order of name.

    first_of, starts: as of Table; by default every problem is alone, and the first start computed all rows.
    """
    by_task: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_task[sample.task].append(sample)
    return {task: _table(by_task[task], first_of or {}, starts or {}) for task in sorted(by_task)}


def sizes_of(tables: Sequence[Table]) -> dict[str, int]:
    """Sizes of tables taken together: n (groups), problems (only if more than n), and samples (draws per problem)."""
    n, problems = (sum(map(len, of)) for of in zip(*((table.groups, table.problems) for table in tables), strict=True))
    return {"n": n} | ({"problems": problems} if problems > n else {}) | {"samples": len(tables[0].draws)}


def _table(
    samples: Sequence[Sample], first_of: Mapping[str, str], starts: Mapping[tuple[str, int], frozenset[int]]
) -> Table:
    problems = tuple(sorted({s.problem_id for s in samples}))
    budgets, draws = tuple(sorted({s.budget for s in samples})), tuple(sorted({s.draw for s in samples}))
    rows = np.full((len(problems), len(budgets), len(draws)), None, dtype=object)
    p, b, n = _index(problems), _index(budgets), _index(draws)
    for sample in samples:
        rows[p[sample.problem_id], b[sample.budget], n[sample.draw]] = sample
    return Table(problems, budgets, draws, rows, first_of, starts)


def _index(labels: Sequence[Any]) -> dict[Any, int]:
    return {label: place for place, label in enumerate(labels)}
