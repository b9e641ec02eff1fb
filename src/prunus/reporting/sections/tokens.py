"""Problems solved over the tokens used, where a budget does not bound them."""

from functools import partial

from prunus.reporting.prose import LEAKED
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, adapted, part_of
from prunus.reporting.sections.budgets import accuracy_against_tokens


def section(data: ReportData) -> Section:
    """For each task accuracy over the tokens used; empty where budgets bound the tokens."""
    html = ""
    for task in data.tasks:
        cells = [cell for run in data.runs for cell in run.cells(task).values()]
        leaks = any((cell.leaked or 0.0) > LEAKED for cell in cells)
        native = any(run.run.plan.is_native for run in data.with_cells(task))
        if (leaks or native) and any(cell.tokens.total.mean is not None for cell in cells):
            picture = adapted(partial(accuracy_against_tokens, data, task), "One point per budget")
            says = "The budget does not bound the tokens of all runs, so this is the fairer comparison."
            html += part_of(data, task, "tokens", "Problems solved, by tokens used", says, picture)
    return Section("tokens", html, name="Tokens")
