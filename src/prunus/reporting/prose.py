"""The sentences at the top of the page: verdicts, scaling and caveats."""

from collections.abc import Sequence

from prunus.budgets import AS_RUN
from prunus.margins import Margin, MarginLike
from prunus.reporting.labels import history
from prunus.reporting.render.text import DASH, count, joined, percent, points
from prunus.results.cells import Comparison, Entry
from prunus.results.labels import observations
from prunus.results.metrics import answer_allowance
from prunus.results.rows import Run
from prunus.results.stages import PARTLY, in_words
from prunus.results.stopping import ENDS
from prunus.results.summary import Summary
from prunus.results.verdicts import BETTER, ENOUGH, OPEN, SAME, UNFINISHED, WITHIN, WORSE

# Shares of draws above which an ending gets a warning.
LEAKED, TRUNCATED, SILENT, BEYOND = 0.01, 0.05, 0.2, 0.1
MORE = 0.05  # change of the tokens used that is mentioned


def title(entries: Sequence[Entry], base: str) -> str:
    """One line that counts the verdicts."""
    verdicts = [entry.verdict for entry in entries]
    if not verdicts:
        return f"{base}: accuracy against thinking budget"
    words = {
        WORSE: "worse", WITHIN: "worse within the margin", BETTER: "better", SAME: "non-inferior", OPEN: "undecided",
        UNFINISHED: "unfinished",
    }  # fmt: skip
    parts = [f"{verdicts.count(verdict)} {word}" for verdict, word in words.items() if verdict in verdicts]
    fewer = sum(entry.stops in (WORSE, WITHIN) for entry in entries)
    ends = f"; in {fewer}, fewer chains end by themselves" if fewer else ""
    nothing = f"; {lost}" if (lost := _nothing_to_lose(entries, base)) else ""
    return f"{len(verdicts)} variant{'s' * (len(verdicts) > 1)} against {base}: {joined(parts, most=9)}{ends}{nothing}"


def _nothing_to_lose(entries: Sequence[Entry], base: str) -> str:
    """Why no model can be called non-inferior where the base has nothing to lose; else empty."""
    covered = [entry.primary.base_accuracy for entry in entries if entry.nothing_to_lose]
    if not covered:
        return ""
    return "losing everything would be within the margin" if max(covered) else f"{base} solves nothing"


def headline(
    entries: Sequence[Entry], labels: Sequence[str], base: str, margin: MarginLike, stop_margin: MarginLike
) -> list[str]:
    """Sentences on runs that are worse or better, non-inferior or undecided, or unfinished; stopping; and scaling.

    The verdict concerns the area, an average over budgets. "Over the whole curve" appears only if all budgets agree;
    budgets that contradict the verdict are named.
    """
    margin, stop_margin = Margin.of(margin), Margin.of(stop_margin)
    size = margin.words(f"what {base} solves")
    ruled_out = f"not worse by {size} or more on average over the curve, with 95 % confidence"
    if margin.relative:
        ruled_out = f"within {size} on average over the curve, with 95 % confidence"
    starts = {
        (WORSE, True): f"worse than {base} over the whole curve",
        (WORSE, False): f"worse than {base} on average over the curve",
        (BETTER, True): f"better than {base} over the whole curve",
        (BETTER, False): f"better than {base} on average over the curve",
        (SAME, False): ruled_out,
        (OPEN, False): f"cannot tell, since {lost}" if (lost := _nothing_to_lose(entries, base)) else "cannot tell",
        (UNFINISHED, False): "without a verdict",
    }
    parts = [part for entry in entries for part in entry.tasks.values()]
    if {budget for part in parts for budget in part.budgets} == {AS_RUN}:  # logs without a curve
        ends = (" over the whole curve", " on average over the curve")
        starts = {key: text.replace(ends[0], "").replace(ends[1], "") for key, text in starts.items()}
    groups: dict[tuple[str, bool], list[str]] = {key: [] for key in starts}
    for entry, label in sorted(zip(entries, labels, strict=True), key=lambda pair: pair[0].primary.difference):
        word = WORSE if entry.verdict == WITHIN else entry.verdict
        groups[word, entry.whole_curve and word in (WORSE, BETTER)].append(f"{label} {_amount(entry)}")
    sentences = []
    for words in ((WORSE, BETTER), (SAME, OPEN), (UNFINISHED,)):
        parts = [f"{starts[key]}: {joined(groups[key])}" for key in starts if key[0] in words and groups[key]]
        sentences += [_sentence("; ".join(parts))] if parts else []
    sentences += _stopping(entries, labels, base, stop_margin)
    sentences += _scaling(entries, labels, base)
    return sentences or [f"There is nothing to compare with {base} yet: evaluate a pruned model into the same store."]


