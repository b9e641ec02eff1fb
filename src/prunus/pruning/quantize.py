"""Quantise the Linears of blocks to 8 or 4 bits, block by block, on the hidden states behind the quantised blocks.

The result is a folder in the format compressed-tensors. Embeddings, head, norms and routers stay as they are. The
inputs of each Linear are observed with all earlier Linears quantised; each routed expert has a Hessian of its own.
Memory holds one block, the Hessians of a single input, and the hidden states.

With `recover`, the scales and norms of each block are trained once its integers are chosen, as recover.py trains what
pruning kept; the next block then reads what the trained one gives.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.compressed_tensors import METHOD, Format, product, unpacked_words
from prunus.checkpoint.foreign_weights import Quantisation, plain_tensors
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.loader import Block, blocks_on, return_freed_memory
from prunus.checkpoint.model_folder import bytes_by_kind
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.runner import Runner
from prunus.checkpoint.safetensors_file import DTYPES, Stored
from prunus.checkpoint.writer import Partial
from prunus.disk import disk_errors, show_bytes
from prunus.errors import PrunusError
from prunus.plain_data import Record
from prunus.progress import Steps
from prunus.pruning.bits.gptq import Ordered, quantise
from prunus.pruning.bits.grid import Grid, to_nearest
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import HiddenStates, check_block_fits, propagate
from prunus.pruning.calibration.propagation import BlockRun, true_sequential
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.job import PlannedJob, Sizes, StepJob, open_job
from prunus.pruning.prune.prune import few_of, set_weight
from prunus.pruning.recover.recover import check_trainable, warnings_of
from prunus.pruning.recover.training import STREAM_BYTES, Fit, Training, begin_training, trainable, trained_scales
from prunus.pruning.scope import Use, linears_in_scope
from prunus.recipes import QuantizeRecipe
from prunus.step import Made

ENGINES = "vLLM and transformers"
EXPERTS = ("a routed expert", "routed experts")  # why matrices are left dense
EPOCHS, RATE, STEP_TOKENS = 2, 0.008, 512  # of training scales and norms, as RecoverRecipe has them


OnDisk = Sequence[Mapping[Linear, str]]


class FormatFacts(Record):
    """What is known of a model in 8 or 4 bits before and after it is written."""

    method: str
    format: str
    blocks: int
    linears: int
    size: str
    before: str


class Quantized(FormatFacts, Made):
    """A model with Linears in 8 or 4 bits, as `quantize` wrote it.

    method: that of the recipe.
    format: `W4A16, groups of 64`.
    blocks, linears: number of blocks, and of Linears that are quantised.
    size, before: bytes that an engine loads for the result, and for the model before this step, as text.
    error_before, error_after: with recover, the held-out error before and after training, as in Recovered.
    """

    error_before: float | None = None
    error_after: float | None = None


class PlannedQuantize(FormatFacts, PlannedJob):
    """What `quantize` would do.

    method: that of the recipe.
    format: `W4A16, groups of 64`.
    blocks, linears: number of blocks, and of Linears that would be quantised.
    size, before: bytes that an engine would load for the result, and for the model before this step, as text.
    """


@dataclass(frozen=True, kw_only=True)
class Quantising(StepJob[QuantizeRecipe]):
    """A model to be quantised. linears: {Linear: the name of its tensors on disk, without the last part}, by block.
    format: how they are stored."""

    linears: OnDisk
    format: Format
    dtype: torch.dtype

    @property
    def scale_dtype(self) -> torch.dtype:
        """The dtype of scales."""
        return DTYPES[self.format.scale]

    def grid(self, inputs: int) -> Grid:
        """The grid of a Linear with this many inputs."""
        return Grid(self.format.bits, self.format.group or inputs, self.scale_dtype)

    @property
    def left_whole(self) -> list[str]:
        """The names of the Linears that are not quantised."""
        source = self.source
        quantised = {source.block_name(i, linear.name) for i, linears in enumerate(self.linears) for linear in linears}
        modules = source.architecture.model.named_modules()
        return [name for name, module in modules if isinstance(module, nn.Linear) and name not in quantised]

    def as_read(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """Stored tensors of the result as plain tensors, which are dequantised when they are read."""
        return plain_tensors(stored, Quantisation(METHOD), self.source.config_dtype)

    def disk(self, after: int) -> int:
        """Bytes of disk for the result and for hidden states. after: bytes of the result."""
        width = self.source.architecture.width
        of_token = STREAM_BYTES * width if self.recipe.recover else (width + self.room_needed) * self.dtype.itemsize
        return after + self.hidden_bytes(of_token)

    def facts(self, sizes: Sizes) -> FormatFacts:
        """The fields that a plan and a result share. sizes: those that planned_sizes returns."""
        return FormatFacts(
            method=self.recipe.method,
            format=format_text(self.format),
            blocks=self.source.blocks,
            linears=sum(map(len, self.linears)),
            size=show_bytes(sizes.after),
            before=show_bytes(sizes.before),
        )

    @property
    def room_needed(self) -> int:
        """Numbers per token that are kept beside hidden states: the widest input of a Linear."""
        return max(linear.shape_OI[1] for linears in self.linears for linear in linears)


def quantize(
    model: str | Path,
    out: str | Path,
    recipe: QuantizeRecipe | None = None,
    *,
    stats: str | Path | None = None,
    device: str = "auto",
    offload: bool = False,
    overwrite: bool = False,
    name: str | None = None,
) -> Quantized:
    """Write model with Linears in 8 or 4 bits to the folder out.

        small = prunus.quantize("tiny", "w8a8", prunus.QuantizeRecipe(bits=8))
        print(small.format, small.size)

    The folder is in the format of compressed-tensors, which vLLM and transformers load (docs/quantize.md).
    Unfinished work is in out.partial: the same call resumes it and writes the same bytes.

    model: a folder, a hub id or `tiny`.
    out: the folder to write.
    recipe: None: the default, W8A8 by GPTQ.
    stats: a file that stats(hessians=True) wrote for this model. Its calibration is used, and the model is not run; the
        inputs of Linears are then those in the dense model. Fields of the recipe that ask for another calibration are
        an error.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    offload: keep hidden states on disk instead of in memory.
    overwrite: replace an existing result.
    name: what the manifest calls the model; None: as it is given.

    Raises PrunusError for wrong input or if the model cannot be quantised, and then leaves nothing behind.
    """
    job = make_job(open_job(
        model, out, QuantizeRecipe.given(recipe), name, stats=stats, device=device, offload=offload,
        overwrite=overwrite,
    ))  # fmt: skip
    source, (entries, sizes) = job.source, planned_sizes(job)
    with (
        job.unfinished_work(job.disk(sizes.after), lambda _: entries) as (partial, calibration),
        full_float32(job.device),
    ):
        with torch.no_grad():
            quantise_blocks(job, partial, calibration)
        records = [partial.records[index] for index in range(source.blocks)]
        notes = [
            *(calibration.warnings if calibration else []),
            *(warning for r in records for warning in r["warnings"]),
        ]
        few = few_of(job.linears, [record.get("pooled") for record in records], "were rounded by their")
        fits = [Fit(**record["recovery"]) for record in records] if job.recipe.recover else []
        warnings = [*early_warnings(job), *dict.fromkeys(notes), *few, *warnings_of(fits)]
        record = {
            "format": {"name": job.format.name, "bits": job.format.bits, "group": job.format.group},
            "bytes": sizes.to_json(),
            **({"blocks": [fit._asdict() for fit in fits]} if fits else {}),
            "warnings": warnings,
        }
        config = source.config_json | {"quantization_config": job.format.settings(job.left_whole)}
        return Quantized(
            error_before=sum(fit.before for fit in fits) / len(fits) if fits else None,
            error_after=sum(fit.after for fit in fits) / len(fits) if fits else None,
            **vars(job.facts(sizes)),
            **vars(job.finish(partial, calibration, record, config)),
        )


def plan_quantize(model: str | Path | Checkpoint, out: Path, recipe: QuantizeRecipe, **options: Any) -> PlannedQuantize:
    """What `quantize` would do."""
    job = make_job(open_job(model, out, recipe, None, **options))
    _, sizes = planned_sizes(job)
    return PlannedQuantize(**vars(job.facts(sizes)), **vars(job.preview(job.disk(sizes.after), early_warnings(job))))


def planned_sizes(job: Quantising) -> tuple[dict[str, Stored], Sizes]:
    """(tensors of the result, sizes of the model before and after)."""
    entries = planned_entries(job.source, job.linears, job.format)
    return entries, Sizes.after_step(job.source, bytes_by_kind(entries, job.source.config, quantised=True))


def make_job(job: StepJob[QuantizeRecipe]) -> Quantising:
    """The job with its format; raises PrunusError if model, recipe and statistics do not fit each other."""
    linears = names_on_disk(job.source)
    form = format_of(job.source, linears, job.recipe)
    dtype = job.source.dtype_for(job.recipe.dtype)
    check_block_fits(job.source, dtype, job.device)
    if job.recipe.recover:
        check_trainable(job.source, job.device)
    return Quantising(**vars(job.with_saved(fitting)), linears=linears, format=form, dtype=dtype)


def names_on_disk(source: Checkpoint) -> OnDisk:
    """{Linear: the name of its tensors on disk, without the last part}, by block; PrunusError if one has none."""
    if source.quantised is not None:
        raise PrunusError(
            f"{source.folder} is quantised already ({source.quantised}): give the model before that, or run `prunus"
            " dequantize` first"
        )
    linears = linears_in_scope(source)
    dense = ((index, name, why) for index in range(source.blocks) for name, why in source.left_dense(index).items())
    if whole := next(((index, name) for index, name, why in dense if why in EXPERTS), None):
        raise PrunusError(
            f"{source.folder} ({source.config.model_type}) has routed experts that cannot be observed one by one"
            f" ({source.block_name(*whole)}): quantising the rest would leave most weights as they are"
        )
    return [{name: name_on_disk(source, index, name) for name in of} for index, of in enumerate(linears)]


def format_of(source: Checkpoint, linears: OnDisk, recipe: QuantizeRecipe) -> Format:
    """How a recipe stores these Linears. PrunusError where no size of a group divides all inputs."""
    scale = next(source.tensors[f"{name}.weight"].dtype for names in linears for name in names.values())
    group = group_of(linears, recipe)
    if recipe.sizes and group is None:
        odd = next(linear for block in linears for linear in block if linear.shape_OI[1] % recipe.sizes[-1])
        raise PrunusError(
            f"no group of {' or '.join(map(str, recipe.sizes))} inputs divides the {odd.shape_OI[1]} of"
            f" {odd.summary_name}: use --group row"
        )
    return Format(recipe.bits, group, scale)


def describe_quantising(source: Checkpoint) -> list[Use]:
    """The row of `inspect` about this command, as far as it can be known without reading weights."""
    try:
        linears = names_on_disk(source)
    except PrunusError as error:
        return [Use(use="quantize", possible=False, note=str(error))]
    try:
        group = f"in groups of {format_of(source, linears, QuantizeRecipe(bits=4)).group}"
    except PrunusError:
        group = "with --group row"
    return [Use(use="quantize", possible=True, note=f"W8A8; W4A16 {group}")]


def planned_entries(source: Checkpoint, linears: OnDisk, form: Format) -> dict[str, Stored]:
    """The tensors that the result will have, by name; those of quantised Linears have only dtype and shape."""
    entries = dict(source.tensors)
    for names in linears:
        for linear, name in names.items():
            del entries[f"{name}.weight"]
            entries |= form.entries(name, linear.shape_OI)
    return entries


def name_on_disk(source: Checkpoint, index: int, linear: Linear) -> str:
    """The name of a Linear's tensors on disk, without `.weight`; PrunusError unless its weight is a tensor there."""
    sources = source.weight_sources(index, linear.name)
    origin = None if linear.experts else source.names.origin(source.block_name(index, f"{linear.name}.weight"))
    plain = origin is None or (origin.converter is None and not origin.transposed)
    if (
        len(sources) == 1
        and sources[0].endswith(".weight")
        and source.tensors[sources[0]].shape == linear.shape_OI
        and plain
    ):
        return sources[0].removesuffix(".weight")
    raise PrunusError(
        f"{source.folder} ({source.config.model_type}) stores {source.block_name(index, linear.summary_name)} as a part"
        f" of another tensor or transposed, for which compressed-tensors has no form that {ENGINES} load"
    )


