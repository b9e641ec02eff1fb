"""Read a study's TOML file and check every key, type and combination of values before any model is opened.

Where a recipe takes one value, a list of values makes a grid. Paths are relative to the folder of the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, NoReturn, get_origin

from prunus.budgets import OFF
from prunus.engines import EngineOptions
from prunus.errors import PrunusError
from prunus.margins import Margin, MarginLike
from prunus.plain_data import Lines, parse_toml, suggestion
from prunus.recipe_base import Recipe, without_removed
from prunus.recipes import EvalPlan, ExpertsRecipe, PruneRecipe, RecoverRecipe
from prunus.settings import hints_of, misfit
from prunus.step import STEPS, kind_of, settled, step_kind, steps_name

RECIPES: Mapping[str, type[Recipe]] = {action: step_kind(action).recipe for action in STEPS}
# Keys of [calibration]: defaults of every step.
SHARED = ("calibration", "samples", "seqlen", "calibration_tokens", "seed")
# (table, key) of options that no longer exist: ignored at the value that they had by default, and what to do else.
DELETED: Mapping[tuple[str, str], tuple[Any, str]] = {
    ("", "measure_seconds"): (False, "benchmarks/latency.py measures the time per token"),
    ("find", "as_given"): (False, "order the ladder from gentle to harsh"),
    ("find", "anyway"): (False, "take more problems or a larger margin"),
}
CHAIN = "chain"  # the tables of several steps, each of which is {action = settings}
AFTER = "recover"  # key of the tables of single steps, for one more step after it: true, false or a table of settings
BEFORE = "experts"  # key of [[prune]], for one more step before it
TOP = ("name", "models", "keep_checkpoints", "eval", "engine", "calibration", *RECIPES, CHAIN, "find", "report")
REPORT = ("base", "margin", "stop_margin", "published")
ENGINE = tuple(field.name for field in fields(EngineOptions))
DEFAULT_LADDER = "0.1:0.7:0.05"
# Fields of PruneRecipe that a [[find]] table may set for every rung of its ladder; these three follow from method and
# ladder.
OF_LADDER = ("method", "sparsity", "pattern")
OF_RECIPE = {name: hint for name, hint in hints_of(PruneRecipe).items() if name not in OF_LADDER}
# The keys of a [[find]] table but `recover`, and their types.
FIND_KEYS: Mapping[str, Any] = {
    "name": str,
    "method": str | tuple[str, ...],
    "ladder": str | tuple[float, ...],
    "margin": float | str,
    "stop_margin": float | str,
    "alpha": float,
    "max_tokens": int,
    "look": int,
    "smallest": str,
    **OF_RECIPE,
}
# Name of each table in messages, and its valid keys.
_TABLES = {
    "": "the top of the file",
    "eval": "[eval]",
    "report": "[report]",
    "engine": "[engine]",
    "calibration": "[calibration]",
}
_TABLES |= {kind: f"[[{kind}]]" for kind in (*RECIPES, CHAIN, "find")}
_KEYS: dict[str, Sequence[str]] = {"[eval]": [field.name for field in fields(EvalPlan)], "[calibration]": SHARED}
_KEYS |= {f"{AFTER} = {{...}}": [field.name for field in fields(RecoverRecipe)]}
_KEYS |= {f"[[{kind}]]": [*{**hints_of(cls), AFTER: None}] for kind, cls in RECIPES.items()}
_KEYS["[[prune]]"] = [*_KEYS["[[prune]]"], BEFORE]
_KEYS |= {"[report]": REPORT, "[engine]": ENGINE, "the top of the file": TOP, "[[chain]]": ["steps"]}
_KEYS |= {"[[find]]": [*FIND_KEYS, AFTER]}


@dataclass(frozen=True)
class Entry:
    """The steps of one variant, in their order. line: of the table that defines them."""

    steps: tuple[Recipe, ...]
    line: int | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", settled(self.steps))


@dataclass(frozen=True)
class FindTable:
    """One [[find]] table: a search by `prunus find` for the most compressed version of each model, under each plan.

    name: of the folder of its results. line: of the table. settings: fields of every PruneRecipe; shared: those of
    [calibration], which also hold for a ladder's file. The others are the arguments of `prunus.find`.
    """

    name: str
    line: int | None
    ladder: str
    methods: tuple[str, ...] | None
    settings: Mapping[str, Any]
    shared: Mapping[str, Any]
    recovery: Mapping[str, Any] | None
    margin: MarginLike
    stop_margin: MarginLike
    alpha: float = 0.05
    max_tokens: int | None = None
    look: int | None = None
    smallest: str | None = None


@dataclass(frozen=True)
class Study:
    """The checked content of a study's file; of a search by `find`, its model, plan and rungs, whose text is empty.

    path: of a search, its ladder's file. plans: all of one backend. base: name of the variant that the others are
    compared with. margin, stop_margin: largest tolerable loss of accuracy, and of chains that end by themselves, as
    MarginLike. text: the file's text. eval_line, models_line: lines of [eval] and of `models`, None where they cannot
    be located.
    """

    path: Path
    name: str
    models: tuple[str, ...]
    plans: tuple[EvalPlan, ...]
    engine: EngineOptions
    entries: tuple[Entry, ...]
    base: str = "dense"
    margin: MarginLike = 0.02
    stop_margin: MarginLike = 0.05
    published: bool = False
    keep_checkpoints: bool = False
    text: str = ""
    eval_line: int | None = None
    models_line: int | None = None
    finds: tuple[FindTable, ...] = ()

    @property
    def backend(self) -> str:
        """The backend of all plans."""
        return self.plans[0].backend

    def fail(self, line: int | None, message: str) -> NoReturn:
        """Raise a PrunusError that names the file and the line; for a search, only where there is a line."""
        where = f"{self.path}, line {line}: " if line is not None else f"{self.path}: " if self.text else ""
        raise PrunusError(f"{where}{message}")


def read_study(path: str | Path) -> Study:
    """The study that a TOML file defines. Raises PrunusError, with the line, where the file is wrong."""
    path = Path(path)
    return _Reader(path, *_parsed(path, "study")).study()


def read_entries(path: str | Path, shared: Mapping[str, Any] | None = None, text: str | None = None) -> list[Entry]:
    """The entries of a TOML file that has only tables of steps and [calibration], in the file's order.

    shared: settings of calibration that hold where the file has no others. text: of the file, if it is not there.
    """
    path = Path(path)
    text, data = _parsed(path, "ladder") if text is None else (text, parse_toml(text))
    reader = _Reader(path, text, data)
    reader.check_keys("", 0, data, (*RECIPES, CHAIN, "calibration"))
    entries = reader.entries({**(shared or {}), **reader.shared()})
    reader.check_twice(entries)
    if not entries:
        raise PrunusError(f"{path} has no recipe: write [[prune]] or [[drop]] tables")
    return sorted(entries, key=lambda entry: entry.line or 0)


def _parsed(path: Path, what: str) -> tuple[str, dict[str, Any]]:
    """The text of a TOML file and its content."""
    try:
        text = path.read_text("utf-8")
        return text, parse_toml(text)
    except OSError as error:
        raise PrunusError(f"the {what} '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise PrunusError(f"{path} is not TOML: {error}") from error


class _Reader:
    """Turns the parsed TOML of a file into a Study."""

    def __init__(self, path: Path, text: str, data: dict[str, Any]) -> None:
        self.path, self.text, self.data, self.lines = path, text, data, Lines(text)

    def study(self) -> Study:
        self.check_keys("", 0, self.data, TOP)
        report, shared = self.table("report", REPORT), self.shared()
        self.check_type("", "keep_checkpoints", 0, self.data.get("keep_checkpoints", False), bool)
        self.check_type("", "name", 0, self.data.get("name", ""), str)
        self.check_type("report", "base", 0, report.get("base", ""), str)
        self.check_type("report", "published", 0, report.get("published", False), bool)
        margins = {key: report.get(key, default) for key, default in (("margin", 0.02), ("stop_margin", 0.05))}
        for key, margin in margins.items():
            self.check_type("report", key, 0, margin, float | str)
            try:
                margins[key] = Margin.of(margin, key).to_json()
            except PrunusError as error:
                self.fail("report", key, 0, str(error))
        entries = self.entries(shared)
        self.check_twice(entries)
        models, plans = tuple(self.models()), tuple(self.plans())
        return Study(
            path=self.path,
            name=self.data.get("name", self.path.stem),
            models=models,
            plans=plans,
            engine=self.engine(plans, entries),
            entries=tuple(entries),
            base=report.get("base", "dense"),
            margin=margins["margin"],
            stop_margin=margins["stop_margin"],
            published=report.get("published", False),
            keep_checkpoints=self.data.get("keep_checkpoints", False),
            text=self.text,
            eval_line=self.lines.of("eval"),
            models_line=self.lines.of("", "models"),
            finds=tuple(self.finds(shared, margins)),
        )

    def shared(self) -> Mapping[str, Any]:
        """The settings of [calibration]."""
        shared = self.table("calibration", SHARED)
        for key, value in shared.items():
            if isinstance(value, list):
                self.fail("calibration", key, 0, f"'{key}' takes one value here; a list of values belongs in [[prune]]")
        return shared

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
        table = self.table("eval", [field.name for field in fields(EvalPlan)])
        if "tasks" not in table:
            self.fail("eval", "", 0, "name at least one task: `prunus tasks` lists them")
        if isinstance(table.get("budgets"), list):
            table = table | {"budgets": [OFF if one == str(OFF) else one for one in table["budgets"]]}
        for values in self.grid("eval", 0, table, EvalPlan):
            values["tasks"] = tuple(self.path_or_text(t) if t.endswith(".jsonl") else t for t in values["tasks"])
            if values.get("profile", "").endswith(".toml"):
                values["profile"] = self.path_or_text(values["profile"])
            yield self.make("eval", 0, EvalPlan, values)

    def engine(self, plans: Sequence[EvalPlan], entries: Sequence[Entry]) -> EngineOptions:
        """Options by which the backend, which all plans share, is started or reached."""
        table, backend, hints = self.table("engine", ENGINE), plans[0].backend, hints_of(EngineOptions)
        if any(plan.backend != backend for plan in plans):
            self.fail("eval", "backend", 0, "a study compares its cells, so they need the same backend; make two files")
        if backend == "openai" and entries and "serve" not in table:
            message = "openai evaluates the dense model only, since a server's weights cannot be swapped; with"
            message += ' serve = "vllm serve {model} --port {port}" in [engine] a server is started for every variant'
            self.fail("eval", "backend", 0, message)
        if backend != "openai" and any(kind_of(one).changes_form for entry in entries for one in entry.steps):
            message = "only llama.cpp reads GGUF files: take the backend openai, with serve in [engine]"
            self.fail("eval", "backend", 0, message)
        for key, value in table.items():
            self.check_type("engine", key, 0, value, hints[key])
        if "tokenizer" in table:
            message = "'tokenizer' is for `prunus eval`: a study reads its models' folders, which have theirs"
            self.fail("engine", "tokenizer", 0, message)
        try:
            options = EngineOptions(**table)
            options.check(backend)
        except PrunusError as error:
            self.fail("engine" if table else "eval", "", 0, str(error))
        return options

    def tables(self, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """The tables of a kind that there may be several of, with their numbers."""
        tables = self.data.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.fail("", kind, 0, f"write [[{kind}]] with double brackets, since there may be several")
        for number, table in enumerate(tables):
            removed = RECIPES[kind].REMOVED if kind in RECIPES else PruneRecipe.REMOVED
            kept = self.without_removed(kind, number, table, removed)
            self.check_keys(kind, number, kept, _KEYS[_TABLES[kind]])
            yield number, kept

    def entries(self, shared: Mapping[str, Any]) -> list[Entry]:
        """What all tables of steps define. shared: of [calibration]."""
        single = (entry for kind in RECIPES for entry in self.single_steps(kind, shared))
        return [*single, *self.chains(shared)]

    def single_steps(self, kind: str, shared: Mapping[str, Any]) -> Iterator[Entry]:
        cls = RECIPES[kind]
        for number, table in self.tables(kind):
            further = [key for key in (AFTER, BEFORE) if key not in hints_of(cls)]
            after, before = (
                self.settings(kind, number, key, key in further and table.get(key, False), RECIPES[key])
                for key in (AFTER, BEFORE)
            )
            table = {key: value for key, value in table.items() if key not in further}
            shared_here = {key: value for key, value in shared.items() if key in hints_of(cls)}
            for values in self.grid(kind, number, shared_here | _with_blocks_as_text(kind, table), cls):
                recipe = self.make(kind, number, cls, self.with_paths(values))
                for last, first in product(after, before):
                    steps = (
                        *self.further(kind, number, BEFORE, recipe, first, ExpertsRecipe),
                        recipe,
                        *self.further(kind, number, AFTER, recipe, last, RecoverRecipe),
                    )
                    yield Entry(steps, self.lines.of(kind, "", number))

    def chains(self, shared: Mapping[str, Any]) -> Iterator[Entry]:
        """What [[chain]] tables define: every combination of the settings of their steps."""
        for number, table in self.tables(CHAIN):
            steps = table.get("steps")
            if not isinstance(steps, list) or not steps or not all(isinstance(s, dict) and len(s) == 1 for s in steps):
                self.fail(
                    CHAIN, "", number, "write steps = [{prune = {sparsity = 0.2}}, {recover = true}], one key in each"
                )
            choices = [
                list(self.choices(number, action, value, shared)) for step in steps for action, value in step.items()
            ]
            for combination in product(*choices):
                yield Entry(tuple(one for part in combination for one in part), self.lines.of(CHAIN, "", number))

    def choices(self, number: int, action: str, value: Any, shared: Mapping[str, Any]) -> Iterator[tuple[Recipe, ...]]:
        """What a step of a chain may be: one recipe, or none for false."""
        if action not in RECIPES:
            self.fail(CHAIN, "", number, f"unknown step '{action}'; {suggestion(action, tuple(RECIPES), {})}")
        cls = RECIPES[action]
        for given in value if isinstance(value, list) else [value]:
            if given is False:
                yield ()
                continue
            if given is not True and not isinstance(given, dict):
                self.fail(CHAIN, "", number, f"'{action}' must be true, false or a table, not {given!r}")
            own = {} if given is True else _with_blocks_as_text(action, given)
            hints = hints_of(cls)
            for key in own:
                if key not in hints:
                    self.fail(CHAIN, "", number, f"unknown key '{key}' of {action}; {suggestion(key, hints, {})}")
            shared_here = {key: one for key, one in shared.items() if key in hints}
            for values in self.grid(CHAIN, number, shared_here | own, cls):
                yield (self.make(CHAIN, number, cls, self.with_paths(values)),)

    def finds(self, shared: Mapping[str, Any], margins: Mapping[str, MarginLike]) -> Iterator[FindTable]:
        """The searches. shared: of [calibration]. margins: of [report], which hold where a table has no others."""
        seen: set[str] = set()
        for number, table in self.tables("find"):
            for key, value in table.items():
                if key != AFTER:
                    self.check_type("find", key, number, value, FIND_KEYS[key])
                if key in margins:
                    try:
                        Margin.of(value, key, zero=False)
                    except PrunusError as error:
                        self.fail("find", key, number, str(error))
            if "smallest" in table and "ladder" not in table:
                why = "the default ladder depends on model and machine: `prunus find --smallest --dry-run` prints one"
                self.fail("find", "smallest", number, f"'smallest' needs a ladder, since {why}")
            (recovery, *more) = self.settings("find", number, AFTER, table.get(AFTER, False), RecoverRecipe)
            if more:
                self.fail("find", AFTER, number, f"'{AFTER}' takes one value here, since a ladder has one recovery")
            given = dict(table) | {"ladder": _ladder_text(table)}
            if given["ladder"].endswith(".toml"):
                given["ladder"] = self.path_or_text(given["ladder"])
            name = given.setdefault("name", _default_name(given))
            if not all(character.isalnum() or character in "-_+" for character in name) or not name:
                self.fail("find", "name", number, f"name '{name}' is that of a folder: use letters, digits, -, _ and +")
            if name in seen:
                self.fail("find", "", number, f"two [[find]] tables are called {name}: give one another name")
            seen.add(name)
            settings = self.with_paths({key: value for key, value in table.items() if key in OF_RECIPE})
            rules = {key: value for key, value in given.items() if key not in (*OF_RECIPE, AFTER, "method")}
            method = table.get("method")
            yield FindTable(
                **{**margins, **rules},
                methods=(method,) if isinstance(method, str) else None if method is None else tuple(method),
                settings=settings,
                shared=self.with_paths(shared),
                recovery=None if recovery is None else self.with_paths(recovery),
                line=self.lines.of("find", "", number),
            )

    def settings(
        self, kind: str, number: int, name: str, value: Any, cls: type[Recipe]
    ) -> list[dict[str, object] | None]:
        """The settings of each further step along this axis of the grid; None stands for no such step.

        value: of the key of this name: true, false, a table of settings, or a list of these. cls: the step's recipe.
        """
        choices = value if isinstance(value, list) else [value]
        if not choices:
            self.fail(kind, name, number, f"'{name}' is an empty list; leave it out or give a value")
        hints, steps = hints_of(cls), []
        for choice in choices:
            if not isinstance(choice, bool | dict):
                self.fail(kind, name, number, f"'{name}' must be true, false or a table, not {choice!r}")
            kept = self.without_removed(kind, number, choice, cls.REMOVED, name) if isinstance(choice, dict) else {}
            steps.append(None if choice is False else kept)
            for key, setting in kept.items():
                if key not in hints:
                    self.fail(kind, name, number, f"unknown key '{key}' of {name}; {suggestion(key, hints, {})}")
                self.check_type(kind, name, number, setting, hints[key], name=key)
        return steps

    def further(
        self, kind: str, number: int, name: str, like: Recipe, settings: Mapping[str, Any] | None, cls: type[Recipe]
    ) -> tuple[Recipe, ...]:
        """The recipe of a further step, of the key of this name; none where settings is None.

        It takes the calibration of the recipe `like` unless the settings name another.
        """
        if settings is None:
            return ()
        try:
            return (cls.like(like, **self.with_paths(settings)),)
        except PrunusError as error:
            self.fail(kind, name, number, f"{name}: {error}")

    def check_twice(self, entries: Sequence[Entry]) -> None:
        lines: dict[tuple[Recipe, ...], int | None] = {}
        for entry in entries:
            if entry.steps in lines:
                at = "" if entry.line is None else f", line {entry.line}"
                first = lines[entry.steps]
                where = "in this table" if first == entry.line else f"first in line {first}"
                raise PrunusError(f"{self.path}{at}: a recipe is listed twice ({where}): {steps_name(entry.steps)}")
            lines[entry.steps] = entry.line

    def grid(self, table: str, number: int, values: Mapping[str, Any], cls: type) -> Iterator[dict[str, Any]]:
        """Yield every combination of the values that the table gives as lists."""
        hints = hints_of(cls)
        axes: dict[str, list[Any]] = {}
        for key, value in values.items():
            axes[key] = list(value) if self.is_axis(cls, key, value) else [value]
            if not axes[key]:
                self.fail(table, key, number, f"'{key}' is an empty list; leave it out or give a value")
            for one in axes[key]:
                self.check_type(table, key, number, one, hints[key])
        for combination in product(*axes.values()):
            yield dict(zip(axes, combination, strict=True))

    def make(self, table: str, number: int, cls: type, values: Mapping[str, Any]) -> Any:
        """A recipe with these values.

        Values that the recipe refuses raise a PrunusError with the table's line, and with the combination where the
        table is a grid.
        """
        try:
            return cls(**values)
        except PrunusError as error:
            listed = ", ".join(f"{key} {value}" for key, value in values.items() if key not in SHARED)
            several = any(self.is_axis(cls, key, value) for key, value in self.raw(table, number).items())
            self.fail(table, "", number, f"{error}{f' (in the combination {listed})' if several else ''}")

    def is_axis(self, cls: type, key: str, value: Any) -> bool:
        """Whether a value is a list although the recipe takes one value, so that it is an axis of the grid."""
        return isinstance(value, list) and (key == AFTER or get_origin(hints_of(cls).get(key)) is not tuple)

    def raw(self, table: str, number: int) -> Mapping[str, Any]:
        found = self.data[table]
        return found[number] if isinstance(found, list) else found

    def table(self, name: str, known: Sequence[str]) -> dict[str, Any]:
        table = self.data.get(name, {})
        if not isinstance(table, dict):
            self.fail("", name, 0, f"write [{name}] with single brackets, once")
        self.check_keys(name, 0, table, known)
        return table

    def check_keys(self, table: str, number: int, values: dict[str, object], known: Sequence[str]) -> None:
        """Raise PrunusError for a key that is not known; one of DELETED is taken out at its default."""
        for key in list(values):
            if (deleted := DELETED.get((table, key))) is not None:
                default, instead = deleted
                if values.pop(key) != default:
                    self.fail(table, key, number, f"'{key}' does not exist any more: {instead}")
            elif key not in known:
                where = f" in {_TABLES[table]}" if table else ""
                elsewhere = {shown: keys for shown, keys in _KEYS.items() if shown != _TABLES[table]}
                self.fail(table, key, number, f"unknown key '{key}'{where}; {suggestion(key, known, elsewhere)}")

    def without_removed(
        self, table: str, number: int, values: Mapping[str, Any], removed: Mapping[str, Any], key: str | None = None
    ) -> dict[str, object]:
        """values without settings of earlier versions. key: of the table, if values are of one of its keys."""
        for name, value in values.items():
            try:
                without_removed({name: value}, removed)
            except PrunusError as error:
                self.fail(table, key or name, number, str(error))
        return without_removed(values, removed)

    def check_type(self, table: str, key: str, number: int, value: Any, hint: Any, name: str | None = None) -> None:
        if wrong := misfit(name or key, value, hint):
            self.fail(table, key, number, wrong)

    def fail(self, table: str, key: str, number: int, message: str) -> NoReturn:
        line = self.lines.of(table, key, number)
        raise PrunusError(f"{self.path}{'' if line is None else f', line {line}'}: {message}")

    def path_or_text(self, text: str) -> str:
        """The path of a file or folder that exists relative to the study's folder; otherwise text, unchanged."""
        path = self.path.parent / Path(text).expanduser()
        return str(path) if path.exists() else text

    def with_paths(self, values: Mapping[str, Any]) -> dict[str, object]:
        """Settings of a recipe, with the paths of its files as by path_or_text."""
        found = dict(values)
        if "calibration" in found:
            found["calibration"] = self.calibration(found["calibration"])
        for name in ("scores", "like"):
            if name in found:
                found[name] = self.path_or_text(found[name])
        return found

    def calibration(self, text: str) -> str:
        """The name of a calibration, with paths as by path_or_text."""
        if text.startswith("traces:"):
            return "traces:" + self.path_or_text(text.removeprefix("traces:"))
        return self.path_or_text(text) if text.endswith((".txt", ".jsonl")) else text


def _with_blocks_as_text(kind: str, table: Mapping[str, Any]) -> dict[str, object]:
    """The table with the numbers of `blocks = [1, 2]` as strings, which DropRecipe takes."""
    if kind != "drop" or "blocks" not in table:
        return dict(table)
    value = table["blocks"]
    texts = [str(one) if type(one) is int else one for one in (value if isinstance(value, list) else [value])]
    return {**table, "blocks": texts if isinstance(value, list) else texts[0]}


def _ladder_text(table: Mapping[str, Any]) -> str:
    """The ladder of a [[find]] table as `prunus find --ladder` takes it; in a study it may be a list of sparsities."""
    ladder = table.get("ladder", DEFAULT_LADDER)
    return ladder if isinstance(ladder, str) else ",".join(map(str, ladder))


def _default_name(table: Mapping[str, Any]) -> str:
    """The name of a [[find]] table that has none: that of its ladder's file, or of its methods."""
    if table["ladder"].endswith(".toml"):
        return Path(table["ladder"]).stem
    methods = table.get("method", "wanda")
    return methods if isinstance(methods, str) else "-".join(methods)
