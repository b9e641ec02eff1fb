"""The table of pruning methods, allocations, depth methods and criteria for experts: all but their code.

Recipes, checks and `--help` need names, options and descriptions, but not torch, which takes seconds to import. An
entry is therefore plain data here. `load` imports its file, and fills each field that is left out (CODE) with the
function of that name. To add one, write its file and add its entry to a table below.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from prunus import plugins
from prunus.errors import PrunusError
from prunus.plain_data import Listing, Record
from prunus.settings import Setting

Group = Literal["row", "tensor"]
# Statistics of a Linear's inputs; each includes those before it.
Needs = Literal["nothing", "norms", "means", "hessian"]
# A field whose function stands in the entry's file; `load` fills it in.
CODE: Any = None


class Method(NamedTuple):
    """A pruning method: prune(weight_OI, inputs, target) -> new weight, in the dtype of the old one.

    needs: statistics of a Linear's inputs that it uses (inputs is None if it needs nothing). group: the weights among
    which the lowest scores are chosen, each row or the whole tensor. ranks: whether weights are ranked by scores, so
    that a recipe may choose another group. updates: whether weights that are kept change too. configure(method,
    recipe): returns the method with a recipe's options applied.
    """

    name: str
    source: str
    description: str
    needs: Needs
    group: Group
    ranks: bool = True
    updates: bool = False
    options: tuple[Setting, ...] = ()
    prune: Callable[..., Any] = CODE
    configure: Callable[..., "Method"] | None = CODE


class Allocation(NamedTuple):
    """An allocation: allocate(scores, sizes, recipe) -> sparsity of each group of Linears.

    The mean of these sparsities, weighted by sizes (numbers of weights), is recipe.sparsity. allocate_reference:
    replaces allocate for rounding `reference` and does as the code of arXiv:2604.25098, which may miss that mean.
    measure(subject, calibration) -> scores. needs: the data for measure; `nothing` means that there are no scores,
    `weights` that there is no calibration. splits_blocks: whether the attention and the MLP of a block are two groups,
    allocated separately to the target; otherwise a block is one group. settings: options besides scope on which the
    measurement depends. score: the meaning of a score in words. calibration(recipe) -> the recipe that chooses the
    sequences to measure on, and the most tokens of a sequence; None: the sequences of pruning itself. sampling: options
    that calibration depends on.
    """

    name: str
    source: str
    description: str
    needs: Literal["nothing", "weights", "norms", "gradients"] = "nothing"
    score: str = ""
    splits_blocks: bool = False
    options: tuple[Setting, ...] = ()
    settings: tuple[str, ...] = ()
    sampling: tuple[str, ...] = ()
    allocate: Callable[..., list[float]] = CODE
    allocate_reference: Callable[..., list[float]] | None = CODE
    measure: Callable[..., Any] | None = CODE
    calibration: Callable[..., tuple[Any, int]] | None = CODE


class DepthMethod(NamedTuple):
    """A depth method: choose(model, count) -> the blocks that are kept when count blocks are removed.

    needs_data: whether it uses calibration.
    """

    name: str
    source: str
    description: str
    needs_data: bool = True
    options: tuple[Setting, ...] = ()
    choose: Callable[..., Any] = CODE

    @property
    def needs(self) -> str:
        """What it measures, in the words of a list of methods."""
        return "hidden states" if self.needs_data else "nothing"


class Criterion(NamedTuple):
    """A criterion by which experts are kept, whose function is in SCORES of pruning/experts/criteria.py.

    needs: `routing`, sums over the tokens that are routed to each expert; `nothing`, no calibration.
    """

    name: str
    source: str
    description: str
    needs: Literal["nothing", "routing"] = "routing"
    options: tuple[Setting, ...] = ()


Declaration = TypeVar("Declaration", Method, Allocation, DepthMethod, Criterion)


SPREAD = 0.08  # of OWL, where a recipe does not say it

_INFLUENCE = (
    Setting("influence_train", int, 300, "training sequences.", at_least=1),
    Setting("influence_validation", int, 96, "sequences of the validation loss.", at_least=1),
)

# Commands list them in this order.
_METHODS = (
    Method(
        "magnitude",
        "Han et al. 2015, arXiv:1506.02626",
        "zero the smallest weights of each Linear; needs no data",
        needs="nothing",
        group="tensor",
    ),
    Method(
        "wanda",
        "Sun et al. 2023, arXiv:2306.11695",
        "zero, in each output row, the weights with the least |weight| x input norm",
        needs="norms",
        group="row",
    ),
    Method(
        "sparsegpt",
        "Frantar & Alistarh 2023, arXiv:2301.00774",
        "zero the weights of least loss, column block by column block; later columns are updated to compensate",
        needs="hessian",
        group="tensor",
        ranks=False,
        updates=True,
    ),
    Method(
        "alps",
        "Meng et al. 2024, arXiv:2406.07831",
        "least squares with a limited number of weights, by ADMM; slow (eigenvalues in float64)",
        needs="hessian",
        group="tensor",
        ranks=False,
        updates=True,
    ),
)

_ALLOCATIONS = (
    Allocation(
        "uniform",
        "the default of all methods",
        "the same sparsity in every Linear",
    ),
    Allocation(
        "atp",
        "Huang et al. 2025, arXiv:2502.14770",
        "sparsity increases by the same step from block to block; needs no data",
        options=(Setting("step", float, None, "increase in sparsity from each block to the next."),),
    ),
    Allocation(
        "owl",
        "Yin et al. 2023, arXiv:2310.05175",
        "blocks with more outliers among their Wanda scores keep more",
        needs="norms",
        score="outliers in %",
        options=(
            Setting(
                "spread",
                float,
                None,
                f"half the range of sparsities; default: {SPREAD:g}.",
                at_least=0,
                below=0.5,
            ),
            Setting(
                "outlier_threshold",
                float,
                7.0,
                "an outlier is above this many times its block's mean score (M).",
                above=0,
            ),
        ),
        settings=("outlier_threshold",),
    ),
    Allocation(
        "layerif",
        "Askari et al. 2025, arXiv:2505.23811, as in arXiv:2604.25098",
        "attention and MLPs with more influence lose less, as in the study's code; identity as Hessian",
        needs="gradients",
        score="influence",
        splits_blocks=True,
        options=_INFLUENCE,
        sampling=tuple(option.name for option in _INFLUENCE),
    ),
)

_DEPTH_METHODS = (
    DepthMethod(
        "shortgpt",
        "Men et al. 2024, arXiv:2403.03853",
        "remove the blocks that turn the hidden states least (Block Influence)",
    ),
    DepthMethod(
        "angular",
        "Gromov et al. 2024, arXiv:2403.17887",
        "remove the consecutive blocks across which the last token's hidden state turns least",
    ),
    DepthMethod(
        "tail",
        "baseline",
        "remove the last blocks",
        needs_data=False,
    ),
    DepthMethod(
        "laco",
        "Yang et al. 2024, arXiv:2402.11187",
        "merge blocks into the one before them while the last hidden states stay similar",
        options=(
            Setting("merge", int, 1, "blocks merged at a time into the one before them.", at_least=1),
            Setting(
                "threshold",
                float,
                0.45,
                "least cosine to the dense model's last hidden states.",
                at_least=-1,
                below=1,
                note="it is a cosine",
            ),
            Setting("interval", int, 1, "blocks from one merge to the next, downwards.", at_least=1),
        ),
    ),
    DepthMethod(
        "sleb",
        "Song et al. 2024, arXiv:2402.09025",
        "remove blocks one by one, each time the one whose removal costs the least likelihood",
    ),
)

_CRITERIA = (
    Criterion(
        "reap",
        "Lasby et al. 2025, arXiv:2510.13999",
        "keep the experts with the largest mean of gate value times norm of the output",
    ),
    Criterion(
        "ean",
        "Jaiswal et al. 2025, arXiv:2504.05586",
        "keep the experts with the largest sum of norms of their outputs",
    ),
    Criterion(
        "frequency",
        "baseline",
        "keep the experts that the router chooses most often",
    ),
    Criterion(
        "man",
        "Liu et al. 2026, arXiv:2606.15716",
        "keep the experts with the largest mean of norms of their outputs",
    ),
    Criterion(
        "random",
        "control",
        "keep random experts",
        needs="nothing",
    ),
)


def _of_package(name: str, package: str, fields: Mapping[str, Any]) -> Method:
    """A method of another package: the fields of its entry, with functions that are named by texts."""
    named = {field: plugins.Code(package, text) for field in ("prune", "configure") if (text := fields.get(field))}
    method = Method(**{**fields, "name": name, "configure": None, **named})
    if "prune" not in named or method.needs not in get_args(Needs) or method.group not in get_args(Group):
        raise PrunusError(
            f"a method has `prune`, the text module:function, `needs` ({', '.join(get_args(Needs))}) and `group`"
            f" ({' or '.join(get_args(Group))})"
        )
    return method


_OF_PACKAGES = plugins.entries(plugins.METHODS, _of_package, [method.name for method in _METHODS])

# {kind: (folder of its files, {name: entry})}
_TABLES: Mapping[Any, tuple[str, Mapping[str, Any]]] = {
    kind: (folder, MappingProxyType({entry.name: entry for entry in entries}))
    for kind, folder, entries in (
        (Method, "methods", (*_METHODS, *_OF_PACKAGES.values())),
        (Allocation, "allocation", _ALLOCATIONS),
        (DepthMethod, "depth", _DEPTH_METHODS),
        (Criterion, "experts", _CRITERIA),
    )
}


def declared(kind: type[Declaration]) -> Mapping[str, Declaration]:
    """{name: entry} of all entries of a kind, without their functions; imports nothing."""
    return _TABLES[kind][1]


def load(kind: type[Declaration]) -> Mapping[str, Declaration]:
    """{name: entry} of all entries of a kind, with the functions of their files."""
    return MappingProxyType({name: _with_code(entry, _TABLES[kind][0]) for name, entry in declared(kind).items()})


def _with_code(entry: Declaration, folder: str) -> Declaration:
    if any(isinstance(value, plugins.Code) for value in entry):
        return entry
    module = import_module(f"prunus.pruning.{folder}.{entry.name.replace('-', '_')}")
    functions = {field: getattr(module, field, None) for field, value in entry._asdict().items() if value is CODE}
    return entry._replace(**functions)


class MethodEntry(Record):
    """A pruning method, an allocation, a depth method, or a criterion for experts.

    kind: the option that takes it.
    name: the value of that option.
    source: the paper.
    description: one line.
    needs: what it measures of the model, such as `norms` or `hidden states`, or `nothing`.
    """

    kind: str
    name: str
    source: str
    description: str
    needs: str


def methods() -> Listing[MethodEntry]:
    """All that recipes can choose from: pruning methods, then allocations, depth methods, and criteria for experts.

        print([method.name for method in prunus.methods() if method.needs == "nothing"])

    The names are those that the recipes take.
    """
    kinds = ("prune --method", "prune --allocation", "drop --method", "experts --method")
    return Listing(
        MethodEntry(kind=kind, name=entry.name, source=entry.source, description=entry.description, needs=entry.needs)
        for kind, (_, entries) in zip(kinds, _TABLES.values(), strict=True)
        for entry in entries.values()
    )


def owners_of(declarations: Mapping[str, Declaration]) -> dict[str, list[tuple[str, Setting]]]:
    """{name of an option: [(owner, the owner's declaration of the option)]}."""
    owners: dict[str, list[tuple[str, Setting]]] = {}
    for owner, declaration in declarations.items():
        for option in declaration.options:
            owners.setdefault(option.name, []).append((owner, option))
            first = owners[option.name][0][1]
            assert (first.hint, first.default) == (option.hint, option.default), (
                f"{owner} declares another {option.name}"
            )
    return owners
