"""Prune reasoning LLMs, measure accuracy against thinking budget, and test whether the pruned models still think.

    import prunus

    prunus.prune("tiny", "wanda-20", prunus.PruneRecipe(method="wanda", sparsity=0.2))
    plan = prunus.EvalPlan(tasks=("tiny",), budgets=(16, 64, 256), limit=50)
    for model in ("tiny", "wanda-20"):
        prunus.evaluate(model, plan, "results.db")
    prunus.compare("results.db", base="tiny")
    prunus.report("results.db", "report.html")

The functions have the names of the commands. Each is imported when it is first used, so `import prunus` is fast, and
reading results does not need torch.

Old names stay: `drop_blocks` is `drop`, `drop_experts` is `experts`, `run_study` is `study` and `import_rows` is
`import_`. `eval` is `evaluate`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from prunus.machine_load import SPINS
from prunus.results.shown import PRINTERS
from prunus.version import __version__ as __version__

if TYPE_CHECKING:
    from prunus.checkpoint.dequantize import Dequantized, dequantize
    from prunus.errors import PrunusError
    from prunus.evaluation.pipeline import Regraded, evaluate, regrade
    from prunus.evaluation.profiles.catalogue import (
        ProfileEntry,
        ProfileUnderModel,
        ShownProfile,
        profiles,
        show_profile,
    )
    from prunus.evaluation.refine_efforts import FinerBudgets, refine_efforts
    from prunus.evaluation.tasks import TaskEntry, tasks
    from prunus.evaluation.traces import Traces, traces
    from prunus.model_card import CardMade, card
    from prunus.pruning.calibration.saved_statistics import InputsMeasured, stats
    from prunus.pruning.drop import Dropped, PlannedDrop, drop
    from prunus.pruning.experts.experts import FewerExperts, PlannedExperts, experts
    from prunus.pruning.experts.measure import ExpertsMeasured, expert_stats
    from prunus.pruning.gguf import GgufMade, PlannedGguf, gguf
    from prunus.pruning.inspection import GgufFacts, ModelFacts, inspect
    from prunus.pruning.perplexity import Perplexity, perplexity
    from prunus.pruning.prune.allocate import Allocated, allocate
    from prunus.pruning.prune.prune import PlannedPrune, Pruned, prune
    from prunus.pruning.quantize import PlannedQuantize, Quantized, quantize
    from prunus.pruning.recover.recover import PlannedRecover, Recovered, recover
    from prunus.pruning.width.width import Narrowed, PlannedWidth, width
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
    from prunus.recipes.declarations import MethodEntry, methods
    from prunus.reporting.page import report
    from prunus.results.cells import Comparison
    from prunus.results.comparison import compare
    from prunus.results.efforts import Efforts, efforts
    from prunus.results.frames import Exported, Results, export
    from prunus.results.frames import open as open
    from prunus.results.importing import Imported, import_
    from prunus.results.summary import Summary
    from prunus.settings.budgets import AS_RUN, OFF
    from prunus.settings.cache_size import CacheOfChain, CacheSize
    from prunus.settings.engines import EngineOptions
    from prunus.step import Made, Planned
    from prunus.steps.chain import apply_steps
    from prunus.store.store import StoredRun, runs
    from prunus.studies.choose.command import choose
    from prunus.studies.choose.records import Chosen, PlannedChoice
    from prunus.studies.demo import demo
    from prunus.studies.find.find import find
    from prunus.studies.find.found import Found
    from prunus.studies.find.prospects import Prospects
    from prunus.studies.find.verify import Verification
    from prunus.studies.plan import plan_study
    from prunus.studies.records import StudyPlan, StudyResult
    from prunus.studies.run import report_study, study
    from prunus.studies.verify import verify
    from prunus.viewer.server import view

    drop_blocks = drop
    drop_experts = experts
    eval = evaluate
    import_rows = import_
    run_study = study

# On some processors the last bit of MKL's products otherwise depends on where in memory a matrix lies, and what was
# interrupted would not resume to the same bytes. MKL reads this at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")
# Threads of torch's CPU build wait for each other spinning, for milliseconds: where other work has the cores, most of
# the time. After about 50 microseconds they sleep instead. libgomp reads this when it is loaded. Servers and vLLM
# have libgomp's own number (`machine_load`).
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS
# `import *` must not replace the builtins `open` and `eval`, so these are not here, nor are old names.
__all__ = [
    "AS_RUN",
    "OFF",
    "Allocated",
    "CacheOfChain",
    "CacheSize",
    "CardMade",
    "Chosen",
    "Comparison",
    "Dequantized",
    "DropRecipe",
    "Dropped",
    "Efforts",
    "EngineOptions",
    "EvalPlan",
    "ExpertsMeasured",
    "ExpertsRecipe",
    "Exported",
    "FewerExperts",
    "FinerBudgets",
    "Found",
    "GgufFacts",
    "GgufMade",
    "GgufRecipe",
    "Imported",
    "InputsMeasured",
    "Made",
    "MethodEntry",
    "ModelFacts",
    "Narrowed",
    "Perplexity",
    "Planned",
    "PlannedChoice",
    "PlannedDrop",
    "PlannedExperts",
    "PlannedGguf",
    "PlannedPrune",
    "PlannedQuantize",
    "PlannedRecover",
    "PlannedWidth",
    "ProfileEntry",
    "ProfileUnderModel",
    "Prospects",
    "PruneRecipe",
    "Pruned",
    "PrunusError",
    "QuantizeRecipe",
    "Quantized",
    "RecoverRecipe",
    "Recovered",
    "Regraded",
    "Results",
    "ShownProfile",
    "StoredRun",
    "StudyPlan",
    "StudyResult",
    "Summary",
    "TaskEntry",
    "TraceRecipe",
    "Traces",
    "Verification",
    "WidthRecipe",
    "allocate",
    "apply_steps",
    "card",
    "choose",
    "compare",
    "demo",
    "dequantize",
    "drop",
    "efforts",
    "evaluate",
    "expert_stats",
    "experts",
    "export",
    "find",
    "gguf",
    "import_",
    "inspect",
    "methods",
    "perplexity",
    "plan_study",
    "profiles",
    "prune",
    "quantize",
    "recover",
    "refine_efforts",
    "regrade",
    "report",
    "report_study",
    "runs",
    "show_profile",
    "stats",
    "study",
    "tasks",
    "traces",
    "verify",
    "view",
    "width",
]
# {module: the names that it has}; a test compares it with the imports above and with __all__.
_NAMES = {
    "prunus.checkpoint.dequantize": ("Dequantized", "dequantize"),
    "prunus.errors": ("PrunusError",),
    "prunus.evaluation.pipeline": ("Regraded", "evaluate", "regrade"),
    "prunus.evaluation.profiles.catalogue": (
        "ProfileEntry",
        "ProfileUnderModel",
        "ShownProfile",
        "profiles",
        "show_profile",
    ),
    "prunus.evaluation.refine_efforts": ("FinerBudgets", "refine_efforts"),
    "prunus.evaluation.tasks": ("TaskEntry", "tasks"),
    "prunus.evaluation.traces": ("Traces", "traces"),
    "prunus.model_card": ("CardMade", "card"),
    "prunus.pruning.calibration.saved_statistics": ("InputsMeasured", "stats"),
    "prunus.pruning.drop": ("Dropped", "PlannedDrop", "drop"),
    "prunus.pruning.experts.experts": ("FewerExperts", "PlannedExperts", "experts"),
    "prunus.pruning.experts.measure": ("ExpertsMeasured", "expert_stats"),
    "prunus.pruning.gguf": ("GgufMade", "PlannedGguf", "gguf"),
    "prunus.pruning.inspection": ("GgufFacts", "ModelFacts", "inspect"),
    "prunus.pruning.perplexity": ("Perplexity", "perplexity"),
    "prunus.pruning.prune.allocate": ("Allocated", "allocate"),
    "prunus.pruning.prune.prune": ("PlannedPrune", "Pruned", "prune"),
    "prunus.pruning.quantize": ("PlannedQuantize", "Quantized", "quantize"),
    "prunus.pruning.recover.recover": ("PlannedRecover", "Recovered", "recover"),
    "prunus.pruning.width.width": ("Narrowed", "PlannedWidth", "width"),
    "prunus.recipes": (
        "DropRecipe",
        "EvalPlan",
        "ExpertsRecipe",
        "GgufRecipe",
        "PruneRecipe",
        "QuantizeRecipe",
        "RecoverRecipe",
        "TraceRecipe",
        "WidthRecipe",
    ),
    "prunus.recipes.declarations": ("MethodEntry", "methods"),
    "prunus.reporting.page": ("report",),
    "prunus.results.cells": ("Comparison",),
    "prunus.results.comparison": ("compare",),
    "prunus.results.efforts": ("Efforts", "efforts"),
    "prunus.results.frames": ("Exported", "Results", "export", "open"),
    "prunus.results.importing": ("Imported", "import_"),
    "prunus.results.summary": ("Summary",),
    "prunus.settings.budgets": ("AS_RUN", "OFF"),
    "prunus.settings.cache_size": ("CacheOfChain", "CacheSize"),
    "prunus.settings.engines": ("EngineOptions",),
    "prunus.step": ("Made", "Planned"),
    "prunus.steps.chain": ("apply_steps",),
    "prunus.store.store": ("StoredRun", "runs"),
    "prunus.studies.choose.command": ("choose",),
    "prunus.studies.choose.records": ("Chosen", "PlannedChoice"),
    "prunus.studies.demo": ("demo",),
    "prunus.studies.find.find": ("find",),
    "prunus.studies.find.found": ("Found",),
    "prunus.studies.find.prospects": ("Prospects",),
    "prunus.studies.find.verify": ("Verification",),
    "prunus.studies.plan": ("plan_study",),
    "prunus.studies.records": ("StudyPlan", "StudyResult"),
    "prunus.studies.run": ("report_study", "study"),
    "prunus.studies.verify": ("verify",),
    "prunus.viewer.server": ("view",),
}
_ALIASES = {
    "drop_blocks": "drop",
    "drop_experts": "experts",
    "eval": "evaluate",
    "import_rows": "import_",
    "run_study": "study",
}


def _print(table: str, data: object) -> str:
    """Data as the table of the terminal with this name."""
    from prunus.reporting import terminal
    from prunus.text_table import printed

    made = getattr(terminal, table)(data)
    return printed(*(made if isinstance(made, list | tuple) else [made]))


PRINTERS.append(_print)


def __getattr__(name: str) -> object:
    wanted = _ALIASES.get(name, name)
    for module, names in _NAMES.items():
        if wanted in names:
            return getattr(import_module(module), wanted)
    raise AttributeError(f"module 'prunus' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
