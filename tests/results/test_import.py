"""Logs of other tools become rows that say what the tools themselves say; a log that cannot be read changes nothing."""

import copy
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.resolved_plan import problem_row
from prunus.evaluation.tasks.problem import Problem
from prunus.questions import question_key
from prunus.results.importing import files, read_log
from prunus.results.summary import summarise
from prunus.settings.budgets import AS_RUN, OFF, budget_of
from prunus.store.rows import ProblemRow, Run, Sample
from prunus.store.store import Store

LOGS = Path(__file__).parents[1] / "data" / "imported"


def only(pattern: str) -> Path:
    (found,) = LOGS.glob(pattern)
    return found


LM_A, LM_B = only("lm_eval/alpha/samples_sums_*"), only("lm_eval/beta/samples_sums_*")
PICKS = only("lm_eval/alpha/samples_picks_*")
INSPECT, INSPECT_JSON = only("inspect_ai/*.eval"), only("inspect_ai/*.json")
LIGHT_A, LIGHT_B = only("lighteval/details/sums-a/*/*"), only("lighteval/details/sums-b/*/*")
SCOPE_A, SCOPE_B = only("evalscope/a/reviews/*/*"), only("evalscope/b/reviews/*/*")
LAST = "exact_match,last-number"
ALL = {
    "lm a": (LM_A, LAST), "lm b": (LM_B, LAST), "inspect a": (INSPECT, "match"), "inspect b": (INSPECT_JSON, "match"),
    "light a": (LIGHT_A, "extractive_match"), "light b": (LIGHT_B, "extractive_match"),
    "scope a": (SCOPE_A, "accuracy"), "scope b": (SCOPE_B, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("import") / "results.db"
    for name, (log, metric) in ALL.items():
        prunus.import_(path, log, name, metric)
    return path


def cell_of(store: Path, name: str, task: str = "sums") -> dict[str, Any]:
    with Store(store) as opened:
        budgets = summarise(opened, opened.find_run(name).run_id).to_json()["tasks"][task]["budgets"]
    assert list(budgets) == [AS_RUN]
    return budgets[AS_RUN]


def rows_of(store: Path, name: str) -> list[Sample]:
    with Store(store) as opened:
        return opened.samples(opened.find_run(name).run_id, texts=True)


def reported_by_the_tools() -> dict[str, float]:
    """The accuracies that the tools wrote themselves."""
    found = {}
    for name, log in (("lm a", LM_A), ("lm b", LM_B)):
        found[name] = json.loads(next(log.parent.glob("results_*")).read_text())["results"]["sums"][LAST]
    for name, log in (("light a", "a"), ("light b", "b")):
        results = json.loads(only(f"lighteval/results/sums-{log}/*").read_text())["results"]
        found[name] = results["sums|0"]["extractive_match"]
    scores = json.loads(INSPECT_JSON.read_text())["results"]["scores"]
    found["inspect b"] = next(one for one in scores if one["name"] == "match")["metrics"]["accuracy"]["value"]
    found["scope a"] = json.loads((LOGS / "evalscope/a/report.json").read_text())["metrics"][0]["score"]
    return found


@pytest.mark.slow
def test_accuracies_are_those_that_the_tools_report(store):
    for name, accuracy in reported_by_the_tools().items():
        assert cell_of(store, name)["accuracy"] == pytest.approx(accuracy), name
    assert cell_of(store, "inspect a")["accuracy"] == 6 / 8  # by its making: 2 of 8 are wrong


@pytest.mark.slow
def test_tokens_and_ends_are_those_of_the_log_or_unknown(store):
    tokens = [20, 21, 22, 32, 20, 32, 22, 23]  # by the logs' making: 20 to 23, and 32 where an answer is cut
    cell = cell_of(store, "inspect a")
    assert cell["tokens"]["total"]["mean"] == sum(tokens) / 8 and cell["tokens"]["thinking"]["mean"] == 12
    assert cell["forced"] == 2 / 8 and cell["leaked"] == 0
    light = json.loads(json.dumps(cell_of(store, "light a")))
    assert light["tokens"]["total"]["mean"] == (20 + 21 + 22 + 32) / 4 and light["forced"] is None
    for name in ("lm a", "scope b"):  # scope b was copied without its predictions
        cell = cell_of(store, name)
        assert (cell["tokens"]["total"]["mean"], cell["forced"], cell["tokens_per_correct"]) == (None, None, None), name


@pytest.mark.slow
def test_a_row_has_the_texts_of_the_log(store):
    first = rows_of(store, "inspect b")
    by_question = {sample.problem_id: sample for sample in first}
    sample = by_question[f"sums/{question_key('what is  3 + 4?')}"]  # without regard to case and white space
    assert (sample.thinking, sample.text, sample.answer) == ("I compute 7.", "The answer is 0", "The answer is 0")
    assert (sample.budget, sample.draw, sample.correct, sample.ended) == (AS_RUN, 0, False, "forced")
    with Store(store) as opened:
        assert {row.gold for row in opened.problems().values()} == {"7", "21", "22", "42"}


@pytest.mark.slow
def test_equal_questions_are_one_problem_whatever_the_tool(store):
    ids = [{sample.problem_id for sample in rows_of(store, name)} for name in ALL]
    assert len(ids[0]) == 4 and all(one == ids[0] for one in ids)
    entry = prunus.compare(store, "lm a", ["light b"]).to_json()["others"][0]
    assert entry["tasks"]["sums"]["budgets"][AS_RUN]["n"] == 4
    assert "plans differ" in entry["warnings"][0] and "tool is lighteval, not lm-eval" in entry["warnings"][0]


@pytest.mark.slow
def test_runs_are_compared_by_accuracy_where_the_log_has_no_budget(store):
    found = prunus.compare(store, "lm a").to_json()
    assert [entry["model"] for entry in found["others"]] == ["lm b"]  # others have another tool or metric
    entry = found["others"][0]
    cell = entry["tasks"]["sums"]["budgets"][AS_RUN]
    assert (cell["difference"], cell["n"], cell["p"]) == (-0.25, 4, 1.0)  # McNemar by hand: 2 * (1/2)^1
    assert entry["primary"]["difference"] == cell["difference"] == -0.25
    assert entry["tasks"]["sums"]["slope"] is None and entry["scaling"] is None


@pytest.mark.slow
def test_the_stop_endpoint_is_judged_where_logs_tell_the_ends(store):
    entry = prunus.compare(store, "inspect a", ["inspect b"]).to_json()["others"][0]
    cells = entry["stopping"]["endings"]
    assert list(cells) == ["ends", "loops"] and entry["stopping"]["budget"] == AS_RUN
    assert (cells["ends"]["share"], cells["ends"]["base_share"]) == (2 / 4, 3 / 4)  # draw 0, by the logs' making
    assert entry["stops"] == cells["ends"]["verdict"] == "cannot tell"
    unknown = prunus.compare(store, "inspect a", ["light b"]).to_json()["others"][0]  # lighteval does not tell them
    assert unknown["stopping"]["endings"] == {} and unknown["stops"] is None
    # Of all draws of each.
    assert unknown["stopping"]["tokens_ratio"] == pytest.approx((32 + 21 + 22 + 32) / 4 / (192 / 8))
    assert prunus.compare(store, "lm a").to_json()["others"][0]["stopping"]["tokens_ratio"] is None


def test_choices_and_several_files(tmp_path):
    found = prunus.import_(tmp_path / "s.db", [PICKS], "picks", "acc,none").to_json()
    assert (found["rows"], cell_of(tmp_path / "s.db", "picks", "picks")["accuracy"]) == (3, pytest.approx(2 / 3))
    rows = {sample.answer for sample in rows_of(tmp_path / "s.db", "picks")}
    assert rows == {"1", "2", "0"}  # the likeliest choice
    with pytest.raises(PrunusError, match="no metric that all its tasks share"):
        prunus.import_(tmp_path / "s.db", [LM_A, PICKS], "both")
    for log, words in ((LIGHT_A, "differ in tool"), (LM_B, "differ in model"), (LM_A, "both have task 'sums'")):
        with pytest.raises(PrunusError, match=words):
            prunus.import_(tmp_path / "s.db", [LM_A, log], "both", LAST)


@pytest.mark.slow
def test_an_import_is_repeated_without_effect_and_a_name_is_used_once(store, tmp_path):
    path = shutil.copy(store, tmp_path / "s.db")
    before = path.read_bytes()
    assert prunus.import_(path, LM_A, "lm a", LAST).to_json()["rows"] == 0
    assert path.read_bytes() == before
    with pytest.raises(PrunusError, match="already has a run named 'lm a'"):
        prunus.import_(path, LM_B, "lm a", LAST)
    assert path.read_bytes() == before


SUMS = [("What is 3 + 4?", "7"), ("What is 12 + 9?", "21"), ("What is 30 - 8?", "22"), ("What is 6 * 7?", "42")]
OWN = [Problem(f"own/{number}", "own", question, answer, "integer") for number, (question, answer) in enumerate(SUMS)]


def add_own(path: Path) -> None:
    """A run of our own on the same questions: right at budget 64, and half right at 16."""
    with Store(path, create=True) as opened:
        opened.add_problems(map(problem_row, OWN))
        plan = {"tasks": ["own"], "budgets": [16, 64], "samples": 1, "mode": "strict"}
        opened.add_run(Run.of("ab" * 6, {"name": "mine", "manifest": {}}, plan, {"grader": "1"}))
        opened.add_samples("ab" * 6, [
            Sample("own", problem.id, budget, 0, budget, 4, 2, "natural", False, False, problem.answer, "ok", right)
            for number, problem in enumerate(OWN) for budget, right in ((16, number < 2), (64, True))
        ])  # fmt: skip


@pytest.mark.parametrize("own_first", [True, False])
def test_a_run_of_our_own_meets_a_log_in_either_order(own_first, tmp_path):
    path = tmp_path / "s.db"
    steps: list[Callable[[], Any]] = [
        lambda: add_own(path), lambda: prunus.import_(path, LM_B, "lm b", LAST).to_json(),
    ]  # fmt: skip
    for step in steps if own_first else reversed(steps):
        step()
    assert sorted(sample.problem_id for sample in rows_of(path, "lm b")) == [problem.id for problem in OWN]
    with Store(path) as opened:
        assert {row.problem_id for row in opened.problems().values()} == {problem.id for problem in OWN}
    entry = prunus.compare(path, "mine", ["lm b"]).to_json()["others"][0]
    assert entry["primary"]["difference"] == 0.5 - 1.0  # against the largest budget
    assert any("budget 64, the largest, is compared" in warning for warning in entry["warnings"])
    with pytest.raises(PrunusError, match="one is a log of lm-eval"):
        prunus.compare(path, "mine")
    assert prunus.import_(path, LM_B, "lm b", LAST).to_json()["rows"] == 0


def test_other_questions_are_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "s.db"
    prunus.import_(path, LM_A, "lm a", LAST)
    prunus.import_(path, PICKS, "picks", "acc,none")
    with pytest.raises(SystemExit):
        main(["compare", str(path), "--base", "lm a", "--other", "picks"])
    error = capsys.readouterr().err.strip()
    assert "shares no finished problem with lm a" in error and "their questions differ" in error
    assert len(error.splitlines()) == 1


def test_without_a_base_the_first_imported_log_is_it_and_a_line_says_so(tmp_path, capsys):
    path = tmp_path / "s.db"
    prunus.import_(path, LM_A, "lm a", LAST)
    prunus.import_(path, LM_B, "lm b", LAST)
    assert prunus.compare(path).base.model == "lm a"
    prunus.report(path, tmp_path / "page.html")
    lines = capsys.readouterr().err.splitlines()
    assert sum("compared with lm a (" in line and "--base names another" in line for line in lines) == 2
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "What does it get wrong?" in text and "at the largest budget." not in text, "logs have no budgets"
    assert "What was done to each variant" not in text, "nor do they tell what was done to a model"
    assert prunus.compare(path, "lm b").base.model == "lm b"
    assert "--base" not in capsys.readouterr().err


@pytest.mark.slow
def test_pages_tables_and_frames(store, tmp_path, capsys):
    for base in ("lm a", "inspect a", "scope a"):
        page = prunus.report(store, tmp_path / "page.html", base=base, csv=tmp_path / "csv", overwrite=True)
        text = page.read_text("utf-8")
        assert "as run" in text and "budget forcing" not in text and ">-2<" not in text and "nan" not in text.split()
        assert "-2" not in (tmp_path / "csv" / "numbers-sums.csv").read_text().replace("-2026", "")[:200]
    main(["compare", str(store), "--base", "scope a"])
    assert "accuracy as run" in capsys.readouterr().out
    main(["compare", str(store), "--base", "lm a", "--json"])
    assert list(json.loads(capsys.readouterr().out)["others"][0]["tasks"]["sums"]["budgets"]) == ["as run"]
    frame: Any = prunus.open(store).samples("lm a")
    assert set(frame["budget"]) == {"as run"} and frame["budget_tokens"].isna().all()
    assert frame["answer_tokens"].isna().all() and frame["ended"].isna().all()
    curve: Any = prunus.open(store).curve("scope a")
    assert curve["forced_share"].tolist() == [1 / 8]
    prunus.export(store, tmp_path / "out", "parquet")
    assert len(pandas.read_parquet(tmp_path / "out" / "samples.parquet")) == 4 * 4 + 8 + 4 + 2 * 8


@pytest.mark.slow
def test_regrading_keeps_the_grades_of_a_log(store, tmp_path):
    path = shutil.copy(store, tmp_path / "s.db")
    before = path.read_bytes()
    assert prunus.regrade(path).to_json() == {"runs": 8, "graded": 0, "changed": 0, "kept": 44}
    assert path.read_bytes() == before


def test_the_budget_as_run_is_itself_everywhere():
    assert copy.deepcopy(AS_RUN) is AS_RUN is pickle.loads(pickle.dumps(AS_RUN))  # noqa: S301  our own
    assert [budget_of(value) for value in ("as run", -2, "-2", -2.0, "off", 0)] == [
        AS_RUN,
        AS_RUN,
        AS_RUN,
        AS_RUN,
        OFF,
        0,
    ]
    assert sorted([16, 0, AS_RUN]) == [AS_RUN, 0, 16] and f"{AS_RUN:>8}" == "  as run"
    with pytest.raises(PrunusError, match="whole number or off"):
        prunus.EvalPlan(tasks=("tiny",), budgets=(AS_RUN, 16))


def changed(log: Path, folder: Path, change: Callable[[list[dict[str, Any]]], Any], name: str = "") -> Path:
    """A copy of a .jsonl log, without its results, whose lines were changed."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    change(lines)
    out = folder / (name or log.name)
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def test_scores_between_0_and_1_need_a_threshold(tmp_path):
    log = changed(SCOPE_A, tmp_path, lambda lines: lines[0]["sample_score"]["score"]["value"].update(accuracy=0.5))
    with pytest.raises(PrunusError, match=r"accuracy has scores besides 0 and 1, such as 0.5.*--threshold"):
        prunus.import_(tmp_path / "s.db", log, "x")
    assert not (tmp_path / "s.db").exists()
    prunus.import_(tmp_path / "s.db", log, "low", threshold=0.5)
    prunus.import_(tmp_path / "s.db", log, "high", threshold=0.6)
    task = log.stem
    assert [cell_of(tmp_path / "s.db", name, task)["accuracy"] for name in ("low", "high")] == [7 / 8, 6 / 8]


def test_outputs_without_a_grade_are_left_out_and_counted(tmp_path):
    log = changed(SCOPE_A, tmp_path, lambda lines: lines[0]["sample_score"]["score"].update(value={}))
    found = prunus.import_(tmp_path / "s.db", log, "x").to_json()
    assert (found["rows"], found["ungraded"]) == (7, 1)
    assert cell_of(tmp_path / "s.db", "x", log.stem)["n"] == 3  # problems with both draws
    page = prunus.report(tmp_path / "s.db", tmp_path / "page.html", base="x").read_text("utf-8")
    assert "1 of 8 outputs of its log are left out, as evalscope did not grade them" in page


def test_equal_questions_of_one_log_stay_two_problems(tmp_path):
    def twice(lines):
        for line in lines:
            line["doc"]["question"] = "What is it?"

    found = prunus.import_(tmp_path / "s.db", changed(LM_A, tmp_path, twice), "x", LAST).to_json()
    assert found["problems"] == found["rows"] == 4


def test_hostile_texts_are_kept_and_escaped(tmp_path):
    evil = "<script>window.pwned = 1</script>\ud800\x00\u202e"

    def poison(lines):
        lines[0]["sample_score"]["score"].update(extracted_prediction=evil, value={"accuracy": 0.0})
        lines[0]["target"] = [evil]
        for message in lines[0]["messages"]:
            message["content"] = evil + message["role"]

    name = "<b>x</b>"
    log = changed(SCOPE_A, tmp_path, poison)
    prunus.import_(tmp_path / "s.db", changed(SCOPE_A, tmp_path, lambda lines: None, "other.jsonl"), "base")
    with pytest.raises(PrunusError, match="a name is one line"):
        prunus.import_(tmp_path / "s.db", log, "two\nlines")
    prunus.import_(tmp_path / "s.db", log, name)
    page = prunus.report(tmp_path / "s.db", tmp_path / "page.html", base=name).read_text("utf-8")
    assert "<script>window.pwned" not in page and "<b>x</b>" not in page
    assert any(
        sample.text.startswith("<script>") and "\ud800" not in sample.text
        for sample in rows_of(tmp_path / "s.db", name)
    )


def cut(source: Path, folder: Path, size: int, name: str = "") -> Path:
    out = folder / (name or source.name)
    out.write_bytes(source.read_bytes()[:size])
    return out


def rezipped(folder: Path, *changes: Callable[[zipfile.ZipFile], None]) -> Path:
    out = folder / "made.eval"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for change in changes:
            change(made)
    return out


def header(**changes: Any) -> str:
    log = json.loads(INSPECT_JSON.read_text())
    return json.dumps({key: log[key] for key in ("version", "status", "eval", "plan", "results")} | changes)


def with_version(folder: Path, version: str) -> Path:
    shutil.copytree(LM_A.parent, folder / "run")
    results = next((folder / "run").glob("results_*"))
    results.write_text(results.read_text().replace('"lm_eval_version": "0.4.13"', f'"lm_eval_version": "{version}"'))
    return folder / "run" / LM_A.name


def scope_version(folder: Path) -> Path:
    shutil.copytree(LOGS / "evalscope/a", folder / "a")
    config = folder / "a/configs/task_config.yaml"
    config.write_text(config.read_text().replace("evalscope_version: 1.14.1", "evalscope_version: 2.0.0"))
    return next((folder / "a/reviews").glob("*/*"))


def parquet_of(folder: Path) -> Path:
    pandas.DataFrame({"a": [1]}).to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def written(folder: Path, text: str, name: str = "x.jsonl") -> Path:
    (folder / name).write_text(text)
    return folder / name


def lying_zip(folder: Path) -> Path:
    """The table of contents says that a member is shorter than it is."""
    data, place = bytearray(INSPECT.read_bytes()), 0
    with zipfile.ZipFile(INSPECT) as archive:
        size = archive.getinfo("header.json").file_size
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"header.json"))
    assert int.from_bytes(data[place + 24 : place + 28], "little") == size
    data[place + 24 : place + 28] = (size - 100).to_bytes(4, "little")
    (folder / "x.eval").write_bytes(data)
    return folder / "x.eval"


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no file": (lambda folder: folder / "none.jsonl", "cannot be read: No such file"),
    "folder": (lambda folder: folder, "cannot be read"),
    "other text": (lambda folder: written(folder, "hello\n"), "is not recognised as a log"),
    "empty": (lambda folder: written(folder, ""), "is not recognised as a log"),
    "other json lines": (lambda folder: written(folder, '{"a": 1}\n'), "formats that can be imported: lm-eval"),
    "averages": (lambda _: next(LM_A.parent.glob("results_*")), "has averages only: name the samples_*.jsonl"),
    "predictions": (lambda _: only("evalscope/a/predictions/*/*"), "under reviews/"),
    "cut line": (lambda folder: cut(LM_A, folder, 5000), "line 8 of"),
    "cut reviews": (lambda folder: cut(SCOPE_A, folder, 7000), "is cut off: the log is only half written"),
    "cut zip": (lambda folder: cut(INSPECT, folder, 15000), "is damaged or half written"),
    "cut json": (lambda folder: cut(INSPECT_JSON, folder, 9000), "not complete JSON"),
    "cut parquet": (lambda folder: cut(LIGHT_A, folder, 9000), "is damaged or half written"),
    "several metrics": (lambda _: LM_A, f"choose --metric of {LAST}, exact_match,whole"),
    "lm-eval version": (lambda folder: with_version(folder, "0.5.0"), "is from lm-eval 0.5.0; this prunus reads"),
    "evalscope version": (scope_version, "is from evalscope 2.0.0; this prunus reads"),
    "inspect version": (lambda f: rezipped(f, lambda z: z.writestr("header.json", header(version=3))), "log format 3"),
    "inspect status": (
        lambda f: rezipped(f, lambda z: z.writestr("header.json", header(status="error"))),
        "did not finish (status error)",
    ),
    "no header": (lambda f: rezipped(f, lambda z: z.writestr("_journal/start.json", "{}")), "its run has not finished"),
    "no samples": (lambda f: rezipped(f, lambda z: z.writestr("header.json", header())), "without any output"),
    "other types": (
        lambda f: rezipped(
            f,
            lambda z: z.writestr("header.json", header(plan={"steps": 5})),
            lambda z: z.writestr("samples/1_epoch_1.json", '{"id": 1, "epoch": "one", "scores": 5}'),
        ),
        "has no usable 'epoch'",
    ),
    "other zip": (lambda f: rezipped(f, lambda z: z.writestr("header.json", "[1]")), "is not a JSON object"),
    "lying zip": (lying_zip, "its bytes are not those that were written"),
    "other parquet": (parquet_of, "has the columns a: no details of lighteval"),
    "deep json": (
        lambda f: written(f, '{"doc_id": 0, "resps": [], "filter": ' + "[" * 100_000 + "]" * 100_000 + "}\n"),
        "nested too deeply",
    ),
    "missing key": (
        lambda f: changed(LM_A, f, lambda lines: lines[1].pop("filtered_resps")), "has no usable 'filtered_resps'"
    ),
    "two runs": (lambda f: changed(LM_A, f, lambda lines: lines.extend(lines[:1])), "the log is of two runs"),
    "not utf-8": (lambda f: written(f, '{"doc_id": 0, "resps": [], "filter": "') , "is cut off"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_one_line_and_changes_nothing(case, store, tmp_path, capsys):
    make, words = UNREADABLE[case]
    path = shutil.copy(store, tmp_path / "s.db")
    before, log = path.read_bytes(), make(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(path), str(log), "--as", "new"])
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and len(error.splitlines()) == 1 and words in error
    assert path.read_bytes() == before


def test_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 50_000)
    with pytest.raises(PrunusError, match="unpacked"):
        read_log(INSPECT)  # 21 kB that unpack to more
    monkeypatch.setattr(files, "LONGEST_LINE", 500)
    with pytest.raises(PrunusError, match=r"line 1 of .* is longer"):
        read_log(LM_A)


def test_a_log_without_results_or_predictions_is_read(tmp_path):
    shutil.copy(LM_A, tmp_path / LM_A.name)
    log = read_log(tmp_path / LM_A.name)
    assert (log.version, log.model, len(log.records), log.records[0].task) == (None, "", 4, "sums")


def test_problems_have_a_key_that_choices_change():
    rows: list[ProblemRow] = [problem_row(problem) for problem in OWN]
    assert len({row.question for row in rows}) == 4
    assert question_key("a", ["x", "y"]) == question_key("A ", ["y", "x"]) != question_key("a", ["x", "z"])
