"""Tasks and command of lm-evaluation-harness, on local files. `make test-lm-eval` runs all of it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import prunus
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import load_model
from prunus.evaluation.lm_eval import rows_of
from prunus.evaluation.tasks import load_task
from prunus.recipes import EvalPlan
from prunus.store.store import Store

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not here")
not_ours = pytest.mark.filterwarnings("ignore")  # what the harness and its packages warn of
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{data}"}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
"""
CHOICES = 'doc_to_choice: "{{choices}}"\nmetric_list:\n  - metric: acc\n'
WRITTEN = 'generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 24}\nmetric_list:\n  - metric: exact_match\n'
PERPLEXITY = "metric_list:\n  - metric: word_perplexity\n"


def write_task(folder: Path, name: str, kind: str, rest: str, rows: list[dict[str, Any]]) -> str:
    """A task of the harness and its data; returns how `prunus eval` calls it."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(TASK.format(name=name, data=folder / f"{name}.jsonl", kind=kind) + rest)
    return f"lm_eval:{path}"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    for name, value in (OFFLINE | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)


SUMS = [
    {"question": f"{a} + {b} =", "choices": [str(a + b + 1), str(a + b)], "answer": 1} for a in (1, 7) for b in (3, 4)
]


def likelihood(model: torch.nn.Module, tokenizer: Any, context: str, continuation: str) -> float:
    """Sum of the log-probabilities of the tokens by which the text with its continuation is longer."""
    before, ids = tokenizer.encode(context), tokenizer.encode(context + continuation)
    with torch.inference_mode():
        logprob_TV = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logprob_TV[at - 1, ids[at]]) for at in range(len(before), len(ids)))


@needs_harness
@not_ours
def test_rows_are_right_where_the_likeliest_choice_is(tmp_path):
    """By plain sums over our own model; grading again leaves them alone, and asking again does nothing."""
    task, store = write_task(tmp_path, "sums", "multiple_choice", CHOICES, SUMS), tmp_path / "s.db"
    run = prunus.evaluate("tiny", EvalPlan(tasks=(task,)), store).run_id
    folder = resolve("tiny")
    model, tokenizer = load_model(folder, "cpu"), load_tokenizer(folder)
    chosen = [
        max((0, 1), key=lambda n, row=row: likelihood(model, tokenizer, row["question"], " " + row["choices"][n]))
        for row in SUMS
    ]
    with Store(store) as opened:
        rows = opened.samples(run)
        assert [(row.answer, row.correct) for row in rows] == [(str(n), n == 1) for n in chosen]
        assert {row.budget for row in rows} == {0} and opened.run(run).plan.tasks == ("lm_eval/sums",)
    assert prunus.regrade(store).to_json() == {"runs": 1, "graded": 0, "changed": 0, "kept": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunus.evaluation.lm_eval.ask", None)
        assert prunus.evaluate("tiny", EvalPlan(tasks=(task,)), store).run_id == run


@needs_harness
@not_ours
def test_a_pruned_model_is_compared(tmp_path):
    prunus.prune("tiny", tmp_path / "pruned", prunus.PruneRecipe(method="magnitude", sparsity=0.7))
    task = write_task(tmp_path, "sums", "multiple_choice", CHOICES, SUMS)
    runs = [
        prunus.evaluate(m, EvalPlan(tasks=(task,)), tmp_path / "s.db").run_id for m in ("tiny", tmp_path / "pruned")
    ]
    compared = prunus.compare(tmp_path / "s.db", base=runs[0]).to_json()
    assert [other["run"] for other in compared["others"]] == runs[1:]
    prunus.report(tmp_path / "s.db", tmp_path / "page.html")
    assert "lm_eval/sums" in (tmp_path / "page.html").read_text()


@needs_harness
@pytest.mark.slow
def test_the_harness_meets_the_answers_of_prunus_eval(tmp_path):
    """`--model prunus` in the harness's own command: at temperature 0 word for word what `prunus eval` stores."""
    problems = load_task("tiny", 4)
    rows = [{"question": problem.question, "answer": problem.gold} for problem in problems]
    write_task(tmp_path, "thought", "generate_until", WRITTEN, rows)
    arguments = "pretrained=tiny,budget=24,temperature=0"
    command = [sys.executable, "-m", "prunus.evaluation.lm_eval.model", "--model", "prunus"]
    command += ["--tasks", "thought"]
    command += ["--model_args", arguments, "--include_path", str(tmp_path), "--batch_size", "4", "--device", "cpu"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    [logged] = (tmp_path / "out").rglob("samples_thought*.jsonl")
    theirs = [json.loads(line)["resps"][0][0] for line in logged.read_text().splitlines()]
    plan = EvalPlan(tasks=("tiny",), limit=4, budgets=(24,), temperature=0.0, answer_tokens=24)
    run = prunus.evaluate("tiny", plan, tmp_path / "s.db").run_id
    with Store(tmp_path / "s.db") as store:
        ours = {sample.problem_id: sample.text for sample in store.samples(run, texts=True)}
    assert theirs == [ours[problem.id] for problem in problems] and len(set(theirs)) > 1
    command[command.index(arguments)] = "pretrained=tiny,budget=100000"
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 2 and "but the model's context is" in done.stderr.splitlines()[-1]


@needs_harness
@not_ours
@pytest.mark.parametrize(
    ("kind", "rest", "message"),
    [
        ("loglikelihood_rolling", PERPLEXITY, "measures perplexity: no answer of it is right or wrong"),
        ("multiple_choice", "metric_list: 7\n", "cannot load the task 'odd'"),
    ],
)
def test_tasks_without_rows_are_refused(tmp_path, kind, rest, message):
    task = write_task(tmp_path, "odd", kind, rest, [{"question": "a b c", "answer": "d"}])
    with pytest.raises(PrunusError, match=message) as error:
        prunus.evaluate("tiny", EvalPlan(tasks=(task,)), tmp_path / "s.db")
    assert "\n" not in str(error.value)


@needs_harness
@not_ours
def test_a_task_that_is_not_there(tmp_path):
    with pytest.raises(PrunusError, match=r"the task file 'nowhere.yaml' cannot be read"):
        prunus.evaluate("tiny", EvalPlan(tasks=("lm_eval:nowhere.yaml",)), tmp_path / "s.db")


def test_what_has_no_effect_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.evaluation.preflight.find_spec", lambda _: True)
    for plan, message in (
        (EvalPlan(tasks=("lm_eval:arc_easy",), budgets=(512,), wait=1), "budgets, wait has no effect"),
        (EvalPlan(tasks=("lm_eval:arc_easy", "tiny")), "one by one"),
    ):
        with pytest.raises(PrunusError, match=message):
            prunus.evaluate("tiny", plan, tmp_path / "s.db")
    assert not (tmp_path / "s.db").exists()


def test_without_the_harness_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.evaluation.preflight.find_spec", lambda _: None)
    with pytest.raises(PrunusError, match=r"pip install '\.\[lm-eval\]'"):
        prunus.evaluate("tiny", EvalPlan(tasks=("lm_eval:arc_easy",)), tmp_path / "s.db")


def entry(number: int, reading: str = "none", **metrics: float) -> dict[str, Any]:
    """What the harness logs of a document."""
    told = {"doc_id": number, "doc_hash": 64 * "a", "target": "4", "filter": reading, "metrics": list(metrics)}
    return told | {"resps": [["It is 4."]], "filtered_resps": ["4"]} | metrics


def test_the_first_metric_that_is_all_or_nothing_counts_under_the_first_reading():
    entries = [
        entry(n, f, bleu=0.3, exact_match=right) for f, right in (("strict", 1.0), ("loose", 0.0)) for n in (0, 1)
    ]
    rows = [sample for _, sample in rows_of("sums", entries)]
    assert [(row.problem_id, row.correct, row.answer, row.text) for row in rows] == [
        ("lm_eval/sums/0", True, "4", "It is 4."),
        ("lm_eval/sums/1", True, "4", "It is 4."),
    ]
    with pytest.raises(PrunusError, match=r"no metric of 'sums' calls an answer right or wrong \(bleu\)"):
        rows_of("sums", [entry(0, bleu=0.3)])
