"""Outcome of a choice from rows and costs: which choices fit, how far rows are looked at, what is chosen and claimed.

Both `choose`, which computes rows when they are needed, and `verify`, which computes none, run this.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from prunus.disk import show_bytes
from prunus.machine_load import busy
from prunus.statistics.best import ChoiceRule, ChoiceState, as_good, excess, interval, select_choice, states_after
from prunus.statistics.paired import Floats
from prunus.studies.choose.limits import DRAWN, KNOWN, LIMITS, Limit
from prunus.studies.choose.looks import in_words
from prunus.studies.choose.records import DENSE_FORM, ChoiceHistory, ChoiceResult, ChoiceRow, Costs, Declared, Form
from prunus.studies.choose.rows import FormRows

CHOSEN, FITS, WORSE, NO_ROWS = "chosen", "fits", "worse", "no rows"
NEAR, MOST_NAMED = 0.15, 3  # share of a limit within which a choice is named, and how many are
ON_BUSY = "speeds were taken on a busy machine ({}): at rest it is faster, and more may fit"
Provide = Callable[[Sequence[str], int, int], None]  # computes missing rows of runs, from a round up to another


@dataclass(frozen=True)
class Configuration:
    """A form with a budget and a number of votes. nbytes: all that it takes of memory with its chains at once."""

    form: Form
    budget: int
    votes: int
    nbytes: int

    @property
    def key(self) -> tuple[str, int, int]:
        """(run, budget, votes), by which FormRows finds its rows."""
        return self.form.run, self.budget, self.votes


class Taken(NamedTuple):
    """Bytes that a choice takes, and the mean and 95th percentile of seconds of an answer, by some rows."""

    bytes: int
    seconds: float
    p95: float


def nbytes(declared: Declared, form: Form, budget: int, votes: int, constant: int) -> int:
    """Bytes of memory of a choice, with a cache for each chain at its longest. constant: of the engine itself."""
    tokens = form.longest + max(0, budget) + declared.answer
    return form.bytes + form.cache.nbytes(tokens, votes * declared.users) + constant


def candidates(declared: Declared, costs: Costs) -> list[Configuration]:
    """All choices of forms that were tested; the others are too large at every budget."""
    return [
        Configuration(form, budget, votes, nbytes(declared, form, budget, votes, costs.forms[form.run].constant))
        for form in declared.forms
        if form.run in costs.forms
        for budget in declared.budgets
        for votes in declared.votes
    ]


@dataclass(eq=False)
class Outcome:
    """Decides what is chosen and claimed: `Outcome(declared, costs, rows, provide).shown()`.

    provide: computes missing rows; None where none can be added. most: rounds after the pilot to look at; None: all.
    looks: what the store's log says of the choices before it; None: it is the first.
    """

    declared: Declared
    costs: Costs
    rows: FormRows
    provide: Provide | None = None
    most: int | None = None
    looks: ChoiceHistory | None = None

    def __post_init__(self) -> None:
        self.every = candidates(self.declared, self.costs)
        self.looked = dict[str, int]()  # rounds that were looked at of each run
        self.fitting: Sequence[Configuration] = ()  # choices that fit, once the pilot is drawn

    def need(self, choices: Sequence[Configuration], first: int, last: int) -> None:
        """Compute missing rows of choices in these rounds, if that is possible; note how far runs are looked at."""
        runs = list(dict.fromkeys(choice.form.run for choice in choices))
        if self.provide is not None:
            self.provide(runs, first, last)
        self.looked |= {run: max(last, self.looked.get(run, 0)) for run in runs}

    def taken(self, choice: Configuration, rounds: int) -> Taken:
        """Bytes and seconds that a choice takes, by the tokens in the first rounds; without any, no seconds."""
        if not rounds:
            return Taken(choice.nbytes, 0.0, 0.0)
        cost = self.costs.forms[choice.form.run].timed(choice.votes * self.declared.users)
        tokens = self.rows.tokens(*choice.key, range(rounds))
        values = np.array([cost.seconds(choice.form.prompt, count) for count in tokens])
        return Taken(choice.nbytes, float(values.mean()), float(np.quantile(values, 0.95)))

    def seconds(self, choice: Configuration) -> float:
        """Mean seconds of an answer, by the pilot."""
        return self.taken(choice, self.declared.pilot).seconds

    def missed(self, choice: Configuration, limits: Sequence[Limit]) -> tuple[Limit, float] | None:
        """The first of these limits that a choice misses, by the pilot, and what it takes of it; None if it keeps all.

        limits: KNOWN or DRAWN.
        """
        taken = self.taken(choice, self.declared.pilot if limits is DRAWN else 0)
        values = ((limit, limit.value(taken)) for limit in limits)
        return next(((limit, value) for limit, value in values if value > limit.of(self.declared)), None)

    @cached_property
    def possible(self) -> list[Configuration]:
        """Choices that keep the limits that are known, and of which there are rows or can be."""
        kept = [choice for choice in self.every if self.missed(choice, KNOWN) is None]
        pilot = self.declared.pilot
        return [choice for choice in kept if self.provide is not None or self.rows.complete(choice.form.run) >= pilot]

    def draw_pilot(self) -> list[Configuration]:
        """Compute missing rows of the pilot; returns the choices that fit, which keep all limits by its tokens.

        No bet is made on these rows.
        """
        self.need(self.possible, 0, self.declared.pilot)
        return [choice for choice in self.possible if self.missed(choice, DRAWN) is None]

    @property
    def rounds(self) -> int:
        """Number of rounds after the pilot."""
        return max(0, len(self.declared.order) - self.declared.pilot)

    def values(self, choices: Sequence[int], rounds: int) -> Floats:
        """(T, L) share that each of these choices, indices in `fitting`, solves in each of T rounds after the pilot."""
        pilot = self.declared.pilot
        some = [self.fitting[choice] for choice in choices]
        self.need(some, pilot, pilot + rounds)
        return np.stack([self.rows.values(*choice.key, range(pilot, pilot + rounds)) for choice in some], axis=1)

    def values_there(self, choices: Sequence[int], rounds: int) -> Floats | None:
        """Values of choices from rows that are there already; None where some are missing."""
        runs = {self.fitting[choice].form.run for choice in choices}
        whole = min(map(self.rows.complete, runs)) - self.declared.pilot
        return self.values(choices, rounds) if rounds <= whole else None

    def states(self, rule: ChoiceRule) -> list[ChoiceState]:
        """State of the choice after each interim analysis."""
        step, sampled = self.declared.look, self.declared.sampled
        looks = [*(() if rule.fixed else range(step, self.rounds, step)), self.rounds]
        looks = [look for look in looks if self.most is None or look <= self.most]
        return states_after(self.values if sampled else self.values_there, rule, looks, sampled)

    def shown(self) -> ChoiceResult:
        """What is chosen and claimed."""
        declared, fitting = self.declared, self.draw_pilot()
        self.fitting = fitting
        rule = ChoiceRule(max(1, len(fitting)), self.rounds, declared.margin, declared.alpha, bool(declared.fixed))
        states = self.states(rule) if fitting and self.rounds else []
        if not states:
            rows = [self.row(choice, self.state(choice), rule, {}) for choice in self.every]
            notes = [nothing(self) if not fitting else "there are no rows after those that decide what fits"]
            notes += [ON_BUSY.format(words) for words in [self.busy()] if words]
            return ChoiceResult(
                chosen=None, choices=rows, low=0.0, high=1.0, excess=1.0, rounds=0, stopped=False, claims=[],
                notes=notes, tokens=self.tokens(), full_tokens=self.full_tokens(),
            )  # fmt: skip
        last = states[-1]
        chosen = select_choice(last, [(self.seconds(choice), choice.nbytes) for choice in fitting])
        left = list(last.left)
        values_TL = self.values(left, last.rounds)
        bounds = np.maximum(excess(values_TL, left.index(chosen), rule), 0.0)
        better = {fitting[choice].key: float(bound) for choice, bound in zip(left, bounds, strict=True)}
        rows = [
            self.row(choice, CHOSEN if choice is fitting[chosen] else self.state(choice, better), rule, better)
            for choice in self.every
        ]
        row = next(row for row in rows if row.state == CHOSEN)
        assert row.low is not None and row.high is not None
        found = ChoiceResult(
            chosen=row, choices=rows, low=row.low, high=row.high, excess=float(bounds.max()), rounds=last.rounds,
            stopped=last.rounds < self.rounds, claims=[], notes=[], tokens=self.tokens(),
            full_tokens=self.full_tokens(),
        )  # fmt: skip
        return replace(found, claims=self.claims(found, last), notes=[*self.notes(found, last, chosen, rule)])

    def state(self, choice: Configuration, better: Mapping[tuple[str, int, int], float] | None = None) -> str:
        """State of a choice that was not selected. better: has the keys of choices that are not shown to be worse."""
        if (missed := self.missed(choice, KNOWN)) is not None:
            return missed[0].word
        if choice not in self.possible:
            return NO_ROWS
        if (missed := self.missed(choice, DRAWN)) is not None:
            return missed[0].word
        return FITS if better is None or choice.key in better else WORSE

    def row(
        self,
        choice: Configuration,
        state: str,
        rule: ChoiceRule,
        better: Mapping[tuple[str, int, int], float],
    ) -> ChoiceRow:
        """The row of the table for a choice. better: most by which choices can be better, by key."""
        run, have = choice.form.run, 0
        pilot, rounds = self.declared.pilot, self.looked.get(choice.form.run, 0)
        mean = low = high = None
        if choice in self.fitting and rounds > pilot:
            values_T = self.rows.values(*choice.key, range(pilot, rounds))
            mean, (low, high) = float(values_T.mean()), interval(values_T, rule)
        if rounds:
            have = sum(map(len, self.declared.order[:rounds]))
        _, seconds, p95 = self.taken(choice, rounds) if rounds else (None, None, None)
        return ChoiceRow(
            model=choice.form.model, form=choice.form.form, budget=choice.budget, votes=choice.votes, run=run,
            bytes=choice.nbytes, seconds=seconds, p95=p95, accuracy=mean, low=low, high=high, problems=have,
            state=state, better_by=better.get(choice.key),
        )  # fmt: skip

    def claims(self, found: ChoiceResult, last: ChoiceState) -> list[str]:
        """The claims, each of which holds with the confidence by itself."""
        row, sure = found.chosen, f"at {100 - 100 * self.declared.alpha:g} %"
        assert row is not None
        points, more = f"{100 * found.excess:.1f} points", in_words(self.looks) + self.near_limits(row)
        others = len(self.fitting) - 1
        first = (
            f"no other choice that fits is more than {points} better than {row.name}, {sure}{more}"
            if others
            else f"{row.name} is the only choice that fits{more}"
        )
        return [
            first,
            f"{row.name} solves {100 * found.low:.1f} to {100 * found.high:.1f} % of such problems, {sure}, corrected"
            " for having been chosen",
        ]

    def near_limits(self, chosen: ChoiceRow) -> str:
        """End of a claim: `; not counted, since they miss a limit by 15 % or less: a dense, 64 tokens (31 s)`; or "".

        It also says if the chosen choice is as near to a limit, since seconds and bytes are estimates.
        """
        declared, missed = self.declared, list[str]()
        for choice in self.every:
            found = self.missed(choice, KNOWN) or (self.missed(choice, DRAWN) if choice in self.possible else None)
            if found is not None and found[1] <= (1 + NEAR) * found[0].of(declared):
                missed.append(f"{choice.form.name}, {choice.budget} tokens ({found[0].words(found[1])})")
        shown = [*missed[:MOST_NAMED], *([f"{len(missed) - MOST_NAMED} more"] if len(missed) > MOST_NAMED else [])]
        text = (
            f"; not counted, since they miss a limit by {100 * NEAR:g} % or less: {', '.join(shown)}" if shown else ""
        )
        close = [
            f"{limit.taken(limit.value(chosen))} of {limit.most_words(declared)}"
            for limit in LIMITS
            if limit.value(chosen) >= (1 - NEAR) * limit.of(declared)
        ]
        return f"{text}; it takes {' and '.join(close)} itself" if close else text

    def notes(self, found: ChoiceResult, last: ChoiceState, chosen: int, rule: ChoiceRule) -> Iterator[str]:
        """Yield what else a user has to know of the choice, in sentences."""
        row, fitting, others = found.chosen, self.fitting, [number for number in last.left if number != chosen]
        assert row is not None
        margin = f"{100 * self.declared.margin:g} points"
        if len(last.within) > 1:
            yield f"it is the cheapest of {len(last.within)} than which none is better by {margin}, as is shown"
        elif others:
            cheaper = [number for number in others if self.cheaper(fitting[number], fitting[chosen])]
            yield (
                f"{counted(len(others), 'other')} cannot be told apart from it with these problems"
                + (f", of which {counted(len(cheaper), 'cost', '')} less" if cheaper else "")
            )
        if chosen not in last.within and len(fitting) > 1:
            yield f"there are too few problems to show that no other is better by {margin}"
        for limit in DRAWN:
            if limit.value(row) > limit.of(self.declared):
                over = limit.over.format(taken=limit.words(limit.value(row)))
                yield f"over all rows {over}, more than in the pilot"
        if words := self.busy():
            yield ON_BUSY.format(words)
        yield from self.dense_as_good(found, chosen, rule)

    def busy(self) -> str:
        """`load 5.3 on 2 cores` where a speed was taken while others had much of the machine; else empty."""
        loads = [cost.load for cost in self.costs.forms.values() if cost.load is not None]
        return busy(max(loads, default=None), self.costs.machine.cores)

    def cheaper(self, choice: Configuration, other: Configuration) -> bool:
        """Whether a choice takes less time than another, or the same and less memory."""
        return (self.seconds(choice), choice.nbytes) < (self.seconds(other), other.nbytes)

    def dense_as_good(self, found: ChoiceResult, chosen: int, rule: ChoiceRule) -> Iterator[str]:
        """Yield a sentence if a dense model at a smaller budget is shown to be as good, within the margin."""
        fitting = self.fitting

        def is_dense_with_less(choice: Configuration, of: Configuration) -> bool:
            return choice.form.form == DENSE_FORM and choice.form.model == of.form.model and choice.budget < of.budget

        pairs = sum(is_dense_with_less(choice, of) for of in fitting for choice in fitting)
        smaller = [number for number, choice in enumerate(fitting) if is_dense_with_less(choice, fitting[chosen])]
        for number in sorted(smaller, key=lambda place: fitting[place].budget):
            choice, pilot = fitting[number], self.declared.pilot
            rounds = min(found.rounds, self.looked.get(choice.form.run, 0) - pilot)
            both = self.values([number, chosen], rounds)
            if as_good(both[:, :1], both[:, 1], pairs, rule)[0]:
                yield (
                    f"{choice.form.name} at {choice.budget} tokens loses less than {100 * self.declared.margin:g}"
                    f" points beside it, at {100 - 100 * self.declared.alpha:g} %"
                )
                return

    def tokens(self) -> int:
        """Number of tokens that were sampled for the rows looked at."""
        return sum(self.rows.sampled(run, rounds) for run, rounds in self.looked.items())

    def full_tokens(self) -> int:
        """Estimated number of tokens of the runs that were looked at, on all problems."""
        each = ((self.rows.sampled(run, rounds), rounds) for run, rounds in self.looked.items() if rounds)
        return round(sum(tokens * len(self.declared.order) / rounds for tokens, rounds in each))


def counted(number: int, what: str, many: str = "s") -> str:
    """`1 other`, `2 others`; or with an empty ending for many `1 costs`, `2 cost`."""
    if not many:
        return f"{number} {what}{'s' * (number == 1)}"
    return f"{number} {what}{many if number != 1 else ''}"


def nothing(outcome: Outcome) -> str:
    """The reason why nothing fits, with the least that a choice takes."""
    declared, every = outcome.declared, outcome.every
    if not every:
        return f"no form fits into {show_bytes(declared.memory)}"
    for limits, choices in ((KNOWN, every), (DRAWN, outcome.possible)):
        if not choices:
            return "the store has rows of no choice that memory has room for"
        taken = [outcome.taken(choice, declared.pilot if limits is DRAWN else 0) for choice in choices]
        for limit in limits:
            if (least := min(map(limit.value, taken))) > limit.of(declared):
                return limit.none.format(most=limit.most_words(declared), least=limit.words(least))
    return "no choice keeps all limits at once"
