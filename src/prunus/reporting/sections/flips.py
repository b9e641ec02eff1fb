"""Problems that only the base or only the variant solves, with both answers. The answers are untrusted."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunus.reporting.prose import original
from prunus.reporting.render.table import RUN, Column, RunStyle, Table, Word
from prunus.reporting.render.text import esc, one_line
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part, soft
from prunus.store.rows import Sample

LISTED = 500  # maximum number of problems that the page lists; the files of --csv have all
MOST_KINDS = 12  # of problems; more are no help


@dataclass(frozen=True)
class Flip:
    """A problem that exactly one of base and variant answered correctly, in draws of the same budget and number."""

    base: Sample
    other: Sample

    @property
    def gained(self) -> bool:
        """Whether the variant is right and the base wrong."""
        return self.other.correct


def section(data: ReportData) -> Section:
    """Tables of problems newly wrong and newly right with each variant: counts, and a list; empty without variants."""
    if not data.others:
        return Section("flips")
    by_run = [(run.style, find_flips(data.base.samples, run.samples)) for run in data.others]
    solved = solved_by(data.base.samples)
    kinds = kinds_of([problem for problem in data.gold if problem in solved])
    counts, problems = counts_table(data, by_run, solved, kinds), problems_table(data, by_run)
    step = max(1, -(-len(problems.rows) // LISTED))
    listed = replace(problems, rows=problems.rows[::step])
    note = (
        "Answers of the same number at the largest budget that both have. <code>prunus view STORE</code> shows the "
        "questions, and both ways of thinking side by side with the place where a right answer was lost; with "
        "<code>--export FOLDER</code> it writes some of them as files."
    )
    count = soft(f"{len(listed.rows)} of {len(problems.rows)} are here.") if step > 1 else ""
    largest = max((sample.budget for sample in data.base.samples), default=0)
    at = f"With {largest} thinking tokens " if largest > 0 else ""
    says = f"{at}{original(data)} solves {sum(solved.values())} problems"
    says = f"{says[0].upper()}{says[1:]}{', of which these are newly wrong, by kind' * bool(kinds)}."
    both = details("Which problems", listed.html() + count + soft(note)) if listed.rows else ""
    html = part("flips", "What does it get wrong?", esc(says), counts.html() + both)
    return Section("flips", html, tables=[counts, problems], name="Problems")


def solved_by(samples: Iterable[Sample]) -> dict[str, bool]:
    """{problem: whether it is solved in the first answer at the largest budget}."""
    found: dict[str, Sample] = {}
    for sample in samples:
        key = (-sample.budget, sample.draw)
        if sample.problem_id not in found or key < (-found[sample.problem_id].budget, found[sample.problem_id].draw):
            found[sample.problem_id] = sample
    return {problem: sample.correct for problem, sample in found.items()}


def kinds_of(problems: Sequence[str]) -> dict[str, str]:
    """{problem: its kind}, from ids such as `tiny/clock/3/d303` or `tiny/chain-1-003`; empty where they tell none.

    Kinds are words, from 2 to MOST_KINDS of them, with several problems each.
    """
    found: dict[str, str] = {}
    for problem in problems:
        name = re.match(r"[^/]+/([A-Za-z][A-Za-z_]*)(?=[-/ ])", problem)
        if name is None:
            return {}
        found[problem] = name[1]
    numbers = Counter(found.values())
    return found if 2 <= len(numbers) <= MOST_KINDS and min(numbers.values()) > 1 else {}


def find_flips(base: Iterable[Sample], other: Iterable[Sample]) -> list[Flip]:
    """Draws at the largest common budget of which exactly one side is correct; at most one per problem."""
    left, right = ({(s.problem_id, s.budget, s.draw): s for s in side} for side in (base, other))
    shared = left.keys() & right.keys()
    if not shared:
        return []
    largest = max(budget for _, budget, _ in shared)
    flips: dict[str, Flip] = {}
    for key in sorted(key for key in shared if key[1] == largest):
        if left[key].correct != right[key].correct:
            flips.setdefault(key[0], Flip(left[key], right[key]))
    return list(flips.values())


def counts_table(
    data: ReportData,
    by_run: Iterable[tuple[RunStyle, list[Flip]]],
    solved: Mapping[str, bool],
    kinds: Mapping[str, str],
) -> Table:
    """How many problems are newly wrong and newly right with each variant, and how many of each kind newly wrong."""
    names = sorted(set(kinds.values()))
    rows: list[tuple[RunStyle | str, list[Any]]] = []
    if names:
        of = Counter(kinds[problem] for problem, right in solved.items() if right and problem in kinds)
        rows.append((f"{original(data)} solves", [None, None, *(of[name] for name in names)]))
    for style, flips in by_run:
        wrong = [flip.base.problem_id for flip in flips if not flip.gained]
        lost = Counter(kinds.get(problem, "") for problem in wrong)
        rows.append((style, [len(wrong), len(flips) - len(wrong), *(lost[name] for name in names)]))
    columns = [RUN, Column("lost", "Newly|wrong"), Column("gained", "Newly|right")]
    columns += [Column(f"lost_{name}", f"{name}") for name in names]
    return Table("flips", "Newly wrong and newly right problems", "data flips sortable", columns, rows)


def problems_table(data: ReportData, by_run: Iterable[tuple[RunStyle, list[Flip]]]) -> Table:
    """The problems that each variant lost and gained, with the right answer and both answers."""
    rows = []
    for style, flips in by_run:
        for flip in flips:
            name, change = flip.base.problem_id, Word("newly right" if flip.gained else "newly wrong")
            rows.append((style, [name, change, data.gold[name], flip.base.answer, flip.other.answer]))
    columns = [
        RUN, Column("problem", "Problem", one_line), Column("change", "Change"), Column("gold", "Correct", one_line),
        Column("base", "Original's answer", one_line), Column("answer", "Its answer", one_line),
    ]  # fmt: skip
    return Table("flipped-problems", "Every problem that flipped", "data flipped sortable", columns, rows)
