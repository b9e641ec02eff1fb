"""Open a packed folder like any other checkpoint, and find the dense source that a file of masks needs."""

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
    """A Checkpoint of a packed folder, whose tensors are unpacked when they are read.

    source: for a file of masks only, the dense model to which they belong; by default the one that the file names.
    lossy: whether some values are rounded to 8 bits. Raises PrunusError for a folder that is not packed or is damaged,
    and for a source of another checksum.
    """

    def __init__(self, folder: Path | str, source: str | Path | None = None) -> None:
        if not is_packed(Path(folder)):
            raise PrunusError(f"{folder} is not a packed checkpoint; `prunus pack` makes one")
        self.packed = read_packed(Path(folder) / PACKED_FILE)
        self.masks_only = self.packed.info["kind"] == "variant"
        self.lossy: bool = self.packed.info["lossy"]
        if source is not None and not self.masks_only:
            raise PrunusError(f"{folder} holds all of its weights; leave the source out")
        self.dense = open_source(self.packed, source) if self.masks_only else None
        super().__init__(folder)

    @property
    def packed_tensors(self) -> Mapping[str, PackedTensor]:
        """The tensors in the packed file, without those that only the source has."""
        return self.packed.tensors

    def _find_tensors(self) -> Mapping[str, Stored]:
        if self.dense is None:
            return self.packed_tensors
        return {**self.dense.tensors, **attach_source(self.packed, self.dense)}


def open_checkpoint(folder: Path) -> Checkpoint:
    """The Checkpoint of a model folder, packed or not."""
    return PackedCheckpoint(folder) if is_packed(folder) else Checkpoint(folder)


def attach_source(packed: PackedFile, source: Checkpoint) -> Mapping[str, PackedTensor]:
    """The tensors of a variant, connected to those of its source so that they can be read.

    The caller has checked the source's checksum. Raises PrunusError if the source lacks a tensor.
    """
    for name, tensor in packed.tensors.items():
        tensor.dense = source.tensors.get(name)
        if tensor.dense is None or (tensor.dense.dtype, tensor.dense.shape) != (tensor.dtype, tensor.shape):
            raise damaged(packed.path, f"its source has no '{name}' of this dtype and shape")
    return packed.tensors


def check_source(packed: PackedFile, source: Checkpoint) -> None:
    """Raise PrunusError unless source is the model to which a variant belongs."""
    model = packed.info["model"]
    if source.checksum() != model["checksum"]:
        raise PrunusError(f"{packed.path} belongs to another model ({model['name']}), not to {source.folder}")


def open_source(packed: PackedFile, given: str | Path | None) -> Checkpoint:
    """The dense model to which a variant belongs: `given`, else the one that the file names; PrunusError if neither."""
    name = packed.info["model"]["name"]
    try:
        source = Checkpoint(resolve(name if given is None else given))
    except PrunusError as error:
        if given is not None:
            raise
        raise PrunusError(f"{packed.path} holds only masks and needs the model '{name}': {error} (--source)") from error
    check_source(packed, source)
    return source
