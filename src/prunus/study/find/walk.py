"""Carry out a declared search: evaluate rung after rung, only as far as it takes to decide, and say how it goes."""

from collections.abc import Mapping
from contextlib import ExitStack
from math import ceil

from prunus.progress import Steps, say
from prunus.results.ladder import ACCURACY, CERTIFIED, DENSE, paths, rounds_like
from prunus.results.verdicts import wide_margin
from prunus.study.find.decisions import OUT_OF_TOKENS, Data, Decided, Floats, Rows, decided, rank, up_to
from prunus.study.find.rungs import Rungs
from prunus.study.find.search import Rung, Search


class Walk:
    """`Walk(search, rows, rungs).run()`."""

    def __init__(self, search: Search, rows: Rows, rungs: Rungs) -> None:
        self.search, self.rows, self.rungs = search, rows, rungs
        self.by_run = {rung.cell.run_id: rung for rung in search.rungs}
        self.last: Decided | None = None
        self.expected = search.expected_rounds()
        self.progress = ExitStack()
        self.steps: Steps | None = None
        self.warned = False

    def run(self) -> Rung | None:
        """Walk all ladders; returns the best certified rung, and deletes all others on the way."""
        declared, best = self.search.declared(), None
        with self.progress:
            for one in decided(self.rows, declared, self.provide):
                self.progress.close()
                self.last, self.steps, rung = one, None, self.by_run[one.rung["run"]]
                say(f"{rung.variant.name}: {self.sentence(one)}; {one.spent:,} tokens so far")
                certified = one.decision.word == CERTIFIED
                if certified and (best is None or rank(one.rung) > rank(best.declared())):
                    rung, best = best, rung
                if rung is not None:
                    self.rungs.delete(rung.variant)
        if self.last is not None and self.search.max_tokens is not None and self.last.spent >= self.search.max_tokens:
            say(f"no other rung is looked at: {OUT_OF_TOKENS}")
        return best

    def provide(self, rung: Data, looked: int, until: int, spent: int) -> None:
        """Evaluate what is missing of the dense model and a rung for the next look. looked: rounds that it had."""
        search, this = self.search, self.by_run[rung["run"]]
        if self.steps is None:
            self.begin(this)
            total, unit = len(search.order), "problems" if all(len(one) == 1 for one in search.order) else "rounds"
            self.steps = self.progress.enter_context(Steps(this.variant.name, total, unit))
        steps = self.steps
        found = self.rows.differences(this.cell.run_id)
        note = f"{self.bounds(up_to(found, looked))}, {spent:,} tokens"
        if len(found[ACCURACY]) < until:
            chains, done = 2 * search.plan.samples * sum(map(len, search.order[looked:until])), 0.0

            def show(finished: float, tokens: int) -> None:
                nonlocal done
                done += finished
                steps.within((until - looked) * min(done / chains, 1), note)

            parts = [(search.dense, search.order[looked : self.dense_until(until)])]
            if self.rungs.evaluate([*parts, (this.cell, search.order[looked:until])], show):
                for cell in (search.dense, this.cell):
                    self.rows.forget(cell.run_id)
        steps.advance(until - looked, note=note)
        self.warn(self.rows.differences(this.cell.run_id)[DENSE[ACCURACY]][:until])

    def begin(self, rung: Rung) -> None:
        """Say how many problems a rung will take if it differs as the one before it on its ladder did."""
        before = self.last and self.by_run[self.last.rung["run"]]
        if self.last is None or not any(before in rungs and rung in rungs for _, rungs in self.search.ladders):
            self.expected = self.search.expected_rounds()
            return
        found = up_to(self.last.differences, self.last.looked)
        self.expected = ceil(min(len(self.search.order), rounds_like(found, self.search.rule)))
        problems = sum(map(len, self.search.order[: self.expected]))
        say(f"{rung.variant.name}: about {problems} problems if it differs as {self.last.rung['name']} did")

    def warn(self, dense: Floats) -> None:
        """Say, once, that the dense model solves little beside the margin, as soon as rows show it."""
        note = wide_margin(self.search.rule.margins[ACCURACY], float(dense.mean()), "so far the dense model")
        if note is not None and not self.warned:
            say(f"warning: {note}")
            self.warned = True

    def dense_until(self, until: int) -> int:
        """How far the dense model is evaluated when a rung needs it up to `until`.

        Where an engine is started anew for every model, it is at least as far as a harmless rung needs.
        """
        study = self.search.study
        anew = study.engine.serve is not None or (study.backend == "vllm" and self.search.smallest is not None)
        return max(until, self.expected) if anew else until

    def bounds(self, found: Mapping[str, Floats]) -> str:
        """`accuracy -0.3 [-2.4, +1.9], ends -0.1 [-4.0, +3.1]` in points: differences so far and their bounds.

        With a margin relative to the dense model, they are from the share that is to be kept of it.
        """
        if not len(found[ACCURACY]):
            return "no problem yet"
        parts = []
        for end, seen in paths(found, self.search.rule).items():
            margin = self.search.rule.margins[end]
            over = f" over {100 - 100 * margin.size:g} % of dense's" if margin.relative else ""
            numbers = (seen.estimate[-1], seen.lower[-1], seen.upper[-1])
            difference, low, high = (f"{100 * number:+.1f}" for number in numbers)
            parts.append(f"{end}{over} {difference} [{low}, {high}]")
        return ", ".join(parts)

    def sentence(self, one: Decided) -> str:
        """What was decided about a rung, after how many problems, and its bounds."""
        decision, order = one.decision, self.search.order
        problems, total = sum(map(len, order[: decision.rounds])), sum(map(len, order))
        reason = f" ({one.why})" if one.why else ""
        return f"{decision.word}{reason} after {problems} of {total} problems: " + self.bounds(
            up_to(one.differences, decision.rounds)
        )
