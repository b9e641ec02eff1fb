"""Which problem an output is for: equal questions are one problem, whichever tool wrote the log."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prunus.contamination import question_key
from prunus.grouping import leaders
from prunus.results.importing.log import Record
from prunus.results.rows import IMPORTED, ProblemRow

Place = tuple[str, str]  # task and place of a record


def keys_of(records: Sequence[Record]) -> dict[Place, str]:
    """{(task, place): hash of the question and its choices}.

    Questions that a task has twice are numbered in the order of their places, so that they stay two problems.
    """
    found = {(one.task, one.place): question_key(one.question, one.choices) for one in records}
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (task, place), key in found.items():
        places[task, key].append(place)
    numbered = {}
    for (task, key), same in places.items():
        for number, place in enumerate(sorted(same, key=lambda one: (len(one), one))):
            numbered[task, place] = f"{key}#{number + 1}" if number else key
    return numbered


def problem_rows(
    records: Sequence[Record], keys: Mapping[Place, str], stored: Mapping[str, ProblemRow]
) -> dict[Place, ProblemRow]:
    """The problem of each (task, place). stored: the problems of the store by key.

    A problem that the store has keeps its id. The new ones of a log's task get the task's name in the store, if that
    has any problem of it.
    """
    known = {place: stored[key] for place, key in keys.items() if key in stored}
    names: dict[str, Counter[str]] = defaultdict(Counter)
    for (task, _), row in known.items():
        names[task][row.task] += 1
    found: dict[Place, ProblemRow] = {}
    for record in records:
        place = record.task, record.place
        if place in known:
            found[place] = known[place]
        elif place not in found:
            task, key = max(names[record.task], key=names[record.task].__getitem__, default=record.task), keys[place]
            found[place] = ProblemRow(task, f"{task}/{key}", record.target, IMPORTED, (), key, question=key)
    return _grouped(found, {(one.task, one.place): "\n".join([one.question, *sorted(one.choices)]) for one in records})


def _grouped(rows: Mapping[Place, ProblemRow], texts: Mapping[Place, str]) -> dict[Place, ProblemRow]:
    """The rows with their groups, by the questions of each task; what the store knows of its own stays."""
    found = dict(rows)
    for task in dict.fromkeys(row.task for row in rows.values()):
        places = [place for place, row in rows.items() if row.task == task]
        keys = [rows[place].group or "" for place in places]
        for place, first in zip(places, leaders([texts[place] for place in places], keys), strict=True):
            row, of = rows[place], rows[places[first]]
            if row.kind == IMPORTED and row.group is None:
                found[place] = replace(row, group=of.group or of.problem_id)
    return found
