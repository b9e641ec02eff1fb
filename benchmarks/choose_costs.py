"""Predicted seconds and bytes of `prunus choose` against whole answers that are timed: docs/measurements/choose.md.

    python benchmarks/choose_costs.py small large --engine llama.cpp --task gsm8k --budgets 256,512 --answers 10 \
        [--turns 3] [--only dense,gguf-q8_0] [--forms FILE.toml] [--serve 'COMMAND'] [--work FOLDER]

Prints a Markdown table: for each form and budget the seconds of an answer as the speed test predicts them for the
tokens that it took, and as they were; and the peak of the engine's processes, predicted with the engine's own part that
was measured with the smallest form, and as it was. The rounds of the speed test and parts of the answers take turns,
since a machine's speed may change within minutes, and each part has a process of its own.

To a chain of llama.cpp that reaches its budget a second reading is added, as it is timed alone: an evaluation asks it
not to keep prompts, since rows would depend on what was asked before. --only: names of forms, of each model.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from prunus.evaluation.backends import opened
from prunus.evaluation.engine import run_batch
from prunus.evaluation.requests import Request
from prunus.recipes import EvalPlan
from prunus.settings.engines import ENGINES, IN_CHOOSE, EngineOptions, options_for
from prunus.studies.choose.command import declared_of, folder_of_form, run_speed_test, speed_test_of, with_room
from prunus.studies.choose.forms import ChoiceRequest, longest, open_works
from prunus.studies.choose.limits import Limits
from prunus.studies.choose.outcome import nbytes
from prunus.studies.choose.records import Cost
from prunus.studies.choose.speed import ROUNDS, cost_of
from prunus.studies.choose.speed_process import peak_of, processes

Opening = tuple[list[str], EvalPlan, ChoiceRequest, Path]  # arguments of open_works


class Answer(NamedTuple):
    """One answer: tokens of its prompt and after it, seconds, and of these what a second reading takes."""

    prompt: int
    drawn: int
    seconds: float
    again: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--engine", choices=IN_CHOOSE, default="hf")
    parser.add_argument("--task", required=True)
    parser.add_argument("--budgets", default="256,512")
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--answer-tokens", type=int)
    parser.add_argument("--serve")
    parser.add_argument("--forms", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--answers", type=int, default=9)
    parser.add_argument("--turns", type=int, default=ROUNDS)
    parser.add_argument("--work", type=Path, default=Path("choose-costs"))
    options = parser.parse_args()
    engine = options_for(options.engine, EngineOptions(serve=options.serve), room=True)
    budgets = tuple(map(int, options.budgets.split(",")))
    plan = EvalPlan(
        (options.task,), budgets, profile=options.profile, answer_tokens=options.answer_tokens, engine=options.engine
    )
    asked = ChoiceRequest(ENGINES[options.engine], engine, options.forms, {}, "cpu")
    options.work.mkdir(exist_ok=True)
    opening: Opening = options.models, plan, asked, options.work
    works = [work for work in open_works(*opening) if not options.only or work.form.form in options.only.split(",")]
    if not works:
        parser.error(f"no form is named {options.only}")
    declared = declared_of(works, plan, Limits(memory=1 << 50, seconds=1e9), options.engine, 0.03, 0.05, None, True)
    print("| form | budget | answers | s predicted | s measured | off, % | MB predicted | MB measured | off, % |")
    print("|---|" + "---:|" * 8, flush=True)
    constant: int | None = None
    for work in sorted(works, key=lambda one: one.form.bytes):
        rounds, answers, peak = [], dict[int, list[Answer]](), 0
        memory = work.form.bytes, work.form.cache.nbytes(longest(work.resolved), 1)
        for number in range(options.turns):
            rounds.append(run_speed_test(speed_test_of(work, asked, [1])))
            indices = range(1 + number, 1 + options.answers, options.turns)
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                part, most = alone.submit(answered, opening, work.form.run, indices).result()
            peak = max(peak, most)
            for budget, given in part.items():
                answers.setdefault(budget, []).extend(given)
                expected, took = seconds(cost_of(rounds[-1:], *memory), given)
                shown = f"{work.form.name}, {budget}: {expected:.1f} s predicted, {took:.1f} measured"
                print(f"turn {number + 1} of {options.turns}: {shown}", file=sys.stderr, flush=True)
        cost = cost_of(rounds, *memory)
        constant = cost.constant if constant is None else constant
        for budget, given in answers.items():
            cells = [work.form.name, str(budget), str(len(given))]
            cells += compared(*seconds(cost, given), "{:.1f}")
            cells += compared(nbytes(declared, work.form, budget, 1, constant) / 1e6, peak / 1e6, "{:,.0f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def answered(opening: Opening, run: str, indices: Sequence[int]) -> tuple[dict[int, list[Answer]], int]:
    """Answers of a form to these problems under each budget, and the most memory of the engine's processes.

    A first answer, a short one, is not timed.
    """
    asked = opening[2]
    work = next(one for one in open_works(*opening) if one.form.run == run)
    tokens = longest(work.resolved)
    engine = with_room(asked, work, tokens, 1)
    where = folder_of_form(work, asked.engine, asked.device)
    found: dict[int, list[Answer]] = {budget: [] for budget in work.resolved.budgets}
    with opened(work.grid.backend, where, asked.device, len(work.resolved.tokenizer), engine) as backend:
        run_batch(replace(work.resolved, budgets=(1,)), backend, [(0, 0)])
        for budget, given in found.items():
            alone = replace(work.resolved, budgets=(budget,))
            for index in indices:
                started = time.perf_counter()
                ((draw,),) = run_batch(alone, backend, [(index, 0)])
                seconds, again = time.perf_counter() - started, 0.0
                prompt = alone.chains[index].prompt
                if asked.engine.gguf and draw.ended == "forced":
                    reading = Request([*prompt, *draw.thinking], 1, frozenset(), frozenset(), 0)
                    started = time.perf_counter()
                    list(backend.completed([reading], alone.rules.sampling))
                    again = time.perf_counter() - started
                drawn = draw.thinking_tokens + draw.forced_tokens + len(draw.answer)
                given.append(Answer(len(prompt), drawn, seconds, again))
        peak = sum(map(peak_of, processes(asked.options.serve is None)))
    return found, peak


def seconds(cost: Cost, answers: Sequence[Answer]) -> tuple[float, float]:
    """The mean of the predicted seconds of these answers, and of the measured ones."""
    predicted = [cost.timed(1).seconds(one.prompt, one.drawn) + one.again for one in answers]
    return statistics.mean(predicted), statistics.mean(one.seconds for one in answers)


def compared(expected: float, actual: float, shown: str) -> list[str]:
    """Cells of both numbers and of the difference."""
    return [shown.format(expected), shown.format(actual), f"{100 * (expected / actual - 1):+.1f}"]


if __name__ == "__main__":
    main()
