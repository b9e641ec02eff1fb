"""A made-up choice: forms with known accuracies and speeds, whose rows are made when they are asked for."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prunus.evaluation.grading import GRADER_VERSION
from prunus.evaluation.resolved_plan import id_of
from prunus.settings.cache_size import CacheSize
from prunus.store.log import Event
from prunus.store.rows import ProblemRow, Run, Sample
from prunus.store.store import Store
from prunus.store.stored import Environment
from prunus.studies.choose.files import choice_of
from prunus.studies.choose.looks import declare_in
from prunus.studies.choose.outcome import Outcome
from prunus.studies.choose.records import Choice, Cost, Costs, Declared, Form, Machine, Timed
from prunus.studies.choose.rows import FormRows

BUDGETS = (64, 256)
# form: (bytes, seconds of a token, share of problems that it solves at each budget)
FORMS = {
    "dense": (1_000_000_000, 0.04, (0.5, 0.8)),
    "gguf-q8_0": (500_000_000, 0.02, (0.5, 0.8)),
    "gguf-q4_0": (300_000_000, 0.01, (0.1, 0.15)),
}
CACHE = CacheSize(keys="f16", values="f16", per_token=1000.0, windows={}, constant=0)


def run_of(name: str, samples: int) -> Run:
    """The run of a form."""
    plan = {"tasks": ["sums"], "budgets": list(BUDGETS), "samples": samples, "seed": 0}
    model = {"name": name, "checksum": f"{sum(map(ord, name)):012x}", "manifest": {}}
    run = Run.of("", model, plan, {"grader": GRADER_VERSION})
    return replace(run, run_id=id_of(run))


def form_of(name: str, size: int, samples: int = 1) -> Form:
    """A form of the model `small`."""
    run = run_of(name, samples).run_id
    return Form(
        model="small", source="small", form=name, run=run, steps=[], bytes=size, cache=CACHE, prompt=50.0, longest=60
    )


def declared_of(problems: int = 200, samples: int = 1, **changes: object) -> Declared:
    """What is declared: 32 of the problems are the pilot."""
    forms = [form_of(name, size, samples) for name, (size, _, _) in FORMS.items()]
    names = [f"p{number}" for number in range(problems)]
    made = Declared(
        engine="llama.cpp", memory=2_000_000_000, seconds=20.0, users=1,
        problems={"sums": names}, questions={name: name for name in names}, groups={}, seed=0, budgets=list(BUDGETS),
        samples=samples, answer=16, margin=0.05, alpha=0.05, look=24, pilot=32, sampled=True, forms=forms,
    )  # fmt: skip
    return replace(made, **changes)


def costs_of(declared: Declared) -> Costs:
    """Speeds by which an answer of 200 tokens takes 8, 4 and 2 seconds, and an engine of 100 MB."""
    found = {}
    for form in declared.forms:
        first = FORMS[form.form][1]
        times = [
            Timed(
                chains=chains, prompt_tokens=50, prompt_seconds=0.1, first=first, last=first, depth=256,
                rounds=[[0.1, first, first]] * 3,
            )
            for chains in sorted({1, declared.samples})
        ]  # fmt: skip
        found[form.run] = Cost(
            times=times, peak=form.bytes + 150_000_000, weights=form.bytes, cache=50_000_000,
            engine=Environment.of({"engine": "pretend", "threads": 2}), date="2026-11-30T12:00:00+00:00",
        )  # fmt: skip
    return Costs(machine=Machine.of({"processor": "pretend", "cores": 2}), forms=found)


def sample(form: Form, problem: str, budget: int, draw: int) -> Sample:
    """A row: problems are equally difficult for all forms, so that dense and q8_0 solve the same."""
    luck, own = random.Random(problem).random(), random.Random(f"{form.form}|{problem}|{draw}").random()
    right = luck < FORMS[form.form][2][BUDGETS.index(budget)]
    answer = "1" if right else str(2 + int(10 * own))
    return Sample(
        task="sums", problem_id=problem, budget=budget, draw=draw, thinking_tokens=min(budget, 200), answer_tokens=8,
        forced_tokens=2, ended="forced" if budget < 200 else "natural", answer_truncated=False, reopened_think=False,
        answer=answer, status="ok", correct=right, thinking="so", text=f"The answer is {answer}.",
    )  # fmt: skip


class Made:
    """A store of a choice, to which rows are added when an outcome asks for them. asked: runs, first and last round."""

    def __init__(self, file: Path, declared: Declared) -> None:
        self.declared, self.costs, self.asked = declared, costs_of(declared), list[tuple[tuple[str, ...], int, int]]()
        self.store = Store(file, create=True)
        problems = [
            ProblemRow("sums", name, "1", "number", (), name, question=name) for name in declared.problems["sums"]
        ]
        self.store.add_problems(problems)
        for form in declared.forms:
            self.store.add_run(run_of(form.form, declared.samples))
        self.rows = FormRows(self.store, declared)
        self.by_run = {form.run: form for form in declared.forms}

    def provide(self, runs: Sequence[str], first: int, last: int) -> None:
        """Add what is missing of these rounds."""
        self.asked.append((tuple(self.by_run[run].form for run in runs), first, last))
        for run in runs:
            have = self.store.keys(run)
            new = [
                sample(self.by_run[run], problem, budget, draw)
                for one in self.declared.order[first:last]
                for _, problem in one
                for budget in BUDGETS
                for draw in range(self.declared.samples)
                if (problem, budget, draw) not in have
            ]
            self.store.add_samples(run, new)
            self.rows.forget(run)

    def chosen(self) -> Choice:
        """The content of choice.json, which is declared in the log before and told there afterwards."""
        looks = declare_in(self.store, self.declared, self.costs)
        outcome = Outcome(self.declared, self.costs, self.rows, self.provide, looks=looks)
        data = choice_of(self.declared, self.costs, outcome.shown(), self.rows, outcome.looked, looks)
        self.store.add_to_log(Event.of({"chosen": looks.id, "content": data.content}))
        return data

    def outcome(self) -> Outcome:
        """The outcome of a choice that computes rows."""
        return Outcome(self.declared, self.costs, self.rows, self.provide)
