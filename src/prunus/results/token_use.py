"""The tokens that were sampled for a run."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from prunus.budgets import OFF
from prunus.results.rows import Sample

Chain = Sequence[tuple[int, int, int, str]]  # (budget, thinking tokens, answer tokens, ended) of a draw, per budget


def sampled_tokens(chains: Iterable[Chain], reuse: bool = True) -> tuple[int, int]:
    """(thinking, answer) tokens that were generated for these chains; tokens shared by several budgets count once.

    reuse: all budgets of a draw are cut from one chain. They share its longest thinking and the answer after its
    natural end; each forced answer, and the one of budget OFF, is generated separately. Without reuse every budget was
    generated separately.
    """
    thinking = answer = 0
    share = max if reuse else sum
    for chain in chains:
        thinking += share(tokens for _, tokens, _, _ in chain)
        natural = [tokens for budget, _, tokens, ended in chain if ended == "natural" and budget != OFF]
        separate = sum(tokens for budget, _, tokens, ended in chain if ended == "forced" or budget == OFF)
        answer += separate + (share(natural) if natural else 0)
    return thinking, answer


def chains_of(samples: Iterable[Sample]) -> list[Chain]:
    """A run's samples grouped into chains: one for each draw of each problem."""
    found: dict[tuple[str, int], list[tuple[int, int, int, str]]] = defaultdict(list)
    for sample in samples:
        chain = found[sample.problem_id, sample.draw]
        chain.append((sample.budget, sample.thinking_tokens, sample.answer_tokens, sample.ended))
    return list(found.values())
