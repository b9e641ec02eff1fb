"""The page's sections about numbers: verdicts, curves, tables. All give HTML in which foreign text is escaped."""

from prunus.reporting import grids
from prunus.reporting.render.chart import swatch
from prunus.reporting.render.table import named, sign
from prunus.reporting.render.text import esc, points, probability
from prunus.reporting.report_data import View, cells_of
from prunus.reporting.sections import curves as figures
from prunus.reporting.sections.curves import ENDINGS
from prunus.results.metrics import LEAK_RULE
from prunus.results.retention import ENOUGH
from prunus.results.verdicts import OPEN, WORDS


def soft(text: str) -> str:
    """A paragraph in the background, of HTML."""
    return f'<p class="soft">{text}</p>'


def verdict_section(view: View) -> str:
    """One row per run: verdict, area, adjusted p, MDE, scaling, and what happens at the largest budget."""
    several = any("macro" in entry for entry in view.comparison["others"])
    over = " averaged over tasks" if several else ""
    where = f" The last two columns are for task <bdi>{esc(view.tasks[0])}</bdi>." if several else ""
    open_ones = [entry for entry in view.comparison["others"] if entry["verdict"] == OPEN]
    settling = (
        " What would do: draws of each problem, or problems with as many draws as now, that would find the difference "
        "seen (the margin, if that is more) four times in five."
    )
    corrected = f"corrected for the {len(view.runs) - 1} variants (Holm)" if len(view.runs) > 2 else "for one variant"
    note = (
        f"Difference over the curve: accuracy minus the base's, averaged over log<sub>2</sub> budget{over}, paired by "
        f"problem, with a 95 % interval. All words, p and MDE are {corrected}. Non-inferior, within the margin: a loss "
        f"of {100 * view.margin:g} points (dashed) or more is ruled out, by a bound that holds for any number of "
        f"problems. MDE: the true difference that would be found four times in five. Scaling: accuracy gained per "
        f"doubling of the budget, in % of the base's: kept if surely at least {100 * ENOUGH:g} %, lost if surely less."
        f"{settling if open_ones else ''}{where}"
    )
    return f'<section id="verdicts"><h2>Verdicts</h2>{grids.verdicts(view).html()}{soft(note)}</section>'


def legend(view: View) -> str:
    """Checkboxes that show and hide runs all over the page, by style alone; the base stays."""
    chips = []
    for look in view.looks:
        state = "checked disabled" if look.index == 0 else "checked"
        line = swatch(look.line, look.marker)
        chips.append(
            f'<label class="chip c{look.hue}"><input type="checkbox" id="t{look.index}" autocomplete="off" {state}>'
            f"{line}<bdi>{esc(look.label)}</bdi></label>"
        )
    if view.matches:
        chips.append(
            '<label class="chip pub c0"><input type="checkbox" id="tp" autocomplete="off" checked>'
            f"{swatch('pub c0', 0)}published</label>"
        )
    return f'<fieldset class="legend"><legend>Show</legend>{"".join(chips)}</fieldset>'


def curve_section(view: View, task: str, warning: str = "") -> str:
    """Both curves, the difference panels and the accuracy table of one task."""
    title = "Accuracy" if len(view.tasks) == 1 else f"Accuracy on <bdi>{esc(task)}</bdi>"
    bands = figures.bands_text(cell for s in view.summaries for cell in cells_of(s, task).values())
    bands += "; budget 0 stands apart" if any(0 in cells_of(s, task) for s in view.summaries) else ""
    bands += "; point at a name above to see its band" if len(view.runs) > figures.MANY else ""
    bands += "; hollow and dotted: published" if view.published_on(task) else ""
    pair = (
        f"<figure><figcaption>Against the thinking budget<small>95 % bands, {bands}</small>"
        f"</figcaption>{figures.accuracy_against_budget(view, task)}</figure>"
        "<figure><figcaption>Against tokens really used<small>95 % bars; one point per budget</small></figcaption>"
        f"{figures.accuracy_against_tokens(view, task)}</figure>"
    )
    panels = "".join(
        f'<figure class="{look.css}"><figcaption>{named(look)}</figcaption>'
        f"{figures.differences(view, task, look, entry)}</figure>"
        for look, entry in zip(view.looks, view.entries, strict=True)
        if entry is not None and task in entry["tasks"]
    )
    contrasts = [cell for entry in view.entries for cell in view.contrasts(entry, task).values()]
    note = (
        f"Accuracy minus the base's on the same problems, in points. Bands: 95 %, {figures.bands_text(contrasts)}. The "
        "shaded strip is the margin; each panel has its own scale."
    )
    base = esc(view.base.label)
    difference = f'<h3>Difference to <bdi>{base}</bdi></h3>{soft(note)}<div class="panels three">{panels}</div>'
    return (
        f'<section><h2>{title}</h2>{warning}<div class="pair">{pair}</div>{difference if panels else ""}'
        f"{_matrix(view, task)}</section>"
    )


