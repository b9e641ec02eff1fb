"""A search, opened and checked: its model, ladders, plan, rules and order of problems, before anything is computed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from functools import cached_property
from itertools import chain, pairwise
from math import ceil, inf, prod
from pathlib import Path

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.evaluation.preflight import check_single_problems
from prunus.evaluation.resolved_plan import ResolvedPlan
from prunus.progress import say
from prunus.recipes import EvalPlan, PruneRecipe, RecoverRecipe
from prunus.recipes.base import Recipe
from prunus.results.certificate import (
    Declaration,
    DeclaredLadder,
    DeclaredModel,
    DeclaredRung,
    DeclaredServing,
    EngineBytes,
)
from prunus.results.ladder import ENDPOINTS, Rule, forecast
from prunus.settings.engines import BACKENDS, ENGINES, IN_FIND, EngineOptions
from prunus.settings.engines.facts import GGUF, EngineFacts, Steps
from prunus.settings.margins import Margin
from prunus.statistics.anytime import Round
from prunus.step import action_of, kind_of, steps_name
from prunus.steps.chain import bytes_after, planned_after
from prunus.studies.cells import Cell, Model, folder_of, open_model
from prunus.studies.file import (
    DEFAULT_LADDER,
    SHARED,
    CellGrid,
    FindRules,
    FindTable,
    ServingTable,
    VariantSteps,
    read_entries,
    steps_with,
)
from prunus.studies.looks.in_engine import check_bits, engine_bytes, narrowing

MOST_RUNGS = 1000
ONLY_ZEROS = {"prune", "recover"}  # steps that change no engine's bytes
KEPT = (0.875, 0.75, 0.625)  # shares of channels, or experts, that further rungs keep, in the form of the last rung
MOST_CHAINS = 128  # of one look, with engines that take more at once
Ladders = Mapping[str, Sequence[VariantSteps]]  # the rungs of each method, or of a file, by its name


def ladders_of(request: FindTable) -> Ladders:
    """The ladders that a user asks for: one for each method, or one of a file or of a list of recipes."""
    if request.file is not None:
        refuse_settings(str(request.ladder), request, request.settings)
        return {request.file.stem: read_entries(request.file, request.shared)}
    if isinstance(ladder := DEFAULT_LADDER if request.ladder is None else request.ladder, str | Path):
        names = list(request.methods or ["wanda"])
        if len(set(names)) < len(names):
            raise PrunusError(f"method {max(names, key=names.count)} is named twice")
        shares, given = sparsities(str(ladder)), {**request.shared, **request.settings}
        by_method = {name: [PruneRecipe(**{**given, "method": name, "sparsity": s}) for s in shares] for name in names}
    else:
        if not ladder:
            raise PrunusError("a ladder needs at least one recipe")
        by_method = {"recipes": list(ladder)}
    return {name: [VariantSteps(steps_of(rung, request), None) for rung in rungs] for name, rungs in by_method.items()}


def refuse_settings(ladder: str, request: FindTable, settings: Iterable[str]) -> None:
    """Raise PrunusError if settings of recipes are given beside a ladder that has its own."""
    given = [*(["the method"] if request.methods else []), *settings]
    given += [] if request.recovery is None else ["recover"]
    if given:
        raise PrunusError(f"{ladder} sets the recipes of its rungs: write {', '.join(given)} into it instead")


def by_bytes(plan: EvalPlan, ladders: Ladders) -> EngineFacts | None:
    """The engine by whose bytes rungs are ordered; None if it has no such ladder, or if a rung only sets zeros."""
    rungs = [entry for entry in chain.from_iterable(ladders.values()) if entry.steps]
    if plan.engine not in IN_FIND or any({action_of(step) for step in entry.steps} <= ONLY_ZEROS for entry in rungs):
        return None
    return ENGINES[plan.engine]


def check_served(engine: EngineFacts | None, serve: str | None) -> None:
    """Raise PrunusError for a command that does not load the GGUF files of an engine's rungs."""
    if engine is not None and engine.gguf and GGUF not in (serve or ""):
        raise PrunusError(f"rungs for {engine.name} are GGUF files: add --serve '{engine.serve}'")


