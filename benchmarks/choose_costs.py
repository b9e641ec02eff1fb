"""Predicted seconds and bytes of `prunus choose` against whole answers that are timed: docs/choose.md.

    python benchmarks/choose_costs.py small large --engine llama.cpp --task gsm8k --budgets 256,512 --answers 10 \
        [--forms FILE.toml] [--serve 'COMMAND'] [--work FOLDER] [--speeds choice.json]

Prints a Markdown table: for each form and budget the seconds of an answer as the speed test predicts them for the
tokens that it took, and as they were; and the peak of the engine's processes, predicted with the engine's own part that
was measured with the smallest form, and as it was. Of `hf` the peak is also that of making forms, and is left out.

To a chain of llama.cpp that reaches its budget a second reading is added: an evaluation asks it not to keep prompts,
since rows would depend on what was asked before. --speeds: take the speed test of a choice with these models and forms,
and leave out what it did not test.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from prunus.evaluation.backends import opened
from prunus.evaluation.engine import run_batch
from prunus.recipes import EvalPlan
from prunus.settings.engines import EngineOptions
from prunus.studies.choose.command import declared_of, folder_of_form, tested
from prunus.studies.choose.files import read_choice
from prunus.studies.choose.forms import PROGRAMS, Asked, Work, engine_of, open_works, sized
from prunus.studies.choose.gauge import peak_of, processes
from prunus.studies.choose.outcome import nbytes, tokens_at
from prunus.studies.choose.records import Choice, Costs, Declared, Form


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
    parser.add_argument("--answers", type=int, default=10)
    parser.add_argument("--speeds", type=Path)
    parser.add_argument("--work", type=Path, default=Path("choose-costs"))
    options = parser.parse_args()
    program = options.engine
    backend, engine = engine_of(program, EngineOptions(serve=options.serve))
    budgets = tuple(map(int, options.budgets.split(",")))
    plan = EvalPlan(
        (options.task,), budgets, profile=options.profile, answer_tokens=options.answer_tokens, backend=backend
    )
    asked = Asked(program, engine, options.forms, {}, "cpu")
    options.work.mkdir(exist_ok=True)
    works = open_works(options.models, plan, asked, options.work, None)
    declared = declared_of(works, plan, asked, 1 << 50, 1e9, 0.03, 0.05, None, True)
    if options.speeds is None:
        costs = tested(works, declared, asked, options.work)
    else:
        costs = of_choice(read_choice(options.speeds), declared)
        works = [work for work in works if work.form.run in costs.forms]
    print("| form | budget | s predicted | s measured | off, % | MB predicted | MB measured | off, % |")
    print("|---|" + "---:|" * 7)
    for work in works:
        for budget in budgets:
            print(row(work, budget, declared, costs, asked, options.answers), flush=True)


def of_choice(data: Choice, declared: Declared) -> Costs:
    """The costs of a choice for the forms of the same names, whose plan may be another."""
    known = {form.name: data.costs.forms[form.run] for form in data.declared.forms if form.run in data.costs.forms}
    return replace(data.costs, forms={one.run: known[one.name] for one in declared.forms if one.name in known})


def row(work: Work, budget: int, declared: Declared, costs: Costs, asked: Asked, answers: int) -> str:
    """A row of the table."""
    smallest = min(tested_forms(costs, declared), key=lambda form: form.bytes)
    constant = costs.forms[smallest.run].constant
    engine = sized(asked.engine, tokens_at(declared, work.form, budget), 1)
    where, timed = folder_of_form(work, asked.program, asked.device), costs.forms[work.form.run].timed(1)
    alone = replace(work.resolved, budgets=(budget,))
    predicted, measured = list[float](), list[float]()
    with opened(work.study.backend, where, asked.device, len(alone.tokenizer), engine) as backend:
        run_batch(alone, backend, [(0, 0)])  # what the first request starts is not timed
        for index in range(1, 1 + answers):
            started = time.perf_counter()
            ((draw,),) = run_batch(alone, backend, [(index, 0)])
            measured.append(time.perf_counter() - started)
            tokens = draw.thinking_tokens + draw.forced_tokens + len(draw.answer)
            prompt = len(alone.chains[index].prompt)
            again = prompt + draw.thinking_tokens if asked.program == "llama.cpp" and draw.ended == "forced" else 0
            predicted.append(timed.seconds(prompt + again, tokens))
        peak = sum(map(peak_of, processes(False)))  # of the processes that the engine started
    seconds, expected = float(np.mean(measured)), float(np.mean(predicted))
    size = nbytes(declared, work.form, budget, 1, constant)
    return (
        f"| {work.form.name} | {budget} | {expected:.2f} | {seconds:.2f} | {100 * (expected / seconds - 1):+.1f} |"
        f" {size / 1e6:,.0f} | " + (f"{peak / 1e6:,.0f} | {100 * (size / peak - 1):+.1f} |" if peak else "| |")
    )


def tested_forms(costs: Costs, declared: Declared) -> Iterator[Form]:
    """The forms that were tested."""
    return (form for form in declared.forms if form.run in costs.forms)


if __name__ == "__main__":
    main()
