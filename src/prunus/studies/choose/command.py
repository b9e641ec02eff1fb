"""Choose the most accurate model, form, budget and number of votes within limits of memory and time."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prunus import progress
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.runner import pick_device
from prunus.checkpoint.writer import check_target
from prunus.disk import as_path, beside, locked, show_bytes, write_text
from prunus.errors import PrunusError, unreadable
from prunus.evaluation.backends import check_installed
from prunus.evaluation.preflight import check_plan, check_single_problems
from prunus.evaluation.resolved_plan import renew_groups
from prunus.evaluation.stored_plan import problems_of
from prunus.evaluation.tasks import TASKS
from prunus.machine_load import busy, load
from prunus.plain_data import canonical_json, content_hash, parse_json
from prunus.pruning.calibration import check_calibration
from prunus.pruning.gguf import gguf
from prunus.questions import question_key
from prunus.recipes import EvalPlan, GgufRecipe
from prunus.recipes.drawing import PROFILE_NAMES
from prunus.results.certificate import MEANINGLESS
from prunus.settings import hints_of
from prunus.settings.engines import ENGINES, IN_CHOOSE, EngineOptions, backend_of, options_for
from prunus.settings.engines.facts import EngineFacts
from prunus.settings.margins import MARGIN, Margin, MarginLike
from prunus.statistics.best import DIFFER, ChoiceRule, forecast
from prunus.step import kind_of
from prunus.store.log import Event
from prunus.store.rows import Run
from prunus.store.store import Store, is_begun
from prunus.studies.cells import chain_tokens
from prunus.studies.choose.files import check_numbers, check_times, choice_of, publish, read_choice
from prunus.studies.choose.forms import ChoiceRequest, OpenedForm, longest, open_works
from prunus.studies.choose.limits import Limits
from prunus.studies.choose.looks import declare_in, in_words
from prunus.studies.choose.outcome import Outcome, nbytes
from prunus.studies.choose.records import Choice, Chosen, Costs, Declared, PlannedChoice
from prunus.studies.choose.rows import FormRows
from prunus.studies.choose.sampling import ChoiceSampling
from prunus.studies.choose.speed import ROUNDS, cost_of, machine, measured_apart, speed_test_of_plan
from prunus.studies.choose.speed_process import SpeedTest, SpeedTestResult, measured
from prunus.studies.engine import is_gguf_of, served_gguf
from prunus.studies.variants import check_variants, is_made, whole_checkpoint

PILOT, PART = 32, 4  # problems whose tokens decide what fits; they are at most one PART-th of all rounds
LOOK = 64  # problems between two decisions
UNFINISHED = ".choosing"  # at the end of the name of the folder of unfinished work
TESTS = "tests.json"  # results of the speed test, in the folder of unfinished work


@dataclass(frozen=True)
class ReadyChoice:
    """A choice whose arguments were checked. costs: of an earlier speed test; None where the speed is to be tested."""

    declared: Declared
    plan: EvalPlan
    works: Sequence[OpenedForm]
    request: ChoiceRequest
    costs: Costs | None
    target: Path
    store: Path

    @property
    def folder(self) -> Path:
        """The folder of unfinished work."""
        return beside(self.target, UNFINISHED)


def choose(
    models: str | Path | Sequence[str | Path],
    out: str | Path,
    plan: EvalPlan | None = None,
    *,
    limits: Limits,
    engine: str | None = None,
    forms: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    margin: MarginLike = MARGIN,
    alpha: float = 0.05,
    look: int | None = None,
    store: str | Path = "results.db",
    speeds: str | Path | None = None,
    device: str = "auto",
    options: EngineOptions | None = None,
    overwrite: bool = False,
) -> Chosen:
    """Choose the most accurate model, form, budget and number of votes that fit into memory and time, by measurement.

        plan = prunus.EvalPlan(tasks=("tiny",), budgets=(32, 128, 512))
        chosen = prunus.choose("tiny", "out/best", plan, limits=prunus.Limits(memory="500MB", seconds=60))
        print(chosen)

    models: a folder, a hub id or `tiny`, or several.
    out: the folder to write: the form, serve.sh, choice.json and choice.html.
    plan: by which forms are evaluated; with several samples, votes of all of them are choices, too. None: the plan of
        the rows that the store has, to which none are added.
    limits: of memory and time, which a choice has to keep.
    engine: which serves it: hf, llama.cpp or vllm; None: the plan's, or hf.
    forms: a TOML file of [[chain]], [[quantize]] and other tables, instead of the engine's own forms.
    settings: of calibration, for forms that need it.
    margin: sampling ends when no other choice can be better by this.
    alpha: probability that the claim is false.
    look: problems between two decisions; None: 64.
    store: SQLite file of the rows, which is created if missing and continued.
    speeds: the choice.json of an earlier choice on this machine, whose speed test is taken.
    device: as for `evaluate`.
    options: how the engine is started. In a serve command {context} and {slots} stand for the tokens of all chains at
        once, and for the number of chains.
    overwrite: replace an existing folder.

    Raises PrunusError for wrong input, before anything is computed.
    """
    ready = _ready(
        models, out, plan, limits, engine, forms, settings, margin, alpha, look, store, speeds, device, options,
        overwrite,
    )  # fmt: skip
    declared, works, folder = ready.declared, ready.works, ready.folder
    progress.say(shares(declared))
    progress.say(ahead(declared, len(works) * len(declared.budgets) * len(declared.votes)))
    with unfinished(folder), Store(ready.store, create=True) as opened:
        rows = FormRows(opened, declared)
        renew_groups(opened, works[0].resolved.problems)
        costs = ready.costs or tested(works, declared, ready.request, folder)
        looks = declare_in(opened, declared, costs)
        if words := in_words(looks):
            progress.say(f"warning{words.replace(';', ':', 1)}")
        with ChoiceSampling(works, declared, rows, opened, device) as sampling:
            outcome = Outcome(declared, costs, rows, sampling.provide if declared.sampled else None, looks=looks)
            shown = outcome.shown()
        data = choice_of(declared, costs, shown, rows, outcome.looked, looks)
        opened.add_to_log(Event.of({"chosen": looks.id, "content": data.content}))
        if shown.chosen is not None:
            work = next(work for work in works if work.form.run == shown.chosen.run)
            made = folder_of_form(work, ready.request.engine, device)
            publish(data, work, made, ready.target, ready.request, overwrite)
    if shown.chosen is not None:
        shutil.rmtree(folder)
    return chosen_of(data, ready.target)


def plan_choose(
    models: str | Path | Sequence[str | Path],
    out: str | Path,
    plan: EvalPlan | None = None,
    *,
    limits: Limits,
    engine: str | None = None,
    forms: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    margin: MarginLike = MARGIN,
    alpha: float = 0.05,
    look: int | None = None,
    store: str | Path = "results.db",
    speeds: str | Path | None = None,
    device: str = "auto",
    options: EngineOptions | None = None,
    overwrite: bool = False,
) -> PlannedChoice:
    """Forecast of what `choose` would try with the arguments, and what that takes; nothing is loaded or written.

        plan = prunus.EvalPlan(tasks=("tiny",), budgets=(32, 128, 512))
        print(prunus.plan_choose("tiny", "out/best", plan, limits=prunus.Limits(memory="500MB", seconds=60)))

    models: as of `choose`.
    out: as of `choose`.
    plan: as of `choose`.
    limits: as of `choose`.
    engine: as of `choose`.
    forms: as of `choose`.
    settings: as of `choose`.
    margin: as of `choose`.
    alpha: as of `choose`.
    look: as of `choose`.
    store: as of `choose`.
    speeds: as of `choose`.
    device: as of `choose`.
    options: as of `choose`.
    overwrite: as of `choose`.

    Raises PrunusError for what `choose` would refuse.
    """
    return planned(
        _ready(
            models, out, plan, limits, engine, forms, settings, margin, alpha, look, store, speeds, device, options,
            overwrite,
        )
    )  # fmt: skip


def _ready(
    models: str | Path | Sequence[str | Path], out: str | Path, plan: EvalPlan | None, limits: Limits,
    engine: str | None, forms: str | Path | None, settings: Mapping[str, Any] | None, margin: MarginLike, alpha: float,
    look: int | None, store: str | Path, speeds: str | Path | None, device: str, options: EngineOptions | None,
    overwrite: bool,
) -> ReadyChoice:  # fmt: skip
    """Check the arguments of `choose`, and open models and forms; nothing is computed or written."""
    target, path = as_path(out), as_path(store, "store")
    if not isinstance(models, str | Path | Sequence):
        raise PrunusError(f"models must be a folder, a hub id or several, not {models}")
    names = [str(models)] if isinstance(models, str | Path) else [str(model) for model in models]
    if not isinstance(plan, EvalPlan | None):
        raise PrunusError(f"choose takes EvalPlan, not {type(plan).__name__}")
    if not isinstance(limits, Limits):
        raise PrunusError(f"choose takes Limits, not {type(limits).__name__}")
    engine = engine or ("hf" if plan is None else plan.engine)
    check_asked(names, engine, alpha)
    sampled = plan is not None
    options = options_for(engine, options or EngineOptions(), room=True)
    request = ChoiceRequest(ENGINES[engine], options, None if forms is None else Path(forms), settings or {}, device)
    with plan_of(plan, path, names[0], engine) as plan:
        check_choice_plan(names, plan, options, path)
        works = open_works(names, plan, request, beside(target, UNFINISHED))
    share = Margin.of(margin)
    if share.relative:
        raise PrunusError(
            "the margin of a choice is in points, such as 0.05: there is no base that it could be a share of"
        )
    declared = declared_of(works, plan, limits, engine, share.size, alpha, look, sampled)
    if not sampled:
        with Store(path) as opened:
            declared = with_rows(declared, FormRows(opened, declared))
            declared = replace(declared, fixed=is_fixed(declared, FormRows(opened, declared), opened.runs()))
        works = [work for work in works if work.form in declared.forms]
    for work in works:
        check_target(work.model.checkpoint.folder, target, overwrite)
    check_works(works, request)
    stated = None if speeds is None else stated_costs(Path(speeds), declared)
    return ReadyChoice(declared, plan, works, request, stated, target, path)


def check_asked(names: Sequence[str], engine: str, alpha: float) -> None:
    """Raise PrunusError for models, an engine or an alpha that make no sense."""
    if not names:
        raise PrunusError("name at least one MODEL, and then the folder OUT")
    if len(set(names)) < len(names):
        raise PrunusError(f"model '{max(names, key=names.count)}' is named twice")
    if engine not in IN_CHOOSE:
        raise PrunusError(f"engine '{engine}' is not known: take {', '.join(IN_CHOOSE)}")
    if not 0 < alpha < 1:
        raise PrunusError(f"alpha must lie in (0, 1), not {alpha}")


def check_choice_plan(names: Sequence[str], plan: EvalPlan, engine: EngineOptions, store: Path) -> None:
    """Raise PrunusError for a plan by which nothing can be chosen."""
    check_single_problems(plan)
    if plan.control != "forced" or not plan.reuse or plan.wait or plan.base_samples is not None or plan.aa_control:
        raise PrunusError(
            "all budgets of a choice come from one chain: leave control, reuse, wait and base samples out"
        )
    for name in names:
        check_plan(name, plan, engine, store)
    engine.check(plan.backend)


@contextmanager
def plan_of(plan: EvalPlan | None, store: Path, model: str, engine: str) -> Iterator[EvalPlan]:
    """Yield the given plan, or that of the stored rows; within the context, its problems can be loaded."""
    if plan is not None:
        yield replace(plan, engine=engine)
        return
    with TemporaryDirectory() as folder:
        yield stored_plan(store, model, engine, Path(folder))


def stored_plan(store: Path, model: str, engine: str, folder: Path) -> EvalPlan:
    """The plan of the rows that a store has of a model as it is. Raises PrunusError where there is none, or several.

    folder: for files of the problems that do not come with Prunus, of which the store has the texts but for gated sets.
    """
    if not is_begun(store):
        raise PrunusError(f"{store} has no rows to choose by: add --task to sample them")
    checksum, plans = Checkpoint(resolve(model)).checksum(), dict[str, Run]()
    with Store(store) as opened:
        for run in opened.runs_with_rows():
            if run.model.checksum == checksum and run.plan.backend == backend_of(engine):
                plans[canonical_json(run.plan.data)] = run
        if len(plans) != 1:
            found = "no run" if not plans else f"runs of {len(plans)} plans"
            raise PrunusError(
                f"{store} has {found} of {model} in {engine}: name --task and the other options of its plan"
            )
        (run,) = plans.values()
        plan = {**run.plan.data, "tasks": [task_of(opened, run, name, folder) for name in run.plan.tasks]}
    known = {name: value for name, value in plan.items() if name in {*hints_of(EvalPlan), "backend"}}
    if isinstance(known.get("answer_tokens"), dict):
        known["answer_tokens"] = None  # it depends on the kind of a problem, as it does by default
    if known["profile"] not in PROFILE_NAMES:
        known["profile"] = "auto"
    return replace(EvalPlan.from_json(known), engine=engine)


def task_of(store: Store, run: Run, name: str, folder: Path) -> str:
    """Task of a plan that loads the problems of a stored task: its name, or a file that is written to the folder."""
    if name in TASKS and TASKS[name].hub is None:
        return name
    try:
        problems = [problem for problem in problems_of(store, run) if problem.task == name]
    except PrunusError:  # a gated set: it is loaded as when the rows were drawn
        return name
    firsts = {problem.group for problem in problems}
    lines = [
        {
            "id": problem.id,
            "problem": problem.question,
            "answer": problem.answer,
            "kind": problem.kind,
            "choices": [*problem.choices],
        }
        | {"group": problem.group or (problem.id if problem.id in firsts else None)}
        for problem in problems
    ]
    file = folder / f"{name}.jsonl"
    write_text(file, "".join(canonical_json(line) + "\n" for line in lines))
    return str(file)


def declared_of(
    works: Sequence[OpenedForm], plan: EvalPlan, limits: Limits, engine: str, margin: float, alpha: float,
    look: int | None, sampled: bool,
) -> Declared:  # fmt: skip
    """The declaration of a choice: all that is fixed before any row is looked at."""
    first = works[0].resolved
    answer = max(longest(work.resolved) - work.resolved.longest for work in works)
    made = Declared(
        **vars(limits),
        engine=engine,
        problems=first.ids,
        groups=dict(sorted((problem.id, problem.group) for problem in first.problems if problem.group)),
        questions={problem.id: question_key(problem.question, problem.choices) for problem in first.problems},
        seed=plan.seed,
        budgets=list(first.budgets),
        samples=plan.samples,
        answer=answer,
        margin=margin,
        alpha=alpha,
        look=0,
        pilot=0,
        sampled=sampled,
        forms=[work.form for work in works],
    )
    rounds, sizes = len(made.order), sum(map(len, made.problems.values()))
    if rounds < PART:
        raise PrunusError(f"{sizes} problems are too few to choose by: take at least {PART}")
    per_round = max(1, sizes // rounds)
    return replace(
        made, look=max(1, ceil((look or LOOK) / per_round)), pilot=min(ceil(PILOT / per_round), rounds // PART)
    )


def with_rows(declared: Declared, rows: FormRows) -> Declared:
    """The declaration with only the forms of which the store has enough rows; a line says which are left out."""
    kept = [form for form in declared.forms if rows.complete(form.run) > declared.pilot]
    for form in declared.forms:
        if form not in kept:
            progress.say(f"{form.name} is left out: the store has no rows of it by this plan")
    if not kept:
        raise PrunusError("the store has no rows of any of these forms by this plan: add --task to sample them")
    return replace(declared, forms=kept)


def is_fixed(declared: Declared, rows: FormRows, runs: Sequence[Run]) -> bool:
    """Whether all rows of these forms are there, and none of their runs was ever stopped because of rows."""
    known = {form.run for form in declared.forms}
    stopped = {run.run_id for run in runs if run.adaptive is not None}
    return known.isdisjoint(stopped) and all(rows.complete(run) == len(declared.order) for run in known)


def folder_of_form(work: OpenedForm, engine: EngineFacts, device: str) -> Path:
    """The folder of a form, which is made if it is missing."""
    if work.cell.variant.steps:
        if not is_made(work.folder, work.cell.variant):
            progress.say(f"making {work.form.name}")
        return whole_checkpoint(work.grid, work.model, work.cell.variant, work.folder, device)
    source = work.model.checkpoint.folder
    if not engine.gguf:
        return source
    made = served_gguf(work.folder, source)
    if not is_gguf_of(made, source):
        progress.say(f"making {work.form.name} as GGUF")
        gguf(source, made, GgufRecipe(), overwrite=True)
    return made


def tested(works: Sequence[OpenedForm], declared: Declared, request: ChoiceRequest, folder: Path) -> Costs:
    """Run the speed test: ROUNDS times every form in turn, without forms that are too large at every budget.

    Each result is written at once, so that an interrupted test goes on.
    """
    file, chains = folder / TESTS, declared.chains
    known = read_tests(file)
    order = sorted(works, key=lambda work: work.form.bytes)
    left, cache = {work.form.run for work in order}, dict[str, int]()
    found, sizes = dict[str, list[SpeedTestResult]](), {work.form.run: work.form.bytes for work in works}
    if words := busy(load(), os.cpu_count()):
        progress.say(f"the machine is busy ({words}): the speeds will be lower than those of a machine at rest")
    with progress.Steps("speed test", ROUNDS * len(order), "tests") as steps:
        for number in range(ROUNDS):
            for work in order:
                if (form := work.form).run not in left:
                    continue
                test = speed_test_of(work, request, chains)
                cache[form.run] = form.cache.nbytes(longest(work.resolved), max(chains))
                key = content_hash({"run": form.run, "number": number, "machine": machine().data, **test.to_json()})
                if key not in known:
                    known[key] = run_speed_test(test)
                    write_text(file, canonical_json({digest: round.to_json() for digest, round in known.items()}))
                found.setdefault(form.run, []).append(known[key])
                steps.advance(note=form.name)
                if number == 0 and work is order[0]:
                    constant = cost_of(found[form.run], form.bytes, cache[form.run]).constant
                    left = {work.form.run for work in order if has_room(declared, work, constant)}
    costs = {run: cost_of(rounds, sizes[run], cache[run]) for run, rounds in found.items() if run in left}
    return Costs(machine=machine(), forms=costs)


def read_tests(file: Path) -> dict[str, SpeedTestResult]:
    """The results of a test that was interrupted. Raises PrunusError where the file has something else."""
    if not file.exists():
        return {}
    try:
        found = {key: SpeedTestResult.of(stored) for key, stored in parse_json(file.read_text("utf-8")).items()}
        for result in found.values():
            check_numbers(result.to_json())
            check_times(result.times)
        return found
    except OSError as error:
        raise unreadable(str(file), error) from error
    except MEANINGLESS as error:
        raise PrunusError(f"{file} is damaged ({error}): delete it, and the speeds are tested anew") from error


def speed_test_of(work: OpenedForm, request: ChoiceRequest, chains: Sequence[int]) -> SpeedTest:
    """Speed test of a form with each of these numbers of chains at once. Makes the GGUF file that it needs."""
    tokens = longest(work.resolved)
    options = with_room(request, work, tokens, max(chains))
    where = folder_of_form(work, request.engine, request.device)
    return speed_test_of_plan(work.resolved, where, work.grid.backend, request.device, options, chains)


def run_speed_test(test: SpeedTest) -> SpeedTestResult:
    """Run one speed test: in this process if a server does the work, else in a process of its own."""
    return measured(test) if test.engine["serve"] is not None else measured_apart(test)


def with_room(request: ChoiceRequest, work: OpenedForm, tokens: int, slots: int) -> EngineOptions:
    """Options with which the engine makes room for `slots` chains of `tokens` tokens at once."""
    options, needed = request.sized(tokens, slots), request.engine.args_for(tokens, slots, work.form.cache)
    return replace(options, args={**needed, **options.args})


def has_room(declared: Declared, work: OpenedForm, constant: int) -> bool:
    """Whether a form fits into memory at the smallest budget; a line says if it does not."""
    least = nbytes(declared, work.form, declared.budgets[0], 1, constant)
    if least > declared.memory:
        progress.say(
            f"{work.form.name} is left out: it takes {show_bytes(least)} at the smallest budget, more than"
            f" {show_bytes(declared.memory)}"
        )
    return least <= declared.memory


def stated_costs(file: Path, declared: Declared) -> Costs:
    """The costs of an earlier choice. Raises PrunusError unless it has some of these forms, with these chains."""
    costs = read_choice(file).costs
    if costs.machine != machine():
        raise PrunusError(
            f"the speeds of {file} were measured on another machine or with another OMP_NUM_THREADS: leave --speeds out"
        )
    kept = {form.run: costs.forms[form.run] for form in declared.forms if form.run in costs.forms}
    if not kept:
        raise PrunusError(f"{file} has no speed of any of these forms by this plan: leave --speeds out")
    for form in declared.forms:
        if form.run not in kept:
            progress.say(f"{form.name} is left out: {file} has no speed of it")
        elif lacking := set(declared.chains) - {timing.chains for timing in kept[form.run].times}:
            raise PrunusError(f"{file} has no speeds of {min(lacking)} chains at once: leave --speeds out")
    return replace(costs, forms=kept)


def planned(ready: ReadyChoice) -> PlannedChoice:
    """Forecast of what a choice will take; nothing is loaded or written."""
    declared, plan, works = ready.declared, ready.plan, ready.works
    problems = sum(map(len, declared.problems.values()))
    sizes = [(work, nbytes(declared, work.form, declared.budgets[0], 1, 0)) for work in works]
    left_out = [f"{work.form.name} takes at least {show_bytes(size)}" for work, size in sizes if size > declared.memory]
    kept, first = [work for work, size in sizes if size <= declared.memory], works[0].resolved
    per_chain = max(
        chain_tokens(plan, first.budgets, first.answers_at_most(place)) for place in range(len(first.problems))
    )
    tokens = len(kept) * problems * plan.samples * per_chain if declared.sampled else 0
    to_make = [work.form.name for work in kept if work.form.steps and not is_made(work.folder, work.cell.variant)]
    tests = 0 if ready.costs else ROUNDS * len(kept)
    choices = len(kept) * len(declared.budgets) * len(declared.votes)
    lines = [
        f"{len(kept)} forms with {len(declared.budgets)} budgets: {choices} choices, on {problems} problems",
        *(f"left out: {line}" for line in left_out),
        f"to make: {', '.join(to_make) or 'nothing'}",
        shares(declared),
        f"speed test: {tests} starts of the engine",
        f"at most {tokens:,} tokens, if no form is dropped and no answer ends before its budget",
        ahead(declared, choices),
    ]
    return PlannedChoice(
        forms=len(kept), choices=choices, problems=problems, left_out=left_out, to_make=to_make, tokens=tokens,
        tests=tests, lines=lines,
    )  # fmt: skip


def shares(declared: Declared) -> str:
    """A line on how many problems only decide what fits, and how many are left to the choice."""
    first, every = (sum(map(len, rounds)) for rounds in (declared.order[: declared.pilot], declared.order))
    return f"{first} of {every} problems decide what fits; {every - first} are left to the choice"


def ahead(declared: Declared, choices: int) -> str:
    """Forecast in a sentence: by how much another choice may be better at the end. choices: their number."""
    rounds, margin = len(declared.order) - declared.pilot, 100 * declared.margin
    x = 100 * forecast(ChoiceRule(max(1, choices), rounds, declared.margin, declared.alpha, bool(declared.fixed)))
    if x <= margin:
        then = f"sampling will end when no other choice that fits can be more than {margin:g} points better"
    else:
        then = f"no other choice that fits will be more than about {x:.0f} points better; more problems make it less"
    return f"if two choices differ on {100 * DIFFER:g} % of these (an assumption), {then}"


def chosen_of(data: Choice, target: Path) -> Chosen:
    """The result of `choose`. target: the folder that is written."""
    shown = data.shown
    return Chosen(
        out=None if shown.chosen is None else str(target),
        chosen=shown.chosen,
        choices=shown.choices,
        low=shown.low,
        high=shown.high,
        excess=shown.excess,
        claims=shown.claims,
        notes=shown.notes,
    )


def check_works(works: Sequence[OpenedForm], request: ChoiceRequest) -> None:
    """Raise PrunusError for forms that cannot be made or run here, before hours of work."""
    check_installed(request.engine.name)
    pick_device(request.device)
    for work in works:
        if not request.engine.gguf and any(kind_of(step).changes_form for step in work.cell.variant.steps):
            raise PrunusError(f"{work.form.name}: only llama.cpp reads GGUF files: take --engine llama.cpp")
        for recipe in () if is_made(work.folder, work.cell.variant) else work.cell.variant.steps:
            check_calibration(recipe, work.model.checkpoint.folder)
    for work in {work.model.name: work for work in works}.values():
        check_variants(work.grid, [work.model], work.folder, request.device)


@contextmanager
def unfinished(folder: Path) -> Iterator[None]:
    """Within the context the folder of unfinished work is there and locked; afterwards an empty one is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / "lock", f"is working on {folder}; wait for it"):
            yield
    finally:
        with suppress(OSError):  # it was deleted, or has work in it
            folder.rmdir()
