"""Labels of runs, short names for what was done to a model, as tables and pages print them; their plans in short."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field
from itertools import chain
from typing import Any

from prunus.errors import PrunusError
from prunus.manifest import Manifest, StepRecord
from prunus.plain_data import HIDDEN, Record, content_hash
from prunus.settings import settings_of
from prunus.settings.cache_size import CacheOfChain, in_all
from prunus.step import STEPS, recorded_kind, step_kind
from prunus.store.characters import DASH, LABEL_LIMIT, MINUS, NBSP, THIN, one_line
from prunus.store.rows import Run
from prunus.store.stored import StoredPlan

# Settings that labels name or that go without saying, and nouns of settings that are numbers of something.
_SHOWN = {"method", "sparsity", "pattern", "blocks", "scope", "allocation", "update", "group", "match_sparsity"}
_COUNTS = {"sequences": "sequences", "calibration_tokens": "tokens", "seqlen": "tokens each", "epochs": "epochs"}
# Actions of our own steps that store weights in another form; the quantisation of other programs is `quantise`.
STORED_AS = ("quantize", "gguf")
# Settings that say how much a step does, which lists of settings begin with.
FIRST = ("bits", "type", "method", "sparsity", "pattern", "blocks", "keep", "drop", "intermediate_size")


class Identity(Record):
    """A run: its id, its model, the steps that made it. Its text is the id.

    run: its id.
    model: the name of the model.
    recipe: the steps that made it; empty for a dense model.
    dtypes: of the weights, and of the computation; None where one is unknown, and where both are.
    bytes: that an engine loads of the model, by kind; None where they are unknown.
    cache: size of the cache of a chain, which is not in `bytes`.
    parameters: their number, which is not in the plain data; None where it is unknown.
    serving: what labels call how it was served: the name that a study gave it, or else its settings; None where nothing
        of that counts.
    serving_settings: those of the serving in short; empty where none of them counts.
    control: native where the engine or the model keeps the budget.
    aa_control: whether it is an A/A control; None if it is not.
    """

    run: str
    model: str | None
    recipe: Sequence[StepRecord]
    dtypes: Sequence[str | None] | None = None
    bytes: Mapping[str, int] | None = None
    cache: CacheOfChain | None = None
    parameters: int | None = field(default=None, metadata=HIDDEN)
    serving: str | None = None
    serving_settings: str | None = None
    control: str | None = None
    aa_control: bool | None = None

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.run

    @property
    def label(self) -> str:
        """A short name for what was done, which ends with the serving and the kind of control."""
        return self.in_short(with_serving=True)

    def in_short(self, with_serving: bool) -> str:
        """The label, with or without the serving."""
        ends = (
            (f" · {self.serving}", self.serving and with_serving),
            (", native control", self.control),
            (", A/A control", self.aa_control),
        )
        return label(self.recipe) + "".join(text for text, is_so in ends if is_so)

    def __str__(self) -> str:
        return self.run


def sizes_of(runs: Iterable[Identity]) -> tuple[list[int | None], int | None]:
    """(bytes of each run, tokens of the chain whose cache they have), as prunus.settings.cache_size.in_all says."""
    return in_all((None if run.bytes is None else sum(run.bytes.values()), run.cache) for run in runs)


def is_quantised(manifest: Manifest) -> bool:
    """Whether the last step of a model's manifest says how its weights are stored."""
    return bool(manifest.history) and manifest.history[-1].action in STORED_AS


def step_label(step: StepRecord) -> str:
    """A step's label: that of its kind, or `dequantised`, `fp8` and the like for imported or quantised weights."""
    if step.action == "import":
        return step.recipe.imported_as
    if step.action == "quantise":
        return step.recipe.method or "quantised"
    if step.action == "dequantize":
        return "dequantised"
    return recorded_kind(step).label(step)


