"""Under which id a store has a plan: that of this version, or of an earlier one, which knew less of the model."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from prunus import progress
from prunus.checkpoint.content import content_digest
from prunus.checkpoint.resolve import BUILT_IN, resolve
from prunus.evaluation.resolved_plan import ResolvedPlan, run_id_of
from prunus.settings.serving import Serving
from prunus.store.rows import Run
from prunus.store.starts import contents
from prunus.store.store import Store


def by_id(store: Store) -> dict[str, Run]:
    """The runs of a store, by id."""
    return {run.run_id: run for run in store.runs()}


def as_stored(work: ResolvedPlan, runs: Mapping[str, Run], name: str, source: str | None = None) -> ResolvedPlan:
    """The plan under the id of its stored run; the other arguments are those of stored_id."""
    return replace(work, run_id=stored_id(work.subject, work.plan, work.about, runs, name, source, work.longrope))


def stored_id(
    subject: Mapping[str, str],
    plan: Mapping[str, Any],
    about: Mapping[str, Any],
    runs: Mapping[str, Run],
    name: str,
    source: str | None,
    longrope: bool = False,
) -> str:
    """The id of a run: that of an earlier version if it began this run and nothing contradicts that, else the usual.

    subject, plan, about, longrope: as of ResolvedPlan. runs: of the store, by id. name: of the model in tables. source:
    as the user names the model; None for a variant that is made of it. What the store does not know of the run's model
    must be as now in the folder that it names, if that is still there, or else the name must be the same; a line on
    stderr says what is taken for granted.
    """
    usual, earlier_id = run_id_of(subject, plan, about), run_id_of(subject, plan, {})
    earlier = runs.get(earlier_id)
    if earlier is None or usual == earlier_id or usual in runs:
        return usual
    serving = Serving.of_record(earlier.versions, earlier.model.get("serving"), longrope)
    if serving != Serving.from_json(about.get("serving")):
        return usual
    if known := contents(earlier):
        return earlier_id if about.get("content") in known else usual
    stored_name, stored_source = (str(earlier.model.get(key)) for key in ("name", "source"))
    there = None if source is None else digest_of(stored_source)
    same_name = stored_name == name if source is not None else stored_name.startswith(f"{name}/")
    if there != about.get("content") if there else not same_name and stored_source != source:
        return usual
    say_taken(name)
    return earlier_id


def digest_of(source: str) -> str | None:
    """The digest of what computes in the model that a stored run names, if it is a folder that is still there."""
    return content_digest(resolve(source)) if source in BUILT_IN or (Path(source) / "config.json").is_file() else None


@cache
def say_taken(name: str) -> None:
    """Say once that a run of an earlier version is taken for one of this model."""
    progress.say(
        f"an earlier version evaluated {name}: it did not record configuration, tokenizer and chat template, and its"
        " rows are taken for those of the present files, since weights and plan are the same"
    )
