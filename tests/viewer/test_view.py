"""`prunus view`: lines and filters, chains in pieces, the questions that the store keeps, and the server's limits."""

import json
import random
import shutil
import sqlite3
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fake_store import make_store, run_of
from stored_rows import PROBLEM, RUN, SAMPLE

import prunus
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import problem_row
from prunus.evaluation.tasks.problem import Problem
from prunus.recipes import EvalPlan
from prunus.results.importing import keys_of, problem_rows
from prunus.results.importing.files import LogRecord
from prunus.settings.budgets import OFF
from prunus.store.looping import loop_start
from prunus.store.rows import Sample
from prunus.store.store import Store
from prunus.store.stored import StoredModel, StoredPlan
from prunus.viewer import server
from prunus.viewer.chains import chain_of, first_difference, side_by_side
from prunus.viewer.lines import FILTERS, STATES, Lines, View
from prunus.viewer.server import Pages, view

OWN = Problem("own/1", "own", "How many?\n\u202e<b>", "7", "integer")
GATED = Problem("gpqa_diamond/1", "gpqa_diamond", "secret", "B", "choice", ("one", "two"), private=True)


# The questions that a store keeps.


def test_the_store_keeps_questions_but_not_those_of_gated_sets(tmp_path):
    with Store(tmp_path / "s.db", create=True) as store:
        store.add_problems(map(problem_row, [OWN, GATED]))
        assert store.question(OWN.id) == OWN.question and store.question(GATED.id) is None
        assert store.question("unknown") is None
        assert store.problems()[OWN.id].text is None, "they are read one by one"
    assert b"secret" not in (tmp_path / "s.db").read_bytes()


def test_a_removed_run_takes_its_questions_along(tmp_path):
    runs = [
        replace(RUN, run_id=name * 12, model=StoredModel.of({"name": name}), plan=StoredPlan.of({"tasks": ["own"]}))
        for name in "ab"
    ]
    with Store(tmp_path / "s.db", create=True) as store:
        store.add_problems([problem_row(OWN)])
        for run in runs:
            store.add_run(run)
            store.add_samples(run.run_id, [replace(SAMPLE, task="own", problem_id=OWN.id)])
        store.remove_run("a")
        assert store.question(OWN.id) == OWN.question
        store.remove_run("b")
        assert store._read("SELECT * FROM asked") == []


def test_older_versions_can_remove_problems_and_stores_without_questions_are_read(tmp_path):
    with Store(tmp_path / "s.db", create=True) as store:
        store.add_problems([PROBLEM])
        assert store.question(PROBLEM.problem_id) is None
        store.add_problems([problem_row(OWN)])
        assert store._read("PRAGMA foreign_key_list(asked)") == []


def test_an_imported_log_brings_its_questions_but_not_those_of_gated_sets(tmp_path):
    records = [
        LogRecord("mine", "Which?", "0", 0, {}, "A", "A", choices=("one", "two")),
        LogRecord("leaderboard_gpqa", "secret", "0", 0, {}, "A", "A"),
    ]
    with Store(tmp_path / "s.db", create=True) as store:
        rows = problem_rows(records, keys_of(records), {})
        store.add_problems(rows.values())
        found = {row.task: store.question(row.problem_id) for row in rows.values()}
        assert found == {"mine": "Which?\none\ntwo", "leaderboard_gpqa": None}
        own = Problem("own/2", "own", "WHICH?", "A", "choice", ("two", "one"))
        store.add_problems([problem_row(own)])  # the imported problem becomes this one
        assert store.question("own/2") == "WHICH?" and rows["mine", "0"].problem_id not in store.problem_ids()


