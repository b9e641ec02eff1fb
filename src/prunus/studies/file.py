"""Read a study's TOML file and check every key, type and combination of values before any model is opened.

Where a recipe takes one value, a list of values makes a grid. Paths are relative to the folder of the file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin

from prunus.checkpoint.resolve import typed_path
from prunus.errors import PrunusError, unreadable
from prunus.plain_data import LineNumbers, parse_toml, suggestion
from prunus.recipes import DropRecipe, EvalPlan, PruneRecipe, RecoverRecipe
from prunus.recipes.base import CALIBRATED, Recipe
from prunus.settings import check_settings, hints_of, misfit, setting
from prunus.settings.budgets import OFF
from prunus.settings.engines import BACKENDS, IN_FIND, EngineOptions, options_for
from prunus.settings.engines.facts import Steps
from prunus.settings.margins import MARGIN, Margin, MarginLike
from prunus.step import STEPS, kind_of, step_kind, with_defaults
from prunus.store.labels import checked_name

RECIPES: Mapping[str, type[Recipe]] = {action: step_kind(action).recipe for action in STEPS}
# Keys of [calibration], which has defaults of every step, and their types.
SHARED = {key: hints_of(PruneRecipe)[key] for key in CALIBRATED}
Made = TypeVar("Made")
Build = Callable[..., Made]  # makes an object of a class, its first argument, with settings, its keyword arguments
CHAIN = "chain"  # the tables of several steps, each of which is {action = settings}
AFTER = "recover"  # key of the tables of single steps, for one more step after it: true, false or a table of settings
BEFORE = "experts"  # key of [[prune]], for one more step before it
SERVING = "serving"  # the tables of how cells are served
SERVINGS = "servings"  # key of the tables of steps: the names of the servings that their variants have; default: all
TOP = (
    "name",
    "models",
    "keep_checkpoints",
    "by_batch",
    "eval",
    "engine",
    SERVING,
    "calibration",
    *RECIPES,
    CHAIN,
    "find",
    "report",
)
# Keys of a [[serving]] table whose values are tables, and types of all its keys: `name` takes the place of `serving`.
TABLES = ("args", "request", "environment")
OF_SERVING = {
    "name": str,
    **{k: hint for k, hint in hints_of(EngineOptions).items() if k not in (SERVING, "tokenizer")},
}
OF_STUDY = {"keep_checkpoints": bool, "by_batch": bool, "name": str}  # keys at the top that are fields of Study
REPORT = {"base": str, "margin": float | str, "stop_margin": float | str, "published": bool}
MARGINS = ("margin", "stop_margin")  # keys of [report] and [[find]]
DEFAULT_LADDER = "0.1:0.7:0.05"
# Fields of PruneRecipe that follow from the method and the ladder of a [[find]] table, and all others, which it may set
# for every rung.
OF_LADDER = ("method", "sparsity", "pattern")
OF_RECIPE = {name: hint for name, hint in hints_of(PruneRecipe).items() if name not in OF_LADDER}


@dataclass(frozen=True)
class FindRules:
    """Rules by which a search decides: margins, alpha, a limit of tokens, and the problems between two decisions."""

    margin: MarginLike = setting(MARGIN, "Loss of accuracy to rule out, as for compare.", metavar="SHARE|N%")
    stop_margin: MarginLike = setting(MARGIN, "The same of answers that stop by themselves.", metavar="SHARE|N%")
    alpha: float = setting(0.05, "Probability of any false certificate.")
    most_tokens: int | None = setting(None, "End the search when its rows have taken N tokens.", at_least=1)
    look: int | None = setting(None, "Problems between two decisions; default: a batch of the engine.", at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)


# The keys of a [[find]] table but `recover`, and their types.
FIND_KEYS = {
    "name": str,
    "method": str | tuple[str, ...],
    "ladder": str | tuple[float, ...],
    **hints_of(FindRules),
    **dict.fromkeys(MARGINS, float | str),
    **OF_RECIPE,
}
# The valid keys of each table, by its name in messages.
KEYS: Mapping[str, Sequence[str]] = {
    "[eval]": [*hints_of(EvalPlan)],
    "[calibration]": [*SHARED],
    f"{AFTER} = {{...}}": [*hints_of(RecoverRecipe)],
    **{f"[[{kind}]]": [*{**hints_of(cls), AFTER: None}, SERVINGS] for kind, cls in RECIPES.items()},
    "[[prune]]": [*hints_of(PruneRecipe), AFTER, BEFORE, SERVINGS],
    "[report]": [*REPORT],
    "[engine]": [*hints_of(EngineOptions)],
    "the top of the file": TOP,
    "[[chain]]": ["steps", SERVINGS],
    "[[serving]]": [*OF_SERVING],
    "[[find]]": [*FIND_KEYS, AFTER],
}


@dataclass(frozen=True)
class VariantSteps:
    """The steps of a variant, in their order; in a ladder there may be none, for the model as it is.

    line: of the table that defines them. servings: names of the servings that the variant has; None: all. ends_in: the
    serving that a rung of a ladder names as its last step; None if it names none.
    """

    steps: tuple[Recipe, ...]
    line: int | None
    servings: tuple[str, ...] | None = None
    ends_in: "NamedServing | None" = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", with_defaults(self.steps))


@dataclass(frozen=True)
class ServingTable:
    """How cells are served: a [[serving]] table, or [engine] alone, which has no name.

    engine: how the engine is started or reached, by the table's options and those of [engine] that it does not set.
    line: of the table.
    """

    name: str
    engine: EngineOptions
    line: int | None = None


@dataclass(frozen=True)
class NamedServing:
    """A [[serving]] table. options: of EngineOptions, those that the table sets. line: of the table."""

    name: str
    options: Mapping[str, Any]
    line: int | None

    def on(self, shared: EngineOptions) -> ServingTable:
        """The serving that it defines. shared: options of [engine], which hold where the table sets none.

        Tables such as `args` are merged with theirs.
        """
        own = self.options
        changes = {**own, **{key: {**getattr(shared, key), **own[key]} for key in TABLES if key in own}}
        if "serve" in own:
            changes.setdefault("url", None)
        if "url" in own:
            changes = {"serve": None, SERVING: self.name, **changes}  # what a server that runs does not tell
        return ServingTable(self.name, replace(shared, **changes), self.line)


@dataclass(frozen=True)
class FindTable:
    """Request for a search, from `prunus find` or from a [[find]] table, which holds for each model and each plan.

    ladder: sparsities (`0.1:0.7:0.05` or `0.2,0.4,0.5`), a .toml file, or a recipe or several for each rung; None:
    DEFAULT_LADDER. methods: for sparsities, each with a ladder of its own. settings: for sparsities, fields of every
    PruneRecipe. shared: settings of [calibration], which hold where neither settings nor the file has others. recovery:
    settings of the recovery of every rung; None: none. name: of the folder of its results. line: of the table.
    """

    ladder: str | Path | Sequence[Recipe | Sequence[Recipe]] | None
    methods: Sequence[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    recovery: Mapping[str, Any] | None = None
    rules: FindRules = FindRules()
    name: str = ""
    line: int | None = None

    @property
    def file(self) -> Path | None:
        """The file of the ladder, if it is in a file."""
        in_file = isinstance(self.ladder, str | Path) and str(self.ladder).endswith(".toml")
        return Path(str(self.ladder)) if in_file else None


def fail_at(path: Path | None, line: int | None, message: str) -> NoReturn:
    """Raise a PrunusError that names a file and, where there is one, the line."""
    raise PrunusError(f"{path}{'' if line is None else f', line {line}'}: {message}")


@contextmanager
def located_at(path: Path, line: int | None, before: str, after: str = "") -> Iterator[None]:
    """Within the context, a PrunusError gets the file, the line, and these words around it."""
    try:
        yield
    except PrunusError as error:
        fail_at(path, line, f"{before}{error}{after}")


@dataclass(frozen=True, kw_only=True)
class CellGrid:
    """Models, their variants, plans and servings, whose combinations are cells: of a study, a search or a choice.

    path: the file that has the entries; None without one. plans: all of one backend. servings: at least one; the first
    is the base's. base: name of the variant that the others are compared with. eval_line, models_line: lines of
    its [eval] and `models`, None where they cannot be located. mixed: whether a run may go on in another environment
    than at its start, as of Store.add_run; it is not in the file.
    """

    path: Path | None
    models: tuple[str, ...]
    plans: tuple[EvalPlan, ...]
    servings: tuple[ServingTable, ...]
    entries: tuple[VariantSteps, ...]
    base: str = "dense"
    keep_checkpoints: bool = False
    eval_line: int | None = None
    models_line: int | None = None
    mixed: bool = False

    @property
    def backend(self) -> str:
        """The backend of all plans."""
        return self.plans[0].backend

    @property
    def serves(self) -> bool:
        """Whether a server is started for its cells."""
        return any(table.engine.serve is not None for table in self.servings)

    def fail(self, line: int | None, message: str) -> NoReturn:
        """Raise a PrunusError that names the file and the line, where there is a line."""
        if line is None:
            raise PrunusError(message)
        fail_at(self.path, line, message)

    @contextmanager
    def located(self, line: int | None, what: str = "") -> Iterator[None]:
        """Within the context, a PrunusError gets the file, the line, and the name of what it is about."""
        try:
            yield
        except PrunusError as error:
            self.fail(line, f"{what}: {error}" if what else str(error))


@dataclass(frozen=True, kw_only=True)
class Study(CellGrid):
    """The checked content of a study's file, whose text is `text`.

    margin, stop_margin: largest tolerable loss of accuracy, and of chains that end by themselves, as MarginLike.
    by_batch: whether all variants answer a batch before any answers the next one.
    """

    path: Path
    name: str
    text: str
    margin: MarginLike = MARGIN
    stop_margin: MarginLike = MARGIN
    published: bool = False
    by_batch: bool = False
    finds: tuple[FindTable, ...] = ()

    def fail(self, line: int | None, message: str) -> NoReturn:
        """Raise a PrunusError that names the file, and the line where there is one."""
        fail_at(self.path, line, message)


def read_study(path: str | Path) -> Study:
    """The study that a TOML file defines. Raises PrunusError, with the line, where the file is wrong."""
    return _Reader(Path(path), "study").study()


def steps_with(steps: Steps, shared: Mapping[str, Any]) -> VariantSteps:
    """The variant with these steps, given as {action: settings}. shared: settings of every step with such fields."""
    named = ((RECIPES[action], own) for step in steps for action, own in step.items())
    return VariantSteps(tuple(cls(**{**_kept(shared, cls), **own}) for cls, own in named), None)


def read_entries(path: str | Path, shared: Mapping[str, Any] | None = None) -> list[VariantSteps]:
    """The variants of a ladder file, in its order: tables of steps, [calibration] and [[serving]].

    shared: settings of calibration that hold where the file has no others.
    """
    reader = _Reader(Path(path), "ladder")
    reader.top.check_keys((*RECIPES, CHAIN, SERVING, "calibration"))
    reader.shared = {**(shared or {}), **reader.calibration()}
    reader.of_ladder = reader.named_servings()
    entries = reader.entries()
    if not entries:
        raise PrunusError(f"{path} has no recipe: write [[prune]] or [[drop]] tables")
    return entries


def _kept(shared: Mapping[str, Any], cls: type[Recipe]) -> dict[str, Any]:
    """Shared settings for which a class of recipes has a field."""
    return {key: value for key, value in shared.items() if key in hints_of(cls)}


@dataclass(frozen=True)
class _Table:
    """A table of a TOML file, or its top level, whose name is empty.

    number: of the tables with this name. values: by key, as TOML has them. step: the action, if the values are the
    settings of a further step that the table names; messages are about the table's key of this name.
    """

    path: Path
    lines: LineNumbers
    name: str
    number: int
    values: Mapping[str, Any]
    step: str = ""

    def line(self, key: str = "") -> int | None:
        """The line of a key, or of the header."""
        return self.lines.of(self.name, self.step or key, self.number)

    def fail(self, message: str, key: str = "") -> NoReturn:
        """Raise a PrunusError that names the file and the line of a key, or of the header."""
        fail_at(self.path, self.line(key), message)

    def located(self, key: str = "", after: str = "") -> AbstractContextManager[None]:
        """Within the context, a PrunusError gets the line of a key, the step's name before it and words after it."""
        return located_at(self.path, self.line(key), f"{self.step}: " if self.step else "", after)

    def section(self, name: str) -> "_Table":
        """The table [name] of the top level, without values if there is none. Its keys are checked."""
        values = self.values.get(name, {})
        if not isinstance(values, dict):
            self.fail(f"write [{name}] with single brackets, once", name)
        table = replace(self, name=name, values=values)
        table.check_keys(KEYS[f"[{name}]"])
        return table

    def tables(self, kind: str) -> Iterator["_Table"]:
        """Yield the tables of the top level of a kind that may occur several times, such as [[prune]]."""
        tables = self.values.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.fail(f"write [[{kind}]] with double brackets, since there may be several", kind)
        for number, values in enumerate(tables):
            table = replace(self, name=kind, number=number, values=values)
            table.check_keys(KEYS[f"[[{kind}]]"])
            yield table

    def check_keys(self, known: Sequence[str]) -> None:
        """Raise PrunusError for a key that is not known."""
        for key in self.values:
            if key not in known:
                title = next((title for title in KEYS if title.strip("[]") == self.name), "the top of the file")
                elsewhere = {other: keys for other, keys in KEYS.items() if other != title}
                where = f" in {title}" if self.name else ""
                self.fail(f"unknown key '{key}'{where}; {suggestion(key, known, elsewhere)}", key)

    def check(self, key: str, value: Any, hint: Any) -> None:
        """Raise PrunusError for a value of a key that does not have this type."""
        if wrong := misfit(key, value, hint):
            self.fail(wrong, key)

    def check_types(self, hints: Mapping[str, Any]) -> None:
        """Raise PrunusError for a value that does not have the type of its key; keys without hint may have any."""
        for key, value in self.values.items():
            if key in hints:
                self.check(key, value, hints[key])

    def further(self, action: str, value: Any) -> Iterator["_Table | None"]:
        """Yield the settings of a further step for each of its values in the grid; None stands for no such step.

        action: of the step, which is its key in this table or in the entry of a chain. value: true, false, a table of
        settings, or a list of these.
        """
        choices, hints = value if isinstance(value, list) else [value], hints_of(RECIPES[action])
        if not choices:
            self.fail(f"'{action}' is an empty list; leave it out or give a value", action)
        for choice in choices:
            if not isinstance(choice, bool | dict):
                self.fail(f"'{action}' must be true, false or a table, not {choice!r}", action)
            own = choice if isinstance(choice, dict) else {}
            if unknown := [key for key in own if key not in hints]:
                self.fail(f"unknown key '{unknown[0]}' of {action}; {suggestion(unknown[0], hints, {})}", action)
            yield None if choice is False else replace(self, values=own, step=action)

    def grid(self, cls: type[Made], build: Build[Made]) -> Iterator[Made]:
        """Yield build(cls, **settings) for every combination of values; a list where cls takes one value is an axis.

        Values that are refused raise a PrunusError with the line, and with the combination if there are several.
        """
        hints, axes, several = hints_of(cls), dict[str, list[Any]](), False
        for key, value in self.values.items():
            is_axis = isinstance(value, list) and get_origin(hints[key]) is not tuple
            axes[key], several = value if is_axis else [value], several or is_axis
            if not axes[key]:
                self.fail(f"'{key}' is an empty list; leave it out or give a value", key)
            if (cls, key) == (DropRecipe, "blocks"):  # which takes the numbers of `blocks = [1, 2]` as texts
                axes[key] = [str(block) if type(block) is int else block for block in axes[key]]
            for choice in axes[key]:
                self.check(key, choice, hints[key])
        for combination in product(*axes.values()):
            chosen = dict(zip(axes, combination, strict=True))
            listed = ", ".join(f"{key} {value}" for key, value in chosen.items() if key not in SHARED)
            where = f" (in the combination {listed})" if several else ""
            with self.located(after=where):
                made = build(cls, **chosen)
            yield made


