"""Variants as small files: what of a pruned model differs from its source; swapped into the loaded dense model and out.

No checkpoint stays per variant: one is written by `prune` or `drop_blocks`, compared with its source, and deleted.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunus.checkpoint.architecture import Architecture, Carried, find_layers
from prunus.checkpoint.checkpoint import MANIFEST, Checkpoint
from prunus.checkpoint.packed.commands import read_variant, variant_about, write_variant
from prunus.checkpoint.safetensors_file import Stored, read_header, write_file
from prunus.errors import PrunusError
from prunus.pruning.drop import drop_blocks
from prunus.pruning.pipeline import prune
from prunus.recipes import PruneRecipe
from prunus.study.cells import Model, Variant

VARIANTS, MAKING, CHECKPOINTS = "variants", "making", "checkpoints"
MEASURED = "measured"  # within MAKING: what variants share
PROBE_TOKENS = 16


@dataclass(frozen=True)
class About:
    """What is known of a variant besides its weights. kept: blocks of the source that it has.

    The rest is as the evaluation describes a model: checksum and manifest of the checkpoint that it would be.
    """

    kept: list[int]
    checksum: str
    manifest: dict[str, Any]
    parameters: int
    blocks: int


def weights_file(folder: Path, variant: Variant) -> Path:
    """Where a study keeps a variant's weights."""
    return folder / VARIANTS / f"{variant.key}.safetensors"


def vectors_file(folder: Path, variant: Variant) -> Path:
    """Where it keeps norms and biases, of the rare variant that changes them; written before the weights."""
    return folder / VARIANTS / f"{variant.key}.vectors.safetensors"


def variant_files(folder: Path, variant: Variant) -> list[Path]:
    """What there is of a variant; the file that says that it is complete comes last."""
    return [path for path in (vectors_file(folder, variant), weights_file(folder, variant)) if path.exists()]


def read_about(folder: Path, variant: Variant) -> About | None:
    """What is known of a variant that was made already."""
    path = weights_file(folder, variant)
    return About(**variant_about(path)["model"]) if path.exists() else None


def files_of(folder: Path, variant: Variant) -> tuple[Path | None, Path | None]:
    """The files of a variant that was made: packed matrices, and vectors if there are any; the dense one has none."""
    if variant.recipe is None:
        return None, None
    vectors = vectors_file(folder, variant)
    return weights_file(folder, variant), vectors if vectors.exists() else None


def blocks_removed(source: Checkpoint, folder: Path, variant: Variant) -> list[int]:
    """Blocks of the source that a variant that was made lacks."""
    about = read_about(folder, variant) if variant.recipe is not None else None
    return [] if about is None else [index for index in range(source.blocks) if index not in about.kept]


def kept_folder(folder: Path, model: Model, variant: Variant) -> Path:
    """Where a study leaves a variant's checkpoint if it is to keep them."""
    return folder / CHECKPOINTS / model.label.replace("/", "--") / variant.name


def make_variant(model: Model, variant: Variant, folder: Path, device: str, keep: bool) -> About:
    """Prune, and keep what differs from the source. Interrupted pruning goes on where it stopped.

    keep: leave the whole checkpoint in the study's folder.
    """
    source, recipe = model.checkpoint, variant.recipe
    assert recipe is not None
    target = kept_folder(folder, model, variant) if keep else folder / MAKING / variant.key
    # Complete because it has its name. One of that name that was kept may be of another recipe.
    if keep or not (target / MANIFEST).exists():
        if isinstance(recipe, PruneRecipe):
            prune(model.typed, target, recipe, device=device, overwrite=True, shared=folder / MAKING / MEASURED)
        else:
            drop_blocks(model.typed, target, recipe, device=device, overwrite=True)
    made = Checkpoint(target)
    removed = set(made.manifest["history"][-1].get("blocks_removed", []))
    kept = [index for index in range(source.blocks) if index not in removed]
    about = About(kept, made.checksum(), made.manifest, made.parameters, made.blocks)
    weights_file(folder, variant).parent.mkdir(parents=True, exist_ok=True)
    differing = dict(changed(source, made, kept))
    vectors = {name: stored for name, stored in differing.items() if len(stored.shape) != 2}
    if vectors:
        write_file(vectors_file(folder, variant), vectors)
    matrices = ((name, stored.read()) for name, stored in differing.items() if name not in vectors)
    told = {"variant": variant.name, "recipe": recipe.to_json(), "model": asdict(about)}
    write_variant(weights_file(folder, variant), source, matrices, told)
    if not keep:
        shutil.rmtree(target)
    return about


