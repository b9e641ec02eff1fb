"""Recover a pruned checkpoint: train what was kept, block by block, so that it computes what the dense model does.

Two residual streams go through the two models, for the same calibration tokens. A block of the pruned model reads what
the recovered blocks before it give, and is fitted to what the dense model gives at that place; errors of earlier blocks
are thus corrected by later ones. Zeros stay zero. Memory holds one block, what Adam keeps of it, and the two streams.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint, dense_twin
from prunus.checkpoint.linears import shares_state
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.resolve import CALIBRATION
from prunus.checkpoint.safetensors_file import Stored
from prunus.checkpoint.writer import Partial
from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.manifest import blocks_kept
from prunus.progress import Steps
from prunus.pruning.calibration.data import Calibration, describe_calibration
from prunus.pruning.calibration.hidden_states import check_free, largest_block, propagate
from prunus.pruning.calibration.text_files import read_jsonl
from prunus.pruning.job import PlannedJob, StepJob, open_job
from prunus.pruning.recover.training import STREAM_BYTES, TRAINING_BYTES, Fit, begin_training, trainable
from prunus.recipes import RecoverRecipe
from prunus.recipes.recover import RATES_AFTER_FIT
from prunus.step import Made, Planned, recorded_kind, with_defaults

CHANCE_ZEROS = 0.005  # share of a dense Linear's weights that may be zero by chance in 16 bits


class Recovered(Made):
    """A pruned model with its kept weights trained, as `recover` wrote it.

    blocks, recovered: number of blocks, and of those whose new weights were taken.
    tokens, trained_tokens: number of calibration tokens, and of tokens over all steps of training.
    error_before, error_after: held-out error before and after training, the mean over the blocks; the error of a block
        is the mean over tokens of |output - target|^2 / |target|^2.
    errors: the pair of each block.
    """

    blocks: int
    recovered: int
    tokens: int
    trained_tokens: int
    error_before: float
    error_after: float
    errors: Sequence[tuple[float, float]]


class PlannedRecover(PlannedJob):
    """What `recover` would do.

    dense: the folder of the dense model.
    blocks: number of blocks.
    streams: the space for the residual streams, as text.
    """

    dense: str
    blocks: int
    streams: str


@dataclass(frozen=True, kw_only=True)
class Recovery(StepJob[RecoverRecipe]):
    """A pruned model (source) and the dense model that it was made from.

    spans: for each block of the pruned model, those of `dense` that it stands for: itself, and removed ones up to
    the next that was kept. dense_name: what the manifest calls the dense model.
    """

    dense: Checkpoint
    dense_name: str
    spans: list[range]

    @property
    def of_token(self) -> int:
        """Bytes of the residual streams of a token."""
        return STREAM_BYTES * self.source.architecture.width

    @property
    def disk(self) -> int:
        """Bytes on disk."""
        return self.source.nbytes + self.hidden_bytes(self.of_token)

    def origins(self) -> dict[str, Mapping[str, str]]:
        """What the manifest says of the pruned model and of the dense model."""
        return {**super().origins(), "dense": self.dense.provenance(self.dense_name)}


def recover(
    pruned: str | Path,
    out: str | Path,
    recipe: RecoverRecipe | None = None,
    *,
    dense: str | Path | None = None,
    device: str = "auto",
    offload: bool = False,
    overwrite: bool = False,
    name: str | None = None,
) -> Recovered:
    """Write a pruned model with its kept weights trained to the folder out.

        recovered = prunus.recover("wanda-20", "wanda-20-recovered")
        print(recovered.error_before, recovered.error_after)

    Every zero of a pruned Linear stays zero, and everything outside the blocks stays as it is, as does a block whose
    held-out error does not fall. Unfinished work is in out.partial: the same call resumes it and writes the same bytes.

    pruned: a folder or a hub id.
    out: the folder to write.
    recipe: None: the default.
    dense: the model that it was pruned from; None: the model that its manifest names.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    offload: keep hidden states on disk instead of in memory.
    overwrite: replace an existing result.
    name: what the manifest calls the model; None: as it is given.

    Raises PrunusError for wrong input, and then leaves nothing behind.
    """
    job = make_job(open_job(
        pruned, out, RecoverRecipe.given(recipe), name, dense=dense, device=device, offload=offload,
        overwrite=overwrite,
    ))  # fmt: skip
    source = job.source
    with job.unfinished_work(job.disk) as (partial, calibration), full_float32(job.device):
        assert calibration is not None
        check_zeros(source)  # not before, since it reads weights
        with torch.no_grad():
            recover_blocks(job, partial, calibration)
        records = [partial.records[i] for i in range(source.blocks)]
        fits = [Fit(**{k: v for k, v in record.items() if k != "rate"}) for record in records]
        warnings = [*calibration.warnings, *seen_before(source, calibration), *warnings_of(fits, ": lower --rate")]
        tokens, steps = sum(fit.tokens for fit in fits), sum(fit.steps for fit in fits)
        cost = {"tokens": tokens, "steps": steps}
        record = {"blocks": records, "cost": cost, "arithmetic": partial.notes["steps"], "warnings": warnings}
        return Recovered(
            blocks=source.blocks,
            recovered=sum(fit.trained for fit in fits),
            tokens=calibration.tokens,
            trained_tokens=tokens,
            error_before=sum(fit.before for fit in fits) / len(fits),
            error_after=sum(fit.after for fit in fits) / len(fits),
            errors=[(fit.before, fit.after) for fit in fits],
            **vars(job.finish(partial, calibration, record)),
        )


def plan_recover(model: str | Path | Checkpoint, out: Path, recipe: RecoverRecipe, **options: Any) -> PlannedRecover:
    """What `recover` would do."""
    job = make_job(open_job(model, out, recipe, None, **options))
    check_zeros(job.source)
    return PlannedRecover(
        dense=str(job.dense.folder),
        blocks=job.source.blocks,
        streams=show_bytes(job.recipe.tokens * job.of_token),
        **vars(job.preview(job.disk, [])),
    )


def make_job(job: StepJob[RecoverRecipe]) -> Recovery:
    """The job with the dense model; raises PrunusError where the two do not belong together or cannot be trained."""
    (recipe,) = with_defaults([job.recipe], job.source.manifest.history)
    dense = job.options.dense
    twin = dense_twin(job.source, dense)
    check_trainable(job.source, job.device)
    spans = spans_of(job.source, twin)
    return Recovery(**vars(replace(job, recipe=recipe)), dense=twin, dense_name=str(dense or twin.folder), spans=spans)


def preview_recovery(recipe: RecoverRecipe, dense: Checkpoint, out: Path) -> Planned:
    """Preview of a recovery whose pruned model does not exist yet."""
    calibration, warnings = describe_calibration(recipe, dense)
    rates = f"the best of the rates {', '.join(map(str, RATES_AFTER_FIT))}"
    return Planned(
        would_write=str(out),
        then=f"recover, {recipe.epochs} epochs at {f'a rate of {recipe.rate:g}' if recipe.rate else rates}",
        recovery_calibration=calibration,
        recovery_memory=show_bytes(TRAINING_BYTES * largest_block(dense)),
        warnings=warnings,
    )


def recover_blocks(job: Recovery, partial: Partial, calibration: Calibration) -> None:
    """Fit block after block. Blocks that partial already has are run, not trained again."""
    source, recipe = job.source, job.recipe
    if all(map(partial.has, range(source.blocks))):
        return
    training = begin_training(job, partial, calibration, job.dense, source, recipe.step_tokens)
    streams = training.streams
    teacher, student = streams.dense, streams.pruned
    done = len(partial.records)
    first = 1 if recipe.rate or done else len(RATES_AFTER_FIT)  # fits of the first block that is left
    with Steps("recovering", total=source.blocks + first - 1, unit="fits", done=done) as steps:
        for index in range(source.blocks):
            if recipe.target == "own":
                for (_, teacher_NTW), (_, student_NTW) in zip(
                    streams.teacher_states.batches(), streams.student_states.batches(), strict=True
                ):
                    teacher_NTW.copy_(student_NTW)
            for number in job.spans[index]:
                propagate(teacher, teacher.read_block(number), streams.teacher_states)
            if partial.has(index):
                stored = source.read_block(index, partial.read_block(index))
                propagate(student, student.make_block(index, stored), streams.student_states)
                continue
            tensors = source.read_block(index)
            block = student.make_block(index, tensors)
            dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
            del tensors  # the block has them in float32
            parameters = trainable(block, dtypes, [linear.name for linear in source.linears(index)])
            epochs, seed, record = recipe.epochs, f"{recipe.seed} {index}", {}
            if rate := recipe.rate or partial.records.get(0, {}).get("rate"):  # chosen on the first block
                fitted = training.fit(block, parameters, rate=rate, epochs=epochs, seed=seed)
            else:
                fitted, rate = training.fit_at_best(block, parameters, RATES_AFTER_FIT, epochs=epochs, seed=seed)
                record["rate"] = rate
            changed = {p.name: p.parameter.detach().to(p.dtype).cpu() for p in parameters} if fitted.trained else {}
            partial.write_block(index, block_of(source, index, changed), fitted._asdict() | record)
            propagate(student, block, streams.student_states)
            steps.advance(first, note=f"error {fitted.before:.3g} -> {fitted.after:.3g}")
            first = 1


def block_of(source: Checkpoint, index: int, changed: dict[str, Tensor]) -> dict[str, Tensor | Stored]:
    """A block as it is to be stored, by names on disk; raises where a zero of it would be lost."""
    for name, new in changed.items():
        old = source.read_weight(index, name)
        if old.dim() > 1 and bool((new[old == 0] != 0).any()):
            raise AssertionError(f"recovery would fill zeros of {source.block_name(index, name)}")
    return {**source.block_tensors(index), **source.as_stored(index, changed)}


def spans_of(source: Checkpoint, dense: Checkpoint) -> list[range]:
    """For each block of source, the blocks of dense that it stands for (see Recovery). PrunusError without a match."""
    history = source.manifest.history
    made_from_dense = (number for number, step in enumerate(history) if step.source.checksum == dense.checksum())
    kept = blocks_kept(dense.blocks, history[next(made_from_dense, 0) :])
    if len(kept) != source.blocks:
        raise PrunusError(f"{source.folder} has {source.blocks} blocks, {dense.folder} {dense.blocks}: no twins")
    narrow = any(recorded_kind(step).reshapes for step in history)
    for index, number in enumerate(kept):
        if not are_twins(shapes_of(source, index), shapes_of(dense, number), narrow):
            raise PrunusError(f"block {index} of {source.folder} and block {number} of {dense.folder} differ in shape")
    starts = [0, *kept[1:], dense.blocks]
    return [range(first, last) for first, last in pairwise(starts)]


def are_twins(shapes: Mapping[str, tuple[int, int]], dense: Mapping[str, tuple[int, int]], narrow: bool) -> bool:
    """Whether these are shapes of the same Linears. narrow: whether the first may have fewer outputs or inputs."""
    if not narrow:
        return shapes == dense
    return shapes.keys() == dense.keys() and all(
        own <= whole for name, shape in shapes.items() for own, whole in zip(shape, dense[name], strict=True)
    )


def shapes_of(source: Checkpoint, index: int) -> dict[str, tuple[int, int]]:
    """The shape (O, I) of each Linear of a block by its name, in which * stands for the number of an expert."""
    return {linear.summary_name: linear.shape_OI for linear in source.linears(index)}


def check_trainable(source: Checkpoint, device: torch.device) -> None:
    """Raise PrunusError where no gradient can be taken of single blocks, or memory is too small for one."""
    if source.names.is_shared or shares_state(source.architecture):
        raise PrunusError(
            f"{source.folder} ({source.config.model_type}) cannot be recovered block by block: its blocks share "
            "weights or hand on more than hidden states"
        )
    needed = TRAINING_BYTES * largest_block(source)
    check_free(f"training the largest block of {source.folder}", needed, device, "or take a machine with more")


def check_zeros(source: Checkpoint) -> None:
    """Raise PrunusError where nothing was pruned."""
    if any(recorded_kind(step).takes_away for step in source.manifest.history):
        return
    names = ((index, f"{linear.name}.weight") for index in range(source.blocks) for linear in source.linears(index))
    weights = (source.read_weight(*name) for name in names)
    if not any(int((weight_OI == 0).sum()) > CHANCE_ZEROS * weight_OI.numel() for weight_OI in weights):
        raise PrunusError(f"{source.folder} has no zeros and lacks no block, expert or channel: nothing to recover")


def seen_before(source: Checkpoint, calibration: Calibration) -> list[str]:
    """A warning where most of the sequences are those to which the pruned model was fitted."""
    made, path = source.manifest.history, source.folder / CALIBRATION
    if not made or not recorded_kind(made[-1]).fits(made[-1]) or not path.exists():
        return []
    fitted = {tuple(line.value) for line in read_jsonl(path)}
    count = sum(tuple(ids) in fitted for ids in calibration.sequences)
    if 2 * count <= len(calibration.sequences):
        return []
    return [
        f"{source.folder.name} was fitted to {count} of these {len(calibration.sequences)} sequences, so that held-out"
        " errors say little of other text: calibrate the fit and the recovery on different sequences"
    ]


def warnings_of(fits: Sequence[Fit], advice: str = "") -> list[str]:
    """Warnings about blocks that were left as they were. advice: for those whose training diverged."""
    broken = [str(index) for index, fit in enumerate(fits) if not fit.finite]
    worse = [str(index) for index, fit in enumerate(fits) if fit.finite and not fit.trained]
    warnings = []
    if broken:
        warnings.append(f"training gave NaN or infinity in blocks {', '.join(broken)}, left as they were{advice}")
    if worse:
        warnings.append(f"blocks {', '.join(worse)} are as they were: their error on held-out sequences did not fall")
    return warnings
