"""Matrices of integers and scales in the two formats of compressed-tensors that engines run fast, and their settings.

`pack-quantized`: eight 4-bit (or four 8-bit) integers in an int32, the first in the lowest bits, 8 (or 128) added to
each. `int-quantized`: 8-bit integers. A Linear `x` has `x.weight_packed` and `x.weight_shape`, or `x.weight`, and
`x.weight_scale`: of each row, or of each group of consecutive inputs of a row. A weight is its integer times its scale.
Files of other programs may also have zero points, and the group of each input (g_idx), which are read too.

The values equal those of the library bit for bit: the product is rounded to the dtype of the scales.
O, I: output and input features; G: groups of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from prunus.checkpoint.safetensors_file import DTYPES, Stored, entry_of

METHOD = "compressed-tensors"  # the value of quant_method
PACKED, INTEGERS = "pack-quantized", "int-quantized"
BITS = (4, 8)
_ROWS = 1024  # dequantised at a time
# Ends of the names of a Linear's tensors. Those of activations are not needed to read weights.
_OPTIONAL = ("weight_shape", "weight_zero_point", "weight_g_idx")
OF_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


class Format(NamedTuple):
    """How Linears are stored: 4 bits, or 8 with activations in 8 bits. group: inputs that share a scale; None: a row.

    scale: the format's name of the dtype of scales."""

    bits: int
    group: int | None
    scale: str = "BF16"

    @property
    def name(self) -> str:
        """The name of the format in the compressed-tensors library."""
        return PACKED if self.bits == 4 else INTEGERS

    def entries(self, linear: str, shape_OI: tuple[int, int]) -> dict[str, Stored]:
        """Entries (dtype and shape) of a Linear's tensors that are yet to be written, by their names."""
        code_OI = torch.empty(shape_OI, dtype=torch.int8, device="meta")
        groups = 1 if self.group is None else shape_OI[1] // self.group
        scale_OG = torch.empty(shape_OI[0], groups, dtype=DTYPES[self.scale], device="meta")
        return {name: entry_of(tensor) for name, tensor in self.tensors(linear, code_OI, scale_OG).items()}

    def tensors(self, linear: str, code_OI: Tensor, scale_OG: Tensor) -> dict[str, Tensor]:
        """A Linear's tensors, by their names. code_OI: int8."""
        scales = {f"{linear}.weight_scale": scale_OG}
        if self.bits == 8:
            return scales | {f"{linear}.weight": code_OI}
        shape = torch.tensor(code_OI.shape)
        return scales | {f"{linear}.weight_packed": packed_words(code_OI), f"{linear}.weight_shape": shape}

    def settings(self, ignore: Sequence[str]) -> dict[str, Any]:
        """The quantization_config of a model whose Linears are stored in this format, except those named in ignore."""
        group, strategy = (None, "channel") if self.group is None else (self.group, "group")
        weights = {**_NUMBERS, "num_bits": self.bits, "group_size": group, "strategy": strategy}
        tokens = {**_NUMBERS, "num_bits": 8, "strategy": "token", "dynamic": True, "observer": None}
        linears = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": tokens if self.bits == 8 else None,
            "output_activations": None,
            "format": self.name,
        }
        return {
            "config_groups": {"group_0": linears},
            "quant_method": METHOD,
            "kv_cache_scheme": None,
            "format": self.name,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "ignore": list(ignore),
        }


_NUMBERS = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "group_size": None,
    "strategy": "channel",
    "block_structure": None,
    "dynamic": False,
    "actorder": None,
    "scale_dtype": None,
    "zp_dtype": None,
    "observer": "memoryless_minmax",
    "observer_kwargs": {},
}


def packed_words(code_OI: Tensor) -> Tensor:
    """(O, I / 8, rounded up) int32 words of 4-bit integers, given as int8; unused bits of a row's last word are 0."""
    half_OI = functional.pad((code_OI + 8).to(torch.uint8), (0, -code_OI.shape[1] % 8))
    return (half_OI[:, ::2] | half_OI[:, 1::2] << 4).contiguous().view(torch.int32)


def bits_in(words: int, inputs: int) -> int:
    """The bits of each integer, 4 or 8, from the numbers of int32 words and of inputs in a row."""
    return 4 if words * 8 < inputs + 8 else 8


def unpacked_words(word_OI: Tensor, inputs: int) -> Tensor:
    """(O, inputs) int16 of the integers in words."""
    byte_OI = word_OI.contiguous().view(torch.uint8).to(torch.int16)
    if bits_in(word_OI.shape[1], inputs) == 8:
        return byte_OI[:, :inputs] - 128
    return torch.stack([byte_OI & 15, byte_OI >> 4], dim=-1).flatten(1)[:, :inputs] - 8


