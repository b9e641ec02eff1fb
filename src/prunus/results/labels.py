"""Labels of runs: short names for what was done to a model, as tables and pages print them."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunus.recipes import OWN_GROUP
from prunus.results.characters import DASH, MINUS, NBSP, THIN, one_line

if TYPE_CHECKING:
    from prunus.results.rows import Run

NAMES = {
    "wanda": "Wanda",
    "magnitude": "Magnitude",
    "sparsegpt": "SparseGPT",
    "ria": "RIA",
    "dsnot": "DSnoT",
    "alps": "ALPS",
    "reap": "REAP",
    "ean": "EAN",
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
# Criteria for experts whose names are words: what a label says instead.
EXPERTS = {"frequency": "Frequency", "router": "Router", "output": "Output", "random": "Random"}


CONTROL = "control"  # the action of control_steps


def history(run: "Run") -> list[dict[str, Any]]:
    """The steps that made the run's model, oldest first; empty for an unpruned model."""
    manifest = run.model.get("manifest")
    steps = manifest.get("history") if isinstance(manifest, dict) else None
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def control_steps(run: "Run") -> list[dict[str, Any]]:
    """What labels add for a run whose budget the engine or the model kept (control native); empty for others."""
    native = run.plan.get("control") == "native"
    return [{"action": CONTROL, "recipe": {"control": "native"}}] if native else []


def recipe_of(step: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a step, {} where there is none."""
    recipe = step.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def method_name(step: dict[str, Any]) -> str:
    """The method with its options but without its strength; runs of the same name share a colour."""
    recipe = recipe_of(step)
    method = str(recipe.get("method", step.get("action", "?")))
    if step.get("action") == "experts":
        return " ".join([NAMES.get(method, EXPERTS.get(method, method)), *_experts_extras(recipe)])
    extras = [
        NAMES.get(str(recipe[key]), str(recipe[key]))
        for key, usual in (("scope", "all"), ("allocation", "uniform"), ("update", "none"))
        if recipe.get(key, usual) != usual
    ]
    if recipe.get("group") not in (None, OWN_GROUP.get(method)):
        extras.append(f"by {recipe['group']}")
    return " ".join([NAMES.get(method, method), *extras])


def _experts_extras(recipe: dict[str, Any]) -> list[str]:
    """What a label of removed experts names besides the method."""
    return ["global"] if recipe.get("spread", "uniform") != "uniform" else []


def experts_amount(step: dict[str, Any]) -> str:
    """`6 of 8 experts`, `4 to 7 of 8 experts` or, where the step does not say, the share or number of its recipe."""
    recipe, counts = recipe_of(step), step.get("experts")
    try:
        before, after = (sorted({int(n) for n in counts[key].values()}) for key in ("before", "after"))  # type: ignore[index]
        left, all_of = (str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}" for n in (after, before))
        return f"{left} of {all_of} experts"
    except (TypeError, KeyError, AttributeError, ValueError, IndexError):  # of another program, or damaged
        drop, keep = recipe.get("drop"), recipe.get("keep")
        if isinstance(keep, int | float):
            return f"{100 * keep:.3g}{NBSP}% of experts"
        return f"{MINUS}{drop}{NBSP}experts"


def step_label(step: dict[str, Any]) -> str:
    """`Wanda 50 %`, `ShortGPT −2 blocks`, `REAP 6 of 8 experts`, `blocks 16, 17 removed`, `packed`, `fp8`."""
    recipe = recipe_of(step)
    if step.get("action") == "import":
        return str(recipe.get("as", "imported"))
    if step.get("action") == "pack":
        return "packed"
    if step.get("action") == "recover":
        rounds = step.get("round")
        return f"recovered in {rounds.get('of')} rounds" if isinstance(rounds, dict) else "recovered"
    if step.get("action") == "dequantize":
        return "dequantised"
    if step.get("action") == "quantise":
        return str(recipe.get("method", "quantised"))
    if step.get("action") == "drop":
        blocks = str(recipe.get("blocks", "?"))
        if "," in blocks:
            numbers = [part.strip() for part in blocks.split(",") if part.strip()]
            return f"block{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} removed"
        gone = step.get("blocks_removed")
        blocks = str(len(gone)) if isinstance(gone, list) and gone else blocks
        return f"{method_name(step)} {MINUS}{blocks}{NBSP}block{'' if blocks == '1' else 's'}"
    if step.get("action") == "experts":
        return f"{method_name(step)} {experts_amount(step)}"
    sparsity, pattern = recipe.get("sparsity"), recipe.get("pattern")
    amount = str(pattern) if pattern else f"{100 * sparsity:.3g}{NBSP}%" if isinstance(sparsity, int | float) else DASH
    return f"{method_name(step)} {amount}"


def label(steps: Sequence[dict[str, Any]]) -> str:
    """A short name for what was done, on one line; `dense` for nothing. Native control is named at its end."""
    made = made_by(steps)
    text = one_line(" + ".join(step_label(step) for step in made if not _is_early(step))) or "dense"
    return text if len(made) == len(steps) else f"{text}, native control"


def made_by(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps that made a model, without that of control_steps."""
    return [step for step in steps if step.get("action") != CONTROL]


def _is_early(step: dict[str, Any]) -> bool:
    """Whether a step is of a round before the last."""
    rounds = step.get("round")
    return isinstance(rounds, dict) and rounds.get("number") != rounds.get("of")


def unique_labels(named: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> list[str]:
    """Labels for (run id, model name, history); the model's name tells base models apart, the run id equal labels."""
    one_model = len({model for _, model, steps in named if not made_by(steps)}) <= 1
    texts = [label(steps) if one_model else f"{one_line(model)}: {label(steps)}" for _, model, steps in named]
    twice = {text for text, times in Counter(texts).items() if times > 1}
    return [
        f"{text} ({run_id[:8]})" if text in twice else text for text, (run_id, _, _) in zip(texts, named, strict=True)
    ]


def is_called(run: "Run", text: str) -> bool:
    """Whether text is the run's label as tables print it: alone, after the model's name, or before the run's id.

    Differences of case, kinds of spaces and of dashes are ignored: `wanda 50 %` means `Wanda 50 %`.
    """
    short = label([*history(run), *control_steps(run)])
    names = (short, f"{one_line(str(run.model.get('name')))}: {short}")
    return _typed(text) in {_typed(name + end) for name in names for end in ("", f" ({run.run_id[:8]})")}


def _typed(text: str) -> str:
    for printed, typed in ((NBSP, " "), (THIN, " "), (MINUS, "-"), (DASH, "-")):
        text = text.replace(printed, typed)
    return " ".join(text.split()).casefold()
