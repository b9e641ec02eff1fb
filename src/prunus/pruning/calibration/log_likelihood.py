"""The negative log-likelihood of token sequences, from the output of the last block.

Shapes: N sequences, T tokens, W numbers per token between two blocks, X features at the input of the output head, V
vocabulary, S tokens of all sequences.
"""

import torch
from torch import Tensor
from torch.nn import functional

from prunus.checkpoint.runner import Batch, Runner

# Logits are computed for this many tokens at a time; with a vocabulary of 150,000 they take 150 MB.
LOGIT_TOKENS = 256


def negative_log_likelihood(runner: Runner, rows_NTW: Tensor, batch: Batch) -> float:
    """Sum in nats over all tokens but the first of each sequence. rows_NTW: output of the last block."""
    states_SX = runner.states(rows_NTW, batch)[:, :-1].flatten(0, 1)
    targets_S = batch.ids_NT[:, 1:].flatten().to(runner.device)
    total = torch.zeros((), dtype=torch.float64)
    for part_SX, target_S in zip(states_SX.split(LOGIT_TOKENS), targets_S.split(LOGIT_TOKENS), strict=True):
        logits_SV = runner.logits(part_SX[None])[0].float()
        total += functional.cross_entropy(logits_SV, target_S, reduction="none").double().sum().cpu()
    return total.item()