def group_of(linears: OnDisk, recipe: QuantizeRecipe) -> int | None:
    """Number of inputs that share a scale: the recipe's largest size that divides the inputs of all Linears.

    None if a scale is for a whole row, or if no size divides all.
    """
    widths = {linear.shape_OI[1] for block in linears for linear in block}
    return next((size for size in recipe.sizes if not any(width % size for width in widths)), None)


def fitting(saved: SavedStats, recipe: QuantizeRecipe) -> QuantizeRecipe:
    """The recipe with the calibration of statistics; raises PrunusError where they are not what it needs."""
    if recipe.recover:
        raise PrunusError("--recover trains on calibration tokens, which --stats does not hold: leave one of them out")
    saved.check_hessians("gptq")
    saved.check_inputs()
    saved.check_dtype(recipe)
    return saved.with_calibration(recipe)


def quantise_blocks(job: Quantising, partial: Partial, calibration: Calibration | None) -> None:
    """Quantise block after block. Blocks that partial already has are run for their hidden states alone."""
    source = job.source
    left = [index for index in range(source.blocks) if not partial.has(index)]
    runner = hidden = training = None
    if calibration is not None and left and job.recipe.recover:
        training = begin_training(job, partial, calibration, source, source, STEP_TOKENS)
        runner = training.streams.pruned
    elif calibration is not None and left:
        runner = Runner(source, job.dtype, job.device)
        with disk_errors(partial.folder, partial.needed):
            hidden = HiddenStates(runner, calibration.sequences, job.hidden_file(partial), job.room_needed)
    with (
        Steps("quantizing", total=source.blocks, unit="blocks", done=len(partial.records)) as steps,
        closing(blocks_on(source, left, job.device)) as blocks,
    ):
        for index in range(source.blocks):
            new, last = not partial.has(index), index == source.blocks - 1
            if training is not None:
                propagate(
                    training.streams.dense, training.streams.dense.read_block(index), training.streams.teacher_states
                )
                hidden = training.streams.student_states.copy(job.room_needed) if new else None
            if new:
                tensors, record = quantise_block(job, runner, index, hidden, next(blocks), training is not None or last)
                if training is not None:
                    trained, fitted = train_block(job, training, index, tensors)
                    tensors, record = tensors | trained, record | {"recovery": fitted._asdict()}
                partial.write_block(index, tensors, record)
                steps.advance()
            if runner is not None and not last and (training is not None or not new):
                block = runner.make_block(index, source.read_block(index, job.as_read(partial.read_block(index))))
                behind = hidden if training is None else training.streams.student_states
                assert behind is not None
                propagate(runner, block, behind)


