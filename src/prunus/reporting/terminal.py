"""Tables that commands print; output that is not a terminal is plain text."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from prunus.reporting.efforts import effort_tables as effort_tables
from prunus.reporting.prose import (
    Findings,
    by_text,
    corrected_for,
    grouped,
    grouped_problems,
    in_one_sentence,
    remarks,
    repeats,
)
from prunus.reporting.render.text import count, joined, percent, points, probability, sizes, times, visible
from prunus.reporting.report_data import tasks_of
from prunus.results.cells import Cell, Comparison, Ending, Entry, RecipeVerdict
from prunus.results.contrasts import ENDINGS, ENDS
from prunus.results.order import ordered, settled_by
from prunus.results.summary import BudgetCell, Summary
from prunus.results.verdicts import verdict
from prunus.results.vocabulary import WORDS, LossGroup, Scaling, Verdict
from prunus.results.words import (
    MORE_CUT,
    as_good_in_words,
    in_full,
    interval_in_words,
    loss_in_words,
    observations,
    verdict_in_words,
)
from prunus.settings.budgets import AS_RUN, OFF, without_off
from prunus.settings.cache_size import CacheSize, in_words
from prunus.store.characters import DASH
from prunus.store.labels import Identity, sizes_of, unique_labels
from prunus.store.store import StoredRun
from prunus.text_table import TextTable

if TYPE_CHECKING:
    from prunus.pruning.prune.allocate import Allocated

CHAIN = "the longest prompt and the largest budget"  # length of the chain whose cache is counted
BAR_WIDTH = 50  # columns of a bar for 100 % sparsity


def curve_table(summaries: Iterable[Summary]) -> RenderableType:
    """A table per task: each run's accuracy in percent by budget, area, and mean tokens used at the largest budget.

    Below each accuracy is half the width of its 95 % interval.
    """
    summaries = list(summaries)
    names = _names(summaries)
    tables: list[RenderableType] = []
    for task in tasks_of(summaries):
        budgets = sorted({budget for summary in summaries for budget in summary.cells(task)})
        table = TextTable("run", *budgets, "area", "tokens")
        shown: list[BudgetCell] = []
        for name, summary in zip(names, summaries, strict=True):
            cells = summary.cells(task)
            if not cells:
                continue
            shown += cells.values()
            area = summary.tasks[task].auc
            last = cells[max(cells)].tokens.total.mean
            ends = [(c.accuracy, c.low, c.high) if (c := cells.get(budget)) else None for budget in budgets]
            ends.append((area.value, area.low, area.high) if area else None)
            halves = [f"{percent(end[0])}\n±{50 * (end[2] - end[1]):.1f}" if end else "" for end in ends]
            table.add_row(name, *halves, count(last))
        note = "area: under accuracy over log2 budget; tokens: mean used (thinking and answer) at the largest budget"
        note += "; as run: logs of other tools, without thinking budget" if AS_RUN in budgets else ""
        note += "; off: thinking switched off, not part of the area" if OFF in budgets else ""
        title = _title(f"{task}: accuracy in % (± half of the 95 % interval) by thinking budget")
        tables += [title, table, Text(f"{sizes(shown, 'x')}; {note}")]
        if natives := [(n, s) for n, s in zip(names, summaries, strict=True) if s.plan.is_native]:
            text = f"{task}: thinking tokens over the budget in % (median), and % of answers over it, by budget"
            tables += [_title(text), _adherence(task, natives, without_off(budgets))]
    for name, summary in zip(names, summaries, strict=True):
        if (state := summary.unfinished) is not None:
            tables.append(Text(f"{visible(name)}: {in_full(state)}"))
    return Group(*tables) if tables else Text("no finished problem yet")


def runs_table(runs: Sequence[StoredRun]) -> RenderableType:
    """A row for each run of a store."""
    if not runs:
        return Text("no runs")
    table = TextTable("run", "model", "made", "plan", "answers", left=("model", "made", "plan"))
    for run in runs:
        table.add_row(*map(visible, (run.run, str(run.model), run.label, run.plan)), count(run.rows))
    return table


def _adherence(task: str, natives: Sequence[tuple[str, Summary]], budgets: Sequence[int]) -> TextTable:
    """A table of runs under native control by budget: median share of the budget used, and share of answers over it."""
    table = TextTable("run", *budgets)
    for name, summary in natives:
        cells = summary.cells(task)
        kept = [cells[budget].adherence if budget in cells else None for budget in budgets]
        table.add_row(name, *(f"{percent(k.used)}\n{percent(k.over)}" if k else "" for k in kept))
    return table


def verdict_table(comparison: Comparison) -> RenderableType:
    """The runs in the groups and the order of the page, with its columns, and a sentence to forward.

    Columns: size, change, loss in words, the tokens with which the base is as good, tokens per solved problem, and the
    share of answers that stop by themselves. A column that would be empty for all runs is left out.
    """
    everything, findings = [comparison.base, *comparison.others], Findings.of(comparison)
    names, (sizes, tokens) = _names(everything), sizes_of(everything)
    order = ordered(comparison)
    known = {
        "as good at": any(entry.as_good for entry in comparison.others),
        "per solved": any(entry.stopping.per_correct for entry in comparison.others),
        "stops": any(entry.stops for entry in comparison.others),
    }
    added = [heading for heading, there in known.items() if there]
    table = TextTable("run", "size", "change", "loss", *added, left=("loss",))
    first = next((entry for entry in comparison.others), None)
    solves = f"solves {percent(first.primary.base_accuracy)} %" if first else ""
    own = first.stopping if first else None
    ends = own and own.endings.get(ENDS)
    of_base = {
        "as good at": "",
        "per solved": f"{own.base_per_correct:,.0f}" if own and own.base_per_correct else "",
        "stops": f"{percent(ends.base_share)} %" if ends else "",
    }
    row = [_size(comparison.base, sizes[0], None), "", solves, *(of_base[heading] for heading in added)]
    table.add_row(names[0], *row)
    groups = groupby(order.places, key=lambda place: comparison.others[place].verdict.group)
    for group, places in groups:
        some = list(places)
        entries = [comparison.others[place] for place in some]
        more = f" ({text} probably would)" if group is LossGroup.NOT_DECIDED and (text := settled_by(entries)) else ""
        table.add_line(Text(group.heading(comparison.margin) + more, style=group.style))
        for place, entry in zip(some, entries, strict=True):
            star = " *" if place == order.chosen else ""
            size = _size(entry, sizes[place + 1], sizes[0])
            table.add_row(f"{names[place + 1]}{star}", size, *_judged(entry, added))
    chosen = [] if order.chosen is None else [Text("*: the smallest of which a loss of the limit is ruled out")]
    memory = [] if tokens is None else [Text(f"size: weights, and the cache of a chain of {tokens:,} tokens, {CHAIN}")]
    largest = {entry.as_good.largest for entry in comparison.others if entry.as_good}
    like = []
    if largest:
        like.append(f"as good at: tokens with which {findings.original} solves what the run does with {max(largest):,}")
    if known["per solved"] or known["stops"]:
        like.append("at the largest budget: tokens per solved problem, and answers that stop by themselves")
    details = Text("`prunus compare STORE --details` says what this rests on: ranges, p, MDE, endings, every budget")
    budgets = {budget for entry in comparison.others for part in entry.tasks.values() for budget in part.budgets}
    levels = [Text("`prunus efforts STORE` says for each run how much thinking is enough")]
    levels *= len([budget for budget in without_off(budgets) if budget > 0]) > 1
    lines = [*chosen, *map(Text, like), *memory, details, *levels]
    said = [Text(visible(in_one_sentence(findings)))] if comparison.others else []
    return Group(_compared(comparison, names[0]), table, *said, *lines, *_notes(comparison, names))


def _size(run: Identity, nbytes: int | None, whole: int | None) -> str:
    """Size of a run, such as `55 %` of the bytes of the base (whole); in MB without whole; else the parameters."""
    if nbytes is None:
        return f"{run.parameters:,}" if isinstance(run.parameters, int) else DASH
    return f"{100 * nbytes / whole:.0f} %" if whole else f"{nbytes / 1e6:,.1f} MB"


def _judged(entry: Entry, added: Sequence[str]) -> list[Text | str]:
    """The cells of a run in verdict_table, after its size. added: headings of the columns after the loss."""
    ends = entry.stopping.endings.get(ENDS)
    fewer = ", fewer" if entry.stops and entry.stops.direction < 0 else ""
    cells = {
        "as good at": as_good_in_words(entry.as_good) if entry.as_good else "",
        "per solved": f"{entry.stopping.per_correct:,.0f}" if entry.stopping.per_correct else "",
        "stops": Text(f"{percent(ends.share)} %{fewer}", style=entry.stops.style) if ends and entry.stops else "",
    }
    said = [loss_in_words(entry).removesuffix(" points"), *remarks(entry)]
    loss = Text("; ".join(filter(None, said)), style=entry.verdict.style)
    return [points(entry.primary.difference), loss, *(cells[heading] for heading in added)]


def _brief(shown: str) -> str:
    return shown.replace(", within the limit", " (within limit)")


def _compared(comparison: Comparison, base: str) -> Text:
    several = any(entry.macro for entry in comparison.others)
    what = "accuracy averaged over budgets (log2)" if not _is_as_run(comparison) else "accuracy as run"
    what += several * ", mean of all tasks"
    limit = comparison.margin.words("what the original solves")
    return _title(f"Compared with {base}: {what}, change in points; your limit is a loss of {limit}")


def _is_as_run(comparison: Comparison) -> bool:
    return {budget for entry in comparison.others for part in entry.tasks.values() for budget in part.budgets} == {
        AS_RUN
    }


def _notes(comparison: Comparison, names: Sequence[str]) -> list[Text]:
    """Lines on repeats of the base, corrections, servings, and warnings. names: of all runs, the base first."""
    notes = [*grouped(comparison.warnings), *grouped_problems(comparison.others)]
    family = [Text(sentence)] if (sentence := corrected_for(comparison.looks)) else []
    cut = f"{MORE_CUT}: fewer answers stop by themselves than the original's"
    pairs = (
        (name, text)
        for name, entry in zip(names[1:], comparison.others, strict=True)
        for text in (*entry.warnings, *[cut] * entry.relies_on_cutting)
    )
    notes += [f"{joined(group)}: {text}" for text, group in by_text(pairs).items()]
    measured = [Text(f"{sentence}.") for sentence in repeats(comparison)]
    servings = {entry.serving: entry.serving_settings for entry in (comparison.base, *comparison.others)}
    served = [
        Text(f"{called}: served with {settings or 'no setting that counts'}")
        for called, settings in servings.items()
        if called != settings
    ]
    if len(servings) == 1 and None not in servings and not served:
        served = [Text(f"all of them: served with {next(iter(servings))}")]
    return [*measured, *family, *served, *(Text(f"warning: {visible(note)}") for note in notes)]


def detail_tables(comparison: Comparison) -> RenderableType:
    """Tables of each run's verdict with the difference in area that decides it, stopping, scaling, and every budget.

    Differences are in points. The sign after a difference at a budget is its verdict.
    """
    base, entries = comparison.base, comparison.others
    names = _names([base, *entries])
    share = "accuracy in %" if _is_as_run(comparison) else "area in %"
    columns = ("verdict", "difference", "95 % range", "p of the limit", "MDE", share, "base", "problems")
    shared = any(entry.noise_in_common is not None for entry in entries)
    table = TextTable("run", *columns, *["noise in common, %"] * shared, left=("verdict",))
    for name, entry in zip(names[1:], entries, strict=True):
        cell = entry.primary
        shares = [percent(share) for share in (cell.mde, cell.accuracy, cell.base_accuracy)]
        p = "" if entry.verdict == Verdict.UNFINISHED else probability(cell.p_margin_adjusted)
        numbers = [points(cell.difference), interval_in_words(entry), p, *shares, observations(cell, "")]
        numbers += ["" if entry.noise_in_common is None else percent(entry.noise_in_common)] * shared
        table.add_row(name, Text(_brief(verdict_in_words(entry)), style=entry.verdict.style), *numbers)
    tables: list[RenderableType] = [_compared(comparison, names[0]), table]
    if any(entry.stops for entry in entries):
        title = _title("Stopping: share of chains in % at the largest budget, and change in points")
        tables += [Text(""), title, _stopping(names, entries)]
    if any(entry.scaling for entry in entries):
        tables += [Text(""), _title("Scaling: accuracy gained per doubling of the budget"), _scaling(names, entries)]
    if any(entry.cache for entry in (base, *entries)):
        tables += [
            Text(""),
            _title("Memory in MB: weights, and the cache of a chain"),
            _memory(names, [base, *entries]),
        ]
    if comparison.recipes:
        title = _title("Recipes over calibration seeds: estimates in points, with those of each seed")
        tables += [Text(""), title, _recipes(comparison.recipes)]
        tables.append(Text("the t interval takes seeds to differ normally, and no word rests on it"))
    for task in dict.fromkeys(task for entry in entries for task in entry.tasks):
        title = _title(f"{task}: difference in points by thinking budget")
        tables += [Text(""), title, _budget_differences(task, names, entries)]
    margin, stop_margin = comparison.margin, comparison.stop_margin
    tables.append(Text("  ".join(f"{word.sign} {word.shown}" for word in WORDS)))
    lines = (
        f"loss ruled out, within the limit: with 95 %, of {margin.words()} or more (non-inferior); in how chains end,",
        f"a change for the worse of {stop_margin.words('what the original has')} or more",
        "kept: at least 90 % of the original's slope, with 95 % confidence (by a bound that is valid for any number of",
        "problems and lower than the interval shown); lost: less, with 95 % confidence",
        "over all runs of the store that could be compared, named or not, better and worse are each wrong in at most",
        "2.5 % of such tables, and a loss wrongly ruled out in 5 % (Holm); so are those of all single budgets together",
        "MDE: the true difference that is detected with 80 % power after this correction",
        "assumed: problems, or groups of problems that belong together, are independent of each other",
    )
    tables += map(Text, lines)
    return Group(*tables, *_notes(comparison, names))


def _recipes(recipes: Sequence[RecipeVerdict]) -> TextTable:
    columns = ("verdict", "seeds (of those needed)", "difference [t, 95 %]", "se", "of seeds", "of each seed")
    table = TextTable("recipe", *columns, left=("verdict",))
    for recipe in recipes:
        errors = [percent(error) for error in (recipe.se, recipe.se_seeds)]
        word, each = Text(recipe.verdict.shown, style=recipe.verdict.style), " ".join(map(points, recipe.each))
        seeds = f"{len(recipe.seeds)} ({recipe.needed or DASH})"
        table.add_row(recipe.label, word, seeds, _interval(recipe), *errors, each)
    return table


def _interval(cell: RecipeVerdict) -> str:
    return f"{points(cell.difference)} [{points(cell.low)}, {points(cell.high)}]"


def _stopping(names: Sequence[str], entries: Sequence[Entry]) -> TextTable:
    shown = (ENDS, "loops", "lost")
    table = TextTable("run", "stops", *(ENDINGS[name].words for name in shown), "tokens", left=("stops",))
    for name, entry in zip(names[1:], entries, strict=True):
        if entry.stops:
            cells = entry.stopping.endings
            values = [_ending(cells.get(ending)) for ending in shown]
            ratio = Text(f"x{times(entry.stopping.tokens_ratio)}")
            table.add_row(name, Text(_brief(entry.stops.shown), style=entry.stops.style), *values, ratio)
    return table


def _ending(cell: Ending | None) -> Text:
    """The share of an ending in percent and its change in points with the sign of its verdict."""
    if cell is None or cell.verdict is None:
        return Text("")
    shown = f"{percent(cell.share)} ({points(cell.difference)}){cell.verdict.sign}"
    return Text(shown, style=cell.verdict.style)


def _scaling(names: Sequence[str], entries: Sequence[Entry]) -> TextTable:
    columns = ("scaling", "kept in % [95 %]", "points", "base", "p of kept", "p of lost")
    table = TextTable("run", *columns, left=("scaling",))
    for name, entry in zip(names[1:], entries, strict=True):
        if (slope := entry.scaling) and slope.word:
            kept = [percent(share) for share in (slope.retention, slope.retention_low, slope.retention_high)]
            shown = "no clear slope of the base" if slope.retention is None else f"{kept[0]} [{kept[1]}, {kept[2]}]"
            numbers = [points(slope.accuracy), points(slope.base_accuracy)]
            judged = slope.word != Scaling.UNFINISHED
            numbers += [probability(p) if judged else "" for p in (slope.p_kept_adjusted, slope.p_lost_adjusted)]
            table.add_row(name, Text(slope.word.shown, style=slope.word.style), shown, *numbers)
    return table


def _budget_differences(task: str, names: Sequence[str], entries: Sequence[Entry]) -> TextTable:
    budgets = sorted({budget for entry in entries if task in entry.tasks for budget in entry.tasks[task].budgets})
    table = TextTable("run", *budgets)
    for name, entry in zip(names[1:], entries, strict=True):
        if task in entry.tasks:
            cells = entry.tasks[task].budgets
            table.add_row(name, *(_difference(cells.get(budget)) for budget in budgets))
    return table


def allocation_table(data: "Allocated") -> RenderableType:
    """A table of each block's sparsity with a bar, those of its parts where they differ, and the scores."""
    blocks = data.blocks
    parts = [part for part in ("attention", "mlp") if any(part in row.parts for row in blocks)]
    if all(abs((row.parts[part] or 0.0) - (row.sparsity or 0.0)) < 1e-9 for row in blocks for part in parts):
        parts = []
    scores = list(blocks[0].scores)
    measured = [data.score + _of_part(part) for part in scores]
    table = TextTable("block", *map(visible, ("sparsity", *parts, *measured)), "", left=("",))
    digits = len(str(blocks[-1].block))
    for row in blocks:
        shares = [percent(share) for share in (row.sparsity, *(row.parts[part] for part in parts))]
        numbers = [f"{row.scores[part]:.4g}" for part in scores]
        table.add_row(f"{row.block:{digits}}", *shares, *numbers, "█" * round(BAR_WIDTH * (row.sparsity or 0.0)))
    scope = "" if data.scope == "all" else f" of {data.scope}"
    title = Text(f"{data.allocation}: sparsity{scope} in % by block, {percent(data.sparsity)} in all", "bold")
    notes = [Text(f"warning: {visible(note)}") for note in data.warnings]
    if stability := data.evidence.get("details", {}).get("split_half_spearman"):
        listed = ", ".join(f"{value:.2f}{_of_part(part)}" for part, value in stability.items())
        notes.insert(0, Text(f"Spearman correlation of the scores from two halves of the data: {listed}."))
    return Group(title, table, Text(f"A bar of {BAR_WIDTH} columns is 100 %."), *notes)


