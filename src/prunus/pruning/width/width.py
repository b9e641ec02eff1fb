"""Remove channels of feed-forward networks, block by block, and fit what is left in closed form.

The inputs of each network's last Linear, down, are observed behind the blocks that are narrow already. Its channels are
chosen, and down is fitted by least squares to what it gave before, plus what the hidden states after the block lack
from those of the dense model: so errors of earlier blocks are corrected by later ones. Each block is rounded as it is
stored before the next block reads it. Memory holds one block, the matrices of its channels, and the hidden states.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.loader import return_freed_memory
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.writer import Partial
from prunus.errors import PrunusError
from prunus.plain_data import Record, plain
from prunus.progress import Steps
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import (
    BATCH_TOKENS,
    check_block_fits,
    check_free,
    largest_block,
    portions,
    propagate,
)
from prunus.pruning.calibration.propagation import HESSIAN_BYTES
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.job import PlannedJob, StepJob, open_job
from prunus.pruning.planned import warn_of_left_out
from prunus.pruning.recover.training import STREAM_BYTES, Streams, open_streams
from prunus.pruning.scope import weights_of
from prunus.pruning.width.channels import Unit, base_width, find_units, narrow_model, narrowed, verify
from prunus.pruning.width.fit import (
    Fitted,
    Inputs,
    by_chance,
    by_contribution,
    by_fluctuation,
    by_obs,
    cut,
    fit,
    gain_of,
    held_out,
    kept_of,
    lowest,
    most_held,
    observe,
    precision,
    relative_error,
)
from prunus.recipes import WidthRecipe
from prunus.step import Made
from prunus.store.characters import percent

K_QUANTS = 256  # inputs of a Linear that llama.cpp quantises together
GROUPED = 16  # bytes of which rows of experts must be multiples for torch's grouped products


class Narrowed(Made):
    """A model with narrower feed-forward networks, as `width` wrote it.

    method: that of the recipe.
    channels: how many channels networks keep, as text: `192 of 256`.
    blocks: number of blocks that were narrowed.
    parameters: number of weights that are left.
    removed: the share of the model's parameters that was removed, as text: `24.0 % of 1,229,440 parameters`.
    error: mean over networks of the squared error of their outputs, as a share of these; None if nothing was measured.
    difference: largest relative difference from the whole model with channels at 0, on one short sequence.
    """

    method: str
    channels: str
    blocks: int
    parameters: int
    removed: str
    error: float | None
    difference: float


class PlannedWidth(PlannedJob):
    """What `width` would do.

    channels: how many channels networks would keep, as text: `192 of 256`.
    blocks: number of blocks that would be narrowed.
    parameters: number of weights that would be left.
    removed: the share of the model's parameters that would be removed, as text: `24.0 % of 1,229,440 parameters`.
    """

    channels: str
    blocks: int
    parameters: int
    removed: str


class ChannelFacts(TypedDict):
    """The fields that Narrowed and PlannedWidth share."""

    channels: str
    blocks: int
    parameters: int
    removed: str


@dataclass(frozen=True, kw_only=True)
class Narrowing(StepJob[WidthRecipe]):
    """A model to be narrowed. units: all networks. width: the new width in config.json."""

    units: Sequence[Unit]
    width: int

    def of_block(self, index: int) -> list[Unit]:
        """The networks of a block."""
        return [unit for unit in self.units if unit.index == index]

    def kept(self, unit: Unit) -> int:
        """How many channels a network keeps."""
        return self.width * unit.times

    def aims(self, index: int) -> bool:
        """Whether a block may be fitted to the dense model's hidden states; experts share a sum, so they are not."""
        return self.recipe.fit and self.recipe.target == "dense" and len(self.of_block(index)) == 1

    def disk(self, new: Checkpoint) -> int:
        """Bytes on disk for the narrow model."""
        return new.nbytes + self.hidden_bytes(STREAM_BYTES * self.source.architecture.width)

    def facts(self, new: Checkpoint) -> ChannelFacts:
        """Fields that a plan and a result share, of the narrow model."""
        share = percent(1 - new.parameters / self.source.parameters)
        return {
            "channels": f"{self.width} of {base_width(self.units)}",
            "blocks": len({unit.index for unit in self.units}),
            "parameters": new.parameters,
            "removed": f"{share} % of {self.source.parameters:,} parameters",
        }

    @property
    def follows_dense(self) -> bool:
        """Whether anything is fitted to the dense model's hidden states."""
        return any(map(self.aims, range(self.source.blocks)))


