"""Problems that only the base or only the variant solves, with both texts side by side. The texts are untrusted.

The page itself has some of the texts. The others are in small pages in a folder beside it, to which their rows link.
When a row is opened, the script inserts a sandboxed frame above the link, and removes it when the row is closed: on
`file:`, `fetch` is forbidden and `loading="lazy"` is ignored, and a frame without scripts may contain any text. Rows
outside the window are not laid out (`content-visibility`), so that long lists stay fast.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import quote

from prunus.budgets import AS_RUN
from prunus.reporting.render.table import Look, named
from prunus.reporting.render.text import clip, count, esc, small_page
from prunus.reporting.report_data import ReportData, Texts
from prunus.reporting.section import Section, part
from prunus.results.rows import UNKNOWN, Key, Run, Sample

FLIPS_PER_RUN, FLIPS_IN_ALL = 6, 32  # maximum numbers of flips whose texts are in the page, whatever their size
LINES_IN_ALL = 500  # maximum number of flips that are listed
TEXT_LIMIT = 6_000  # maximum number of characters of a thinking or answer text in the page
FILE_LIMIT = 1_000_000  # the same in a file of the folder
REST_LIMIT = 40_000  # characters in the page for texts of further flips; runs with the shortest texts come first
CUT = 4  # characters at the end of a cut text that may differ from the whole chain's, if it ends within a character
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


class Lost(NamedTuple):
    """Where a chain lost a right answer: budgets at which it was last right, and next was not.

    part: of the chain's thinking, between them; empty where the store does not keep it.
    """

    right: int
    wrong: int
    part: str


class Case(NamedTuple):
    """A flip with all data needed to show it. lost: of the side that is wrong, if it was right under less thinking."""

    flip: Flip
    gold: str
    looks: tuple[Look, Look]
    texts: tuple[Texts, Texts]  # of base and variant
    lost: Lost | None = None

    @property
    def size(self) -> int:
        return sum(len(text) for side in self.texts for text in side) + (len(self.lost.part) if self.lost else 0)

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
    losses = [[lost_answers(side.run, side.samples) for side in (one, data.base)] for one in others]
    inside = [{flip.key for flip in spread_out(of_run, most)} for of_run in found]

    def cases(place: int, chosen: Sequence[Flip], with_texts: Collection[Key]) -> list[Case]:
        """The chosen flips with their texts, which are read now and not kept, since together they may be large."""
        sides = (data.base, others[place])
        places = {f.key: losses[place][f.gained].get((f.base.problem_id, f.base.draw)) for f in chosen}
        more = [(key[0], budget, key[2]) for key in with_texts for budget in places.get(key) or ()]
        base, other = (data.texts(side.run.run_id, [*with_texts, *more]) for side in sides)
        looks = (sides[0].look, sides[1].look)
        return [
            Case(
                f,
                data.gold[f.base.problem_id],
                looks,
                (base.get(f.key, NO_TEXTS), other.get(f.key, NO_TEXTS)),
                lost_in(f.key, places[f.key], base if f.gained else other),
            )
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
        "budget that both have. Where the wrong one had the right answer under a smaller budget, the page says between "
        "which budgets it was lost, and shows what the chain says there. The texts are the models' own, with control "
        "characters made visible. <code>prunus view</code> shows whole chains and the questions."
    )
    if outside := sum(map(len, linked)):
        note += (
            f" {count(outside)} pairs of texts are in the folder <code>{esc(data.folder)}</code> beside this page and "
            "are loaded when they are opened, so keep page and folder together."
        )
    lost, gained = (sum(flip.gained == won for of_run in found for flip in of_run) for won in (False, True))
    says = f"Over all variants: {lost} lost of the problems that the base solves, {gained} gained of the others."
    html = part("flips", "Problems that flipped", says, "".join(groups), note)
    return Section("flips", html, files=files(), name="Texts")


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


def lost_answers(run: Run, samples: Iterable[Sample]) -> dict[tuple[str, int], tuple[int, int]]:
    """By (problem, draw): the last two budgets of a chain of which the smaller has a right answer and the next has not.

    Only chains that are wrong under their largest budget are there; none where budgets have chains of their own.
    """
    if not run.plan.get("reuse"):
        return {}
    chains: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        if sample.budget >= 0:
            chains.setdefault((sample.problem_id, sample.draw), []).append(sample)
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for key, chain in chains.items():
        chain.sort(key=lambda sample: sample.budget)
        if not chain[-1].correct:
            steps = [(one.budget, two.budget) for one, two in pairwise(chain) if one.correct and not two.correct]
            found |= {key: steps[-1]} if steps else {}
    return found


def lost_in(key: Key, budgets: tuple[int, int] | None, texts: Mapping[Key, Texts]) -> Lost | None:
    """The place where the chain of a flip lost its answer between two budgets, with the thinking that texts have."""
    if budgets is None:
        return None
    before, after = (texts.get((key[0], budget, key[2]), NO_TEXTS)[0] for budget in budgets)
    pairs = enumerate(zip(before, after, strict=False))
    start = next((place for place, (one, two) in pairs if one != two), min(len(before), len(after)))
    return Lost(*budgets, after[start:] if start >= len(before) - CUT else "")


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
    if case.lost is not None:
        body = _lost(case, TEXT_LIMIT if shown else 0) + body
    sign = '<span class="word better">gained</span>' if case.flip.gained else '<span class="word worse">lost</span>'
    return f'<details class="flip"><summary>{sign} {_headline(case)}</summary>{body}</details>'


def _headline(case: Case) -> str:
    answers = " → ".join(_answer(sample) for sample in (case.flip.base, case.flip.other))
    name = esc(clip(case.flip.base.problem_id, 120))
    return f"<b><bdi>{name}</bdi></b> · correct: <bdi>{esc(clip(case.gold, 200))}</bdi> · {answers}"


def _answer(sample: Sample) -> str:
    answer = "no answer" if sample.answer is None else f"<bdi>{esc(clip(sample.answer, 200))}</bdi>"
    return f"{answer} {'✓' if sample.correct else '✗'}"


def _lost(case: Case, limit: int) -> str:
    """Where the wrong side lost its answer: a line, and the part of its chain between the two budgets."""
    lost, look = case.lost, case.looks[0 if case.flip.gained else 1]
    assert lost is not None
    line = (
        f"{named(look)} had the right answer at budget {lost.right} and lost it between {lost.right} and {lost.wrong}"
        " tokens of the same chain"
    )
    part = f'<pre class="thinking" tabindex="0">{esc(clip(lost.part, limit))}</pre>' if lost.part and limit else ""
    return f'<p class="soft">{line}{":" if part else "."}</p>{part}'


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
    lost = "" if case.lost is None else _lost(case, FILE_LIMIT)
    return small_page(title, f"<h1>{_headline(case)}</h1>{lost}{_sides(case, FILE_LIMIT)}")
