"""Searches leave a trace: repeated ones, rows that came first, and problems left out are visible."""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from certified_search import changed
from comparable_runs import row

from prunus.cards.certified import NOTHING, read_claims
from prunus.cards.text import certified_text
from prunus.results.certificate import Certificate, Declaration, write_certificate
from prunus.results.vocabulary import RungVerdict
from prunus.statistics.anytime import seeded_order
from prunus.store.rows import ProblemRow, Run
from prunus.store.store import Store
from prunus.studies.find.certificate import certificate
from prunus.studies.find.page import page
from prunus.studies.find.trace import declare_in, outcomes, warning
from prunus.studies.find.verify import verify_certificate as verify

PROBLEMS = 120
IDS = [f"a-{p}" for p in range(PROBLEMS)]
RULE: dict[str, Any] = {
    "seed": 0, "budgets": [16], "samples": 1, "reuse": True, "margin": 0.1, "stop_margin": 0.1, "alpha": 0.05,
    "endpoints": ["accuracy", "ends"], "look": 10, "max_tokens": None,
}  # fmt: skip


def declared(rungs: tuple[str, ...] = ("r0",), **settings: Any) -> Declaration:
    """The declaration of a search for these rungs of the model m."""
    ladder = [{"name": name, "run": name * 6, "removed": 0.1 * (1 + k)} for k, name in enumerate(rungs)]
    model = {"name": "m", "source": "m", "checksum": "c" * 64}
    start = {"model": model, "dense": "d" * 12, "problems": {"a": IDS}, "ladders": [{"name": "made", "rungs": ladder}]}
    return Declaration.of(start | RULE | settings)


def add(store: Store, name: str, lost: range | tuple[int, ...] = (), hashed: bool = False) -> None:
    """Rows of a run that is right except for the lost problems; hashed: its plan has the hash of the problems."""
    run = "d" * 12 if name == "dense" else name * 6
    plan: dict[str, Any] = {"budgets": [16], "tasks": ["a"]}
    if hashed:
        lines = "\n".join(f"a\t{problem}\td-{problem}" for problem in IDS)
        plan["problems"] = hashlib.sha256(lines.encode()).hexdigest()[:16]
    store.add_problems(ProblemRow("a", problem, "1", "exact", (), f"d-{problem}") for problem in IDS)
    checksum = "c" * 64 if name == "dense" else hashlib.sha256(name.encode()).hexdigest()
    store.add_run(Run.of(run, {"name": name, "checksum": checksum}, plan, {}))
    texts = {"thinking": "Let me think.", "text": "The answer is 1.", "ended": "natural", "thinking_tokens": 9}
    store.add_samples(run, [row("a", p, 16, 0, p not in lost, **texts) for p in range(PROBLEMS)])


def certify(store: Path, search: Declaration, file: Path) -> Mapping[str, Any]:
    with Store(store) as opened:
        data = certificate(opened, search, None)
    write_certificate(data, file)
    return data.to_json()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Store(tmp_path / "s.db", create=True) as opened:
        add(opened, "dense")
        add(opened, "r0")
        add(opened, "r1", range(0, PROBLEMS, 4))
    return tmp_path / "s.db"


def test_a_search_is_stored_once_with_the_rows_that_its_runs_had(tmp_path):
    first, second = declared(("r0", "r1")), declared(("r0", "r1"), margin=0.2)
    with Store(tmp_path / "s.db", create=True) as opened:
        assert opened.searches() == []
        declare_in(opened, first)
        add(opened, "dense")
        add(opened, "r0")
        declare_in(opened, second)
        (one, two) = opened.searches()
        declare_in(opened, Declaration.of(json.loads(json.dumps(first.to_json()))))
        add(opened, "r1")
        declare_in(opened, second)
        assert opened.searches() == [one, two]
    assert (one.number, one.declared, one.had) == (1, first.to_json(), {})
    assert (two.number, two.declared) == (2, second.to_json())
    assert two.had == {"d" * 12: (PROBLEMS, PROBLEMS), "r0" * 6: (PROBLEMS, PROBLEMS)}
    assert one.at.endswith("+00:00") and one.at <= two.at


