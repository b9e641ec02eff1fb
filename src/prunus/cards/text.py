"""The text of a model card (README.md): metadata for the Hub, how a model was made, its accuracy, how to repeat both.

A card is published, so it shows only the last part of a path. Names, paths and warnings come from other people's files
and are escaped for Markdown. The text depends on nothing but its input (no clock), so resumed work writes the same.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prunus.cards.certified import CERTIFICATE, NOTHING, Certified
from prunus.cards.markdown import (
    LIMIT,
    estimate,
    fenced,
    hub_id,
    number,
    plain,
    public,
    redacted,
    shown,
    table,
)
from prunus.disk import show_bytes
from prunus.manifest import StepRecord
from prunus.plain_data import content_hash
from prunus.recipes import EvalPlan
from prunus.results.cells import Entry
from prunus.results.vocabulary import WORDS, Scaling
from prunus.results.words import in_full, loss_in_words, observations, verdict_in_words
from prunus.settings import hints_of, settings_of
from prunus.settings.budgets import NAMED
from prunus.settings.cache_size import CacheSize, in_words
from prunus.step import STEPS, recorded_kind, step_kind
from prunus.store.characters import DASH, one_line, percent, points
from prunus.store.labels import identity, label, settings
from prunus.store.rows import Run
from prunus.store.stored import StoredPlan

if TYPE_CHECKING:
    from prunus.results.summary import Summary  # imports scipy

README = "README.md"
# What is kept of the source's metadata; the rest describes the source only.
KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")
VERSIONS = ("prunus", "torch", "transformers", "vllm", "grader", "device")  # of a run; others may name a server
RESULT = "result"  # the folder that the last command writes

_HEADER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_SIGNED = re.compile(r"(.*)\n<!-- written by prunus card ([0-9a-f]{12}) -->\n", re.DOTALL)


class Zeros(NamedTuple):
    """The zeros among the weights of a part of the blocks (attention, mlp)."""

    part: str
    zeros: int
    weights: int


@dataclass(frozen=True)
class CardResults:
    """A model's accuracy under thinking budgets, and that of the model with which it is compared.

    summary, base_summary: of `summarise`. contrast: the run's entry in the result of `compare`. base,
    base_summary and contrast are None without a model to compare with. datasets: (hub id, configuration, split) by
    task, for those that come from the Hub.
    """

    run: Run
    summary: "Summary"
    datasets: Mapping[str, tuple[str, str | None, str]]
    base: Run | None = None
    base_summary: "Summary | None" = None
    contrast: Entry | None = None


@dataclass(frozen=True)
class Card:
    """Content of a model card.

    steps: the history in the manifest. source: metadata of the source's card. zeros: by part of the blocks, counted;
    empty if they were not. patterns: the N:M patterns that all Linears follow. nbytes: that an engine loads; None where
    they were not counted. cache: what a sequence adds; None where it is not known. base_model: hub id of the dense
    model, for steps that do not have it. certified: what the certificate beside it says.
    """

    steps: Sequence[StepRecord]
    source: Mapping[str, str | list[str]]
    zeros: Sequence[Zeros] = ()
    patterns: Sequence[str] = ()
    nbytes: int | None = None
    cache: CacheSize | None = None
    base_model: str | None = None
    results: CardResults | None = None
    certified: Certified = NOTHING

    @property
    def origin_id(self) -> str | None:
        """The hub id of the model that the first step was applied to; None if it is not known."""
        known = [hub_id(step.source.hub) for step in self.steps]
        return known[0] if any(known) else self.base_model

    @property
    def origin(self) -> str:
        """The model that the first step was applied to: its hub id if that is known, else the last part of its path."""
        return self.origin_id or public(self.steps[0].source.name)

    @property
    def base(self) -> str | None:
        """The hub id of the nearest model on the Hub that this one was made from; None if none is known."""
        known = [hub_id(source.hub) for step in reversed(self.steps) for source in step.sources]
        return self.base_model or next(filter(None, known), None) or hub_id(self.source.get("base_model"))

    @property
    def title(self) -> str:
        """What the model is called: its origin and what was done to it."""
        return f"{self.origin.rpartition('/')[2]}, {label(self.steps)}"


def card_text(card: Card) -> str:
    """The whole README.md, with a last line by which `is_ours` knows it."""
    parts = [
        f"# {plain(card.title)}",
        introduction(card),
        "## How it was made",
        "\n".join(f"{number}. {step_text(step)}" for number, step in enumerate(card.steps, 1)),
        *warnings_text(card.steps),
        *sparsity_text(card),
        *certified_text(card.certified),
        *(results_text(card, card.results) if card.results else ["## Accuracy", missing_text(card)]),
        "## How to repeat it",
        fenced(commands(card.steps, card.origin, card.results.run.plan if card.results else None)),
    ]
    body = "\n\n".join(parts)
    return signed(f"---\n{metadata(card)}\n---\n\n{body}\n")


def missing_text(card: Card) -> str:
    """How to get the results that this card lacks."""
    again = "writes this card again, with the curve and a verdict against the original."
    if card.certified.claims:
        return f"Not in this card yet: `prunus card --store`, with the rows of the search, {again}"
    measure = "`prunus eval` measures accuracy against thinking budget, and `prunus card --store`"
    return f"Not measured yet: {measure} then {again}"


FORCED = "Thinking is cut at the budget and closed, then the answer is sampled."
NATIVE = "The engine or the model itself keeps the budget, so more tokens than it may be used."


def signed(text: str) -> str:
    """text with a last line that has its hash, so that a card that somebody has edited is never replaced."""
    return f"{text}\n<!-- written by prunus card {_digest(text)} -->\n"


def is_ours(text: str) -> bool:
    """Whether a README is as Prunus has written it."""
    match = _SIGNED.fullmatch(text)
    return match is not None and _digest(match[1]) == match[2]


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]


def read_metadata(readme: Path) -> dict[str, str | list[str]]:
    """The metadata of a README.md that a card keeps: KEPT and base_model; {} if it cannot be read."""
    import yaml

    try:
        header = _HEADER.match(readme.read_text("utf-8"))
        data = yaml.safe_load(header[1]) if header else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # a source's card is only a source of facts
        return {}
    kept = {key: _value(data[key]) for key in (*KEPT, "base_model") if key in data} if isinstance(data, dict) else {}
    return {key: value for key, value in kept.items() if value}


def _value(value: object) -> str | list[str] | None:
    """A text, or a list of texts, on a line each; None for anything else."""
    if isinstance(value, str):
        return one_line(value, 300)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [one_line(text, 300) for text in value]
    return None


def metadata(card: Card) -> str:
    """The YAML between the two lines `---`. base_model is left out unless it is a hub id: the Hub refuses others."""
    from huggingface_hub import ModelCardData

    actions = {step.action for step in card.steps}
    # A model that was only pruned has none of the Hub's relations (adapter, merge, quantized, finetune).
    relations = [step_kind(action).relation for action in STEPS if action in actions]
    relation = "quantized" if actions & {"quantise", "quantize"} else next(filter(None, relations), None)
    finished = card.results is not None and card.results.summary.unfinished is None
    entries = eval_results(card.results) if card.results is not None and finished else []
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags(card),
        base_model=card.base,
        base_model_relation=None if card.base is None else relation,
        model_name=one_line(card.title) if entries else None,
        eval_results=entries or None,
    )
    for key in KEPT:
        if key in card.source:
            data[key] = card.source[key]
    return data.to_yaml().strip()


def tags(card: Card) -> list[str]:
    """Tags for the Hub's search."""
    of_steps = [tag for step in card.steps if step.action in STEPS for tag in recorded_kind(step).tags(step)]
    return list(dict.fromkeys(["prunus", "pruned", *of_steps]))


