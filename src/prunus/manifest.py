"""Manifests of checkpoints (prunus.json), which record every step; they may be of other programs, or damaged."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from prunus.disk import read_json
from prunus.errors import PrunusError
from prunus.formats import FORMATS, check_format
from prunus.plain_data import StoredData, is_storable, read_value
from prunus.version import __version__

MANIFEST = "prunus.json"
MOST_STEPS = 1000  # of a manifest's history


def read_shares(value: Any) -> dict[str, float]:
    """{Linear: its sparsity} from stored data. Raises ValueError for a value outside [0, 1]."""
    shares = read_value(Mapping[str, float], value)
    if not all(0 <= share <= 1 for share in shares.values()):
        raise ValueError("it has a value that is no share")
    return shares


@dataclass(frozen=True, kw_only=True)
class SourceModel(StoredData):
    """A model to which a step was applied.

    name, checksum: of the model and its weights.
    hub: its id there; None if it has none.
    """

    name: str = ""
    checksum: str = ""
    hub: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredRecipe(StoredData):
    """Settings of a step that labels, cards and pages put into words; `data` has all settings as they are stored.

    The fields come from the recipes of all kinds of steps; a step sets only the fields of its kind.

    method, sparsity, pattern, scope, allocation, update, group: as in PruneRecipe.
    blocks, keep, drop: how much is removed or kept.
    networks: the feed-forward networks that `width` narrowed.
    fit, target, damping: as in WidthRecipe.
    bits, recover: as in QuantizeRecipe.
    type: as in GgufRecipe.
    seed, calibration_tokens: of the calibration.
    imported_as: the name of an imported log.
    """

    method: str | None = None
    sparsity: float | None = None
    pattern: str | None = None
    scope: str = "all"
    allocation: str = "uniform"
    update: str = "none"
    group: str | int | None = None
    blocks: str | int | None = None
    keep: float | None = None
    drop: int | None = None
    networks: str | None = field(default=None, metadata={"key": "of"})
    fit: bool = True
    target: str | None = None
    damping: float | None = None
    bits: int | None = None
    recover: bool = False
    type: str | None = None
    seed: int | None = None
    imported_as: str = field(default="imported", metadata={"key": "as"})
    calibration_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class BeforeAfter(StoredData):
    """A count before and after a step, such as the number of parameters.

    before, after: the count at that time; 0 where it is not stored.
    """

    before: int = 0
    after: int = 0

    @property
    def pair(self) -> tuple[int, int] | None:
        """Both numbers; None where they are not known."""
        return (self.before, self.after) if self.before > 0 and "after" in self.data else None


@dataclass(frozen=True, kw_only=True)
class ExpertCounts(StoredData):
    """Number of experts of each mixture, before and after a step.

    before, after: {block of the mixture: number of experts} at that time.
    """

    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StoredFormat(StoredData):
    """Form in which weights are stored.

    bits: of a weight.
    group: how many inputs share a scale; None means a whole row.
    """

    bits: int | None = None
    group: int | None = None


@dataclass(frozen=True, kw_only=True)
class UsedCalibration(StoredData):
    """Calibration data of a step.

    source: its name.
    sequences, tokens: how many there are.
    sha256: of the ids of the tokens.
    """

    source: str | None = None
    sequences: int | None = None
    tokens: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingCost(StoredData):
    """What training took.

    tokens, steps: how many; a token counts each time that it is trained on.
    """

    tokens: int | None = None
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepRecord(StoredData):
    """A step that was applied to a model.

    action: of its kind of step, or the name that another program gave it.
    recipe: its settings.
    source, dense: the model that it was applied to, and the dense model, if it needed that.
    versions: of libraries, by name.
    warnings: a line each.
    sparsity: of each Linear, by name.
    blocks_removed: their indices in the source.
    experts, channels, parameters, bytes: numbers before and after; the bytes are those that an engine loads.
    format: how the weights are stored.
    calibration, cost: what was used.
    """

    action: str = "?"
    recipe: StoredRecipe = field(default_factory=StoredRecipe)
    source: SourceModel = field(default_factory=SourceModel)
    dense: SourceModel = field(default_factory=SourceModel)
    versions: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    sparsity: Annotated[Mapping[str, float], read_shares] = field(default_factory=dict)
    blocks_removed: tuple[int, ...] = ()
    experts: ExpertCounts = field(default_factory=ExpertCounts)
    channels: BeforeAfter = field(default_factory=BeforeAfter)
    parameters: BeforeAfter = field(default_factory=BeforeAfter)
    bytes: BeforeAfter = field(default_factory=BeforeAfter)
    format: StoredFormat | None = None
    calibration: UsedCalibration | None = None
    cost: TrainingCost | None = None

    @property
    def sources(self) -> list[SourceModel]:
        """The model to which it was applied, and the dense model, if it needed that."""
        return [model for model in (self.source, self.dense) if model.data]

    @property
    def is_complete(self) -> bool:
        """Whether it has the keys that every step of a manifest must have."""
        source, here = self.source.data, self.data
        return {"action", "recipe", "source", "warnings"} <= here.keys() and {"name", "checksum"} <= source.keys()


@dataclass(frozen=True, kw_only=True)
class Manifest(StoredData):
    """Manifest of a model; empty where nothing was done to it.

    profile: how it thinks. history: its steps, oldest first.
    """

    profile: str | None = None
    history: tuple[StepRecord, ...] = ()


def blocks_kept(count: int, steps: Iterable[StepRecord]) -> list[int]:
    """Indices of a model's blocks that remain after the steps of a manifest. count: its number of blocks."""
    kept = list(range(count))
    for step in steps:
        kept = [number for index, number in enumerate(kept) if index not in step.blocks_removed]
    return kept


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the checkpoint in a folder; empty if there is none, since nothing was done to it."""
    path = folder / MANIFEST
    return checked_manifest(read_json(path), path) if path.exists() else Manifest()


def checked_manifest(manifest: object, path: Path) -> Manifest:
    """The manifest in the content of a file. Raises PrunusError if it is damaged or has another format."""
    if not isinstance(manifest, dict):
        raise PrunusError(f"{path} is no manifest: it is not an object")
    check_format("manifest", path, manifest.get("format"), "make the model again")
    if not is_storable(manifest):
        raise PrunusError(f"{path} is damaged: a text in it has half of a character; fetch it again")
    try:
        parsed = Manifest.of(manifest)
    except ValueError as error:
        raise PrunusError(f"{path} is damaged: {error}; delete it or fetch it again") from error
    if not all(step.is_complete for step in parsed.history):
        raise PrunusError(f"{path} is damaged: its history is not a list of steps; delete it or fetch it again")
    if len(parsed.history) > MOST_STEPS:
        raise PrunusError(
            f"{path} is damaged: its history has {len(parsed.history):,} steps, more than {MOST_STEPS:,}; fetch it"
            " again"
        )
    return parsed


def next_manifest(folder: Path, step: StepRecord) -> Manifest:
    """The manifest after a further step on the checkpoint in folder, whose earlier steps and profile it keeps."""
    before = read_manifest(folder)
    kept = {} if before.profile is None else {"profile": before.profile}
    history = (*before.history, step)
    data = {"prunus": __version__, "format": FORMATS["manifest"], **kept, "history": [done.data for done in history]}
    return Manifest(data=data, profile=before.profile, history=history)
