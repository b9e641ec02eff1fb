"""Progress within a batch of chains, which a large model on a CPU takes minutes to decode."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prunus.evaluation.requests import Backend, unheard


class Pace:
    """How far the batch in progress is, and how fast.

    budget: the largest number of thinking tokens of a chain. The first batch is compared with chains that use all of
    it, so its share is too small where chains end earlier; later batches with the mean of those before. clock: seconds.
    """

    def __init__(self, budget: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.clock = budget, clock
        self.chains = self.tokens = 0  # of the batches that are complete

    @contextmanager
    def shown(self, backend: Backend, chains: int, units: int, show: Callable[[float, str], None]) -> Iterator[None]:
        """Within the context the backend completes a batch. chains, units: its size in chains and in units of progress.

        show: called whenever the model has read more tokens, with the work done so far in units and a note.
        """
        started, prompt_tokens, tokens = self.clock(), 0, 0
        expected = chains * (self.tokens / self.chains if self.chains else self.budget)

        def hear(prompt_ids: int, later_ids: int) -> None:
            nonlocal prompt_tokens, tokens
            prompt_tokens, tokens = prompt_tokens + prompt_ids, tokens + later_ids
            rate = tokens / max(1e-9, self.clock() - started)
            reading = f"reading prompts, {prompt_tokens:,} tokens"
            writing = f"{tokens:,} tokens of this batch, {rate:,.0f} tokens/s"
            # At least one token of every chain is thought to be missing as long as the batch is.
            show(units * tokens / max(expected, tokens + chains), writing if tokens else reading)

        backend.on_tokens = hear
        try:
            yield
        finally:
            backend.on_tokens = unheard
        self.chains, self.tokens = self.chains + chains, self.tokens + tokens
