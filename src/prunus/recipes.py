"""Recipes: every setting of pruning, recovery, evaluation and traces, with its unit. No model code here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from prunus.budgets import OFF, Off, with_names, without_off
from prunus.declarations import (
    Allocation,
    Criterion,
    DepthMethod,
    Group,
    Method,
    declared,
)
from prunus.engines import BACKENDS
from prunus.errors import PrunusError
from prunus.recipe_base import DECLARED, Recipe, with_options

Window = Literal["fixed", "reference"]
Statistic = Literal["mean", "median"]
Scope = Literal["all", "attention", "mlp", "experts", "shared"]
Propagation = Literal["pruned", "dense", "true_sequential", "staged"]
Rounding = Literal["exact", "reference"]
UpdateName = Literal["none", "obs"]
RecoverTarget = Literal["dense", "own"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Mode = Literal["strict", "legacy"]
Control = Literal["forced", "native"]
PromptStyle = Literal["bare", "boxed"]
TraceFilter = Literal["all", "correct"]
Spread = Literal["uniform", "global"]

DEFAULT_BUDGETS = (512, 1024, 2048, 4096, 8192)
# The folder in which each built-in profile is one file.
PROFILE_FOLDER = Path(__file__).parent / "evaluation" / "profiles"
PROFILE_NAMES = ("auto", *sorted(path.stem for path in PROFILE_FOLDER.glob("*.toml")))
PROFILE_FILE = "prunus_profile.toml"  # in a model's folder: the profile that its maker ships with it
# An object of its own, by which a recipe distinguishes a sparsity that was not given from 0.5.
DEFAULT_SPARSITY = float("0.5")
WIDEST_PATTERN = 256
KEEP = 0.75  # share of the experts that are kept unless a recipe says otherwise
# Methods that rank weights by scores, and the weights that each ranks together unless the recipe says otherwise.
OWN_GROUP: Mapping[str, Group] = MappingProxyType(
    {name: method.group for name, method in declared(Method).items() if method.ranks}
)


@dataclass(frozen=True)
# pyright checks files in an order of its own, and in some orders takes the decorator to refer to itself.
@with_options(declared(Method), declared(Allocation))  # pyright: ignore[reportGeneralTypeIssues]
class PruneRecipe(Recipe):
    """How to zero weights.

    sparsity: share of zeros in the Linears in scope, in [0, 1).
    pattern: "2:4" keeps 2 of every 4 consecutive inputs of a row. The sparsity then follows from the pattern: here 0.5.
    scope: which Linears of a block are pruned: `all`; `attention`; `mlp`, which includes experts; `experts`, the routed
        ones of a mixture of experts; `shared`, its experts that every token goes through.
    min_expert_tokens: a routed expert that calibration sends fewer tokens is pruned by the statistics that it has on
        all tokens of its layer.
    calibration: built-in name (c4, wikitext2, tiny), `traces:FILE`, or a .txt/.jsonl file; `auto` is `tiny` for the
        tiny reasoner and `c4` for every other model.
    samples, seqlen: number of calibration sequences, and their length in tokens.
    calibration_tokens: exact number of calibration tokens, instead of samples; makes sources comparable.
    prompt_weight, chain_weight: weight of a token of the prompt, and of the chain of thought, in the statistics that
        masks and updates are computed from. Only for traces, which record where prompts end. 0 and 1: only the chain.
    seed: of the calibration sample.
    propagation: inputs on which a Linear is calibrated. `pruned`: those from pruned earlier blocks; `dense`: those of
        the dense model; `true_sequential` (stored as `staged`): also within a block, later Linears see the earlier ones
        pruned (q, k, v, then o, then gate, up, then down).
    group: weights that score-based methods rank together: each `row` (output) or the whole `tensor`. None: the method's
        own, which is tensor for magnitude and ria, else row.
    rounding: `exact` (round(S*N) zeros per comparison group, ties by index; with an allocation, in total) or
        `reference` (as in the authors' code, or with an allocation as in that of arXiv:2604.25098: int(S*N) in floats).
    update: `obs` changes the kept weights to compensate for the others, as SparseGPT does.
    row_power: for wanda: exponent of the rows' budgets, which are proportional to the Fisher information of the rows'
        outputs to this power. 0: all rows keep the same number of weights.
    gradient_scale: weight of gradients relative to input norms, for gblm and wanda++ (the papers' c and alpha).
    repair_rounds, repair_rate: for wanda++: number of rounds of pruning and repairing a block, and the learning rate.
    swap_cycles, swap_threshold: for dsnot: the most swaps per row, and the error of a row, over 2048 tokens, below
        which swapping ends.
    admm_iterations, admm_rho: for alps: the most iterations of ADMM, and its initial penalty.
    dtype: in which the blocks run; `auto` is the checkpoint's own.
    allocation: how the sparsity is shared out among the blocks.
    spread: how far the blocks' sparsities may differ. None: the allocation's own. For owl (0.08, the paper's lambda)
        and dlp (0.15) it is half of the range, for alphapruning and layerif-sketch (0.3) half of the range as a share
        of the sparsity.
    step: for atp: how much more sparsity each block gets than the one before.
    outlier_threshold: for owl: the multiple of its block's mean score that an outlier exceeds (the paper's M).
    statistic: for dlp: the statistic of a block's Wanda scores; `median` as in the paper, `mean` as in its code.
    window: for alphapruning: where the tail of a spectrum is fitted; `reference` as in the authors' code.
    influence_train, influence_validation: for layerif and layerif-sketch: number of sequences, chosen like those of the
        calibration (instead of samples), each of at most 1024 tokens.
    scores: file of importance scores that an allocation uses instead of measuring.
    """

    LATER: ClassVar[tuple[str, ...]] = (
        "group",
        "closing_weight",
        "swap_cycles",
        "swap_threshold",
        "admm_iterations",
        "admm_rho",
        "min_expert_tokens",
        "expert_spread",
    )
    REMOVED: ClassVar[Mapping[str, Any]] = MappingProxyType({"closing_weight": None, "expert_spread": 0.0})

    method: str = "wanda"
    sparsity: float = DEFAULT_SPARSITY
    pattern: str | None = None
    scope: Scope = "all"
    calibration: str = "auto"
    samples: int = 128
    seqlen: int = 2048
    calibration_tokens: int | None = None
    prompt_weight: float = 1.0
    chain_weight: float = 1.0
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
    allocation: str = "uniform"
    spread: float | None = DECLARED
    step: float | None = DECLARED
    outlier_threshold: float = DECLARED
    statistic: Statistic = DECLARED
    window: Window = DECLARED
    influence_train: int = DECLARED
    influence_validation: int = DECLARED
    scores: str | None = None
    min_expert_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("method", declared(Method))
        self._check_choice("scope", Scope)
        self._check_positive("min_expert_tokens")
        self._check_choice("propagation", Propagation)
        if self.propagation == "staged":  # the name in recipes that earlier versions stored
            object.__setattr__(self, "propagation", "true_sequential")
        self._check_choice("rounding", Rounding)
        self._check_choice("update", UpdateName)
        self._check_pattern()
        self._check_group()
        self._check_choice("dtype", DtypeName)
        self._check_choice("allocation", declared(Allocation))
        if self.scores is not None and declared(Allocation)[self.allocation].needs == "nothing":
            raise PrunusError(f"allocation {self.allocation} uses no scores; leave --scores out")
        self._check_options("allocation", declared(Allocation))
        self._check_options("method", declared(Method))
        self._check_calibration()
        if not 0 <= self.sparsity < 1:
            raise PrunusError(f"sparsity must lie in [0, 1), not {self.sparsity}; 0.2 removes one weight in five")

    @property
    def groups(self) -> tuple[int, int] | None:
        """The pattern N:M as (N, M): keep N of every M. None without a pattern."""
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
            raise PrunusError(f"pattern {self.pattern} gives all blocks the same sparsity; allocation must be uniform")
        object.__setattr__(self, "sparsity", implied)

    def _check_group(self) -> None:
        if self.group is None:
            return
        self._check_choice("group", Group)
        if self.method not in OWN_GROUP:
            raise PrunusError(f"group belongs to method {' or '.join(OWN_GROUP)}, not to {self.method}")
        if self.pattern is not None:
            raise PrunusError(f"pattern {self.pattern} says which weights are ranked together; leave group out")


@dataclass(frozen=True)
@with_options(declared(DepthMethod))
class DropRecipe(Recipe):
    """Which decoder blocks to remove.

    blocks: "2" removes two blocks that `method` chooses; "16,17" (or "16," for one) removes the blocks with these
        indices, counted from 0, and ignores method and calibration. None: one block, or what match_sparsity says.
    match_sparsity: instead of blocks: the number of blocks that is nearest to this share of the blocks' weights, in
        (0, 1).
    merge: for laco: number of blocks that one merge folds into the block before them.
    threshold: for laco: a merge is kept if the cosine of the last hidden states to the dense model's exceeds it.
    interval: for laco: after a merge that is kept, the next is tried this number of blocks lower.
    calibration, samples, seqlen, calibration_tokens, seed: as in PruneRecipe.
    """

    REMOVED: ClassVar[Mapping[str, Any]] = MappingProxyType({"telescoping": False})

    method: str = "shortgpt"
    blocks: str | None = None
    match_sparsity: float | None = None
    merge: int = DECLARED
    threshold: float = DECLARED
    interval: int = DECLARED
    calibration: str = "auto"
    samples: int = 128
    seqlen: int = 2048
    calibration_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("method", declared(DepthMethod))
        self._check_calibration()
        self._check_options("method", declared(DepthMethod))
        if self.match_sparsity is not None:
            if self.blocks is not None:
                raise PrunusError("blocks and match_sparsity both set the number of blocks; give one of them")
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
        """The sorted indices of the blocks to remove if the recipe names them, else None."""
        if self.blocks is None or "," not in self.blocks:
            return None
        return tuple(sorted({int(part) for part in self.blocks.split(",") if part.strip()}))

    def count(self, blocks: int) -> int:
        """How many of `blocks` equal blocks are removed.

        Raises PrunusError where match_sparsity is nearest to none or to all of them.
        """
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
@with_options(declared(Criterion))
class ExpertsRecipe(Recipe):
    """Which routed experts of a mixture of experts to remove.

    method: the criterion by which experts are kept.
    keep: share of the experts that each block keeps, in (0, 1). None: what drop says; 0.75 if both are None.
    drop: instead of keep: number of experts that each block loses.
    spread: `uniform`: every block keeps the same number of experts. `global`: blocks keep different numbers, since the
        experts of all blocks are ranked together; each keeps at least as many as the router chooses for a token. It
        is refused where config.json has one number for all blocks.
    calibration, samples, seqlen, calibration_tokens, the weights of tokens, seed and dtype: as in PruneRecipe. seed is
        also that of method `random`.
    """

    LATER: ClassVar[tuple[str, ...]] = ("distill_router",)
    REMOVED: ClassVar[Mapping[str, Any]] = MappingProxyType({"closing_weight": None, "distill_router": False})

    method: str = "reap"
    keep: float | None = None
    drop: int | None = None
    spread: Spread = "uniform"
    calibration: str = "auto"
    samples: int = 128
    seqlen: int = 2048
    calibration_tokens: int | None = None
    prompt_weight: float = 1.0
    chain_weight: float = 1.0
    seed: int = 0
    dtype: DtypeName = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("method", declared(Criterion))
        self._check_choice("spread", Spread)
        self._check_choice("dtype", DtypeName)
        self._check_calibration()
        self._check_options("method", declared(Criterion))
        if self.keep is not None and self.drop is not None:
            raise PrunusError("keep and drop both set the number of experts; give one of them")
        if self.keep is not None and not 0 < self.keep < 1:
            raise PrunusError(f"keep must lie in (0, 1), not {self.keep}; 0.75 keeps three experts in four")
        if self.drop is not None:
            self._check_positive("drop")
        if self.keep is None and self.drop is None:
            object.__setattr__(self, "keep", KEEP)

    def count(self, experts: int) -> int:
        """How many of `experts` are kept. Raises PrunusError where these are all of them, or none."""
        kept = experts - self.drop if self.drop is not None else int((self.keep or KEEP) * experts + 0.5)
        if not 0 < kept < experts:
            what = f"drop {self.drop}" if self.drop is not None else f"keep {self.keep}"
            raise PrunusError(
                f"{what} would keep {max(0, kept)} of {experts} experts; some must go, and some must stay"
            )
        return kept


@dataclass(frozen=True)
class RecoverRecipe(Recipe):
    """How to train what pruning kept, block by block (docs/recover.md).

    calibration, samples, seqlen, calibration_tokens, seed and the weights of tokens: as in PruneRecipe.
    epochs: passes over the training tokens. step_tokens: tokens per step of Adam; at least one sequence.
    rate: peak learning rate, relative to each tensor's root mean square, in (0, 1).
    norms: whether norms and biases are trained, too.
    target: what a block learns to output. `dense`: the dense model's hidden states at that depth; `own`: what the dense
        model's block outputs for the pruned model's input.
    """

    LATER: ClassVar[tuple[str, ...]] = ("closing_weight",)
    REMOVED: ClassVar[Mapping[str, Any]] = MappingProxyType({"closing_weight": None})

    calibration: str = "auto"
    samples: int = 128
    seqlen: int = 2048
    calibration_tokens: int | None = None
    prompt_weight: float = 1.0
    chain_weight: float = 1.0
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


@dataclass(frozen=True)
class EvalPlan(Recipe):
    """How to evaluate one model: which problems, how much thinking, how to sample.

    tasks: names of problem sets or .jsonl files.
    budgets: thinking tokens allowed, strictly increasing; 0 means no thinking. "off" (prunus.budgets.OFF), which comes
        first, switches the thinking off in the way that the profile names, with a prompt of its own.
    samples: draws per problem and budget.
    profile: strings that open, cut and close the model's thinking: a name, a .toml file, or `auto`: the profile
        that the model's files indicate.
    mode: `strict` caps the answer and bans thinking markers in it; `legacy` follows the papers' scripts.
    answer_tokens: cap on the answer. None: the mode's (strict 1024, multiple choice 512, tiny 64; legacy 32768). In
        mode legacy the context may leave less.
    wait: number of times that the end of thinking is suppressed and replaced by "Wait".
    temperature, top_p, top_k: of sampling. None: the profile's; temperature 0 is greedy, top_k 0 is off.
    prompt: `bare` problem text, or `boxed`, which also asks for a boxed answer.
    limit: use the first N problems of each task.
    seed: of all sampling.
    backend: inference engine, one of prunus.engines.BACKENDS.
    reuse: sample one chain at the largest budget and cut it for the others.
    batch_size: chains generated and stored together. It is part of the plan, so that a resumed run has the same
        batches. None: the backend's own (prunus.engines.BACKENDS).
    closing: text that ends the thinking at the budget. None: the profile's.
    control: who keeps the budget: `forced`, prunus by budget forcing; `native`, the engine or the model itself, in the
        way that the profile names, through chat completions. Then every budget has chains of its own (reuse is False).
    aa_control: evaluate in batches of another size, as a run of its own that says how much rounding alone moves; in a
        study, the dense model besides all cells.
    """

    LATER: ClassVar[tuple[str, ...]] = ("closing", "control", "aa_control")

    tasks: tuple[str, ...]
    budgets: tuple[int | Off, ...] = DEFAULT_BUDGETS
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
    closing: str | None = None
    control: Control = "forced"
    aa_control: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.budgets, list | tuple) and str(OFF) in self.budgets:
            object.__setattr__(self, "budgets", tuple(OFF if one == str(OFF) else one for one in self.budgets))
        super().__post_init__()
        if not self.tasks:
            raise PrunusError("name at least one task; `prunus tasks` lists them")
        if self.profile not in PROFILE_NAMES and not self.profile.endswith(".toml"):
            raise PrunusError(
                f"profile '{self.profile}' is not known; choose one of {', '.join(PROFILE_NAMES)}, or a FILE.toml"
            )
        self._check_choice("mode", Mode)
        self._check_choice("prompt", PromptStyle)
        self._check_choice("backend", BACKENDS)
        self._check_choice("control", Control)
        self._check_native()
        if self.aa_control and BACKENDS[self.backend].streams:
            raise PrunusError(f"aa_control needs other batches, and {self.backend} makes its own: leave it out")
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
        if self.wait and self.reuse and len(without_off(self.budgets)) > 1:
            raise PrunusError("--wait changes the chain before its end, so budgets cannot share it: add --no-reuse")

    def _check_native(self) -> None:
        if self.control != "native":
            return
        if not BACKENDS[self.backend].chats:
            able = " or ".join(name for name, entry in BACKENDS.items() if entry.chats)
            raise PrunusError(f"control native needs the backend {able}, whose engine keeps the budget")
        if self.wait or self.closing is not None:
            raise PrunusError("control native leaves the end of thinking to the engine: leave --wait and --closing out")
        object.__setattr__(self, "reuse", False)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data; the budget OFF is the text `off`."""
        return super().to_json() | {"budgets": with_names(self.budgets)}

    @property
    def rows(self) -> int:
        """The batch size that takes effect: the plan's, or the backend's own."""
        return self.batch_size or BACKENDS[self.backend].batch_size


@dataclass(frozen=True)
class TraceRecipe(Recipe):
    """Which of a model's own chains to keep for calibration.

    tasks: names or .jsonl files; evaluation sets are refused.
    samples: chains per problem.
    max_tokens: thinking tokens allowed per chain.
    only: `correct` keeps only chains with a correct answer.
    min_tokens: keep only chains with at least N thinking tokens.
    hardest: keep only the harder half of the problems: those solved least often, ties by longer thinking.
    answer_tokens: cap on the answer, for which the context must have room. None: as in EvalPlan.

    The other fields are those of EvalPlan.
    """

    LATER: ClassVar[tuple[str, ...]] = ("answer_tokens",)

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
    answer_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("only", TraceFilter)
        self._check_positive("max_tokens")
        if self.min_tokens < 0:
            raise PrunusError(f"min_tokens must be 0 or more, not {self.min_tokens}")
        if self.min_tokens > self.max_tokens:
            raise PrunusError(
                f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}: nothing would be kept"
            )
        self.plan()

    def plan(self) -> EvalPlan:
        """The evaluation plan that draws the chains; its only budget is max_tokens."""
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
            answer_tokens=self.answer_tokens,
        )


def check_budgets(budgets: Sequence[int]) -> None:
    """Raise PrunusError unless budgets are whole numbers >= 0 in strictly increasing order, possibly after OFF."""
    if not budgets:
        raise PrunusError("name at least one thinking budget, such as --budgets 512,1024")
    for budget in budgets:
        if budget < 0 and not isinstance(budget, Off):
            raise PrunusError(
                f"budget {budget} is negative; a budget is a number of thinking tokens, 0 for none, or `off`, which"
                " switches the thinking off"
            )
    if OFF in budgets[1:]:
        raise PrunusError("budget off must come first, before all numbers")
    for smaller, larger in pairwise(budgets):
        if larger <= smaller:
            raise PrunusError(f"budgets must increase: {larger} follows {smaller}")
