"""The rows of a store: runs, their draws (samples), and problems."""

from dataclasses import dataclass
from typing import Any, Literal

from prunus.budgets import AS_RUN

Ended = Literal["natural", "forced"]
Key = tuple[str, int, int]  # problem_id, budget, draw
UNKNOWN = -1  # a number of tokens that an imported log does not tell
IMPORTED = "imported"  # the kind of a problem that is known from imported logs only


@dataclass(frozen=True)
class Run:
    """One model under one plan.

    model: {"name": shown to people, "source", "checksum", "manifest": prunus.json or {}, "parameters", "blocks"}.
    plan: EvalPlan.to_json() as resolved, with the values that took effect. versions: library name to version.
    adaptive: {"by": "find", "seed": of prunus.results.order} if rows decided how many problems were taken, in that
    order; None if that was fixed beforehand.
    """

    run_id: str
    model: dict[str, Any]
    plan: dict[str, Any]
    versions: dict[str, Any]
    adaptive: dict[str, Any] | None = None

    @property
    def imported(self) -> bool:
        """Whether the run is an imported log of another tool, whose plan says how that was read."""
        return self.plan.get("mode") == str(AS_RUN)

    @property
    def is_control(self) -> bool:
        """Whether the run repeats another in other batches (EvalPlan.aa_control), and so is no variant."""
        return bool(self.plan.get("aa_control"))


@dataclass(frozen=True)
class Sample:
    """One draw of one problem at one budget.

    budget: thinking tokens allowed, or prunus.budgets.OFF for thinking switched off, which is stored as -1.
    thinking_tokens, answer_tokens: tokens that were sampled; thinking_tokens <= budget, and suppressed stops count as
    thinking. forced_tokens: markers and closings that the protocol inserted. answer: normalised; None if none was
    found. status: the grader's. thinking, text: the decoded phases; empty when read without texts. answer_cap: limit of
    answer tokens, by the plan or by the rest of the context; None in rows of formats 1 and 2, whose plans have it.
    loops: whether the chain loops, by prunus.results.looping; computed when rows of formats 1 to 3 are read.

    Rows of an imported log have budget AS_RUN. Their thinking_tokens are those that the log calls reasoning, and their
    answer_tokens all others. UNKNOWN stands for counts that the log does not tell; forced_tokens are UNKNOWN if it does
    not tell how the output ended, and ended then says nothing. `forced` there means: cut at a limit of the engine.

    logprob and self_certainty are means over the thinking and answer tokens that the model sampled itself (no stops,
    markers or inserted text). p is the softmax of its logits over the whole vocabulary of V tokens, at temperature 1
    and before any token is banned or cut off. logprob: mean of log p(token), natural logarithm. self_certainty: mean of
    KL(uniform || p), which is -log V - mean over the vocabulary of log p (arXiv:2502.18581). Both are None where the
    backend returns no scores or nothing was sampled. repetition: prunus.evaluation.repetition.repetition_rate of both
    phases; None in rows of format 1.
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
    loops: bool = False


@dataclass(frozen=True)
class ProblemRow:
    """A problem without its question, with everything that regrading needs.

    digest: of question, correct answer and choices, equal in two runs only if they had the same problem. asks: the form
    of answer that the question asks for; None if the problem is private or was stored by an older prunus.
    """

    task: str
    problem_id: str
    gold: str
    kind: str
    choices: tuple[str, ...]
    digest: str
    asks: tuple[str, ...] | None = None
    question: str | None = None
