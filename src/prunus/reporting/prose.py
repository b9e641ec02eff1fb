"""The sentences of the page: which variant to choose, whether variants stop, and caveats."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunus.reporting.render.text import count, joined, percent, points
from prunus.reporting.report_data import FIT, ReportData, ReportedRun, doubt
from prunus.results.cells import Comparison, Entry, Looks
from prunus.results.contrasts import ENDS
from prunus.results.verdicts import OPEN, SAME, WITHIN, WORSE
from prunus.results.words import bound_in_words, in_full, loss_in_words, observations
from prunus.settings.budgets import AS_RUN
from prunus.settings.margins import Margin
from prunus.statistics.metrics import answer_allowance
from prunus.store.labels import history

# Shares of draws above which an ending gets a warning.
LEAKED, TRUNCATED, SILENT, BEYOND = 0.01, 0.05, 0.2, 0.1
WORDS = 15  # of the title, at most


def title(entries: Sequence[Entry], labels: Sequence[str], base: str, chosen: int | None) -> str:
    """One line of at most WORDS words: the variant to choose, at its place in entries, or that there is none."""
    if not entries:
        return f"{base}: accuracy against thinking budget"
    if chosen is not None:
        entry = entries[chosen]
        verb, end, at_most = "is better than", _end(entry), bound_in_words(entry)
        if "%" in at_most:  # of what the base solves, which takes too many words
            verb = {SAME: "is non-inferior to", WITHIN: "stays within the margin of"}.get(entry.verdict, verb)
        elif entry.verdict == SAME:
            verb = f"{at_most} against"
        elif entry.verdict == WITHIN:
            verb, end = "is worse than", f"by {at_most.removeprefix('loses ')} {end}"
        return _fitted(labels[chosen], verb, base, end)
    if lost := _nothing_to_lose(entries, base):
        return f"No variant can be non-inferior: {lost}"
    if len(entries) == 1:
        verb = {WORSE: "is worse than", OPEN: "may or may not be as good as"}
        return _fitted(labels[0], verb.get(entries[0].verdict, "is unfinished beside"), base, "")
    return _fitted("No variant", "is shown as good as", f"{base}:", counts(entries))


def _end(entry: Entry) -> str:
    """What the title says of how the chains of a chosen variant end."""
    ends, doubts = entry.stopping.endings.get(ENDS), doubt(entry)
    if entry.stops == WITHIN and doubts == 1:
        doubts = 2  # a loss is shown
    cut = ends is not None and ends.share < 0.5
    stops = "and still stops" if entry.still_stops else ""
    unsure = "but most chains are cut" if cut else "but may not stop as often"
    return [stops, unsure, "but stops less often", "but worse at some budgets"][doubts]


def corrected_for(looks: Looks | None) -> str:
    """A sentence on the comparisons of the store for which verdicts are corrected besides those shown; else empty."""
    if looks is None:
        return ""
    more = [f"{looks.others} of runs that are not shown"] * bool(looks.others)
    more += [f"{looks.removed} of runs that were removed"] * bool(looks.removed)
    more += [f"as many by each of the {looks.bases} runs of the base"] * (looks.bases > 1)
    if not more:
        return ""
    return (
        f"Verdicts are corrected for {looks.comparisons} comparisons that could be shown from this store, among them"
        f" {joined(more)}."
    )


def counts(entries: Sequence[Entry]) -> str:
    """`1 non-inferior, 4 worse and 2 undecided`."""
    verdicts = ["undecided" if entry.verdict == OPEN else entry.verdict for entry in entries]
    return joined([f"{number} {verdict}" for verdict, number in Counter(verdicts).most_common()], most=9)


def _fitted(name: str, verb: str, base: str, end: str) -> str:
    """The words as one line, with the names cut so that there are at most WORDS."""
    room = WORDS - len(f"{verb} {end}".split())
    if len(f"{name} {base}".split()) > room:
        base = _cut(base, max(1, room // 3))
        name = _cut(name, room - len(base.split()))
    return f"{name} {verb} {base} {end}".strip()


def _cut(text: str, most: int) -> str:
    words = text.split()
    return text if len(words) <= most else f"{' '.join(words[:most])}…"


def _nothing_to_lose(entries: Sequence[Entry], base: str) -> str:
    """Why no model can be called non-inferior where the base has nothing to lose; else empty."""
    covered = [entry.primary.base_accuracy for entry in entries if entry.nothing_to_lose]
    if not covered:
        return ""
    return "losing everything would be within the margin" if max(covered) else f"{base} solves nothing"


def lead(
    entries: Sequence[Entry], labels: Sequence[str], base: str, margin: Margin, shown: int | None, sizes: Sequence[str]
) -> str:
    """At most two sentences on one variant: its loss; its size, and whether it stops.

    shown: its place: that of the variant to choose, or else of that of whose loss most is ruled out; None without a
    verdict. What is said of the loss is valid although it was chosen: neither its estimate nor its interval are.

    sizes: of each variant, in words.
    """
    if not entries:
        return f"There is nothing to compare with {base} yet: evaluate a pruned model into the same store."
    if shown is None:
        return f"Without a verdict: {joined(list(labels))}."
    entry, ends = entries[shown], entries[shown].stopping.endings.get(ENDS)
    curve = {budget for part in entry.tasks.values() for budget in part.budgets} != {AS_RUN}
    bounds = loss_in_words(entry)
    confidence = f"{'each ' * (', and ' in bounds)}with 95 % confidence for all comparisons together"
    against = [f"but {at.verdict} at {at.budget} ({points(at.difference)})" for at in entry.contradicted_at[:2]]
    said = ", ".join([f"{bounds}{' over the curve' * curve}", confidence, *against])
    loss = f"a loss of {margin.words(f'what {base} solves')} or more"
    if entry.verdict in FIT:
        start, sure = labels[shown], f"{loss} is ruled out"
    else:
        start = labels[shown] if len(entries) == 1 else f"Most is ruled out for {labels[shown]}: it"
        sure = f"{loss} cannot be ruled out{_needed(entry)}" if entry.verdict == OPEN else "it is worse"
    stops = ""
    if ends is not None:
        stops = f", and {percent(ends.share)} % of its chains end by themselves ({points(ends.difference)} points)"
    return f"{start} {said}; {sure}. {sizes[shown]}{stops}."


def _needed(entry: Entry) -> str:
    """How many problems would detect a loss, after a comma; empty where these are enough, or it is not known."""
    settle = entry.primary.settle
    if settle is None or not settle.problems or settle.problems <= entry.primary.all_problems:
        return ""
    present, effect = count(entry.primary.all_problems), percent(settle.effect)
    return f", as there are {present} problems, where it takes about {count(settle.problems)} to detect {effect} points"


def repeats(comparison: Comparison) -> list[str]:
    """A sentence on each other run of the base's model and plan: how much changes where nothing should."""
    return [
        f"The base against itself {one.how}: {points(one.difference)} points [{points(one.low)}, {points(one.high)}],"
        f" {count(one.differ)} of {count(one.answers)} answers and {count(one.grades)} of their grades differ"
        + "; hold smaller effects against this"
        * bool(one.differ)
        for one in comparison.repeats
    ]


