"""The sentences of the page: which variant to choose, what it loses, whether variants stop, and caveats."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from prunus.reporting.render.text import NBSP, VERSION, count, joined, percent, points
from prunus.reporting.report_data import ReportData, ReportedRun
from prunus.results.cells import Comparison, Entry, Looks
from prunus.results.contrasts import ENDS
from prunus.results.order import doubt, most_ruled_out, ordered, settled_by, sizes_by_place
from prunus.results.vocabulary import LossGroup, Verdict
from prunus.results.words import MORE_CUT, in_full, in_words, loss_in_words, observations, verdict_in_words
from prunus.statistics.metrics import answer_allowance
from prunus.store.labels import identity, sizes_of, unique_labels
from prunus.store.stored import StoredPlan

# Shares of answers above which an ending gets a warning.
LEAKED, TRUNCATED, SILENT, BEYOND = 0.01, 0.05, 0.2, 0.1
WORDS = 16  # of the title, at most


@dataclass(frozen=True)
class Findings:
    """Facts from which the sentences about a comparison are written.

    comparison: its entries in the order in which they are shown. chosen: the index of the variant to choose. labels,
    sizes: of all runs, the base first; sizes in bytes, None where they are not known.
    """

    comparison: Comparison
    chosen: int | None
    labels: Sequence[str]
    sizes: Sequence[int | None]

    @classmethod
    def of(cls, comparison: Comparison) -> Self:
        """Findings of a comparison, whose entries may be in any order."""
        order = ordered(comparison)
        chosen = None if order.chosen is None else order.places.index(order.chosen)
        comparison = replace(comparison, others=[comparison.others[place] for place in order.places])
        runs = [comparison.base, *comparison.others]
        return cls(comparison, chosen, unique_labels(runs), sizes_of(runs)[0])

    @classmethod
    def on(cls, data: ReportData) -> Self:
        """Findings of the data of a page."""
        runs = data.runs
        return cls(data.comparison, data.chosen, [run.style.label for run in runs], [run.nbytes for run in runs])

    @property
    def entries(self) -> Sequence[Entry]:
        """The variants."""
        return self.comparison.others

    @property
    def original(self) -> str:
        """What to call the base: the original if nothing was done to it, else its label."""
        return self.labels[0] if self.comparison.base.recipe else "the original"

    @property
    def headline(self) -> int | None:
        """The index of the variant to choose, or else that of most_ruled_out; None if no variant has a verdict."""
        sizes = sizes_by_place(self.comparison)
        return most_ruled_out(self.entries, sizes) if self.chosen is None else self.chosen

    def share_of_memory(self, place: int) -> str:
        """`55 % of the memory`, or of the parameters; empty where a model is as large, or its size is not known."""
        entry, base = self.entries[place], self.comparison.base
        kinds = (
            (self.sizes[place + 1], self.sizes[0], "memory"),
            (entry.parameters, base.parameters, "parameters"),
        )
        for size, whole, what in kinds:
            if size and whole:
                share = f"{100 * size / whole:.0f}"
                return "" if share == "100" else f"{share}{NBSP}% of the {what}"
        return ""


def original(data: ReportData) -> str:
    """What to call the base of a page."""
    return Findings.on(data).original


def title(findings: Findings) -> str:
    """One line of at most WORDS words: the variant to choose, with its memory and its loss, or that there is none."""
    entries, labels, base = findings.entries, findings.labels[1:], findings.original
    loss = f"a loss of {findings.comparison.margin.words(f'what {base} solves')}"
    if not entries:
        return f"{base[:1].upper()}{base[1:]}: problems solved, by thinking tokens allowed"
    if findings.chosen is not None:
        entry = entries[findings.chosen]
        lost, ends = loss_in_words(entry), entry.stopping.endings.get(ENDS)
        if "%" in lost:  # of a margin that is relative, which takes too many words
            lost = "stays within the limit"
        cut = ", but most of its thinking is cut" if ends is not None and ends.share < 0.5 else ""
        end = ["", cut, ", but stops less often", ", but is worse at some budgets"]
        share = findings.share_of_memory(findings.chosen)
        size = f"takes {share} and " if share else ""
        return _fitted(labels[findings.chosen], f"{size}{lost}{end[doubt(entry)]}")
    if lost := _nothing_to_lose(entries, base):
        return f"No loss can be ruled out: {lost}"
    if len(entries) == 1:
        group = entries[0].verdict.group
        more = "" if group is LossGroup.NOT_FINISHED else f": it {loss_in_words(entries[0])}"
        return _fitted(labels[0], f"is {group.said}{more}")
    return f"{loss[0].upper()}{loss[1:]} is ruled out for no variant: {counts(entries)}"


def remarks(entry: Entry) -> list[str]:
    """Caveats of a verdict: what single budgets say, that thinking is cut, how the problems came about."""
    found = [f"but {at.verdict.shown} at {at.budget} ({points(at.difference)})" for at in entry.contradicted_at[:2]]
    if entry.relies_on_cutting:
        found.append(f"but {MORE_CUT}")
    if entry.whole_curve:
        found.append("at every budget")
    if entry.unfinished:
        state, shown = entry.unfinished, in_words(entry.unfinished)
        return [shown if state.mixed else f"{shown.removeprefix('unfinished, ')} problems"]
    if entry.grown or entry.adaptive:
        found.insert(0, "limit or answers per problem changed" if entry.grown else "collected adaptively")
    return found


def corrected_for(looks: Looks | None) -> str:
    """A sentence on all comparisons for which verdicts are corrected; empty if these are only those that are shown."""
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
    """`3 are worse and 2 are not decided`."""
    groups = Counter(entry.verdict.group for entry in entries)
    return joined([f"{number} {'is' if number == 1 else 'are'} {group.said}" for group, number in groups.most_common()])


def _fitted(name: str, rest: str) -> str:
    """The words as one line, with the name cut so that there are at most WORDS."""
    return f"{_cut(name, max(1, WORDS - len(rest.split())))} {rest}"


def _cut(text: str, most: int) -> str:
    words = text.split()
    return text if len(words) <= most else f"{' '.join(words[:most])}…"


def _nothing_to_lose(entries: Sequence[Entry], base: str) -> str:
    """Why no loss can be ruled out where the base has nothing to lose; else empty."""
    covered = [entry.primary.base_accuracy for entry in entries if entry.nothing_to_lose]
    if not covered:
        return ""
    return "losing everything would be within the limit" if max(covered) else f"{base} solves nothing"


def lead(findings: Findings) -> str:
    """At most four sentences on one variant: what it solves, its loss and the limit, and whether its answers stop.

    It is the variant of Findings.headline. The bound on its loss holds although the variant was selected; the
    accuracies are as measured.
    """
    entries, labels, base, shown = findings.entries, [*findings.labels[1:]], findings.original, findings.headline
    if not entries:
        return f"There is nothing to compare with {findings.original} yet: evaluate a variant into the same store."
    if shown is None:
        return f"Without a verdict: {joined(labels)}."
    entry, cell, name = entries[shown], entries[shown].primary, labels[shown]
    who = "it" if findings.chosen is not None or len(entries) == 1 else name
    limit = findings.comparison.margin.words(f"what {base} solves")
    sentences = []
    if who != "it":
        sentences.append(f"Most is ruled out for {name}.")
    average = averaged(findings)
    start = f"{average[0].upper()}{average[1:]}, it" if average else "It"
    sentences.append(
        f"{start} solves {percent(cell.accuracy)} % of the problems and {base} {percent(cell.base_accuracy)} %."
    )
    each = "each end with" if entry.verdict.direction < 0 else "with"
    more = f"; {needed}" if entry.verdict == Verdict.CANNOT_TELL and (needed := _needed(entry)) else ""
    sentences.append(f"It {loss_in_words(entry)}, {each} {confidence(findings)}; your limit is {limit}{more}.")
    if stops := _stops(entry, base):
        sentences.append(stops)
    return " ".join(sentences)


def in_one_sentence(findings: Findings) -> str:
    """The title with the limit, and with the confidence if it has a bound, for somebody who sees nothing else."""
    limit = findings.comparison.margin.words(f"what {findings.original} solves")
    bounded = findings.headline is not None and (
        findings.chosen is not None or not _nothing_to_lose(findings.entries, findings.original)
    )
    return f"{title(findings)}{f', with {confidence(findings)}' * bounded}; your limit is {limit}."


def averaged(findings: Findings) -> str:
    """`averaged over thinking budgets of 16 to 512 tokens`; empty for a single one, and without any."""
    parts = {task: part for entry in findings.entries for task, part in entry.tasks.items()}
    budgets = sorted({b for entry in findings.entries for part in entry.tasks.values() for b in part.budgets if b > 0})
    tasks = f"{len(parts)} tasks" if len(parts) > 1 else ""
    spread = f"thinking budgets of {budgets[0]} to {budgets[-1]} tokens" if len(budgets) > 1 else ""
    return f"averaged over {joined([text for text in (tasks, spread) if text])}" if tasks or spread else ""


def confidence(findings: Findings) -> str:
    """`95 % confidence for all 7 variants together`."""
    several = len(findings.entries)
    return f"95 % confidence{f' for all {several} variants together' if several > 1 else ''}"


def _needed(entry: Entry) -> str:
    """A phrase on how many problems would probably decide; empty if these are enough, or the number is not known."""
    number = settled_by([entry])
    return f"{number} probably would decide" if number else ""


def _stops(entry: Entry, base: str) -> str:
    """A sentence on how many answers end by themselves at the largest budget; empty if unknown. base: its name."""
    cell = entry.stopping.endings.get(ENDS)
    if cell is None:
        return ""
    number = round(cell.share * cell.n)
    if cell.samples > 1 or cell.problems is not None or entry.macro is not None:
        share = percent(cell.base_share)
        return f"{percent(cell.share)}{NBSP}% of its answers stop by themselves ({share}{NBSP}% of {base}'s)."
    of_base = round(cell.base_share * cell.n)
    return (
        f"All {cell.n} of its answers stop by themselves."
        if number == cell.n
        else f"{number} of its {cell.n} answers stop by themselves, {of_base} of {base}'s."
    )


def forward(data: ReportData) -> str:
    """What the page says, as plain text that can be sent to somebody who does not see it."""
    findings, base = Findings.on(data), data.base
    lines = [f"{title(findings)}.", lead(findings)]
    for place, (entry, run) in enumerate(zip(findings.entries, data.others, strict=True)):
        share = findings.share_of_memory(place)
        facts = [f"measured {points(entry.primary.difference)} points", loss_in_words(entry), share]
        word = verdict_in_words(entry)
        lines.append(f"- {run.style.label} ({run.run.run_id}): {word}; {', '.join(filter(None, facts))}")
    lines.append(f"Compared with {base.style.label} ({base.run.run_id}) on {_problems(data)}; Prunus {VERSION}.")
    return "\n".join(lines)


def _problems(data: ReportData) -> str:
    """`tiny, 210 problems, 1 answer each`."""
    summary = data.base.summary
    curves = summary.tasks.values()
    problems = sum(curve.problems for curve in curves)
    groups = sum(curve.problems if curve.groups is None else curve.groups for curve in curves)
    own = data.base.run.plan.samples
    draws = dict.fromkeys(run.run.plan.samples for run in data.others) or {own: None}
    each = " or ".join(map(str, draws))
    of_base = "" if each == str(own) else f" ({own} of {original(data)})"
    grouped = f" in {groups} groups" * (groups < problems)
    answers = f"{each} answer{'' if each == '1' else 's'} each{of_base}"
    return f"{', '.join(summary.tasks)}, {problems} problems{grouped}, {answers}"


def facts(data: ReportData) -> str:
    """`7 compressed variants of tiny against the original · tiny, 210 problems, 1 answer each`."""
    number, name = len(data.others), identity(data.base.run).model
    of = "" if name == original(data) else f" of {name}"
    variants = f"{number} variant{'s' * (number != 1)}{of} against {original(data)}" if number else name
    return f"{variants} · {_problems(data)}"


def repeats(comparison: Comparison) -> list[str]:
    """A sentence on each repeated run of the base: how much its answers differ with the same model and plan."""
    return [
        f"The base against itself {repeat.how}: {points(repeat.difference)} points"
        f" [{points(repeat.low)}, {points(repeat.high)}], {count(repeat.differ)} of {count(repeat.answers)} answers"
        f" and {count(repeat.grades)} of their grades differ"
        + "; hold smaller effects against this"
        * bool(repeat.differ)
        for repeat in comparison.repeats
    ]


def warnings(data: ReportData) -> list[str]:
    """Caveats as sentences, the most important first."""
    states = [(run.style.label, run.summary.unfinished) for run in data.runs]
    ids = {run.run.run_id for run in data.runs}
    # They are shown by a section, so that no caveat says that they are left out.
    others = [run for both in data.both_modes for run in both if run.run.run_id not in ids]
    states += [(f"{run.style.label} in {run.run.plan.mode} mode", run.summary.unfinished) for run in others]
    short = [(name, state) for name, state in states if state and not state.mixed]
    lacking = [f"{name} has {state.complete} of {state.planned} problems" for name, state in short]
    shown = [f"({run.run.run_id}) is left out" for run in others]
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
    pairs = ((run.style.label, text) for run in data.others if run.contrast for text in run.contrast.warnings)
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
        (getattr(cell, ending), task, budget, run.style.label)
        for run in runs
        for task in run.summary.tasks
        for budget, cell in run.cells(task).items()
    ]
    return max(cells, default=(0.0, "", 0, ""))


def _leaks(runs: Sequence[ReportedRun]) -> list[str]:
    leaking = [run.style.label for run in runs if _worst([run], "leaked")[0] > LEAKED]
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
    """A sentence about each run under native control in which many chains thought beyond their budget."""
    sentences = []
    for run in runs:
        cells = [(b, task, c.adherence) for task in run.summary.tasks for b, c in run.cells(task).items()]
        kept = [(kept.over, kept.used, budget, task) for budget, task, kept in cells if kept]
        over, used, budget, task = max(kept, default=(0.0, 0.0, 0, ""))
        if run.run.plan.is_native and over > BEYOND:
            sentences.append(
                f"{run.style.label}: up to {percent(over)} % of chains thought beyond their budget ({task}, budget"
                f" {budget}, where the median chain used {percent(used)} % of it). Read its curve against tokens used."
            )
    return sentences


def _legacy(plan: StoredPlan) -> list[str]:
    if plan.mode != "legacy":
        return []
    room = "" if plan.context is None else f" within the context of {count(plan.context)}"
    return [
        f"These runs are in mode legacy: the budget bounds the thinking only, and an answer may have up to "
        f"{count(plan.answer_cap)} tokens{room}. Read the curve against tokens used, or run mode strict."
    ]


def _endings(runs: Sequence[ReportedRun]) -> list[str]:
    worst = (
        (_worst(runs, ending), limit, text)
        for ending, limit, text in (
            ("failed", 0.0, "answers could not be graded (the grader failed or ran out of time) and count as wrong"),
            ("truncated", TRUNCATED, "answers were cut at the answer cap"),
            ("no_answer", SILENT, "chains end without an answer and count as wrong"),
        )
    )
    return [
        f"Up to {percent(value)} % of {text} ({label}, {task}, budget {budget})."
        for (value, task, budget, label), limit, text in worst
        if value > limit
    ]


def _makings(runs: Sequence[ReportedRun]) -> list[str]:
    """Warnings that were given when the models were made, each once with the labels of its models."""
    given = ((run.style.label, step.warnings) for run in runs for step in run.run.model.manifest.history)
    pairs = ((label, sentence(note)) for label, notes in given for note in notes)
    return [f"Warning from making {joined(names)}: {note}" for note, names in by_text(pairs).items()]


def _versions(runs: Sequence[ReportedRun]) -> list[str]:
    versions = [run.run.environment.data for run in runs]
    names = sorted({name for of in versions for name in of})
    differing = [name for name in names if len({str(of.get(name)) for of in versions}) > 1]
    return [f"Not all runs were made with the same {joined(differing)}; see Methods."] if differing else []
