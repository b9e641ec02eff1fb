"""The certificate of a search: what is claimed, and on which rows it rests. `verification` checks it.

A certificate has three parts. `declared` is what was fixed beforehand (`Search.declared`): the model, plan, ladders,
margins, alpha, problems and their order. `shown` is everything that follows from it and the store: `computed` walks the
ladders again over the rows, and reads which searches were declared before this one, and before which rows. `made` is
the checkpoint that was written. A certificate is no signature: whoever changes store and certificate together can make
it say anything.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from prunus import __version__
from prunus.cards.certified import CERTIFICATE, checkpoint_of, problems_had
from prunus.disk import show_bytes, write_text
from prunus.errors import PrunusError
from prunus.plain_data import canonical_json, content_hash, parse_json
from prunus.results.ladder import CERTIFIED, DENSE, ENDS, Rule, paths
from prunus.results.verdicts import MOST, rare_endings, wide_margin
from prunus.settings.margins import Margin
from prunus.statistics.metrics import auc_weights
from prunus.store.rows import ProblemRow
from prunus.store.store import COLUMNS, TEXT_COLUMNS, Store
from prunus.studies.find.decisions import Data, Rows, decided, rank, rule_of, rungs_in, up_to
from prunus.studies.find.trace import trace

# Format 1 rests on other bets, and can only be shown. Formats 1 and 2 know nothing of other searches, texts and files;
# format 3 does not know the log of the store.
FORMAT, UNLOGGED, UNTRACED, OTHER_BETS = 4, 3, 2, 1
MOST_POINTS = 120  # of a path in the certificate
DECIDING = ("thinking_tokens", "answer_tokens", "forced_tokens", "ended", "answer", "status", "correct")
SCORES = ("logprob", "self_certainty")  # their last bits depend on the number of processes, and nothing rests on them
KEY = ("task", "problem_id", "budget", "draw")
ALL = tuple(name for name in COLUMNS if name not in (*SCORES, *TEXT_COLUMNS))
ASIDE = (CERTIFICATE, "find.html", "README.md")  # files that are written after the certificate, or again later


def computed(store: Store, declared: Data, form: int = FORMAT) -> Data:
    """What the declared search shows, from the store alone: the decision on every rung, and what was found.

    form: the format of the certificate. Raises PrunusError if the store lacks a run, or rows that a decision needs.
    """
    rows, rule, dense = Rows(store, declared), rule_of(declared), declared["dense"]
    order, runs = rows.order, {run.run_id: run for run in store.runs()}
    dense_looked, spent = 0, 0
    rungs: list[list[Data]] = [[] for _ in declared["ladders"]]
    best = None
    for one in decided(rows, declared):
        rung, decision, looked, run = one.rung, one.decision, one.looked, runs[one.rung["run"]]
        run_id, dense_looked, spent = run.run_id, one.dense_looked, one.spent
        shown = {
            "name": rung["name"],
            "run": run_id,
            "word": decision.word,
            "why": one.why,
            "failed": list(decision.failed),
            "rounds": decision.rounds,
            "problems": sum(map(len, order[: decision.rounds])),
            "looked": looked,
            "tokens": one.tokens,
            "evidence": decision.evidence,
            "path": _path(one.differences, decision.rounds, rule),
            "accuracy": accuracy(rows, run_id, looked) if looked else None,
            "dense_accuracy": accuracy(rows, dense, looked) if looked else None,
            "checksum": run.model.get("checksum"),
            "recipe": run.model.get("manifest", {}).get("history", []),
            "versions": run.versions,
            "same_plan": _same_plan(run.plan, runs[dense].plan, declared["samples"]),
            "rows": digest(rows, run_id, looked, form),
            **({"bytes": run.nbytes or rung["bytes"]} if "bytes" in rung else {}),
        }
        rungs[one.ladder].append(shown)
        if decision.word == CERTIFIED and (best is None or rank(rung) > rank(best[0])):
            best = rung, {**rung, **shown}
    ladders = [{"name": one["name"], "rungs": found} for one, found in zip(declared["ladders"], rungs, strict=True)]
    problems, of_found = store.problems(), ("name", "run", "removed", "checksum", "problems", "bytes")
    shown_all = {
        "ladders": ladders,
        "found": best and {key: best[1][key] for key in of_found if key in best[1]},
        "dense": {
            "run": dense,
            "looked": dense_looked,
            "tokens": rows.tokens(dense, dense_looked),
            "rows": digest(rows, dense, dense_looked, form),
            "checksum": runs[dense].model.get("checksum"),
            "plan": runs[dense].plan,
            "versions": runs[dense].versions,
        },
        "tokens": spent,
        "full_grid_tokens": _grid_tokens(declared, ladders, rows.tokens(dense, dense_looked), dense_looked, len(order)),
        "problems": content_hash(
            sorted(_problem(problems[name], task, form) for one in order[:dense_looked] for task, name in one), 64
        ),
    }
    if form > UNTRACED:
        shown_all["searches"] = trace(store, declared)
    return shown_all | {"claims": claims(declared, shown_all)}


def _same_plan(plan: Data, dense: Data, samples: int) -> bool:
    """Whether a rung's plan is the dense model's, but for the draws, of which it has the number that was declared."""
    return {"samples": samples, **plan} == {**plan, "samples": samples} == {**dense, "samples": samples}


def _problem(stored: ProblemRow, task: str, form: int) -> list[Any]:
    found = [task, stored.problem_id, stored.digest]
    return found if form <= UNTRACED else [*found, stored.gold, stored.kind, list(stored.choices)]


def digest(rows: Rows, run_id: str, looked: int, form: int = FORMAT) -> str:
    """A hash of a run's rows in the first rounds: texts and all columns but the scores.

    Before format 3 it was of what a decision or a token count uses.
    """
    taken = [s for one in rows.up_to(run_id, looked) for s in one]
    if form <= UNTRACED:
        return content_hash([[getattr(s, name) for name in (*KEY, *DECIDING)] for s in taken], 64)
    found = hashlib.sha256()
    for s in taken:
        key = s.problem_id, s.budget, s.draw
        values = [getattr(s, name) for name in ALL]
        found.update(f"{canonical_json([*values, *rows.store.texts(run_id, [key])[key]])}\n".encode())
    return found.hexdigest()


def accuracy(rows: Rows, run_id: str, looked: int) -> list[float]:
    """The accuracy at every budget over the first rounds: the mean over tasks, groups, and the problems of each."""
    by_task: dict[str, dict[str, list[list[float]]]] = {}
    for one in rows.up_to(run_id, looked):
        for task, problem in sorted({(s.task, s.problem_id) for s in one}):
            mine = [s for s in one if s.problem_id == problem]
            shares = [np.mean([s.correct for s in mine if s.budget == b]) for b in rows.budgets]
            of_group = by_task.setdefault(task, {}).setdefault(rows.groups.get(problem, problem), [])
            of_group.append([float(share) for share in shares])
    means = [np.mean([np.mean(each, axis=0) for each in of_task.values()], axis=0) for of_task in by_task.values()]
    return np.mean(np.array(means), axis=0).tolist()


def _path(found: Mapping[str, NDArray[np.float64]], T: int, rule: Rule) -> dict[str, object]:
    """Estimate, lower and upper bound of each endpoint after some of the first T rounds, the last among them."""
    at = sorted({round(x) for x in np.linspace(1, T, min(T, MOST_POINTS))})
    result: dict[str, object] = {"rounds": at}
    for name, seen in paths({end: values[:T] for end, values in found.items()}, rule).items():
        result[name] = [[float(x[t - 1]) for x in (seen.estimate, seen.lower, seen.upper)] for t in at]
    return result


def _grid_tokens(declared: Data, ladders: Sequence[Data], dense: int, dense_looked: int, total: int) -> int:
    """What all rungs and the dense model in full would take, if the rest of each were like what was looked at."""
    per_round = dense / max(1, dense_looked)
    seen = [rung["tokens"] / rung["looked"] for ladder in ladders for rung in ladder["rungs"] if rung["looked"]]
    return round(total * (per_round * (1 + len(rungs_in(declared)) - len(seen)) + sum(seen)))


def claims(declared: Data, shown: Data) -> list[str]:
    """What is claimed, in sentences: two about the checkpoint of each certified rung, and one about their errors.

    With a ladder by bytes there is a third about each checkpoint.

    Before format 3, of which `shown` has no part `searches`, they named the rung.
    """
    dense, tasks = declared["model"]["name"], " and ".join(sorted(declared["problems"]))
    positive = [b for b in declared["budgets"] if b > 0]
    measure = (
        f"its area under accuracy over log2 of the thinking budget ({positive[0]} to {positive[-1]} tokens)"
        if len(positive) > 1
        else f"its accuracy at {positive[-1]} thinking tokens"
    )
    found = []
    for rung in rungs_in(shown):
        if rung["word"] == CERTIFIED:
            accuracy, ends = (below(declared[name], dense) for name in ("margin", "stop_margin"))
            share = f"the share of its chains that end by themselves within {positive[-1]} tokens"
            about = checkpoint_of(rung["name"], rung["checksum"]) if "searches" in shown else rung["name"]
            found += [f"{about}: {measure} on {tasks} is {accuracy}", f"{about}: {share} is {ends}"]
            if "bytes" in rung:
                sizes = [show_bytes(of["bytes"]) for of in (rung, declared["model"])]
                engine = declared["model"]["engine"]
                found.append(f"{about}: {engine} loads {sizes[0]} of it, and {sizes[1]} of {dense}")
    return [*found, _error(declared, shown)] if found else []


def _error(declared: Data, shown: Data) -> str:
    """How probable it is that a claim is false, with the searches before it, and on which conditions."""
    many, traced = len(declared["ladders"]), shown.get("searches")
    over = f", over all {many} ladders" if many > 1 else ""
    if not traced or not traced["before"]:
        text = f"The probability that any claim is false is at most {100 * declared['alpha']:g} %{over}"
    else:
        before = len(traced["before"])
        others = f"the {before} searches" if before > 1 else "the search"
        text = (
            f"The probability that any claim of this search{over} or of {others} before it on the same model and tasks"
            f" is false is at most {100 * traced['alpha']:g} %, the sum of their alphas"
        )
    if declared.get("groups"):
        text += f", if the {number_of_groups(declared)} groups of problems are independent"
    if traced and traced["had"]:
        also = " and" if declared.get("groups") else ","
        text += (
            f"{also} if its declaration did not depend on the rows that existed then ({problems_had(traced['had'])})"
        )
    return text


def number_of_groups(declared: Data) -> int:
    """How many groups the declared problems form; as many as there are problems if each is alone."""
    return sum(map(len, declared["problems"].values())) - len(declared.get("groups", {}))


def below(margin: Any, dense: str) -> str:
    """`less than 2 points below tiny's`, or `less than 5 % of tiny's below it`, for a margin as it is declared."""
    asked, whose = Margin.of(margin), f"{dense}'s"
    return f"less than {asked.words(whose)} below {'it' if asked.relative else whose}"


def dense_area(declared: Data, shown: Data) -> float | None:
    """What the dense model solves on average over the budgets, on all problems looked at; None if there are none."""
    looked = [rung for rung in rungs_in(shown) if rung["looked"]]
    if not looked:
        return None
    longest = max(looked, key=lambda rung: rung["looked"])
    return float(auc_weights(declared["budgets"]) @ longest["dense_accuracy"])


def endings(store: Store, declared: Data, shown: Data) -> Data | None:
    """The shares of chains that end by themselves: of the dense model, and of the rung that was found (None without).

    On all problems looked at of the rung that was found, or else of the one with the most; None if there are none.
    """
    rows, rungs = Rows(store, declared), [rung for rung in rungs_in(shown) if rung["looked"]]
    if not rungs:
        return None
    found = [rung for rung in rungs if shown["found"] and rung["run"] == shown["found"]["run"]]
    rung = found[0] if found else max(rungs, key=lambda one: one["looked"])
    differences = up_to(rows.differences(rung["run"]), rung["looked"])
    dense, apart = (float(differences[name].mean()) for name in (DENSE[ENDS], ENDS))
    return {"dense": dense, "found": dense + apart if found else None}


def caution(declared: Data, shown: Data, ended: Data | None = None) -> str | None:
    """A warning where the dense model solves so little, or ends so few chains, that a margin says little.

    ended: of `endings`; None in certificates of earlier versions. None where it solves and ends enough.
    """
    area, notes = dense_area(declared, shown), list[str | None]()
    if area is not None:
        notes.append(wide_margin(Margin.of(declared["margin"]), area, "the dense model"))
    if ended is not None:
        notes.append(rare_endings(Margin.of(declared["stop_margin"]), ended["dense"], "the dense model"))
    return "; ".join(note for note in notes if note is not None) or None


def stops(declared: Data, ended: Data | None) -> bool:
    """Whether the rung that was found may be said to still stop: most of its chains end, and the margin is small.

    ended: as of caution, without which it may.
    """
    if ended is None or ended["found"] is None:
        return ended is None
    return ended["found"] >= MOST and rare_endings(Margin.of(declared["stop_margin"]), ended["dense"]) is None


def certificate(store: Store, declared: Data, checksum: str | None, files: Mapping[str, str] | None = None) -> Data:
    """The certificate of a finished search, which was declared in the store.

    checksum: of the checkpoint that was written; None if none was. files: those of its folder, as `files_of`.
    """
    shown = computed(store, declared)
    ended = endings(store, declared, shown)
    data = {
        "format": FORMAT,
        "prunus": __version__,
        "declared": declared,
        "shown": shown,
        "endings": ended,
        "caution": caution(declared, shown, ended),
        "made": {"checksum": checksum, "files": dict(files or {})},
    }
    assert data["shown"]["searches"] is not None, "the search was not declared"
    data = json.loads(json.dumps(data, allow_nan=False))
    return data | {"content": content_hash(data, 64)}


def files_of(folder: Path) -> dict[str, str]:
    """{name: BLAKE3} of the files of a checkpoint's folder, without hidden ones, the model card and those of `find`."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if file.is_file() and not hidden and name not in ASIDE and file.suffix != ".writing":
            found[name] = blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()
    return found


