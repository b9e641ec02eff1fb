"""Loading problems: files line by line, hub sets through a stand-in for `datasets`, prompts, ids, contamination."""

import json
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path
from types import ModuleType

import held_out
import pytest

from prunus.errors import PrunusError
from prunus.evaluation.grading import Grader
from prunus.evaluation.tasks import TASKS, Problem, load_task, prompt_text
from prunus.evaluation.tasks.options import option_order
from prunus.evaluation.traces import check_problems
from prunus.questions import FILE, is_gated, question_digest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def write(tmp_path):
    def writer(*rows, name="mine.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines))
        return path

    return writer


def row(**changes):
    return {"id": "a", "problem": "What is 1+1?", "answer": "2"} | changes


# Files


def test_a_file_gives_its_problems_in_order(write):
    path = write(row(), b"", row(id="b", answer=3, meta={"x": 1}, source="s"), row(id=7, answer="1,234"), b"  ")
    problems = load_task(str(path))
    assert [(p.id, p.answer) for p in problems] == [("a", "2"), ("b", "3"), ("7", "1234")]
    assert {(p.task, p.kind, p.question, p.choices) for p in problems} == {("mine", "integer", "What is 1+1?", ())}
    assert load_task(path, 2) == problems[:2]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [(["1", "-2"], "integer"), (["27.0"], "integer"), ([27.0], "integer"), (["1", "1/2"], "math"), (["0.5"], "math")],
)
def test_the_kind_follows_from_all_answers_together(write, answers, kind):
    problems = load_task(write(*(row(id=str(i), answer=answer) for i, answer in enumerate(answers))))
    assert {p.kind for p in problems} == {kind}


def test_kind_can_be_said_per_line(write):
    """A line that says its kind has no vote on that of the others."""
    problems = load_task(write(row(kind="exact", answer="a b"), row(id="b"), row(id="c", kind="math")))
    assert [p.kind for p in problems] == ["exact", "integer", "math"]


@pytest.mark.parametrize("answer", ["B", "b", "red", " red "])
def test_gold_of_a_choice_is_a_letter_or_a_text(write, answer):
    [problem] = load_task(write(row(choices=["blue", "red", "a"], answer=answer)))
    assert (problem.kind, problem.answer, problem.choices) == ("choice", "B", ("blue", "red", "a"))


