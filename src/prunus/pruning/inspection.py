"""The facts that `inspect` returns about a checkpoint: structure, uses, history, sparsity, patterns.

What can be done with a model is known from its configuration alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from prunus.checkpoint.architecture import Architecture, Unstreamable
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.foreign_weights import quantisation_of
from prunus.checkpoint.gguf_file import read_gguf
from prunus.checkpoint.linears import BlockLinears, Linear, find_linears
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import resolve
from prunus.errors import PrunusError
from prunus.manifest import StepRecord
from prunus.plain_data import Record, made
from prunus.progress import Steps
from prunus.pruning.depth.verification import try_drops
from prunus.pruning.experts.mixtures import describe_removal
from prunus.pruning.masks import count_zeros
from prunus.pruning.quantize import describe_quantising
from prunus.pruning.scope import Use, is_in, weights_of, why_unprunable
from prunus.pruning.width.channels import describe_width
from prunus.recipes import PruneRecipe
from prunus.results.shown import as_text
from prunus.settings.cache_size import CacheSize
from prunus.store.labels import settings

TOKENS = 32_768  # of a long chain of thought
# (N, M): at most N nonzero weights in every M consecutive inputs of an output.
PATTERNS = ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8), (8, 16))


class InputGroup(Record):
    """Linears that read the same input.

    blocks: indices of the blocks that have them.
    linears: their names in a block.
    part: attention or mlp.
    shapes: (O, I) of each.
    """

    blocks: Sequence[int]
    linears: Sequence[str]
    part: str
    shapes: Sequence[tuple[int, int]]


class Dense(Record):
    """A matrix that is never pruned.

    blocks: indices of the blocks that have it; none outside the blocks.
    matrix: its name, with `*` for numbers within it.
    why: the reason.
    """

    blocks: Sequence[int]
    matrix: str
    why: str


class Structure(Record):
    """The blocks of a model.

    number_of_blocks: their number.
    scope: the default scope of prune.
    prunable: number of weights in that scope.
    of_parameters: their share of all parameters.
    groups: Linears that read the same input.
    left_dense: every other matrix.
    """

    number_of_blocks: int
    scope: str
    prunable: int
    of_parameters: float
    groups: Sequence[InputGroup]
    left_dense: Sequence[Dense]


class Share(Record):
    """The zeros of several Linears.

    sparsity: share of zeros.
    zeros, weights: numbers.
    """

    LAST = ("sparsity", "zeros", "weights")

    sparsity: float
    zeros: int
    weights: int


S = TypeVar("S", bound=Share)


class KindShare(Share):
    """The zeros of a kind of Linear.

    kind: its name in a block.
    part: attention or mlp.
    """

    kind: str
    part: str


class BlockShare(Share):
    """The zeros of a block.

    block: its index.
    """

    block: int


class LinearFacts(Share):
    """The zeros of a Linear, or of the same matrix of several experts (`mlp.experts.*.up_proj`).

    linear: its name.
    block: the index of its block.
    kind: its name in the block.
    experts: number of experts.
    part: attention or mlp.
    shape: (O, I).
    patterns: the N:M patterns that it follows.
    """

    LAST = ("sparsity", "zeros", "weights", "patterns")

    linear: str
    block: int
    kind: str
    experts: int
    part: str
    shape: tuple[int, int]
    patterns: Sequence[str]


class WeightFacts(Record):
    """Facts that are counted in the weights themselves.

    sparsity: share of zeros in all prunable Linears.
    patterns: the N:M patterns that all Linears follow.
    nonzero: number of weights in prunable Linears that are not zero.
    prunable_bytes: size of the prunable Linears if stored dense.
    kinds, blocks, linears: zeros of each kind of Linear, each block, and each Linear.
    """

    sparsity: float
    patterns: Sequence[str]
    nonzero: int
    prunable_bytes: int
    kinds: Sequence[KindShare]
    blocks: Sequence[BlockShare]
    linears: Sequence[LinearFacts]


class StepFacts(Record):
    """A step that was applied.

    action: its command.
    recipe: mostly only settings that differ from their defaults.
    blocks_removed: indices of the blocks that it removed.
    source: the model that it was applied to.
    warnings: a line each.
    experts, channels: if some were removed, their numbers before and after.
    format, bytes: of quantised weights, the format (name, bits and group) and the bytes that an engine loads, by kind.
    trained_tokens: of a recovery, number of tokens over all steps of training.
    """

    action: str
    recipe: Mapping[str, Any]
    blocks_removed: Sequence[int]
    source: str
    warnings: Sequence[str]
    experts: Mapping[str, Any] | None = None
    channels: Mapping[str, Any] | None = None
    format: Mapping[str, Any] | None = None
    bytes: Mapping[str, Any] | None = None
    trained_tokens: int | None = None


class ModelFacts(Record):
    """What `inspect` says of a checkpoint.

    folder: where it is.
    family, language_model: model_type, and that of the language model.
    model_class: the language model's class in transformers; the key in JSON is `class`.
    transformers: version of transformers.
    dtype: of the weights.
    stored: the form of the weights: dense, or how they are quantised.
    parameters: number of parameters.
    weight_bytes: bytes as stored.
    bytes: those that an engine loads, by kind: quantised, scales, embeddings, head, others.
    cache: size of the cache of a sequence, in addition to `bytes`; None where it is not known.
    memory_tokens, memory_bytes: length of a sequence, and the bytes of the weights and of its cache together.
    history: the steps that were applied.
    refused: why the blocks cannot be run in turn, else None.
    structure: of the blocks; None if they cannot be run in turn. In JSON its keys are at the top level.
    uses: what prune, drop, experts, width and quantize can do with it.
    weights: facts counted in the weights; None if they were not read. In JSON its keys are at the top level.
    """

    folder: str
    family: str
    language_model: str
    model_class: str | None = field(metadata={"key": "class"})
    transformers: str
    dtype: str
    stored: str
    parameters: int
    weight_bytes: int
    bytes: Mapping[str, int]
    cache: CacheSize | None = None
    memory_tokens: int | None = None
    memory_bytes: int | None = None
    history: Sequence[StepFacts]
    refused: str | None
    structure: Structure | None = None
    uses: Sequence[Use]
    weights: WeightFacts | None = None

    def to_json(self) -> dict[str, Any]:
        """The facts as plain data, with the keys of `structure` and `weights` at the top level."""
        data: dict[str, Any] = {}
        for key, value in super().to_json().items():
            data |= value if key in ("structure", "weights") else {key: value}
        return data

    def __repr__(self) -> str:
        return as_text("inspection_tables", {key: value for key, value in self.to_json().items() if key != "linears"})


class TypeFacts(Record):
    """A type of numbers in a GGUF file.

    type: llama.cpp's name of it.
    bytes: of all tensors that have it.
    """

    type: str
    bytes: int


class GgufFacts(Record):
    """What `inspect` says of a GGUF file.

    file: where it is.
    family: llama.cpp's name of the architecture.
    stored: `GGUF`.
    parameters: number of parameters.
    weight_bytes: bytes as stored.
    types: the types of numbers.
    history: the steps that were applied, as far as the file says.
    """

    file: str
    family: str
    stored: str
    parameters: int
    weight_bytes: int
    types: Sequence[TypeFacts]
    history: Sequence[StepFacts]

    def __repr__(self) -> str:
        return as_text("inspection_tables", self.to_json())


def inspect(checkpoint: str | Path, *, weights: bool | None = None, tokens: int = TOKENS) -> ModelFacts | GgufFacts:
    """Facts about a checkpoint: its structure, what can be done with it, and its zeros.

        for use in prunus.inspect("tiny").uses:
            print(use.use, use.possible, use.note)

    checkpoint: a folder, a hub id or `tiny`; or FILE.gguf, of which GgufFacts are returned.
    weights: also read the weights; None does so if prunus has written the checkpoint.
    tokens: length of the sequence whose cache memory_bytes includes.

    Raises PrunusError if it is not a checkpoint.
    """
    if type(tokens) is not int or tokens < 1:
        raise PrunusError(f"tokens must be a whole number of at least 1, not {tokens}")
    if Path(checkpoint).suffix == ".gguf":
        return gguf_facts(Path(checkpoint))
    folder = resolve(checkpoint)
    try:
        source = Checkpoint(folder)
    except Unstreamable as error:
        return stored_facts(ModelFolder(folder), str(error), refused(str(error)), tokens)
    uses = [
        *describe_uses(try_drops(source), why_unprunable(source)),
        *describe_removal(source),
        *describe_width(source),
        *describe_quantising(source),
    ]
    facts = replace(stored_facts(source, None, uses, tokens), structure=describe_blocks(source.architecture))
    return replace(facts, weights=count_weights(source)) if weights or (weights is None and facts.history) else facts


def stored_facts(model: ModelFolder, refused: str | None, uses: Sequence[Use], tokens: int) -> ModelFacts:
    """Facts from the configuration, the headers of files and the manifest."""
    cache, loaded = model.cache_size(), model.engine_bytes
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    return ModelFacts(
        folder=str(model.folder),
        family=model.config.model_type,
        language_model=model.config.get_text_config(decoder=True).model_type,
        model_class=getattr(model_class, "__name__", None),
        transformers=version("transformers"),
        dtype=str(model.dtype).removeprefix("torch."),
        stored=storage(model),
        parameters=model.parameters,
        weight_bytes=sum(stored.nbytes for stored in model.stored.values()),
        bytes=loaded,
        cache=cache,
        memory_tokens=None if cache is None else tokens,
        memory_bytes=None if cache is None else sum(loaded.values()) + cache.nbytes(tokens),
        history=[history_row(step) for step in model.manifest.history],
        refused=refused,
        uses=uses,
    )


def gguf_facts(path: Path) -> GgufFacts:
    """Facts from the header of a GGUF file."""
    header = read_gguf(path)
    kinds: dict[str, int] = {}
    for tensor in header.tensors.values():
        kinds[tensor.dtype] = kinds.get(tensor.dtype, 0) + tensor.nbytes
    return GgufFacts(
        file=str(path),
        family=header.architecture,
        stored="GGUF",
        parameters=sum(tensor.elements for tensor in header.tensors.values()),
        weight_bytes=sum(kinds.values()),
        types=[TypeFacts(type=kind, bytes=nbytes) for kind, nbytes in kinds.items()],
        history=[history_row(step) for step in header.manifest.history],
    )


def count_weights(source: Checkpoint) -> WeightFacts:
    """Facts from the weights: sparsity, patterns and sizes."""
    linears: list[LinearFacts] = []
    with Steps("reading", total=source.blocks, unit="blocks") as steps:
        for index in range(source.blocks):
            named: dict[str, list[Linear]] = {}
            for linear in source.linears(index):
                named.setdefault(linear.summary_name, []).append(linear)
            linears += [linear_facts(source, index, alike) for alike in named.values()]
            steps.advance()
    whole = share(Share, linears)
    return WeightFacts(
        sparsity=whole.sparsity,
        patterns=[f"{n}:{m}" for n, m in PATTERNS if all(f"{n}:{m}" in row.patterns for row in linears)],
        nonzero=whole.weights - whole.zeros,
        prunable_bytes=whole.weights * source.dtype.itemsize,
        kinds=[
            share(KindShare, [row for row in linears if row.kind == local], kind=local, part=part)
            for local, part in dict.fromkeys((row.kind, row.part) for row in linears)
        ],
        blocks=[
            share(BlockShare, [row for row in linears if row.block == index], block=index)
            for index in range(source.blocks)
        ],
        linears=linears,
    )


def linear_facts(source: Checkpoint, index: int, alike: Sequence[Linear]) -> LinearFacts:
    """Zeros and patterns of a Linear, or of the same matrix of several experts."""
    zeros = 0
    patterns = [f"{n}:{m}" for n, m in PATTERNS]
    for linear in alike:
        weight_OI = source.read_weight(index, f"{linear.name}.weight")
        zeros += (own := count_zeros(weight_OI))
        followed = find_patterns(weight_OI) if 2 * own >= weight_OI.numel() else []
        patterns = [pattern for pattern in patterns if pattern in followed]
    first, weights = alike[0], weights_of(alike)
    return LinearFacts(
        linear=source.block_name(index, first.summary_name),
        block=index,
        kind=first.summary_name,
        experts=len(alike),
        part=first.kind,
        shape=first.shape_OI,
        sparsity=zeros / weights,
        zeros=zeros,
        weights=weights,
        patterns=patterns,
    )


def storage(source: ModelFolder) -> str:
    """The form in which weights are stored, as text."""
    if source.quantised is not None:
        if not isinstance(source, Checkpoint):
            return source.quantised
        settings = source.written.get("quantization_config")
        return f"{quantisation_of(settings)}, read in {str(source.dtype).removeprefix('torch.')}"
    return "dense"


def find_patterns(weight_OI: Tensor) -> list[str]:
    """Patterns of PATTERNS that a weight follows; none whose M does not divide the number of inputs."""
    kept = (weight_OI != 0).numpy().view(np.uint8)
    most: dict[int, int] = {}
    group = 1
    while kept.shape[1] % 2 == 0 and group < max(m for _, m in PATTERNS):
        kept = kept[:, 0::2] + kept[:, 1::2]  # nonzero weights of each pair of neighbouring groups
        group *= 2
        most[group] = int(kept.max())
    return [f"{n}:{m}" for n, m in PATTERNS if most.get(m, m) <= n]


def share(record: type[S], rows: Sequence[LinearFacts], **more: object) -> S:
    """A record of the sparsity, zeros and weights of several Linears together. more: values of its other fields."""
    zeros, weights = sum(row.zeros for row in rows), sum(row.weights for row in rows)
    return made(record, more, sparsity=zeros / weights if weights else 0.0, zeros=zeros, weights=weights)


def history_row(step: StepRecord) -> StepFacts:
    """A summary of a step of the manifest."""
    counts = {key: step.data[key] for key in ("experts", "channels", "format", "bytes") if key in step.data}
    return StepFacts(
        action=step.action,
        recipe=dict(settings(step)),
        blocks_removed=list(step.blocks_removed),
        source=step.source.name,
        warnings=list(step.warnings),
        trained_tokens=step.cost.tokens if step.action == "recover" and step.cost else None,
        **counts,
    )


def describe_blocks(architecture: Architecture) -> Structure:
    """The structure of a model: groups are in the order of a forward pass, for each kind of block."""
    scope = PruneRecipe().scope
    blocks = find_linears(architecture)
    chosen = [[linear for linear in block.linears if is_in(scope, linear)] for block in blocks]
    prunable = sum(map(weights_of, chosen))
    kinds = _kinds(blocks)
    dense = [row for block, indices in kinds for row in _dense(block, indices)]
    return Structure(
        number_of_blocks=len(blocks),
        scope=scope,
        prunable=prunable,
        of_parameters=prunable / sum(parameter.numel() for parameter in architecture.model.parameters()),
        groups=[row for block, indices in kinds for row in _groups(block, indices)],
        left_dense=[*dense, *_outside(architecture)],
    )


def describe_uses(drops: Sequence[str | None], unprunable: str | None) -> list[Use]:
    """A row for each of prune and drop: possible, and a note with the reason or limits.

    drops: why blocks that were tried cannot be dropped, from the configuration alone; None for those that can.
    unprunable: why prune refuses the model; None if it does not.
    """
    why = next(filter(None, drops), None)
    note = "; ".join(filter(None, (why, "drop also checks it on a short sequence")))
    drop = _use("drop", note=note) if None in drops else _use("drop", why or "it has a single block")
    return [_use("prune", unprunable or ""), drop]


def refused(why: str) -> list[Use]:
    """Rows that say why prune and drop are not possible, for a model whose blocks cannot be run in turn."""
    return [_use(name, why) for name in ("prune", "drop")]


def _use(name: str, why_not: str = "", note: str = "") -> Use:
    return Use(use=name, possible=not why_not, note=why_not or note)


def _kinds(blocks: Sequence[BlockLinears]) -> list[tuple[BlockLinears, list[int]]]:
    """Kinds of blocks (with equal Linears) and the indices of each, in the order of their first block."""
    kinds: dict[str, tuple[BlockLinears, list[int]]] = {}
    for index, block in enumerate(blocks):
        kinds.setdefault(repr(block), (block, []))[1].append(index)
    return list(kinds.values())


def _groups(block: BlockLinears, indices: list[int]) -> Iterator[InputGroup]:
    leaders: dict[str, list[Linear]] = {}
    for linear in block.linears:
        leaders.setdefault(linear.leader, []).append(linear)
    rows = {tuple(linear.summary_name for linear in linears): linears for linears in leaders.values()}
    for names, linears in rows.items():
        yield InputGroup(
            blocks=indices,
            linears=names,
            part="+".join(dict.fromkeys(linear.kind for linear in linears)),
            shapes=[linear.shape_OI for linear in linears],
        )


def _dense(block: BlockLinears, indices: list[int]) -> Iterator[Dense]:
    rows = {(re.sub(r"\.\d+(?=\.)", ".*", name), why) for name, why in block.dense.items()}
    return (Dense(blocks=indices, matrix=name, why=why) for name, why in sorted(rows))


def _outside(architecture: Architecture) -> Iterator[Dense]:
    """Rows for the matrices outside the blocks, each once."""
    embedding = architecture.model.get_input_embeddings()
    inside = {id(parameter) for parameter in architecture.layers.parameters()}
    rows: dict[str, str] = {}
    for name, parameter in architecture.model.named_parameters():
        if id(parameter) in inside or parameter.ndim < 2:
            continue
        head = architecture.head is not None and any(parameter is own for own in architecture.head.parameters())
        if any(parameter is own for own in embedding.parameters()):
            why = "embedding, and head" if head else "embedding"
        else:
            why = "head" if head else "outside the blocks"
        rows[re.sub(r"\.\d+(?=\.)", ".*", name)] = why
    return (Dense(blocks=[], matrix=name, why=why) for name, why in rows.items())
