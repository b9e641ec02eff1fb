"""Per-feature input statistics (norm, mean, variance, X^T X) of a block's Linears, over all calibration tokens.

Shapes: N sequences, T tokens, S tokens of all sequences, I input features.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from prunus.checkpoint.experts import run_on_all, tokens_read
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.precision import with_even_rows
from prunus.checkpoint.runner import Batch, Runner
from prunus.errors import PrunusError
from prunus.recipes.declarations import Needs

if TYPE_CHECKING:
    from prunus.checkpoint.experts import RoutedExperts

# The Hessian of a Linear's squared output error, which is X^T X of its inputs, and the Cholesky factor of its inverse.
# SparseGPT's code factors H, inverts it and factors the inverse. The same upper U with U^T U = H^-1 is the inverse of
# the upper triangular R with R R^T = H. R comes from one Cholesky factorisation of H with both axes reversed, so U
# takes one factorisation and one triangular inverse: less work, and the inverse of H is never formed.

DAMPING = 0.01  # share of the mean diagonal that is added to the diagonal, as in the authors' code
RETRIES = 3  # how many times damping is multiplied by 10
SMALL = 256  # triangular matrices up to this size are inverted without splitting them


class Hessian:
    """X^T X (I, I) over all calibration tokens, in float32. No result depends on its scale. name: for messages.

    Linears that read the same input share one Hessian and its factor, which is computed when first needed.
    """

    def __init__(self, matrix_II: Tensor, name: str = "a Linear") -> None:
        self.matrix_II, self.name = matrix_II, name
        self.dead_I = matrix_II.diagonal() == 0
        self.warning: str | None = None

    @cached_property
    def inverse_factor(self) -> Tensor:
        """(I, I) float32: upper U with U^T U = (H + DAMPING * mean(diag H))^-1.

        Dead inputs (zero on every token) are treated as independent inputs of average size. If H is still singular,
        damping is multiplied by 10 up to three times, first in float32, then in float64, and `warning` says so. If all
        fail, PrunusError is raised: the identity as a substitute would be magnitude pruning.
        """
        for dtype in (torch.float32, torch.float64):
            for share in (DAMPING * 10**n for n in range(RETRIES + 1)):
                factor_II = inverse_factor(self.damped(share, dtype))
                if factor_II is None:
                    continue
                if share != DAMPING or dtype != torch.float32:
                    precision = " in float64" if dtype == torch.float64 else ""
                    self.warning = (
                        f"{self.name}: the Hessian needed damping {share:g}{precision} instead of {DAMPING:g}"
                    )
                return factor_II.float()
        raise PrunusError(
            f"{self.name}: the Hessian of its {len(self.matrix_II)} inputs stays singular even with damping "
            f"{DAMPING * 10**RETRIES:g}; use more or other calibration text, or --method wanda"
        )

    def damped(self, damping: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """A copy with damping added to the diagonal, and with the mean diagonal for dead inputs."""
        matrix_II = self.matrix_II.to(dtype, copy=True)
        live_L = matrix_II.diagonal()[~self.dead_I]
        mean = live_L.mean().item() if len(live_L) else 1.0
        matrix_II.diagonal().masked_fill_(self.dead_I, mean)
        matrix_II.diagonal().add_(damping * mean)
        return matrix_II


def inverse_factor(matrix_II: Tensor) -> Tensor | None:
    """Upper U with U^T U = matrix^-1, which overwrites the matrix; None if that is not positive definite."""
    # Reversing both axes turns the lower Cholesky factor into the upper R with R R^T = H.
    _reverse(matrix_II)
    # LAPACK stores matrices by columns: its upper factor is the lower one in row order.
    columns_II = matrix_II.mT
    failed = torch.empty((), dtype=torch.int32, device=matrix_II.device)
    torch.linalg.cholesky_ex(columns_II, upper=True, out=(columns_II, failed))
    if int(failed):
        return None
    _invert_lower(matrix_II)
    _reverse(matrix_II)
    return matrix_II if bool(matrix_II.sum().isfinite()) else None


def _invert_lower(lower_II: Tensor) -> None:
    """Invert a lower triangular matrix in place: two thirds of the work of solving for the identity, without a copy."""
    half = len(lower_II) // 2
    if len(lower_II) <= SMALL:
        identity_II = torch.eye(len(lower_II), dtype=lower_II.dtype, device=lower_II.device)
        lower_II.copy_(torch.linalg.solve_triangular(lower_II, identity_II, upper=False))
        return
    first_II, below_II, last_II = lower_II[:half, :half], lower_II[half:, :half], lower_II[half:, half:]
    _invert_lower(first_II)
    _invert_lower(last_II)
    torch.mm(last_II, below_II @ first_II, out=below_II).neg_()


def _reverse(matrix_II: Tensor) -> None:
    """Reverse both axes in place."""
    flat_N = matrix_II.view(-1)
    size, step = len(flat_N), 1 << 20
    for begin in range(0, size // 2, step):
        end = min(begin + step, size // 2)
        front, back = flat_N[begin:end], flat_N[size - end : size - begin]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)


# Rows of X^T X computed at once on a CPU. Leaving out the lower triangle saves a fifth (width 576) to a third (4096) of
# the time of the whole product.
PANEL = 256
# A routed expert to which calibration sends fewer tokens has the statistics of all tokens of its layer.
LEAST_TOKENS = 64
NAMED = 5  # experts that a warning names


@dataclass(frozen=True)
class InputStats:
    """Statistics of a Linear's input. All but norm_I and tokens are None unless the method asks for them.

    norm_I: L2 norm of each feature over all tokens, float32. tokens: their number. mean_I, variance_I: of each feature
    over all tokens. hessian: X^T X, shared by Linears that read the same input. pooled: for a routed expert
    that the router sent too few tokens, the number of these; its statistics are then those of all tokens of its layer.
    """

    norm_I: Tensor
    tokens: int = 0
    mean_I: Tensor | None = None
    variance_I: Tensor | None = None
    hessian: Hessian | None = None
    pooled: int | None = None


class InputsSeen(Exception):
    """Raised when the last input of a batch has been observed, so that the rest of the block need not run."""


@dataclass(eq=False)
class Observer:
    """Takes statistics of the inputs of a block's Linears while a runner runs batches: `with Observer(...) as seen`.

    Linears that read the same tensor (q, k, v; gate, up) are observed once. Sums and sums of squares are taken per
    sequence in float32 and added in float64, so they do not depend on the batches; the Hessian is a plain sum in
    float32. Tokens that do not count add nothing to them. stop_early: raise InputsSeen after the last input of each
    batch (the caller catches it), if the block's output is not needed. Linears of a routed expert are observed on the
    tokens that its router sends to it; everywhere: (module, expert) of those that are observed on all tokens instead.
    """

    runner: Runner
    block: nn.Module
    linears: Sequence[Linear]
    stop_early: bool = False
    needs: Needs = "norms"
    everywhere: Collection[tuple[str, int]] = ()

    def __post_init__(self) -> None:
        self.leaders = list(dict.fromkeys(linear.leader for linear in self.linears))
        self.routed = {linear.leader for linear in self.linears if linear.experts}
        self.on_all = not self.everywhere  # whether what runs is to be observed
        self.squares: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}
        self.tokens = dict.fromkeys(self.leaders, 0)
        self.calls_left = self.calls = self.linears[-1].calls if self.linears else 1
        self.watching = ExitStack()

    def __enter__(self) -> Self:
        hooks = {name: self._hook(name) for name in self.leaders}
        hooks |= {owner: self._all_hook(owner) for owner, _ in self.everywhere}
        for name, hook in hooks.items():
            self.watching.enter_context(self.block.get_submodule(name).register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        self.watching.close()

    def stats(self, block_index: int) -> Mapping[str, InputStats]:
        """InputStats by Linear, without experts that no token was sent to.

        If an input holds NaN or infinity, PrunusError names the block and the Linear.
        """
        met = [leader for leader in self.leaders if leader in self.squares or leader not in self.routed]
        by_leader = {leader: self._stats_of(leader, block_index) for leader in met}
        return {linear.name: by_leader[linear.leader] for linear in self.linears if linear.leader in by_leader}

    def _stats_of(self, leader: str, block_index: int) -> InputStats:
        assert leader in self.squares, f"{leader} was not called"
        norm_I = self.squares[leader].sqrt().float()
        if not bool(norm_I.isfinite().all()):
            raise PrunusError(
                f"block {block_index}, {leader}: its calibration inputs hold NaN or infinity; "
                "try --dtype float32, or other calibration text"
            )
        mean_I = variance_I = None
        if leader in self.sums:
            mean_I = self.sums[leader] / self.tokens[leader]
            variance_I = (self.squares[leader] / self.tokens[leader] - mean_I.square()).clamp_(min=0).float()
            mean_I = mean_I.float()
        product_II = self.products.pop(leader, None)
        if product_II is not None:
            mirror(product_II)
        hessian = None if product_II is None else Hessian(product_II, f"block {block_index}, {leader}")
        return InputStats(norm_I, self.tokens[leader], mean_I, variance_I, hessian)

    def _hook(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: Sequence[Tensor]) -> None:
            batch, token_S = self.runner.batch, tokens_read(self.block, name)
            if token_S is None:
                self._take(name, by_sequence(inputs[0].detach(), batch), batch.counted_NT1)
            elif self.on_all:
                counted_N1 = None if batch.counted_NT1 is None else batch.counted_NT1.flatten(0, 1)
                counted_S1 = None if counted_N1 is None else counted_N1[token_S.to(counted_N1.device)][None]
                self._take(name, inputs[0].detach()[None, : len(token_S)], counted_S1)  # without rows that are padding
            if name == self.leaders[-1] and token_S is None:
                self.calls_left = self.calls_left - 1 or self.calls
                if self.stop_early and self.calls_left == self.calls:
                    raise InputsSeen

        return hook

    def _all_hook(self, owner: str) -> Any:
        """A hook of a module of experts, by which those of `everywhere` run on all tokens before it is called."""

        def hook(experts: "RoutedExperts", inputs: Sequence[Tensor]) -> None:
            self.on_all = True
            run_on_all(experts, [number for of, number in self.everywhere if of == owner], inputs[0])
            self.on_all = False

        return hook

    def _take(self, name: str, given_NTI: Tensor, counted_NT1: Tensor | None) -> None:
        """Add the inputs of a call of a Linear to its statistics."""
        input_NTI = given_NTI.float()
        rows = input_NTI.shape[0] * input_NTI.shape[1]
        if counted_NT1 is not None:
            if counted_NT1.shape[:2] != input_NTI.shape[:2]:
                raise PrunusError(
                    f"{name} does not read one input per token, so padding cannot be told from tokens; leave --recover"
                    " out"
                )
            input_NTI, rows = input_NTI * counted_NT1.to(input_NTI.device), int(counted_NT1.sum())
        self.tokens[name] += rows
        _add(self.squares, name, input_NTI.square().sum(1).double().sum(0))
        if self.needs in ("means", "hessian"):
            _add(self.sums, name, input_NTI.sum(1).double().sum(0))
        if self.needs == "hessian":
            input_SI = input_NTI.flatten(0, 1)
            if name in self.routed:
                input_SI = with_even_rows(input_SI)
            if name not in self.products:
                width = input_SI.shape[1]
                self.products[name] = torch.zeros(width, width, device=input_SI.device)
            add_product(self.products[name], input_SI)


def is_few(tokens: int) -> bool:
    """Whether a routed expert met too few tokens for statistics of its own."""
    return tokens < LEAST_TOKENS


def few_tokens(few: Mapping[str, int], experts: int, then: str) -> list[str]:
    """A warning about routed experts that calibration hardly met, with those never met by name; [] if there are none.

    few: their numbers of tokens by name. experts: the number of all. then: what became of them, in words that end
    before `statistics`, such as `were pruned by their`.
    """
    if not few:
        return []
    never = [name for name, count in few.items() if not count]
    named = f"; never met: {', '.join(never[:NAMED])}" if never else ""
    more = f" and {len(never) - NAMED} more" if len(never) > NAMED else ""
    fewest = min(few, key=lambda name: few[name])
    return [
        f"{len(few)} of {experts} routed experts met fewer than {LEAST_TOKENS} calibration tokens (the fewest: "
        f"{fewest}, {few[fewest]}) and {then} statistics on all tokens of their layer{named}{more}"
    ]


def by_sequence(input: Tensor, batch: Batch) -> Tensor:
    """(N, T, I) view of a Linear's input, which may have any number of axes; T: rows per sequence.

    If the rows cannot be divided among the sequences, all of them are returned as one sequence.
    """
    sequences = len(batch.ids_NT)
    rows = input.numel() // input.shape[-1]
    return input.reshape(sequences if rows % sequences == 0 else 1, -1, input.shape[-1])


def add_product(total_II: Tensor, input_SI: Tensor) -> None:
    """Add X^T X in place to the upper triangle of a matrix, in panels of rows; `mirror` fills the lower triangle.

    The product is in float32, since a product in bfloat16 would not stay positive definite.
    """
    for panel in _panels(total_II):
        total_II[panel, panel.start :].addmm_(input_SI[:, panel].T, input_SI[:, panel.start :])


def mirror(matrix_II: Tensor) -> None:
    """Copy the upper triangle of a matrix to the lower one, in place."""
    for panel in _panels(matrix_II):
        matrix_II[panel.stop :, panel] = matrix_II[panel, panel.stop :].T


def _panels(matrix_II: Tensor) -> Iterator[slice]:
    width = len(matrix_II)
    step = PANEL if matrix_II.device.type == "cpu" else width  # on a GPU one product is faster
    return (slice(begin, min(begin + step, width)) for begin in range(0, width, step))


def _add(totals: dict[str, Tensor], name: str, part: Tensor) -> None:
    totals[name] = totals[name] + part if name in totals else part
