"""The name, colour, dash and marker of each run in a report: a colour per method, a dash and marker per strength."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

from prunus.recipes import DropRecipe, ExpertsRecipe, PruneRecipe, RecoverRecipe
from prunus.results.labels import experts_amount, history, method_name, named, recipe_of, unique_labels
from prunus.results.rows import Run

HUES = 6
# Settings that are shown first.
FIRST = ("method", "sparsity", "pattern", "blocks", "keep", "drop", "allocation", "scope")
ALWAYS = {*FIRST, "calibration", "samples", "seqlen", "seed"}  # settings that are shown even with default values
PRUNE_USUAL, DROP_USUAL, EXPERTS_USUAL, RECOVER_USUAL = (
    {field.name: field.default for field in fields(one)}
    for one in (PruneRecipe, DropRecipe, ExpertsRecipe, RecoverRecipe)
)
# Default settings by action; all others use PRUNE_USUAL.
USUAL = {"drop": DROP_USUAL, "experts": EXPERTS_USUAL, "recover": RECOVER_USUAL}


@dataclass(frozen=True)
class Look:
    """The look of one run in the report. index: 0 is the base. hue: 0 is the base's black, 1 to HUES are colours."""

    index: int
    run_id: str
    label: str
    hue: int
    dash: int
    marker: int

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
        usual = USUAL.get(str(step.get("action")), PRUNE_USUAL)
        recipe = {
            key: value
            for key, value in recipe_of(step).items()
            if value is not None and (key in ALWAYS or key not in usual or value != usual[key])
        }
        keys = sorted(recipe, key=lambda key: (key not in FIRST, FIRST.index(key) if key in FIRST else 0, key))
        values = ", ".join(f"{key} {recipe[key]}" for key in keys)
        blocks = step.get("blocks_removed")
        removed = f"; removed blocks {', '.join(map(str, blocks))}" if isinstance(blocks, list) and blocks else ""
        if step.get("action") == "experts":
            removed = f"; {experts_amount(step)} kept"
        cost = step.get("cost")
        trained = cost.get("tokens") if isinstance(cost, dict) else None
        passes = f"; trained on {trained:,} tokens, repeats counted" if isinstance(trained, int) else ""
        steps.append(f"{step.get('action')}: {values}{removed}{passes}")
    return " · then ".join(steps) or "nothing"


def looks(base: Run, others: Sequence[Run]) -> list[Look]:
    """The look of the base, then those of the others in order; runs of the same method have the same colour."""
    runs = [base, *others]
    labels = unique_labels([named(run) for run in runs])
    hues: dict[str, int] = {}
    seen: Counter[str] = Counter()
    result = [Look(0, base.run_id, labels[0], 0, 0, 0)]
    for index, (run, text) in enumerate(zip(others, labels[1:], strict=True), start=1):
        group = " + ".join(method_name(step) for step in history(run))
        hues.setdefault(group, len(hues))
        wraps = hues[group] // HUES
        result.append(
            Look(index, run.run_id, text, 1 + hues[group] % HUES, seen[group] % 4, 1 + (seen[group] + wraps) % 4)
        )
        seen[group] += 1
    return result
