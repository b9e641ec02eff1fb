"""What can be done with a model, from its configuration alone: its Linears, matrices that stay dense, and its uses."""

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from prunus.checkpoint.architecture import Architecture
from prunus.checkpoint.linears import BlockLinears, Linear, find_linears
from prunus.pruning.depth.verification import Droppable
from prunus.pruning.scope import is_in, weights_of
from prunus.recipes import PruneRecipe

Row = dict[str, object]


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


def describe_uses(architecture: Architecture, drops: Droppable, unprunable: str | None) -> list[Row]:
    """A row for each of prune, drop, pack and the sparse kernel: possible, and a note with the reason or limits.

    drops: whether blocks can be dropped, from the configuration alone. unprunable: why prune refuses the model; None if
    it does not.
    """
    note = "; ".join(filter(None, (drops.note, "drop also checks it on a short sequence")))
    drop = _use("drop", note=note) if drops.possible else _use("drop", drops.note or "it has a single block")
    if unprunable is not None:
        return [_use("prune", unprunable), drop, _use("pack", unprunable), _use("sparse kernel", unprunable)]
    linears = [
        (f"{architecture.block_prefix(index)}{linear.name}", linear)
        for index, block in enumerate(find_linears(architecture))
        for linear in block.linears
    ]
    plain = [name for name, linear in linears if not linear.experts]
    odd = {name for name in plain if type(architecture.model.get_submodule(name)) is not nn.Linear}
    odd |= {name for name, linear in linears if linear.experts}
    what = "routed experts or of the model's own class" if len(plain) < len(linears) else "of the model's own class"
    slow = f"{len(odd)} of {len(linears)} Linears are {what} and run in torch" if odd else ""
    every = len(odd) == len(linears)
    return [
        _use("prune"),
        drop,
        _use("pack"),
        _use("sparse kernel", slow if every else "", "" if every else slow),
    ]


def refused(why: str) -> list[Row]:
    """Rows that say for every use why it is not possible, for a model whose blocks cannot be run one by one."""
    return [_use(name, why) for name in ("prune", "drop", "pack", "sparse kernel")]


def _use(name: str, why_not: str = "", note: str = "") -> Row:
    return {"use": name, "possible": not why_not, "note": why_not or note}


def _kinds(found: Sequence[BlockLinears]) -> list[tuple[BlockLinears, list[int]]]:
    """Kinds of blocks (with equal Linears) and the indices of each, in the order of their first block."""
    kinds: list[tuple[BlockLinears, list[int]]] = []
    for index, block in enumerate(found):
        same = next((indices for known, indices in kinds if known == block), None)
        if same is None:
            kinds.append((block, [index]))
        else:
            same.append(index)
    return kinds


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
