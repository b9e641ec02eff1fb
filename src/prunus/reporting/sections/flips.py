"""Problems that only the base or only the variant solves, with both answers. The answers are untrusted."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from prunus.reporting.render.table import RUN, Column, RunStyle, Table, Word
from prunus.reporting.render.text import one_line
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part, soft
from prunus.store.rows import Sample

LISTED = 500  # maximum number of problems that the page lists; the files of --csv have all
CUT = 4  # characters at the end of a cut text that may differ from the whole chain's, if it ends within a character


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
    """How many problems each variant lost and gained, and which; empty without variants."""
    if not data.others:
        return Section("flips")
    by_run = [(one.style, find_flips(data.base.samples, one.samples)) for one in data.others]
    counts, problems = counts_table(by_run), problems_table(data, by_run)
    step = max(1, -(-len(problems.rows) // LISTED))
    listed = replace(problems, rows=problems.rows[::step])
    note = (
        "Problems that one model answers correctly and the other does not, in draws of the same number at the largest "
        "budget that both have. <code>prunus view STORE</code> shows their questions, and the chains side by side with "
        "the place where a right answer was lost; with <code>--export FOLDER</code> it writes some of them as files."
    )
    count = soft(f"{len(listed.rows)} of {len(problems.rows)} are here.") if step > 1 else ""
    lost, gained = (sum(row[1][place] for row in counts.rows) for place in (0, 1))
    says = f"Over all variants: {lost} lost of the problems that the base solves, {gained} gained of the others."
    both = details("The problems and both answers", listed.html() + count) if listed.rows else ""
    html = part("flips", "Problems that flipped", says, counts.html() + both, note)
    return Section("flips", html, tables=[counts, problems], name="Flipped")


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


def counts_table(by_run: Iterable[tuple[RunStyle, list[Flip]]]) -> Table:
    """How many problems each variant lost and gained."""
    rows = [(style, [sum(flip.gained == won for flip in flips) for won in (False, True)]) for style, flips in by_run]
    columns = [RUN, Column("lost", "Lost"), Column("gained", "Gained")]
    return Table("flips", "Problems that flipped", "data flips sortable", columns, rows)


def problems_table(data: ReportData, by_run: Iterable[tuple[RunStyle, list[Flip]]]) -> Table:
    """The problems that each variant lost and gained, with the right answer and both answers."""
    rows = []
    for style, flips in by_run:
        for flip in flips:
            name, change = flip.base.problem_id, Word("gained" if flip.gained else "lost")
            rows.append((style, [name, change, data.gold[name], flip.base.answer, flip.other.answer]))
    columns = [
        RUN, Column("problem", "Problem", one_line), Column("change", "Change"), Column("gold", "Correct", one_line),
        Column("base", "Base's answer", one_line), Column("answer", "Its answer", one_line),
    ]  # fmt: skip
    return Table("flipped-problems", "Every problem that flipped", "data flipped sortable", columns, rows)
