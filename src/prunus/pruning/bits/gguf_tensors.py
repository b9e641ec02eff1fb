"""The tensors of a GGUF file: the tensors of a model that each is made of, the order of its rows, and its form.

llama.cpp rotates neighbouring pairs of a head's rows in some architectures, where transformers rotates its halves; a
norm of Gemma lacks the 1 that llama.cpp expects in it; the matrices of routed experts are stacked. A block of 32
weights is stored as a float16 scale and integers: 8 bits each in Q8_0; 4 bits each in Q4_0, with 8 added, the first 16
in the low halves of the bytes. The forms of mixtures are packed by libgguf, which has llama.cpp's own rounding.

O, I: output and input features; G: groups of 32 inputs; B: 16 bytes of a group.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.compressed_tensors import METHOD, StoredIntegers
from prunus.checkpoint.foreign_weights import Dequantised
from prunus.checkpoint.gguf_file import library, rounding
from prunus.errors import PrunusError
from prunus.pruning.bits.gguf_mixture import GGML_TYPES, GROUP, HEAD
from prunus.pruning.bits.grid import Grid, to_nearest

ROWS, ROWS_OF_THREAD = 4096, 64  # encoded at a time, and by one thread
_EXPERT = re.compile(r"(?<=\.experts\.)\d+\.")
AS_IS, PLUS_ONE = 0, -1  # changes of a tensor; any other one is the number of heads whose rows change their order
OUTPUT = HEAD  # for which llama.cpp takes the embeddings where it is missing
Importance = Mapping[tuple[int, str], np.ndarray]  # (I,) float32 of each input, by block and Linear; the mean is 1


class GgufTensor(NamedTuple):
    """A tensor of the file.

    block: number of the model's block, None outside blocks. sources: the names, in the block, of the model's tensors
    that it is made of: one, or those of all experts. shape: of one of them. is_linear: whether they are weights of
    Linears of a block.
    """

    name: str
    block: int | None
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    is_linear: bool = False

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of the tensor in the file."""
        return (len(self.sources), *self.shape) if _EXPERT.search(self.sources[0]) else self.shape

    def named(self, source: Checkpoint, number: int = 0) -> str:
        """The model's own name of one of the sources."""
        return self.sources[number] if self.block is None else source.block_name(self.block, self.sources[number])

    def form(self, type: str) -> str:
        """The name of its form in a file of a type that is no mixture: the type's own, or a form with more bits."""
        if not self.is_rounded:
            return "F32"
        return "Q8_0" if type == "q4_0" and not self.is_linear else type.upper()

    @property
    def is_rounded(self) -> bool:
        """Whether it is stored in fewer bits than 32."""
        return len(self.shape) > 1 and (self.block is None or self.is_linear)

    @property
    def elements(self) -> int:
        """Number of its weights."""
        return prod(self.whole_shape)

    def nbytes(self, form: str) -> int:
        """Bytes in the file, in one of the forms."""
        kind = GGML_TYPES[form]
        return self.elements // kind.weights * kind.nbytes

    def read(self, source: Checkpoint, number: int = 0) -> Tensor:
        """One of the sources."""
        if self.block is not None:
            return source.read_weight(self.block, self.sources[number])
        return source.names.read([self.sources[number]], source.read)[self.sources[number]]


def names_for(source: Checkpoint, architecture: str) -> Callable[[str], str]:
    """A function that gives the name in the file of a tensor of the model, in an architecture of llama.cpp.

    It raises PrunusError for a tensor that has no place there.
    """
    gguf = library()
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise PrunusError(f"this version of the package gguf does not know '{architecture}': pip install -U gguf")
    names = gguf.get_tensor_name_map(known[architecture], source.blocks)
    base = part_of(source)

    def name_of(own: str) -> str:
        plain = "model." + own.removeprefix(base) if own.startswith(base) else own
        candidates = (names.get_name(name, (".weight", ".bias")) for name in (own, plain))
        name = next(filter(None, candidates), None)
        if name is None:
            raise PrunusError(f"{source.folder}: '{own}' has no place in llama.cpp's {architecture}")
        return name

    return name_of


def part_of(source: Checkpoint) -> str:
    """The prefix of the names of the language model's tensors, such as `model.`."""
    return source.architecture.block_prefix(0).rpartition(".")[0].rpartition(".")[0].rpartition(".")[0] + "."


def tensors_of(source: Checkpoint, name_of: Callable[[str], str] = str) -> Iterator[GgufTensor]:
    """Yield the tensors of the file. name_of: gives their names; by default the model's own.

    Parts for images or sound are left out.
    """
    base = part_of(source)

    def empty(name: str) -> Tensor:
        return torch.empty(source.tensors[name].shape, device="meta")

    model, several = source.architecture.model, source.config is not source.text_config
    blocks = tuple(map(source.architecture.block_prefix, range(source.blocks)))
    for own, tensor in model.state_dict().items():
        is_head = not own.startswith(base)
        is_other = own.startswith(blocks) or (several and is_head and "lm_head" not in own)
        is_tied = is_head and source.text_config.tie_word_embeddings
        if not (is_other or is_tied or source.names.origin(own) is None):
            yield GgufTensor(name_of(own), None, (own,), tuple(tensor.shape))
    for index in range(source.blocks):
        linears, stacked = source.linear_shapes(index), dict[str, list[str]]()
        shapes = {local: tuple(tensor.shape) for local, tensor in source.as_block(index, empty).items()}
        for local in shapes:
            stacked.setdefault(name_of(source.block_name(index, _EXPERT.sub("", local))), []).append(local)
        for name, local in stacked.items():
            is_linear = local[0].removesuffix(".weight") in linears
            yield GgufTensor(name, index, tuple(local), shapes[local[0]], is_linear)


