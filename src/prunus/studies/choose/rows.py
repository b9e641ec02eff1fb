"""Stored rows of forms as arrays over rounds of problems: the shares that a choice solves, and the tokens it takes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from prunus.errors import PrunusError
from prunus.plain_data import canonical_json
from prunus.statistics.metrics import ballots, vote
from prunus.statistics.paired import Floats
from prunus.store.rows import Sample, chains_of, sampled_tokens
from prunus.studies.choose.records import Declared

Key = tuple[str, int]  # problem id and budget


class HasRows(Protocol):
    """What rows are read from, such as a Store. path: its file."""

    path: Path

    def samples(self, run_id: str) -> Iterable[Sample]:
        """The rows of a run."""
        ...


class FormRows:
    """The rows of a choice's forms, each run read once until `forget`."""

    def __init__(self, store: HasRows, declared: Declared) -> None:
        self.store, self.declared = store, declared
        self.known: dict[str, Mapping[Key, list[Sample]]] = {}

    def forget(self, run: str) -> None:
        """Read a run again when it is needed next, since rows were added."""
        self.known.pop(run, None)

    def of(self, run: str) -> Mapping[Key, list[Sample]]:
        """The declared draws of a run, by problem and budget, where all of them are stored; kept until `forget`."""
        if run not in self.known:
            found, budgets = dict[Key, list[Sample]](), set(self.declared.budgets)
            for sample in self.store.samples(run):
                if sample.budget in budgets and sample.draw < self.declared.samples:
                    found.setdefault((sample.problem_id, sample.budget), []).append(sample)
            self.known[run] = {
                key: sorted(draws, key=lambda draw: draw.draw)
                for key, draws in found.items()
                if len(draws) == self.declared.samples
            }
        return self.known[run]

    def complete(self, run: str) -> int:
        """How many of the first rounds a run has in full."""
        have = self.of(run)
        for number, round in enumerate(self.declared.order):
            if any((problem, budget) not in have for _, problem in round for budget in self.declared.budgets):
                return number
        return len(self.declared.order)

    def values(self, run: str, budget: int, votes: int, rounds: range) -> Floats:
        """Share of problems that a choice solves in each of these rounds: the mean over tasks of each task's mean."""
        have, found = self.of(run), np.empty(len(rounds))
        for place, number in enumerate(rounds):
            by_task = dict[str, list[float]]()
            for task, problem in self.declared.order[number]:
                if (problem, budget) not in have:
                    raise PrunusError(f"the store {self.store.path} lacks rows of run {run}, on problem {problem}")
                by_task.setdefault(task, []).append(solved(have[problem, budget], votes))
            found[place] = np.mean([np.mean(values) for values in by_task.values()])
        return found

    def tokens(self, run: str, budget: int, votes: int, rounds: range) -> Floats:
        """The tokens after the prompt of each answer in these rounds; of several votes, of the longest chain."""
        have, found = self.of(run), list[float]()
        for number in rounds:
            for _, problem in self.declared.order[number]:
                counts = [after_prompt(draw) for draw in have[problem, budget]]
                found += counts if votes == 1 else [max(counts)]
        return np.array(found, dtype=float)

    def digest(self, run: str, rounds: int) -> str:
        """A hash of the rows of the first rounds, without texts."""
        have, text = self.of(run), hashlib.sha256()
        for round in self.declared.order[:rounds]:
            for _, problem in round:
                for budget in self.declared.budgets:
                    for draw in have.get((problem, budget), ()):
                        text.update(canonical_json(facts(draw)).encode())
        return text.hexdigest()[:16]

    def sampled(self, run: str, rounds: int) -> int:
        """Tokens that were sampled for the rows of the first rounds."""
        problems = {problem for round in self.declared.order[:rounds] for _, problem in round}
        rows = [draw for (problem, _), draws in self.of(run).items() if problem in problems for draw in draws]
        return sum(sampled_tokens(chains_of(rows), True))


def facts(draw: Sample) -> list[object]:
    """The values of a row on which a choice rests, for a hash."""
    counts = [draw.thinking_tokens, draw.forced_tokens, draw.answer_tokens]
    return [draw.task, draw.problem_id, draw.budget, draw.draw, *counts, draw.answer, bool(draw.correct)]


def after_prompt(draw: Sample) -> int:
    """Tokens of a chain after its prompt: thinking, what the protocol inserted, and the answer."""
    return draw.thinking_tokens + max(0, draw.forced_tokens) + draw.answer_tokens


def solved(draws: Sequence[Sample], votes: int) -> float:
    """The share of these draws that are right or, with votes of all of them, the score of the majority's answer."""
    right = [[draw.correct for draw in draws]]
    if votes == 1:
        return float(np.mean(right))
    return float(vote(ballots([[draw.answer for draw in draws]], right), votes)[0])
