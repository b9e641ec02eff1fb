"""Problems that belong together: how they are found and stored, and that every number counts each group once."""

import json
import random
import sqlite3
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparable_runs import BUDGETS, fill, row
from scipy.stats import binomtest
from simulations import one_comparison
from small_search import PLAN as SEARCH_PLAN
from small_search import PROBLEMS

import prunus
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import groups_line, problem_row, renew_groups, store_problems
from prunus.evaluation.tasks import Problem, load_task
from prunus.questions import ALIKE, leaders
from prunus.recipes import EvalPlan
from prunus.results import ladder
from prunus.results.comparison import compare, seed_of
from prunus.results.importing import keys_of, problem_rows
from prunus.results.importing.files import LogRecord
from prunus.results.summary import summarise
from prunus.statistics.anytime import in_rounds, interleaved, rounds, whole_groups
from prunus.store.rows import ProblemRow, sizes_of, tables
from prunus.store.store import Store, same_groups
from prunus.store.stored import Adaptive

# How they are found

APPLES = "Anna has 12 apples and gives 5 of them to her brother Tom after school. How many apples does Anna have now?"
FILLER = (
    "the",
    "of",
    "and",
    "water",
    "stone",
    "river",
    "cloud",
    "seven",
    "morning",
    "table",
    "letter",
    "garden",
    "paper",
)


def joined(*texts: str, keys: tuple[str, ...] = ()) -> bool:
    return set(leaders(texts, keys or ("",) * len(texts))) == {0}


@pytest.mark.parametrize(
    "other",
    [
        "ANNA has 12 apples, and gives 5 of them to her brother Tom after school.  How many apples does Anna have now",
        APPLES.replace("Tom", "Ben"),
        APPLES.replace("12", "$12$"),
    ],
)
def test_equal_and_nearly_equal_questions_are_one_group(other):
    assert joined(APPLES, other)


@pytest.mark.parametrize(
    "other",
    [
        APPLES.replace("12", "13"),
        APPLES.replace("12", "5").replace("gives 5", "gives 12"),
        "Of 12 apples, 5 were eaten by a horse. How many are left in the basket?",
        APPLES.replace("12 apples", "12 x apples"),
        "",
    ],
)
def test_other_numbers_symbols_or_words_are_another_question(other):
    assert not joined(APPLES, other)


def test_latex_spacing_and_sizes_do_not_count_and_signs_do():
    base = r"Find $\left( \frac{1}{2} , x \right)$."
    assert joined(base, r"find $( \dfrac{1}{2},\,x )$", r"Find $\bigl(\tfrac{1}{2},\; x\bigr)$")
    assert leaders([base, base.replace("x", "-x"), base.replace("x", "y")], [""] * 3) == [0, 1, 2]
    assert not joined(r"Is \leftarrow 1?", r"Is \rightarrow 1?") and joined("Is it 1,234?", "is it $1234$")


def test_keys_join_what_texts_do_not_and_part_what_is_only_nearly_equal():
    assert leaders(["1 + 1", "2 + 2", "3 + 3", "4 + 4"], ["a", "", "a", "b"]) == [0, 1, 0, 3]
    near = APPLES.replace("Tom", "Ben")
    assert leaders([APPLES, near], ["a", "b"]) == [0, 1]
    assert leaders([APPLES, APPLES], ["a", "b"]) == [0, 0], "equal questions are one, whatever a file says"
    assert leaders([APPLES, near, "3 + 3"], ["", "b", "b"]) == [0, 0, 0], "groups that share a problem are one"


def test_an_instruction_before_many_questions_joins_none():
    opening = "Read the question with care, think about it step by step for as long as you need, and name the city."
    asked = [f"{opening} Which town is the capital of {name * 2}?" for name in "abcdefghijkl"]
    asked += [f"Where was {name * 3} born" for name in "abcdefghijkl"]
    assert leaders(asked, [""] * 24) == list(range(24))
    long = "the young king with his army and all horses after the long and bitter winter of hunger met his brother"
    asked += [f"{opening} Where did {long}?", f"{opening} Where did {long.replace('brother', 'sister')}?"]
    assert leaders(asked, [""] * 26) == [*range(25), 24], "what follows the instruction counts"


