"""How this was measured: terms, settings, versions and seeds, sizes, and the number of tokens sampled."""

import json
from collections.abc import Sequence

from prunus.reporting.prose import Findings, averaged, original, repeats
from prunus.reporting.render.table import RUN, Column, Interval, RunStyle, Table, named
from prunus.reporting.render.text import THIN, clip, count, esc, percent
from prunus.reporting.report_data import ReportData
from prunus.reporting.section import Section, details, part, soft, titled
from prunus.results.contrasts import STOPS
from prunus.settings.budgets import AS_RUN, OFF
from prunus.statistics.metrics import LEAK_RULE
from prunus.store.labels import identity
from prunus.store.rows import UNKNOWN, Run, Sample, chains_of, sampled_tokens
from prunus.store.stored import StoredPlan

RECORD_LIMIT = 20_000  # maximum number of characters of a run's settings
SHOWN = ("action", "recipe", "versions", "source", "blocks_removed", "experts_removed", "channels", "scores")


def section(data: ReportData) -> Section:
    """The terms, methods, settings, versions and seeds, sizes, and the numbers of tokens that were sampled; folded."""
    plan, method = data.base.run.plan, data.comparison.method
    sentences = [
        *_procedure(data.base.run),
        f"Differences are paired by problem. Assumed: {method['assumed']}. Intervals: {method['interval']}; bands: "
        f"{method['band']}; p: {method['p']}; p adjusted: {method['p_adjusted']}; q: {method['q']}; limit: "
        f"{method['margin']}; range that decides: {method['lower_bound_adjusted']}, {method['upper_bound_adjusted']};"
        f" scaling: {method['scaling']}.",
    ]
    if not data.base.run.imported:
        sentences.append(
            f"An answer runs on (leaks) if it is longer than {LEAK_RULE} tokens: then the budget does not bound the"
            " tokens used."
        )
    if OFF in plan.budgets:
        sentences.append(
            "Budget off: the thinking is switched off in the prompt, and the answer is a request of its own, under the "
            "same sampling settings. It is no point of the curve: average, slope and verdicts leave it out."
        )
    rows = {
        "Tasks": ", ".join(plan.tasks),
        "Budgets": ", ".join(map(str, plan.budgets)),
        "Answers per problem": plan.samples,
        **_settings(data.base.run),
        "Resamples": str(method["resamples"]),
        "Limit (--margin)": data.comparison.margin.words(),
        "Limit of stopping (--stop-margin)": data.comparison.stop_margin.words(STOPS),
    }
    facts = "".join(f"<dt>{esc(name)}</dt><dd><bdi>{esc(value)}</bdi></dd>" for name, value in rows.items() if value)
    runs, totals = "".join(_run_details(run.style, run.run) for run in data.runs), totals_table(data)
    sizes = [size_table(data, task) for task in data.tasks if any(run.nbytes for run in data.runs)]
    alone = "".join(soft(esc(f"{sentence}.")) for sentence in repeats(data.comparison))
    terms = "".join(f"<dt>{esc(name)}</dt><dd>{esc(text)}</dd>" for name, text in _terms(data).items())
    whole = titled("Terms", f"<dl>{terms}</dl>") if data.others else ""
    whole += alone + titled("Methods and settings", f"<p>{' '.join(map(esc, sentences))}</p><dl>{facts}</dl>")
    bytes_of = zip(data.tasks, sizes, strict=False)
    whole += "".join(titled(data.title("Bytes", task), table.html()) for task, table in bytes_of)
    answers, tokens = (sum(values[place] or 0 for _, values in totals.rows) for place in (0, 4))
    says = f"{len(data.runs)} runs have {count(answers)} answers"
    says += f", for which {count(tokens)} tokens were sampled." if tokens else "."
    whole += titled("Answers and tokens sampled", totals.html() + soft(says))
    whole += titled("Every run with its versions and seeds", runs)
    html = part("method", "How this was measured", "", details("Terms, methods, settings, versions, seeds", whole))
    return Section("method", html, tables=[totals, *sizes], name="Method")