def changed(rows: Tensor, change: int) -> Tensor:
    """A tensor of the model as llama.cpp wants it. change: AS_IS, PLUS_ONE or a number of heads."""
    if change == AS_IS:
        return rows
    if change == PLUS_ONE:
        return rows.float() + 1
    return rows.unflatten(0, (change, 2, -1)).transpose(1, 2).flatten(0, 2)


def check(source: Checkpoint, piece: GgufTensor, form: str) -> None:
    """Raise PrunusError where a tensor cannot have a form; nothing but headers is read."""
    if piece.shape[-1] % GGML_TYPES[form].weights:
        raise PrunusError(
            f"{piece.named(source)} has rows of {piece.shape[-1]} weights, and {form} needs a multiple of {GROUP}: take"
            " --type f16"
        )
    for number in range(len(piece.sources) if form == "Q4_0" else 0):
        if (stored := codes_of(source, piece, number)) is None:
            continue
        bits, group = stored.bits_and_group or (0, 0)
        if (bits, group) != (4, GROUP):
            scales = "with a scale per row" if group == piece.shape[-1] else f"in groups of {group}"
            layout = f"{bits} bits {scales}" if bits else "zero points or groups of an order of their own"
            raise PrunusError(
                f"{piece.named(source)} has {layout}, and Q4_0 holds 4 bits in groups of {GROUP} exactly: run `prunus"
                " quantize --bits 4 --group 32` on the model before that, or take --type q8_0"
            )


def encoded(source: Checkpoint, piece: GgufTensor, form: str, change: int, importance: Importance | None) -> np.ndarray:
    """The bytes of a tensor in the file.

    importance: None if all inputs count equally when weights are rounded. Only the forms of mixtures use it.
    """
    buffer = np.empty(piece.nbytes(form), np.uint8)
    filled = 0
    for number in range(len(piece.sources)):
        for part in _parts(source, piece, number, form, change, importance):
            data = part.reshape(-1).view(np.uint8)
            buffer[filled : filled + data.size] = data
            filled += data.size
    return buffer


def _parts(
    source: Checkpoint, piece: GgufTensor, number: int, form: str, change: int, importance: Importance | None
) -> Iterator[np.ndarray]:
    """Yield the data of a source as the file stores them, some rows at a time."""
    if form == "Q4_0" and (stored := codes_of(source, piece, number)) is not None:
        code_OI, scale_OG = stored.read_packed()
        if not torch.equal(scale_OG.to(torch.float16).to(scale_OG.dtype), scale_OG):
            raise PrunusError(
                f"{piece.named(source, number)} has scales that float16, and so Q4_0, cannot hold: take --type q8_0"
            )
        yield packed_q4_0(changed(code_OI, change), changed(scale_OG, change))
        return
    for rows in changed(piece.read(source, number), change).split(ROWS):
        if form == "Q4_0":
            yield packed_q4_0(*to_nearest(rows, Grid(4, GROUP)))
        elif form == "Q8_0":
            gguf = library()
            yield gguf.quants.quantize(rows.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
        elif form in ("F16", "F32"):
            yield checked(source, piece, number, rows.to(torch.float16 if form == "F16" else torch.float32)).numpy()
        else:
            checked(source, piece, number, rows.to(torch.float16))  # in which scales are
            name = piece.sources[number].removesuffix(".weight")
            weight_I = None if piece.block is None or importance is None else importance.get((piece.block, name))
            yield packed(rows.float().numpy(), form, weight_I)


def checked(source: Checkpoint, piece: GgufTensor, number: int, values: Tensor) -> Tensor:
    """The values; PrunusError if one is not finite."""
    if not values.isfinite().all():
        raise PrunusError(
            f"{piece.named(source, number)} has weights that float16 cannot hold: take --type q8_0 or q4_0"
        )
    return values


def packed(rows_OI: np.ndarray, form: str, importance_I: np.ndarray | None) -> np.ndarray:
    """(O, bytes of a row) float32 rows in a form of mixtures, packed by several threads, which libgguf lets run."""
    library = rounding()
    whole = partial(library.quantize_rows, qtype=library.GGMLQuantizationType[form], imatrix=importance_I)
    parts = [rows_OI[at : at + ROWS_OF_THREAD] for at in range(0, len(rows_OI), ROWS_OF_THREAD)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return np.concatenate([*threads.map(whole, parts)])


def packed_q4_0(code_OI: Tensor, scale_OG: Tensor) -> np.ndarray:
    """(O, 18 G) bytes of 4-bit integers and their scales, which float16 can hold."""
    half_OGB = (code_OI.to(torch.int16) + 8).to(torch.uint8).unflatten(1, (-1, 2, GROUP // 2))
    byte_OGB = half_OGB[:, :, 0] | half_OGB[:, :, 1] << 4
    scale_OG2 = scale_OG.to(torch.float16).unsqueeze(2).contiguous().view(torch.uint8)
    return torch.cat([scale_OG2, byte_OGB], 2).flatten(1).numpy()


def codes_of(source: Checkpoint, piece: GgufTensor, number: int) -> StoredIntegers | None:
    """The matrix on disk of a source that is stored as integers; None of plain tensors."""
    if not piece.is_linear or piece.block is None or source.quantised != METHOD:
        return None
    (name,) = source.weight_sources(piece.block, piece.sources[number].removesuffix(".weight"))
    stored = source.tensors[name]
    return stored.integers if isinstance(stored, Dequantised) else None