def width(
    model: str | Path,
    out: str | Path,
    recipe: WidthRecipe | None = None,
    *,
    stats: str | Path | None = None,
    device: str = "auto",
    offload: bool = False,
    overwrite: bool = False,
    name: str | None = None,
) -> Narrowed:
    """Write model with narrower feed-forward networks to the folder out.

        narrow = prunus.width("tiny", "width-75", prunus.WidthRecipe(keep=0.75))
        print(narrow.channels, narrow.error)

    All networks keep the same share of their channels, and their last Linears are fitted to these (docs/width.md). That
    the narrow model computes what the whole one does with these channels at 0 is checked before anything is fitted.
    Unfinished work is in out.partial: the same call resumes it and writes the same bytes.

    model: a folder, a hub id or `tiny`.
    out: the folder to write.
    recipe: None: the default, three channels in four by OBS.
    stats: a file that stats(hessians=True) wrote for this model. Its calibration is used, and the model is not run;
        networks are then fitted to what they gave in the dense model. Fields of the recipe that ask for another
        calibration are an error.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    offload: keep hidden states on disk instead of in memory.
    overwrite: replace an existing result.
    name: what the manifest calls the model; None: as it is given.

    Raises PrunusError for wrong input or if the model cannot be narrowed, and then leaves nothing behind.
    """
    job = make_job(open_job(
        model, out, WidthRecipe.given(recipe), name, stats=stats, device=device, offload=offload, overwrite=overwrite,
    ))  # fmt: skip
    source = job.source
    new = narrow_model(source, job.units, job.width)
    with (
        job.unfinished_work(job.disk(new), lambda _: new.tensors) as (partial, calibration),
        full_float32(job.device),
    ):
        difference = verify(source, new, job.units, job.device)
        with torch.no_grad():
            narrow_blocks(job, partial, calibration, new)
        records = [NarrowedBlock.of(partial.records[index]) for index in range(source.blocks)]
        warnings = [
            *(calibration.warnings if calibration else []),
            *early_warnings(job),
            *fit_warnings(job, records),
            *warn_of_left_out(source),
        ]
        record = {
            "channels": {"before": base_width(job.units), "after": job.width, "field": job.units[0].field.name},
            "parameters": {"before": source.parameters, "after": new.parameters},
            "blocks": plain(records),
            "warnings": warnings,
        }
        errors = [error for record in records for error in record.errors]
        ended = job.finish(partial, calibration, record, new.config_json)
    return Narrowed(
        method=job.recipe.method,
        **job.facts(new),
        error=sum(errors) / len(errors) if errors else None,
        difference=difference,
        **vars(replace(ended, warnings=[*engine_warnings(job), *warnings])),
    )


def plan_width(model: str | Path | Checkpoint, out: Path, recipe: WidthRecipe, **options: Any) -> PlannedWidth:
    """What `width` would do."""
    job = make_job(open_job(model, out, recipe, None, **options))
    new = narrow_model(job.source, job.units, job.width)
    warnings = [*engine_warnings(job), *early_warnings(job), *warn_of_left_out(job.source)]
    return PlannedWidth(**job.facts(new), **vars(job.preview(job.disk(new), warnings)))


def make_job(job: StepJob[WidthRecipe]) -> Narrowing:
    """The job with its networks; raises PrunusError if model, recipe and statistics do not fit each other."""
    units = find_units(job.source, job.recipe.of)
    width = job.recipe.count(base_width(units))
    check_block_fits(job.source, torch.float32, job.device)
    job = job.with_saved(fitting)
    if job.recipe.needs_data:
        check_matrices_fit(job.source, max(unit.width for unit in units), job.device)
    return Narrowing(**vars(job), units=units, width=width)


