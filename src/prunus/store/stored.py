"""Plain data that a store keeps of runs, parsed: whoever reads a run finds fields with types, and no keys.

The plain data stays beside the fields, since ids are hashes of it, and plans are compared in all that they have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Self

from prunus.plain_data import read_hints, read_value
from prunus.settings.budgets import AS_RUN, OFF, budget_of

MOST = 1 << 62  # tokens, draws and bytes: what SQLite's and numpy's whole numbers hold, with room for a sum


def read_budget(value: Any) -> int:
    """The budget that a text or a number stands for. Raises ValueError if it is none."""
    if value not in (str(OFF), str(AS_RUN)) and not (type(value) is int and OFF <= budget_of(value) < MOST):
        raise ValueError("a budget is no number of tokens")
    return budget_of(value)


def read_draws(value: Any) -> int:
    """A number of draws. Raises ValueError if it is none."""
    if type(value) is not int or not 0 < value < MOST:
        raise ValueError("it is no number of draws")
    return value


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """Stored plain data, and the fields that are read of it; a field that it lacks has its default.

    data: as it is stored, or will be.
    """

    data: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: "Mapping[str, Any] | StoredData") -> Self:
        """The fields of plain data. Raises ValueError, which names the field, for another type."""
        data, hints = data.data if isinstance(data, StoredData) else data, read_hints(cls)
        values = dict[str, Any]()
        for part in fields(cls):
            if part.name == "data" or (value := data.get(part.name)) is None:
                continue
            try:
                values[part.name] = read_value(hints[part.name], value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{part.name}: {error}") from error
        return cls(data=data, **values)

    def differing(self, other: "StoredData") -> list[str]:
        """The keys of the plain data of both in which they differ, sorted."""
        keys = self.data.keys() | other.data.keys()
        return sorted(key for key in keys if self.data.get(key) != other.data.get(key))

    def to_json(self) -> Mapping[str, Any]:
        """The plain data."""
        return self.data

    def __or__(self, changes: "Mapping[str, Any] | StoredData") -> Self:
        """Copy with these keys of the plain data instead."""
        return self.of({**self.data, **(changes.data if isinstance(changes, StoredData) else changes)})


@dataclass(frozen=True, kw_only=True)
class SampledTasks(StoredData):
    """Sets of which a limit took a sample, rather than the first problems.

    tasks, sizes: the sets, and how many problems they have.
    """

    tasks: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


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
    strings: Mapping[str, Any] = field(default_factory=dict)
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
        """Whether it says how a log of another tool was read."""
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
