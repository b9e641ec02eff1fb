"""The facts that `inspect` returns about a checkpoint: structure, uses, history, sparsity, patterns.

What can be done with a model is known from its configuration alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from prunus.checkpoint.architecture import Architecture, Unstreamable
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.foreign_weights import quantisation_of
from prunus.checkpoint.gguf_file import read_gguf
from prunus.checkpoint.linears import BlockLinears, Linear, find_linears
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.resolve import read_object, resolve
from prunus.progress import Steps
from prunus.pruning.depth.verification import try_drops
from prunus.pruning.experts.mixtures import describe_removal
from prunus.pruning.masks import count_zeros
from prunus.pruning.quantize import describe_quantising
from prunus.pruning.scope import is_in, weights_of, why_unprunable
from prunus.pruning.width.channels import describe_width
from prunus.recipes import PruneRecipe
from prunus.store.labels import settings

Row = dict[str, object]
# (N, M): at most N nonzero weights in every M consecutive inputs of an output.
PATTERNS = ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8), (8, 16))


def inspect(checkpoint: str | Path, *, weights: bool | None = None) -> dict[str, Any]:
    """Facts about a checkpoint (folder, hub id or `tiny`), as JSON data.

    weights: also read the weights, for the second list below; None does so if prunus has written the checkpoint.

    Returns a dict. From the configuration and the headers of the files:

    folder, dtype: where the checkpoint is, and the dtype of its weights.
    family, language_model, class, transformers: model_type, that of the language model, its class in transformers, and
        transformers' version.
    stored: the form of the weights: dense, quantised, or GGUF.
    parameters, weight_bytes: number of parameters, and bytes as stored.
    bytes: those that an engine loads, by kind: quantised, scales, embeddings, head, others.
    history: a dict for each step that was applied: action, recipe (mostly only fields that differ from their
        defaults), blocks_removed, source, warnings; of removed experts, experts (numbers before and after, by block);
        of a recovery, trained_tokens; of quantised weights, format (name, bits, group) and bytes.
    refused: why the blocks cannot be run one by one, else None. If they cannot, only uses follows.
    uses: a dict for each of prune, drop, width and quantize with use, possible and note (why not, or what); of a
        mixture of experts also for experts.
    number_of_blocks, scope: the number, and the default scope of prune.
    prunable, of_parameters: number of weights in that scope, and their share of all parameters.
    groups: Linears that read the same input: blocks, linears, part, shapes ([O, I]).
    left_dense: every other matrix: blocks, matrix (`*` for numbers within its name), why.

    From the weights:

    sparsity: share of zeros in all prunable Linears. blocks, kinds and linears hold dicts with the same for each block,
        each kind of Linear and each Linear; the same matrix of all experts of a block is one (`mlp.experts.*.up_proj`),
        and experts is their number.
    patterns: the N:M patterns that all Linears follow; in linears, those of each.
    nonzero: number of weights in prunable Linears that are not zero.
    prunable_bytes: size of the prunable Linears if stored dense.

    Of a GGUF file (FILE.gguf) it has file, family (llama.cpp's name of the architecture), stored, parameters,
    weight_bytes, history, and types: a dict for each type of numbers, with type and bytes.

    Raises PrunusError if it is not a checkpoint.
    """
    if Path(checkpoint).suffix == ".gguf":
        return gguf_facts(Path(checkpoint))
    folder = resolve(checkpoint)
    try:
        source = Checkpoint(folder)
    except Unstreamable as error:
        return stored_facts(ModelFolder(folder)) | {"refused": str(error), "uses": refused(str(error))}
    facts = stored_facts(source)
    if weights is None:
        weights = bool(facts["history"])
    facts |= {
        "refused": None,
        **describe_blocks(source.architecture),
        "uses": [
            *describe_uses(try_drops(source), why_unprunable(source)),
            *describe_removal(source),
            *describe_width(source),
            *describe_quantising(source),
        ],
    }
    return facts | count_weights(source) if weights else facts


def stored_facts(model: ModelFolder) -> dict[str, object]:
    """Facts from the configuration, the headers of files and the manifest."""
    return {
        "folder": str(model.folder),
        **describe_model(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "stored": storage(model),
        "parameters": model.parameters,
        "weight_bytes": sum(stored.nbytes for stored in model.stored.values()),
        "bytes": model.engine_bytes,
        "history": [history_row(step) for step in model.manifest.get("history", [])],
    }


def gguf_facts(path: Path) -> dict[str, object]:
    """Facts from the header of a GGUF file."""
    found = read_gguf(path)
    kinds: dict[str, int] = {}
    for tensor in found.tensors.values():
        kinds[tensor.dtype] = kinds.get(tensor.dtype, 0) + tensor.nbytes
    return {
        "file": str(path),
        "family": found.architecture,
        "stored": "GGUF",
        "parameters": sum(tensor.elements for tensor in found.tensors.values()),
        "weight_bytes": sum(kinds.values()),
        "types": [{"type": kind, "bytes": nbytes} for kind, nbytes in kinds.items()],
        "history": [history_row(step) for step in found.manifest.get("history", [])],
    }


def count_weights(source: Checkpoint) -> dict[str, object]:
    """Facts from the weights: sparsity, patterns and sizes."""
    linears: list[LinearFacts] = []
    with Steps("reading", total=source.blocks, unit="blocks") as steps:
        for index in range(source.blocks):
            named: dict[str, list[Linear]] = {}
            for linear in source.linears(index):
                named.setdefault(linear.summary_name, []).append(linear)
            linears += [linear_facts(source, index, alike) for alike in named.values()]
            steps.advance()
    sparsity, zeros, all_weights = share(linears).values()
    return {
        "sparsity": sparsity,
        "patterns": [f"{n}:{m}" for n, m in PATTERNS if all(f"{n}:{m}" in row.patterns for row in linears)],
        "nonzero": all_weights - zeros,
        "prunable_bytes": all_weights * source.dtype.itemsize,
        "kinds": [
            {"kind": local, "part": part, **share([row for row in linears if row.kind == local])}
            for local, part in dict.fromkeys((row.kind, row.part) for row in linears)
        ],
        "blocks": [
            {"block": index, **share([row for row in linears if row.block == index])} for index in range(source.blocks)
        ],
        "linears": [vars(row) | {"shape": list(row.shape)} for row in linears],
    }


@dataclass(frozen=True)
class LinearFacts:
    """A Linear of a block, or the same matrix of several experts. kind: its name in a block. part: attention or mlp."""

    linear: str
    block: int
    kind: str
    experts: int
    part: str
    shape: tuple[int, int]
    sparsity: float
    zeros: int
    weights: int
    patterns: list[str]


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
        settings = read_object(source.folder / "config.json").get("quantization_config")
        return f"{quantisation_of(settings)}, read in {str(source.dtype).removeprefix('torch.')}"
    return "dense"


def find_patterns(weight_OI: Tensor) -> list[str]:
    """Those of PATTERNS that a weight follows; none whose M does not divide the number of inputs."""
    kept = (weight_OI != 0).numpy().view(np.uint8)
    most: dict[int, int] = {}
    group = 1
    while kept.shape[1] % 2 == 0 and group < max(m for _, m in PATTERNS):
        kept = kept[:, 0::2] + kept[:, 1::2]  # nonzero weights of each pair of neighbouring groups
        group *= 2
        most[group] = int(kept.max())
    return [f"{n}:{m}" for n, m in PATTERNS if most.get(m, m) <= n]


def share(rows: Sequence[LinearFacts]) -> dict[str, float]:
    """Number of zeros and of weights of several Linears, and their sparsity."""
    zeros, weights = sum(row.zeros for row in rows), sum(row.weights for row in rows)
    return {"sparsity": zeros / weights if weights else 0.0, "zeros": zeros, "weights": weights}


def history_row(step: Mapping[str, Any]) -> dict[str, object]:
    """A summary of one step of the manifest."""
    cost = {key: step[key] for key in ("experts", "channels", "format", "bytes") if key in step}
    if step["action"] == "recover":
        cost = {"trained_tokens": step["cost"]["tokens"]}
    return {
        "action": step["action"],
        "recipe": dict(settings(step)),
        "blocks_removed": step.get("blocks_removed", []),
        "source": step["source"]["name"],
        "warnings": step["warnings"],
        **cost,
    }


def describe_model(config: PreTrainedConfig) -> Row:
    """The model's family (model_type), the model_type of its language model, and transformers' class and version."""
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return {
        "family": config.model_type,
        "language_model": config.get_text_config(decoder=True).model_type,
        "class": getattr(found, "__name__", None),
        "transformers": version("transformers"),
    }


def describe_blocks(architecture: Architecture) -> Row:
    """The structure of a model, as JSON data.

    number_of_blocks. scope: the default scope of prune. prunable, of_parameters: number of weights in that scope, and
    their share of the model's parameters. groups: Linears that read the same input, in the order of a forward pass, for
    each kind of block: blocks (indices), linears, part, shapes (O, I). left_dense: every other matrix, and why it stays
    dense; `*` stands for the numbers within its name.
    """
    scope = PruneRecipe().scope
    found = find_linears(architecture)
    chosen = [[linear for linear in block.linears if is_in(scope, linear)] for block in found]
    prunable = sum(map(weights_of, chosen))
    kinds = _kinds(found)
    dense = [row for block, indices in kinds for row in _dense(block, indices)]
    return {
        "number_of_blocks": len(found),
        "scope": scope,
        "prunable": prunable,
        "of_parameters": prunable / sum(parameter.numel() for parameter in architecture.model.parameters()),
        "groups": [row for block, indices in kinds for row in _groups(block, indices)],
        "left_dense": [*dense, *_outside(architecture)],
    }


def describe_uses(drops: Sequence[str | None], unprunable: str | None) -> list[Row]:
    """A row for each of prune and drop: possible, and a note with the reason or limits.

    drops: why blocks that were tried cannot be dropped, from the configuration alone; None for those that can.
    unprunable: why prune refuses the model; None if it does not.
    """
    why = next(filter(None, drops), None)
    note = "; ".join(filter(None, (why, "drop also checks it on a short sequence")))
    drop = _use("drop", note=note) if None in drops else _use("drop", why or "it has a single block")
    return [_use("prune", unprunable or ""), drop]


def refused(why: str) -> list[Row]:
    """Rows that say for every use why it is not possible, for a model whose blocks cannot be run one by one."""
    return [_use(name, why) for name in ("prune", "drop")]


def _use(name: str, why_not: str = "", note: str = "") -> Row:
    return {"use": name, "possible": not why_not, "note": why_not or note}


def _kinds(found: Sequence[BlockLinears]) -> list[tuple[BlockLinears, list[int]]]:
    """Kinds of blocks (with equal Linears) and the indices of each, in the order of their first block."""
    kinds: dict[str, tuple[BlockLinears, list[int]]] = {}
    for index, block in enumerate(found):
        kinds.setdefault(repr(block), (block, []))[1].append(index)
    return list(kinds.values())


def _groups(block: BlockLinears, indices: list[int]) -> Iterator[Row]:
    leaders: dict[str, list[Linear]] = {}
    for linear in block.linears:
        leaders.setdefault(linear.leader, []).append(linear)
    rows = {tuple(linear.summary_name for linear in linears): linears for linears in leaders.values()}
    for names, linears in rows.items():
        yield {
            "blocks": indices,
            "linears": list(names),
            "part": "+".join(dict.fromkeys(linear.kind for linear in linears)),
            "shapes": [list(linear.shape_OI) for linear in linears],
        }


def _dense(block: BlockLinears, indices: list[int]) -> Iterator[Row]:
    rows = {(re.sub(r"\.\d+(?=\.)", ".*", name), why) for name, why in block.dense.items()}
    return ({"blocks": indices, "matrix": name, "why": why} for name, why in sorted(rows))


def _outside(architecture: Architecture) -> Iterator[Row]:
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
    return ({"blocks": [], "matrix": name, "why": why} for name, why in rows.items())
