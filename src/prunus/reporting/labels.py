"""What to call a run, and how to draw it: one colour per method, one dash and marker per strength."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from prunus.recipes import OWN_GROUP, DropRecipe, PruneRecipe
from prunus.reporting.text import DASH, MINUS, NBSP, one_line
from prunus.results.store import Run

NAMES = {
    "wanda": "Wanda",
    "magnitude": "Magnitude",
    "sparsegpt": "SparseGPT",
    "ria": "RIA",
    "dsnot": "DSnoT",
    "alps": "ALPS",
    "shortgpt": "ShortGPT",
    "laco": "LaCo",
    "sleb": "SLEB",
    "wanda++": "Wanda++",
    "gblm": "GBLM",
    "angular": "Angular",
    "tail": "Tail",
    "owl": "OWL",
    "layerif": "LayerIF",
    "layerif-sketch": "LayerIF-sketch",
    "alphapruning": "AlphaPruning",
    "atp": "ATP",
    "dlp": "DLP",
    "mlp": "MLP",
    "obs": "OBS",
}
HUES = 6
FIRST = ("method", "sparsity", "pattern", "blocks", "allocation", "scope")  # what people look for in a recipe
ALWAYS = {*FIRST, "calibration", "samples", "seqlen", "seed"}  # also where they are as usual
PRUNE_USUAL, DROP_USUAL = ({field.name: field.default for field in fields(one)} for one in (PruneRecipe, DropRecipe))


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


def history(run: Run) -> list[dict[str, Any]]:
    """What was done to the run's model, oldest first; empty for a dense model."""
    manifest = run.model.get("manifest")
    steps = manifest.get("history") if isinstance(manifest, dict) else None
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _recipe(step: dict[str, Any]) -> dict[str, Any]:
    recipe = step.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def _method(step: dict[str, Any]) -> str:
    """Method with what sets it apart besides its strength: what shares a colour."""
    recipe = _recipe(step)
    method = str(recipe.get("method", step.get("action", "?")))
    extras = [
        NAMES.get(str(recipe[key]), str(recipe[key]))
        for key, usual in (("scope", "all"), ("allocation", "uniform"), ("update", "none"))
        if recipe.get(key, usual) != usual
    ]
    if recipe.get("group") not in (None, OWN_GROUP.get(method)):
        extras.append(f"by {recipe['group']}")
    return " ".join([NAMES.get(method, method), *extras])


def step_label(step: dict[str, Any]) -> str:
    """`Wanda 50 %`, `Magnitude MLP OWL 20 %`, `ShortGPT −2 blocks`, `blocks 16, 17 removed`, `packed`."""
    recipe = _recipe(step)
    if step.get("action") == "pack":
        return "packed"
    if step.get("action") == "drop":
        blocks = str(recipe.get("blocks", "?"))
        if "," in blocks:
            numbers = [part.strip() for part in blocks.split(",") if part.strip()]
            return f"block{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} removed"
        gone = step.get("blocks_removed")
        blocks = str(len(gone)) if isinstance(gone, list) and gone else blocks
        return f"{_method(step)} {MINUS}{blocks}{NBSP}block{'' if blocks == '1' else 's'}"
    sparsity, pattern = recipe.get("sparsity"), recipe.get("pattern")
    amount = str(pattern) if pattern else f"{100 * sparsity:.3g}{NBSP}%" if isinstance(sparsity, int | float) else DASH
    return f"{_method(step)} {amount}"


def recipe_text(run: Run) -> str:
    """What was asked for but the usual, step by step: `prune: method wanda, sparsity 0.5, ...`."""
    steps = []
    for step in history(run):
        usual = DROP_USUAL if step.get("action") == "drop" else PRUNE_USUAL
        recipe = {
            key: value
            for key, value in _recipe(step).items()
            if value is not None and (key in ALWAYS or key not in usual or value != usual[key])
        }
        keys = sorted(recipe, key=lambda key: (key not in FIRST, FIRST.index(key) if key in FIRST else 0, key))
        values = ", ".join(f"{key} {recipe[key]}" for key in keys)
        gone = step.get("blocks_removed")
        removed = f"; removed blocks {', '.join(map(str, gone))}" if isinstance(gone, list) and gone else ""
        steps.append(f"{step.get('action')}: {values}{removed}")
    return " · then ".join(steps) or "nothing"


def label(steps: Sequence[dict[str, Any]]) -> str:
    """A short name for what was done, on one line; `dense` for nothing."""
    return one_line(" + ".join(step_label(step) for step in steps)) or "dense"


def unique_labels(named: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> list[str]:
    """Labels for (run id, model name, history): with the name where base models differ, the id where labels agree."""
    one_model = len({model for _, model, steps in named if not steps}) <= 1
    texts = [label(steps) if one_model else f"{one_line(model)}: {label(steps)}" for _, model, steps in named]
    twice = {text for text, times in Counter(texts).items() if times > 1}
    return [
        f"{text} ({run_id[:8]})" if text in twice else text for text, (run_id, _, _) in zip(texts, named, strict=True)
    ]


def looks(base: Run, others: Sequence[Run]) -> list[Look]:
    """The base first, then the others grouped by method in order of first appearance."""
    runs = [base, *others]
    labels = unique_labels([(run.run_id, str(run.model.get("name", "?")), history(run)) for run in runs])
    hues: dict[str, int] = {}
    seen: Counter[str] = Counter()
    result = [Look(0, base.run_id, labels[0], 0, 0, 0)]
    for index, (run, text) in enumerate(zip(others, labels[1:], strict=True), start=1):
        group = " + ".join(_method(step) for step in history(run))
        hues.setdefault(group, len(hues))
        wraps = hues[group] // HUES
        result.append(
            Look(index, run.run_id, text, 1 + hues[group] % HUES, seen[group] % 4, 1 + (seen[group] + wraps) % 4)
        )
        seen[group] += 1
    return result
