"""Recipe of `recover`."""

from dataclasses import dataclass
from typing import Literal

from prunus.recipes.base import Calibrated
from prunus.settings import advanced, setting

Target = Literal["dense", "own"]
# The default learning rate. After a least-squares fit the best rate depends on the tokens and is chosen from
# RATES_AFTER_FIT, even if the user gave the default: a recipe does not say whether a value was given.
DEFAULT_RATE = 0.01
RATES_AFTER_FIT = (0.003, 0.01, 0.02)


@dataclass(frozen=True)
class RecoverRecipe(Calibrated):
    """How to train what pruning kept, block by block (docs/recover.md)."""

    calibration: str = setting("auto", "As for prune, such as the model's own chains (traces:FILE).")
    seed: int = setting(
        0,
        "Seed of sample, held-out tokens and order; the next one after a fitted width with the same text and seed.",
    )
    epochs: int = setting(4, "Passes over the training tokens.", at_least=1)
    rate: float | None = setting(
        DEFAULT_RATE,
        "Peak learning rate, relative to each tensor's root mean square, in (0, 1); after a fitted width the best of"
        f" {', '.join(map(str, RATES_AFTER_FIT))} in the first block.",
        above=0,
        below=1,
        note="it is a share of each tensor's size",
    )
    step_tokens: int = advanced(512, "Tokens per step of Adam; at least one sequence.", at_least=1)
    target: Target = setting(
        "dense",
        "What a block learns to output: the dense model's hidden states, or what the dense block outputs for the pruned"
        " model's input.",
    )
