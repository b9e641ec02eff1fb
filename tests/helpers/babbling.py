"""Random ids in the place of a model, which follow from prompt and seed."""

import random
from collections.abc import Iterator
from typing import Any

from tiny_chains import MARKERS, TOKENIZER


def babble(prompt: Any, seed: int) -> Iterator[int]:
    """Ids that follow from prompt and seed, and stops now and then: no model. `=4` is frequent."""
    noise, frequent = random.Random(f"{list(prompt)} {seed}"), 150 * TOKENIZER.encode("=4")
    stops = [*MARKERS.think_stops, *MARKERS.answer_stops]
    while True:
        yield noise.choice([*stops, *range(3, len(TOKENIZER)), *range(20, 60), *frequent])
