"""The job of a step, which is a recipe applied to a model, and everything that all steps do around their algorithms.

Wrong input is reported before anything is computed, and a dry run says what would be done. Calibration is read before
weights are, and kept with the unfinished work, so that a job can be resumed. At the end, the manifest and the model
card say what was done.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch

from prunus.cards.certified import read_claims
from prunus.cards.text import README, Card, Zeros, card_text, read_metadata
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import within_memory
from prunus.checkpoint.model_folder import ModelFolder, is_gguf
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.runner import pick_device
from prunus.checkpoint.safetensors_file import Stored
from prunus.checkpoint.writer import HIDDEN, JOURNAL, Partial, check_target, read_journal
from prunus.disk import as_path, check_space, partial_folder, show_bytes, write_text
from prunus.errors import PrunusError
from prunus.manifest import StepRecord, read_manifest
from prunus.plain_data import Record, content_hash
from prunus.pruning.calibration import check_calibration
from prunus.pruning.calibration.data import Calibration, check_kept, describe_calibration, keep_calibration, load_early
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.planned import Json, left_out
from prunus.recipes.base import Calibrated
from prunus.step import Made, Planned, StepOptions, action_of, kind_of
from prunus.version import versions

AnyRecipe = TypeVar("AnyRecipe", bound=Calibrated)


class PlannedJob(Planned):
    """A step's output as planned, and what making it needs.

    disk: space on disk, as text.
    calibration: the calibration tokens, as text.
    """

    LAST = ("disk", "calibration", *Planned.LAST)

    disk: str
    calibration: str


class Sizes(Record):
    """Bytes that an engine loads before and after a step that stores weights in fewer bits, and those after it by kind.

    The kinds are integers, their scales, embeddings, head and others.
    """

    before: int
    after: int
    quantised: int
    scales: int
    embeddings: int
    head: int
    others: int

    @classmethod
    def after_step(cls, source: Checkpoint, kinds: Mapping[str, int]) -> Self:
        """The sizes where the result of a step on source has these bytes of each kind."""
        return cls(before=sum(source.engine_bytes.values()), after=sum(kinds.values()), **kinds)


@dataclass(frozen=True)
class StepJob(Generic[AnyRecipe]):
    """A recipe to be applied to source, with the result in the folder target; steps add fields of their own.

    name: what the manifest calls source. saved: statistics that were measured before, which take the place of
    calibration. started: the time at which it was opened.
    """

    source: Checkpoint
    target: Path
    recipe: AnyRecipe
    options: StepOptions
    device: torch.device
    name: str
    started: float
    saved: SavedStats | None = None

    def with_saved(self, fitting: Callable[[SavedStats, AnyRecipe], AnyRecipe]) -> Self:
        """The job with its file of statistics opened, if it has any.

        fitting: checks the statistics, and returns the recipe with their calibration.
        """
        if self.options.stats is None:
            return self
        if not kind_of(self.recipe).calibrates(self.recipe):
            raise PrunusError(f"method {vars(self.recipe)['method']} needs no statistics; leave --stats out")
        saved = SavedStats(self.options.stats, self.source)
        return replace(self, saved=saved, recipe=fitting(saved, self.recipe))

    @property
    def needs_tokens(self) -> bool:
        """Whether the model is run on calibration tokens."""
        return self.saved is None and kind_of(self.recipe).calibrates(self.recipe)

    def hidden_file(self, partial: Partial) -> Path | None:
        """The file for hidden states; None keeps them in memory."""
        return partial.folder / HIDDEN if self.options.offload else None

    def hidden_bytes(self, of_token: int) -> int:
        """Bytes of the file for hidden states; 0 where there is none. of_token: bytes for each calibration token."""
        return self.recipe.tokens * of_token if self.options.offload and self.needs_tokens else 0

    def origins(self) -> dict[str, Mapping[str, str]]:
        """What the manifest says of the models that the result is made from."""
        return {"source": self.source.provenance(self.name)}

    def identity(self) -> dict[str, str]:
        """Checksums of the models. Unfinished work is continued only if they and the recipe are the same."""
        return {key: origin["checksum"] for key, origin in self.origins().items()}

    @property
    def is_calibrated(self) -> bool:
        """Whether anything is measured on the calibration tokens."""
        return self.needs_tokens

    def preview(self, needed: int, warnings: Sequence[str]) -> PlannedJob:
        """Fields of the plan of every job. needed: bytes of disk; PrunusError if they are not free."""
        check_space(self.target.absolute(), needed)
        calibration, notes = "none needed", list[str]()
        if self.saved is not None:
            calibration = f"statistics of {self.saved.path}: {self.saved.summary['source']}"
        elif self.is_calibrated:
            calibration, notes = describe_calibration(self.recipe, self.source)
        return PlannedJob(
            would_write=str(self.target),
            disk=show_bytes(needed),
            calibration=calibration,
            warnings=list(dict.fromkeys([*notes, *warnings])),
        )

    @contextmanager
    def unfinished_work(
        self, needed: int, entries: Callable[[Json], Mapping[str, Stored]] | None = None
    ) -> Iterator[tuple[Partial, Calibration | None]]:
        """Within the context, the job's unfinished work is open. Yields it and the calibration, None if none is needed.

        needed, entries: as for Partial.
        """
        source, recipe = self.source, self.recipe
        early = load_early(recipe, source, self.target) if self.needs_tokens else None
        saved = {} if self.saved is None else {"stats": self.saved.about.to_json()}
        work = content_hash({"action": action_of(recipe), "recipe": recipe.to_json(), **self.identity(), **saved})
        folder = partial_folder(self.target)
        if self.needs_tokens and early is None and read_journal(folder / JOURNAL).work == work:
            check_kept(recipe, source, folder)
        overwrite, unplaced = self.options.overwrite, left_out(source) if kind_of(recipe).takes_away else ()
        with (
            within_memory(self.device),  # around the other, which keeps what is finished, since memory may get free
            Partial(source, self.target, work, source.blocks, needed, overwrite, unplaced, entries) as partial,
        ):
            calibration = keep_calibration(recipe, source, partial, early) if self.needs_tokens else None
            yield partial, calibration

    def finish(
        self, partial: Partial, calibration: Calibration | None, record: Json, config: Json | None = None
    ) -> Made:
        """Publish the result. record: what the manifest says of the step. config: config.json; None: that of source."""
        step = StepRecord.of(
            {
                "action": action_of(self.recipe),
                "recipe": self.recipe.to_json(),
                "versions": versions(),
                **self.origins(),
                "calibration": calibration.summary() if calibration else self.saved and self.saved.summary,
                **record,
            }
        )
        partial.finish(config, step, made_card(self.source, step))
        return Made(out=str(self.target), seconds=time.monotonic() - self.started, warnings=record["warnings"])


def open_job(
    model: str | Path | Checkpoint,
    out: str | Path,
    recipe: AnyRecipe,
    name: str | None,
    *,
    stats: str | Path | None = None,
    shared: str | Path | None = None,
    **options: Any,
) -> StepJob[AnyRecipe]:
    """The job of a recipe, with the model opened. Raises PrunusError if calibration or the folder out cannot be used.

    model: in a dry run of several steps, also the planned checkpoint of earlier steps; calibration was checked then.
    options: fields of StepOptions.
    """
    started = time.monotonic()
    files = {name: Path(path) for name, path in (("stats", stats), ("shared", shared)) if path is not None}
    step_options, target = StepOptions(**files, **options), as_path(out)
    if isinstance(model, Checkpoint):
        source = model
    else:
        check_calibration(recipe, model, target, stats=step_options.stats)
        source = Checkpoint(resolve(model))
    check_target(source.folder, target, step_options.overwrite)
    return StepJob(source, target, recipe, step_options, pick_device(step_options.device), str(name or model), started)


def made_card(source: Checkpoint, step: StepRecord) -> dict[str, str]:
    """{README.md: text}, the card of the model that a step made from source, with the zeros that pruning counted."""
    steps = [*read_manifest(source.folder).history, step]
    card = Card(steps, read_metadata(source.folder / README), counted(source, steps))
    return {README: card_text(card)}


def renew_card(folder: Path) -> None:
    """Write the card of a checkpoint again, after its manifest was changed or a certificate was added."""
    made = (ModelFolder if is_gguf(folder) else Checkpoint)(folder)
    steps = read_manifest(folder).history
    card = Card(steps, read_metadata(folder / README), counted(made, steps), certified=read_claims(folder))
    write_text(folder / README, card_text(card))


def counted(source: ModelFolder, steps: Sequence[StepRecord]) -> list[Zeros]:
    """The zeros of attention and MLP, as the last step counted them, or the step before if the last is a recovery.

    source: has the Linears of the result. Empty if that step counted no zeros, such as one that removed blocks.
    """
    if not isinstance(source, Checkpoint):
        return []
    last = steps[-2] if steps[-1].action == "recover" and len(steps) > 1 else steps[-1]
    shares = last.sparsity
    by_part: dict[str, Zeros] = {}
    for index in range(source.blocks if shares else 0):
        for linear in source.linears(index):
            if (share := shares.get(source.block_name(index, linear.summary_name))) is not None:
                size = linear.shape_OI[0] * linear.shape_OI[1]
                before = by_part.get(linear.kind, Zeros(linear.kind, 0, 0))
                by_part[linear.kind] = Zeros(linear.kind, before.zeros + round(share * size), before.weights + size)
    return list(by_part.values())
