"""What follows the last block: final norm and output head, and how well a text was predicted.

Shapes: N sequences, T tokens, D hidden width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional

from prunus.checkpoint.families import EMBEDDING, FINAL_NORM, HEAD, Runner
from prunus.checkpoint.files import Checkpoint

# Logits are made for so many tokens at a time: with a vocabulary of 150,000 that is 150 MB.
LOGIT_TOKENS = 256


def final_norm(source: Checkpoint, runner: Runner, hidden_NTD: Tensor) -> Tensor:
    """(N, T, D) what transformers calls the last hidden state, from the output of the last block."""
    weight_D = source.read(FINAL_NORM).to(runner.device, runner.dtype)
    scaled_NTD = functional.rms_norm(hidden_NTD.float(), weight_D.shape, None, source.config.rms_norm_eps)
    return weight_D * scaled_NTD.to(runner.dtype)


class Head:
    """Final norm and output head of a model, in memory."""

    def __init__(self, source: Checkpoint, runner: Runner) -> None:
        self.source, self.runner = source, runner
        name = EMBEDDING if source.config.tie_word_embeddings else HEAD
        self.weight_VD = source.read(name).to(runner.device, runner.dtype)

    def negative_log_likelihood(self, hidden_NTD: Tensor, ids_NT: Tensor) -> float:
        """Sum over all tokens but the first of each sequence, in nats. hidden_NTD: output of the last block."""
        states_SD = final_norm(self.source, self.runner, hidden_NTD[:, :-1]).flatten(0, 1)
        wanted_S = ids_NT[:, 1:].flatten().to(self.runner.device)
        total = torch.zeros((), dtype=torch.float64)
        for part_SD, target_S in zip(states_SD.split(LOGIT_TOKENS), wanted_S.split(LOGIT_TOKENS), strict=True):
            logits_SV = functional.linear(part_SD, self.weight_VD).float()
            total += functional.cross_entropy(logits_SV, target_S, reduction="none").double().sum().cpu()
        return total.item()
