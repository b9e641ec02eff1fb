"""What is known of how rows were computed: how two starts of a run, or two runs, differ in what changes numbers."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from prunus.settings.serving import INT4
from prunus.store.characters import one_line
from prunus.store.rows import Run
from prunus.store.stored import Environment

# What a start records that changes no number, or is told elsewhere: the grader's version, by which `regrade` goes, and
# arguments, which are part of the run's id where they count. Of CPUs only the kind counts, not the model or the threads
# and instructions that a server printed: a run may go on on another machine. What is not listed counts.
HARMLESS = frozenset({"prunus", "python", "grader", "engine_args", "max_num_seqs", "address", "cpu", "printed"})
NAMES = {
    "told": "the server's settings",
    "served": "the served model",
    "first_ids": "the server's reply to a probe",
    "context": "the longest sequence",
}
LONGEST = 60  # characters of a value in a message


def computing(environment: Environment) -> dict[str, Any]:
    """What of a start's record changes numbers; of a device its type.

    Earlier versions recorded INT4 of every quantised model; where a user sets it, it is part of the run's id.
    """
    kept = {key: value for key, value in environment.data.items() if key not in HARMLESS}
    if environment.flags is not None:
        kept["flags"] = {key: value for key, value in environment.flags.items() if key != INT4}
    if environment.device is not None:
        kept["device"] = environment.device.partition(":")[0]
    return kept


def differences(stored: Environment, now: Environment) -> list[str]:
    """What two records say otherwise, such as `torch is 2.13.0, not 2.12.0`; what the stored lacks is not known."""
    before, after = computing(stored), computing(now)
    changes = []
    for key in sorted(before):
        old, new, name = before[key], after.get(key), NAMES.get(key, key)
        if old == new or (key == "protocol" and new in str(old).split(" and ")):  # as add_run joins them
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            pairs = {part: (old.get(part), new.get(part)) for part in sorted(old.keys() | new.keys())}
            changes += [
                f"{name}: {part} is {value_text(b)}, not {value_text(a)}" for part, (a, b) in pairs.items() if a != b
            ]
        else:
            changes.append(f"{name} is {value_text(new)}, not {value_text(old)}")
    return changes


def value_text(value: object) -> str:
    """A value in a message."""
    return "none" if value is None else one_line(str(value), LONGEST)


def records(run: Run) -> list[Environment]:
    """What the starts of a run recorded, in their order."""
    return [run.environment, *(start.environment for start in run.starts)]


def contradiction(run: Run, now: Environment) -> list[str]:
    """How a start differs from an earlier one of a run, in terms of the last of these; empty if it does not.

    One of a mixed run only needs to be like any of them.
    """
    by_start = [differences(record, now) for record in records(run)]
    differing = [changes for changes in by_start if changes]
    return [] if not differing or (run.mixed and len(differing) < len(by_start)) else differing[-1]


def run_differences(base: Run, other: Run) -> list[str]:
    """In what two runs that were computed here differ: device, dtype, engine, versions."""
    return [] if base.imported or other.imported else start_differences(base.environment, other.environment)


def start_differences(base: Environment, other: Environment) -> list[str]:
    """In what the record of a start of a run differs from that of a start of another run, the base."""
    other_facts, base_facts = computing(other), computing(base)
    shared = sorted((other_facts.keys() & base_facts.keys()) - {"told", "served", "first_ids", "protocol", "kernels"})
    changes = [
        f"{key} {value_text(other_facts[key])} ({value_text(base_facts[key])})"
        for key in shared
        if other_facts[key] != base_facts[key]
    ]
    for key in ("engine", "server"):  # of which another engine has none
        if (key in other_facts) != (key in base_facts):
            changes.append(f"{key} {value_text(other_facts.get(key))} ({value_text(base_facts.get(key))})")
    return changes


@dataclass(frozen=True)
class Apart:
    """The problems of which two runs were computed otherwise than of most of them.

    problems: how many there are. how: in what the runs differ there.
    """

    problems: int
    how: list[str]


def computed_apart(base: Run, other: Run, starts: Iterable[Collection[tuple[int, int]]]) -> Apart | None:
    """Problems whose rows in two runs differ in how they were computed, or not as at most problems; None without one.

    A run that went on on another machine has rows of two kinds, and yet each problem may have been computed alike in
    both runs, as in a study that takes blocks of problems from machine to machine. What differs in the same way at
    every problem is a difference between the runs, as run_differences tells it.

    starts: for each problem that both runs have, the numbers of the starts that computed the rows of its draws, in the
    base and in the other run.
    """
    if not base.mixed and not other.mixed:
        return None
    by_number = [
        {0: run.environment} | {start.number: start.environment for start in run.starts} for run in (base, other)
    ]

    @cache
    def differing(of_base: int, of_other: int) -> tuple[str, ...]:
        return tuple(start_differences(by_number[0][of_base], by_number[1][of_other]))

    by_problem = [{differing(*pair) for pair in pairs} for pairs in starts]
    counts = Counter(tuple(sorted(found)) for found in by_problem if len(found) == 1)
    usual = max(counts, key=lambda found: (counts[found], found == ((),)), default=None)
    others = [found for found in by_problem if tuple(sorted(found)) != usual]
    how = dict.fromkeys(text for found in others for texts in sorted(found) for text in texts)
    return Apart(len(others), list(how)) if others else None


def mixed_line(runs: Iterable[Run]) -> str | None:
    """A sentence about those of the runs whose rows were computed in several ways; None if there are none."""
    mixed = [run for run in runs if run.mixed]
    if not mixed:
        return None
    named = ", ".join(f"{run.model.name} ({run.run_id})" for run in mixed)
    return f"{named}: rows were computed in several ways ({how_mixed(mixed)}), so no word rests on them"


def how_mixed(runs: Iterable[Run]) -> str:
    """In what the starts of the mixed ones of these runs differ."""
    changes: dict[str, None] = {}
    for run in runs:
        for start in (start for start in run.starts if start.mixed):
            changes |= dict.fromkeys(differences(run.environment, start.environment))
    return "; ".join(changes) or "not told"


def contents(run: Run) -> Sequence[str]:
    """The digests of configuration, tokenizer and template that the starts of a run recorded."""
    known = [run.model.content, *(start.content for start in run.starts)]
    return [content for content in known if isinstance(content, str)]
