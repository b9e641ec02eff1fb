"""Tables and picture of docs/measurements/study.md, of the study examples/study_1.5b.toml, from benchmarks/study.db.xz.

    python benchmarks/study_page.py [--publish results.db]

--publish first writes the store of a study without questions, chains, texts of answers, and runs that lack a problem.
Then the tables between the markers of the page and docs/images/study.svg are written.
With these rows a study goes on, calibrated on the chains in benchmarks/study_own.jsonl.xz:
`xz -dc benchmarks/study.db.xz > OUT/results.db`, then `prunus study examples/study_1.5b.toml --out OUT --mixed`.
Verdicts are read once, when all 300 problems are there; until then the tables have none.
"""

import argparse
import lzma
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from drawn import figure
from pages import write

import prunus
from prunus import Comparison, Efforts
from prunus.reporting.published import PublishedVariant, cells
from prunus.reporting.render.chart import Axis, Line, Point, budget_axis, linear_axis
from prunus.results.cells import Entry
from prunus.results.contrasts import ENDS
from prunus.results.efforts import RunEfforts
from prunus.results.words import interval_in_words, loss_in_words
from prunus.settings.margins import LEVELS
from prunus.store.characters import DASH, MINUS, NBSP
from prunus.store.labels import Identity, label

ROOT = Path(__file__).resolve().parents[1]
ROWS, PAGE, PICTURE = (
    ROOT / name for name in ("benchmarks/study.db.xz", "docs/measurements/study.md", "docs/images/study.svg")
)
MARGIN, STOP_MARGIN = 0.03, 0.05
PROBLEMS, BUDGETS = 300, (64, 128, 256, 512)
PAPER = "2604.25098"
# What the page calls what was done, as labels of runs begin, and the same cell of the paper.
VARIANTS = {
    "ShortGPT −1 block": ("without 1 of 28 blocks", ("shortgpt", None, None, 1)),
    "ShortGPT −2 blocks": ("without 2 of 28 blocks", ("shortgpt", None, None, 2)),
    "Wanda 20 %": ("Wanda 20 %", ("wanda", "uniform", 0.2, None)),
    "Magnitude 20 %": ("Magnitude 20 %", ("magnitude", "uniform", 0.2, None)),
    "Wanda OWL 20 %": ("Wanda 20 % by OWL", ("wanda", "owl", 0.2, None)),
    "Wanda LayerIF 20 %": ("Wanda 20 % by LayerIF", ("wanda", "layerif", 0.2, None)),
}
DENSE = "dense"


class Study(NamedTuple):
    """What Prunus says of the rows."""

    comparison: Comparison
    efforts: Efforts


def main() -> None:
    """Write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", type=Path, metavar="STORE")
    options = parser.parse_args()
    if options.publish is not None:
        publish(options.publish)
    study = read()
    write(PAGE, "study_page", tables(study))
    PICTURE.write_text(picture(study), "utf-8")


def publish(path: Path) -> None:
    """Write a copy of a store without texts, and without rows of runs that lack a problem."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "study.db")
        with closing(sqlite3.connect(path)) as store, closing(sqlite3.connect(copy)) as thin:
            store.backup(thin)
            thin.execute("UPDATE sample SET thinking = '', text = ''")
            thin.execute(
                "DELETE FROM sample WHERE run_id IN (SELECT run_id FROM sample GROUP BY run_id HAVING count(*) < ?)",
                (PROBLEMS * len(BUDGETS),),
            )
            thin.execute("DELETE FROM asked")
            thin.execute("DELETE FROM thought")
            thin.commit()
            thin.execute("PRAGMA journal_mode = DELETE")
            thin.execute("VACUUM")
        ROWS.write_bytes(lzma.compress(copy.read_bytes(), preset=9 | lzma.PRESET_EXTREME))


@contextmanager
def unpacked() -> Iterator[Path]:
    """The path of the published store, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "study.db")
        with lzma.open(ROWS) as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file)
        yield path


def read() -> Study:
    """What Prunus says of the published rows."""
    with unpacked() as path:
        return Study(
            prunus.compare(path, margin=MARGIN, stop_margin=STOP_MARGIN),
            prunus.efforts(path),
        )


def done(run: Identity) -> str:
    """What was done to a run's model, as its label says."""
    return label(run.recipe).replace(NBSP, " ")


def name_of(run: Identity) -> str:
    """What the page calls a run."""
    return VARIANTS[done(run)][0] if run.recipe else DENSE


