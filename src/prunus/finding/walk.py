"""The walk: rung after rung is evaluated, as far as it takes to decide, until one is not certified.

Every decision follows from rows of the store alone, so a walk that was interrupted takes the same decisions again
without computing anything twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from prunus.finding.again import OUT_OF_TOKENS, why_open
from prunus.finding.rows import Floats, Rows
from prunus.finding.rungs import Rungs
from prunus.finding.search import Rung, Search
from prunus.progress import Steps, say
from prunus.results.ladder import (
    ACCURACY,
    CERTIFIED,
    DENSE,
    GO_ON,
    Decision,
    decide,
    next_look,
    paths,
    rounds_like,
)
from prunus.results.verdicts import wide_margin


@dataclass(frozen=True)
class Walked:
    """A rung that was looked at. looked: rounds whose rows it took. tokens: sampled for the rung's own rows.

    why: what ended the walk where neither bounds nor problems did.
    """

    rung: Rung
    decision: Decision
    looked: int
    tokens: int
    why: str = ""

    @property
    def certified(self) -> bool:
        """Whether the rung was certified."""
        return self.decision.word == CERTIFIED


@dataclass(frozen=True)
class Outcome:
    """The end of a search. ladders: by name, the rungs looked at. found: the best certified one; None: there is none.

    tokens: of all rows looked at; dense_tokens: of the dense model's among them, over dense_looked rounds.
    """

    ladders: Mapping[str, list[Walked]]
    found: Walked | None
    tokens: int
    dense_tokens: int
    dense_looked: int


class Walk:
    """`Walk(search, rows, rungs).run()`."""

    def __init__(self, search: Search, rows: Rows, rungs: Rungs) -> None:
        self.search, self.rows, self.rungs = search, rows, rungs
        self.dense_looked = 0
        self.finished: list[Walked] = []
        self.best: Walked | None = None
        self.warned = False
        self.expected = search.expected_rounds()

    def run(self) -> Outcome:
        """Walk all ladders; what is not the best certified rung so far is deleted on the way."""
        ladders: dict[str, list[Walked]] = {}
        for name, rungs in self.search.ladders:
            ladders[name] = []
            for rung in rungs:
                if self.search.max_tokens is not None and self.spent() >= self.search.max_tokens:
                    say(f"{rung.variant.name} is not looked at: {OUT_OF_TOKENS}")
                    break
                self.foretell(rung, ladders[name])
                walked = self.judge(rung)
                ladders[name].append(walked)
                self.finished.append(walked)
                told = sentence(self.search, self.rows, walked)
                say(f"{rung.variant.name}: {told}; {self.spent():,} tokens so far")
                self.keep_best(walked)
                if not walked.certified:
                    break
        dense = self.rows.tokens(self.search.dense.run_id, self.dense_looked)
        return Outcome(ladders, self.best, self.spent(), dense, self.dense_looked)

    def foretell(self, rung: Rung, before: list[Walked]) -> None:
        """Say how many problems a rung will take if it differs as the one before it on its ladder did."""
        if not before:
            self.expected = self.search.expected_rounds()
            return
        found = self.rows.differences(before[-1].rung.cell.run_id)
        seen = {end: d_T[: before[-1].looked] for end, d_T in found.items()}
        self.expected = ceil(min(len(self.search.order), rounds_like(seen, self.search.rule)))
        problems = sum(map(len, self.search.order[: self.expected]))
        say(f"{rung.variant.name}: about {problems} problems if it differs as {before[-1].rung.variant.name} did")

    def keep_best(self, walked: Walked) -> None:
        """Take a rung for the best so far if it is certified and removes more, and delete the other one's files."""
        if walked.certified and (self.best is None or walked.rung.removed > self.best.rung.removed):
            walked, self.best = self.best or walked, walked
        if walked is not self.best:
            self.rungs.delete(walked.rung.variant)

    def judge(self, rung: Rung) -> Walked:
        """Evaluate a rung in steps of at most `look` rounds until it is decided."""
        search, order, looked = self.search, self.search.order, 0
        run_id, name = rung.cell.run_id, rung.variant.name
        with Steps(name, len(order), "problems" if all(len(one) == 1 for one in order) else "rounds") as steps:
            while True:
                spent = self.spent(rung, looked)
                ended = search.max_tokens is not None and spent >= search.max_tokens
                found = {end: d_T[:looked] for end, d_T in self.rows.differences(rung.cell.run_id).items()}
                until = next_look(found, search.rule, search.look, len(order))
                decision = decide(found, search.rule, ended or until == looked)
                if decision.word != GO_ON:
                    why = why_open(decision, ended, len(order))
                    return Walked(rung, decision, looked, self.rows.tokens(run_id, looked), why)
                if len(next(iter(self.rows.differences(rung.cell.run_id).values()))) < until:
                    self.evaluate(rung, looked, until, steps, f"{bounds(search, found)}, {spent:,} tokens")
                steps.advance(until - looked, note=f"{bounds(search, found)}, {spent:,} tokens")
                looked = until
                self.warn(rung, looked)

    def warn(self, rung: Rung, looked: int) -> None:
        """Say, once, that the dense model solves little beside the margin, as soon as rows show it."""
        dense = self.rows.differences(rung.cell.run_id)[DENSE[ACCURACY]][:looked]
        note = wide_margin(self.search.rule.margins[ACCURACY], float(dense.mean()), "so far the dense model")
        if note is not None and not self.warned:
            say(f"warning: {note}")
            self.warned = True

    def evaluate(self, rung: Rung, looked: int, until: int, steps: Steps, note: str) -> None:
        """Compute what is missing of the dense model's and the rung's rows for the rounds from `looked` to `until`."""
        cells = self.search.dense, rung.cell
        rounds = self.search.order[looked:until]
        self.rungs.expect(rung, looked)
        total, done = len(cells) * self.search.plan.samples * sum(map(len, rounds)), 0

        def show(chains: float, tokens: int) -> None:
            nonlocal done
            done += chains
            steps.within((until - looked) * min(done, total) / total, note)

        for cell in cells:
            ahead = rounds if cell is rung.cell else self.search.order[looked : self.dense_until(until)]
            if self.rungs.evaluate(cell, ahead, show):
                self.rows.forget(cell.run_id)

    def dense_until(self, until: int) -> int:
        """How far the dense model is evaluated when a rung needs it up to `until`.

        With a server, which is started anew for every model, it is at least as far as a harmless rung needs.
        """
        if self.search.study.engine.serve is None:
            return until
        return max(until, self.expected)

    def spent(self, current: Rung | None = None, looked: int = 0) -> int:
        """The tokens of all rows looked at, with those of the current rung and the dense model up to `looked`."""
        if current is not None:
            self.dense_looked = max(self.dense_looked, looked)
        tokens = self.rows.tokens(self.search.dense.run_id, self.dense_looked)
        tokens += sum(walked.tokens for walked in self.finished)
        return tokens + (self.rows.tokens(current.cell.run_id, looked) if current is not None else 0)


