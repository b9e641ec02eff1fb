"""The certificate of a search: what is claimed and on which rows it rests, and the check that the rows still say so.

A certificate has three parts. `declared` is what was fixed before the first row: the model, plan, ladders, margins,
alpha, problems and their order. `shown` is everything that follows from it and the rows of the store: `computed` walks
the ladders again over the rows. `made` is the checkpoint that was written. `prunus verify` computes `shown` again and
compares, so a change of a row, of the declaration or of a claim is found. A certificate is no signature: whoever
changes store and certificate together can make it say anything.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from prunus import __version__
from prunus.disk import write_text
from prunus.errors import PrunusError
from prunus.finding.rows import Rows
from prunus.hashing import content_hash
from prunus.margins import Margin
from prunus.results.ladder import (
    ACCURACY,
    CERTIFIED,
    ENDPOINTS,
    ENDS,
    GO_ON,
    OPEN,
    Decision,
    Rule,
    decide,
    next_look,
    paths,
)
from prunus.results.metrics import auc_weights
from prunus.results.order import interleaved, rounds
from prunus.results.store import Store
from prunus.results.verdicts import wide_margin

FORMAT, OTHER_BETS = 2, 1  # certificates of format 1 rest on other bets, and can only be shown
OUT_OF_TOKENS, NOT_ENOUGH = "the tokens are used up", "the problems left would not be enough"
NOTHING_TO_LOSE = "losing all that the dense model has would be within the margin"
MOST_POINTS = 120  # of a path in the certificate
FIELDS = ("thinking_tokens", "answer_tokens", "forced_tokens", "ended", "answer", "status", "correct")

Data = Mapping[str, Any]


def computed(store: Store, declared: Data) -> dict[str, Any]:
    """What the declared search shows, from rows alone: the decision on every rung, and what was found.

    Raises PrunusError if the store lacks a run, or rows that a decision needs.
    """
    dense, order, look = (
        declared["dense"],
        rounds(interleaved(declared["problems"], declared["seed"])),
        declared["look"],
    )
    rows = Rows(store, dense, order, declared["budgets"], declared["samples"], declared["reuse"])
    runs = {run.run_id: run for run in store.runs()}
    alpha = declared["alpha"] / len(declared["ladders"])
    rule = Rule(declared["margin"], declared["stop_margin"], alpha)
    if dense not in runs:
        raise PrunusError(f"the store {store.path} has no run {dense}, the dense model's")
    dense_looked, finished = 0, 0
    ladders, best = [], None
    for ladder in declared["ladders"]:
        shown = []
        for rung in ladder["rungs"]:
            run_id = rung["run"]
            spent = rows.tokens(dense, dense_looked) + finished
            if declared["max_tokens"] is not None and spent >= declared["max_tokens"]:
                break
            if run_id not in runs:
                raise PrunusError(f"the store {store.path} has no run {run_id}, that of {rung['name']}")
            found, looked = rows.differences(run_id), 0
            while True:
                dense_looked = max(dense_looked, looked)
                spent = rows.tokens(dense, dense_looked) + finished + rows.tokens(run_id, looked)
                ended = declared["max_tokens"] is not None and spent >= declared["max_tokens"]
                seen = {name: values[:looked] for name, values in found.items()}
                until = next_look(seen, rule, look, len(order))
                decision = decide(seen, rule, ended or until == looked)
                if decision.word != GO_ON:
                    break
                looked = until
                if len(found[ACCURACY]) < looked:
                    raise PrunusError(
                        f"the store {store.path} lacks rows: {rung['name']} is not decided by the"
                        f" {len(found[ACCURACY])} rounds of problems that are complete"
                    )
            finished += rows.tokens(run_id, looked)
            run = runs[run_id]
            shown.append(
                {
                    "name": rung["name"],
                    "run": run_id,
                    "word": decision.word,
                    "why": why_open(decision, ended, len(order)),
                    "failed": list(decision.failed),
                    "rounds": decision.rounds,
                    "problems": sum(map(len, order[: decision.rounds])),
                    "looked": looked,
                    "tokens": rows.tokens(run_id, looked),
                    "evidence": decision.evidence,
                    "path": _path(found, decision.rounds, rule),
                    "accuracy": accuracy(rows, run_id, looked) if looked else None,
                    "dense_accuracy": accuracy(rows, dense, looked) if looked else None,
                    "checksum": run.model.get("checksum"),
                    "recipe": run.model.get("manifest", {}).get("history", []),
                    "versions": run.versions,
                    "same_plan": run.plan == runs[dense].plan,
                    "rows": digest(rows, run_id, looked),
                }
            )
            if decision.word != CERTIFIED:
                break
            if best is None or rung["removed"] > best["removed"]:
                best = {**shown[-1], "removed": rung["removed"]}
        ladders.append({"name": ladder["name"], "rungs": shown})
    problems = store.problems()
    shown_all = {
        "ladders": ladders,
        "found": best and {key: best[key] for key in ("name", "run", "removed", "checksum", "problems")},
        "dense": {
            "run": dense,
            "looked": dense_looked,
            "tokens": rows.tokens(dense, dense_looked),
            "rows": digest(rows, dense, dense_looked),
            "checksum": runs[dense].model.get("checksum"),
            "plan": runs[dense].plan,
            "versions": runs[dense].versions,
        },
        "tokens": rows.tokens(dense, dense_looked) + finished,
        "full_grid_tokens": _grid_tokens(declared, ladders, rows.tokens(dense, dense_looked), dense_looked, len(order)),
        "problems": content_hash(
            sorted([task, name, problems[name].digest] for one in order[:dense_looked] for task, name in one), 64
        ),
    }
    return shown_all | {"claims": claims(declared, shown_all)}


def why_open(decision: Decision, ended: bool, total: int) -> str:
    """Why a rung is left open although there are more rounds; empty for others. ended: whether tokens are used up."""
    if decision.covered:
        return NOTHING_TO_LOSE
    if decision.word != OPEN or decision.rounds == total:
        return ""
    return OUT_OF_TOKENS if ended else NOT_ENOUGH


def digest(rows: Rows, run_id: str, looked: int) -> str:
    """A hash of all that a decision or a token count uses of a run's rows in the first rounds."""
    return content_hash(
        [
            [s.task, s.problem_id, s.budget, s.draw, *(getattr(s, field) for field in FIELDS)]
            for one in rows.up_to(run_id, looked)
            for s in one
        ],
        64,
    )


