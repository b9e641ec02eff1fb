"""A checkpoint on disk whose blocks are read, run and changed in turn."""

import json
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunus.checkpoint.architecture import Architecture, Unstreamable, skeleton
from prunus.checkpoint.compressed_tensors import METHOD
from prunus.checkpoint.experts import Layout, join_tensors, layouts_in, place_of, split_tensors
from prunus.checkpoint.foreign_weights import Quantisation, parts_of, plain_tensors
from prunus.checkpoint.linears import Linear, check_decoder, find_linears
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.names import Names, Origin
from prunus.checkpoint.resolve import one_line, resolve
from prunus.checkpoint.safetensors_file import DTYPES, READABLE, Stored, digest_of
from prunus.disk import prefetch
from prunus.errors import PrunusError
from prunus.version import version_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PREFETCH_BYTES = 1 << 28  # of blocks that are checked before they are needed
_MOST_BLOCKS = 10_000  # ten times more than any model has; a damaged config.json may ask for billions
_KEPT_ARCHITECTURES = 8
_architectures: dict[str, Architecture] = {}


class Checkpoint(ModelFolder):
    """A model folder whose blocks can be read, run and changed in turn, for any decoder of transformers.

    Opening checks that every tensor that the model needs exists, is complete, and has the right shape; PrunusError says
    what is wrong. architecture: the model without its weights. names: the stored tensors that each tensor of the model
    is made from. Methods name a block's tensors as the block does (`self_attn.q_proj.weight`), in the model's shapes;
    each matrix of each routed expert has a name of its own (`mlp.experts.3.gate_proj.weight`).

    An original in FP8 or MXFP4 is read in bfloat16, one in integers of compressed-tensors in the dtype of config.json:
    config and tensors are those of a model that is not quantised.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self.architecture = architecture_of(self.folder, self.config)
        self.names = Names(self.architecture.model, self.tensors)
        self._check_tensors()

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return len(self.architecture.layers)

    @property
    def config_json(self) -> dict[str, Any]:
        """The content of config.json for a checkpoint with these tensors."""
        content = dict(self.written)
        if self.quantised is not None:
            del content["quantization_config"]
            if self.quantised != METHOD:
                content = {n: v for n, v in content.items() if n != "torch_dtype"} | {"dtype": "bfloat16"}
        return content

    @property
    def reading_notes(self) -> list[str]:
        """Notes for the user on how the weights are read."""
        if self.quantised is None:
            return []
        sizes = (sum(t.nbytes for t in tensors.values()) for tensors in (self.stored, self.tensors))
        now, then = (f"{size / 1e9:.3g} GB" for size in sizes)
        dtype = str(self.dtype).removeprefix("torch.")
        return [f"the model's {self.quantised} weights are read and written in {dtype}: {then} instead of {now}"]

    def provenance(self, name: str | Path) -> dict[str, str]:
        """Entry of this model in a manifest; `dequantised`: how its weights were quantised."""
        record = super().provenance(name)
        return record if self.quantised is None else {**record, "dequantised": self.quantised}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first prunable Linear."""
        for index in range(self.blocks):
            for linear in self.linears(index)[:1]:
                return DTYPES[self.tensors[self.weight_sources(index, linear.name)[0]].dtype]
        return super().dtype

    def linears(self, index: int) -> tuple[Linear, ...]:
        """The prunable Linears of a block, in the order in which a forward pass calls them."""
        return find_linears(self.architecture)[index].linears

    def left_dense(self, index: int) -> Mapping[str, str]:
        """Why the block's other matrices cannot be pruned, by their names within the block."""
        return find_linears(self.architecture)[index].dense

    def linear_shapes(self, index: int) -> dict[str, tuple[int, int]]:
        """The shape (O, I) of each prunable Linear of a block, by its name within the block."""
        return {linear.name: linear.shape_OI for linear in self.linears(index)}

    def block_name(self, index: int, local: str) -> str:
        """The model's name of a tensor or Linear of a block."""
        return self.architecture.block_prefix(index) + local

    def weight_sources(self, index: int, linear: str) -> list[str]:
        """The names on disk of the tensors that the weight of a block's Linear is made from."""
        if (place := place_of(self._layouts[index], linear)) is None:
            return self.names.stored_for([self.block_name(index, f"{linear}.weight")])
        origin = self.names.origin(self.block_name(index, place[0].fused(place[2])))
        if origin is None:
            return []
        layout, expert, part = place
        own = origin.of_number(expert)
        by_matrix = own.in_order()  # gate and up, if they are stored apart
        stage = layout.parts[-1:] if part == layout.parts[-1] else layout.parts[:-1]
        apart = own is not origin and len(by_matrix) == len(stage)
        return [by_matrix[stage.index(part)]] if apart else own.stored

    def block_tensors(self, index: int) -> dict[str, Stored]:
        """The stored tensors of a block, by their names on disk."""
        return dict(self._tensors_by_block.get(index, {}))

    def outer_tensors(self) -> dict[str, Stored]:
        """The stored tensors outside the blocks: embedding, final norm, head, and parts for images or sound."""
        return dict(self._tensors_by_block.get(None, {}))

    def read_block(self, index: int, stored: Mapping[str, Stored] | None = None) -> dict[str, Tensor]:
        """The tensors of a block, read into memory, by their names within the block.

        stored: tensors to read instead of this checkpoint's, by their names on disk.
        """
        places = self.tensors if stored is None else {**self.tensors, **stored}
        return self.as_block(index, lambda name: places[name].read())

    def read_weight(self, index: int, local: str) -> Tensor:
        """One tensor of a block, given by its name within the block."""
        if (place := place_of(self._layouts[index], local)) is not None:
            return self._read_expert(index, *place)
        name = self.block_name(index, local)
        return self.names.read([name], self.read)[name]

    def _read_expert(self, index: int, layout: Layout, expert: int, part: str) -> Tensor:
        """(O, I) one matrix of an expert; no more is read than the tensors on disk that it is made from."""
        name = self.block_name(index, layout.fused(part))
        origin = self.names.origins[name]
        own = origin.of_number(expert)
        if own is not origin:
            return layout.view(part, self.names.convert(own, self.read)[name])[0]
        stored = self.tensors[origin.stored[0]]
        if origin.converter is None and type(stored) is Stored:
            return layout.view(part, stored.read_rows([expert]).view(1, *stored.shape[1:]))[0]
        if self._last_read[0] != name:
            self._last_read = name, self.names.read([name], self.read)[name]
        return layout.view(part, self._last_read[1])[expert]

    _last_read: tuple[str, Tensor] = ("", torch.empty(0))  # all experts' matrices, where one cannot be read alone

    def as_block(self, index: int, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The tensors of one block by their names within it. read: gives a stored tensor by its name on disk."""
        prefix = self.architecture.block_prefix(index)
        names = [prefix + local for local in self._block_names[index]]
        tensors = self.names.read(names, read)
        return split_tensors(
            self._layouts[index], {name.removeprefix(prefix): tensors[name] for name in names if name in tensors}
        )

    def as_stored(self, index: int, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Changed tensors of a block as they are stored, by name on disk. changed: by name within the block."""
        joined = join_tensors(self._layouts[index], changed, lambda fused: self.read_weight(index, fused))
        whole = {self.block_name(index, name): tensor for name, tensor in joined.items()}
        return self.names.as_stored(whole, self.read)

    def digest(self, index: int | None) -> str:
        """The BLAKE3 of a block, or for None of the tensors outside the blocks; checksum() reuses its parts."""
        return digest_of(parts_of(self._tensors_by_block.get(index, {})))

    def digests(self) -> Generator[tuple[int | None, str], None, None]:
        """Yield (None, digest) of the tensors outside the blocks, then (block, digest) of every block in order.

        A thread computes the next digests, and so brings the next blocks into the system's page cache: the caller waits
        neither for the disk nor for BLAKE3, and the blocks take no memory of this process.
        """
        order = [None, *range(self.blocks)]
        largest = max(sum(t.nbytes for t in self.block_tensors(index).values()) for index in range(self.blocks))
        with closing(prefetch(self.digest, order, max(1, PREFETCH_BYTES // largest))) as results:
            yield from zip(order, results, strict=True)

    @cached_property
    def _layouts(self) -> list[list[Layout]]:
        """How each block's routed experts are laid out."""
        return [layouts_in(layer) for layer in self.architecture.layers]

    @cached_property
    def _block_names(self) -> list[list[str]]:
        """The names of each block's tensors within the block."""
        return [list(layer.state_dict()) for layer in self.architecture.layers]

    def block_starts(self, index: int) -> tuple[str, ...]:
        """The prefixes of a block's tensors on disk, such as `model.layers.3.`; few models have several."""
        return tuple(f"{stem}{index}." for stem in self._stems)

    def renumbered(self, name: str, old: int, new: int) -> str:
        """The name on disk that a tensor of block `old` has as a tensor of block `new`."""
        for before, after in zip(self.block_starts(old), self.block_starts(new), strict=True):
            if name.startswith(before):
                return after + name.removeprefix(before)
        raise PrunusError(f"{self.folder}: '{name}' does not say which block it is of, so that cannot be changed")

    @cached_property
    def _block_of(self) -> Mapping[str, int]:
        """The block of each stored tensor that a block is made from, the first where several are."""
        block_of: dict[str, int] = {}
        for index, names in enumerate(self._block_names):
            for name in self.names.stored_for(self.block_name(index, local) for local in names):
                block_of.setdefault(name, index)
        return block_of

    @cached_property
    def _stems(self) -> list[str]:
        """The parts of the names of blocks' tensors on disk before the number of the block."""
        return sorted({stem_of(name, index) for name, index in self._block_of.items()})

    @cached_property
    def _tensors_by_block(self) -> Mapping[int | None, dict[str, Stored]]:
        """The stored tensors by block, None for those outside; names are read once, not once per block."""
        block_of, parts = dict(self._block_of), dict[int | None, dict[str, Stored]]()
        starts = [(f"{stem}{index}.", index) for stem in self._stems for index in range(self.blocks)]
        for name in self.names.unknown:  # of a block by its name alone: it is treated as part of that block
            block_of.update((name, index) for start, index in starts if name.startswith(start))
        for name, stored in self.tensors.items():
            parts.setdefault(block_of.get(name), {})[name] = stored
        return parts

    def _check_config(self) -> None:
        inner = self.written.get("text_config")
        blocks = (inner if isinstance(inner, dict) else self.written).get("num_hidden_layers", 1)
        if not isinstance(blocks, int) or not 1 <= blocks <= _MOST_BLOCKS:
            raise PrunusError(
                f"{self.folder}: config.json asks for {blocks} blocks (num_hidden_layers), which no model has"
            )
        self._readable(self.written.get("quantization_config"))

    def _readable(self, settings: object) -> Quantisation | None:
        """The quantisation of a quantization_config; None without one. Raises Unstreamable if it cannot be read."""
        try:
            return Quantisation.of(settings)
        except ValueError as error:
            raise Unstreamable(
                f"{self.folder} is quantised ({error}), and only fp8, mxfp4 and compressed-tensors with integers of 4"
                " or 8 bits can be read: give the unquantised model (float32, bfloat16 or float16), or load it with"
                " what quantised it and save it so"
            ) from error

    def _as_read(self, stored: Mapping[str, Stored]) -> Mapping[str, Stored]:
        quantisation = self._readable(self._quantization_config)
        if quantisation is None:
            return stored
        del vars(self.config)["quantization_config"]
        return plain_tensors(stored, quantisation, self.config_dtype)

    @property
    def config_dtype(self) -> torch.dtype | None:
        """The dtype that config.json names; None where it names none."""
        dtype = getattr(self.config, "dtype", None) or getattr(self.text_config, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else None

    def _check_tensors(self) -> None:
        model = self.architecture.model
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name, tensor in model.state_dict().items():
            origin = self.names.origin(name)
            if origin is not None:
                for source in origin.stored:
                    wanted = tensor.T if origin.transposed else tensor
                    self._check_tensor(source, wanted if origin.converter is None else None)
                if origin.converter is not None:
                    self._check_converted(name, origin, tuple(tensor.shape))
            elif name in parameters:
                raise PrunusError(f"{self.folder} lacks the tensor '{name}' that its config.json asks for")
        for name, other in model.all_tied_weights_keys.items():
            stored = [self.tensors[tensor].chunks() for tensor in self.names.stored_for([name, other])]
            if len(stored) == 2 and any(first != second for first, second in zip_longest(*stored)):
                raise untied(self.folder, name, other)
        # Names on disk of tensors of blocks, also of more blocks than the model has.
        of_blocks = "|".join(rf"{re.escape(stem)}\d+\." for stem in self._stems)
        foreign = [name for name in self.names.unknown if re.match(of_blocks, name) and not self._may_ignore(name)]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise PrunusError(
                f"{self.folder} holds '{foreign[0]}'{more}, for which {self.config.model_type} as config.json describes"
                f" it has no place in transformers {version_of('transformers')}: its blocks would not be what they were"
            )

    def _may_ignore(self, name: str) -> bool:
        """Whether transformers ignores a tensor: blocks that predict further tokens, old buffers."""
        patterns = {*(self.architecture.model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"}
        return any(re.search(pattern, name) for pattern in patterns)

    def _check_converted(self, name: str, origin: Origin, wanted: tuple[int, ...]) -> None:
        """Raise PrunusError where a tensor of the model lacks one that it is made from, or has another shape."""
        if lacking := origin.lacking():
            raise PrunusError(f"{self.folder} lacks the tensor '{lacking}' that its config.json asks for")
        shape = self._converted_shape(name, origin)
        if shape not in (None, wanted):
            raise PrunusError(
                f"{self.folder}: '{name}' is made of tensors on disk that give {shape}, but config.json asks for"
                f" {wanted}"
            )

    def _converted_shape(self, name: str, origin: Origin) -> tuple[int, ...] | None:
        """The shape of a tensor that is made from others; None where only reading these can tell."""
        slices = origin.slices()
        shapes = {part: self.tensors[part].shape for part in origin.stored}
        for own in slices:
            for part, first in zip(own.in_order(), slices[0].in_order(), strict=True):
                if shapes[part] != shapes[first]:
                    raise PrunusError(f"{self.folder}: '{part}' is {shapes[part]}, but '{first}' is {shapes[first]}")

        def empty(part: str) -> Tensor:
            return torch.empty(shapes[part], device="meta")

        try:
            if slices:
                (made,) = self.names.convert(slices[0], empty).values()
                return (len(slices), *made.shape[1:])
            return tuple(self.names.read([name], empty)[name].shape)
        except Exception:  # a conversion that needs the values
            return None

    def _check_tensor(self, name: str, wanted: Tensor | None) -> None:
        """Raise PrunusError unless a tensor can be read and has the shape of `wanted`, the model's (None: unknown)."""
        stored = self.tensors[name]
        if wanted is not None and stored.shape != tuple(wanted.shape):
            shape = tuple(wanted.shape)
            raise PrunusError(f"{self.folder}: '{name}' is {stored.shape}, but config.json asks for {shape}")
        readable = DTYPES if wanted is not None and wanted.is_floating_point() else READABLE
        if stored.dtype not in readable:
            raise PrunusError(f"{self.folder}: '{name}' is {stored.dtype}; only {', '.join(DTYPES)} can be pruned")


def dense_twin(source: Checkpoint, dense: str | Path | None) -> Checkpoint:
    """The dense model of source, by default from the manifest; PrunusError if its weights are not those recorded."""
    history = source.manifest.history
    if dense is None and not history:
        raise PrunusError(f"{source.folder} has no manifest that says what it was pruned from; give --dense MODEL")
    name = history[0].source.name if dense is None else dense
    try:
        twin = Checkpoint(resolve(name))
    except PrunusError as error:
        if dense is not None:
            raise
        raise PrunusError(f"{source.folder} was made from '{name}': {error}; give --dense MODEL") from error
    if twin.folder.resolve() == source.folder.resolve():
        raise PrunusError(f"{twin.folder} is the pruned model itself; give the dense one as --dense")
    if history and twin.checksum() not in {step.source.checksum for step in history}:
        raise PrunusError(
            f"{twin.folder} has other weights than the model that {source.folder} was made from "
            f"({history[0].source.name}); give that one as --dense"
        )
    return twin


def architecture_of(folder: Path, config: "PreTrainedConfig") -> Architecture:
    """The model of a configuration without its weights; raises PrunusError where it cannot be run by blocks.

    The latest are cached by configuration, wherever the folder is, since making one runs the model's own code.
    """
    known = config.to_json_string(use_diff=False).replace(json.dumps(str(config._name_or_path)), '""')
    if known not in _architectures:
        try:
            architecture = Architecture(skeleton(config, torch.float32))
            check_decoder(architecture)
        except Unstreamable as error:
            raise Unstreamable(f"{folder} ({config.model_type}) cannot be run block by block: {error}") from error
        except Exception as error:  # torch raises several types where sizes are too large
            reason = one_line(error)
            raise PrunusError(f"{folder}: config.json asks for blocks that cannot be made: {reason}") from error
        while len(_architectures) >= _KEPT_ARCHITECTURES:
            del _architectures[next(iter(_architectures))]
        _architectures[known] = architecture
    return _architectures[known]


def stem_of(name: str, index: int) -> str:
    """The part of a tensor's name on disk before the number of its block."""
    before, separator, _ = f".{name}".partition(f".{index}.")
    return f"{before}.".removeprefix(".") if separator else name


def untied(folder: Path, name: str, other: str) -> PrunusError:
    """The error for tensors that are tied by config.json and stored with other values."""
    return PrunusError(
        f"{folder}: config.json ties '{name}' to '{other}', but they are stored with other values, and engines disagree"
        " on which are used: set tie_word_embeddings to false, or leave out the first one"
    )
