"""Plain data of the runs in a store, parsed into objects with typed fields.

The plain data stays beside the fields, since ids are hashes of it, and plans are compared by all their keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from prunus.manifest import Manifest
from prunus.plain_data import StoredData
from prunus.settings.budgets import AS_RUN, MOST_DRAWS, OFF, budget_of
from prunus.settings.cache_size import CacheOfChain
from prunus.settings.serving import NO_SERVING, Serving

MOST = 1 << 62  # tokens and bytes: what SQLite's and numpy's whole numbers hold, with room for a sum


def read_budget(value: Any) -> int:
    """The budget that a text or a number stands for. Raises ValueError if it is none."""
    if value not in (str(OFF), str(AS_RUN)) and not (type(value) is int and OFF <= budget_of(value) < MOST):
        raise ValueError("a budget is no number of tokens")
    return budget_of(value)


def read_draws(value: Any) -> int:
    """A number of draws. Raises ValueError if it is none."""
    if type(value) is not int or not 0 < value <= MOST_DRAWS:
        raise ValueError("it is no number of draws")
    return value


def read_bytes(value: Any) -> int:
    """A number of bytes. Raises ValueError if it is none."""
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError("it is no number of bytes")
    return value


@dataclass(frozen=True, kw_only=True)
class StoredModel(StoredData):
    """The model of a run.

    name: shown to people; nothing of it is in the run's id.
    source: the folder or hub id by which it was evaluated.
    checksum: of its weights, or of an imported log; None where it is not known.
    manifest: what was done to it.
    parameters: their number.
    bytes: that an engine loads, by kind; None where they are unknown.
    blocks: their number.
    dtype: of its weights, unless these are quantised.
    content: digest of configuration, tokenizer and template.
    serving: how it was served; empty where nothing of that counts.
    served_as: what labels call the serving; nothing of it is in the run's id.
    cache: size of the cache of a chain; None where it is not known.
    """

    name: str = ""
    source: str | None = None
    checksum: str | None = None
    manifest: Manifest = field(default_factory=Manifest)
    parameters: int | None = None
    bytes: Mapping[str, Annotated[int, read_bytes]] | None = None
    blocks: int | None = None
    dtype: str | None = None
    content: str | None = None
    serving: Annotated[Serving, Serving.from_json] = NO_SERVING
    served_as: str | None = None
    cache: Annotated[CacheOfChain, CacheOfChain.stored] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """Stored: what is in the run's id besides weights and plan, as it is stored."""
        return {key: self.data[key] for key in ("content", "serving") if self.data.get(key)}

    @property
    def weights(self) -> object:
        """Stored: identity of its weights: their checksum, or all plain data of the model where there is none."""
        return self.checksum or self.data


RULES = ("grader", "protocol")
CHOOSE = "choose"


@dataclass(frozen=True, kw_only=True)
class Environment(StoredData):
    """Record of what computes the rows of a start of a run: versions, the machine, and settings of the engine.

    prunus: version; None in a log of another tool.
    grader, protocol: version of each; several where rows follow several (`1 and 2`).
    device, dtype: of the computation.
    address: of a server.
    flags: variables of the environment that the engine heeds.
    """

    prunus: str | None = None
    grader: str | None = None
    protocol: str | None = None
    device: str | None = None
    dtype: str | None = None
    address: str | None = None
    flags: Mapping[str, str] | None = None

    @property
    def rules(self) -> dict[str, str]:
        """Versions of grader and protocol, as far as they are known."""
        return {name: self.data[name] for name in RULES if self.data.get(name)}

    @property
    def without_rules(self) -> Self:
        """The record without the versions of grader and protocol."""
        return self.of({name: value for name, value in self.data.items() if name not in RULES})


@dataclass(frozen=True, kw_only=True)
class Adaptive(StoredData):
    """How rows decided how many problems of a run were taken.

    by: find or CHOOSE.
    seed: of the order in which problems were taken, as prunus.statistics.anytime has it; None: in the order of bets.
    """

    by: str = ""
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class SampledTasks(StoredData):
    """Sets of which a limit took a sample, rather than the first problems.

    tasks, sizes: the sets, and how many problems they have.
    """

    tasks: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProfileStrings(StoredData):
    """Strings of the profile of a plan; of imported logs and other harnesses none.

    thinking_start, think_stops, answer_in_chain, forced_break, forced_closing, strip: as of Profile.
    """

    thinking_start: str = ""
    think_stops: tuple[str, ...] = ()
    answer_in_chain: bool = False
    forced_break: str = ""
    forced_closing: str | None = None
    strip: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoredPlan(StoredData):
    """The plan of a run as it was resolved, with the values that took effect; of an imported log, what that tells.

    tasks: names of the problems' tasks.
    budgets: with OFF first, if it is a budget.
    samples: draws of each problem.
    mode: strict or legacy; of an imported log AS_RUN's name.
    profile, strings: the profile's name and strings.
    temperature, top_p, top_k, seed: of sampling.
    limit: of problems of each task; None means all.
    limit_of: None where the limit took the first problems.
    problems: hash of the problems.
    answer_tokens: the cap on an answer, or that of each kind of problem.
    context: of the model, where it limits answers.
    prompt, wait, closing: as EvalPlan has them.
    control, native: forced or native, and how the engine or the model is told the budget then.
    reuse: whether all budgets of a draw are cut from the same chain; None where it is not known.
    aa_control: whether the run repeats another in other batches.
    backend, batch_size: the engine, and how many chains it decodes together.
    tool, metric: of an imported log.
    lm_eval: version of the harness, of a task of it.
    """

    tasks: tuple[str, ...] = ()
    budgets: tuple[Annotated[int, read_budget], ...] = ()
    samples: Annotated[int, read_draws] = 1
    mode: str | None = None
    profile: str | None = None
    strings: ProfileStrings = field(default_factory=ProfileStrings)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    limit: int | None = None
    limit_of: SampledTasks | None = None
    problems: str | None = None
    answer_tokens: int | Mapping[str, int] | None = None
    context: int | None = None
    prompt: Any = None
    wait: int = 0
    closing: str | None = None
    control: str = "forced"
    native: Mapping[str, Any] | None = None
    reuse: bool | None = None
    aa_control: bool = False
    backend: str | None = None
    batch_size: int | None = None
    tool: str | None = None
    metric: str | None = None
    lm_eval: str | None = None

    @property
    def imported(self) -> bool:
        """Whether the run is an imported log of another tool, and the plan says how that was read."""
        return self.mode == str(AS_RUN)

    @property
    def answer_cap(self) -> int | None:
        """The most tokens of an answer to any problem; None where it is not known."""
        caps = self.answer_tokens
        return max(caps.values(), default=None) if isinstance(caps, Mapping) else caps

    @property
    def is_native(self) -> bool:
        """Whether the engine or the model keeps the budget."""
        return self.control == "native"