def train_block(
    job: Quantising, training: Training, index: int, quantised: Mapping[str, Tensor | Stored]
) -> tuple[dict[str, Tensor], Fit]:
    """The trained scales and norms of a quantised block, by their names on disk. quantised: the block's tensors."""
    source, streams = job.source, training.streams
    tensors = source.read_block(index)
    block = streams.pruned.make_block(index, tensors)
    vectors = trainable(block, {name: tensor.dtype for name, tensor in tensors.items()}, ())
    scales = []
    made = {name: tensor.to(job.device) for name, tensor in quantised.items() if isinstance(tensor, Tensor)}
    for linear, on_disk in job.linears[index].items():
        code_OI = unpacked_words(made[f"{on_disk}.weight_packed"], linear.shape_OI[1])
        name = f"{on_disk}.weight_scale"
        scales.append(trained_scales(block.get_submodule(linear.name), code_OI, made[name], name))
    del tensors, made
    fitted = training.fit(block, [*vectors, *scales], rate=RATE, epochs=EPOCHS, seed=f"{job.recipe.seed} {index}")
    if not fitted.trained:
        return {}, fitted
    changed = {vector.name: vector.parameter.detach().to(vector.dtype).cpu() for vector in vectors}
    grid = job.grid(1)
    stored = {scale.name: grid.stored(scale.parameter.detach()).to(job.scale_dtype).cpu() for scale in scales}
    return source.as_stored(index, changed) | stored, fitted


