"""Models whose Linears go through the kernel: from a checkpoint, or from a model in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import is_packed
from prunus.checkpoint.packed.checkpoint import PackedCheckpoint
from prunus.checkpoint.packed.tensor import PackedTensor, damaged
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.safetensors_file import DTYPES, Stored
from prunus.checkpoint.whole import give_values, owner_of, whole_skeleton
from prunus.errors import PrunusError
from prunus.native.load import kernel, say_why_dense
from prunus.progress import Steps
from prunus.sparse.choose import kernel_rows, stock_linear
from prunus.sparse.linear import ANY_ROWS, MOST_ROWS, DenseLinear, SparseLinear
from prunus.sparse.weight import KINDS, SparseWeight, from_packed, pack, packed_bytes


@dataclass(frozen=True)
class Summary:
    """How the Linears of a model compute. isa: instruction set of the kernel, `off` if there is none; reason: why.

    sparse, dense: Linears whose weights the kernel reads packed, and as they are. stock: left to torch.
    nbytes: what the weights of all of them take; dense_nbytes: what they would take dense, in their own dtype.
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
            f"sparse kernel ({self.isa}): {self.sparse} Linears packed, {self.dense} read as they are, {self.stock} by "
            f"torch; {self.nbytes / 1e6:.1f} MB of {self.dense_nbytes / 1e6:.1f} MB"
        )


@dataclass(frozen=True)
class _Rules:
    """always: use the kernel without timing it. keep_dense: keep a dense copy for many rows."""

    always: bool
    keep_dense: bool


def load(
    model: str | Path,
    *,
    dtype: torch.dtype | None = None,
    source: str | Path | None = None,
    always_sparse: bool = False,
    keep_dense: bool = False,
) -> PreTrainedModel:
    """A causal language model, ready to run on the CPU, with its Linears in the kernel's layout.

    model: a packed checkpoint, or a dense one (folder, hub id, `tiny`). It is read tensor by tensor and never in memory
    as dense. dtype: in which it computes, by default the checkpoint's; packed weights stay in theirs and are widened as
    they are read. source: of masks alone, the dense model that they belong to. always_sparse, keep_dense: as in
    sparsify.

    Where there is no kernel, weights are dense and one line on stderr says why. describe(model) says what was done.
    Wrong input raises PrunusError.
    """
    folder = resolve(model)
    checkpoint = PackedCheckpoint(folder, source) if is_packed(folder) else Checkpoint(folder)
    dtype = dtype or checkpoint.dtype
    if dtype not in KINDS:
        raise PrunusError(f"dtype {dtype} is not one of {', '.join(map(str, KINDS))}")
    rules = _ready(always_sparse, keep_dense)
    loaded = whole_skeleton(checkpoint, dtype)
    linears = _stored_linears(checkpoint, loaded)
    names = checkpoint.names
    others = [n for n in loaded.state_dict() if n.removesuffix(".weight").removesuffix(".bias") not in linears]
    with Steps("loading", len(linears), "Linears") as steps:
        for name, stored in linears.items():
            bias = names.read([f"{name}.bias"], checkpoint.read).get(f"{name}.bias")
            bias_O = None if bias is None else bias.to(dtype)
            owner, inner = owner_of(loaded, name)
            setattr(owner, inner, _linear(_read_weight(stored), bias_O, dtype, rules))
            steps.advance()
    give_values(loaded, checkpoint, others, dtype)
    _swap_others(loaded, rules)
    left = [name for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()) if tensor.is_meta]
    assert not left, f"{left} have no values"
    return loaded.eval()


def sparsify(model: nn.Module, *, always_sparse: bool = False, keep_dense: bool = False) -> Summary:
    """Swap the Linears of a model in place for such that the kernel reads; returns what was done.

    Weights with enough zeros to gain from it are packed, others (a tied head too) are read as they are; both only where
    that is faster than torch, which is timed once for each shape and machine. always_sparse: without timing.
    keep_dense: keep dense copies of packed weights for prefill, which is then as fast as torch, in the memory of both.
    The model must be on the CPU and is for inference from then on. Wrong input raises PrunusError.
    """
    if odd := next((name for name, weight in model.named_parameters() if weight.device.type != "cpu"), None):
        raise PrunusError(f"'{odd}' is not on the CPU, where the sparse kernel works; move the model there first")
    rules = _ready(always_sparse, keep_dense)
    for owner, name, linear in list(_linears(model)):
        if linear.weight.dtype in KINDS and not _is_shared(model, linear):
            bias_O = None if linear.bias is None else linear.bias.detach()
            setattr(owner, name, _linear(_maybe_pack(linear.weight.detach()), bias_O, linear.weight.dtype, rules))
    _swap_others(model, rules)
    model.requires_grad_(False)
    return describe(model)