def check_matrices_fit(source: Checkpoint, channels: int, device: torch.device) -> None:
    """Raise PrunusError unless memory is free for a block and for the matrices of its fit (docs/memory.md)."""
    outputs = source.architecture.width
    values = 3 * channels**2 + 4 * channels * outputs + 2 * most_held(channels) * (channels + outputs)
    needed = 6 * largest_block(source) + precision(channels).itemsize * values
    what = f"{source.folder}: to choose among {channels:,} channels and to fit them"
    check_free(what, needed, device, "take a machine with more, or use --method magnitude --no-fit")


def fitting(saved: SavedStats, recipe: WidthRecipe) -> WidthRecipe:
    """The recipe with the calibration of statistics; raises PrunusError where they are not what it needs."""
    saved.check_hessians("width")
    return replace(saved.with_calibration(recipe), target="own")


def narrow_blocks(job: Narrowing, partial: Partial, calibration: Calibration | None, new: Checkpoint) -> None:
    """Narrow block after block. Blocks that partial already has are run for their hidden states alone."""
    source, streams = job.source, None
    if all(map(partial.has, range(source.blocks))):
        return
    if calibration is not None:
        streams = open_streams(job, partial, calibration, source, new, BATCH_TOKENS)
    with Steps("narrowing", total=source.blocks, unit="blocks", done=len(partial.records)) as steps:
        for index in range(source.blocks):
            return_freed_memory()
            if partial.has(index):
                if streams is None:
                    continue
                made = new.read_block(index, partial.read_block(index))
                if job.follows_dense:
                    propagate(streams.dense, streams.dense.read_block(index), streams.teacher_states)
            else:
                tensors = source.read_block(index)
                gain, measured = None, unmeasured(job, index)
                if streams is not None:
                    gain, measured = observed(job, streams, index, tensors)
                made, record = narrow_block(job, index, tensors, gain, measured)
                changed = {name: tensor for name, tensor in made.items() if tensor is not tensors[name]}
                partial.write_block(
                    index, {**source.block_tensors(index), **source.as_stored(index, changed)}, record.to_json()
                )
                del tensors, changed, measured
                errors = record.errors
                steps.advance(note=f"error {sum(errors) / len(errors):.3g}" if errors else "")
            if streams is not None and index < source.blocks - 1:
                propagate(streams.pruned, streams.pruned.make_block(index, made), streams.student_states)
            del made  # before the next block is read


# The networks of a block, in any order, with the inputs of their last Linears; None where nothing is measured.
Measured = Iterator[tuple[Unit, Inputs | None]]


def unmeasured(job: Narrowing, index: int) -> Measured:
    """Yield a block's networks with the saved statistics of their inputs; with None if the job has no statistics."""
    if job.saved is None:
        yield from ((unit, None) for unit in job.of_block(index))
        return
    for group in job.saved.groups(index, "hessian", job.device):
        yield from ((unit, inputs_of(group[unit.down])) for unit in job.of_block(index) if unit.down in group)


def inputs_of(stats: InputStats) -> Inputs:
    """Statistics of a Linear's inputs as sums."""
    assert stats.hessian is not None and stats.mean_I is not None and stats.variance_I is not None
    dtype = precision(len(stats.norm_I))
    squares = stats.mean_I.double().square() + stats.variance_I.double()
    count = float(stats.norm_I.double().square().sum() / squares.sum().clamp(min=1e-300))
    return Inputs(stats.hessian.matrix_II.to(dtype), stats.mean_I.to(dtype) * count, count, stats.tokens)