def words_of(rng: random.Random, number: int) -> list[str]:
    return [rng.choice(FILLER) + rng.choice("abcdefgh") * 2 for _ in range(number)]


@pytest.mark.slow
def test_nearly_equal_questions_are_those_of_all_pairs_compared_one_by_one():
    """Against the definition, on questions of which some are edits of others; the sketches find all of them here."""
    rng = random.Random(1)
    texts: list[str] = []
    for _ in range(60):
        words = words_of(rng, rng.randint(5, 40))
        for edits in (0, 1, 1, 2, 6):
            changed = list(words)
            for place in rng.sample(range(len(words)), min(edits, len(words))):
                changed[place] = words_of(rng, 1)[0]
            texts.append(" ".join(changed))
    sets = [set(pairwise(words)) for words in map(str.split, texts)]
    place = list(range(len(texts)))
    for a, ours in enumerate(sets):
        for b, theirs in enumerate(sets[:a]):
            if len(ours & theirs) >= ALIKE * len(ours | theirs):
                place = [place[b] if at == place[a] else at for at in place] if place[a] != place[b] else place
    found = leaders(texts, [""] * len(texts))
    assert same_groups(*({str(n): str(at) for n, at in enumerate(side)} for side in (found, place)))
    assert 60 < len(set(found)) < 250


@pytest.mark.slow
def test_thousands_of_questions_with_one_opening_are_not_compared_one_by_one():
    rng = random.Random(0)
    opening = "which of the following statements is true about the"
    texts = [f"{opening} {' '.join(words_of(rng, 25))}" for _ in range(4000)]
    began = time.process_time()
    assert leaders([*texts, texts[7] + "?"], [""] * 4001) == [*range(4000), 7]
    assert time.process_time() - began < 3, "eight million comparisons take longer"


@pytest.mark.slow
def test_no_problem_of_the_tiny_sets_is_joined_with_another():
    """Neither by their texts, as other sets are, nor as the set declares them."""
    for name in ("tiny", "tiny-train"):
        problems = load_task(name)
        assert groups_line(problems) is None
        assert leaders([problem.question for problem in problems], [""] * len(problems)) == list(range(len(problems)))


# Files, evaluations and stores


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_file_of_120_lines_with_30_questions_has_30_groups_with_any_limit(tmp_path):
    lines = [{"id": f"p{n}", "problem": f"What is {n % 30} + 1?", "answer": n % 30 + 1} for n in range(120)]
    problems = load_task(write(tmp_path / "copies.jsonl", lines))
    assert Counter(problem.group or problem.id for problem in problems) == {f"p{n}": 4 for n in range(30)}
    line = groups_line(problems)
    assert line is not None and line.startswith("120 problems form 30 groups")
    assert load_task(tmp_path / "copies.jsonl", 35) == problems[:35]


def test_the_key_group_of_a_line_is_a_text_or_a_number(tmp_path):
    lines = [{"id": f"p{n}", "problem": f"{n} + 1 =", "answer": 7, "group": [None, 3, "3"][n % 3]} for n in range(6)]
    problems = load_task(write(tmp_path / "a.jsonl", lines))
    assert [problem.group for problem in problems] == ["", "", "p1", "", "p1", "p1"]
    with pytest.raises(PrunusError, match=r"a\.jsonl:1: 'group' must be a text, not list"):
        load_task(write(tmp_path / "a.jsonl", [lines[0] | {"group": ["x"]}]))


def test_a_store_keeps_groups_and_says_when_they_change(tmp_path, capsys):
    problems = [Problem(f"p{n}", "a", f"{n} + 1", "7", "integer") for n in range(4)]
    with Store(tmp_path / "rows.db", create=True) as store:
        store_problems(store, problems)
        assert store.groups() == {}
        pairs = [replace(problem, group=["", "p0"][n % 2]) for n, problem in enumerate(problems)]
        renew_groups(store, pairs)
        assert store.groups() == {"p1": "p0", "p3": "p0"}
        assert "4 problems of which" in (told := capsys.readouterr().err) and "form 2 groups now, 4 before" in told
        named = [replace(p, group={"p0": "p1", "p3": "p1"}.get(p.id, "")) for p in problems]
        store_problems(store, named)
        assert store.groups() == {"p1": "p0", "p3": "p0"}, "the same groups under other names"
        new = Problem("p4", "a", "9", "7", "integer", group="p0")
        store_problems(store, [*pairs, new])
        assert store.groups()["p4"] == "p0" and capsys.readouterr().err == "", "new problems change no stored one"
        store.add_problems([replace(store.problems()["p2"], group=None), *store.problems().values()])
        assert len(store.groups()) == 3, "rows that know nothing of groups change none"
        assert {row.problem_id: row.group for row in map(problem_row, pairs)}["p2"] == "p2"


