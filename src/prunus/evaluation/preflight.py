"""Checks of an evaluation that come before torch is imported and a model is opened, since these take longer.

The commands and the functions that evaluate call check_plan first.
"""

from importlib.util import find_spec
from pathlib import Path

from prunus.checkpoint.resolve import lacks_chat_template, resolve
from prunus.disk import as_path
from prunus.errors import PrunusError, pip
from prunus.evaluation.profiles.detection import profile_named
from prunus.evaluation.profiles.markers import no_template
from prunus.evaluation.tasks import check_task
from prunus.manifest import read_manifest
from prunus.recipes import EvalPlan, TraceRecipe
from prunus.settings.engines import EngineOptions
from prunus.store.store import check_folder

PREFIX = "lm_eval:"  # of tasks of lm-evaluation-harness, as typed
FAMILY = "lm_eval/"  # the same in the store


def check_plan(
    model: str | Path,
    plan: EvalPlan | TraceRecipe,
    engine: EngineOptions | None = None,
    store: str | Path | None = None,
) -> None:
    """Raise PrunusError if the model, a task, the profile, a package or the folder of the store is missing, or wrong.

    No question is fetched, and no tokenizer is loaded. engine: if it has a tokenizer, `model` is only a name on a
    server, and no folder is checked.
    """
    if not isinstance(plan, EvalPlan | TraceRecipe):
        raise PrunusError(f"this takes EvalPlan or TraceRecipe, not {type(plan).__name__}")
    if store is not None:
        check_folder(as_path(store, "store"))
    if isinstance(plan, EvalPlan) and plan.aa_control and any(map(is_harness_task, plan.tasks)):
        raise PrunusError("aa_control needs other batches, which lm-evaluation-harness makes itself: leave it out")
    if engine is not None and engine.request and any(map(is_harness_task, plan.tasks)):
        raise PrunusError("request is not for tasks of lm-evaluation-harness, which samples by its own rules")
    for task in plan.tasks:
        if not is_harness_task(task):
            check_task(task)
        elif find_spec("lm_eval") is None:
            raise PrunusError(f"tasks of lm-evaluation-harness need its package: {pip('lm-eval')}")
    if isinstance(plan, EvalPlan) and plan.mode == "legacy":
        return  # its profiles are chosen by the tokenizer
    folder = resolve(model) if engine is None or engine.tokenizer is None else None
    name = plan.profile
    if name == "auto" and folder is not None:
        name = read_manifest(folder).profile or "auto"
    if name != "auto":
        profile = profile_named(name)
        if isinstance(plan, EvalPlan) and plan.closing is not None:
            profile.closed_by(plan.closing)
        if folder is not None and not profile.prompt and lacks_chat_template(folder):
            raise no_template()


def is_harness_task(task: str) -> bool:
    """Whether a task, as typed or as stored, is one of lm-evaluation-harness."""
    return task.startswith((PREFIX, FAMILY))


def check_single_problems(plan: EvalPlan) -> None:
    """Raise PrunusError for a plan with a task whose problems cannot be evaluated one by one."""
    if tasks := [task for task in plan.tasks if is_harness_task(task)]:
        raise PrunusError(
            f"{tasks[0]} is evaluated by lm-evaluation-harness, which takes no problem alone: name another"
        )
