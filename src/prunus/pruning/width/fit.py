"""Choice of the channels of a feed-forward network to remove, the fit of what is left, and the statistics for both.

A channel is an input of the network's last Linear, down. What its removal costs is measured by H, the sum over
tokens of x x^T of that input, and W, the Linear's weight. Shapes: I channels, K kept ones, G that go, B of a
batch; O outputs; N sequences, T tokens, S tokens of a call, W numbers per token between two blocks.
"""

import random
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunus.checkpoint.experts import tokens_read
from prunus.checkpoint.runner import Batch, Runner
from prunus.errors import PrunusError
from prunus.pruning.calibration.statistics import add_product, mirror

# Channels up to which matrices are float64; wider ones take float32: half of the memory and time. The damped H has a
# condition number of at most 100 I. On a made-up H of 4,864 channels, tried once, both choose the same.
WIDEST = 8_192
# Share of the mean diagonal of H that is added to its diagonal: to choose channels, and to fit if nothing is held out.
DAMPING = 0.01
# A fit takes the damping with the least error on held-out tokens, which are those of every 8th sequence, or of fewer.
DAMPINGS, HELD_OUT = (0.01, 0.1, 1.0, 10.0), 8
RETRIES = 3  # how many times damping is multiplied by 10 where H stays singular
# Updates are exact after every 256th part of the channels. After larger parts choices are worse: half of tiny's 256
# channels removed 64 at a time leave a divergence of 0.0123 nats per token from the dense model, one at a time 0.0030.
BATCHES = 256
AT_ONCE = 512  # tokens that are converted to float64 at once
GAIN_TOLERANCE = 1e-3  # share of a change of down's output up to which the block's change counts as the same


class Held(NamedTuple):
    """Tokens that a fit may leave out to see what its damping should be.

    input_SI: inputs. error_SO: what the output lacks, 0 where it lacks nothing.
    """

    input_SI: Tensor
    error_SO: Tensor


class Inputs(NamedTuple):
    """Statistics of the inputs of a down Linear over calibration tokens.

    hessian_II: H. sum_I: sum of the inputs. number: of tokens; if saved, up to rounding. tokens: their exact number.
    error_OI: sum of e x^T and error_O: sum of e, where e is what a token's output lacks from its target; None where
    the target is the Linear's own output. energy: sum of |e|^2. held: some of the tokens; None where none are known.
    """

    hessian_II: Tensor
    sum_I: Tensor
    number: float
    tokens: int
    error_OI: Tensor | None = None
    error_O: Tensor | None = None
    energy: float = 0.0
    held: Held | None = None

    def centred(self) -> "Inputs":
        """Statistics around the means, for a fit whose intercept makes up for the means."""
        count = max(self.number, 1e-300)
        mean_I = self.sum_I / count
        hessian_II = self.hessian_II - torch.outer(self.sum_I, mean_I)
        mean_O = self.error_O / count if self.error_O is not None else torch.zeros(1).to(mean_I)
        held = self.held and Held(self.held.input_SI - mean_I, self.held.error_SO - mean_O)
        if self.error_OI is None or self.error_O is None:
            return self._replace(hessian_II=hessian_II, held=held)
        error_OI = self.error_OI - torch.outer(self.error_O, mean_I)
        energy = self.energy - float(self.error_O.square().sum()) / count
        return self._replace(hessian_II=hessian_II, error_OI=error_OI, energy=energy, held=held)


def precision(channels: int) -> torch.dtype:
    """The dtype in which matrices with this number of channels are computed."""
    return torch.float64 if channels <= WIDEST else torch.float32


def damped(hessian_II: Tensor, damping: float) -> Tensor:
    """A copy of H with a share of its mean diagonal added to the diagonal; the identity where H is all 0.

    A channel that is 0 on every token thus costs least of all.
    """
    mean = float(hessian_II.diagonal().mean())
    if not mean:
        return torch.eye(len(hessian_II), dtype=hessian_II.dtype, device=hessian_II.device)
    hessian_II = hessian_II.clone()
    hessian_II.diagonal().add_(damping * mean)
    return hessian_II