@pytest.mark.slow
def test_an_evaluation_says_how_many_groups_there_are_and_stores_them(tmp_path, capsys):
    lines = [{"id": f"p{n}", "problem": f"{n % 2}+1=", "answer": 7} for n in range(4)]
    plan = EvalPlan(tasks=(str(write(tmp_path / "copies.jsonl", lines)),), budgets=(8,), answer_tokens=8)
    run = prunus.evaluate("tiny", plan, tmp_path / "rows.db").run_id
    assert "4 problems form 2 groups" in capsys.readouterr().err
    with Store(tmp_path / "rows.db") as store:
        assert store.groups() == {"p2": "p0", "p3": "p1"}
        cell = summarise(store, run).to_json()["tasks"]["copies"]["budgets"][8]
        assert (cell["n"], cell["problems"]) == (2, 4)
    write(tmp_path / "copies.jsonl", [line | {"group": "all"} for line in lines])
    assert prunus.evaluate("tiny", plan, tmp_path / "rows.db").run_id == run, "groups are no part of a plan"
    assert "4 problems of which" in (told := capsys.readouterr().err) and "form 1 groups now, 2 before" in told
    with Store(tmp_path / "rows.db") as store:
        assert store.groups() == {"p1": "p0", "p2": "p0", "p3": "p0"}


# Numbers


def answers(copies: int, seed: int, better: float, tasks=("a", "b"), problems: int = 9, draws: int = 3):
    """Rows of problems of which each has as many copies with the same draws; the first copies have the same ids."""
    rng = np.random.default_rng(seed)
    found = []
    for task in tasks:
        for problem in range(problems):
            skill = rng.random()
            for budget in BUDGETS:
                for draw in range(draws):
                    right, used = rng.random() < skill * better, int(rng.integers(0, 1 + budget))
                    ended = "natural" if rng.random() < 0.6 else "forced"
                    found += [
                        row(task, f"{problem}{'x' * copy}", budget, draw, right, thinking_tokens=used, ended=ended)
                        for copy in range(copies)
                    ]
    return found


def of_copies(samples) -> dict[str, str]:
    return {s.problem_id: s.problem_id.rstrip("x") for s in samples if s.problem_id.endswith("x")}


def make(path: Path, copies: int, draws: int, adaptive: bool) -> Path:
    runs = {name: answers(copies, 1, better, draws=draws) for name, better in {"dense": 1.0, "other": 0.8}.items()}
    groups, names = of_copies(runs["dense"]), {s.problem_id: s.task for s in runs["dense"]}
    with Store(path, create=True) as store:
        firsts = {one: groups.get(one, one) for one in names}
        store.add_problems(
            ProblemRow(task, one, "1", "exact", (), "d", question=firsts[one], group=firsts[one])
            for one, task in names.items()
        )
    fill(path, runs)
    with Store(path) as store:
        for run in store.runs() if adaptive else ():
            store.mark_adaptive(run.run_id, Adaptive.of({"by": "find", "seed": 3}))
    return path


def without(data: Any, *keys: str) -> Any:
    if isinstance(data, dict):
        return {key: without(value, *keys) for key, value in data.items() if key not in keys}
    return [without(one, *keys) for one in data] if isinstance(data, list) else data


