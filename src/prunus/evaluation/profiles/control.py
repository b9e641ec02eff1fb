"""Thinking that is switched off by the prompt, or whose length the engine or the model controls itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunus.errors import PrunusError
from prunus.evaluation.profiles import Profile
from prunus.evaluation.profiles.detection import mentions, state_of
from prunus.evaluation.profiles.markers import QUESTION, decode, render, source_of
from prunus.settings.budgets import without_off
from prunus.settings.engines.facts import EngineFacts
from prunus.settings.engines.vllm import VLLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Budget off: the prompt in which a model's thinking is switched off.
# Either an option of the chat template does so, or the empty block of thinking that the family documents is appended.


@dataclass(frozen=True)
class Switch:
    """Switch that turns a model's thinking off: options of its chat template, or a block that is appended.

    Only one of the two is set.
    """

    profile: Profile
    template: Mapping[str, Any]
    block: str = ""

    def describe(self) -> dict[str, object]:
        """Stored: the switch as plain data, in the plan."""
        return {"block": self.block} if self.block else {"template": dict(self.template)}

    def __str__(self) -> str:
        if self.block:
            return f"the empty block {self.block!r} is appended"
        return "template " + ", ".join(f"{key}={value!r}" for key, value in self.template.items())

    def render(self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[str]:
        """The prompts, each with a text as the only user message and the thinking switched off."""
        rendered = render(tokenizer, self.profile, texts, self.template)
        return [self._switched(prompt, text) for prompt, text in zip(rendered, texts, strict=True)]

    def _switched(self, rendered: str, text: str) -> str:
        """The rendered prompt with this text, with the block if there is any."""
        profile = self.profile
        if not self.block:
            return rendered
        before, matched, tail = rendered.rpartition(text)
        if state_of(tail, profile) == "opened":  # by the template; the block opens it again
            tail = tail[: tail.rfind(profile.thinking_start.strip())]
        return before + matched + tail + self.block

    def encode(self, tokenizer: "PreTrainedTokenizerBase", rendered: str) -> list[int]:
        """The ids of a rendered prompt. Raises PrunusError if its end changes when it is encoded and decoded."""
        ids = list(tokenizer.encode(rendered, add_special_tokens=False))
        end = self.block or rendered[-20:]
        if not decode(tokenizer, ids).endswith(end):
            raise PrunusError(f"budget off: the tokenizer changes {end!r} when it encodes and decodes it")
        return ids


def switch_off(profile: Profile, tokenizer: "PreTrainedTokenizerBase") -> Switch:
    """The switch that turns the thinking of this model off. profile: as it is fitted to the model.

    The template options of the profile are tried in turn, then together. They count if the template mentions them, and
    the prompt with them differs from the usual one and does not end in an opened thinking. Raises PrunusError that says
    what is lacking.
    """
    source = source_of(tokenizer) if profile.off_template else ""
    options = {key: value for key, value in profile.off_template.items() if mentions(source, key)}
    for some in (*({key: value} for key, value in options.items()), options):
        switch = Switch(profile, some)
        if some and _works(switch, tokenizer):
            return switch
    if profile.off_block:
        return Switch(profile, {}, profile.off_block)
    if not profile.off_template:
        lacking = "the profile names neither a template option nor an empty block for it ([off] of a profile file)"
    elif not options:
        lacking = f"the model's chat template has no option {' or '.join(profile.off_template)}"
    else:
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        lacking = f"the model's chat template still thinks with {shown}"
    raise PrunusError(f"profile '{profile.name}' cannot switch the thinking off (budget off): {lacking}")


def _works(switch: Switch, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the prompt with the switch's options differs from the usual one and opens no thinking."""
    profile = switch.profile
    try:
        [rendered] = switch.render(tokenizer, [QUESTION])
    except PrunusError:  # some templates refuse values that they do not know
        return False
    [usual] = render(tokenizer, profile, [QUESTION])
    return rendered != usual and state_of(rendered.rpartition(QUESTION)[2], profile) != "opened"


# Native control of the thinking budget: by the engine or the model itself, as the profile of its family declares.


@dataclass(frozen=True)
class NativeControl:
    """The part of a chat request that states the thinking budget; at most one of the three is set.

    engine: whether the engine ends the thinking at the budget, by its own field of the request (EngineFacts.budget),
    rather than the model being told of it. template: the option of the chat template that takes the number of tokens.
    efforts: the number of tokens that stands for each level of the field `reasoning_effort`.
    """

    engine: bool = False
    template: str = ""
    efforts: Mapping[str, int] | None = None

    def describe(self) -> dict[str, object]:
        """Stored: the control as plain data, in the plan; an engine's own field always has vLLM's name for it."""
        parameter = VLLM.budget[0] if self.engine else ""
        facts = {"parameter": parameter, "template": self.template, "efforts": dict(self.efforts or {})}
        return {name: value for name, value in facts.items() if value}

    def __str__(self) -> str:
        if self.efforts:
            return "reasoning_effort " + ", ".join(f"{level} ({tokens})" for level, tokens in self.efforts.items())
        return "the engine's own request field" if self.engine else f"template option {self.template}"

    def fields(self, budget: int, engine: EngineFacts = VLLM) -> dict[str, Any]:
        """The fields of a request with this budget; the value of `chat_template_kwargs` is to be merged."""
        if self.engine:
            return engine.budget_fields(budget)
        if self.template:
            return {"chat_template_kwargs": {self.template: budget}}
        return {"reasoning_effort": next(level for level, tokens in (self.efforts or {}).items() if tokens == budget)}


def control_of(profile: Profile) -> NativeControl:
    """The native control that a profile declares; without any, nothing in it is set."""
    return NativeControl(profile.native_engine, profile.native_template, profile.native_efforts or None)


def native_control(profile: Profile, tokenizer: "PreTrainedTokenizerBase", budgets: Sequence[int]) -> NativeControl:
    """The native control of a model under these budgets. Raises PrunusError that says what is lacking."""
    control = control_of(profile)
    if not control.describe():
        raise PrunusError(
            f"profile '{profile.name}' has no native control of the budget ([native] of a profile file): leave"
            " --control out"
        )
    if control.template and not mentions(source_of(tokenizer), control.template):
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