def accuracy(rows: Rows, run_id: str, looked: int) -> list[float]:
    """The accuracy at every budget over the first rounds: the mean over tasks of the mean over problems."""
    by_task: dict[str, list[list[float]]] = {}
    for one in rows.up_to(run_id, looked):
        for task, problem in sorted({(s.task, s.problem_id) for s in one}):
            mine = [s for s in one if s.problem_id == problem]
            shares = [np.mean([s.correct for s in mine if s.budget == b]) for b in rows.budgets]
            by_task.setdefault(task, []).append([float(share) for share in shares])
    means = [np.mean(np.array(each), axis=0) for each in by_task.values()]
    return np.mean(np.array(means), axis=0).tolist()


def _path(found: Mapping[str, NDArray[np.float64]], T: int, rule: Rule) -> dict[str, Any]:
    """Estimate, lower and upper bound of each endpoint after some of the first T rounds, the last among them."""
    at = sorted({round(x) for x in np.linspace(1, T, min(T, MOST_POINTS))})
    result: dict[str, Any] = {"rounds": at}
    for name, seen in paths({end: values[:T] for end, values in found.items()}, rule).items():
        result[name] = [[float(x[t - 1]) for x in (seen.estimate, seen.lower, seen.upper)] for t in at]
    return result


def _grid_tokens(declared: Data, ladders: Sequence[Data], dense: int, dense_looked: int, total: int) -> int:
    """What all rungs and the dense model in full would take, if the rest of each were like what was looked at."""
    per_round = dense / max(1, dense_looked)
    seen = [rung["tokens"] / rung["looked"] for ladder in ladders for rung in ladder["rungs"] if rung["looked"]]
    declared_rungs = sum(len(ladder["rungs"]) for ladder in declared["ladders"])
    return round(total * (per_round * (1 + declared_rungs - len(seen)) + sum(seen)))


def claims(declared: Data, shown: Data) -> list[str]:
    """What is claimed, in sentences: two about each certified rung, and one about their errors."""
    dense, tasks = declared["model"]["name"], " and ".join(sorted(declared["problems"]))
    positive = [b for b in declared["budgets"] if b > 0]
    measure = (
        f"its area under accuracy over log2 of the thinking budget ({positive[0]} to {positive[-1]} tokens)"
        if len(positive) > 1
        else f"its accuracy at {positive[-1]} thinking tokens"
    )
    found = []
    for ladder in shown["ladders"]:
        for rung in ladder["rungs"]:
            if rung["word"] == CERTIFIED:
                accuracy, ends = (below(declared[name], dense) for name in ("margin", "stop_margin"))
                share = f"the share of its chains that end by themselves within {positive[-1]} tokens"
                found += [
                    f"{rung['name']}: {measure} on {tasks} is {accuracy}",
                    f"{rung['name']}: {share} is {ends}",
                ]
    many = len(declared["ladders"])
    sure = f"The probability that any claim is false is at most {100 * declared['alpha']:g} %"
    return [*found, sure + (f", over all {many} ladders" if many > 1 else "")] if found else []