def product(code_OI: Tensor, scale_OG: Tensor) -> Tensor:
    """(O, I) weights in the dtype of the scales, each rounded once. (O, G) scales: of groups of equal size, or one."""
    full_OI = scale_OG.repeat_interleave(code_OI.shape[1] // scale_OG.shape[1], 1)
    return code_OI.to(scale_OG.dtype) * full_OI


def linears_in(stored: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    """{Linear: {kind of tensor: its place}} of quantised Linears, integers and scales first, without activations'."""
    linears: dict[str, dict[str, Stored]] = {}
    for name, tensor in stored.items():
        linear, _, kind = name.rpartition(".")
        is_numbers = kind == "weight_packed" or (kind == "weight" and tensor.dtype == "I8")
        if is_numbers and f"{linear}.weight_scale" in stored:
            names = {part: f"{linear}.{part}" for part in (kind, "weight_scale", *_OPTIONAL)}
            linears[linear] = {part: stored[name] for part, name in names.items() if name in stored}
    return linears


class StoredIntegers(NamedTuple):
    """A quantised matrix as it is stored. parts: its tensors by kind, integers and scales first."""

    parts: Mapping[str, Stored]
    shape_OI: tuple[int, int]

    @classmethod
    def of(cls, parts: Mapping[str, Stored]) -> Self | None:
        """The matrix with these tensors; None where they do not match each other."""
        numbers, scales = list(parts.values())[:2]
        if len(numbers.shape) != 2:
            return None
        outputs, columns = numbers.shape
        if "weight_packed" in parts:
            if "weight_shape" not in parts or parts["weight_shape"].elements != 2:
                return None
            rows, inputs = parts["weight_shape"].read().tolist()
            if rows != outputs or inputs < 1 or not any(columns == -(-inputs * bits // 32) for bits in BITS):
                return None
            columns = inputs
        made = cls(parts, (outputs, columns))
        by_row = scales.shape[0] == outputs if len(scales.shape) == 2 else scales.elements == 1
        ordered = "weight_g_idx" not in parts or parts["weight_g_idx"].shape == (columns,)
        return made if by_row and ordered and made.groups and columns % made.groups == 0 else None

    @property
    def scales(self) -> Stored:
        """The scales, by row and group, or a single one."""
        _, scales, *_ = self.parts.values()
        return scales

    @property
    def groups(self) -> int:
        """How many scales each row has."""
        return self.scales.shape[1] if len(self.scales.shape) == 2 else 1

    @property
    def bits(self) -> int:
        """Bits of the integers, as they are stored."""
        kind, numbers = next(iter(self.parts.items()))
        return 8 if kind == "weight" else bits_in(numbers.shape[1], self.shape_OI[1])

    @property
    def bits_and_group(self) -> tuple[int, int] | None:
        """Bits, and how many inputs share a scale; None where there are zero points or g_idx."""
        if "weight_zero_point" in self.parts or "weight_g_idx" in self.parts:
            return None
        return self.bits, self.shape_OI[1] // self.groups

    def read_packed(self) -> tuple[Tensor, Tensor]:
        """(integers (O, I), scales (O, G)) of packed numbers of 4 bits."""
        numbers, scales, *_ = (stored.read() for stored in self.parts.values())
        return unpacked_words(numbers, self.shape_OI[1]), scales

    def values(self) -> Iterator[Tensor]:
        """Yield the weights in the dtype of the scales, some rows at a time."""
        read = {kind: stored.read() for kind, stored in self.parts.items()}
        (kind, numbers), (_, scales), *_ = read.items()
        outputs, inputs = self.shape_OI
        scale_OG = scales.reshape(-1, self.groups).expand(outputs, -1)
        group_I = read.get("weight_g_idx")
        group_I = torch.arange(inputs) // (inputs // self.groups) if group_I is None else group_I.long()
        zero_OG = _zero_points(read.get("weight_zero_point"), kind, tuple(scale_OG.shape))
        for some in torch.arange(outputs).split(_ROWS):
            rows = slice(int(some[0]), int(some[-1]) + 1)
            code_OI = numbers[rows] if kind == "weight" else unpacked_words(numbers[rows], inputs)
            code_OI = code_OI.to(scale_OG.dtype)
            if zero_OG is not None:
                code_OI = code_OI - zero_OG[rows].to(scale_OG.dtype)[:, group_I]
            yield code_OI * scale_OG[rows][:, group_I]


def _zero_points(stored: Tensor | None, kind: str, shape_OG: tuple[int, ...]) -> Tensor | None:
    """(O, G) zero points; packed ones are packed along the outputs."""
    if stored is None or kind == "weight":
        return None if stored is None else stored.reshape(-1, shape_OG[1]).expand(shape_OG)
    return unpacked_words(stored.T, shape_OG[0]).T
