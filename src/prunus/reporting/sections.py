"""The page's sections about numbers: verdicts, curves, tables. All give HTML in which foreign text is escaped."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.reporting import figures
from prunus.reporting.figures import ENDINGS, cells_of, float_of
from prunus.reporting.labels import Look
from prunus.reporting.svg import forest, swatch
from prunus.reporting.text import count, esc, percent, points, probability
from prunus.results.comparison import verdict

Data = Mapping[str, Any]


def word(text: str) -> str:
    """A verdict with its sign and colour."""
    return f'<span class="word {text.replace(" ", "-")}">{esc(text)}</span>'


def named(look: Look) -> str:
    """A run's name with its line."""
    return f"{swatch(look.line, look.marker)} <bdi>{esc(look.label)}</bdi>"


def soft(text: str) -> str:
    """A paragraph in the background, of HTML."""
    return f'<p class="soft">{text}</p>'


def row_name(look: Look) -> str:
    """A run's name with its line, as the head of a row."""
    return f'<th scope="row">{named(look)}</th>'


def table(head: Sequence[str], rows: Sequence[str], css: str, caption: str) -> str:
    """A table that scrolls inside itself where it is too wide. head: titles as HTML; each row starts with a <th>."""
    first, *rest = head
    titles = f'<th scope="col" class="text">{first}</th>' + "".join(f'<th scope="col">{text}</th>' for text in rest)
    label = f' aria-label="{esc(caption)}"'
    return (
        f'<div class="wide" tabindex="0" role="region"{label}><table class="{css}"{label}>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cells(values: Sequence[str]) -> str:
    return "".join(f"<td>{value}</td>" for value in values)


def interval(cell: Data, show: Any) -> str:
    """`low to high` by a function of one number."""
    return f"{show(cell['low'])} to {show(cell['high'])}"


def verdict_section(looks: Sequence[Look], summaries: Sequence[Data], comparison: Data) -> str:
    """One row per run: verdict, area, adjusted p, MDE, and what happens at the largest budget."""
    entries = comparison["others"]
    margin = comparison["margin"]
    primaries = [entry["primary"] for entry in entries]
    ends = [(float_of(cell["difference"]), float_of(cell["low"]), float_of(cell["high"])) for cell in primaries]
    pictures = forest(ends, margin)
    task, budget = _last_cell(summaries)
    rows = [_verdict_row(looks[0], None, "", summaries[0], task, budget)]
    for look, entry, picture, summary in zip(looks[1:], entries, pictures, summaries[1:], strict=True):
        rows.append(_verdict_row(look, entry, picture, summary, task, budget))
    head = [
        "Model", "Verdict", "Difference over<br>the curve, points", "0 and margin<br>(dashed)", "p adjusted",
        "MDE,<br>points", f"Accuracy, %<br>at budget {budget}", f"Tokens used<br>at budget {budget}",
    ]  # fmt: skip
    several = any("macro" in entry for entry in entries)
    over = " averaged over tasks" if several else ""
    where = f" The last two columns are for task <bdi>{esc(task)}</bdi>." if several else ""
    note = (
        f"Difference over the curve: accuracy minus the base's, averaged over log<sub>2</sub> budget{over}, paired by "
        f"problem, with a 95 % interval. p: adjusted over the {len(entries)} runs (Holm). Non-inferior: the one-sided "
        f"95 % bound lies above −{100 * margin:g} points (dashed). MDE: the true difference that would be found four "
        f"times in five.{where}"
    )
    return f'<section id="verdicts"><h2>Verdicts</h2>{table(head, rows, "verdicts", "Verdicts")}{soft(note)}</section>'


def _last_cell(summaries: Sequence[Data]) -> tuple[str, int]:
    """The first task and the base's largest budget in it."""
    task = figures.tasks_of(summaries)[0]
    return task, max((max(cells) for summary in summaries if (cells := cells_of(summary, task))), default=0)


def _verdict_row(look: Look, entry: Data | None, picture: str, summary: Data, task: str, budget: int) -> str:
    if entry is None:
        values = ['<span class="soft">base</span>', "", "", "", ""]
    else:
        cell = entry["primary"]
        difference = f"{points(cell['difference'])}<small>{interval(cell, points)}</small>"
        numbers = [probability(cell["p_adjusted"]).replace("<", "&lt;"), percent(cell["mde"])]
        margin = "<small>within the margin</small>" if entry["verdict"] == "worse" and entry["within_margin"] else ""
        values = [word(entry["verdict"]) + margin, difference, picture, *numbers]
    last = cells_of(summary, task).get(budget)
    if last is None:
        values += ["", ""]
    else:
        accuracy = f"{percent(last['accuracy'])}<small>{interval(last, percent)}</small>"
        values += [accuracy, count(last["tokens"]["total"]["mean"])]
    return f'<tr class="{look.css} keep">{row_name(look)}{_cells(values)}</tr>'


def legend(looks: Sequence[Look]) -> str:
    """Checkboxes that show and hide runs all over the page, by style alone; the base stays."""
    chips = []
    for look in looks:
        state = "checked disabled" if look.index == 0 else "checked"
        line = swatch(look.line, look.marker)
        chips.append(
            f'<label class="chip c{look.hue}"><input type="checkbox" id="t{look.index}" autocomplete="off" {state}>'
            f"{line}<bdi>{esc(look.label)}</bdi></label>"
        )
    return f'<fieldset class="legend"><legend>Show</legend>{"".join(chips)}</fieldset>'


def curve_section(task: str, looks: Sequence[Look], summaries: Sequence[Data], comparison: Data, alone: bool) -> str:
    """Both curves, the difference panels and the accuracy table of one task."""
    title = "Accuracy" if alone else f"Accuracy on <bdi>{esc(task)}</bdi>"
    pair = (
        "<figure><figcaption>Against the thinking budget<small>95 % bands; budget 0 stands apart</small></figcaption>"
        f"{figures.accuracy_against_budget(task, looks, summaries)}</figure>"
        "<figure><figcaption>Against tokens really used<small>95 % bars; one point per budget</small></figcaption>"
        f"{figures.accuracy_against_tokens(task, looks, summaries)}</figure>"
    )
    panels = "".join(
        f'<figure class="{look.css}"><figcaption>{named(look)}</figcaption>'
        f"{figures.differences(task, look, entry, comparison['margin'])}</figure>"
        for look, entry in zip(looks[1:], comparison["others"], strict=True)
        if task in entry["tasks"]
    )
    base = esc(looks[0].label)
    note = (
        "Accuracy minus the base's on the same problems, in points, with 95 % intervals for each budget by itself. The "
        "shaded strip is the margin; each panel has its own scale."
    )
    difference = f'<h3>Difference to <bdi>{base}</bdi></h3>{soft(note)}<div class="panels three">{panels}</div>'
    return (
        f'<section><h2>{title}</h2><div class="pair">{pair}</div>{difference if panels else ""}'
        f"{_matrix(task, looks, summaries, comparison)}</section>"
    )


def _matrix(task: str, looks: Sequence[Look], summaries: Sequence[Data], comparison: Data) -> str:
    """Accuracy with its interval, one row per run and one column per budget; the sign is that budget's verdict."""
    budgets = sorted({budget for summary in summaries for budget in cells_of(summary, task)})
    rows = []
    entries = [None, *comparison["others"]]
    for look, summary, entry in zip(looks, summaries, entries, strict=True):
        cells = cells_of(summary, task)
        contrasts = _contrasts(entry, task)
        values = []
        for budget in budgets:
            cell, contrast = cells.get(budget), contrasts.get(budget)
            mark = word(verdict(contrast, comparison["margin"])) if contrast else ""
            values.append(f"{percent(cell['accuracy'])}<small>{interval(cell, percent)}</small>{mark}" if cell else "")
        rows.append(f'<tr class="{look.css}">{row_name(look)}{_cells(values)}</tr>')
    sizes = sorted({(c["n"], c["samples"]) for s in summaries for c in cells_of(s, task).values()})
    text = " or ".join(f"{n} problems × {draws} draw{'s' * (draws != 1)}" for n, draws in sizes)
    note = f"{text}. Below each accuracy its 95 % interval and the budget's verdict, p adjusted over a run's budgets."
    body = table(["Accuracy, %", *map(str, budgets)], rows, "matrix", "Accuracy by budget")
    return f"<h3>By budget</h3>{soft(note)}{body}{_all_numbers(task, looks, summaries, comparison)}"


def _contrasts(entry: Data | None, task: str) -> dict[int, Data]:
    if entry is None or task not in entry["tasks"]:
        return {}
    return {int(budget): cell for budget, cell in entry["tasks"][task]["budgets"].items()}


def _all_numbers(task: str, looks: Sequence[Look], summaries: Sequence[Data], comparison: Data) -> str:
    rows = []
    for look, summary, entry in zip(looks, summaries, [None, *comparison["others"]], strict=True):
        contrasts = _contrasts(entry, task)
        for budget, cell in cells_of(summary, task).items():
            values = [str(budget), *(percent(cell[key]) for key in ("accuracy", "low", "high"))]
            if contrast := contrasts.get(budget):
                values += [points(contrast[key]) for key in ("difference", "low", "high")]
                p = [probability(contrast[key]).replace("<", "&lt;") for key in ("p", "p_adjusted")]
                values += [word(verdict(contrast, comparison["margin"])), *p, percent(contrast["mde"])]
            else:
                values += [""] * 7
            values += [str(cell["n"]), str(cell["samples"])]
            rows.append(f'<tr class="{look.css}">{row_name(look)}{_cells(values)}</tr>')
    head = ["Run", "Budget", "Accuracy, %", "low", "high", "Difference, points", "low", "high", "Verdict", "p",
            "p adjusted", "MDE", "Problems", "Draws"]  # fmt: skip
    body = table(head, rows, "data numbers", f"Every number on {task}")
    return f"<details><summary>Every number</summary>{body}</details>"


def token_section(task: str, looks: Sequence[Look], summaries: Sequence[Data], alone: bool) -> str:
    """How draws ended, as panels, and the tokens they took, as a table."""
    keys = "".join(f"<li>{swatch(f'e{i}', i)}{esc(words)}</li>" for i, words in enumerate(ENDINGS.values()))
    panels = "".join(
        f'<figure class="{look.css}"><figcaption>{named(look)}</figcaption>'
        f"{figures.endings(task, look, summary)}</figure>"
        for look, summary in zip(looks, summaries, strict=True)
        if cells_of(summary, task)
    )
    rows = []
    for look, summary in zip(looks, summaries, strict=True):
        for budget, cell in cells_of(summary, task).items():
            used = cell["tokens"]
            values = [str(budget), *(count(used[phase]["mean"]) for phase in ("thinking", "answer", "total"))]
            values += [count(used["total"]["p95"]), count(cell["tokens_per_correct"]), percent(1 - cell["forced"])]
            values += [percent(cell[ending]) for ending in ENDINGS]
            rows.append(f'<tr class="{look.css}">{row_name(look)}{_cells(values)}</tr>')
    head = ["Run", "Budget", "Thinking", "Answer", "Total", "Total, 95th<br>percentile", "Per correct<br>draw",
            "Natural<br>end, %", "Forced<br>end, %", "No answer,<br>%", "Truncated,<br>%", "Leaked,<br>%"]  # fmt: skip
    body = table(head, rows, "data tokens", f"Tokens and endings on {task}")
    note = "Mean tokens per draw; markers and closings that the protocol puts in are not counted."
    title = "Tokens and endings" if alone else f"Tokens and endings on <bdi>{esc(task)}</bdi>"
    return (
        f'<section><h2>{title}</h2><ul class="endings">{keys}</ul><div class="panels">{panels}</div>'
        f"<details><summary>Tokens and endings in numbers</summary>{body}{soft(note)}</details></section>"
    )