def tables(study: Study) -> str:
    """What bounds say, the table of accuracies, the line on the A/A control, and what suffices, as Markdown."""
    parts = claims(study.comparison), accuracies(study), repeated(study.comparison), levels(study.efforts)
    return "\n\n".join("\n".join(lines) for lines in parts)


def claims(comparison: Comparison) -> list[str]:
    """What the intervals that decide say of the variants, in sentences, and how often the paper has the same sign."""
    waiting = [entry.unfinished for entry in comparison.others if entry.unfinished is not None]
    if waiting:
        there = min(each.complete for each in waiting)
        return [f"**{there} of {PROBLEMS} problems are there: no verdict is read before all of them are.**"]
    size = f"{100 * MARGIN:.0f} points"
    groups = {
        f"A loss of {size} of area is ruled out": [entry for entry in comparison.others if entry.within_margin],
        "Worse": [entry for entry in comparison.others if entry.verdict.direction < 0],
    }
    told = {entry.run for members in groups.values() for entry in members}
    groups["Not decided"] = [entry for entry in comparison.others if entry.run not in told]
    said = [
        f"- **{heading}**: "
        + "; ".join(f"{name_of(entry)}, which {loss_in_words(entry)}" for entry in ordered(members)) + "."
        for heading, members in groups.items()
        if members
    ]  # fmt: skip
    alike = sum(entry.primary.difference * papers_mean(done(entry))[0] > 0 for entry in comparison.others)
    same = f"the same sign as the paper's mean for {alike} of {len(comparison.others)} variants"
    return [*said, f"- **Beside the paper**: the difference has {same}."]


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """Variants in the order in which they were declared."""
    return sorted(entries, key=lambda entry: list(VARIANTS).index(done(entry)))


def kept(entry: Entry) -> str:
    """`79 [64, 96]`: the slope of a variant in % of that of dense, with a 95 % interval of it alone."""
    slope = entry.scaling
    if slope is None or slope.retention is None or slope.retention_low is None or slope.retention_high is None:
        return DASH
    low, high = (f"{100 * end:.0f}".replace("-", MINUS) for end in (slope.retention_low, slope.retention_high))
    return f"{100 * slope.retention:.0f} [{low}, {high}]"


def accuracies(study: Study) -> list[str]:
    """The table of accuracies, with the verdicts."""
    budgets, entries = study.efforts.runs[0].budgets, list(study.comparison.others)
    heads = *map(str, budgets), "area, to dense", "verdict", "scaling kept", "ends", "tokens", "paper"
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * (len(budgets) + 1)}---|{'---:|' * 4}"]
    by_run = {run.run: run for run in study.efforts.runs}
    own = by_run[study.comparison.base.run]
    first = entries[0].stopping
    lines.append(row(DENSE, own, ["", "", ""], first.endings[ENDS].base_share, first.base_per_correct, ""))
    for entry in ordered(study.comparison.others):
        share, tokens = entry.stopping.endings[ENDS].share, entry.stopping.per_correct
        mean, count = papers_mean(done(entry))
        published = f"{signed(mean)} ({count})"
        words = [difference(entry), entry.verdict.shown, kept(entry)]
        lines.append(row(name_of(entry), by_run[entry.run], words, share, tokens, published))
    return lines


def row(
    name: str, run: RunEfforts, words: Sequence[str], share: float | None, tokens: float | None, published: str
) -> str:
    """A line of the table of accuracies. words: the cells after the accuracies. share: of chains that end."""
    cells_of = [*(f"{100 * solved:.1f}" for solved in run.solves), *words]
    cells_of += [f"{100 * (share or 0):.0f}", f"{tokens or 0:,.0f}", published]
    return f"| {name} | {' | '.join(cells_of)} |"


def difference(entry: Entry) -> str:
    """`+1.2 (−0.5 to +2.9)`: the difference of the area in points, and the interval that decides."""
    interval = interval_in_words(entry)
    return signed(100 * entry.primary.difference) + (f" ({interval})" if interval else "")


def signed(value: float) -> str:
    """A number with its sign and one decimal."""
    return f"{value:+.1f}".replace("-", MINUS)