def eval_results(results: CardResults) -> list[Any]:
    """huggingface_hub's EvalResult of every task and budget."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=source,
            dataset_name=one_line(task),
            dataset_config=configuration,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=f"accuracy, thinking budget {budget}",
            metric_value=round(cell.accuracy, 4),
            metric_args={
                "thinking_budget": str(budget) if budget in NAMED else budget,
                "problems": cell.all_problems,
                **({} if cell.problems is None else {"groups": cell.n}),
                "draws": cell.samples,
                "low": round(cell.low, 4),
                "high": round(cell.high, 4),
            },
        )
        for task, curve in results.summary.tasks.items()
        for source, configuration, split in [results.datasets.get(task, (one_line(task), None, None))]
        for budget, cell in curve.budgets.items()
    ]


def introduction(card: Card) -> str:
    """What the model is, what it was made from, and its bytes."""
    origin = card.origin
    name = plain(origin) if card.origin_id is None else f"[{plain(origin)}](https://huggingface.co/{origin})"
    done = []
    zeros, weights = sum(row.zeros for row in card.zeros), sum(row.weights for row in card.zeros)
    if zeros:
        parts = " and ".join(row.part for row in card.zeros)
        done.append(f"{percent(zeros / weights)} % of the weights of its Linears ({plain(parts)}) are zero")
    for action in STEPS:
        steps = [step for step in card.steps if step.action == action]
        if steps and (sentence := step_kind(action).sentence(steps)):
            done.append(plain(sentence, LIMIT))
    what = "; ".join(done) or "see below"
    size = memory_text(card)
    return f"Made from {name} with Prunus {plain(version_of(card.steps[-1]))}: {what}.{size}"


def memory_text(card: Card) -> str:
    """Sentences on the bytes of weights and cache, which begin with a space; empty where they were not counted."""
    if card.nbytes is None:
        return ""
    text = f" An engine loads {show_bytes(card.nbytes)}."
    if card.cache is not None:
        text += f" The cache of a sequence adds {in_words(card.cache)}."
    kept = None if card.results is None else card.results.run.model.cache
    if kept is not None:
        whole = show_bytes(card.nbytes + kept.longest)
        text += f" With that of the longest prompt and the largest budget below ({kept.tokens:,} tokens) it is {whole}."
    return text


def version_of(step: StepRecord) -> str:
    """The version of Prunus that did a step."""
    return str((step.versions or {}).get("prunus", ""))


def step_text(step: StepRecord) -> str:
    """Text about a step: settings that differ from the defaults, recipe hash, calibration, cost and versions."""
    chosen = ", ".join(f"{plain(key)} {plain(shown(key, value))}" for key, value in settings(step))
    parts = [f"**{plain(step.action)}**: {chosen or 'default settings'}"]
    if outcome := recorded_kind(step).outcome(step, brief=False):
        parts.append(plain(outcome, LIMIT))
    if (used := step.calibration) is not None:
        parts.append(
            f"calibrated on {plain(public(str(used.source)))}, "
            f"{number(used.sequences)} sequences, {number(used.tokens)} tokens "
            f"(SHA-256 of the ids {plain(str(used.sha256)[:12])}), seed {plain(str(step.recipe.seed))}"
        )
    if (cost := step.cost) is not None:
        parts.append(f"trained on {number(cost.tokens)} tokens, repeats counted, in {number(cost.steps)} steps")
    parts.append(f"recipe {content_hash(step.recipe.data)}")
    if step.versions is not None:
        parts.append(", ".join(f"{plain(name)} {plain(str(value))}" for name, value in step.versions.items()))
    return "; ".join(parts) + "."


def warnings_text(steps: Sequence[StepRecord]) -> list[str]:
    """The warnings that the steps gave, each once."""
    names = [source.name for step in steps for source in step.sources]
    warnings = dict.fromkeys(redacted(text, names) for step in steps for text in step.warnings)
    return ["Warnings when it was made:", "\n".join(f"- {plain(text, LIMIT)}" for text in warnings)] if warnings else []


def sparsity_text(card: Card) -> list[str]:
    """A table of the zeros by part of the blocks; nothing where there are none."""
    if not any(row.zeros for row in card.zeros):
        return []
    zeros, weights = sum(row.zeros for row in card.zeros), sum(row.weights for row in card.zeros)
    rows = [*card.zeros, Zeros("all of these", zeros, weights)] if len(card.zeros) > 1 else card.zeros
    lines = [[row.part, percent(row.zeros / row.weights), number(row.zeros), number(row.weights)] for row in rows]
    text = [
        "## Sparsity, counted",
        table(["Linears of the blocks", "Zeros, %", "Zeros", "Weights"], lines),
    ]
    if card.patterns:
        text.append(f"Every one of these Linears follows the pattern {plain(', '.join(card.patterns))}.")
    return text


def certified_text(certified: Certified) -> list[str]:
    """The part of the card about a certificate; empty without claims."""
    if not certified.claims:
        return []
    return [
        "## Certificate",
        f"`{CERTIFICATE}`, by `prunus find`, claims of the model compared with the original:",
        "\n".join(f"- {plain(redacted(claim), LIMIT)}." for claim in certified.claims),
        "\n".join(f"- {plain(redacted(line), LIMIT)}." for line in certified.searches),
        "This is about this checkpoint, not about its recipe with other calibration data, and about problems like those"
        " of the problem set, under these budgets, this sampling and this grader; it says nothing about other tasks,"
        " speed or safety. `prunus verify` computes the claims again from the rows on which they rest.",
    ]


def results_text(card: Card, results: CardResults) -> list[str]:
    """Verdict, curve by task and settings of the evaluation."""
    base_name = plain(card.origin.rpartition("/")[2])
    parts = ["## Accuracy against thinking budget"]
    if (state := results.summary.unfinished) is not None and results.contrast is None:
        summary, _, why = in_full(state).partition(": " if state.mixed else "; ")
        parts.append(f"**{summary.capitalize()}**: {why}.")
    if results.contrast is not None:
        parts += verdict_text(results.contrast, base_name)
    for task, curve in results.summary.tasks.items():
        base_cells = results.base_summary.cells(task) if results.base_summary else {}
        part = results.contrast.tasks.get(task) if results.contrast else None
        differences = part.budgets if part else {}
        head = ["Thinking budget", "Accuracy, %"]
        head += [f"{base_name}, %", "Difference, points"] if results.contrast else []
        head += ["Ended by itself, %", "Tokens used", "Problems × answers"]
        rows = []
        for budget, cell in curve.budgets.items():
            row = [str(budget), estimate(cell)]
            if results.contrast:
                row += [
                    estimate(base_cells.get(budget)),
                    points(found.difference) if (found := differences.get(budget)) else DASH,
                ]
            ended, used = 1 - (cell.forced or 0.0), round(cell.tokens.total.mean or 0.0)
            rows.append([*row, percent(ended), number(used), f"{observations(cell, '')} × {cell.samples}"])
        parts += [f"{plain(task)}:", table(head, rows)] if rows else [f"{plain(task)}: no problem is finished."]
    plan, environment = results.run.plan, results.run.environment.data
    facts = {
        "mode": plan.mode, "profile": plan.profile, "temperature": plan.temperature,
        "top-p": plan.top_p, "top-k": plan.top_k, "seed": plan.seed,
        "engine": plan.backend, "control": plan.control if plan.is_native else None,
    }  # fmt: skip
    called, settings = (of := identity(results.run)).serving, of.serving_settings
    facts |= {"serving": called if called == settings else f"{called} ({settings})"} if called else {}
    facts |= {name: environment[name] for name in VERSIONS if name in environment}
    parts.append(
        f"Brackets are 95 % intervals over problems. {NATIVE if plan.is_native else FORCED} "
        "Answers are graded by rules, without a judge model. "
        + ", ".join(f"{name} {plain(str(value))}" for name, value in facts.items() if value is not None)
        + f". Run {plain(results.run.run_id)}."
    )
    return parts


def verdict_text(contrast: Entry, base: str) -> list[str]:
    """The verdict, and what it rests on."""
    margin = contrast.margin.words(f"what {base} solves")
    about = f"area under accuracy over log2 of the budget, against {base}, paired by problem"
    bound = loss_in_words(contrast)
    each = "each " * (contrast.verdict.direction < 0)
    sure = f"{bound}, {each}with 95 % confidence for all runs of the store together; " if bound else ""
    decided = f"{sure}{points(contrast.primary.difference)} points were measured ({about}; limit {margin})"
    text = f"**{verdict_in_words(contrast).capitalize()}**: {decided}."
    if contrast.contradicted_at:
        contradictions = (
            f"{at.verdict.shown} at {at.budget} ({points(at.difference)})" for at in contrast.contradicted_at
        )
        text += f" But {', '.join(contradictions)}."
    if contrast.scaling and (word := contrast.scaling.word) and word is not Scaling.UNFINISHED:
        text += f" Accuracy gained per doubling of the budget: {word.shown}."
    words = ", ".join(word.shown for word in WORDS)
    explained = (
        f"Possible verdicts: {words}. A loss that is ruled out, with 95 % confidence, is one of the limit or more."
    )
    notes = [f"- {plain(redacted(str(text)), LIMIT)}" for text in contrast.warnings]
    return [text, explained, *(["\n".join(notes)] if notes else [])]


def commands(steps: Sequence[StepRecord], origin: str, plan: StoredPlan | None) -> list[str]:
    """Command lines that repeat the steps from the model `origin` on, and an evaluation; folders have new names."""
    model, lines = origin, []
    for place, step in enumerate(steps, 1):
        out = RESULT if place == len(steps) else f"step-{place}"
        action = step.action
        if action in STEPS:
            dense = ["--dense", dense_of(step, origin, steps)] if step_kind(action).needs_pruned else []
            lines.append(line(action, model, out, *dense, *options_of(step)))
        elif action == "dequantize":
            lines.append(line("dequantize", model, out))
        else:
            lines.append(f"# {one_line(action)}: see prunus.json")
        model = out
    if plan is not None and plan.budgets:
        options = plan_options(plan)
        lines += [line("eval", model, *options, "--store", "results.db") for model in (origin, RESULT)]
        lines.append(line("compare", "results.db", "--base", origin))
    return lines


def dense_of(step: StepRecord, origin: str, steps: Sequence[StepRecord]) -> str:
    """The dense model of a recovery: the origin, unless that was pruned by another program and recovered first."""
    _, *dense = step.sources
    if steps[0].action != "recover" or not dense:
        return origin
    return hub_id(dense[0].hub) or public(dense[0].name)


def options_of(step: StepRecord) -> list[str]:
    """The options of a command that make the recipe of a step, in alphabetical order."""
    said = {"sparsity"} if step.recipe.pattern else set()  # by the pattern
    return flags(sorted(pair for pair in settings(step) if pair[0] not in said), step_kind(step.action).recipe)


def plan_options(plan: StoredPlan) -> list[str]:
    """The options of `prunus eval` that make this plan."""
    named = (("engine" if key == "backend" else key, value) for key, value in plan.data.items())
    known = [(key, value) for key, value in named if key in hints_of(EvalPlan) and not isinstance(value, Mapping)]
    # The default budgets depend on the model.
    usual = {name: setting.default for name, setting in settings_of(EvalPlan).items() if name != "budgets"}
    return flags([(key, value) for key, value in known if value not in (None, usual.get(key))], EvalPlan)


def flags(given: Iterable[tuple[str, Any]], of: type) -> list[str]:
    """Options for these names of settings and their values. of: the class of the settings."""
    settings, options = settings_of(of), list[str]()
    for key, value in given:
        option = settings[key].option if key in settings else "--" + key.replace("_", "-")
        if isinstance(value, bool):
            options.append(option if value else f"--no-{option[2:]}")
        elif key == "tasks":
            options += [part for task in value for part in ("--task", public(str(task)))]
        elif isinstance(value, list | tuple):
            options += [option, ",".join(map(str, value))]
        else:
            options += [option, shown(key, value)]
    return options


def line(command: str, *words: str) -> str:
    """A command line for a shell."""
    return shlex.join(["prunus", command, *(one_line(word, LIMIT) for word in words)])
