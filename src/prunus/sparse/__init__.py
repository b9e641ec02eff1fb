"""Sparse inference on a CPU: pruned weights stay packed in memory, as one bit per weight and the kept values.

    model = prunus.sparse.load("pruned-packed")  # a transformers model; call generate() as usual
    prunus.sparse.sparsify(model)                # or convert a loaded model in place

docs/sparse.md says how much faster this is, and on which processors.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.loader import give_values, owner_of, whole_skeleton
from prunus.checkpoint.packed_files import open_checkpoint
from prunus.checkpoint.packed_tensor import PackedTensor, damaged
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.safetensors_file import DTYPES, Stored
from prunus.errors import PrunusError
from prunus.native.load import kernel, say_why_dense
from prunus.progress import Steps
from prunus.sparse.choose import kernel_rows, stock_linear
from prunus.sparse.linear import ANY_ROWS, MOST_ROWS, DenseLinear, SparseLinear, found_in, multiply
from prunus.sparse.weight import KINDS, SparseWeight, from_packed, pack, packed_bytes

__all__ = ["DenseLinear", "SparseLinear", "SparseWeight", "Summary", "describe", "load", "multiply", "pack", "sparsify"]


@dataclass(frozen=True)
class Summary:
    """How the Linears of a model are computed.

    isa: the kernel's instruction set, or `off`; reason then says why the kernel is not used. sparse, dense, stock:
    numbers of Linears computed by the kernel with a packed weight, by the kernel with a plain weight, and by torch.
    nbytes: memory of all their weights in bytes; dense_nbytes: what they would take dense, in their own dtype.
    """

    isa: str
    reason: str
    sparse: int
    dense: int
    stock: int
    nbytes: int
    dense_nbytes: int

    def __str__(self) -> str:
        if self.isa == "off":
            return f"no sparse kernel ({self.reason}): {self.stock} Linears dense"
        return (
            f"sparse kernel ({self.isa}): {self.sparse} Linears packed, {self.dense} plain, {self.stock} by "
            f"torch; {self.nbytes / 1e6:.1f} MB of {self.dense_nbytes / 1e6:.1f} MB"
        )


def load(
    model: str | Path,
    *,
    dtype: torch.dtype | None = None,
    source: str | Path | None = None,
    always_sparse: bool = False,
) -> PreTrainedModel:
    """A transformers causal language model for inference on the CPU, with its Linears' weights packed.

    model: a packed checkpoint, or a dense one (folder, hub id, `tiny`). It is read tensor by tensor; all of it is never
    in memory dense. dtype: what the model computes in, by default the checkpoint's dtype; packed weights keep theirs
    and are converted in registers. source: for a file of masks only, the dense model to which they belong.
    always_sparse: as in sparsify.

    Where the kernel cannot be used, weights are dense and one line on stderr says why. describe(model) says how each
    Linear is computed. Raises PrunusError if the checkpoint is missing, damaged or of another dtype.
    """
    checkpoint = open_checkpoint(resolve(model), source)
    dtype = dtype or checkpoint.dtype
    if dtype not in KINDS:
        raise PrunusError(f"dtype {dtype} is not one of {', '.join(map(str, KINDS))}")
    if kernel().library is None:
        say_why_dense(kernel().reason)
    loaded = whole_skeleton(checkpoint, dtype)
    linears = _stored_linears(checkpoint, loaded)
    names = checkpoint.names
    others = [n for n in loaded.state_dict() if n.removesuffix(".weight").removesuffix(".bias") not in linears]
    with Steps("loading", len(linears), "Linears") as steps:
        for name, stored in linears.items():
            bias = names.read([f"{name}.bias"], checkpoint.read).get(f"{name}.bias")
            bias_O = None if bias is None else bias.to(dtype)
            owner, inner = owner_of(loaded, name)
            setattr(owner, inner, _linear(_read_weight(stored), bias_O, dtype, always_sparse))
            steps.advance()
    give_values(loaded, checkpoint, others, dtype)
    _swap_others(loaded, always_sparse)
    left = [name for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()) if tensor.is_meta]
    assert not left, f"{left} have no values"
    return loaded.eval()


def sparsify(model: nn.Module, *, always_sparse: bool = False) -> Summary:
    """Replace the Linears of a model by ones that use the kernel, in place; returns a Summary of what was done.

    Weights with enough zeros to become smaller are packed; the kernel reads the others, a tied head included, without
    packing. Either is done only where it is faster than torch, which is timed once for each shape and machine.
    always_sparse: use the kernel without timing it. Afterwards the model can only be used for inference. Raises
    PrunusError if a parameter is not on the CPU.
    """
    if odd := next((name for name, weight in model.named_parameters() if weight.device.type != "cpu"), None):
        raise PrunusError(f"'{odd}' is not on the CPU, where the sparse kernel works; move the model there first")
    if kernel().library is None:
        say_why_dense(kernel().reason)
    for owner, name, linear in list(found_in(model, nn.Linear)):
        if linear.weight.dtype in KINDS and not _is_shared(model, linear):
            weight, bias_O = _maybe_pack(linear.weight.detach()), None if linear.bias is None else linear.bias.detach()
            setattr(owner, name, _linear(weight, bias_O, linear.weight.dtype, always_sparse))
    _swap_others(model, always_sparse)
    model.requires_grad_(False)
    return describe(model)


def describe(model: nn.Module) -> Summary:
    """A Summary of how the Linears of a model are computed, and of the memory that their weights take."""
    sparse = [module for module in model.modules() if isinstance(module, SparseLinear)]
    dense = [module for module in model.modules() if isinstance(module, DenseLinear)]
    stock = [module for module in model.modules() if type(module) is nn.Linear]
    plain = sum(module.weight.nbytes for module in (*dense, *stock))
    return Summary(
        kernel().name,
        kernel().reason,
        len(sparse),
        len(dense),
        len(stock),
        sum(module.packed.nbytes for module in sparse) + plain,
        sum(module.out_features * module.in_features * module.packed.dtype.itemsize for module in sparse) + plain,
    )


def _stored_linears(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, Stored]:
    """Stored weights of the blocks' prunable Linears by module name, if transformers loads them without conversion."""
    found: dict[str, Stored] = {}
    for index in range(checkpoint.blocks):
        for linear in checkpoint.linears(index):
            name = checkpoint.block_name(index, linear.name)
            origin = checkpoint.names.origin(f"{name}.weight")
            if origin is not None and origin.converter is None and type(model.get_submodule(name)) is nn.Linear:
                found[name] = checkpoint.tensors[origin.stored[0]]
    return found


