"""The tables of a report, each once: the page, `--csv` and LaTeX show the same."""

from collections.abc import Sequence
from typing import Any

from prunus.reporting.labels import Look
from prunus.reporting.published import about, standard_error
from prunus.reporting.render.chart import forest
from prunus.reporting.render.table import Column, Grid, Interval, Picture, Word
from prunus.reporting.render.text import count, percent, points, probability, signed
from prunus.reporting.report_data import Data, View, cells_of, float_of
from prunus.reporting.sections.curves import ENDINGS
from prunus.results.verdicts import OPEN, verdict

RUN = Column("run", "Run")


def _interval(cell: Data, key: str) -> Interval:
    return Interval(cell[key], cell["low"], cell["high"])


def last_cell(view: View) -> tuple[str, int]:
    """The first task, and the largest budget that any run has in it."""
    task = view.tasks[0]
    return task, max((max(cells) for summary in view.summaries if (cells := cells_of(summary, task))), default=0)


def verdicts(view: View) -> Grid:
    """One row per run: verdict, area, adjusted p, MDE, scaling, and what happens at the largest budget."""
    entries = view.comparison["others"]
    primaries = [entry["primary"] for entry in entries]
    ends = [(float_of(cell["difference"]), float_of(cell["low"]), float_of(cell["high"])) for cell in primaries]
    pictures = forest(ends, view.margin)
    task, budget = last_cell(view)
    rows = []
    for look, summary, entry, picture in zip(view.looks, view.summaries, view.entries, ["", *pictures], strict=True):
        if entry is None:
            values: list[Any] = [None] * 6
        else:
            cell = entry["primary"]
            values = [Word(entry["verdict"], _remark(entry)), _interval(cell, "difference"), Picture(picture)]
            values += [cell["p_adjusted"], cell["mde"], _scaling_word(entry)]
        last = cells_of(summary, task).get(budget)
        values += [None, None] if last is None else [_interval(last, "accuracy"), last["tokens"]["total"]["mean"]]
        rows.append((look, values))
    columns = [
        Column("run", "Model"), Column("verdict", "Verdict"),
        Column("difference", "Difference over|the curve, points", points), Column("", "0 and margin|(dashed)"),
        Column("p_adjusted", "p|adjusted", probability), Column("mde", "MDE,|points", percent),
        Column("scaling", "Scaling,|% kept"),
        Column("accuracy", f"Accuracy, %|at budget {budget}", percent),
        Column("tokens", f"Tokens used|at budget {budget}", count),
    ]  # fmt: skip
    return Grid("verdicts", "Verdicts", "verdicts sortable", columns, rows, keep=True)


def _remark(entry: Data) -> str:
    """Of what cannot be told, how much more it would take."""
    settle = entry["primary"].get("settle") or {}
    wanted = [f"{count(settle[key])} {key}" for key in ("draws", "problems") if settle.get(key)]
    return f"{' or '.join(wanted)} would do" if entry["verdict"] == OPEN and wanted else ""


def _scaling_word(entry: Data) -> Word | None:
    """kept, lost or cannot tell, with the share of the base's slope that is kept."""
    slope = entry["scaling"]
    if slope is None:
        return None
    share, low, high = (percent(slope[key]) for key in ("retention", "retention_low", "retention_high"))
    return Word(slope["word"], "" if slope["retention"] is None else f"{share}, {low} to {high}")


def _plain(value: Any) -> Any:
    """A number out of a cell that may be a number or a mapping with `value`."""
    return value.get("value") if isinstance(value, dict) else value


def matrix(view: View, task: str) -> Grid:
    """Accuracy with its interval and the budget's verdict, one row per run and one column per budget."""
    budgets = sorted({budget for summary in view.summaries for budget in cells_of(summary, task)})
    rows = []
    for look, summary, entry in zip(view.looks, view.summaries, view.entries, strict=True):
        cells, contrasts = cells_of(summary, task), view.contrasts(entry, task)
        words = {budget: verdict(contrast) for budget, contrast in contrasts.items()}
        found = {b: _interval(cell, "accuracy")._replace(word=words.get(b, "")) for b, cell in cells.items()}
        rows.append((look, [found.get(budget) for budget in budgets]))
    columns = [Column("run", "Accuracy, %"), *(Column(str(budget), str(budget), percent) for budget in budgets)]
    return Grid(f"accuracy-{task}", f"Accuracy on {task} by budget", "matrix sortable", columns, rows)


def numbers(view: View, task: str) -> Grid:
    """Every accuracy and difference of one task."""
    rows = []
    for look, summary, entry in zip(view.looks, view.summaries, view.entries, strict=True):
        contrasts = view.contrasts(entry, task)
        for budget, cell in cells_of(summary, task).items():
            values: list[Any] = [budget, *(cell[key] for key in ("accuracy", "low", "high"))]
            if contrast := contrasts.get(budget):
                values += [contrast[key] for key in ("difference", "low", "high")]
                values += [Word(verdict(contrast))]
                values += [contrast.get(key) for key in ("p", "p_adjusted", "q", "mde")]
            else:
                values += [None] * 8
            rows.append((look, [*values, cell["n"], cell["samples"]]))
    columns = [
        RUN, Column("budget", "Budget"), Column("accuracy", "Accuracy, %", percent), Column("low", "low", percent),
        Column("high", "high", percent), Column("difference", "Difference, points", points),
        Column("difference_low", "low", points), Column("difference_high", "high", points),
        Column("verdict", "Verdict"), Column("p", "p", probability), Column("p_adjusted", "p adjusted", probability),
        Column("q", "q", probability), Column("mde", "MDE", percent),
        Column("problems", "Problems"), Column("draws", "Draws"),
    ]  # fmt: skip
    return Grid(f"numbers-{task}", f"Every number on {task}", "data numbers sortable", columns, rows)


