"""The check of a certificate: what it shows is computed again from the store, and compared with what it says."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any, TypeGuard

from prunus.cards.certified import search_words
from prunus.errors import PrunusError
from prunus.plain_data import Record
from prunus.results.certificate import (
    MEANINGLESS,
    Declaration,
    SearchHistory,
    SearchResult,
    WrittenCheckpoint,
    content_of,
    read_plain,
)
from prunus.store.labels import plan_in_short
from prunus.store.starts import mixed_line
from prunus.store.store import Store
from prunus.studies.find.certificate import caution, computed, endings, files_of
from prunus.studies.find.redraw import redraw
from prunus.studies.find.row_check import check_rows
from prunus.studies.find.trace import rung_differences, search_line, searches_like, sum_of_alphas
from prunus.studies.looks.declared import about_groups, about_plan, about_problems, tokenizer_of

MOST_LISTED = 30  # other searches that are listed
UNSEEN = (
    "not seen by any check of a store: rows drawn by another model or engine, but for --again, and a store of which"
    " rows, texts, log and certificate were all made up together"
)


class Verification(Record):
    """Result of `verify`, all in sentences; without differences, all claims of the certificate hold.

    claims: those that hold; none where there are differences.
    differences: what is not as the certificate says.
    searches: the other searches on the same model and tasks in the store.
    notes: other runs of its checkpoints, runs that were removed, and what could not be checked.
    unseen: what no check of a store can see.
    """

    claims: Sequence[str]
    differences: Sequence[str]
    searches: Sequence[str]
    notes: Sequence[str]
    unseen: str = UNSEEN

    @property
    def lines(self) -> list[str]:
        """A line for each claim that holds, and for each difference."""
        claims = self.claims or ([] if self.differences else ["no rung was certified, so nothing is claimed"])
        return [*(f"holds: {claim}" for claim in claims), *(f"differs: {line}" for line in self.differences)]

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def verify_certificate(
    certificate: str | Path,
    store: str | Path = "results.db",
    *,
    again: int = 0,
    seed: int | None = None,
    device: str = "auto",
) -> Verification:
    """The result of `prunus.verify` for a certificate of `find`; the arguments are those of `verify`."""
    file = Path(certificate)
    data = read_plain(file)
    stated = data["shown"]
    differences, others, aside = list[str](), list[str](), list[str]()
    if content_of(data) != data["content"]:
        differences.append("the certificate was changed after it was written: its content hash differs")
    claimed: Sequence[str] = []
    with Store(store) as opened:
        try:
            declared = Declaration.of(data["declared"])
            plain_now = json.loads(json.dumps(computed(opened, declared).to_json()))
            now = SearchResult.of(plain_now)
            claimed = now.claims
            differences += list(_differences(stated, plain_now))
            differences += _about_runs(declared, now)
            differences += _about_endings(opened, declared, now, data["endings"], data["caution"])
            if line := mixed_line(run for run in opened.runs() if run.run_id in declared.runs):
                differences.append(line)
            differences += about_problems(opened, declared.problems, now.dense.plan)
            differences += about_groups(declared.problems, declared.groups or {}, opened.groups())
            differences += _about_trace(SearchHistory.of(stated["searches"]), now.searches)
            differences += opened.log().contradictions(opened.runs(), opened.searches(), opened.removed())
            others = _other_searches(opened, declared)
            aside = [*rung_differences(opened, declared), *_other_rows(opened, declared)]
            seen = check_rows(opened, declared, now, tokenizer_of(file.parent, declared.model.source))
            differences, aside = [*differences, *seen.differences], [*aside, *seen.notes]
            if again:
                new = redraw(opened, declared, now, file.parent, again, seed, device)
                differences, aside = [*differences, *new.differences], [*aside, *new.notes]
        except PrunusError as error:
            differences.append(str(error))
        except (*MEANINGLESS, ZeroDivisionError) as error:
            differences.append(f"what the certificate declares makes no sense ({type(error).__name__}: {error})")
    beside, notes = _beside(data, file.parent, Path(store))
    return Verification(
        claims=[] if differences or beside else claimed,
        differences=[*differences, *beside],
        searches=others,
        notes=[*aside, *notes],
    )


def _about_endings(
    store: Store, declared: Declaration, now: SearchResult, stated: object, stated_caution: object
) -> list[str]:
    """Sentences on how the rows contradict the shares of chains that end, or the caution, in the certificate."""
    differences = []
    ended = endings(store, declared, now)
    if stated != (ended and ended.to_json()):
        differences.append("the shares of chains that end by themselves are others by the rows")
    if stated_caution != (warning := caution(declared, now, ended)):
        differences.append(f"the caution is {_short(warning)} by the rows, the certificate says otherwise")
    return differences


def _about_runs(declared: Declaration, now: SearchResult) -> list[str]:
    """Sentences on how the runs of the store contradict the declaration."""
    differences = []
    if now.dense.checksum != declared.model.checksum:
        differences.append("the original's run in the store is of other weights than the certificate declares")
    stated = {"budgets": declared.budgets, "samples": declared.dense_draws, "seed": declared.seed}
    differences += about_plan(now.dense.plan, stated, "certificate")
    differences += [
        f"the run of {rung.name} has another plan than the original's" for rung in now.rungs if not rung.same_plan
    ]
    return differences


def _about_trace(stated: SearchHistory, now: SearchHistory | None) -> list[str]:
    """Sentences on how the store contradicts a certificate about the searches before it and the rows that existed.

    stated: by the certificate. now: by the store; None if it has no record of this search.
    """
    if now is None:
        return ["the store has no record that this search was declared, so nothing shows that its rows came later"]
    differences = []
    listed, there = ({search.id: search for search in side.before} for side in (stated, now))
    for name, search in there.items():
        if name not in listed:
            differences.append(
                f"the certificate leaves out search {name}, which was declared before it: {search_words(search)}"
            )
        elif listed[name] != search:
            differences.append(f"search {name} is not as the certificate says: {search_words(search)}")
    for name in listed.keys() - there.keys():
        differences.append(f"the store has no record of search {name} before this one, which the certificate names")
    if stated.had != now.had:
        differences.append(
            "the rows that existed when this search was declared are not those that the certificate names"
        )
    if stated.link != now.link:
        differences.append("the log of the store up to this search is not the one on which the certificate rests")
    if (stated.id, stated.alpha) != (now.id, now.alpha) and not differences:
        differences.append("the certificate has another id, or another sum of alphas, than its search in the store")
    return differences


def _other_searches(store: Store, declared: Declaration) -> list[str]:
    """Lines on the other searches on the same model and tasks in the store, and one on the sum of the alphas of all."""
    stored, others = searches_like(store, declared)
    lines = []
    for search in others[:MOST_LISTED]:
        place = (
            "in the store" if stored is None else "before it" if search.stored.number < stored.number else "after it"
        )
        lines.append(f"{place}: {search_line(store, search)}")
    if others[MOST_LISTED:]:
        lines.append(f"and {len(others) - MOST_LISTED} more searches")
    if others:
        sure = 100 * sum_of_alphas(declared, *(search.declared for search in others))
        lines.append(
            f"the store has {len(others) + 1} searches on this model and these tasks: if no declaration depended on"
            f" rows that existed, the probability that any of them certifies falsely is at most {sure:g} %"
        )
    return lines


def _other_rows(store: Store, declared: Declaration) -> list[str]:
    """A line for every other run of a rung's checkpoint, and for every removed run of the models of a search.

    Whoever saw their rows may have declared the search by them.
    """
    rungs = {rung.run: rung.name for rung in declared.rungs}
    runs, lines = store.runs(), list[str]()
    weights = {run.model.checksum: rungs[run.run_id] for run in runs if run.run_id in rungs}
    weights.pop(None, None)
    others = [run for run in runs if run.run_id not in declared.runs and run.model.checksum in weights]
    for run in store.runs_with_rows(others):
        if not declared.problems.keys().isdisjoint(run.plan.tasks):
            since = run.stages[-1].started or "an unknown time"
            lines.append(
                f"the store has another run of the checkpoint of {weights[run.model.checksum]} on the same tasks"
                f" ({run.run_id}: {plan_in_short(run.plan)}), last evaluated from {since} on"
            )
    weights[declared.model.checksum] = declared.model.name
    for removed in store.removed():
        if name := declared.runs.get(removed.run.run_id) or weights.get(removed.run.model.checksum):
            rows = f"rows of {removed.problems} problem{'' if removed.problems == 1 else 's'}"
            lines.append(
                f"a run of {name} ({removed.run.run_id}) with {rows} was removed from the store at {removed.at}"
            )
    return lines


def _differences(stated: object, now: object, at: str = "") -> Iterator[str]:
    """Sentences about values that the certificate states otherwise. at: the part, such as `wanda-50: word`."""
    if isinstance(stated, dict) and isinstance(now, dict):
        for key in sorted((stated.keys() | now.keys()) - {"searches"}):
            yield from _differences(stated.get(key), now.get(key), f"{at} {key}".strip())
    elif isinstance(stated, list) and isinstance(now, list) and len(stated) == len(now):
        for number, (part, other) in enumerate(zip(stated, now, strict=True)):
            is_rung = isinstance(part, dict) and "word" in part
            yield from _differences(part, other, f"{part.get('name')}:" if is_rung else f"{at} {number}")
    elif _is_number(stated) and _is_number(now):
        if not isclose(stated, now, rel_tol=1e-6, abs_tol=1e-9):
            yield f"{at} is {now:g} by the rows, the certificate says {stated:g}"
    elif stated != now:
        if at.endswith(" rows"):
            yield f"{at} of the store are not those on which the certificate rests"
        else:
            yield f"{at} is {_short(now)} by the rows, the certificate says {_short(stated)}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _beside(data: Mapping[str, Any], folder: Path, store: Path) -> tuple[list[str], list[str]]:
    """(what is wrong with the checkpoint beside the certificate, what was not checked)."""
    try:
        made, shown = WrittenCheckpoint.of(data["made"]), (data["shown"].get("found") or {}).get("checksum")
    except MEANINGLESS as error:
        return [f"what the certificate says of its checkpoint makes no sense ({type(error).__name__}: {error})"], []
    if made.checksum is None:
        return [], []
    other = ["the checkpoint that was made is not the one that was evaluated"]
    wrong, notes = _files_beside(made, folder, store)
    return [*wrong, *(other if shown not in (None, made.checksum) else [])], notes


def _files_beside(made: WrittenCheckpoint, folder: Path, store: Path) -> tuple[list[str], list[str]]:
    files = made.files
    if not any((folder / name).exists() for name in {*files, "config.json"}):
        return [], ["no checkpoint lies beside the certificate, so its files were not checked"]
    now = files_of(folder)
    at = store.absolute().name if store.absolute().parent == folder.absolute() else None
    wrong = [f"{name} is missing beside the certificate" for name in files if name not in now]
    wrong += [
        f"{name} beside the certificate is not as it was made"
        if name in files
        else f"{name} beside the certificate was not made with the checkpoint"
        for name, value in now.items()
        if files.get(name) != value and not (at and name.startswith(at))
    ]
    if (folder / "config.json").exists():
        from prunus.checkpoint.model_folder import ModelFolder  # it imports torch

        try:
            if ModelFolder(folder).checksum() != made.checksum:
                wrong.append("the checkpoint beside the certificate has other weights than the one made")
        except PrunusError as error:
            wrong.append(f"the checkpoint beside the certificate cannot be read: {error}")
    return wrong, []
