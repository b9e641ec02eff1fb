"""Recipe of `traces`."""

from dataclasses import dataclass
from typing import Literal

from prunus.errors import PrunusError
from prunus.recipes.drawing import Drawing
from prunus.recipes.eval import EvalPlan
from prunus.settings import advanced, setting, settings_of
from prunus.settings.budgets import UsualBudgets

USUAL_TOKENS = 2048


@dataclass(frozen=True)
class TraceRecipe(Drawing):
    """Which of a model's own chains to keep for calibration.

    tasks: names or .jsonl files; evaluation sets are refused.
    """

    tasks: tuple[str, ...]
    samples: int = setting(1, "Chains per problem.", at_least=1)
    chain_tokens: int | None = setting(
        None,
        f"Thinking tokens allowed per chain; default: {USUAL_TOKENS}, or the largest default budget of `prunus eval`.",
        at_least=1,
    )
    answer_tokens: int | None = advanced(
        None, "Most tokens of an answer; the default depends on the task.", at_least=1, omit_default=True
    )
    only: Literal["all", "correct"] = setting("all", "Chains to keep: all, or those with a correct answer.")
    min_tokens: int = setting(0, "Keep chains of at least N thinking tokens.", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chain_tokens is not None and self.min_tokens > self.chain_tokens:
            raise PrunusError(
                f"min_tokens {self.min_tokens} exceeds chain_tokens {self.chain_tokens}: nothing would be kept"
            )
        self.plan()

    def plan(self) -> EvalPlan:
        """The evaluation plan that draws the chains; it has one budget."""
        shared = {name: getattr(self, name) for name in settings_of(Drawing)}
        own = {"samples": self.samples, "answer_tokens": self.answer_tokens}
        budgets = UsualBudgets((USUAL_TOKENS,)) if self.chain_tokens is None else (self.chain_tokens,)
        return EvalPlan(tasks=self.tasks, budgets=budgets, **own, **shared)
