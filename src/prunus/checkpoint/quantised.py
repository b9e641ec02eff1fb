"""The tensors of an original in FP8 or MXFP4 as bfloat16, dequantised one by one when they are read.

FP8 (also MXFP8, and FP4 as DeepSeek-V4 has it): a matrix of 8-bit floats, and a scale for each rectangle of it. MXFP4:
two 4-bit floats in a byte, and a power of two for every 32 of them, as gpt-oss has its experts. The numbers are those
of transformers' from_pretrained with `dequantize`.

E: experts; O, I: output and input features; r, c: rows and columns of the table of scales.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.safetensors_file import Stored
from prunus.errors import PrunusError

DEQUANTISED = ("fp8", "mxfp4")  # values of quant_method that can be read
_PACKED_FP4 = "I8"  # two numbers in a byte, beside FP8 in the same files
_FP8 = ("F8_E4M3", "F8_E5M2", _PACKED_FP4)
# How names of scales end, and what stands in their place in the name of the weight.
_SCALES = {".weight_scale_inv": ".weight", "_scale_inv": "", ".qscale_weight": ".weight", ".scale": ".weight"}
# Scales of activations, which have no use without FP8.
_OF_ACTIVATIONS = (".activation_scale", "_activation_scale", ".input_scale", ".qscale_act")
# The values of a 4-bit float (E2M1) by its bits.
_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
_ROWS = 1024  # dequantised at a time: float32 takes twice the room of the result


class Dequantised(Stored):
    """A quantised tensor that reads as if it lay there in bfloat16. file, start, end: of its quantised numbers.

    parts: what it is made from, by names on disk: numbers, then scales. method: by which it is quantised. rectangle:
    rows and columns that share a scale, where the table of scales does not tell.
    """

    parts: Mapping[str, Stored]
    method: str
    rectangle: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in bfloat16."""
        return 2 * self.elements

    def read(self) -> Tensor:
        """The tensor in bfloat16."""
        return torch.cat(list(self._pieces())).view(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the tensor in bfloat16, an expert or some rows at a time."""
        return (piece.view(torch.uint8).numpy().tobytes() for piece in self._pieces())

    def read_rows(self, rows: Any) -> Tensor:
        """Some rows of a matrix; all of it is dequantised for them."""
        return self.read()[torch.as_tensor(list(rows))]

    def _pieces(self) -> Iterator[Tensor]:
        """The tensor's numbers in their order."""
        numbers, scales = (part.read() for part in self.parts.values())
        pieces = _from_mxfp4(numbers, scales) if self.method == "mxfp4" else self._from_fp8(numbers, scales)
        for piece in pieces:
            if not piece.isfinite().all():
                name = next(iter(self.parts))
                raise PrunusError(f"{self.file}: '{name}' holds NaN or infinity; this model cannot be used")
            yield piece.flatten()

    def _from_fp8(self, numbers: Tensor, scales: Tensor) -> Iterator[Tensor]:
        rows, columns = self.shape[-2:]
        numbers_EOI, scales_Erc = numbers.view(-1, rows, numbers.shape[-1]), _table(scales)
        sizes = zip((rows, columns), scales_Erc.shape[-2:], self.rectangle, strict=True)
        height, width = (_shared(size, count, asked) for size, count, asked in sizes)
        for number, matrix_OI in enumerate(numbers_EOI):
            scale_rc = scales_Erc[min(number, len(scales_Erc) - 1)]
            for some in torch.arange(rows).split(_ROWS):
                part_OI = matrix_OI[some[0] : some[-1] + 1]
                float_OI = _unpacked(part_OI) if numbers.dtype == torch.int8 else part_OI.float()
                scale_OI = scale_rc[some // height].repeat_interleave(width, 1)[:, :columns]
                yield (float_OI * scale_OI).bfloat16()


def plain_tensors(stored: Mapping[str, Stored], settings: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors of a quantised model by the names that they have in one that is not; scales are gone.

    settings: its quantization_config. Scales that do not fit raise PrunusError.
    """
    method = settings["quant_method"]
    found = dict(stored)
    for name in stored:
        pair = _mxfp4_pair(name, stored) if method == "mxfp4" else _fp8_pair(name, stored)
        if pair is not None:
            plain, *parts = pair
            for part in parts:
                found.pop(part, None)
            found[plain] = _dequantised(method, {part: stored[part] for part in parts}, settings)
        elif method == "fp8" and name.endswith(_OF_ACTIVATIONS):
            del found[name]
    return found


def parts_of(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """What lies on disk of tensors: of dequantised ones their numbers and scales, of others they themselves."""
    found: dict[str, Stored] = {}
    for name, stored in tensors.items():
        found |= stored.parts if isinstance(stored, Dequantised) else {name: stored}
    return found


def _fp8_pair(name: str, stored: Mapping[str, Stored]) -> tuple[str, str, str] | None:
    """Plain name, numbers and scales where name is of scales; None where it is not."""
    for end, instead in _SCALES.items():
        weight = name.removesuffix(end) + instead
        if name.endswith(end) and weight in stored and stored[weight].dtype in _FP8:
            return weight, weight, name
    return None


def _mxfp4_pair(name: str, stored: Mapping[str, Stored]) -> tuple[str, str, str] | None:
    plain = name.removesuffix("_scales")
    return (plain, f"{plain}_blocks", name) if name != plain and f"{plain}_blocks" in stored else None


def _dequantised(method: str, parts: Mapping[str, Stored], settings: Mapping[str, Any]) -> Dequantised:
    (name, numbers), (_, scales) = parts.items()
    fits = False
    if method == "mxfp4" and len(numbers.shape) > 2:
        *experts, outputs, groups, half = numbers.shape
        shape, fits = (*experts, 2 * groups * half, outputs), len(experts) == 1 and scales.shape == numbers.shape[:-1]
    else:
        *experts, rows, columns = numbers.shape if len(numbers.shape) > 1 else (1, *numbers.shape)
        columns *= 2 if numbers.dtype == _PACKED_FP4 else 1
        shape = (*experts, rows, columns)
    size = settings.get("weight_block_size") or shape[-2:]
    found = Dequantised(numbers.file, "BF16", shape, numbers.start, numbers.end)
    found.parts, found.method, found.rectangle = parts, method, (int(size[0]), int(size[1]))
    if method != "mxfp4":
        table = _table(torch.empty(scales.shape, device="meta")).shape
        sizes = zip(shape[-2:], table[-2:], found.rectangle, strict=True)
        fits = all(_shared(*one) for one in sizes) and table[0] in (1, prod(experts))
    if not fits:
        raise PrunusError(f"{numbers.file}: the scales of '{name}' do not fit it: {scales.shape} for {numbers.shape}")
    return found


def _shared(size: int, scales: int, asked: int) -> int:
    """How many rows (or columns) share a scale, as asked if that fits; 0 where it cannot be told.

    The last may be fewer: 576 rows in blocks of 128 have five scales, of which transformers 5.24 makes nothing.
    """
    if -(-size // asked) == scales:
        return asked
    return size // scales if scales and size % scales == 0 else 0


def _table(scales: Tensor) -> Tensor:
    """(E, r, c) float32 scales; bytes are exponents of two."""
    if scales.dtype == torch.uint8:
        scales = (scales.float() - 127).exp2()
    rows, columns = scales.shape[-2:] if scales.ndim > 1 else (1, 1)
    return scales.float().reshape(-1, rows, columns)


def _unpacked(bytes_OI: Tensor) -> Tensor:
    """The 4-bit floats in bytes, of each the lower half first; twice as many columns."""
    bytes_OI = bytes_OI.view(torch.uint8)
    return _FP4[torch.stack([bytes_OI & 15, bytes_OI >> 4], dim=-1).flatten(-2).long()]


def _from_mxfp4(blocks: Tensor, scales: Tensor) -> Iterator[Tensor]:
    """(I, O) of each expert from bytes (O, groups, 16) and exponents (O, groups)."""
    for bytes_OGH, exponent_OG in zip(blocks.flatten(0, -4), scales.flatten(0, -3), strict=True):
        float_OGI = _unpacked(bytes_OGH) * (exponent_OG.float() - 127).exp2()[..., None]
        yield float_OGI.flatten(1).T.bfloat16().contiguous()


def quant_method(settings: Any) -> str | None:
    """Return the quant_method of a quantization_config; None where there is no such config."""
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return None if settings is None else str(getattr(method, "value", method) or "quantised")
