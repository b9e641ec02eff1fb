"""The page's sections about evidence: what was pruned and which problems flipped. Texts are hostile."""

from collections.abc import Sequence

from prunus.reporting.changes import Flip, block_sparsities, choose, flips
from prunus.reporting.grid import named, row_name
from prunus.reporting.labels import Look, recipe_text
from prunus.reporting.sections import soft
from prunus.reporting.text import clip, esc, percent
from prunus.results.store import Run, Sample, Store

FLIPS_PER_RUN, FLIPS_IN_ALL = 6, 48
TEXT_LIMIT = 6_000  # characters shown of each thinking and each answer


def pruned_section(looks: Sequence[Look], runs: Sequence[Run]) -> str:
    """Sparsity of every original block of every run, removed blocks hatched, and the recipes."""
    strips = [block_sparsities(run) for run in runs]
    blocks = max(map(len, strips))
    head = "".join(f'<th scope="col">{index}</th>' for index in range(blocks))
    rows = []
    for look, strip in zip(looks, strips, strict=True):
        cells = "".join(map(_block, strip)) + "<td></td>" * (blocks - len(strip))
        rows.append(f'<tr class="{look.css}">{row_name(look)}{cells}</tr>')
    recipes = "".join(
        f'<div class="{look.css}"><dt>{named(look)}</dt><dd><bdi>{esc(recipe_text(run))}</bdi></dd></div>'
        for look, run in zip(looks[1:], runs[1:], strict=True)
    )
    note = (
        "Percent of zeros in the Linears of each decoder block, numbered as in the unpruned model; × marks a removed "
        "block."
    )
    return (
        f'<section id="pruned"><h2>What was pruned</h2>{soft(note)}'
        '<div class="wide" tabindex="0" role="region" aria-label="What was pruned">'
        f'<table class="strip{" many" if blocks > 20 else ""}"><thead><tr><th scope="row">Block</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><dl class="recipes">{recipes}</dl></section>'
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
    base_samples = store.samples(runs[0].run_id)
    most = max(2, min(FLIPS_PER_RUN, FLIPS_IN_ALL // max(1, len(runs) - 1)))
    gold = {problem_id: problem.gold for problem_id, problem in store.problems().items()}
    groups = []
    for look, run in zip(looks[1:], runs[1:], strict=True):
        found = flips(base_samples, store.samples(run.run_id))
        chosen = choose(found, most)
        texts = [store.texts(one.run_id, [flip.key for flip in chosen]) for one in (runs[0], run)]
        items = [_flip(f, gold[f.base.problem_id], (looks[0], look), [side[f.key] for side in texts]) for f in chosen]
        groups.append(_flip_group(look, found, items))
    if not groups:
        return ""
    note = (
        "Right in one model and wrong in the other with the same draw number, at the largest budget both have. Texts "
        f"are the models' own, cut to {TEXT_LIMIT} characters a piece; control characters are made visible. Questions "
        "are not kept in the store."
    )
    return f'<section id="flips"><h2>Problems that flipped</h2>{soft(note)}{"".join(groups)}</section>'


def _flip_group(look: Look, found: Sequence[Flip], items: Sequence[str]) -> str:
    gained = sum(flip.gained for flip in found)
    counts = f"{len(found) - gained} lost, {gained} gained"
    if found:
        counts += f" at budget {found[0].base.budget}"
    if len(items) < len(found):
        counts += f"; {len(items)} of them here"
    return (
        f'<details class="flips {look.css}"><summary>{named(look)} '
        f'<span class="soft">{counts}</span></summary>{"".join(items)}</details>'
    )


def _flip(flip: Flip, gold: str, looks: tuple[Look, Look], texts: Sequence[tuple[str, str]]) -> str:
    sides = (flip.base, flip.other)
    answers = " → ".join(_answer(sample) for sample in sides)
    columns = "".join(_side(look, sample, *pair) for look, sample, pair in zip(looks, sides, texts, strict=True))
    sign = '<span class="word better">gained</span>' if flip.gained else '<span class="word worse">lost</span>'
    return (
        f'<details class="flip"><summary>{sign} <b><bdi>{esc(clip(flip.base.problem_id, 120))}</bdi></b> · correct: '
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
        f'<div class="c{look.hue}"><h4>{named(look)} {_answer(sample)}<small>{facts}</small></h4>'
        f'<pre class="thinking" tabindex="0">{esc(clip(shown[0], TEXT_LIMIT))}</pre>'
        f'<pre class="answer" tabindex="0">{esc(clip(shown[1], TEXT_LIMIT))}</pre></div>'
    )
