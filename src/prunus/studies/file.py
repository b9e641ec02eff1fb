"""Read a study's TOML file and check every key, type and combination of values before any model is opened.

Where a recipe takes one value, a list of values makes a grid. Paths are relative to the folder of the file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin

from prunus.checkpoint.resolve import typed_path
from prunus.errors import PrunusError, unreadable
from prunus.plain_data import LineNumbers, parse_toml, suggestion
from prunus.recipes import EvalPlan, PruneRecipe, RecoverRecipe
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
Build = Callable[[type[Made], dict[str, Any]], Made]  # makes an object of a class with these settings
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
REPORT: Mapping[str, Any] = {"base": str, "margin": float | str, "stop_margin": float | str, "published": bool}
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
FIND_KEYS: Mapping[str, Any] = {
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
    [[serving]] table that a rung of a ladder names as its last step; None if it names none.
    """

    steps: tuple[Recipe, ...]
    line: int | None
    servings: tuple[str, ...] | None = None
    ends_in: Mapping[str, Any] | None = None

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

    @classmethod
    def of(cls, shared: EngineOptions, own: Mapping[str, Any], line: int | None = None) -> "ServingTable":
        """The serving that a [[serving]] table defines. own: its keys and values.

        shared: options of [engine], which hold where the table sets none. Tables such as `args` are merged with theirs.
        """
        changes = {key: value for key, value in own.items() if key != "name"}
        changes |= {key: {**getattr(shared, key), **own[key]} for key in TABLES if key in own}
        if "serve" in own:
            changes.setdefault("url", None)
        if "url" in own:
            changes = {"serve": None, SERVING: own["name"], **changes}  # what a server that runs does not tell
        return cls(own["name"], replace(shared, **changes), line)


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
        raise PrunusError(message if line is None else f"{self.path}, line {line}: {message}")

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
        super().fail(line, message if line is not None else f"{self.path}: {message}")


def read_study(path: str | Path) -> Study:
    """The study that a TOML file defines. Raises PrunusError, with the line, where the file is wrong."""
    path = Path(path)
    return _Reader(path, *_parsed(path, "study")).study()


def steps_with(steps: Steps, shared: Mapping[str, Any]) -> VariantSteps:
    """The variant with these steps, given as {action: settings}. shared: settings of every step with such fields."""
    named = ((RECIPES[action], own) for step in steps for action, own in step.items())
    kept = {cls: {key: value for key, value in shared.items() if key in hints_of(cls)} for cls in RECIPES.values()}
    return VariantSteps(tuple(cls(**kept[cls] | dict(own)) for cls, own in named), None)


def read_entries(path: str | Path, shared: Mapping[str, Any] | None = None) -> list[VariantSteps]:
    """The variants of a ladder file, in its order: tables of steps, [calibration] and [[serving]].

    shared: settings of calibration that hold where the file has no others.
    """
    path = Path(path)
    text, data = _parsed(path, "ladder")
    reader = _Reader(path, text, data)
    reader.check_keys("", 0, data, (*RECIPES, CHAIN, SERVING, "calibration"))
    reader.shared = {**(shared or {}), **reader.table("calibration", SHARED)}
    reader.of_ladder = reader.named_servings()
    entries = reader.entries()
    if not entries:
        raise PrunusError(f"{path} has no recipe: write [[prune]] or [[drop]] tables")
    return entries


def _parsed(path: Path, what: str) -> tuple[str, dict[str, Any]]:
    """The text of a TOML file and its content."""
    try:
        text = path.read_text("utf-8")
        return text, parse_toml(text)
    except OSError as error:
        raise unreadable(f"the {what} '{path}'", error) from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise PrunusError(f"{path} is not TOML: {error}") from error