def test_a_read_only_store_is_not_written(tmp_path):
    path = make_store(tmp_path / "s.db", names=("tiny",), problems=2, budgets=(16,))
    before = path.read_bytes()
    with Store(path, read_only=True) as store, pytest.raises(PrunusError, match="write-protected"):
        store.add_problems([problem_row(OWN)])
    assert path.read_bytes() == before
    with sqlite3.connect(path, isolation_level=None) as connection:  # as a killed process leaves it
        connection.executescript("PRAGMA cache_size = 1; BEGIN; UPDATE sample SET text = text || hex(zeroblob(9999))")
        killed = tmp_path / "killed.db"
        for end in ("", "-journal"):
            shutil.copy(f"{path}{end}", f"{killed}{end}")
        connection.execute("ROLLBACK")
    with pytest.raises(PrunusError, match="repair it by `prunus runs`"):
        view(killed)
    assert len(prunus.runs(killed)) == 1
    with Store(killed, read_only=True) as store:
        assert len(store.runs()) == 1


# Lines and filters.


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = make_store(tmp_path_factory.mktemp("view") / "s.db", problems=30, draws=2, budgets=(OFF, 0, 16, 64, 256))
    with sqlite3.connect(path) as connection:  # half of the chains that were cut loop, and some rows are missing
        connection.execute("UPDATE sample SET loops = (ended = 'forced' AND length(coalesce(answer, '')) = 3)")
        connection.execute("DELETE FROM sample WHERE budget = 64 AND draw = 1 AND problem_id LIKE '%-00_'")
    with Store(path, read_only=True) as opened:
        yield opened


def slow_states(store: Store) -> dict[tuple[str, str, int, int], str]:
    """The state of every cell, by run, problem, draw and budget, worked out row by row."""
    found = {}
    for run in store.runs():
        rows = store.samples(run.run_id)
        for row in rows:
            chain = [s for s in rows if (s.problem_id, s.draw) == (row.problem_id, row.draw)]
            lost = any(s.correct and 0 <= s.budget < row.budget for s in chain)
            state = (
                "right" if row.correct else "lost again" if lost else "not ended" if row.ended == "forced" else "wrong"
            )
            found[run.run_id, row.problem_id, row.draw, row.budget] = state
    return found


@pytest.mark.slow
def test_cells_and_filters_are_those_of_a_loop_over_rows(store):
    lines, states = Lines.read(store), slow_states(store)
    rows = {(run.run_id, s.problem_id, s.draw, s.budget): s for run in lines.runs for s in store.samples(run.run_id)}
    assert list(lines.keys) == sorted({key[1:3] for key in rows})
    assert {*states.values()} == {*STATES} - {"missing"}

    def keys(view, at):
        return [(lines.runs[r].run_id, *lines.keys[at], lines.budgets[view.budget]) for r in view.runs]

    for budget in range(len(lines.budgets)):
        for chosen in (frozenset(some) for size in range(3) for some in combinations(FILTERS, size)):
            view, expected = View((0, 3, 5), budget, "tiny", chosen), []
            for at in range(len(lines.keys)):
                there = [rows[key] for key in keys(view, at) if key in rows]
                base = rows.get(keys(view, at)[0])
                kept = {
                    "flipped": base is not None and any(s.correct != base.correct for s in there),
                    "lost": any(states[key] == "lost again" for key in keys(view, at) if key in rows),
                    "loops": any(s.loops for s in there),
                    "cut": any(s.ended == "forced" or s.answer_truncated for s in there),
                }
                if there and all(kept[name] for name in chosen):
                    expected.append(at)
            assert lines.chosen(view).tolist() == expected, (budget, chosen)
            found = Pages(store).listed(view, np.array(expected, dtype=int))
            assert found["total"] == len(expected)
            columns = [
                [rows.get(key) for key in column] for column in zip(*(keys(view, at) for at in expected), strict=True)
            ]
            if expected:
                assert found["right"] == [
                    (sum(bool(s and s.correct) for s in of), sum(s is not None for s in of)) for of in columns
                ]
            for at, (problem, draw, _, gold, cells, question) in zip(expected, found["rows"][:20], strict=False):
                assert question == ""
                assert (problem, draw) == lines.keys[at] and gold == store.problems()[problem].gold
                for key, cell in zip(keys(view, at), cells, strict=True):
                    one = rows.get(key)
                    assert cell == ([states[key], one.loops, one.answer] if one else ["missing", False, None])


