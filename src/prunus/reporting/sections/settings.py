"""All settings, versions and seeds on which the results depend, and the number of tokens sampled for them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.reporting.render.table import RUN, Column, RunStyle, Table, named
from prunus.reporting.render.text import THIN, clip, count, esc
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part
from prunus.settings.budgets import OFF
from prunus.statistics.metrics import LEAK_RULE
from prunus.store.labels import history, serving_of
from prunus.store.rows import UNKNOWN, Run, Sample, chains_of, sampled_tokens

RECORD_LIMIT = 20_000  # maximum number of characters of a run's settings
SHOWN = ("action", "recipe", "versions", "source", "blocks_removed", "experts_removed", "channels", "scores")


def section(data: ReportData) -> Section:
    """The methods, settings, versions and seeds, and the numbers of tokens that were sampled."""
    plan, method = data.base.run.plan, data.comparison.method
    sentences = [
        *_procedure(data.base.run),
        f"Differences are paired by problem. Assumed: {method['assumed']}. Intervals: {method['interval']}; bands: "
        f"{method['band']}; p: {method['p']}; p adjusted: {method['p_adjusted']}; q: {method['q']}; margin: "
        f"{method['margin']}; scaling: {method['scaling']}.",
    ]
    if not data.base.run.imported:
        sentences.append(
            f"An answer leaks if it is longer than {LEAK_RULE} tokens: then the budget does not bound the tokens used."
        )
    if str(OFF) in (plan.get("budgets") or ()):
        sentences.append(
            "Budget off: the thinking is switched off in the prompt, and the answer is a request of its own, under the "
            "same sampling settings. It is no point of the curve: area, slope and verdicts leave it out."
        )
    rows = {
        "Tasks": _list(plan.get("tasks")),
        "Budgets": _list(plan.get("budgets")),
        "Draws per problem": plan.get("samples"),
        **_settings(data.base.run),
        "Resamples": str(method["resamples"]),
        "Margin": data.comparison.margin.words(),
    }
    facts = "".join(f"<dt>{esc(name)}</dt><dd><bdi>{esc(value)}</bdi></dd>" for name, value in rows.items())
    runs, totals = "".join(_run_details(one.style, one.run) for one in data.runs), totals_table(data)
    answers, tokens = (sum(values[place] or 0 for _, values in totals.rows) for place in (0, 4))
    says = f"{len(data.runs)} runs have {count(answers)} answers"
    says += f", for which {count(tokens)} tokens were sampled." if tokens else "."
    whole = details("Methods and settings", f"<p>{' '.join(map(esc, sentences))}</p><dl>{facts}</dl>")
    whole += details("Every run with its versions and seeds", runs)
    html = part("costs", "Costs", says, totals.html()) + part("methods", "Methods, versions, seeds", "", whole)
    return Section("costs", html, tables=[totals], name="Costs and methods")


def _procedure(run: Run) -> list[str]:
    """How the outputs of a run came about, and who graded them."""
    plan = run.plan
    if run.imported:
        return [
            f"These are outputs of {plan.get('tool')}, imported from its logs, without a thinking budget (as run). "
            f"Prompts, limits, sampling and grades are that tool's, by its metric {plan.get('metric')}.",
            "Accuracy is the share of draws graded correct, averaged over problems. Intervals take the problem as the "
            "unit.",
        ]
    shared = "share one chain." if plan.get("reuse") else "have chains of their own."
    return [
        "The engine or the model keeps the budget (native control), which is only asked for, so that a chain may think "
        f"longer; its adherence is in the table of tokens. All budgets of a draw {shared}"
        if plan.get("control") == "native"
        else "Thinking is cut at the budget and closed, and the answer is generated after it (budget forcing). All "
        f"budgets of a draw {shared}",
        "Accuracy is the share of draws graded correct, averaged over problems. Answers are graded by rules, without a "
        "judge model. Intervals take the problem as the unit.",
    ]


def _settings(run: Run) -> dict[str, object]:
    plan = run.plan
    if run.imported:
        keys = {"Sampling": "generation", "Prompt": "prompt", "Few-shot examples": "fewshot", "Threshold": "threshold"}
        return {name: plan[key] for name, key in keys.items() if key in plan}
    return {
        "Sampling": _sampling(plan),
        "Mode, profile": f"{plan.get('mode')}, {plan.get('profile')}",
        "Cap on answer tokens": plan.get("answer_tokens"),
        "Seed of draws": plan.get("seed"),
    }


def totals_table(data: ReportData) -> Table:
    """Numbers of answers, of planned answers and of sampled tokens, one row per run."""
    devices = [str(one.run.versions.get("device", "")) or None for one in data.runs]
    totals = [run_totals(one.run, one.samples) for one in data.runs]
    rows = [(one.style, [*row, device]) for one, row, device in zip(data.runs, totals, devices, strict=True)]
    columns = [
        RUN, Column("answers", "Answers", count), Column("planned", "Planned", count),
        Column("thinking", "Thinking tokens|sampled", count), Column("answer", "Answer tokens|sampled", count),
        Column("total", "Tokens|sampled", count), Column("device", "Device"),
    ]  # fmt: skip
    return Table("costs", "Answers and tokens sampled", "data costs sortable", columns, rows)


def run_totals(run: Run, samples: Sequence[Sample]) -> list[int | None]:
    """The numbers of answers, of those planned if that is known, and of thinking tokens, answer tokens and both.

    Those of tokens are None in a log that does not tell them.
    """
    plan, planned = run.plan, run.planned
    answers = planned and planned.count * len(plan.get("budgets", ())) * plan.get("samples", 1)
    if any(sample.answer_tokens == UNKNOWN for sample in samples):
        return [len(samples), answers, None, None, None]
    tokens = sampled_tokens(chains_of(samples), bool(plan.get("reuse")))
    return [len(samples), answers, *tokens, sum(tokens)]


def _list(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)


def _sampling(plan: Mapping[str, Any]) -> str:
    if plan.get("temperature") == 0:
        return "greedy (temperature 0)"
    return f"temperature {plan.get('temperature')}, top-p {plan.get('top_p')}, top-k {plan.get('top_k')}"


def _run_details(style: RunStyle, run: Run) -> str:
    model = run.model
    steps = [{key: step[key] for key in SHOWN if key in step} for step in history(run)]
    record = {"versions": run.versions, "plan": run.plan, "served with": serving_of(run).to_json(), "made by": steps}
    text = clip(json.dumps(record, indent=2, ensure_ascii=False), RECORD_LIMIT)
    parameters = (
        f"{model['parameters']:,}".replace(",", THIN) if isinstance(model.get("parameters"), int) else "unknown"
    )
    facts = (
        f"run {run.run_id} · model {model.get('name')} · {parameters} parameters in {model.get('blocks')} blocks"
        f" · weights {str(model.get('checksum'))[:16]}"
    )
    return (
        f'<details><summary>{named(style)} <span class="soft"><bdi>{esc(clip(facts, 600))}</bdi></span></summary>'
        f'<pre tabindex="0">{esc(text)}</pre></details>'
    )
