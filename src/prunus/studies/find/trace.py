"""The trace that searches leave in the store: which were declared when, before which rows, and what they came to.

A search is stored when it is declared, before it looks at a row (`declare_in`). So a certificate can name the searches
before it, and `verify` can check that. The probability that any of several searches certifies falsely is at most the
sum of their alphas if no declaration depended on rows that existed; the store shows which there were.
"""

from collections.abc import Iterator

from prunus.cards.certified import search_words
from prunus.errors import PrunusError
from prunus.plain_data import content_hash
from prunus.results.ladder import CERTIFIED
from prunus.settings.margins import Margin
from prunus.store.rows import DeclaredSearch
from prunus.store.starts import made_otherwise
from prunus.store.store import Store
from prunus.studies.find.decisions import Data, Rows, decided, dense_draws, rungs_in

UNFINISHED = "not finished"


def runs_of(declared: Data) -> list[str]:
    """The runs of a search, the dense model's first."""
    return [declared["dense"], *(rung["run"] for rung in rungs_in(declared))]


def made_apart(store: Store, declared: Data) -> list[str]:
    """A sentence for each way in which the rows of rungs were computed otherwise than those of the dense model."""
    runs, found = {run.run_id: run for run in store.begun()}, dict[str, list[str]]()
    dense = runs.get(declared["dense"])
    for rung in rungs_in(declared):
        if dense is not None and rung["run"] in runs and (apart := made_otherwise(dense, runs[rung["run"]])):
            found.setdefault(", ".join(apart), []).append(rung["name"])
    return [f"{', '.join(names)}: computed otherwise than the dense model: {how}" for how, names in found.items()]


def declare_in(store: Store, declared: Data) -> None:
    """Store that a search is declared, unless it was before."""
    store.add_search(declared, runs_of(declared))


def searches_like(store: Store, declared: Data) -> tuple[DeclaredSearch | None, list[DeclaredSearch]]:
    """(this search as it was stored, the others on the same model and tasks, oldest first); None: it was not."""
    name, searches = content_hash(declared), store.searches()
    ours = next((one for one in searches if one.search_id == name), None)
    return ours, [one for one in searches if one.search_id != name and related(one.declared, declared)]


def related(one: Data, other: Data) -> bool:
    """Whether two searches are of the same model, on a common task or problem."""
    mine, theirs = one["model"], other["model"]
    by = "checksum" if mine["checksum"] and theirs["checksum"] else "name"
    if mine[by] != theirs[by]:
        return False
    ids = {name for names in one["problems"].values() for name in names}
    return not one["problems"].keys().isdisjoint(other["problems"]) or any(
        not ids.isdisjoint(names) for names in other["problems"].values()
    )


def trace(store: Store, declared: Data) -> dict[str, object] | None:
    """What a certificate says of its search and those before it; None if the store has no record of it.

    before: the others that were declared before, as `described`. had: the problems of its runs that had rows then.
    alpha: the sum over all of these. link: of its entry in the store's log; None if an earlier version declared it.
    """
    ours, others = searches_like(store, declared)
    if ours is None:
        return None
    before = [one for one in others if one.number < ours.number]
    names = {declared["dense"]: declared["model"]["name"]} | {rung["run"]: rung["name"] for rung in rungs_in(declared)}
    return {
        "id": ours.search_id,
        "before": [described(one) for one in before],
        "had": [
            {"run": run, "name": names[run], "problems": ours.had[run][0], "rows": ours.had[run][1]}
            for run in names
            if run in ours.had
        ],
        "alpha": sum_of_alphas(declared, *(one.declared for one in before)),
        "link": store.log().link(ours.search_id),
    }


def described(one: DeclaredSearch) -> dict[str, object]:
    """What names a search and its rules; when it was declared is left to the store."""
    declared = one.declared
    return {
        "id": one.search_id,
        "rungs": [rung["name"] for rung in rungs_in(declared)],
        "problems": {task: len(names) for task, names in declared["problems"].items()},
        **{name: declared[name] for name in ("margin", "stop_margin", "alpha", "seed", "budgets", "samples")},
        **{name: declared[name] for name in ("base_samples",) if name in declared},
    }


def sum_of_alphas(*declared: Data) -> float:
    """The sum of the alphas of several searches, at most 1."""
    return min(1.0, round(sum(one["alpha"] for one in declared), 12))


def outcomes(store: Store, declared: Data) -> Iterator[tuple[Data, str]]:
    """(rung, word) of every rung that a search looked at, by the rows that there are now."""
    done = 0
    try:
        for one in decided(Rows(store, declared), declared):
            done += 1
            yield one.rung, one.decision.word
    except PrunusError:  # a run or rows that it needs next are missing
        yield from ((rung, UNFINISHED) for rung in rungs_in(declared)[done : done + 1])


def search_line(store: Store, one: DeclaredSearch) -> str:
    """A search in a line: its id, when it was declared, its rules, and what it came to."""
    came = ", ".join(f"{rung['name']} {word}" for rung, word in outcomes(store, one.declared))
    return f"search {one.search_id} of {one.at}, {search_words(described(one))}: {came or 'no rung was looked at'}"


def warning(store: Store, declared: Data) -> str | None:
    """A line for the start of a search that others on the same model and tasks came before; None for the first."""
    ours, others = searches_like(store, declared)
    before = [one for one in others if ours is None or one.number < ours.number]
    if not before:
        return None
    tasks = " and ".join(sorted(declared["problems"]))
    sure = (
        f"this is search {len(before) + 1} of {declared['model']['name']} on {tasks} in this store, and their errors"
        f" add up to {100 * sum_of_alphas(declared, *(one.declared for one in before)):g} %"
    )
    for one in reversed(before):
        if (failed := failed_before(store, one.declared, declared)) is not None:
            name, word = failed
            verb = "was refused" if word != "cannot tell" else "was not decided (cannot tell)"
            return f"{name} {verb} by an earlier search ({'; '.join(changes(one.declared, declared))}); {sure}"
    return sure


def failed_before(store: Store, before: Data, now: Data) -> tuple[str, str] | None:
    """(name, word) of a rung that is tried now and that an earlier search looked at and did not certify."""
    keys = {rung[key] for rung in rungs_in(now) for key in ("run", "name")}
    if not any({rung["run"], rung["name"]} & keys for rung in rungs_in(before)):
        return None
    for rung, word in outcomes(store, before):
        if word not in (CERTIFIED, UNFINISHED) and {rung["run"], rung["name"]} & keys:
            return rung["name"], word
    return None


def changes(before: Data, now: Data) -> list[str]:
    """What differs between two declarations: `margin 2 points, now 5 points`, `another ladder`."""
    found = []
    for name in ("margin", "stop_margin"):
        if before[name] != now[name]:
            old, new = (Margin.of(one[name]).words("the dense model's") for one in (before, now))
            found.append(f"{name.replace('_', ' ')} {old}, now {new}")
    if before["alpha"] != now["alpha"]:
        found.append(f"alpha {100 * before['alpha']:g} %, now {100 * now['alpha']:g} %")
    for name in ("seed", "budgets", "samples", "base_samples", "look", "max_tokens"):
        old, new = (one.get(name, dense_draws(one) if name == "base_samples" else None) for one in (before, now))
        if old != new:
            found.append(f"{name.replace('_', ' ')} {old}, now {new}")
    rungs = [[[rung["name"] for rung in ladder["rungs"]] for ladder in one["ladders"]] for one in (before, now)]
    if rungs[0] != rungs[1]:
        found.append("another ladder")
    if before["problems"] != now["problems"]:
        found.append("other problems")
    return found or ["otherwise made or evaluated"]
