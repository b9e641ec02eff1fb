"""Read quantised tensors as plain ones; each is dequantised when it is read.

FP8 (also MXFP8, and the FP4 of DeepSeek-V4): a matrix of 8-bit floats, and a scale for each rectangle of it. MXFP4:
two 4-bit floats per byte, and a power of two for every 32 of them, as in gpt-oss's experts. Both become bfloat16.
Integers: of compressed-tensors (compressed_tensors.py), in the dtype of the model. The values equal those of
transformers' from_pretrained with `dequantize`.

E: experts; O, I: output and input features; r, c: rows and columns of the table of scales.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from prunus.checkpoint.compressed_settings import CompressedSettings
from prunus.checkpoint.compressed_tensors import METHOD, OF_ACTIVATIONS, StoredIntegers, linears_in
from prunus.checkpoint.safetensors_file import DTYPES, READABLE, Computed, Stored
from prunus.errors import PrunusError

DEQUANTISED = ("fp8", "mxfp4", METHOD)  # values of quant_method that can be read
_PACKED_FP4 = "I8"  # two 4-bit floats per byte, in files that also have FP8
_FP8 = ("F8_E4M3", "F8_E5M2", _PACKED_FP4)
# Suffixes of the names of scales, and the suffix of the weight's name in place of each.
_SCALES = {".weight_scale_inv": ".weight", "_scale_inv": "", ".qscale_weight": ".weight", ".scale": ".weight"}
# Scales of activations, which are not needed without FP8.
_OF_ACTIVATIONS = (".activation_scale", "_activation_scale", ".input_scale", ".qscale_act")
# The values of the 16 4-bit floats (E2M1).
_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
_ROWS = 1024  # dequantised at a time, since float32 takes twice the memory of the result


class Quantisation(NamedTuple):
    """How a model that can be read is quantised.

    rectangle: of floats, the (rows, columns) that share a scale; None where the settings do not say. integers: the
    settings of compressed-tensors, with which tensors are compared; None if they are not.
    """

    method: str
    rectangle: tuple[int, int] | None = None
    integers: CompressedSettings | None = None

    @classmethod
    def of(cls, settings: object) -> Self | None:
        """The quantisation of a quantization_config; None where there is no such config.

        Raises ValueError for a quantisation that cannot be read, which it names in words.
        """
        method = quant_method(settings)
        if method is None:
            return None
        if method not in DEQUANTISED or not isinstance(settings, Mapping):
            raise ValueError(method)
        try:
            if method == METHOD:
                return cls(method, integers=CompressedSettings.of(settings))
            return cls(method, _rectangle(settings.get("weight_block_size")))
        except ValueError as error:
            raise ValueError(f"{method}, {error}") from error


def _rectangle(size: object) -> tuple[int, int] | None:
    """The rows and columns that share a scale, from a weight_block_size. Raises ValueError for other values."""
    if size is None:
        return None
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return size[0], size[1]
    raise ValueError(f"weight_block_size {str(size)[:60]}")


class Dequantised(Computed):
    """A quantised tensor, read as a plain tensor. file, start, end: of its quantised numbers. dtype: as it is read.

    parts: its numbers, then its scales, by their names on disk; of integers also shape, zero points and g_idx where
    they are stored. values: yields its values, one expert or up to 1024 rows at a time. integers: what it is stored as,
    unless that is floats.
    """

    parts: Mapping[str, Stored]
    values: Callable[[], Iterator[Tensor]]
    integers: StoredIntegers | None = None

    def read(self) -> Tensor:
        """The plain tensor."""
        values, filled = torch.empty(self.elements, dtype=READABLE[self.dtype]), 0
        for piece in self.pieces():
            values[filled : filled + len(piece)] = piece
            filled += len(piece)
        return values.view(self.shape)

    def pieces(self) -> Iterator[Tensor]:
        """Yield its values flat, one expert or up to 1024 rows at a time. Raises PrunusError for NaN or infinity."""
        for values in self.values():
            piece = values.to(READABLE[self.dtype])
            if not piece.isfinite().all():
                name = next(iter(self.parts))
                raise PrunusError(f"{self.file}: '{name}' holds NaN or infinity; this model cannot be used")
            yield piece.flatten()


def plain_tensors(
    stored: Mapping[str, Stored], quantisation: Quantisation, dtype: torch.dtype | None = None
) -> dict[str, Stored]:
    """The tensors of a quantised model by their names in the unquantised model, without the scales.

    dtype: of the model, as its config.json says. Raises PrunusError if the shape of scales does not match their weight.
    """
    method = quantisation.method
    if method == METHOD:
        tensors = _from_integers(stored, dtype)
        if quantisation.integers is not None:
            _check_integers(tensors, quantisation.integers)
        return tensors
    tensors = dict(stored)
    for name in stored:
        pair = _mxfp4_pair(name, stored) if method == "mxfp4" else _fp8_pair(name, stored)
        if pair is not None:
            plain, *parts = pair
            for part in parts:
                tensors.pop(part, None)
            tensors[plain] = _from_floats({part: stored[part] for part in parts}, quantisation)
        elif method == "fp8" and name.endswith(_OF_ACTIVATIONS):
            del tensors[name]
    return tensors


def _from_integers(stored: Mapping[str, Stored], dtype: torch.dtype | None) -> dict[str, Stored]:
    """Tensors of a compressed-tensors model, dequantised when read, in dtype; None: in that of the scales."""
    tensors = dict(stored)
    names = {of: name for name, of in DTYPES.items()}
    for linear, kinds in linears_in(stored).items():
        for kind in (*kinds, *OF_ACTIVATIONS):
            tensors.pop(f"{linear}.{kind}", None)
        numbers, scales = list(kinds.values())[:2]
        integers = StoredIntegers.of(kinds)
        if integers is None or scales.dtype not in DTYPES:
            raise PrunusError(f"{numbers.file}: the scales or the shape of '{linear}.weight' do not match its numbers")
        read_as = scales.dtype if dtype is None else names.get(dtype, scales.dtype)
        weight = Dequantised(numbers.file, read_as, integers.shape_OI, numbers.start, numbers.end)
        weight.parts = {f"{linear}.{kind}": part for kind, part in kinds.items()}
        weight.integers, weight.values = integers, integers.values
        tensors[f"{linear}.weight"] = weight
    return tensors


def _check_integers(tensors: Mapping[str, Stored], settings: CompressedSettings) -> None:
    """Raise PrunusError where tensors of compressed-tensors are not as the quantization_config says."""
    linears, plain = dict[str, StoredIntegers](), list[str]()
    for name, tensor in tensors.items():
        if isinstance(tensor, Dequantised) and tensor.integers is not None:
            linears[name.removesuffix(".weight")] = tensor.integers
        elif name.endswith(".weight") and len(tensor.shape) == 2:
            plain.append(name.removesuffix(".weight"))
    for linear, what in settings.faults(linears, plain):
        raise PrunusError(
            f"{tensors[f'{linear}.weight'].file}: the quantization_config in config.json says of '{linear}' {what}, and"
            " its tensors are otherwise; fetch both again"
        )


def parts_of(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors on disk from which these are read: numbers and scales of dequantised ones, the others themselves."""
    parts: dict[str, Stored] = {}
    for name, stored in tensors.items():
        parts |= stored.parts if isinstance(stored, Dequantised) else {name: stored}
    return parts


