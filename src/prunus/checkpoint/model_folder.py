"""A model folder, opened: its configuration, and its tensors from the headers of their files."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunus.checkpoint.checksum import checksum_of, fingerprint_of
from prunus.checkpoint.manifest import read_manifest
from prunus.checkpoint.quantised import quant_method
from prunus.checkpoint.resolve import check_folder, hub_origin, load_config, read_json, read_object
from prunus.checkpoint.safetensors_file import DTYPES, Stored, read_header
from prunus.errors import PrunusError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UNLIMITED = 1 << 62  # tokens that a model without positions may read
INDEX, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
PACKED_FILE = "packed.safetensors"  # the only weights of a packed checkpoint


class ModelFolder:
    """A model folder, opened: config.json and the headers of its safetensors are read, the weights are not.

    The model's own code is not run, so this suffices for a model that another program loads; `Checkpoint` also knows
    the blocks. config: transformers' configuration. quantised: method by which the weights are quantised (fp8, awq,
    ...), None where they are not. stored: the tensors on disk by name. tensors: the same as they are read.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        check_folder(self.folder)
        self._check_config(read_object(self.folder / "config.json"))
        self.config: PreTrainedConfig = load_config(self.folder)
        self.quantised = quant_method(getattr(self.config, "quantization_config", None))
        self.stored: Mapping[str, Stored] = self._find_tensors()
        self.tensors: Mapping[str, Stored] = self._as_read(self.stored)

    @property
    def tensor_names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self.tensors)

    @property
    def text_config(self) -> "PreTrainedConfig":
        """The configuration of the language model; models of several parts have one for each part."""
        return self.config.get_text_config(decoder=True)

    @property
    def blocks(self) -> int:
        """Number of decoder blocks in the configuration; 0 where it does not say."""
        return getattr(self.text_config, "num_hidden_layers", None) or 0

    @property
    def context(self) -> int:
        """Most tokens of a sequence."""
        return int(getattr(self.text_config, "max_position_embeddings", None) or UNLIMITED)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.text_config.vocab_size)

    @property
    def parameters(self) -> int:
        """Number of stored weights; tied ones count once.

        Of quantised weights it is the number of stored elements, of which some formats pack several weights into one.
        """
        return sum(stored.elements for stored in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(stored.nbytes for stored in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of most weights."""
        sizes: dict[str, int] = {}
        for stored in self.tensors.values():
            sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.elements
        return DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]), torch.bfloat16)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of this checkpoint (prunus.json); {} if nothing was done to it."""
        return read_manifest(self.folder)

    def provenance(self, name: str | Path) -> dict[str, str]:
        """Return what a manifest records of this model: name, as the user gave it, checksum, hub id and revision."""
        return {"name": str(name), "checksum": self.checksum(), **hub_origin(self.folder)}

    def read(self, name: str) -> Tensor:
        """Return one tensor, in the dtype in which it is stored."""
        if name not in self.tensors:
            raise PrunusError(f"{self.folder} holds no tensor '{name}'")
        return self.tensors[name].read()

    def checksum(self) -> str:
        """Return the BLAKE3 of all weights (checksum.checksum_of). Raises PrunusError for NaN or infinity."""
        return checksum_of(self.stored)

    def fingerprint(self) -> str:
        """Return a fast fingerprint of the weights (checksum.fingerprint_of)."""
        return fingerprint_of(self.stored)

    def _check_config(self, config: Mapping[str, Any]) -> None:
        """Raise PrunusError where config.json describes a model that transformers should not try to make."""

    def _find_tensors(self) -> Mapping[str, Stored]:
        return find_tensors(self.folder)

    def _as_read(self, stored: Mapping[str, Stored]) -> Mapping[str, Stored]:
        return stored


def is_packed(folder: Path) -> bool:
    """Return whether a folder has its weights only in packed form."""
    return (folder / PACKED_FILE).is_file() and not any((folder / name).exists() for name in (INDEX, SINGLE_FILE))


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Return every tensor of a folder: those of its index, else those of its only safetensors file."""
    if not (folder / INDEX).exists():
        return read_header(_only_file(folder))
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise PrunusError(f"{folder / INDEX} is damaged: it does not say which file holds which tensor; fetch it again")
    found: dict[str, Stored] = {}
    for file in sorted(set(weight_map.values())):
        path = folder / file
        if path.parent != folder or not path.is_file():
            raise PrunusError(f"{folder / INDEX} names {file}, which does not exist; fetch it again")
        found |= {name: stored for name, stored in read_header(path).items() if weight_map.get(name) == file}
    if missing := sorted(set(weight_map) - set(found)):
        raise PrunusError(f"{folder / weight_map[missing[0]]} lacks the tensor '{missing[0]}'; fetch it again")
    return found


def _only_file(folder: Path) -> Path:
    if is_packed(folder):
        raise PrunusError(f"{folder} is a packed checkpoint; run `prunus unpack {folder} OUT` and use OUT")
    if (folder / SINGLE_FILE).is_file():
        return folder / SINGLE_FILE
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise PrunusError(f"{folder} has {len(files)} safetensors files but no {INDEX}; fetch the index")
    return files[0]
