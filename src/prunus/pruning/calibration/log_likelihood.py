"""How well a text was predicted, from the output of the last block.

Shapes: N sequences, T tokens, W numbers per token between two blocks, X what the head reads, V vocabulary, S tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional

from prunus.checkpoint.runner import Batch, Runner

# Logits are made for so many tokens at a time: with a vocabulary of 150,000 that is 150 MB.
LOGIT_TOKENS = 256


def negative_log_likelihood(runner: Runner, rows_NTW: Tensor, batch: Batch) -> float:
    """Sum over all tokens but the first of each sequence, in nats. rows: output of the last block."""
    states_SX = runner.states(rows_NTW, batch)[:, :-1].flatten(0, 1)
    wanted_S = batch.ids_NT[:, 1:].flatten().to(runner.device)
    total = torch.zeros((), dtype=torch.float64)
    for part_SX, target_S in zip(states_SX.split(LOGIT_TOKENS), wanted_S.split(LOGIT_TOKENS), strict=True):
        logits_SV = runner.logits(part_SX[None])[0].float()
        total += functional.cross_entropy(logits_SV, target_S, reduction="none").double().sum().cpu()
    return total.item()