def factor(hessian_II: Tensor, damping: float = DAMPING) -> Tensor:
    """The lower Cholesky factor of the damped H, with up to 1000 times the damping where H is singular."""
    for attempt in range(RETRIES + 1):
        lower_II, failed = torch.linalg.cholesky_ex(damped(hessian_II, damping * 10**attempt))
        if not int(failed):
            return lower_II
    raise stays_singular(len(hessian_II), damping * 10**RETRIES)


def stays_singular(channels: int, damping: float) -> PrunusError:
    """The error where a Hessian cannot be inverted."""
    return PrunusError(
        f"the Hessian of {channels} channels stays singular even with damping {damping:g}; use"
        " more or other calibration text, or --method wanda --no-fit"
    )


def by_obs(inputs: Inputs, weight_OI: Tensor, count: int, batch: int | None = None) -> Tensor:
    """The first `count` channels to remove, in order; each is the cheapest to remove if all others are updated.

    This is Optimal Brain Surgeon (Hassibi & Stork 1992) for columns, as in ZipLM (Kurtic et al. 2023,
    arXiv:2302.04089). It begins with the weights of all channels that come nearest to the target; removing channel j
    raises the squared error by |w_j|^2 / (H^-1)_jj, if the weights of all other channels are updated. The order of a
    smaller count is the beginning of the order of a larger count. Between two updates the `batch` channels with the
    least cost are removed; None: one in BATCHES.
    """
    batch = batch or max(1, len(inputs.hessian_II) // BATCHES)
    lower_II = factor(inputs.hessian_II)
    weight_OI = weight_OI.to(lower_II.dtype, copy=True)
    if inputs.error_OI is not None:
        weight_OI += torch.cholesky_solve(inputs.error_OI.mT, lower_II).mT
    inverse_II = torch.cholesky_inverse(lower_II)
    del lower_II
    alive_I = torch.ones(len(inverse_II), dtype=torch.bool, device=inverse_II.device)
    order: list[Tensor] = []
    failed = torch.zeros((), dtype=torch.int32, device=inverse_II.device)
    for done in range(0, count, batch):
        cost_I = weight_OI.square().sum(0) / inverse_II.diagonal().clamp(min=torch.finfo(inverse_II.dtype).tiny)
        cost_I.masked_fill_(~alive_I, torch.inf)
        order.append(cost_I.argsort(stable=True)[: min(batch, count - done)])
        alive_I[order[-1]] = False
        if done + batch < count:
            failed |= _remove(inverse_II, weight_OI, order[-1])
    if bool(failed):
        raise stays_singular(len(inverse_II), DAMPING)
    return torch.cat(order) if order else torch.zeros(0, dtype=torch.long)


def _remove(inverse_II: Tensor, weight_OI: Tensor, gone_B: Tensor) -> Tensor:
    """Update the inverse of H and the weights for the removal of some channels, in place.

    Returns a number that is not 0 if their part of the inverse is singular, which a GPU need not wait for.
    """
    rows_BI, failed = torch.linalg.solve_ex(inverse_II[gone_B][:, gone_B], inverse_II[gone_B])
    weight_OI.addmm_(weight_OI[:, gone_B], rows_BI, alpha=-1)
    inverse_II.addmm_(inverse_II[:, gone_B], rows_BI, alpha=-1)
    inverse_II[gone_B, gone_B] = 1.0  # of channels that are gone, which would be 0
    return failed


def by_contribution(hessian_II: Tensor, weight_OI: Tensor) -> Tensor:
    """(I,) norm over all tokens of what a channel adds to the output: Wanda for structures (An et al. 2024)."""
    return hessian_II.diagonal().sqrt() * weight_OI.norm(dim=0)


def by_fluctuation(inputs: Inputs, weight_OI: Tensor) -> Tensor:
    """(I,) variance of a channel times the square of its weights: FLAP (An et al. 2024, arXiv:2312.11983)."""
    count = max(inputs.number, 1e-300)
    variance_I = inputs.hessian_II.diagonal() / count - (inputs.sum_I / count).square()
    return variance_I.clamp(min=0) * weight_OI.square().sum(0)


def lowest(score_I: Tensor, count: int) -> Tensor:
    """The `count` channels with the lowest scores, the lowest first, and of equal ones the first."""
    return score_I.argsort(stable=True)[:count]


def by_chance(channels: int, count: int, seed: str) -> Tensor:
    """`count` channels at random. seed: any text; orders of the same seed are nested."""
    return torch.tensor(random.Random(seed).sample(range(channels), channels)[:count], dtype=torch.long)


def kept_of(channels: int, removed: Sequence[int] | Tensor) -> list[int]:
    """The channels that stay, ascending."""
    gone = set(torch.as_tensor(removed).tolist())
    return [channel for channel in range(channels) if channel not in gone]


class Fitted(NamedTuple):
    """A down Linear of fewer channels. bias_O: None where it has none. damping: of the fit; None without a fit."""

    weight_OK: Tensor
    bias_O: Tensor | None
    damping: float | None = None


def fit(
    inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, kept: Sequence[int], damping: float | None = None
) -> Fitted:
    """The down Linear of the kept channels whose output is nearest to its target, damped towards its old weights.

    It minimises the sum over tokens of |W' x_K + b' - target|^2 + damping * |W' - W_K|^2, where the target is
    W x + b + e, and e what the output lacks (see Inputs). The intercept, where there is any, is not damped. damping: a
    share of the mean diagonal of H; None: the one of DAMPINGS with which a fit to the tokens that are not held out errs
    least on those that are.
    """
    seen = inputs if bias_O is None else inputs.centred()
    kept_K = torch.tensor(kept, device=weight_OI.device)
    gone_G = torch.ones(weight_OI.shape[1], device=weight_OI.device).index_fill(0, kept_K, 0).nonzero()[:, 0]
    # What the output would lack with the old weights, times the kept inputs.
    lacks_OK = weight_OI[:, gone_G] @ seen.hessian_II[gone_G[:, None], kept_K]
    if seen.error_OI is not None:
        lacks_OK += seen.error_OI[:, kept_K]
    if damping is None:
        damping = damping_for(seen, weight_OI[:, gone_G], gone_G, kept_K, lacks_OK)
    weight_OK = weight_OI[:, kept_K] + solved(seen.hessian_II[kept_K[:, None], kept_K], lacks_OK, damping)
    return Fitted(weight_OK, intercept(inputs, weight_OI, bias_O, weight_OK, kept_K), damping)


def solved(hessian_KK: Tensor, lacks_OK: Tensor, damping: float) -> Tensor:
    """(O, K) damped change of the weights that makes up for what the output lacks. lacks_OK: as in fit."""
    return torch.cholesky_solve(lacks_OK.mT, factor(hessian_KK, damping)).mT


def damping_for(seen: Inputs, weight_OG: Tensor, gone_G: Tensor, kept_K: Tensor, lacks_OK: Tensor) -> float:
    """Damping of DAMPINGS with the least error on held-out tokens; DAMPING where there are none.

    weight_OG: the weights of the channels that go. lacks_OK: as in fit, of all tokens.
    """
    if seen.held is None or not len(seen.held.input_SI):
        return DAMPING
    input_SI, error_SO = (table.to(lacks_OK.dtype) for table in seen.held)
    lacks_SO = torch.addmm(error_SO, input_SI[:, gone_G], weight_OG.mT)
    input_SK = input_SI[:, kept_K]
    del input_SI
    hessian_KK = seen.hessian_II[kept_K[:, None], kept_K].addmm_(input_SK.mT, input_SK, alpha=-1)
    lacks_OK = torch.addmm(lacks_OK, lacks_SO.mT, input_SK, alpha=-1)

    def error(damping: float) -> float:
        return float((lacks_SO - input_SK @ solved(hessian_KK, lacks_OK, damping).mT).square().sum())

    return min(DAMPINGS, key=error)


def cut(weight_OI: Tensor, bias_O: Tensor | None, kept: Sequence[int]) -> Fitted:
    """The down Linear with the old weights of the kept channels, without a fit."""
    return Fitted(weight_OI[:, torch.tensor(kept, device=weight_OI.device)], bias_O)


def intercept(
    inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, weight_OK: Tensor, kept_K: Tensor
) -> Tensor | None:
    """The bias with which the mean output is that of the target; None where the Linear has none."""
    if bias_O is None or not inputs.number:
        return bias_O
    mean_I = inputs.sum_I / inputs.number
    bias_O = bias_O + weight_OI @ mean_I - weight_OK @ mean_I[kept_K]
    return bias_O if inputs.error_O is None else bias_O + inputs.error_O / inputs.number


def relative_error(
    inputs: Inputs, weight_OI: Tensor, bias_O: Tensor | None, fitted: Fitted, kept: Sequence[int]
) -> float:
    """Sum over tokens of |output - target|^2, as a share of the sum of |output|^2 of the Linear before.

    Outputs are taken without the bias; if the Linear has a bias, outputs and targets are taken without their means.
    """
    seen = inputs if bias_O is None else inputs.centred()
    change_OI = -weight_OI
    change_OI[:, torch.tensor(kept, device=weight_OI.device)] += fitted.weight_OK
    change_OI = change_OI.contiguous()
    squared = (change_OI @ seen.hessian_II * change_OI).sum()
    if seen.error_OI is not None:
        squared = squared - 2 * (change_OI * seen.error_OI).sum() + seen.energy
    before = (weight_OI @ seen.hessian_II * weight_OI).sum()
    return float(squared / before) if before else 0.0


class Sums:
    """Sums over tokens of the inputs of a down Linear, added up call by call.

    aims: whether what its output lacks is observed, too.
    """

    def __init__(self, linear: nn.Linear, aims: bool) -> None:
        channels, outputs = linear.in_features, linear.out_features
        dtype, device = precision(channels), linear.weight.device
        self.hessian_II = torch.zeros(channels, channels, dtype=dtype, device=device)
        self.sum_I = torch.zeros(channels, dtype=torch.float64, device=device)
        self.error_OI = torch.zeros(outputs if aims else 0, channels, dtype=dtype, device=device)
        self.error_O = torch.zeros(outputs, dtype=torch.float64, device=device)
        self.tokens = torch.zeros((), dtype=torch.long, device=device)
        self.energy = torch.zeros((), dtype=torch.float64, device=device)
        self.held: list[Held] = []

    def add(self, input_SI: Tensor, counted_S: Tensor, error_SO: Tensor | None, held_S: Tensor) -> None:
        """Add the inputs of some tokens, and what the output lacks for them.

        counted_S: whether each token counts. held_S: whether it is held out.
        """
        held_S = held_S & counted_S
        errors_SO = input_SI.new_zeros(1, 1).expand(len(input_SI), 1) if error_SO is None else error_SO
        self.held.append(Held(input_SI[held_S], errors_SO[held_S]))
        errors = [None] * len(input_SI) if error_SO is None else error_SO.split(AT_ONCE)
        self.tokens += counted_S.sum()
        for x_SI, one_S, e_SO in zip(input_SI.split(AT_ONCE), counted_S.split(AT_ONCE), errors, strict=False):
            x_SI, one_S = x_SI.to(self.hessian_II.dtype), one_S.to(self.hessian_II.dtype)
            add_product(self.hessian_II, x_SI * one_S[:, None])
            self.sum_I += (one_S @ x_SI).double()
            if e_SO is not None:
                e_SO = e_SO.to(x_SI.dtype) * one_S[:, None]
                self.error_OI.addmm_(e_SO.mT, x_SI)
                self.error_O += e_SO.sum(0).double()
                self.energy += e_SO.square().sum()

    def inputs(self, name: str, aims: bool) -> Inputs:
        """The sums as Inputs; PrunusError names the Linear if they hold NaN or infinity. aims: as for the class."""
        mirror(self.hessian_II)
        if not bool(self.hessian_II.diagonal().isfinite().all() and self.error_O.isfinite().all()):
            raise PrunusError(f"{name}: its calibration inputs hold NaN or infinity; use other calibration text")
        sum_I = self.sum_I.to(self.hessian_II.dtype)
        held = Held(*map(torch.cat, zip(*self.held, strict=True))) if self.held else None
        tokens = int(self.tokens)
        result = Inputs(self.hessian_II, sum_I, tokens, tokens, held=held)
        if not aims:
            return result
        return result._replace(error_OI=self.error_OI, error_O=self.error_O.to(sum_I.dtype), energy=float(self.energy))


def most_held(channels: int) -> int:
    """About the most tokens that are held out: their inputs take a quarter of the memory of a wide H, or less."""
    return max(2_048, channels // 4)


def held_out(batches: Sequence[Batch], channels: int) -> list[Tensor]:
    """(N, T) of each batch: whether its tokens are held out, with all of their sequence; none of a single sequence."""
    tokens, sequences = sum(batch.ids_NT.numel() for batch in batches), sum(len(batch.ids_NT) for batch in batches)
    every = max(min(HELD_OUT, sequences), -(-tokens // most_held(channels)))
    masks, first = list[Tensor](), 0
    for batch in batches:
        number_N = torch.arange(first, first + len(batch.ids_NT))
        is_held_N = (number_N % every == every // 2) & (sequences > 1)
        masks.append(is_held_N[:, None].expand(batch.ids_NT.shape))
        first += len(number_N)
    return masks


def observe(
    runner: Runner,
    block: nn.Module,
    downs: Sequence[str],
    batches: Iterable[tuple[Batch, Tensor, Tensor, Tensor]],
    gain: float | None,
    name: str,
) -> dict[str, Inputs]:
    """Statistics of the inputs of each down Linear while the block runs on all batches; experts read their own tokens.

    batches: each with what the block reads, what it should give, and whether tokens are held out. gain: gain_of the
    only down, to observe what its output lacks; None: targets are the Linears' own outputs. name: of the block, for
    messages.
    """
    linears: dict[str, Any] = {down: block.get_submodule(down) for down in downs}
    sums = {down: Sums(linear, gain is not None) for down, linear in linears.items()}
    seen: list[tuple[str, Tensor, Tensor]] = []
    held_NT = torch.zeros(0, dtype=torch.bool)

    def watch(down: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            input_SI, token_S = args[0].flatten(0, -2), tokens_read(block, down)
            assert runner.batch.counted_NT1 is not None
            counted_S = runner.batch.counted_NT1.flatten().to(input_SI.device)
            counted_S = counted_S if token_S is None else counted_S[token_S]
            if len(counted_S) != len(input_SI):
                raise PrunusError(f"{name}, {down}: it does not read one input per token, so its channels stay")
            if gain is None:
                held_S = held_NT.flatten().to(input_SI.device)
                sums[down].add(input_SI, counted_S, None, held_S if token_S is None else held_S[token_S])
            else:
                seen.append((down, input_SI, counted_S))

        return hook

    with ExitStack() as hooks:
        for down, linear in linears.items():
            hooks.enter_context(linear.register_forward_pre_hook(watch(down)))
        for batch, rows_NTW, wanted_NTW, held_NT in batches:
            given_NTW = rows_NTW.to(runner.device, non_blocking=True)
            output_NTW = runner.run_block(block, given_NTW, batch)
            for down, input_SI, counted_S in seen:
                assert gain is not None
                error_NTW = (wanted_NTW.to(runner.device, non_blocking=True) - output_NTW) / gain
                sums[down].add(input_SI, counted_S, error_NTW.flatten(0, 1), held_NT.flatten().to(counted_S.device))
            seen.clear()
    return {down: of.inputs(f"{name}, {down}", gain is not None) for down, of in sums.items()}


def gain_of(runner: Runner, block: nn.Module, down: str, rows_NTW: Tensor, batch: Batch) -> float | None:
    """Factor on the output of a down Linear before it is added to the block's output, found by trial.

    None where the output is not added as it is to every token alike, such as where a norm or a gate follows.
    """
    linear: Any = block.get_submodule(down)
    if linear.out_features != runner.width:
        return None
    given_NTW = rows_NTW.to(runner.device, non_blocking=True)
    before_NTW = runner.run_block(block, given_NTW, batch.copy()).double()
    generator = torch.Generator().manual_seed(0)
    more_W = torch.randn(runner.width, generator=generator).to(before_NTW.device, torch.float64)
    more_W *= before_NTW.square().mean().sqrt()
    with linear.register_forward_hook(lambda _module, _args, output: output + more_W.to(output.dtype)):
        change_NTW = runner.run_block(block, given_NTW, batch.copy()).double() - before_NTW
    gain = float((change_NTW * more_W).sum() / (more_W.square().sum() * change_NTW[..., 0].numel()).clamp(min=1e-300))
    off = (change_NTW - gain * more_W).abs().max()
    return gain if gain and bool(off <= GAIN_TOLERANCE * abs(gain) * more_W.abs().max()) else None
