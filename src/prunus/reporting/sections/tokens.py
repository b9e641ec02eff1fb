"""The number of tokens that draws used, and how the draws ended."""

from functools import partial

from prunus.reporting.render.figure import Figure
from prunus.reporting.render.table import RUN, Column, Table
from prunus.reporting.render.text import count, esc, percent
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, adapted, details, part_of, run_key, soft
from prunus.reporting.sections.curves import accuracy_against_tokens

# Columns of runs whose budget the engine or the model kept.
ADHERENCE = [("used_per_budget", "Thinking over|budget, median %"), ("over", "Over the|budget, %")]


def section(data: ReportData) -> Section:
    """For each task accuracy over the tokens used; folded, a table of the tokens and of how the draws ended."""
    note = "Mean tokens per draw, without the markers and closings that the protocol inserts."
    html, figures, tables = "", [], []
    for task in data.tasks:
        shown = ""
        if any(cell.tokens.total.mean is not None for one in data.runs for cell in one.cells(task).values()):
            runs = [run_key(one.style) for one in data.runs]
            figures.append(Figure(f"accuracy-tokens-{task}", accuracy_against_tokens(data, task), runs))
            shown = adapted(partial(accuracy_against_tokens, data, task), "One point per budget", "95 % bars")
        tables.append(token_table(data, task))
        shown += details("Tokens and endings in numbers", tables[-1].html() + soft(note))
        html += part_of(data, task, "tokens", "Accuracy against tokens used", esc(_used(data, task)), shown)
    return Section("tokens", html, figures, tables, name="Tokens")


def _used(data: ReportData, task: str) -> str:
    """A sentence on the tokens used at the largest budget; empty where they are unknown."""
    cells = [(one.style.label, one.cells(task)[max(one.cells(task))]) for one in data.with_cells(task)]
    used = {label: cell.tokens.total.mean for label, cell in cells if cell.tokens.total.mean}
    if not used:
        return ""
    ends = dict.fromkeys(count(end(used.values())) for end in (min, max))
    name = next(iter(used)) if len(used) == 1 else "each model"
    return f"At its largest budget, {name} uses {' to '.join(ends)} tokens per draw, on average over these problems."


def token_table(data: ReportData, task: str) -> Table:
    """The tokens used and the shares of endings, one row for each run and budget; of native runs also the adherence."""
    rows = []
    native = any(one.run.plan.get("control") == "native" for one in data.runs)
    for one in data.runs:
        for budget, cell in one.cells(task).items():
            used = cell.tokens
            values = [budget, used.thinking.mean, used.answer.mean, used.total.mean]
            values += [used.total.p95, cell.tokens_per_correct]
            values.append(None if cell.forced is None else 1 - cell.forced)
            values += [cell.forced, cell.no_answer, cell.truncated, cell.leaked]
            kept = cell.adherence
            rows.append((one.style, [*values, kept and kept.used, kept and kept.over] if native else values))
    shares = [
        ("natural", "Natural|end, %"), ("forced", "Forced|end, %"), ("no_answer", "No answer,|%"),
        ("truncated", "Truncated,|%"), ("leaked", "Leaked,|%"),
    ]  # fmt: skip
    columns = [
        RUN, Column("budget", "Budget"), Column("thinking", "Thinking", count),
        Column("answer", "Answer", count), Column("total", "Total", count),
        Column("total_p95", "Total, 95th|percentile", count), Column("per_correct", "Per correct|draw", count),
        *(Column(key, title, percent) for key, title in [*shares, *(ADHERENCE if native else [])]),
    ]  # fmt: skip
    return Table(f"tokens-{task}", f"Tokens and endings on {task}", "data tokens sortable", columns, rows)
