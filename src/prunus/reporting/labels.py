"""The name, colour, dash and marker of each run in a report: a colour per method, a dash and marker per strength."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prunus.results.labels import history, label_parts, method_name, settings, unique_labels
from prunus.results.rows import Run
from prunus.step import recorded_kind

HUES = 6
# Settings that are shown first.
FIRST = ("method", "sparsity", "pattern", "blocks", "keep", "drop", "allocation", "scope")
ALWAYS = {"calibration", "samples", "seqlen", "seed"}  # settings that are shown even with default values


@dataclass(frozen=True)
class Look:
    """The look of one run in the report. index: 0 is the base. hue: 0 is the base's black, 1 to HUES are colours.

    family: the methods of its steps, which runs of one colour share.
    """

    index: int
    run_id: str
    label: str
    hue: int
    dash: int
    marker: int
    family: str = ""

    @property
    def css(self) -> str:
        """CSS classes for colour and dash, and those by which the legend hides the run."""
        return f"run r{self.index} {self.line}"

    @property
    def line(self) -> str:
        """CSS classes for colour and dash only, for elements that stay when the run is hidden."""
        return f"c{self.hue} d{self.dash}"


def recipe_text(run: Run) -> str:
    """The recipe of each step without most default values: `prune: method wanda, sparsity 0.5, ...`."""
    steps = []
    for step in history(run):
        values = ", ".join(f"{name} {value}" for name, value in settings(step, FIRST, ALWAYS))
        outcome = recorded_kind(step).outcome(step, brief=True)
        removed = f"; {outcome}" if outcome else ""
        cost = step.get("cost")
        trained = cost.get("tokens") if isinstance(cost, dict) else None
        passes = f"; trained on {trained:,} tokens, repeats counted" if isinstance(trained, int) else ""
        steps.append(f"{step.get('action')}: {values}{removed}{passes}")
    return " · then ".join(steps) or "nothing"


def looks(base: Run, others: Sequence[Run]) -> list[Look]:
    """The look of the base, then those of the others in order; runs of the same method have the same colour."""
    runs = [base, *others]
    labels = unique_labels([label_parts(run) for run in runs])
    hues: dict[str, int] = {}
    seen: Counter[str] = Counter()
    result = [Look(0, base.run_id, labels[0], 0, 0, 0)]
    for index, (run, text) in enumerate(zip(others, labels[1:], strict=True), start=1):
        group = " + ".join(method_name(step) for step in history(run))
        hues.setdefault(group, len(hues))
        hue, marker = 1 + hues[group] % HUES, 1 + (seen[group] + hues[group] // HUES) % 4
        result.append(Look(index, run.run_id, text, hue, seen[group] % 4, marker, group))
        seen[group] += 1
    return result
