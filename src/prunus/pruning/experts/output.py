"""Output: keep the experts with which the layer's output changes least, measured with the router that is left.

Lu et al. 2024 (arXiv:2402.14800) search all sets of experts of a layer. That is done where there are few sets; else
experts are removed one by one, each time the one whose removal costs least (reconstruction.py).
"""

from torch import Tensor

from prunus.pruning.experts.seen import Seen


def score(seen: Seen) -> Tensor:
    """(E,) relative error of the layer's output once the expert is removed as the next one in the greedy order."""
    assert seen.reconstruction is not None
    return seen.reconstruction.score_E


def keep(seen: Seen, count: int) -> list[int]:
    """The set of `count` experts with the least error, of all sets or by the greedy order."""
    assert seen.reconstruction is not None
    return seen.reconstruction.kept[count]