def _fp8_pair(name: str, stored: Mapping[str, Stored]) -> tuple[str, str, str] | None:
    """Names of (weight, numbers, scales) if `name` is that of scales, else None."""
    for end, instead in _SCALES.items():
        weight = name.removesuffix(end) + instead
        if name.endswith(end) and weight in stored and stored[weight].dtype in _FP8:
            return weight, weight, name
    return None


def _mxfp4_pair(name: str, stored: Mapping[str, Stored]) -> tuple[str, str, str] | None:
    """Names of (weight, numbers, scales) of an MXFP4 weight if `name` is that of its scales, else None."""
    plain = name.removesuffix("_scales")
    return (plain, f"{plain}_blocks", name) if name != plain and f"{plain}_blocks" in stored else None


def _from_floats(parts: Mapping[str, Stored], quantisation: Quantisation) -> Dequantised:
    """The tensor of these numbers and scales. Raises PrunusError if their shapes do not match."""
    (name, numbers), (_, scales) = parts.items()
    is_mxfp4, fits = quantisation.method == "mxfp4", False
    if is_mxfp4 and len(numbers.shape) > 2:
        *experts, outputs, groups, half = numbers.shape
        shape, fits = (*experts, 2 * groups * half, outputs), len(experts) == 1 and scales.shape == numbers.shape[:-1]
    else:
        *experts, rows, columns = numbers.shape if len(numbers.shape) > 1 else (1, numbers.elements)
        columns *= 2 if numbers.dtype == _PACKED_FP4 else 1
        shape = (*experts, rows, columns)
    tensor = Dequantised(numbers.file, "BF16", shape, numbers.start, numbers.end)
    tensor.parts, tensor.values = parts, partial(_from_mxfp4, numbers, scales)
    if not is_mxfp4:
        table = _table(torch.empty(scales.shape, device="meta")).shape
        sizes = zip(shape[-2:], table[-2:], quantisation.rectangle or shape[-2:], strict=True)
        shared = [_shared(*size) for size in sizes]
        fits = all(shared) and table[0] in (1, prod(experts))
        tensor.values = partial(_from_fp8, numbers, scales, shape[-1], *shared)
    if not fits:
        raise PrunusError(
            f"{numbers.file}: the scales of '{name}', {scales.shape}, do not match its shape {numbers.shape}"
        )
    return tensor