def changed(source: Checkpoint, made: Checkpoint, kept: list[int]) -> Iterator[tuple[str, Stored]]:
    """The tensors of made that are not those of source, by the names that they have in source."""
    for new, old in enumerate(kept):
        before = source.block_tensors(old)
        for name, stored in sorted(made.block_tensors(new).items()):
            old_name = made.renumbered(name, new, old)
            if not same(stored, before[old_name]):
                yield old_name, stored


def same(one: Stored, other: Stored) -> bool:
    """Whether two stored tensors are alike to the bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(a == b for a, b in zip(one.chunks(), other.chunks(), strict=True))


@contextmanager
def swapped(model: PreTrainedModel, source: Checkpoint, folder: Path, variant: Variant) -> Iterator[None]:
    """Within this, model, which holds source's weights, is the variant; afterwards it is the dense model to the bit."""
    about = None if variant.recipe is None else read_about(folder, variant)
    if about is None:
        assert variant.recipe is None, "a variant is made before it is swapped in"
        yield
        return
    touched: list[str] = []
    try:
        for name, tensor in as_in_model(source, read_tensors(folder, variant, source)):
            touched.append(name)
            put(model, name, tensor)
        with blocks_kept(model, about.kept):
            yield
    finally:
        for name in touched:
            put(model, name, source.names.read([name], source.read)[name])


def as_in_model(source: Checkpoint, stored: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by their names in transformers' model, from some that were stored by their names on disk.

    What several stored ones make comes last, from those that were given and the source's own.
    """
    origins = {name: origin for origin in source.names.origins.values() for name in origin.stored}
    parts: dict[str, Tensor] = {}
    for name, tensor in stored:
        origin = origins.get(name)
        if origin is not None and origin.converter is None:
            yield origin.targets[0], tensor
        elif origin is not None:
            parts[name] = tensor
    targets = [target for name in parts for target in origins[name].targets]
    made = source.names.read(targets, lambda name: parts[name] if name in parts else source.read(name))
    yield from made.items()


def read_tensors(folder: Path, variant: Variant, source: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """What of a variant differs from its source, one tensor at a time."""
    yield from read_variant(weights_file(folder, variant), source)
    vectors = vectors_file(folder, variant)
    if vectors.exists():
        yield from ((name, stored.read()) for name, stored in read_header(vectors).items())


@torch.no_grad()
def put(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    """Overwrite a weight as loading would have set it: by way of the dtype that the model was loaded in."""
    parameter = model.get_parameter(name)
    loaded = getattr(model.config, "dtype", None) or parameter.dtype
    parameter.copy_(tensor.to(loaded).to(parameter.dtype))


@contextmanager
def blocks_kept(model: PreTrainedModel, kept: list[int]) -> Iterator[None]:
    """Within this, model has only these of its blocks, numbered anew as in a checkpoint without the others.

    PrunusError where it is then not what its blocks make, one after the other, each called as it was in its old place.
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
                found = Architecture.around(model).whole_states(ids_NT)
            same = torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        except Exception:  # the model's own code, which wanted all of its blocks
            same = False
        if not same:
            raise PrunusError(
                f"{config.model_type} without some of its blocks does not run in memory as it should: use `prunus drop`"
                " and `prunus eval` instead of a study"
            )
        yield
    finally:
        set_blocks(model, layers, kinds)


@torch.no_grad()
def states_without(model: PreTrainedModel, kept: list[int], ids_NT: Tensor) -> Tensor:
    """(N, T, X) what the head reads where only these blocks run, each called as in the whole model."""
    architecture = Architecture.around(model)
    recording, carried = architecture.record(ids_NT), dict[Carried, Any]()
    hidden = recording.first
    try:
        for index in kept:
            hidden = architecture.call_block(index, architecture.layers[index], hidden, recording.calls[index], carried)
    except KeyError as error:
        raise PrunusError(
            f"a block of {model.config.model_type} needs what an earlier one found, so that one cannot be left out"
        ) from error
    return architecture.states(ids_NT, hidden)


def set_blocks(model: PreTrainedModel, layers: list[Any], kinds: list[str] | None) -> None:
    """Give the model these blocks. kinds: the attention of each, where the configuration says so."""
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
        with suppress(AttributeError):  # where they follow from other settings
            config.layer_types = kinds
