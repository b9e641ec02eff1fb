"""ShortGPT: remove the blocks that change the direction of the hidden states least (Block Influence).

Men et al. 2024, arXiv:2403.03853, eq. 1. Shapes: N sequences, T tokens, D hidden width.
"""

from torch import Tensor
from torch.nn import functional

from prunus.pruning.depth.choice import DepthInputs, KeptBlocks


def choose(model: DepthInputs, count: int) -> KeptBlocks:
    """The model without the `count` blocks of lowest Block Influence. Scores: the Block Influence of every block."""
    totals, tokens = [0.0] * model.source.blocks, sum(map(len, model.sequences))
    for index, before_NTD, after_NTD in model.walk():
        totals[index] += block_influence(before_NTD, after_NTD).double().sum().item()
    scores = [total / tokens for total in totals]
    lowest = sorted(range(len(scores)), key=scores.__getitem__)[:count]  # of equal ones the first
    return KeptBlocks.without(lowest, model.source.blocks, scores)


def block_influence(before_NTD: Tensor, after_NTD: Tensor) -> Tensor:
    """(N, T) float32: 1 - cosine between the hidden states before and after a block, per token; 0 to 2.

    The paper's Block Influence is the mean over tokens. after_NTD is the block's own output; transformers' last hidden
    state has passed the final norm, which would distort the score of the last block.
    """
    cosine_NT = functional.cosine_similarity(before_NTD.float(), after_NTD.float(), dim=-1)
    return 1 - cosine_NT.clamp(-1, 1)
