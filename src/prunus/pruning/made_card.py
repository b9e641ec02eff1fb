"""The model card of a checkpoint that was just made, without results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunus.cards.certified import read_claims
from prunus.cards.text import README, Card, Zeros, card_text, read_metadata
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import ModelFolder, is_gguf
from prunus.checkpoint.resolve import read_manifest
from prunus.disk import write_text


def made_card(source: Checkpoint, step: Mapping[str, Any]) -> dict[str, str]:
    """{README.md: text} of what a step made from source; zeros are those that pruning counted."""
    earlier = read_manifest(source.folder).get("history", [])
    card = Card([*earlier, step], read_metadata(source.folder / README), counted(source, [*earlier, step]))
    return {README: card_text(card)}


def renew_card(folder: Path) -> None:
    """Write the card of a checkpoint again, after its manifest was changed or a certificate was added."""
    made = (ModelFolder if is_gguf(folder) else Checkpoint)(folder)
    steps = read_manifest(folder)["history"]
    card = Card(steps, read_metadata(folder / README), counted(made, steps), certified=read_claims(folder))
    write_text(folder / README, card_text(card))


def counted(source: ModelFolder, steps: list[Mapping[str, Any]]) -> list[Zeros]:
    """The zeros by part of the blocks, from the last step, or from the one before if that only trained weights.

    source has the Linears of the result. Empty where these steps did not count, such as after blocks were removed.
    """
    if not isinstance(source, Checkpoint):
        return []
    last = steps[-2] if steps[-1]["action"] == "recover" and len(steps) > 1 else steps[-1]
    shares = last.get("sparsity", {})
    found: dict[str, Zeros] = {}
    for index in range(source.blocks if shares else 0):
        for linear in source.linears(index):
            if (share := shares.get(source.block_name(index, linear.summary_name))) is not None:
                size = linear.shape_OI[0] * linear.shape_OI[1]
                before = found.get(linear.kind, Zeros(linear.kind, 0, 0))
                found[linear.kind] = Zeros(linear.kind, before.zeros + round(share * size), before.weights + size)
    return list(found.values())