def same_declaration(one: Data, other: Data) -> bool:
    """Whether two declarations are of the same search; the order of problems within a task is no matter."""

    def comparable(declared: Data) -> dict[str, object]:
        return {**declared, "problems": {task: sorted(names) for task, names in declared["problems"].items()}}

    return comparable(one) == comparable(other)


def write_certificate(data: Data, file: Path) -> None:
    """Write a certificate to a file."""
    write_text(file, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_certificate(file: Path) -> dict[str, Any]:
    """The certificate in a file. Raises PrunusError if it is none."""
    try:
        data = parse_json(file.read_text("utf-8"))
    except OSError as error:
        raise PrunusError(f"cannot read '{file}': {error.strerror or error}") from error
    except ValueError as error:
        raise PrunusError(f"'{file}' is not a certificate: it is not JSON") from error
    parts = ("format", "declared", "shown", "made", "content")
    if not isinstance(data, dict) or any(
        part not in data or (part in parts[1:-1] and not isinstance(data[part], dict)) for part in parts
    ):
        raise PrunusError(f"'{file}' is not a certificate of `prunus find`")
    if data["format"] not in (FORMAT, UNLOGGED, UNTRACED, OTHER_BETS):
        raise PrunusError(
            f"'{file}' has format {data['format']}; this is prunus {__version__}, which reads up to {FORMAT}"
        )
    return data
