"""Observe the inputs of the down Linears of one block, and what the block's output lacks from another one.

Shapes: N sequences, T tokens, S tokens of one call, I channels, O outputs, W numbers per token between two blocks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.checkpoint.experts import tokens_read
from prunus.checkpoint.runner import Batch, Runner
from prunus.errors import PrunusError
from prunus.pruning.calibration.statistics import add_product, mirror
from prunus.pruning.width.algebra import Inputs, precision

AT_ONCE = 512  # tokens that are converted to float64 at once
GAIN_TOLERANCE = 1e-3  # share of a change of down's output up to which the block's change counts as the same


class Sums:
    """Sums over tokens of the inputs of one down Linear, added up call by call.

    aims: whether what its output lacks is observed, too.
    """

    def __init__(self, linear: nn.Linear, aims: bool) -> None:
        channels, outputs = linear.in_features, linear.out_features
        dtype, device = precision(channels), linear.weight.device
        self.hessian_II = torch.zeros(channels, channels, dtype=dtype, device=device)
        self.sum_I = torch.zeros(channels, dtype=torch.float64, device=device)
        self.error_OI = torch.zeros(outputs if aims else 0, channels, dtype=dtype, device=device)
        self.error_O = torch.zeros(outputs, dtype=torch.float64, device=device)
        self.weight, self.tokens, self.energy = 0.0, 0, 0.0

    def add(self, input_SI: Tensor, weight_S: Tensor, error_SO: Tensor | None) -> None:
        """Add the inputs of some tokens, and what the output lacks for them. weight_S: how much each token counts."""
        errors = [None] * len(input_SI) if error_SO is None else error_SO.split(AT_ONCE)
        for x_SI, w_S, e_SO in zip(input_SI.split(AT_ONCE), weight_S.split(AT_ONCE), errors, strict=False):
            x_SI, w_S = x_SI.to(self.hessian_II.dtype), w_S.to(self.hessian_II.dtype)
            root_SI = x_SI * w_S.sqrt()[:, None]
            add_product(self.hessian_II, root_SI)
            self.sum_I += (w_S @ x_SI).double()
            self.weight += float(w_S.sum())
            self.tokens += int((w_S > 0).sum())
            if e_SO is not None:
                e_SO = e_SO.to(x_SI.dtype) * w_S[:, None]
                self.error_OI.addmm_(e_SO.mT, x_SI)
                self.error_O += e_SO.sum(0).double()
                self.energy += float((e_SO.square() / w_S.clamp(min=1e-30)[:, None]).sum())

    def inputs(self, name: str, aims: bool) -> Inputs:
        """The sums. aims: whether the output lacks anything. PrunusError names the Linear if there is a NaN."""
        mirror(self.hessian_II)
        if not bool(self.hessian_II.diagonal().isfinite().all() and self.error_O.isfinite().all()):
            raise PrunusError(f"{name}: its calibration inputs hold NaN or infinity; use other calibration text")
        sum_I = self.sum_I.to(self.hessian_II.dtype)
        if not aims:
            return Inputs(self.hessian_II, sum_I, self.weight, self.tokens)
        error_O = self.error_O.to(sum_I.dtype)
        return Inputs(self.hessian_II, sum_I, self.weight, self.tokens, self.error_OI, error_O, self.energy)


def observe(
    runner: Runner,
    block: nn.Module,
    downs: Sequence[str],
    batches: Iterable[tuple[Batch, Tensor, Tensor]],
    gain: float | None,
    name: str,
) -> dict[str, Inputs]:
    """What each of these down Linears reads while the block runs on all batches; routed experts on their own tokens.

    batches: each with what the block reads and what it should give. gain: of the only one of downs, to observe what its
    output lacks; None: targets are the outputs. name: of the block, for messages.
    """
    linears: dict[str, Any] = {down: block.get_submodule(down) for down in downs}
    sums = {down: Sums(linear, gain is not None) for down, linear in linears.items()}
    seen: list[tuple[str, Tensor, Tensor]] = []

    def watch(down: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            input_SI, token_S = args[0].flatten(0, -2), tokens_read(block, down)
            assert runner.batch.weight_NT1 is not None
            weight_S = runner.batch.weight_NT1.flatten().to(input_SI.device)
            weight_S = weight_S if token_S is None else weight_S[token_S]
            if len(weight_S) != len(input_SI):
                raise PrunusError(f"{name}, {down}: it does not read one input per token, so its channels stay")
            if gain is None:
                sums[down].add(input_SI, weight_S, None)
            else:
                seen.append((down, input_SI, weight_S))

        return hook

    handles = [linear.register_forward_pre_hook(watch(down)) for down, linear in linears.items()]
    try:
        for batch, rows_NTW, wanted_NTW in batches:
            given_NTW = rows_NTW.to(runner.device)
            output_NTW = runner.run_block(block, given_NTW, batch)
            for down, input_SI, weight_S in seen:
                assert gain is not None
                error_NTW = (wanted_NTW.to(runner.device) - output_NTW) / gain
                sums[down].add(input_SI, weight_S, error_NTW.flatten(0, 1))
            seen.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {down: of.inputs(f"{name}, {down}", gain is not None) for down, of in sums.items()}


def gain_of(runner: Runner, block: nn.Module, down: str, rows_NTW: Tensor, batch: Batch) -> float | None:
    """By what the output of a down Linear is multiplied before it is added to the block's output, by trial.

    None where the output is not added as it is to every token alike, such as where a norm or a gate follows.
    """
    linear: Any = block.get_submodule(down)
    if linear.out_features != runner.width:
        return None
    given_NTW = rows_NTW.to(runner.device)
    before_NTW = runner.run_block(block, given_NTW, batch.copy()).double()
    generator = torch.Generator().manual_seed(0)
    more_W = torch.randn(runner.width, generator=generator).to(before_NTW.device, torch.float64)
    more_W *= before_NTW.square().mean().sqrt()
    handle = linear.register_forward_hook(lambda _module, _args, output: output + more_W.to(output.dtype))
    try:
        change_NTW = runner.run_block(block, given_NTW, batch.copy()).double() - before_NTW
    finally:
        handle.remove()
    gain = float((change_NTW * more_W).sum() / (more_W.square().sum() * change_NTW[..., 0].numel()).clamp(min=1e-300))
    off = (change_NTW - gain * more_W).abs().max()
    return gain if gain and bool(off <= GAIN_TOLERANCE * abs(gain) * more_W.abs().max()) else None
