"""Linears that use the kernel: drop-ins for nn.Linear, for inference on a CPU.

The kernel multiplies a packed weight up to the number of rows of x for which it is faster than torch's product on
panels of the weight that are unpacked one at a time. It multiplies a plain weight for the few rows of decoding.
O: outputs, I: inputs, P: rows of a panel, R: rows of x.
"""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.errors import PrunusError
from prunus.native.load import needed, threads
from prunus.sparse.weight import GROUP, KINDS, SparseWeight, checked

M = TypeVar("M", bound=nn.Module)
# Rows of x that the kernel multiplies in one pass over a plain weight; it reads the weight again for every 8 more.
MOST_ROWS = 8
ANY_ROWS = 1 << 40
# Bytes of W that are unpacked at a time for torch: enough for an efficient product, few enough to stay in a cache.
PANEL_BYTES = 1 << 23


def multiply(x: Tensor, weight: SparseWeight | Tensor, bias_O: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + bias, (..., O), computed by the kernel and summed in float32.

    The result is the same, bit by bit, for any number of threads and, with a packed weight, for any number of rows of x
    in one call. x: (..., I), contiguous, on the CPU, in bfloat16, float16 or float32, whatever the weight's dtype; y
    and bias have the dtype of x. A plain weight (a tensor) must be contiguous. Raises PrunusError for other input, and
    where the kernel cannot be used.
    """
    check(x, weight, bias_O)
    found = needed()
    outputs, inputs = weight.shape
    parts = weight.pointers if isinstance(weight, SparseWeight) else (None, weight.data_ptr(), None)
    y = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype)
    status = found.library.prunus_linear(
        found.isa,
        KINDS[weight.dtype],
        KINDS[x.dtype],
        *parts,
        x.data_ptr(),
        None if bias_O is None else bias_O.data_ptr(),
        y.data_ptr(),
        outputs,
        inputs,
        x.numel() // inputs,
        threads(),
    )
    if status:
        raise PrunusError(f"the kernel failed with status {status}")
    return y


def apply(x: Tensor, weight: SparseWeight | Tensor, bias_O: Tensor | None, rows: int) -> Tensor:
    """y = x Wᵀ + bias, (..., O): by the kernel for up to `rows` rows of x, by torch for more. Errors as in multiply."""
    x = x.contiguous()
    if x.numel() <= rows * x.shape[-1]:
        return multiply(x, weight, bias_O)
    check(x, weight, bias_O)
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        return functional.linear(x, weight, bias_O)
    return _by_panels(x, weight, bias_O)


def check(x: Tensor, weight: SparseWeight | Tensor, bias_O: Tensor | None) -> None:
    """Raise PrunusError, saying what is wrong, unless the kernel can compute x Wᵀ + bias."""
    outputs, inputs = weight.shape
    if x.requires_grad and torch.is_grad_enabled():
        raise PrunusError("x requires gradients, which the kernel lacks; use torch.no_grad() or the dense model")
    if x.dtype not in KINDS:
        raise PrunusError(f"x is {x.dtype}; give bfloat16, float16 or float32")
    if x.device.type != "cpu":
        raise PrunusError(f"x is on {x.device}; the kernel works on the CPU only")
    if x.ndim == 0 or x.shape[-1] != inputs:
        raise PrunusError(f"the shape of x is {tuple(x.shape)}; this weight takes (..., {inputs})")
    if not x.is_contiguous():
        raise PrunusError("x is not contiguous; give x.contiguous()")
    if bias_O is not None and (bias_O.dtype != x.dtype or bias_O.shape != (outputs,) or not bias_O.is_contiguous()):
        raise PrunusError(f"the bias is {bias_O.dtype} {tuple(bias_O.shape)}; this x needs {x.dtype} ({outputs},)")
    if isinstance(weight, Tensor) and not (
        weight.dtype in KINDS and weight.device.type == "cpu" and weight.is_contiguous()
    ):
        raise PrunusError(
            f"the weight is {weight.dtype} on {weight.device}, contiguous: {weight.is_contiguous()}; "
            "give bfloat16, float16 or float32 on the CPU, contiguous"
        )


def _by_panels(x: Tensor, weight: SparseWeight | Tensor, bias_O: Tensor | None) -> Tensor:
    """The same as multiply, by torch on one dense panel of rows of W at a time, in the dtype of x.

    No dense copy of all of W is made, unless W is smaller than a panel.
    """
    outputs, inputs = weight.shape
    if isinstance(weight, SparseWeight) and outputs * inputs * weight.dtype.itemsize <= PANEL_BYTES:
        return functional.linear(x, weight.unpack().to(x.dtype), bias_O)
    x_RI = x.view(-1, inputs)
    y_RO = torch.empty((x_RI.shape[0], outputs), dtype=x.dtype)
    groups_at_once = max(1, PANEL_BYTES // (GROUP * inputs * weight.dtype.itemsize))
    panel_rows = min(GROUP * groups_at_once, outputs)
    room_PI = torch.empty((panel_rows, inputs), dtype=weight.dtype)
    for first in range(0, outputs, panel_rows):
        rows = slice(first, min(first + panel_rows, outputs))
        if isinstance(weight, SparseWeight):
            groups = first // GROUP, -(-rows.stop // GROUP)
            panel_PI = weight.unpack(*groups, out=room_PI[: rows.stop - first])
        else:
            panel_PI = weight[rows]
        y_RO[:, rows] = functional.linear(x_RI, panel_PI.to(x.dtype), None if bias_O is None else bias_O[rows])
    return y_RO.view(*x.shape[:-1], outputs)


def found_in(model: nn.Module, kind: type[M]) -> Iterator[tuple[nn.Module, str, M]]:
    """(parent module, attribute name, module) for every module of exactly this class: subclasses may differ."""
    for owner in model.modules():
        for name, child in owner.named_children():
            if type(child) is kind:
                yield owner, name, child


class _KernelLinear(nn.Module):
    """Base class of SparseLinear and DenseLinear. rows: the largest number of rows of x that the kernel multiplies."""

    def __init__(self, outputs: int, inputs: int, bias_O: Tensor | None, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rows = inputs, outputs, rows
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach(), requires_grad=False)

    def extra_repr(self) -> str:
        rows = "any" if self.rows >= ANY_ROWS else self.rows
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, rows={rows}"


class SparseLinear(_KernelLinear):
    """nn.Linear with a SparseWeight. `weight` is not a parameter: the property and state_dict() return a dense copy.

    The weight keeps its dtype and stays on the CPU: to() and half() do not change it; x may have another dtype.
    """

    def __init__(self, packed: SparseWeight, bias_O: Tensor | None, rows: int = ANY_ROWS) -> None:
        super().__init__(packed.outputs, packed.inputs, bias_O, rows)
        self.packed = packed

    @property
    def weight(self) -> Tensor:
        """A new dense copy of the weight, (O, I)."""
        return self.packed.unpack()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            layout = [self.packed.masks, self.packed.starts]
            return torch.ops.prunus.linear(x, self.packed.values, layout, self.bias, self.out_features, self.rows)
        return apply(x, self.packed, self.bias, self.rows)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, *arguments: object, **options: object) -> None:
        raise PrunusError("a sparse Linear cannot load weights; load them into the dense model and sparsify that")


class DenseLinear(_KernelLinear):
    """nn.Linear with the same weight parameter, which may be tied to another module's, but multiplied by the kernel."""

    def __init__(self, weight_OI: nn.Parameter, bias_O: Tensor | None, rows: int = MOST_ROWS) -> None:
        super().__init__(weight_OI.shape[0], weight_OI.shape[1], bias_O, rows)
        self.weight = weight_OI

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return torch.ops.prunus.linear(x, self.weight, [], self.bias, self.out_features, self.rows)
        return apply(x, self.weight, self.bias, self.rows)


# The operator for torch.compile. Outside it, `apply` is called directly, which is some microseconds faster.


@torch.library.custom_op("prunus::linear", mutates_args=(), device_types="cpu")
def linear(x: Tensor, weight: Tensor, layout: list[Tensor], bias: Tensor | None, outputs: int, rows: int) -> Tensor:
    """`apply`. An operator takes only tensors and numbers, so of a SparseWeight, weight has the values.

    layout: then its masks and starts; else empty.
    """
    if not layout:
        return apply(x, weight, bias, rows)
    masks, starts = layout
    return apply(x, checked(masks, weight, starts, outputs, x.shape[-1]), bias, rows)


@linear.register_fake
def _(x: Tensor, weight: Tensor, layout: list[Tensor], bias: Tensor | None, outputs: int, rows: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)
