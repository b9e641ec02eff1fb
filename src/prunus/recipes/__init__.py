"""Recipes: every setting of pruning, recovery, evaluation and traces, with its unit. No model code here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from prunus.errors import PrunusError, nearest
from prunus.recipes.base import DECLARED, TOKEN_WEIGHTS, Calibrated, Recipe, with_options
from prunus.recipes.declarations import Allocation, Criterion, DepthMethod, Group, Method, declared
from prunus.settings import ENGINE, OPTIONS, SAMPLING, Conflict, advanced, setting, settings_of
from prunus.settings.budgets import OFF, Off, with_names, without_off
from prunus.settings.engines import BACKENDS

Scope = Literal["all", "attention", "mlp", "experts", "shared"]
Propagation = Literal["pruned", "dense", "true_sequential", "staged"]
Rounding = Literal["exact", "reference"]
Target = Literal["dense", "own"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Mode = Literal["strict", "legacy"]
Control = Literal["forced", "native"]
PromptStyle = Literal["bare", "boxed"]

DEFAULT_BUDGETS = (512, 1024, 2048, 4096, 8192)
# The folder in which each built-in profile is one file.
PROFILE_FOLDER = Path(__file__).parent / "evaluation" / "profiles"
PROFILE_NAMES = ("auto", *sorted(path.stem for path in PROFILE_FOLDER.glob("*.toml")))
PROFILE_FILE = "prunus_profile.toml"  # in a model's folder: the profile that its maker ships with it
# The sparsity of a recipe that was given none; with a pattern, whose own takes its place, it is as if none were given.
DEFAULT_SPARSITY = 0.5
WIDEST_PATTERN = 256
GROUPS = (128, 64, 32)  # sizes of groups of weights that share a scale
KEEP = 0.75  # share of the experts, or channels, that are kept unless a recipe says otherwise
MULTIPLE = 128  # of which widths are multiples, or of an eighth of a width where that is less
# The learning rate of a recovery that was given none. After least squares the best depends on the tokens, and is chosen
# of these, whether this one was given or not: a recipe says no more than its values.
DEFAULT_RATE = 0.01
RATES_AFTER_FIT = (0.003, 0.01, 0.02)
# Methods that rank weights by scores, and the weights that each ranks together unless the recipe says otherwise.
OWN_GROUP: Mapping[str, Group] = MappingProxyType(
    {name: method.group for name, method in declared(Method).items() if method.ranks}
)


@dataclass(frozen=True)
# pyright checks files in an order of its own, and in some orders takes the decorator to refer to itself.
@with_options(declared(Method), declared(Allocation))  # pyright: ignore[reportGeneralTypeIssues]
class PruneRecipe(Calibrated):
    """How to zero weights."""

    STORED: ClassVar[Mapping[str, Any]] = {
        **Calibrated.STORED,
        "gradient_scale": 100.0,
        "repair_rounds": 5,
        "repair_rate": 3e-7,
        "statistic": "mean",
        "row_power": 0.0,
        "window": "fixed",
    }
    REMOVED: ClassVar[Mapping[str, Any]] = {
        **TOKEN_WEIGHTS,
        **STORED,
        "expert_spread": 0.0,
        "swap_cycles": 50,
        "swap_threshold": 0.1,
        "admm_iterations": 300,
        "admm_rho": 0.1,
        "min_expert_tokens": 64,
    }

    method: str = setting(
        "wanda",
        "How weights are chosen.",
        choices=tuple(declared(Method)),
        instead={"ria": "wanda", "gblm": "wanda", "wanda++": "wanda", "dsnot": "sparsegpt"},
    )
    sparsity: float = setting(
        DEFAULT_SPARSITY,
        "Share of zeros in the Linears in scope, in [0, 1).",
        at_least=0,
        below=1,
        note="0.2 removes one weight in five",
    )
    pattern: str | None = setting(
        None,
        "Keep N of every M consecutive inputs of a row, instead of a sparsity.",
        metavar="N:M",
        conflicts=(
            Conflict(
                "allocation",
                None,
                "pattern {pattern} gives all blocks the same sparsity; allocation must be uniform",
            ),
        ),
    )
    scope: Scope = setting(
        "all",
        "Which Linears of a block are pruned; mlp includes experts, of which shared are those for every token.",
    )
    group: Group | None = advanced(
        None,
        "Weights that are ranked together: each row or the whole tensor; default: the method's own.",
        late=True,
        conflicts=(
            Conflict("pattern", None, "pattern {pattern} says which weights are ranked together; leave group out"),
        ),
    )
    propagation: Propagation = advanced(
        "pruned",
        "Inputs on which a Linear is calibrated. pruned: those from pruned earlier blocks; dense: those of the dense"
        " model; true_sequential (or staged): those from all pruned earlier Linears, as in SparseGPT's code.",
    )
    update: Literal["none", "obs"] = advanced("none", "obs: SparseGPT's update of the weights that are kept.")
    allocation: str = setting(
        "uniform",
        "How blocks share the sparsity.",
        choices=tuple(declared(Allocation)),
        instead={"dlp": "atp", "alphapruning": "atp", "layerif-sketch": "layerif"},
    )
    step: float | None = DECLARED
    spread: float | None = DECLARED
    outlier_threshold: float = DECLARED
    influence_train: int = DECLARED
    influence_validation: int = DECLARED
    scores: str | None = advanced(
        None, "FILE of importance scores from `prunus allocate --save`, or your own, used instead of measuring."
    )
    rounding: Rounding = advanced(
        "exact", "How counts of zeros are rounded: exactly with ties by index, or as in the authors' code."
    )
    dtype: DtypeName = advanced("auto", "Dtype in which blocks run; auto: the checkpoint's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.propagation == "staged":  # the name in recipes that earlier versions stored
            object.__setattr__(self, "propagation", "true_sequential")
        if self.groups is not None:
            implied = 1 - self.groups[0] / self.groups[1]
            if self.sparsity not in (DEFAULT_SPARSITY, implied):
                raise PrunusError(f"pattern {self.pattern} is a sparsity of {implied:g} already; leave sparsity out")
            object.__setattr__(self, "sparsity", implied)
        if self.group is not None and self.method not in OWN_GROUP:
            raise PrunusError(f"group belongs to method {' or '.join(OWN_GROUP)}, not to {self.method}")
        if self.scores is not None and declared(Allocation)[self.allocation].needs == "nothing":
            raise PrunusError(f"allocation {self.allocation} uses no scores; leave --scores out")
        self.check_options("allocation", declared(Allocation))
        self.check_options("method", declared(Method))

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

    @property
    def measured(self) -> str:
        """What the allocation's scores are measured from; `nothing` if it has none, or the recipe holds them."""
        return declared(Allocation)[self.allocation].needs if self.scores is None else "nothing"