def test_the_list_has_questions_on_one_line_and_how_many_of_all_its_lines_are_right(tmp_path, monkeypatch):
    path = make_store(tmp_path / "s.db", names=("tiny", "drop-2"), problems=12, budgets=(64,))
    with Store(path) as store:
        asked = [
            replace(row, question=f"q{row.gold}", text=f"What is\n{row.gold}?") for row in store.problems().values()
        ]
        store.add_problems([*asked[:-1], replace(asked[-1], text="long " * 99)])
        pages = Pages(store)
        monkeypatch.setattr(server, "LINES", 5)
        parts = [pages.listed(pages.lines.first_view, np.arange(12), start) for start in (0, 5, 10)]
        right = [sum(s.correct for s in store.samples(run.run_id)) for run in pages.lines.runs]
    assert all(part["right"] == [(number, 12) for number in right] for part in parts) and right[0] != right[1]
    shown = {row[0]: row[5] for part in parts for row in part["rows"]}
    assert [len(part["rows"]) for part in parts] == [5, 5, 2]
    assert [shown[row.problem_id] for row in asked[:-1]] == [f"What is {row.gold}?" for row in asked[:-1]]
    last = shown[asked[-1].problem_id]
    assert last.startswith("long long") and last.endswith("…") and len(last) == 200


def test_the_lines_around_one_are_those_that_pass_the_filters(store):
    pages = Pages(store)
    chosen = pages.lines.chosen(View((0, 3), 4, filters=frozenset({"flipped"})))
    assert len(chosen) > 4
    for place in (0, int(chosen[0]), int(chosen[2]), int(chosen[2]) + 1, len(pages.lines.keys) - 1):
        found = pages.problem(View((0, 3), 4), place, chosen)
        before, after = [at for at in chosen if at < place], [at for at in chosen if at > place]
        assert found["previous"] == (pages.lines.keys[before[-1]] if before else None)
        assert found["next"] == (pages.lines.keys[after[0]] if after else None)
        assert found["place"] == (len(before) + 1 if place in chosen else None)


# Chains in pieces.


def sample(budget: int, thinking: str, ended: str = "forced", answer: str | None = "5", **changes) -> Sample:
    """A draw whose right answer is 7."""
    found = Sample(
        "own", OWN.id, budget, 0, len(thinking.split()), 2, 1, "forced", False, False, answer, "ok", answer == "7"
    )
    return replace(found, thinking=thinking, text=f"so {answer}", ended=ended, **changes)


def chain(*samples: Sample, budget: int = 99):
    return chain_of(samples, {s.budget: STATES.index("right" if s.correct else "wrong") for s in samples}, budget)


def texts(pieces) -> str:
    return "".join(piece.get("text", "") for piece in pieces)


def stops(pieces) -> list[tuple[str, list[str]]]:
    """What is read before each stop, and its budgets."""
    return [(texts(pieces[:at]), one["stop"]["budgets"]) for at, one in enumerate(pieces) if "stop" in one]


def test_chains_are_parted_at_the_first_word_that_differs():
    whole = "one two three four"
    left = chain(
        sample(1, "one"),
        sample(3, "one two three", answer="7"),
        sample(9, whole, "natural"),
        sample(99, whole, "natural"),
    )
    right = chain(sample(1, "one"), sample(3, "one two thirty"), sample(9, "one two thirty", "natural"))
    first, second = side_by_side([left, right])
    assert [texts(one["before"]) for one in (first, second)] == ["one two "] * 2
    assert (texts(first["after"]), texts(second["after"])) == ("three four", "thirty")
    assert [piece["text"] for piece in first["after"] if piece.get("differs")] == ["three"]
    assert stops(first["before"]) == [("one", ["1"])]
    assert stops(first["after"]) == [("three", ["3"]), ("three four", ["9", "99"])]
    assert [piece["stop"]["first"] for piece in first["after"] if "stop" in piece] == [True, False]
    (alone,) = side_by_side([left])
    assert alone["before"] == [] and texts(alone["after"]) == whole
    absent, there = side_by_side([chain_of([], {}, 9), left])
    assert absent["after"] == absent["apart"] == [] and texts(there["after"]) == whole


