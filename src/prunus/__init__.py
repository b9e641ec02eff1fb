"""Prune reasoning LLMs, measure accuracy against thinking budget, and test whether the pruned models still think.

    import prunus

    prunus.prune("tiny", "wanda-20", prunus.PruneRecipe(method="wanda", sparsity=0.2))
    plan = prunus.EvalPlan(tasks=("tiny",), budgets=(16, 64, 256))
    for model in ("tiny", "wanda-20"):
        prunus.evaluate(model, plan, "results.db")
    prunus.compare("results.db", base="tiny")
    prunus.report("results.db", "report.html")

The functions have the names of the commands. Each is imported when it is first used, so `import prunus` is fast, and
reading results does not need torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.checkpoint.dequantize import dequantize
    from prunus.errors import PrunusError
    from prunus.evaluation.pipeline import evaluate, regrade
    from prunus.evaluation.profiles.catalogue import profiles, show_profile
    from prunus.evaluation.tasks import tasks
    from prunus.evaluation.traces import traces
    from prunus.model_card import card
    from prunus.pruning.calibration.saved_statistics import stats
    from prunus.pruning.drop import drop_blocks
    from prunus.pruning.experts.experts import drop_experts
    from prunus.pruning.experts.measure import expert_stats
    from prunus.pruning.gguf import gguf
    from prunus.pruning.inspection import inspect
    from prunus.pruning.perplexity import perplexity
    from prunus.pruning.prune.allocate import allocate
    from prunus.pruning.prune.prune import prune
    from prunus.pruning.quantize import quantize
    from prunus.pruning.recover.recover import recover
    from prunus.pruning.width.width import width
    from prunus.recipes import (
        DropRecipe,
        EvalPlan,
        ExpertsRecipe,
        GgufRecipe,
        PruneRecipe,
        QuantizeRecipe,
        RecoverRecipe,
        TraceRecipe,
        WidthRecipe,
    )
    from prunus.recipes.declarations import methods
    from prunus.reporting.page import report
    from prunus.results.comparison import compare
    from prunus.results.frames import Results, export
    from prunus.results.frames import open as open
    from prunus.results.importing import import_rows
    from prunus.settings.budgets import AS_RUN, OFF
    from prunus.settings.engines import EngineOptions
    from prunus.steps.chain import apply_steps
    from prunus.store.store import runs
    from prunus.studies.demo import demo
    from prunus.studies.find.find import find
    from prunus.studies.find.verify import verify
    from prunus.studies.plan import plan_study
    from prunus.studies.run import report_study, run_study
    from prunus.viewer.server import view

# On some processors the last bit of MKL's products otherwise depends on where in memory a matrix lies, and what was
# interrupted would not resume to the same bytes. MKL reads this at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.2.0"
_HOME = {
    "AS_RUN": "prunus.settings.budgets",
    "OFF": "prunus.settings.budgets",
    "DropRecipe": "prunus.recipes",
    "EngineOptions": "prunus.settings.engines",
    "EvalPlan": "prunus.recipes",
    "ExpertsRecipe": "prunus.recipes",
    "GgufRecipe": "prunus.recipes",
    "PruneRecipe": "prunus.recipes",
    "PrunusError": "prunus.errors",
    "QuantizeRecipe": "prunus.recipes",
    "RecoverRecipe": "prunus.recipes",
    "Results": "prunus.results.frames",
    "TraceRecipe": "prunus.recipes",
    "WidthRecipe": "prunus.recipes",
    "allocate": "prunus.pruning.prune.allocate",
    "apply_steps": "prunus.steps.chain",
    "card": "prunus.model_card",
    "compare": "prunus.results.comparison",
    "demo": "prunus.studies.demo",
    "dequantize": "prunus.checkpoint.dequantize",
    "drop_blocks": "prunus.pruning.drop",
    "drop_experts": "prunus.pruning.experts.experts",
    "evaluate": "prunus.evaluation.pipeline",
    "expert_stats": "prunus.pruning.experts.measure",
    "export": "prunus.results.frames",
    "find": "prunus.studies.find.find",
    "gguf": "prunus.pruning.gguf",
    "import_rows": "prunus.results.importing",
    "inspect": "prunus.pruning.inspection",
    "methods": "prunus.recipes.declarations",
    "open": "prunus.results.frames",
    "perplexity": "prunus.pruning.perplexity",
    "plan_study": "prunus.studies.plan",
    "profiles": "prunus.evaluation.profiles.catalogue",
    "prune": "prunus.pruning.prune.prune",
    "quantize": "prunus.pruning.quantize",
    "recover": "prunus.pruning.recover.recover",
    "regrade": "prunus.evaluation.pipeline",
    "report": "prunus.reporting.page",
    "report_study": "prunus.studies.run",
    "run_study": "prunus.studies.run",
    "runs": "prunus.store.store",
    "show_profile": "prunus.evaluation.profiles.catalogue",
    "stats": "prunus.pruning.calibration.saved_statistics",
    "tasks": "prunus.evaluation.tasks",
    "traces": "prunus.evaluation.traces",
    "verify": "prunus.studies.find.verify",
    "view": "prunus.viewer.server",
    "width": "prunus.pruning.width.width",
}
# `import *` must not replace the builtin `open`.
__all__ = [name for name in _HOME if name != "open"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prunus' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