def _stopping(entries: Sequence[Entry], labels: Sequence[str], base: str, margin: Margin) -> list[str]:
    """A sentence about the chains that end by themselves at the largest budget; none without positive budgets."""
    judged = [
        (entry, label) for entry, label in zip(entries, labels, strict=True) if entry.stops not in (None, UNFINISHED)
    ]
    if not judged:
        return []
    groups: dict[str, list[str]] = {}
    for entry, label in judged:
        word = WORSE if entry.stops == WITHIN else str(entry.stops)
        groups.setdefault(word, []).append(f"{label} {_ends(entry)}")
    starts = {
        WORSE: f"fewer than {base}'s in",
        BETTER: f"more than {base}'s in",
        SAME: f"not fewer by {margin.words('them')} or more, with 95 % confidence, in",
        OPEN: "cannot tell for",
    }
    parts = [f"{start} {joined(groups[word])}" for word, start in starts.items() if word in groups]
    budgets = sorted({entry.stopping.budget for entry, _ in judged if entry.stopping.budget is not None})
    return [f"Chains that end by themselves at budget {joined(list(map(str, budgets)))}: {'; '.join(parts)}."]


def _ends(entry: Entry) -> str:
    """The share of chains that end by themselves, its difference, and the tokens used where they differ by 5 %."""
    cell, ratio = entry.stopping.endings[ENDS], entry.stopping.tokens_ratio
    remarks = [f"{percent(cell.share)} %, {points(cell.difference)} points"]
    remarks += ["still within the margin"] * (entry.stops == WITHIN)
    remarks += [f"{ratio:.1f} times the tokens"] if ratio is not None and abs(ratio - 1) >= MORE else []
    return f"({'; '.join(remarks)})"


def _scaling(entries: Sequence[Entry], labels: Sequence[str], base: str) -> list[str]:
    """A sentence about the accuracy gained per doubling of the budget; none without a verdict on it."""
    groups: dict[str, list[str]] = {"kept": [], "lost": [], OPEN: []}
    for entry, label in zip(entries, labels, strict=True):
        if (slope := entry.scaling) and slope.word in groups:
            share, low, high = map(percent, (slope.retention, slope.retention_low, slope.retention_high))
            groups[slope.word].append(label if slope.retention is None else f"{label} ({share} %, {low} to {high})")
    starts = {
        "kept": f"at least {100 * ENOUGH:g} % of {base}'s is kept by",
        "lost": f"less than {100 * ENOUGH:g} % of {base}'s is left in",
        OPEN: "undecided for",
    }
    parts = [f"{starts[word]} {joined(names)}" for word, names in groups.items() if names]
    return [f"Accuracy gained per doubling of the budget: {'; '.join(parts)}."] if parts else []


