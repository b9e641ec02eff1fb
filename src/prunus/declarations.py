"""The declarations that pruning methods, allocations, depth methods and criteria for experts make in their files.

Recipes and `--help` need names, options and descriptions, but not torch, which takes seconds to import. So `declared`
reads a declaration from the source text, as setuptools reads a package's version: all fields except code (CODE) must be
literals, `Option(...)` and `Conflict(...)`. To prune, `load` imports the file, which returns the declaration with its
functions.
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
    from prunus.pruning.experts.seen import Seen
    from prunus.pruning.masks import Target
    from prunus.pruning.passes import Pass
    from prunus.recipes import PruneRecipe

# All names, in the order in which commands list them. To add one, add its name here and its file: `layerif-sketch` is
# declared in layerif_sketch.py, `wanda++` in wanda_plus_plus.py.
MethodName = Literal["magnitude", "wanda", "sparsegpt", "ria", "dsnot", "alps", "gblm", "wanda++"]
AllocationName = Literal["uniform", "atp", "owl", "alphapruning", "dlp", "layerif", "layerif-sketch"]
DepthMethodName = Literal["shortgpt", "angular", "tail", "laco", "sleb"]
CriterionName = Literal["reap", "ean", "frequency", "router", "output", "random"]

Group = Literal["row", "tensor"]
# What a criterion measures of experts; each includes those before it.
ExpertNeeds = Literal["nothing", "routing", "reconstruction"]
# Statistics of a Linear's inputs; each includes those before it.
Needs = Literal["nothing", "norms", "means", "hessian"]
# The data from which an allocation measures its scores.
Source = Literal["nothing", "weights", "norms", "gradients"]

# Fields of declarations that are functions; the others are data.
CODE = ("prune", "configure", "passes", "allocate", "as_run", "measure", "calibration", "choose", "score", "keep")


class Conflict(NamedTuple):
    """A value that a field of the recipe cannot have together with an option or a method.

    value: None stands for every value except the field's default. message: of the error; names in braces stand for the
    recipe's fields.
    """

    field: str
    value: Any
    message: str


class Option(NamedTuple):
    """A setting of a method, allocation or depth method (its owner).

    It becomes a field of the recipe, a key of a study's tables and an option of the command line. default: of the
    recipe's field; for None the owner uses its value in `usual`. at_least, above, below: the range; floats must also be
    finite. choices: the only valid values. note: appended to the message of a range error. Several owners may declare
    the same option; their types and defaults must agree, while `usual` and the range may differ.
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
        """The value that takes effect: the recipe's, or `usual` where it is None."""
        value = getattr(recipe, self.name)
        return self.usual if value is None else value

    def check(self, value: Any, owner: str) -> None:
        """Raise PrunusError if a value of the right type is not one of the choices or is outside the range."""
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
    """A pruning method: prune(weight_OI, inputs, target) -> new weight, in the dtype of the old one.

    needs: statistics of a Linear's inputs that it uses (inputs is None if it needs nothing). group: the weights among
    which the lowest scores are chosen, each row or the whole tensor. ranks: whether weights are ranked by scores, so
    that a recipe may choose another group. updates: whether weights that are kept change too. conflicts: settings that
    a recipe cannot combine with it. configure(method, recipe): returns the method with a recipe's options applied.
    passes: constructors of further passes over the model (passes.py), called for each run.
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
    """An allocation: allocate(scores, sizes, recipe) -> sparsity of each group of Linears.

    The mean of these sparsities, weighted by sizes (numbers of weights), is recipe.sparsity. as_run: replaces allocate
    for rounding `reference` and does as the code of arXiv:2604.25098, which may miss that mean. measure(subject,
    calibration) -> scores. needs: the data for measure; `nothing` means that there are no scores, `weights` that there
    is no calibration. apart: whether the attention and the MLP of a block are two groups, allocated separately to the
    target; otherwise a block is one group. settings: options besides scope on which the measurement depends. score: the
    meaning of a score in words. calibration(recipe) -> the recipe that chooses the sequences to measure on, and the
    most tokens of a sequence; None: the sequences of pruning itself. sampling: options that calibration depends on.
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
    calibration: "Callable[[PruneRecipe], tuple[PruneRecipe, int]] | None" = None
    sampling: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    as_run: "Callable[[Sequence[float], Sequence[int], PruneRecipe], list[float]] | None" = None


