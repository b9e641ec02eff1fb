"""Models on a CPU that compute in float32 while the weights of their Linears stay in 16 bits, as they are stored.

A weight is widened in registers just before it is multiplied, so that products are those of the float32 model up to the
order of sums, and decoding reads half of the bytes.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunus.native.load import kernel
from prunus.progress import Steps
from prunus.sparse.choose import kernel_rows, stock_linear
from prunus.sparse.linear import ANY_ROWS, DenseLinear, found_in

HALVES = torch.bfloat16, torch.float16
LEAST_PARAMETERS = 20_000_000  # in smaller models calls take longer than products
ATTRIBUTE = "prunus_sixteen_bits"
_TRIED_TOKENS, _TOLERANCE = 8, 0.05


@dataclass(frozen=True)
class Kept:
    """How many Linears of a model keep 16 bits, of how many, with which instruction set; nbytes: of their weights."""

    isa: str
    dtype: torch.dtype
    linears: int
    of: int
    nbytes: int

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind} weights ({self.isa}): {self.linears} of {self.of} Linears, {self.nbytes / 1e6:.1f} MB"


class WideningEmbedding(nn.Embedding):
    """An embedding in 16 bits whose output is float32."""

    def forward(self, input: Tensor) -> Tensor:
        """The float32 vectors of ids."""
        return super().forward(input).float()


def kept_of(model: nn.Module) -> Kept | None:
    """What keep_sixteen_bits did to a model; None if nothing."""
    return getattr(model, ATTRIBUTE, None)


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """What a model computes in, which need not be the dtype of its first parameter."""
    return model.dtype if kept_of(model) is None else torch.float32


@torch.no_grad()
def to_float32(model: PreTrainedModel) -> PreTrainedModel:
    """The model computing in float32, changed in place; Linears keep 16-bit weights where that is faster than torch.

    Each shape is timed once for a machine (choose.py). Weights stay in 16 bits only if a few random tokens then have
    the logits of the model as it was, up to 16-bit rounding. They do not in small models, and where there is no kernel.
    """
    chosen = _chosen(model)
    if not chosen:
        return model.float()
    ids = torch.randint(100, (1, _TRIED_TOKENS), generator=torch.Generator().manual_seed(0), device=model.device)
    before = model(input_ids=ids, use_cache=False).logits.float()
    _keep(model, chosen)
    seen: set[torch.dtype] = set()  # of the inputs of kept Linears: some models convert them to the dtype of a weight
    try:
        with ExitStack() as hooks:
            for _, _, linear in found_in(model, DenseLinear):
                hooks.enter_context(linear.register_forward_pre_hook(lambda _, given: seen.add(given[0].dtype)))
            after = model(input_ids=ids, use_cache=False).logits
        apart = (after - before).abs().amax(-1) / before.abs().amax(-1)
        fits = {after.dtype, *seen} == {torch.float32} and float(apart.median()) <= _TOLERANCE
    except Exception:  # the model's own code needs all weights in one dtype
        fits = False
    if fits:
        return model
    for owner, name, linear in list(found_in(model, DenseLinear)):
        bias_O = None if linear.bias is None else linear.bias.data
        setattr(owner, name, stock_linear(linear.weight.data.float(), bias_O))
    for module in model.modules():
        if type(module) is WideningEmbedding:
            module.__class__ = nn.Embedding  # pyright: ignore[reportAttributeAccessIssue]
    delattr(model, ATTRIBUTE)
    model.tie_weights()
    return model.float()


def _chosen(model: PreTrainedModel) -> dict[int, int]:
    """The id of each weight that stays in 16 bits, and the number of rows of x up to which the kernel is used."""
    if model.device.type != "cpu" or model.num_parameters() < LEAST_PARAMETERS or kernel().library is None:
        return {}
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
    weights = {
        id(linear.weight): linear.weight.detach()
        for _, _, linear in found_in(model, nn.Linear)
        if linear.weight.dtype in HALVES
        and linear.weight.is_contiguous()
        and all(type(user) in (nn.Linear, nn.Embedding) for user in users[id(linear.weight)])
    }
    shapes = {(weight.shape, weight.dtype): weight for weight in weights.values()}
    rows = {}
    with Steps("timing products", len(shapes), "shapes") as steps:  # slow only if one was never timed on this machine
        for shape, weight in shapes.items():
            rows[shape] = kernel_rows(weight, torch.float32)
            steps.advance()
    chosen = {key: rows[weight.shape, weight.dtype] for key, weight in weights.items()}
    chosen = {key: most for key, most in chosen.items() if most}
    if chosen:
        for _, _, embedding in found_in(model, nn.Embedding):
            alone = all(type(user) is nn.Embedding for user in users[id(embedding.weight)])
            if embedding.weight.dtype in HALVES and alone:
                chosen[id(embedding.weight)] = ANY_ROWS
    return chosen


def _keep(model: PreTrainedModel, chosen: dict[int, int]) -> None:
    """Swap the Linears of the chosen weights, and make everything else float32."""
    wide: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in chosen or not parameter.is_floating_point():
                continue
            # A parameter of two modules stays one parameter.
            made = wide.setdefault(id(parameter), nn.Parameter(parameter.data.float(), requires_grad=False))
            setattr(module, name, made)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                module._buffers[name] = buffer.float()
    linears = nbytes = count = 0
    dtype = torch.bfloat16
    for owner, name, linear in list(found_in(model, nn.Linear)):
        count += 1
        if rows := chosen.get(id(linear.weight)):
            linears, nbytes, dtype = linears + 1, nbytes + linear.weight.nbytes, linear.weight.dtype
            setattr(owner, name, DenseLinear(linear.get_parameter("weight"), linear.bias, rows))
    for module in model.modules():
        if type(module) is nn.Embedding and id(module.weight) in chosen:
            module.__class__ = WideningEmbedding
    setattr(model, ATTRIBUTE, Kept(kernel().name, dtype, linears, count, nbytes))