@dataclass(frozen=True)
@with_options(declared(DepthMethod))
class DropRecipe(Calibrated):
    """Which decoder blocks to remove. Where `blocks` names their indices, method and calibration are ignored."""

    STORED: ClassVar[Mapping[str, Any]] = {"telescoping": False}
    REMOVED: ClassVar[Mapping[str, Any]] = STORED

    method: str = setting("shortgpt", "How blocks are chosen.", choices=tuple(declared(DepthMethod)))
    blocks: str | None = setting(None, "Number of blocks (2; default 1), or their indices from 0 (16,17 or 16,).")
    match_sparsity: float | None = setting(
        None,
        "Remove the number of blocks that is nearest to this share of weights, in (0, 1).",
        above=0,
        below=1,
        conflicts=(
            Conflict("blocks", None, "blocks and match_sparsity both set the number of blocks; give one of them"),
        ),
    )
    merge: int = DECLARED
    threshold: float = DECLARED
    interval: int = DECLARED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options("method", declared(DepthMethod))
        if self.blocks is None:
            return
        parts = [part.strip() for part in self.blocks.split(",") if part.strip()]
        if not parts or not all(part.isdecimal() for part in parts):
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
class ExpertsRecipe(Calibrated):
    """Which routed experts of a mixture of experts to remove. The seed is also that of method `random`."""

    STORED: ClassVar[Mapping[str, Any]] = {**TOKEN_WEIGHTS, "spread": "uniform"}
    REMOVED: ClassVar[Mapping[str, Any]] = {**STORED, "distill_router": False}

    method: str = setting(
        "reap",
        "How the experts to keep are chosen.",
        choices=tuple(declared(Criterion)),
        instead={"output": "reap", "router": "reap"},
    )
    keep: float | None = setting(
        None,
        f"Share of the experts that each block keeps, in (0, 1); default: {KEEP:g}.",
        above=0,
        below=1,
        note="0.75 keeps three experts in four",
    )
    drop: int | None = setting(
        None,
        "Number of experts that each block loses, instead of --keep.",
        at_least=1,
        conflicts=(Conflict("keep", None, "keep and drop both set the number of experts; give one of them"),),
    )
    dtype: DtypeName = advanced("auto", "Dtype in which blocks run; auto: the checkpoint's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options("method", declared(Criterion))
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
class WidthRecipe(Calibrated):
    """Which channels of feed-forward networks to remove (docs/width.md). The seed is also that of method `random`."""

    method: Literal["obs", "wanda", "flap", "magnitude", "random"] = setting(
        "obs",
        "How channels are chosen. obs: by the error once all others are updated; wanda: by the norm of what each adds;"
        " flap: by how much that varies; magnitude: by weights.",
    )
    keep: float | None = setting(
        None,
        f"Share of the channels that each network keeps, in (0, 1); default: {KEEP:g}.",
        above=0,
        below=1,
        note="0.75 keeps three channels in four",
    )
    intermediate_size: int | None = setting(
        None,
        "Number of channels that each network keeps, instead of --keep.",
        at_least=1,
        conflicts=(
            Conflict("keep", None, "keep and intermediate_size both set the number of channels; give one of them"),
            Conflict("multiple", None, "intermediate_size is the number of channels itself; leave multiple out"),
        ),
    )
    multiple: int | None = advanced(
        None, f"Round --keep to a multiple of it; default: {MULTIPLE}, or an eighth of a smaller width.", at_least=1
    )
    of: Literal["mlp", "experts", "shared"] | None = setting(
        None, "Networks that are narrowed; default: the routed experts of a mixture, else the dense ones (mlp)."
    )
    target: Target = setting(
        "dense",
        "What is fitted to. dense: what the dense model's block gives; own: what the network gave before, where a norm"
        " or gate follows it in any case.",
    )
    fit: bool = setting(True, "Fit the last Linear of each network to the channels that it keeps, by least squares.")
    damping: float | None = advanced(
        None,
        "How strongly the fit is held to the old weights, as a share of the mean squared input; default: for each"
        " network what errs least on held-out sequences.",
        above=0,
        conflicts=(Conflict("fit", False, "damping is that of the fit; leave it out with fit off"),),
    )
    tensor_parallel: int | None = advanced(
        None, "GPUs among which an engine will divide each network; warn if they cannot.", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is None and self.intermediate_size is None:
            object.__setattr__(self, "keep", KEEP)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """As Recipe says; recipes that were stored before damping was a setting had one of 0.01."""
        return super().from_json({"damping": 0.01 if data.get("fit", True) else None} | data)

    @property
    def needs_data(self) -> bool:
        """Whether it looks at the inputs of the networks' last Linears."""
        return self.fit or self.method in ("obs", "wanda", "flap")

    @property
    def revisions(self) -> dict[str, int]:
        """What is added to keys, so that results of an earlier version are not mistaken for today's."""
        aims = self.method == "obs" and self.fit and self.target == "dense"  # costs were not counted from the target
        return {"obs_revision": 2} if aims else {}

    def count(self, channels: int) -> int:
        """How many of `channels` are kept. Raises PrunusError where these are all of them, or none."""
        if self.intermediate_size is not None:
            kept, what = self.intermediate_size, f"intermediate_size {self.intermediate_size}"
        else:
            multiple = self.multiple or min(MULTIPLE, max(1, channels // 8))
            kept = int((self.keep or KEEP) * channels / multiple + 0.5) * multiple
            what = f"keep {self.keep} in multiples of {multiple}"
        if not 0 < kept < channels:
            raise PrunusError(
                f"{what} would keep {kept} of {channels} channels; some must go, and some must stay"
                + ("" if self.keep is None else ": give another --keep or --multiple")
            )
        return kept


@dataclass(frozen=True)
class QuantizeRecipe(Calibrated):
    """In how many bits the weights of Linears are stored (docs/quantize.md)."""

    STORED: ClassVar[Mapping[str, Any]] = {**Calibrated.STORED, "min_expert_tokens": 64}
    REMOVED: ClassVar[Mapping[str, Any]] = {**TOKEN_WEIGHTS, **STORED}

    bits: int = setting(8, "Bits of a weight: 8, with activations in 8 bits (W8A8), or 4 (W4A16).")
    activations: int | None = advanced(None, "Bits of activations: 8 where weights have 8, 16 where they have 4.")
    group: Literal["128", "64", "32", "row"] | None = setting(
        None,
        "Most consecutive inputs of an output that share a scale: the largest of 128, 64 and 32 up to it that divides"
        " all inputs; default: 128, or with 8 bits a whole row.",
    )
    method: Literal["gptq", "rtn"] = setting(
        "gptq", "gptq: each error is made up for by the weights that follow; rtn: rounding to nearest."
    )
    dtype: DtypeName = advanced("auto", "Dtype in which blocks run; auto: the checkpoint's.")
    recover: bool = setting(
        False,
        "With 4 bits: then train the scales and norms of each block, so that it outputs what the block of MODEL does.",
        late=True,
        conflicts=(
            Conflict("bits", 8, "8 bits cost nothing that training would mend: give bits 4, or leave recover out"),
            Conflict("method", "rtn", "method rtn looks at no tokens, on which recover trains: leave one of them out"),
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (8, 4):
            raise PrunusError(f"bits must be 8 or 4, not {self.bits}: engines load no other format that Prunus writes")
        activations = 8 if self.bits == 8 else 16
        if self.activations not in (None, activations):
            raise PrunusError(
                f"there is no format with weights of {self.bits} bits and activations of {self.activations}: give"
                " --bits 8 --activations 8, or --bits 4 --activations 16"
            )
        if self.bits == 8 and self.group not in (None, "row"):
            raise PrunusError("with 8 bits each row has one scale: leave group out")
        object.__setattr__(self, "activations", activations)
        object.__setattr__(self, "group", self.group or ("row" if self.bits == 8 else "128"))

    @property
    def needs_data(self) -> bool:
        """Whether it looks at the inputs of Linears."""
        return self.method == "gptq"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of groups to try, the largest first; none where a row has one scale."""
        return () if self.group == "row" else tuple(size for size in GROUPS if size <= int(str(self.group)))


@dataclass(frozen=True)
class GgufRecipe(Recipe):
    """The form of a model in a GGUF file (docs/gguf.md)."""

    type: Literal["f16", "q8_0", "q4_0"] = setting(
        "f16", "Form of the blocks' Linears; embeddings and head have 8 bits with q4_0, and the others float32."
    )
    like: str | None = setting(  # pyright: ignore[reportIncompatibleMethodOverride]  # it has no calibration to copy
        None,
        "A GGUF FILE of the dense model, whose metadata and tokenizer are copied, after its weights were compared.",
        metavar="FILE",
    )


@dataclass(frozen=True)
class RecoverRecipe(Calibrated):
    """How to train what pruning kept, block by block (docs/recover.md)."""

    STORED: ClassVar[Mapping[str, Any]] = {**Calibrated.STORED, "norms": True}
    REMOVED: ClassVar[Mapping[str, Any]] = {**TOKEN_WEIGHTS, "norms": True}

    calibration: str = setting("auto", "As for prune; the model's own chains (traces:FILE) are best.")
    seed: int = setting(
        0,
        "Seed of the sample, the held-out tokens and the order of training; the next one where a fitted width had the"
        " same text and seed.",
    )
    epochs: int = setting(4, "Passes over the training tokens.", at_least=1)
    rate: float | None = setting(
        DEFAULT_RATE,
        "Peak learning rate, relative to each tensor's root mean square, in (0, 1); after a fitted width the default is"
        f" that of {', '.join(map(str, RATES_AFTER_FIT))} which leaves the least held-out error in the first block.",
        above=0,
        below=1,
        note="it is a share of each tensor's size",
    )
    step_tokens: int = advanced(512, "Tokens per step of Adam; at least one sequence.", at_least=1)
    target: Target = setting(
        "dense",
        "What a block learns to output. dense: the dense model's hidden states; own: what the dense block outputs for"
        " the pruned model's input.",
    )


@dataclass(frozen=True, kw_only=True)
class Drawing(Recipe):
    """How chains of thought are drawn."""

    GROUP: ClassVar[str] = SAMPLING

    profile: str = setting(
        "auto",
        "Strings that open, cut and close the model's thinking: a name of `prunus profiles`, a FILE.toml, or auto, the"
        " profile that the model's files indicate.",
        metavar="NAME|FILE.toml",
    )
    temperature: float | None = setting(
        None, "0 is greedy; the default is the profile's.", at_least=0, note="0 is greedy"
    )
    prompt: PromptStyle = setting("bare", "bare: only the problem; boxed: also asks for a \\boxed{} answer.")
    limit: int | None = setting(
        None,
        "Use N problems of each task: a fixed sample of a built-in set, the first of a file.",
        at_least=1,
        group=OPTIONS,
    )
    seed: int = setting(0, "Seed of all sampling.")
    batch_size: int | None = setting(
        None,
        "Chains decoded and stored together; default: "
        + ", ".join(f"{entry.batch_size} on {name}" for name, entry in BACKENDS.items())
        + ".",
        at_least=1,
        group=ENGINE,
    )
    backend: str = setting("hf", "Engine: see docs/engines.md.", choices=tuple(BACKENDS), group=ENGINE)


NATIVE = "control native leaves the end of thinking to the engine: leave --wait and --closing out"


@dataclass(frozen=True)
class EvalPlan(Drawing):
    """How to evaluate one model: which problems, how much thinking, how to sample.

    tasks: names of problem sets or .jsonl files.
    """

    tasks: tuple[str, ...]
    budgets: tuple[int | Off, ...] = setting(
        DEFAULT_BUDGETS, "Thinking budgets, in tokens; off, which comes first, switches the thinking off."
    )
    samples: int = setting(1, "Draws per problem and budget.", at_least=1)
    mode: Mode = advanced(
        "strict", "strict caps the answer and bans thinking markers in it; legacy follows the papers' scripts."
    )
    answer_tokens: int | None = advanced(
        None, "Most tokens of an answer; the default depends on mode and task.", at_least=1
    )
    wait: int = advanced(0, "Times to suppress the end of thinking and append 'Wait'.", at_least=0)
    closing: str | None = advanced(None, "Text that ends thinking at the budget, instead of the profile's.", late=True)
    top_p: float | None = advanced(None, "The default is the profile's.", above=0, at_most=1, note="1 is off")
    top_k: int | None = advanced(None, "0 is off; the default is the profile's.", at_least=0, note="0 is off")
    control: Control = advanced(
        "forced",
        "forced: prunus ends the thinking; native: the engine or the model keeps the budget (docs/protocol.md).",
        late=True,
        conflicts=(Conflict("wait", None, NATIVE), Conflict("closing", None, NATIVE)),
    )
    reuse: bool = advanced(
        True, "Sample one chain at the largest budget and cut it for the others, or one chain per budget."
    )
    aa_control: bool = advanced(
        False,
        "Evaluate MODEL once more, in batches of another size: a run that shows how much rounding alone moves.",
        late=True,
    )
    base_samples: int | None = setting(
        None,
        "Draws of the base, which all variants are compared with; default: --samples.",
        at_least=1,
        late=True,
    )

    def __post_init__(self) -> None:
        if isinstance(self.budgets, list | tuple) and str(OFF) in self.budgets:
            object.__setattr__(self, "budgets", tuple(OFF if one == str(OFF) else one for one in self.budgets))
        super().__post_init__()
        if self.base_samples == self.samples:
            object.__setattr__(self, "base_samples", None)
        if not self.tasks:
            raise PrunusError("name at least one task; `prunus tasks` lists them")
        if self.profile not in PROFILE_NAMES and not self.profile.endswith(".toml"):
            names = [*PROFILE_NAMES, "FILE.toml"]
            raise PrunusError(f"profile '{self.profile}' is not known; {nearest(self.profile, names)}")
        if self.control == "native":
            if not BACKENDS[self.backend].chats:
                able = " or ".join(name for name, entry in BACKENDS.items() if entry.chats)
                raise PrunusError(f"control native needs the backend {able}, whose engine keeps the budget")
            object.__setattr__(self, "reuse", False)
        if self.aa_control and BACKENDS[self.backend].streams:
            raise PrunusError(f"aa_control needs other batches, and {self.backend} makes its own: leave it out")
        check_budgets(self.budgets)
        if self.wait and self.reuse and len(without_off(self.budgets)) > 1:
            raise PrunusError("--wait changes the chain before its end, so budgets cannot share it: add --no-reuse")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data; the budget OFF is the text `off`."""
        return super().to_json() | {"budgets": with_names(self.budgets)}

    def draws(self, of_base: bool) -> int:
        """The number of draws of each problem, of the base or of another model."""
        return self.base_samples or self.samples if of_base else self.samples

    @property
    def rows(self) -> int:
        """The batch size that takes effect: the plan's, or the backend's own."""
        return self.batch_size or BACKENDS[self.backend].batch_size


@dataclass(frozen=True)
class TraceRecipe(Drawing):
    """Which of a model's own chains to keep for calibration.

    tasks: names or .jsonl files; evaluation sets are refused.
    """

    STORED: ClassVar[Mapping[str, Any]] = {"hardest": False}
    REMOVED: ClassVar[Mapping[str, Any]] = STORED

    tasks: tuple[str, ...]
    samples: int = setting(1, "Chains per problem.", at_least=1)
    max_tokens: int = setting(8192, "Thinking tokens allowed per chain.", at_least=1)
    answer_tokens: int | None = advanced(
        None, "Most tokens of an answer; the default depends on the task.", at_least=1, late=True
    )
    only: Literal["all", "correct"] = setting("all", "Keep all chains, or only those with a correct answer.")
    min_tokens: int = setting(0, "Keep chains with at least N thinking tokens.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_tokens > self.max_tokens:
            raise PrunusError(
                f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}: nothing would be kept"
            )
        self.plan()

    def plan(self) -> EvalPlan:
        """The evaluation plan that draws the chains; its only budget is max_tokens."""
        shared = {name: getattr(self, name) for name in settings_of(Drawing)}
        own = {"samples": self.samples, "answer_tokens": self.answer_tokens}
        return EvalPlan(tasks=self.tasks, budgets=(self.max_tokens,), **own, **shared)


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