def _terms(data: ReportData) -> dict[str, str]:
    """{term: what it means} of the page."""
    loss, base = data.comparison.margin.words(f"what {original(data)} solves"), data.base.style.label
    terms = {
        "the original": f"the model that variants are compared with, {base} of {identity(data.base.run).model}",
        "your limit": f"the loss of accuracy that you can tolerate, {loss} (option --margin)",
        "a loss is ruled out": "with 95 % confidence the loss is smaller than the limit; statistics calls such a"
        " variant non-inferior",
        "worse, better": "accuracy is shown to be lower or higher, at most 2.5 % of such pages wrongly",
        "not decided": "there are too few problems to show either; it is no sign that there is no loss",
        "range, bar": "every change that the data leave open, by the tests that decide, for all variants together",
    }
    if average := averaged(Findings.on(data)):
        terms["accuracy"] = f"the share of problems that are solved, {average}"
    if any(run.as_good for run in data.others):
        terms["as good as the original at"] = (
            "the thinking tokens with which the original solves as much as the variant with all of them: an estimate,"
            " and between which budgets it lies with 95 % confidence"
        )
    if any(run.nbytes for run in data.runs):
        terms["memory"] = counted(data)
    return terms


def counted(data: ReportData) -> str:
    """A phrase for what the bytes of a run count: weights, and the cache if that is known."""
    if data.tokens is None:
        return "weights that an engine loads"
    return f"weights, and the cache of an answer of {data.tokens:,} tokens"


def _procedure(run: Run) -> list[str]:
    """Sentences on how the outputs of a run came about, and on who graded them."""
    plan = run.plan
    if run.imported:
        budget = "without a thinking budget (as run)" if AS_RUN in plan.budgets else "a log or more for each budget"
        return [
            f"These are outputs of {plan.tool}, imported from its logs, {budget}. "
            f"Prompts, limits, sampling and grades are that tool's, by its metric {plan.metric}.",
            "Accuracy is the share of answers graded correct, averaged over problems. Intervals take the problem as "
            "the unit.",
        ]
    shared = "share one chain." if plan.reuse else "have chains of their own."
    return [
        "The engine or the model keeps the budget (native control), which is only asked for, so that a chain may think "
        f"longer; its adherence is in the table of tokens. All budgets of an answer {shared}"
        if plan.is_native
        else "Thinking is cut at the budget and closed, and the answer is generated after it (budget forcing). All "
        f"budgets of an answer {shared}",
        "Accuracy is the share of answers graded correct, averaged over problems. Answers are graded by rules, without "
        "a judge model. Intervals take the problem as the unit.",
    ]


def _settings(run: Run) -> dict[str, object]:
    plan = run.plan
    if run.imported:
        keys = {"Sampling": "generation", "Prompt": "prompt", "Few-shot examples": "fewshot", "Threshold": "threshold"}
        return {name: plan.data[key] for name, key in keys.items() if key in plan.data}
    return {
        "Sampling": _sampling(plan),
        "Mode, profile": f"{plan.mode}, {plan.profile}",
        "Cap on answer tokens": plan.answer_tokens,
        "Seed of answers": plan.seed,
    }


def totals_table(data: ReportData) -> Table:
    """Numbers of answers, of planned answers and of sampled tokens, and the noise shared with the base, by run."""
    devices = [run.run.environment.device or None for run in data.runs]
    totals = [run_totals(run.run, run.samples) for run in data.runs]
    noise = [run.contrast and run.contrast.noise_in_common for run in data.runs]
    shared = any(share is not None for share in noise)
    parts = zip(data.runs, totals, noise, devices, strict=True)
    rows = [(run.style, [*row, *[share] * shared, device]) for run, row, share, device in parts]
    columns = [
        RUN, Column("answers", "Answers", count), Column("planned", "Planned", count),
        Column("thinking", "Thinking tokens|sampled", count), Column("answer", "Answer tokens|sampled", count),
        Column("total", "Tokens|sampled", count),
        *[Column("noise", "Noise in common|with the original, %", percent)] * shared, Column("device", "Device"),
    ]  # fmt: skip
    return Table("costs", "Answers and tokens sampled", "data costs sortable", columns, rows)


