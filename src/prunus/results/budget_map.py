"""Thinking budgets as an engine or a gateway takes them: options of its server, and the fields of a request."""

from collections.abc import Mapping, Sequence

from prunus.errors import PrunusError, nearest
from prunus.plain_data import Record
from prunus.settings.engines import ENGINES
from prunus.settings.engines.facts import EngineFacts
from prunus.store.rows import Run

PLAIN, GATEWAY = "json", "openai"
TARGETS = (*(name for name, engine in ENGINES.items() if engine.parsers), GATEWAY, PLAIN)  # what maps are for
EFFORTS = ("minimal", "low", "medium", "high", "xhigh")  # values of OpenAI's field `reasoning_effort`
NO_FIELD = "no engine has a field for it, only max_tokens and a second request that asks for the answer"


class Thinking(Record):
    """How the thinking of a run begins and ends.

    start: the text that begins it.
    stop: the marker that ends it; empty where the profile has none.
    closing: what stands after a chain that is cut, with that marker; None where the engine wrote it.
    line_break: whether `closing` begins with a line break that is left out behind another.
    native: whether engine or model kept the budget.
    control: what told the model its budget, such as `template`; None where the engine or prunus ended the thinking.
    """

    start: str
    stop: str
    closing: str | None = None
    line_break: bool = False
    native: bool = False
    control: str | None = None


class BudgetMap(Record):
    """Thinking budgets of a run as an engine or a gateway takes them.

    target: the engine, `openai` for gateways, or `json`.
    run, model: id of the run and name of the model whose budgets these are.
    budgets: {level: tokens} as the target counts them.
    notes: differences from what was measured, and what is not known, a line each.
    options: of the engine's server, in words; None for `openai` and `json`.
    requests: {level: fields of a chat request}; None like `options`.
    closing: the text after a chain that is cut, as it was measured.
    """

    target: str
    run: str
    model: str
    budgets: Mapping[str, int]
    notes: Sequence[str]
    options: Sequence[str] | None = None
    requests: Mapping[str, Mapping[str, int | Mapping[str, int]]] | None = None
    closing: str | None = None


def thinking_of(run: Run) -> Thinking | None:
    """How the thinking of a run was begun and ended; None for imported logs, which do not say."""
    strings, native = run.plan.strings, run.plan.native
    closing, line_break = strings.forced_closing, strings.forced_break
    if closing is None:
        return None
    told_by = None if native is None or "parameter" in native else ", ".join(native)
    return Thinking(
        start=strings.thinking_start,
        stop=next((stop for stop in strings.think_stops if stop in closing), ""),
        closing=None if native is not None else line_break + closing,
        line_break=bool(line_break),
        native=native is not None,
        control=told_by,
    )


def budget_map(
    target: str, run: str, model: str, levels: Mapping[str, int | None], thinking: Thinking | None
) -> BudgetMap:
    """The map for an engine or a gateway. levels: {name: budget}, None where a level names none.

    Raises PrunusError for a target that is not known, or that has no field for such budgets.
    """
    if target not in TARGETS:
        raise PrunusError(f"'{target}' takes no budgets; {nearest(target, TARGETS)}")
    budgets = {name: budget for name, budget in levels.items() if budget is not None}
    notes = list[str]()
    if not budgets:
        raise PrunusError(f"no level of {model} ({run}) names a budget: `prunus efforts` says why")
    options, requests = None, None
    if target == GATEWAY:
        if wrong := next((name for name in budgets if name not in EFFORTS), None):
            raise PrunusError(f"level '{wrong}' is no value of reasoning_effort: choose from {', '.join(EFFORTS)}")
    elif target != PLAIN:
        engine = ENGINES[target]
        if thinking is None:
            raise PrunusError(
                f"{model} ({run}) is an imported log, which does not say how thinking was ended: use --for {PLAIN}"
            )
        if thinking.stop not in engine.parsers:
            why = f"thinking that ends with {thinking.stop!r}" if thinking.stop else "thinking without markers"
            raise PrunusError(f"{target} keeps no budget of {why}, as that of {model} ({run}): {NO_FIELD}")
        if thinking.control is not None:
            raise PrunusError(
                f"{model} ({run}) kept its budget itself, told by its {thinking.control}: use --for {PLAIN}"
            )
        marker, counted = thinking.start.rstrip(), thinking.start != thinking.start.rstrip()
        options = engine.closing_options(marker, thinking.stop, thinking.closing or "")
        if counted and not thinking.native:
            budgets = {name: budget + 1 for name, budget in budgets.items()}
            notes.append(f"a token more than was measured, since the engine counts the line break after {marker}, too")
        notes += _about_closing(engine, thinking)
        requests = {name: engine.budget_fields(budget) for name, budget in budgets.items()}
    elif thinking is not None and not thinking.stop:
        notes.append(NO_FIELD)
    return BudgetMap(
        target=target,
        run=run,
        model=model,
        options=options,
        budgets=budgets,
        requests=requests,
        closing=None if thinking is None else thinking.closing,
        notes=notes,
    )


def _about_closing(engine: EngineFacts, thinking: Thinking) -> list[str]:
    """Notes on the text with which the engine ends thinking, a line each."""
    if thinking.closing is None:
        return ["the text that ends thinking is the server's own, as it was measured"]
    if not engine.takes_closing:
        return [f"{engine.name} ends thinking by a text of its own: measured was {thinking.closing!r}"]
    notes = ["behind a line break the measured text began without another one"] * thinking.line_break
    return [*notes, engine.of_closing] if engine.of_closing and thinking.closing != thinking.stop else notes