def tokens(view: View, task: str) -> Grid:
    """Tokens that draws took and how they ended."""
    rows = []
    for look, summary in zip(view.looks, view.summaries, strict=True):
        for budget, cell in cells_of(summary, task).items():
            used = cell["tokens"]
            values = [budget, *(used[phase]["mean"] for phase in ("thinking", "answer", "total"))]
            values += [used["total"]["p95"], cell["tokens_per_correct"], 1 - cell["forced"]]
            rows.append((look, values + [cell[ending] for ending in ENDINGS]))
    shares = [
        ("natural", "Natural|end, %"), ("forced", "Forced|end, %"), ("no_answer", "No answer,|%"),
        ("truncated", "Truncated,|%"), ("leaked", "Leaked,|%"),
    ]  # fmt: skip
    columns = [
        RUN, Column("budget", "Budget"), Column("thinking", "Thinking", count), Column("answer", "Answer", count),
        Column("total", "Total", count), Column("total_p95", "Total, 95th|percentile", count),
        Column("per_correct", "Per correct|draw", count), *(Column(key, title, percent) for key, title in shares),
    ]  # fmt: skip
    return Grid(f"tokens-{task}", f"Tokens and endings on {task}", "data tokens sortable", columns, rows)


def scaling(view: View, task: str) -> Grid:
    """How accuracy follows the budget, a row a run; columns that no run has are left out."""
    found: list[tuple[Look, dict[str, Any]]] = []
    for look, summary, entry in zip(view.looks, view.summaries, view.entries, strict=True):
        curve, cells = summary["tasks"].get(task, {}), cells_of(summary, task)
        if not cells:
            continue
        steps, last = curve.get("monotonicity") or {}, cells[max(cells)]
        slope = (entry or {}).get("tasks", {}).get(task, {}).get("slope") or {}
        values = {key: _ends(curve.get(key)) for key in ("auc", "slope", "gain", "auc_tokens", "scaling")}
        values |= {"performance": _plain(curve.get("performance")), "falls": steps.get("falls")}
        share, low, high = (slope.get(key) for key in ("retention", "retention_low", "retention_high"))
        values |= {
            "retention": None if share is None else Interval(share, low, high),
            "control": curve.get("control_total"),
        }
        found.append((look, values | {"per_correct": last["tokens_per_correct"], "looping": last.get("looping")}))
    columns = [column for column in SCALING if any(values[column.key] is not None for _, values in found)]
    rows = [(look, [values[column.key] for column in columns]) for look, values in found]
    return Grid(f"scaling-{task}", f"Scaling on {task}", "data scaling sortable", [RUN, *columns], rows)


SCALING = (
    Column("auc", "Area,|%", percent),
    Column("slope", "Per doubling,|points", points),
    Column("retention", "Slope kept,|%", percent),
    Column("gain", "First to last|budget, points", points),
    Column("falls", "Falls"),
    Column("auc_tokens", "Area over|tokens, %", percent),
    Column("scaling", "Per 1000 thinking|tokens, points", points),
    Column("performance", "Best,|%", percent),
    Column("control", "Within|budget, %", percent),
    Column("per_correct", "Tokens per|correct", count),
    Column("looping", "Going in|circles, %", percent),
)


def _ends(value: Data | None) -> Interval | None:
    """A value with its interval; from the standard error where there are no ends; None without a value."""
    if value is None or value.get("value") is None:
        return None
    middle, reach = value["value"], 1.96 * float_of(value.get("se"))
    return Interval(middle, value.get("low", middle - reach), value.get("high", middle + reach))


def published(view: View) -> Grid:
    """Published accuracies beside ours, with the distance in standard errors."""
    sources = about()["sources"]
    rows = []
    for match in view.matches or ():
        theirs = match.theirs
        values = [match.task, theirs.budget, match.mode, match.ours["accuracy"], match.ours["se"]]
        values += [theirs.accuracy, theirs.sd, standard_error(theirs), match.difference, match.z]
        rows.append((match.look, [*values, theirs.mark, f"{sources[theirs.source]['name']}, {theirs.where}"]))
    columns = [
        RUN, Column("task", "Task"), Column("budget", "Budget"), Column("mode", "Our mode"),
        Column("accuracy", "Ours, %", percent), Column("se", "error", percent),
        Column("published", "Theirs, %", percent), Column("published_sd", "SD", percent),
        Column("published_se", "error", percent), Column("difference", "Difference,|points", points),
        Column("z", "z", signed), Column("mark", "Mark"), Column("where", "From"),
    ]  # fmt: skip
    return Grid("published", "Published figures beside ours", "data published sortable", columns, rows)


def all_of(view: View) -> Sequence[Grid]:
    """Every table that `--csv` writes."""
    grids = [verdicts(view)] if len(view.runs) > 1 else []
    for task in view.tasks:
        grids += [matrix(view, task), numbers(view, task), scaling(view, task), tokens(view, task)]
    return [*grids, *([published(view)] if view.matches else [])]