def _matrix(view: View, task: str) -> str:
    sizes = sorted({(c["n"], c["samples"]) for s in view.summaries for c in cells_of(s, task).values()})
    signs = ", ".join(f"{sign(word)} {word}" for word in WORDS)
    text = " or ".join(f"{n} problems × {draws} draw{'s' * (draws != 1)}" for n, draws in sizes)
    note = (
        f"{text}. Below each accuracy its 95 % interval, behind it the budget's verdict, corrected over a run's "
        f"budgets (Holm): {signs}."
    )
    scale = (
        "Area: under accuracy over log<sub>2</sub> budget. Slope kept: of the base's, where that is clear, with "
        "Fieller's interval. Falls: "
        "steps to a larger budget that lose more than two errors. Area over tokens, points per 1000 thinking tokens "
        f"(s1's Scaling) and best count budget 0 too. Within budget: draws of at most budget + {LEAK_RULE} "
        "tokens in all. 95 % intervals over problems."
    )
    scaling = f"<h3>Scaling</h3>{grids.scaling(view, task).html()}{soft(scale)}"
    every = (
        f"<details><summary>Every number</summary>{grids.numbers(view, task).html()}{_largest(view, task)}</details>"
    )
    return f"<h3>By budget</h3>{soft(note)}{grids.matrix(view, task).html()}{every}{scaling}"


def _largest(view: View, task: str) -> str:
    """The cell of each run that stands out most, if it is of this task, with the p of having looked for it."""
    found = [
        f"{look.label} {points(cell['difference'])} at {cell['budget']} (p {probability(cell['p_adjusted'])})"
        for look, entry in zip(view.looks, view.entries, strict=True)
        if entry is not None and (cell := entry["largest"])["task"] == task
    ]
    if not found:
        return ""
    text = f"The difference that stands out most of all cells of its run, in points: {'; '.join(found)}."
    why = "p is that of having looked for it (the largest of all cells under flipped signs), Holm over runs."
    return soft(f"<bdi>{esc(text)}</bdi> {why}")


def token_section(view: View, task: str) -> str:
    """How draws ended, as panels, and the tokens they took, as a table."""
    keys = "".join(f"<li>{swatch(f'e{i}', i)}{esc(words)}</li>" for i, words in enumerate(ENDINGS.values()))
    panels = "".join(
        f'<figure class="{look.css}"><figcaption>{named(look)}</figcaption>'
        f"{figures.endings(task, look, summary)}</figure>"
        for look, summary in zip(view.looks, view.summaries, strict=True)
        if cells_of(summary, task)
    )
    note = "Mean tokens per draw; markers and closings that the protocol puts in are not counted."
    title = "Tokens and endings" if len(view.tasks) == 1 else f"Tokens and endings on <bdi>{esc(task)}</bdi>"
    return (
        f'<section><h2>{title}</h2><ul class="endings">{keys}</ul><div class="panels">{panels}</div>'
        f"<details><summary>Tokens and endings in numbers</summary>{grids.tokens(view, task).html()}{soft(note)}"
        "</details></section>"
    )
