"""The records of a certificate of `prunus find`: what was declared, what follows from the rows, and what was made.

They are read once from JSON, where the names of the fields are the keys.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from prunus.disk import write_text
from prunus.errors import PrunusError, unreadable
from prunus.formats import check_format
from prunus.manifest import StepRecord
from prunus.plain_data import Record, canonical_json, content_hash, is_storable, parse_json
from prunus.results.ladder import Rule
from prunus.results.vocabulary import RungVerdict
from prunus.settings.margins import Margin
from prunus.settings.serving import Serving
from prunus.statistics.anytime import Round, whole_groups
from prunus.store.stored import Environment, StoredPlan, read_draws

MEANINGLESS = (LookupError, TypeError, ValueError, AttributeError)  # what reading wrong records raises


class EngineBytes(Record):
    """Memory in an engine, for ladders by bytes. bytes: of weights. cache: of a chain; None if not counted."""

    LAST = ("bytes", "cache")

    bytes: int | None = None
    cache: int | None = None

    @property
    def size(self) -> int | None:
        """Bytes of weights and cache; None for ladders by what is removed."""
        return None if self.bytes is None else self.bytes + (self.cache or 0)


class DeclaredServing(Record):
    """Serving of a model. name: as in the names of rungs. content: its settings that count, as the store has them."""

    name: str
    content: Annotated[Serving, Serving.from_json]

    @property
    def words(self) -> str:
        """The name and the settings, such as `KV q4_0 (-ctk q4_0, -ctv q4_0)`."""
        settings = self.content.label
        return f"{self.name} ({settings})" if self.name and settings else self.name or settings


class DeclaredModel(EngineBytes):
    """The dense model. name: as in lines and pages. source: as the user named it. checksum: of its weights.

    engine: whose bytes the ladders go by; None for ladders by what is removed. tokens: of the chain whose cache is
    counted: the longest prompt and the largest budget. serving: of this model and of all rungs that end in no other;
    None without any setting that counts.
    """

    name: str
    source: str
    checksum: str | None
    engine: str | None = None
    tokens: int | None = None
    serving: DeclaredServing | None = None


class DeclaredRung(EngineBytes):
    """A rung as declared. removed: share of the weights. serving: in which it ends; None: that of the dense model."""

    name: str
    run: str
    removed: float
    serving: DeclaredServing | None = None

    @property
    def rank(self) -> float:
        """How far the rung goes, by which the best certified rung is chosen: the share removed, or minus its size."""
        return self.removed if self.size is None else -self.size

    def exceeds(self, best: "DeclaredRung | None", same_ladder: bool) -> bool:
        """Whether its rank is above the best so far, or equal on the same ladder and the rung has its own serving."""
        if best is None or self.rank != best.rank:
            return best is None or self.rank > best.rank
        return same_ladder and self.serving is not None


class DeclaredLadder(Record):
    """The rungs of a method or file, which is its name, in the order in which they are tried."""

    name: str
    rungs: Sequence[DeclaredRung]


class Declaration(Record):
    """Settings that are fixed before a search looks at a row; their hash is the id of the search in the store.

    dense: run of the dense model. problems: ids by task. groups: {problem: first problem of its group}, of problems
    that count as one observation with others. samples: draws of each problem; base_samples: those of the dense model,
    where their number differs. margin, stop_margin: losses to rule out. alpha: of all ladders together. look: problems
    of the smallest task between two decisions.
    """

    model: DeclaredModel
    dense: str
    problems: Mapping[str, Sequence[str]]
    groups: Mapping[str, str] | None = None
    seed: int
    budgets: Sequence[int]
    samples: Annotated[int, read_draws]
    base_samples: Annotated[int, read_draws] | None = None
    reuse: bool
    ladders: Sequence[DeclaredLadder]
    margin: Margin
    stop_margin: Margin
    alpha: float
    endpoints: Sequence[str]
    look: int
    max_tokens: int | None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The declaration that was written as this plain data. Raises ValueError if it would be written otherwise."""
        declaration = super().of(data)
        if canonical_json(declaration.to_json()) != canonical_json(data):
            raise ValueError("it is not as a search declares it")
        if declaration.look < 1:  # no interim analysis would be the last
            raise ValueError(f"look: {declaration.look} is no number of problems")
        return declaration

    @cached_property
    def search_id(self) -> str:
        """The id of the search."""
        return content_hash(self.to_json())

    @property
    def rungs(self) -> list[DeclaredRung]:
        """Rungs of all ladders, as declared."""
        return [rung for ladder in self.ladders for rung in ladder.rungs]

    @property
    def runs(self) -> dict[str, str]:
        """{run: name of its model}, the dense model's first."""
        return {self.dense: self.model.name} | {rung.run: rung.name for rung in self.rungs}

    @property
    def rule(self) -> Rule:
        """The rule by which each ladder is walked; its alpha is an equal part of the search's."""
        return Rule(self.margin, self.stop_margin, self.alpha / len(self.ladders))

    @property
    def dense_draws(self) -> int:
        """The number of draws of each problem that the dense model has."""
        return self.samples if self.base_samples is None else self.base_samples

    @property
    def number_of_groups(self) -> int:
        """How many groups the problems form; as many as there are problems if each is alone."""
        return sum(map(len, self.problems.values())) - len(self.groups or {})

    def order(self, tasks: Iterable[str]) -> list[Round]:
        """The rounds in which problems are taken. tasks: all, in the order that they have in a round."""
        return whole_groups({task: self.problems[task] for task in tasks}, self.seed, self.groups or {})

    def same_search(self, other: "Declaration") -> bool:
        """Whether both are of the same search; the order of problems within a task is no matter."""
        left, right = (
            replace(each, problems={task: sorted(names) for task, names in each.problems.items()})
            for each in (self, other)
        )
        return left == right


