"""REAP: router-weighted expert activation pruning. Lasby et al. 2025, arXiv:2510.13999.

The score of an expert is the mean over its tokens of gate value times norm of the expert's output. The gate value is
the one with which the output is multiplied, whatever the router does before: renormalised where the model does so. (The
authors' code took the softmax over all experts, until it was corrected in March 2026.)
"""

from torch import Tensor

from prunus.pruning.experts.seen import Seen


def score(seen: Seen) -> Tensor:
    """(E,) mean of gate value times norm of the output; 0 for an expert without tokens."""
    return seen.product_E / seen.weight_E.where(seen.weight_E > 0, 1)