class _Reader:
    """Turns the parsed TOML of a file into a Study.

    shared: settings of its [calibration]. of_ladder: the result of named_servings for a ladder, whose rungs may end in
    a serving; None for a study.
    """

    def __init__(self, path: Path, text: str, data: dict[str, Any]) -> None:
        self.path, self.text, self.data, self.lines = path, text, data, LineNumbers(text)
        self.shared: Mapping[str, Any] = {}
        self.of_ladder: Mapping[str, tuple[int, Mapping[str, Any]]] | None = None

    def study(self) -> Study:
        self.check_keys("", 0, self.data, TOP)
        report, self.shared = self.table("report", REPORT), self.table("calibration", SHARED)
        own = {key: self.data[key] for key in OF_STUDY if key in self.data}
        for key, value in own.items():
            self.check_type("", key, 0, value, OF_STUDY[key])
        margins = {key: report.get(key, getattr(Study, key)) for key in MARGINS}
        for key, value in margins.items():
            with self.located("report", key):
                margins[key] = Margin.of(value, key).to_json()
        entries = self.entries()
        models, plans = tuple(self.models()), tuple(self.plans())
        servings = tuple(self.servings(plans, entries))
        return Study(
            **{"name": self.path.stem, **own, **report, **margins},
            path=self.path,
            models=models,
            plans=plans,
            servings=servings,
            entries=tuple(entries),
            text=self.text,
            eval_line=self.lines.of("eval"),
            models_line=self.lines.of("", "models"),
            finds=tuple(self.finds(margins, plans[0].engine)),
        )

    def models(self) -> Iterator[str]:
        models = self.data.get("models")
        if isinstance(models, str):
            models = [models]
        if not models:
            self.fail("", "models", 0, 'name at least one model, such as models = ["tiny"]')
        self.check_type("", "models", 0, models, tuple[str, ...])
        if len(set(models)) < len(models):
            self.fail("", "models", 0, f"model '{max(models, key=models.count)}' is listed twice")
        for model in models:
            yield model if model == "tiny" else self.path_or_text(model)

    def plans(self) -> Iterator[EvalPlan]:
        if "eval" not in self.data:
            self.fail("", "eval", 0, 'there is no [eval] table; it needs at least tasks = ["tiny"]')
        table = self.table("eval", dict.fromkeys(hints_of(EvalPlan)))
        if "tasks" not in table:
            self.fail("eval", "", 0, "name at least one task: `prunus tasks` lists them")
        if isinstance(table.get("budgets"), list):
            table = table | {"budgets": [OFF if budget == str(OFF) else budget for budget in table["budgets"]]}
        yield from self.grid("eval", 0, table, EvalPlan, self.plan)

    def plan(self, _: type[EvalPlan], values: dict[str, Any]) -> EvalPlan:
        """The plan with these settings, whose files are relative to the study's folder."""
        values["tasks"] = tuple(self.path_or_text(t) if t.endswith(".jsonl") else t for t in values["tasks"])
        if values.get("profile", "").endswith(".toml"):
            values["profile"] = self.path_or_text(values["profile"])
        return EvalPlan(**values)

    def servings(self, plans: Sequence[EvalPlan], entries: Sequence[VariantSteps]) -> Iterator[ServingTable]:
        """Yield the servings of the cells: one for each [[serving]] table or, without any, the options of [engine]."""
        table, backend = self.table("engine", hints_of(EngineOptions)), plans[0].backend
        if any(plan.backend != backend for plan in plans):
            self.fail("eval", "engine", 0, "a study compares its cells, so they need the same engine; make two files")
        if not BACKENDS[backend].gguf and any(kind_of(step).changes_form for entry in entries for step in entry.steps):
            message = "only llama.cpp reads GGUF files: take the engine llama.cpp"
            self.fail("eval", "engine", 0, message)
        if "tokenizer" in table:
            message = "'tokenizer' is for `prunus eval`: a study reads its models' folders, which have theirs"
            self.fail("engine", "tokenizer", 0, message)
        with self.located("engine" if table else "eval"):
            shared = EngineOptions(**table)
        named, made = self.named_servings(), list[ServingTable]()
        for number, own in named.values():
            with self.located(SERVING, "", number, f"{own['name']}: "):
                made.append(ServingTable.of(shared, own, self.lines.of(SERVING, "", number)))
        for serving in made or [ServingTable("", shared)]:
            with self.located("eval", "engine"):
                serving = replace(serving, engine=options_for(plans[0].engine, serving.engine))
            if "serve" in BACKENDS[backend].settings and entries and serving.engine.serve is None:
                message = f"{backend} evaluates the dense model only, since a server's weights cannot be swapped; with"
                message += (
                    ' serve = "vllm serve {model} --port {port}" in [engine] a server is started for every variant'
                )
                self.fail("eval", "engine", 0, message)
            where = SERVING if named else "engine" if table else "eval"
            number, about = (named[serving.name][0], f"{serving.name}: ") if named else (0, "")
            with self.located(where, "", number, about):
                serving.engine.check(backend)
            yield serving
        for entry in entries:
            for name in entry.servings or ():
                self.check_named(name, named, entry.line)

    def named_servings(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """The number and the keys of each [[serving]] table, by its name."""
        named: dict[str, tuple[int, dict[str, Any]]] = {}
        for number, own in self.tables(SERVING):
            for key, value in own.items():
                self.check_type(SERVING, key, number, value, OF_SERVING[key])
            with self.located(SERVING, "name", number):
                if not own.get("name"):
                    raise PrunusError('a serving needs a name, such as name = "KV q4_0"')
                name = checked_name(own["name"])
                if name in named:
                    raise PrunusError(f"two servings are called '{name}': give one another name")
            named[name] = number, {**own, "name": name}
        return named

    def check_named(self, name: str, named: Mapping[str, Any], line: int | None) -> None:
        """Raise PrunusError where there is no serving of this name."""
        if name not in named:
            there = f"there are {', '.join(named)}" if named else "there is no [[serving]] table"
            raise PrunusError(f"{self.path}{'' if line is None else f', line {line}'}: '{name}' is no serving: {there}")

    def tables(self, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number, table) for the tables of a kind that may occur several times, such as [[prune]]."""
        tables = self.data.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.fail("", kind, 0, f"write [[{kind}]] with double brackets, since there may be several")
        for number, table in enumerate(tables):
            self.check_keys(kind, number, table, KEYS[f"[[{kind}]]"])
            yield number, table

    def entries(self) -> list[VariantSteps]:
        """The variants that all tables of steps define, in the file's order."""
        found = [
            VariantSteps(steps, self.lines.of(kind, "", number), self.restricted(kind, number, table), ends_in)
            for kind in (*RECIPES, CHAIN)
            for number, table in self.tables(kind)
            for ends_in in self.ends_of(kind, number, table)
            for steps in (self.chain if kind == CHAIN else self.single)(kind, number, table)
        ]
        return sorted(found, key=lambda entry: entry.line or 0)

    def ends_of(self, kind: str, number: int, table: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | None]:
        """Yield each [[serving]] table that the last step of a ladder's [[chain]] names; None if it names none."""
        steps = table.get("steps")
        last = steps[-1] if kind == CHAIN and isinstance(steps, list) and steps else None
        if not isinstance(last, dict) or SERVING not in last:
            yield None
            return
        if self.of_ladder is None:
            self.fail(kind, "", number, f"a step '{SERVING}' is for ladders of `find`: here write {SERVINGS} = [...]")
        names = last[SERVING] if isinstance(last[SERVING], list) else [last[SERVING]]
        self.check_type(kind, "", number, names, tuple[str, ...], SERVING)
        for name in names:
            self.check_named(name, self.of_ladder, self.lines.of(kind, "", number))
            yield self.of_ladder[name][1]

    def restricted(self, kind: str, number: int, table: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The servings to which a table of steps restricts its variants; None where it does not."""
        if (names := table.get(SERVINGS)) is None:
            return None
        if self.of_ladder is not None:
            self.fail(
                kind, SERVINGS, number, f"'{SERVINGS}' is for studies: end a [[chain]] with {{ {SERVING} = NAME }}"
            )
        self.check_type(kind, SERVINGS, number, names, tuple[str, ...])
        if not names:
            self.fail(kind, SERVINGS, number, f"'{SERVINGS}' is an empty list; leave it out or name some")
        return tuple(names)

    def single(self, kind: str, number: int, table: Mapping[str, Any]) -> Iterator[tuple[Recipe, ...]]:
        """Yield the steps of each variant that a table of one kind defines, with further steps by BEFORE and AFTER.

        Further steps are calibrated as the table's own step unless they say otherwise.
        """
        further = {key: table[key] for key in (AFTER, BEFORE) if key in table and key not in hints_of(RECIPES[kind])}
        left = {key: value for key, value in table.items() if key not in further and key != SERVINGS}
        own = _with_blocks_as_text(kind, left)
        for recipe in self.grid(kind, number, own, RECIPES[kind], self.recipe):
            like = partial(self.alike, recipe)
            last, first = ([*self.choices(kind, number, key, further.get(key, False), like)] for key in (AFTER, BEFORE))
            yield from ((*before, recipe, *after) for after, before in product(last, first))

    def chain(self, kind: str, number: int, table: Mapping[str, Any]) -> Iterator[tuple[Recipe, ...]]:
        """Steps of each variant that a [[chain]] table defines: every combination of the settings of its steps."""
        steps = table.get("steps")
        if not isinstance(steps, list) or not steps or not all(isinstance(s, dict) and len(s) == 1 for s in steps):
            message = "write steps = [{prune = {sparsity = 0.2}}, {recover = true}], one key in each"
            self.fail(kind, "", number, message)
        parts = [
            [*self.choices(kind, number, action, value, self.recipe)]
            for step in steps
            for action, value in step.items()
            if (action, step) != (SERVING, steps[-1])  # which ends_of reads
        ]
        for combination in product(*parts):
            made = sum(combination, ())
            if not made and SERVING not in steps[-1]:
                self.fail(kind, "", number, "there is no step: leave it out, as the dense model is always evaluated")
            yield made

    def recipe(self, cls: type[Recipe], own: Mapping[str, Any]) -> Recipe:
        """A recipe with its own settings, and with the shared settings for which it has a field."""
        kept = {key: value for key, value in self.shared.items() if key in hints_of(cls)}
        return cls(**self.with_paths({**kept, **own}))

    def alike(self, recipe: Recipe, cls: type[Recipe], own: Mapping[str, Any]) -> Recipe:
        """A recipe with its own settings; it takes the settings of calibration that these lack from another recipe."""
        return cls.like(recipe, **self.with_paths(own))

    def choices(
        self, kind: str, number: int, action: str, value: Any, build: Build[Recipe]
    ) -> Iterator[tuple[Recipe, ...]]:
        """Yield a tuple for each choice of a further step: of its recipe, or empty for false. value: as for options."""
        if action not in RECIPES:
            self.fail(kind, "", number, f"unknown step '{action}'; {suggestion(action, tuple(RECIPES), {})}")
        for given in self.options(kind, number, action, value):
            if given is None:
                yield ()
            else:
                own = _with_blocks_as_text(action, given)
                yield from ((recipe,) for recipe in self.grid(kind, number, own, RECIPES[action], build, action))

    def finds(self, margins: Mapping[str, MarginLike], engine: str) -> Iterator[FindTable]:
        """Yield the search of each [[find]] table. margins: of [report], for tables without. engine: of the plans."""
        seen: set[str] = set()
        for number, table in self.tables("find"):
            for key, value in table.items():
                if key != AFTER:
                    self.check_type("find", key, number, value, FIND_KEYS[key])
                if key in MARGINS:
                    with self.located("find", key, number):
                        Margin.of(value, key, zero=False)
            if engine in IN_FIND and not {"ladder", "method"} & table.keys():
                why = f"depends on model and machine: `prunus find --engine {engine} --dry-run` prints one as a file"
                self.fail(
                    "find", "", number, f"a search in {engine} needs 'ladder' or 'method', since its usual ladder {why}"
                )
            (recovery, *more) = self.options("find", number, AFTER, table.get(AFTER, False))
            if more:
                self.fail("find", AFTER, number, f"'{AFTER}' takes one value here, since a ladder has one recovery")
            ladder, method = table.get("ladder", DEFAULT_LADDER), table.get("method")
            ladder = ladder if isinstance(ladder, str) else ",".join(map(str, ladder))
            in_file = ladder.endswith(".toml")
            methods = (method,) if isinstance(method, str) else method and tuple(method)
            name = table.get("name", Path(ladder).stem if in_file else "-".join(methods or ("wanda",)))
            if not all(character.isalnum() or character in "-_+" for character in name) or not name:
                self.fail("find", "name", number, f"name '{name}' is that of a folder: use letters, digits, -, _ and +")
            if name in seen:
                self.fail("find", "", number, f"two [[find]] tables are called {name}: give one another name")
            seen.add(name)
            with self.located("find", "", number):
                rules = FindRules(**{**margins, **{key: table[key] for key in hints_of(FindRules) if key in table}})
            yield FindTable(
                self.path_or_text(ladder) if in_file else ladder,
                methods,
                self.with_paths({key: value for key, value in table.items() if key in OF_RECIPE}),
                self.with_paths(self.shared),
                None if recovery is None else self.with_paths(recovery),
                rules,
                name,
                self.lines.of("find", "", number),
            )

    def options(self, kind: str, number: int, name: str, value: Any) -> list[Mapping[str, Any] | None]:
        """The settings of a further step for each of its values in the grid; None stands for no such step.

        name: the step's action, which is its key in the table or in the entry of a chain. value: true, false, a table
        of settings, or a list of these.
        """
        choices, hints = value if isinstance(value, list) else [value], hints_of(RECIPES[name])
        if not choices:
            self.fail(kind, name, number, f"'{name}' is an empty list; leave it out or give a value")
        steps: list[Mapping[str, Any] | None] = []
        for choice in choices:
            if not isinstance(choice, bool | dict):
                self.fail(kind, name, number, f"'{name}' must be true, false or a table, not {choice!r}")
            own = choice if isinstance(choice, dict) else {}
            if unknown := [key for key in own if key not in hints]:
                message = f"unknown key '{unknown[0]}' of {name}; {suggestion(unknown[0], hints, {})}"
                self.fail(kind, name, number, message)
            steps.append(None if choice is False else own)
        return steps

    def grid(
        self, table: str, number: int, values: Mapping[str, Any], cls: type[Made], build: Build[Made], step: str = ""
    ) -> Iterator[Made]:
        """Yield build(cls, settings) for every combination of values; a list where cls takes one value is an axis.

        step: the action if the values are of a further step. Values that are refused raise a PrunusError with the line,
        and with the combination if there are several.
        """
        hints, axes, several = hints_of(cls), dict[str, list[Any]](), False
        for key, value in values.items():
            is_axis = isinstance(value, list) and get_origin(hints[key]) is not tuple
            axes[key], several = value if is_axis else [value], several or is_axis
            if not axes[key]:
                self.fail(table, step or key, number, f"'{key}' is an empty list; leave it out or give a value")
            for choice in axes[key]:
                self.check_type(table, step or key, number, choice, hints[key], key)
        for combination in product(*axes.values()):
            chosen = dict(zip(axes, combination, strict=True))
            listed = ", ".join(f"{key} {value}" for key, value in chosen.items() if key not in SHARED)
            where = f" (in the combination {listed})" if several else ""
            with self.located(table, step, number, f"{step}: " if step else "", where):
                made = build(cls, chosen)
            yield made

    def table(self, name: str, hints: Mapping[str, Any]) -> dict[str, Any]:
        """The table of this name, whose values have the types of these hints, or any where the hint is None."""
        table = self.data.get(name, {})
        if not isinstance(table, dict):
            self.fail("", name, 0, f"write [{name}] with single brackets, once")
        self.check_keys(name, 0, table, [*hints])
        for key, value in table.items():
            if name == "calibration" and isinstance(value, list):
                self.fail(name, key, 0, f"'{key}' takes one value here; a list of values belongs in [[prune]]")
            if hints[key] is not None:
                self.check_type(name, key, 0, value, hints[key])
        return table

    def check_keys(self, table: str, number: int, values: dict[str, object], known: Sequence[str]) -> None:
        """Raise PrunusError for a key that is not known."""
        for key in values:
            if key not in known:
                title = next((key for key in KEYS if key.strip("[]") == table), "the top of the file")
                elsewhere = {other: keys for other, keys in KEYS.items() if other != title}
                where = f" in {title}" if table else ""
                self.fail(table, key, number, f"unknown key '{key}'{where}; {suggestion(key, known, elsewhere)}")

    def check_type(self, table: str, key: str, number: int, value: Any, hint: Any, name: str | None = None) -> None:
        if wrong := misfit(name or key, value, hint):
            self.fail(table, key, number, wrong)

    @contextmanager
    def located(self, table: str, key: str = "", number: int = 0, before: str = "", after: str = "") -> Iterator[None]:
        """Within the context, a PrunusError gets the line of a key, and these words around it."""
        try:
            yield
        except PrunusError as error:
            self.fail(table, key, number, f"{before}{error}{after}")

    def fail(self, table: str, key: str, number: int, message: str) -> NoReturn:
        line = self.lines.of(table, key, number)
        raise PrunusError(f"{self.path}{'' if line is None else f', line {line}'}: {message}")

    def path_or_text(self, text: str) -> str:
        """The path of a file or folder that exists relative to the study's folder; otherwise text, unchanged."""
        path = self.path.parent / typed_path(text)
        return str(path) if path.exists() else text

    def with_paths(self, values: Mapping[str, Any]) -> dict[str, object]:
        """Settings of a recipe in which the paths of files are resolved by path_or_text."""
        settings = dict(values)
        if "calibration" in settings:
            settings["calibration"] = self.calibration(settings["calibration"])
        for name in ("scores", "like"):
            if name in settings:
                settings[name] = self.path_or_text(settings[name])
        return settings

    def calibration(self, text: str) -> str:
        """The name of a calibration, in which the path of a file is resolved by path_or_text."""
        if text.startswith("traces:"):
            return "traces:" + self.path_or_text(text.removeprefix("traces:"))
        return self.path_or_text(text) if text.endswith((".txt", ".jsonl")) else text


def _with_blocks_as_text(kind: str, table: Mapping[str, Any]) -> dict[str, object]:
    """The table with the numbers of `blocks = [1, 2]` as strings, which DropRecipe takes."""
    if kind != "drop" or "blocks" not in table:
        return dict(table)
    value = table["blocks"]
    texts = [str(block) if type(block) is int else block for block in (value if isinstance(value, list) else [value])]
    return {**table, "blocks": texts if isinstance(value, list) else texts[0]}