def run_totals(run: Run, samples: Sequence[Sample]) -> list[int | None]:
    """The numbers of answers, of those planned if that is known, and of thinking tokens, answer tokens and both.

    The numbers of tokens are None for a log that does not have them.
    """
    plan, planned = run.plan, run.planned
    answers = planned and planned.count * len(plan.budgets) * plan.samples
    if any(sample.answer_tokens == UNKNOWN for sample in samples):
        return [len(samples), answers, None, None, None]
    tokens = sampled_tokens(chains_of(samples), bool(plan.reuse))
    return [len(samples), answers, *tokens, sum(tokens)]


def _sampling(plan: StoredPlan) -> str:
    if plan.temperature == 0:
        return "greedy (temperature 0)"
    return f"temperature {plan.temperature}, top-p {plan.top_p}, top-k {plan.top_k}"


def _run_details(style: RunStyle, run: Run) -> str:
    model = run.model
    steps = [{key: step.data[key] for key in SHOWN if key in step.data} for step in run.model.manifest.history]
    record = {
        "versions": run.environment.data,
        "plan": run.plan.data,
        "served with": run.model.serving.to_json(),
        "made by": steps,
    }
    text = clip(json.dumps(record, indent=2, ensure_ascii=False), RECORD_LIMIT)
    parameters = "unknown" if model.parameters is None else f"{model.parameters:,}".replace(",", THIN)
    facts = (
        f"run {run.run_id} · model {model.name} · {parameters} parameters in {model.blocks} blocks"
        f" · weights {str(model.checksum)[:16]}"
    )
    return (
        f'<details><summary>{named(style)} <span class="soft"><bdi>{esc(clip(facts, 600))}</bdi></span></summary>'
        f'<pre tabindex="0">{esc(text)}</pre></details>'
    )


KINDS = ("quantised", "scales", "embeddings", "head", "others")  # of bytes


def size_table(data: ReportData, task: str) -> Table:
    """Area, bytes and their kinds, a row per run; unknown values are empty cells."""
    rows = []
    for run in data.runs:
        kinds = run.run.model.bytes or {}
        area = run.summary.tasks[task].auc if task in run.summary.tasks else None  # while no problem is complete
        shown = None if area is None else Interval(area.value, area.low, area.high)
        cache, tokens = run.run.model.cache, data.tokens
        kept = [None, None] if cache is None or tokens is None else [cache.nbytes(tokens), cache.per_token]
        sizes = [run.nbytes, *(kinds.get(kind) for kind in KINDS), *kept]
        rows.append((run.style, [shown, *sizes]))
    columns = [RUN, Column("area", "Area, %", percent), Column("bytes", "MB", megabytes)]
    columns += [Column(kind, f"{kind.capitalize()},|MB", megabytes) for kind in KINDS]
    columns += [Column("cache", "Cache,|MB", megabytes), Column("cache_per_token", "Cache per|token, kB", kilobytes)]
    return Table(f"bytes-{task}", f"Bytes on {task}", "data sortable", columns, rows)


def kilobytes(size: float) -> str:
    """Bytes in kB without the unit, such as `36.9`."""
    return f"{size / 1e3:,.1f}"


def megabytes(size: int) -> str:
    """Bytes in MB without the unit, such as `134.5` or `0.018`."""
    return f"{size / 1e6:,.1f}" if size >= 1e7 else f"{size / 1e6:.3g}"