def quantise_block(
    job: Quantising, runner: Runner | None, index: int, hidden: HiddenStates | None, tensors: Block, last: bool
) -> tuple[dict[str, Tensor | Stored], dict[str, object]]:
    """Quantise one block; returns its tensors by their names on disk, and the record for the journal.

    hidden: becomes the input of the next block, unless this is the last. tensors: the block's; those of the quantised
    Linears are removed.
    """
    linears = job.linears[index]
    groups: Iterable[Mapping[str, InputStats | None]] = [{linear.name: None for linear in linears}]
    run: BlockRun | None = None
    if job.saved is not None:
        groups = job.saved.groups(index, "hessian", job.device)
    if runner is not None and hidden is not None:
        block = runner.make_block(index, tensors)
        run = BlockRun(runner, block, index, hidden, list(linears), last, "hessian")
        groups = true_sequential(run)
    stored: dict[str, Tensor | Stored] = dict(job.source.block_tensors(index))
    warnings: dict[str, None] = {}
    pooled: dict[str, int] = {}
    ordered: Ordered | None = None
    for group in map(dict, groups):
        for linear, on_disk in [(linear, on_disk) for linear, on_disk in linears.items() if linear.name in group]:
            weight_OI, inputs = tensors.pop(f"{linear.name}.weight").to(job.device), group.pop(linear.name)
            ordered, grid = order_of(inputs, ordered), job.grid(weight_OI.shape[1])
            made = to_nearest(weight_OI, grid) if ordered is None else quantise(weight_OI, ordered, grid)
            scale_OG = made.scale_OG.to(job.scale_dtype)
            if run is not None:
                value_OI = product(made.code_OI, scale_OG).to(job.source.config_dtype or job.scale_dtype)
                set_weight(run.block, linear, value_OI.to(run.runner.dtype))
            del stored[f"{on_disk}.weight"]
            stored |= job.format.tensors(on_disk, made.code_OI.cpu(), scale_OG.cpu())
            if ordered is not None and ordered.warning is not None:
                warnings[ordered.warning] = None
            if inputs is not None and inputs.pooled is not None:
                pooled[job.source.block_name(index, linear.name.rpartition(".")[0])] = inputs.pooled
            weight_OI = inputs = None  # a Hessian can be as large as a weight, so free both before the next pass
        ordered = None
        return_freed_memory()
    return stored, {"warnings": [*warnings], **({"pooled": pooled} if pooled else {})}


def order_of(inputs: InputStats | None, before: Ordered | None) -> Ordered | None:
    """The ordered Hessian of inputs; `before`, of the Linear before, if it is of the same inputs; None without any."""
    if inputs is None or inputs.hessian is None:
        return None
    return before if before is not None and before.of is inputs.hessian else Ordered(inputs.hessian)


def format_text(form: Format) -> str:
    """The format as text, such as `W4A16, groups of 64`."""
    scales = "a scale for each row" if form.group is None else f"groups of {form.group}"
    return f"W{form.bits}A{8 if form.bits == 8 else 16}, {scales}"


def early_warnings(job: Quantising) -> list[str]:
    """Warnings that are known before the model is run."""
    warnings, recipe = [], job.recipe
    if job.format.group is not None and job.format.group != recipe.sizes[0]:
        odd = next(linear for of in job.linears for linear in of if linear.shape_OI[1] % recipe.sizes[0])
        warnings.append(
            f"groups have {job.format.group} inputs: {recipe.sizes[0]} does not divide the {odd.shape_OI[1]} of"
            f" {odd.summary_name}"
        )
    if job.saved is not None:
        warnings.append(
            "errors of earlier blocks are not made up for, since saved statistics know of no quantised blocks"
        )
    return warnings
