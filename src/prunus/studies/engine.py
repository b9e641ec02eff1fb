"""The backend of a study, and the evaluation of its cells on this machine: a first batch of every variant early.

One dense model stays loaded, and variants are swapped into it and out again.
"""

import gc
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunus import progress
from prunus.checkpoint.architecture import Architecture, Carried, find_layers
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import ModelFolder, is_gguf
from prunus.checkpoint.packed_files import read_variant
from prunus.errors import PrunusError
from prunus.evaluation.backends import check_installed, opened
from prunus.evaluation.backends.hf import HFBackend, device_for
from prunus.evaluation.backends.served import running_server
from prunus.evaluation.backends.vllm import VLLMBackend
from prunus.evaluation.engine import Batch, Show
from prunus.evaluation.engine import Engine as DrawingEngine
from prunus.evaluation.grading import Grader
from prunus.evaluation.kept_chains import answer_kept_chains, copy_natural_ends, sources_of
from prunus.evaluation.provenance import describe_environment
from prunus.evaluation.reused_rows import reuse_some_rows
from prunus.evaluation.run import fill_store, missing_batches
from prunus.manifest import MANIFEST, read_manifest
from prunus.pruning.gguf import gguf
from prunus.recipes import GgufRecipe
from prunus.recipes.drawing import Control
from prunus.settings.engines import BACKENDS, EngineOptions
from prunus.settings.engines.facts import GGUF
from prunus.store.rows import Sample
from prunus.store.store import Store, claim
from prunus.store.stored import Adaptive
from prunus.studies.cells import Cell, Model, Variant
from prunus.studies.file import CellGrid, Study
from prunus.studies.terminal import StudyBar
from prunus.studies.variants import (
    MAKING,
    add_run,
    differences_of,
    is_made,
    make_variant,
    read_info,
    weights_file,
    whole_checkpoint,
)

PROBE_TOKENS = 16


def makes_all_first(backend: str, device: str) -> bool:
    """Whether all variants are made before the engine starts, since from then on it occupies the whole GPU."""
    return BACKENDS[backend].fills_gpu and device_for(device) != "cpu"