def rounding(comparison: Comparison) -> str:
    """How much rounding alone moves, by the base's A/A control; empty without one."""
    control = comparison.control
    if control is None:
        return ""
    interval = f"{points(control.difference)} points [{points(control.low)}, {points(control.high)}]"
    return (
        f"Rounding alone, the base against itself in other batches: {interval}, {count(control.differ)} of"
        f" {count(control.answers)} answers differ"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _amount(entry: Entry) -> str:
    """The difference with its interval (a loss without sign if worse), and the budgets that contradict it."""
    cell, word = entry.primary, entry.verdict
    if entry.unfinished:
        return f"({in_words(entry.unfinished)} problems)"
    remarks = [f"but {at.verdict} at {at.budget}, {points(at.difference)}" for at in entry.contradicted_at]
    if len(remarks) > 3:
        remarks = [*remarks[:2], f"and {len(remarks) - 2} more budgets"]
    if entry.relies_on_cutting:
        fewer = _loss(entry.stopping.endings[ENDS].difference)
        remarks.append(f"only because chains are cut: {fewer} points fewer end by themselves")
    if word in (WORSE, WITHIN):
        loss, low, high = map(_loss, (cell.difference, cell.high, cell.low))
        remarks = ["still within the margin"] * (word == WITHIN) + remarks
        return f"by {loss} points ({'; '.join([f'{low} to {high}', *remarks])})"
    if word == OPEN and not entry.adaptive:
        unseen = f"a difference below {percent(cell.mde)} may go undetected"
        remarks = [unseen if cell.mde is not None else "no loss would be detected", *remarks]
    middle = f"{points(cell.difference)} points, {points(cell.low)} to {points(cell.high)}"
    return f"({'; '.join([middle, *remarks])})"


def _loss(difference: float | None) -> str:
    return DASH if difference is None else points(-difference).removeprefix("+")


def warnings(
    comparison: Comparison,
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    labels: Sequence[str],
    elsewhere: Sequence[str] = (),
) -> list[str]:
    """Caveats as sentences, the most important first. runs, summaries, labels: the base first.

    elsewhere: ids of runs that another section shows, so that no caveat says that they are left out.
    """
    left_out = [text for text in comparison.warnings if not any(f"({run}) is left out" in text for run in elsewhere)]
    found = [
        *_legacy(runs),
        *_beyond(runs, summaries, labels),
        *_leaks(summaries, labels),
        *map(sentence, grouped(left_out)),
    ]
    if (state := summaries[0].unfinished) is not None and not comparison.others:
        found.append(f"{labels[0]}: {in_words(state)} problems; {PARTLY}.")
    found += grouped_problems(comparison.others)
    for entry, label in zip(comparison.others, labels[1:], strict=True):
        found += [f"{label}: {text}." for text in entry.warnings]
    return [*found, *_endings(summaries, labels), *_versions(runs), *_makings(runs, labels)]


def grouped_problems(entries: Sequence[Entry]) -> list[str]:
    """A sentence about each task of which some problems belong together."""
    found = {}
    for entry in entries:
        for task, part in entry.tasks.items():
            for cell in part.budgets.values():
                if cell.problems is not None:
                    found[task] = (
                        f"{task}: {observations(cell)}, of which each counts as one observation (equal or nearly equal"
                        " questions, or a group of the file); groups are assumed to be independent of each other."
                    )
    return list(found.values())


def grouped(texts: Sequence[str]) -> list[str]:
    """The texts, with those of the form `name is left out: reason` merged by reason."""
    names: dict[str, list[str]] = {}
    for text in texts:
        name, _, reason = text.partition(" is left out: ")
        names.setdefault(reason or text, []).append(name)
    lines = []
    for reason, group in names.items():
        several = len(group) > 1
        lines.append(
            f"{joined(group)} {'are' if several else 'is'} left out: {reason}" if reason not in group else reason
        )
    return lines


def sentence(text: str) -> str:
    """text with a full stop, unless it already ends a sentence."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _worst(summary: Summary, ending: str) -> tuple[float, str, int]:
    """The largest share of an ending among a run's cells, with the cell's task and budget."""
    cells = [(getattr(cell, ending), task, b) for task in summary.tasks for b, cell in summary.cells(task).items()]
    return max(cells, default=(0.0, "", 0))


def _leaks(summaries: Sequence[Summary], labels: Sequence[str]) -> list[str]:
    worst = [(*_worst(summary, "leaked"), label) for summary, label in zip(summaries, labels, strict=True)]
    leaking = [label for leaked, _, _, label in worst if leaked > LEAKED]
    if not leaking:
        return []
    leaked, task, budget, label = max(worst)
    return [
        f"The budget does not bound the tokens of {joined(leaking)}, since the reasoning continues in the answer. The "
        f"worst case is {label} on {task} at budget {budget}, where {percent(leaked)} % of answers are longer than "
        f"{count(float(answer_allowance(budget)))} tokens. Trust the curve against tokens used more than the one "
        "against budget."
    ]


def _beyond(runs: Sequence[Run], summaries: Sequence[Summary], labels: Sequence[str]) -> list[str]:
    """A sentence about each run under native control of which many chains thought beyond their budget."""
    found = []
    for run, summary, label in zip(runs, summaries, labels, strict=True):
        cells = [(b, task, c) for task in summary.tasks for b, c in summary.cells(task).items()]
        kept = [(c.adherence.over, c.adherence.used, b, task) for b, task, c in cells if c.adherence]
        over, used, budget, task = max(kept, default=(0.0, 0.0, 0, ""))
        if run.plan.get("control") == "native" and over > BEYOND:
            found.append(
                f"{label}: up to {percent(over)} % of chains thought beyond their budget ({task}, budget {budget},"
                f" where the median chain used {percent(used)} % of it). Read its curve against tokens used."
            )
    return found


def _legacy(runs: Sequence[Run]) -> list[str]:
    if runs[0].plan.get("mode") != "legacy":
        return []
    plan = runs[0].plan
    room = f" within the context of {count(plan['context'])}" if "context" in plan else ""
    return [
        f"These runs are in mode legacy: the budget bounds the thinking only, and an answer may have up to "
        f"{count(plan.get('answer_tokens'))} tokens{room}. Read the curve against tokens used, or run mode strict."
    ]


def _endings(summaries: Sequence[Summary], labels: Sequence[str]) -> list[str]:
    found = []
    for ending, limit, text in (
        ("failed", 0.0, "draws could not be graded (the grader failed or ran out of time) and count as wrong"),
        ("truncated", TRUNCATED, "answers were cut at the answer cap"),
        ("no_answer", SILENT, "draws have no answer and count as wrong"),
    ):
        value, task, budget, label = max(
            (*_worst(summary, ending), label) for summary, label in zip(summaries, labels, strict=True)
        )
        if value > limit:
            found.append(f"Up to {percent(value)} % of {text} ({label}, {task}, budget {budget}).")
    return found


def _makings(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """Warnings that were given when the models were made, each once with the labels of its models."""
    models: dict[str, list[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        for step in history(run):
            notes = step.get("warnings")
            for note in notes if isinstance(notes, list) else ():
                models.setdefault(sentence(str(note)), []).append(label)
    return [f"Warning from making {joined(names)}: {note}" for note, names in models.items()]


def _versions(runs: Sequence[Run]) -> list[str]:
    names = sorted({name for run in runs for name in run.versions})
    differing = [name for name in names if len({str(run.versions.get(name)) for run in runs}) > 1]
    return [f"Not all runs were made with the same {joined(differing)}; see Methods."] if differing else []
