"""One self-contained page from a store: headline, verdicts, curves, tokens, what was pruned, texts, methods.

Charts are SVG that Python writes, not Plotly: the page is then some hundred kilobytes instead of 5 MB, complete without
scripts, the same on paper and in a test, and its policy can forbid every script but one of our own. Showing and hiding
runs is style (`:has`); the script adds a readout, sorting and downloads.

Model text is hostile. It appears only escaped, as text, with control characters made visible; a content security policy
names the hashes of our one style and one script, so that nothing else could act even if an escape were missing.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus import __version__
from prunus.errors import PrunusError
from prunus.reporting import export, prose
from prunus.reporting.labels import Look, history, looks
from prunus.reporting.output_files import Folder, refuse_existing, write_whole
from prunus.reporting.published import matches
from prunus.reporting.render.html import document, resource
from prunus.reporting.render.text import esc
from prunus.reporting.report_data import View
from prunus.reporting.run_totals import Standing, cost_grid, missing_notes, standing
from prunus.reporting.sections import draws as parallel
from prunus.reporting.sections import flips as traces
from prunus.reporting.sections import latency as seconds
from prunus.reporting.sections import published as beside
from prunus.reporting.sections import settings as methods
from prunus.reporting.sections import sparsity as evidence
from prunus.reporting.sections import verdicts as sections
from prunus.reporting.sections.modes import Both, both_modes, mode_section
from prunus.reporting.shown import Shown
from prunus.results.bands import add_bands
from prunus.results.comparison import compare, summarise
from prunus.results.store import Run, Store
from prunus.results.table import tables

Data = Mapping[str, Any]


def report(
    store: Path | str,
    out: Path | str,
    *,
    base: str | None = None,
    margin: float = 0.02,
    published: bool = False,
    figures: Path | str | None = None,
    csv: Path | str | None = None,
    overwrite: bool = False,
    name: str = "Prunus report",
    notes: Sequence[str] = (),
    runs: Collection[str] | None = None,
) -> Path:
    """Write the page about all runs of a store that can be compared with base, and return its path.

    base: run id or its start, model name or label; by default the run of the model that nothing was done to, the strict
    one where it was run in both modes. margin: share of problems by which a variant may be below the base and still be
    non-inferior. published: show published accuracies of the same models, tasks and budgets beside ours. figures: a
    folder for every chart as .svg and .pdf. csv: a folder for every table as .csv and .tex. Texts that are too large
    for the page go into a folder beside it (report.html: report_files). name: stands above the title. notes: sentences
    that are to be read with care before all others. runs: ids of those that the page is about, where the store has
    others too. Raises PrunusError where anything of that exists (unless overwrite), the base is not clear, or nothing
    is finished. Every file appears complete or not at all, the page last.
    """
    out = Path(out)
    if out.is_dir():
        raise PrunusError(f"'{out}' is a folder: name a file, such as {out / 'report.html'}")
    refuse_existing(out, overwrite)
    folder = Folder(out.with_name(f"{out.stem}_files"), overwrite)
    with Shown(store, runs) as opened, folder:
        base_run = opened.find_run(base) if base is not None else dense_run(opened)
        comparison = compare(opened, base_run.run_id, margin=margin, may_be_alone=True)
        view = make_view(opened, base_run, comparison, published)
        both = both_modes(opened, view.runs, view.looks)
        standings = [standing(opened, run) for run in view.runs]
        timed = seconds.timings(opened, view)
        text = page(opened, view, both, timed, standings, folder, name, notes)
        extra = export.contents(view, both, timed, standings, figures, csv)
        export.check(extra, overwrite)
        export.write(extra)
        folder.keep()
    write_whole(out, text)
    return out


def dense_run(store: Store) -> Run:
    """The one run of a model without history; PrunusError if there are none or several."""
    runs = store.runs()
    if not runs:
        raise PrunusError(f"the store '{store.path}' has no runs yet: run `prunus eval` first")
    dense = [run for run in runs if not history(run)]
    strict = [run for run in dense if run.plan.get("mode") == "strict"]
    if len({run.model.get("checksum") for run in dense}) == 1 and len(strict) == 1:
        dense = strict  # one model in both modes
    if len(dense) == 1:
        return dense[0]
    listed = ", ".join(f"{run.run_id} ({run.model.get('name')})" for run in dense or runs)
    what = "several runs of unpruned models" if dense else "no run of an unpruned model"
    raise PrunusError(f"the store '{store.path}' has {what}: say with --base what to compare with: {listed}")


def make_view(store: Store, base: Run, comparison: Data, published: bool = False) -> View:
    """The runs of a comparison with their numbers; PrunusError where no problem of any is finished."""
    by_id = {run.run_id: run for run in store.runs()}
    runs = [base, *(by_id[entry["run"]] for entry in comparison["others"])]
    shown = looks(runs[0], runs[1:])
    summaries = [summarise(store, run.run_id) for run in runs]
    for summary in summaries:
        add_bands(summary, tables(store.samples(summary["run"])))
    view = View(runs, shown, summaries, comparison, matches(shown, runs, summaries) if published else None)
    if not view.tasks:
        raise PrunusError(
            f"no problem of run {base.run_id} is finished in '{store.path}': run the same `prunus eval` again"
        )
    return view


def page(
    store: Store,
    view: View,
    both: Sequence[Both],
    timed: seconds.Timings | None,
    standings: Sequence[Standing],
    folder: Folder,
    name: str,
    notes: Sequence[str],
) -> str:
    """The HTML of the page; what is too large for it goes into folder."""
    several = len(view.runs) > 1
    body = [
        _top(view, both, standings, name, notes),
        "<main>",
        sections.verdict_section(view) if several else "",
        sections.legend(view) if several or view.matches else "",
        *(sections.curve_section(view, task) for task in view.tasks),
        *(sections.token_section(view, task) for task in view.tasks),
        seconds.seconds_section(view, timed),
        mode_section(view, both),
        *(parallel.parallel_section(view, task) for task in view.tasks),
        beside.published_section(view) if view.matches is not None else "",
        evidence.pruned_section(view.looks, view.runs),
        traces.flip_section(store, view, folder.path.name, folder.write),
        methods.method_section(view, cost_grid(view, standings)),
        "</main>",
        f"<footer>Made by Prunus {esc(__version__)}. This page loads nothing from the network.</footer>",
    ]
    data = {"comparison": view.comparison, "summaries": view.summaries}
    title = prose.title(view.comparison["others"], view.base.label)
    return document(title, "".join(body), data, _styles(view.looks))


def _top(view: View, both: Sequence[Both], standings: Sequence[Standing], name: str, first: Sequence[str]) -> str:
    labels = [look.label for look in view.looks]
    base, others = view.runs[0], view.comparison["others"]
    plan = base.plan
    sentences = prose.headline(others, labels[1:], labels[0], view.margin)
    elsewhere = [one.counterpart for one in both]
    others_too = [(one.name, one.standing) for one in both]
    notes = [*first, *missing_notes([*zip(labels, standings, strict=True), *others_too])]
    notes += prose.warnings(view.comparison, view.runs, view.summaries, labels, elsewhere)
    care = "".join(f"<li><bdi>{esc(note)}</bdi></li>" for note in notes)
    problems = sum(curve["problems"] for curve in view.summaries[0]["tasks"].values())
    draws = plan.get("samples")
    facts = (
        f"<bdi>{esc(name)}</bdi> · base: <bdi>{esc(labels[0])}</bdi>, the run <bdi>{esc(base.run_id)}</bdi> of model "
        f"<bdi>{esc(base.model.get('name'))}</bdi> · <bdi>{esc(', '.join(view.summaries[0]['tasks']))}</bdi>, "
        f"{problems} problems × {esc(draws)} draw{'' if draws == 1 else 's'}"
    )
    return (
        f'<header><p class="kicker">{facts}</p><h1>{esc(prose.title(others, labels[0]))}</h1>'
        + "".join(f'<p class="lead"><bdi>{esc(sentence)}</bdi></p>' for sentence in sentences)
        + (f'<div class="warnings"><strong>Read with care</strong><ul>{care}</ul></div>' if care else "")
        + "</header>"
    )


def _styles(shown: Sequence[Look]) -> str:
    hidden = [f"body:has(#t{look.index}:not(:checked)) .r{look.index}:not(.keep){{display:none}}" for look in shown[1:]]
    for look in shown[1:]:  # a run whose name is pointed at stands out
        pointed = f"body:has(.chip:hover>#t{look.index},#t{look.index}:focus-visible)"
        hidden.append(f"{pointed} .chart:not(.panel)>.run:not(.r{look.index},.r0){{opacity:.12}}")
        hidden.append(f"{pointed} .many>.r{look.index}>.band{{fill-opacity:.2}}")
    hidden.append("body:has(#tp:not(:checked)) .chart .pub{display:none}")
    return resource("page.css") + evidence.heat_styles() + "".join(hidden)