def warnings(data: ReportData) -> list[str]:
    """Caveats as sentences, the most important first."""
    states = [(one.style.label, one.summary.unfinished) for one in data.runs]
    ids = {one.run.run_id for one in data.runs}
    # They are shown by a section, so that no caveat says that they are left out.
    others = [one for both in data.both_modes for one in both if one.run.run_id not in ids]
    states += [(f"{one.style.label} in {one.run.plan.get('mode')} mode", one.summary.unfinished) for one in others]
    short = [(name, state) for name, state in states if state and not state.mixed]
    lacking = [f"{name} has {state.complete} of {state.planned} problems" for name, state in short]
    shown = [f"({one.run.run_id}) is left out" for one in others]
    left_out = [text for text in data.comparison.warnings if not any(part in text for part in shown)]
    sentences = [
        f"Not finished: {joined(lacking, most=7)}. All numbers are for complete problems only; the same command resumes"
        " the run."
    ] * bool(lacking)
    sentences += [
        *_legacy(data.base.run.plan),
        *_beyond(data.runs),
        *_leaks(data.runs),
        *map(sentence, grouped(left_out)),
    ]
    if (state := data.base.summary.unfinished) is not None and not data.others:
        sentences.append(f"{data.base.style.label}: {in_full(state)}.")
    sentences += grouped_problems(data.comparison.others)
    sentences += filter(None, [corrected_for(data.comparison.looks)])
    pairs = ((one.style.label, text) for one in data.others if one.contrast for text in one.contrast.warnings)
    sentences += [f"{joined(names)}: {text}." for text, names in by_text(pairs).items()]
    return [*sentences, *_endings(data.runs), *_versions(data.runs), *_makings(data.runs)]


def grouped_problems(entries: Sequence[Entry]) -> list[str]:
    """A sentence about each task of which some problems belong together."""
    sentences = {}
    for entry in entries:
        for task, part in entry.tasks.items():
            for cell in part.budgets.values():
                if cell.problems is not None:
                    sentences[task] = (
                        f"{task}: {observations(cell)}, of which each counts as one observation (equal or nearly equal"
                        " questions, or a group of the file); groups are assumed to be independent of each other."
                    )
    return list(sentences.values())