class BoundsByRound(Record):
    """(estimate, lower bound, upper bound) of each endpoint after some numbers of rounds."""

    rounds: Sequence[int]
    accuracy: Sequence[Sequence[float]]
    ends: Sequence[Sequence[float]]

    def by(self, end: str) -> Sequence[Sequence[float]]:
        """Bounds of an endpoint: `accuracy` or `ends`."""
        return {"accuracy": self.accuracy, "ends": self.ends}[end]


class ShownRung(EngineBytes):
    """Result of a rung that was looked at, from its rows.

    word: certified, refused or cannot tell, after `rounds` rounds of `problems` problems. why: what left it open.
    failed: the endpoints that refused it, or do not certify it. looked: rounds of which rows were taken. tokens:
    sampled for them. evidence: of `ladder.Decision`. path: bounds up to the decision. accuracy, dense_accuracy:
    estimate and bounds at each budget, over all rounds looked at; None without any. recipe: history of the checkpoint.
    same_plan: whether its plan is the dense model's, as declared. rows: hash of those looked at.
    """

    name: str
    run: str
    word: RungVerdict
    why: str
    failed: Sequence[str]
    rounds: int
    problems: int
    looked: int
    tokens: int
    evidence: Mapping[str, Mapping[str, float | None]]
    path: BoundsByRound
    accuracy: Sequence[Sequence[float]] | None
    dense_accuracy: Sequence[Sequence[float]] | None
    checksum: str | None
    recipe: Sequence[StepRecord]
    versions: Environment
    same_plan: bool
    rows: str

    @property
    def certified(self) -> bool:
        """Whether claims are made about it."""
        return self.word == RungVerdict.CERTIFIED


class ShownLadder(Record):
    """The rungs of a ladder that were looked at."""

    name: str
    rungs: Sequence[ShownRung]


class FoundRung(EngineBytes):
    """The most compressed certified rung. removed: share of the weights. problems: that its decision took."""

    name: str
    run: str
    removed: float
    checksum: str | None
    problems: int


class ShownDense(Record):
    """The dense model's run: the rounds looked at, tokens sampled for them, the hash of their rows, and its plan."""

    run: str
    looked: int
    tokens: int
    rows: str
    checksum: str | None
    plan: StoredPlan
    versions: Environment


