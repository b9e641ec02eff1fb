"""What a study comes to: verdicts for each model and plan, and the page."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunus import progress
from prunus.checkpoint.safetensors_file import write_text
from prunus.recipes import content_hash
from prunus.reporting.page import report
from prunus.reporting.text import esc, points
from prunus.results.comparison import compare
from prunus.results.store import Store
from prunus.study.cells import Cell, Model, plan_names
from prunus.study.file import Study
from prunus.study.places import Places

Data = dict[str, Any]
STYLE = (
    "body{max-width:44rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
)


def conclude(study: Study, models: Sequence[Model], places: Places, store: Store) -> Data:
    """Compare, write the page, and say what there is; see run_study for what comes back."""
    wanted = {cell.work.run_id for model in models for cell in model.cells}
    unreported = [run.run_id for run in store.runs() if run.run_id not in wanted]
    if unreported:
        progress.say(
            f"{len(unreported)} runs in {places.store} are not (or no longer) in {study.path}: "
            "they stay there and are not reported"
        )
    comparisons = [
        {"model": model.typed, "plan": name, **judged(study, cells, places)}
        for model in models
        for name, cells in zip(plan_names(study.plans), by_plan(study, model), strict=True)
    ]
    write_pages(study, models, places, store, comparisons)
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


def judged(study: Study, cells: Sequence[Cell], places: Places) -> Data:
    """Base and comparison (None without others) of one model under one plan."""
    base, *others = (cell.work.run_id for cell in cells)
    found = compare(places.store, base, others, margin=study.margin) if others else None
    return {"base": base, "comparison": found}


def write_pages(
    study: Study, models: Sequence[Model], places: Places, store: Store, comparisons: Sequence[Data]
) -> None:
    """The page; where there are several models or settings, one for each and a page that leads to them."""
    groups: dict[str, list[Data]] = {}
    for entry in comparisons:
        plan = dict(store.run(entry["base"]).plan)
        del plan["mode"]  # one page shows both
        groups.setdefault(content_hash([entry["model"], with_mode_left_out(plan)]), []).append(entry)
    if len(groups) == 1:
        one_page(study, models, places, store, comparisons, places.page)
        return
    links = []
    for number, entries in enumerate(groups.values(), 1):
        target = places.folder / f"report-{number}.html"
        one_page(study, models, places, store, entries, target)
        links.append((target.name, entries))
    write_text(places.page, contents(study, links))


def with_mode_left_out(plan: Data) -> Data:
    """A plan as stored, without what follows from its mode."""
    return {
        key: value for key, value in plan.items() if key not in ("strings", "answer_tokens", "temperature", "top_p")
    }


def one_page(
    study: Study, models: Sequence[Model], places: Places, store: Store, entries: Sequence[Data], target: Path
) -> None:
    """The page of one model: its runs, those of the strict plan first where there are two modes."""
    bases = [store.run(entry["base"]) for entry in entries]
    base = next((run for run in bases if run.plan.get("mode") == "strict"), bases[0])
    shown = {entry["base"] for entry in entries}
    shown |= {other["run"] for entry in entries if entry["comparison"] for other in entry["comparison"]["others"]}
    with only(store, shown, places.folder) as path:
        report(path, target, base=base.run_id, margin=study.margin, overwrite=True)


@contextmanager
def only(store: Store, runs: set[str], folder: Path) -> Iterator[Path]:
    """A store that holds these runs and no others: the study's own, or for a moment a copy."""
    if {run.run_id for run in store.runs()} <= runs:
        yield store.path
        return
    path = folder / ".report.db"
    path.unlink(missing_ok=True)
    try:
        with Store(path, create=True) as copy:
            copy.add_problems(store.problems().values())
            for run in store.runs():
                if run.run_id in runs:
                    copy.add_run(run)
                    copy.add_samples(run.run_id, store.samples(run.run_id, texts=True))
        yield path
    finally:
        path.unlink(missing_ok=True)


def contents(study: Study, links: Sequence[tuple[str, Sequence[Data]]]) -> str:
    """The page that leads to the others, with every verdict."""
    parts = []
    for file, entries in links:
        title = ", ".join(dict.fromkeys(f"{entry['model']} {entry['plan']}".strip() for entry in entries))
        lines = "".join(f"<li><bdi>{esc(line)}</bdi></li>" for entry in entries for line in verdict_lines(entry))
        parts.append(f'<h2><a href="{esc(file)}"><bdi>{esc(title)}</bdi></a></h2><ul>{lines}</ul>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(study.name)}</title><style>{STYLE}</style></head>"
        f"<body><h1><bdi>{esc(study.name)}</bdi></h1>{''.join(parts)}</body></html>\n"
    )


def verdict_lines(entry: Data) -> list[str]:
    """`tiny/wanda-20: cannot tell (-1.2 points)`."""
    if entry["comparison"] is None:
        return ["nothing to compare with"]
    return [
        f"{other['model']}: {other['verdict']} ({points(other['primary']['difference'])} points)"
        for other in entry["comparison"]["others"]
    ]