def test_line_separators_inside_a_text_do_not_split_it(write):
    line = json.dumps(row(problem="one\u2028two\x85three"), ensure_ascii=False).encode()
    [problem] = load_task(write(b"\xef\xbb\xbf" + line + b"\r"))
    assert problem.question == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"id": "x", "problem": "p", "answer": "1"', "JSON"),
        (b"[1, 2]", "must be a JSON object, not list"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "nested"),
        (b'{"id": "x", "problem": "p", "answer": NaN}', "NaN"),
        (b'{"id": "x", "problem": "p", "answer": ' + b"9" * 5000 + b"}", "number too long"),
        ({"id": "x", "problem": "p"}, "'answer' is missing"),
        ({"problem": "p", "answer": "1"}, "'id' is missing"),
        ({"id": "x", "question": "p", "answer": "1"}, "'problem' is missing"),
        (row(id="x", problem=" "), "'problem' is empty"),
        (row(id="x", answer=""), "'answer' is empty"),
        (row(id="x", answer=None), "'answer' must be a text, not NoneType"),
        (row(id="x", answer=True), "'answer' must be a text, not bool"),
        (row(id="x", answer=["1"]), "'answer' must be a text, not list"),
        (row(id="x", problem="\ud800"), "surrogate"),
        (row(id="x", kind="essay"), "kind 'essay' is not known"),
        (row(id="x", kind="integer", answer="1/2"), "'1/2' is not a whole number"),
        (row(id="x", kind="choice"), "without choices"),
        (row(id="x", kind="math", choices=["1", "2"]), "with choices"),
        (row(id="x", choices="AB"), "must be a list"),
        (row(id="x", choices=["2"]), "2 to 26 texts, not 1"),
        (row(id="x", choices=[str(i) for i in range(27)]), "2 to 26 texts, not 27"),
        (row(id="x", choices=["2", "2 "]), "the same text"),
        (row(id="x", choices=["p", "q"]), "none of the choices"),
        (row(id="x", choices=["p", "q"], answer="C"), "none of the choices"),
        (row(id="x", choices=["B", "A"], answer="A"), "may mean A or B"),
        (row(), "id 'a' was already used in line 1"),
        (row(id="a\nb"), "line break"),
    ],
)
def test_a_bad_line_is_named_in_one_line(write, bad, words):
    path = write(row(), b"", bad)
    with pytest.raises(PrunusError) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{path}:3: ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(write, content):
    with pytest.raises(PrunusError, match="holds no problem"):
        load_task(write(content))


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [
        ("gsm9k", None, r"no task 'gsm9k'; did you mean 'gsm8k'\?"),
        ("poetry", None, r"no task 'poetry'; choose one of tiny, .* tiny/twosum, .*FILE\.jsonl"),
        (Path("no.jsonl"), None, r"the task file .*no\.jsonl' cannot be read: No such file"),
        (Path(), None, r"the task file .* cannot be read: Is a directory"),
        ("tiny", 0, "limit must be at least 1 problem, not 0"),
    ],
)
def test_what_is_no_task_is_refused(tmp_path, name, limit, message):
    with pytest.raises(PrunusError, match=message):
        load_task(tmp_path / name if isinstance(name, Path) else name, limit)


def test_the_excerpts_load():
    gsm8k, math500 = load_task(DATA / "gsm8k_30.jsonl"), load_task(DATA / "math500_40.jsonl")
    assert [len(gsm8k), len(math500)] == [30, 40]
    assert {p.kind for p in gsm8k} == {"integer"} and {p.kind for p in math500} == {"math"}
    assert not {path.name for path in DATA.glob("*.jsonl")} - {"gsm8k_30.jsonl", "math500_40.jsonl"}


# The hub, with a stand-in for the `datasets` package


class Rows(list):
    """As much of a Dataset as is used."""


@pytest.fixture
def hub(monkeypatch):
    """hub(rows or error) makes `datasets.load_dataset` return or raise it; the calls are noted."""
    module, calls = ModuleType("datasets"), []

    def serve(outcome):
        def load_dataset(*args, **options):
            calls.append((*args, options))
            if isinstance(outcome, BaseException):
                raise outcome
            return Rows(outcome)

        vars(module)["load_dataset"] = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)
        return calls

    return serve


def test_gsm8k_takes_what_follows_the_hashes(hub):
    calls = hub([{"question": f" q{i} ", "answer": f"#### no\nso {i}\n#### 1,{i % 1000:03d}"} for i in range(1319)])
    problems = load_task("gsm8k")
    assert calls == [("openai/gsm8k", "main", {"split": "test"})]
    assert (problems[12].id, problems[12].question, problems[12].answer) == ("gsm8k/0012", "q12", "1012")


def test_gsm8k_train_is_another_split_with_ids_of_its_own(hub):
    calls = hub([{"question": f"q{i}", "answer": f"#### {i}"} for i in range(7473)])
    problem = load_task("gsm8k-train")[7472]
    assert calls == [("openai/gsm8k", "main", {"split": "train"})]
    assert (problem.id, problem.task, problem.answer) == ("gsm8k-train/7472", "gsm8k-train", "7472")


def test_math500_keeps_latex(hub):
    hub([{"problem": "p", "answer": r"\frac{1}{2}", "unique_id": f"test/x/{i}.json", "level": 1} for i in range(500)])
    problem = load_task("math500")[0]
    assert (problem.id, problem.answer, problem.kind) == ("math500/test/x/0.json", r"\frac{1}{2}", "math")


