"""EAN: expert activation norm, a criterion that Lasby et al. 2025 (arXiv:2510.13999) compare with."""

from torch import Tensor

from prunus.pruning.experts.seen import Seen


def score(seen: Seen) -> Tensor:
    """(E,) sum of the norms of the expert's output over its tokens."""
    return seen.norm_E