def observed(
    job: Narrowing, streams: Streams, index: int, tensors: Mapping[str, Tensor]
) -> tuple[float | None, Measured]:
    """(gain, statistics of what the networks of a dense block read behind narrow blocks).

    gain: factor on the only network's output before it is added to the hidden states (gain_of); None if networks are
    fitted to their own outputs.
    """
    runner, units = streams.dense, job.of_block(index)
    chooses = job.recipe.fit and job.recipe.damping is None
    batches = [batch for batch, _ in streams.student_states.batches()]
    held = [each & chooses for each in held_out(batches, max((unit.width for unit in units), default=0))]
    block, gain = runner.make_block(index, tensors), None
    if job.follows_dense:
        propagate(runner, block, streams.teacher_states)
    if job.aims(index):
        batch, rows_NTW = next(streams.student_states.batches())
        gain = gain_of(runner, block, units[0].down, rows_NTW, batch)

    def measured() -> Measured:
        for some in portions(units, lambda unit: precision(unit.width).itemsize * unit.width**2, HESSIAN_BYTES):
            pairs = zip(streams.student_states.batches(), streams.teacher_states.batches(), held, strict=True)
            rows = ((*own, wanted_NTW, held_NT) for own, (_, wanted_NTW), held_NT in pairs)
            seen = observe(runner, block, [unit.down for unit in some], rows, gain, f"block {index}")
            yield from ((unit, seen.pop(unit.down)) for unit in some)

    return gain, measured()


class NarrowedBlock(Record):
    """What the journal and the manifest keep of a block that is narrowed.

    target: `own` or `dense`, as in the recipe; None if nothing is fitted. errors: of the output of each network (see
    relative_error). dampings: of each fit. few: of networks that met fewer tokens than they have channels, their
    number, the least tokens, and the down Linear that met these.
    """

    target: str | None
    errors: Sequence[float]
    dampings: Sequence[float]
    few: tuple[int, int, str] | None = None


def narrow_block(
    job: Narrowing, index: int, tensors: Mapping[str, Tensor], gain: float | None, measured: Measured
) -> tuple[dict[str, Tensor], NarrowedBlock]:
    """The tensors of a block with fewer channels, by their names within it, and its record.

    gain, measured: of `observed`.
    """
    units = job.of_block(index)
    kept: dict[str, list[int]] = {}
    fitted: dict[str, Fitted] = {}
    errors: list[float] = []
    few: list[tuple[int, str]] = []
    for unit, inputs in measured:
        down = unit.down
        weight_OI = tensors[f"{down}.weight"].to(job.device, precision(unit.width))
        bias_O = tensors.get(f"{down}.bias")
        bias_O = None if bias_O is None else bias_O.to(weight_OI)
        kept[down] = choose_channels(job, unit, tensors, weight_OI, bias_O, inputs)
        if inputs is None or not job.recipe.fit:
            fitted[down] = cut(weight_OI, bias_O, kept[down])
        else:
            fitted[down] = fit(inputs, weight_OI, bias_O, kept[down], job.recipe.damping)
        if inputs is not None:
            errors.append(relative_error(inputs, weight_OI, bias_O, fitted[down], kept[down]))
            few += [(inputs.tokens, down)] if inputs.tokens < unit.width else []
    if missing := next((unit.down for unit in units if unit.down not in kept), None):
        raise PrunusError(f"there are no statistics of {missing} of block {index}: write them again, with this version")
    narrow = narrowed(tensors, units, kept)
    for down, made in fitted.items():
        for part, tensor in (("weight", made.weight_OK), ("bias", made.bias_O)):
            if tensor is not None:
                narrow[f"{down}.{part}"] = tensor.to("cpu", tensors[f"{down}.{part}"].dtype).contiguous()
    return narrow, NarrowedBlock(
        target=("own" if gain is None else "dense") if fitted and job.recipe.fit else None,
        errors=errors,
        dampings=[made.damping for made in fitted.values() if made.damping is not None],
        few=(len(few), *min(few)) if few else None,
    )


def choose_channels(
    job: Narrowing,
    unit: Unit,
    tensors: Mapping[str, Tensor],
    weight_OI: Tensor,
    bias_O: Tensor | None,
    inputs: Inputs | None,
) -> list[int]:
    """The channels that a network keeps, ascending."""
    method, gone = job.recipe.method, unit.width - job.kept(unit)
    if method == "random":
        return kept_of(unit.width, by_chance(unit.width, gone, f"{job.recipe.seed} {unit.index} {unit.down}"))
    if method == "magnitude":
        return kept_of(unit.width, lowest(squares_of(unit, tensors), gone))
    assert inputs is not None
    if not inputs.tokens:  # no token was sent to it: its weights are all that is known
        return kept_of(unit.width, lowest(weight_OI.norm(dim=0), gone))
    if method == "wanda":
        return kept_of(unit.width, lowest(by_contribution(inputs.hessian_II, weight_OI), gone))
    if method == "flap":
        return kept_of(unit.width, lowest(by_fluctuation(inputs, weight_OI), gone))
    seen = inputs if bias_O is None or not job.recipe.fit else inputs.centred()
    return kept_of(unit.width, by_obs(seen, weight_OI, gone))