@pytest.mark.parametrize(("name", "count"), [("aime24", 30), ("aime25", 30), ("aime26", 30), ("amc23", 40)])
@pytest.mark.parametrize("keys", [("problem", "answer"), ("question", "answer"), ("Problem", "Answer")])
def test_contests_read_numbers_in_every_dress(hub, name, count, keys):
    """27.0 (a float copy of AMC), 073 and 9 are 27, 73 and 9."""
    answers = [27.0, "073", 9]
    hub([{keys[0]: "p", keys[1]: answers[i % 3], "id": i} for i in range(count)])
    problems = load_task(name)
    assert [p.answer for p in problems[:3]] == ["27", "73", "9"]
    assert len({p.id for p in problems}) == count


@pytest.mark.parametrize("answer", ["1000", "-1"])
def test_aime_answers_lie_in_0_to_999(hub, answer):
    hub([{"problem": "p", "answer": answer if i == 17 else "999"} for i in range(30)])
    with pytest.raises(PrunusError, match=f"answer {answer} of row 17 is outside 0 to 999"):
        load_task("aime25")


@pytest.mark.parametrize(
    ("name", "repo", "count"),
    [
        ("hmmt_feb25", "MathArena/hmmt_feb_2025", 30),
        ("hmmt_nov25", "MathArena/hmmt_nov_2025", 30),
        ("hmmt_feb26", "MathArena/hmmt_feb_2026", 33),
    ],
)
def test_hmmt_has_formulas_as_answers(hub, name, repo, count):
    row = {"problem": " p ", "answer": r"8\sqrt{10}", "problem_type": ["Algebra"]}
    calls = hub([row | {"problem_idx": i + 1} for i in range(count)])
    problems = load_task(name)
    assert calls == [(repo, None, {"split": "train"})] and len({p.id for p in problems}) == count
    assert (problems[7].id, problems[7].question, problems[7].kind) == (f"{name}/07", "p", "math")
    assert problems[7].answer == r"8\sqrt{10}"


# Made answers in the forms that HMMT's have, and whether each means the same as the gold answer.
FORMULAS = [
    (r"\frac{1}{576}", r"\boxed{1/576}", True),
    (r"\frac{1}{576}", r"\boxed{0.0017}", False),
    (r"8\sqrt{10}", r"\boxed{\sqrt{640}}", True),
    (r"8\sqrt{10}", r"\boxed{8\sqrt{11}}", False),
    (r"1-\frac{2}{\pi}", r"\boxed{\frac{\pi-2}{\pi}}", True),
    (r"1-\frac{2}{\pi}", r"\boxed{\frac{2}{\pi}}", False),
    (r"2^{26}\binom{26}{13}", r"\boxed{2^{26}\cdot 10400600}", True),
    (r"\frac{-1+\sqrt{17}}{2},\frac{-1-\sqrt{17}}{2}", r"\boxed{\frac{-1\pm\sqrt{17}}{2}}", True),
    (r"\frac{-1+\sqrt{17}}{2},\frac{-1-\sqrt{17}}{2}", r"\boxed{\frac{-1+\sqrt{17}}{2}}", False),
    ("(7,13)", r"\boxed{(7, 13)}", True),
    ("(7,13)", r"\boxed{(13, 7)}", False),
    (r"3^{100}-2\cdot 2^{100}", r"\boxed{3^{100}-2^{101}}", True),
    (r"3^{100}-2\cdot 2^{100}", r"\boxed{3^{100}-2^{100}}", False),
    (r"\sqrt{\frac{2}{3}}", r"\boxed{\frac{\sqrt6}{3}}", True),
    ("-984", r"\boxed{984}", False),
    ("$105$", "The answer is 105.", True),
]
OPTIONS = ("iron", "gold", "tin", "I and II only", "zinc", "lead", "copper", "silver", "neither I nor II", "argon")
# Made answers to a question with ten options, and the letter that each names.
LETTERS = [
    (r"\boxed{J}", "J"), ("The answer is (I).", "I"), ("the answer is option J", "J"), (r"\boxed{\text{H}}", "H"),
    (r"\boxed{J) argon}", "J"), (r"\boxed{argon}", "J"), (r"\boxed{neither I nor II}", "I"), ("Answer: g", "G"),
    (r"\boxed{I and II only}", "D"), (r"\boxed{K}", None), ("I do not know.", None), ("The answer is I think B", None),
    (r"\boxed{I or J}", None), ("", None),
]  # fmt: skip
WHOLE = [("073", True), ("73.0", True), ("1073", False), ("-73", False), ("73/2", False), (r"\text{073}", True)]


