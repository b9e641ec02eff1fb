"""What the store holds: runs, their draws (samples), and the problems."""

from dataclasses import dataclass
from typing import Any, Literal

Ended = Literal["natural", "forced"]
Key = tuple[str, int, int]  # problem_id, budget, draw


@dataclass(frozen=True)
class Run:
    """One model under one plan.

    model: {"name": shown to people, "source", "checksum", "manifest": prunus.json or {}, "parameters", "blocks"}.
    plan: EvalPlan.to_json() as resolved, with the values that took effect. versions: library name to version.
    """

    run_id: str
    model: dict[str, Any]
    plan: dict[str, Any]
    versions: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One draw of one problem at one budget.

    Tokens: thinking_tokens <= budget and answer_tokens were sampled (refusals count as thinking), forced_tokens are
    markers and closings that the protocol inserted. answer: normalised, None where none was found. status: of the
    grader. thinking, text: the decoded phases; empty when read without texts. answer_cap: the limit of answer tokens,
    the plan's or what the context left; None in rows of formats 1 and 2, whose plans have it.

    Over the thinking and answer tokens that the model sampled itself (no stops, no markers, no refusals), with p the
    softmax of its logits over its whole vocabulary of V, at temperature 1 and before anything is banned or cut off:
    logprob: the mean of log p(token), natural logarithm. self_certainty: the mean of KL(uniform || p), which is
    -log V - mean over the vocabulary of log p (arXiv:2502.18581). Both None where the backend gives none or nothing was
    sampled. repetition: prunus.evaluation.repetition.repetition_rate of both phases; None in rows of format 1.
    """

    task: str
    problem_id: str
    budget: int
    draw: int
    thinking_tokens: int
    answer_tokens: int
    forced_tokens: int
    ended: Ended
    answer_truncated: bool
    reopened_think: bool
    answer: str | None
    status: str
    correct: bool
    thinking: str = ""
    text: str = ""
    logprob: float | None = None
    self_certainty: float | None = None
    repetition: float | None = None
    answer_cap: int | None = None


@dataclass(frozen=True)
class ProblemRow:
    """What regrading needs of a problem, and a digest that shows whether two runs had the same one.

    asks: the form of answer that the question asks for; None if it is private or an older prunus stored the problem.
    """

    task: str
    problem_id: str
    gold: str
    kind: str
    choices: tuple[str, ...]
    digest: str
    asks: tuple[str, ...] | None = None