def below(margin: Any, dense: str) -> str:
    """`less than 2 points below tiny's`, or `less than 5 % of tiny's below it`, for a margin as it is declared."""
    asked = Margin.of(margin)
    if asked.relative:
        return f"less than {100 * asked.size:g} % of {dense}'s below it"
    return f"less than {asked.words()} below {dense}'s"


def caution(declared: Data, shown: Data) -> str | None:
    """A warning where the dense model solves so little that the margin says little; None where it solves enough."""
    looked = [rung for ladder in shown["ladders"] for rung in ladder["rungs"] if rung["looked"]]
    if not looked:
        return None
    longest = max(looked, key=lambda rung: rung["looked"])
    area = float(auc_weights(declared["budgets"]) @ longest["dense_accuracy"])
    return wide_margin(Margin.of(declared["margin"]), area, "the dense model")


def declare(
    *,
    model: Data,
    dense: str,
    problems: Mapping[str, Sequence[str]],
    seed: int,
    budgets: Sequence[int],
    samples: int,
    reuse: bool,
    ladders: Sequence[Data],
    rule: Rule,
    alpha: float,
    look: int,
    max_tokens: int | None,
) -> dict[str, Any]:
    """The declared part of a certificate.

    model: name, source and checksum. dense: the run of the dense model. problems: ids by task, in any order.
    ladders: each with name and rungs, all that were declared, each with name, run and removed (the share of the
    weights). rule: its margins count. alpha: of the whole search, which the ladders share.
    """
    return {
        "model": dict(model),
        "dense": dense,
        "problems": {task: sorted(problems[task]) for task in sorted(problems)},
        "seed": seed,
        "budgets": sorted(budgets),
        "samples": samples,
        "reuse": reuse,
        "ladders": [{"name": one["name"], "rungs": [dict(rung) for rung in one["rungs"]]} for one in ladders],
        "margin": rule.margins[ACCURACY].to_json(),
        "stop_margin": rule.margins[ENDS].to_json(),
        "alpha": alpha,
        "endpoints": list(ENDPOINTS),
        "look": look,
        "max_tokens": max_tokens,
    }


def certificate(store: Store, declared: Data, checksum: str | None) -> dict[str, Any]:
    """The certificate of a finished search. checksum: of the checkpoint that was written; None if none was."""
    shown = computed(store, declared)
    data = {
        "format": FORMAT,
        "prunus": __version__,
        "declared": declared,
        "shown": shown,
        "caution": caution(declared, shown),
        "made": {"checksum": checksum},
    }
    data = json.loads(json.dumps(data, allow_nan=False))
    return data | {"content": content_hash(data, 64)}


