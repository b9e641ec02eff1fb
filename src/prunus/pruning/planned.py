"""A model that is yet to be written, opened as a checkpoint: its configuration, and tensors that are elsewhere."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import SINGLE_FILE
from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError


class _Planned(Checkpoint):
    """The checkpoint of a folder that has only a configuration."""

    def __init__(self, folder: Path, tensors: Mapping[str, Stored]) -> None:
        self._given = tensors
        super().__init__(folder)

    def _find_tensors(self) -> Mapping[str, Stored]:
        return self._given


@contextmanager
def planned_checkpoint(content: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Iterator[Checkpoint]:
    """A checkpoint with this content of config.json and these tensors, by their names on disk; nothing is written.

    Raises PrunusError unless the tensors have exactly the names and shapes that the configuration asks for.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(content))
        (folder / SINGLE_FILE).touch()
        try:
            new = _Planned(folder, tensors)
        except PrunusError as error:
            raise PrunusError(str(error).replace(f"{folder}: ", "").replace(str(folder), "it")) from error
        yield new