def squares_of(unit: Unit, tensors: Mapping[str, Tensor]) -> Tensor:
    """(I,) sum of the squares of all weights of each channel."""
    total_I = torch.zeros(unit.width, dtype=torch.float64)
    for place in unit.places:
        view, axis = place.by_channel(tensors[place.name])
        square = view.double().square().cpu()
        total_I += square.sum([other for other in range(square.dim()) if other != axis])
    return total_I


def weights_in(source: Checkpoint, units: Sequence[Unit]) -> int:
    """Number of weights of the Linears of these networks that belong to their channels."""
    places = {(unit.index, place.name.removesuffix(".weight")) for unit in units for place in unit.places}
    return sum(
        weights_of([linear])
        for index in range(source.blocks)
        for linear in source.linears(index)
        if (index, linear.name) in places
    )


def engine_warnings(job: Narrowing) -> list[str]:
    """Warnings about what engines cannot do with the width. No result depends on it, so manifests have none of them."""
    widths, warnings = sorted({job.kept(unit) for unit in job.units}), []
    if any(width % K_QUANTS for width in widths):  # without the width, so that a ladder of widths says it once
        warnings.append(f"the width is no multiple of {K_QUANTS}: llama.cpp cannot write K-quants of these networks")
    rows = {job.kept(unit) * job.source.dtype.itemsize for unit in job.units if unit.of == "experts"}
    if odd := [row for row in sorted(rows) if row % GROUPED]:
        warnings.append(
            f"rows of experts take {odd[0]} bytes, no multiple of {GROUPED}: grouped products of transformers refuse"
            f" them; choose a multiple of {GROUPED // job.source.dtype.itemsize} channels"
        )
    parts = job.recipe.tensor_parallel
    if parts and (odd := [width for width in widths if width % parts]):
        warnings.append(f"{odd[0]} channels cannot be divided among {parts} GPUs: choose a multiple of {parts}")
    return warnings


def early_warnings(job: Narrowing) -> list[str]:
    """Warnings about the fit that are known before the model is run."""
    warnings = list[str]()
    history = job.source.manifest.history
    if job.recipe.fit and any(step.sparsity for step in history):
        warnings.append("the fit fills zeros that the last Linears of the networks had: prune after narrowing instead")
    if job.recipe.fit and job.saved is not None:
        warnings.append("networks are fitted to their own outputs, since saved statistics know of no narrow blocks")
    elif job.recipe.fit and job.recipe.target == "dense" and any(len(job.of_block(u.index)) > 1 for u in job.units):
        warnings.append("experts are fitted to their own outputs: a block adds up several, each for other tokens")
    return warnings


def fit_warnings(job: Narrowing, records: Sequence[NarrowedBlock]) -> list[str]:
    """Warnings about networks that calibration hardly met, and about blocks that are fitted to their own outputs."""
    warnings = []
    if few := {index: record.few for index, record in enumerate(records) if record.few is not None}:
        index, (_, tokens, down) = min(few.items(), key=lambda item: item[1][1])
        warnings.append(
            f"{sum(number for number, *_ in few.values())} of {len(job.units)} networks met fewer calibration tokens"
            f" than they have channels (the fewest: {down} of block {index}, {tokens})"
            + (": damping keeps what these do not show as it was" if job.recipe.fit else "")
        )
    own = [str(i) for i, record in enumerate(records) if job.needs_tokens and job.aims(i) and record.target == "own"]
    if own:
        warnings.append(
            f"blocks {', '.join(own)} are fitted to their networks' own outputs: a norm or a gate follows these"
        )
    return warnings