class StudyEngine:
    """Holds one variant at a time: `with StudyEngine(study, folder, device) as engine: engine.hold(model, variant, 0)`.

    folder: of the study, which has the variants' files. The dense model stays loaded below the variants of it.
    """

    def __init__(self, grid: CellGrid, folder: Path, device: str) -> None:
        self.grid, self.name = grid, grid.backend
        self.folder, self.device = folder, device
        self.loaded: tuple[Model, int, dict[Control, DrawingEngine]] | None = None  # dense weights, and a serving
        self.variant: Variant | None = None
        self.serving = 0
        self.held: dict[Control, DrawingEngine] = {}  # of the variant
        self.folders: dict[bool, Path] = {}  # of the variant for servers, by whether it is a GGUF file
        self.server: tuple[Path, EngineOptions] | None = None  # that was started: its model folder, and how to reach it
        self.of_model, self.of_variant, self.of_serving, self.grader = ExitStack(), ExitStack(), ExitStack(), Grader()

    @property
    def options(self) -> EngineOptions:
        """Engine options of the serving that is held."""
        return self.grid.servings[self.serving].engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        with self.grader, self.of_model:
            try:
                self.of_serving.__exit__(*error)
            finally:
                self.of_variant.__exit__(*error)

    def hold(self, model: Model, variant: Variant, serving: int, control: Control = "forced") -> DrawingEngine:
        """An engine with the weights of a variant that was made, as a serving of the study says.

        It stays until another variant is held or released.
        """
        if self.variant != variant:
            self.release()
            self.variant = variant
        if self.serving != serving:
            self.stop()
            self.serving = serving
        if control not in self.held:
            self.held[control] = self.load(model, variant, control)
        return self.held[control]

    def release(self) -> None:
        """Take the variant out again, which leaves the dense model."""
        self.stop()
        self.variant, self.folders = None, {}
        self.of_variant.close()

    def stop(self) -> None:
        """Stop what serves the variant."""
        self.held, self.server = {}, None
        self.of_serving.close()

    def load(self, model: Model, variant: Variant, control: Control) -> DrawingEngine:
        """Engine of a variant that is not held yet: its weights are swapped in, or it is loaded or served anew."""
        enter, where, options = self.of_serving.enter_context, model.checkpoint.folder, self.options
        if options.serve is not None:
            if self.server is None:
                where = self.folder_for(model, variant, GGUF in options.serve)
                self.server = where, enter(running_server(options, where))
            where, options = self.server
        elif not variant.is_whole:
            backend = self.dense(model, control)
            if isinstance(backend, HFBackend):
                enter(swapped(backend.model, model.source, self.folder, variant))
            elif isinstance(backend, VLLMBackend):
                backend.hold(*differences_of(model.checkpoint, self.folder, variant))
            return backend
        else:
            self.free()  # first, since memory may hold one model only
            where = whole_checkpoint(self.grid, model, variant, self.folder, self.device)
        return enter(opened(self.name, where, self.device, len(model.tokenizer), options, control))

    def dense(self, model: Model, control: Control) -> DrawingEngine:
        """An engine with the model's dense weights; any other model, or serving, is freed first."""
        if self.loaded is None or self.loaded[0] is not model or self.loaded[1] != self.serving:
            self.free()
            self.loaded = model, self.serving, {}
        if control not in (engines := self.loaded[2]):
            where, vocabulary = model.checkpoint.folder, len(model.tokenizer)
            loading = opened(self.name, where, self.device, vocabulary, self.options, control)
            engines[control] = self.of_model.enter_context(loading)
        return engines[control]

    def free(self) -> None:
        """Free the model that is loaded, if there is any."""
        self.loaded = None
        self.of_model.close()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def folder_for(self, model: Model, variant: Variant, as_gguf: bool) -> Path:
        """The folder of a variant for servers, which stays until the variant is released. as_gguf: as of `served`."""
        if as_gguf not in self.folders:
            self.folders[as_gguf] = self.of_variant.enter_context(self.served(model, variant, as_gguf))
        return self.folders[as_gguf]

    @contextmanager
    def served(self, model: Model, variant: Variant, as_gguf: bool) -> Iterator[Path]:
        """Within the context, the folder of the variant's checkpoint, or of its GGUF file.

        It is deleted afterwards unless the study keeps checkpoints; after an error it stays for the next run.
        """
        where = whole_checkpoint(self.grid, model, variant, self.folder, self.device)
        with self.gguf_of(model, where) if as_gguf else nullcontext(where) as there:
            yield there
        if variant.steps and not self.grid.keep_checkpoints and not variant.is_whole:
            shutil.rmtree(where, ignore_errors=True)

    @contextmanager
    def gguf_of(self, model: Model, where: Path) -> Iterator[Path]:
        """Within the context, a folder of a checkpoint's GGUF file.

        A checkpoint that is no GGUF file itself is written as one in float16, which is deleted afterwards unless the
        study keeps checkpoints.
        """
        if is_gguf(where):
            yield where
            return
        steps = (recipe for variant in model.variants for recipe in variant.steps)
        like = next((recipe.like for recipe in steps if isinstance(recipe, GgufRecipe)), None)
        kept, made = self.grid.keep_checkpoints, served_gguf(self.folder, where)
        if not (kept and is_gguf_of(made, where)):
            gguf(where, made, GgufRecipe(like=like), overwrite=True)
        try:
            yield made
        finally:
            if not kept:
                shutil.rmtree(made)

    def evaluate(
        self,
        model: Model,
        cell: Cell,
        batches: Sequence[Batch],
        store: Store,
        show: Show = None,
        adaptive: Adaptive | None = None,
    ) -> Iterator[list[Sample]]:
        """Evaluate batches of a cell; yield its rows as they are stored. Unless adaptive, other runs' rows are reused.

        show: as in fill_store. adaptive: as Run.adaptive, if its rows decide how many problems it has.
        """
        work = cell.resolved
        backend = self.hold(model, cell.variant, cell.serving, self.grid.plans[cell.plan].control)
        backend.check(work)
        with claim(store.path, cell.run_id):
            served = None if self.server is None else self.server[0]
            environment = describe_environment(backend, cell.resolved.plan)
            add_run(store, model, cell, self.folder, environment, served, self.grid.mixed)
            if adaptive is not None:
                store.mark_adaptive(cell.run_id, adaptive)
            else:
                reuse_some_rows(store, work, environment)
                sources = sources_of(store, work, environment)
                copy_natural_ends(store, work, sources)
                yield from answer_kept_chains(store, work, backend, self.grader, batches, sources)
            for portion in fill_store(store, work, backend, self.grader, batches, show):
                yield portion.samples


def served_gguf(folder: Path, where: Path) -> Path:
    """Where a checkpoint is written as a GGUF file while it is served. folder: of the study."""
    return folder / MAKING / "served" / where.name


