"""Labels of runs: short names for what was done to a model, as tables and pages print them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from prunus.recipes import OWN_GROUP
from prunus.results.characters import DASH, MINUS, NBSP, THIN, one_line

if TYPE_CHECKING:
    from prunus.results.cells import Identity, Sized
    from prunus.results.rows import Run

Step = Mapping[str, Any]  # a step of a manifest's history, or its recipe

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


# Settings that labels name or that go without saying, and nouns of settings that are numbers of something.
_NAMED = {"method", "sparsity", "pattern", "blocks", "scope", "allocation", "update", "group", "match_sparsity"}
_COUNTS = {"samples": "samples", "calibration_tokens": "tokens", "seqlen": "tokens each", "epochs": "epochs"}
CONTROL = "control"  # the action of control_steps


def history(run: "Run") -> list[Step]:
    """The steps that made the run's model, oldest first; empty for an unpruned model."""
    manifest = run.model.get("manifest")
    steps = manifest.get("history") if isinstance(manifest, dict) else None
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def control_steps(run: "Run") -> list[Step]:
    """What labels add for a run whose budget the engine or the model kept (control native), and for an A/A control."""
    native, again = run.plan.get("control") == "native", run.is_control
    steps: list[Step] = [{"action": CONTROL, "recipe": {"control": "native"}}] if native else []
    return [*steps, {"action": CONTROL, "recipe": {"aa_control": True}}] if again else steps


def recipe_of(step: Step) -> Step:
    """The recipe of a step, {} where there is none."""
    recipe = step.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def method_name(step: Step) -> str:
    """The method with its options but without its strength; runs of the same name share a colour."""
    recipe = recipe_of(step)
    method = str(recipe.get("method", step.get("action", "?")))
    if step.get("action") == "experts":
        extras = ["global"] if recipe.get("spread", "uniform") != "uniform" else []
        return " ".join([NAMES.get(method, EXPERTS.get(method, method)), *extras])
    extras = [
        NAMES.get(str(recipe[key]), str(recipe[key]))
        for key, usual in (("scope", "all"), ("allocation", "uniform"), ("update", "none"))
        if recipe.get(key, usual) != usual
    ]
    if recipe.get("group") not in (None, OWN_GROUP.get(method)):
        extras.append(f"by {recipe['group']}")
    return " ".join([NAMES.get(method, method), *extras])


def experts_amount(step: Step) -> str:
    """`6 of 8 experts`, `4 to 7 of 8 experts` or, where the step does not say, the share or number of its recipe."""
    recipe, counts = recipe_of(step), step.get("experts", {})
    try:
        before, after = (sorted({int(n) for n in counts[key].values()}) for key in ("before", "after"))
        left, all_of = (str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}" for n in (after, before))
        return f"{left} of {all_of} experts"
    except (TypeError, KeyError, AttributeError, ValueError, IndexError):  # of another program, or damaged
        drop, keep = recipe.get("drop"), recipe.get("keep")
        if isinstance(keep, int | float):
            return f"{100 * keep:.3g}{NBSP}% of experts"
        return f"{MINUS}{drop}{NBSP}experts"


def step_label(step: Step) -> str:
    """`Wanda 50 %`, `ShortGPT −2 blocks`, `REAP 6 of 8 experts`, `blocks 16, 17 removed`, `packed`, `fp8`."""
    recipe = recipe_of(step)
    if step.get("action") == "import":
        return str(recipe.get("as", "imported"))
    if step.get("action") == "pack":
        return "packed"
    if step.get("action") == "recover":
        return "recovered"
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


def label(steps: Sequence[Step]) -> str:
    """A short name for what was done, on one line; `dense` for nothing. Native and A/A control are named at its end."""
    made = made_by(steps)
    text = one_line(" + ".join(step_label(step) for step in made)) or "dense"
    controls = [recipe_of(step) for step in steps if step.get("action") == CONTROL]
    return text + "".join(", A/A control" if of.get("aa_control") else ", native control" for of in controls)


def label_of(run: "Run") -> str:
    """The label of a run on its own."""
    return label([*history(run), *control_steps(run)])


def made_by(steps: Sequence[Step]) -> list[Step]:
    """The steps that made a model, without those of control_steps."""
    return [step for step in steps if step.get("action") != CONTROL]


class Named(NamedTuple):
    """What a run's label is made of. steps: those that made its model, and control_steps. dtypes: as of dtypes_of."""

    run_id: str
    model: str
    steps: Sequence[Step]
    dtypes: Sequence[str | None]

    @classmethod
    def of(cls, identity: "Identity") -> Self:
        """From a run's identity, as summaries and comparisons have it."""
        return cls(identity.run, str(identity.model), identity.recipe, identity.dtypes or (None, None))


def named(run: "Run") -> Named:
    """What a run's label is made of."""
    steps = [*history(run), *control_steps(run)]
    return Named(run.run_id, str(run.model.get("name", "?")), steps, dtypes_of(run))


