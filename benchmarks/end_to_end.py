"""The rival of block-wise recovery: all kept weights trained together, end to end, for a number of CPU seconds.

The loss is the Kullback-Leibler divergence of the pruned model's next token from the dense model's, over the tokens of
the chains (prompts do not count). Masks are fixed; Adam, warm-up and the rates relative to each tensor are those of
`prunus recover`. The cosine ends when the seconds do.
"""

import json
import random
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunus.pruning.recover.training import BETAS, EPS, share_of_rate

WEIGHTS = "model.safetensors"
EVALUATION_TOKENS = 4096  # of one batch where nothing is trained
FINE = 10_000  # steps that the schedule counts in


class Batch(NamedTuple):
    """Sequences padded on the right, N x T. weight_NT: 1 where the next token is one of a chain, else 0."""

    ids_NT: Tensor
    weight_NT: Tensor


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def read_sequences(path: Path) -> list[dict[str, Any]]:
    """Return lines with token_ids and prompt_tokens."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def batches_of(sequences: Sequence[dict[str, Any]], step_tokens: int) -> list[Batch]:
    """Return batches of sequences of like lengths, each of at most a given number of tokens, with padding."""
    groups: list[list[dict[str, Any]]] = []
    for sequence in sorted(sequences, key=lambda s: len(s["token_ids"])):
        if groups and (len(groups[-1]) + 1) * len(sequence["token_ids"]) <= step_tokens:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    found = []
    for group in groups:
        longest = len(group[-1]["token_ids"])
        ids_NT, weight_NT = torch.zeros(len(group), longest, dtype=torch.long), torch.zeros(len(group), longest)
        for row, sequence in enumerate(group):
            length = len(sequence["token_ids"])
            ids_NT[row, :length] = torch.tensor(sequence["token_ids"])
            weight_NT[row, sequence["prompt_tokens"] - 1 : length - 1] = 1  # what the last token predicts is unknown
        found.append(Batch(ids_NT, weight_NT))
    return found


def load(folder: Path) -> Any:
    """Return transformers' model of a folder in float32, frozen."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def log_probabilities(model: Any, batch: Batch) -> Tensor:
    """Return log p of every next token, N x T x V."""
    return model(batch.ids_NT).logits.float().log_softmax(-1)


def total_divergence(target_NTV: Tensor, found_NTV: Tensor, batch: Batch) -> Tensor:
    """Return the sum over weighted tokens of KL(target || found), in nats."""
    return ((target_NTV.exp() * (target_NTV - found_NTV)).sum(-1) * batch.weight_NT).sum()


@torch.no_grad()
def divergence(folder: Path, dense: Path, sequences: Sequence[dict[str, Any]]) -> float:
    """Return KL(dense || model) per token of the chains, in nats."""
    teacher, model, batches = load(dense), load(folder), batches_of(sequences, EVALUATION_TOKENS)
    sums = [float(total_divergence(log_probabilities(teacher, b), log_probabilities(model, b), b)) for b in batches]
    return sum(sums) / sum(float(batch.weight_NT.sum()) for batch in batches)


def train_end_to_end(
    pruned: Path, dense: Path, out: Path, sequences: Sequence[dict[str, Any]], budget: float,
    *, rate: float, step_tokens: int, seed: int,
) -> int:  # fmt: skip
    """Write the pruned model, trained for `budget` CPU seconds (loading and the dense model's part too); returns steps.

    The dense model runs once over the sequences; what it gives is kept in memory.
    """
    begin, rng = cpu_seconds(), random.Random(seed)
    student, teacher, batches = load(pruned), load(dense), batches_of(sequences, step_tokens)
    with torch.no_grad():
        targets = [log_probabilities(teacher, batch) for batch in batches]
    groups, zeros = [], {}
    for name, parameter in student.model.layers.named_parameters():
        zeros[name] = parameter == 0 if parameter.dim() > 1 else torch.zeros_like(parameter, dtype=torch.bool)
        rms = float(parameter[~zeros[name]].square().mean().sqrt())
        groups.append({"params": [parameter.requires_grad_()], "rms": rms, "name": name})
    optimizer = torch.optim.Adam(groups, lr=rate, betas=BETAS, eps=EPS, fused=True)
    steps, order = 0, []
    while (spent := (cpu_seconds() - begin) / budget) < 1:
        order = order or rng.sample(range(len(batches)), len(batches))
        index = order.pop()
        batch = batches[index]
        loss = total_divergence(targets[index], log_probabilities(student, batch), batch) / batch.weight_NT.sum()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rms"] * share_of_rate(int(FINE * spent), FINE)
            group["params"][0].grad.masked_fill_(zeros[group["name"]], 0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    trained = {f"model.layers.{name}": p.detach() for name, p in student.model.layers.named_parameters()}
    write(pruned, out, trained)
    return steps


def write(pruned: Path, out: Path, trained: dict[str, Tensor]) -> None:
    """Copy a folder, with these tensors in the dtype of its own; AssertionError where a zero would be lost."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(pruned, out)
    state = load_file(pruned / WEIGHTS)
    for name, tensor in trained.items():
        new, old = tensor.to(state[name].dtype).contiguous(), state[name]
        if old.dim() > 1 and bool((new[old == 0] != 0).any()):
            raise AssertionError(f"training filled zeros of {name}")
        state[name] = new
    save_file(state, out / WEIGHTS, {"format": "pt"})