def settings(step: StepRecord, always: Collection[str] = ()) -> list[tuple[str, Any]]:
    """(name, value) of a step's settings: those of FIRST, then those in always or that are not the defaults."""
    known = settings_of(step_kind(step.action).recipe) if step.action in STEPS else {}
    shown, recipe = {*FIRST, *always}, step.recipe.data
    names = [k for k, v in recipe.items() if v is not None and (k in shown or k not in known or v != known[k].default)]
    names.sort(key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    return [(name, recipe[name]) for name in names]


def label(steps: Sequence[StepRecord]) -> str:
    """A short name for what was done to a model, on one line; `dense` for nothing."""
    return one_line(" + ".join(step_label(step) for step in steps)) or "dense"


def label_of(run: Run) -> str:
    """The label of a run on its own."""
    return identity(run).label


def identity(run: Run) -> Identity:
    """The identity of a run, which summaries and comparisons contain and its label is made from."""
    # Keys of a step that labels need besides the recipe, since that may have a share instead of a number.
    kept = ("action", "recipe", "blocks_removed", "experts", "channels", "format", "calibration")
    steps = run.model.manifest.history
    dtypes, serving = dtypes_of(run), run.model.serving
    called = one_line(run.model.served_as or "") or one_line(serving.label)
    settings = one_line(serving.settings, LABEL_LIMIT if called == one_line(serving.settings) else LONGEST_LINE)
    return Identity(
        run=run.run_id,
        model=run.model.name,
        recipe=[StepRecord.of({name: step.data[name] for name in kept if name in step.data}) for step in steps],
        dtypes=dtypes if any(dtypes) else None,
        bytes=run.model.bytes,
        cache=run.model.cache,
        parameters=run.model.parameters,
        serving=called or None,
        serving_settings=settings if called else None,
        control=run.plan.control if run.plan.is_native else None,
        aa_control=run.is_control or None,
    )


def dtypes_of(run: Run) -> list[str | None]:
    """The dtypes of a run's weights, and of its computation; None where one is unknown or the weights are quantised."""
    if any(step.action in ("quantise", *STORED_AS) for step in run.model.manifest.history):
        return [None, None]
    dtypes = [run.model.dtype, run.environment.dtype]
    return [None if dtype is None else one_line(str(dtype)) for dtype in dtypes]


def unique_labels(runs: Iterable[Identity]) -> list[str]:
    """A label for each run; the model's name tells base models apart.

    A serving that all of several runs have is left out. Where the dtypes of runs differ, labels name them. Equal labels
    are told apart by the settings in which the recipes differ (`Wanda 50 % (on c4, 64 sequences)`), or else by the
    run's id.
    """
    runs = list(runs)
    one_model = len({run.model for run in runs if not run.recipe}) <= 1
    differ = len(runs) == 1 or len({run.serving for run in runs}) > 1
    texts = [
        run.in_short(differ) if one_model else f"{one_line(str(run.model))}: {run.in_short(differ)}" for run in runs
    ]
    texts = [f"{text}{dtype}" for text, dtype in zip(texts, _dtypes(runs), strict=True)]
    for text in [text for text, times in Counter(texts).items() if times > 1]:
        alike = [place for place, other in enumerate(texts) if other == text]
        for place, difference in zip(alike, _differences([runs[place] for place in alike]), strict=True):
            texts[place] = f"{text} ({difference})" if difference else text
    return texts


def _dtypes(runs: Sequence[Identity]) -> list[str]:
    """A suffix such as `, bfloat16` for each run: the dtype of weights if these differ, else that of computation."""
    for dtypes in zip(*(run.dtypes or (None, None) for run in runs), strict=True):
        if len({*dtypes} - {None}) > 1:
            return [f", {dtype}" if dtype else "" for dtype in dtypes]
    return ["" for _ in runs]


def _differences(runs: Sequence[Identity]) -> list[str]:
    """Texts that tell runs of the same label apart: settings in which they differ, or the beginnings of their ids."""
    settings = [details(run.recipe) for run in runs]
    differing = [key for key in dict.fromkeys(chain(*settings)) if len({of.get(key) for of in settings}) > 1]
    texts = [", ".join(dict.fromkeys(of[key] for key in differing if key in of)) for of in settings]
    times = Counter(texts)
    return [
        text if times[text] == 1 else ", ".join([text] * bool(text) + [run.run[:8]])
        for text, run in zip(texts, runs, strict=True)
    ]


def details(steps: Sequence[StepRecord]) -> dict[tuple[int, str], str]:
    """The settings of the steps that labels leave out, as text, by (index of the step, setting).

    A recovery's settings equal to those of the pruning before it are left out.
    """
    texts: dict[tuple[int, str], str] = {}
    for number, step in enumerate(steps):
        for key, value in step.recipe.data.items():
            if value is None or key in _SHOWN or (key == "sequences" and step.recipe.calibration_tokens is not None):
                continue
            text = _detail(key, value, step)
            if text not in texts.values():
                texts[number, key] = text
    return texts


def _detail(key: str, value: object, step: StepRecord) -> str:
    """The text of a setting, such as `on own.jsonl`, `64 sequences` or `closing weight 4`."""
    if key == "calibration":
        source = str((step.calibration and step.calibration.source) or value)
        return one_line(f"on {source.removeprefix('traces:').replace(chr(92), '/').rpartition('/')[2]}")
    if key in _COUNTS and isinstance(value, int):
        return f"{value:,} {_COUNTS[key]}"
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{key.replace('_', ' ')}"
    number = f"{value:.6g}" if isinstance(value, float) else str(value)
    return one_line(f"{key.replace('_', ' ')} {number}")


def is_called(run: Run | Identity, text: str) -> bool:
    """Whether text is the run's label as tables print it: alone, after the model's name, or before what tells it apart.

    Differences of case, kinds of spaces and of dashes are ignored: `wanda 50 %` means `Wanda 50 %`. What tells runs
    apart is the dtype, settings of the recipe, and the beginning of the run's id.
    """
    of = identity(run) if isinstance(run, Run) else run
    shorts = {of.in_short(with_serving) for with_serving in (True, False)}
    ends = ["", *(f", {dtype}" for dtype in of.dtypes or () if dtype)]
    called = {*shorts, *(f"{one_line(str(of.model))}: {short}" for short in shorts)}
    names = {_typed(name + end) for name in called for end in ends}
    begin, _, inside = text.removesuffix(")").rpartition(" (")
    known = {_typed(part) for part in (*details(of.recipe).values(), of.run[:8])}
    # A setting's text may have commas itself, as in `4,096 tokens`.
    all_known = text.endswith(")") and {_typed(part) for part in inside.split(", ")} <= known
    return _typed(text) in names or (_typed(begin) in names and all_known)


def _typed(text: str) -> str:
    for printed, typed in ((NBSP, " "), (THIN, " "), (MINUS, "-"), (DASH, "-"), (" · ", ", ")):
        text = text.replace(printed, typed)
    return " ".join(text.split()).casefold()


# Settings that follow from others and the model: they are only named where no other setting differs.
FOLLOWS = {"problems", "limit_of", "strings", "end_ids", "context", "kernel", "off", "native"}
LONGEST = 40  # characters of a value; a longer one is named by its hash
LONGEST_LINE = 300


def plan_in_short(plan: StoredPlan) -> str:
    """A plan in short, such as `tiny, first 30 problems; budgets 16, 64; 3 draws; strict; profile tiny; seed 0`."""
    if plan.tool is not None:  # an imported log
        return _joined([f"log of {plan.tool}", *plan.tasks], ", ")
    tasks, draws = _joined(plan.tasks, ", "), plan.samples
    drawn = {"profile": plan.profile, "temperature": plan.temperature, "seed": plan.seed}
    parts = [
        tasks
        if plan.limit is None
        else f"{tasks}, {'a sample of' if plan.limit_of else 'first'} {plan.limit} problems",
        f"budgets {_joined(plan.budgets, ', ')}",
        f"{draws} draw{'' if draws == 1 else 's'}",
        plan.mode,
        *(f"{key} {value}" for key, value in drawn.items() if value is not None),
    ]
    if plan.control != "forced":
        parts.append(f"{plan.control} control")
    return _joined([part for part in parts if part], "; ")


def listed(runs: Sequence[Run]) -> str:
    """The runs for a message: `ID (model; settings in which they differ), ...`; what a run lacks is `no ...`."""
    settings = [
        {"made": label_of(run), "weights": run.model.checksum, "dtype": run.model.dtype, **run.plan.data}
        for run in runs
    ]
    keys = list(dict.fromkeys(key for of in settings for key in of))
    differing = [key for key in keys if len({content_hash(of.get(key)) for of in settings}) > 1]
    chosen = [key for key in differing if key not in FOLLOWS] or differing
    return ", ".join(
        f"{run.run_id} ({_joined([run.model.name, *(_setting_text(key, of.get(key)) for key in chosen)], '; ')})"
        for run, of in zip(runs, settings, strict=True)
    )


def _setting_text(key: str, value: object) -> str:
    name = key.replace("_", " ")
    if value is None:
        return f"no {name}"
    if key == "made":
        return str(value)
    if key == "weights":
        return f"{name} {str(value)[:8]}"
    text = _joined(value, ", ") if isinstance(value, list | tuple) else str(value)
    return f"{name} {text if len(text) <= LONGEST else content_hash(value)[:8]}"


def _joined(parts: Sequence[Any], between: str) -> str:
    return one_line(between.join(map(str, parts)), LONGEST_LINE)


def checked_name(name: str) -> str:
    """A name that a user gives, without blanks around it. Raises PrunusError unless it is one printable line."""
    label = one_line(name)
    if not label or label != name.strip():
        raise PrunusError(f"a name is one line of at most {LABEL_LIMIT} characters, not '{label}'")
    return label
