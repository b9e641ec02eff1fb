"""Words of verdicts, each with its printed form, its sign and colour in a terminal, and its group.

The value of a word is what records, JSON and stored files have.
"""

from enum import StrEnum
from typing import Self

from prunus.settings.margins import Margin


class LossGroup(StrEnum):
    """Groups of variants by what is known of their loss, in the order in which they are shown.

    The value is the CSS class on the page. sign: on the page. style: in a terminal. said: words for its variants.
    """

    RULED_OUT = "ok", "✓", "green", "as good"
    NOT_DECIDED = "open", "?", "yellow", "not decided"
    IS_WORSE = "bad", "▼", "red", "worse"
    NOT_FINISHED = "none", "", "dim", "not finished"

    sign: str
    style: str
    said: str

    def __new__(cls, css: str, sign: str, style: str, said: str) -> Self:
        """A group with this CSS class."""
        group = str.__new__(cls, css)
        group._value_, group.sign, group.style, group.said = css, sign, style, said
        return group

    @property
    def rank(self) -> int:
        """Its place among the groups."""
        return list(LossGroup).index(self)

    def heading(self, margin: Margin) -> str:
        """The heading over the variants of the group."""
        loss = f"A loss of {margin.words('what the original solves')}"
        return {
            LossGroup.RULED_OUT: f"{loss} is ruled out",
            LossGroup.NOT_DECIDED: "Not decided",
            LossGroup.IS_WORSE: "Worse than the original",
            LossGroup.NOT_FINISHED: "Not finished",
        }[self]


class VerdictWord(StrEnum):
    """Base of the kinds of verdicts. shown: what people read. style, sign: in a terminal. direction: 1 is better."""

    shown: str
    group: LossGroup
    style: str
    sign: str
    direction: int

    def __new__(
        cls, word: str, shown: str, group: LossGroup, style: str = "", sign: str = "", direction: int = 0
    ) -> Self:
        """A verdict with this word, as it is stored, and its printed form, group, style, sign and direction."""
        verdict = str.__new__(cls, word)
        verdict._value_, verdict.shown, verdict.group = word, shown, group
        verdict.style, verdict.sign, verdict.direction = style or group.style, sign, direction
        return verdict

    def __repr__(self) -> str:
        return repr(self.value)


class Verdict(VerdictWord):
    """Verdict on a run, a budget or an ending, beside the base. direction: of the difference that is shown; 0: none."""

    WORSE = "worse", "worse", LossGroup.IS_WORSE, "red", "v", -1
    WORSE_WITHIN_MARGIN = (
        "worse, within the margin", "worse, within the limit", LossGroup.RULED_OUT, "magenta", "~", -1,
    )  # fmt: skip
    BETTER = "better", "better", LossGroup.RULED_OUT, "green", "^", 1
    NON_INFERIOR = "non-inferior", "loss ruled out", LossGroup.RULED_OUT, "cyan", "="
    CANNOT_TELL = "cannot tell", "not decided", LossGroup.NOT_DECIDED, "yellow", "?"
    UNFINISHED = "unfinished", "unfinished", LossGroup.NOT_FINISHED, "dim"  # the run lacks rows of its plan

    @property
    def rules_out_margin(self) -> bool:
        """Whether a loss of the margin or more is ruled out."""
        return self.group is LossGroup.RULED_OUT

    def is_contradicted_by(self, other: "Verdict") -> bool:
        """Whether the verdict of a single budget contradicts this verdict of the run."""
        if self is Verdict.CANNOT_TELL:
            return other.direction != 0
        return (self.rules_out_margin and other is Verdict.WORSE) or self.direction * other.direction == -1


class Scaling(VerdictWord):
    """Verdict on how much of the base's gain per doubling of the budget a run keeps."""

    KEPT = "kept", "kept", LossGroup.RULED_OUT, "cyan"
    LOST = "lost", "lost", LossGroup.IS_WORSE, "red"
    CANNOT_TELL = "cannot tell", "not decided", LossGroup.NOT_DECIDED
    UNFINISHED = "unfinished", "unfinished", LossGroup.NOT_FINISHED


class RungVerdict(VerdictWord):
    """Decision on a rung of a search. GO_ON: there may be more rows."""

    CERTIFIED = "certified", "certified", LossGroup.RULED_OUT
    REFUSED = "refused", "refused", LossGroup.IS_WORSE
    CANNOT_TELL = "cannot tell", "not decided", LossGroup.NOT_DECIDED
    GO_ON = "go on", "not decided", LossGroup.NOT_DECIDED


WORDS = tuple(verdict for verdict in Verdict if verdict is not Verdict.UNFINISHED)