def _shared(size: int, scales: int, size_of_block: int) -> int:
    """How many rows (or columns) share a scale: `size_of_block` if it matches the number of scales; 0 if it is unclear.

    The last group may be smaller: 576 rows in blocks of 128 have five scales, which transformers 5.24 cannot load.
    """
    if size_of_block and -(-size // size_of_block) == scales:
        return size_of_block
    return size // scales if scales and size % scales == 0 else 0


def _table(scales: Tensor) -> Tensor:
    """(E, r, c) float32 scales, from floats or from bytes, which are exponents of two."""
    if scales.dtype == torch.uint8:
        scales = (scales.float() - 127).exp2()
    rows, columns = scales.shape[-2:] if scales.ndim > 1 else (1, 1)
    return scales.float().reshape(-1, rows, columns)


def _unpacked(bytes_OI: Tensor) -> Tensor:
    """The 4-bit floats of bytes, the lower half of each byte first; twice as many columns, float32."""
    bytes_OI = bytes_OI.view(torch.uint8)
    return _FP4[torch.stack([bytes_OI & 15, bytes_OI >> 4], dim=-1).flatten(-2).long()]


def _from_fp8(stored: Stored, stored_scales: Stored, columns: int, height: int, width: int) -> Iterator[Tensor]:
    """Yield up to 1024 rows at a time. height, width: of the rectangle that shares a scale."""
    numbers, scales_Erc = stored.read(), _table(stored_scales.read())
    rows = numbers.shape[-2] if numbers.ndim > 1 else 1
    for number, matrix_OI in enumerate(numbers.view(-1, rows, numbers.shape[-1])):
        scale_rc = scales_Erc[min(number, len(scales_Erc) - 1)]
        for some in torch.arange(rows).split(_ROWS):
            part_OI = matrix_OI[some[0] : some[-1] + 1]
            float_OI = _unpacked(part_OI) if numbers.dtype == torch.int8 else part_OI.float()
            scale_OI = scale_rc[some // height].repeat_interleave(width, 1)[:, :columns]
            yield (float_OI * scale_OI).bfloat16()


def _from_mxfp4(stored: Stored, stored_scales: Stored) -> Iterator[Tensor]:
    """Yield (I, O) of each expert, from bytes (O, groups, 16) and exponents (O, groups)."""
    blocks, scales = stored.read(), stored_scales.read()
    for bytes_OGH, exponent_OG in zip(blocks.flatten(0, -4), scales.flatten(0, -3), strict=True):
        float_OGI = _unpacked(bytes_OGH) * (exponent_OG.float() - 127).exp2()[..., None]
        yield float_OGI.flatten(1).T.bfloat16().contiguous()


def quantisation_of(settings: Mapping[str, Any] | None) -> str | None:
    """The name of a quantisation in tables: its method and the size of its numbers, such as `awq 4-bit` or `fp8`.

    settings: a quantization_config; None gives None. compressed-tensors and ModelOpt are containers of many formats, so
    the format is named instead of them.
    """
    method = quant_method(settings)
    if settings is None or method is None:
        return None
    groups = settings.get("config_groups")
    first = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = first.get("weights") if isinstance(first, Mapping) else None
    kind, bits = (weights.get("type"), weights.get("num_bits")) if isinstance(weights, Mapping) else (None, None)
    named = f"{settings.get('format', '')} {settings.get('quant_algo', '')} {settings.get('quant_type', '')}".lower()
    for name in ("nvfp4", "mxfp4", "mxfp8"):
        if name in f"{method} {named}":
            return name
    if kind and bits:
        return f"{'fp' if kind == 'float' else 'int'}{bits}"
    if "fp8" in f"{method} {named}" or "float8" in named:
        return "fp8"
    for key in ("bits", "w_bit", "weight_bits", "nbits"):
        if isinstance(settings.get(key), int):
            return f"{method} {settings[key]}-bit"
    for size in (4, 8):
        if settings.get(f"load_in_{size}bit") or settings.get(f"_load_in_{size}bit"):
            return f"{method} {size}-bit"
    return method


def quant_method(settings: object) -> str | None:
    """The quant_method of a quantization_config; None where there is no such config."""
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return None if settings is None else str(getattr(method, "value", method) or "quantised")