@pytest.mark.parametrize("shared", ["", "so "])
def test_the_whole_word_is_marked_although_a_budget_cuts_it_and_if_it_is_the_first(shared):
    wholes = [f"{shared}12+30=42 end", f"{shared}12+30=52 end"]
    chains = [chain(sample(1, whole[: len(shared) + 4]), sample(9, whole, "natural")) for whole in wholes]
    for found, number in zip(side_by_side(chains), ("12+30=42", "12+30=52"), strict=True):
        assert texts(piece for piece in found["after"] if piece.get("differs")) == number


def test_a_chain_that_ends_where_the_other_goes_on_ends_after_the_shared_part():
    short, long = side_by_side([chain(sample(9, "a b ", "natural")), chain(sample(9, "a b c", "natural"))])
    assert texts(short["before"]) == texts(long["before"]) == "a b " and stops(short["after"]) == [("", ["9"])]


def test_budgets_with_chains_of_their_own_are_apart():
    own = [sample(OFF, ""), sample(4, "a different one"), sample(9, "the longest of all")]
    found = chain(*own, budget=9)
    assert [stop.budgets for stop in found.stops] == [(9,)] and [stop.budgets for stop in found.apart] == [(OFF,), (4,)]
    assert chain(*own, budget=4).thinking == "a different one" and chain(*own, budget=OFF).thinking == "so 5"
    (shown,) = side_by_side([found])
    assert [one["thinking"] for one in shown["apart"]] == ["so 5", "a different one"]


def test_a_cut_within_a_character_is_no_other_chain():
    found = chain(sample(2, "x \ufffd"), sample(9, "x 😀 and more", "natural"))
    assert [(stop.at, stop.budgets) for stop in found.stops] == [(2, (2,)), (12, (9,))]


@pytest.mark.slow
def test_no_character_is_lost_and_control_characters_are_visible():
    generator = random.Random(0)
    for _ in range(300):
        common, *ends = ("".join(generator.choices("ab \n\x1b\u202e<", k=generator.randrange(12))) for _ in range(4))
        wholes = [common + end for end in ends]
        chains = [chain(*(sample(b, whole[:b]) for b in (0, 2, 5, 30))) for whole in wholes]
        for found, whole in zip(side_by_side(chains), wholes, strict=True):
            shown = texts(found["before"]) + texts(found["after"])
            if whole:  # else the answer is the chain
                assert shown == whole.replace("\x1b", "␛").replace("\u202e", "⟦U+202E⟧")
                assert [budgets for _, budgets in stops(found["before"] + found["after"])] == [
                    ["0"],
                    ["2"],
                    ["5"],
                    ["30"],
                ]
        at = first_difference(wholes)
        assert all(whole[:at] == wholes[0][:at] for whole in wholes)
        assert len({whole[at : at + 25] for whole in wholes}) > 1 or len(set(wholes)) == 1


def test_a_loop_begins_with_its_first_copy():
    for period in ("ab c", "wait, that is not right. "):
        for before in ("", "something else: ", "x" * 500):
            text = before + period * 30 + period[:2]
            first = min(
                at
                for at in range(len(text))
                if all(text[i] == text[i + len(period)] for i in range(at, len(text) - len(period)))
            )
            assert loop_start(text) == first, (period, before)
    assert loop_start("no loop at all " * 2) is None
    (found,) = side_by_side([chain(sample(9, "first: " + "and again " * 20 + "and"))])
    assert texts([piece for piece in found["after"] if piece.get("loop")]) == " and again" * 20 + " and"


# Questions of gated sets, and files.


