"""Fit what pruning kept of a block, so that its output comes nearer to a given one; zeros stay zero.

Block-wise reconstruction as in arXiv:2510.14444 (Wagner, Roux, Zimmer, Pokutta), with a loss relative to each token,
so that the few tokens with massive activations do not rule it, and a learning rate relative to each tensor, so that
one number does for Linears and norms of any model. Shapes: N sequences, T tokens, W numbers per token between two
blocks.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial as with_arguments
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

from prunus.checkpoint.architecture import with_forwards
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.compressed_tensors import product
from prunus.checkpoint.device import read_at_once
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.writer import Partial
from prunus.disk import disk_errors
from prunus.errors import PrunusError
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import HiddenStates, check_free, free_on, largest_block
from prunus.pruning.job import StepJob

# How the steps of recovery are computed within the memory and on the processor that there are.
# All choices give the same result up to rounding. They are made once, when the work begins, and kept with it, so that
# interrupted work goes on as it began. Shapes: N sequences, T tokens.

# Bytes that training takes of each weight of a block: itself, its gradient, the two moments of Adam, the best state so
# far and the one at the start (as stored, 2 each), and whether it is a zero.
TRAINING_BYTES = 4 + 4 + 8 + 2 + 2 + 1
# Bytes of a token that a step takes for each number that a Linear of the block gives out, and as many for each number
# of the hidden states: the number, what is made of it, and its gradient, in float32.
ACTIVATION_BYTES = 12
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")


class StepPlan(NamedTuple):
    """How a step is computed. micro_batch: most tokens, with padding, that run at once, unless a sequence has more.

    checkpointed: whether activations inside attention and MLP are recomputed in the backward pass, instead of kept.
    bfloat16: whether products are made in bfloat16; weights, gradients and moments are float32 in any case.
    """

    micro_batch: int
    checkpointed: bool = False
    bfloat16: bool = False

    def products(self, device: torch.device) -> AbstractContextManager[object]:
        """The context in which outputs and losses are computed."""
        return torch.autocast(device.type, torch.bfloat16) if self.bfloat16 else nullcontext()


def plan_steps(source: Checkpoint, device: torch.device, step_tokens: int, longest: int) -> StepPlan:
    """How to compute steps of step_tokens tokens, or of a sequence of `longest` tokens if that is more.

    A batch that does not fit into free memory is divided by sequences. Where a sequence does not fit by itself,
    activations are computed again, which takes a third more time. Raises PrunusError where that does not fit either.
    """
    block, free = TRAINING_BYTES * largest_block(source), free_on(device)
    each, least = map(max, zip(*(activation_bytes(source, index) for index in range(source.blocks)), strict=True))
    check_free(
        f"training a block of {source.folder} on a sequence of {longest} tokens",
        block + longest * least,
        device,
        "or calibrate on shorter sequences (of a text: --seqlen; of chains: `prunus traces --chain-tokens`)",
    )
    room = (free - block) // each
    # Not on CPUs: those with instructions for it take half of the time, but each number of threads gives other bits.
    bfloat16 = device.type == "cuda" and torch.cuda.is_available()
    return StepPlan(max(1, min(max(step_tokens, longest), room)), longest > room, bfloat16)


def activation_bytes(source: Checkpoint, index: int) -> tuple[int, int]:
    """(bytes per token that a step through a block takes at most, bytes per token if activations are recomputed).

    If they are recomputed, those of only one part of the block, attention or MLP, exist at a time.
    """
    parts: dict[str, int] = defaultdict(int)
    for name, rows in outputs_of(source, index).items():
        parts[name.partition(".")[0]] += rows
    every, largest = (source.architecture.width + of(parts.values()) for of in (sum, max))
    return ACTIVATION_BYTES * every, ACTIVATION_BYTES * largest


def outputs_of(source: Checkpoint, index: int) -> dict[str, int]:
    """Outputs per token of a block's Linears, by name; of routed experts those that a token is sent to."""
    outputs: dict[str, int] = {}
    config = source.config.get_text_config(decoder=True)
    chosen = next((n for key in EXPERTS_PER_TOKEN if isinstance(n := getattr(config, key, None), int)), None)
    for linear in source.linears(index):
        expert = linear.expert
        if expert is None or chosen is None or expert[1] < chosen:
            outputs[linear.name] = linear.shape_OI[0]
    return outputs