@pytest.mark.slow
def test_twenty_seeds_over_the_same_rows_are_counted(store, tmp_path):
    searches = [declared(seed=seed) for seed in range(20)]
    with Store(store) as opened:
        for search in searches:
            declare_in(opened, search)
    data = certify(store, searches[6], tmp_path / "7.json")
    assert data["shown"]["found"]["name"] == "r0"
    assert [one["seed"] for one in data["shown"]["searches"]["before"]] == list(range(6))
    assert [(one["name"], one["problems"]) for one in data["shown"]["searches"]["had"]] == [("m", 120), ("r0", 120)]
    error = data["shown"]["claims"][-1]
    assert "of the 6 searches before it on the same model and tasks is false is at most 35 %" in error
    assert error.endswith("did not depend on the rows that existed then (120 problems of m and 120 of r0)")
    checked = verify(tmp_path / "7.json", store)
    assert checked.differences == [] and checked.claims == data["shown"]["claims"]
    places = [line.partition(":")[0] for line in checked.searches]
    assert places[:-1] == ["before it"] * 6 + ["after it"] * 13 and "has 20 searches" in checked.searches[-1]
    assert "falsely is at most 100 %" in checked.searches[-1]
    text = page(Certificate.of(data))
    assert "6 other searches on the same model and tasks were declared before it" in text and "and 1 more" in text
    assert "the store had rows of 120 problems of m and 120 of r0" in text
    shutil.copy(tmp_path / "7.json", tmp_path / "certificate.json")
    card = "\n".join(certified_text(read_claims(tmp_path)))
    assert "6 other searches" in card and "is at most 35 %" in card and "rows of 120 problems of m" in card


@pytest.mark.slow
def test_thirteen_ladders_of_one_rung_are_counted(store, tmp_path):
    searches = [declared((f"r{k}" if k < 10 else f"s{k - 10}",)) for k in range(13)]
    with Store(store) as opened:
        for search in searches:
            declare_in(opened, search)
            add(opened, search.rungs[0].name)
    data = certify(store, searches[-1], tmp_path / "c.json")
    assert len(data["shown"]["searches"]["before"]) == 12
    assert [one["name"] for one in data["shown"]["searches"]["had"]] == ["m"], "its rung has rows since it was declared"
    error = data["shown"]["claims"][-1]
    assert "of the 12 searches before it on the same model and tasks is false is at most 65 %" in error
    checked = verify(tmp_path / "c.json", store)
    assert checked.differences == [] and len(checked.searches) == 13
    assert "r1 (margins 10 points and 10 points, alpha 5 %, seed 0, 120 problems): r1 refused" in checked.searches[1]


@pytest.mark.slow
def test_a_margin_that_is_widened_after_a_refusal_is_told_at_the_start_and_by_verify(store, tmp_path):
    first, wider = declared(("r1",)), declared(("r1",), margin=0.5)
    with Store(store) as opened:
        declare_in(opened, first)
        assert warning(opened, first) is None
        declare_in(opened, wider)
        assert warning(opened, wider) == (
            "r1 was refused by an earlier search (margin 10 points, now 50 points); this is search 2 of m on a in this"
            " store, and their errors add up to 10 %"
        )
        assert [word for _, word in outcomes(opened, first)] == [RungVerdict.REFUSED]
        gentler = declared(("r0", "r1"), seed=1, alpha=0.01)
        assert "alpha 5 %, now 1 %; seed 0, now 1; another ladder" in str(warning(opened, gentler))
        assert str(warning(opened, declared(("r0",)))).startswith("this is search 3 of m on a")
    data = certify(store, wider, tmp_path / "c.json")
    assert data["shown"]["ladders"][0]["rungs"][0]["word"] == RungVerdict.CERTIFIED
    checked = verify(tmp_path / "c.json", store)
    assert "or of the search before it on the same model and tasks is false is at most 10 %" in checked.claims[-1]
    (before, both) = checked.searches
    assert before.startswith("before it: search ") and before.endswith("r1 refused") and "at most 10 %" in both