class DepthMethod(NamedTuple):
    """A depth method: choose(model, count) -> the blocks that are kept when count blocks are removed.

    needs_data: whether it uses calibration.
    """

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


class Criterion(NamedTuple):
    """A criterion by which experts are kept: score(seen) -> (E,) float64, of which the highest are kept.

    seen: what calibration showed of the experts of one block. keep(seen, count) -> the experts to keep, where these are
    not simply those with the highest scores. needs: `routing`, sums over the tokens that are routed to each expert;
    `reconstruction`, also the outputs of all experts on some tokens; `nothing`, no calibration.
    """

    name: str
    source: str
    description: str
    score: "Callable[[Seen], Tensor]"
    keep: "Callable[[Seen, int], list[int]] | None" = None
    needs: ExpertNeeds = "routing"
    options: tuple[Option, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


Declaration = TypeVar("Declaration", Method, Allocation, DepthMethod, Criterion)
_FOLDERS = {Method: "methods", Allocation: "allocation", DepthMethod: "depth", Criterion: "experts"}
_NAMES: Mapping[type, Any] = {
    Method: MethodName,
    Allocation: AllocationName,
    DepthMethod: DepthMethodName,
    Criterion: CriterionName,
}
_LITERALS = {kind.__name__: kind for kind in (Option, Conflict, int, float, bool, str)}


def file_of(name: str) -> str:
    """The name of the module that declares a method, allocation or depth method."""
    return name.replace("-", "_").replace("+", "_plus")


def load(kind: type[Declaration]) -> Mapping[str, Declaration]:
    """{name: declaration} of all declarations of a kind, with their functions."""
    package = f"prunus.pruning.{_FOLDERS[kind]}"
    found = {name: import_module(f"{package}.{file_of(name)}").DECLARATION for name in get_args(_NAMES[kind])}
    return MappingProxyType(found)


def declared(kind: type[Declaration]) -> Mapping[str, Declaration]:
    """{name: declaration} of all declarations of a kind, with None for their functions; imports nothing."""
    return _declared(kind)


@cache
def _declared(kind: Any) -> Mapping[str, Any]:
    folder = Path(__file__).parent / "pruning" / _FOLDERS[kind]
    return MappingProxyType({name: _read(folder / f"{file_of(name)}.py", kind) for name in get_args(_NAMES[kind])})


def _read(file: Path, kind: type[Declaration]) -> Declaration:
    """The declaration in a file: the text from `DECLARATION = ` to the next closing bracket at the start of a line."""
    text = file.read_text("utf-8")
    begin = text.index(f"\nDECLARATION = {kind.__name__}(") + 1
    statement = ast.parse(text[begin : text.index("\n)", begin) + 2]).body[0]
    assert isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
    values: dict[str, Any] = {"prune": None, "allocate": None, "choose": None, "score": None}
    for keyword in statement.value.keywords:
        assert keyword.arg is not None
        if keyword.arg not in CODE:
            values[keyword.arg] = _evaluated(keyword.value, file)
    return kind(**{name: value for name, value in values.items() if name in kind._fields})


def _evaluated(node: ast.expr, file: Path) -> Any:
    expression = compile(ast.Expression(node), str(file), "eval")
    return eval(expression, {"__builtins__": {}} | _LITERALS)  # noqa: S307  source text of this package


def methods() -> list[dict[str, str]]:
    """What there is to prune with: pruning methods, then allocations, depth methods, and criteria for experts.

    Each is a dictionary with name, source (the paper), description (one line) and needs: what it measures of the model,
    such as `norms` or `hidden states`, or `nothing`.
    """
    kinds: tuple[Any, ...] = (Method, Allocation, DepthMethod, Criterion)
    return [
        {key: getattr(one, key) for key in ("name", "source", "description", "needs")}
        for kind in kinds
        for one in declared(kind).values()
    ]


def owners_of(table: Mapping[str, Declaration]) -> dict[str, list[tuple[str, Option]]]:
    """{name of an option: [(owner, the owner's declaration of the option)]}."""
    found: dict[str, list[tuple[str, Option]]] = {}
    for owner, declaration in table.items():
        for option in declaration.options:
            found.setdefault(option.name, []).append((owner, option))
            first = found[option.name][0][1]
            assert (first.hint, first.default) == (option.hint, option.default), (
                f"{owner} declares another {option.name}"
            )
    return found
