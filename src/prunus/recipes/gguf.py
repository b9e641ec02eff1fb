"""What `gguf` is asked for."""

from dataclasses import dataclass
from typing import Literal

from prunus.recipes.base import Recipe
from prunus.settings import setting


@dataclass(frozen=True)
class GgufRecipe(Recipe):
    """The form of a model in a GGUF file (docs/gguf.md)."""

    type: Literal["f16", "q8_0", "q4_0"] = setting(
        "f16", "Form of the blocks' Linears; embeddings and head have 8 bits with q4_0, and the others float32."
    )
    like: str | None = setting(  # pyright: ignore[reportIncompatibleMethodOverride]  # it has no calibration to copy
        None,
        "A GGUF FILE of the dense model, whose metadata and tokenizer are copied, after its weights were compared.",
        metavar="FILE",
    )
