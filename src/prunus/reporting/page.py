"""Write the report: one self-contained page from a store, with verdicts, curves, tokens, sparsities and methods.

Python writes the charts as SVG. Compared with Plotly, the page has some hundred kilobytes instead of 5 MB, is complete
without scripts, looks the same on paper and in a test, and its security policy can forbid every script but our own. The
script adds filters, a readout, sorting and downloads, and keeps in the address what is filtered, so that a link shows
the same.

Model text is untrusted. It is always escaped, with control characters made visible. A content security policy names the
hashes of our style and our script, so that no other could run even if an escape were missing.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from prunus.disk import Content, as_path, check_export, disk_errors, refuse_existing, write_export
from prunus.errors import PrunusError
from prunus.reporting import prose
from prunus.reporting.render.figure import pdf_converter
from prunus.reporting.render.table import slug
from prunus.reporting.render.text import esc, linked, top, whole_page
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section
from prunus.reporting.sections import SECTIONS
from prunus.settings.margins import MARGIN, MarginLike
from prunus.store.labels import Identity
from prunus.store.store import Store

FilterBox = tuple[str, str, str]  # the id of a box, its label, and the CSS of what it shows or hides


def report(
    store: Path | str,
    out: Path | str,
    *,
    base: str | Identity | None = None,
    margin: MarginLike = MARGIN,
    stop_margin: MarginLike = MARGIN,
    published: bool = False,
    figures: Path | str | None = None,
    csv: Path | str | None = None,
    overwrite: bool = False,
    name: str = "Prunus report",
    notes: Sequence[str] = (),
    runs: Collection[str] | None = None,
    links: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page about all runs of a store that can be compared with base, and return its path.

        print(prunus.report("results.db", "report.html", base="tiny"))

    store: SQLite file of the results.
    out: HTML file.
    base: run id or its start, model name or label; by default the run of the unpruned model, in strict mode if both
        modes were run.
    margin: your limit, the loss of accuracy that you can tolerate, as a share of problems.
    stop_margin: the same for the share of answers that stop by themselves.
    published: show published accuracies of the same models, tasks and budgets.
    figures: a folder for every chart as .svg and .pdf (needs the extra `figures`).
    csv: a folder for every table as .csv and .tex.
    overwrite: replace existing files.
    name: shown above the title.
    notes: sentences shown before the caveats.
    runs: ids of the runs to report, by default all.
    links: sentences below the headline, each with the address to which it leads, or an empty one.

    Every file is written completely or not at all, the page last. Raises PrunusError if a file exists (unless
    overwrite), the base is ambiguous or missing, or no problem is finished.
    """
    out = as_path(out)
    check_page_file(out, overwrite)
    if figures is not None:
        pdf_converter()  # raises PrunusError immediately if the extra is not installed
    with Store(store) as opened:
        of = None if base is None else str(base)
        data = ReportData.read(opened, runs, base=of, margin=margin, stop_margin=stop_margin, published=published)
    write_report(data, out, figures=figures, csv=csv, overwrite=overwrite, name=name, notes=notes, links=links)
    return out


def check_page_file(out: Path, overwrite: bool) -> None:
    """Raise PrunusError if no page can be written to out."""
    if out.is_dir():
        raise PrunusError(f"'{out}' is a folder: name a file, such as {out / 'report.html'}")
    refuse_existing(out, overwrite)