class EarlierSearch(Record):
    """Id and rules of a search; the store knows when it was declared. problems: number of problems by task."""

    id: str
    rungs: Sequence[str]
    problems: Mapping[str, int]
    margin: Margin
    stop_margin: Margin
    alpha: float
    seed: int
    budgets: Sequence[int]
    samples: Annotated[int, read_draws]
    base_samples: Annotated[int, read_draws] | None = None


class EarlierRows(Record):
    """How many problems and rows a run of a search had when the search was declared. name: of its model."""

    run: str
    name: str
    problems: int
    rows: int


class SearchHistory(Record):
    """Record that a store keeps of a search and of the searches before it.

    before: searches of its model and tasks that were declared before it.
    had: rows that its runs had when it was declared. alpha: the sum over all of these searches. link: of its entry in
    the store's log; None if there is none.
    """

    id: str
    before: Sequence[EarlierSearch]
    had: Sequence[EarlierRows]
    alpha: float
    link: str | None


class SearchResult(Record):
    """Result that follows from the declaration and the rows of the store.

    found: None if no rung is certified. tokens: sampled for all rows looked at. full_grid_tokens: what all rungs in
    full would have taken. problems: hash of those looked at. searches: None where the store has no record of it.
    claims: sentences.
    """

    ladders: Sequence[ShownLadder]
    found: FoundRung | None
    dense: ShownDense
    tokens: int
    full_grid_tokens: int
    problems: str
    searches: SearchHistory | None = None
    claims: Sequence[str] = ()

    @property
    def rungs(self) -> list[ShownRung]:
        """Rungs that were looked at, of all ladders."""
        return [rung for ladder in self.ladders for rung in ladder.rungs]


class Endings(Record):
    """Shares of chains that end by themselves: the dense model's, and those of the rung found (None without one)."""

    dense: float
    found: float | None


class WrittenCheckpoint(Record):
    """The checkpoint that was written. checksum: of its weights; None if none was. files: {name: BLAKE3}."""

    checksum: str | None
    files: Mapping[str, str]


class Certificate(Record):
    """The certificate of a finished search. prunus: the version that wrote it. content: hash of all else.

    endings, caution: shares of chains that end, and a warning where a margin says little.
    """

    kind: Literal["certificate"] = "certificate"
    format: int
    prunus: str
    declared: Declaration
    shown: SearchResult
    endings: Endings | None
    caution: str | None
    made: WrittenCheckpoint
    content: str


def content_of(data: Mapping[str, Any]) -> str:
    """The hash of a certificate or choice, as plain data, without its field `content`, which has this hash."""
    return content_hash({name: part for name, part in data.items() if name != "content"}, 64)


def write_certificate(certificate: Certificate, file: Path) -> None:
    """Write a certificate to a file."""
    write_text(file, json.dumps(certificate.to_json(), indent=1, ensure_ascii=False) + "\n")


def read_certificate(file: Path) -> Certificate:
    """The certificate in a file. Raises PrunusError if it is none."""
    try:
        return Certificate.of(read_plain(file))
    except MEANINGLESS as error:
        raise PrunusError(f"'{file}' is not a certificate of `prunus find`") from error


def read_plain(file: Path) -> dict[str, Any]:
    """The certificate in a file as plain data, whose parts may make no sense. Raises PrunusError if it is none."""
    try:
        data = parse_json(file.read_text("utf-8"))
    except OSError as error:
        raise unreadable(f"the certificate '{file}'", error) from error
    except ValueError as error:
        raise PrunusError(f"'{file}' is not a certificate: it is not JSON") from error
    parts = ("format", "declared", "shown", "made", "content")
    if (
        not isinstance(data, dict)
        or not is_storable(data)
        or any(part not in data or (part in parts[1:-1] and not isinstance(data[part], dict)) for part in parts)
    ):
        raise PrunusError(f"'{file}' is not a certificate of `prunus find`, nor a choice in the format of this version")
    instead = "`prunus find` into another folder makes a new one from the rows of the store"
    check_format("certificate", file, data["format"], instead)
    return data
