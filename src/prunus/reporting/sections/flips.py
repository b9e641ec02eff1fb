"""Problems that only the base or only the variant solves, with both texts side by side. The texts are untrusted.

The page itself has some of the texts. The others are in small pages in a folder beside it, to which their rows link.
When a row is opened, the script inserts a sandboxed frame above the link, and removes it when the row is closed: on
`file:`, `fetch` is forbidden and `loading="lazy"` is ignored, and a frame without scripts may contain any text. Rows
outside the window are not laid out (`content-visibility`), so that long lists stay fast.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from prunus.budgets import AS_RUN
from prunus.reporting.labels import Look
from prunus.reporting.render.html import small_page
from prunus.reporting.render.table import named
from prunus.reporting.render.text import clip, count, esc
from prunus.reporting.report_data import ReportData, Texts
from prunus.reporting.section import Section, soft
from prunus.results.rows import UNKNOWN, Key, Sample

FLIPS_PER_RUN, FLIPS_IN_ALL = 6, 48  # maximum numbers of flips whose texts are in the page, whatever their size
LINES_IN_ALL = 1_500  # maximum number of flips that are listed
TEXT_LIMIT = 6_000  # maximum number of characters of a thinking or answer text in the page
FILE_LIMIT = 1_000_000  # the same in a file of the folder
REST_LIMIT = 800_000  # characters in the page for texts of further flips; runs with the shortest texts come first
MISSING = "[not kept in the store]"
NO_TEXTS = ("", "")


@dataclass(frozen=True)
class Flip:
    """A problem that exactly one of base and variant answered correctly, in draws of the same budget and number."""

    base: Sample
    other: Sample

    @property
    def gained(self) -> bool:
        """Whether the variant is right and the base wrong."""
        return self.other.correct

    @property
    def key(self) -> Key:
        return (self.base.problem_id, self.base.budget, self.base.draw)


class Case(NamedTuple):
    """A flip with all data needed to show it."""

    flip: Flip
    gold: str
    looks: tuple[Look, Look]
    texts: tuple[Texts, Texts]  # of base and variant

    @property
    def size(self) -> int:
        return sum(len(text) for side in self.texts for text in side)

    @property
    def whole(self) -> bool:
        """Whether the page can show the texts uncut."""
        return all(len(text) <= TEXT_LIMIT for side in self.texts for text in side)


def section(data: ReportData) -> Section:
    """For each variant a list of the problems that only the variant or only the base solves; empty without variants."""
    others = data.others
    if not others:
        return Section("flips")
    most = max(2, min(FLIPS_PER_RUN, FLIPS_IN_ALL // len(others)))
    found = [find_flips(data.base.samples, one.samples) for one in others]
    listed = [spread_out(of_run, max(most, LINES_IN_ALL // len(others))) for of_run in found]
    inside = [{flip.key for flip in spread_out(of_run, most)} for of_run in found]

    def cases(place: int, chosen: Sequence[Flip], with_texts: Collection[Key]) -> list[Case]:
        """The chosen flips with their texts, which are read now and not kept, since together they may be large."""
        sides = (data.base, others[place])
        base, other = (data.texts(side.run.run_id, with_texts) for side in sides)
        looks = (sides[0].look, sides[1].look)
        return [
            Case(f, data.gold[f.base.problem_id], looks, (base.get(f.key, NO_TEXTS), other.get(f.key, NO_TEXTS)))
            for f in chosen
        ]

    rest = []
    for place, of_run in enumerate(listed):
        outside = [flip for flip in of_run if flip.key not in inside[place]]
        rest.append(sum(case.size for case in cases(place, outside, [flip.key for flip in outside])))
    room = REST_LIMIT
    for place in sorted(range(len(others)), key=rest.__getitem__):
        room -= rest[place]
        if room >= 0:
            inside[place] = {flip.key for flip in listed[place]}
    groups: list[str] = []
    linked: list[list[tuple[str, Flip]]] = []
    for place, one in enumerate(others):
        items, links = [], []
        for number, case in enumerate(cases(place, listed[place], inside[place])):
            shown, name = case.flip.key in inside[place], f"flip-{one.look.index}-{number}.html"
            inline = shown and case.whole
            items.append(_item(case, shown, None if inline else f"{quote(data.folder)}/{name}"))
            links += [] if inline else [(name, case.flip)]
        groups.append(_group(one.look, found[place], items))
        linked.append(links)

    def files() -> Iterator[tuple[str, str]]:
        for place, links in enumerate(linked):
            chosen = [flip for _, flip in links]
            for (name, _), case in zip(links, cases(place, chosen, [flip.key for flip in chosen]), strict=True):
                yield name, _file(case)

    note = (
        "Problems that one model answers correctly and the other does not, in draws of the same number at the largest "
        "budget that both have. The texts are the models' own, with control characters made visible. The store does "
        "not keep the questions."
    )
    if outside := sum(map(len, linked)):
        note += (
            f" {count(outside)} pairs of texts are in the folder <code>{esc(data.folder)}</code> beside this page and "
            "are loaded when they are opened, so keep page and folder together."
        )
    html = f'<section id="flips"><h2>Problems that flipped</h2>{soft(note)}{"".join(groups)}</section>'

    return Section("flips", html, files=files())


def find_flips(base: Iterable[Sample], other: Iterable[Sample]) -> list[Flip]:
    """Draws at the largest common budget of which exactly one side is correct; at most one per problem."""
    left, right = ({(s.problem_id, s.budget, s.draw): s for s in side} for side in (base, other))
    shared = left.keys() & right.keys()
    if not shared:
        return []
    largest = max(budget for _, budget, _ in shared)
    found: dict[str, Flip] = {}
    for key in sorted(key for key in shared if key[1] == largest):
        if left[key].correct != right[key].correct:
            found.setdefault(key[0], Flip(left[key], right[key]))
    return list(found.values())


def spread_out(found: Sequence[Flip], most: int) -> list[Flip]:
    """At most `most` flips, evenly spread over the list, with equally many lost and gained ones if there are enough."""
    kinds = [[flip for flip in found if flip.gained == gained] for gained in (False, True)]
    shares = [min(len(kinds[0]), most - min(len(kinds[1]), most // 2)), 0]
    shares[1] = min(len(kinds[1]), most - shares[0])
    return [kind[k * len(kind) // share] for kind, share in zip(kinds, shares, strict=True) for k in range(share)]


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
    end = "natural end" if sample.ended == "natural" else "stopped by the budget"
    if sample.budget == AS_RUN:
        end = "end unknown" if sample.forced_tokens == UNKNOWN else end.replace("the budget", "a limit")
    end += ", loops" if sample.loops else ""
    facts = f"{sample.thinking_tokens} thinking tokens, {end}; {sample.answer_tokens} answer tokens"
    facts = f"tokens unknown, {end}" if sample.answer_tokens == UNKNOWN else facts
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