class _Reader:
    """Turns a TOML file into a Study, or into the entries of a ladder. what: the file is, for messages.

    shared: settings of its [calibration]. of_ladder: the result of named_servings for a ladder, whose rungs may end in
    a serving; None for a study.
    """

    def __init__(self, path: Path, what: str) -> None:
        try:
            self.text = path.read_text("utf-8")
            self.top = _Table(path, LineNumbers(self.text), "", 0, parse_toml(self.text))
        except OSError as error:
            raise unreadable(f"the {what} '{path}'", error) from error
        except ValueError as error:  # not TOML, or not UTF-8
            raise PrunusError(f"{path} is not TOML: {error}") from error
        self.path = path
        self.shared: Mapping[str, Any] = {}
        self.of_ladder: Mapping[str, NamedServing] | None = None

    def study(self) -> Study:
        top = self.top
        top.check_keys(TOP)
        report = top.section("report")
        report.check_types(REPORT)
        self.shared = self.calibration()
        top.check_types(OF_STUDY)
        margins = {key: report.values.get(key, getattr(Study, key)) for key in MARGINS}
        for key, value in margins.items():
            with report.located(key):
                margins[key] = Margin.of(value, key).to_json()
        entries, models, table = self.entries(), tuple(self.models()), self.evaluation()
        plans = tuple(table.grid(EvalPlan, self.plan))
        own = {key: top.values[key] for key in OF_STUDY if key in top.values}
        return Study(
            **{"name": self.path.stem, **own, **report.values, **margins},
            path=self.path,
            models=models,
            plans=plans,
            servings=tuple(self.servings(table, plans, entries)),
            entries=tuple(entries),
            text=self.text,
            eval_line=table.line(),
            models_line=top.line("models"),
            finds=tuple(self.finds(margins, plans[0].engine)),
        )

    def calibration(self) -> Mapping[str, Any]:
        """The settings of [calibration]."""
        table = self.top.section("calibration")
        for key, value in table.values.items():
            if isinstance(value, list):
                table.fail(f"'{key}' takes one value here; a list of values belongs in [[prune]]", key)
        table.check_types(SHARED)
        return table.values

    def models(self) -> Iterator[str]:
        models = self.top.values.get("models")
        if isinstance(models, str):
            models = [models]
        if not models:
            self.top.fail('name at least one model, such as models = ["tiny"]', "models")
        self.top.check("models", models, tuple[str, ...])
        if len(set(models)) < len(models):
            self.top.fail(f"model '{max(models, key=models.count)}' is listed twice", "models")
        for model in models:
            yield model if model == "tiny" else self.path_or_text(model)

    def evaluation(self) -> _Table:
        """The table [eval]."""
        if "eval" not in self.top.values:
            self.top.fail('there is no [eval] table; it needs at least tasks = ["tiny"]', "eval")
        table = self.top.section("eval")
        if "tasks" not in table.values:
            table.fail("name at least one task: `prunus tasks` lists them")
        if not isinstance(budgets := table.values.get("budgets"), list):
            return table
        budgets = [OFF if budget == str(OFF) else budget for budget in budgets]
        return replace(table, values={**table.values, "budgets": budgets})

    def plan(self, cls: type[EvalPlan], **values: Any) -> EvalPlan:
        """The plan with these settings, whose files are relative to the study's folder."""
        values["tasks"] = tuple(self.path_or_text(t) if t.endswith(".jsonl") else t for t in values["tasks"])
        if values.get("profile", "").endswith(".toml"):
            values["profile"] = self.path_or_text(values["profile"])
        return cls(**values)

    def servings(
        self, evaluation: _Table, plans: Sequence[EvalPlan], entries: Sequence[VariantSteps]
    ) -> Iterator[ServingTable]:
        """Yield the servings of the cells: one for each [[serving]] table or, without any, the options of [engine]."""
        table, backend = self.top.section("engine"), plans[0].backend
        table.check_types(hints_of(EngineOptions))
        if any(plan.backend != backend for plan in plans):
            evaluation.fail("a study compares its cells, so they need the same engine; make two files", "engine")
        if not BACKENDS[backend].gguf and any(kind_of(step).changes_form for entry in entries for step in entry.steps):
            evaluation.fail("only llama.cpp reads GGUF files: take the engine llama.cpp", "engine")
        if "tokenizer" in table.values:
            message = "'tokenizer' is for `prunus eval`: a study reads its models' folders, which have theirs"
            table.fail(message, "tokenizer")
        where = table if table.values else evaluation
        with where.located():
            shared = EngineOptions(**table.values)
        named, made = self.named_servings(), list[ServingTable]()
        for serving in named.values():
            with located_at(self.path, serving.line, f"{serving.name}: "):
                made.append(serving.on(shared))
        for serving in made or [ServingTable("", shared)]:
            with evaluation.located("engine"):
                serving = replace(serving, engine=options_for(plans[0].engine, serving.engine))
            if "serve" in BACKENDS[backend].settings and entries and serving.engine.serve is None:
                message = f"{backend} evaluates the dense model only, since a server's weights cannot be swapped; with"
                message += (
                    ' serve = "vllm serve {model} --port {port}" in [engine] a server is started for every variant'
                )
                evaluation.fail(message, "engine")
            with located_at(self.path, serving.line, f"{serving.name}: ") if named else where.located():
                serving.engine.check(backend)
            yield serving
        for entry in entries:
            for name in entry.servings or ():
                self.check_named(name, named, entry.line)

    def named_servings(self) -> dict[str, NamedServing]:
        """The [[serving]] tables, by their names."""
        named: dict[str, NamedServing] = {}
        for table in self.top.tables(SERVING):
            table.check_types(OF_SERVING)
            with table.located("name"):
                if not table.values.get("name"):
                    raise PrunusError('a serving needs a name, such as name = "KV q4_0"')
                name = checked_name(table.values["name"])
                if name in named:
                    raise PrunusError(f"two servings are called '{name}': give one another name")
            options = {key: value for key, value in table.values.items() if key != "name"}
            named[name] = NamedServing(name, options, table.line())
        return named

    def check_named(self, name: str, named: Mapping[str, NamedServing], line: int | None) -> None:
        """Raise PrunusError where there is no serving of this name."""
        if name not in named:
            there = f"there are {', '.join(named)}" if named else "there is no [[serving]] table"
            fail_at(self.path, line, f"'{name}' is no serving: {there}")

    def entries(self) -> list[VariantSteps]:
        """The variants that all tables of steps define, in the file's order."""
        found = [
            VariantSteps(steps, table.line(), self.restricted(table), ends_in)
            for kind in (*RECIPES, CHAIN)
            for table in self.top.tables(kind)
            for ends_in in self.ends_of(table)
            for steps in (self.chain if kind == CHAIN else self.single)(table)
        ]
        return sorted(found, key=lambda entry: entry.line or 0)

    def ends_of(self, table: _Table) -> Iterator[NamedServing | None]:
        """Yield each serving that the last step of a ladder's [[chain]] names; None if it names none."""
        steps = table.values.get("steps")
        last = steps[-1] if table.name == CHAIN and isinstance(steps, list) and steps else None
        if not isinstance(last, dict) or SERVING not in last:
            yield None
            return
        if self.of_ladder is None:
            table.fail(f"a step '{SERVING}' is for ladders of `find`: here write {SERVINGS} = [...]")
        names = last[SERVING] if isinstance(last[SERVING], list) else [last[SERVING]]
        table.check(SERVING, names, tuple[str, ...])
        for name in names:
            self.check_named(name, self.of_ladder, table.line())
            yield self.of_ladder[name]

    def restricted(self, table: _Table) -> tuple[str, ...] | None:
        """The servings to which a table of steps restricts its variants; None where it does not."""
        if (names := table.values.get(SERVINGS)) is None:
            return None
        if self.of_ladder is not None:
            table.fail(f"'{SERVINGS}' is for studies: end a [[chain]] with {{ {SERVING} = NAME }}", SERVINGS)
        table.check(SERVINGS, names, tuple[str, ...])
        if not names:
            table.fail(f"'{SERVINGS}' is an empty list; leave it out or name some", SERVINGS)
        return tuple(names)

    def single(self, table: _Table) -> Iterator[tuple[Recipe, ...]]:
        """Yield the steps of each variant that a table of one kind defines, with further steps by BEFORE and AFTER.

        Further steps are calibrated as the table's own step unless they say otherwise.
        """
        cls = RECIPES[table.name]
        further = {key: table.values.get(key, False) for key in (AFTER, BEFORE) if key not in hints_of(cls)}
        own = {key: value for key, value in table.values.items() if key not in (*further, SERVINGS)}
        for recipe in replace(table, values=own).grid(cls, self.recipe):
            like = partial(self.alike, recipe)
            last, first = ([*self.choices(table, key, further.get(key, False), like)] for key in (AFTER, BEFORE))
            yield from ((*before, recipe, *after) for after, before in product(last, first))

    def chain(self, table: _Table) -> Iterator[tuple[Recipe, ...]]:
        """Steps of each variant that a [[chain]] table defines: every combination of the settings of its steps."""
        steps = table.values.get("steps")
        if not isinstance(steps, list) or not steps or not all(isinstance(s, dict) and len(s) == 1 for s in steps):
            table.fail("write steps = [{prune = {sparsity = 0.2}}, {recover = true}], one key in each")
        parts = [
            [*self.choices(table, action, value, self.recipe)]
            for step in steps
            for action, value in step.items()
            if (action, step) != (SERVING, steps[-1])  # which ends_of reads
        ]
        for combination in product(*parts):
            made = sum(combination, ())
            if not made and SERVING not in steps[-1]:
                table.fail("there is no step: leave it out, as the dense model is always evaluated")
            yield made

    def recipe(self, cls: type[Recipe], **own: Any) -> Recipe:
        """A recipe with its own settings, and with the shared settings for which it has a field."""
        return cls(**self.with_paths({**_kept(self.shared, cls), **own}))

    def alike(self, recipe: Recipe, cls: type[Recipe], **own: Any) -> Recipe:
        """A recipe with its own settings; it takes the settings of calibration that these lack from another recipe."""
        return cls.like(recipe, **self.with_paths(own))

    def choices(self, table: _Table, action: str, value: Any, build: Build[Recipe]) -> Iterator[tuple[Recipe, ...]]:
        """Yield a tuple for each choice of a further step: of its recipe, or empty for false.

        value: as of _Table.further.
        """
        if action not in RECIPES:
            table.fail(f"unknown step '{action}'; {suggestion(action, tuple(RECIPES), {})}")
        for step in table.further(action, value):
            if step is None:
                yield ()
            else:
                yield from ((recipe,) for recipe in step.grid(RECIPES[action], build))

    def finds(self, margins: Mapping[str, MarginLike], engine: str) -> Iterator[FindTable]:
        """Yield the search of each [[find]] table. margins: of [report], for tables without. engine: of the plans."""
        seen: set[str] = set()
        for table in self.top.tables("find"):
            own = table.values
            table.check_types(FIND_KEYS)
            for key in MARGINS:
                if key in own:
                    with table.located(key):
                        Margin.of(own[key], key, zero=False)
            if engine in IN_FIND and not {"ladder", "method"} & own.keys():
                why = f"depends on model and machine: `prunus find --engine {engine} --dry-run` prints one as a file"
                table.fail(f"a search in {engine} needs 'ladder' or 'method', since its usual ladder {why}")
            (recovery, *more) = table.further(AFTER, own.get(AFTER, False))
            if more:
                table.fail(f"'{AFTER}' takes one value here, since a ladder has one recovery", AFTER)
            ladder, method = own.get("ladder", DEFAULT_LADDER), own.get("method")
            ladder = ladder if isinstance(ladder, str) else ",".join(map(str, ladder))
            in_file = ladder.endswith(".toml")
            methods = (method,) if isinstance(method, str) else method and tuple(method)
            name = own.get("name", Path(ladder).stem if in_file else "-".join(methods or ("wanda",)))
            if not all(character.isalnum() or character in "-_+" for character in name) or not name:
                table.fail(f"name '{name}' is that of a folder: use letters, digits, -, _ and +", "name")
            if name in seen:
                table.fail(f"two [[find]] tables are called {name}: give one another name")
            seen.add(name)
            with table.located():
                rules = FindRules(**{**margins, **{key: own[key] for key in hints_of(FindRules) if key in own}})
            yield FindTable(
                self.path_or_text(ladder) if in_file else ladder,
                methods,
                self.with_paths({key: value for key, value in own.items() if key in OF_RECIPE}),
                self.with_paths(self.shared),
                None if recovery is None else self.with_paths(recovery.values),
                rules,
                name,
                table.line(),
            )

    def path_or_text(self, text: str) -> str:
        """The path of a file or folder that exists relative to the study's folder; otherwise text, unchanged."""
        path = self.path.parent / typed_path(text)
        return str(path) if path.exists() else text

    def with_paths(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a recipe in which the paths of files are resolved by path_or_text."""
        settings = dict(values)
        if "calibration" in settings:
            settings["calibration"] = self.with_path(settings["calibration"])
        for name in ("scores", "like"):
            if name in settings:
                settings[name] = self.path_or_text(settings[name])
        return settings

    def with_path(self, calibration: str) -> str:
        """The name of a calibration, in which the path of a file is resolved by path_or_text."""
        if calibration.startswith("traces:"):
            return "traces:" + self.path_or_text(calibration.removeprefix("traces:"))
        return self.path_or_text(calibration) if calibration.endswith((".txt", ".jsonl")) else calibration