def dtypes_of(run: "Run") -> list[str | None]:
    """The dtypes of a run's weights, and of its computation; None where one is unknown or the weights are quantised."""
    if any(step.get("action") == "quantise" for step in history(run)):
        return [None, None]
    found = [run.model.get("dtype"), run.versions.get("dtype")]
    return [None if dtype is None else one_line(str(dtype)) for dtype in found]


def unique_labels(runs: Iterable[Named]) -> list[str]:
    """A label for each run; the model's name tells base models apart.

    Where the dtypes of runs differ, labels name them. Equal labels are told apart by the settings in which the recipes
    differ (`Wanda 50 % (on c4, 64 samples)`), or else by the run's id.
    """
    runs = list(runs)
    one_model = len({one.model for one in runs if not made_by(one.steps)}) <= 1
    texts = [label(one.steps) if one_model else f"{one_line(one.model)}: {label(one.steps)}" for one in runs]
    texts = [f"{text}{dtype}" for text, dtype in zip(texts, _dtypes(runs), strict=True)]
    for text in [text for text, times in Counter(texts).items() if times > 1]:
        alike = [place for place, other in enumerate(texts) if other == text]
        for place, apart in zip(alike, _apart([runs[place] for place in alike]), strict=True):
            texts[place] = f"{text} ({apart})" if apart else text
    return texts


def _dtypes(runs: Sequence[Named]) -> list[str]:
    """`, bfloat16` for each run, where dtypes differ: those of the weights if they do, else of the computation."""
    for kind in (0, 1):
        known = {one.dtypes[kind] for one in runs if one.dtypes[kind]}
        if len(known) > 1:
            return [f", {one.dtypes[kind]}" if one.dtypes[kind] else "" for one in runs]
    return ["" for _ in runs]


def _apart(runs: Sequence[Named]) -> list[str]:
    """What tells runs of one label apart: settings in which they differ, or the beginnings of their ids."""
    told = [details(one.steps) for one in runs]
    differing = [key for key in dict.fromkeys(chain(*told)) if len({of.get(key) for of in told}) > 1]
    texts = [", ".join(dict.fromkeys(of[key] for key in differing if key in of)) for of in told]
    times = Counter(texts)
    return [
        text if times[text] == 1 else ", ".join([text] * bool(text) + [one.run_id[:8]])
        for text, one in zip(texts, runs, strict=True)
    ]


def details(steps: Sequence[Step]) -> dict[tuple[int, str], str]:
    """The settings of the steps that labels leave out, as text, by (index of the step, setting).

    A recovery's settings equal to those of the pruning before it are left out.
    """
    found: dict[tuple[int, str], str] = {}
    for number, step in enumerate(made_by(steps)):
        recipe = recipe_of(step)
        for key, value in recipe.items():
            if value is None or key in _NAMED or (key == "samples" and recipe.get("calibration_tokens") is not None):
                continue
            text = _detail(key, value, step)
            if text not in found.values():
                found[number, key] = text
    return found


def _detail(key: str, value: Any, step: Step) -> str:
    """`on own.jsonl`, `64 samples`, `closing weight 4`."""
    if key == "calibration":
        told = step.get("calibration")
        source = str((told.get("source") if isinstance(told, dict) else None) or value)
        return one_line(f"on {source.removeprefix('traces:').replace(chr(92), '/').rpartition('/')[2]}")
    if key in _COUNTS and isinstance(value, int):
        return f"{value:,} {_COUNTS[key]}"
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{key.replace('_', ' ')}"
    number = f"{value:.6g}" if isinstance(value, float) else str(value)
    return one_line(f"{key.replace('_', ' ')} {number}")


def is_called(run: "Run", text: str) -> bool:
    """Whether text is the run's label as tables print it: alone, after the model's name, or before what tells it apart.

    Differences of case, kinds of spaces and of dashes are ignored: `wanda 50 %` means `Wanda 50 %`. What tells runs
    apart is the dtype, settings of the recipe, and the beginning of the run's id.
    """
    of = named(run)
    short = label(of.steps)
    names = [name + end for name in (short, f"{one_line(of.model)}: {short}") for end in ("", *_ends(of))]
    begin, bracket, inside = text.removesuffix(")").rpartition(" (")
    if not text.endswith(")") or not bracket:
        return _typed(text) in map(_typed, names)
    told = {_typed(part) for part in (*details(of.steps).values(), run.run_id[:8])}
    # A setting's text may have commas itself, as in `4,096 tokens`.
    is_told = {_typed(part) for part in inside.split(", ")} <= told
    return _typed(text) in map(_typed, names) or (_typed(begin) in map(_typed, names) and is_told)


def _ends(of: Named) -> list[str]:
    return [f", {dtype}" for dtype in of.dtypes if dtype]


def _typed(text: str) -> str:
    for printed, typed in ((NBSP, " "), (THIN, " "), (MINUS, "-"), (DASH, "-")):
        text = text.replace(printed, typed)
    return " ".join(text.split()).casefold()


def observations(cell: "Sized", unit: str = " problems") -> str:
    """`120 problems`, or `120 problems in 30 groups` where some belong together."""
    return f"{cell.n}{unit}" if cell.problems is None else f"{cell.problems}{unit} in {cell.n} groups"
