"""Every knob with its unit: frozen recipes, to and from JSON, with a content hash. No model code here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from prunus.declarations import (
    Allocation,
    AllocationName,
    DepthMethod,
    DepthMethodName,
    Group,
    Method,
    MethodName,
    declared,
)
from prunus.engines import BACKENDS
from prunus.errors import PrunusError
from prunus.recipe_base import DECLARED, Recipe, with_options

Window = Literal["fixed", "reference"]
Statistic = Literal["mean", "median"]
Scope = Literal["all", "attention", "mlp"]
Propagation = Literal["pruned", "dense", "true_sequential", "staged"]
Rounding = Literal["exact", "reference"]
UpdateName = Literal["none", "obs"]
RecoverTarget = Literal["dense", "own"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Mode = Literal["strict", "legacy"]
PromptStyle = Literal["bare", "boxed"]
TraceFilter = Literal["all", "correct"]

# Fields of a recipe that say how much a token of a trace counts.
TOKEN_WEIGHTS = ("prompt_weight", "chain_weight", "closing_weight")
DEFAULT_BUDGETS = (512, 1024, 2048, 4096, 8192)
# A built-in profile is one file there.
PROFILE_FOLDER = Path(__file__).parent / "evaluation" / "profiles"
PROFILE_NAMES = ("auto", *sorted(path.stem for path in PROFILE_FOLDER.glob("*.toml")))
# An object of its own, so that a recipe can tell a sparsity left out from one of 0.5.
DEFAULT_SPARSITY = float("0.5")
WIDEST_PATTERN = 256
# Methods that rank weights by a score of each, and what each ranks together unless the recipe says otherwise.
OWN_GROUP: Mapping[str, Group] = MappingProxyType(
    {name: method.group for name, method in declared(Method).items() if method.ranks}
)


@dataclass(frozen=True)
# pyright checks files in an order of its own, and in some orders takes the decorator to refer to itself.
@with_options(declared(Method), declared(Allocation))  # pyright: ignore[reportGeneralTypeIssues]
class PruneRecipe(Recipe):
    """How to zero weights.

    sparsity: share of zeros in the Linears in scope, in [0, 1).
    calibration: built-in name (c4, wikitext2, tiny), `traces:FILE`, or a .txt/.jsonl file; `auto` is `tiny` for the
        tiny reasoner and `c4` for every other model.
    samples, seqlen: number of calibration sequences and their length in tokens. calibration_tokens: so many tokens in
        all, to the token, instead of samples; what makes sources comparable.
    prompt_weight, chain_weight: how much a token of the prompt and one of the chain count in the statistics that masks
        and updates are made from; for traces, which say where prompts end. 0 and 1: the chain alone.
    closing_weight: how much a token counts where thinking ends: the last 16 tokens of thinking and the 16 that follow,
        of which the marker is the first; None: as the rest of the chain.
    propagation: whether later blocks see the pruned or the dense output of earlier ones; `true_sequential`
        (stored as `staged`): also within a block later Linears see earlier ones pruned (q, k, v, then o, then gate, up,
        then down).
    pattern: "2:4" keeps 2 of every 4 consecutive inputs of a row; sparsity is then what the pattern says, here 0.5.
    group: what is ranked together by methods that score weights: each `row` (output) or the whole `tensor`; None is the
        method's own, tensor for magnitude and ria, else row.
    rounding: `exact` (round(S*N) zeros per comparison group, ties by index; an allocation's in all) or `reference` (as
        in the authors' code, or in that of arXiv:2604.25098 where there is an allocation: int(S*N), by floats).
    update: `obs` lets the weights that a method keeps make up for the others, as SparseGPT does.
    row_power: for wanda: rows keep weights in proportion to the Fisher information of their outputs to this power; 0 is
        the same for all.
    gradient_scale: of gradients beside input norms, for gblm and wanda++ (the papers' c and alpha).
    repair_rounds, repair_rate: for wanda++: how often a block is pruned and repaired, and how long the steps are.
    swap_cycles, swap_threshold: for dsnot: the most swaps per row, and the error of a row, over 2048 tokens, below
        which it is done.
    admm_iterations, admm_rho: for alps: the most iterations of ADMM, and its initial penalty.
    dtype: in which the blocks run; `auto` is the checkpoint's own.
    allocation: how sparsity is shared out among the blocks. spread: how far apart they may get, None for the
        allocation's own: half of the range (owl 0.08, the paper's lambda; dlp 0.15), or half of it as a share of
        sparsity (alphapruning, layerif-sketch 0.3). step: how much more each block loses than the one before, for atp.
    outlier_threshold: how many times the mean score of its block an outlier exceeds, for owl (the paper's M).
    statistic: of a block's Wanda scores, for dlp; `median` is the paper's, `mean` that of its code.
    window: where alphapruning looks for the tail of a spectrum; `reference` as in the authors' code.
    influence_train, influence_validation: sequences for layerif and layerif-sketch, chosen like those of calibration
        (instead of samples) and at most 1024 tokens long.
    scores: evidence file that an allocation is made from, instead of measuring.
    """

    method: MethodName = "wanda"
    sparsity: float = DEFAULT_SPARSITY
    pattern: str | None = None
    scope: Scope = "all"
    calibration: str = "auto"
    samples: int = 128
    seqlen: int = 2048
    calibration_tokens: int | None = None
    prompt_weight: float = 1.0
    chain_weight: float = 1.0
    closing_weight: float | None = None
    seed: int = 0
    propagation: Propagation = "pruned"
    group: Group | None = None
    rounding: Rounding = "exact"
    update: UpdateName = "none"
    row_power: float = DECLARED
    gradient_scale: float = DECLARED
    repair_rounds: int = DECLARED
    repair_rate: float = DECLARED
    swap_cycles: int = DECLARED
    swap_threshold: float = DECLARED
    admm_iterations: int = DECLARED
    admm_rho: float = DECLARED
    dtype: DtypeName = "auto"
    allocation: AllocationName = "uniform"
    spread: float | None = DECLARED
    step: float | None = DECLARED
    outlier_threshold: float = DECLARED
    statistic: Statistic = DECLARED
    window: Window = DECLARED
    influence_train: int = DECLARED
    influence_validation: int = DECLARED
    scores: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("method", MethodName)
        self._check_choice("scope", Scope)
        self._check_choice("propagation", Propagation)
        if self.propagation == "staged":  # as recipes stored by earlier versions call it
            object.__setattr__(self, "propagation", "true_sequential")
        self._check_choice("rounding", Rounding)
        self._check_choice("update", UpdateName)
        self._check_pattern()
        self._check_group()
        self._check_choice("dtype", DtypeName)
        self._check_choice("allocation", AllocationName)
        if self.scores is not None and declared(Allocation)[self.allocation].needs == "nothing":
            raise PrunusError(f"allocation {self.allocation} uses no scores; leave --scores out")
        self._check_options("allocation", declared(Allocation))
        self._check_options("method", declared(Method))
        self._check_calibration()
        check_token_weights(self)
        if not 0 <= self.sparsity < 1:
            raise PrunusError(f"sparsity must lie in [0, 1), not {self.sparsity}; 0.2 removes one weight in five")

    @property
    def groups(self) -> tuple[int, int] | None:
        """The pattern as numbers: keep n of m. None without a pattern."""
        if self.pattern is None:
            return None
        keep, _, width = self.pattern.partition(":")
        if not (keep.isdecimal() and width.isdecimal() and 0 < int(keep) < int(width) <= WIDEST_PATTERN):
            raise PrunusError(
                f"pattern '{self.pattern}' is not N:M with 0 < N < M <= {WIDEST_PATTERN}, such as 2:4, "
                "which keeps 2 of 4"
            )
        return int(keep), int(width)

    def _check_pattern(self) -> None:
        if self.groups is None:
            return
        implied = 1 - self.groups[0] / self.groups[1]
        if self.sparsity is not DEFAULT_SPARSITY and self.sparsity != implied:
            raise PrunusError(f"pattern {self.pattern} is a sparsity of {implied:g} already; leave sparsity out")
        if self.allocation != "uniform":
            raise PrunusError(f"pattern {self.pattern} is the same for all; allocation must be uniform")
        object.__setattr__(self, "sparsity", implied)

    def _check_group(self) -> None:
        if self.group is None:
            return
        self._check_choice("group", Group)
        if self.method not in OWN_GROUP:
            raise PrunusError(f"group belongs to method {' or '.join(OWN_GROUP)}, not to {self.method}")
        if self.pattern is not None:
            raise PrunusError(f"pattern {self.pattern} is a group of its own; leave group out")

    @property
    def weighted(self) -> bool:
        """Whether tokens of prompt, chain and closing count differently."""
        return len(set(weights_of(self).values())) > 1


@dataclass(frozen=True)
@with_options(declared(DepthMethod))
class DropRecipe(Recipe):
    """Which decoder blocks to remove.

    blocks: "2" removes two blocks that `method` chooses; "16,17" (or "16," for one) removes these, by index from 0, and
        ignores method and calibration. None: 1, or what match_sparsity says.
    match_sparsity: in (0, 1); instead of blocks: the number of blocks nearest to that share of the blocks' weights.
    merge, threshold, interval, telescoping: of laco. How many blocks one merge folds into the one before them; the
        cosine to the old hidden states that it must keep; how far below a merge the next one begins; the sum as some
        codes take it, which leaves only the last of the folded blocks.
    """

    method: DepthMethodName = "shortgpt"
    blocks: str | None = None
    match_sparsity: float | None = None
    merge: int = DECLARED
    threshold: float = DECLARED
    interval: int = DECLARED
    telescoping: bool = DECLARED
    calibration: str = "auto"
    samples: int = 128
    seqlen: int = 2048
    calibration_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("method", DepthMethodName)
        self._check_calibration()
        self._check_options("method", declared(DepthMethod))
        if self.match_sparsity is not None:
            if self.blocks is not None:
                raise PrunusError("blocks and match_sparsity both say how many blocks go; give one of them")
            if not 0 < self.match_sparsity < 1:
                raise PrunusError(f"match_sparsity must lie in (0, 1), not {self.match_sparsity}")
        if self.blocks is None:
            return
        parts = [part.strip() for part in self.blocks.split(",") if part.strip()]
        if not parts or not all(part.isdigit() for part in parts):
            raise PrunusError(f"blocks '{self.blocks}' is neither a number of blocks (2) nor a list of indices (16,17)")
        if self.indices is None and int(parts[0]) < 1:
            raise PrunusError("blocks must be at least 1; to remove block 0 by index write '0,'")

    @property
    def indices(self) -> tuple[int, ...] | None:
        """Sorted block indices where the user named them, else None."""
        if self.blocks is None or "," not in self.blocks:
            return None
        return tuple(sorted({int(part) for part in self.blocks.split(",") if part.strip()}))

    def count(self, blocks: int) -> int:
        """How many of so many equal blocks go; PrunusError where match_sparsity comes nearest to none or to all."""
        if self.match_sparsity is None:
            return len(self.indices) if self.indices is not None else int(self.blocks or 1)
        count = int(self.match_sparsity * blocks + 0.5)
        if not 0 < count < blocks:
            raise PrunusError(
                f"match_sparsity {self.match_sparsity} is nearest to {count} of {blocks} blocks; "
                f"one block is {1 / blocks:.3f} of them"
            )
        return count


@dataclass(frozen=True)
class RecoverRecipe(Recipe):
    """How to train what pruning kept, block by block (docs/recover.md).

    calibration, samples, seqlen, calibration_tokens, seed and the weights of tokens: as in PruneRecipe.
    epochs: how often each token is trained on. step_tokens: tokens of one step of Adam, which is one sequence at least.
    rate: the largest learning rate, as a share of each tensor's root mean square.
    norms: whether norms and biases are trained, too.
    target: what a block is to give out: the output that the `dense` model has there, or `own`: that of the dense
        model's block on the pruned model's input.
    """

    LATER: ClassVar[tuple[str, ...]] = ("closing_weight",)

    calibration: str = "auto"
    samples: int = 128
    seqlen: int = 2048
    calibration_tokens: int | None = None
    prompt_weight: float = 1.0
    chain_weight: float = 1.0
    closing_weight: float | None = None
    seed: int = 0
    epochs: int = 4
    rate: float = 0.01
    step_tokens: int = 512
    norms: bool = True
    target: RecoverTarget = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_calibration()
        self._check_positive("epochs", "step_tokens")
        self._check_choice("target", RecoverTarget)
        if not 0 < self.rate < 1:
            raise PrunusError(f"rate must lie in (0, 1), not {self.rate}; it is a share of each tensor's size")
        check_token_weights(self)

    @classmethod
    def like(cls, recipe: Recipe, **changes: Any) -> Self:
        """The usual recovery on the calibration of a recipe, but for changes."""
        alike = ("calibration", "samples", "seqlen", "calibration_tokens", "seed", *TOKEN_WEIGHTS)
        values = {name: getattr(recipe, name) for name in alike if hasattr(recipe, name)}
        if "samples" in changes:
            values["calibration_tokens"] = None  # which would be used instead of them
        return cls(**values | changes)

    @property
    def weighted(self) -> bool:
        """Whether tokens of prompt, chain and closing count differently."""
        return len(set(weights_of(self).values())) > 1


@dataclass(frozen=True)
class EvalPlan(Recipe):
    """How to evaluate one model: which problems, how much thinking, how to sample.

    tasks: names or .jsonl files. budgets: thinking tokens allowed, strictly increasing, 0 means no thinking.
    samples: draws per problem and budget. answer_tokens: cap on the answer; None takes the mode's
        (strict 1024, multiple choice 512, tiny 64; legacy 32768). In mode legacy the context may leave less.
    wait: how many attempts to stop thinking are refused, each replaced by "Wait".
    temperature, top_p, top_k: None takes the profile's; temperature 0 is greedy, top_k 0 is off.
    reuse: sample one chain at the largest budget and cut it for the others.
    limit: use the first N problems of each task. prompt: `bare` problem text, or `boxed` with an instruction.
    batch_size: chains done and stored together; part of the plan so that a resumed run meets the same batches. None
        takes the backend's own (prunus.engines.BACKENDS).
    """

    tasks: tuple[str, ...]
    budgets: tuple[int, ...] = DEFAULT_BUDGETS
    samples: int = 1
    profile: str = "auto"
    mode: Mode = "strict"
    answer_tokens: int | None = None
    wait: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    prompt: PromptStyle = "bare"
    limit: int | None = None
    seed: int = 0
    backend: str = "hf"
    reuse: bool = True
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise PrunusError("name at least one task; `prunus tasks` lists them")
        self._check_choice("profile", PROFILE_NAMES)
        self._check_choice("mode", Mode)
        self._check_choice("prompt", PromptStyle)
        self._check_choice("backend", BACKENDS)
        self._check_positive("samples")
        if self.batch_size is not None:
            self._check_positive("batch_size")
        check_budgets(self.budgets)
        if self.wait < 0:
            raise PrunusError(f"wait must be 0 or more, not {self.wait}")
        if self.limit is not None:
            self._check_positive("limit")
        if self.answer_tokens is not None:
            self._check_positive("answer_tokens")
        if self.temperature is not None and self.temperature < 0:
            raise PrunusError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise PrunusError(f"top_p must lie in (0, 1], not {self.top_p}; 1 is off")
        if self.top_k is not None and self.top_k < 0:
            raise PrunusError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if self.wait and self.reuse and len(self.budgets) > 1:
            raise PrunusError("refusing to stop (--wait) changes the chain, so budgets cannot share it: add --no-reuse")

    @property
    def rows(self) -> int:
        """The batch size that takes effect."""
        return self.batch_size or BACKENDS[self.backend].batch_size


@dataclass(frozen=True)
class TraceRecipe(Recipe):
    """Which of a model's own chains to keep for calibration.

    tasks: names or .jsonl files, never evaluation sets. samples: chains per problem. max_tokens: thinking tokens
    allowed per chain. only: `correct` keeps chains with the right answer. min_tokens: least thinking tokens. hardest:
    keep the harder half of the problems: least often solved, then longest thought about. The rest as in EvalPlan.
    """

    tasks: tuple[str, ...]
    samples: int = 1
    max_tokens: int = 8192
    only: TraceFilter = "all"
    min_tokens: int = 0
    hardest: bool = False
    profile: str = "auto"
    temperature: float | None = None
    prompt: PromptStyle = "bare"
    limit: int | None = None
    seed: int = 0
    backend: str = "hf"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("only", TraceFilter)
        self._check_positive("max_tokens")
        if self.min_tokens < 0:
            raise PrunusError(f"min_tokens must be 0 or more, not {self.min_tokens}")
        if self.min_tokens > self.max_tokens:
            raise PrunusError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}: no chain would do")
        self.plan()

    def plan(self) -> EvalPlan:
        """How the chains are drawn: an evaluation under one budget."""
        return EvalPlan(
            tasks=self.tasks,
            budgets=(self.max_tokens,),
            samples=self.samples,
            profile=self.profile,
            temperature=self.temperature,
            prompt=self.prompt,
            limit=self.limit,
            seed=self.seed,
            backend=self.backend,
            batch_size=self.batch_size,
        )


def weights_of(recipe: PruneRecipe | RecoverRecipe) -> dict[str, float]:
    """How much a token of the prompt, of the chain and of the chain's end counts, by the recipe's names."""
    weights = {name: getattr(recipe, name) for name in TOKEN_WEIGHTS}
    return {name: recipe.chain_weight if weight is None else weight for name, weight in weights.items()}


def check_token_weights(recipe: PruneRecipe | RecoverRecipe) -> None:
    """Raise PrunusError unless tokens can count so much."""
    weights = weights_of(recipe)
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise PrunusError(f"{name} must be 0 or more, not {weight}")
    if not any(weights.values()):
        raise PrunusError("prompt_weight and chain_weight are both 0: no token would count")


def check_budgets(budgets: Sequence[int]) -> None:
    """Raise unless budgets are whole numbers >= 0 in strictly increasing order."""
    if not budgets:
        raise PrunusError("name at least one thinking budget, such as --budgets 512,1024")
    if budgets[0] < 0:
        raise PrunusError(f"budget {budgets[0]} is negative; a budget is a number of thinking tokens, 0 for none")
    for smaller, larger in pairwise(budgets):
        if larger <= smaller:
            raise PrunusError(f"budgets must increase: {larger} follows {smaller}")