def is_gguf_of(made: Path, where: Path) -> bool:
    """Whether a folder has the GGUF file of this very checkpoint."""
    if not (made / MANIFEST).exists():
        return False
    return read_manifest(made).history[-1].source.checksum == ModelFolder(where).checksum()


@contextmanager
def swapped(model: PreTrainedModel, source: Checkpoint, folder: Path, variant: Variant) -> Iterator[None]:
    """Within the context, model has the variant's weights; before and after, exactly those of source.

    folder: of the study, which has the variant's files.
    """
    info = read_info(folder, variant) if variant.steps else None
    if info is None:
        assert not variant.steps, "a variant is made before it is swapped in"
        yield
        return
    replaced: list[str] = []
    try:
        for name, tensor in as_in_model(source, read_variant(weights_file(folder, variant), source)):
            replaced.append(name)
            overwrite(model, name, tensor)
        with blocks_kept(model, info.kept):
            yield
    finally:
        for name in replaced:
            overwrite(model, name, source.names.read([name], source.read)[name])


def as_in_model(source: Checkpoint, stored: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield (parameter name in transformers' model, tensor) for tensors that have their names on disk.

    Parameters that are converted from several stored tensors come last; their unchanged tensors are read from source.
    """
    origins = {name: origin for origin in source.names.origins.values() for name in origin.stored}
    parts: dict[str, Tensor] = {}
    for name, tensor in stored:
        origin = origins.get(name)
        if origin is not None and origin.converter is None:
            yield origin.targets[0], tensor.T if origin.transposed else tensor
        elif origin is not None:
            parts[name] = tensor
    targets = [target for name in parts for target in origins[name].targets]
    made = source.names.read(targets, lambda name: parts[name] if name in parts else source.read(name))
    yield from made.items()


@torch.no_grad()
def overwrite(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    """Set a parameter to tensor, rounded to the dtype that the model was loaded in, as loading would round it."""
    parameter = model.get_parameter(name)
    if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D):  # its weight has shape (I, O)
        tensor = tensor.T
    loaded = getattr(model.config, "dtype", None) or parameter.dtype
    parameter.copy_(tensor.to(loaded).to(parameter.dtype))


@contextmanager
def blocks_kept(model: PreTrainedModel, kept: list[int]) -> Iterator[None]:
    """Within the context, model has only these blocks, renumbered as in a checkpoint without the others.

    Raises PrunusError where the shortened model differs from its blocks run in turn, each called with the
    arguments that it has in the whole model.
    """
    config = model.config.get_text_config(decoder=True)
    layers, kinds = list(find_layers(model)[1]), getattr(config, "layer_types", None)
    if len(kept) == len(layers):
        yield
        return
    ids_NT = (torch.arange(2 * PROBE_TOKENS, device=model.device) % config.vocab_size).view(2, PROBE_TOKENS)
    expected = states_without(model, kept, ids_NT)
    try:
        set_blocks(model, [layers[index] for index in kept], kinds and [kinds[index] for index in kept])
        try:
            with torch.no_grad():
                actual = Architecture(model).whole_states(ids_NT)
            same = torch.allclose(actual.float(), expected.float(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        except Exception:  # the model's own code may rely on all of its blocks, and raise any error
            same = False
        if not same:
            raise PrunusError(
                f"{config.model_type} cannot be run in memory without some of its blocks: use `prunus drop` and"
                " `prunus eval` instead of a study"
            )
        yield
    finally:
        set_blocks(model, layers, kinds)


@torch.no_grad()
def states_without(model: PreTrainedModel, kept: list[int], ids_NT: Tensor) -> Tensor:
    """(N, T, X) input of the head when only the kept blocks run, each called as in the whole model."""
    architecture = Architecture(model)
    recording, carried = architecture.record(ids_NT), dict[Carried, Any]()
    hidden = recording.first
    try:
        for index in kept:
            hidden = architecture.call_block(index, architecture.layers[index], hidden, recording.calls[index], carried)
    except KeyError as error:
        raise PrunusError(
            f"an earlier block of {model.config.model_type} computes a tensor that a later one needs, so the earlier"
            " block cannot be removed"
        ) from error
    return architecture.states(ids_NT, hidden)


def set_blocks(model: PreTrainedModel, layers: list[Any], kinds: list[str] | None) -> None:
    """Replace the blocks of the model by layers. kinds: the attention type of each, if the configuration lists it."""
    name, _ = find_layers(model)
    path, _, inner = name.rpartition(".")
    model.get_submodule(path).register_module(inner, nn.ModuleList(layers))
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    config = model.config.get_text_config(decoder=True)
    config.num_hidden_layers = len(layers)
    if kinds is not None:
        with suppress(AttributeError):  # raised where transformers computes layer_types from other settings
            config.layer_types = kinds


@dataclass(eq=False)
class StudyJob:
    """One unit of work: make a variant (cell is None), or answer chains of a cell.

    early: comes before all jobs that are not early. attempts: number of workers that were lost at this job.
    """

    model: Model
    variant: Variant
    cell: Cell | None
    batch: list[tuple[int, int]]
    early: bool
    attempts: int = 0

    @property
    def number(self) -> int:
        """Number of the plan's batch in which the batch's first problem is; 0 for a variant to make.

        The batches of an A/A control have another size than the plan's.
        """
        if self.cell is None:
            return 0
        batches = self.cell.resolved.batches
        before = sum(map(len, batches[: batches.index(self.batch)]))
        of_plan = next(cell for cell in self.model.cells if cell.plan == self.cell.plan and not cell.is_control)
        return before // len(of_plan.resolved.batches[0])

    @property
    def serving(self) -> int:
        """The index of the cell's serving; 0 for a variant to make."""
        return 0 if self.cell is None else self.cell.serving

    @property
    def description(self) -> str:
        """The activity in words: `evaluating wanda-20 of tiny`."""
        activity, name = ("making", self.variant.name) if self.cell is None else ("evaluating", self.cell.name)
        return f"{activity} {name} of {self.model.label}"


def missing_jobs(models: Sequence[Model], folder: Path, store: Store) -> Iterator[StudyJob]:
    """Yield a job for every missing variant and batch, by model, variant and serving. folder: of the study.

    All batches of the dense models and the first batch of each variant are early.
    """
    for model in models:
        for variant in model.variants:
            missing = [
                (cell, batch) for cell in model.cells_of(variant) for batch in missing_batches(store, cell.resolved)
            ]
            if missing and not is_made(folder, variant):
                yield StudyJob(model, variant, None, [], True)
            for cell, batch in missing:
                yield StudyJob(model, variant, cell, batch, not variant.steps or batch == cell.resolved.batches[0])


def batch_after_batch(jobs: Sequence[StudyJob], batches: int | None) -> list[StudyJob]:
    """The jobs ordered by batch, so that all variants answer one before any answers the next one.

    In 16 bits, results depend on the machine. If a study is continued on another machine, this way all variants answer
    each problem on the same one. batches: how many of the first batches that lack rows are kept; None: all.
    """
    by_number = {id(job): job.number for job in jobs}
    first = sorted({by_number[id(job)] for job in jobs if job.cell is not None})[:batches]
    kept = [job for job in jobs if job.cell is None or by_number[id(job)] in first]
    return sorted(kept, key=lambda job: by_number[id(job)])


def run_here(
    study: Study, models: Sequence[Model], folder: Path, store: Store, device: str, batches: int | None = None
) -> None:
    """Evaluate every missing cell in this process, beginning with the dense models and one batch of every variant.

    folder: of the study. batches: as of batch_after_batch, if the study goes by batch.
    """
    jobs, serves = list(missing_jobs(models, folder, store)), study.serves
    if jobs:
        check_installed(study.backend)
    if not serves:  # else the server of a variant is started once for each serving, for all of its batches
        jobs.sort(key=lambda job: (job.serving, not job.early))
    if makes_all_first(study.backend, device):
        jobs.sort(key=lambda job: job.cell is not None)
    if study.by_batch:
        jobs = batch_after_batch(jobs, batches)
    with StudyBar(study, models, store) as bar, StudyEngine(study, folder, device) as engine:
        for (model, variant, cell), some in groupby(jobs, key=attrgetter("model", "variant", "cell")):
            if cell is not None:
                bar.say(f"evaluating {cell.name} of {model.label}")
                for samples in engine.evaluate(model, cell, [job.batch for job in some], store, bar.within):
                    bar.add(cell.run_id, samples)
            elif not serves:  # else the checkpoint is made whole when its server is started
                make_missing(engine, model, variant, bar)


def make_missing(engine: StudyEngine, model: Model, variant: Variant, bar: StudyBar) -> None:
    """Make a variant unless its files exist, and the others that begin with the same step, whose result they share."""
    if is_made(engine.folder, variant):
        return
    engine.release()
    alike = [other for other in model.variants if other.keys[:1] == variant.keys[:1]]
    for other in sorted(alike, key=lambda other: len(other.steps)):
        if not is_made(engine.folder, other):
            progress.say(f"making {other.name} of {model.label}")
            with bar.hidden():
                make_variant(model, other, engine.folder, engine.device, engine.grid.keep_checkpoints)