def ladder_by_bytes(
    name: str, request: FindTable, source: Checkpoint, device: str | None
) -> tuple[list[VariantSteps], str]:
    """(the default ladder of an engine, its text as a TOML file).

    A rung that the model or engine cannot have, or that takes no fewer bytes than the one before, is left out with a
    printed line; rungs with narrower feed-forward layers follow those of the engine.

    name: of the engine. request: its settings may be of calibration; others are refused, as are methods and recovery.
    device: on which the engine will run; None: on another machine. Raises PrunusError if the model can have no form.
    """
    settings, engine = request.settings, ENGINES[name]
    refuse_settings("the default ladder", request, (name for name in settings if name not in SHARED))
    if engine.gguf:  # whose mixtures otherwise know of no inputs
        settings = {"calibration": PruneRecipe.calibration, **settings}
    less = narrowing(source)
    head = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    text, form, entries, least = f"[calibration]\n{head}" if head else "", Steps(), list[VariantSteps](), inf
    for rung in (*engine.ladder, *KEPT):
        steps = rung if isinstance(rung, tuple) else ({less: {"keep": rung}}, {"recover": {}}, *form)
        entry = steps_with(steps, settings)
        try:
            check_bits(engine, entry.steps[-1], device)
            if (size := bytes_after(entry.steps, source)) >= least:
                raise PrunusError("it takes no fewer bytes than the rung before")
        except PrunusError as error:
            if rung == engine.ladder[-1] and not entries:
                raise
            say(f"{steps_name(entry.steps)} is left out: {error}")
            continue
        form = rung if isinstance(rung, tuple) else form
        text, least = f"{text}\n[[chain]]\nsteps = [{', '.join(map(in_toml, steps))}]\n", size
        entries.append(entry)
    return entries, text.lstrip()


def in_toml(step: Mapping[str, Mapping[str, int | float | str]]) -> str:
    """A step as a chain of a TOML file has it: `{ quantize = { bits = 4, group = "32" } }`."""
    ((action, settings),) = step.items()
    values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    return f"{{ {action} = {f'{{ {values} }}' if settings else 'true'} }}"


def steps_of(rung: Recipe | Sequence[Recipe], request: FindTable) -> tuple[Recipe, ...]:
    """The steps of a rung, after which the requested recovery has the calibration of the first."""
    steps = (rung,) if isinstance(rung, Recipe) else tuple(rung)
    return steps if request.recovery is None else (*steps, RecoverRecipe.like(steps[0], **request.recovery))


def sparsities(text: str) -> list[float]:
    """The sparsities of `0.1:0.7:0.05` (from, to, step; the end is included if a step meets it) or of `0.2,0.4,0.5`."""
    try:
        if ":" not in text:
            values = [Decimal(part.strip()) for part in text.split(",")]
        else:
            first, last, step = (Decimal(part.strip()) for part in text.split(":"))
            if not all(number.is_finite() for number in (first, last, step)) or step <= 0 or last < first:
                raise PrunusError(f"ladder '{text}' has no rung: write FROM:TO:STEP with FROM <= TO and STEP above 0")
            count = int((last - first) / step) + 1
            if count > MOST_RUNGS:
                raise PrunusError(f"ladder '{text}' has {count} rungs, of which at most {MOST_RUNGS} are allowed")
            values = [first + step * number for number in range(count)]
    except (InvalidOperation, ValueError) as error:
        raise PrunusError(
            f"ladder '{text}' is not FROM:TO:STEP such as 0.1:0.7:0.05, a list such as 0.2,0.4, or a FILE.toml"
        ) from error
    for number in values:
        if not 0 < number < 1:
            raise PrunusError(f"ladder '{text}': a sparsity must lie in (0, 1), not {number}")
    return list(map(float, values))


def removed(entry: VariantSteps, source: Checkpoint) -> float:
    """The share of the weights of the blocks' Linears, or of experts, that a rung removes, by its recipes.

    The shares of several steps combine as 1 - (1 - one) * (1 - other) * ...
    """
    shares = [share for recipe in entry.steps if (share := kind_of(recipe).removed(recipe, source))]
    # A single share is declared as it is, without the rounding of 1 - (1 - share).
    return shares[0] if len(shares) == 1 else 1 - prod(1 - share for share in shares)


def cache_in(engine: EngineFacts, made: Checkpoint, plan: ResolvedPlan) -> int | None:
    """Bytes of the cache of a chain in an engine; None where they are unknown. plan: with the serving."""
    found = made.cache_size(plan.serving, engine=engine)
    return None if found is None else found.nbytes(plan.longest)