@pytest.mark.parametrize(
    ("margin", "told"),
    [({"relative": 0.2}, "10 points, now 20 % of the original's"), (0.2, "10 points, now 20 points")],
)
def test_a_margin_may_become_relative_after_a_refusal(store, margin, told):
    with Store(store) as opened:
        declare_in(opened, declared(("r1",)))
        line = warning(opened, declared(("r1",), margin=margin, stop_margin=margin))
    assert f"(margin {told}; stop margin {told})" in str(line)


def test_rows_that_were_removed_before_a_search_was_declared_are_named(store, tmp_path):
    with Store(store) as opened:
        opened.remove_run("r0r0r0r0r0r0")
        opened.remove_run("r1r1r1r1r1r1")
        declare_in(opened, declared())
        add(opened, "r0")
    data = certify(store, declared(), tmp_path / "c.json")
    assert data["shown"]["searches"]["had"][1] == {"run": "r0" * 6, "name": "r0", "problems": 120, "rows": 120}
    checked = verify(tmp_path / "c.json", store)
    assert checked.differences == []
    note = checked.notes[0]
    assert note.startswith("a run of r0 (r0r0r0r0r0r0) with rows of 120 problems was removed from the store at 20")


def test_other_runs_of_a_checkpoint_that_is_certified_are_named(store, tmp_path):
    """Rows under another plan tell as much of a rung as its own."""
    with Store(store) as opened:
        plan = {"budgets": [16], "tasks": ["a"], "limit": 100}
        for run, checksum in (("e" * 12, hashlib.sha256(b"r0").hexdigest()), ("b" * 12, "c" * 64)):
            opened.add_run(Run.of(run, {"name": "again", "checksum": checksum}, plan, {}))
            opened.add_samples(run, [row("a", p, 16, 0, True, ended="natural") for p in range(100)])
        declare_in(opened, declared())
    certify(store, declared(), tmp_path / "c.json")
    checked = verify(tmp_path / "c.json", store)
    assert checked.differences == []
    note = checked.notes[0]
    assert note.startswith("the store has another run of the checkpoint of r0 on the same tasks (eeeeeeeeeeee: a")


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        ({"problems": {"b": [f"b-{p}" for p in range(9)]}}, False),
        ({"problems": {"renamed": IDS[:40]}}, True),
        ({"problems": {"a": IDS, "b": ["b-1"]}}, True),
        ({"model": {"name": "m", "source": "m", "checksum": "e" * 64}}, False),
        ({"model": {"name": "n", "source": "n", "checksum": "c" * 64}}, True),
        ({"samples": 4, "budgets": [16, 64]}, True),
    ],
)
def test_searches_count_that_are_on_the_same_model_and_a_common_task(store, tmp_path, other, counts):
    with Store(store) as opened:
        declare_in(opened, declared(("r5",), **other))
        declare_in(opened, declared())
    assert len(certify(store, declared(), tmp_path / "c.json")["shown"]["searches"]["before"]) == counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM search WHERE number = 1", "no record of search"),
        ("DELETE FROM search WHERE number = 1", "in the log of the store; its record was deleted"),
        ("DELETE FROM search WHERE number = 2", "no record that this search was declared"),
        ("UPDATE search SET had = '{}' WHERE number = 2", "the rows that existed when this search was declared"),
        ("UPDATE search SET number = 9 WHERE number = 1", "no record of search"),
        ("UPDATE search SET declared = replace(declared, '0.05', '0.01') WHERE number = 1", "was changed in the store"),
        ("UPDATE sample SET thinking = 'I am made up' WHERE problem_id = '{first}'", "rows of the store are not those"),
        ("UPDATE sample SET text = '42' WHERE problem_id = '{first}' AND run_id LIKE 'd%'", "dense rows of the store"),
        ("UPDATE sample SET repetition = 0.5 WHERE problem_id = '{first}'", "rows of the store are not those"),
        ("UPDATE sample SET answer_truncated = 1 WHERE problem_id = '{first}'", "rows of the store are not those"),
        ("UPDATE problem SET gold = '2' WHERE problem_id = '{first}'", "problems is"),
        ("UPDATE problem SET kind = 'math' WHERE problem_id = '{first}'", "problems is"),
    ],
)
def test_a_changed_trace_text_or_gold_is_found_out(store, tmp_path, statement, told):
    with Store(store) as opened:
        declare_in(opened, declared(seed=1))
        declare_in(opened, declared())
    certify(store, declared(), tmp_path / "c.json")
    assert verify(tmp_path / "c.json", store).differences == []
    with sqlite3.connect(store) as connection:
        connection.execute(statement.replace("{first}", seeded_order(IDS, 0)[0]))
    checked = verify(tmp_path / "c.json", store)
    assert checked.claims == [] and any(told in line for line in checked.differences), checked


