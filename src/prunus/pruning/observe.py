"""What calibration sees: the size of every input of a block's Linears, over all tokens.

Shapes: N sequences, T tokens, I input features.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.checkpoint.families import LINEARS, SAME_INPUT_AS
from prunus.errors import PrunusError


@dataclass(frozen=True)
class InputStats:
    """What is known of a Linear's input. norm_I: L2 norm of each feature over all tokens, float32; tokens: how many."""

    norm_I: Tensor
    tokens: int = 0


class Observed(Exception):
    """Everything asked for has been seen: the rest of the block need not run."""


class Observer:
    """Watches inputs of a block's Linears while batches run through it: `with Observer(block, names) as seen`.

    Linears that read the same tensor (q, k, v; gate, up) are watched once. Sums of squares are taken per sequence in
    float32 and added in float64, so they do not depend on how sequences are batched. stop_early: raise Observed as soon
    as the last input of a batch is seen (the caller catches it per batch), where the block's output is not needed.
    """

    def __init__(self, block: nn.Module, linears: Iterable[str], stop_early: bool = False) -> None:
        leaders = {SAME_INPUT_AS.get(name, name) for name in linears}
        self.block, self.leaders = block, [name for name in LINEARS if name in leaders]
        self.stop_early = stop_early
        self.squares: dict[str, Tensor] = {}
        self.tokens = dict.fromkeys(self.leaders, 0)
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for name in self.leaders:
            module = self.block.get_submodule(name)
            self.handles.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()

    def stats(self, block_index: int, tokens: int) -> Mapping[str, InputStats]:
        """InputStats of every Linear of the block whose input was watched.

        tokens: how many must have been seen. A NaN or infinity raises PrunusError naming block and Linear.
        """
        found = {}
        for name in LINEARS:
            leader = SAME_INPUT_AS.get(name, name)
            if leader not in self.squares:
                continue
            assert self.tokens[leader] == tokens, f"{leader}: {self.tokens[leader]} of {tokens} tokens seen"
            norm_I = self.squares[leader].sqrt().float()
            if not bool(norm_I.isfinite().all()):
                raise PrunusError(
                    f"block {block_index}, {leader}: its calibration inputs hold NaN or infinity; "
                    "try --dtype float32, or other calibration text"
                )
            found[name] = InputStats(norm_I, tokens)
        return found

    def _hook(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: Sequence[Tensor]) -> None:
            input_NTI = inputs[0].detach()
            total_I = input_NTI.float().square().sum(1).double().sum(0)
            self.squares[name] = self.squares[name] + total_I if name in self.squares else total_I
            self.tokens[name] += input_NTI.shape[0] * input_NTI.shape[1]
            if self.stop_early and name == self.leaders[-1]:
                raise Observed

        return hook