def bounds(search: Search, found: Mapping[str, Floats]) -> str:
    """`accuracy -0.3 [-2.4, +1.9], ends -0.1 [-4.0, +3.1]` in points: differences so far and their bounds.

    With a margin relative to the dense model, they are from the share that is to be kept of it.
    """
    if not len(next(iter(found.values()))):
        return "no problem yet"
    parts = []
    for end, seen in paths(found, search.rule).items():
        margin = search.rule.margins[end]
        over = f" over {100 - 100 * margin.size:g} % of dense's" if margin.relative else ""
        numbers = (seen.estimate[-1], seen.lower[-1], seen.upper[-1])
        difference, low, high = (f"{100 * number:+.1f}" for number in numbers)
        parts.append(f"{end}{over} {difference} [{low}, {high}]")
    return ", ".join(parts)


def sentence(search: Search, rows: Rows, walked: Walked) -> str:
    """What was decided about a rung, after how many problems, and its bounds."""
    decision = walked.decision
    found = {end: d_T[: decision.rounds] for end, d_T in rows.differences(walked.rung.cell.run_id).items()}
    problems = sum(map(len, search.order[: decision.rounds]))
    total = sum(map(len, search.order))
    reason = f" ({walked.why})" if walked.why else ""
    return f"{decision.word}{reason} after {problems} of {total} problems: {bounds(search, found)}"