def test_a_certificate_that_leaves_out_an_earlier_search_is_found_out(store, tmp_path):
    with Store(store) as opened:
        declare_in(opened, declared(seed=1))
        declare_in(opened, declared())
    certify(store, declared(), tmp_path / "c.json")

    def forget(data):
        traced = data["shown"]["searches"]
        traced["before"], traced["alpha"] = [], 0.05

    (line,) = verify(changed(tmp_path / "c.json", forget), store).differences
    assert line.startswith("the certificate leaves out search ") and "seed 1" in line


@pytest.mark.slow
def test_problems_on_which_the_rung_loses_cannot_be_left_out(tmp_path):
    """As a review forged it: all but the problems is true, and store and certificate fit each other."""
    lost = range(0, 112, 4)
    kept = [problem for problem in IDS if int(problem[2:]) not in lost]
    for problems, differs in ((kept, True), (IDS, False), ([*reversed(IDS)], True)):
        store = tmp_path / f"{len(problems)}-{problems[0]}.db"
        search = declared(("r1",), problems={"a": problems})
        with Store(store, create=True) as opened:
            declare_in(opened, search)
            add(opened, "dense", hashed=True)
            add(opened, "r1", lost, hashed=True)
        data = certify(store, search, tmp_path / "c.json")
        assert bool(data["shown"]["found"]) == (problems is kept), "without the 28 problems it loses nothing"
        found = verify(tmp_path / "c.json", store).differences
        told = f"the {len(problems)} problems that are declared are not those of the runs' plan"
        assert [line.partition(",")[0] for line in found] == [told] * differs


def test_claims_name_the_checkpoint_and_its_checksum(store, tmp_path):
    with Store(store) as opened:
        declare_in(opened, declared())
    data = certify(store, declared(), tmp_path / "certificate.json")
    name = f"The checkpoint made by r0 (blake3 {hashlib.sha256(b'r0').hexdigest()[:16]}): "
    assert [claim.startswith(name) for claim in data["shown"]["claims"]] == [True, True, False]
    assert name in page(Certificate.of(data)) and "<h1><bdi>r0 still solves and still stops</bdi></h1>" in page(
        Certificate.of(data)
    )
    assert read_claims(tmp_path).claims == tuple(data["shown"]["claims"])
    assert read_claims(tmp_path / "none") is NOTHING and certified_text(NOTHING) == []


@pytest.mark.slow
def test_repeated_searches_err_as_often_as_the_bound_allows():
    """The table of the page, with few runs: one search errs in 5 %, and the best of several in at most their sum."""
    import runpy

    bench = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "find_errors.py"))
    rates = {(kind, many): rate for kind, many, rate, _ in bench["repeated"](runs=200, most=10, n=200)}
    assert rates["the same rows, other seeds", 1] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert rates["the same rows, other seeds", 10] > 0.1, "ten seeds err far more often than one"
    assert all(rate <= min(1, 0.05 * many) + 0.04 for (_, many), rate in rates.items())
