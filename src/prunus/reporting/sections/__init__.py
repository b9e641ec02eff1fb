"""The sections of a report in their order on the page. A new section is a file here and its name in FILES."""

from collections.abc import Callable
from importlib import import_module

from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section

FILES = (
    "result",
    "budgets",
    "efforts",
    "tokens",
    "stopping",
    "flips",
    "draws",
    "modes",
    "published",
    "sparsity",
    "method",
)
SECTIONS: tuple[Callable[[ReportData], Section], ...] = tuple(
    import_module(f"{__name__}.{file}").section for file in FILES
)
