"""The page's section about problems that flipped: both traces side by side. Texts are hostile.

A few stand in the page itself. The rest go into small pages in a folder beside it, to which a row links. The script
puts a sandboxed frame above the link when the row is opened and takes it away when it is closed: `fetch` is forbidden
on `file:`, `loading="lazy"` is ignored there, and a frame without scripts can hold any text. Rows out of sight are not
laid out (`content-visibility`), so that long lists stay quick.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from prunus.reporting.changes import Flip, choose, flips
from prunus.reporting.labels import Look
from prunus.reporting.render.html import small_page
from prunus.reporting.render.table import named
from prunus.reporting.render.text import clip, count, esc
from prunus.reporting.report_data import View
from prunus.reporting.sections.verdicts import soft
from prunus.results.store import Sample, Store

FLIPS_PER_RUN, FLIPS_IN_ALL = 6, 48  # that stand in the page whatever their size
LINES_IN_ALL = 1_500  # that are listed at all
TEXT_LIMIT = 6_000  # characters of each thinking and each answer in the page
FILE_LIMIT = 1_000_000  # and in a file of the folder
REST_LIMIT = 800_000  # characters of other flips' texts that do too, those of the runs with the shortest first
MISSING = "[not kept in the store]"

Texts = tuple[tuple[str, str], tuple[str, str]]  # (thinking, answer) of base and variant
Write = Callable[[str, str], None]  # a file's name and its content


class Case(NamedTuple):
    """One flip with what its texts need to be shown."""

    flip: Flip
    gold: str
    looks: tuple[Look, Look]
    texts: Texts

    @property
    def size(self) -> int:
        return sum(len(text) for side in self.texts for text in side)

    @property
    def whole(self) -> bool:
        """Whether nothing is cut from the texts in the page."""
        return all(len(text) <= TEXT_LIMIT for side in self.texts for text in side)


def flip_section(store: Store, view: View, folder: str, write: Write) -> str:
    """All problems that only one of base and variant solves, in a list for each variant.

    folder: name of the folder beside the page for what write(name, text) keeps.
    """
    others = view.looks[1:]
    if not others:
        return ""
    base_samples = store.samples(view.runs[0].run_id)
    gold = {problem_id: problem.gold for problem_id, problem in store.problems().items()}
    most = max(2, min(FLIPS_PER_RUN, FLIPS_IN_ALL // len(others)))
    found = [flips(base_samples, store.samples(run.run_id)) for run in view.runs[1:]]
    listed = [choose(of_run, max(most, LINES_IN_ALL // len(others))) for of_run in found]
    inside = [{flip.key for flip in choose(of_run, most)} for of_run in found]

    def cases(place: int) -> list[Case]:
        """Read when needed and then forgotten: together the texts may be large."""
        looks, chosen = (view.base, others[place]), listed[place]
        sides = [store.texts(run.run_id, [flip.key for flip in chosen]) for run in (view.runs[0], view.runs[place + 1])]
        return [Case(f, gold[f.base.problem_id], looks, (sides[0][f.key], sides[1][f.key])) for f in chosen]

    rest = [sum(case.size for case in cases(n) if case.flip.key not in inside[n]) for n in range(len(others))]
    room = REST_LIMIT
    for place in sorted(range(len(others)), key=rest.__getitem__):
        room -= rest[place]
        if room >= 0:
            inside[place] = {flip.key for flip in listed[place]}
    groups, outside = [], 0
    for place, look in enumerate(others):
        items = []
        for number, case in enumerate(cases(place)):
            shown, name = case.flip.key in inside[place], f"flip-{look.index}-{number}.html"
            link = None if shown and case.whole else f"{quote(folder)}/{name}"
            items.append(_item(case, shown, link))
            if link:
                write(name, _file(case))
                outside += 1
        groups.append(_group(look, found[place], items))
    note = (
        "Right in one model and wrong in the other with the same draw number, at the largest budget both have. Texts "
        "are the models' own; control characters are made visible. Questions are not kept in the store."
    )
    if outside:
        note += (
            f" {count(outside)} pairs of texts lie in the folder <code>{esc(folder)}</code> beside this page and are "
            "read when opened: keep the two together."
        )
    return f'<section id="flips"><h2>Problems that flipped</h2>{soft(note)}{"".join(groups)}</section>'


def _group(look: Look, found: Sequence[Flip], items: Sequence[str]) -> str:
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


def _item(case: Case, shown: bool, link: str | None) -> str:
    body = _sides(case, TEXT_LIMIT) if shown else ""
    if link:
        what = "Open the whole texts in a tab" if shown else "Open both texts in a tab"
        body += f'<p class="soft"><a class="beside" href="{link}" target="_blank" rel="noopener">{what}</a></p>'
    sign = '<span class="word better">gained</span>' if case.flip.gained else '<span class="word worse">lost</span>'
    return f'<details class="flip"><summary>{sign} {_headline(case)}</summary>{body}</details>'


def _headline(case: Case) -> str:
    answers = " → ".join(_answer(sample) for sample in (case.flip.base, case.flip.other))
    name = esc(clip(case.flip.base.problem_id, 120))
    return f"<b><bdi>{name}</bdi></b> · correct: <bdi>{esc(clip(case.gold, 200))}</bdi> · {answers}"


def _answer(sample: Sample) -> str:
    answer = "no answer" if sample.answer is None else f"<bdi>{esc(clip(sample.answer, 200))}</bdi>"
    return f"{answer} {'✓' if sample.correct else '✗'}"


def _sides(case: Case, limit: int) -> str:
    samples = (case.flip.base, case.flip.other)
    columns = "".join(_side(*parts, limit) for parts in zip(case.looks, samples, case.texts, strict=True))
    return f'<div class="sides">{columns}</div>'


def _side(look: Look, sample: Sample, texts: tuple[str, str], limit: int) -> str:
    end = "ended by itself" if sample.ended == "natural" else "stopped by the budget"
    facts = f"{sample.thinking_tokens} thinking tokens, {end}; {sample.answer_tokens} answer tokens"
    facts += ", cut at the cap" if sample.answer_truncated else ""
    thinking, text = texts if any(texts) else (MISSING, MISSING)
    return (
        f'<div class="c{look.hue}"><h4>{named(look)} {_answer(sample)}<small>{facts}</small></h4>'
        f'<pre class="thinking" tabindex="0">{esc(clip(thinking, limit))}</pre>'
        f'<pre class="answer" tabindex="0">{esc(clip(text, limit))}</pre></div>'
    )


def _file(case: Case) -> str:
    title = f"{case.looks[1].label} against {case.looks[0].label}"
    return small_page(title, f"<h1>{_headline(case)}</h1>{_sides(case, FILE_LIMIT)}")