def write_report(
    data: ReportData,
    out: Path,
    *,
    figures: Path | str | None = None,
    csv: Path | str | None = None,
    overwrite: bool = False,
    name: str = "Prunus report",
    notes: Sequence[str] = (),
    links: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the page and all files that belong to it; arguments as in report()."""
    sections = [section(data) for section in SECTIONS]
    exported = files_of(sections, *(None if folder is None else Path(folder) for folder in (figures, csv)))
    check_export(exported, overwrite)
    findings = prose.Findings.on(data)
    title = prose.title(findings)
    first, *parts = (section.html for section in sections)
    elsewhere = "".join(f'<p class="says">{linked(*link)}</p>' for link in links)
    facts = f"<bdi>{esc(name)}</bdi> · <bdi>{esc(prose.facts(data))}</bdi>"
    forward = prose.forward(data) if data.others else ""
    head = top(facts, title, prose.lead(findings), [*notes, *prose.warnings(data)], forward)
    body = f"{head}{bar(data, sections)}<main>{first}{elsewhere}{''.join(parts)}</main>"
    embedded = {"comparison": data.comparison, "summaries": [run.summary for run in data.runs]}
    styles = "".join([filter_styles(data), *(section.styles for section in sections)])
    with disk_errors(out):
        write_export({out: lambda: whole_page(title, body, embedded, styles), **exported})


def files_of(sections: Sequence[Section], figures: Path | None, tables: Path | None) -> dict[Path, Content]:
    """{path: function that returns the content} of the files of all figures and of all tables that have rows.

    figures, tables: folders; None for neither. A number is appended to a name that occurs again.
    """
    files: dict[Path, Content] = {}
    drawn = [(figure.name, {"svg": figure.svg, "pdf": figure.pdf}) for of in sections for figure in of.figures]
    filled = [table for of in sections for table in of.tables if table.rows]
    written = [(table.name, {"csv": table.csv, "tex": table.latex}) for table in filled]
    for folder, made in ((figures, drawn), (tables, written)):
        seen: Counter[str] = Counter()
        if folder is None:
            continue
        for name, contents in made:
            short = slug(name)
            seen[short] += 1
            stem = short if seen[short] == 1 else f"{short}-{seen[short]}"
            files |= {folder / f"{stem}.{kind}": content for kind, content in contents.items()}
    return files


def bar(data: ReportData, sections: Sequence[Section]) -> str:
    """The HTML of the bar below the headline: links to the parts of the page, and filters."""
    links = "".join(
        f'<a href="#{section.id}">{section.name}</a>' for section in sections if section.name and section.html
    )
    fields = "".join(_field(title, choices) for title, choices in _filters(data).items())
    more = f'<details class="filter"><summary>Filter</summary><div>{fields}</div></details>' if fields else ""
    return f'<nav aria-label="Parts of the page"><div class="links">{links}</div>{more}</nav>'


def filter_styles(data: ReportData) -> str:
    """CSS that hides what filters exclude, and highlights the variant under the pointer or in the page's address.

    The script sets classes of body for it: with a rule of body:has() for each, Chromium prints large pages in minutes.
    """
    rules = ["body:has(#k0:checked) .result .task:not(.task1){display:none}"]
    rules += [rule for choices in _filters(data).values() for _, _, rule in choices]
    for run in data.others:
        row, pointed = f".r{run.style.index}", f"body.at-r{run.style.index}"
        rules.append(f"{pointed} .chart:not(.panel)>.run:not({row},.r0){{opacity:.12}}")
        rules.append(f"{pointed} tr{row}{{background:var(--wash)}}")
    return "".join(rules)


def _filters(data: ReportData) -> dict[str, list[FilterBox]]:
    """{title: boxes} of every filter that has a choice."""
    filters = {
        "Variants": _groups("f", ((run.style.family or "the original", run.style.index) for run in data.others)),
        "Serving": _groups("s", ((run.style.serving or "none", run.style.index) for run in data.others)),
        "Verdict": _groups("w", ((run.contrast.verdict.shown, run.style.index) for run in data.others if run.contrast)),
    }
    filters = {title: choices for title, choices in filters.items() if len(choices) > 1}
    if len(data.tasks) > 1:
        tasks = [(f"k{k}", task, f".task:not(.task{k})") for k, task in enumerate(data.tasks, 1)]
        rules = [(id, task, f"body.with-{id} {others}{{display:none}}") for id, task, others in tasks]
        filters["Task"] = [("k0", "all", ""), *rules]
    if data.matches:
        filters["Figures"] = [("tp", "published", "body.without-tp .chart .pub{display:none}")]
    return filters


def _groups(letter: str, runs: Iterable[tuple[str, int]]) -> list[FilterBox]:
    """A filter box for each name, for all runs of that name. letter: with which the ids of the boxes begin."""
    groups: dict[str, list[str]] = {}
    for name, index in runs:
        groups.setdefault(name, []).append(f".r{index}")
    return [
        (f"{letter}{k}", name, f"body.without-{letter}{k} :is({','.join(of)}){{display:none}}")
        for k, (name, of) in enumerate(groups.items())
    ]


def _field(title: str, choices: Sequence[FilterBox]) -> str:
    """The HTML of a filter: radio buttons for tasks, check boxes for all others."""
    boxes = ""
    for id, label, _ in choices:
        kind = f'type="{"radio" if title == "Task" else "checkbox"}" name="{title}" id="{id}" autocomplete="off"'
        checked = "" if title == "Task" and id != "k0" else " checked"
        boxes += f"<label><input {kind}{checked}><bdi>{esc(label)}</bdi></label>"
    return f"<fieldset><legend>{title}</legend>{boxes}</fieldset>"