@pytest.mark.slow
def test_answers_in_the_forms_of_the_new_sets_are_graded():
    formulas = [(Problem(str(i), "hmmt_feb25", "q", gold, "math"), text) for i, (gold, text, _) in enumerate(FORMULAS)]
    letters = [(Problem(str(i), "mmlu_pro", "q", "J", "choice", OPTIONS), text) for i, (text, _) in enumerate(LETTERS)]
    boxes = [(f"\\boxed{{{text}}}", same) for text, same in WHOLE]
    whole = [(Problem(str(i), "aime26", "q", "73", "integer"), box) for i, (box, _) in enumerate(boxes)]
    with Grader(workers=1) as grader:
        grades = grader.grade([*formulas, *letters, *whole])
    first, second = len(formulas), len(formulas) + len(letters)
    assert [grade.correct for grade in grades[:first]] == [same for _, _, same in FORMULAS]
    assert [grade.answer for grade in grades[first:second]] == [letter for _, letter in LETTERS]
    assert [grade.correct for grade in grades[first:second]] == [letter == "J" for _, letter in LETTERS]
    assert [grade.correct for grade in grades[second:]] == [same for _, same in WHOLE]


def mmlu_pro_rows(**changes):
    """Rows of MMLU-Pro's form, with 3 to 10 options; row 5 has the changes."""
    rows = []
    for i in range(12032):
        options, gold = [f"o{k}" for k in range(3 + i % 8)], i % 3
        answers = {"answer": "ABCDEFGHIJ"[gold], "answer_index": gold}
        rows.append({"question_id": i + 70, "question": "q", "options": options, "category": "law", **answers})
    rows[5] |= changes
    return rows


@pytest.mark.slow
def test_mmlu_pro_keeps_the_published_order_of_up_to_ten_options(hub):
    calls = hub(mmlu_pro_rows(options=["x", "y", "N/A", "z", "N/A", "N/A"], answer="D", answer_index=3))
    problems = {problem.id: problem for problem in load_task("mmlu_pro")}
    assert calls == [("TIGER-Lab/MMLU-Pro", None, {"split": "test"})] and len(problems) == 12032
    seventh, fifth = problems["mmlu_pro/77"], problems["mmlu_pro/75"]
    assert (seventh.answer, seventh.kind, seventh.choices) == ("B", "choice", tuple(f"o{k}" for k in range(10)))
    assert (fifth.choices, fifth.answer) == (("x", "y", "N/A", "z"), "D")  # what only fills up is left out
    assert prompt_text(seventh).endswith("\nI) o8\nJ) o9")


