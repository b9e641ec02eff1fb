"""Native control of the thinking budget: by the engine or the model itself, as the profile of its family declares."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunus.budgets import without_off
from prunus.errors import PrunusError
from prunus.evaluation.profiles.profile import Profile
from prunus.evaluation.profiles.template import source_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class NativeControl:
    """How a chat request tells a budget; one of the three is set.

    parameter: the field of the request that takes the number of tokens. template: the option of the chat template that
    takes it. efforts: the number of tokens that stands for each level of the field `reasoning_effort`.
    """

    parameter: str = ""
    template: str = ""
    efforts: Mapping[str, int] | None = None

    @property
    def bounds(self) -> bool:
        """Whether the engine ends the thinking at the budget, rather than the model being told of it."""
        return bool(self.parameter)

    def describe(self) -> dict[str, object]:
        """The control as plain data, for the stored plan."""
        found = {"parameter": self.parameter, "template": self.template, "efforts": dict(self.efforts or {})}
        return {name: value for name, value in found.items() if value}

    def __str__(self) -> str:
        if self.efforts:
            return "reasoning_effort " + ", ".join(f"{level} ({tokens})" for level, tokens in self.efforts.items())
        return f"request field {self.parameter}" if self.parameter else f"template option {self.template}"

    def fields(self, budget: int) -> dict[str, Any]:
        """The fields of a request with this budget; the value of `chat_template_kwargs` is to be merged."""
        if self.parameter:
            return {self.parameter: budget}
        if self.template:
            return {"chat_template_kwargs": {self.template: budget}}
        return {"reasoning_effort": next(level for level, tokens in (self.efforts or {}).items() if tokens == budget)}


def control_of(profile: Profile) -> NativeControl:
    """The native control that a profile declares; nothing of it is set if there is none."""
    return NativeControl(profile.native_parameter, profile.native_template, profile.native_efforts or None)


def native_control(profile: Profile, tokenizer: "PreTrainedTokenizerBase", budgets: Sequence[int]) -> NativeControl:
    """The native control of a model under these budgets. Raises PrunusError that says what is lacking."""
    control = control_of(profile)
    if not control.describe():
        raise PrunusError(
            f"profile '{profile.name}' has no native control of the budget ([native] of a profile file): leave"
            " --control out"
        )
    if control.template and not re.search(rf"\b{re.escape(control.template)}\b", source_of(tokenizer)):
        raise PrunusError(
            f"profile '{profile.name}' tells the budget by the template option {control.template}, which the model's"
            " chat template lacks: leave --control out"
        )
    levels = (control.efforts or {}).values()
    if control.efforts and (unknown := [budget for budget in without_off(budgets) if budget not in levels]):
        raise PrunusError(
            f"budget {unknown[0]} is no level of profile '{profile.name}': with --control native its budgets are"
            f" {', '.join(map(str, levels))} ({control})"
        )
    return control