def flat(data: Any, at: str = "") -> dict[str, Any]:
    if isinstance(data, dict):
        return {k: v for key, value in data.items() for k, v in flat(value, f"{at}/{key}").items()}
    return (
        {k: v for n, one in enumerate(data) for k, v in flat(one, f"{at}/{n}").items()}
        if isinstance(data, list)
        else {at: data}
    )


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
def test_copies_of_problems_change_nothing_that_is_said_of_them(tmp_path, adaptive):
    """Three copies of every problem, in groups, give every number of the problems alone but numbers of problems."""
    once = flat(compare(make(tmp_path / "one.db", 1, 3, adaptive), "dense", resamples=500).to_json())
    found = compare(make(tmp_path / "three.db", 3, 3, adaptive), "dense", resamples=500).to_json()
    assert found["others"][0]["primary"]["problems"] == 54 and found["others"][0]["primary"]["n"] == 18
    thrice = flat(without(found, "problems"))
    thrice |= {key: value for key, value in flat(found).items() if key.endswith("/settle/problems")}
    assert thrice.keys() == once.keys()
    for key, value in once.items():
        if key.endswith("/settle/problems") and value is not None:  # each group of those needed has three
            value *= 3
        assert thrice[key] == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value), key
    with Store(tmp_path / "one.db") as one, Store(tmp_path / "three.db") as three:
        ours, theirs = (
            flat(summarise(store, store.runs()[1].run_id).to_json()["tasks"]["a"]) for store in (one, three)
        )
    for key, value in ours.items():
        if not key.endswith(("/problems", "/started", "low", "high", "p95")) and key != "/problems":
            assert theirs[key] == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value), key


@pytest.mark.slow
def test_with_one_draw_mcnemars_test_is_for_problems_that_are_alone(tmp_path):
    alone, grouped = (make(tmp_path / f"{copies}.db", copies, 1, False) for copies in (1, 3))
    with Store(alone) as store:
        runs = [store.samples(run.run_id) for run in store.runs()]
    theirs, ours = ({one.problem_id: one.correct for one in run if (one.task, one.budget) == ("a", 16)} for run in runs)
    lost, gained = (sum(a[name] > b[name] for name in theirs) for a, b in ((theirs, ours), (ours, theirs)))
    expected = [binomtest(k, lost + gained, alternative="greater").pvalue for k in (gained, lost)]
    found = [compare(path, "dense", resamples=500).to_json()["others"][0]["tasks"]["a"] for path in (alone, grouped)]
    one, several = ([part["budgets"][16][name] for name in ("p_better", "p_worse")] for part in found)
    assert one == pytest.approx(expected) and several != pytest.approx(expected)


def test_a_value_of_a_group_is_the_mean_over_its_problems():
    samples = [row("a", name, 16, 0, right) for name, right in {"0": 1, "1": 0, "2": 1, "3": 0, "4": 0}.items()]
    table = tables(samples, {"a-2": "a-0", "a-3": "a-0"})["a"]
    assert table.groups == ("a-0", "a-1", "a-4") and sizes_of([table]) == {"n": 3, "problems": 5, "samples": 1}
    assert table.by_group(table.correct).ravel() == pytest.approx([2 / 3, 0, 0])
    part = table.select(["a-3", "a-1"], [16], [0])
    assert not part.grouped and part.by_group(part.correct) is part.correct


# Searches


def test_without_a_seed_problems_are_taken_in_their_order_and_groups_at_their_first():
    tasks = {"a": ["a3", "a1", "a2"], "b": ["b2", "b1"]}
    assert whole_groups(tasks, None, {"a3": "a1"}) == [
        (("a", "a3"), ("a", "a1"), ("b", "b2")),
        (("a", "a2"), ("b", "b1")),
    ]
    rows = np.array([[0.1], [0.2], [0.3]])
    assert (in_rounds([rows], [["z", "y", "x"]], None) == rows).all()
    assert seed_of(Adaptive.of({"by": "choose"})) is None
    assert [seed_of(Adaptive.of({"by": by, "seed": 3})) for by in ("find", "choose")] == [3, 3]


def test_find_takes_whole_groups_in_the_order_of_their_first_problems():
    tasks = {"a": [f"a{n}" for n in range(12)], "b": [f"b{n}" for n in range(4)]}
    first_of = {f"a{n}": f"a{n - n % 3}" for n in range(12) if n % 3}
    found = whole_groups(tasks, 5, first_of)
    assert [len(one) for one in found] == [4, 4, 4, 4], "one group of each task"
    alone = rounds(interleaved({"a": ["a0", "a3", "a6", "a9"], "b": tasks["b"]}, 5))
    assert [tuple(key for key in one if key[1] not in first_of) for one in found] == alone
    assert all(len({first_of.get(problem, problem) for task, problem in one if task == "a"}) == 1 for one in found)
    assert whole_groups(tasks, 5, {}) == rounds(interleaved(tasks, 5)), "problems that are alone keep their order"