def shrinking(
    ladder: str,
    rungs: Sequence[tuple[VariantSteps, Cell]],
    source: Checkpoint,
    engine: EngineFacts,
    dense: ResolvedPlan,
) -> list[EngineBytes]:
    """The bytes that an engine takes for each rung. Raises PrunusError unless each takes fewer than the rung before."""
    whole = EngineBytes(bytes=engine_bytes((), source, engine), cache=cache_in(engine, source, dense))
    found = [whole]
    for entry, cell in rungs:
        made = None if whole.cache is None else planned_after(entry.steps, source) if entry.steps else source
        cache = None if made is None else cache_in(engine, made, cell.resolved)
        found.append(EngineBytes(bytes=engine_bytes(entry.steps, source, engine), cache=cache))
    names = ["the original", *(cell.name for _, cell in rungs)]
    for (before, largest), (name, smaller) in pairwise(zip(names, found, strict=True)):
        size, most = smaller.size or 0, largest.size or 0
        if size >= most:
            raise PrunusError(
                f"ladder {ladder} does not shrink: {name} takes {size:,} bytes, {before} before it {most:,}"
            )
    return found[1:]


def check_order(ladder: str, entries: Sequence[VariantSteps], source: Checkpoint) -> None:
    """Raise PrunusError for a ladder with a rung that removes less than the rung before."""
    shares = [removed(entry, source) for entry in entries]
    for number, (share, later) in enumerate(pairwise(shares), 1):
        if later < share - 1e-9:
            raise PrunusError(
                f"ladder {ladder} is not in order: rung {number + 1} removes {100 * later:.3g} % of the weights,"
                f" rung {number} {100 * share:.3g} %; order it from gentle to harsh"
            )


@dataclass(frozen=True)
class Search:
    """An opened search. cells: of the rungs of all ladders, by their runs.

    declared: the models, problems and rules, as fixed beforehand; a part of the certificate.
    """

    grid: CellGrid
    model: Model
    cells: Mapping[str, Cell]
    declared: Declaration

    @property
    def plan(self) -> EvalPlan:
        """The plan by which every rung is evaluated."""
        return self.grid.plans[0]

    @property
    def dense(self) -> Cell:
        """The dense model under the plan."""
        return self.model.cells[0]

    @cached_property
    def rule(self) -> Rule:
        """The rule by which each ladder is walked; its alpha is the ladder's share of the search's alpha."""
        return self.declared.rule

    @cached_property
    def order(self) -> list[Round]:
        """The rounds of problems, in the order in which they are taken."""
        return self.declared.order(self.declared.problems)

    @cached_property
    def expected_rounds(self) -> int:
        """Number of rounds, at most all, after which a rung that changes little is expected to be certified."""
        ahead = forecast(self.rule, len(self.order), self.plan.samples, base_draws=self.plan.base_samples)
        return min(len(self.order), ceil(min(1e9, max(forecast.rounds for forecast in ahead.values()))))


def open_search(
    model: str | Path,
    plan: EvalPlan,
    request: FindTable,
    ladders: Ladders,
    *,
    engine: EngineOptions,
    folder: Path | None = None,
) -> Search:
    """The search that these arguments ask for. Raises PrunusError, and writes nothing, where one of them is wrong.

    ladders: of the request. folder: of the model, if it was looked for before.
    """
    rules, by = request.rules, by_bytes(plan, ladders)
    check_served(by, engine.serve)
    alpha = rules.alpha / len(ladders) if 0 < rules.alpha < 1 else rules.alpha
    rule = Rule(rules.margin, rules.stop_margin, alpha)
    check_plan(plan, engine)
    everything = list(chain.from_iterable(ladders.values()))
    tables = {entry.ends_in.name: entry.ends_in.on(engine) for entry in everything if entry.ends_in}
    for table in tables.values():
        table.engine.check(plan.backend)
        check_served(by, table.engine.serve)
    grid = CellGrid(
        path=request.file,
        models=(str(model),),
        plans=(plan,),
        servings=(ServingTable("", engine), *tables.values()),
        entries=tuple(replace(e, servings=(e.ends_in.name if e.ends_in else "",)) for e in everything),
        keep_checkpoints=engine.serve is not None,  # else a server's folder would be made anew for every look
    )
    opened = open_model(grid, grid.models[0], folder or folder_of(grid, grid.models[0]))
    source, native = opened.source, opened.cells[0].resolved.native
    if native is not None and not native.engine:
        raise PrunusError(
            f"control native tells the model its budget ({native}) and does not end the thinking there, so no row says"
            " whether a chain ended by itself: leave control out"
        )
    place = {serving.name: number for number, serving in enumerate(grid.servings)}
    served = {(cell.variant.key, cell.serving): cell for cell in opened.cells}
    of_entries = (
        served[variant.key, place[name]]
        for variant, entry in zip(opened.of_entries, grid.entries, strict=True)
        for name in entry.servings or ()
    )
    cells = dict[str, Cell]()
    declared = list[DeclaredLadder]()
    for name, entries in ladders.items():
        there = [(entry, next(of_entries)) for entry in entries]
        if by is None:
            check_order(name, entries, source)
            sizes = [EngineBytes()] * len(entries)
        else:
            if by.gguf and any(entry.steps and not kind_of(entry.steps[-1]).changes_form for entry in entries):
                raise PrunusError(f"ladder {name} has a rung that is no GGUF file: end each with a step gguf")
            sizes = shrinking(name, there, source, by, opened.cells[0].resolved)
        rungs = list[DeclaredRung]()
        for (entry, cell), size in zip(there, sizes, strict=True):
            cells[cell.run_id] = cell
            rungs.append(
                DeclaredRung(
                    name=cell.name,
                    run=cell.run_id,
                    removed=removed(entry, source),
                    serving=declared_serving(cell) if cell.serving else None,
                    bytes=size.bytes,
                    cache=size.cache,
                )
            )
        declared.append(DeclaredLadder(name=name, rungs=rungs))
    return Search(grid, opened, cells, declaration(opened, plan, declared, rule, rules, by))


