"""Tasks of lm-evaluation-harness as rows of a store: `prunus eval MODEL --task lm_eval:NAME`.

The harness prompts, scores and grades by its own rules on the loaded model, without thinking or budget forcing. Each
document becomes a row at budget 0, whose correctness is the first metric of the task that is always 0 or 1. Other
results of the harness, such as perplexities, are printed but not stored, since the store has only draws, from which all
statistics are computed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prunus import progress
from prunus.checkpoint.resolve import load_tokenizer, one_line, resolve
from prunus.errors import PrunusError
from prunus.evaluation import backends
from prunus.evaluation.preflight import FAMILY, PREFIX
from prunus.evaluation.provenance import describe_environment, describe_model, open_for
from prunus.evaluation.resolved_plan import about_of, run_id_of
from prunus.plain_data import content_hash
from prunus.recipes import EvalPlan
from prunus.settings.engines import EngineOptions
from prunus.settings.serving import Serving
from prunus.store.rows import ProblemRow, Run, Sample
from prunus.store.store import Store, claim
from prunus.store.stored import StoredPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prunus.evaluation.backends.hf import HFBackend

HEEDED = {"tasks", "limit", "seed", "batch_size"}  # fields of a plan that apply; the others concern thinking
LONGEST_ANSWER = 200


def evaluate_harness(model: str | Path, plan: EvalPlan, store: Path, device: str) -> str:
    """Evaluate a task of lm-evaluation-harness, store its rows in a transaction, and return the run's id."""
    stored, folder = harness_plan(plan), resolve(model)
    checkpoint = open_for("hf", folder)
    about = about_of(checkpoint.content(), Serving.of("hf", EngineOptions()))
    run_id = run_id_of({"model": checkpoint.checksum()}, stored, about)
    if store.exists():
        with Store(store, create=True) as opened:
            if opened.keys(run_id):
                return run_id
    tokenizer = load_tokenizer(folder)
    with claim(store, run_id), backends.opened("hf", folder, device, len(tokenizer)) as backend:
        problems, samples = ask(cast("HFBackend", backend).model, tokenizer, name_of(plan), stored)
        # The harness generates by rules of its own, which are no version of the protocol.
        environment = describe_environment(backend).without_rules | {"grader": f"lm_eval-{stored.lm_eval}"}
        with Store(store, create=True) as opened:
            run = Run.of(run_id, describe_model(model, checkpoint) | about, stored, environment)
            opened.add_complete_run(run, problems, samples)
    return run_id


def harness_plan(plan: EvalPlan) -> StoredPlan:
    """Stored: the plan for a task of the harness; PrunusError for fields that have no effect on it."""
    if len(plan.tasks) > 1:
        raise PrunusError(f"evaluate {PREFIX} tasks one by one, each with its own command")
    idle = [
        field.name for field in fields(plan) if field.name not in HEEDED and getattr(plan, field.name) != field.default
    ]
    if idle:
        raise PrunusError(f"{', '.join(idle)} has no effect on a task of lm-evaluation-harness: leave it out")
    name = name_of(plan)
    resolved = plan.to_json() | {
        "tasks": [FAMILY + Path(name).stem],
        "budgets": [0],
        "profile": "lm-eval",
        "strings": {},
        "batch_size": plan.batch_size or 1,
        "lm_eval": version("lm_eval"),
        "definition": content_hash(read_file(Path(name))) if name.endswith(".yaml") else None,
    }
    return StoredPlan.of(resolved)


def name_of(plan: EvalPlan) -> str:
    """The harness's name of a plan's task, or the file that defines it."""
    return next(iter(plan.tasks)).removeprefix(PREFIX)


