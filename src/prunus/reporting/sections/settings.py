"""The page's section about methods: every setting, version and seed that the numbers depend on."""

import json
from collections.abc import Mapping
from typing import Any

from prunus.reporting.labels import Look, history
from prunus.reporting.render.table import Grid, named
from prunus.reporting.render.text import THIN, clip, esc
from prunus.reporting.report_data import View
from prunus.results.metrics import LEAK_RULE
from prunus.results.store import Run

RECORD_LIMIT = 20_000  # characters of a run's settings
SHOWN = ("action", "recipe", "versions", "source", "blocks_removed", "scores")


def method_section(view: View, costs: Grid) -> str:
    """How it was measured, with every setting, version and seed, and what it cost."""
    comparison = view.comparison
    plan = view.runs[0].plan
    method = comparison.get("method", {})
    sentences = [
        "Thinking is cut at the budget, closed, and the answer generated after it (budget forcing); all budgets of a "
        "draw " + ("share one chain." if plan.get("reuse") else "are generated anew."),
        "Accuracy is the mean over problems of the share of draws graded correct, by rules and without a judge; its "
        "intervals take the problem as the unit.",
        "Differences are paired by problem."
        + (
            f" Intervals: {method['interval']}; bands: {method['band']}; p: {method['p']}; p adjusted: "
            f"{method['p_adjusted']}; q: {method['q']}; margin: {method['margin']}; scaling: {method['scaling']}."
            if method
            else ""
        ),
        f"An answer leaks when it is longer than {LEAK_RULE} tokens: then the budget does not bound the work.",
    ]
    rows = {
        "Tasks": _list(plan.get("tasks")),
        "Budgets": _list(plan.get("budgets")),
        "Draws per problem": plan.get("samples"),
        "Sampling": _sampling(plan),
        "Mode, profile": f"{plan.get('mode')}, {plan.get('profile')}",
        "Answer tokens at most": plan.get("answer_tokens"),
        "Seed of draws": plan.get("seed"),
        "Resamples, their seed": f"{method.get('resamples')}, {method.get('seed')}" if method else "none",
        "Margin": f"{100 * comparison['margin']:g} points",
    }
    facts = "".join(f"<dt>{esc(name)}</dt><dd><bdi>{esc(value)}</bdi></dd>" for name, value in rows.items())
    details = "".join(_run_details(look, run) for look, run in zip(view.looks, view.runs, strict=True))
    return (
        f'<section id="methods"><h2>Methods, versions, seeds</h2><p>{" ".join(map(esc, sentences))}</p>'
        f"<dl>{facts}</dl><h3>Answers and tokens sampled</h3>{costs.html()}<h3>Runs</h3>{details}</section>"
    )


def _list(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)


def _sampling(plan: Mapping[str, Any]) -> str:
    if plan.get("temperature") == 0:
        return "greedy (temperature 0)"
    return f"temperature {plan.get('temperature')}, top-p {plan.get('top_p')}, top-k {plan.get('top_k')}"


def _run_details(look: Look, run: Run) -> str:
    model = run.model
    steps = [{key: step[key] for key in SHOWN if key in step} for step in history(run)]
    record = {"versions": run.versions, "plan": run.plan, "made by": steps}
    text = clip(json.dumps(record, indent=2, ensure_ascii=False), RECORD_LIMIT)
    parameters = (
        f"{model['parameters']:,}".replace(",", THIN) if isinstance(model.get("parameters"), int) else "unknown"
    )
    facts = (
        f"run {run.run_id} · model {model.get('name')} · {parameters} parameters in {model.get('blocks')} blocks"
        f" · weights {str(model.get('checksum'))[:16]}"
    )
    return (
        f'<details><summary>{named(look)} <span class="soft"><bdi>{esc(clip(facts, 600))}</bdi></span></summary>'
        f"<pre>{esc(text)}</pre></details>"
    )
