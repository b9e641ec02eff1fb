"""The page's sections about evidence: what was pruned, which problems flipped, by which methods. Texts are hostile."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.reporting.changes import Flip, block_sparsities, choose, flips
from prunus.reporting.labels import Look, history
from prunus.reporting.sections import row_name
from prunus.reporting.svg import swatch
from prunus.reporting.text import THIN, clip, esc, percent
from prunus.results.store import Run, Sample, Store

FLIPS_PER_RUN, FLIPS_IN_ALL = 6, 48
TEXT_LIMIT = 6_000  # characters shown of each thinking and each answer
RECIPE_LIMIT = 20_000


def pruned_section(looks: Sequence[Look], runs: Sequence[Run]) -> str:
    """Sparsity of every original block of every run, removed blocks hatched."""
    strips = [block_sparsities(run) for run in runs]
    blocks = max(map(len, strips))
    head = "".join(f'<th scope="col">{index}</th>' for index in range(blocks))
    rows = [
        f'<tr class="{look.css}">{row_name(look)}{"".join(map(_block, strip))}{"<td></td>" * (blocks - len(strip))}</tr>'
        for look, strip in zip(looks, strips, strict=True)
    ]
    many = " many" if blocks > 20 else ""
    return (
        '<section id="pruned"><h2>What was pruned</h2><p class="soft">Percent of zeros in the Linears of each decoder block, numbered '
        "as in the unpruned model; × marks a removed block.</p>"
        f'<div class="wide" tabindex="0" role="region" aria-label="What was pruned"><table class="strip{many}"><thead><tr>'
        f'<th scope="row">Block</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>'
    )


def _block(share: float | None) -> str:
    if share is None:
        return '<td class="gone" title="removed">×</td>'
    step = min(20, max(0, round(20 * share)))
    text = f"{100 * share:.0f}" if share else "0"
    return f'<td class="h{step}{" dark" if step > 12 else ""}" title="{percent(share)} %">{text}</td>'


def heat_styles() -> str:
    """The classes that _block names."""
    return "".join(f".h{step}{{--h:{step / 20 * 0.9:g}}}" for step in range(1, 21))


def flip_section(store: Store, looks: Sequence[Look], runs: Sequence[Run]) -> str:
    """Some problems that only one of base and variant solves, both texts side by side."""
    problems = store.problems()
    base_samples = store.samples(runs[0].run_id)
    most = max(2, min(FLIPS_PER_RUN, FLIPS_IN_ALL // max(1, len(runs) - 1)))
    blocks = []
    for look, run in zip(looks[1:], runs[1:], strict=True):
        found = flips(base_samples, store.samples(run.run_id))
        chosen = choose(found, most)
        gained = sum(flip.gained for flip in found)
        texts = [store.texts(one.run_id, [flip.key for flip in chosen]) for one in (runs[0], run)]
        budget = f" at budget {found[0].base.budget}" if found else ""
        items = "".join(
            _flip(flip, problems[flip.base.problem_id].gold, (looks[0], look), [side[flip.key] for side in texts])
            for flip in chosen
        )
        blocks.append(
            f'<div class="{look.css}"><h3>{swatch(look.css, look.marker)} <bdi>{esc(look.label)}</bdi></h3><p class="soft">'
            f"{len(found) - gained} lost, {gained} gained{budget}{f'; {len(chosen)} of them here' if len(chosen) < len(found) else ''}."
            f"</p>{items}</div>"
        )
    if not blocks:
        return ""
    return (
        '<section id="flips"><h2>Problems that flipped</h2><p class="soft">Right in one model and wrong in the other with the same '
        f"draw number, at the largest budget both have. Texts are the models' own, cut to {TEXT_LIMIT:,}".replace(
            ",", THIN
        )
        + " characters a piece; control characters are made visible. Questions are not kept in the store.</p>"
        + "".join(blocks)
        + "</section>"
    )


def _flip(flip: Flip, gold: str, looks: tuple[Look, Look], texts: Sequence[tuple[str, str]]) -> str:
    sides = (flip.base, flip.other)
    answers = " → ".join(_answer(sample) for sample in sides)
    columns = "".join(_side(look, sample, *pair) for look, sample, pair in zip(looks, sides, texts, strict=True))
    return (
        f'<details class="flip"><summary><span class="word {"better" if flip.gained else "worse"}">'
        f"{'gained' if flip.gained else 'lost'}</span> <b><bdi>{esc(clip(flip.base.problem_id, 120))}</bdi></b> · correct: "
        f'<bdi>{esc(clip(gold, 200))}</bdi> · {answers}</summary><div class="sides">{columns}</div></details>'
    )


def _answer(sample: Sample) -> str:
    answer = "no answer" if sample.answer is None else f"<bdi>{esc(clip(sample.answer, 200))}</bdi>"
    return f"{answer} {'✓' if sample.correct else '✗'}"


def _side(look: Look, sample: Sample, thinking: str, text: str) -> str:
    end = "ended by itself" if sample.ended == "natural" else "stopped by the budget"
    facts = f"{sample.thinking_tokens} thinking tokens, {end}; {sample.answer_tokens} answer tokens"
    facts += ", cut at the cap" if sample.answer_truncated else ""
    shown = (thinking, text) if thinking or text else ("[not kept in the store]", "[not kept in the store]")
    return (
        f'<div class="c{look.hue}"><h4>{swatch(look.css, look.marker)} <bdi>{esc(look.label)}</bdi> {_answer(sample)}<small>{facts}'
        f'</small></h4><pre class="thinking" tabindex="0">{esc(clip(shown[0], TEXT_LIMIT))}</pre>'
        f'<pre class="answer" tabindex="0">{esc(clip(shown[1], TEXT_LIMIT))}</pre></div>'
    )


def method_section(looks: Sequence[Look], runs: Sequence[Run], comparison: Mapping[str, Any]) -> str:
    """How it was measured, with every setting, version and seed."""
    plan = runs[0].plan
    method = comparison.get("method", {})
    sentences = [
        "Thinking is cut at the budget, closed, and the answer generated after it (budget forcing); all budgets of a draw "
        + ("share one chain." if plan.get("reuse") else "are generated anew."),
        "Accuracy is the mean over problems of the share of draws graded correct, by rules and without a judge; its intervals take "
        "the problem as the unit.",
        "Differences are paired by problem."
        + (
            f" Intervals: {method['interval']}; p: {method['p']}; p adjusted: {method['p_adjusted']}." if method else ""
        ),
        "An answer leaks when it is longer than max(512, budget/2) tokens: then the budget does not bound the work.",
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
    details = "".join(_run_details(look, run) for look, run in zip(looks, runs, strict=True))
    return (
        f'<section id="methods"><h2>Methods, versions, seeds</h2><p>{" ".join(map(esc, sentences))}</p>'
        f"<dl>{facts}</dl><h3>Runs</h3>{details}</section>"
    )


def _list(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)


def _sampling(plan: Mapping[str, Any]) -> str:
    if plan.get("temperature") == 0:
        return "greedy (temperature 0)"
    return f"temperature {plan.get('temperature')}, top-p {plan.get('top_p')}, top-k {plan.get('top_k')}"


def _run_details(look: Look, run: Run) -> str:
    model = run.model
    steps = [
        {key: step.get(key) for key in ("action", "recipe", "versions", "source", "blocks_removed") if key in step}
        for step in history(run)
    ]
    record = {"versions": run.versions, "plan": run.plan, "made by": steps}
    text = clip(json.dumps(record, indent=2, ensure_ascii=False), RECIPE_LIMIT)
    parameters = (
        f"{model['parameters']:,}".replace(",", THIN) if isinstance(model.get("parameters"), int) else "unknown"
    )
    facts = (
        f"run {run.run_id} · model {model.get('name')} · {parameters} parameters in {model.get('blocks')} blocks · weights "
        f"{str(model.get('checksum'))[:16]}"
    )
    return (
        f'<details><summary>{swatch(look.css, look.marker)} <bdi>{esc(look.label)}</bdi> <span class="soft"><bdi>{esc(clip(facts, 600))}'
        f"</bdi></span></summary><pre>{esc(text)}</pre></details>"
    )
