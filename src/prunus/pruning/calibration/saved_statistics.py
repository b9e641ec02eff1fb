"""Statistics of the dense model's Linear inputs in a file, from which any number of variants can be pruned.

The file is safetensors in float32. For every distinct input it holds `model.layers.0.self_attn.q_proj.norm`, `.mean`
and `.variance`, each (I,), and on request `.hessian` (I, I), which is X^T X; for a routed expert also `.tokens` (1,),
the number that its router sent to it. The name is that of the first Linear that reads the input. The metadata entry
`prunus` is JSON with the model, the calibration tokens and the software versions.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.device import within_memory
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.loader import blocks_on
from prunus.checkpoint.precision import full_float32
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.runner import Runner, pick_device
from prunus.checkpoint.safetensors_file import DTYPE_NAMES, Stored, entry_of, layout, put, read_header, read_metadata
from prunus.disk import as_path, atomic_file, check_space, check_writable, disk_errors, show_bytes
from prunus.errors import PrunusError, no_file, unreadable
from prunus.formats import FORMATS, check_format
from prunus.manifest import Manifest
from prunus.plain_data import PrintedRecord, Record, parse_json
from prunus.progress import Steps, say
from prunus.pruning.calibration import calibration_name, read_source
from prunus.pruning.calibration.data import Calibration, load_calibration
from prunus.pruning.calibration.hidden_states import HiddenStates, check_block_fits
from prunus.pruning.calibration.propagation import BlockRun, Stats, dense
from prunus.pruning.calibration.statistics import Hessian, InputStats, few_tokens, is_few
from prunus.pruning.scope import linears_in_scope
from prunus.recipes import ExpertsRecipe, GgufRecipe, PruneRecipe, QuantizeRecipe, WidthRecipe
from prunus.recipes.base import CALIBRATED, Calibrated
from prunus.recipes.declarations import Needs
from prunus.recipes.prune import DtypeName
from prunus.version import versions

AnyRecipe = TypeVar("AnyRecipe", PruneRecipe, ExpertsRecipe, WidthRecipe, QuantizeRecipe, GgufRecipe)
FIELDS = CALIBRATED  # of a recipe, on which the statistics depend besides dtype
VECTORS, MATRIX = ("norm", "mean", "variance"), "hessian"
TOKENS = "tokens"  # number of tokens that its router sent to a routed expert
# Files of a tokenizer, of which a model has some.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class MeasuredModel(Record):
    """The model that a file of statistics was measured on.

    tokenizer: its checksum. hub, revision: if it is from the hub. dequantised: how its weights were quantised.
    """

    name: str
    checksum: str
    tokenizer: str
    hub: str | None = None
    revision: str | None = None
    dequantised: str | None = None


class About(Record):
    """What was measured in a file, and how.

    calibration: the summary of its tokens.
    recipe: what the statistics depend on: FIELDS and dtype.
    versions: of the software.
    experts: whether they are scores of experts.
    """

    format: int
    model: MeasuredModel
    calibration: Mapping[str, Any]
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    experts: bool | None = None

    @property
    def dtype(self) -> str:
        """The dtype in which the blocks ran, by its safetensors name."""
        return self.recipe["dtype"]


class CalibrationOptions(TypedDict, total=False):
    """The fields of recipes on which saved statistics depend: calibration tokens and the dtype."""

    calibration: str
    sequences: int
    seqlen: int
    calibration_tokens: int | None
    seed: int
    dtype: DtypeName


class StatisticsFile(PrintedRecord):
    """A file of statistics.

    out: the file.
    size: its size, as text.
    sequences, tokens: numbers of calibration sequences and tokens.
    warnings: a line each.
    """

    LAST = ("size", "sequences", "tokens", "warnings")

    out: str
    size: str
    sequences: int
    tokens: int
    warnings: Sequence[str]


class InputsMeasured(StatisticsFile):
    """A file of statistics of the inputs of Linears, as `stats` wrote it.

    inputs: number of distinct inputs.
    hessians: whether it has X^T X of each.
    """

    inputs: int
    hessians: bool


def stats(
    model: str | Path,
    out: str | Path,
    *,
    hessians: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    **options: Unpack[CalibrationOptions],
) -> InputsMeasured:
    """Write input statistics of all Linears of model to the file out, for prune(stats=out).

        measured = prunus.stats("tiny", "norms.safetensors")
        prunus.prune("tiny", "wanda-dense-50", prunus.PruneRecipe(propagation="dense"), stats=measured.out)

    The statistics are norms, means and variances of every input feature over all calibration tokens, from one pass of
    the dense model. The file is written completely or not at all.

    model: a folder, a hub id or `tiny`.
    out: the file to write.
    hessians: also X^T X of every input, which takes 4 bytes times the square of the input's width.
    device: `cpu`, `cuda`, ...; `auto` takes a GPU where present.
    overwrite: replace an existing file.
    options: fields of PruneRecipe: calibration, sequences, seqlen, calibration_tokens, seed, dtype.

    Raises PrunusError for wrong input.
    """
    recipe = PruneRecipe(**options, propagation="dense")
    source, target = open_for_stats(model, out, recipe, overwrite)
    entries = planned_entries(source, hessians)
    needed = sum(entry.nbytes for entry in entries.values())
    check_space(target.absolute(), needed)
    runner_device = pick_device(device)
    check_block_fits(source, source.dtype_for(recipe.dtype), runner_device)
    chosen = load_calibration(recipe, source)
    about = about_stats(source, model, recipe, chosen)
    say(f"{target} will take {show_bytes(needed)}")
    blocks = measure_inputs(source, recipe, chosen, runner_device, "hessian" if hessians else "means")
    with disk_errors(target.parent, needed), within_memory(runner_device):
        met = write_stats(target, entries, about, blocks)
    few = {expert: count for expert, count in met.items() if is_few(count)}
    return InputsMeasured(
        out=str(target),
        inputs=sum(name.endswith(f".{VECTORS[0]}") for name in entries),
        hessians=hessians,
        size=show_bytes(target.stat().st_size),
        sequences=len(chosen.sequences),
        tokens=chosen.tokens,
        warnings=[*chosen.warnings, *few_tokens(few, len(met), "have the")],
    )


def open_for_stats(model: str | Path, out: str | Path, recipe: Calibrated, overwrite: bool) -> tuple[Checkpoint, Path]:
    """The model, opened, and the file to write. PrunusError where calibration cannot be read, or the file exists."""
    read_source(recipe.calibration, resolve(model))
    source, target = Checkpoint(resolve(model)), as_path(out)
    if target.exists() and not (overwrite and target.is_file()):
        raise PrunusError(f"{target} exists; choose another file or add --overwrite")
    check_writable(target)
    return source, target


def about_stats(
    source: Checkpoint, model: str | Path, recipe: PruneRecipe | ExpertsRecipe, chosen: Calibration
) -> About:
    """The metadata of a file: what was measured, and how."""
    return About(
        format=FORMATS["file of statistics"],
        model=MeasuredModel(**source.provenance(model), tokenizer=tokenizer_checksum(source.folder)),
        calibration=chosen.summary(),
        recipe={name: getattr(recipe, name) for name in FIELDS} | {"dtype": run_dtype(recipe, source)},
        versions=versions(),
        experts=True if isinstance(recipe, ExpertsRecipe) else None,
    )


def planned_entries(source: Checkpoint, hessians: bool) -> dict[str, Stored]:
    """A file's tensors before they are written, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(source.blocks):
        for leader in leaders(source, index):
            width = leader.shape_OI[1]
            kinds: dict[str, tuple[int, ...]] = dict.fromkeys(VECTORS, (width,))
            kinds |= {TOKENS: (1,)} if leader.experts else {}
            kinds |= {MATRIX: (width, width)} if hessians else {}
            shapes |= {stat_name(source, index, leader.name, kind): shape for kind, shape in kinds.items()}
    return {name: entry_of(torch.empty(shape, device="meta")) for name, shape in shapes.items()}