def gated_store(path: Path) -> Path:
    with Store(path, create=True) as store:
        store.add_problems([problem_row(GATED)])
        run = run_of("tiny", EvalPlan(tasks=("tiny",), budgets=(9,)))
        store.add_run(run)
        store.add_samples(
            run.run_id, [replace(sample(9, "", "natural"), task=GATED.task, problem_id=GATED.id, text="")]
        )
    return path


def test_a_gated_question_comes_from_its_task_and_goes_into_no_file(tmp_path, monkeypatch):
    path = gated_store(tmp_path / "s.db")
    monkeypatch.setattr(server, "_task", lambda name: {GATED.id: GATED})
    with Store(path, read_only=True) as store:
        pages = Pages(store)
        found = pages.problem(pages.lines.first_view, 0, pages.lines.chosen(pages.lines.first_view))
        assert (found["question"], found["choices"]) == ("secret", ["A. one", "B. two"])
        assert found["chains"][0]["kept"] is False
    view(path, export=tmp_path / "out")
    written = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    assert "secret" not in written and "The set is gated" in written
    monkeypatch.setattr(server, "_task", lambda name: {GATED.id: replace(GATED, question="another")})
    assert server.gated_question(problem_row(GATED))[0] is None

    def missing(name: str):
        raise PrunusError("it needs the datasets package")

    monkeypatch.setattr(server, "_task", missing)
    assert server.gated_question(problem_row(GATED))[2].endswith("the question: it needs the datasets package")


def test_files_are_written_for_flipped_problems_and_not_over_others(store, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "EXPORTED", 5)
    view(store.path, export=tmp_path / "out")
    index, *problems = sorted(tmp_path.glob("out/*"))
    assert index.name == "index.html" and len(problems) == 5
    data = json.loads(index.read_text().partition('id="data">')[2].partition("</script>")[0])
    for _, _, _, _, cells, _ in data["list"]["rows"]:
        right = [state == "right" for state, *_ in cells]
        assert any(one != right[0] for one in right[1:])
    with pytest.raises(PrunusError, match="exists"):
        view(store.path, export=tmp_path / "out")
    view(store.path, export=tmp_path / "out", overwrite=True)


@pytest.mark.slow
def test_a_hundred_thousand_rows_open_in_under_two_seconds(tmp_path):
    """Of the CPU: what the command does between its start and the answer to the page's first requests."""
    names = ("tiny", "wanda-20")
    make_store(tmp_path / "s.db", names=names, problems=12_500, budgets=(256, 1024), draws=2, texts=("so " * 100,))
    began = time.process_time()
    with Store(tmp_path / "s.db", read_only=True) as store:
        pages = Pages(store)
        chosen = pages.lines.chosen(pages.lines.first_view)
        shown = pages.page({}, live=True), pages.listed(pages.lines.first_view, chosen)
    assert time.process_time() - began < 2
    assert len(chosen) * 2 * 2 == 100_000 and len(shown[1]["rows"]) == server.LINES


def test_what_cannot_be_viewed_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(PrunusError, match=r"the store .* cannot be read"):
        view(tmp_path / "none.db")
    with Store(tmp_path / "s.db", create=True) as store:
        store.add_run(RUN)
    with pytest.raises(PrunusError, match="has no answers yet"):
        view(tmp_path / "s.db")
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(PrunusError, match=r"pip install '\.\[view\]'"):
        view(gated_store(tmp_path / "g.db"))


def test_requests_are_checked(store):
    lines = Lines.read(store)
    first = lines.first_view
    assert server._view({}, lines) == first and first.budget == len(lines.budgets) - 1
    runs = ",".join(lines.runs[at].run_id for at in (2, 0, 2))
    wanted = {"runs": runs, "budget": "0", "filters": "cut,", "task": "tiny"}
    assert server._view(wanted, lines) == View((0, 2), 1, "tiny", frozenset({"cut"}))
    for wrong in ({"runs": "x"}, {"budget": "9"}, {"budget": "x"}, {"filters": "all"}, {"task": "other"}):
        with pytest.raises((PrunusError, ValueError)):
            server._view(wrong, lines)
