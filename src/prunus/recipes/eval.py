"""Plan of `eval`: tasks, budgets and all else that determines its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prunus import plugins
from prunus.errors import PrunusError, nearest
from prunus.recipes.drawing import NATIVE, PROFILE_NAMES, Control, Drawing, Mode
from prunus.settings import Conflict, advanced, check_conflicts, setting
from prunus.settings.budgets import OFF, Off, UsualBudgets, with_names, without_off
from prunus.settings.engines import BACKENDS

USUAL_BUDGETS = UsualBudgets((512, 1024, 2048))


@dataclass(frozen=True)
class EvalPlan(Drawing):
    """How to evaluate one model: which problems, how much thinking, how to sample.

    tasks: names of problem sets or .jsonl files.
    """

    tasks: tuple[str, ...]
    budgets: tuple[int | Off, ...] = setting(
        USUAL_BUDGETS,
        "Thinking budgets, in tokens; off, which comes first: no thinking. The default is cut to the model's context; a"
        " profile may have another.",
    )
    samples: int = setting(1, "Draws per problem and budget.", at_least=1)
    mode: Mode = advanced(
        "strict", "strict caps the answer and bans thinking markers in it; legacy is as the papers' scripts."
    )
    answer_tokens: int | None = advanced(
        None, "Most tokens of an answer; the default depends on mode and task.", at_least=1
    )
    wait: int = advanced(0, "Ends of thinking to suppress by 'Wait'.", at_least=0)
    closing: str | None = advanced(
        None, "Text that ends thinking at the budget, instead of the profile's.", omit_default=True
    )
    top_p: float | None = advanced(None, "The default is the profile's.", above=0, at_most=1, note="1 is off")
    top_k: int | None = advanced(None, "0 is off; the default is the profile's.", at_least=0, note="0 is off")
    control: Control = advanced(
        "forced",
        "Who keeps the budget; native: engine or model (docs/protocol-reference.md).",
        omit_default=True,
        conflicts=(
            *(Conflict("wait", None, NATIVE), Conflict("closing", None, NATIVE)),
            Conflict("aa_control", True, "an A/A control repeats forced budgets: leave --control native out"),
        ),
    )
    reuse: bool = advanced(True, "Cut one chain for all budgets, or sample one chain per budget.")
    aa_control: bool = advanced(
        False,
        "Evaluate MODEL again in batches of another size, to show what rounding alone changes.",
        omit_default=True,
    )
    base_samples: int | None = setting(
        None,
        "Draws of the base; default: --samples.",
        at_least=1,
        omit_default=True,
    )

    def __post_init__(self) -> None:
        if isinstance(self.budgets, list | tuple) and str(OFF) in self.budgets:
            object.__setattr__(self, "budgets", tuple(OFF if budget == str(OFF) else budget for budget in self.budgets))
        super().__post_init__()
        if self.base_samples == self.samples:
            object.__setattr__(self, "base_samples", None)
        if not self.tasks:
            raise PrunusError("name at least one task; `prunus tasks` lists them")
        plugins.check(plugins.PROFILES, self.profile)
        if self.profile not in PROFILE_NAMES and not self.profile.endswith(".toml"):
            names = [*PROFILE_NAMES, "FILE.toml"]
            raise PrunusError(f"profile '{self.profile}' is not known; {nearest(self.profile, names)}")
        check_conflicts(self, BACKENDS[self.backend].conflicts)
        if self.control == "native":
            object.__setattr__(self, "reuse", False)
        check_budgets(self.budgets)
        if self.wait and self.reuse and len(without_off(self.budgets)) > 1:
            raise PrunusError("--wait changes the chain before its end, so budgets cannot share it: add --no-reuse")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data; the budget OFF is the text `off`."""
        return super().to_json() | {"budgets": with_names(self.budgets)}

    def draws(self, of_base: bool) -> int:
        """The number of draws of each problem, of the base or of another model."""
        return self.base_samples or self.samples if of_base else self.samples

    @property
    def rows(self) -> int:
        """The batch size that takes effect: the plan's, or the backend's own."""
        return self.batch_size or BACKENDS[self.backend].batch_size


def check_budgets(budgets: Sequence[int]) -> None:
    """Raise PrunusError unless budgets are whole numbers >= 0 in strictly increasing order, possibly after OFF."""
    if not budgets:
        raise PrunusError("name at least one thinking budget, such as --budgets 512,1024")
    for budget in budgets:
        if budget < 0 and not isinstance(budget, Off):
            raise PrunusError(
                f"budget {budget} is negative; a budget is a number of thinking tokens, 0 for none, or `off`, which"
                " switches the thinking off"
            )
    if OFF in budgets[1:]:
        raise PrunusError("budget off must come first, before all numbers")
    for smaller, larger in pairwise(budgets):
        if larger <= smaller:
            raise PrunusError(f"budgets must increase: {larger} follows {smaller}")
