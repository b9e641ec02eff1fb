"""What a pruning method, an allocation and a depth method declare in their own files; readable without running them.

Recipes and `--help` need names, options and descriptions, but not torch, which takes seconds to import. So
`declared` reads the declaration out of the source text, as setuptools reads a package's version: everything but code
(CODE) must be literals, `Option(...)` and `Conflict(...)`. Whoever prunes imports the file, and gets the same object
with its functions (`load`).
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

from prunus.errors import PrunusError

if TYPE_CHECKING:
    from torch import Tensor

    from prunus.pruning.allocation.measurement import Measured, Subject
    from prunus.pruning.calibration.data import Calibration
    from prunus.pruning.calibration.statistics import InputStats
    from prunus.pruning.depth.choice import Calibrated, Choice
    from prunus.pruning.masks import Target
    from prunus.pruning.passes import Pass
    from prunus.recipes import PruneRecipe

# The names of all there are, in the order in which they are listed. To add one, add its name here and its file:
# `layerif-sketch` is declared in layerif_sketch.py, `wanda++` in wanda_plus_plus.py.
MethodName = Literal["magnitude", "wanda", "sparsegpt", "ria", "dsnot", "alps", "gblm", "wanda++"]
AllocationName = Literal["uniform", "atp", "owl", "alphapruning", "dlp", "layerif", "layerif-sketch"]
DepthMethodName = Literal["shortgpt", "angular", "tail", "laco", "sleb"]

Group = Literal["row", "tensor"]
# Statistics of a Linear's inputs; each includes what stands before it.
Needs = Literal["nothing", "norms", "means", "hessian"]
# What the scores of an allocation are measured from.
Source = Literal["nothing", "weights", "norms", "gradients"]

# Fields of declarations that hold code; the rest is data.
CODE = ("prune", "configure", "passes", "allocate", "as_run", "measure", "choose")


class Conflict(NamedTuple):
    """A field of the recipe that cannot be set beside an option or a method; value None: to anything but its default.

    message: what is wrong and what to do. Names in braces stand for the recipe's fields.
    """

    field: str
    value: Any
    message: str


class Option(NamedTuple):
    """A setting of its owner: a field of the recipe, a key of a study's tables and an option of the command line.

    default: of the recipe. None leaves the value to the owner, which says in `usual` what it takes. at_least, above,
    below: the range; a float is always finite. choices: the only values. note: follows what a range error says.
    Owners may share an option: then type and default must agree, while `usual` and the range are each owner's own.
    """

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    usual: Any = None
    note: str = ""
    conflicts: tuple[Conflict, ...] = ()

    @property
    def hint(self) -> Any:
        """The type of the recipe's field."""
        plain: Any = Literal[self.choices] if self.choices else self.type
        return plain if self.default is not None else plain | None

    def of(self, recipe: Any) -> Any:
        """The value that takes effect: the recipe's, or the usual one where it has none."""
        value = getattr(recipe, self.name)
        return self.usual if value is None else value

    def check(self, value: Any, owner: str) -> None:
        """Raise PrunusError where a value of the right type is not one of the choices, or lies outside the range."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise PrunusError(f"{self.name} '{value}' is not known; choose one of {', '.join(self.choices)}")
        if self.type not in (int, float):
            return
        fits = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not (fits and (isinstance(value, int) or math.isfinite(value))):
            raise PrunusError(f"{self.name} must {self._range(owner)}, not {value}{self.note and '; ' + self.note}")

    def _range(self, owner: str) -> str:
        if self.at_least is not None and self.below is not None:
            return f"lie in [{self.at_least:g}, {self.below:g}) for {owner}"
        if self.at_least is not None:
            return f"be at least {self.at_least:g}" if self.type is int else f"be {self.at_least:g} or more"
        limits = [] if self.above is None else [f"above {self.above:g}"]
        limits += [] if self.below is None else [f"below {self.below:g}"]
        return f"be {' and '.join(limits)}" if limits else "be finite"


class Method(NamedTuple):
    """A pruning method: prune(weight_OI, inputs, target) -> new weight, in the dtype of the old.

    needs: which statistics of a Linear's inputs it uses (inputs is None where it uses none). group: what is ranked
    together and counted for itself, each row or the whole tensor. ranks: whether weights are ranked by a score each, so
    that a recipe may choose another group. updates: weights that are kept change too. conflicts: what a recipe cannot
    ask for beside it. configure(method, recipe): the method as a recipe's options want it. passes: what else is done
    with the model (passes.py), made anew for each run.
    """

    name: str
    source: str
    description: str
    needs: Needs
    group: Group
    prune: "Callable[[Tensor, InputStats | None, Target], Tensor]"
    ranks: bool = True
    updates: bool = False
    options: tuple[Option, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    configure: "Callable[[Method, PruneRecipe], Method] | None" = None
    passes: "tuple[Callable[[], Pass], ...]" = ()


class Allocation(NamedTuple):
    """allocate(scores, sizes, recipe) -> sparsity of each group, whose mean weighted by sizes is recipe.sparsity.

    as_run: the same as the code of arXiv:2604.25098 has it, for rounding `reference`; it need not keep the mean.
    measure(subject, calibration) -> scores, from what `needs` says; with `nothing` there are none, and with `weights`
    no calibration. apart: attention and MLP of a block are groups of their own, each allocated to the target; else a
    block is one group. settings: options that the measurement depends on, besides scope. score: what a score is.
    """

    name: str
    source: str
    description: str
    allocate: "Callable[[Sequence[float], Sequence[int], PruneRecipe], list[float]]"
    measure: "Callable[[Subject, Calibration | None], Measured] | None" = None
    needs: Source = "nothing"
    score: str = ""
    apart: bool = False
    options: tuple[Option, ...] = ()
    settings: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    as_run: "Callable[[Sequence[float], Sequence[int], PruneRecipe], list[float]] | None" = None


class DepthMethod(NamedTuple):
    """choose(model, count) -> the blocks that stay when count blocks go. needs_data: whether it uses calibration."""

    name: str
    source: str
    description: str
    choose: "Callable[[Calibrated, int], Choice]"
    needs_data: bool = True
    options: tuple[Option, ...] = ()
    conflicts: tuple[Conflict, ...] = ()

    @property
    def needs(self) -> str:
        """What it measures, in the words of a list of methods."""
        return "hidden states" if self.needs_data else "nothing"


Declaration = TypeVar("Declaration", Method, Allocation, DepthMethod)
_FOLDERS = {Method: "methods", Allocation: "allocation", DepthMethod: "depth"}
_NAMES: Mapping[type, Any] = {Method: MethodName, Allocation: AllocationName, DepthMethod: DepthMethodName}
_LITERALS = {kind.__name__: kind for kind in (Option, Conflict, int, float, bool, str)}


def file_of(name: str) -> str:
    """The module that declares a name."""
    return name.replace("-", "_").replace("+", "_plus")


def load(kind: type[Declaration]) -> Mapping[str, Declaration]:
    """All declarations of a kind with their code, by name."""
    package = f"prunus.pruning.{_FOLDERS[kind]}"
    found = {name: import_module(f"{package}.{file_of(name)}").DECLARATION for name in get_args(_NAMES[kind])}
    return MappingProxyType(found)


def declared(kind: type[Declaration]) -> Mapping[str, Declaration]:
    """All declarations of a kind without their code, by name; imports nothing."""
    return _declared(kind)


@cache
def _declared(kind: Any) -> Mapping[str, Any]:
    folder = Path(__file__).parent / "pruning" / _FOLDERS[kind]
    return MappingProxyType({name: _read(folder / f"{file_of(name)}.py", kind) for name in get_args(_NAMES[kind])})


def _read(file: Path, kind: type[Declaration]) -> Declaration:
    """The declaration in a file: from the line that begins with `DECLARATION = ` to the bracket at a line's start."""
    text = file.read_text("utf-8")
    begin = text.index(f"\nDECLARATION = {kind.__name__}(") + 1
    statement = ast.parse(text[begin : text.index("\n)", begin) + 2]).body[0]
    assert isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
    values: dict[str, Any] = {"prune": None, "allocate": None, "choose": None}
    for keyword in statement.value.keywords:
        assert keyword.arg is not None
        if keyword.arg not in CODE:
            values[keyword.arg] = _evaluated(keyword.value, file)
    return kind(**{name: value for name, value in values.items() if name in kind._fields})


def _evaluated(node: ast.expr, file: Path) -> Any:
    expression = compile(ast.Expression(node), str(file), "eval")
    return eval(expression, {"__builtins__": {}} | _LITERALS)  # noqa: S307  source text of this package


def methods() -> list[dict[str, str]]:
    """Return what there is to prune with: pruning methods, then allocations, then depth methods.

    Each is a dictionary with name, source (the paper), description (one line) and needs: what it measures of the model,
    such as `norms` or `hidden states`, or `nothing`.
    """
    kinds: tuple[Any, ...] = (Method, Allocation, DepthMethod)
    return [
        {key: getattr(one, key) for key in ("name", "source", "description", "needs")}
        for kind in kinds
        for one in declared(kind).values()
    ]


def owners_of(table: Mapping[str, Declaration]) -> dict[str, list[tuple[str, Option]]]:
    """Every option with those that declare it, each with its own view of it."""
    found: dict[str, list[tuple[str, Option]]] = {}
    for owner, declaration in table.items():
        for option in declaration.options:
            found.setdefault(option.name, []).append((owner, option))
            first = found[option.name][0][1]
            assert (first.hint, first.default) == (option.hint, option.default), (
                f"{owner} declares another {option.name}"
            )
    return found