def load_tasks(name: str) -> Any:
    """The harness's tasks of a name or of a YAML file; PrunusError where the harness cannot load them."""
    folder = None
    if name.endswith(".yaml"):
        folder, name = str(Path(name).absolute().parent), task_of(Path(name))
    try:
        loaded = (
            import_module("lm_eval.tasks")
            .TaskManager(include_path=folder, include_defaults=folder is None)
            .load([name])
        )
    except Exception as error:  # the harness and the hub raise errors of many classes
        raise PrunusError(f"lm-evaluation-harness cannot load the task '{name}': {one_line(error)[:300]}") from error
    for task in loaded["tasks"].values():
        if task.get_config("output_type") == "loglikelihood_rolling":
            raise PrunusError(
                f"'{name}' measures perplexity: no answer of it is right or wrong, so the store has no rows for it;"
                " use `prunus perplexity`, or the harness itself (docs/import.md)"
            )
    return loaded


def read_file(path: Path) -> str:
    """The text of a task file."""
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise PrunusError(f"the task file '{path}' cannot be read: {one_line(error)}") from error


def task_of(path: Path) -> str:
    """The name that a task file gives its task."""
    for line in read_file(path).splitlines():
        if line.startswith("task:"):
            return line.removeprefix("task:").strip().strip("\"'")
    raise PrunusError(f"{path} names no task: it needs a line such as `task: mine`")


def ask(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str, plan: StoredPlan
) -> tuple[list[ProblemRow], list[Sample]]:
    """Run a task of the harness on the model: print its results, and return the problems and rows."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = load_tasks(name)
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=plan.seed)
    harness_model = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=plan.batch_size
    )
    try:
        output = import_module("lm_eval").evaluate(
            lm=harness_model, task_dict=tasks, limit=plan.limit, bootstrap_iters=0
        )
    except ValueError as error:  # tasks that run code written by a model, and incompatible settings
        raise PrunusError(f"lm-evaluation-harness refuses '{name}': {one_line(error)[:300]}") from error
    for task, result in output["results"].items():
        values = ", ".join(
            f"{key.removesuffix(',none')} {value:.4g}"
            for key, value in result.items()
            if isinstance(value, float) and "stderr" not in key
        )
        progress.say(f"{task}: {values}")
    rows = [row for task, entries in output["samples"].items() for row in rows_of(task, entries)]
    return [problem for problem, _ in rows], [sample for _, sample in rows]


def rows_of(task: str, entries: Sequence[Mapping[str, Any]]) -> list[tuple[ProblemRow, Sample]]:
    """Rows from the harness's log of a task; PrunusError where none of its metrics is always 0 or 1.

    Where a task extracts answers in several ways (the harness's filters), the first is used.
    """
    first = [entry for entry in entries if entry["filter"] == entries[0]["filter"]]
    metric = next((m for m in first[0]["metrics"] if all(entry[m] in (0, 1) for entry in first)), None)
    if metric is None:
        raise PrunusError(
            f"no metric of '{task}' calls an answer right or wrong ({', '.join(first[0]['metrics'])}): its results are"
            " above, and the store has no rows for it"
        )
    rows = []
    for entry in first:
        key = f"{FAMILY}{task}/{entry['doc_id']}"
        answer, text = answer_of(entry["filtered_resps"], entry["resps"][0][0])
        problem = ProblemRow(FAMILY + task, key, str(entry["target"]), "exact", (), entry["doc_hash"][:16])
        sample = Sample(
            task=FAMILY + task,
            problem_id=key,
            budget=0,
            draw=0,
            thinking_tokens=0,
            answer_tokens=0,
            forced_tokens=0,
            ended="forced",
            answer_truncated=False,
            reopened_think=False,
            answer=answer,
            status="ok",
            correct=bool(entry[metric]),
            text=text,
        )
        rows.append((problem, sample))
    return rows


def answer_of(responses: Sequence[Any], words: object) -> tuple[str | None, str]:
    """(answer, text) of a model: the index of the chosen choice and no text, or what the model generated.

    responses: filtered by the harness. words: the first response without a filter.
    """
    if len(responses) > 1 and all(isinstance(response, tuple | list) for response in responses):
        return str(max(range(len(responses)), key=lambda index: responses[index][0])), ""
    written = responses[0] if responses and isinstance(responses[0], str) else None
    return written and written[:LONGEST_ANSWER], words if isinstance(words, str) else ""