@pytest.mark.slow
def test_the_first_questions_of_a_large_set_are_a_sample_of_all(hub):
    """Subjects follow one another in the data set, here in 16 blocks."""
    hub(mmlu_pro_rows())
    problems = load_task("mmlu_pro", 800)
    blocks = Counter((int(p.id.removeprefix("mmlu_pro/")) - 70) // 752 for p in problems)
    assert set(blocks) == set(range(16)) and 30 <= min(blocks.values()) <= max(blocks.values()) <= 75
    assert problems[:10] == load_task("mmlu_pro", 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer_index": 1}, "the two answers of '75' differ"),
        ({"answer": "J", "answer_index": 9}, "the answer of '75' is none of its options"),
        ({"answer": "AB", "answer_index": -1}, "the answer of '75' is none of its options"),
        ({"options": ["x"]}, "the options of '75' are not 2 to 26 texts"),
        ({"options": ["x", None, "z"]}, "the options of '75' are not 2 to 26 texts"),
        ({"options": None}, "the options of '75' are not 2 to 26 texts"),
    ],
)
def test_a_damaged_question_with_options_is_refused(hub, changes, words):
    hub(mmlu_pro_rows(**changes))
    with pytest.raises(PrunusError, match=words):
        load_task("mmlu_pro")


@pytest.mark.slow
def test_supergpqa_and_arc_keep_the_published_order(hub):
    row = {"question": "q", "options": list("pqrs"), "answer": "r", "answer_letter": "C", "discipline": "Law"}
    calls = hub([row | {"uuid": f"u{i}"} for i in range(26529)])
    problems = load_task("supergpqa")
    assert {(p.choices, p.answer) for p in problems} == {(tuple("pqrs"), "C")}
    assert {p.id for p in problems} == {f"supergpqa/u{i}" for i in range(26529)}
    rows = [
        {
            "id": f"m{i}",
            "question": "q",
            "choices": {"text": ["u", "v", "w"], "label": labels},
            "answerKey": labels[i % 3],
        }
        for i, labels in enumerate([list("ABC"), list("123")] * 586)
    ]
    hub(rows)
    assert calls == [("m-a-p/SuperGPQA", None, {"split": "train"})]
    problems = load_task("arc_challenge")
    assert [(p.id[-2:], p.answer) for p in problems[:3]] == [("m0", "A"), ("m1", "B"), ("m2", "C")]
    assert problems[1].choices == ("u", "v", "w")
    hub([rows[0] | {"answerKey": "E"}, *rows[1:]])
    with pytest.raises(PrunusError, match="the answer of 'm0' is none of its options"):
        load_task("arc_challenge")


def gpqa_row(index):
    texts = {f"Incorrect Answer {i}": f"secret wrong {i}" for i in (1, 2, 3)}
    return {"Record ID": f"rec{index}", "Question": "secret question", "Correct Answer": "secret right\n"} | texts


def test_gpqa_shuffles_by_record_and_keeps_its_texts_private(hub):
    hub([gpqa_row(i) for i in range(198)])
    problems = load_task("gpqa_diamond")
    for problem in problems:
        assert problem.choices["ABCD".index(problem.answer)] == "secret right"
        assert len(set(problem.choices)) == 4 and problem.private and is_gated(problem.task)
        assert "secret" not in repr(problem)
    places = Counter(p.answer for p in problems)
    assert set(places) == set("ABCD") and min(places.values()) > 30
    assert all(problems[int(one.id.removeprefix("gpqa_diamond/rec"))] == one for one in load_task("gpqa_diamond", 6))


def test_option_orders_are_even_and_fixed():
    seen = Counter(option_order(f"rec{i}") for i in range(2400))
    assert set(seen) == set(permutations(range(4))) and min(seen.values()) > 60 and max(seen.values()) < 150
    assert [option_order(f"rec{i}") for i in range(3)] == [(3, 0, 2, 1), (2, 1, 0, 3), (1, 0, 3, 2)]


