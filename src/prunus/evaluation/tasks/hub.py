"""Fetch a problem set with `datasets` (extra `hub`), with a one-line error that says what to do if it fails."""

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from prunus.errors import PrunusError

LOCAL = "or pass a JSONL file with one {{'id', 'problem', 'answer'}} per line: --task {task}.jsonl"


def hub_rows(task: str, repo: str, config: str | None, split: str, count: int) -> Iterator[Mapping[str, Any]]:
    """The rows of one split; PrunusError unless there are exactly `count`, as in the original data set."""
    local = LOCAL.format(task=task)
    check_package(task)
    load_dataset = import_module("datasets").load_dataset
    try:
        rows = load_dataset(repo, config, split=split)
    except Exception as error:  # network, disk and access errors have no common class
        raise PrunusError(f"cannot fetch task '{task}': {_reason(repo, error)}, {local}") from error
    if len(rows) != count:
        raise PrunusError(
            f"task '{task}': {repo} ({split}) has {len(rows)} rows where {count} were expected; {local[3:]}"
        )
    return iter(rows)


def check_package(task: str) -> None:
    """Raise PrunusError if the package that fetches sets of the hub, an optional extra, is missing."""
    there = sys.modules["datasets"] is not None if "datasets" in sys.modules else find_spec("datasets") is not None
    if not there:
        local = LOCAL.format(task=task)
        raise PrunusError(
            f"task '{task}' comes from the hub and needs the datasets package: pip install 'prunus[hub]', {local}"
        )


def _reason(repo: str, error: BaseException) -> str:
    words = f"{type(error).__name__} {error} {error.__cause__ or ''}".lower()
    if "gated" in words or "401" in words or "403" in words or "authenticat" in words:
        page = f"https://huggingface.co/datasets/{repo}"
        return f"{repo} is gated; accept its terms at {page} and log in with `hf auth login`"
    return f"{type(error).__name__} for {repo}; check the network (and that HF_HUB_OFFLINE is not set)"


def row_field(task: str, row: Mapping[str, Any], *names: str) -> str:
    """The first of these columns that exists, as stripped text; PrunusError where none does."""
    for name in names:
        if row.get(name) is not None:
            return str(row[name]).strip()
    raise PrunusError(f"task '{task}': a row has no column {' or '.join(names)}; the data set's columns have changed")
