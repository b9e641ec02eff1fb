"""`--figures` and `--csv`: every chart as .svg and .pdf, every table as .csv and .tex, in folders of their own."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prunus.errors import PrunusError
from prunus.reporting import grids
from prunus.reporting.drawing import drawing
from prunus.reporting.output_files import write_whole
from prunus.reporting.pdf import pdf
from prunus.reporting.published import about
from prunus.reporting.render.table import Grid, slug
from prunus.reporting.report_data import View, cells_of
from prunus.reporting.run_totals import Standing, cost_grid
from prunus.reporting.sections import curves as figures
from prunus.reporting.sections import draws as parallel
from prunus.reporting.sections import latency as seconds
from prunus.reporting.sections import sparsity as evidence
from prunus.reporting.sections.curves import ENDINGS
from prunus.reporting.sections.modes import MODES, Both, mode_chart, mode_grid

Key = tuple[str, int, str]  # classes, marker and name of a line


class Chart(NamedTuple):
    """name: of its files; legend: empty where a chart has one line."""

    name: str
    title: str
    svg: str
    legend: Sequence[Key] = ()


def charts(view: View, both: Sequence[Both], timed: seconds.Timings | None) -> Iterator[Chart]:
    """Every chart of the page, and all differences of a task in one."""
    runs = [(look.line, look.marker, look.label) for look in view.looks]
    for task in view.tasks:
        where = f" on {task}"
        lines = [*runs, *_published_keys(view, task)]
        yield Chart(f"accuracy-budget-{task}", "Accuracy" + where, figures.accuracy_against_budget(view, task), lines)
        yield Chart(f"accuracy-tokens-{task}", "Accuracy" + where, figures.accuracy_against_tokens(view, task), runs)
        if len(view.runs) > 1:
            picture = figures.all_differences(view, task)
            yield Chart(f"difference-{task}", f"Difference to {view.base.label}{where}", picture, runs[1:])
        for look, summary, entry in zip(view.looks, view.summaries, view.entries, strict=True):
            if entry is not None and task in entry["tasks"]:
                picture = figures.differences(view, task, look, entry)
                yield Chart(f"difference-{task}-{look.label}", f"{look.label}: difference{where}", picture)
            if cells_of(summary, task):
                keys = [(f"e{k}", k, words) for k, words in enumerate(ENDINGS.values())]
                picture = figures.endings(task, look, summary)
                yield Chart(f"endings-{task}-{look.label}", f"{look.label}: endings{where}", picture, keys)
        yield from _draws(view, task, runs)
        if timed is not None and any(run.seconds.get(task) for run in timed.runs):
            keys = [(run.look.line, run.look.marker, run.look.label) for run in timed.runs]
            picture = seconds.seconds_chart(timed, task)
            yield Chart(f"accuracy-seconds-{task}", f"Accuracy{where} against seconds", picture, keys)
        for one in both:
            if all(one.cells(task)):
                keys = [(f"m{k}", k, mode) for k, mode in enumerate(MODES)]
                name, title = f"modes-{task}-{one.look.label}", f"{one.look.label}: strict and legacy{where}"
                yield Chart(name, title, mode_chart(task, one), keys)
    for look, run in zip(view.looks, view.runs, strict=True):
        if picture := evidence.linear_map(look, run):
            yield Chart(f"linears-{look.label}", f"{look.label}: sparsity of each Linear", picture)


def _published_keys(view: View, task: str) -> list[Key]:
    sources = list(about()["sources"])
    found = dict.fromkeys((match.look, match.theirs.source) for match in view.published_on(task))
    names = about()["sources"]
    return [(f"{look.line} pub", sources.index(s), f"{look.label}, {names[s]['name']}") for look, s in found]


def _draws(view: View, task: str, runs: Sequence[Key]) -> Iterator[Chart]:
    if not parallel.has_draws(view, task):
        return
    for way, (name, _) in parallel.WAYS.items():
        if picture := parallel.ways_chart(view, task, way):
            yield Chart(f"draws-{way}-{task}", f"{name} on {task}", picture, runs)
    for look, summary in zip(view.looks, view.summaries, strict=True):
        if cells_of(summary, task):
            keys = [(look.line, look.marker, "one chain"), ("branch", 3, "majority of k chains")]
            title = f"{look.label}: one chain or several on {task}"
            yield Chart(f"fan-{task}-{look.label}", title, parallel.fan(task, look, summary), keys)


def tables(
    view: View, both: Sequence[Both], timed: seconds.Timings | None, standings: Sequence[Standing]
) -> list[Grid]:
    """Every table of the page, and the sparsity of every Linear."""
    found = [*grids.all_of(view), cost_grid(view, standings), evidence.linear_grid(view)]
    for task in view.tasks:
        found += [*parallel.all_of(view, task), *seconds.all_of(timed, task)]
    found += [mode_grid(view, both)] if both else []
    return [grid for grid in found if grid.rows]


def contents(
    view: View,
    both: Sequence[Both],
    timed: seconds.Timings | None,
    standings: Sequence[Standing],
    figures_in: Path | str | None,
    tables_in: Path | str | None,
) -> dict[Path, str | bytes]:
    """What to write where."""
    found: dict[Path, str | bytes] = {}
    if figures_in is not None:
        names: Counter[str] = Counter()
        for chart in charts(view, both, timed):
            name, picture = _unique(chart.name, names), drawing(chart.svg, chart.legend)
            found[Path(figures_in) / f"{name}.svg"] = picture.svg()
            found[Path(figures_in) / f"{name}.pdf"] = pdf(picture, chart.title)
    if tables_in is not None:
        names = Counter()
        for grid in tables(view, both, timed, standings):
            name = _unique(grid.name, names)
            found[Path(tables_in) / f"{name}.csv"] = grid.csv()
            found[Path(tables_in) / f"{name}.tex"] = grid.latex()
    return found


def _unique(name: str, seen: Counter[str]) -> str:
    """name as a file's; a second one of the same letters has a number."""
    short = slug(name)
    seen[short] += 1
    return short if seen[short] == 1 else f"{short}-{seen[short]}"


def check(files: Mapping[Path, object], overwrite: bool) -> None:
    """PrunusError where a file or its folder is in the way, before any is written."""
    for folder in {path.parent for path in files}:
        if folder.exists() and not folder.is_dir():
            raise PrunusError(f"'{folder}' is a file: name a folder")
        if not folder.absolute().parent.is_dir():
            raise PrunusError(f"the folder of '{folder}' does not exist: create it or name another folder")
    taken = [path for path in files if path.exists()]
    if taken and not overwrite:
        raise PrunusError(f"'{taken[0]}' exists: name another folder, or add --overwrite")


def write(files: Mapping[Path, str | bytes]) -> None:
    """Write them, each whole."""
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        write_whole(path, content)
