"""Compare how rows were computed: settings that change numbers and differ between starts of a run, or between runs."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from prunus.settings.serving import INT4
from prunus.store.characters import one_line
from prunus.store.rows import Run
from prunus.store.stored import Environment

# Keys of a start's record that change no number or are compared elsewhere: the grader's version, which `regrade` uses,
# and arguments, which are part of the run's id where they count. The model of a CPU, and the threads and instructions
# that a server printed, do not count: a run may continue on another machine. Keys that are not listed count.
HARMLESS = frozenset({"prunus", "python", "grader", "engine_args", "max_num_seqs", "address", "cpu", "printed"})
NAMES = {
    "told": "the server's settings",
    "served": "the served model",
    "first_ids": "the server's reply to a probe",
    "context": "the longest sequence",
}
LONGEST = 60  # characters of a value in a message


def computing(environment: Environment) -> dict[str, Any]:
    """The part of a start's record that changes numbers; of a device, only its type.

    The flag INT4 is left out: it is recorded for weights of 4 bits only, and there it is part of the run's id.
    """
    kept = {key: value for key, value in environment.data.items() if key not in HARMLESS}
    if environment.flags is not None:
        kept["flags"] = {key: value for key, value in environment.flags.items() if key != INT4}
    if environment.device is not None:
        kept["device"] = environment.device.partition(":")[0]
    return kept


def differences(stored: Environment, now: Environment) -> list[str]:
    """Settings of the stored record that differ in the other one, such as `torch is 2.13.0, not 2.12.0`."""
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
    """The text of a value in a message: one line of at most LONGEST characters; `none` for None."""
    return "none" if value is None else one_line(str(value), LONGEST)


def records(run: Run) -> list[Environment]:
    """The records of the starts of a run, in their order."""
    return [run.environment, *(start.environment for start in run.starts)]


def contradiction(run: Run, now: Environment) -> list[str]:
    """Differences between a new start of a run and the latest earlier start that it does not match; empty if it fits.

    A new start has to match all earlier starts; in a mixed run one of them suffices.
    """
    by_start = [differences(record, now) for record in records(run)]
    differing = [changes for changes in by_start if changes]
    return [] if not differing or (run.mixed and len(differing) < len(by_start)) else differing[-1]


def run_differences(base: Run, other: Run) -> list[str]:
    """Settings in which two runs differ: device, dtype, engine, versions; empty if either is an imported log."""
    return [] if base.imported or other.imported else start_differences(base.environment, other.environment)


def start_differences(base: Environment, other: Environment) -> list[str]:
    """Settings in which the record of a start of a run differs from that of a start of another run, the base."""
    other_facts, base_facts = computing(other), computing(base)
    shared = sorted((other_facts.keys() & base_facts.keys()) - {"told", "served", "first_ids", "protocol", "kernels"})
    changes = [
        f"{key} {value_text(other_facts[key])} ({value_text(base_facts[key])})"
        for key in shared
        if other_facts[key] != base_facts[key]
    ]
    for key in ("engine", "server"):  # another engine may have none
        if (key in other_facts) != (key in base_facts):
            changes.append(f"{key} {value_text(other_facts.get(key))} ({value_text(base_facts.get(key))})")
    return changes


@dataclass(frozen=True)
class Apart:
    """Problems at which the differences in how two runs were computed are not those of most problems.

    problems: their number. how: the settings in which the runs differ there.
    """

    problems: int
    how: list[str]


def computed_apart(base: Run, other: Run, starts: Iterable[Collection[tuple[int, int]]]) -> Apart | None:
    """Problems at which the differences in how two runs were computed are not those of most problems; None without any.

    A run that was continued on another machine has rows of two kinds, and yet each problem may have been computed alike
    in both runs, as in a study that takes blocks of problems from machine to machine. A difference that is the same at
    every problem is a difference between the runs, which run_differences returns.

    starts: for each problem that both runs have, pairs of numbers of starts that computed rows of its draws: a start
    of the base, and one of the other run.
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
    """Settings in which the starts of those of the runs that are mixed differ, as one text; `not told` without any."""
    changes: dict[str, None] = {}
    for run in runs:
        for start in (start for start in run.starts if start.mixed):
            changes |= dict.fromkeys(differences(run.environment, start.environment))
    return "; ".join(changes) or "not told"