def by_text(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names of each text, from pairs of a name and a text."""
    names: dict[str, list[str]] = {}
    for name, text in pairs:
        names.setdefault(text, []).append(name)
    return names


def grouped(texts: Sequence[str]) -> list[str]:
    """The texts, with those of the form `name is left out: reason` merged by reason."""
    parts = (text.partition(" is left out: ") for text in texts)
    lines = []
    for reason, group in by_text((name, reason or name) for name, _, reason in parts).items():
        several = len(group) > 1
        lines.append(
            f"{joined(group)} {'are' if several else 'is'} left out: {reason}" if reason not in group else reason
        )
    return lines


def sentence(text: str) -> str:
    """text with a full stop, unless it already ends a sentence."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _worst(runs: Sequence[ReportedRun], ending: str) -> tuple[float, str, int, str]:
    """The largest share of an ending among the cells of runs, with the cell's task and budget, and the run's label."""
    cells = [
        (getattr(cell, ending), task, budget, one.style.label)
        for one in runs
        for task in one.summary.tasks
        for budget, cell in one.cells(task).items()
    ]
    return max(cells, default=(0.0, "", 0, ""))


def _leaks(runs: Sequence[ReportedRun]) -> list[str]:
    leaking = [one.style.label for one in runs if _worst([one], "leaked")[0] > LEAKED]
    if not leaking:
        return []
    leaked, task, budget, label = _worst(runs, "leaked")
    return [
        f"The budget does not bound the tokens of {joined(leaking)}, since the reasoning continues in the answer. The "
        f"worst case is {label} on {task} at budget {budget}, where {percent(leaked)} % of answers are longer than "
        f"{count(float(answer_allowance(budget)))} tokens. Trust the curve against tokens used more than the one "
        "against budget."
    ]


def _beyond(runs: Sequence[ReportedRun]) -> list[str]:
    """A sentence about each run under native control of which many chains thought beyond their budget."""
    sentences = []
    for one in runs:
        cells = [(b, task, c.adherence) for task in one.summary.tasks for b, c in one.cells(task).items()]
        kept = [(kept.over, kept.used, budget, task) for budget, task, kept in cells if kept]
        over, used, budget, task = max(kept, default=(0.0, 0.0, 0, ""))
        if one.run.plan.get("control") == "native" and over > BEYOND:
            sentences.append(
                f"{one.style.label}: up to {percent(over)} % of chains thought beyond their budget ({task}, budget"
                f" {budget}, where the median chain used {percent(used)} % of it). Read its curve against tokens used."
            )
    return sentences


def _legacy(plan: Mapping[str, Any]) -> list[str]:
    if plan.get("mode") != "legacy":
        return []
    room = f" within the context of {count(plan['context'])}" if "context" in plan else ""
    return [
        f"These runs are in mode legacy: the budget bounds the thinking only, and an answer may have up to "
        f"{count(plan.get('answer_tokens'))} tokens{room}. Read the curve against tokens used, or run mode strict."
    ]


def _endings(runs: Sequence[ReportedRun]) -> list[str]:
    worst = (
        (_worst(runs, ending), limit, text)
        for ending, limit, text in (
            ("failed", 0.0, "draws could not be graded (the grader failed or ran out of time) and count as wrong"),
            ("truncated", TRUNCATED, "answers were cut at the answer cap"),
            ("no_answer", SILENT, "draws have no answer and count as wrong"),
        )
    )
    return [
        f"Up to {percent(value)} % of {text} ({label}, {task}, budget {budget})."
        for (value, task, budget, label), limit, text in worst
        if value > limit
    ]


def _makings(runs: Sequence[ReportedRun]) -> list[str]:
    """Warnings that were given when the models were made, each once with the labels of its models."""
    given = ((one.style.label, step.get("warnings")) for one in runs for step in history(one.run))
    pairs = ((label, sentence(str(note))) for label, notes in given if isinstance(notes, list) for note in notes)
    return [f"Warning from making {joined(names)}: {note}" for note, names in by_text(pairs).items()]


def _versions(runs: Sequence[ReportedRun]) -> list[str]:
    versions = [one.run.versions for one in runs]
    names = sorted({name for of in versions for name in of})
    differing = [name for name in names if len({str(of.get(name)) for of in versions}) > 1]
    return [f"Not all runs were made with the same {joined(differing)}; see Methods."] if differing else []
