"""What a study comes to: verdicts for each model and plan, and the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus import progress
from prunus.disk import write_text
from prunus.errors import PrunusError
from prunus.recipes import content_hash
from prunus.reporting.page import report
from prunus.reporting.render.text import esc, joined, points
from prunus.results.comparison import compare
from prunus.results.store import Store
from prunus.study.cells import Cell, Model, open_models, plan_names
from prunus.study.file import Study, read_study
from prunus.study.places import Places

Data = dict[str, Any]
OF_MODE = {"mode", "profile", "strings", "answer_tokens", "context", "end_ids", "temperature", "top_p", "top_k"}
STYLE = (
    "body{max-width:44rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
)


def report_study(file: str | Path, *, out: str | Path | None = None, store: str | Path | None = None) -> Data:
    """Verdicts and pages of a study as far as it has come, also while it runs; what is missing is said there.

    Arguments and result are those of run_study. PrunusError where nothing is evaluated yet.
    """
    study = read_study(file)
    places = Places.of(study, out, store)
    if not places.store.is_file():
        raise PrunusError(f"nothing of {study.path} is evaluated yet ({places.store} is not there): run it first")
    places.folder.mkdir(parents=True, exist_ok=True)
    models = open_models(study)
    with Store(places.store) as opened:
        return write_results(study, models, places, opened)


def write_results(study: Study, models: Sequence[Model], places: Places, store: Store) -> Data:
    """Compare every variant with the base and write the pages; returns what run_study returns."""
    wanted = {cell.run_id for model in models for cell in model.cells}
    unreported = [run.run_id for run in store.runs() if run.run_id not in wanted]
    if unreported:
        progress.say(
            f"{len(unreported)} runs in {places.store} are not (or no longer) in {study.path}: "
            "they stay there and are not reported"
        )
    begun = {run.run_id for run in store.runs() if store.keys(run.run_id)}
    comparisons = [
        {"model": model.name, "plan": name, **judged(study, cells, places, begun)}
        for model in models
        for name, cells in zip(plan_names(study.plans), by_plan(study, model), strict=True)
    ]
    write_pages(study, places, store, comparisons, begun)
    return {
        "name": study.name,
        "out": str(places.folder),
        "store": str(places.store),
        "report": str(places.page),
        "cells": len(wanted),
        "unreported": unreported,
        "comparisons": comparisons,
    }


def by_plan(study: Study, model: Model) -> list[list[Cell]]:
    """The model's cells, a list for each plan, the base first."""
    listed = [[cell for cell in model.cells if cell.plan == number] for number in range(len(study.plans))]
    return [sorted(cells, key=lambda cell: cell.variant.name != study.base) for cells in listed]


def judged(study: Study, cells: Sequence[Cell], places: Places, begun: set[str]) -> Data:
    """Base, comparison (None without others) and names of variants not begun, of one model under one plan."""
    base, *others = (cell.run_id for cell in cells)
    there = [run for run in others if run in begun]
    found = compare(places.store, base, there, margin=study.margin) if there and base in begun else None
    waiting = [cell.variant.name for cell in cells if cell.run_id not in begun]
    return {"base": base, "comparison": found, "not_begun": waiting}


def write_pages(study: Study, places: Places, store: Store, comparisons: Sequence[Data], begun: set[str]) -> None:
    """The page; where there are several models or settings, one for each and a page that leads to them."""
    waiting = [entry for entry in comparisons if entry["base"] not in begun]
    if len(waiting) == len(comparisons):
        raise PrunusError(f"no answer of '{study.base}' is there yet, which the others are compared with: run it first")
    groups: dict[str, list[Data]] = {}
    for entry in comparisons:
        if entry in waiting:
            continue
        plan = with_mode_left_out(store.run(entry["base"]).plan)
        groups.setdefault(content_hash([entry["model"], plan]), []).append(entry)
    if len(groups) == 1 and len(study.models) == 1:
        one_page(study, places, store, next(iter(groups.values())), places.page)
        return
    links = []
    for number, entries in enumerate(groups.values(), 1):
        target = places.folder / f"report-{number}.html"
        one_page(study, places, store, entries, target)
        links.append((target.name, entries))
    write_text(places.page, contents(study, links, waiting))


def with_mode_left_out(plan: Data) -> Data:
    """A plan as stored, without its mode and what may follow from it: one page shows both."""
    return {key: value for key, value in plan.items() if key not in OF_MODE}


def one_page(study: Study, places: Places, store: Store, entries: Sequence[Data], target: Path) -> None:
    """The page of one model: its runs, those of the strict plan first where there are two modes."""
    bases = [store.run(entry["base"]) for entry in entries]
    base = next((run for run in bases if run.plan.get("mode") == "strict"), bases[0])
    shown = {entry["base"] for entry in entries}
    shown |= {other["run"] for entry in entries if entry["comparison"] for other in entry["comparison"]["others"]}
    notes = [not_begun(entry["plan"], entry["not_begun"]) for entry in entries if entry["not_begun"]]
    report(
        store.path, target, base=base.run_id, margin=study.margin, published=study.published, overwrite=True,
        name=study.name, notes=notes, runs=shown,
    )  # fmt: skip


def not_begun(plan: str, names: list[str]) -> str:
    """`Not begun (legacy): wanda-20 and wanda-50.`"""
    return f"Not begun{f' ({plan})' if plan else ''}: {joined(names, most=12)}."


def contents(study: Study, links: Sequence[tuple[str, Sequence[Data]]], waiting: Sequence[Data]) -> str:
    """The page that leads to the others, with every verdict. waiting: what has no page yet."""
    parts = []
    for file, entries in links:
        title = ", ".join(dict.fromkeys(title_of(entry) for entry in entries))
        lines = "".join(f"<li><bdi>{esc(line)}</bdi></li>" for entry in entries for line in verdict_lines(entry))
        parts.append(f'<h2><a href="{esc(file)}"><bdi>{esc(title)}</bdi></a></h2><ul>{lines}</ul>')
    if waiting:
        names = ", ".join(dict.fromkeys(title_of(entry) for entry in waiting))
        parts.append(f"<p>Not begun: <bdi>{esc(names)}</bdi>.</p>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(study.name)}</title><style>{STYLE}</style></head>"
        f"<body><h1><bdi>{esc(study.name)}</bdi></h1>{''.join(parts)}</body></html>\n"
    )


def title_of(entry: Data) -> str:
    """`tiny strict`."""
    return f"{entry['model']} {entry['plan']}".strip()


def verdict_lines(entry: Data) -> list[str]:
    """`tiny/wanda-20: cannot tell (-1.2 points)`."""
    if entry["comparison"] is None:
        return ["nothing to compare with yet" if entry["not_begun"] else "nothing to compare with"]
    return [
        f"{other['model']}: {other['verdict']} ({points(other['primary']['difference'])} points)"
        for other in entry["comparison"]["others"]
    ]
