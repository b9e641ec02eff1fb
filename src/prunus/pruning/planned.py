"""The model that a step will write, opened before it is there: its config.json, and the shapes of its tensors.

It has the folder of the model that it is made from, and so the tokenizer, the manifest, and the name in messages.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import SINGLE_FILE
from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError

# Fields with the number of extra blocks for multi-token prediction; these are not written where shapes change.
PREDICTING = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "n_predict_layers")
TOKENS = 32  # of the sequence on which the new model is compared with the old one
# Relative. Both do the same operations; sums over another number of terms may be added in another order.
TOLERANCE = 1e-5


class _Planned(Checkpoint):
    def __init__(self, folder: Path, content: Mapping[str, Any], tensors: Mapping[str, Stored]) -> None:
        self._content, self._given = content, tensors
        super().__init__(folder)

    @property
    def config_json(self) -> dict[str, Any]:
        """The content of config.json that will be written."""
        return dict(self._content)

    def checksum(self) -> str:
        """That of no model, since there are no weights yet."""
        return "planned"

    def _find_tensors(self) -> Mapping[str, Stored]:
        return self._given


def planned_checkpoint(source: Checkpoint, content: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Checkpoint:
    """A checkpoint with this content of config.json and these tensors, by their names on disk; nothing is written.

    Raises PrunusError unless the tensors have exactly the names and shapes that the configuration asks for.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(content))
        (folder / SINGLE_FILE).touch()
        try:
            new = _Planned(folder, content, tensors)
        except PrunusError as error:
            raise PrunusError(str(error).replace(f"{folder}: ", "").replace(str(folder), "it")) from error
    new.folder = source.folder
    return new


def left_out(source: Checkpoint) -> list[str]:
    """Names of tensors that belong to no block and to no module, such as layers for multi-token prediction."""
    outer = source.outer_tensors()
    return [name for name in source.names.unknown if name in outer]


def outside(source: Checkpoint) -> dict[str, Stored]:
    """The tensors outside blocks that a step writes: all but those of `left_out`."""
    stray = left_out(source)
    return {name: stored for name, stored in source.outer_tensors().items() if name not in stray}


def warn_of(stray: Sequence[str]) -> list[str]:
    """A warning if tensors are left out, as they belong to no block and to no module."""
    if not stray:
        return []
    shown = stray[0] + (f" and {len(stray) - 1} more" if len(stray) > 1 else "")
    return [f"left out, as they belong to no module (such as layers for multi-token prediction): {shown}"]


def short_sequence(source: Checkpoint) -> Tensor:
    """(1, T) random token ids on which two models are compared."""
    length = min(TOKENS, source.context)
    return torch.randint(source.vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