def _of_part(part: str) -> str:
    return "" if part == "block" else f", {part}"


def inspection_tables(data: Mapping[str, Any]) -> Sequence[RenderableType]:
    """The result of `prunus inspect`: single facts, then a table for each list except that of all Linears."""
    facts = TextTable("", "", left=("",))
    tables: list[RenderableType] = [facts]
    for key, value in data.items():
        if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
            facts.add_row(key.replace("_", " "), _plain(key, value))
        elif key != "linears":
            columns = list(dict.fromkeys(column for row in value for column in row))
            names = [column.replace("_", " ") for column in columns]
            texts = [name for name, column in zip(names, columns, strict=True) if not _is_number(value[0].get(column))]
            table = TextTable(*names, left=texts)
            for row in value:
                table.add_row(*(_plain(column, row.get(column)) for column in columns))
            tables += [Text(""), _title(key), table]
    return [*tables, Text("--json lists every Linear.")] if "linears" in data else tables


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(key: str, value: object) -> str:
    if key == "cache" and isinstance(value, Mapping):
        return in_words(CacheSize.of(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(key if key == 'bytes' else name, item)}" for name, item in value.items())
    if key == "shapes" and isinstance(value, list):
        return ", ".join("x".join(map(str, shape)) for shape in value)
    if key == "blocks" and isinstance(value, list):
        return _ranges(value)
    if isinstance(value, list):
        return ", ".join(_plain(key, item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key in ("sparsity", "of_parameters"):
        return f"{percent(value)} %"
    if isinstance(value, int | float) and key.endswith("bytes"):
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else visible("none" if value is None else str(value))


def _ranges(indices: Sequence[int]) -> str:
    """Sorted whole numbers as text: `0-3, 5`, or `1, 3 .. 27` for numbers with a constant step."""
    steps = {after - before for before, after in pairwise(indices)}
    if len(indices) > 3 and len(steps) == 1 and 1 not in steps:
        return f"{indices[0]}, {indices[1]} .. {indices[-1]}"
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1] = [runs[-1][0], index]
        else:
            runs.append([index])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _names(identities: Sequence[Identity]) -> list[str]:
    return [visible(name) for name in unique_labels(identities)]


def _title(text: str) -> Text:
    """The title line above a table. The title of a rich table would be wrapped to the table's width."""
    return Text(visible(text), style="bold")


def _memory(names: Sequence[str], runs: Sequence[Identity]) -> TextTable:
    """Bytes of weights and of the cache of a chain; all chains have as many tokens if every cache is known."""
    (sizes, most), table = sizes_of(runs), TextTable("run", "weights", "cache", "sum", "tokens", "kB per token", "K, V")
    for name, run, size in zip(names, runs, sizes, strict=True):
        if run.cache is None or run.bytes is None:
            continue
        weights, tokens = sum(run.bytes.values()), most or run.cache.tokens
        whole = size if most is not None and size is not None else weights + run.cache.nbytes(tokens)
        numbers = [f"{number / 1e6:,.1f}" for number in (weights, whole - weights, whole)]
        types = run.cache.keys if run.cache.keys == run.cache.values else f"{run.cache.keys}, {run.cache.values}"
        table.add_row(name, *numbers, f"{tokens:,}", f"{run.cache.per_token / 1e3:,.1f}", types)
    return table


def _difference(cell: Cell | None) -> Text:
    if cell is None:
        return Text("")
    word = verdict(cell)
    return Text(f"{points(cell.difference)}{word.sign}", style=word.style)