def write_stats(
    target: Path, entries: Mapping[str, Stored], about: About, blocks: Iterator[dict[str, Tensor]]
) -> dict[str, int]:
    """Write the file block by block, as they are measured, so that memory never holds two blocks' Hessians.

    Returns the number of tokens that its router sent to each routed expert.
    """
    met: dict[str, int] = {}
    head, places = layout(target, entries, {"prunus": json.dumps(about.to_json(), sort_keys=True)})
    made = [folder for folder in target.absolute().parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(target) as stream:
            stream.write(head)
            for tensors in blocks:
                for name, tensor in tensors.items():
                    put(stream, places[name], tensor)
                    if name.endswith(f".{TOKENS}"):
                        met[name.rsplit(".", 2)[0]] = int(tensor)
    except BaseException:
        for folder in made:
            folder.rmdir()
        raise
    return met


def measure_inputs(
    source: Checkpoint, recipe: PruneRecipe, chosen: Calibration, device: torch.device, needs: Needs
) -> Iterator[dict[str, Tensor]]:
    """Yield the statistics of every distinct input, block after block, by their names in the file.

    Those of routed experts with Hessians come in portions.
    """
    runner = Runner(source, source.dtype_for(recipe.dtype), device)
    with torch.inference_mode(), full_float32(device), Steps("observing", total=source.blocks, unit="blocks") as steps:
        hidden = HiddenStates(runner, chosen.sequences, None)
        blocks = blocks_on(source, range(source.blocks), device)
        for index in range(source.blocks):
            block = runner.make_block(index, next(blocks))
            run = BlockRun(runner, block, index, hidden, source.linears(index), index == source.blocks - 1, needs)
            for group in dense(run):
                yield {
                    stat_name(source, index, leader.name, kind): tensor
                    for leader in leaders(source, index)
                    if leader.name in group
                    for kind, tensor in kinds_of(leader, group[leader.name]).items()
                }
            steps.advance()


def kinds_of(leader: Linear, inputs: InputStats) -> dict[str, Tensor]:
    """The statistics of an input by their kind."""
    assert inputs.mean_I is not None and inputs.variance_I is not None
    kinds = dict(zip(VECTORS, (inputs.norm_I, inputs.mean_I, inputs.variance_I), strict=True))
    if leader.experts:
        kinds[TOKENS] = torch.tensor([float(inputs.tokens if inputs.pooled is None else inputs.pooled)])
    return kinds if inputs.hessian is None else kinds | {MATRIX: inputs.hessian.matrix_II}


def stat_name(source: Checkpoint, index: int, leader: str, kind: str) -> str:
    """The name in the file of a statistic of an input."""
    return source.block_name(index, f"{leader}.{kind}")


def leaders(source: Checkpoint, index: int) -> list[Linear]:
    """For each distinct input of a block the first Linear that reads it."""
    return [linear for linear in source.linears(index) if linear.name == linear.leader]


def run_dtype(recipe: PruneRecipe | ExpertsRecipe | QuantizeRecipe, source: Checkpoint) -> str:
    """The dtype in which blocks run, by its safetensors name."""
    return DTYPE_NAMES[source.dtype_for(recipe.dtype)]


def tokenizer_checksum(folder: Path) -> str:
    """SHA-256 over the files of a model's tokenizer, which decides the calibration tokens of a text."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(f"{name}\0".encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def read_stats(path: Path) -> tuple[About, dict[str, Stored]]:
    """Description and tensors of a file of statistics. Raises PrunusError if it is no such file."""
    if not path.is_file():
        raise unreadable(str(path), f"{no_file(path)}; `prunus stats` writes such a file")
    tensors = read_header(path)
    try:
        data = parse_json(read_metadata(path)["prunus"])
        check_format("file of statistics", path, data["format"], "write it again with `prunus stats`")
        return About.of(data), tensors
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise PrunusError(f"{path} holds no statistics; `prunus stats` writes such a file") from error


def check_given(path: Path, about: About, manifest: Manifest, given: Mapping[str, Any]) -> None:
    """Raise PrunusError if a given field of the recipe differs from what was measured. manifest: of the model."""
    for name, value in given.items():
        stored = about.recipe.get(name, getattr(PruneRecipe, name))
        if name == "calibration":
            stored, value = (calibration_name(text, manifest) for text in (stored, value))
        if value != stored:
            raise PrunusError(
                f"{path} was measured with {name} {stored}, not {value}; leave {name} out, or measure again"
            )


class SavedStats:
    """A file of statistics, opened for a model; raises PrunusError if it is of another model or not such a file."""

    def __init__(self, path: str | Path, source: Checkpoint) -> None:
        self.path, self.source = Path(path), source
        self.about, self.tensors = read_stats(self.path)
        model = self.about.model
        checksums = source.checksum(), tokenizer_checksum(source.folder)
        if (model.checksum, model.tokenizer) != checksums:
            what = "another model" if model.checksum != checksums[0] else "another tokenizer"
            raise PrunusError(
                f"{path} holds statistics of {what} ({model.name}), not of {source.folder}; "
                "write them for this one with `prunus stats`"
            )

    def check_hessians(self, what: str) -> None:
        """Raise PrunusError unless the file holds X^T X. what: the method or command that needs it, for the message."""
        if not any(name.endswith(f".{MATRIX}") for name in self.tensors):
            raise PrunusError(
                f"{self.path} holds no Hessians, which {what} needs; write it with `prunus stats --hessians`"
            )

    def check(self, recipe: PruneRecipe, needs: str) -> None:
        """Raise PrunusError if the recipe's method, which has these needs, would measure other statistics."""
        self.check_inputs(recipe.scope)
        if needs == "hessian":
            self.check_hessians(recipe.method if recipe.update == "none" else f"--update {recipe.update}")
        if recipe.propagation != "dense":
            raise PrunusError(
                f"{self.path} holds statistics of the dense model, but propagation is '{recipe.propagation}'; "
                "add --propagation dense"
            )
        self.check_dtype(recipe)

    def check_dtype(self, recipe: PruneRecipe | QuantizeRecipe) -> None:
        """Raise PrunusError if blocks would run in another dtype for the recipe than they did for the statistics."""
        if (dtype := run_dtype(recipe, self.source)) != self.about.dtype:
            raise PrunusError(
                f"{self.path} was measured in {self.about.dtype}, not {dtype}; write it again with that --dtype"
            )

    def check_inputs(self, scope: str = "all") -> None:
        """Raise PrunusError if the file lacks the norms of an input of the Linears in a scope."""
        if self.about.experts:
            raise PrunusError(
                f"{self.path} holds scores of experts alone; write it with `prunus stats` without --experts"
            )
        for index, linears in enumerate(linears_in_scope(self.source, scope)):
            names = (self.source.block_name(index, linear.leader) for linear in linears)
            if lacks := next((name for name in names if f"{name}.{VECTORS[0]}" not in self.tensors), None):
                raise PrunusError(f"{self.path} holds no statistics of {lacks}: write it again with `prunus stats`")

    def with_calibration(self, recipe: AnyRecipe) -> AnyRecipe:
        """The recipe with the calibration of these statistics. Raises PrunusError where it asks for another."""
        settings = {name: getattr(recipe, name) for name in FIELDS}
        given = {name: value for name, value in settings.items() if value != getattr(type(recipe), name)}
        check_given(self.path, self.about, self.source.manifest, given)
        return replace(recipe, **{name: self.about.recipe.get(name) for name in FIELDS})

    @cached_property
    def summary(self) -> dict[str, object]:
        """The summary of the calibration for the manifest."""
        return {**self.about.calibration, "measured_with": self.about.versions}

    def groups(self, index: int, needs: str, device: torch.device) -> Iterator[Stats]:
        """Yield, for each distinct input of a block, its statistics on device by the Linears that read it.

        Hessians are read only if `needs` asks for them.
        """
        every = self.about.calibration["tokens"]
        for leader in leaders(self.source, index):
            names = {kind: stat_name(self.source, index, leader.name, kind) for kind in (*VECTORS, MATRIX, TOKENS)}
            stored = {kind: self.tensors[name] for kind, name in names.items() if name in self.tensors}
            norm_I, mean_I, variance_I = (stored[kind].read().to(device) for kind in VECTORS)
            hessian = None
            if needs == "hessian":
                hessian = Hessian(stored[MATRIX].read().to(device), f"block {index}, {leader.name}")
            met = int(stored[TOKENS].read()) if TOKENS in stored else None  # of routed experts alone
            pooled = met if met is not None and is_few(met) else None
            tokens = every if met is None or pooled is not None else met
            inputs = InputStats(norm_I, tokens, mean_I, variance_I, hessian, pooled=pooled)
            yield {linear.name: inputs for linear in self.source.linears(index) if linear.leader == leader.name}
