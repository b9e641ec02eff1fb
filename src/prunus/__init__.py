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

`eval` is another name of `evaluate`.
"""

import ast
import os
from importlib import import_module
from pathlib import Path

from prunus.machine_load import SPINS
from prunus.results.shown import PRINTERS
from prunus.version import __version__ as __version__

# On some processors the last bit of MKL's products otherwise depends on where in memory a matrix lies, so that an
# interrupted run would not resume to the same bytes. MKL reads this variable at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO")
# Threads of torch's CPU build spin for milliseconds while they wait for each other, which takes most of the time where
# other programs use the cores. With this they sleep after about 50 microseconds. libgomp reads the variable when it is
# loaded. Servers and vLLM get libgomp's own default (`machine_load`).
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS


def _homes() -> dict[str, str]:
    """{name: module that defines it} of the API, read from the stub (.pyi) beside this file."""
    imports = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    return {
        alias.name: node.module
        for node in imports
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


_HOMES = _homes()
# `import *` must not replace the builtins `open` and `eval`.
__all__ = [name for name in _HOMES if name not in ("__version__", "open")]  # pyright: ignore


def _print(table: str, data: object) -> str:
    """Data as the text that a function of reporting.terminal makes of it. table: name of that function."""
    from prunus.reporting import terminal
    from prunus.text_table import printed

    made = getattr(terminal, table)(data)
    return printed(*(made if isinstance(made, list | tuple) else [made]))


PRINTERS.append(_print)


def __getattr__(name: str) -> object:
    if (named := "evaluate" if name == "eval" else name) not in _HOMES:
        raise AttributeError(f"module 'prunus' has no attribute '{name}'")
    return getattr(import_module(_HOMES[named]), named)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