def write_certificate(data: Data, file: Path) -> None:
    """Write a certificate to a file."""
    write_text(file, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_certificate(file: Path) -> dict[str, Any]:
    """The certificate in a file. Raises PrunusError if it is none."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise PrunusError(f"cannot read '{file}': {error.strerror or error}") from error
    except ValueError as error:
        raise PrunusError(f"'{file}' is not a certificate: it is not JSON") from error
    parts = ("format", "declared", "shown", "made", "content")
    if not isinstance(data, dict) or any(part not in data for part in parts):
        raise PrunusError(f"'{file}' is not a certificate of `prunus find`")
    if data["format"] not in (FORMAT, OTHER_BETS):
        raise PrunusError(f"'{file}' has format {data['format']}; this is prunus {__version__}, which reads {FORMAT}")
    return data


def verify(certificate: str | Path, store: str | Path = "results.db") -> dict[str, Any]:
    """Compute the claims of a certificate again from the rows of a store.

    Returns {"claims": the claims that hold, "differences": what is not as the certificate says, "notes": what could not
    be checked}, all sentences; without differences, all claims hold. The checkpoint beside the certificate is checked,
    too. Raises PrunusError if a file is missing or is none of these.
    """
    file = Path(certificate)
    data = read_certificate(file)
    if data["format"] == OTHER_BETS:
        raise PrunusError(
            f"'{file}' has format {OTHER_BETS}: the prunus that wrote it made other bets, and only that one can compute"
            " the claims again; `prunus find` into another folder makes a new certificate from the same store"
        )
    found, notes = [], []
    rest = {name: part for name, part in data.items() if name != "content"}
    if content_hash(rest, 64) != data["content"]:
        found.append("the certificate was changed after it was written: its content hash differs")
    claimed: list[str] = []
    with Store(store) as opened:
        try:
            now = json.loads(json.dumps(computed(opened, data["declared"])))
        except PrunusError as error:
            found.append(str(error))
        except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
            found.append(f"what the certificate declares makes no sense ({type(error).__name__}: {error})")
        else:
            claimed = now["claims"]
            found += list(_differences(data["shown"], now, "", _names(data["shown"])))
            found += _about_runs(data["declared"], now)
            # Certificates of earlier versions have no caution.
            if "caution" in data and data["caution"] != (warning := caution(data["declared"], now)):
                found.append(f"the caution is {_short(warning)} by the rows, the certificate says otherwise")
    checks = (_checkpoint_difference, _published)
    for check in checks:
        difference, note = check(data, file.parent)
        found += [difference] if difference else []
        notes += [note] if note else []
    return {"claims": claimed if not found else [], "differences": found, "notes": notes}


def _about_runs(declared: Data, now: Data) -> list[str]:
    """What the runs of the store contradict in the declaration."""
    found = []
    plan = now["dense"]["plan"]
    if now["dense"]["checksum"] != declared["model"].get("checksum"):
        found.append("the dense model's run in the store is of other weights than the certificate declares")
    for name, value in (("budgets", declared["budgets"]), ("samples", declared["samples"]), ("seed", declared["seed"])):
        stored = plan.get(name)
        if stored is not None and (sorted(stored) if name == "budgets" else stored) != value:
            found.append(f"{name} of the runs in the store are {stored}, the certificate declares {value}")
    found += [
        f"the run of {rung['name']} has another plan than the dense model's"
        for ladder in now["ladders"]
        for rung in ladder["rungs"]
        if not rung["same_plan"]
    ]
    return found


def _names(shown: Any) -> Callable[[str], str]:
    """A function that names the part of a certificate at a path such as /ladders/0/rungs/2/word."""

    def name(at: str) -> str:
        parts = at.strip("/").split("/")
        if parts[:1] == ["ladders"] and len(parts) >= 4:
            try:
                rung = shown["ladders"][int(parts[1])]["rungs"][int(parts[3])]["name"]
                return f"{rung}: {' '.join(parts[4:]) or 'the rung'}"
            except (KeyError, IndexError, TypeError, ValueError):
                pass
        return " ".join(parts)

    return name


def _differences(stated: Any, now: Any, at: str, name: Callable[[str], str]) -> Iterator[str]:
    """Sentences about values that are not as the certificate states them."""
    if isinstance(stated, dict) and isinstance(now, dict):
        for key in sorted(stated.keys() | now.keys()):
            yield from _differences(stated.get(key), now.get(key), f"{at}/{key}", name)
    elif isinstance(stated, list) and isinstance(now, list) and len(stated) == len(now):
        for number, pair in enumerate(zip(stated, now, strict=True)):
            yield from _differences(*pair, f"{at}/{number}", name)
    elif _is_number(stated) and _is_number(now):
        if not isclose(stated, now, rel_tol=1e-6, abs_tol=1e-9):
            yield f"{name(at)} is {now:g} by the rows, the certificate says {stated:g}"
    elif stated != now:
        if at.endswith("/rows"):
            yield f"{name(at)} of the store are not those on which the certificate rests"
        else:
            yield f"{name(at)} is {_short(now)} by the rows, the certificate says {_short(stated)}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _checkpoint_difference(data: Data, folder: Path) -> tuple[str, str]:
    """(what is wrong with the checkpoint beside the certificate, what was not checked)."""
    stated = data["made"].get("checksum")
    if stated is None:
        return "", ""
    if not (folder / "config.json").exists():
        return "", "no checkpoint lies beside the certificate, so its weights were not checked"
    from prunus.checkpoint.checkpoint import Checkpoint  # it imports torch

    found = Checkpoint(folder).checksum()
    return ("" if found == stated else "the checkpoint beside the certificate has other weights than the one made"), ""


def _published(data: Data, folder: Path) -> tuple[str, str]:
    """The checkpoint that was made has to be the one whose rows were looked at."""
    found, made = data["shown"].get("found"), data["made"].get("checksum")
    evaluated = found.get("checksum") if found else None
    same = made is None or evaluated is None or made == evaluated
    return ("" if same else "the checkpoint that was made is not the one that was evaluated"), ""
