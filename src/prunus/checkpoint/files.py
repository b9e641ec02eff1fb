"""A checkpoint on disk: its tensors, read one at a time, its identity, and the manifest of what was done to it."""

from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import closing
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunus.checkpoint.ahead import ahead
from prunus.checkpoint.checksum import checksum_of, digest_of, fingerprint_of, read_checked
from prunus.checkpoint.families import (
    LINEARS,
    block_index,
    block_name,
    check_family,
    expected_shapes,
)
from prunus.checkpoint.safetensors_file import DTYPES, Stored, read_header
from prunus.checkpoint.source import check_folder, load_config, read_json, read_object
from prunus.errors import PrunusError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MANIFEST = "prunus.json"
MANIFEST_FORMAT = 1
# How many bytes of blocks are checked ahead of the one that is worked on; of blocks that are kept, only one is.
CHECKED_AHEAD = 1 << 28
# Blocks up to this size are kept in memory when they are checked, instead of being read again.
SMALL_BLOCK = 1 << 23
INDEX, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
PACKED_FILE = "packed.safetensors"  # instead of them in a packed checkpoint


class Checkpoint:
    """A model folder, opened: config.json and the headers of its safetensors are read, the weights are not.

    Opening checks that every tensor that the configuration asks for is there, whole, and of its shape; PrunusError says
    what is wrong. config: transformers' configuration. tensors: name -> where it lies.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        check_folder(self.folder)
        check_family(self.folder, read_object(self.folder / "config.json"))
        self.config: PreTrainedConfig = load_config(self.folder)
        self.tensors: Mapping[str, Stored] = self._find_tensors()
        self._check_tensors()

    @property
    def tensor_names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.tensors)

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return self.config.num_hidden_layers

    @property
    def parameters(self) -> int:
        """Number of weights stored; tied ones once."""
        return sum(stored.elements for stored in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(stored.nbytes for stored in self.tensors.values())

    @cached_property
    def _block_bytes(self) -> int:
        """Bytes of the largest block."""
        blocks = map(self.block_tensors, range(self.blocks))
        return max(sum(stored.nbytes for stored in block.values()) for block in blocks)

    @property
    def has_small_blocks(self) -> bool:
        """Whether checked_ahead may keep them."""
        return self._block_bytes <= SMALL_BLOCK

    @property
    def dtype(self) -> torch.dtype:
        """That of the first Linear."""
        return DTYPES[self.tensors[block_name(0, "self_attn.q_proj.weight")].dtype]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was done to this checkpoint (prunus.json), {} if nothing was."""
        path = self.folder / MANIFEST
        if not path.exists():
            return {}
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
            raise PrunusError(f"{path} is not of format {MANIFEST_FORMAT}: it is from another version of prunus")
        history = manifest.get("history", [])
        if not isinstance(history, list) or not all(map(_is_step, history)):
            raise PrunusError(f"{path} is damaged: its history is no list of steps; delete it or fetch it again")
        return manifest

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype in which it is stored."""
        if name not in self.tensors:
            raise PrunusError(f"{self.folder} holds no tensor '{name}'")
        return self.tensors[name].read()

    def block_tensors(self, index: int) -> dict[str, Stored]:
        """Where the tensors of one block lie, by their full names."""
        return dict(self._parts.get(index, {}))

    def outer_tensors(self) -> dict[str, Stored]:
        """Where the tensors outside the blocks lie: embedding, final norm, head."""
        return dict(self._parts.get(None, {}))

    @cached_property
    def _parts(self) -> Mapping[int | None, dict[str, Stored]]:
        """Tensors by block, None for those outside: names are looked at once, not once per block."""
        parts: dict[int | None, dict[str, Stored]] = {}
        for name, stored in self.tensors.items():
            parts.setdefault(block_index(name), {})[name] = stored
        return parts

    def linear_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """Shape (O, I) of each prunable Linear of a block, by its name within the block."""
        return {local: self.tensors[block_name(index, f"{local}.weight")].shape for local in LINEARS}

    def checksum(self) -> str:
        """BLAKE3 of all weights; NaN or infinity among them raises PrunusError. See checksum.checksum_of."""
        return checksum_of(self.tensors)

    def fingerprint(self) -> str:
        """What tells these weights from others at a glance. See checksum.fingerprint_of."""
        return fingerprint_of(self.tensors)

    def digest(self, index: int | None) -> str:
        """BLAKE3 of one block, or for None of what lies outside blocks; its share of checksum() is then done."""
        return digest_of(self._parts.get(index, {}))

    def checked_ahead(
        self, outside_first: bool, keep: Collection[int]
    ) -> Generator[tuple[int | None, str, dict[str, Tensor] | None], None, None]:
        """Every block with its digest, None for what lies outside them, as a thread has checked them; and its tensors.

        That brings the next blocks into the system's cache, too: neither disk nor BLAKE3 are waited for, and no memory
        of ours is taken. Tensors, by their names within the block, come with the blocks that keep names, which are to
        be small. outside_first: embeddings are needed before the first block.
        """
        order = [None, *range(self.blocks)] if outside_first else [*range(self.blocks), None]
        most = 1 if keep else max(1, CHECKED_AHEAD // self._block_bytes)

        def check(index: int | None) -> tuple[str, dict[str, Tensor] | None]:
            if index is None or index not in keep:
                return self.digest(index), None
            read, digest = read_checked(self.block_tensors(index))
            prefix = block_name(index, "")
            return digest, {name.removeprefix(prefix): tensor for name, tensor in read.items()}

        with closing(ahead(check, order, most)) as results:
            for index, (digest, tensors) in zip(order, results, strict=True):
                yield index, digest, tensors

    def _find_tensors(self) -> Mapping[str, Stored]:
        return find_tensors(self.folder)

    def _check_tensors(self) -> None:
        for name, shape in expected_shapes(self.config).items():
            stored = self.tensors.get(name)
            if stored is None:
                raise PrunusError(f"{self.folder} lacks the tensor '{name}' that its config.json asks for")
            if stored.shape != shape:
                raise PrunusError(f"{self.folder}: '{name}' is {stored.shape}, but config.json asks for {shape}")
            if stored.dtype not in DTYPES:
                raise PrunusError(f"{self.folder}: '{name}' is {stored.dtype}; only {', '.join(DTYPES)} can be pruned")
            if stored.nbytes != stored.elements * DTYPES[stored.dtype].itemsize:
                raise PrunusError(f"{stored.file} is damaged: '{name}' has {stored.nbytes} bytes; fetch it again")


def _is_step(step: Any) -> bool:
    """Whether something from a manifest's history has what is read of a step."""
    kinds = {"action": str, "recipe": dict, "source": dict, "warnings": list}
    if not isinstance(step, dict) or not all(isinstance(step.get(key), kind) for key, kind in kinds.items()):
        return False
    return all(isinstance(step["source"].get(key), str) for key in ("name", "checksum"))


def read_block(index: int, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors of one block in memory, by their names within the block."""
    prefix = block_name(index, "")
    return {name.removeprefix(prefix): tensor.read() for name, tensor in stored.items()}


def is_packed(folder: Path) -> bool:
    """Whether a folder's weights are there in packed form only."""
    return (folder / PACKED_FILE).is_file() and not any((folder / name).exists() for name in (INDEX, SINGLE_FILE))


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder: those of its index, else of its only safetensors file."""
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
            raise PrunusError(f"{folder / INDEX} names {file}, which is not there; fetch it again")
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


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {package: version_of(package) for package in ("prunus", "torch", "transformers")}


@cache
def version_of(package: str) -> str:
    """The version of an installed package, looked up once: that reads all of its description."""
    return version(package)


def next_manifest(source: Checkpoint, step: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint made from source by one more step; the steps before and the profile are kept."""
    kept = {"profile": source.manifest["profile"]} if "profile" in source.manifest else {}
    history: Iterable[Any] = source.manifest.get("history", [])
    return {"prunus": version_of("prunus"), "format": MANIFEST_FORMAT, **kept, "history": [*history, dict(step)]}