def papers_mean(label_of_run: str) -> tuple[float, int]:
    """The paper's mean difference from its dense model, in points, and over how many of its cells of a variant."""
    method, allocation, sparsity, blocks = VARIANTS[label_of_run][1]
    dense = {
        (cell.variant.model, cell.task, cell.budget): cell.accuracy
        for cell in cells()
        if cell.source == PAPER and cell.variant.method == DENSE
    }
    each = [
        cell.accuracy - dense[cell.variant.model, cell.task, cell.budget]
        for cell in cells()
        if cell.source == PAPER
        and cell.variant == PublishedVariant(cell.variant.model, method, allocation, sparsity, blocks)
    ]
    return 100 * float(np.mean(each)), len(each)


def repeated(comparison: Comparison) -> list[str]:
    """What changes where nothing should."""
    (again,) = comparison.repeats
    return [
        f"Dense once more, in groups of another size: {again.differ} of {again.answers:,} answers differ, the area by"
        f" {signed(100 * again.difference)} [{signed(100 * again.low)}, {signed(100 * again.high)}] points."
    ]


def levels(found: Efforts) -> list[str]:
    """Two sentences: what each run must think, and with how many tokens a variant is as right as dense."""
    budgets, exchanges = dict[str, list[str]](), dict[str, list[str]]()
    for run in found.runs:
        budgets.setdefault(sufficient(run), []).append(name_of(run))
        if run.exchange is not None:
            exchanges.setdefault(as_right(run), []).append(name_of(run))
    largest = found.runs[0].budgets[-1]
    lines = []
    for heading, groups in (
        ("Smallest budgets that lose less than 2, 5 and 10 points", budgets),
        (f"As right as dense with {largest} tokens", exchanges),
    ):
        *named, most = sorted(groups, key=lambda tokens: len(groups[tokens]))
        said = [f"{tokens} for {', '.join(groups[tokens])}" for tokens in named]
        said.append(f"{most} for all others")
        lines.append(f"- **{heading}**: {'; '.join(said)}.")
    return lines


def sufficient(run: RunEfforts) -> str:
    """`512, 512 and 256`: the smallest budgets that lose less than each of LEVELS."""
    budgets = [run.level(name).budget for name in LEVELS] if run.levels else [None] * len(LEVELS)
    *named, last = (DASH if budget is None else f"{budget}" for budget in budgets)
    return f"{', '.join(named)} and {last}"


def as_right(run: RunEfforts) -> str:
    """With how many tokens a variant is as right as dense at its largest budget."""
    if run.exchange is None:
        return ""
    largest = run.budgets[-1]
    for found in run.exchange.as_right:
        if found.base_budget == largest:
            if found.never:
                return f"no budget up to {largest}"
            low, high = found.above or f"less than {run.budgets[0]}", found.below or f"more than {largest}"
            return f"{low} to {high}"
    return "not known"


def picture(study: Study) -> str:
    """The SVG file of accuracies by budget, and of the intervals that decide."""
    entries = {entry.run: entry for entry in study.comparison.others}
    runs = [run for run in study.efforts.runs if run.run not in entries]
    runs += [run for run in study.efforts.runs if run.run in entries]
    flat = ((0, DENSE), (-100 * MARGIN, "limit"))
    lines, intervals = (
        list[Line](),
        [Line("c0", [Point(0, at), Point(len(runs), at)], 0, name) for at, name in flat],
    )
    for place, run in enumerate(runs):
        points = [Point(budget, 100 * share) for budget, share in zip(run.budgets, run.solves, strict=True)]
        lines.append(Line(f"c{place}", points, place, name_of(run)))
        entry = entries.get(run.run)
        if entry is not None and entry.low is not None and entry.high is not None:
            interval = Point(place, 100 * entry.primary.difference, 100 * entry.low, 100 * entry.high)
            intervals.append(Line(f"c{place}", [interval], place))
    largest = runs[0].budgets[-1]
    last = ", ".join(f"{line.name} {line.points[-1].y:.0f} %" for line in lines)
    top = linear_axis(0, max(point.y for line in lines for point in line.points), "Accuracy, %")
    ends = [end for line in intervals for point in line.points for end in (point.low, point.high) if end == end]
    heading = "Area, to dense: points, with the interval that decides"
    beside = (
        intervals,
        Axis("in the order of the table", (), 0, len(runs)),
        linear_axis(min(ends, default=-1), max(ends, default=1), heading, sign=True),
    )
    label_of_picture = f"Accuracy on GSM8K by thinking budget; at {largest} tokens: {last}"
    return figure([(lines, budget_axis(runs[0].budgets), top), beside], label_of_picture)


if __name__ == "__main__":
    main()
