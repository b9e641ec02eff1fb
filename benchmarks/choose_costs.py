"""Predicted seconds and bytes of `prunus choose` against whole answers that are timed: docs/choose.md.

    python benchmarks/choose_costs.py small large --engine llama.cpp --task gsm8k --budgets 256,512 --answers 10 \
        [--only dense,gguf-q8_0] [--forms FILE.toml] [--serve 'COMMAND'] [--work FOLDER] [--speeds choice.json]

Prints a Markdown table: for each form and budget the seconds of an answer as the speed test predicts them for the
tokens that it took, and as they were; and the peak of the engine's processes, predicted with the engine's own part that
was measured with the smallest form, and as it was. Each form is timed right after its speed test, in a process of its
own.

To a chain of llama.cpp that reaches its budget a second reading is added: an evaluation asks it not to keep prompts,
since rows would depend on what was asked before. --speeds: take the speed test of a choice with these models and forms,
and leave out what it did not test. --only: names of forms, of each model.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prunus.evaluation.backends import opened
from prunus.evaluation.engine import run_batch
from prunus.recipes import EvalPlan
from prunus.settings.engines import EngineOptions
from prunus.studies.choose.command import declared_of, folder_of_form, tested, with_cache
from prunus.studies.choose.files import read_choice
from prunus.studies.choose.forms import PROGRAMS, Asked, Work, engine_of, longest, open_works, sized
from prunus.studies.choose.gauge import peak_of, processes
from prunus.studies.choose.outcome import nbytes
from prunus.studies.choose.records import Choice, Cost, Costs, Declared

Opening = tuple[list[str], EvalPlan, Asked, Path]  # arguments of open_works


class Answers(NamedTuple):
    """What whole answers took: mean seconds as predicted and as measured, and the peak of the engine's processes."""

    predicted: float
    measured: float
    peak: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--engine", choices=PROGRAMS, default="hf")
    parser.add_argument("--task", required=True)
    parser.add_argument("--budgets", default="256,512")
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--answer-tokens", type=int)
    parser.add_argument("--serve")
    parser.add_argument("--forms", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--answers", type=int, default=10)
    parser.add_argument("--speeds", type=Path)
    parser.add_argument("--work", type=Path, default=Path("choose-costs"))
    options = parser.parse_args()
    backend, engine = engine_of(options.engine, EngineOptions(serve=options.serve))
    budgets = tuple(map(int, options.budgets.split(",")))
    plan = EvalPlan(
        (options.task,), budgets, profile=options.profile, answer_tokens=options.answer_tokens, backend=backend
    )
    asked = Asked(options.engine, engine, options.forms, {}, "cpu")
    options.work.mkdir(exist_ok=True)
    opening: Opening = options.models, plan, asked, options.work
    works = [
        work for work in open_works(*opening, None) if not options.only or work.form.form in options.only.split(",")
    ]
    if not works:
        parser.error(f"no form is named {options.only}")
    declared = declared_of(works, plan, asked, 1 << 50, 1e9, 0.03, 0.05, None, True)
    stated = None if options.speeds is None else of_choice(read_choice(options.speeds), declared)
    print("| form | budget | s predicted | s measured | off, % | MB predicted | MB measured | off, % |")
    print("|---|" + "---:|" * 7)
    constant: int | None = None
    for work in sorted(works, key=lambda one: one.form.bytes):
        costs = tested([work], declared, asked, options.work) if stated is None else stated
        if (cost := costs.forms.get(work.form.run)) is None:
            continue
        constant = cost.constant if constant is None else constant
        for budget in budgets:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                chosen = work.form.run, budget, cost
                answers = alone.submit(answered, opening, *chosen, options.answers).result()
            print(row(work, budget, answers, nbytes(declared, work.form, budget, 1, constant)), flush=True)


def of_choice(data: Choice, declared: Declared) -> Costs:
    """The costs of a choice for the forms of the same names, whose plan may be another."""
    known = {form.name: data.costs.forms[form.run] for form in data.declared.forms if form.run in data.costs.forms}
    return replace(data.costs, forms={one.run: known[one.name] for one in declared.forms if one.name in known})


def answered(opening: Opening, run: str, budget: int, cost: Cost, answers: int) -> Answers:
    """What this number of answers of a form under a budget takes, after a first one that is not timed."""
    asked, work = opening[2], next(one for one in open_works(*opening, None) if one.form.run == run)
    alone = replace(work.resolved, budgets=(budget,))
    tokens, timed = longest(alone), cost.timed(1)
    engine = with_cache(sized(asked.engine, tokens, 1), work, tokens, 1)
    where = folder_of_form(work, asked.program, asked.device)
    predicted, measured = list[float](), list[float]()
    with opened(work.study.backend, where, asked.device, len(alone.tokenizer), engine) as backend:
        run_batch(alone, backend, [(0, 0)])
        for index in range(1, 1 + answers):
            started = time.perf_counter()
            ((draw,),) = run_batch(alone, backend, [(index, 0)])
            measured.append(time.perf_counter() - started)
            drawn = draw.thinking_tokens + draw.forced_tokens + len(draw.answer)
            prompt = len(alone.chains[index].prompt)
            again = prompt + draw.thinking_tokens if asked.program == "llama.cpp" and draw.ended == "forced" else 0
            predicted.append(timed.seconds(prompt + again, drawn))
        peak = sum(map(peak_of, processes(asked.engine.serve is None)))
    return Answers(float(np.mean(predicted)), float(np.mean(measured)), peak)


def row(work: Work, budget: int, answers: Answers, size: int) -> str:
    """A row of the table. size: bytes as predicted."""
    cells = [work.form.name, str(budget)]
    for expected, actual, shown in (
        (answers.predicted, answers.measured, "{:.2f}"),
        (size / 1e6, answers.peak / 1e6, "{:,.0f}"),
    ):
        cells += [shown.format(expected), shown.format(actual), f"{100 * (expected / actual - 1):+.1f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