def test_differences_of_a_search_count_each_group_once():
    ours, theirs = ([answers(copies, 1, better) for better in (1.0, 0.8)] for copies in (1, 3))
    ids = {task: sorted({s.problem_id for s in ours[0] if s.task == task}) for task in "ab"}
    copies = {task: sorted({s.problem_id for s in theirs[0] if s.task == task}) for task in "ab"}
    groups = of_copies(theirs[0])
    once = ladder.differences(tables(ours[0]), tables(ours[1]), rounds(interleaved(ids, 2)), BUDGETS, 3)
    order = whole_groups(copies, 2, groups)
    thrice = ladder.differences(tables(theirs[0], groups), tables(theirs[1], groups), order, BUDGETS, 3)
    for name in once:
        assert thrice[name] == pytest.approx(once[name])


@pytest.mark.slow
def test_a_search_counts_groups_and_verify_knows_them(search_folder, scripted, capsys):
    lines = [json.loads(line) for line in (search_folder / "sums.jsonl").read_text().splitlines()]
    write(search_folder / "sums.jsonl", [line | {"group": n // 2} for n, line in enumerate(lines)])
    found = prunus.find("model", "out", SEARCH_PLAN, "0.1,0.3", methods=["magnitude"], margin=0.1, stop_margin=0.1,
                        store="rows.db").to_json()  # fmt: skip
    assert found["found"] == "magnitude-10"
    assert f"{PROBLEMS} problems in {PROBLEMS // 2} groups" in capsys.readouterr().err
    assert found["claims"][-1].endswith(f"if the {PROBLEMS // 2} groups of problems are independent")
    rung = found["ladders"]["magnitude"][0]
    data = json.loads(Path("out/certificate.json").read_text())
    shown = data["shown"]["ladders"][0]["rungs"][0]
    assert rung["problems"] == shown["problems"] == 2 * shown["rounds"], "both problems of a group are looked at"
    assert len(data["declared"]["groups"]) == PROBLEMS // 2
    assert f"in {PROBLEMS // 2} groups" in Path("out/find.html").read_text("utf-8")
    assert prunus.verify("out/certificate.json", "rows.db").differences == []
    with sqlite3.connect("rows.db") as connection:
        connection.execute("DELETE FROM belongs")
    connection.close()
    (said,) = prunus.verify("out/certificate.json", "rows.db").differences
    assert said == f"the {PROBLEMS} problems are {PROBLEMS} groups in the store, which are declared as 100"


# Errors


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "size"), [(100, 2), (100, 4), (100, 10), (500, 4), (500, 10)])
def test_problems_that_break_together_are_wrongly_called_as_rarely_as_others(problems, size):
    """Without groups every claim is wrong too often, in more than 6.5 % of 1,500 runs."""
    for name, (by_problem, by_group) in one_comparison.cluster_errors(problems, size, 1500).items():
        assert by_group <= 0.05 + 3 * (0.05 * 0.95 / 1500) ** 0.5, name
        assert by_problem > 0.065, f"{name} errs without groups"


def test_an_imported_log_has_groups_by_its_questions():
    questions = [APPLES, "3 + 3", APPLES, APPLES.replace("Tom", "Ben")]
    records = [LogRecord("a", text, str(n), 0, {}, "7", "7") for n, text in enumerate(questions)]
    keys = keys_of(records)
    found = problem_rows(records, keys, {})
    first = found["a", "0"].problem_id
    assert [found["a", str(n)].group for n in range(4)] == [first, found["a", "1"].problem_id, first, first]
    own = ProblemRow("a", "own-1", "7", "exact", (), "d", question=keys["a", "2"])
    found = problem_rows(records, keys, {keys["a", "2"]: own})
    assert found["a", "2"] == own, "what the store knows of its own problems stays"
    assert found["a", "3"].group == found["a", "0"].problem_id
