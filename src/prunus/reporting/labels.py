"""How a report names and draws a run: one colour per method, one dash and marker per strength."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

from prunus.recipes import DropRecipe, PruneRecipe, RecoverRecipe
from prunus.results.labels import history, method_name, recipe_of, unique_labels
from prunus.results.rows import Run

HUES = 6
FIRST = ("method", "sparsity", "pattern", "blocks", "allocation", "scope")  # shown first
ALWAYS = {*FIRST, "calibration", "samples", "seqlen", "seed"}  # shown even with default values
PRUNE_USUAL, DROP_USUAL, RECOVER_USUAL = (
    {field.name: field.default for field in fields(one)} for one in (PruneRecipe, DropRecipe, RecoverRecipe)
)
USUAL = {"drop": DROP_USUAL, "recover": RECOVER_USUAL}  # by action; all others: PRUNE_USUAL


@dataclass(frozen=True)
class Look:
    """One run as the report shows it. index 0 is the base; hue 0 is the base's ink, 1 to HUES are colours."""

    index: int
    run_id: str
    label: str
    hue: int
    dash: int
    marker: int

    @property
    def css(self) -> str:
        """Classes that give colour and dash and let the legend hide it."""
        return f"run r{self.index} {self.line}"

    @property
    def line(self) -> str:
        """Classes for colour and dash alone, for what stays when the run is hidden."""
        return f"c{self.hue} d{self.dash}"


def recipe_text(run: Run) -> str:
    """The recipe of each step without default values: `prune: method wanda, sparsity 0.5, ...`."""
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
        gone = step.get("blocks_removed")
        removed = f"; removed blocks {', '.join(map(str, gone))}" if isinstance(gone, list) and gone else ""
        cost = step.get("cost")
        trained = cost.get("tokens") if isinstance(cost, dict) else None
        passes = f"; trained on {trained:,} tokens, repeats counted" if isinstance(trained, int) else ""
        steps.append(f"{step.get('action')}: {values}{removed}{passes}")
    return " · then ".join(steps) or "nothing"


def looks(base: Run, others: Sequence[Run]) -> list[Look]:
    """The base first, then the others grouped by method in order of first appearance."""
    runs = [base, *others]
    labels = unique_labels([(run.run_id, str(run.model.get("name", "?")), history(run)) for run in runs])
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