def describe(model: nn.Module) -> Summary:
    """How the Linears of a model compute."""
    sparse = [module for module in model.modules() if isinstance(module, SparseLinear)]
    dense = [module for module in model.modules() if isinstance(module, DenseLinear)]
    stock = [module for module in model.modules() if type(module) is nn.Linear]
    plain = sum(module.weight.nbytes for module in (*dense, *stock))
    copies = sum(module.dense.nbytes for module in sparse if module.dense is not None)
    return Summary(
        kernel().name,
        kernel().reason,
        len(sparse),
        len(dense),
        len(stock),
        sum(module.packed.nbytes for module in sparse) + plain + copies,
        sum(module.out_features * module.in_features * module.packed.dtype.itemsize for module in sparse) + plain,
    )


def _ready(always_sparse: bool, keep_dense: bool) -> _Rules:
    """The rules; where there is no kernel, one line says so."""
    if kernel().library is None:
        say_why_dense(kernel().reason)
    return _Rules(always_sparse, keep_dense)


def _stored_linears(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, Stored]:
    """Prunable Linears of the blocks whose weights lie on disk as the model has them, by their names in it."""
    found: dict[str, Stored] = {}
    for index in range(checkpoint.blocks):
        for linear in checkpoint.linears(index):
            name = checkpoint.block_name(index, linear.name)
            origin = checkpoint.names.origin(f"{name}.weight")
            if origin is not None and origin.converter is None and type(model.get_submodule(name)) is nn.Linear:
                found[name] = checkpoint.tensors[origin.stored[0]]
    return found


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every Linear with the module that it belongs to and its name there; subclasses may do something else."""
    for owner in model.modules():
        for name, child in owner.named_children():
            if type(child) is nn.Linear:
                yield owner, name, child


def _is_shared(model: nn.Module, linear: nn.Linear) -> bool:
    """Whether another module has the same weight: it cannot be packed then."""
    owners = sum(weight is linear.weight for module in model.modules() for weight in module.parameters(recurse=False))
    return owners > 1


def _read_weight(stored: Stored) -> SparseWeight | Tensor:
    """The weight of a Linear: packed if that is smaller, and then without having been dense if the file has it so."""
    if kernel().library is None:
        return stored.read()
    if not isinstance(stored, PackedTensor) or stored.form != "packed":
        return _maybe_pack(stored.read())
    try:
        return from_packed((stored.shape[0], stored.shape[1]), DTYPES[stored.dtype], *stored.bits())
    except PrunusError as error:
        raise damaged(stored.file, error) from error


def _maybe_pack(weight_OI: Tensor) -> SparseWeight | Tensor:
    """Packed if that takes fewer bytes."""
    if kernel().library is None:
        return weight_OI
    kept = int(torch.count_nonzero(weight_OI))
    if packed_bytes(tuple(weight_OI.shape), kept, weight_OI.itemsize) >= weight_OI.nbytes:
        return weight_OI
    return pack(weight_OI)


def _linear(weight: SparseWeight | Tensor, bias_O: Tensor | None, dtype: torch.dtype, rules: _Rules) -> nn.Module:
    """The fastest Linear for a weight and x of a dtype."""
    rows = 0
    if kernel().library is not None:
        kept = rules.keep_dense and isinstance(weight, SparseWeight)
        always = ANY_ROWS if isinstance(weight, SparseWeight) and not kept else MOST_ROWS
        rows = always if rules.always else kernel_rows(weight, dtype, kept)
    if rows and isinstance(weight, SparseWeight):
        return SparseLinear(weight, bias_O, rows, weight.unpack().to(dtype) if rules.keep_dense else None)
    weight_OI = weight.unpack() if isinstance(weight, SparseWeight) else weight
    if rows:
        return DenseLinear(nn.Parameter(weight_OI, requires_grad=False), bias_O, rows)
    return stock_linear(weight_OI.to(dtype), bias_O)


def _swap_others(model: nn.Module, rules: _Rules) -> None:
    """Linears that are torch's so far (shared weights, or outside the blocks): read as they are, if that is faster."""
    if kernel().library is None:
        return
    for owner, name, linear in list(_linears(model)):
        if linear.weight.dtype not in KINDS or not linear.weight.is_contiguous():
            continue
        rows = MOST_ROWS if rules.always else kernel_rows(linear.weight.detach(), linear.weight.dtype)
        if rows:
            setattr(owner, name, DenseLinear(linear.get_parameter("weight"), linear.bias, rows))