def activations_computed_again(block: nn.Module) -> AbstractContextManager[None]:
    """Context in which parts of a block with Linears (attention, MLP) keep only their input for the backward pass."""
    parts = [part for part in block.children() if any(isinstance(module, nn.Linear) for module in part.modules())]
    return with_forwards(
        (part, with_arguments(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False))
        for part in parts
    )


BETAS = (0.9, 0.95)
EPS = 1e-12  # the gradients of a mean over many tokens are small
WARM_UP = 0.05  # share of the steps in which the rate rises
LEAST_ENERGY = 1e-6  # of a token's target: below it, the loss is no longer relative


class Example(NamedTuple):
    """Some sequences: what a block reads, what it should give out, and whether each token counts, or is padding."""

    run: Callable[[Tensor, int], Tensor]  # the block on some of the sequences; the number is that of the first
    input_NTW: Tensor
    target_NTW: Tensor
    counted_NT: Tensor


class Trained(NamedTuple):
    """A parameter that is trained. zero: where it must stay 0; None: nowhere. rms: root mean square of other entries.

    dtype: that in which the checkpoint stores it.
    """

    name: str
    parameter: nn.Parameter
    zero: Tensor | None
    rms: float
    dtype: torch.dtype


class Fit(NamedTuple):
    """The held-out error of a block before and after training, on the weights as they are stored, and the steps taken.

    An error is the mean over tokens of |output - target|^2 / |target|^2. trained: whether the new weights were taken;
    if not, the block is as it was. finite: whether no error and no loss was NaN or infinite. tokens: of all steps,
    without padding.
    """

    before: float
    after: float
    steps: int
    trained: bool
    finite: bool = True
    tokens: int = 0


def trainable(block: nn.Module, dtypes: dict[str, torch.dtype], linears: Collection[str]) -> list[Trained]:
    """The weights of these Linears of a block, with their zeros, and all its vectors (norms and biases).

    dtypes: of the block's tensors in the checkpoint, by name.
    """
    weights = {f"{name}.weight" for name in linears}
    parameters: list[tuple[str, nn.Parameter, Tensor | None]] = []
    sizes: list[list[Tensor]] = []  # sum of squares, and number of zeros
    for name, parameter in block.named_parameters():
        vector = parameter.dim() == 1 and parameter.is_floating_point()
        if name not in dtypes or not (name in weights or vector):
            continue
        if torch.empty_like(parameter, device="meta").stride() != parameter.stride():
            parameter.data = parameter.data.clone()  # without gaps, as Adam's fused steps expect of memory
        zero = parameter.detach() == 0 if name in weights else None
        squares = parameter.detach().double().square().sum()
        sizes.append([squares, torch.zeros_like(squares) if zero is None else zero.sum().double()])
        parameters.append((name, parameter, zero))
    trained = [
        Trained(*parameter, math.sqrt(squares / max(1, parameter[1].numel() - zeros)), dtypes[parameter[0]])
        for parameter, (squares, zeros) in zip(parameters, read_at_once(sizes), strict=True)
    ]
    return [tensor for tensor in trained if tensor.rms]


class Scaled(nn.Module):
    """The weight of a Linear as integers, which stay, times scales, which are trained."""

    def __init__(self, code_OI: Tensor, scale_OG: Tensor) -> None:
        super().__init__()
        self.code_OI, self.scale_OG = code_OI, scale_OG

    def forward(self, scale_OG: Tensor) -> Tensor:
        """The weight."""
        return product(self.code_OI, scale_OG)

    def right_inverse(self, _weight_OI: Tensor) -> Tensor:
        """The scales at the start."""
        return self.scale_OG