def declared_serving(cell: Cell) -> DeclaredServing | None:
    """How a cell is served, as declared; None without a setting that counts."""
    serving = cell.resolved.serving
    return DeclaredServing(name=cell.served_as, content=serving) if serving else None


def declaration(
    model: Model,
    plan: EvalPlan,
    ladders: Sequence[DeclaredLadder],
    rule: Rule,
    rules: FindRules,
    engine: EngineFacts | None,
) -> Declaration:
    """Stored: the part `declared` of the certificate, fixed before a row is looked at.

    engine: by whose bytes the ladders are ordered; None for ladders by what is removed. Problems are ids by task, in
    the plan's order, so that they can be compared with its hash of them. `groups` maps each problem that counts as one
    observation with others to the first of its group. In a ladder by bytes, a rung has the bytes that the engine loads,
    or an upper bound if they are not known before it is made.
    """
    dense = model.cells[0]
    cache = None if engine is None else cache_in(engine, model.source, dense.resolved)
    groups = {problem.id: problem.group for problem in dense.resolved.problems if problem.group}
    declared = Declaration(
        model=DeclaredModel(
            name=model.label,
            source=model.name,
            checksum=model.checkpoint.checksum(),
            engine=None if engine is None else engine.name,
            tokens=None if cache is None else dense.resolved.longest,
            bytes=None if engine is None else engine_bytes((), model.source, engine),
            cache=cache,
            serving=declared_serving(dense),
        ),
        dense=dense.run_id,
        problems=dense.resolved.ids,
        groups=dict(sorted(groups.items())) or None,
        seed=plan.seed,
        budgets=sorted(dense.resolved.budgets),
        samples=plan.samples,
        base_samples=plan.base_samples or None,
        reuse=dense.resolved.reuse,
        ladders=ladders,
        margin=Margin.of(rule.margin),
        stop_margin=Margin.of(rule.stop_margin),
        alpha=rules.alpha,
        endpoints=list(ENDPOINTS),
        look=0,
        max_tokens=rules.most_tokens,
    )
    first = declared.order(declared.problems)[0]
    batch = min(plan.rows, MOST_CHAINS) / (plan.samples * max(1, len(first)))
    return replace(declared, look=rules.look or ceil(batch))


def check_plan(plan: EvalPlan, engine: EngineOptions) -> None:
    """Raise PrunusError for a plan by which rungs cannot be evaluated."""
    check_single_problems(plan)
    if max(plan.budgets) <= 0:
        raise PrunusError("whether chains end by themselves needs a budget above 0: add one to --budgets")
    if "serve" in BACKENDS[plan.backend].settings and engine.serve is None:
        raise PrunusError(
            f"the engine {plan.engine} needs a server for every rung, which --serve starts: --serve 'vllm serve"
            " {model} --port {port}'"
        )
    engine.check(plan.backend)
    if engine.tokenizer is not None:
        raise PrunusError("tokenizer is for `prunus eval`: rungs are made from the model's folder, which has its own")
