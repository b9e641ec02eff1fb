"""One self-contained page from a store: headline, verdicts, curves, tokens, what was pruned, texts, methods.

Charts are SVG that Python writes, not Plotly: the page is then some hundred kilobytes instead of 5 MB, complete without
scripts, the same on paper and in a test, and its policy can forbid every script but one of our own. Showing and hiding
runs is style (`:has`); the script adds a readout, sorting and downloads.

Model text is hostile. It appears only escaped, as text, with control characters made visible; a content security policy
names the hashes of our one style and one script, so that nothing else could act even if an escape were missing.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from prunus import __version__
from prunus.errors import PrunusError
from prunus.reporting import beside, evidence, methods, prose, sections
from prunus.reporting.labels import Look, history, looks
from prunus.reporting.published import matches
from prunus.reporting.text import esc, script_json
from prunus.reporting.view import View
from prunus.results.comparison import compare, summarise
from prunus.results.store import Run, Store

Data = Mapping[str, Any]


def report(
    store: Path | str,
    out: Path | str,
    *,
    base: str | None = None,
    margin: float = 0.02,
    published: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the page about all runs of a store that can be compared with base, and return its path.

    base: run id, start of one, or model name; by default the one run of a model that nothing was done to. margin: share
    of problems by which a variant may be below the base and still be non-inferior. published: show published accuracies
    of the same models, tasks and budgets beside ours. Raises PrunusError where out exists (unless overwrite), the base
    is not clear, or nothing is finished. The file appears complete or not at all.
    """
    out = Path(out)
    if out.is_dir():
        raise PrunusError(f"'{out}' is a folder: name a file, such as {out / 'report.html'}")
    if out.exists() and not overwrite:
        raise PrunusError(f"'{out}' exists: name another file, or add --overwrite")
    if not out.absolute().parent.is_dir():
        raise PrunusError(f"the folder of '{out}' does not exist: create it or name another file")
    with Store(store) as opened:
        base_run = opened.find_run(base) if base is not None else dense_run(opened)
        if len(opened.runs()) > 1:
            comparison = compare(store, base_run.run_id, margin=margin)
        else:
            comparison = {"others": [], "margin": margin, "warnings": []}
        text = page(opened, make_view(opened, base_run, comparison, published))
    write_whole(out, text)
    return out


def dense_run(store: Store) -> Run:
    """The one run of a model without history; PrunusError if there are none or several."""
    runs = store.runs()
    if not runs:
        raise PrunusError(f"the store '{store.path}' has no runs yet: run `prunus eval` first")
    dense = [run for run in runs if not history(run)]
    if len(dense) == 1:
        return dense[0]
    listed = ", ".join(f"{run.run_id} ({run.model.get('name')})" for run in dense or runs)
    what = "several runs of unpruned models" if dense else "no run of an unpruned model"
    raise PrunusError(f"the store '{store.path}' has {what}: say with --base what to compare with: {listed}")


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name and rename it, so that no reader meets half of it."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.absolute().parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner may read
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PrunusError(f"cannot write '{path}' ({error.strerror}): free some space or name another file") from error


def make_view(store: Store, base: Run, comparison: Data, published: bool = False) -> View:
    """The runs of a comparison with their numbers; PrunusError where no problem of any is finished."""
    by_id = {run.run_id: run for run in store.runs()}
    runs = [base, *(by_id[entry["run"]] for entry in comparison["others"])]
    shown = looks(runs[0], runs[1:])
    summaries = [summarise(store, run.run_id) for run in runs]
    view = View(runs, shown, summaries, comparison, matches(shown, runs, summaries) if published else None)
    if not view.tasks:
        raise PrunusError(
            f"no problem of run {base.run_id} is finished in '{store.path}': run the same `prunus eval` again"
        )
    return view


def page(store: Store, view: View) -> str:
    """The HTML of the page."""
    several = len(view.runs) > 1
    body = [
        _top(view),
        "<main>",
        sections.verdict_section(view) if several else "",
        sections.legend(view) if several or view.matches else "",
        *(sections.curve_section(view, task) for task in view.tasks),
        *(sections.token_section(view, task) for task in view.tasks),
        beside.published_section(view) if view.matches is not None else "",
        evidence.pruned_section(view.looks, view.runs),
        evidence.flip_section(store, view.looks, view.runs),
        methods.method_section(view.looks, view.runs, view.comparison),
        "</main>",
        f"<footer>Made by Prunus {esc(__version__)}. This page loads nothing from the network.</footer>",
    ]
    data = {"comparison": view.comparison, "summaries": view.summaries}
    title = prose.title(view.comparison["others"], view.base.label)
    return document(title, "".join(body), data, _styles(view.looks))


def _top(view: View) -> str:
    labels = [look.label for look in view.looks]
    base, others = view.runs[0], view.comparison["others"]
    plan = base.plan
    sentences = prose.headline(others, labels[1:], labels[0], view.margin)
    notes = prose.warnings(view.comparison, view.runs, view.summaries, labels)
    care = "".join(f"<li><bdi>{esc(note)}</bdi></li>" for note in notes)
    problems = sum(curve["problems"] for curve in view.summaries[0]["tasks"].values())
    draws = plan.get("samples")
    facts = (
        f"Prunus report · base: <bdi>{esc(labels[0])}</bdi>, the run <bdi>{esc(base.run_id)}</bdi> of model "
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
    hidden.append("body:has(#tp:not(:checked)) .chart .pub{display:none}")
    return files("prunus.reporting").joinpath("page.css").read_text("utf-8") + evidence.heat_styles() + "".join(hidden)


def document(title: str, body: str, data: Data, styles: str) -> str:
    """A whole HTML file. Only this style and this script may act, nothing may be loaded, sent or framed."""
    script = files("prunus.reporting").joinpath("page.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src {_hash(styles)}; script-src {_hash(script)}; img-src 'none'; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="referrer" content="no-referrer">\n<meta name="generator" content="Prunus {esc(__version__)}">\n'
        f"<title>{esc(title)}</title>\n<style>{styles}</style>\n"
        f'</head>\n<body>\n{body}\n<script type="application/json" id="data">{script_json(data)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
