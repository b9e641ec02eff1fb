"""The tokens that were sampled for a run."""

from dataclasses import replace

from prunus.store import rows
from prunus.store.rows import Sample


def test_tokens_that_budgets_share_are_counted_once():
    """Two draws of a problem, cut at 8 and 32 tokens: the first ended alone after 5, the second thought on to 20."""
    one = Sample("t", "p", 8, 0, 5, 3, 0, "natural", False, False, "1", "ok", True)
    two = replace(one, draw=1, thinking_tokens=8, answer_tokens=4, ended="forced")
    samples = [one, replace(one, budget=32), two, replace(two, budget=32, thinking_tokens=20, ended="natural")]
    assert rows.sampled_tokens(rows.chains_of(samples)) == (5 + 20, 3 + 4 + 4)
    assert rows.sampled_tokens(rows.chains_of(samples), reuse=False) == (5 + 5 + 8 + 20, 3 + 3 + 4 + 4)
    assert rows.sampled_tokens([]) == (0, 0)
