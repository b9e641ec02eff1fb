"""Lines of the viewer's list: every draw of every problem of a store with each run's result, and filters of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from prunus.errors import PrunusError
from prunus.reporting.render.table import RunStyle, run_styles
from prunus.reporting.report_data import dense_run
from prunus.settings.budgets import budget_of, without_off
from prunus.store.rows import Run
from prunus.store.store import Store

Filter = Literal["flipped", "lost", "loops", "cut"]
State = Literal["missing", "right", "lost again", "not ended", "wrong"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
STATES: tuple[State, ...] = get_args(State)
MISSING, RIGHT, LOST, NOT_ENDED, WRONG = range(len(STATES))
SHOWN = 4  # number of runs that are shown at first


@dataclass(frozen=True)
class View:
    """Selection of what is shown. runs: indices; the others are compared with the first. budget: its index.

    task: its name; empty for all. filters: a line must pass all of them.
    """

    runs: tuple[int, ...]
    budget: int
    task: str = ""
    filters: frozenset[Filter] = frozenset()


@dataclass(frozen=True)
class Lines:
    """All lines in the order of their tasks, problems and draws. Axes: L: lines, R: runs, B: budgets.

    keys: problem id and number of the draw of each line. task_L: their tasks. states_LRB: indices of STATES.
    loops_LRB: whether the chain loops. cut_LRB: whether the budget cut its thinking, or a limit its answer.
    """

    runs: Sequence[Run]
    styles: Sequence[RunStyle]
    budgets: Sequence[int]
    keys: Sequence[tuple[str, int]]
    task_L: NDArray[np.object_]
    states_LRB: NDArray[np.uint8]
    loops_LRB: NDArray[np.bool_]
    cut_LRB: NDArray[np.bool_]

    @classmethod
    def read(cls, store: Store) -> Self:
        """The lines of a store. Raises PrunusError if it has no answers."""
        started = store.runs_with_rows()
        if not started:
            raise PrunusError(f"the store '{store.path}' has no answers yet: run `prunus eval` first")
        try:
            base = dense_run(started, store.path)
        except PrunusError:  # several unpruned models, or none
            base = started[0]
        runs = [base, *(run for run in started if run.run_id != base.run_id)]
        names = "task problem_id draw budget correct ended forced_tokens answer_truncated loops"
        columns = [store.columns(run.run_id, names.split()) for run in runs]
        named = sorted({key for of in columns for key in zip(*of[:3], strict=True)})
        keys = [(problem, draw) for _, problem, draw in named]
        budgets = sorted({budget for of in columns for budget in of[3]})
        place, column = ({key: at for at, key in enumerate(labels)} for labels in (keys, budgets))
        shape = len(keys), len(runs), len(budgets)
        there, right, forced, cut, loops = (np.zeros(shape, dtype=bool) for _ in range(5))
        for number, (_, problem, draw, budget, correct, ended, inserted, truncated, looping) in enumerate(columns):
            at = (
                np.array([place[key] for key in zip(problem, draw, strict=True)]),
                number,
                np.array([column[value] for value in budget]),
            )
            there[at], right[at], loops[at] = True, np.array(correct) != 0, np.array(looping) != 0
            # An imported log that does not tell how an output ended has UNKNOWN inserted tokens, which is -1.
            forced[at] = (np.array(ended) == "forced") & (np.array(inserted) >= 0)
            cut[at] = forced[at] | (np.array(truncated) != 0)
        states = np.where(right, RIGHT, np.where(forced, NOT_ENDED, WRONG)).astype(np.uint8)
        # Lost again: wrong, although the same chain had the right answer under a smaller budget.
        start = len(budgets) - len(without_off([budget_of(budget) for budget in budgets]))
        earlier = np.zeros_like(right)
        earlier[:, :, start + 1 :] = np.logical_or.accumulate(right[:, :, start:], axis=2)[:, :, :-1]
        one_chain_R = np.array([bool(run.plan.reuse) for run in runs])
        states[there & ~right & earlier & one_chain_R[:, None]] = LOST
        states[~there] = MISSING
        return cls(
            runs,
            run_styles(base, runs[1:]),
            [budget_of(budget) for budget in budgets],
            keys,
            np.array([task for task, _, _ in named], dtype=object),
            states,
            loops,
            cut,
        )

    @cached_property
    def places(self) -> dict[tuple[str, int], int]:
        """The index of each line by problem id and draw."""
        return {key: at for at, key in enumerate(self.keys)}

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks of the lines."""
        return sorted(set(self.task_L))

    @property
    def first_view(self) -> View:
        """The view at the start: the first run with some others of its mode, at the largest budget that it has."""
        base = self.runs[0]
        alike = [at for at, run in enumerate(self.runs) if run.plan.mode == base.plan.mode]
        chosen = [at for at in alike if not self.runs[at].is_control]
        budgets = np.flatnonzero((self.states_LRB[:, 0] != MISSING).any(axis=0))
        return View(tuple(chosen[:SHOWN]) or (0,), int(budgets[-1]))

    def chosen(self, view: View) -> NDArray[np.int_]:
        """The indices of the lines that pass the filters of a view, in order."""
        runs = list(view.runs)
        states, loops, cut = (of[:, runs, view.budget] for of in (self.states_LRB, self.loops_LRB, self.cut_LRB))
        there, right = states != MISSING, states == RIGHT
        passed = there.any(axis=1)
        if "flipped" in view.filters:
            passed &= ((right[:, 1:] != right[:, :1]) & there[:, 1:] & there[:, :1]).any(axis=1)
        for name, cells in (("lost", states == LOST), ("loops", loops), ("cut", cut)):
            if name in view.filters:
                passed &= cells.any(axis=1)
        if view.task:
            passed &= self.task_L == view.task
        return np.flatnonzero(passed)

    def right(self, view: View, chosen: NDArray[np.int_]) -> list[tuple[int, int]]:
        """(number of right answers, number of lines with an answer) among some lines, for each run of a view."""
        states = self.states_LRB[chosen][:, list(view.runs), view.budget]
        right, there = (states == RIGHT).sum(axis=0), (states != MISSING).sum(axis=0)
        return [(int(of), int(of_all)) for of, of_all in zip(right, there, strict=True)]