def _is_shared(model: nn.Module, linear: nn.Linear) -> bool:
    """Whether another module uses the same weight, which then cannot be packed."""
    owners = sum(weight is linear.weight for module in model.modules() for weight in module.parameters(recurse=False))
    return owners > 1


def _read_weight(stored: Stored) -> SparseWeight | Tensor:
    """The weight of a Linear, packed if that is smaller. A weight that the file stores packed is never made dense."""
    if kernel().library is None or not isinstance(stored, PackedTensor) or stored.form != "packed":
        return _maybe_pack(stored.read())
    try:
        return from_packed((stored.shape[0], stored.shape[1]), DTYPES[stored.dtype], *stored.bits())
    except PrunusError as error:
        raise damaged(stored.file, error) from error


def _maybe_pack(weight_OI: Tensor) -> SparseWeight | Tensor:
    """The weight packed, or unchanged if packing does not make it smaller."""
    if kernel().library is None:
        return weight_OI
    kept = int(torch.count_nonzero(weight_OI))
    if packed_bytes(tuple(weight_OI.shape), kept, weight_OI.itemsize) >= weight_OI.nbytes:
        return weight_OI
    return pack(weight_OI)


def _linear(weight: SparseWeight | Tensor, bias_O: Tensor | None, dtype: torch.dtype, always: bool) -> nn.Module:
    """The fastest Linear for this weight and x of this dtype. always: as in sparsify."""
    rows = 0
    if kernel().library is not None:
        most = ANY_ROWS if isinstance(weight, SparseWeight) else MOST_ROWS
        rows = most if always else kernel_rows(weight, dtype)
    if rows and isinstance(weight, SparseWeight):
        return SparseLinear(weight, bias_O, rows)
    weight_OI = weight.unpack() if isinstance(weight, SparseWeight) else weight
    if rows:
        return DenseLinear(nn.Parameter(weight_OI, requires_grad=False), bias_O, rows)
    return stock_linear(weight_OI.to(dtype), bias_O)


def _swap_others(model: nn.Module, always: bool) -> None:
    """Replace the remaining nn.Linears (shared weights, or outside the blocks) by DenseLinear where that is faster."""
    if kernel().library is None:
        return
    for owner, name, linear in list(found_in(model, nn.Linear)):
        if linear.weight.dtype not in KINDS or not linear.weight.is_contiguous():
            continue
        rows = MOST_ROWS if always else kernel_rows(linear.weight.detach(), linear.weight.dtype)
        if rows:
            setattr(owner, name, DenseLinear(linear.get_parameter("weight"), linear.bias, rows))