def trained_scales(linear: nn.Module, code_OI: Tensor, scale_OG: Tensor, name: str) -> Trained:
    """The scales of a Linear, whose weight follows from them from now on; they are rounded to bfloat16."""
    register_parametrization(linear, "weight", Scaled(code_OI, scale_OG.float()), unsafe=True)
    parameter = linear.get_parameter("parametrizations.weight.original")
    return Trained(name, parameter, None, float(scale_OG.double().square().mean().sqrt()), torch.bfloat16)


def fit(
    parameters: Sequence[Trained],
    training: Sequence[Example],
    held_out: Sequence[Example],
    *,
    rate: float,
    epochs: int,
    rng: random.Random,
    plan: StepPlan,
) -> Fit:
    """Train the parameters in place: in every epoch one step of Adam for each example, in random order.

    rate: the largest, as a share of a parameter's root mean square. The state that is kept is that with the least
    held-out error among the ends of the epochs, in the dtype of the checkpoint; where it is not below that of the
    start, or an error is NaN or infinite, the start is kept.
    """
    start = snapshot(parameters)
    before = mean_error(held_out)
    best, best_state, step, steps = math.inf, start, 0, epochs * len(training)
    counts, tokens = [int(example.counted_NT.sum()) for example in training], 0
    finite = math.isfinite(before)
    optimizer = torch.optim.Adam(
        [{"params": [p.parameter.requires_grad_()], "rms": p.rms} for p in parameters],
        lr=rate,
        betas=BETAS,
        eps=EPS,
        fused=True,
    )
    for _ in range(epochs if finite else 0):
        losses: list[Tensor] = []  # read once an epoch, so that a GPU computes on meanwhile
        for index in rng.sample(range(len(training)), len(training)):
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rms"] * share_of_rate(step, steps)
            loss = take_step(optimizer, parameters, training[index], plan)
            losses.append(loss)
            step, tokens = step + 1, tokens + counts[index]
        error = mean_error(held_out)
        finite = bool(torch.stack(losses).isfinite().all()) and math.isfinite(error)
        if not finite:
            break
        if error < best:
            best, best_state = error, snapshot(parameters)
    del optimizer  # its moments take twice the memory of the weights
    restore(parameters, best_state if finite else start)
    after = mean_error(held_out) if finite else before
    if not after < before:
        restore(parameters, start)
        return Fit(before, before, step, trained=False, finite=finite, tokens=tokens)
    return Fit(before, after, step, trained=True, tokens=tokens)


