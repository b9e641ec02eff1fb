"""A packed folder, opened like any other checkpoint, and the dense source that a masks-only one needs."""

from collections.abc import Mapping
from pathlib import Path

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import PACKED_FILE, is_packed
from prunus.checkpoint.packed.reader import PackedFile, read_packed
from prunus.checkpoint.packed.tensor import PackedTensor, damaged
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError


class PackedCheckpoint(Checkpoint):
    """A packed folder, opened: a Checkpoint whose tensors are unpacked when they are read.

    source: of masks alone, the dense model that they belong to; by default the one that their file names. lossy: some
    values are rounded to 8 bits.
    """

    def __init__(self, folder: Path | str, source: str | Path | None = None) -> None:
        if not is_packed(Path(folder)):
            raise PrunusError(f"{folder} is no packed checkpoint; `prunus pack` makes one")
        self.packed = read_packed(Path(folder) / PACKED_FILE)
        self.masks_only = self.packed.info["kind"] == "variant"
        self.lossy: bool = self.packed.info["lossy"]
        if source is not None and not self.masks_only:
            raise PrunusError(f"{folder} holds all of its weights; leave the source out")
        self.dense = open_source(self.packed, source) if self.masks_only else None
        super().__init__(folder)

    @property
    def packed_tensors(self) -> Mapping[str, PackedTensor]:
        """The tensors of the file itself."""
        return self.packed.tensors

    def _find_tensors(self) -> Mapping[str, Stored]:
        if self.dense is None:
            return self.packed_tensors
        return {**self.dense.tensors, **lean_on(self.packed, self.dense)}


def open_checkpoint(folder: Path) -> Checkpoint:
    """A model folder, packed or not."""
    return PackedCheckpoint(folder) if is_packed(folder) else Checkpoint(folder)


def lean_on(packed: PackedFile, source: Checkpoint) -> Mapping[str, PackedTensor]:
    """The tensors of a variant, which can be read from now on; source has been checked."""
    for name, tensor in packed.tensors.items():
        tensor.dense = source.tensors.get(name)
        if tensor.dense is None or (tensor.dense.dtype, tensor.dense.shape) != (tensor.dtype, tensor.shape):
            raise damaged(packed.path, f"its source has no such '{name}'")
    return packed.tensors


def check_source(packed: PackedFile, source: Checkpoint) -> None:
    """Raise PrunusError unless source is the model that a variant belongs to."""
    model = packed.info["model"]
    if source.checksum() != model["checksum"]:
        raise PrunusError(f"{packed.path} belongs to another model ({model['name']}), not to {source.folder}")


def open_source(packed: PackedFile, given: str | Path | None) -> Checkpoint:
    """The dense model that a variant belongs to: the one given, else the one that it names."""
    name = packed.info["model"]["name"]
    try:
        source = Checkpoint(resolve(name if given is None else given))
    except PrunusError as error:
        if given is not None:
            raise
        raise PrunusError(f"{packed.path} holds masks of '{name}', which is needed too: {error} (--source)") from error
    check_source(packed, source)
    return source