def test_the_hub_says_what_to_do(hub, monkeypatch):
    class DatasetNotFoundError(FileNotFoundError):
        pass

    gated = "Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.\nYou must be authenticated to access it."
    hub(DatasetNotFoundError(gated))
    with pytest.raises(
        PrunusError, match=r"gpqa is gated; accept its terms at https://.* `hf auth login`, or pass"
    ) as e:
        load_task("gpqa_diamond")
    assert "\n" not in str(e.value)
    hub(ConnectionError("no route"))
    with pytest.raises(PrunusError, match=r"ConnectionError for openai/gsm8k; check the network.*--task gsm8k\.jsonl"):
        load_task("gsm8k")
    hub([{"question": "q", "answer": "1"}])
    with pytest.raises(PrunusError, match="has 1 rows where 1319 were expected"):
        load_task("gsm8k")
    hub([{"text": "q"}] * 40)
    with pytest.raises(PrunusError, match="has no column answer or Answer"):
        load_task("amc23")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PrunusError, match=r"pip install '\.\[hub\]' in a clone of Prunus, or pass a JSONL file"):
        load_task("math500")


def test_the_table_names_every_set_once():
    assert next(iter(TASKS)) == "tiny" and {task.name for task in TASKS.values()} == set(TASKS) and len(TASKS) == 22
    assert all(task.source and task.description and "\n" not in task.description for task in TASKS.values())


# Prompts, digests, contamination


def test_prompts():
    bare = Problem("i", "t", "Why?", "4", "integer")
    choice = Problem("i", "t", "Why?", "A", "choice", ("so", "not"))
    assert prompt_text(bare) == "Why?"
    assert prompt_text(choice) == "Why?\n\nA) so\nB) not"
    assert prompt_text(bare, "boxed") == (
        "Why?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert prompt_text(choice, "boxed") == (
        "Why?\n\nA) so\nB) not\n\nPlease reason step by step, and put only the letter of your choice within \\boxed{}."
    )


def test_the_digest_changes_with_question_gold_and_choices():
    problem = Problem("i", "t", "q", "A", "choice", ("x", "y"))
    variants = [
        problem,
        Problem("i", "t", "q2", "A", "choice", ("x", "y")),
        Problem("i", "t", "q", "B", "choice", ("x", "y")),
        Problem("i", "t", "q", "A", "choice", ("x", "z")),
        Problem("i", "t", "qA", "", "choice", ("x", "y")),
    ]
    assert len({p.digest for p in variants}) == len(variants)
    assert Problem("other", "u", "q", "A", "choice", ("x", "y")).digest == problem.digest


def test_digests_of_questions_see_through_case_and_blanks():
    questions = [problem.question for problem in load_task(DATA / "gsm8k_30.jsonl")]
    copied = questions[3].upper().replace(" ", " \n")
    assert copied != questions[3] and question_digest(copied) == question_digest(questions[3])
    assert len(set(map(question_digest, questions))) == len(questions)
    assert question_digest("a b") != question_digest("ab")


def test_hashes_of_sets_are_kept_and_those_that_lack_are_known():
    text = FILE.read_text()
    sets = held_out.stored(text)
    assert held_out.file_text(sets.items()) == text
    assert held_out.missing(sets) == ["hmmt_nov25", "supergpqa"]
    assert set(held_out.missing({})) == {"hmmt_nov25", "supergpqa", *sets} - {"tiny"}


def test_short_questions_with_choices_have_no_hash_since_any_text_can_have_them_as_a_line():
    short, long = "Which of these is right?", "Which of these is right for a gas at constant volume?"
    assert held_out.digests("mmlu_pro", [short, long]) == [question_digest(long)]
    assert held_out.digests("math500", [short, long]) == [question_digest(short), question_digest(long)]


@pytest.mark.parametrize("task", ["aime26", "mmlu_pro", "hmmt_nov25"])
def test_no_chains_are_drawn_on_an_evaluation_set_whose_hashes_lack(task):
    with pytest.raises(PrunusError, match=f"is in the evaluation set {task}, which calibration must not see"):
        check_problems([Problem("1", task, "a question that is in no list", "4", "integer")])
    others = ("mine", "tiny-train", "gsm8k-train")
    check_problems([Problem("1", name, "a question that is in no list", "4", "integer") for name in others])