def take_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Trained], example: Example, plan: StepPlan
) -> Tensor:
    """Take a step for the mean loss over the tokens of an example, and return that loss; zeros get no gradient.

    The gradients of its micro-batches are added up.
    """
    device, total, tokens = parameters[0].parameter.device, example.counted_NT.sum(), example.input_NTW.shape[1]
    most, loss = max(1, plan.micro_batch // tokens), torch.zeros((), device=device)
    for first in range(0, len(example.input_NTW), most):
        input_NTW, target_NTW, counted_NT = (table[first : first + most] for table in example[1:])
        with torch.enable_grad(), plan.products(device):
            part = relative_error(example.run(input_NTW, first), target_NTW, counted_NT) / total
        part.backward()
        loss += part.detach()
    for _, parameter, zero, *_ in parameters:
        if zero is not None and parameter.grad is not None:
            parameter.grad.masked_fill_(zero, 0.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def relative_error(output_NTW: Tensor, target_NTW: Tensor, counted_NT: Tensor) -> Tensor:
    """Sum over the counted tokens of |output - target|^2 / |target|^2."""
    device = output_NTW.device
    teacher_NTW = target_NTW.to(device, torch.float32, non_blocking=True)
    error_NT = (output_NTW.float() - teacher_NTW).square().sum(-1)
    energy_NT = teacher_NTW.square().sum(-1).clamp(min=LEAST_ENERGY)
    return (counted_NT.to(device, non_blocking=True) * error_NT / energy_NT).sum()


@torch.no_grad()
def mean_error(examples: Sequence[Example]) -> float:
    """relative_error of all examples, per token."""
    errors = [relative_error(e.run(e.input_NTW, 0), e.target_NTW, e.counted_NT) for e in examples]
    return sum(torch.stack(errors).tolist()) / sum(int(e.counted_NT.sum()) for e in examples)


def share_of_rate(step: int, steps: int) -> float:
    """The rate at a step as a share of the largest: a linear rise over the first 5 % of the steps, a cosine to 0."""
    rise = max(1, int(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def snapshot(parameters: Sequence[Trained]) -> list[Tensor]:
    """Copies of the parameters, rounded as the checkpoint stores them."""
    return [p.parameter.detach().to(p.dtype, copy=True) for p in parameters]


@torch.no_grad()
def restore(parameters: Sequence[Trained], state: Sequence[Tensor]) -> None:
    """Set the parameters to a snapshot; they are not trained from then on."""
    for trained, tensor in zip(parameters, state, strict=True):
        trained.parameter.requires_grad_(False)
        trained.parameter.copy_(tensor)


# The residual streams of the dense and of the pruned model between two blocks, for the same calibration tokens.
# Sequences of like lengths are padded on the right to a common one, so that a step of training is one batch: a decoder
# never looks ahead, so no token sees the padding, and padding counts nothing in the loss.

STREAM_BYTES = 2 * 4  # of both streams, in float32, for each number that a token has between two blocks
HELD_OUT = 8  # one of every 8 batches is held out
PADDING = 0  # any token id does


class Streams(NamedTuple):
    """The dense model and the pruned model, and the hidden states of both, which are their embeddings at first."""

    dense: Runner
    pruned: Runner
    teacher_states: HiddenStates
    student_states: HiddenStates


def open_streams(
    job: StepJob[Any],
    partial: Partial,
    calibration: Calibration,
    dense: Checkpoint,
    smaller: Checkpoint,
    batch_tokens: int,
) -> Streams:
    """The streams of a job's calibration tokens through two models, in memory or in the job's file.

    batch_tokens: most tokens of a batch, unless a sequence has more.
    """
    teacher, student = (Runner(model, torch.float32, job.device) for model in (dense, smaller))
    padded, counted = pad(calibration.sequences, batch_tokens)
    with disk_errors(partial.folder, partial.needed):
        states = HiddenStates(teacher, padded, job.hidden_file(partial), student.width, counted, batch_tokens)
    return Streams(teacher, student, states, states.of_another(student))


@dataclass(frozen=True)
class Training:
    """What blocks are trained on. batches: the numbers of those of the streams that are trained on, and of those held
    out. plan: how steps are computed."""

    streams: Streams
    batches: tuple[list[int], list[int]]
    plan: StepPlan

    def fit(self, block: nn.Module, parameters: Sequence[Trained], *, rate: float, epochs: int, seed: str) -> Fit:
        """Train some parameters of the block that the streams have reached."""
        training, held_out = (self.examples(block, numbers) for numbers in self.batches)
        with activations_computed_again(block) if self.plan.checkpointed else nullcontext():
            rng = random.Random(seed)
            return fit(parameters, training, held_out, rate=rate, epochs=epochs, rng=rng, plan=self.plan)

    def examples(self, block: nn.Module, numbers: Sequence[int]) -> list[Example]:
        """For each of these batches what the block reads and should give out.

        Of streams in a file, only the batch that runs is in memory.
        """
        runner, students, teachers = self.streams.pruned, self.streams.student_states, self.streams.teacher_states

        def run(batch: Batch, rows_NTW: Tensor, first: int) -> Tensor:
            students.release_pages()
            part = Batch(batch.ids_NT[first : first + len(rows_NTW)])
            return runner.run_block(block, rows_NTW.to(runner.device, non_blocking=True), part)

        all_examples: list[Example] = []
        for (batch, read_NTW), (_, teacher_NTW) in zip(students.batches(), teachers.batches(), strict=True):
            assert batch.counted_NT1 is not None
            all_examples.append(Example(with_arguments(run, batch), read_NTW, teacher_NTW, batch.counted_NT1[..., 0]))
        return [all_examples[number] for number in numbers]

    def fit_at_best(
        self, block: nn.Module, parameters: Sequence[Trained], rates: Sequence[float], *, epochs: int, seed: str
    ) -> tuple[Fit, float]:
        """(the Fit at the rate that leaves the least held-out error, that rate); the first rate if none lowers it.

        Steps and tokens are those of all rates. Memory holds two more copies of the parameters.
        """
        start, fits, best, best_state = snapshot(parameters), [], 0, []
        for index, rate in enumerate(rates):
            restore(parameters, start)
            fits.append(self.fit(block, parameters, rate=rate, epochs=epochs, seed=seed))
            if not index or fits[index].after < fits[best].after:
                best, best_state = index, snapshot(parameters)
        restore(parameters, best_state)
        steps, tokens = sum(fit.steps for fit in fits), sum(fit.tokens for fit in fits)
        return fits[best]._replace(steps=steps, tokens=tokens), rates[best]


def begin_training(
    job: StepJob[Any],
    partial: Partial,
    calibration: Calibration,
    dense: Checkpoint,
    smaller: Checkpoint,
    step_tokens: int,
) -> Training:
    """The Training of a job, with both streams before the first block.

    How steps are computed is decided by the memory that is free when the work begins, and kept when it is resumed.
    """
    batch_tokens, longest = tokens_of_step(step_tokens, calibration.sequences), max(map(len, calibration.sequences))
    if "steps" not in partial.notes:
        partial.note("steps", plan_steps(job.source, job.device, step_tokens, longest)._asdict(), {})
    streams = open_streams(job, partial, calibration, dense, smaller, batch_tokens)
    batches = split(len([*streams.student_states.batches()]), random.Random(f"{job.recipe.seed} held out"))
    return Training(streams, batches, StepPlan(**partial.notes["steps"]))


def pad(sequences: Sequence[list[int]], batch_tokens: int) -> tuple[list[list[int]], list[list[bool]]]:
    """(sequences, shortest first, each padded to the longest of its batch; for each, which ids are no padding)."""
    groups: list[list[list[int]]] = []
    for ids in sorted(sequences, key=len):
        if groups and (len(groups[-1]) + 1) * len(ids) <= batch_tokens:
            groups[-1].append(ids)
        else:
            groups.append([ids])
    pairs = [(ids, len(group[-1]) - len(ids)) for group in groups for ids in group]
    padded = [[*ids, *[PADDING] * missing] for ids, missing in pairs]
    return padded, [[True] * len(ids) + [False] * missing for ids, missing in pairs]


def tokens_of_step(step_tokens: int, sequences: Sequence[Sequence[int]]) -> int:
    """The most tokens of a batch: step_tokens, or fewer if a single batch would otherwise hold all sequences.

    Raises PrunusError for a single sequence.
    """
    if len(sequences) < 2:
        raise PrunusError(
            "the calibration is one sequence, so that none can be held out to check what training gains: give at least"
            " two (--sequences or --calibration-tokens)"
        )
    return min(step_tokens, len(sequences) * max(map(len, sequences)) - 1)


def split(count: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """Indices of the batches to train on and of those that are held out: one in eight, at least one of two."""
    held_out = set(rng.sample(range(count), max(1, count // HELD_OUT)))
    return [i for i in range(count) if i not in held_out], sorted(held_out)
