"""The records of a choice, of which choice.json is made: what was declared, what was measured, and what rows show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from rich.text import Text

from prunus.disk import show_bytes
from prunus.plain_data import Record, StoredData
from prunus.questions import order_of_bets
from prunus.settings.cache_size import CacheSize
from prunus.statistics.anytime import Round, whole_groups
from prunus.store.stored import Environment, read_draws
from prunus.studies.choose.limits import Limits
from prunus.text_table import UNLIMITED, TextTable, printed

FILE, PAGE, SCRIPT = "choice.json", "choice.html", "serve.sh"  # names in the folder of a result
DENSE_FORM = "dense"


class Form(Record):
    """A model in a form of the engine: as it is, or after some steps.

    model: its label. source: as the user named it. form: `dense`, or the name of its steps. run: its id in the store.
    steps: {action: recipe} of each. bytes: of weights that the engine loads. cache: of a sequence. prompt, longest:
    mean and largest number of tokens of the task's prompts.
    """

    model: str
    source: str
    form: str
    run: str
    steps: Sequence[Mapping[str, Any]]
    bytes: int
    cache: CacheSize
    prompt: float
    longest: int

    @property
    def name(self) -> str:
        """Name of the model with its form: `tiny dense`."""
        return f"{self.model} {self.form}"


class Declared(Limits):
    """What was fixed before any row was looked at, the limits among it.

    engine: program in which forms are served. problems: ids by task. groups: first problem of the group, for problems
    that are not alone. samples: draws of each problem; with several, votes of all of them are choices, too. answer:
    most tokens of an answer. margin, alpha: of the claim. look: rounds between two decisions. pilot: number of first
    rounds, whose tokens decide which choices fit. sampled: whether missing rows are drawn; else only stored rows are
    taken. questions: question_key by problem, from which the order follows; None in an older choice, where it follows
    from the seed. fixed: whether all rows were there before, and no run was ever stopped because of its rows.
    """

    memory: int
    engine: str
    problems: Mapping[str, Sequence[str]]
    groups: Mapping[str, str]
    seed: int
    budgets: Sequence[int]
    samples: Annotated[int, read_draws]
    answer: int
    margin: float
    alpha: float
    look: int
    pilot: int
    sampled: bool
    forms: Sequence[Form]
    questions: Mapping[str, str] | None = None
    fixed: bool | None = None

    def __post_init__(self) -> None:
        """Skip the checks of Limits, which were made before; a choice from a file is checked by `check_sense`."""
        Record.__post_init__(self)

    @cached_property
    def order(self) -> list[Round]:
        """The rounds in which problems are taken."""
        if self.questions is not None:
            tasks = {task: order_of_bets(names, self.questions) for task, names in self.problems.items()}
            return whole_groups(tasks, None, self.groups)
        return whole_groups(self.problems, self.seed, self.groups)

    @property
    def votes(self) -> list[int]:
        """Numbers of votes to choose among."""
        return [1] if self.samples == 1 else [1, self.samples]

    @property
    def chains(self) -> list[int]:
        """Numbers of chains at once that the choices need, which are votes times users."""
        return sorted({votes * self.users for votes in self.votes})


class Timed(Record):
    """Speed of a form with this many chains at once: medians over rounds, each timed in turn with other forms.

    prompt_seconds: of reading a prompt of prompt_tokens in each chain. first, last: seconds of one more token of each
    chain after the prompt, and at the depth of the largest budget. depth: tokens between both. rounds: the values
    of these three numbers in each round.
    """

    chains: int
    prompt_tokens: int
    prompt_seconds: float
    first: float
    last: float
    depth: int
    rounds: Sequence[Sequence[float]]

    def seconds(self, prompt: float, tokens: float) -> float:
        """Seconds of an answer: its prompt, then `tokens` tokens, which get slower as the chain gets longer."""
        slope = (self.last - self.first) / max(1, self.depth)
        return self.prompt_seconds * prompt / self.prompt_tokens + tokens * self.first + slope * tokens * tokens / 2


class Cost(Record):
    """What was measured of a form.

    times: for each number of chains at once. peak: most bytes of the engine's processes; `weights` and `cache` are the
    parts of it that were predicted. engine: what it says of itself, with device and threads. date: UTC. load: median
    over rounds of the machine's load average before each; None where it is not known.
    """

    times: Sequence[Timed]
    peak: int
    weights: int
    cache: int
    engine: Environment
    date: str
    load: float | None = None

    @property
    def constant(self) -> int:
        """Bytes that the engine takes besides weights and cache."""
        return max(0, self.peak - self.weights - self.cache)

    def timed(self, chains: int) -> Timed:
        """The speed with this many chains at once."""
        return next(timing for timing in self.times if timing.chains == chains)


@dataclass(frozen=True, kw_only=True)
class Machine(StoredData):
    """Machine on which speeds were measured.

    processor, system: their names. cores: of the processor. kernels: instructions on which kernels depend, of those it
    has. threads: OMP_NUM_THREADS, where it is set.
    """

    processor: str | None = None
    cores: int | None = None
    system: str | None = None
    kernels: str | None = None
    threads: str | None = None


class Costs(Record):
    """What was measured on a machine. forms: by run."""

    machine: Machine
    forms: Mapping[str, Cost]


class ChoiceRow(Record):
    """One of the choices.

    model, form, budget, votes: of the choice.
    run: the id of its rows in the store.
    bytes: of weights, the caches of all chains at once, and the engine itself.
    seconds, p95: of an answer: mean and 95th percentile over the rows; None where none were needed.
    accuracy: share of the problems that it solves; None where it does not fit.
    low, high: bounds of that, with confidence for all choices together.
    problems: that it was evaluated on.
    state: `chosen`, `fits`, `worse` (than another that fits, as is shown), `too slow`, `too large` or `no rows`.
    better_by: most by which it can be better than the chosen choice, at the claim's confidence; None where it is worse.
    """

    model: str
    form: str
    budget: int
    votes: int
    run: str
    bytes: int
    seconds: float | None
    p95: float | None
    accuracy: float | None
    low: float | None
    high: float | None
    problems: int
    state: str
    better_by: float | None

    @property
    def name(self) -> str:
        """Name of the choice: `tiny dense, 128 tokens, 3 votes`."""
        return f"{self.model} {self.form}, {self.budget} tokens" + (f", {self.votes} votes" if self.votes > 1 else "")


class ChoiceResult(Record):
    """What rows and costs show.

    chosen: None where nothing fits. low, high: bounds of its accuracy, corrected for having been chosen. excess: no
    other choice that fits is more than this better, as claimed. rounds: number of those looked at after the pilot.
    stopped: whether that was before problems ran out. claims, notes: sentences. tokens: sampled for the rows.
    full_tokens: estimated, of all these forms on all problems.
    """

    chosen: ChoiceRow | None
    choices: Sequence[ChoiceRow]
    low: float
    high: float
    excess: float
    rounds: int
    stopped: bool
    claims: Sequence[str]
    notes: Sequence[str]
    tokens: int
    full_tokens: int


class ChoiceHistory(Record):
    """A choice in the store's log. id: its id. before: ids of earlier choices that share a model and a problem with it.

    alpha: the sum of the alphas of all of these, at most 1. link: of its entry in the log.
    """

    id: str
    before: Sequence[str]
    alpha: float
    link: str


class Choice(Record):
    """The content of choice.json. rows: a hash of the rows looked at, by run. content: a hash of all other fields.

    looks: what the store's log says of the choice; without it, `verify` does not confirm the choice.
    """

    kind: Literal["choice"] = "choice"
    format: int
    version: str
    date: str
    declared: Declared
    costs: Costs
    shown: ChoiceResult
    rows: Mapping[str, str]
    looks: ChoiceHistory | None
    content: str


HEADINGS = ("model and form", "budget", "votes", "memory", "seconds", "95 %", "accuracy", "problems", "")


class Chosen(Record):
    """What `choose` chose; its repr is a table of all choices and what is claimed.

    out: the folder that was written; None where nothing fits, or without one.
    chosen: the choice; None where nothing fits.
    choices: all of them.
    low, high: bounds of the accuracy of the chosen choice, corrected for having been chosen.
    excess: no other choice that fits is more than this better, at 95 % unless alpha is another.
    claims: sentences, each with that confidence.
    notes: what else is to be known.
    """

    out: str | None
    chosen: ChoiceRow | None
    choices: Sequence[ChoiceRow]
    low: float
    high: float
    excess: float
    claims: Sequence[str]
    notes: Sequence[str]

    def __repr__(self) -> str:
        table = TextTable(*HEADINGS, left=("",), gap=2)
        for row in self.choices:
            seconds, p95 = ("" if value is None else f"{value:.3g}" for value in (row.seconds, row.p95))
            solved = "" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"
            of_form = f"{row.model} {row.form}", str(row.budget), str(row.votes), show_bytes(row.bytes)
            table.add_row(*of_form, seconds, p95, solved, str(row.problems or ""), row.state)
        return printed(table, *map(Text, [*self.claims, *self.notes]), width=UNLIMITED)


class PlannedChoice(Record):
    """Forecast of a choice; its repr is its lines.

    forms, choices, problems: numbers of them.
    left_out: a line for each form that is too large at every budget, as far as it is known before a test.
    to_make: forms whose files are missing.
    tokens: at most, of all forms on all problems.
    tests: starts of the engine for the speed test.
    lines: all of this in sentences.
    """

    forms: int
    choices: int
    problems: int
    left_out: Sequence[str]
    to_make: Sequence[str]
    tokens: int
    tests: int
    lines: Sequence[str]

    def __repr__(self) -> str:
        return "\n".join(self.lines)
